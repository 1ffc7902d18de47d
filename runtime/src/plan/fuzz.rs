//! Configurations that nobody would write: whatever becomes of a real one, planning never panics, and a refusal is one line that names
//! the field.
//!
//! A few thousand of them in every run of the unit tests; `make fuzz-runtime` goes on for BERTH_FUZZ_SECONDS. What fails is printed with its
//! seed: BERTH_FUZZ_SEED tries that one again.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Options, Plan};
use crate::launch::handshake::chain;
use crate::spec::{Resources, Spec, SpecError, parse};

/// One that has everything, so that there is something to change everywhere.
fn everything() -> Value {
    let resources = json!({
        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
        "memory": {"limit": 1, "reservation": 2, "swap": 3, "swappiness": 4, "disableOOMKiller": true},
        "cpu": {"shares": 1, "quota": 2, "burst": 3, "period": 4, "realtimeRuntime": 5, "realtimePeriod": 6, "cpus": "0", "mems": "0", "idle": 1},
        "pids": {"limit": 9},
        "blockIO": {"weight": 10, "leafWeight": 11, "weightDevice": [{"major": 1, "minor": 2, "weight": 3}],
            "throttleReadBpsDevice": [{"major": 1, "minor": 2, "rate": 3}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "network": {"classID": 1, "priorities": [{"name": "lo", "priority": 1}]},
        "rdma": {"mlx5": {"hcaHandles": 1, "hcaObjects": 2}},
        "unified": {"memory.max": "1"},
    });
    let seccomp = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "", "syscalls": [{"names": ["read", "sendmsg"], "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]});
    let linux = json!({
        "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}, {"type": "user"}, {"type": "time"},
            {"type": "network", "path": "/run/netns/x"}, {"type": "cgroup"}],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "timeOffsets": {"monotonic": {"secs": 1, "nanosecs": 2}},
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0, "gid": 0}],
        "netDevices": {"eth7": {"name": "eth0"}},
        "cgroupsPath": "/a/b",
        "rootfsPropagation": "rslave",
        "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
        "mountLabel": "", "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "7"},
        "personality": {"domain": "LINUX32", "flags": []},
        "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-1", "flags": []},
        "intelRdt": {"closID": "c", "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20"},
        "seccomp": seccomp,
        "resources": resources,
    });
    let process = json!({
        "terminal": true, "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
        "args": ["sh", "-c", "true"], "env": ["PATH=/bin", "A=b", "A=c"], "cwd": "/data",
        "capabilities": {"bounding": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"],
            "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
        "noNewPrivileges": true, "apparmorProfile": "p", "selinuxLabel": "l", "oomScoreAdj": 7,
        "scheduler": {"policy": "SCHED_OTHER", "nice": 1, "priority": 0, "flags": ["SCHED_FLAG_RESET_ON_FORK"]},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "execCPUAffinity": {"initial": "0-1", "final": "0"},
    });
    json!({
        "ociVersion": "1.3.0",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "web", "domainname": "example",
        "process": process,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1777", "tmpcopyup"]},
            {"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind", "rro", "rslave"],
                "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}], "gidMappings": [{"containerID": 0, "hostID": 5, "size": 1}]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        ],
        "hooks": {"prestart": [{"path": "/h", "args": ["h"], "env": ["A=b"], "timeout": 1}], "poststop": [{"path": "/h"}]},
        "annotations": {"a": "b", "org.systemd.property.TimeoutStopUSec": "uint64 5"},
        "linux": linux,
    })
}

/// xorshift64*: good enough, and the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// Texts that have meant trouble somewhere.
const WORDS: &[&str] = &[
    "",
    " ",
    "/",
    ".",
    "..",
    "../..",
    "/../../etc",
    "/proc",
    "/proc/self/attr",
    "proc",
    "/dev/null",
    "a/b",
    "a\nb",
    "a\0b",
    "\u{7f}",
    "\u{85}",
    "\u{feff}x",
    "ä",
    "𝒳",
    "\u{202e}",
    "-1",
    "0",
    "1",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "1e9",
    "0x10",
    "max",
    "true",
    "null",
    "a=b",
    "=",
    "a=",
    ":",
    "a:b:c",
    "user.slice:x:y",
    "a,b",
    "0-",
    "-0",
    "9-0",
    "0-18446744073709551615",
    "0,0,0",
    "*",
    "%s%n",
    "$(id)",
    "rw",
    "ro",
    "rro",
    "bind",
    "rbind",
    "idmap",
    "remount",
    "tmpcopyup",
    "mode=99999999999",
    "size=-1",
    "mount",
    "pid",
    "user",
    "time",
    "bind",
    "tmpfs",
    "cgroup2",
    "overlay",
    "lowerdir=",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_KILL",
    "SCMP_ARCH_ARM",
    "SCMP_CMP_NE",
    "RLIMIT_AS",
    "SCHED_DEADLINE",
    "IOPRIO_CLASS_RT",
    "MPOL_LOCAL",
    "LINUX",
    "net.ipv4.ip_forward",
    "kernel.core_pattern",
    "net/../../kernel/panic",
    "net.",
    ".",
    "memory.max",
    "../x.y",
    "0000",
    "bytes",
    "1T",
];

fn word(random: &mut Random) -> String {
    match random.below(20) {
        0 => "x".repeat(random.below(100_000)),
        1 => "/x".repeat(random.below(5000)),
        2 => (0..random.below(12)).filter_map(|_| char::from_u32(random.next() as u32 % 0x11_0000)).collect(),
        3 => format!("{}{}", WORDS[random.below(WORDS.len())], WORDS[random.below(WORDS.len())]),
        _ => WORDS[random.below(WORDS.len())].to_owned(),
    }
}

fn anything(random: &mut Random, depth: u32) -> Value {
    const NUMBERS: &[i64] =
        &[0, 1, -1, 2, 255, 256, 4095, 65_536, i32::MAX as i64, u32::MAX as i64, 1 << 32, 1 << 53, i64::MAX, i64::MIN];
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 | 3 => json!(NUMBERS[random.below(NUMBERS.len())]),
        4 => json!(u64::MAX - random.below(3) as u64),
        5 => json!([0.5, -0.0, 1e300, 1e-300][random.below(4)]),
        6 if depth < 4 => (0..random.below(5)).map(|_| anything(random, depth + 1)).collect(),
        7 if depth < 4 => (0..random.below(5)).map(|_| (word(random), anything(random, depth + 1))).collect(),
        8 if depth == 0 => (0..random.below(400)).fold(json!(1), |value, _| json!([value])),
        9 => json!((0..random.below(2000)).collect::<Vec<_>>()),
        _ => json!(word(random)),
    }
}

