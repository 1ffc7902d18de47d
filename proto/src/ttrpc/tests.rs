//! Client and server against one another, and each against bytes.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::Notify,
    time::timeout,
};
use tonic::{Code, Status};

use super::{
    Call, Client, MESSAGE_LIMIT, TASK_V2,
    frame::{self, DATA, REQUEST},
    message::{Request, Response},
    serve,
};
use crate::containerd::task::v3::{KillRequest, StateRequest, StateResponse, WaitRequest, WaitResponse};

const SOON: Duration = Duration::from_secs(10);

/// State answers with what was asked and the namespace, Wait only after Kill, everything else not at all.
async fn task(call: Call, killed: Arc<Notify>) -> Result<Vec<u8>, Status> {
    match (call.service(), call.method()) {
        (TASK_V2, "State") => {
            let request: StateRequest = call.message()?;
            let bundle = call.namespace().unwrap_or("none").to_owned();
            Ok(StateResponse { id: request.id, bundle, ..StateResponse::default() }.encode_to_vec())
        }
        (TASK_V2, "Wait") => {
            killed.notified().await;
            Ok(WaitResponse { exit_status: 137, ..WaitResponse::default() }.encode_to_vec())
        }
        (TASK_V2, "Kill") => {
            killed.notify_one();
            Ok(Vec::new())
        }
        (TASK_V2, "Stats") => Ok(vec![0; MESSAGE_LIMIT]),
        _ => Err(call.unimplemented()),
    }
}

fn pair() -> (Client, tokio::task::JoinHandle<std::io::Result<()>>, Arc<Notify>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (killed, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let ending = end.clone();
    let server = tokio::spawn(async move {
        let ending = std::pin::pin!(ending.notified());
        serve(theirs, ending, move |call| task(call, killed.clone())).await
    });
    (Client::over(ours), server, end)
}

async fn state(client: &Client, id: &str, namespace: &str) -> Result<StateResponse, Status> {
    let request = StateRequest { id: id.into(), ..StateRequest::default() };
    client.call(TASK_V2, "State", namespace, &request, Some(SOON)).await
}

#[tokio::test]
async fn calls_are_answered_beside_one_another() {
    let (client, _server, _) = pair();
    let waiter = client.clone();
    let waiting = tokio::spawn(async move {
        waiter.call::<_, WaitResponse>(TASK_V2, "Wait", "", &WaitRequest::default(), None).await
    });
    for number in 0..300 {
        let state = state(&client, &number.to_string(), "k8s.io").await.unwrap();
        assert_eq!((state.id, state.bundle), (number.to_string(), "k8s.io".to_owned()));
    }
    assert_eq!(state(&client, "x", "").await.unwrap().bundle, "none");
    let _: () = client.call(TASK_V2, "Kill", "", &KillRequest::default(), None).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
}

#[tokio::test]
async fn refusals_keep_their_code() {
    let (client, _server, _) = pair();
    let refusal = client.call::<_, ()>("other.Service", "Do", "", &(), None).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unimplemented);
    assert_eq!(refusal.message(), "method \"Do\" of service \"other.Service\" is not served here");
    let large = StateRequest { id: "x".repeat(MESSAGE_LIMIT), ..StateRequest::default() };
    let refusal = client.call::<_, ()>(TASK_V2, "State", "", &large, None).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    let refusal = client.call::<_, ()>(TASK_V2, "Stats", "", &WaitRequest::default(), None).await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    // The connection is none the worse for it.
    state(&client, "a", "").await.unwrap();
}

