//! The systemd driver. What needs systemd as pid 1 says so where it is not; `make test-vm` has it.

use std::process::Command;

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

fn systemd_runs() -> bool {
    let runs = std::path::Path::new("/run/systemd/system").exists();
    if !runs {
        println!("skipped: systemd is not pid 1");
    }
    runs
}

fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A property of a unit, as systemctl shows it.
fn property(unit: &str, name: &str) -> String {
    let output = Command::new("systemctl").args(["show", "--value", "-p", name, unit]).output().expect("systemctl");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A bundle whose commands all go by systemd.
fn bundle_of(path: impl Fn(&str) -> String) -> Option<(Bundle, String)> {
    let bundle = Bundle::new()?;
    let (path, unit) = (path(&bundle.id), format!("suite-{}.scope", bundle.id));
    Some((bundle.shell("sleep 1000").set("/linux/cgroupsPath", json!(path)), unit))
}

fn start(bundle: &Bundle) {
    bundle.write_config();
    let folder = bundle.path("bundle");
    let folder = folder.to_str().expect("utf-8");
    let mut command = bundle.command(&["--systemd-cgroup", "create", "--bundle", folder, &bundle.id]);
    // The container keeps what it is given open.
    let log = std::fs::File::create(bundle.path("create.log")).expect("a file");
    let status = command.stdout(std::process::Stdio::null()).stderr(log).status().expect("the runtime runs");
    let said = std::fs::read_to_string(bundle.path("create.log")).unwrap_or_default();
    assert!(status.success(), "create: {said}");
    bundle.ok(&["start", &bundle.id]);
}

fn own_cgroup(bundle: &Bundle) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).expect("cgroup");
    let line = text.lines().find(|line| line.starts_with("0::") || line.contains(":name=systemd:")).expect("a line");
    line.splitn(3, ':').nth(2).expect("a path").to_owned()
}

