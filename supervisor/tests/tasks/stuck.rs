//! A shim that hangs is the trouble of its own container, and of nobody else's (user-pain 23).

use std::time::{Duration, Instant};

use crate::stack::{Stack, assert_state, eventually, request};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::containerd::{
    services::{
        introspection::v1::{PluginsRequest, introspection_client::IntrospectionClient},
        tasks::v1::{ListPidsRequest, ListTasksRequest, MetricsRequest},
    },
    v1::types::Status as State,
};
use tonic::Code;

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// The shim of a container, by its init process.
fn shim_of(init: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn quickly<T>(what: &str, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = tokio::time::timeout(Duration::from_secs(10), work).await;
    let done = done.unwrap_or_else(|_| panic!("{what} hangs"));
    assert!(began.elapsed() < Duration::from_secs(4), "{what} took {:?}", began.elapsed());
    done
}

async fn list(stack: &Stack) -> Vec<(String, u32)> {
    let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
    listed.into_iter().map(|task| (task.id, task.pid)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_hangs_holds_up_nobody_else() {
    let mut stack = Stack::new().await;
    let stuck = stack.run_task("stuck", "sleep 1000").await;
    let well = stack.run_task("well", "sleep 1000").await;
    let shim = shim_of(stuck);
    send(shim, Signal::SIGSTOP);
    // Those who ask for it itself are told so, each after its time; here the first of them begins to wait.
    let (asked, mut tasks) = (Instant::now(), stack.tasks());
    let pids = ListPidsRequest { container_id: "stuck".into() };
    let waits = tokio::spawn(async move { tasks.list_pids(request(pids)).await });
    let both = [("stuck".to_owned(), stuck), ("well".to_owned(), well)];
    assert_eq!(quickly("list", list(&stack)).await, both);
    assert_state(&quickly("its state, from memory", stack.get("stuck")).await.unwrap(), State::Running);
    assert_state(&quickly("another's state", stack.get("well")).await.unwrap(), State::Running);
    let metrics = stack.tasks();
    let metrics = async { metrics.clone().metrics(request(MetricsRequest::default())).await };
    let metrics = quickly("metrics of all", metrics).await.unwrap().into_inner().metrics;
    assert_eq!(metrics.iter().map(|metric| metric.id.as_str()).collect::<Vec<_>>(), ["well"]);
    quickly("a new one's whole life", async {
        stack.run_task("new", "exit 3").await;
        assert_eq!(stack.wait("new").await.exit_status, 3);
        stack.delete("new").await.unwrap();
    })
    .await;
    quickly("another's end", stack.finish("well")).await;
    // A supervisor that starts now takes over what it can, and lists both.
    stack.run_task("late", "sleep 1000").await;
    let told = waits.await.unwrap().unwrap_err();
    assert_eq!(told.code(), Code::DeadlineExceeded, "{told}");
    assert!(told.message().contains("did not answer Pids within 15 s"), "{told}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    stack.kill();
    stack.start().await;
    let listed: Vec<_> = quickly("list after a start", list(&stack)).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(listed, ["late", "stuck"]);
    quickly("another's end after a start", stack.finish("late")).await;
    // It is only stuck: once it goes on, so does everything else.
    send(shim, Signal::SIGCONT);
    stack.finish("stuck").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_stuck_can_be_seen_and_ended() {
    let stack = Stack::new().await;
    let stuck = stack.run_task("stuck", "sleep 1000").await;
    let shim = shim_of(stuck);
    send(shim, Signal::SIGSTOP);
    let mut tasks = stack.tasks();
    let pids = ListPidsRequest { container_id: "stuck".into() };
    let waits = tokio::spawn(async move { tasks.list_pids(request(pids)).await });
    let began = Instant::now();
    let seen = loop {
        let mut introspection = IntrospectionClient::new(stack.channel());
        let filters = vec!["type==io.containerd.runtime.v2,id==task".into()];
        let plugins = introspection.plugins(request(PluginsRequest { filters })).await.unwrap().into_inner().plugins;
        if let Some(seen) = plugins[0].exports.get("stuck tests/stuck") {
            break seen.clone();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{plugins:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(seen.contains("its shim has not answered Pids for 5 s"), "{seen}");
    // Logged beside it, by another thread.
    eventually("the log says so too", || stack.log().contains("shim takes long to answer")).await;
    // The way out that the errors name.
    send(shim, Signal::SIGKILL);
    let told = waits.await.unwrap().unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told}");
    assert_eq!(stack.wait("stuck").await.exit_status, 137);
    stack.delete("stuck").await.unwrap();
    stack.nothing_left().await;
}
