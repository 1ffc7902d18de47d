//! Events of the past: who was away, or whose supervisor was, gets what it missed by its number.

use crate::stack::{Stack, request};
use proto::containerd::services::events::v1::{
    Envelope, PublishRequest, SubscribeRequest, events_client::EventsClient,
};
use tonic::{Code, Request, Status, Streaming};

async fn subscribe(stack: &Stack, since: Option<&str>, filter: &str) -> Result<Streaming<Envelope>, Status> {
    let mut message: Request<_> = request(SubscribeRequest { filters: vec![filter.to_owned()] });
    if let Some(since) = since {
        message.metadata_mut().insert("berth-since-sequence", since.parse().unwrap());
    }
    Ok(EventsClient::new(stack.channel()).subscribe(message).await?.into_inner())
}

async fn next(events: &mut Streaming<Envelope>) -> (u64, String) {
    let next = tokio::time::timeout(std::time::Duration::from_secs(10), events.message()).await;
    let envelope = next.expect("an event within 10 s").unwrap().expect("the stream goes on");
    (envelope.sequence, envelope.topic)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_was_away_misses_nothing_and_gets_nothing_twice() {
    let mut stack = Stack::new().await;
    let tasks = "topic~=|^/tasks/|";
    let mut plain = subscribe(&stack, None, tasks).await.unwrap();
    let mut events = subscribe(&stack, Some("0"), tasks).await.unwrap();
    stack.run_task("a", "exit 3").await;
    let first = next(&mut events).await;
    assert_eq!(first.1, "/tasks/create");
    assert_eq!(next(&mut plain).await, (0, "/tasks/create".to_owned()), "numbers are for those who ask");
    drop(events);
    stack.wait("a").await;
    stack.delete("a").await.unwrap();
    let since = first.0.to_string();
    let mut events = subscribe(&stack, Some(&since), tasks).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(next(&mut events).await);
    }
    let topics: Vec<_> = seen.iter().map(|(_, topic)| topic.as_str()).collect();
    assert_eq!(topics, ["/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert!(seen.is_sorted_by(|a, b| a.0 < b.0), "{seen:?}");
    // The same from the next supervisor, with what happened while there was none and with what happens now.
    stack.run_task("b", "read x; sleep 0.3; exit 4").await;
    stack.signal("b", 9).await.unwrap();
    stack.kill();
    stack.start().await;
    let last = seen.last().unwrap().0.to_string();
    let mut events = subscribe(&stack, Some(&last), tasks).await.unwrap();
    stack.wait("b").await;
    stack.delete("b").await.unwrap();
    let mut after = Vec::new();
    while after.last().is_none_or(|(_, topic)| topic != "/tasks/delete") {
        after.push(next(&mut events).await);
    }
    let topics: Vec<_> = after.iter().map(|(_, topic)| topic.as_str()).collect();
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert!(after[0].0 > seen.last().unwrap().0 && after.is_sorted_by(|a, b| a.0 < b.0), "{after:?}");
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_is_bounded_and_what_is_gone_is_an_error() {
    let stack = Stack::new().await;
    let mut client = EventsClient::new(stack.channel());
    let long = prost_types::Any { type_url: "test.Long".into(), value: vec![1; 200 << 10] };
    for _ in 0..40 {
        let message = PublishRequest { topic: "/test/long".into(), event: Some(long.clone()) };
        client.publish(request(message)).await.unwrap();
    }
    let error = subscribe(&stack, Some("1"), "").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let oldest: u64 = error.message().split("up to ").nth(1).unwrap().split(':').next().unwrap().parse().unwrap();
    let mut events = subscribe(&stack, Some(&oldest.to_string()), "").await.unwrap();
    assert_eq!(next(&mut events).await.0, oldest + 1);
    let folder = stack.folder().join("d/supervisor/events");
    let size: u64 = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(size < 6 << 20, "{size}");
    assert_eq!(subscribe(&stack, Some("x"), "").await.unwrap_err().code(), Code::InvalidArgument);
    let message = PublishRequest {
        topic: "/test/long".into(),
        event: Some(prost_types::Any { value: vec![1; 1 << 20], ..long }),
    };
    assert_eq!(client.publish(request(message)).await.unwrap_err().code(), Code::InvalidArgument);
}
