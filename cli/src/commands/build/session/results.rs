//! Results of a build that come to the client: archives into a file or to standard output, trees of files into a folder.
//!
//! One call of FileSend carries the one or the other, with two kinds of messages: they are taken as bytes here, and read as what
//! the output with that number is.

use super::LARGEST;
use super::files::chain;
use crate::commands::build::specs::Destination;
use bytes::{Buf, BufMut, Bytes};
use filesync::receive::{Options, receive};
use prost::Message;
use proto::fsutil::types::Packet;
use proto::moby::filesync::v1::BytesMessage;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Response, Status, Streaming};

/// Where results go, by the numbers of their outputs.
pub type Results = BTreeMap<usize, Destination>;

/// The service that takes them.
#[derive(Debug, Clone)]
pub struct Receiver {
    results: Arc<Results>,
}

impl Receiver {
    /// Takes results for these.
    pub fn new(results: Results) -> Self {
        Self { results: Arc::new(results) }
    }
}

impl tonic::server::NamedService for Receiver {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl tower::Service<hyper::Request<tonic::body::Body>> for Receiver {
    type Response = hyper::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<tonic::body::Body>) -> Self::Future {
        let results = self.results.clone();
        Box::pin(async move {
            if request.uri().path() != "/moby.filesync.v1.FileSend/DiffCopy" {
                return Ok(Status::unimplemented("FileSend has DiffCopy only").into_http());
            }
            let grpc = tonic::server::Grpc::new(Raw).apply_max_message_size_config(Some(LARGEST), None);
            let mut grpc = grpc;
            Ok(grpc.streaming(DiffCopy { results }, request).await)
        })
    }
}

/// Messages as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

struct DiffCopy {
    results: Arc<Results>,
}

type Answers = ReceiverStream<Result<Bytes, Status>>;

impl tonic::server::StreamingService<Bytes> for DiffCopy {
    type Response = Bytes;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let number = request.metadata().get("buildkit-attachable-exporter-id");
        let number: Option<usize> = number.and_then(|value| value.to_str().ok()?.parse().ok());
        // Builders that know one output only don't number them.
        let found = match number {
            Some(number) => self.results.get(&number),
            None => self.results.values().next(),
        };
        let found = found.cloned();
        Box::pin(async move {
            let Some(destination) = found else {
                return Err(Status::not_found(format!("exporter {} not found", number.unwrap_or_default())));
            };
            let (answers, stream) = mpsc::channel(16);
            let incoming = request.into_inner();
            tokio::spawn(async move {
                let taken = match destination {
                    Destination::Folder(path) => folder(&path, incoming, answers.clone()).await,
                    Destination::File(path) => file(&path, incoming).await,
                    Destination::Stdout => copy(incoming, io::stdout()).await,
                    Destination::Engine => Err("this output stays at the builder".to_owned()),
                };
                if let Err(text) = taken {
                    let _ = answers.send(Err(Status::unknown(text))).await;
                }
            });
            Ok(Response::new(ReceiverStream::new(stream)))
        })
    }
}

/// An archive in a file: it has its name when it is complete.
async fn file(path: &Path, incoming: Streaming<Bytes>) -> Result<(), String> {
    let failed = |cause: io::Error| format!("write {}: {cause}", path.display());
    // Devices and pipes are written to as they are.
    if path.exists() && !path.is_file() {
        return copy(incoming, fs::OpenOptions::new().write(true).open(path).map_err(failed)?).await;
    }
    let part = beside(path)?;
    let taken = match fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&part) {
        Ok(file) => copy(incoming, file).await.and_then(|()| fs::rename(&part, path).map_err(failed)),
        Err(cause) => Err(failed(cause)),
    };
    if taken.is_err() {
        // What is there of it is of no use to anybody.
        let _ = fs::remove_file(&part);
    }
    taken
}

/// A name of our own in the same folder.
fn beside(path: &Path) -> Result<PathBuf, String> {
    let id = crate::commands::build::random_id().map_err(|cause| cause.to_string())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(path.with_file_name(format!(".{name}.{id}")))
}

async fn copy(mut incoming: Streaming<Bytes>, mut to: impl Write) -> Result<(), String> {
    while let Some(message) = incoming.next().await {
        let message = message.map_err(|status| status.message().to_owned())?;
        let piece = BytesMessage::decode(message).map_err(|error| format!("the result is no archive: {error}"))?;
        to.write_all(&piece.data).map_err(|cause| format!("write the result: {cause}"))?;
    }
    to.flush().map_err(|cause| format!("write the result: {cause}"))
}

/// A tree of files: what is there already and has no part in the result stays as it is, and all of it belongs to who asked for it.
async fn folder(
    path: &Path,
    mut incoming: Streaming<Bytes>,
    answers: mpsc::Sender<Result<Bytes, Status>>,
) -> Result<(), String> {
    let failed = |cause: io::Error| format!("write into {}: {cause}", path.display());
    fs::create_dir_all(path).map_err(failed)?;
    let root = fs::File::open(path).map_err(failed)?;
    let (sender, packets) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(Ok(message)) = incoming.next().await {
            let Ok(packet) = Packet::decode(message) else { return };
            if sender.send(packet).await.is_err() {
                return;
            }
        }
    });
    let (outgoing, mut requests) = mpsc::channel::<Packet>(64);
    let pass = async {
        while let Some(packet) = requests.recv().await {
            if answers.send(Ok(Bytes::from(packet.encode_to_vec()))).await.is_err() {
                return;
            }
        }
    };
    let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let options = Options { owner: Some(owner), ..Options::default() };
    let (received, ()) = tokio::join!(receive(OwnedFd::from(root), packets, outgoing, options), pass);
    received.map(|_| ()).map_err(|error| chain(&error))
}
