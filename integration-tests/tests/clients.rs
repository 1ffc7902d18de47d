//! The everyday life of containers, through Berth's client and through the real docker client: same verbs, same
//! output, same exit codes.

use integration_tests::{Outcome, Stack, eventually, images, programs::program, run_with, stack::has_docker};
use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

/// What happened so far, as the engine's event stream tells it.
fn past_events(stack: &Stack) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    stack.api().get(&format!("/events?since=0&until={}", now.as_secs_f64())).text()
}

/// Both clients, as far as they are here.
fn clients() -> Vec<PathBuf> {
    let mut found = vec![program("berth")];
    if has_docker() {
        found.push("docker".into());
    }
    found
}

fn cli(stack: &Stack, client: &Path, args: &[&str]) -> Outcome {
    run_with(stack.client(client).args(args), b"", Duration::from_secs(60))
}

/// Runs a client under script(1), which gives it a terminal, and types `input`.
fn with_terminal(stack: &Stack, client: &Path, args: &str, input: &str) -> Outcome {
    let line = format!("{} {args}", client.display());
    run_with(stack.client("script").args(["-qec", &line, "/dev/null"]), input.as_bytes(), Duration::from_secs(60))
}

#[test]
fn run_gives_output_and_exit_code() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let hello = cli(&stack, &client, &["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!((hello.code(), hello.stdout(), hello.stderr()), (7, "out".into(), "err".into()), "{hello}");
        cli(&stack, &client, &["run", "--rm", "busybox", "true"]).success();
        // A signal from inside doesn't end pid 1 of a namespace; the shell passes on how its child ended.
        cli(&stack, &client, &["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]).expect_code(137);
        cli(&stack, &client, &["run", "--rm", "busybox", "no-such-program"]).expect_code(127);
        cli(&stack, &client, &["run", "--rm", "busybox", "/etc"]).expect_code(126);
        cli(&stack, &client, &["run", "--no-such-flag", "busybox"]).expect_code(125);
        assert_eq!(cli(&stack, &client, &["ps", "-aq"]).success().stdout(), "", "--rm left a container");
    }
}

#[test]
fn stdin_reaches_the_container_and_its_end_too() {
    let stack = Stack::with_busybox();
    let input = "line\n".repeat(20_000);
    for client in clients() {
        let mut command = stack.client(&client);
        let count = run_with(
            command.args(["run", "--rm", "-i", "busybox", "wc", "-l"]),
            input.as_bytes(),
            Duration::from_secs(60),
        );
        assert_eq!(count.success().stdout().trim(), "20000");
    }
}

#[test]
fn terminal_run_and_exec() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let shell = with_terminal(&stack, &client, "run --rm -it busybox sh", "tty; stty size; exit 3\n");
        assert_eq!(shell.code(), 3, "{shell}");
        assert!(shell.stdout().contains("/dev/pts/0") || shell.stdout().contains("/dev/console"), "{shell}");
        cli(&stack, &client, &["run", "-d", "--name", "box", "busybox", "sleep", "1000"]).success();
        let shell = with_terminal(&stack, &client, "exec -it box sh", "echo in-$(hostname); exit 4\n");
        assert_eq!(shell.code(), 4, "{shell}");
        assert!(shell.stdout().contains("in-"), "{shell}");
        cli(&stack, &client, &["rm", "-f", "box"]).success();
    }
}

