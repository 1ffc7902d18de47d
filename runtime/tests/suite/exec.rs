//! More processes in a running container.

use serde_json::json;

use super::bundle::{Bundle, texts};

fn running() -> Option<Bundle> {
    let bundle = Bundle::new()?.shell("sleep 1000");
    bundle.start();
    Some(bundle)
}

#[test]
fn status_environment_user_and_cwd() {
    let Some(bundle) = running() else { return };
    let output = bundle.call(&["exec", &bundle.id, "sh", "-c", "echo $0 $PATH; exit 9"]);
    assert_eq!((output.status.code(), texts(&output).0), (Some(9), "sh /bin".into()));
    let script = "echo $A; pwd; id -u; id -g; id -G; echo $HOME";
    let text = bundle.ok(&[
        "exec",
        "-e",
        "A=b",
        "--cwd",
        "/tmp",
        "--user",
        "1000:1001",
        "-g",
        "5",
        &bundle.id,
        "sh",
        "-c",
        script,
    ]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["b", "/tmp", "1000", "1001"]);
    assert_eq!(lines[4], "1001 5", "the primary group is one of them");
    assert_eq!(lines[5], "/home/me");
    assert!(bundle.ok(&["exec", &bundle.id, "ps"]).contains("sleep 1000"), "same pid namespace");
    assert_eq!(bundle.ok(&["exec", &bundle.id, "hostname"]).trim(), "suite");
}

#[test]
fn process_from_a_file_detached() {
    let Some(bundle) = running() else { return };
    let process = json!({"args": ["sh", "-c", "echo $V > /data/out; sleep 1000"], "cwd": "/", "env": ["PATH=/bin", "V=file"], "user": {"uid": 0, "gid": 0}});
    let (file, pid_file) = (bundle.path("process.json"), bundle.path("pid"));
    std::fs::write(&file, process.to_string()).expect("write");
    let arguments = [
        "exec",
        "--process",
        file.to_str().expect("utf-8"),
        "--detach",
        "--pid-file",
        pid_file.to_str().expect("utf-8"),
        &bundle.id,
    ];
    let status =
        bundle.command(&arguments).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    assert!(status.expect("runs").success());
    let pid: i32 = std::fs::read_to_string(&pid_file).expect("pid file").parse().expect("a pid");
    super::bundle::eventually("output", || {
        std::fs::read_to_string(bundle.rootfs("data/out")).is_ok_and(|text| text == "file\n")
    });
    let procs = std::fs::read_to_string(bundle.cgroup("pids").join("cgroup.procs")).expect("procs");
    assert!(procs.lines().any(|line| line == pid.to_string()), "in the container's cgroup");
    assert!(bundle.ok(&["ps", "--format", "json", &bundle.id]).contains(&pid.to_string()));
}

#[test]
fn failing_to_start_is_255_and_says_why() {
    let Some(bundle) = running() else { return };
    std::fs::write(bundle.rootfs("data/plain"), "x").expect("write");
    std::fs::write(bundle.rootfs("data/broken"), [0x7f, b'E', b'L', b'F', 0]).expect("write");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(bundle.rootfs("data/broken"), std::fs::Permissions::from_mode(0o755)).expect("mode");
    for (program, words) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/data/plain", "permission denied"),
        ("/data", "is a directory"),
    ] {
        let output = bundle.call(&["exec", &bundle.id, program]);
        let error = texts(&output).1;
        assert_eq!(output.status.code(), Some(255), "{program}: {error}");
        // runc 1.1 says "permission denied" of a directory.
        assert!(error.contains(words) || !super::bundle::is_ours(), "{program}: {error}");
    }
    if super::bundle::is_ours() {
        let output = bundle.call(&["exec", &bundle.id, "/data/broken"]);
        assert_eq!(output.status.code(), Some(255));
        assert!(texts(&output).1.contains("ENOEXEC"), "{}", texts(&output).1);
    }
}

#[test]
fn added_capabilities_are_not_inheritable() {
    let Some(bundle) = running() else { return };
    let text = bundle.ok(&["exec", "--cap", "CAP_NET_ADMIN", &bundle.id, "grep", "Cap", "/proc/self/status"]);
    let bits = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).expect(name);
        u64::from_str_radix(line.split_whitespace().nth(1).expect("a value"), 16).expect("hex")
    };
    assert_ne!(bits("CapEff") & 1 << 12, 0, "{text}");
    assert_ne!(bits("CapBnd") & 1 << 12, 0, "{text}");
    assert_eq!((bits("CapInh"), bits("CapAmb")), (0, 0), "{text}");
}

#[test]
fn confined_like_the_container() {
    let Some(bundle) = Bundle::new() else { return };
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 27}]});
    let bundle = bundle.shell("sleep 1000").set("/linux/seccomp", profile);
    bundle.start();
    let output = bundle.call(&["exec", &bundle.id, "mkdir", "/data/x"]);
    assert!(texts(&output).1.contains("File too large"), "{output:?}");
    let status = bundle.ok(&["exec", &bundle.id, "grep", "-E", "NoNewPrivs|Seccomp:", "/proc/self/status"]);
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
}

#[test]
fn no_descriptor_of_ours_is_left_open() {
    let Some(bundle) = running() else { return };
    let text = bundle.ok(&["exec", &bundle.id, "sh", "-c", "ls /proc/$$/fd; true"]);
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
}

#[test]
fn not_in_what_has_ended() {
    let Some(bundle) = running() else { return };
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    let output = bundle.call(&["exec", &bundle.id, "true"]);
    assert_eq!(output.status.code(), Some(255));
}
