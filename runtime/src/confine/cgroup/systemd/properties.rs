//! `linux.resources` as properties of a unit. systemd writes cgroup files by itself, again after every `daemon-reload`: what it
//! does not know of it would undo. Properties are coarser than files in places, so the files are written afterwards all the same.

use super::super::unified::{swap_alone, weight_of_shares};
use crate::spec::{DeviceRule, Resources};
use sys::dbus::Value;

/// A name and a value.
pub(crate) type Property = (String, Value);

const NO_LIMIT: u64 = u64::MAX;
const DEFAULT_PERIOD: u64 = 100_000;

/// What the systemd at hand can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// No v1 hierarchies.
    pub(crate) unified: bool,
    pub(crate) version: u32,
}

/// Whether the version matters for these.
pub(crate) fn needs_version(resources: &Resources) -> bool {
    let cpu = &resources.cpu;
    let unified = |file| resources.unified.contains_key(file);
    cpu.period.is_some()
        || cpu.idle.is_some()
        || !cpu.cpus.is_empty()
        || !cpu.mems.is_empty()
        || ["cpu.max", "cpu.idle", "cpuset.cpus", "cpuset.mems"].into_iter().any(unified)
}

/// The number in `252.22-1~deb12u1`, `v249`, `systemd 255`.
pub(crate) fn version(text: &str) -> u32 {
    let start = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
    let digits = &text[start..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or(0)
}

/// The first systemd with CPUQuotaPeriodUSec.
const HAS_PERIOD: u32 = 242;
/// The first with AllowedCPUs and AllowedMemoryNodes.
const HAS_CPUSET: u32 = 244;
/// The first that takes a weight of 0 for idle.
const HAS_IDLE: u32 = 252;

/// All limits that systemd has a property for.
pub(crate) fn of_resources(resources: &Resources, can: Abilities) -> Vec<Property> {
    let mut out = List { can, out: Vec::new() };
    let (memory, cpu) = (&resources.memory, &resources.cpu);
    let amount = |value: i64| u64::try_from(value).unwrap_or(NO_LIMIT);
    if let Some(limit) = memory.limit.filter(|limit| *limit != 0) {
        out.number(if can.unified { "MemoryMax" } else { "MemoryLimit" }, amount(limit));
    }
    if can.unified {
        if let Some(reservation) = memory.reservation.filter(|reservation| *reservation != 0) {
            out.number("MemoryLow", amount(reservation));
        }
        if let Some(swap) = swap_alone(memory.limit, memory.swap) {
            out.limit("MemorySwapMax", &swap);
        }
        if let Some(weight) = cpu.shares.map(weight_of_shares).filter(|weight| *weight != 0) {
            out.number("CPUWeight", weight);
        }
        if cpu.idle == Some(1) && can.version >= HAS_IDLE {
            out.set("CPUWeight", Value::U64(0));
        }
    } else {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            out.number("CPUShares", shares);
        }
        if let Some(weight) = resources.block_io.weight.filter(|weight| *weight != 0) {
            out.number("BlockIOWeight", weight.into());
        }
    }
    out.quota(cpu.quota, cpu.period);
    match resources.pids.limit {
        None => {}
        Some(0) => out.number("TasksMax", 1),
        Some(limit) => out.number("TasksMax", amount(limit)),
    }
    out.set_of_numbers("AllowedCPUs", &cpu.cpus);
    out.set_of_numbers("AllowedMemoryNodes", &cpu.mems);
    if can.unified {
        resources.unified.iter().for_each(|(file, value)| out.file(file, value));
    }
    out.out
}

struct List {
    can: Abilities,
    out: Vec<Property>,
}

impl List {
    /// The last word on a property counts, and systemd gets it once.
    fn set(&mut self, name: &str, value: Value) {
        self.out.retain(|(known, _)| known != name);
        self.out.push((name.to_owned(), value));
    }

    fn number(&mut self, name: &str, value: u64) {
        self.set(name, Value::U64(value));
    }

    /// A number or `max`; anything else is for the kernel to refuse.
    fn limit(&mut self, name: &str, text: &str) {
        if let Some(value) = if text == "max" { Some(NO_LIMIT) } else { text.parse().ok() } {
            self.number(name, value);
        }
    }

