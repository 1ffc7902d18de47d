//! What only a host with nothing but cgroup v2 can show. `make test-vm` has one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours, texts};

const ROOT: &str = "/sys/fs/cgroup";

/// A bundle that sleeps, where there is only cgroup v2.
fn sleeper() -> Option<Bundle> {
    if !Path::new(ROOT).join("cgroup.controllers").exists() {
        println!("skipped: needs a host with cgroup v2 alone (make test-vm)");
        return None;
    }
    Some(Bundle::new()?.shell("sleep 1000"))
}

/// A file of the container's cgroup.
fn value(bundle: &Bundle, file: &str) -> String {
    let path = bundle.cgroup("").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

fn has(controller: &str) -> bool {
    let all = std::fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).expect("controllers");
    let found = all.split_whitespace().any(|one| one == controller);
    if !found {
        println!("skipped in part: this kernel has no controller {controller}");
    }
    found
}

/// A cgroup of the test's own, with a process in it if wanted; both go with it.
struct Parent {
    path: PathBuf,
    occupant: Option<Child>,
}

impl Parent {
    fn new(bundle: &Bundle) -> Self {
        let path = Path::new(ROOT).join(format!("parent-of-{}", bundle.id));
        std::fs::create_dir(&path).expect("a cgroup");
        Self { path, occupant: None }
    }

    fn occupy(&mut self, below: &str) {
        let child = Command::new("/bin/busybox").args(["sleep", "1000"]).spawn().expect("sleep");
        std::fs::write(self.path.join(below).join("cgroup.procs"), child.id().to_string()).expect("move");
        self.occupant = Some(child);
    }

    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).expect("a name")
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        if let Some(mut child) = self.occupant.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // A process that was just killed may hold it for a moment.
    eventually("the cgroup is gone", || std::fs::remove_dir(path).is_ok() || !path.exists());
}

