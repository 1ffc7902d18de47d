//! The life of one container, from create to remove, every step repeated until it succeeded.

use crate::walk::Scene;
use integration_tests::{Stack, eventually, faults::Fault};
use serde_json::{Value, json};

/// Ends with 7 at SIGTERM.
pub const SCRIPT: &str = "trap 'exit 7' TERM; echo up; while :; do sleep 1000 & wait; done";

/// What `inspect` says of the state, when there is somebody to ask.
pub fn state(fault: &Fault<'_>, name: &str) -> Value {
    fault.ask("GET", &format!("/containers/{name}/json"), None, &[200])["State"].clone()
}

/// Makes a container that ends with 7 at SIGTERM.
pub fn create(fault: &Fault<'_>, name: &str) {
    let gateway = fault.stack().gateway();
    let port = 24_000 + gateway.split('.').nth(2).and_then(|n| n.parse::<u16>().ok()).unwrap_or(0);
    let body = json!({
        "Image": "busybox", "Cmd": ["sh", "-c", SCRIPT], "Volumes": { "/data": {} },
        "ExposedPorts": { "80/tcp": {} },
        "HostConfig": { "PortBindings": { "80/tcp": [{ "HostIp": "127.0.0.1", "HostPort": port.to_string() }] } },
    });
    // 409: it was made before the engine died.
    fault.ask("POST", &format!("/containers/create?name={name}"), Some(&body), &[201, 409]);
}

/// Starts it and gives its pid; the process runs once.
pub fn start(fault: &Fault<'_>, name: &str) -> u64 {
    fault.ask("POST", &format!("/containers/{name}/start"), None, &[204, 304]);
    let pid = fault.step("it runs", || {
        let state = state(fault, name);
        let pid = state["Pid"].as_u64().unwrap_or(0);
        if state["Status"] == "running" && pid > 0 { Ok(pid) } else { Err(state.to_string()) }
    });
    assert_lives(fault.stack(), name, pid, fault.point);
    pid
}

fn assert_lives(stack: &Stack, name: &str, pid: u64, point: &str) {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line);
    assert!(line.contains("exit 7"), "{point}: {name} is said to be {pid}, which is {line:?}\n{}", stack.logs());
}

fn exec(fault: &Fault<'_>, name: &str) {
    let api = fault.stack().api();
    fault.step("exec", || {
        let body = json!({ "AttachStdout": true, "Cmd": ["sh", "-c", "echo in; exit 5"] });
        let ask = |method: &str, path: &str, body: Option<&Value>, status: u16| {
            let answer = api.attempt(method, path, body).map_err(|error| error.to_string())?;
            if answer.status == status { Ok(answer) } else { Err(format!("{} {}", answer.status, answer.text())) }
        };
        let id = ask("POST", &format!("/containers/{name}/exec"), Some(&body), 201)?.json()["Id"].clone();
        let id = id.as_str().unwrap_or_default();
        let output = ask("POST", &format!("/exec/{id}/start"), Some(&json!({ "Detach": false })), 200)?;
        if !output.text().ends_with("in\n") {
            return Err(format!("output {:?}", output.text()));
        }
        let ended = ask("GET", &format!("/exec/{id}/json"), None, 200)?.json();
        if ended["ExitCode"] == 5 && ended["Running"] == false { Ok(()) } else { Err(ended.to_string()) }
    });
}

fn await_exit(fault: &Fault<'_>, name: &str, code: i64) {
    let mut last = Value::Null;
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("it has ended", || {
            last = state(fault, name);
            (last["Status"] == "exited" && last["Running"] == false).then_some(())
        });
    }));
    assert!(ended.is_ok(), "{}: {last}\n{}", fault.point, fault.stack().logs());
    assert_eq!(last["ExitCode"], code, "{}: {last}\n{}", fault.point, fault.stack().logs());
}

/// Removes it.
pub fn remove(fault: &Fault<'_>, name: &str) {
    fault.ask("DELETE", &format!("/containers/{name}?v=1"), None, &[204, 404]);
    fault.settle();
    eventually("it is gone", || {
        let answer = fault.stack().api().attempt("GET", &format!("/containers/{name}/json"), None).ok()?;
        (answer.status == 404).then_some(())
    });
}

/// Create, start, pause, unpause, update, exec, kill; start, stop; remove.
pub fn life(_: &Scene, fault: &Fault<'_>) {
    let name = "life";
    fault.arm();
    create(fault, name);
    let pid = start(fault, name);
    fault.ask("POST", &format!("/containers/{name}/pause"), None, &[204, 409]);
    assert_eq!(state(fault, name)["Status"], "paused", "{}", fault.point);
    fault.ask("POST", &format!("/containers/{name}/unpause"), None, &[204, 409]);
    // The event of the pause may be heard after the answer to the unpause, and before its event.
    eventually("it runs on", || (state(fault, name)["Status"] == "running").then_some(()));
    assert_eq!(state(fault, name)["Pid"].as_u64(), Some(pid), "{}", fault.point);
    let limits = json!({"CpuShares": 512, "RestartPolicy": {"Name": "no"}});
    fault.ask("POST", &format!("/containers/{name}/update"), Some(&limits), &[200]);
    assert_eq!(fault.stack().inspect(name)["HostConfig"]["CpuShares"], 512, "{}", fault.point);
    exec(fault, name);
    assert_eq!(state(fault, name)["Pid"].as_u64(), Some(pid), "{}", fault.point);
    fault.ask("POST", &format!("/containers/{name}/kill?signal=TERM"), None, &[204, 409]);
    await_exit(fault, name, 7);
    start(fault, name);
    // Nobody minds SIGWINCH: after no time at all it is SIGKILL.
    fault.ask("POST", &format!("/containers/{name}/stop?signal=WINCH&t=0"), None, &[204, 304]);
    await_exit(fault, name, 137);
    let log = fault.step("logs", || {
        let answer = fault.stack().api().attempt("GET", &format!("/containers/{name}/logs?stdout=1"), None);
        answer.map(|answer| answer.text()).map_err(|error| error.to_string())
    });
    // A start that a dying daemon cut off may have run and been undone; the last run may have been killed before it spoke.
    let ups = log.matches("up\n").count();
    assert!((1..=3).contains(&ups), "{}: {log:?}", fault.point);
    remove(fault, name);
}
