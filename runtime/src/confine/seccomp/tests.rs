//! The compiler against an interpreter of BPF, against a plain reading of the rules, and against seccompiler.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sys::seccomp::Instruction;

use super::profile::Arch;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

const AARCH64: u32 = 0xc000_00b7;
const ARM: u32 = 0x4000_0028;

#[path = "../../../tests/suite/bpf.rs"]
mod bpf;

/// A plain reading of profiles, to compare with.
mod judge;

use bpf::Call;

/// Runs a filter as the kernel would.
fn interpret(program: &[Instruction], call: &Call) -> u32 {
    bpf::run(program, call).0
}

fn filter(text: &str) -> Filter {
    let section: Seccomp = serde_json::from_str(text).expect("parses");
    compile(&section, &mut Vec::new()).expect("compiles").expect("a filter")
}

fn call(number: u32, arguments: [u64; 6]) -> Call {
    Call { number, arch: X86_64, arguments }
}

/// The number of a call here.
fn number(name: &str) -> Option<u32> {
    syscalls::number(syscalls::row(name)?, Arch::NATIVE.column()).map(u32::from)
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
        (u32::MAX, X86_64, errno(38)),   // skipped by a tracer
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
    assert_eq!(interpret(&filter.program, &call(u32::MAX, [0; 6])), ALLOW); // skipped by a tracer
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
fn metadata_that_nobody_gets_is_told() {
    let warnings = |text: &str| {
        let section = serde_json::from_str(text).expect("json");
        let mut warnings = Vec::new();
        compile_for(Arch::X86_64, &section, &mut warnings).expect("compiles");
        warnings
    };
    let told = warnings(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"what for"}"#);
    assert!(told.len() == 1 && told[0].starts_with("linux.seccomp.listenerMetadata"), "{told:?}");
    for quiet in [
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"what for","listenerPath":"/agent"}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":""}"#,
    ] {
        assert_eq!(warnings(quiet), Vec::<String>::new(), "{quiet}");
    }
}

