//! Calls over one connection, which ends when either side lets go of it.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tonic::{Code, Status};

use super::{
    NAMESPACE_HEADER,
    frame::{self, MESSAGE_LIMIT, REQUEST, RESPONSE},
    message::{KeyValue, Request, Response},
};

/// So many calls may wait to be written; more callers wait for a place.
const QUEUE: usize = 64;

/// A socket can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// What was given is no path of a socket.
    #[error("{0:?} is no address of a unix socket: an absolute path or unix:///path is")]
    Address(String),
    /// Nobody listens there.
    #[error("connect to {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

type Answer = oneshot::Sender<Result<Vec<u8>, Status>>;

/// A connection; clones share it. It is closed when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    queue: mpsc::Sender<(Request, Answer)>,
}

impl Client {
    /// Connects to a unix socket: a path, or `unix://` and a path. Must be called within a tokio runtime.
    pub async fn connect(address: &str) -> Result<Self, ConnectError> {
        let socket = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        if !socket.is_absolute() {
            return Err(ConnectError::Address(address.to_owned()));
        }
        let stream = UnixStream::connect(&socket).await;
        Ok(Self::over(stream.map_err(|cause| ConnectError::Connect { socket, cause })?))
    }

    /// Speaks over a stream that is connected already.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (queue, calls) = mpsc::channel(QUEUE);
        let (reader, writer) = tokio::io::split(stream);
        tokio::spawn(async move {
            let waiting = Waiting::default();
            // Whichever ends first ends the other: a connection that can't be written is as useless as one that can't be
            // read. Callers that still wait see their answers dropped.
            tokio::select! {
                () = send(writer, calls, &waiting) => {}
                () = receive(BufReader::with_capacity(1024, reader), &waiting) => {}
            }
        });
        Self { queue }
    }

    /// Calls a method; `namespace` may be empty. Without a limit it waits for as long as the connection holds.
    ///
    /// A connection that is lost, before or meanwhile, gives [`Code::Unavailable`].
    pub async fn call<Q: Message, A: Message + Default>(
        &self,
        service: &str,
        method: &str,
        namespace: &str,
        request: &Q,
        limit: Option<Duration>,
    ) -> Result<A, Status> {
        let payload = self.call_encoded(service, method, namespace, request.encode_to_vec(), limit).await?;
        A::decode(payload.as_slice()).map_err(|error| Status::internal(format!("answer to {method}: {error}")))
    }

    /// The same with messages in their encoded form, for those who pass on what others have encoded.
    pub async fn call_encoded(
        &self,
        service: &str,
        method: &str,
        namespace: &str,
        payload: Vec<u8>,
        limit: Option<Duration>,
    ) -> Result<Vec<u8>, Status> {
        let mut metadata = Vec::new();
        if !namespace.is_empty() {
            metadata.push(KeyValue { key: NAMESPACE_HEADER.to_owned(), value: namespace.to_owned() });
        }
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: limit.map_or(0, |limit| i64::try_from(limit.as_nanos()).unwrap_or(0)),
            metadata,
        };
        if request.encoded_len() > MESSAGE_LIMIT {
            return Err(Status::resource_exhausted(format!("request {method} is larger than a ttrpc message may be")));
        }
        let (reply, answer) = oneshot::channel();
        let work = async {
            self.queue.send((request, reply)).await.map_err(|_| lost())?;
            answer.await.unwrap_or_else(|_| Err(lost()))
        };
        match limit {
            Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| {
                Status::deadline_exceeded(format!("{method} was not answered within {} ms", limit.as_millis()))
            })?,
            None => work.await,
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        self.queue.closed().await;
    }
}

fn lost() -> Status {
    Status::unavailable("the ttrpc connection was closed by its other side")
}

/// Calls that have been sent, by stream.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<u32, Answer>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Answer>> {
        // Nothing that could panic is done under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(mut writer: impl AsyncWrite + Unpin, mut calls: mpsc::Receiver<(Request, Answer)>, waiting: &Waiting) {
    // Streams grow in the order in which they are sent, which servers insist on.
    let mut next: Option<u32> = Some(1);
    let mut sweep_at = 64;
    while let Some((request, answer)) = calls.recv().await {
        if answer.is_closed() {
            continue;
        }
        // After two thousand million calls the connection has done its duty.
        let Some(stream) = next else { return };
        next = stream.checked_add(2);
        {
            let mut waiting = waiting.lock();
            // Callers that gave up on a peer that never answers must not pile up.
            if waiting.len() >= sweep_at {
                waiting.retain(|_, answer| !answer.is_closed());
                sweep_at = (waiting.len() * 2).max(64);
            }
            waiting.insert(stream, answer);
        }
        if writer.write_all(&frame::encode(stream, REQUEST, &request)).await.is_err() {
            return;
        }
    }
}

async fn receive(mut reader: impl AsyncRead + Unpin, waiting: &Waiting) {
    while let Ok(Some(frame)) = frame::read(&mut reader).await {
        if frame.header.kind != RESPONSE {
            // Nothing else answers a unary call; unknown kinds are for versions to come.
            continue;
        }
        let Some(answer) = waiting.lock().remove(&frame.header.stream) else { continue };
        let outcome = match frame.data.as_deref().map(Response::decode) {
            None => Err(Status::resource_exhausted("the answer is larger than a ttrpc message may be")),
            Some(Err(error)) => Err(Status::internal(format!("no ttrpc response: {error}"))),
            Some(Ok(response)) => match response.status.filter(|status| status.code != 0) {
                Some(status) => Err(Status::new(Code::from_i32(status.code), status.message)),
                None => Ok(response.payload),
            },
        };
        // The caller may have given up.
        let _ = answer.send(outcome);
    }
}
