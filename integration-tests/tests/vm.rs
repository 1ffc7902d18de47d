//! The whole stack on a machine with cgroup v2 alone, and with AppArmor: what `make test-vm` runs besides the runtime's suite. Tests
//! that this machine has no kernel for say so; the first one runs anywhere.

use integration_tests::{Stack, eventually, run};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::{PoisonError, RwLock},
    thread,
    time::Duration,
};

/// Whether cgroup v2 has the controllers; says why the test is skipped otherwise.
fn unified() -> bool {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    let there = ["cpu", "memory", "pids"].iter().all(|name| controllers.split_whitespace().any(|word| word == *name));
    if !there {
        eprintln!("skipped: /sys/fs/cgroup is not cgroup v2 with its controllers here (make test-vm)");
    }
    there
}

/// Whether profiles can be loaded; says why the test is skipped otherwise.
fn apparmor() -> bool {
    let on = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    let there = on && Path::new("/sys/kernel/security/apparmor/profiles").exists();
    if !there {
        eprintln!("skipped: no AppArmor here (make test-vm BOOT=systemd)");
    }
    there
}

/// Who starts containers reads it, who takes the profile away writes it: the kernel has one for all stacks.
static PROFILE: RwLock<()> = RwLock::new(());

fn stdout(stack: &Stack, args: &[&str]) -> String {
    stack.berth(args).success().stdout()
}

/// A file of the container's own cgroup, as it sees it.
fn cgroup(stack: &Stack, container: &str, file: &str) -> String {
    stdout(stack, &["exec", container, "cat", &format!("/sys/fs/cgroup/{file}")])
}

/// The page that a server of this host gives.
fn fetch(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or("", |(_, body)| body.trim_end()).to_owned())
}

fn stats(stack: &Stack, container: &str) -> Value {
    stack.api().get(&format!("/containers/{container}/stats?stream=0")).expect(200).json()
}

