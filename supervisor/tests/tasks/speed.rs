//! What each call costs; run by hand: `cargo test -p supervisor --test tasks speed -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use proto::containerd::services::tasks::v1::{ExecProcessRequest, ListTasksRequest, StartRequest, WaitRequest};

use crate::{
    spec,
    stack::{Stack, request},
};

const ROUNDS: usize = 30;

fn print(call: &str, times: &mut [Duration]) {
    times.sort();
    println!(
        "{call:16} median {:>9.3?}  best {:>9.3?}  worst {:>9.3?}",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and judges nothing"]
async fn latency_of_each_call() {
    let stack = Stack::new().await;
    let calls = ["record", "create", "start", "get", "list", "exec", "start exec", "wait exec", "kill+wait", "delete"];
    let mut times = vec![Vec::new(); calls.len()];
    for round in 0..ROUNDS {
        let id = format!("c{round}");
        let mut column = times.iter_mut();
        let mut took = |began: Instant| column.next().expect("column").push(began.elapsed());
        let began = Instant::now();
        stack.record(&id, "sleep 1000").await;
        took(began);
        let began = Instant::now();
        stack.create(&id).await;
        took(began);
        let began = Instant::now();
        stack.start_task(&id).await;
        took(began);
        let began = Instant::now();
        stack.get(&id).await.unwrap();
        took(began);
        let began = Instant::now();
        stack.tasks().list(request(ListTasksRequest::default())).await.unwrap();
        took(began);
        let spec = Some(spec::process("true"));
        let exec = ExecProcessRequest { container_id: id.clone(), exec_id: "e".into(), spec, ..Default::default() };
        let began = Instant::now();
        stack.tasks().exec(request(exec)).await.unwrap();
        took(began);
        let began = Instant::now();
        let named = StartRequest { container_id: id.clone(), exec_id: "e".into() };
        stack.tasks().start(request(named)).await.unwrap();
        took(began);
        let began = Instant::now();
        let named = WaitRequest { container_id: id.clone(), exec_id: "e".into() };
        stack.tasks().wait(request(named)).await.unwrap();
        took(began);
        let began = Instant::now();
        stack.signal(&id, 9).await.unwrap();
        stack.wait(&id).await;
        took(began);
        let began = Instant::now();
        stack.delete(&id).await.unwrap();
        took(began);
    }
    for (call, times) in calls.iter().zip(&mut times) {
        print(call, times);
    }
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and judges nothing"]
async fn many_at_once() {
    let mut stack = Stack::new().await;
    const MANY: usize = 50;
    let began = Instant::now();
    for n in 0..MANY {
        stack.run_task(&format!("m{n}"), "sleep 1000").await;
    }
    println!("{MANY} started in {:.3?}", began.elapsed());
    let mut times = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
        assert_eq!(listed.len(), MANY);
        times.push(began.elapsed());
    }
    print("list", &mut times);
    stack.kill();
    let began = Instant::now();
    stack.start().await;
    let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
    assert_eq!(listed.len(), MANY);
    println!("restart and adoption of {MANY}: {:.3?}", began.elapsed());
    let began = Instant::now();
    let ids: Vec<_> = (0..MANY).map(|n| format!("m{n}")).collect();
    futures_util::future::join_all(ids.iter().map(|id| stack.finish(id))).await;
    println!("{MANY} killed and deleted at once in {:.3?}", began.elapsed());
    stack.nothing_left().await;
}