/// Changes one value somewhere: another one, none, twice, or one from elsewhere.
fn change(value: &mut Value, donor: &Value, random: &mut Random) {
    let size = match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    // Further down, more often than not.
    if size > 0 && random.below(8) > 0 {
        let at = random.below(size);
        match value {
            Value::Array(list) => return change(&mut list[at], donor, random),
            Value::Object(map) => {
                if let Some(value) = map.values_mut().nth(at) {
                    return change(value, donor, random);
                }
            }
            _ => {}
        }
    }
    match (random.below(6), value) {
        (0, Value::Array(list)) if size > 0 => drop(list.remove(random.below(size))),
        (1, Value::Array(list)) if size > 0 => {
            let copy = list[random.below(size)].clone();
            // Copies of copies of copies would take all memory.
            let most = 100_000 / copy.to_string().len().max(250);
            list.extend(std::iter::repeat_n(copy, 1 + random.below(most)));
        }
        (0, Value::Object(map)) if size > 0 => {
            let key = map.keys().nth(random.below(size)).cloned().unwrap_or_default();
            map.remove(&key);
        }
        (1, Value::Object(map)) => drop(map.insert(word(random), anything(random, 0))),
        (2, value) => *value = elsewhere(donor, random).clone(),
        (_, value) => *value = anything(random, 0),
    }
}

