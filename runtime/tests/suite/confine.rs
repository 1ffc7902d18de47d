//! Limits, masks, capabilities, seccomp, devices, users, namespaces.

use serde_json::json;

use super::bundle::{Bundle, is_ours, texts};

fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[test]
fn limits_are_in_the_cgroup_and_can_change() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("sleep 1000")
        .set("/linux/resources/memory", json!({"limit": 33_554_432}))
        .set("/linux/resources/cpu", json!({"quota": 50_000, "period": 100_000, "shares": 512}))
        .set("/linux/resources/pids", json!({"limit": 17}));
    bundle.start();
    let read = |controller: &str, legacy: &str, modern: &str| {
        let path = bundle.cgroup(controller).join(if unified() { modern } else { legacy });
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(read("pids", "pids.max", "pids.max"), "17");
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota, if unified() { "50000 100000" } else { "50000" });
    bundle.ok(&["update", "--memory", "67108864", "--pids-limit", "19", &bundle.id]);
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(read("pids", "pids.max", "pids.max"), "19");
}

#[test]
fn huge_page_limits_hold_for_reservations_too() {
    let Some(bundle) = Bundle::new() else { return };
    let tree = std::path::Path::new("/sys/fs/cgroup").join(if unified() { "" } else { "unified" });
    let controllers = std::fs::read_to_string(tree.join("cgroup.controllers")).unwrap_or_default();
    if !is_ours() || !controllers.contains("hugetlb") || !tree.join("cgroup.subtree_control").exists() {
        eprintln!("skipped: needs berth-runtime and the hugetlb controller on cgroup2");
        return;
    }
    let enabled = std::fs::read_to_string(tree.join("cgroup.subtree_control")).expect("read");
    let limits = json!([{"pageSize": "2MB", "limit": 4_194_304}]);
    let bundle = bundle.shell("sleep 1000").set("/linux/resources/hugepageLimits", limits);
    bundle.start();
    let own = tree.join(format!("berth-{}", bundle.id));
    for file in ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"] {
        assert_eq!(std::fs::read_to_string(own.join(file)).expect(file).trim(), "4194304", "{file}");
    }
    drop(bundle);
    if !enabled.contains("hugetlb") {
        // Enabled on the way down; the root is given back as it was.
        std::fs::write(tree.join("cgroup.subtree_control"), "-hugetlb").expect("disable");
    }
}

#[test]
fn masks_hide_and_protect() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("cat /etc/secret; ls /data; touch /data/x 2>&1; touch /tmp/x 2>&1; echo 1 2>&1 > /proc/sys/kernel/hostname; stat -c %t:%T /etc/secret")
        .set("/linux/maskedPaths", json!(["/etc/secret", "/data", "/no/such"]))
        .set("/linux/readonlyPaths", json!(["/tmp", "/proc/sys", "/no/such"]));
    std::fs::write(bundle.rootfs("data/inside"), "x").expect("write");
    let (stdout, stderr) = texts(&bundle.run());
    let text = format!("{stdout}\n{stderr}");
    assert!(!text.contains("secret\n") && !text.contains("inside"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
    assert!(text.contains("1:3"), "a masked file is the null device: {text}");
}

#[test]
fn capabilities_are_those_asked_for() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("grep -E 'Cap|NoNew' /proc/self/status; id -u")
        .set("/process/user", json!({"uid": 1000, "gid": 1000}));
    let text = bundle.run_ok();
    for (name, value) in [("CapInh", 0), ("CapPrm", 0), ("CapEff", 0), ("CapAmb", 0), ("CapBnd", 0x2800_00e3_u64)] {
        assert!(text.contains(&format!("{name}:\t{value:016x}")), "{name}: {text}");
    }
    assert!(text.contains("NoNewPrivs:\t1") && text.ends_with("1000"), "{text}");
    let list = json!(["CAP_KILL"]);
    let sets = json!({"bounding": list, "effective": list, "permitted": list, "inheritable": list, "ambient": list});
    let bundle = bundle.set("/process/capabilities", sets);
    let text = bundle.run_ok();
    for name in ["CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd"] {
        assert!(text.contains(&format!("{name}:\t{:016x}", 1 << 5)), "{name}: {text}");
    }
}

