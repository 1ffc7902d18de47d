//! Requests that no client means: paths, queries, filters and bodies bent at random, sent to the real engine. It answers each with a
//! status that fits, doesn't panic, and goes on. Three seconds in the usual run; `BERTH_FUZZ_SECONDS` (`make fuzz-engine`) for more,
//! `BERTH_FUZZ_SEED` to repeat one.

use super::engine;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// xorshift: the same each time for a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.roll(all.len())]
    }
}

const PATHS: &[(&str, &str)] = &[
    ("GET", "/containers/json"),
    ("POST", "/containers/create"),
    ("GET", "/containers/C/json"),
    ("GET", "/containers/C/top"),
    ("GET", "/containers/C/logs"),
    ("GET", "/containers/C/changes"),
    ("GET", "/containers/C/stats"),
    ("POST", "/containers/C/resize"),
    ("POST", "/containers/C/stop"),
    ("POST", "/containers/C/kill"),
    ("POST", "/containers/C/update"),
    ("POST", "/containers/C/rename"),
    ("POST", "/containers/C/pause"),
    ("POST", "/containers/C/unpause"),
    ("POST", "/containers/C/exec"),
    ("HEAD", "/containers/C/archive"),
    ("GET", "/containers/C/archive"),
    ("PUT", "/containers/C/archive"),
    ("POST", "/containers/prune"),
    ("GET", "/images/json"),
    ("POST", "/images/create"),
    ("GET", "/images/I/json"),
    ("GET", "/images/I/history"),
    ("POST", "/images/I/tag"),
    ("GET", "/images/search"),
    ("POST", "/images/load"),
    ("POST", "/commit"),
    ("GET", "/networks"),
    ("GET", "/networks/bridge"),
    ("POST", "/networks/create"),
    ("POST", "/networks/N/connect"),
    ("POST", "/networks/N/disconnect"),
    ("DELETE", "/networks/N"),
    ("POST", "/networks/prune"),
    ("GET", "/volumes"),
    ("POST", "/volumes/create"),
    ("GET", "/volumes/V"),
    ("DELETE", "/volumes/V"),
    ("POST", "/volumes/prune"),
    ("GET", "/exec/E/json"),
    ("POST", "/exec/E/start"),
    ("POST", "/exec/E/resize"),
    ("GET", "/info"),
    ("GET", "/version"),
    ("GET", "/system/df"),
    ("POST", "/auth"),
    ("GET", "/events"),
    ("GET", "/plugins"),
    ("GET", "/services"),
    ("OPTIONS", "/x"),
    ("GET", "/distribution/I/json"),
];
const KEYS: &[&str] = &[
    "all",
    "limit",
    "size",
    "filters",
    "name",
    "platform",
    "signal",
    "t",
    "h",
    "w",
    "stdout",
    "stderr",
    "follow",
    "tail",
    "since",
    "until",
    "timestamps",
    "details",
    "stream",
    "one-shot",
    "force",
    "v",
    "link",
    "path",
    "fromSrc",
    "fromImage",
    "repo",
    "tag",
    "type",
    "term",
    "container",
    "changes",
    "condition",
    "detachKeys",
    "noOverwriteDirNonDir",
    "ps_args",
    "quiet",
    "names",
    "digests",
    "manifests",
    "scope",
];
const FILTERS: &[&str] = &[
    "label",
    "label!",
    "until",
    "dangling",
    "name",
    "id",
    "status",
    "ancestor",
    "before",
    "since",
    "publish",
    "expose",
    "volume",
    "network",
    "health",
    "exited",
    "is-task",
    "reference",
    "type",
    "event",
    "driver",
    "scope",
    "all",
];
const WORDS: &[&str] = &[
    "",
    "1",
    "0",
    "-1",
    "true",
    "false",
    "none",
    "9999999999999999999999",
    "-9223372036854775808",
    "1e400",
    "NaN",
    "0x10",
    "a=b",
    "=",
    "a=",
    "../../etc/passwd",
    "/",
    "//",
    "..",
    "%00",
    "\u{0}",
    "é",
    "\u{202e}",
    "10m",
    "1h30m",
    "-5s",
    "2026-01-01T00:00:00Z",
    "sha256:",
    "sha256:zz",
    "bridge",
    "host",
    "container:",
    "container:x",
    "0-65535/tcp",
    "65536/tcp",
    "80/sctp",
    "a,b",
    "*",
    "[",
    "^(a+)+$",
    "$(x)",
    "'",
    "\"",
    "\\",
    "\r\n",
];

