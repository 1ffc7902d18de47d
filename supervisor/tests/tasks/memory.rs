//! The supervisor's memory after many lives is what it was after some (user-pain 31).

use crate::stack::{Stack, request};
use proto::containerd::services::{
    containers::v1::DeleteContainerRequest,
    events::v1::{PublishRequest, SubscribeRequest, events_client::EventsClient},
};

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn live(stack: &Stack, lives: usize) {
    for number in 0..lives {
        let id = format!("life-{number}");
        stack.run_task(&id, "exit 0").await;
        stack.wait(&id).await;
        stack.delete(&id).await.unwrap();
        stack.containers().delete(request(DeleteContainerRequest { id })).await.unwrap();
    }
}

/// `BERTH_SOAK=N` for N lives; some by default.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lives_leave_nothing_in_memory() {
    let lives = std::env::var("BERTH_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let stack = Stack::new().await;
    // One subscriber that reads, and one that never does.
    let _read = stack.events(&[]).await;
    let subscribe = SubscribeRequest { filters: Vec::new() };
    let _unread = EventsClient::new(stack.channel()).subscribe(request(subscribe)).await.unwrap();
    live(&stack, lives.min(60)).await;
    let before = resident(stack.pid());
    live(&stack, lives).await;
    // What subscribers and shims send is bounded too: far more than a queue holds.
    let mut client = EventsClient::new(stack.channel());
    for _ in 0..100 {
        let event = prost_types::Any { type_url: "test.Long".into(), value: vec![1; 200 << 10] };
        client.publish(request(PublishRequest { topic: "/test".into(), event: Some(event) })).await.unwrap();
    }
    let after = resident(stack.pid());
    println!("{lives} lives: {before} kB before, {after} kB after");
    // The queue of who never reads (8 MiB), what the allocator keeps of it, and nothing per life.
    assert!(after < before + 24_000 + lives as u64 / 20, "{before} kB before, {after} kB after {lives} lives");
    stack.nothing_left().await;
}
