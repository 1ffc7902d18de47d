//! `process` and what of `linux` is about processes: scheduling, memory, labels, ids, working directory.

use serde_json::{Value, json};

use super::bundle::{Bundle, is_ours, texts};

/// Fields that are younger than runc 1.1.
fn newer() -> Option<Bundle> {
    if !is_ours() {
        println!("skipped: the field is newer than the runtime that is tested");
        return None;
    }
    Bundle::new()
}

/// Fields of /proc/PID/stat, counted as in proc(5).
fn stat(pid: i32, field: usize) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = text.rsplit_once(')').expect("a name");
    rest.split_whitespace().nth(field - 3).expect("a field").parse().expect("a number")
}

#[test]
fn schedulers_are_set() {
    const NICE: usize = 19;
    const PRIORITY: usize = 40;
    const POLICY: usize = 41;
    for (scheduler, nice, priority, policy) in [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), 7, 0, 0),
        (json!({"policy": "SCHED_BATCH", "nice": 3}), 3, 0, 3),
        (json!({"policy": "SCHED_IDLE"}), 0, 0, 5),
        (json!({"policy": "SCHED_FIFO", "priority": 11, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), 0, 11, 1),
        (json!({"policy": "SCHED_RR", "priority": 12}), 0, 12, 2),
    ] {
        let Some(bundle) = newer() else { return };
        let mut bundle = bundle.shell("exec sleep 1000").set("/process/scheduler", scheduler.clone());
        // With CONFIG_RT_GROUP_SCHED a group has no real time unless it is given some.
        if policy != 0 && std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
            bundle.config["linux"]["resources"]["cpu"] = json!({"realtimeRuntime": 1000});
        }
        bundle.start();
        let pid = bundle.pid();
        let found = (stat(pid, NICE), stat(pid, PRIORITY), stat(pid, POLICY));
        assert_eq!(found, (nice, priority, policy), "{scheduler}");
    }
}

#[test]
fn the_deadline_policy_is_set() {
    let Some(bundle) = newer() else { return };
    let scheduler =
        json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 20_000_000});
    let bundle = bundle.set("/process/args", json!(["sleep", "1000"])).set("/process/scheduler", scheduler);
    bundle.start();
    assert_eq!(stat(bundle.pid(), 41), 6);
}

#[test]
fn exec_is_scheduled_like_the_container_unless_told_otherwise() {
    let Some(bundle) = newer() else { return };
    let bundle = bundle
        .shell("sleep 1000")
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 4}))
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}));
    bundle.start();
    let line = |text: &str| -> (i64, i64) {
        let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        (fields[16].parse().expect("nice"), fields[38].parse().expect("policy"))
    };
    assert_eq!(line(&bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/stat"])), (4, 3));
    let file = bundle.path("process.json");
    let mut process = json!({"args": ["cat", "/proc/self/stat"], "cwd": "/", "env": ["PATH=/bin"]});
    for (scheduler, expected) in [(Value::Null, (4, 3)), (json!({"policy": "SCHED_OTHER", "nice": 9}), (9, 0))] {
        process["scheduler"] = scheduler;
        std::fs::write(&file, process.to_string()).expect("write");
        let text = bundle.ok(&["exec", "--process", file.to_str().expect("utf-8"), &bundle.id]);
        assert_eq!(line(&text), expected, "{process}");
    }
    if std::process::Command::new("ionice").arg("--version").output().is_err() {
        println!("skipped: I/O priority needs ionice");
        return;
    }
    let pid = bundle.pid().to_string();
    let output = std::process::Command::new("ionice").args(["-p", &pid]).output().expect("ionice");
    assert_eq!(texts(&output).0, "best-effort: prio 6");
}

#[test]
fn the_kernels_no_names_the_field() {
    for (pointer, value, words) in [
        // A reservation of more time than there is.
        (
            "/process/scheduler",
            json!({"policy": "SCHED_DEADLINE", "runtime": 30_000_000, "deadline": 20_000_000, "period": 20_000_000}),
            "process.scheduler",
        ),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "1000"}), "linux.memoryPolicy"),
        ("/process/scheduler", json!({"policy": "SCHED_MOON"}), "process.scheduler.policy: \"SCHED_MOON\" is unknown"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority.priority"),
        ("/linux/personality", json!({"domain": "BSD"}), "linux.personality.domain"),
    ] {
        let Some(bundle) = newer() else { return };
        let error = bundle.set(pointer, value).run_fails();
        assert!(error.contains(words), "{pointer}: {error}");
    }
}

#[test]
fn personality_holds_for_every_process() {
    let Some(bundle) = newer() else { return };
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ERRNO"}]});
    let bundle = bundle
        .shell("sleep 1000")
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        // It is set before the filter is there, which may forbid it.
        .set("/linux/seccomp", profile);
    bundle.start();
    let read = |path: String| std::fs::read_to_string(path).expect("personality").trim().to_owned();
    assert_eq!(read(format!("/proc/{}/personality", bundle.pid())), "00000008");
    assert_eq!(bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/personality"]).trim(), "00000008");
}

#[test]
fn memory_comes_from_where_the_policy_says() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        println!("skipped: needs a kernel with NUMA");
        return;
    }
    for (policy, word) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}), "bind=static:0"),
        (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0"}), "interleave:0"),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        let Some(bundle) = newer() else { return };
        let bundle =
            bundle.set("/process/args", json!(["cat", "/proc/self/numa_maps"])).set("/linux/memoryPolicy", policy);
        let maps = bundle.run_ok();
        assert!(maps.lines().next().is_some_and(|line| line.split(' ').nth(1) == Some(word)), "{word}: {maps}");
    }
}

