//! Random profiles, their programs against a direct reading of the JSON: slow, without slots, ranges or trees.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ACTIONS: [(&str, u32, bool); 9] = [
    ("SCMP_ACT_ALLOW", ALLOW, false),
    ("SCMP_ACT_ERRNO", 0x0005_0000, true),
    ("SCMP_ACT_TRACE", 0x7ff0_0000, true),
    ("SCMP_ACT_LOG", 0x7ffc_0000, false),
    ("SCMP_ACT_TRAP", 0x0003_0000, false),
    ("SCMP_ACT_KILL", 0, false),
    ("SCMP_ACT_KILL_THREAD", 0, false),
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000, false),
    ("SCMP_ACT_NOTIFY", 0x7fc0_0000, false),
];
const NAMES: [&str; 21] = [
    "read",
    "write",
    "socket",
    "connect",
    "accept",
    "send",
    "socketcall",
    "ipc",
    "semop",
    "shmget",
    "clone",
    "openat",
    "execve",
    "statx",
    "set_tls",
    "personality",
    "futex_wait",
    "mmap2",
    "ioctl",
    "nonsense",
    "sendmsg",
];
const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const INTERESTING: [u64; 9] = [0, 1, 3, 5, 9, 38, u32::MAX as u64, 1 << 32, (1 << 32) + 1];

fn action_of(word: &Value, value: &Value) -> u32 {
    let (_, base, valued) = ACTIONS.iter().find(|(name, ..)| word == name).expect("an action");
    base | if *valued { value.as_u64().unwrap_or(1) as u32 } else { 0 }
}

fn holds(test: &Value, arguments: &[u64; 6], wide: bool) -> bool {
    let cut = |value: u64| if wide { value } else { value & 0xffff_ffff };
    let found = cut(arguments[test["index"].as_u64().expect("index") as usize]);
    let value = test["value"].as_u64().expect("value");
    let two = test["valueTwo"].as_u64().expect("valueTwo");
    match test["op"].as_str().expect("op").trim_start_matches("SCMP_CMP_") {
        "NE" => found != cut(value),
        "LT" => found < cut(value),
        "LE" => found <= cut(value),
        "EQ" => found == cut(value),
        "GE" => found >= cut(value),
        "GT" => found > cut(value),
        _ => found & cut(value) == cut(two & value),
    }
}

/// The call of i386 behind a door: its name.
fn behind_door(name: &str, argument: u64) -> Option<&'static str> {
    match (name, argument & 0xffff_ffff) {
        ("socketcall", 1) => Some("socket"),
        ("socketcall", 3) => Some("connect"),
        ("socketcall", 5) => Some("accept"),
        ("socketcall", 9) => Some("send"),
        ("ipc", 1) => Some("semop"),
        ("ipc", 23) => Some("shmget"),
        _ => None,
    }
}

/// The rules for a call, without those that say what the default says, as (action, tests).
fn rules_for<'a>(profile: &'a Value, default: u32, name: &str) -> Vec<(u32, &'a Vec<Value>)> {
    let rules = profile["syscalls"].as_array().expect("rules").iter();
    rules
        .filter(|rule| rule["names"].as_array().expect("names").iter().any(|known| known == name))
        .map(|rule| (action_of(&rule["action"], &rule["errnoRet"]), rule["args"].as_array().expect("args")))
        .filter(|(action, _)| *action != default)
        .collect()
}

fn repeats(tests: &[Value]) -> bool {
    tests.iter().enumerate().any(|(at, test)| tests[..at].iter().any(|other| other["index"] == test["index"]))
}

