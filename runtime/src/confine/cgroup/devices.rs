//! Which devices a container may use: lines for v1, an eBPF program for cgroup2. Everything not allowed is denied, also when
//! config.json has no list at all (GHSA-g54h-m393-cpwq).

use std::os::fd::OwnedFd;

use sys::Errno;
use sys::bpf::{self, Instruction};

use crate::spec::DeviceRule;

/// What every container may do, on top of config.json: make any node, use the default devices and its terminals.
const DEFAULT: &[(&str, Option<i64>, Option<i64>, &str)] = &[
    ("c", None, None, "m"),
    ("b", None, None, "m"),
    ("c", Some(1), Some(3), "rwm"),
    ("c", Some(1), Some(5), "rwm"),
    ("c", Some(1), Some(7), "rwm"),
    ("c", Some(1), Some(8), "rwm"),
    ("c", Some(1), Some(9), "rwm"),
    ("c", Some(5), Some(0), "rwm"),
    ("c", Some(5), Some(2), "rwm"),
    ("c", Some(136), None, "rwm"),
];

/// A rule, understood. `kind` is 'a', 'b' or 'c'; a missing number is any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: char,
    major: Option<i64>,
    minor: Option<i64>,
    /// 1 make, 2 read, 4 write: the kernel's bits.
    access: u32,
}

impl Rule {
    fn covers_all(&self) -> bool {
        self.kind == 'a'
    }
}

fn access_bits(text: &str) -> u32 {
    text.chars().fold(0, |bits, c| {
        bits | match c {
            'm' => 1,
            'r' => 2,
            'w' => 4,
            _ => 0,
        }
    })
}

/// The rules in order, the last that matches being the one that counts.
fn rules(given: &[DeviceRule]) -> Vec<Rule> {
    let number = |value: Option<i64>| value.filter(|value| *value >= 0);
    let given = given.iter().map(|rule| Rule {
        allow: rule.allow,
        kind: match rule.kind.as_str() {
            "c" | "u" => 'c',
            "b" => 'b',
            _ => 'a',
        },
        major: number(rule.major),
        minor: number(rule.minor),
        access: if rule.access.is_empty() { 7 } else { access_bits(&rule.access) },
    });
    let mut all = vec![Rule { allow: false, kind: 'a', major: None, minor: None, access: 7 }];
    for rule in given {
        if rule.covers_all() {
            // Whatever was said before no longer matters.
            all.clear();
        }
        all.push(rule);
    }
    let open = all.iter().all(|rule| rule.allow);
    if !open {
        all.extend(DEFAULT.iter().map(|(kind, major, minor, access)| Rule {
            allow: true,
            kind: if *kind == "c" { 'c' } else { 'b' },
            major: *major,
            minor: *minor,
            access: access_bits(access),
        }));
    }
    // Callers list the default devices too: each once is enough.
    let mut out: Vec<Rule> = Vec::with_capacity(all.len());
    for (at, rule) in all.iter().enumerate() {
        if !all[at + 1..].contains(rule) {
            out.push(*rule);
        }
    }
    out
}

/// What may be used, the defaults included, for those who know no rules against: more than the rules say together, never less.
pub(super) fn allowed(given: &[DeviceRule]) -> Vec<DeviceRule> {
    let access =
        |bits: u32| [(2, 'r'), (4, 'w'), (1, 'm')].iter().filter(|(bit, _)| bits & bit != 0).map(|(_, c)| *c).collect();
    let plain = |rule: &Rule| DeviceRule {
        allow: true,
        kind: rule.kind.to_string(),
        major: rule.major,
        minor: rule.minor,
        access: access(rule.access),
    };
    rules(given).iter().filter(|rule| rule.allow && rule.access != 0).map(plain).collect()
}

/// File and line of each write for v1.
pub(super) fn legacy_lines(given: &[DeviceRule]) -> Vec<(&'static str, String)> {
    let number = |value: Option<i64>| value.map_or("*".to_owned(), |value| value.to_string());
    let line = |rule: &Rule| {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        if rule.covers_all() {
            return (file, "a".to_owned());
        }
        let access: String =
            [(2, 'r'), (4, 'w'), (1, 'm')].iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, c)| *c).collect();
        (file, format!("{} {}:{} {access}", rule.kind, number(rule.major), number(rule.minor)))
    };
    rules(given).iter().filter(|rule| rule.access != 0).map(line).collect()
}

