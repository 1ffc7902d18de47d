//! Engine and supervisor killed with SIGKILL while containers run on.

use integration_tests::{Daemon, Stack, eventually, programs::program, stack::Setup};
use serde_json::{Value, json};
use std::{fs, net::TcpListener, thread, time::Duration};

fn numbers(text: &str) -> Vec<u32> {
    text.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("not a number: {line:?}"))).collect()
}

fn seconds(time: &Value) -> f64 {
    // RFC 3339 in UTC; the test only compares times of one day.
    let text = time.as_str().unwrap();
    let clock: Vec<f64> = text[11..].trim_end_matches('Z').split(':').map(|part| part.parse().unwrap()).collect();
    clock[0] * 3600.0 + clock[1] * 60.0 + clock[2]
}

#[test]
fn no_line_is_lost_when_daemons_die() {
    let stack = Stack::with_busybox();
    let script =
        "i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo $i; usleep 5000 2>/dev/null || sleep 0.005; done; exit 17";
    stack.berth(["run", "-d", "--name", "count", "busybox", "sh", "-c", script]).success();
    let pid = stack.inspect("count")["State"]["Pid"].clone();
    for round in 0..5 {
        thread::sleep(Duration::from_millis(600)); // the container must get on between two kills
        match round % 3 {
            0 => {
                stack.kill_engine();
                stack.kill_supervisor();
                stack.start_supervisor();
                stack.start_engine();
            }
            1 => {
                stack.kill_supervisor();
                stack.start_supervisor();
                stack.kill_engine();
                stack.start_engine();
            }
            _ => {
                stack.kill_engine();
                stack.start_engine();
                stack.kill_supervisor();
                stack.start_supervisor();
            }
        }
        assert_eq!(stack.inspect("count")["State"]["Pid"], pid, "round {round}: the pid changed");
        assert_eq!(stack.inspect("count")["State"]["Status"], "running", "round {round}");
    }
    assert_eq!(stack.berth(["wait", "count"]).success().stdout(), "17");
    let lines = numbers(&stack.berth(["logs", "count"]).success().stdout());
    assert_eq!(lines, (1..=4000).collect::<Vec<_>>(), "lines are missing or doubled");
}

#[test]
fn an_exit_while_both_are_down_is_reported_truly() {
    let stack = Stack::with_busybox();
    stack
        .berth([
            "run",
            "-d",
            "--name",
            "short",
            "busybox",
            "sh",
            "-c",
            "sleep 1; echo last; date +%s > /proc/1/fd/1; exit 33",
        ])
        .success();
    stack.berth(["run", "-d", "--name", "gone", "--rm", "busybox", "sh", "-c", "sleep 1"]).success();
    stack
        .berth(["run", "-d", "--name", "back", "--restart", "always", "busybox", "sh", "-c", "echo up; sleep 1.5"])
        .success();
    let pid = stack.inspect("short")["State"]["Pid"].as_u64().unwrap();
    stack.kill_engine();
    stack.kill_supervisor();
    eventually("the process has ended", || {
        (!std::path::Path::new(&format!("/proc/{pid}/root/bin")).exists()).then_some(())
    });
    thread::sleep(Duration::from_secs(2)); // makes a wrong finish time visible
    stack.start_supervisor();
    stack.start_engine();
    stack.await_status("short", "exited");
    let state = stack.inspect("short")["State"].clone();
    assert_eq!(state["ExitCode"], 33);
    let log = stack.berth(["logs", "short"]).success().stdout();
    let (last, stamp) = log.split_once('\n').unwrap();
    assert_eq!(last, "last");
    let ended: f64 = stamp.parse::<f64>().unwrap() % 86_400.0;
    assert!((seconds(&state["FinishedAt"]) - ended).abs() < 1.5, "{} against {stamp}", state["FinishedAt"]);
    eventually("--rm is done after the restart", || {
        (stack.api().get("/containers/gone/json").status == 404).then_some(())
    });
    eventually("the restart policy goes on", || {
        (stack.berth(["logs", "back"]).stdout().matches("up").count() >= 2).then_some(())
    });
}

#[test]
fn a_published_port_and_exec_work_after_both_died() {
    let stack = Stack::with_busybox();
    let port = 21_000 + stack.gateway().split('.').nth(2).unwrap().parse::<u16>().unwrap();
    let publish = format!("{port}:80");
    stack
        .berth(["run", "-d", "--name", "web", "-p", &publish, "busybox", "httpd", "-f", "-p", "80", "-h", "/www"])
        .success();
    let page_at = |address| {
        let url = format!("http://{address}:{port}/");
        integration_tests::run("curl", ["-s", "-m", "2", &url]).stdout() == "hello from berth"
    };
    let page = || page_at("127.0.0.1");
    // What no kernel leads to a container.
    let page_v6 = || page_at("[::1]");
    let is_taken = || TcpListener::bind(("0.0.0.0", port)).is_err();
    eventually("the page comes", || page().then_some(()));
    assert!(page_v6() && is_taken());
    stack.kill_engine();
    stack.kill_supervisor();
    assert!(page() && page_v6(), "the port died with the daemons");
    assert!(is_taken(), "the port is another program's while no engine is there");
    stack.start_supervisor();
    stack.start_engine();
    assert!(page() && page_v6() && is_taken());
    assert_eq!(stack.berth(["exec", "web", "echo", "in"]).success().stdout(), "in");
    stack.berth(["stop", "-t", "0", "web"]).success();
    assert!(!page() && !page_v6(), "the port outlives its container");
    eventually("the port is given back", || (!is_taken()).then_some(()));
    let free = stack.api().post("/containers/web/start", None);
    assert_eq!(free.status, 204, "{}", free.text());
}