#[test]
fn a_container_is_a_scope_with_limits() {
    if !systemd_runs() {
        return;
    }
    let Some((bundle, unit)) = bundle_of(|id| format!("suitetest-a.slice:suite:{id}")) else { return };
    let bundle = bundle
        .set("/linux/resources/memory", json!({"limit": 67_108_864}))
        .set("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000, "shares": 512}))
        .set("/linux/resources/pids", json!({"limit": 30}))
        .set("/annotations", json!({"org.systemd.property.TimeoutStopUSec": "uint64 7000000", "org.systemd.property.CollectMode": "'inactive-or-failed'"}));
    start(&bundle);
    assert_eq!(own_cgroup(&bundle), format!("/suitetest.slice/suitetest-a.slice/{unit}"));
    for (name, value) in [
        ("ActiveState", "active"),
        ("Slice", "suitetest-a.slice"),
        ("Delegate", "yes"),
        ("TasksMax", "30"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("TimeoutStopUSec", "7s"),
        ("CollectMode", "inactive-or-failed"),
        (if unified() { "MemoryMax" } else { "MemoryLimit" }, "67108864"),
    ] {
        assert_eq!(property(&unit, name), value, "{name}");
    }
    // systemd writes its files again; nothing of ours may be lost.
    assert!(Command::new("systemctl").arg("daemon-reload").status().expect("systemctl").success());
    let read = |controller: &str, modern: &str, legacy: &str| {
        let file = bundle.cgroup(controller).join(if unified() { modern } else { legacy });
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
    };
    assert_eq!(read("memory", "memory.max", "memory.limit_in_bytes"), "67108864");
    assert_eq!(read("cpu", "cpu.max", "cpu.cfs_quota_us"), if unified() { "50000 100000" } else { "50000" });
    bundle.ok(&["update", "--memory", "33554432", "--pids-limit", "40", &bundle.id]);
    assert_eq!(property(&unit, "TasksMax"), "40");
    assert!(Command::new("systemctl").arg("daemon-reload").status().expect("systemctl").success());
    assert_eq!(read("memory", "memory.max", "memory.limit_in_bytes"), "33554432");
    assert_eq!(read("pids", "pids.max", "pids.max"), "40");
    bundle.ok(&["delete", "--force", &bundle.id]);
    eventually("the unit is gone", || {
        property(&unit, "LoadState") == "not-found" || property(&unit, "ActiveState") == "inactive"
    });
    let _ = Command::new("systemctl").args(["stop", "suitetest.slice"]).status();
}

#[test]
fn a_scope_can_be_paused_entered_and_killed() {
    if !systemd_runs() {
        return;
    }
    let Some((bundle, unit)) = bundle_of(|id| format!(":suite:{id}")) else { return };
    start(&bundle);
    assert_eq!(own_cgroup(&bundle), format!("/system.slice/{unit}"));
    let inside = bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert!(inside.contains(&unit), "{inside}");
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    bundle.ok(&["resume", &bundle.id]);
    let pids: Vec<i32> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).expect("json");
    assert_eq!(pids, [bundle.pid()]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
    eventually("the unit is gone", || property(&unit, "ActiveState") == "inactive");
}

#[test]
fn devices_are_filtered_under_systemd_too() {
    if !systemd_runs() {
        return;
    }
    let Some((bundle, _)) = bundle_of(|id| format!(":suite:{id}")) else { return };
    let rule = json!({"allow": true, "type": "c", "major": 99, "minor": 1, "access": "r"});
    let bundle = bundle.set("/linux/resources/devices", json!([{"allow": false, "access": "rwm"}, rule]));
    start(&bundle);
    // Nobody is behind these numbers: whoever is let through is told that, and not that it is forbidden.
    let script = "mknod /dev/one c 99 1; mknod /dev/two c 99 2; cat /dev/one; (echo > /dev/one); cat /dev/two; echo > /dev/null && echo null";
    let said = |text: &str| text.matches("not permitted").count();
    for after in ["start", "daemon-reload"] {
        if after == "daemon-reload" {
            assert!(Command::new("systemctl").arg(after).status().expect("systemctl").success());
        }
        let (stdout, stderr) = texts(&bundle.call(&["exec", &bundle.id, "sh", "-c", script]));
        assert_eq!(stdout, "null", "{after}: {stderr}");
        assert!(stderr.contains("'/dev/one': No such device"), "{after}: {stderr}");
        assert_eq!(said(&stderr), 2, "{after}: {stderr}");
    }
}

#[test]
fn two_containers_cannot_be_one_scope() {
    if !systemd_runs() || !is_ours() {
        return;
    }
    let Some((first, unit)) = bundle_of(|id| format!(":suite:{id}")) else { return };
    start(&first);
    let Some((second, _)) = bundle_of(|_| format!(":suite:{}", first.id)) else { return };
    second.write_config();
    let folder = second.path("bundle");
    let error = second.fails(&["--systemd-cgroup", "run", "--bundle", folder.to_str().expect("utf-8"), &second.id]);
    assert!(error.contains("StartTransientUnit") && error.contains(&unit), "{error}");
    assert_eq!(property(&unit, "ActiveState"), "active", "the first one's scope stays");
    assert_eq!(first.state()["status"], "running");
}

#[test]
fn an_ordinary_user_asks_their_own_systemd() {
    let user = Command::new("loginctl").args(["list-users", "--no-legend"]).output();
    let lingering = user.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let uid = lingering.split_whitespace().find_map(|word| word.parse::<u32>().ok().filter(|uid| *uid >= 1000));
    let Some(uid) = uid.filter(|_| systemd_runs() && unified()) else {
        println!("skipped: needs cgroup2, systemd, and a user with a session (loginctl enable-linger)");
        return;
    };
    let Some(bundle) = Bundle::new() else { return };
    let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let mut bundle = bundle
        .shell("cat /proc/self/cgroup; ls /sys/fs/cgroup")
        .set("/linux/uidMappings", map(uid))
        .set("/linux/gidMappings", map(uid));
    let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    list.push(json!({"type": "user"}));
    list.push(json!({"type": "cgroup"}));
    bundle.config["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]);
    let bundle = bundle
        .set("/linux/cgroupsPath", Value::Null)
        .set("/linux/resources", json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 50}}));
    bundle.write_config();
    use std::os::unix::process::CommandExt;
    assert!(
        Command::new("chown").args(["-R", &uid.to_string()]).arg(bundle.path("")).status().expect("chown").success()
    );
    let folder = bundle.path("bundle");
    let mut command =
        bundle.command(&["--systemd-cgroup", "run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    let runtime = format!("/run/user/{uid}");
    command.uid(uid).gid(uid).current_dir("/").env("XDG_RUNTIME_DIR", &runtime).env_remove("DBUS_SESSION_BUS_ADDRESS");
    let output = command.output().expect("runs");
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("memory.max"), "{stdout}\n{stderr}");
}

#[test]
fn without_systemd_the_socket_and_the_cure_are_named() {
    if !is_ours() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.set("/linux/cgroupsPath", json!("system.slice:suite:x"));
    bundle.write_config();
    let folder = bundle.path("bundle");
    let missing = bundle.path("no-bus");
    let missing = missing.to_str().expect("utf-8");
    // The user's bus: that of the system is there in the VM.
    let words = ["--rootless=true", "--systemd-cgroup", "run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id];
    let mut command = bundle.command(&words);
    command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={missing}")).env("XDG_RUNTIME_DIR", bundle.path("none"));
    let (_, stderr) = texts(&command.output().expect("runs"));
    assert!(stderr.contains(missing) && stderr.contains("--systemd-cgroup"), "{stderr}");
    bundle.assert_nothing_left();
}

#[test]
fn paths_and_annotations_are_read_exactly() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let folder = bundle.path("bundle");
    let folder = folder.to_str().expect("utf-8").to_owned();
    let id = bundle.id.clone();
    let mut bundle = bundle;
    for (path, words) in [
        ("/a/b", "is not slice:prefix:name"),
        ("a.slice:b", "is not slice:prefix:name"),
        ("../x.slice:b:c", "has \".\", \"..\""),
        ("a/b.slice:c:d", "has a slice whose name"),
        ("a--b.slice:c:d", "has a slice whose name"),
        ("a.slice:c:d/e", "has a name that systemd does not take"),
    ] {
        bundle = bundle.set("/linux/cgroupsPath", json!(path));
        bundle.write_config();
        let error = bundle.fails(&["--systemd-cgroup", "run", "--bundle", &folder, &id]);
        assert!(error.contains("linux.cgroupsPath") && error.contains(words), "{path}: {error}");
    }
    let mut bundle = bundle.set("/linux/cgroupsPath", json!("a.slice:b:c")).set("/annotations", json!({}));
    for (name, value, words) in [
        ("ExecStart", "'x'", "is not a property that a container may set"),
        ("FailureAction", "'reboot-force'", "is not a property that a container may set"),
        ("TimeoutStopUSec", "seven", "is not a value"),
    ] {
        bundle = bundle.set("/annotations", json!({format!("org.systemd.property.{name}"): value}));
        bundle.write_config();
        let error = bundle.fails(&["--systemd-cgroup", "run", "--bundle", &folder, &id]);
        assert!(error.contains(name) && error.contains(words), "{error}");
    }
    // The other driver does not take a unit for a path.
    bundle.config["annotations"] = json!({});
    bundle.write_config();
    let error = bundle.fails(&["run", "--bundle", &folder, &id]);
    assert!(error.contains("needs --systemd-cgroup"), "{error}");
}

#[test]
fn without_a_broker_systemd_itself_is_asked() {
    if !systemd_runs() || !is_ours() {
        return;
    }
    let Some((bundle, unit)) = bundle_of(|id| format!(":suite:{id}")) else { return };
    let bundle = bundle.shell("cat /proc/self/cgroup");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut command =
        bundle.command(&["--systemd-cgroup", "run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    let missing = bundle.path("no-bus");
    let output = command.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", missing.display())).output();
    let (stdout, stderr) = texts(&output.expect("the runtime runs"));
    assert!(stdout.contains(&format!("/system.slice/{unit}")), "{stdout}\n{stderr}");
    eventually("the unit is gone", || property(&unit, "ActiveState") == "inactive");
}