fn elsewhere<'a>(value: &'a Value, random: &mut Random) -> &'a Value {
    let next = match value {
        Value::Array(list) => list.get(random.below(list.len())),
        Value::Object(map) => map.values().nth(random.below(map.len())),
        _ => None,
    };
    match next {
        Some(next) if random.below(4) > 0 => elsewhere(next, random),
        _ => value,
    }
}

/// Changes bytes: encodings, numbers and brackets that no value would be written as.
fn scramble(bytes: &mut Vec<u8>, random: &mut Random) {
    const TEXTS: &[&[u8]] = &[
        b"\xff",
        b"\0",
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"1e999",
        b"-",
        b"99999999999999999999999",
        b"\\ud800",
        b"NaN",
        b"\xef\xbb\xbf",
    ];
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            3 => {
                let end = (at + random.below(200)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => drop(bytes.splice(at..at, TEXTS[random.below(TEXTS.len())].iter().copied())),
        }
    }
}

const FIELDS: &[&str] =
    &["ociVersion", "process", "root", "hostname", "domainname", "mounts", "hooks", "annotations", "linux"];

/// Plans what the bytes say, and looks at the answer. True if it was accepted.
fn judge(bytes: &[u8]) -> bool {
    let path = Path::new("config.json");
    let _ = parse::<Resources>(path, bytes);
    let spec: Spec = match parse(path, bytes) {
        Ok(spec) => spec,
        Err(error) => {
            one_line(&chain(&error));
            // Only what is no JSON, or no object, has no field to be named.
            if let SpecError::Parse { .. } = error {
                let value = serde_json::from_slice::<Value>(bytes);
                assert!(
                    value.is_err() || !value.is_ok_and(|value| value.is_object()),
                    "names no field: {}",
                    chain(&error)
                );
            }
            return false;
        }
    };
    let mut accepted = false;
    for systemd_cgroup in [false, true] {
        let options = Options { systemd_cgroup, ..Options::default() };
        match Plan::new(&spec, Path::new("/bundle"), options) {
            Ok(_) => accepted = true,
            Err(error) => {
                let text = chain(&error);
                one_line(&text);
                let field = text.strip_prefix("config.json: ").unwrap_or_else(|| panic!("names no file: {text}"));
                assert!(FIELDS.iter().any(|known| field.starts_with(known)), "names no field: {text}");
            }
        }
    }
    accepted
}

fn one_line(text: &str) {
    assert!(!text.contains('\n') && text.len() < 4000, "{} bytes: {:?}", text.len(), &text[..text.len().min(600)]);
}

/// Says which case it was, should it fail.
struct Case<'a>(u64, &'a [u8]);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("BERTH_FUZZ_SEED={}\n{}", self.0, String::from_utf8_lossy(self.1));
        }
    }
}

#[test]
fn no_configuration_makes_the_plan_panic() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (seconds, only) = (number("BERTH_FUZZ_SECONDS"), number("BERTH_FUZZ_SEED"));
    let first = only.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        now.as_nanos() as u64 | 1
    });
    let whole = everything();
    let text = whole.to_string();
    let spec: Spec = parse(Path::new("config.json"), text.as_bytes()).expect("parses");
    drop(spec);
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(2));
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    println!("first seed {first}");
    for case in 0.. {
        let seed = first.wrapping_add(case).max(1);
        let mut random = Random(seed);
        // The first numbers of neighbouring seeds are alike.
        for _ in 0..8 {
            random.next();
        }
        let mut value = whole.clone();
        if random.below(2) == 0 {
            value = super::tests::minimal();
        }
        for _ in 0..1 + random.below(4) {
            change(&mut value, &whole, &mut random);
        }
        let mut bytes = value.to_string().into_bytes();
        if random.below(4) == 0 {
            scramble(&mut bytes, &mut random);
        }
        let case = Case(seed, &bytes);
        if judge(&bytes) {
            accepted += 1
        } else {
            refused += 1
        }
        drop(case);
        if only.is_some() || Instant::now() > end {
            break;
        }
    }
    println!("{accepted} accepted, {refused} refused");
    assert!(
        only.is_some() || (accepted > 0 && refused > 0),
        "{accepted} accepted, {refused} refused: nothing was tried"
    );
}