#[test]
fn detached_life() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let id = cli(
            &stack,
            &client,
            &["run", "-d", "--name", "web", "--label", "a=b", "busybox", "sh", "-c", "echo ready; exec sleep 1000"],
        )
        .success()
        .stdout();
        assert_eq!(id.len(), 64);
        let ps = cli(&stack, &client, &["ps"]).success().stdout();
        assert!(ps.contains("web") && ps.contains(&id[..12]) && ps.contains("Up "), "{ps}");
        assert_eq!(cli(&stack, &client, &["ps", "-q", "--filter", "label=a=b"]).success().stdout(), id[..12]);
        eventually("the log has the first line", || {
            (cli(&stack, &client, &["logs", "web"]).success().stdout() == "ready").then_some(())
        });
        let exec = cli(
            &stack,
            &client,
            &["exec", "-e", "K=v", "-w", "/tmp", "-u", "1000", "web", "sh", "-c", "echo $K $(pwd) $(id -u); exit 5"],
        );
        assert_eq!((exec.code(), exec.stdout()), (5, "v /tmp 1000".into()), "{exec}");
        let format =
            cli(&stack, &client, &["inspect", "-f", "{{.State.Status}} {{.Config.Labels.a}} {{.Name}}", "web"])
                .success();
        assert_eq!(format.stdout(), "running b /web");
        let stopped = cli(&stack, &client, &["stop", "-t", "1", "web"]).success();
        assert_eq!(stopped.stdout(), "web");
        assert!(stopped.took() < Duration::from_secs(10));
        stack.await_status("web", "exited");
        assert_eq!(stack.inspect("web")["State"]["ExitCode"], 137, "sleep as pid 1 ignores SIGTERM");
        cli(&stack, &client, &["start", "web"]).success();
        cli(&stack, &client, &["restart", "-t", "0", "web"]).success();
        cli(&stack, &client, &["rm", "web"]).expect_code(1).expect_error("container is running");
        cli(&stack, &client, &["kill", "web"]).success();
        assert_eq!(cli(&stack, &client, &["wait", "web"]).success().stdout(), "137");
        assert_eq!(
            cli(&stack, &client, &["logs", "web"]).success().stdout(),
            "ready\nready\nready",
            "logs go on across starts"
        );
        cli(&stack, &client, &["rm", "web"]).success();
    }
}

#[test]
fn logs_follow_and_tail() {
    let stack = Stack::with_busybox();
    for client in clients() {
        cli(
            &stack,
            &client,
            &[
                "run",
                "-d",
                "--name",
                "count",
                "busybox",
                "sh",
                "-c",
                "for i in $(seq 1 40); do echo $i; sleep 0.05; done",
            ],
        )
        .success();
        let follow = cli(&stack, &client, &["logs", "-f", "count"]).success();
        let want: Vec<String> = (1..=40).map(|n| n.to_string()).collect();
        assert_eq!(follow.stdout().lines().collect::<Vec<_>>(), want);
        assert_eq!(cli(&stack, &client, &["logs", "--tail", "2", "count"]).success().stdout(), "39\n40");
        let stamped = cli(&stack, &client, &["logs", "-t", "--tail", "1", "count"]).success().stdout();
        assert!(stamped.ends_with("Z 40") && stamped.len() == "2026-01-02T03:04:05.000000000Z 40".len(), "{stamped}");
        cli(&stack, &client, &["rm", "count"]).success();
    }
}

#[test]
fn settings_are_honoured() {
    let stack = Stack::with_busybox();
    let host = stack.path().join("host folder");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host").unwrap();
    let volume = format!("{}:/mnt:ro", host.display());
    for client in clients() {
        let sh = |flags: &[&str], script: &str| {
            let args: Vec<&str> =
                ["run", "--rm"].iter().chain(flags).chain(&["busybox", "sh", "-c", script]).copied().collect();
            cli(&stack, &client, &args)
        };
        assert_eq!(sh(&["--hostname", "deck"], "hostname").stdout(), "deck");
        assert_eq!(sh(&["-e", "A=1", "-e", "B=x y"], "echo $A $B").stdout(), "1 x y");
        assert_eq!(sh(&["-w", "/made/here"], "pwd").stdout(), "/made/here");
        assert_eq!(sh(&["-u", "user"], "id -u; id -g; id -G").stdout(), "1000\n1000\n1000 50");
        assert_eq!(
            sh(&["-v", &volume], "cat /mnt/file; touch /mnt/x 2>/dev/null || echo ' ro'").stdout(),
            "from the host ro"
        );
        assert_eq!(sh(&["--read-only"], "touch /x 2>/dev/null || echo ro").stdout(), "ro");
        assert_eq!(
            sh(&["--tmpfs", "/scratch:size=1m"], "df -k /scratch | tail -1 | awk '{print $1, $2}'").stdout(),
            "tmpfs 1024"
        );
        assert_eq!(sh(&["--entrypoint", "echo"], "x").stdout(), "sh -c x");
        let status = "grep -E '^Cap(Inh|Eff)|NoNewPrivs|Seccomp:' /proc/self/status | awk '{print $2}' | tr '\\n' ' '";
        assert_eq!(sh(&[], status).stdout(), "0000000000000000 00000000a80425fb 0 2 ");
        assert_eq!(
            sh(&["--cap-drop", "ALL", "--cap-add", "CHOWN"], status).stdout(),
            "0000000000000000 0000000000000001 0 2 "
        );
        assert_eq!(
            sh(
                &["--memory", "64m", "--network", "none"],
                "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
            )
            .stdout(),
            "67108864"
        );
        assert_eq!(
            sh(&["--pids-limit", "9"], "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null").stdout(),
            "9"
        );
        assert_eq!(sh(&["--ulimit", "nofile=10:20"], "ulimit -n").stdout(), "10");
        let quota =
            sh(&["--cpus", "0.5"], "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null");
        assert!(quota.stdout().starts_with("50000"), "{quota}");
        assert_eq!(sh(&["--network", "none"], "ls /sys/class/net | tr '\\n' ' '").stdout(), "lo ");
        assert_eq!(sh(&[], "cat /etc/resolv.conf >/dev/null && grep -c $(hostname) /etc/hosts").stdout(), "1");
    }
}