#[test]
fn a_killed_shim_is_cleaned_up() {
    let stack = Stack::with_busybox();
    stack.berth(["run", "-d", "--name", "victim", "busybox", "sleep", "1000"]).success();
    let pid = stack.inspect("victim")["State"]["Pid"].as_u64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    integration_tests::run("kill", ["-9", &shim]).success();
    stack.await_status("victim", "exited");
    assert_eq!(stack.inspect("victim")["State"]["ExitCode"], json!(137));
    eventually("the container's process is gone", || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    stack.berth(["start", "victim"]).success();
    stack.await_status("victim", "running");
}

#[test]
fn a_kill_for_memory_while_both_are_down_is_reported() {
    let stack = Stack::with_busybox();
    let script = "sleep 1; x=x; while :; do x=$x$x; done";
    stack.berth(["run", "-d", "--name", "greedy", "-m", "16m", "busybox", "sh", "-c", script]).success();
    let pid = stack.inspect("greedy")["State"]["Pid"].as_u64().unwrap();
    stack.kill_engine();
    stack.kill_supervisor();
    eventually("the process has ended", || {
        (!std::path::Path::new(&format!("/proc/{pid}/root/bin")).exists()).then_some(())
    });
    stack.start_supervisor();
    stack.start_engine();
    stack.await_status("greedy", "exited");
    let state = stack.inspect("greedy")["State"].clone();
    assert_eq!((&state["ExitCode"], &state["OOMKilled"]), (&json!(137), &json!(true)));
    // It counts for the life it ended, not for the next.
    stack.berth(["start", "greedy"]).success();
    assert_eq!(stack.inspect("greedy")["State"]["OOMKilled"], json!(false));
    stack.berth(["kill", "greedy"]).success();
}

#[test]
fn ps_is_right_within_a_second_after_both_are_back() {
    let stack = Stack::with_busybox();
    let names: Vec<String> = (0..30).map(|number| format!("many{number}")).collect();
    thread::scope(|scope| {
        for lot in names.chunks(8) {
            let stack = &stack;
            scope.spawn(move || {
                for name in lot {
                    stack.berth(["run", "-d", "--name", name, "busybox", "sleep", "1000"]).success();
                }
            });
        }
    });
    let listed = || {
        let list = stack.api().get("/containers/json").expect(200).json();
        let ids = list.as_array().unwrap().iter().map(|one| one["Id"].as_str().unwrap().to_owned());
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    let before = listed();
    assert_eq!(before.len(), names.len());
    stack.kill_engine();
    stack.kill_supervisor();
    let victim = stack.shims().into_iter().next().unwrap();
    integration_tests::run("kill", ["-9", &victim.1.to_string()]).success();
    let begun = std::time::Instant::now();
    stack.start_supervisor();
    stack.start_engine();
    // One of them ended while nobody was there.
    eventually("the dead one is not listed", || (!listed().contains(&victim.0)).then_some(()));
    let took = begun.elapsed();
    assert_eq!(listed().len(), names.len() - 1);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// The runtime takes its time over `create`; the engine dies meanwhile, and the next one is ready before the task is made.
#[test]
fn a_task_made_for_an_engine_that_died_does_not_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (slow, hold, reached) = (folder.path().join("slow"), folder.path().join("hold"), folder.path().join("reached"));
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" create \"*) > {}; while [ -e {} ]; do sleep 0.01; done;; esac\nexec {} \"$@\"\n",
        reached.display(),
        hold.display(),
        program("berth-runtime").display()
    );
    testing::executable(&slow, &script);
    let engine_args = vec!["--add-runtime".into(), format!("slow={}", slow.display())];
    let stack = Stack::start_with(Setup { engine_args, keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    for name in ["left", "removed", "started"] {
        stack
            .berth(["create", "--name", name, "--runtime", "slow", "--network", "host", "busybox", "sleep", "9"])
            .success();
        fs::write(&hold, "").unwrap();
        fs::remove_file(&reached).ok();
        let made_before = stack.logs().matches("task created").count();
        thread::scope(|scope| {
            scope.spawn(|| stack.api().attempt("POST", &format!("/containers/{name}/start"), None));
            eventually("the runtime creates", || reached.exists().then_some(()));
            stack.kill_engine();
        });
        stack.launch(Daemon::Engine, &[]);
        stack.await_ready(Daemon::Engine);
        assert_eq!(stack.inspect(name)["State"]["Status"], "created", "{name}");
        let path = format!("/containers/{name}");
        thread::scope(|scope| {
            let asked = scope.spawn(|| match name {
                "started" => stack.api().attempt("POST", &format!("{path}/start"), None).map(|answer| answer.status),
                "removed" => stack.api().attempt("DELETE", &path, None).map(|answer| answer.status),
                _ => Ok(204),
            });
            fs::remove_file(&hold).unwrap();
            assert_eq!(asked.join().unwrap().unwrap(), 204, "{name}");
        });
        // Of a container that is removed meanwhile the task may be refused.
        if name != "removed" {
            let made = || stack.logs().matches("task created").count();
            eventually("the late task is made", || (made() > made_before).then_some(()));
        }
        let wanted = usize::from(name == "started");
        eventually("only what runs has a task", || {
            let tasks = stack.ctr(["-n", "berth", "tasks", "ls", "-q"]).success().stdout();
            (tasks.lines().count() == wanted).then_some(())
        });
        if name == "started" {
            assert_eq!(stack.inspect(name)["State"]["Status"], "running");
        }
        stack.remove_all();
    }
}