#[test]
fn v2_limits_are_in_the_files_of_v2() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle
        .set("/linux/resources/memory", json!({"limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296}))
        .set(
            "/linux/resources/cpu",
            json!({"shares": 2048, "quota": 20_000, "period": 50_000, "burst": 10_000, "cpus": "0", "mems": "0"}),
        )
        .set("/linux/resources/pids", json!({"limit": 23}));
    bundle.start();
    for (file, expected) in [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("cpu.max", "20000 50000"),
        ("cpu.max.burst", "10000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("pids.max", "23"),
    ] {
        assert_eq!(value(&bundle, file), expected, "{file}");
    }
    // The weight's formula changed with the years; more than the default's it has to be.
    let weight: u64 = value(&bundle, "cpu.weight").parse().expect("a number");
    assert!(if is_ours() { weight == 174 } else { weight > 70 }, "{weight}");
    if bundle.cgroup("").join("memory.swap.max").exists() {
        assert_eq!(value(&bundle, "memory.swap.max"), "33554432", "swap alone: the sum less the memory");
    }
}

#[test]
fn v2_unlimited_is_max_and_idle_is_kept() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle
        .set("/linux/resources/memory", json!({"limit": -1, "swap": -1}))
        .set("/linux/resources/cpu", json!({"quota": -1, "period": 100_000, "idle": 1}))
        .set("/linux/resources/pids", json!({"limit": -1}));
    if !is_ours() {
        println!("skipped: cpu.idle is newer than other runtimes");
        return;
    }
    bundle.start();
    for (file, expected) in [("memory.max", "max"), ("cpu.max", "max 100000"), ("cpu.idle", "1"), ("pids.max", "max")] {
        assert_eq!(value(&bundle, file), expected, "{file}");
    }
}

#[test]
fn v2_block_io_is_throttled_by_device() {
    let Some(bundle) = sleeper() else { return };
    if !has("io") {
        return;
    }
    let &[(major, minor), ..] = disks().as_slice() else {
        println!("skipped: no disk");
        return;
    };
    let rate = |rate: u64| json!([{"major": major, "minor": minor, "rate": rate}]);
    let bundle = bundle
        .set("/linux/resources/blockIO", json!({}))
        .set("/linux/resources/blockIO/throttleReadBpsDevice", rate(1_048_576))
        .set("/linux/resources/blockIO/throttleWriteIOPSDevice", rate(100))
        .set("/linux/resources/blockIO/weight", json!(1000));
    bundle.start();
    let line = value(&bundle, "io.max");
    assert_eq!(line, format!("{major}:{minor} rbps=1048576 wbps=max riops=max wiops=100"));
    for (file, expected) in [("io.bfq.weight", "1000"), ("io.weight", "10000")] {
        if bundle.cgroup("").join(file).exists() {
            assert_eq!(value(&bundle, file), format!("default {expected}"), "{file}");
            break;
        }
    }
}

#[test]
fn v2_unified_files_are_written_as_they_are() {
    let Some(bundle) = sleeper() else { return };
    let files = json!({"memory.high": "16777216", "pids.max": "29", "cpu.weight": "77"});
    let bundle = bundle.set("/linux/resources/unified", files);
    bundle.start();
    for (file, expected) in [("memory.high", "16777216"), ("pids.max", "29"), ("cpu.weight", "77")] {
        assert_eq!(value(&bundle, file), expected, "{file}");
    }
}

#[test]
fn v2_unified_files_that_are_not_there_or_elsewhere_are_refused() {
    for key in ["moon.max", "memory.no-such", "../memory.max", "below/memory.max", ""] {
        let Some(bundle) = sleeper() else { return };
        let error = bundle.set("/linux/resources/unified", json!({key: "1"})).run_fails();
        let named = if key.is_empty() { "unified" } else { key };
        assert!(!is_ours() || error.contains(named), "{key:?}: {error}");
    }
}

/// Numbers of the machine's disks. Unlike /dev/mem and /dev/kmsg they need no capability, so that only the filter can say no.
fn disks() -> Vec<(u32, u32)> {
    let disks = std::fs::read_dir("/sys/block").expect("disks").flatten();
    let numbers = disks.filter(|disk| disk.path().join("device").exists()).filter_map(|disk| {
        let text = std::fs::read_to_string(disk.path().join("dev")).ok()?;
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    });
    numbers.collect()
}

#[test]
fn v2_devices_are_filtered_by_the_cgroup() {
    let Some(bundle) = sleeper() else { return };
    let &[(major, first), (other_major, second), ..] = disks().as_slice() else {
        println!("skipped: needs two disks");
        return;
    };
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": major, "minor": first, "access": "r"},
        {"allow": true, "type": "c", "major": 4, "access": "rw"},
        {"allow": false, "type": "c", "major": 4, "minor": 0, "access": "w"},
    ]);
    let bundle = bundle.set("/linux/resources/devices", rules);
    bundle.start();
    // By exec, too, one is in the cgroup and so under its filter.
    let tell = |script: &str| {
        let output = bundle.call(&["exec", &bundle.id, "sh", "-c", script]);
        (output.status.success(), texts(&output).1)
    };
    let nodes = format!(
        "mknod /dev/first b {major} {first} && mknod /dev/second b {other_major} {second} && mknod /dev/mem c 1 1 && \
         mknod /dev/tty0 c 4 0 && mknod /dev/null2 c 1 3"
    );
    assert!(tell(&nodes).0, "making nodes is harmless");
    for (what, allowed) in [
        ("echo > /dev/null", true),
        ("echo > /dev/null2", true),
        ("head -c1 < /dev/zero > /dev/null", true),
        ("head -c1 < /dev/urandom > /dev/null", true),
        ("head -c1 < /dev/mem", false),
        ("head -c1 < /dev/first > /dev/null", true),
        ("dd if=/dev/zero of=/dev/first count=0 conv=notrunc", false),
        ("dd if=/dev/first of=/dev/first count=0 conv=notrunc", false),
        ("head -c1 < /dev/second > /dev/null", false),
        ("dd if=/dev/zero of=/dev/tty0 count=0 conv=notrunc", false),
    ] {
        let (worked, said) = tell(what);
        assert_eq!(worked, allowed, "{what}: {said}");
        assert!(worked || said.contains("Operation not permitted"), "{what}: {said}");
    }
}