    fn quota(&mut self, quota: Option<i64>, period: Option<u64>) {
        let (quota, period) = (quota.filter(|quota| *quota != 0), period.filter(|period| *period != 0));
        if let Some(period) = period.filter(|_| self.can.version >= HAS_PERIOD) {
            self.number("CPUQuotaPeriodUSec", period);
        }
        let Some(quota) = quota else { return };
        let per_second = match u64::try_from(quota) {
            Err(_) => NO_LIMIT,
            // systemd keeps whole percents: less than asked for would be wrong, so up to the next.
            Ok(quota) => {
                let exact = quota.saturating_mul(1_000_000) / period.unwrap_or(DEFAULT_PERIOD);
                exact.checked_next_multiple_of(10_000).unwrap_or(NO_LIMIT)
            }
        };
        self.number("CPUQuotaPerSecUSec", per_second);
    }

    fn set_of_numbers(&mut self, name: &str, list: &str) {
        if let Some(mask) = mask(list).filter(|mask| !mask.is_empty() && self.can.version >= HAS_CPUSET) {
            self.set(name, Value::Array("y".into(), mask.into_iter().map(Value::Byte).collect()));
        }
    }

    /// A file of cgroup2, if there is a property for it.
    fn file(&mut self, file: &str, value: &str) {
        let value = value.trim();
        match file {
            "memory.max" => self.limit("MemoryMax", value),
            "memory.high" => self.limit("MemoryHigh", value),
            "memory.low" => self.limit("MemoryLow", value),
            "memory.min" => self.limit("MemoryMin", value),
            "memory.swap.max" => self.limit("MemorySwapMax", value),
            "pids.max" => self.limit("TasksMax", value),
            "cpu.weight" => self.limit("CPUWeight", value),
            "cpuset.cpus" => self.set_of_numbers("AllowedCPUs", value),
            "cpuset.mems" => self.set_of_numbers("AllowedMemoryNodes", value),
            "cpu.idle" if value == "1" && self.can.version >= HAS_IDLE => self.number("CPUWeight", 0),
            "cpu.max" => {
                let mut words = value.split_whitespace();
                let quota = words.next().map(|word| if word == "max" { Some(-1) } else { word.parse().ok() });
                self.quota(quota.flatten(), words.next().and_then(|word| word.parse().ok()));
            }
            // The others have none; they are written to the file alone.
            _ => {}
        }
    }
}

/// The bit mask of a list such as `0-3,7`, bit 0 of byte 0 first. `None` for what is no list.
fn mask(list: &str) -> Option<Vec<u8>> {
    const MAX: usize = 8192;
    let mut mask = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MAX {
            return None;
        }
        mask.resize(mask.len().max(last / 8 + 1), 0);
        (first..=last).for_each(|number| mask[number / 8] |= 1 << (number % 8));
    }
    Some(mask)
}

