//! The compiler against an interpreter of BPF, against a plain reading of the rules, and against seccompiler.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sys::seccomp::Instruction;

use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// What the kernel hands to a filter.
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    arguments: [u64; 6],
}

/// Runs a filter as the kernel would.
fn interpret(program: &[Instruction], call: &Call) -> u32 {
    let word = |at: u32| match at {
        0 => call.number,
        4 => call.arch,
        16.. => {
            let value = call.arguments[((at - 16) / 8) as usize];
            if at.is_multiple_of(8) { value as u32 } else { (value >> 32) as u32 }
        }
        _ => panic!("odd offset {at}"),
    };
    let (mut at, mut a) = (0_usize, 0_u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |holds| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return k,
            _ => panic!("unknown code {code:#x}"),
        }
    }
}

fn filter(text: &str) -> Filter {
    let section: Seccomp = serde_json::from_str(text).expect("parses");
    compile(&section, &mut Vec::new()).expect("compiles").expect("a filter")
}

fn call(number: u32, arguments: [u64; 6]) -> Call {
    Call { number, arch: X86_64, arguments }
}

const ALLOW: u32 = 0x7fff_0000;
const fn errno(value: u32) -> u32 {
    0x0005_0000 | value
}

#[test]
fn each_rule_has_its_own_errno_and_unknown_calls_the_default() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],"syscalls":[
            {"names":["read","write","statx","no_such_call"],"action":"SCMP_ACT_ALLOW"},
            {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    for (number, arch, expected) in [
        (0, X86_64, ALLOW),
        (1, X86_64, ALLOW),
        (2, X86_64, errno(1)),
        (332, X86_64, ALLOW),
        (333, X86_64, errno(1)),
        (435, X86_64, errno(38)),
        (62, X86_64, 0x8000_0000),
        (436, X86_64, errno(38)),        // newer than the profile
        (0x4000_0000, X86_64, ALLOW),    // x32 read
        (0x4000_0002, X86_64, errno(1)), // x32 open
        (u32::MAX, X86_64, errno(1)),    // skipped by a tracer
        (3, X86, ALLOW),                 // read
        (0, X86, errno(1)),              // restart_syscall
        (383, X86, ALLOW),               // statx
        (37, X86, 0x8000_0000),          // kill
        (0, 0xc000_00b7, 0x8000_0000),   // aarch64 cannot be judged
    ] {
        assert_eq!(
            interpret(&filter.program, &Call { number, arch, arguments: [0; 6] }),
            expected,
            "{number} {arch:#x}"
        );
    }
}

#[test]
fn without_x32_its_calls_kill() {
    let filter =
        filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["kill"],"action":"SCMP_ACT_ERRNO"}]}"#);
    assert_eq!(interpret(&filter.program, &call(0x4000_0000, [0; 6])), 0x8000_0000);
    assert_eq!(interpret(&filter.program, &call(9999, [0; 6])), ALLOW); // a lenient default stays lenient
}

#[test]
fn arguments_have_64_bits() {
    let big = 0x1_0000_0005_u64;
    for (op, holds) in [
        ("NE", [true, false, true]),
        ("LT", [true, false, false]),
        ("LE", [true, true, false]),
        ("EQ", [false, true, false]),
        ("GE", [false, true, true]),
        ("GT", [false, false, true]),
    ] {
        let filter = filter(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",
                "args":[{{"index":2,"value":{big},"op":"SCMP_CMP_{op}"}}]}}]}}"#
        ));
        // Differences in the low half, then in the high one.
        for (values, name) in [([big - 1, big, big + 1], "low"), ([5, big, big + (1 << 32)], "high")] {
            let found = values.map(|value| interpret(&filter.program, &call(0, [0, 0, value, 0, 0, 0])) == ALLOW);
            assert_eq!(found, holds, "{op} {name}");
        }
    }
}

#[test]
fn masked_equality_as_for_clone() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert_eq!(interpret(&filter.program, &call(56, [0x11, 0, 0, 0, 0, 0])), ALLOW);
    assert_eq!(interpret(&filter.program, &call(56, [0x1000_0011, 0, 0, 0, 0, 0])), errno(1));
}

#[test]
fn a_twice_tested_argument_means_either() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    for (value, expected) in [(0, ALLOW), (8, ALLOW), (1, errno(1))] {
        assert_eq!(interpret(&filter.program, &call(135, [value, 0, 0, 0, 0, 0])), expected);
    }
}

#[test]
fn refusals() {
    for (text, message) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY is not supported yet"),
        (r#"{"defaultAction":"X"}"#, "action: \"X\" is unknown"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "errnoRet: 5000 is no errno"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["X"]}"#, "architectures: \"X\" is unknown"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}"#, "flags: \"X\" is unknown"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_TRAP","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "syscalls[].args[].index: 6 is not within 0 to 5",
        ),
    ] {
        let section: Seccomp = serde_json::from_str(text).expect("parses");
        assert_eq!(compile(&section, &mut Vec::new()).expect_err(text).to_string(), message);
    }
}

#[test]
fn allowing_everything_is_no_filter() {
    let section: Seccomp = serde_json::from_str(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    )
    .expect("parses");
    assert_eq!(compile(&section, &mut Vec::new()), Ok(None));
}