#[test]
fn unknown_capabilities_warn_and_go_on() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = bundle.set("/process/capabilities/bounding", json!(["CAP_MOON"]));
    let output = bundle.run();
    assert!(output.status.success(), "{output:?}");
    assert!(texts(&output).1.contains("CAP_MOON"), "{output:?}");
}

#[test]
fn seccomp_answers_as_told_with_and_without_no_new_privs() {
    for no_new_privs in [true, false] {
        let Some(bundle) = Bundle::new() else { return };
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 27},
                {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"},
            ],
        });
        let bundle = bundle
            .shell("mkdir /data/x; hostname y; touch /data/fine && echo fine; grep -E 'CapEff|Seccomp:|NoNew' /proc/self/status")
            .set("/linux/seccomp", profile)
            .set("/process/noNewPrivileges", json!(no_new_privs));
        let (stdout, stderr) = texts(&bundle.run());
        assert!(stderr.contains("File too large") && stderr.contains("Operation not permitted"), "{stderr}");
        assert!(stdout.contains("fine") && stdout.contains("Seccomp:\t2"), "{stdout}");
        assert!(stdout.contains(&format!("NoNewPrivs:\t{}", u8::from(no_new_privs))), "{stdout}");
        assert!(stdout.contains("CapEff:\t00000000280000e3"), "no capability of ours is left: {stdout}");
    }
}

#[test]
fn devices_not_allowed_cannot_be_used() {
    let Some(bundle) = Bundle::new() else { return };
    let script = "mknod /dev/disk b 8 0 && dd if=/dev/disk of=/dev/null count=1 2>&1; dd if=/dev/zero of=/dev/null count=1 2>&1 && echo zero; head -c 3 /dev/urandom > /dev/null && echo random; ls /dev";
    let text = bundle.shell(script).run_ok();
    assert!(text.contains("Operation not permitted") && text.contains("zero") && text.contains("random"), "{text}");
    for name in
        ["fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"]
    {
        assert!(text.lines().any(|line| line == name), "{name}: {text}");
    }
}

#[test]
fn extra_devices_are_made() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("stat -c '%t:%T %a %u:%g' /dev/deep/fuse")
        .set("/linux/devices", json!([{"path": "/dev/deep/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4}]));
    assert_eq!(bundle.run_ok(), "a:e5 640 3:4");
}

#[test]
fn limits_of_the_process() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("ulimit -n; ulimit -Hn; umask; cat /proc/self/oom_score_adj; cat /proc/sys/kernel/shmmni; hostname")
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 768}]))
        .set("/process/user", json!({"uid": 0, "gid": 0, "umask": 0o27}))
        .set("/process/oomScoreAdj", json!(500))
        .set("/linux/sysctl", json!({"kernel.shmmni": "1234"}));
    assert_eq!(bundle.run_ok().lines().collect::<Vec<_>>(), ["512", "768", "0027", "500", "1234", "suite"]);
}

#[test]
fn what_the_runtime_may_not_do_is_left_out_with_a_warning() {
    let Some(bundle) = Bundle::new() else { return };
    let limited = sys::creds::caps().expect("caps").effective & 1 << 24 == 0;
    if !is_ours() || !limited {
        println!("skipped: needs our runtime without CAP_SYS_RESOURCE");
        return;
    }
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("limit");
    let bundle = bundle
        .shell("ulimit -Hn")
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": hard + 1}]))
        .set("/process/oomScoreAdj", json!(-999));
    let output = bundle.run();
    let (stdout, stderr) = texts(&output);
    assert_eq!(stdout, hard.to_string());
    assert!(stderr.contains("RLIMIT_NOFILE") && stderr.contains("oomScoreAdj"), "{stderr}");
}

#[test]
fn a_user_namespace_maps_ids() {
    let Some(bundle) = Bundle::new() else { return };
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let bundle = bundle
        .shell("id -u; cat /proc/self/uid_map; stat -c %t:%T /dev/null; echo x > /dev/null && echo written; touch /tmp/mine")
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map)
        .set("/linux/maskedPaths", json!(["/proc/keys", "/sys/firmware"]))
        .set("/linux/readonlyPaths", json!(["/proc/sys"]));
    std::os::unix::fs::chown(bundle.rootfs("tmp"), Some(100_000), Some(100_000)).expect("chown");
    let text = bundle.run_ok();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(lines[2..], ["1:3", "written"]);
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(bundle.rootfs("tmp/mine")).expect("made").uid(), 100_000);
}

