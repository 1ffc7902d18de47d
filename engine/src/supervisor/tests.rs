//! The client against a small supervisor inside the test.

use super::{client::NAMESPACE, connect::Connector, *};
use bytes::Bytes;
use prost_types::Any;
use proto::{
    berth::streams::v1::AttachRequest,
    containerd::{
        services::{
            events::v1::{
                Envelope, ForwardRequest, PublishRequest, SubscribeRequest,
                events_server::{Events, EventsServer},
            },
            streaming::v1::{
                StreamInit,
                streaming_server::{Streaming, StreamingServer},
            },
            transfer::v1::{
                TransferRequest,
                transfer_server::{Transfer as TransferService, TransferServer},
            },
            version::v1::{
                VersionResponse,
                version_server::{Version, VersionServer},
            },
        },
        types::transfer::{Data, ImageImportStream, ImageStore, Progress, WindowUpdate},
    },
    kind::ErrorKind,
    typeurl,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{net::UnixListener, sync::mpsc, task::JoinHandle};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Side = (mpsc::Sender<Result<Any, Status>>, tonic::Streaming<Any>);

#[derive(Clone, Default)]
struct Fake {
    side: Arc<Mutex<HashMap<String, Side>>>,
    received: Arc<Mutex<Vec<u8>>>,
}

fn in_namespace<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("containerd-namespace") {
        Some(name) if name == NAMESPACE => Ok(()),
        _ => Err(Status::invalid_argument("namespace missing")),
    }
}

#[tonic::async_trait]
impl Version for Fake {
    async fn version(&self, request: Request<()>) -> Result<Response<VersionResponse>, Status> {
        in_namespace(&request)?;
        Ok(Response::new(VersionResponse { version: "7".into(), revision: "r".into() }))
    }
}

#[tonic::async_trait]
impl Events for Fake {
    type SubscribeStream = Answers<Envelope>;

    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<()>, Status> {
        Err(Status::not_found("no\nsuch thing"))
    }

    async fn forward(&self, _: Request<ForwardRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("forward"))
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        in_namespace(&request)?;
        let ours = Envelope { namespace: NAMESPACE.into(), topic: "/tasks/exit".into(), ..Envelope::default() };
        let foreign = Envelope { namespace: "k8s.io".into(), ..ours.clone() };
        let events = tokio_stream::iter([Ok(foreign), Ok(ours)]).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(events)))
    }
}

#[tonic::async_trait]
impl Streaming for Fake {
    type StreamStream = Answers<Any>;

    async fn stream(&self, request: Request<tonic::Streaming<Any>>) -> Result<Response<Self::StreamStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = incoming.message().await?.ok_or_else(|| Status::invalid_argument("empty"))?;
        let init = typeurl::unpack::<StreamInit>(&hello).unwrap().unwrap();
        let (sender, outgoing) = mpsc::channel(8);
        sender.send(Ok(Any::default())).await.unwrap();
        self.side.lock().unwrap().insert(init.id, (sender, incoming));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

#[tonic::async_trait]
impl TransferService for Fake {
    // Takes the archive in windows of seven bytes, and reports after each.
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let source = typeurl::unpack::<ImageImportStream>(&request.source.unwrap()).unwrap().unwrap();
        let take = |id: &str| self.side.lock().unwrap().remove(id).ok_or_else(|| Status::not_found(id.to_owned()));
        let (progress, _keep) = take(&request.options.unwrap().progress_stream)?;
        let (window, mut archive) = take(&source.stream)?;
        loop {
            window.send(Ok(typeurl::pack(&WindowUpdate { update: 7 }))).await.unwrap();
            let mut room = 7;
            while room > 0 {
                let Some(any) = archive.message().await? else {
                    return if source.media_type == "bad" {
                        Err(Status::data_loss("corrupt"))
                    } else {
                        Ok(Response::new(()))
                    };
                };
                let data = typeurl::unpack::<Data>(&any).unwrap().unwrap().data;
                assert!(data.len() <= room, "sent past the window");
                room -= data.len();
                self.received.lock().unwrap().extend(data);
            }
            let report = Progress { event: "saved".into(), ..Progress::default() };
            progress.send(Ok(typeurl::pack(&report))).await.unwrap();
        }
    }
}

fn serve(socket: &Path, fake: Fake) -> JoinHandle<()> {
    let _ = std::fs::remove_file(socket);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(VersionServer::new(fake.clone()))
            .add_service(EventsServer::new(fake.clone()))
            .add_service(StreamingServer::new(fake.clone()))
            .add_service(TransferServer::new(fake))
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    })
}

fn socket() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    (folder, socket)
}

#[tokio::test]
async fn call_before_the_start_waits_and_comes_through() {
    let (_folder, socket) = socket();
    let client = Client::new(&socket);
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.version().await }
    });
    tokio::task::yield_now().await;
    let _server = serve(&socket, Fake::default());
    assert_eq!(call.await.unwrap(), Ok(("7".into(), "r".into())));
}