/// The devices systemd lets through: at least all that the rules allow, for its list knows no "allow all but". Exact is the filter
/// of our own, which is asked as well; on v1 the file is written after systemd's.
pub(crate) fn of_devices(allowed: &[DeviceRule]) -> Vec<Property> {
    let open = allowed.iter().any(|rule| !matches!(rule.kind.as_str(), "b" | "c"));
    let policy = |word: &str| ("DevicePolicy".to_owned(), Value::text(word));
    let list = |rules: Vec<Value>| ("DeviceAllow".to_owned(), Value::Array("(ss)".into(), rules));
    if open {
        return vec![policy("auto"), list(Vec::new())];
    }
    let mut rules: Vec<Value> = Vec::new();
    for rule in allowed {
        let word = if rule.kind == "b" { "block" } else { "char" };
        let number = |value: Option<i64>| value.filter(|value| *value >= 0);
        let path = match (number(rule.major), number(rule.minor)) {
            (Some(major), Some(minor)) => format!("/dev/{word}/{major}:{minor}"),
            (Some(major), None) => format!("{word}-{major}"),
            (None, _) => format!("{word}-*"),
        };
        let entry = Value::Struct(vec![Value::Text(path), Value::text(&rule.access)]);
        if !rules.contains(&entry) {
            rules.push(entry);
        }
    }
    vec![policy("strict"), list(rules)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODERN: Abilities = Abilities { unified: true, version: 252 };
    const LEGACY: Abilities = Abilities { unified: false, version: 252 };

    fn of(text: &str, can: Abilities) -> Vec<(String, Value)> {
        of_resources(&serde_json::from_str(text).expect("resources"), can)
    }

    fn number(name: &str, value: u64) -> Property {
        (name.to_owned(), Value::U64(value))
    }

    fn bytes(name: &str, bytes: &[u8]) -> Property {
        (name.to_owned(), Value::Array("y".into(), bytes.iter().copied().map(Value::Byte).collect()))
    }

    #[test]
    fn limits_have_properties() {
        for (text, can, expected) in [
            (
                r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#,
                MODERN,
                vec![number("MemoryMax", 100), number("MemoryLow", 50), number("MemorySwapMax", 200)],
            ),
            (
                r#"{"memory":{"limit":-1,"swap":-1}}"#,
                MODERN,
                vec![number("MemoryMax", NO_LIMIT), number("MemorySwapMax", NO_LIMIT)],
            ),
            (r#"{"memory":{"limit":100,"swap":300}}"#, LEGACY, vec![number("MemoryLimit", 100)]),
            (r#"{"cpu":{"shares":1024}}"#, MODERN, vec![number("CPUWeight", 100)]),
            (
                r#"{"cpu":{"shares":1024},"blockIO":{"weight":10}}"#,
                LEGACY,
                vec![number("CPUShares", 1024), number("BlockIOWeight", 10)],
            ),
            (r#"{"cpu":{"quota":50000}}"#, MODERN, vec![number("CPUQuotaPerSecUSec", 500_000)]),
            (
                r#"{"cpu":{"quota":5000,"period":30000}}"#,
                MODERN,
                vec![number("CPUQuotaPeriodUSec", 30_000), number("CPUQuotaPerSecUSec", 170_000)],
            ),
            (
                r#"{"cpu":{"quota":5000,"period":30000}}"#,
                Abilities { version: 241, ..MODERN },
                vec![number("CPUQuotaPerSecUSec", 170_000)],
            ),
            (r#"{"cpu":{"quota":-1}}"#, MODERN, vec![number("CPUQuotaPerSecUSec", NO_LIMIT)]),
            (r#"{"cpu":{"idle":1,"shares":2}}"#, MODERN, vec![number("CPUWeight", 0)]),
            (
                r#"{"cpu":{"cpus":"0-2,9","mems":"0"}}"#,
                MODERN,
                vec![bytes("AllowedCPUs", &[7, 2]), bytes("AllowedMemoryNodes", &[1])],
            ),
            (r#"{"cpu":{"cpus":"0"}}"#, Abilities { version: 243, ..MODERN }, vec![]),
            (r#"{"pids":{"limit":0}}"#, MODERN, vec![number("TasksMax", 1)]),
            (r#"{"pids":{"limit":-1}}"#, MODERN, vec![number("TasksMax", NO_LIMIT)]),
            (
                r#"{"pids":{"limit":9},"unified":{"pids.max":"7","memory.high":"5","cpu.max":"max 50000","io.max":"8:0 rbps=1"}}"#,
                MODERN,
                vec![
                    number("CPUQuotaPeriodUSec", 50_000),
                    number("CPUQuotaPerSecUSec", NO_LIMIT),
                    number("MemoryHigh", 5),
                    number("TasksMax", 7),
                ],
            ),
            (r#"{}"#, MODERN, vec![]),
        ] {
            assert_eq!(of(text, can), expected, "{text}");
        }
    }

    #[test]
    fn versions_are_read() {
        for (text, number) in [("252.22-1~deb12u1", 252), ("v249", 249), ("systemd 255 (255.4)", 255), ("", 0)] {
            assert_eq!(version(text), number);
        }
    }

    #[test]
    fn masks_are_bounded() {
        assert_eq!(mask("0-8191").map(|mask| mask.len()), Some(1024));
        for bad in ["8192", "3-1", "x", "0-", "-1", "1-2-3"] {
            assert_eq!(mask(bad), None, "{bad}");
        }
    }

    #[test]
    fn devices_are_a_list_that_systemd_reads() {
        let rule = |kind: &str, major: Option<i64>, minor: Option<i64>| DeviceRule {
            allow: true,
            kind: kind.into(),
            major,
            minor,
            access: "rw".into(),
        };
        let entry = |path: &str| Value::Struct(vec![Value::text(path), Value::text("rw")]);
        let rules = [
            rule("c", Some(1), Some(3)),
            rule("b", Some(8), None),
            rule("c", None, Some(1)),
            rule("c", Some(1), Some(3)),
        ];
        assert_eq!(
            of_devices(&rules),
            [
                ("DevicePolicy".to_owned(), Value::text("strict")),
                (
                    "DeviceAllow".to_owned(),
                    Value::Array("(ss)".into(), vec![entry("/dev/char/1:3"), entry("block-8"), entry("char-*")])
                ),
            ]
        );
        assert_eq!(of_devices(&[rule("a", None, None)])[0].1, Value::text("auto"));
    }

    proptest::proptest! {
        #[test]
        fn lists_never_panic(text in "[0-9,\\- ]{0,20}") {
            let _ = mask(&text);
        }
    }
}