#[test]
fn namespaces_of_another_container_can_be_joined() {
    let (Some(first), Some(second)) = (Bundle::new(), Bundle::new()) else { return };
    let first = first.shell("sleep 1000").set("/hostname", json!("theirs"));
    first.start();
    let pid = first.pid();
    let join = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
    let namespaces =
        json!([{"type": "mount"}, join("pid", "pid"), join("uts", "uts"), join("network", "net"), join("ipc", "ipc")]);
    let script = "hostname; ps; for n in net ipc uts pid; do readlink /proc/self/ns/$n; done";
    let second = second.shell(script).set("/linux/namespaces", namespaces);
    let mut second = second;
    second.config.as_object_mut().expect("object").remove("hostname");
    let text = second.run_ok();
    assert!(text.starts_with("theirs") && text.contains("sleep 1000"), "{text}");
    for name in ["net", "ipc", "uts", "pid"] {
        let theirs = std::fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("link");
        assert!(text.contains(&theirs.display().to_string()), "{name}: {text}");
    }
    assert_eq!(first.state()["status"], "running", "the other one lives on");
}

#[test]
fn clocks_can_be_shifted() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return; // runc 1.1 knows no time namespace
    }
    let bundle = bundle
        .shell("cat /proc/uptime")
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set("/linux/timeOffsets", json!({"boottime": {"secs": 1_000_000}}));
    let uptime: f64 = bundle.run_ok().split_whitespace().next().expect("uptime").parse().expect("a number");
    assert!(uptime > 1_000_000.0, "{uptime}");
}

#[test]
fn cgroups_are_shown_and_rooted() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("cat /proc/self/cgroup; ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/x 2>&1")
        .set("/linux/namespaces/-", json!({"type": "cgroup"}))
        .set("/mounts/-", json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]}));
    let output = bundle.run();
    let text = texts(&output).0;
    assert!(
        text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).all(|line| line.ends_with(":/")),
        "{text}"
    );
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.contains(if unified() { "cgroup.procs" } else { "memory" }), "{text}");
}

#[test]
fn mounts_have_their_attributes() {
    let Some(bundle) = Bundle::new() else { return };
    std::fs::create_dir(bundle.path("volume")).expect("folder");
    std::fs::write(bundle.path("file"), "one file\n").expect("file");
    let volume = bundle.path("volume");
    let file = bundle.path("file");
    let bundle = bundle
        .shell("cat /etc/file; touch /rw/made; touch /ro/x 2>&1; touch /new/tmp/x && echo ok; grep -E ' /(ro|rw|new/tmp) ' /proc/self/mountinfo; touch /readonly 2>&1")
        .set("/mounts/-", json!({"destination": "/rw", "type": "bind", "source": volume, "options": ["rbind", "rw", "nosuid"]}))
        .set("/mounts/-", json!({"destination": "/ro", "type": "bind", "source": volume, "options": ["rbind", "ro", "rprivate"]}))
        .set("/mounts/-", json!({"destination": "/etc/file", "type": "bind", "source": file, "options": ["bind", "ro"]}))
        .set("/mounts/-", json!({"destination": "new/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nodev", "size=1m"]}))
        .set("/root/readonly", json!(true));
    let output = bundle.run();
    let text = texts(&output).0;
    assert!(text.contains("one file") && text.contains("ok"), "{output:?}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.lines().any(|line| line.contains(" /rw ") && line.contains("nosuid")), "{text}");
    assert!(bundle.path("volume/made").exists());
}

#[test]
fn a_tmpfs_can_begin_with_what_it_covers() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("cat /etc/secret; ls -l /etc/link; rm /etc/passwd; ls /etc").set(
        "/mounts/-",
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=755"]}),
    );
    std::os::unix::fs::symlink("secret", bundle.rootfs("etc/link")).expect("link");
    let (stdout, _) = texts(&bundle.run());
    assert!(stdout.starts_with("secret") && stdout.contains("link -> secret"), "{stdout}");
    assert!(bundle.rootfs("etc/passwd").exists());
}

#[test]
fn only_asked_for_descriptors_are_inherited() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("ls /proc/$$/fd; true");
    assert_eq!(bundle.run_ok().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"]);
}
