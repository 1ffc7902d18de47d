//! The way of an event to the daemon: gRPC or ttrpc, one connection, made when it is needed.

use std::{
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::TokioIo;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use proto::{
    containerd::services::events::v1::{Envelope, ForwardRequest, events_client::EventsClient},
    ttrpc,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    time::timeout,
};
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

/// What ended a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The daemon's socket was made.
    Appeared,
    /// The time was over.
    TimeOut,
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
    /// Sees the daemon come back; there while it is away.
    watch: Option<AsyncFd<OwnedFd>>,
}

impl Forwarder {
    /// Nothing is connected yet.
    pub(crate) fn new(sink: EventSink, namespace: &str) -> Self {
        Self { sink, namespace: namespace.to_owned(), link: None, watch: None }
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
        match &outcome {
            Err(Failure::Later) => self.disconnect(),
            _ => self.watch = None,
        }
        outcome
    }

    /// Waits before another try: until the daemon makes its socket, or at most so long, in case it makes none (it hangs, or
    /// somebody else holds its socket for it).
    ///
    /// The watch stays for the tries that follow, so that nothing is missed between one of them and the next pause.
    pub(crate) async fn pause(&mut self, at_most: Duration) -> Ended {
        let socket = match &self.sink {
            EventSink::Grpc(socket) => socket.as_path(),
            EventSink::Ttrpc(address) => Path::new(address.strip_prefix("unix://").unwrap_or(address)),
        };
        if self.watch.is_none() {
            self.watch = watch_folder(socket).ok();
        }
        let appeared = async {
            match (&self.watch, socket.file_name()) {
                (Some(watch), Some(name)) => made(watch, name).await,
                // Its folder isn't there either.
                _ => std::future::pending().await,
            }
        };
        match timeout(at_most, appeared).await {
            Ok(()) => Ended::Appeared,
            Err(_) => Ended::TimeOut,
        }
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

fn watch_folder(socket: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let folder = socket.parent().unwrap_or(Path::new("/"));
    inotify.add_watch(folder, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
    crate::io::watch(inotify.into(), Interest::READABLE)
}

/// Returns when something of this name was made in the folder.
async fn made(watch: &AsyncFd<OwnedFd>, name: &OsStr) {
    let mut records = [0; 4096];
    loop {
        let read = watch.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut records)?)).await;
        let Ok(length) = read else { return };
        // Names stand in the records as they are (inotify(7)); one that is found by chance costs a try.
        if memchr::memmem::find(&records[..length], name.as_bytes()).is_some() {
            return;
        }
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