#[test]
fn exec_runs_on_the_processors_it_is_given() {
    let Some(bundle) = newer() else { return };
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        println!("skipped: needs two processors");
        return;
    }
    // For exec only: the container's own process has them all. 5000 is no processor here, and no mistake.
    let bundle = bundle.shell("sleep 1000").set("/process/execCPUAffinity", json!({"initial": "0", "final": "1,5000"}));
    bundle.start();
    let allowed = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        line.expect("a line").trim().to_owned()
    };
    let own = std::fs::read_to_string(format!("/proc/{}/status", bundle.pid())).expect("status");
    assert_ne!(allowed(own), "1");
    assert_eq!(allowed(bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/status"])), "1");
    let file = bundle.path("process.json");
    let mut process = json!({"args": ["cat", "/proc/self/status"], "cwd": "/", "env": ["PATH=/bin"]});
    let call = |process: &Value| {
        std::fs::write(&file, process.to_string()).expect("write");
        bundle.call(&["exec", "--process", file.to_str().expect("utf-8"), &bundle.id])
    };
    assert_eq!(allowed(texts(&call(&process)).0), "1", "the container's counts when the file says nothing");
    process["execCPUAffinity"] = json!({"final": "0"});
    assert_eq!(allowed(texts(&call(&process)).0), "0");
    for (affinity, words) in [
        (json!({"initial": "5000"}), "process.execCPUAffinity.initial"),
        (json!({"final": "5000"}), "process.execCPUAffinity.final"),
        (json!({"final": "all"}), "process.execCPUAffinity.final: \"all\" is not a list"),
    ] {
        process["execCPUAffinity"] = affinity;
        let output = call(&process);
        assert_eq!(output.status.code(), Some(255));
        assert!(texts(&output).1.contains(words), "{output:?}");
    }
}

#[test]
fn labels_need_a_host_that_knows_them() {
    let Some(bundle) = Bundle::new() else { return };
    if std::path::Path::new("/sys/module/apparmor").exists() {
        println!("skipped: AppArmor is on here");
        return;
    }
    let bundle = bundle.set("/process/apparmorProfile", json!("berth-suite"));
    let error = bundle.run_fails();
    assert!(error.contains("berth-suite") || !is_ours(), "{error}");
    if is_ours() {
        assert!(error.contains("process.apparmorProfile") && error.contains("not enabled"), "{error}");
    }
    let bundle = bundle.set("/process/apparmorProfile", json!(""));
    if !std::path::Path::new("/sys/fs/selinux/status").exists() {
        let bundle = bundle.set("/process/selinuxLabel", json!("system_u:system_r:container_t:s0"));
        let error = bundle.run_fails();
        assert!(error.contains("process.selinuxLabel") || !is_ours(), "{error}");
    }
}

#[test]
fn unknown_capabilities_are_left_out() {
    let Some(bundle) = Bundle::new() else { return };
    let caps = json!(["CAP_KILL", "CAP_MOONWALK"]);
    let set = json!({"bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps});
    let bundle = bundle.shell("grep Cap /proc/self/status").set("/process/capabilities", set);
    let output = bundle.run();
    let (text, warning) = texts(&output);
    assert_eq!(text.matches("0000000000000020").count(), 5, "{text}");
    assert!(warning.contains("CAP_MOONWALK"), "{warning}");
}

#[test]
fn ids_groups_umask_and_score() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .shell("id -u; id -g; id -G; umask; cat /proc/self/oom_score_adj")
        .set("/process/user", json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027}))
        .set("/process/oomScoreAdj", json!(321));
    assert_eq!(bundle.run_ok(), "1000\n1001\n1001 5 6\n0027\n321");
    let Some(bundle) = Bundle::new() else { return };
    assert_eq!(bundle.shell("umask").run_ok(), "0022");
}

#[test]
fn a_missing_cwd_is_made_and_one_outside_refused() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("pwd").set("/process/cwd", json!("/srv/a/b"));
    assert_eq!(bundle.run_ok(), "/srv/a/b");
    for cwd in ["/proc/self/fd/3", "/proc/self/fd/7/..", "/proc/self/fd/8"] {
        let Some(bundle) = Bundle::new() else { return };
        bundle.set("/process/cwd", json!(cwd)).run_fails();
    }
}

#[test]
fn fields_of_other_systems_are_ignored() {
    let Some(bundle) = Bundle::new() else { return };
    let mut bundle = bundle.shell("echo linux").set("/process/commandLine", json!("cmd /c echo windows"));
    bundle.config["windows"] = json!({"layerFolders": []});
    bundle.config["zos"] = json!({});
    assert_eq!(bundle.run_ok(), "linux");
}

#[test]
fn every_container_has_its_own_session_keyring() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    if !bundle.create(&[]) {
        return;
    }
    let keys = std::fs::read_to_string("/proc/keys").unwrap_or_default();
    let name = format!("_ses.{}:", bundle.id);
    let Some(line) = keys.lines().find(|line| line.contains(&name)) else {
        println!("skipped: a kernel without keyrings");
        return;
    };
    // Its owner may search it, so that `exec` finds it.
    assert_eq!(line.split_whitespace().nth(4), Some("3f1b0000"), "{line}");
    bundle.ok(&["start", &bundle.id]);
    bundle.ok(&["exec", &bundle.id, "true"]);
    let keys = std::fs::read_to_string("/proc/keys").expect("keys");
    assert_eq!(keys.lines().filter(|line| line.contains(&name)).count(), 1, "exec joins it:\n{keys}");
}