#[test]
fn v2_all_devices_can_be_allowed() {
    let Some(bundle) = sleeper() else { return };
    let &[(major, minor), ..] = disks().as_slice() else {
        println!("skipped: no disk");
        return;
    };
    let bundle = bundle.set("/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]));
    bundle.start();
    let script = format!("mknod /dev/disk b {major} {minor} && dd if=/dev/zero of=/dev/disk count=0 conv=notrunc");
    bundle.ok(&["exec", &bundle.id, "sh", "-c", &script]);
}

#[test]
fn v2_pause_freezes_and_a_paused_container_can_be_killed() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle.shell("while :; do echo x >> /data/beat; done");
    bundle.start();
    let beats = || std::fs::metadata(bundle.rootfs("data/beat")).map_or(0, |beat| beat.len());
    eventually("it beats", || beats() > 0);
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.state()["status"], "paused");
    assert_eq!(value(&bundle, "cgroup.freeze"), "1");
    assert!(value(&bundle, "cgroup.events").contains("frozen 1"));
    let before = beats();
    // Long enough for hundreds of beats: the container counts them in a fraction of the time a command takes.
    bundle.ok(&["list"]);
    assert_eq!(beats(), before, "frozen");
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!((bundle.state()["status"].as_str(), value(&bundle, "cgroup.freeze").as_str()), (Some("running"), "0"));
    eventually("it beats again", || beats() > before);
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn v2_kill_reaches_all_of_a_container_without_a_pid_namespace() {
    let Some(mut bundle) = sleeper() else { return };
    let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
    list.retain(|one| one["type"] != "pid");
    let bundle = bundle.shell("(sleep 1000 & sleep 1000) & (trap '' TERM; sleep 1001) & sleep 1000");
    bundle.start();
    let cgroup = bundle.cgroup("");
    let below = cgroup.join("below");
    let processes = |path: &Path| std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    eventually("all of them run", || processes(&cgroup).lines().count() >= 4);
    // One that went further down belongs to it all the same.
    std::fs::create_dir(&below).expect("a cgroup");
    let text = processes(&cgroup);
    std::fs::write(below.join("cgroup.procs"), text.lines().last().expect("a pid")).expect("move");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    eventually("none is left", || processes(&cgroup).is_empty() && processes(&below).is_empty());
    bundle.wait_for("stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert!(!cgroup.exists(), "its cgroups are gone, with those made in them");
}

#[test]
fn v2_the_first_process_starts_in_its_cgroup_and_exec_joins_it() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle.shell("cat /proc/self/cgroup > /data/first; exec sleep 1000");
    bundle.start();
    let expected = format!("0::/berth-{}", bundle.id);
    eventually("it wrote", || std::fs::read_to_string(bundle.rootfs("data/first")).is_ok_and(|text| !text.is_empty()));
    assert_eq!(std::fs::read_to_string(bundle.rootfs("data/first")).expect("read").trim(), expected);
    assert_eq!(bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]).trim(), expected);
    let below = bundle.cgroup("").join("below");
    std::fs::create_dir(&below).expect("a cgroup");
    let said = bundle.ok(&["exec", "--cgroup", "below", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert_eq!(said.trim(), format!("{expected}/below"));
    for outside in ["..", "below/../.."] {
        bundle.fails(&["exec", "--cgroup", outside, &bundle.id, "true"]);
    }
}

#[test]
fn v2_cgroup_namespace_shows_its_own_tree_only() {
    for (options, writable) in [(json!(["ro"]), false), (json!(["rw"]), true)] {
        let Some(mut bundle) = sleeper() else { return };
        let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
        list.push(json!({"type": "cgroup"}));
        let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options});
        let bundle = bundle.set("/mounts/-", mount).set("/linux/resources/pids", json!({"limit": 31})).shell(
            "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max; mkdir /sys/fs/cgroup/mine && echo made; \
             readlink /proc/self/ns/cgroup",
        );
        let (stdout, stderr) = texts(&bundle.run());
        let text = format!("{stdout}\n{stderr}");
        assert!(stdout.starts_with("0::/\n31\n"), "{text}");
        assert_eq!(stdout.contains("made"), writable, "{text}");
        assert!(writable || stderr.contains("Read-only file system"), "{text}");
        let outside = std::fs::read_link("/proc/self/ns/cgroup").expect("a link");
        assert!(!stdout.contains(outside.to_str().expect("utf-8")), "{text}");
    }
}