fn word(dice: &mut Dice) -> String {
    match dice.roll(8) {
        0 => "x".repeat(dice.roll(5000)),
        1 => (0..dice.roll(12)).filter_map(|_| char::from_u32(dice.roll(0x500) as u32)).collect(),
        _ => (*dice.pick(WORDS)).to_owned(),
    }
}

fn value(dice: &mut Dice, depth: usize) -> Value {
    match dice.roll(if depth == 0 { 6 } else { 9 }) {
        0 => Value::Null,
        1 => (dice.roll(2) == 0).into(),
        2 => [0, 1, -1, 65_536, i64::MAX, i64::MIN, 1 << 40][dice.roll(7)].into(),
        3 => json!([1.5, -0.0, 1e308, 1e-300][dice.roll(4)]),
        4 | 5 => word(dice).into(),
        6 => (0..dice.roll(4)).map(|_| value(dice, depth - 1)).collect(),
        7 => (0..dice.roll(4)).map(|_| (word(dice), value(dice, depth - 1))).collect::<Map<_, _>>().into(),
        _ => {
            json!({"Name": word(dice), "Type": word(dice), "Soft": value(dice, 0), "Source": word(dice), "Target": word(dice)})
        }
    }
}

/// Replaces something at most `depth` levels below.
fn bend(dice: &mut Dice, place: &mut Value, depth: usize) {
    let length = match place {
        Value::Object(map) => map.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    };
    let here = depth == 0 || length == 0 || (depth < 3 && dice.roll(3) == 0);
    let at = if here { 0 } else { dice.roll(length) };
    match place {
        Value::Object(map) if !here => map.values_mut().skip(at).take(1).for_each(|next| bend(dice, next, depth - 1)),
        Value::Array(list) if !here => list.iter_mut().skip(at).take(1).for_each(|next| bend(dice, next, depth - 1)),
        _ => *place = value(dice, 2),
    }
}

/// A body that clients send, with some of its fields bent.
fn body(dice: &mut Dice) -> Value {
    let mut body = json!({
        "Image": "test", "Cmd": ["true"], "Entrypoint": null, "Env": ["A=b"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "User": "root",
        "WorkingDir": "/", "Hostname": "h", "Domainname": "", "StopSignal": "SIGTERM", "StopTimeout": 3, "Volumes": {"/v": {}}, "Tty": false,
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000, "Retries": 3}, "Shell": ["sh"], "OnBuild": null, "MacAddress": "",
        "HostConfig": {
            "Binds": ["/tmp:/t:ro"], "Memory": 64 << 20, "MemorySwap": -1, "NanoCpus": 1_000_000, "CpuShares": 2, "CpusetCpus": "0", "PidsLimit": 10,
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}, "RestartPolicy": {"Name": "no"}, "NetworkMode": "none",
            "CapAdd": ["NET_ADMIN"], "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"], "Tmpfs": {"/x": "size=1m"}, "Dns": ["1.1.1.1"],
            "ExtraHosts": ["a:1.2.3.4"], "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "ShmSize": 1 << 20, "Sysctls": {"net.core.somaxconn": "1"},
            "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/n", "CgroupPermissions": "r"}], "LogConfig": {"Type": "none"},
            "Mounts": [{"Type": "tmpfs", "Target": "/m"}], "IpcMode": "private", "PidMode": "", "OomScoreAdj": 1, "Init": true, "ConsoleSize": [1, 2],
            "BlkioWeight": 10, "DeviceCgroupRules": ["c 1:3 r"], "GroupAdd": ["1"], "Links": [], "Runtime": "", "MaskedPaths": ["/proc/kcore"],
        },
        "NetworkingConfig": {"EndpointsConfig": {"none": {"Aliases": ["x"], "IPAMConfig": {"IPv4Address": ""}}}},
        "Name": "n", "Driver": "local", "DriverOpts": {}, "Container": "C", "Detach": true, "Config": {"Subnet": "x"}, "IPAM": {"Config": []},
    });
    for _ in 0..1 + dice.roll(3) {
        bend(dice, &mut body, 3);
    }
    // Few at a time: one field that is refused hides what the others do.
    for place in ["", "/HostConfig"] {
        let fields = body.pointer_mut(place).and_then(Value::as_object_mut).into_iter();
        fields.for_each(|fields| {
            fields.retain(|key, _| matches!(key.as_str(), "Image" | "Cmd" | "HostConfig") || dice.roll(4) == 0)
        });
    }
    body
}

fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn target(dice: &mut Dice, path: &str, id: &str) -> String {
    let name = match dice.roll(3) {
        0 => id.to_owned(),
        1 => "target".to_owned(),
        _ => encode(&word(dice)),
    };
    let mut target = String::new();
    if dice.roll(3) == 0 {
        target = format!("/v1.{}", 20 + dice.roll(35));
    }
    let image = if dice.roll(2) == 0 { "test".to_owned() } else { encode(&word(dice)) };
    for segment in path.split('/').skip(1) {
        target.push('/');
        target.push_str(match segment {
            "C" | "E" | "N" | "V" => &name,
            "I" => &image,
            other => other,
        });
    }
    for number in 0..dice.roll(4) {
        let key = *dice.pick(KEYS);
        let value = match key {
            "filters" => {
                let mut filters = Map::new();
                for _ in 0..dice.roll(3) {
                    let values = match dice.roll(3) {
                        0 => value(dice, 2),
                        1 => json!([word(dice)]),
                        _ => json!({word(dice): true}),
                    };
                    filters.insert((*dice.pick(FILTERS)).to_owned(), values);
                }
                if dice.roll(6) == 0 { word(dice) } else { Value::Object(filters).to_string() }
            }
            // Streams without an end would hold the test up.
            "follow" | "stream" => "0".into(),
            _ => word(dice),
        };
        target.push(if number == 0 { '?' } else { '&' });
        target.push_str(&format!("{key}={}", encode(&value)));
    }
    target
}

#[test]
fn bent_requests_are_answered() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("BERTH_FUZZ_SEED").unwrap_or(0x2545_f491_4f6c_dd1d);
    let time = Duration::from_secs(number("BERTH_FUZZ_SECONDS").unwrap_or(3));
    let stack = engine!();
    let id = stack.create("?name=target", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&id);
    let mut dice = Dice(seed | 1);
    let (begun, mut sent, mut created) = (Instant::now(), 0_u64, 0_u64);
    while begun.elapsed() < time {
        let (method, path) = if dice.roll(4) == 0 { PATHS[1] } else { *dice.pick(PATHS) };
        let mut target = target(&mut dice, path, &id);
        match path {
            // These have no end of their own, or wait for a registry.
            "/events" => target.push_str(if target.contains('?') { "&until=1" } else { "?until=1" }),
            "/containers/C/stats" | "/images/search" | "/distribution/I/json" | "/auth" => continue,
            "/containers/C/logs" if target.contains("follow") => continue,
            "/containers/C/stop" => target = format!("{}?t=0", target.split('?').next().unwrap_or_default()),
            "/images/create" if !target.contains("fromSrc") => continue,
            _ => {}
        }
        let bytes = match dice.roll(6) {
            0 => word(&mut dice).into_bytes(),
            1 => value(&mut dice, 3).to_string().into_bytes(),
            _ => body(&mut dice).to_string().into_bytes(),
        };
        let bytes = if matches!(method, "GET" | "HEAD" | "OPTIONS" | "DELETE") { Vec::new() } else { bytes };
        let kind = if dice.roll(10) == 0 { "text/plain" } else { "application/json" };
        let what = || format!("seed {seed}, request {sent}: {method} {target} {}", String::from_utf8_lossy(&bytes));
        let answer = stack.request(method, &target, kind, &bytes);
        assert!((200..=599).contains(&answer.status), "{}: {}", what(), answer.status);
        let text = answer.text();
        assert!(!text.contains("defect of its own"), "{}: {text}", what());
        if answer.status >= 400 && method != "HEAD" && !text.is_empty() && !text.starts_with("client version") {
            let message = answer.json()["message"].as_str().map(str::len);
            assert!(message.is_some_and(|length| length > 0), "{}: {text}", what());
        }
        if answer.status == 201 && path == "/containers/create" {
            created += 1;
            let made = answer.json()["Id"].as_str().unwrap().to_owned();
            assert_eq!(stack.get(&format!("/containers/{made}/json")).status, 200, "{}", what());
            assert_eq!(stack.delete(&format!("/containers/{made}?force=1&v=1")).status, 204, "{}", what());
        }
        sent += 1;
    }
    eprintln!("{sent} requests, {created} containers made, seed {seed}");
    assert!(sent > 20 && created > 0, "{sent} requests, {created} containers");
    // After all that a container is made and run as ever.
    let fresh = stack.create("", &json!({"Cmd": ["true"]}));
    stack.start_container(&fresh);
    assert_eq!(stack.wait(&fresh, "not-running"), 0);
    assert_eq!(stack.get("/debug/vars").json()["panics"], 0);
    let log = std::fs::read_to_string(stack.root().join("engine.log")).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    for network in stack.get("/networks").json().as_array().unwrap() {
        if !["bridge", "host", "none"].contains(&network["Name"].as_str().unwrap()) {
            assert_eq!(
                stack.delete(&format!("/networks/{}", network["Id"].as_str().unwrap())).status,
                204,
                "{network}"
            );
        }
    }
}
