//! Folders of clients, and results for them.

use super::{Session, SessionError, calls::MESSAGE, metadata};
use bytes::Bytes;
use filesync::{
    receive::{self, ReceiveError, Received},
    send,
};
use futures_util::{Stream, StreamExt};
use proto::{
    fsutil::types::Packet,
    moby::filesync::v1::{BytesMessage, file_send_client::FileSendClient, file_sync_client::FileSyncClient},
};
use std::{collections::BTreeMap, io, path::Path, time::Duration};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, codegen::http::uri::PathAndQuery, metadata::MetadataMap};

/// Packets that are on their way at most.
const PACKETS: usize = 256;
/// Clients take messages of 4 MiB at most.
const PIECE: usize = 1 << 20;
const SEND: &str = "/moby.filesync.v1.FileSend/DiffCopy";

/// Which folder of a client, and what of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesRequest {
    /// The folder's name: `context`, `dockerfile`.
    pub name: String,
    /// Only these, if there are any.
    pub include: Vec<String>,
    /// Not these.
    pub exclude: Vec<String>,
    /// Links that are followed.
    pub follow: Vec<String>,
}

impl Session {
    /// Makes `folder` what the client's is.
    pub async fn files(
        &self,
        wanted: &FilesRequest,
        folder: receive::Folder,
        options: receive::Options,
    ) -> Result<Received, SessionError> {
        self.needs("/moby.filesync.v1.FileSync/DiffCopy")?;
        let what = format!("transfer {}", wanted.name);
        let (outgoing, requests) = mpsc::channel(PACKETS);
        let mut request = Request::new(ReceiverStream::new(requests));
        let sent = request.metadata_mut();
        metadata::put(sent, "dir-name", std::slice::from_ref(&wanted.name))?;
        metadata::put(sent, "include-patterns", &wanted.include)?;
        metadata::put(sent, "exclude-patterns", &wanted.exclude)?;
        metadata::put(sent, "followpaths", &wanted.follow)?;
        let mut client = FileSyncClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        // The first of its packets may take as long as it takes to read a folder's ignored parts.
        let mut packets = self
            .unless_gone(async {
                client.diff_copy(request).await.map_err(|status| SessionError::of(what.as_str(), &status))
            })
            .await?
            .into_inner();
        let (incoming, answers) = mpsc::channel(PACKETS);
        let pump = async {
            loop {
                match packets.message().await {
                    Ok(Some(packet)) => {
                        // The receiver says why it takes no more.
                        if incoming.send(packet).await.is_err() {
                            return Ok(incoming);
                        }
                    }
                    Ok(None) => return Ok(incoming),
                    Err(status) => return Err(SessionError::of(what.as_str(), &status)),
                }
            }
        };
        self.unless_gone(join(&what, receive::receive(folder, answers, outgoing, options), pump)).await
    }

    /// Gives the client a file: what `body` gives, an archive as a rule. `exporter` is the place of the output among those of the
    /// build, `metadata` what the client is told about it.
    pub async fn export_file(
        &self,
        exporter: u32,
        metadata: &BTreeMap<String, String>,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), SessionError> {
        self.needs(SEND)?;
        let (failed, failure) = oneshot::channel();
        let mut failed = Some(failed);
        // Of a body that fails nothing may look like its end: the call is given up instead.
        let pieces = body.flat_map(move |piece| {
            let pieces = match piece {
                Ok(piece) => split(piece),
                Err(cause) => {
                    if let Some(failed) = failed.take() {
                        let _ = failed.send(cause);
                    }
                    Vec::new()
                }
            };
            let ended = failed.is_none();
            futures_util::stream::iter(pieces).chain(
                futures_util::stream::once(async move { if ended { std::future::pending().await } else { None } })
                    .filter_map(std::future::ready),
            )
        });
        let mut request = Request::new(pieces);
        exporter_metadata(request.metadata_mut(), exporter, metadata)?;
        let mut client = FileSendClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
        let what = "send the output to the client";
        let call = async {
            let of = |status| SessionError::of(what, &status);
            let mut answers = client.diff_copy(request).await.map_err(of)?.into_inner();
            while answers.message().await.map_err(of)?.is_some() {}
            Ok(())
        };
        self.unless_gone(async {
            tokio::select! {
                Ok(cause) = failure => Err(SessionError::Local { what: what.into(), cause }),
                result = call => result,
            }
        })
        .await
    }

