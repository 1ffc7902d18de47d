//! The way of an event to the daemon: gRPC or ttrpc, one connection, made when it is needed.

use std::{
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::TokioIo;
use proto::{
    containerd::services::events::v1::{Envelope, ForwardRequest, events_client::EventsClient},
    ttrpc,
};
use tokio::{net::UnixStream, time::timeout};
use tonic::{
    Code, Request, Status,
    body::Body,
    codegen::http::{self, Uri},
    metadata::MetadataValue,
};

use crate::{bootstrap::EventSink, local::LocalExecutor};

/// How long a daemon may take to answer (containerd's own publisher allows as much).
const ANSWER: Duration = Duration::from_secs(5);

/// Why an event wasn't taken.
pub(crate) enum Failure {
    /// Nobody there, or not well: try again.
    Later,
    /// It will never be taken.
    Refused(Status),
}

enum Link {
    Grpc(EventsClient<Connection>),
    Ttrpc(ttrpc::Client),
}

/// Brings events to one sink.
pub(crate) struct Forwarder {
    sink: EventSink,
    namespace: String,
    link: Option<Link>,
}

impl Forwarder {
    /// Nothing is connected yet.
    pub(crate) fn new(sink: EventSink, namespace: &str) -> Self {
        Self { sink, namespace: namespace.to_owned(), link: None }
    }

    /// Lets go of the connection; the next event makes a new one.
    pub(crate) fn disconnect(&mut self) {
        self.link = None;
    }

    /// Brings one event; returns when it was taken. After a failure the connection is a new one.
    pub(crate) async fn forward(&mut self, envelope: Envelope) -> Result<(), Failure> {
        let outcome = match timeout(ANSWER, self.attempt(envelope)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Later),
        };
        if matches!(outcome, Err(Failure::Later)) {
            self.disconnect();
        }
        outcome
    }

    async fn attempt(&mut self, envelope: Envelope) -> Result<(), Failure> {
        let link = match &mut self.link {
            Some(link) => link,
            empty => empty.insert(connect(&self.sink).await.ok_or(Failure::Later)?),
        };
        let message = ForwardRequest { envelope: Some(envelope) };
        let answer = match link {
            Link::Grpc(client) => {
                let mut request = Request::new(message);
                // A namespace that can't be written as metadata can't have come in as metadata either.
                if let Ok(value) = MetadataValue::try_from(self.namespace.as_str()) {
                    request.metadata_mut().insert("containerd-namespace", value);
                }
                client.forward(request).await.map(drop)
            }
            Link::Ttrpc(client) => client.call(ttrpc::EVENTS, "Forward", &self.namespace, &message, Some(ANSWER)).await,
        };
        answer.map_err(|status| match status.code() {
            Code::InvalidArgument | Code::Unimplemented | Code::NotFound | Code::PermissionDenied => {
                Failure::Refused(status)
            }
            _ => Failure::Later,
        })
    }
}

async fn connect(sink: &EventSink) -> Option<Link> {
    match sink {
        EventSink::Grpc(socket) => connect_grpc(socket).await.ok().map(Link::Grpc),
        EventSink::Ttrpc(address) => ttrpc::Client::connect(address).await.ok().map(Link::Ttrpc),
    }
}

/// An HTTP/2 connection as tonic wants it.
#[derive(Clone)]
struct Connection(SendRequest<Body>);

impl tower::Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

async fn connect_grpc(address: &Path) -> io::Result<EventsClient<Connection>> {
    let stream = UnixStream::connect(address).await?;
    let handshake = hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(stream));
    let (sender, driver) = handshake.await.map_err(io::Error::other)?;
    // Ends when the sender is dropped; what went wrong the sender is told as well.
    tokio::task::spawn_local(driver);
    // The name in it means nothing on a unix socket.
    Ok(EventsClient::with_origin(Connection(sender), Uri::from_static("http://supervisor")))
}