fn judge(native: Arch, profile: &Value, call: &Call) -> u32 {
    let listed = |word: &str| profile["architectures"].as_array().expect("list").iter().any(|arch| arch == word);
    let x32 = call.number >= 0x4000_0000;
    let default = action_of(&profile["defaultAction"], &profile["defaultErrnoRet"]);
    let lenient = matches!(default & 0xffff_0000, 0x7fff_0000 | 0x7ffc_0000 | 0x7ff0_0000);
    let arch = match (native, call.arch) {
        (Arch::X86_64, X86_64) if call.number == u32::MAX => return if lenient { default } else { errno(38) },
        (Arch::X86_64, X86_64) if x32 && !listed("SCMP_ARCH_X32") => return 0x8000_0000,
        (Arch::X86_64, X86_64) if x32 => Arch::X32,
        (Arch::X86_64, X86_64) => Arch::X86_64,
        (Arch::X86_64, X86) if listed("SCMP_ARCH_X86") => Arch::X86,
        (Arch::Aarch64, AARCH64) => Arch::Aarch64,
        (Arch::Aarch64, ARM) if listed("SCMP_ARCH_ARM") => Arch::Arm,
        _ => return 0x8000_0000,
    };
    let number_of = |name: &str| {
        let number = u32::from(syscalls::number(syscalls::row(name)?, arch.column())?);
        Some(if number >= 600 { 0xf_0000 + number - 600 } else { number })
    };
    let number = if arch == Arch::X32 { call.number & !0x4000_0000 } else { call.number };
    let wide = !matches!(arch, Arch::X86 | Arch::Arm);
    let name = NAMES.into_iter().find(|name| number_of(name) == Some(number));
    if let Some(name) = name {
        let rules = rules_for(profile, default, name);
        if let Some((action, _)) = rules.iter().find(|(_, tests)| tests.is_empty()) {
            return *action;
        }
        for (action, tests) in &rules {
            let all = tests.iter().all(|test| holds(test, &call.arguments, wide));
            let any = repeats(tests) && tests.iter().any(|test| holds(test, &call.arguments, wide));
            if all || any {
                return *action;
            }
        }
        if let Some(hidden) = behind_door(name, call.arguments[0]).filter(|_| arch == Arch::X86) {
            let rules = rules_for(profile, default, hidden);
            if let Some((action, _)) = rules.iter().find(|(_, tests)| tests.is_empty()) {
                return *action;
            }
            let level = |action: u32| (action & 0xffff_0000) as i32;
            if let Some((action, _)) = rules.iter().find(|(action, _)| level(*action) < level(default)) {
                return *action;
            }
        }
    }
    let named =
        profile["syscalls"].as_array().expect("rules").iter().flat_map(|rule| rule["names"].as_array().expect("names"));
    let largest = named.filter_map(|name| number_of(name.as_str()?)).filter(|number| *number < 0xf_0000).max();
    let private = arch == Arch::Arm && (0xf_0000..0xf_0008).contains(&number);
    if !lenient && !private && largest.is_none_or(|largest| number > largest) { errno(38) } else { default }
}

prop_compose! {
    fn argument()(index in 0..3, op in 0..7_usize, value in 0..9_usize, two in 0..9_usize) -> Value {
        json!({"index": index, "op": format!("SCMP_CMP_{}", OPERATORS[op]), "value": INTERESTING[value],
            "valueTwo": INTERESTING[two]})
    }
}

prop_compose! {
    fn rule()(
        names in proptest::collection::vec(0..20_usize, 1..4),
        action in 0..9_usize,
        value in proptest::option::of(2..4_u32),
        args in proptest::collection::vec(argument(), 0..3),
    ) -> Value {
        let names: Vec<&str> = names.into_iter().map(|name| NAMES[name]).collect();
        let (word, _, valued) = ACTIONS[action];
        let mut rule = json!({"names": names, "action": word, "args": args});
        if let Some(value) = value.filter(|_| valued) {
            rule["errnoRet"] = value.into();
        }
        rule
    }
}

prop_compose! {
    fn profile()(
        default in 0..8_usize,
        rules in proptest::collection::vec(rule(), 0..12),
        arches in proptest::sample::subsequence(vec!["X86_64", "X86", "X32", "AARCH64", "ARM", "RISCV64"], 0..6),
    ) -> Value {
        let arches: Vec<String> = arches.into_iter().map(|arch| format!("SCMP_ARCH_{arch}")).collect();
        // Handing over the listener has to be possible.
        let mut rules = rules;
        rules.push(json!({"names": ["sendmsg"], "action": "SCMP_ACT_ALLOW", "args": []}));
        json!({"defaultAction": ACTIONS[default].0, "architectures": arches, "syscalls": rules, "listenerPath": "/agent"})
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn programs_do_what_profiles_say(
        profile in profile(),
        arguments in proptest::collection::vec(proptest::array::uniform6(0..9_usize), 4),
        numbers in proptest::collection::vec(any::<u32>(), 3),
        arm in any::<bool>(),
    ) {
        let native = if arm { Arch::Aarch64 } else { Arch::X86_64 };
        let section: Seccomp = serde_json::from_value(profile.clone()).expect("parses");
        let Some(filter) = compile_for(native, &section, &mut Vec::new()).expect("compiles") else {
            return Ok(());
        };
        let columns = [Arch::X86_64, Arch::X86, Arch::X32, Arch::Aarch64, Arch::Arm].map(Arch::column);
        let known = NAMES.iter().filter_map(|name| syscalls::row(name));
        let known = known.flat_map(|row| columns.into_iter().filter_map(move |column| syscalls::number(row, column)));
        let known = known.map(|number| if number >= 600 { 0xf_0000 + u32::from(number) - 600 } else { number.into() });
        let near = known.flat_map(|number| [number.saturating_sub(1), number, number + 1]);
        for number in near.chain(numbers).chain([u32::MAX, 0x3fff_ffff, 0x4000_0000, 0xf_0000, 0xf_0008]) {
            for number in [number, number | 0x4000_0000] {
                for arch in [X86_64, X86, AARCH64, ARM, 0x1234] {
                    for picks in &arguments {
                        let call = Call { number, arch, arguments: picks.map(|pick| INTERESTING[pick]) };
                        let expected = judge(native, &profile, &call);
                        prop_assert_eq!(interpret(&filter.program, &call), expected, "{:?}\n{}", call, profile);
                    }
                }
            }
        }
    }
}
