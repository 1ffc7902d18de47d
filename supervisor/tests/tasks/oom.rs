//! Death for want of memory, while nobody was there to hear of it.

use proto::{
    containerd::{
        services::tasks::v1::{ListTasksRequest, UpdateTaskRequest},
        v1::types::Status as State,
    },
    oom, typeurl,
};

use crate::stack::{Stack, assert_state, eventually, lives, request};

/// Waits for the file, then takes more memory than there is.
const SCRIPT: &str = "until [ -e /tmp/go ]; do sleep 0.01; done; x=x; while :; do x=$x$x; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oom_kill_while_nobody_minds_is_known_afterwards() {
    let mut stack = Stack::new().await;
    stack.record("calm", "sleep 1000").await;
    stack.create("calm").await;
    stack.start_task("calm").await;
    stack.record("greedy", SCRIPT).await;
    let pid = stack.create("greedy").await;
    let limits = br#"{"memory":{"limit":16777216,"swap":16777216}}"#.to_vec();
    let limits = typeurl::pack_json("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", limits);
    let update = UpdateTaskRequest { container_id: "greedy".into(), resources: Some(limits), ..Default::default() };
    stack.tasks().update(request(update)).await.expect("update");
    stack.start_task("greedy").await;
    let said = async |stack: &Stack| {
        let answer = stack.tasks().list(request(ListTasksRequest::default())).await.expect("list");
        let value = answer.metadata().get_bin(oom::HEADER).map(|value| value.to_bytes().expect("bytes"));
        let tasks = answer.into_inner().tasks;
        let said = |(place, task): (usize, proto::containerd::v1::types::Process)| {
            (task.id, value.as_ref().is_some_and(|value| oom::is_set(value, place)))
        };
        tasks.into_iter().enumerate().map(said).collect::<Vec<_>>()
    };
    let known = [("calm".to_owned(), false), ("greedy".to_owned(), true)];
    assert!(said(&stack).await.iter().all(|(_, oom)| !oom));
    stack.kill();
    std::fs::write(stack.folder().join("image/tmp/go"), "").expect("go");
    eventually("it is killed", || !lives(pid)).await;
    let bundle = stack.run().join("supervisor/tasks").join(crate::stack::NAMESPACE).join("greedy");
    eventually("its exit is on record", || bundle.join("init.exit").exists()).await;
    assert!(bundle.join("init.oom").exists(), "on record before the exit");
    stack.start().await;
    assert_eq!(said(&stack).await, known);
    // The shim had time to tell. Now neither it nor a supervisor remembers, only the bundle does.
    stack.kill();
    for shim in stack.shims() {
        let line = std::fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("greedy") {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
    }
    stack.start().await;
    assert_state(&stack.get("greedy").await.unwrap(), State::Stopped);
    assert_eq!(said(&stack).await, known);
    assert_eq!(stack.delete("greedy").await.unwrap(), 137);
    stack.finish("calm").await;
    stack.nothing_left().await;
}