#[tokio::test]
async fn who_waits_too_long_is_told_and_leaves_nothing() {
    let (client, _server, _) = pair();
    for _ in 0..200 {
        let limit = Some(Duration::from_millis(1));
        let late = client.call::<_, WaitResponse>(TASK_V2, "Wait", "", &WaitRequest::default(), limit).await;
        assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    }
    state(&client, "a", "").await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_connection_is_seen_with_and_without_calls() {
    let (client, server, _) = pair();
    assert!(!client.is_closed());
    let waiter = client.clone();
    let waiting = tokio::spawn(async move {
        waiter.call::<_, WaitResponse>(TASK_V2, "Wait", "", &WaitRequest::default(), None).await
    });
    state(&client, "a", "").await.unwrap();
    assert!(timeout(Duration::from_millis(20), client.closed()).await.is_err());
    server.abort();
    timeout(SOON, client.closed()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(state(&client, "a", "").await.unwrap_err().code(), Code::Unavailable);
    assert!(client.is_closed());
}

#[tokio::test]
async fn a_server_that_ends_answers_first_and_one_that_is_left_ends() {
    let (client, server, end) = pair();
    let waiter = client.clone();
    let waiting = tokio::spawn(async move {
        waiter.call::<_, WaitResponse>(TASK_V2, "Wait", "", &WaitRequest::default(), None).await
    });
    let _: () = client.call(TASK_V2, "Kill", "", &KillRequest::default(), None).await.unwrap();
    end.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    timeout(SOON, server).await.unwrap().unwrap().unwrap();
    timeout(SOON, client.closed()).await.unwrap();

    let (client, server, _) = pair();
    state(&client, "a", "").await.unwrap();
    drop(client);
    timeout(SOON, server).await.unwrap().unwrap().unwrap();
}

/// What the server says to these frames, one answer each.
#[tokio::test]
async fn frames_out_of_order_are_refused_one_by_one() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(serve(theirs, std::future::pending(), |call| task(call, Arc::new(Notify::new()))));
    let request = |method: &str| Request { service: TASK_V2.into(), method: method.into(), ..Request::default() };
    let flagged = |stream: u32, flags: u8| {
        let mut bytes = frame::encode(stream, REQUEST, &request("State"));
        bytes[9] = flags;
        bytes
    };
    let mut garbage = frame::encode(9, REQUEST, &request("State"));
    garbage[10..].fill(0xff);
    let unknown = frame::encode(11, 77, &request("State"));
    for (bytes, stream, code) in [
        (frame::encode(3, REQUEST, &request("State")), 3, Code::Ok),
        (frame::encode(3, REQUEST, &request("State")), 3, Code::InvalidArgument),
        (frame::encode(1, REQUEST, &request("State")), 1, Code::InvalidArgument),
        (frame::encode(4, REQUEST, &request("State")), 4, Code::InvalidArgument),
        (frame::encode(5, DATA, &request("State")), 5, Code::InvalidArgument),
        (flagged(7, 2), 7, Code::Unimplemented),
        (garbage, 9, Code::InvalidArgument),
        // Not answered at all: the next one is.
        ([unknown, frame::encode(13, REQUEST, &request("Nothing"))].concat(), 13, Code::Unimplemented),
        // "Nothing more to come" is what a unary call is.
        (flagged(15, 1), 15, Code::Ok),
    ] {
        ours.write_all(&bytes).await.unwrap();
        let frame = timeout(SOON, frame::read(&mut ours)).await.unwrap().unwrap().unwrap();
        let response = Response::decode(frame.data.unwrap().as_slice()).unwrap();
        assert_eq!((frame.header.stream, response.status.map_or(0, |status| status.code)), (stream, code as i32));
    }
    // Another protocol: the connection ends.
    ours.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, ours.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn calls_without_end_are_bounded() {
    let (client, _server, _) = pair();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1030 {
        let waiter = client.clone();
        waiting.spawn(async move {
            waiter.call::<_, WaitResponse>(TASK_V2, "Wait", "", &WaitRequest::default(), None).await
        });
    }
    for _ in 0..6 {
        let refused = timeout(SOON, waiting.join_next()).await.unwrap().unwrap().unwrap();
        assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    }
    assert_eq!(waiting.len(), 1024);
}

#[tokio::test]
async fn addresses_are_paths() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    for address in [socket.display().to_string(), format!("unix://{}", socket.display())] {
        Client::connect(&address).await.unwrap();
        listener.accept().await.unwrap();
    }
    for address in ["", "s", "unix://s", "vsock://2:1024"] {
        assert!(matches!(Client::connect(address).await, Err(super::ConnectError::Address(_))), "{address}");
    }
    drop(listener);
    let refused = Client::connect(&socket.display().to_string()).await.unwrap_err();
    assert!(crate::kind::chain(&refused).contains("refused"), "{refused:?}");
}