#[test]
fn refusals() {
    let rule = |rule: &str| format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],{rule}}}]}}"#);
    let argument = |test: &str| rule(&format!(r#""action":"SCMP_ACT_TRAP","args":[{test}]"#));
    let listening = r#""listenerPath":"/agent","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}"#;
    let cases: &[(String, &str)] = &[
        ("{}".into(), "defaultAction is missing"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#.into(), "defaultAction: SCMP_ACT_NOTIFY cannot be the default"),
        (r#"{"defaultAction":"X"}"#.into(), "defaultAction: \"X\" is unknown"),
        (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#.into(), "defaultErrnoRet: 5000 is no errno"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#.into(),
            "defaultErrnoRet: SCMP_ACT_ALLOW takes none",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["X86"]}"#.into(), "architectures: \"X86\" is unknown"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}"#.into(), "flags: \"X\" is unknown"),
        (rule(r#""action":"99""#), "syscalls[0].action: \"99\" is unknown"),
        (rule(r#""action":null"#), "syscalls[0].action is missing"),
        (rule(r#""action":"SCMP_ACT_TRACE","errnoRet":65536"#), "syscalls[0].errnoRet: 65536 is no errno"),
        (rule(r#""action":"SCMP_ACT_KILL","errnoRet":1"#), "syscalls[0].errnoRet: SCMP_ACT_KILL takes none"),
        (rule(r#""action":"SCMP_ACT_NOTIFY""#), "syscalls[0].action: SCMP_ACT_NOTIFY needs linux.seccomp.listenerPath"),
        (argument(r#"{"index":6,"value":0,"op":"SCMP_CMP_EQ"}"#), "syscalls[0].args[0].index: 6 is not within 0 to 5"),
        (argument(r#"{"index":0,"value":0,"op":"EQ"}"#), "syscalls[0].args[0].op: \"EQ\" is unknown"),
        (argument(r#"{"index":0,"value":0}"#), "syscalls[0].args[0].op is missing"),
        (
            format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO",{listening}]}}"#),
            "with SCMP_ACT_NOTIFY, sendmsg has to be allowed without conditions",
        ),
        (
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW",{listening},{{"names":["sendmsg"],"action":"SCMP_ACT_NOTIFY"}}]}}"#
            ),
            "with SCMP_ACT_NOTIFY, sendmsg has to be allowed without conditions",
        ),
        (
            format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{listening}]}}"#).replace("/agent", "agent"),
            "listenerPath: \"agent\" is not an absolute path",
        ),
    ];
    for (text, message) in cases {
        let section: Seccomp = serde_json::from_str(text).expect(text);
        let error = compile(&section, &mut Vec::new()).expect_err(text).to_string();
        assert!(error.starts_with(message), "{text}: {error}");
    }
}

#[test]
fn flags_mean_what_they_say() {
    use sys::seccomp::flag;
    let flags = |list: &str, action: &str| {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":{list},"listenerPath":"/agent",
                "syscalls":[{{"names":["mkdir"],"action":"{action}"}}]}}"#
        );
        filter(&text).flags
    };
    assert_eq!(flags("null", "SCMP_ACT_ERRNO"), flag::SPEC_ALLOW);
    assert_eq!(flags("[]", "SCMP_ACT_ERRNO"), 0);
    assert_eq!(flags(r#"["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]"#, "SCMP_ACT_ERRNO"), flag::LOG);
    let waiting = r#"["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    assert_eq!(flags(waiting, "SCMP_ACT_ERRNO"), 0, "nobody is waited for");
    assert_eq!(flags(waiting, "SCMP_ACT_NOTIFY"), flag::WAIT_KILLABLE_RECV | flag::NEW_LISTENER);
}

#[test]
fn a_listener_is_for_profiles_that_notify() {
    let text = |action: &str, names: &str| {
        format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/agent",
                "syscalls":[{{"names":["{names}"],"action":"{action}"}},{{"names":["read"],"action":"SCMP_ACT_LOG"}}]}}"#
        )
    };
    assert_eq!(filter(&text("SCMP_ACT_NOTIFY", "mkdir")).listener.expect("one").path.to_str(), Some("/agent"));
    assert_eq!(filter(&text("SCMP_ACT_ERRNO", "mkdir")).listener, None);
    let unknown = filter(&text("SCMP_ACT_NOTIFY", "no_such_call"));
    assert_eq!((unknown.listener, unknown.unknown), (None, vec!["no_such_call".to_owned()]));
}

#[test]
fn what_the_default_says_is_no_rule() {
    let filter = filter(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"syscalls":[
            {"names":["personality"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":4,"op":"SCMP_CMP_GE"}]},
            {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":9,"op":"SCMP_CMP_LT"}]},
            {"names":["read"],"action":"SCMP_ACT_ERRNO"},{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#,
    );
    let personality = number("personality").expect("known");
    assert_eq!(interpret(&filter.program, &call(personality, [5, 0, 0, 0, 0, 0])), ALLOW, "libseccomp skips the first");
    assert_eq!(interpret(&filter.program, &call(personality, [9, 0, 0, 0, 0, 0])), errno(1));
    assert_eq!(interpret(&filter.program, &call(number("read").expect("known"), [0; 6])), ALLOW);
}

#[test]
fn socketcall_is_as_strict_as_what_it_hides() {
    let text = include_str!("../../../tests/suite/data/default-profile.json");
    let filter = filter(text);
    let socketcall = |number: u64| {
        interpret(&filter.program, &Call { number: 102, arch: X86, arguments: [number, 0xffff_d000, 0, 0, 0, 0] })
    };
    // connect(2) is allowed whatever its arguments; socket(2) only for some families, which cannot be seen from here.
    assert_eq!((socketcall(3), socketcall(1), socketcall(99)), (ALLOW, errno(1), errno(1)));
    let denying = self::filter(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[{"names":["socket"],
            "action":"SCMP_ACT_ERRNO","errnoRet":97,"args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#,
    );
    let answer = |number, arguments| interpret(&denying.program, &Call { number, arch: X86, arguments });
    assert_eq!(answer(102, [1, 0, 0, 0, 0, 0]), errno(97), "it could be the family that is denied");
    assert_eq!(answer(102, [3, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!((answer(359, [38, 0, 0, 0, 0, 0]), answer(359, [1, 0, 0, 0, 0, 0])), (errno(97), ALLOW));
}

#[test]
fn arm_beside_aarch64() {
    let section: Seccomp = serde_json::from_str(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"architectures":["SCMP_ARCH_AARCH64","SCMP_ARCH_ARM","SCMP_ARCH_X86"],
            "syscalls":[{"names":["read","openat","set_tls","statx","socket"],"action":"SCMP_ACT_ALLOW"}]}"#,
    )
    .expect("parses");
    let filter = compile_for(Arch::Aarch64, &section, &mut Vec::new()).expect("compiles").expect("a filter");
    for (number, arch, expected) in [
        (63, AARCH64, ALLOW),
        (64, AARCH64, errno(1)),
        (291, AARCH64, ALLOW),
        (292, AARCH64, errno(38)),
        (3, ARM, ALLOW),
        (322, ARM, ALLOW),
        (397, ARM, ALLOW),
        (398, ARM, errno(38)),
        (0xf_0002, ARM, errno(1)),
        (0xf_0005, ARM, ALLOW),
        (0xf_0008, ARM, errno(38)),
        (3, X86, 0x8000_0000),
        (0, X86_64, 0x8000_0000),
    ] {
        let call = Call { number, arch, arguments: [0; 6] };
        assert_eq!(interpret(&filter.program, &call), expected, "{number:#x} {arch:#x}");
    }
}

#[test]
fn frequent_calls_take_few_steps() {
    let program = filter(include_str!("../../../tests/suite/data/default-profile.json")).program;
    assert!(program.len() < 600, "{}", program.len());
    let steps = |name| bpf::run(&program, &call(number(name).expect(name), [0; 6])).1;
    for name in ["read", "write", "getpid", "futex", "recvfrom"] {
        assert!(steps(name) <= 10, "{name}: {}", steps(name));
    }
    let worst = (0..500).map(|number| bpf::run(&program, &call(number, [0; 6])).1).max();
    assert!(worst < Some(30), "{worst:?}");
}

#[test]
fn a_profile_too_long_is_refused() {
    let args: Vec<_> =
        (0..6).map(|index| serde_json::json!({"index": index, "value": 7_u64 << 33, "op": "SCMP_CMP_GT"})).collect();
    let rules: Vec<_> = (0..250)
        .map(|value| {
            let mut args = args.clone();
            args[0]["value"] = serde_json::json!((value << 40) + 1_u64);
            serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": args})
        })
        .collect();
    let section = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    let section: Seccomp = serde_json::from_value(section).expect("parses");
    let error = compile(&section, &mut Vec::new()).expect_err("too long").to_string();
    assert!(error.ends_with("more than the kernel's 4096"), "{error}");
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
        if let Some(number) = number(name) {
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
            syscalls::names().filter_map(|name| Some((number(name)?, name))).collect();
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

/// Figures, not a test: `cargo test -p runtime --release -- --ignored --nocapture figures`.
#[test]
#[ignore = "prints figures"]
fn figures() {
    let text = include_str!("../../../tests/suite/data/default-profile.json");
    let time = |what: &str, work: &mut dyn FnMut()| {
        let best = (0..2000)
            .map(|_| {
                let from = std::time::Instant::now();
                work();
                from.elapsed()
            })
            .min()
            .expect("some");
        println!("{what}: {best:?}");
    };
    time("parse", &mut || drop(std::hint::black_box(serde_json::from_str::<Seccomp>(text).expect("parses"))));
    let section: Seccomp = serde_json::from_str(text).expect("parses");
    time("compile", &mut || drop(std::hint::black_box(compile(&section, &mut Vec::new()).expect("compiles"))));
    let program = filter(text).program;
    // What a cache would have to do at least.
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("filter");
    std::fs::write(&path, vec![1; program.len() * 8]).expect("write");
    time("open, stat, read and close a file of that size", &mut || {
        use std::io::Read;
        let mut file = std::fs::File::open(&path).expect("open");
        let mut bytes = Vec::with_capacity(file.metadata().expect("stat").len() as usize);
        drop(std::hint::black_box(file.read_to_end(&mut bytes)));
    });
    println!("{} instructions", program.len());
    for name in ["read", "write", "getpid", "futex", "openat", "mmap", "mount"] {
        let (_, steps) = bpf::run(&program, &call(number(name).expect(name), [0; 6]));
        println!("{name}: {steps} of them are executed");
    }
}