#[tokio::test]
async fn connection_is_made_again_after_a_restart() {
    let (_folder, socket) = socket();
    let client = Client::new(&socket);
    let runtime = std::thread::spawn({
        let socket = socket.clone();
        // A runtime of its own: dropping it ends connections too, as the death of a process does.
        move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async { drop(serve(&socket, Fake::default())) });
            runtime
        }
    })
    .join()
    .unwrap();
    client.version().await.unwrap();
    runtime.shutdown_background();
    let _server = serve(&socket, Fake::default());
    assert_eq!(client.version().await.unwrap().0, "7");
}

#[tokio::test]
async fn absence_ends_in_one_line_and_later_calls_fail_at_once() {
    let (_folder, socket) = socket();
    let connector = Connector::new(socket.clone()).with_patience(Duration::from_millis(300));
    let client = Client::over(connector);
    let error = client.version().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(matches!(error, SupervisorError::Away(_)), "{error:?}");
    let expected =
        format!("supervisor unreachable: connect to {}: No such file or directory (os error 2)", socket.display());
    assert_eq!(error.to_string(), expected);
    let started = Instant::now();
    client.version().await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(250));
}

#[tokio::test]
async fn answers_keep_their_kind_and_words() {
    let (_folder, socket) = socket();
    let _server = serve(&socket, Fake::default());
    let client = Client::new(&socket);
    let error: SupervisorError = client.events().publish(PublishRequest::default()).await.unwrap_err().into();
    assert_eq!(error, SupervisorError::Refused { kind: ErrorKind::NotFound, message: "no such thing".into() });
    let error: SupervisorError = client.events().forward(ForwardRequest::default()).await.unwrap_err().into();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    // A service that the peer doesn't have at all.
    let error: SupervisorError = client.streams().attach(AttachRequest::default()).await.unwrap_err().into();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
}

#[tokio::test]
async fn subscription_says_when_it_stands_and_skips_other_namespaces() {
    let (_folder, socket) = socket();
    let _server = serve(&socket, Fake::default());
    let mut subscription = Subscription::new(Client::new(&socket));
    assert_eq!(subscription.next().await, Some(Notice::Connected));
    match subscription.next().await {
        Some(Notice::Event(event)) => assert_eq!((&*event.topic, &*event.namespace), ("/tasks/exit", NAMESPACE)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn subscription_comes_back_after_a_restart() {
    let (_folder, socket) = socket();
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listening = socket.clone();
    let started = server.spawn(async move { drop(serve(&listening, Fake::default())) });
    started.await.unwrap();
    let mut subscription = Subscription::new(Client::new(&socket));
    assert_eq!(subscription.next().await, Some(Notice::Connected));
    assert!(matches!(subscription.next().await, Some(Notice::Event(_))));
    server.shutdown_background();
    assert!(matches!(subscription.next().await, Some(Notice::Lost(error)) if error.is_disconnect()));
    let _server = serve(&socket, Fake::default());
    assert_eq!(subscription.next().await, Some(Notice::Connected));
}

async fn load(
    client: &Client,
    media_type: &str,
    pieces: Vec<std::io::Result<Bytes>>,
) -> (usize, Result<(), SupervisorError>) {
    let source =
        |stream| typeurl::pack(&ImageImportStream { stream, media_type: media_type.into(), force_compress: false });
    let archive = Box::pin(tokio_stream::iter(pieces));
    let mut transfer = Transfer::load(client, archive, ImageStore::default(), source).await.unwrap();
    let mut reports = 0;
    loop {
        match transfer.next().await {
            Some(Step::Progress(_)) => reports += 1,
            Some(Step::Done(result)) => return (reports, result),
            None => panic!("no result"),
        }
    }
}

#[tokio::test]
async fn archive_is_sent_within_the_window_and_every_report_arrives() {
    let (_folder, socket) = socket();
    let fake = Fake::default();
    let _server = serve(&socket, fake.clone());
    let client = Client::new(&socket);
    let bytes: Vec<u8> = (0..100).collect();
    let pieces = bytes.chunks(33).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    assert_eq!(load(&client, "", pieces).await, (100 / 7, Ok(())));
    assert_eq!(*fake.received.lock().unwrap(), bytes);
}

#[tokio::test]
async fn failed_and_broken_archives_end_with_their_cause() {
    let (_folder, socket) = socket();
    let _server = serve(&socket, Fake::default());
    let client = Client::new(&socket);
    let (_, result) = load(&client, "bad", vec![Ok(Bytes::from_static(b"x"))]).await;
    assert_eq!(result.unwrap_err().to_string(), "corrupt");
    let broken = vec![Ok(Bytes::from_static(b"x")), Err(std::io::Error::other("client went away"))];
    let (_, result) = load(&client, "", broken).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}
