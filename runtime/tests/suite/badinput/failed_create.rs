//! A create that fails, at whichever stage, leaves no process, cgroup, mount or state.

use serde_json::{Value, json};

use crate::bundle::{Bundle, is_ours, texts};
use crate::security::host::{Host, bounded};

/// Processes whose environment or command line has the marker, other than this one.
fn processes(marker: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id())
        .filter_map(|pid| {
            let text = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            text.contains(marker).then(|| format!("{pid}: {text}"))
        })
        .collect()
}

fn hook(kind: &str, script: &str) -> Value {
    json!({kind: [{"path": "/bin/sh", "args": ["sh", "-c", script]}]})
}

/// Field, value, and words that the error has to have: in order of the stage at which it comes out.
fn cases() -> Vec<(&'static str, Value, &'static str)> {
    let resources = |value: Value| ("/linux/resources", value);
    let mut cases = vec![
        // What config.json alone shows.
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!("true"), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/user/uid", json!(-1), "process.user.uid"),
        ("/process/user/uid", json!(4_294_967_296_u64), "process.user.uid"),
        ("/process/rlimits", json!([{"type": "RLIMIT_MOON", "soft": 1, "hard": 1}]), "process.rlimits"),
        ("/process/rlimits", json!([{"type": "RLIMIT_AS", "soft": 2, "hard": 1}]), "process.rlimits"),
        ("/process/oomScoreAdj", json!(5000), "process.oomScoreAdj"),
        ("/process/scheduler", json!({"policy": "SCHED_MOON"}), "process.scheduler"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 99}), "process.ioPriority"),
        ("/root", json!(null), "root"),
        ("/root/path", json!("rootfs\u{0}"), "root.path"),
        ("/hostname", json!("x".repeat(65)), "hostname"),
        ("/mounts/-", json!({"destination": "", "type": "tmpfs", "source": "x"}), "mounts[5].destination"),
        ("/mounts/-", json!({"destination": "/x", "type": "bind"}), "mounts[5].source"),
        ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "linux.namespaces"),
        ("/linux/namespaces/-", json!({"type": "moon"}), "linux.namespaces"),
        ("/linux/namespaces/-", json!({"type": "user"}), "linux.uidMappings"),
        ("/linux/devices", json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]), "linux.devices[0].path"),
        ("/linux/devices", json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 3}]), "linux.devices[0].type"),
        ("/linux/sysctl", json!({"kernel.panic": "1"}), "linux.sysctl"),
        ("/linux/maskedPaths", json!(["relative"]), "linux.maskedPaths"),
        ("/linux/rootfsPropagation", json!("up"), "linux.rootfsPropagation"),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_MOON"}), "linux.seccomp"),
        ("/hooks", json!({"prestart": [{"path": "relative"}]}), "hooks.prestart"),
        ("/hooks", json!({"poststop": [{"path": "/x", "timeout": -1}]}), "hooks.poststop"),
        // What the host has not.
        ("/root/path", json!("no-such-folder"), "no-such-folder"),
        ("/root/path", json!("config.json"), "config.json"),
        ("/linux/namespaces/-", json!({"type": "user", "path": "/no/such/namespace"}), "/no/such/namespace"),
        ("/linux/namespaces/-", json!({"type": "cgroup", "path": "/proc/self/ns/uts"}), "/proc/self/ns/uts"),
        ("/mounts/-", json!({"destination": "/x", "type": "bind", "source": "/no/such/source"}), "/no/such/source"),
        // What the child finds out.
        ("/mounts/-", json!({"destination": "/x", "type": "moonfs", "source": "x"}), "moonfs"),
        (
            "/mounts/-",
            json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": ["size=large"]}),
            "size=large",
        ),
        ("/mounts/-", json!({"destination": "/etc/passwd/x", "type": "tmpfs", "source": "x"}), "/etc/passwd/x"),
        ("/linux/devices", json!([{"path": "/etc/passwd", "type": "c", "major": 1, "minor": 3}]), "/etc/passwd"),
        ("/linux/sysctl", json!({"net.ipv4.no_such_thing": "1"}), "net.ipv4.no_such_thing"),
        ("/linux/sysctl", json!({"net.ipv4.ip_forward": "many"}), "net.ipv4.ip_forward"),
        ("/process/apparmorProfile", json!("no-such-profile"), "no-such-profile"),
        ("/process/cwd", json!("/etc/passwd"), "/etc/passwd"),
        // At the very end.
        ("/process/args", json!(["no-such-program"]), "no-such-program"),
        ("/process/args", json!(["/data"]), "/data"),
        ("/process/args", json!(["/etc/secret"]), "/etc/secret"),
        ("/hooks", hook("prestart", "echo said so >&2; exit 3"), "prestart"),
        ("/hooks", hook("createRuntime", "exit 3"), "createRuntime"),
        ("/hooks", hook("createContainer", "exit 3"), "createContainer"),
        ("/hooks", json!({"createRuntime": [{"path": "/no/such/hook"}]}), "/no/such/hook"),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}),
            "createRuntime",
        ),
        // Only `run` gets that far.
        ("/hooks", hook("startContainer", "exit 3"), "startContainer"),
        ("/hooks", hook("poststart", "exit 3"), "poststart"),
        ("/process/args", json!(["/data/no-program"]), "/data/no-program"),
    ];
    for (field, value, words) in [
        (json!({"cpu": {"cpus": "9999"}}), "cpu", "cpu"),
        (json!({"cpu": {"cpus": "zero"}}), "cpu", "cpu"),
        (json!({"cpu": {"mems": "4096"}}), "cpu", "cpu"),
        (json!({"cpu": {"period": 1, "quota": 1}}), "cpu", "cpu"),
        (json!({"pids": {"limit": {}}}), "pids", "linux.resources.pids.limit"),
        (json!({"memory": {"limit": "1g"}}), "memory", "linux.resources.memory.limit"),
        (json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}), "hugepages", "3MB"),
    ]
    .map(|(value, _, words)| (resources(value.clone()).0, value, words))
    {
        cases.push((field, value, words));
    }
    cases
}

