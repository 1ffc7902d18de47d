//! Cgroups: every limit, paths that try to get out, nested ones, those of somebody else, `exec --cgroup`, containers without
//! privileges, and what a container sees of it.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::bundle::{Bundle, eventually, is_ours, texts};

const ROOT: &str = "/sys/fs/cgroup";

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Directories that exist of a path, one for each hierarchy.
fn everywhere(path: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(ROOT).expect("cgroups").flatten();
    let links = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
    let roots = entries.filter(|entry| !links(entry)).map(|entry| entry.path());
    let roots: Vec<PathBuf> = if unified() { vec![ROOT.into()] } else { roots.collect() };
    roots.into_iter().filter(|root| root.join("cgroup.procs").exists()).map(|root| root.join(path)).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}

/// Runs a bundle detached, what it says going to a file.
fn warnings(bundle: &Bundle) -> String {
    bundle.write_config();
    let folder = bundle.path("bundle");
    let log = bundle.path("log");
    let mut command = bundle.command(&["--log", log.to_str().expect("utf-8"), "create", "--bundle"]);
    let status =
        command.arg(folder).arg(&bundle.id).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let status = status.status().expect("the runtime runs");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "{text}");
    text
}

#[test]
fn every_limit_is_set_or_told() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let mut bundle = bundle.shell("sleep 1000").set(
        "/linux/resources/memory",
        json!({"limit": 67_108_864, "reservation": 33_554_432, "swappiness": 20, "kernel": 9_999_999, "kernelTCP": 9_999_999,
               "checkBeforeUpdate": true}),
    );
    let resources = &mut bundle.config["linux"]["resources"];
    resources["cpu"] = json!({"shares": 512, "quota": 20_000, "period": 50_000, "cpus": "0", "mems": "0"});
    resources["pids"] = json!({"limit": 33});
    resources["blockIO"] =
        json!({"weight": 500, "leafWeight": 300, "weightDevice": [{"major": 7, "minor": 0, "leafWeight": 200}]});
    let said = warnings(&bundle);
    assert!(said.contains("memory.kernel ") && said.contains("memory.kernelTCP "), "{said}");
    assert!(said.contains("leafWeight") || said.contains("leaf weights"), "{said}");
    if unified() {
        assert!(said.contains("memory.swappiness"), "{said}");
    }
    let value = |controller: &str, legacy: &str, modern: &str| {
        read(&bundle.cgroup(controller).join(if unified() { modern } else { legacy }))
    };
    assert_eq!(value("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(value("memory", "memory.soft_limit_in_bytes", "memory.low"), "33554432");
    assert_eq!(value("cpu", "cpu.shares", "cpu.weight"), if unified() { "59" } else { "512" });
    assert_eq!(value("cpu", "cpu.cfs_period_us", "cpu.max"), if unified() { "20000 50000" } else { "50000" });
    assert_eq!(value("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(value("cpuset", "cpuset.mems", "cpuset.mems"), "0");
    assert_eq!(value("pids", "pids.max", "pids.max"), "33");
    if !unified() {
        assert_eq!(value("memory", "memory.swappiness", ""), "20");
    }
    // Less than is in use, and config.json asks to look first.
    std::fs::write(bundle.path("less"), r#"{"memory":{"limit":1024,"checkBeforeUpdate":true}}"#).expect("write");
    let less = bundle.path("less");
    let error = bundle.fails(&["update", "--resources", less.to_str().expect("utf-8"), &bundle.id]);
    assert!(error.contains("checkBeforeUpdate") && error.contains("linux.resources.memory.limit"), "{error}");
    assert_eq!(value("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
}

#[test]
fn limits_that_cannot_be_kept_are_refused_by_name() {
    let Some(mut bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    for (resources, words) in [
        (json!({"memory": {"swappiness": 101}}), "linux.resources.memory.swappiness"),
        (json!({"memory": {"limit": 200, "swap": 100}}), "linux.resources.memory.swap"),
        (json!({"cpu": {"idle": 3}}), "linux.resources.cpu.idle"),
        (json!({"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}), "linux.resources.hugepageLimits.pageSize"),
        (json!({"unified": {"cgroup.procs": "1"}}), "linux.resources.unified"),
        (json!({"unified": {"nosuch.max": "1"}}), "needs the cgroup controller"),
    ] {
        bundle = bundle.set("/linux/resources", resources);
        let error = bundle.run_fails();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn unified_files_are_written_where_there_is_cgroup2() {
    let Some(bundle) = Bundle::new() else { return };
    let tree = Path::new(ROOT).join(if unified() { "" } else { "unified" });
    if !tree.join("cgroup.procs").exists() || (!is_ours() && !unified()) {
        println!("skipped: needs cgroup2; runc 1.1 refuses this on hybrid hosts");
        return;
    }
    let bundle = bundle
        .shell("sleep 1000")
        .set("/linux/resources/unified", json!({"cgroup.max.descendants": "7", "cgroup.max.depth": "3"}));
    bundle.start();
    let own = tree.join(format!("berth-{}", bundle.id));
    assert_eq!(
        (read(&own.join("cgroup.max.descendants")), read(&own.join("cgroup.max.depth"))),
        ("7".into(), "3".into())
    );
}

#[test]
fn somebody_elses_cgroup_is_left_alone() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: runc 1.1 joins it with a warning; later ones refuse");
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    let name = format!("berth-other-{}", bundle.id);
    let dirs = everywhere(&name);
    let dir = dirs.iter().find(|dir| unified() || dir.ends_with(format!("pids/{name}"))).expect("a hierarchy").clone();
    std::fs::create_dir(&dir).expect("mkdir");
    let mut sleeper = Command::new("sleep").arg("1000").spawn().expect("sleep");
    std::fs::write(dir.join("cgroup.procs"), sleeper.id().to_string()).expect("move");
    let bundle = bundle.set("/linux/cgroupsPath", json!(format!("/{name}")));
    bundle.write_config();
    let error = texts(&bundle.run()).1;
    let alive = sleeper.try_wait().expect("wait").is_none();
    let there = dir.join("cgroup.procs").exists();
    let more: Vec<&PathBuf> = dirs.iter().filter(|other| **other != dir && other.exists()).collect();
    let more = format!("{more:?}");
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
    eventually("the cgroup can go", || dirs.iter().all(|dir| !dir.exists() || std::fs::remove_dir(dir).is_ok()));
    assert!(alive && there, "{error}");
    assert!(more == "[]" || !is_ours(), "made and left: {more}");
    assert!(error.contains("already has processes") || !is_ours(), "{error}");
    bundle.assert_nothing_left();
}

#[test]
fn a_frozen_cgroup_is_refused_rather_than_joined() {
    let Some(bundle) = Bundle::new() else { return };
    let name = format!("berth-{}", bundle.id);
    let (dir, file, word) = match unified() {
        true => (Path::new(ROOT).join(&name), "cgroup.freeze", "1"),
        false => (Path::new(ROOT).join("freezer").join(&name), "freezer.state", "FROZEN"),
    };
    std::fs::create_dir(&dir).expect("mkdir");
    std::fs::write(dir.join(file), word).expect("freeze");
    let error = texts(&bundle.run()).1;
    let left = dir.exists();
    let _ = std::fs::remove_dir(&dir);
    assert!(error.contains("frozen"), "{error}");
    assert!(left || !is_ours(), "it was not the container's to remove");
}

#[test]
fn nested_cgroups_die_and_go_with_the_container() {
    for own_pids in [true, false] {
        let Some(mut bundle) = Bundle::new() else { return };
        if !own_pids {
            let list = bundle.config["linux"]["namespaces"].as_array_mut().expect("a list");
            list.retain(|entry| entry["type"] != "pid");
        }
        let bundle = bundle.shell("sleep 1000 & sleep 1001 & sleep 1002");
        bundle.start();
        let top = bundle.cgroup("pids");
        eventually("three sleep", || read(&top.join("cgroup.procs")).lines().count() >= 3);
        let pids: Vec<i32> = read(&top.join("cgroup.procs")).lines().map(|pid| pid.parse().expect("a pid")).collect();
        let deep = top.join("a/b");
        std::fs::create_dir_all(&deep).expect("mkdir");
        let moved: Vec<i32> = pids.into_iter().filter(|pid| *pid != bundle.pid()).take(2).collect();
        for pid in &moved {
            std::fs::write(deep.join("cgroup.procs"), pid.to_string()).expect("move");
        }
        let listed: Vec<i32> = serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).expect("json");
        assert!(moved.iter().all(|pid| listed.contains(pid)), "{listed:?} has {moved:?}");
        bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
        bundle.wait_for("stopped");
        let gone =
            |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        eventually("all are dead", || moved.iter().all(gone));
        bundle.ok(&["delete", &bundle.id]);
        assert!(!top.exists(), "{} is left", top.display());
    }
}

#[test]
fn relative_paths_are_below_a_parent_that_goes_again() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return; // where it is, every runtime says for itself
    }
    let bundle = bundle.shell("sleep 1000");
    let path = format!("{}/x", bundle.id);
    let bundle = bundle.set("/linux/cgroupsPath", json!(path));
    bundle.start();
    let own = bundle.cgroup("pids");
    assert!(own.ends_with(format!("berth-containers/{path}")), "{}", own.display());
    let parent = format!("berth-containers/{}", bundle.id);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(everywhere(&parent).iter().all(|dir| !dir.exists()), "{parent} is left");
}

#[test]
fn no_path_leads_out() {
    let Some(mut bundle) = Bundle::new() else { return };
    for path in ["../x", "/a/../../x", "/a/./b", "a\nb", "/a\u{0}b"] {
        bundle = bundle.set("/linux/cgroupsPath", json!(path));
        if is_ours() {
            let error = bundle.run_fails();
            assert!(error.contains("linux.cgroupsPath"), "{path:?}: {error}");
        }
    }
}

#[test]
fn exec_can_go_below() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for flag in ["../..", "/..", "a/../..", "memory:../x"] {
        let error = bundle.fails(&["exec", "--cgroup", flag, &bundle.id, "true"]);
        assert!(!is_ours() || error.contains("leads out"), "{flag}: {error}");
    }
    if !is_ours() {
        return;
    }
    let error = bundle.fails(&["exec", "--cgroup", "missing", &bundle.id, "true"]);
    assert!(error.contains("missing does not exist"), "{error}");
    let shown = || bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]);
    let at = |text: &str, controller: &str| {
        let is_it =
            |line: &&str| line.split(':').nth(1).is_some_and(|names| names.split(',').any(|name| name == controller));
        text.lines().find(is_it).unwrap_or_default().splitn(3, ':').nth(2).unwrap_or_default().to_owned()
    };
    let top = format!("/berth-{}", bundle.id);
    if unified() {
        let sub = bundle.cgroup("").join("sub");
        std::fs::create_dir(&sub).expect("mkdir");
        let text = bundle.ok(&["exec", "--cgroup", "sub", &bundle.id, "cat", "/proc/self/cgroup"]);
        assert_eq!(at(&text, ""), format!("{top}/sub"));
        let error = bundle.fails(&["exec", "--cgroup", "memory:sub", &bundle.id, "true"]);
        assert!(error.contains("no v1 hierarchy"), "{error}");
        return;
    }
    for dir in everywhere(&format!("berth-{}/sub", bundle.id)) {
        std::fs::create_dir(&dir).expect("mkdir");
        for file in ["cpuset.cpus", "cpuset.mems"].into_iter().filter(|file| dir.join(file).exists()) {
            std::fs::write(dir.join(file), read(&dir.parent().expect("a parent").join(file))).expect("cpuset");
        }
    }
    let dir = bundle.cgroup("pids").join("only");
    std::fs::create_dir(&dir).expect("mkdir");
    let text = bundle.ok(&["exec", "--cgroup", "sub", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert_eq!((at(&text, "pids"), at(&text, "memory")), (format!("{top}/sub"), format!("{top}/sub")));
    let flags = ["exec", "--cgroup", "pids:only", "--cgroup", "sub", &bundle.id, "cat", "/proc/self/cgroup"];
    let text = bundle.ok(&flags);
    assert_eq!((at(&text, "pids"), at(&text, "memory")), (format!("{top}/only"), format!("{top}/sub")));
    let text = bundle.ok(&["exec", "--cgroup", "pids:only", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert_eq!((at(&text, "pids"), at(&text, "memory")), (format!("{top}/only"), top.clone()));
    let error = bundle.fails(&["exec", "--cgroup", "moon:only", &bundle.id, "true"]);
    assert!(error.contains("\"moon\""), "{error}");
    assert_eq!(at(&shown(), "pids"), top);
}

#[test]
fn exec_follows_a_container_that_moved_below_its_top() {
    let Some(bundle) = Bundle::new() else { return };
    if !unified() {
        println!("skipped: only on cgroup2 can a cgroup with controllers below have no processes");
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    let top = bundle.cgroup("");
    let inner = top.join("inner");
    std::fs::create_dir(&inner).expect("mkdir");
    std::fs::write(inner.join("cgroup.procs"), bundle.pid().to_string()).expect("move");
    std::fs::write(top.join("cgroup.subtree_control"), "+pids").expect("hand down");
    let text = bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/cgroup"]);
    assert!(text.trim_end().ends_with("/inner"), "{text}");
}

fn cgroup_mount(options: &[&str]) -> Value {
    json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options})
}

#[test]
fn the_cgroup_mount_shows_the_containers_own() {
    for private in [true, false] {
        let Some(bundle) = Bundle::new() else { return };
        let bundle = bundle
            .shell("ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/new 2>&1; mkdir /sys/fs/cgroup/pids/new 2>&1; cat /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null; true")
            .set("/mounts/-", cgroup_mount(&["nosuid", "noexec", "nodev", "relatime", "ro"]));
        let bundle = if private { bundle.set("/linux/namespaces/-", json!({"type": "cgroup"})) } else { bundle };
        let text = bundle.run_ok();
        assert!(text.contains("Read-only file system"), "{text}");
        let pids: Vec<&str> = text.lines().filter(|line| line.bytes().all(|byte| byte.is_ascii_digit())).collect();
        assert!((1..=2).contains(&pids.len()), "the container's own processes alone: {text}");
        if !unified() {
            for file in std::fs::read_dir(ROOT).expect("cgroups").flatten() {
                let name = file.file_name().to_string_lossy().into_owned();
                let is_tree = file.path().join("cgroup.procs").exists();
                // runc leaves out the tree beside v1.
                if is_tree && (is_ours() || name != "unified") {
                    assert!(text.lines().any(|line| line == name), "{name}: {text}");
                }
            }
        }
    }
}

/// A configuration that an ordinary user can run.
fn rootless(mut bundle: Bundle) -> Bundle {
    let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    bundle.config["linux"]["namespaces"] =
        json!(["user", "pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind})));
    bundle.config["mounts"] = json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]);
    bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
}

/// Runs it as that user, from inside a cgroup if one is given.
fn run_as_user(bundle: &Bundle, flags: &[&str], from: Option<&Path>) -> Output {
    bundle.write_config();
    let owned = Command::new("chown").args(["-R", "1000:1000"]).arg(bundle.path("")).status().expect("chown");
    assert!(owned.success());
    let folder = bundle.path("bundle");
    let arguments = [flags, &["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]].concat();
    let root = bundle.path("state");
    let mut ours = Command::new(bundle.program_for_users());
    ours.arg("--root").arg(root).args(&arguments);
    let mut command = match from {
        None => {
            let mut command = ours;
            command.uid(1000).gid(1000);
            command
        }
        Some(dir) => {
            let script =
                "echo $$ > \"$0\"/cgroup.procs && exec setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(dir).arg(ours.get_program()).args(ours.get_args());
            command
        }
    };
    command.current_dir("/").stdin(std::process::Stdio::null()).output().expect("runs")
}

#[test]
fn an_ordinary_user_needs_no_cgroup_without_limits() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = rootless(bundle.shell("cat /proc/self/cgroup"));
    let (stdout, stderr) = texts(&run_as_user(&bundle, &[], None));
    assert!(stdout.contains(":/"), "{stdout}\n{stderr}");
    assert!(!stdout.contains(&bundle.id), "it has none of its own: {stdout}");
    // Told not to do without, it does not.
    let (_, stderr) = texts(&run_as_user(&bundle, &["--rootless=false"], None));
    assert!(stderr.contains("make cgroup"), "{stderr}");
    let bundle = bundle.set("/linux/resources", json!({"memory": {"limit": 67_108_864}}));
    let (_, stderr) = texts(&run_as_user(&bundle, &[], None));
    assert!(stderr.contains("linux.resources asks for limits") && stderr.contains("Delegate=yes"), "{stderr}");
    bundle.assert_nothing_left();
}

#[test]
fn an_ordinary_user_can_use_a_delegated_cgroup() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let tree = Path::new(ROOT).join(if unified() { "" } else { "unified" });
    if !tree.join("cgroup.procs").exists() {
        println!("skipped: needs cgroup2");
        return;
    }
    let given = tree.join(format!("berth-delegated-{}", bundle.id));
    let start = given.join("start");
    std::fs::create_dir_all(&start).expect("mkdir");
    for file in [
        "",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.threads",
        "start",
        "start/cgroup.procs",
        "start/cgroup.subtree_control",
    ] {
        std::os::unix::fs::chown(given.join(file), Some(1000), Some(1000)).expect("chown");
    }
    let bundle = rootless(bundle.shell("grep 0:: /proc/self/cgroup")).set("/linux/cgroupsPath", json!(""));
    let (stdout, stderr) = texts(&run_as_user(&bundle, &[], Some(&start)));
    // Limits, where the tree has controllers to hand down.
    let controllers = std::fs::read_to_string(given.join("cgroup.controllers")).unwrap_or_default();
    let limited = controllers.contains("pids").then(|| {
        let bundle = bundle.set("/linux/resources", json!({"pids": {"limit": 31}}));
        texts(&run_as_user(&bundle, &[], Some(&start)))
    });
    let left: Vec<_> = std::fs::read_dir(&given)
        .expect("folder")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name())
        .collect();
    eventually("the delegated cgroup can go", || std::fs::remove_dir(&start).is_ok() || !start.exists());
    eventually("the delegated cgroup can go", || std::fs::remove_dir(&given).is_ok() || !given.exists());
    assert!(stdout.contains("berth-delegated") && stdout.contains("/berth-suite"), "{stdout}\n{stderr}");
    assert_eq!(left, ["start"], "the container's own is gone");
    if let Some((stdout, stderr)) = limited {
        assert!(stdout.contains("berth-delegated"), "{stdout}\n{stderr}");
    } else {
        println!("limits in it not tried: no controllers on this host's cgroup2");
    }
}

#[test]
fn an_unprivileged_container_cannot_write_its_users_cgroups() {
    // CVE-2023-25809: /sys bound with everything below it, and the host's cgroup namespace.
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let script = "cd /sys/fs/cgroup && for d in . *; do mkdir $d/escaped 2>/dev/null && echo made in $d; \
                  echo 1 2>/dev/null > $d/cgroup.procs && echo wrote in $d; done; echo done";
    let bundle = rootless(bundle.shell(script))
        .set("/mounts/-", json!({"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]}))
        .set("/mounts/-", cgroup_mount(&["nosuid", "noexec", "nodev"]));
    let (stdout, stderr) = texts(&run_as_user(&bundle, &[], None));
    assert!(stdout.contains("done") && !stdout.contains("made") && !stdout.contains("wrote"), "{stdout}\n{stderr}");
}

#[test]
fn a_writable_cgroup_belongs_to_the_containers_user() {
    for (options, user_namespace) in [(&["rw"][..], true), (&["ro"], true), (&["rw"], false)] {
        let Some(bundle) = Bundle::new() else { return };
        if !unified() {
            println!("skipped: v1 cgroups are not given away");
            return;
        }
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let mut bundle = bundle
            .shell("mkdir /sys/fs/cgroup/mine && echo made; sleep 1000")
            .set("/linux/namespaces/-", json!({"type": "cgroup"}))
            .set("/mounts/-", cgroup_mount(options));
        if user_namespace {
            bundle = bundle
                .set("/linux/namespaces/-", json!({"type": "user"}))
                .set("/linux/uidMappings", map.clone())
                .set("/linux/gidMappings", map);
        }
        bundle.start();
        let own = bundle.cgroup("");
        let owner = |file: &str| std::fs::metadata(own.join(file)).expect(file).uid();
        let expected = if user_namespace && options == ["rw"] { 100_000 } else { 0 };
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            assert_eq!(owner(file), expected, "{file:?} {options:?}");
        }
        assert_eq!(owner("memory.max"), 0, "limits stay the host's");
        if expected != 0 {
            eventually("the container makes a cgroup", || own.join("mine").exists());
        }
    }
}

#[test]
fn a_container_without_a_cgroup_says_so() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return; // the flag is crun's and ours
    }
    let bundle = bundle.shell("sleep 1000 & sleep 1001");
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut command = bundle.command(&["--cgroup-manager", "disabled", "create", "--bundle"]);
    let command =
        command.arg(folder).arg(&bundle.id).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    assert!(command.status().expect("the runtime runs").success());
    bundle.ok(&["start", &bundle.id]);
    let pids =
        || -> Vec<i32> { serde_json::from_str(&bundle.ok(&["ps", "--format", "json", &bundle.id])).expect("json") };
    eventually("both are listed", || pids().len() >= 2 && pids().contains(&bundle.pid()));
    for arguments in
        [&["pause"][..], &["events", "--stats"], &["update", "--memory", "67108864"], &["exec", "--cgroup", "x"]]
    {
        let words = [arguments, &[bundle.id.as_str()], if arguments[0] == "exec" { &["true"] } else { &[] }].concat();
        let error = bundle.fails(&words);
        assert!(error.contains("no cgroup of its own"), "{arguments:?}: {error}");
    }
    assert_eq!(bundle.ok(&["exec", &bundle.id, "echo", "here"]), "here");
    let all = pids();
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    let gone =
        |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
    eventually("all are dead", || all.iter().all(gone));
}

#[test]
fn update_reads_names_as_exactly_as_create() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = bundle.shell("sleep 1000");
    bundle.start();
    for text in [
        r#"{"hugepageLimits": [{"pageSize": "../../x", "limit": 1}]}"#,
        r#"{"unified": {"../memory.max": "1"}}"#,
        r#"{"memory": {"swappiness": 200}}"#,
    ] {
        let file = bundle.path("resources");
        std::fs::write(&file, text).expect("write");
        let error = bundle.fails(&["update", "--resources", file.to_str().expect("utf-8"), &bundle.id]);
        assert!(error.contains("linux.resources."), "{text}: {error}");
    }
}

#[test]
fn network_classes_and_priorities_are_set_on_v1() {
    let Some(bundle) = Bundle::new() else { return };
    let network = json!({"classID": 1_048_577, "priorities": [{"name": "lo", "priority": 3}]});
    let bundle = bundle.shell("sleep 1000").set("/linux/resources/network", network);
    if unified() && is_ours() {
        let said = warnings(&bundle);
        assert!(said.contains("linux.resources.network is not there on cgroup2"), "{said}");
        return;
    }
    if !Path::new(ROOT).join("net_cls").exists() || !Path::new(ROOT).join("net_prio").exists() {
        println!("skipped: needs the v1 controllers net_cls and net_prio");
        if is_ours() && !unified() {
            assert!(bundle.run_fails().contains("linux.resources.network.classID needs the cgroup controller"));
        }
        return;
    }
    bundle.start();
    assert_eq!(read(&bundle.cgroup("net_cls").join("net_cls.classid")), "1048577");
    let map = read(&bundle.cgroup("net_prio").join("net_prio.ifpriomap"));
    assert!(map.lines().any(|line| line == "lo 3"), "{map}");
}

#[test]
fn a_runtime_in_the_way_of_its_containers_limits_steps_aside() {
    let Some(bundle) = Bundle::new() else { return };
    let root = std::fs::read_to_string(Path::new(ROOT).join("cgroup.subtree_control")).unwrap_or_default();
    if !is_ours() || !unified() || !root.contains("pids") {
        println!("skipped: needs cgroup2 with the pids controller handed down");
        return;
    }
    // Nothing above may be written: the container has to go below the runtime's own cgroup.
    let above = Path::new(ROOT).join(format!("berth-above-{}", bundle.id));
    let start = above.join("start");
    std::fs::create_dir_all(&start).expect("mkdir");
    std::fs::write(above.join("cgroup.subtree_control"), "+pids").expect("hand down");
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        std::os::unix::fs::chown(start.join(file), Some(1000), Some(1000)).expect("chown");
    }
    let bundle = rootless(bundle.shell("grep 0:: /proc/self/cgroup"))
        .set("/linux/cgroupsPath", json!(""))
        .set("/linux/resources", json!({"pids": {"limit": 31}}));
    let (stdout, stderr) = texts(&run_as_user(&bundle, &[], Some(&start)));
    let handed = read(&start.join("cgroup.subtree_control"));
    for dir in [start.join("berth-runtime"), start.clone(), above] {
        eventually("the cgroup can go", || std::fs::remove_dir(&dir).is_ok() || !dir.exists());
    }
    assert!(stdout.contains(&format!("/start/berth-{}", bundle.id)), "{stdout}\n{stderr}");
    assert!(handed.contains("pids"), "{handed}");
}