#[test]
fn everyday_life() {
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let hello = stack.berth(["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]).expect_code(7);
    assert_eq!((hello.stdout(), hello.stderr()), ("out".into(), "err".into()));

    stdout(&stack, &["network", "create", "net"]);
    let port = 22_000 + stack.gateway().split('.').nth(2).unwrap().parse::<u16>().unwrap();
    let server = "echo serving; trap 'echo told; exit 3' TERM; httpd -f -p 80 -h /www & wait";
    let publish = format!("{port}:80");
    stdout(&stack, &["run", "-d", "--name", "web", "--network", "net", "-p", &publish, "busybox", "sh", "-c", server]);
    let page = || fetch(port).unwrap_or_else(|error| error.to_string());
    eventually("the published port answers", || (page() == "hello from berth").then_some(()));
    let by_name = ["run", "--rm", "--network", "net", "busybox", "nslookup", "web"];
    let address = stack.inspect("web")["NetworkSettings"]["Networks"]["net"]["IPAddress"].as_str().unwrap().to_owned();
    assert!(stdout(&stack, &by_name).contains(&address), "the name resolves to {address}");
    assert_eq!(stdout(&stack, &["exec", "-e", "A=b", "-w", "/www", "web", "sh", "-c", "echo $A $PWD"]), "b /www");
    stack.berth(["exec", "web", "sh", "-c", "exit 5"]).expect_code(5);
    assert_eq!(stdout(&stack, &["logs", "web"]), "serving");

    stdout(&stack, &["pause", "web"]);
    assert_eq!(stack.inspect("web")["State"]["Status"], "paused");
    stack.berth(["exec", "web", "true"]).expect_code(1);
    stdout(&stack, &["unpause", "web"]);
    assert_eq!(page(), "hello from berth");

    // The processes live on without daemons, and are known again to those that come after.
    let pid = stack.inspect("web")["State"]["Pid"].clone();
    stack.kill_engine();
    stack.kill_supervisor();
    assert_eq!(page(), "hello from berth");
    stack.start_supervisor();
    stack.start_engine();
    assert_eq!(stack.inspect("web")["State"]["Pid"], pid);
    assert_eq!(stdout(&stack, &["exec", "web", "echo", "in"]), "in");
    assert_eq!(stats(&stack, "web")["name"], "/web");
    stdout(&stack, &["stop", "web"]);
    assert_eq!(stack.inspect("web")["State"]["ExitCode"], 3);
    assert_eq!(stdout(&stack, &["logs", "web"]), "serving\ntold");
    stdout(&stack, &["start", "web"]);
    eventually("the port answers again", || (page() == "hello from berth").then_some(()));
    stdout(&stack, &["rm", "-f", "web"]);
    stdout(&stack, &["network", "rm", "net"]);
}

#[test]
fn files_of_containers_and_images() {
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let path = |name: &str| stack.path().join(name).display().to_string();
    let read = |name: &str| fs::read_to_string(stack.path().join(name)).unwrap();
    let start =
        ["run", "-d", "--init", "--name", "box", "-v", "vol:/data", "--tmpfs", "/scratch", "busybox", "sleep", "1000"];
    stdout(&stack, &start);
    let script = "echo of-volume >/data/file; echo x >/new; rm /www/index.html; echo memory >/scratch/file";
    stdout(&stack, &["exec", "box", "sh", "-c", script]);
    fs::write(path("in"), "from the host").unwrap();
    stdout(&stack, &["cp", "box:/scratch/file", &path("memory")]);
    stdout(&stack, &["cp", &path("in"), "box:/data/in"]);
    assert_eq!(
        (read("memory").as_str(), stdout(&stack, &["exec", "box", "cat", "/data/in"]).as_str()),
        ("memory\n", "from the host")
    );
    let changes = stdout(&stack, &["diff", "box"]);
    assert!(changes.contains("A /new") && changes.contains("D /www/index.html"), "{changes}");
    stdout(&stack, &["commit", "box", "two"]);
    stdout(&stack, &["stop", "-t", "1", "box"]);
    // Of one that doesn't run: a view of its layers and mounts.
    stdout(&stack, &["cp", "box:/data/file", &path("out")]);
    stdout(&stack, &["cp", "box:/new", &path("new")]);
    stdout(&stack, &["cp", &path("in"), "box:/later"]);
    assert_eq!((read("out").as_str(), read("new").as_str()), ("of-volume\n", "x\n"));
    stdout(&stack, &["export", "-o", &path("export.tar"), "box"]);
    let listed = run("tar", ["-tf", &path("export.tar")]).success().stdout();
    assert!(listed.lines().any(|line| line == "later") && !listed.contains("index.html"), "{listed}");
    stdout(&stack, &["start", "box"]);
    assert_eq!(stdout(&stack, &["exec", "box", "cat", "/later"]), "from the host");

    // Several layers, packed, read and mounted.
    stdout(&stack, &["run", "--name", "more", "two", "sh", "-c", "echo y >/other"]);
    stdout(&stack, &["commit", "more", "three"]);
    stdout(&stack, &["save", "-o", &path("three.tar"), "three"]);
    stdout(&stack, &["rm", "-f", "box", "more"]);
    stdout(&stack, &["rmi", "three", "two"]);
    stdout(&stack, &["load", "-q", "-i", &path("three.tar")]);
    let both = ["sh", "-c", "cat /new /other; ls /www; echo >/x"];
    let seen =
        stack.berth([&["run", "--rm", "--read-only", "--user", "root", "three"], &both[..]].concat()).expect_code(1);
    assert_eq!(seen.stdout(), "x\ny", "{seen}");
    assert!(seen.stderr().contains("Read-only file system"), "{seen}");
    let image = ["run", "--rm", "--mount", "type=image,source=three,target=/image", "busybox", "cat", "/image/other"];
    assert_eq!(stdout(&stack, &image), "y");
}

#[test]
fn limits_and_stats_of_cgroup2() {
    if !unified() {
        return;
    }
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let script = "yes >/dev/null & exec sleep 1000";
    let limits = ["--memory", "64m", "--cpus", "0.5", "--pids-limit", "50", "--cpu-shares", "512"];
    let mut args = vec!["run", "-d", "--name", "box"];
    args.extend(limits);
    args.extend(["busybox", "sh", "-c", script]);
    stdout(&stack, &args);
    for (file, wanted) in [
        ("memory.max", "67108864"),
        // As much again of swap, as with docker.
        ("memory.swap.max", "67108864"),
        ("cpu.max", "50000 100000"),
        ("pids.max", "50"),
    ] {
        assert_eq!(cgroup(&stack, "box", file), wanted, "{file}");
    }
    let weight: u64 = cgroup(&stack, "box", "cpu.weight").parse().unwrap();
    assert!((10..100).contains(&weight), "512 shares are half of the usual: weight {weight}");
    // Its own namespace: it sees itself as the root.
    assert_eq!(stdout(&stack, &["exec", "box", "cat", "/proc/self/cgroup"]), "0::/");

    let number = |value: &Value, path: &str| {
        value.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} of {value}"))
    };
    let first = stats(&stack, "box");
    assert_eq!(number(&first, "/memory_stats/limit"), 64 << 20);
    let used = number(&first, "/memory_stats/usage");
    assert!((64 << 10..64 << 20).contains(&used), "memory in use: {used}");
    assert!(number(&first, "/memory_stats/stats/anon") <= used);
    assert_eq!(number(&first, "/pids_stats/current"), 2);
    assert_eq!(number(&first, "/pids_stats/limit"), 50);
    // Half a processor is the limit, and it wants a whole one.
    let (before, begun) = (number(&first, "/cpu_stats/cpu_usage/total_usage"), std::time::Instant::now());
    thread::sleep(Duration::from_secs(3)); // time to be throttled in
    let second = stats(&stack, "box");
    let share =
        (number(&second, "/cpu_stats/cpu_usage/total_usage") - before) as f64 / begun.elapsed().as_nanos() as f64;
    assert!((0.1..0.65).contains(&share), "it used {share} of a processor");
    assert!(number(&second, "/cpu_stats/throttling_data/throttled_periods") > 0, "{}", second["cpu_stats"]);
    assert!(number(&second, "/cpu_stats/online_cpus") > 0 && number(&second, "/cpu_stats/system_cpu_usage") > 0);
    let row = stdout(&stack, &["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "box"]);
    assert!(row.starts_with("box ") && row.ends_with("/ 64MiB 2"), "{row}");

    stdout(
        &stack,
        &["update", "--memory", "128m", "--memory-swap", "256m", "--cpus", "1.5", "--pids-limit", "70", "box"],
    );
    for (file, wanted) in [
        ("memory.max", "134217728"),
        ("memory.swap.max", "134217728"),
        ("cpu.max", "150000 100000"),
        ("pids.max", "70"),
    ] {
        assert_eq!(cgroup(&stack, "box", file), wanted, "{file} after the update");
    }
    assert_eq!(number(&stats(&stack, "box"), "/memory_stats/limit"), 128 << 20);

    stdout(&stack, &["pause", "box"]);
    let usage = || number(&stats(&stack, "box"), "/cpu_stats/cpu_usage/total_usage");
    let frozen = usage();
    thread::sleep(Duration::from_millis(500)); // time in which it would have run
    assert!(usage() - frozen < 20_000_000, "it runs although it is paused");
    stdout(&stack, &["unpause", "box"]);
    assert_eq!(stdout(&stack, &["top", "box"]).lines().count(), 3);
    stdout(&stack, &["rm", "-f", "box"]);
}

#[test]
fn killed_for_want_of_memory_on_cgroup2() {
    if !unified() {
        return;
    }
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let limits = ["--memory", "24m", "--memory-swap", "24m"];
    let run = |name: &str, script: &str| {
        let mut args = vec!["run", "--name", name];
        args.extend(limits);
        args.extend(["busybox", "sh", "-c", script]);
        stack.berth(args)
    };
    run("first", "exec tail /dev/zero").expect_code(137);
    assert_eq!(stack.inspect("first")["State"]["OOMKilled"], true);
    // One of its other processes: it goes on, and so does the word for it.
    run("child", "tail /dev/zero; exit 4").expect_code(4);
    assert_eq!(stack.inspect("child")["State"]["OOMKilled"], true);
    run("modest", "exit 6").expect_code(6);
    assert_eq!(stack.inspect("modest")["State"]["OOMKilled"], false);
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let events = stack.api().get(&format!("/events?since=0&until={}", now.as_secs_f64())).text();
    assert!(events.contains(r#""Action":"oom""#), "{events}");
}

#[test]
fn a_profile_of_apparmor_for_everyone() {
    if !apparmor() {
        return;
    }
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let current = ["cat", "/proc/self/attr/current"];
    let label = |options: &[&str]| stdout(&stack, &[&["run", "--rm"], options, &["busybox"], &current[..]].concat());
    for (options, wanted) in [
        (&[][..], "docker-default (enforce)"),
        (&["--security-opt", "no-new-privileges"], "docker-default (enforce)"),
        (&["--init", "--user", "1000"], "docker-default (enforce)"),
        (&["--security-opt", "apparmor=docker-default", "--privileged"], "docker-default (enforce)"),
        (&["--security-opt", "apparmor=unconfined"], "unconfined"),
        (&["--privileged"], "unconfined"),
    ] {
        assert_eq!(label(options), wanted, "{options:?}");
    }
    let info = stack.api().get("/info").json();
    assert_eq!(info["SecurityOptions"][0], "name=apparmor");
    assert_eq!(info["Warnings"], Value::Null);

    // In execs; and what inspect says.
    for (name, options, wanted) in [
        ("plain", &[][..], "docker-default"),
        ("free", &["--security-opt", "apparmor=unconfined"], "unconfined"),
        ("mighty", &["--privileged"], "unconfined"),
    ] {
        let script = "trap 'exit 9' TERM; sleep 1000 & wait";
        stdout(&stack, &[&["run", "-d", "--name", name], options, &["busybox", "sh", "-c", script]].concat());
        for privileged in [false, true] {
            let flag: &[&str] = if privileged { &["--privileged"] } else { &[] };
            let said = stdout(&stack, &[&["exec"], flag, &[name], &current[..]].concat());
            assert_eq!(said.trim_end_matches(" (enforce)"), wanted, "{name}, privileged: {privileged}");
        }
        assert_eq!(stack.inspect(name)["AppArmorProfile"], wanted);
    }
    // Among themselves, and from us: signals arrive.
    stdout(&stack, &["exec", "plain", "sh", "-c", "sleep 1000 & kill -9 $!; wait $!; [ $? = 137 ]"]);
    assert!(stdout(&stack, &["top", "plain"]).contains("sleep 1000"));
    stdout(&stack, &["stop", "plain"]);
    assert_eq!(stack.inspect("plain")["State"]["ExitCode"], 9);
}

#[test]
fn a_profile_that_was_unloaded_comes_back() {
    if !apparmor() {
        return;
    }
    let _alone = PROFILE.write().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let script = "trap 'exit 9' TERM; sleep 1000 & wait";
    stdout(&stack, &["run", "-d", "--name", "plain", "busybox", "sh", "-c", script]);
    stdout(&stack, &["stop", "plain"]);
    // The profile is away, as after an upgrade of AppArmor's package: the next start, and the next exec, bring it back.
    let unload = || {
        let file = stack.path().join("profile");
        fs::write(&file, "profile docker-default {}\n").unwrap();
        run("apparmor_parser", ["-R", file.to_str().unwrap()]).success();
    };
    unload();
    stdout(&stack, &["start", "plain"]);
    let exec = ["exec", "plain", "cat", "/proc/self/attr/current"];
    assert_eq!(stdout(&stack, &exec), "docker-default (enforce)");
    unload();
    assert_eq!(stdout(&stack, &exec), "docker-default (enforce)");
    // Daemons that come after know what it runs under.
    stack.kill_engine();
    stack.kill_supervisor();
    stack.start_supervisor();
    stack.start_engine();
    assert_eq!(stdout(&stack, &exec), "docker-default (enforce)");
}

#[test]
fn what_the_default_profile_forbids() {
    if !apparmor() {
        return;
    }
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let open = "--security-opt systempaths=unconfined --cap-add SYS_ADMIN --cap-add SYS_PTRACE -v /sys/kernel/mm:/sys/kernel/mm";
    let open: Vec<&str> = open.split(' ').collect();
    let sh = |free: bool, script: &str| {
        let free: &[&str] = if free { &["--security-opt", "apparmor=unconfined"] } else { &[] };
        stack.berth([&["run", "--rm"], &open[..], free, &["busybox", "sh", "-c", script]].concat())
    };
    // Writes back what is there: nothing changes where it is allowed.
    let write = |path: &str| format!("old=$(cat {path}) && echo \"$old\" >{path}");
    for (script, without) in [
        (write("/proc/sys/vm/swappiness"), true),
        (write("/proc/sys/kernel/core_pattern"), true),
        (write("/proc/sys/kernel/sysrq"), true),
        (write("/proc/irq/default_smp_affinity"), true),
        ("mkdir /m && mount -t tmpfs x /m".to_owned(), true),
        ("mkdir /m && mount -o bind /www /m".to_owned(), true),
        ("true >/sys/kernel/mm/transparent_hugepage/enabled".to_owned(), true),
        ("head -c 1 /proc/kcore >/dev/null".to_owned(), false),
    ] {
        let confined = sh(false, &script);
        assert_ne!(confined.code(), 0, "{script}: {confined}");
        let said = confined.stderr();
        assert!(said.contains("ermission denied"), "{script}: {confined}");
        if without {
            // It is the profile that forbids it, and nothing else.
            sh(true, &script).success();
        }
    }
    for script in [
        write("/proc/sys/kernel/shmmax"),
        write("/proc/sys/kernel/sem"),
        write("/proc/self/oom_score_adj"),
        "umount /dev/mqueue".to_owned(),
        "echo text >/www/file && chmod 700 /www/file && ln /www/file /www/other && mv /www/other /tmp".to_owned(),
        "ping -c 1 -w 5 127.0.0.1 >/dev/null".to_owned(),
        "cat /sys/fs/cgroup/cgroup.procs /proc/meminfo /proc/sys/vm/swappiness >/dev/null".to_owned(),
    ] {
        sh(false, &script).success();
    }
}

#[test]
fn profiles_of_the_users() {
    if !apparmor() {
        return;
    }
    let _profile = PROFILE.read().unwrap_or_else(PoisonError::into_inner);
    let stack = Stack::with_busybox();
    let asked = ["--security-opt", "apparmor=berth-vm-mine"];
    let run_it = |name: &str| {
        stack.berth(
            [&["run", "--name", name], &asked[..], &["busybox", "sh", "-c", "cat /proc/self/attr/current; echo >/x"]]
                .concat(),
        )
    };
    let refused = run_it("early").expect_code(125);
    assert!(
        refused.stderr().contains("start container early: AppArmor profile \"berth-vm-mine\" is not loaded"),
        "{refused}"
    );
    assert_eq!(stack.inspect("early")["State"]["Status"], "created");
    let file = stack.path().join("mine");
    let profile = "profile berth-vm-mine flags=(attach_disconnected) { file, capability, network, deny /x w, }\n";
    fs::write(&file, profile).unwrap();
    run("apparmor_parser", ["-a", file.to_str().unwrap()]).success();
    let confined = run_it("later").expect_code(1);
    assert_eq!(confined.stdout(), "berth-vm-mine (enforce)", "{confined}");
    assert!(confined.stderr().contains("ermission denied"), "{confined}");
    assert_eq!(stack.inspect("later")["AppArmorProfile"], json!("berth-vm-mine"));
    stack.berth(["start", "-a", "early"]).expect_code(1);
    run("apparmor_parser", ["-R", file.to_str().unwrap()]).success();
}