#[test]
fn named_volume_outlives_its_container() {
    let stack = Stack::with_busybox();
    for client in clients() {
        let name = if client.ends_with("docker") { "v-docker:/data" } else { "v-berth:/data" };
        cli(&stack, &client, &["run", "--rm", "-v", name, "busybox", "sh", "-c", "echo kept > /data/f"]).success();
        assert_eq!(
            cli(&stack, &client, &["run", "--rm", "-v", name, "busybox", "cat", "/data/f"]).success().stdout(),
            "kept"
        );
    }
}

#[test]
fn published_port_is_reachable() {
    let stack = Stack::with_busybox();
    let port = 20_000 + u16::from(stack.gateway().split('.').nth(2).unwrap().parse::<u8>().unwrap());
    for client in clients() {
        let publish = format!("{port}:80");
        cli(
            &stack,
            &client,
            &["run", "-d", "--name", "web", "-p", &publish, "busybox", "httpd", "-f", "-p", "80", "-h", "/www"],
        )
        .success();
        for address in ["127.0.0.1".to_owned(), stack.gateway()] {
            eventually(&format!("the page comes from {address}"), || {
                let page = integration_tests::run("curl", ["-s", "-m", "2", &format!("http://{address}:{port}/")]);
                (page.stdout() == "hello from berth").then_some(())
            });
        }
        let hairpin = cli(
            &stack,
            &client,
            &["run", "--rm", "busybox", "wget", "-q", "-O-", &format!("http://{}:{port}/", stack.gateway())],
        );
        assert_eq!(hairpin.success().stdout(), "hello from berth");
        assert_eq!(
            cli(&stack, &client, &["port", "web"]).success().stdout().lines().next().unwrap(),
            format!("80/tcp -> 0.0.0.0:{port}")
        );
        cli(&stack, &client, &["run", "--name", "second", "-p", &publish, "busybox", "true"])
            .expect_code(125)
            .expect_error("port is already allocated");
        cli(&stack, &client, &["rm", "-f", "web", "second"]).success();
    }
}

#[test]
fn a_start_that_fails_leaves_the_last_end_known() {
    let stack = Stack::with_busybox();
    let port = 21_000 + u16::from(stack.gateway().split('.').nth(2).unwrap().parse::<u8>().unwrap());
    let publish = format!("{port}:80");
    stack.berth(["run", "--name", "seven", "-p", &publish, "busybox", "sh", "-c", "exit 7"]).expect_code(7);
    let before = stack.inspect("seven")["State"].clone();
    stack.berth(["run", "-d", "--name", "holder", "-p", &publish, "busybox", "sleep", "1000"]).success();
    stack.berth(["start", "seven"]).expect_code(1).expect_error("port is already allocated");
    let after = stack.inspect("seven")["State"].clone();
    assert_eq!((&after["ExitCode"], &after["Status"]), (&7.into(), &"exited".into()), "{after}");
    assert_eq!(after["FinishedAt"], before["FinishedAt"]);
    assert!(after["Error"].as_str().unwrap().contains("port is already allocated"), "{after}");
}