    /// Gives the client a folder. What it has there already and isn't replaced stays.
    pub async fn export_folder(
        &self,
        exporter: u32,
        metadata: &BTreeMap<String, String>,
        folder: &Path,
        filter: &send::Filter,
    ) -> Result<(), SessionError> {
        self.needs(SEND)?;
        let what = "send the output to the client".to_owned();
        let (outgoing, packets) = mpsc::channel(PACKETS);
        let mut request = Request::new(ReceiverStream::new(packets));
        exporter_metadata(request.metadata_mut(), exporter, metadata)?;
        let (incoming, answers) = mpsc::channel(PACKETS);
        let sending = send::send(folder, filter, answers, outgoing);
        let asking = async {
            // The method of files, with the packets of folders: which it is, both sides know.
            let mut grpc = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE);
            let of = |status| SessionError::of(what.as_str(), &status);
            grpc.ready().await.map_err(|e| SessionError::Gone(e.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            let path = PathAndQuery::from_static(SEND);
            let mut answers = grpc.streaming(request, path, codec).await.map_err(of)?.into_inner();
            while let Some(packet) = answers.message().await.map_err(of)? {
                if incoming.send(packet).await.is_err() {
                    break;
                }
            }
            Ok(incoming)
        };
        self.unless_gone(async {
            let (mut sending, mut asking) = (std::pin::pin!(sending), std::pin::pin!(asking));
            tokio::select! {
                sent = &mut sending => match sent {
                    // The status of the call tells whether the client has it all.
                    Ok(()) => asking.await.map(drop),
                    Err(send::SendError::Gone) => Err(asking.await.err().unwrap_or(SessionError::Gone("the call has ended".into()))),
                    Err(cause) => Err(SessionError::Export { what: what.clone(), cause }),
                },
                asked = &mut asking => {
                    drop(asked?);
                    sending.await.map_err(|cause| SessionError::Export { what: what.clone(), cause })
                }
            }
        })
        .await
    }
}

/// Receives while `pump` gives it packets; a broken call says more than the end of its packets.
async fn join<T>(
    what: &str,
    receiving: impl Future<Output = Result<Received, ReceiveError>>,
    pump: impl Future<Output = Result<T, SessionError>>,
) -> Result<Received, SessionError> {
    let failed = |cause| SessionError::Files { what: what.to_owned(), cause };
    let (mut receiving, mut pump) = (std::pin::pin!(receiving), std::pin::pin!(pump));
    tokio::select! {
        received = &mut receiving => {
            let received = received.map_err(failed)?;
            // So that the client sees its call end well, and not given up.
            let _ = tokio::time::timeout(Duration::from_secs(1), pump).await;
            Ok(received)
        }
        pumped = &mut pump => {
            drop(pumped?);
            receiving.await.map_err(failed)
        }
    }
}

fn exporter_metadata(
    sent: &mut MetadataMap,
    exporter: u32,
    told: &BTreeMap<String, String>,
) -> Result<(), SessionError> {
    for (key, value) in told {
        metadata::put(sent, &format!("exporter-md-{key}"), std::slice::from_ref(value))?;
    }
    metadata::put(sent, "buildkit-attachable-exporter-id", &[exporter.to_string()])
}

fn split(mut piece: Bytes) -> Vec<BytesMessage> {
    let mut pieces = Vec::with_capacity(piece.len().div_ceil(PIECE));
    while !piece.is_empty() {
        let data = piece.split_to(piece.len().min(PIECE));
        pieces.push(BytesMessage { data });
    }
    pieces
}