/// Puts the rules on a cgroup2 directory, in place of those that one `used` before has.
pub(super) fn attach_filter(dir: &OwnedFd, given: &[DeviceRule], used: bool) -> Result<(), Errno> {
    let rules = rules(given);
    if rules.iter().all(|rule| rule.allow) {
        return Ok(()); // nothing to forbid
    }
    let program = bpf::load_device_filter(&program(&rules))?;
    // A cgroup that was used before may have a filter; both would have to agree.
    if used {
        for former in bpf::device_filters(dir)? {
            bpf::detach_device_filter(dir, former)?;
        }
    }
    bpf::attach_device_filter(dir, program)
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: destination | source << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// The context has three words: access << 16 | type, major, minor. Rules are tried from the last to the first.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    const SCRATCH: u8 = 1;
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    let mut out = vec![
        instruction(LOAD_WORD, KIND, 1, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, ACCESS, 1, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, 1, 4, 0),
        instruction(LOAD_WORD, MINOR, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Conditions first, their distance to the next rule filled in when its length is known.
        let mut body = Vec::with_capacity(8);
        match rule.kind {
            'b' => body.push(instruction(JUMP_NOT_EQUAL, KIND, 0, 0, 1)),
            'c' => body.push(instruction(JUMP_NOT_EQUAL, KIND, 0, 0, 2)),
            _ => {}
        }
        if rule.access != 7 {
            body.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
            if rule.allow {
                // Allowed is what asks for nothing else.
                body.push(instruction(AND, SCRATCH, 0, 0, !rule.access as i32 & 7));
                body.push(instruction(JUMP_NOT_EQUAL, SCRATCH, 0, 0, 0));
            } else {
                body.push(instruction(AND, SCRATCH, 0, 0, rule.access as i32));
                body.push(instruction(JUMP_EQUAL, SCRATCH, 0, 0, 0));
            }
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                body.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, number as i32));
            }
        }
        body.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
        body.push(instruction(EXIT, 0, 0, 0, 0));
        let length = body.len();
        for (at, step) in body.iter_mut().enumerate() {
            if matches!(step.code, JUMP_NOT_EQUAL | JUMP_EQUAL) {
                step.offset = (length - at - 1) as i16;
            }
        }
        let unconditional = length == 2;
        out.extend(body);
        if unconditional {
            return out; // what follows could not be reached, which the verifier refuses
        }
    }
    out.extend([instruction(MOVE, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: Option<i64>, minor: Option<i64>, access: &str) -> DeviceRule {
        DeviceRule { allow, kind: kind.into(), major, minor, access: access.into() }
    }

    /// Runs the subset of eBPF that is used here.
    fn allowed(given: &[DeviceRule], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let program = program(&rules(given));
        let mut r = [0_i64; 16];
        let mut at = 0;
        loop {
            let Instruction { code, registers, offset, immediate } = program[at];
            let (destination, source) = ((registers & 15) as usize, (registers >> 4) as usize);
            at += 1;
            let mut jump = |holds| at += if holds { offset as usize } else { 0 };
            match code {
                LOAD_WORD => r[destination] = i64::from([access << 16 | kind, major, minor][offset as usize / 4]),
                MOVE_REGISTER => r[destination] = r[source],
                MOVE => r[destination] = i64::from(immediate),
                AND => r[destination] &= i64::from(immediate),
                SHIFT_RIGHT => r[destination] >>= immediate,
                JUMP_NOT_EQUAL => jump(r[destination] != i64::from(immediate)),
                JUMP_EQUAL => jump(r[destination] == i64::from(immediate)),
                EXIT => return r[0] == 1,
                _ => panic!("unknown code {code:#x}"),
            }
        }
    }

    const BLOCK: u32 = 1;
    const CHARACTER: u32 = 2;

    #[test]
    fn no_list_means_the_defaults_only() {
        for list in [vec![], vec![rule(false, "a", None, None, "rwm")], vec![rule(false, "", None, None, "")]] {
            assert!(allowed(&list, CHARACTER, 6, 1, 3));
            assert!(allowed(&list, CHARACTER, 6, 136, 77));
            assert!(allowed(&list, BLOCK, 1, 8, 0), "making a node is harmless");
            assert!(!allowed(&list, BLOCK, 2, 8, 0));
            assert!(!allowed(&list, CHARACTER, 2, 10, 200));
            assert_eq!(legacy_lines(&list)[0], ("devices.deny", "a".to_owned()));
        }
    }

    #[test]
    fn the_last_match_counts() {
        let list = [
            rule(false, "a", None, None, "rwm"),
            rule(true, "b", Some(8), None, "r"),
            rule(false, "b", Some(8), Some(1), "r"),
        ];
        assert!(allowed(&list, BLOCK, 2, 8, 0));
        assert!(!allowed(&list, BLOCK, 6, 8, 0));
        assert!(!allowed(&list, BLOCK, 2, 8, 1));
    }

    #[test]
    fn allowing_all_is_one_line() {
        assert_eq!(legacy_lines(&[rule(true, "a", None, None, "rwm")]), [("devices.allow", "a".to_owned())]);
        assert!(allowed(&[rule(true, "a", None, None, "rwm")], BLOCK, 7, 8, 0));
    }

    #[test]
    fn lines_are_the_kernels() {
        let lines = legacy_lines(&[rule(true, "c", Some(10), Some(200), "rw")]);
        assert!(lines.contains(&("devices.allow", "c 10:200 rw".to_owned())));
        assert!(lines.contains(&("devices.allow", "c 136:* rwm".to_owned())));
    }
}
