//! The start of a daemon with containers there, and the death of a shim.

use crate::{
    life::{create, remove, start, state},
    walk::Scene,
};
use integration_tests::{Daemon, eventually, faults::Fault};
use std::ffi::OsStr;

/// The daemon dies while it takes up what another left.
pub fn restart(_: &Scene, fault: &Fault<'_>) {
    let name = "kept";
    create(fault, name);
    let pid = start(fault, name);
    fault.arm();
    fault.settle();
    let now = state(fault, name);
    assert_eq!((now["Status"].as_str(), now["Pid"].as_u64()), (Some("running"), Some(pid)), "{}", fault.point);
    fault.ask("DELETE", &format!("/containers/{name}?force=1&v=1"), None, &[204, 404]);
    remove(fault, name);
}

/// A shim is killed outright.
pub fn shim_killed(_: &Scene, fault: &Fault<'_>) {
    let name = "victim";
    create(fault, name);
    let pid = start(fault, name);
    fault.arm();
    for shim in fault.stack().shims().into_values() {
        integration_tests::run("kill", ["-9", &shim.to_string()]).success();
    }
    eventually("its end is known", || {
        fault.settle();
        let answer = fault.stack().api().attempt("GET", &format!("/containers/{name}/json"), None).ok()?;
        (answer.status == 200 && answer.json()["State"]["Status"] == "exited").then_some(())
    });
    assert_eq!(state(fault, name)["ExitCode"], 137, "{}", fault.point);
    eventually("its process is gone", || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    start(fault, name);
    fault.ask("POST", &format!("/containers/{name}/kill"), None, &[204, 409]);
    remove(fault, name);
}

/// A supervisor died in the middle of a create; its successor dies too, while it undoes that.
pub fn unfinished(_: &Scene, fault: &Fault<'_>) {
    let name = "half";
    let stack = fault.stack();
    create(fault, name);
    stack.kill_supervisor();
    let first = stack.path().join("first-fault");
    std::fs::remove_file(&first).ok();
    let variables =
        [("BERTH_FAULT", OsStr::new("supervisor.create.shim_started")), ("BERTH_FAULT_ONCE", first.as_os_str())];
    stack.launch(Daemon::Supervisor, &variables);
    stack.await_ready(Daemon::Supervisor);
    let answer = stack.api().attempt("POST", &format!("/containers/{name}/start"), None);
    assert!(answer.is_ok_and(|answer| answer.status >= 500), "{}: the supervisor should have died", fault.point);
    eventually("the supervisor has died", || stack.has_ended(Daemon::Supervisor).then_some(()));
    fault.arm();
    start(fault, name);
    fault.ask("DELETE", &format!("/containers/{name}?force=1&v=1"), None, &[204, 404]);
    remove(fault, name);
}