#[test]
fn a_profile_of_every_call_fits_and_far_jumps_work() {
    // Alternating actions make the worst case: a range per call.
    let names: Vec<&str> = syscalls::names().collect();
    let rules: Vec<serde_json::Value> = names
        .iter()
        .enumerate()
        .map(|(at, name)| serde_json::json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": at % 7 + 2}))
        .collect();
    let text = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]});
    let filter = filter(&text.to_string());
    assert!(filter.program.len() < 4096, "{}", filter.program.len());
    for (at, name) in names.iter().enumerate() {
        if let Some(number) = syscalls::number(name, syscalls::Column::X86_64) {
            assert_eq!(interpret(&filter.program, &call(number, [0; 6])), errno(at as u32 % 7 + 2), "{name}");
        }
    }
}

/// A test as (argument, operator, value).
type Condition = (u8, u8, u64);

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    let value = prop_oneof![0..4_u64, Just(u64::from(u32::MAX)), Just(1 << 32), Just((1 << 32) + 1), any::<u64>()];
    proptest::collection::vec((0..6_u8, 0..7_u8, value), 0..3).prop_filter("one test per argument", |list| {
        list.iter().enumerate().all(|(at, test)| list[..at].iter().all(|other| other.0 != test.0))
    })
}

const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const MASK: u64 = 0xff_0000_00ff;

fn holds(condition: &Condition, arguments: &[u64; 6]) -> bool {
    let (index, operator, value) = *condition;
    let found = arguments[index as usize];
    match OPERATORS[operator as usize] {
        "NE" => found != value,
        "LT" => found < value,
        "LE" => found <= value,
        "EQ" => found == value,
        "GE" => found >= value,
        "GT" => found > value,
        _ => found & MASK == value & MASK,
    }
}

proptest! {
    /// Program, plain reading of the rules, and seccompiler's program all agree.
    #[test]
    fn agrees_with_seccompiler(
        rules in proptest::collection::btree_map(0..334_u32, proptest::collection::vec(conditions(), 1..3), 1..12),
        extra in any::<[u64; 6]>(),
        small in proptest::array::uniform6(0..5_u64),
    ) {
        use seccompiler as other;
        let by_number: BTreeMap<u32, &str> =
            syscalls::names().filter_map(|name| Some((syscalls::number(name, syscalls::Column::X86_64)?, name))).collect();
        let rules: BTreeMap<u32, Vec<Vec<Condition>>> =
            rules.into_iter().filter(|(number, _)| by_number.contains_key(number)).collect();
        prop_assume!(!rules.is_empty());
        let mut json = Vec::new();
        let mut theirs: BTreeMap<i64, Vec<other::SeccompRule>> = BTreeMap::new();
        for (number, list) in &rules {
            for conditions in list {
                let args: Vec<_> = conditions.iter().map(|(index, operator, value)| {
                    let operator = OPERATORS[*operator as usize];
                    let (value, two) = if operator == "MASKED_EQ" { (MASK, value & MASK) } else { (*value, 0) };
                    serde_json::json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{operator}")})
                }).collect();
                json.push(serde_json::json!({"names": [by_number[number]], "action": "SCMP_ACT_ALLOW", "args": args}));
                let entry = theirs.entry(i64::from(*number)).or_default();
                if !conditions.is_empty() {
                    let list = conditions.iter().map(|(index, operator, value)| {
                        use other::SeccompCmpOp as Op;
                        let operator = match OPERATORS[*operator as usize] {
                            "NE" => Op::Ne, "LT" => Op::Lt, "LE" => Op::Le, "EQ" => Op::Eq, "GE" => Op::Ge, "GT" => Op::Gt,
                            _ => Op::MaskedEq(MASK),
                        };
                        other::SeccompCondition::new(*index, other::SeccompCmpArgLen::Qword, operator, *value).expect("condition")
                    }).collect();
                    entry.push(other::SeccompRule::new(list).expect("rule"));
                }
            }
            // For us a rule without tests beats the others; there an empty list is how to say so.
            if list.iter().any(Vec::is_empty) {
                theirs.insert(i64::from(*number), Vec::new());
            }
        }
        // A lenient default: seccompiler has no ENOSYS for newer calls.
        let section = serde_json::json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": json});
        let ours = filter(&section.to_string());
        let theirs: other::BpfProgram = other::SeccompFilter::new(
            theirs, other::SeccompAction::Log, other::SeccompAction::Allow, other::TargetArch::x86_64,
        ).expect("filter").try_into().expect("program");
        let theirs: Vec<Instruction> =
            theirs.iter().map(|i| Instruction { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect();
        for number in rules.keys().flat_map(|number| [number.saturating_sub(1), *number, number + 1]) {
            let near = rules.get(&number).and_then(|list| list.first()).map(|conditions| {
                let mut arguments = extra;
                for (index, _, value) in conditions { arguments[*index as usize] = *value; }
                arguments
            });
            for arguments in [extra, small].into_iter().chain(near) {
                let call = call(number, arguments);
                let allowed = rules.get(&number).is_some_and(|list| list.iter().any(|conditions| conditions.iter().all(|c| holds(c, &arguments))));
                let expected = if allowed { ALLOW } else { 0x7ffc_0000 };
                prop_assert_eq!(interpret(&ours.program, &call), expected, "{:?}", call);
                prop_assert_eq!(interpret(&theirs, &call), expected, "seccompiler, {:?}", call);
            }
        }
    }
}