#[test]
fn nothing_is_left_of_a_create_that_fails() {
    let mut mute = Vec::new();
    for (pointer, value, words) in cases() {
        let Some(host) = Host::of_ours() else { return };
        std::fs::write(host.bundle.rootfs("data/no-program"), "#!/no/such/interpreter\n").expect("write");
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(host.bundle.rootfs("data/no-program"), mode).expect("mode");
        let host = host.with(|bundle| match pointer.strip_prefix("/process/user/") {
            Some(key) => bundle.set("/process/user", json!({key: value, "gid": 0})),
            None => bundle.set(pointer, value.clone()),
        });
        let what = format!("{pointer} {value}");
        println!("{what}");
        let error = host.refused(&what);
        if !error.contains(words) {
            mute.push(format!("{what}: {error}"));
        }
        assert!(error.contains(&host.bundle.id), "{what}: {error}");
        assert_eq!(processes(&host.bundle.id), Vec::<String>::new(), "{what}");
        // The same by create: whoever waits for the pid file gets none.
        let file = host.bundle.path("pid");
        if host.bundle.create(&["--pid-file", file.to_str().expect("utf-8")]) {
            // Shown by `start` only.
            let error = host.bundle.fails(&["start", &host.bundle.id]);
            assert!(error.contains(words), "{what}: {error}");
            host.bundle.ok(&["delete", "--force", &host.bundle.id]);
        } else {
            assert!(!file.exists(), "{what}: a pid file");
        }
        host.bundle.assert_nothing_left();
        host.assert_untouched(&what);
        assert_eq!(processes(&host.bundle.id), Vec::<String>::new(), "{what}");
    }
    assert!(mute.is_empty(), "refusals that do not name what is wrong:\n{}", mute.join("\n"));
}

/// A config.json that is no JSON, or none of this world.
#[test]
fn files_that_are_no_configuration() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let deep = format!("{{\"annotations\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let wide = format!("{{\"hostname\":\"{}\"}}", "x".repeat(1 << 20));
    for (what, bytes) in [
        ("empty", &b""[..]),
        ("blank", b"  \n "),
        ("UTF-16", b"\xff\xfe{\x00}\x00"),
        ("a byte order mark", b"\xef\xbb\xbf{}"),
        ("not UTF-8", b"{\"hostname\":\"\xff\xfe\"}"),
        ("twice", b"{}{}"),
        ("a number", b"1e999"),
        ("a NUL", b"{\"a\":1}\x00"),
        ("unfinished", b"{\"process\":{\"args\":[\"a\""),
        ("a lone surrogate", br#"{"hostname":"\ud800"}"#),
        ("keys twice", br#"{"process":{},"process":{}}"#),
        ("deep", deep.as_bytes()),
        ("wide", wide.as_bytes()),
    ] {
        std::fs::write(bundle.path("bundle/config.json"), bytes).expect("write");
        let folder = bundle.path("bundle");
        let arguments = ["create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id];
        let output = bounded(&mut bundle.command(&arguments), std::time::Duration::from_secs(20));
        let (_, stderr) = texts(&output);
        assert!(!output.status.success(), "{what}");
        assert!(stderr.lines().count() == 1 && stderr.len() < 1000, "{what}: {stderr}");
        assert!(stderr.contains("config.json"), "{what}: {stderr}");
        bundle.assert_nothing_left();
    }
    // A file that never ends.
    let path = bundle.path("bundle/config.json");
    std::fs::File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("file");
    let folder = bundle.path("bundle");
    let error = bundle.fails(&["create", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    assert!(error.contains("larger than"), "{error}");
}