#[test]
fn v2_without_a_cgroup_namespace_the_mount_is_still_its_own_cgroup() {
    let Some(bundle) = sleeper() else { return };
    let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]});
    let bundle = bundle
        .set("/mounts/-", mount)
        .set("/linux/resources/pids", json!({"limit": 37}))
        .shell("cat /sys/fs/cgroup/pids.max; ls /sys/fs/cgroup");
    let text = bundle.run_ok();
    assert!(text.starts_with("37\n"), "{text}");
    assert!(!text.contains("system.slice") && !text.contains("berth-"), "others' cgroups are not shown: {text}");
}

#[test]
fn v2_controllers_are_handed_down_the_whole_path() {
    let Some(bundle) = sleeper() else { return };
    let parent = Parent::new(&bundle);
    let path = format!("/{}/a/b/c", parent.name());
    let bundle = bundle
        .set("/linux/cgroupsPath", json!(path))
        .set("/linux/resources/memory", json!({"limit": 67_108_864}))
        .set("/linux/resources/cpu", json!({"quota": 50_000}));
    bundle.start();
    assert_eq!(bundle.cgroup(""), parent.path.join("a/b/c"));
    assert_eq!((value(&bundle, "memory.max"), value(&bundle, "cpu.max")), ("67108864".into(), "50000 100000".into()));
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!parent.path.join("a/b/c").exists());
}

/// The rule of cgroup2: a cgroup with processes hands no controllers down ("no internal processes").
#[test]
fn v2_a_parent_with_processes_is_named_when_a_limit_cannot_be_kept() {
    let Some(bundle) = sleeper() else { return };
    let mut parent = Parent::new(&bundle);
    parent.occupy("");
    let bundle = bundle.set("/linux/cgroupsPath", json!(format!("/{}/c", parent.name())));
    // Nothing is asked of a controller: nothing is missing.
    bundle.start();
    bundle.ok(&["delete", "--force", &bundle.id]);
    let bundle = bundle.set("/linux/resources/memory", json!({"limit": 67_108_864}));
    let error = bundle.run_fails();
    assert!(!is_ours() || error.contains("memory") && error.contains(parent.name()), "{error}");
    assert!(!parent.path.join("c").exists(), "nothing is left");
    let child = parent.occupant.as_mut().expect("a process");
    let place = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).expect("cgroup");
    assert_eq!(place.trim(), format!("0::/{}", parent.name()), "others' processes stay where they are");
}

#[test]
fn v2_too_little_memory_kills_and_is_counted() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle.set("/linux/resources/memory", json!({"limit": 33_554_432, "swap": 33_554_432}));
    bundle.start();
    let hog = "dd if=/dev/zero of=/dev/shm/hog bs=1048576 count=60";
    let output = bundle.call(&["exec", &bundle.id, "sh", "-c", hog]);
    assert!(!output.status.success(), "{output:?}");
    let events = value(&bundle, "memory.events");
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill ")).map(|number| number.parse::<u64>());
    assert!(matches!(kills, Some(Ok(1..))), "{events}");
}

#[test]
fn v2_too_many_processes_are_refused() {
    let Some(bundle) = sleeper() else { return };
    let bundle = bundle.set("/linux/resources/pids", json!({"limit": 6}));
    bundle.start();
    let script = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done";
    bundle.call(&["exec", &bundle.id, "sh", "-c", script]);
    let events = value(&bundle, "pids.events");
    assert!(events.trim_start_matches("max ").parse::<u64>().expect("a number") > 0, "{events}");
}

#[test]
fn v2_a_cgroup_that_is_used_or_frozen_is_not_taken_over() {
    let Some(bundle) = sleeper() else { return };
    let mut parent = Parent::new(&bundle);
    std::fs::create_dir(parent.path.join("taken")).expect("a cgroup");
    parent.occupy("taken");
    let bundle = bundle.set("/linux/cgroupsPath", json!(format!("/{}/taken", parent.name())));
    if !is_ours() {
        println!("skipped: others join a cgroup with processes");
        return;
    }
    let error = bundle.run_fails();
    assert!(error.contains("already has processes"), "{error}");
    assert!(parent.path.join("taken").exists(), "and it stays");
    std::fs::create_dir(parent.path.join("frozen")).expect("a cgroup");
    std::fs::write(parent.path.join("frozen/cgroup.freeze"), "1").expect("freeze");
    let bundle = bundle.set("/linux/cgroupsPath", json!(format!("/{}/frozen", parent.name())));
    let error = bundle.run_fails();
    assert!(error.contains("frozen"), "{error}");
}