#[test]
fn restart_policy_brings_a_container_back() {
    let stack = Stack::with_busybox();
    stack
        .berth(["run", "-d", "--name", "again", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo x; exit 1"])
        .success();
    stack.await_status("again", "exited");
    eventually("it ran three times", || (stack.berth(["logs", "again"]).success().stdout() == "x\nx\nx").then_some(()));
    assert_eq!(stack.inspect("again")["RestartCount"], 2);
}

#[test]
fn attach_signals_and_events() {
    let stack = Stack::with_busybox();
    for client in clients() {
        // From now on, also what happens before the client has asked.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let mut events = stack.client(&client);
        events.args(["events", "--since", &format!("{now:.9}"), "--format", "{{.Action}}"]);
        let events = events.stdout(Stdio::piped()).spawn().unwrap();
        let trap = "trap 'echo got; exit 9' USR1; echo up; while :; do sleep 0.1; done";
        cli(&stack, &client, &["run", "-d", "--name", "trap", "busybox", "sh", "-c", trap]).success();
        eventually("the trap is set", || (cli(&stack, &client, &["logs", "trap"]).stdout() == "up").then_some(()));
        // The client before has attached, too.
        let attaches = || past_events(&stack).matches("\"attach\"").count();
        let before = attaches();
        let mut attached = stack.client(&client).args(["attach", "trap"]).stdout(Stdio::piped()).spawn().unwrap();
        eventually("attached", || (attaches() > before).then_some(()));
        cli(&stack, &client, &["kill", "-s", "USR1", "trap"]).success();
        assert_eq!(attached.wait().unwrap().code(), Some(9));
        cli(&stack, &client, &["rm", "trap"]).success();
        let mut events = events;
        eventually("events were printed", || {
            let seen = past_events(&stack);
            ["create", "start", "attach", "kill", "die", "destroy"]
                .iter()
                .all(|e| seen.contains(&format!("\"{e}\"")))
                .then_some(())
        });
        events.kill().unwrap();
        let printed = events.wait_with_output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        let order: Vec<_> =
            printed.lines().filter(|l| ["create", "start", "kill", "die", "destroy"].contains(l)).collect();
        assert_eq!(order, ["create", "start", "kill", "die", "destroy"], "{printed}");
    }
}

#[test]
fn image_names() {
    let stack = Stack::with_busybox();
    for client in clients() {
        cli(&stack, &client, &["tag", "busybox", "example.test/team/box:1"]).success();
        let listed = cli(&stack, &client, &["images", "--format", "{{.Repository}}:{{.Tag}}"]).success().stdout();
        assert!(
            listed.lines().any(|l| l == "example.test/team/box:1") && listed.lines().any(|l| l == "busybox:latest"),
            "{listed}"
        );
        let untagged = cli(&stack, &client, &["rmi", "example.test/team/box:1"]).success().stdout();
        assert_eq!(untagged, "Untagged: example.test/team/box:1");
        let rootfs = stack.path().join("rootfs.tar");
        std::fs::write(&rootfs, images::busybox_rootfs()).unwrap();
        let id = cli(
            &stack,
            &client,
            &["import", "-c", "CMD [\"echo\", \"imported\"]", rootfs.to_str().unwrap(), "imported:1"],
        )
        .success()
        .stdout();
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(cli(&stack, &client, &["run", "--rm", "imported:1"]).success().stdout(), "imported");
        cli(&stack, &client, &["rmi", "imported:1"]).success();
        assert!(
            !cli(&stack, &client, &["images", "-q", "--no-trunc"]).success().stdout().contains(&id),
            "rmi left the image"
        );
    }
}

#[test]
fn versions_and_info() {
    let stack = Stack::start();
    for client in clients() {
        let api = cli(&stack, &client, &["version", "--format", "{{.Server.APIVersion}}"]).success().stdout();
        assert_eq!(api, "1.51");
        assert!(
            cli(&stack, &client, &["info", "--format", "{{.Driver}} {{.OSType}}"]).success().stdout().contains("linux")
        );
    }
    let api = stack.api();
    assert_eq!(api.get("/v1.24/version").expect(200).json()["ApiVersion"], "1.51");
    assert!(api.get("/v1.99/version").expect(400).json()["message"].as_str().unwrap().contains("too new"));
    assert_eq!(api.get("/no/such/page").expect(404).json()["message"], "page not found");
    assert_eq!(api.get("/swarm").status / 100, 5);
}
