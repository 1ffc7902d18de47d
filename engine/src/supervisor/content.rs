//! Blobs: read small ones whole, write streams of any size.

use super::{Client, SupervisorError};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use proto::{
    containerd::services::content::v1::{
        AbortRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest, UpdateRequest, WriteAction,
        WriteContentRequest,
    },
    digest::Digest,
    kind::ErrorKind,
};
use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicU64, Ordering},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Sets one label of a blob.
pub async fn label(client: &Client, digest: &str, key: &str, value: &str) -> Result<(), SupervisorError> {
    let request = UpdateRequest {
        info: Some(Info {
            digest: digest.to_owned(),
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..Info::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec![format!("labels.{key}")] }),
    };
    client.retry(request, |client, request| async move { client.content().update(request).await }).await.map(drop)
}

/// Labels of a blob.
pub async fn labels(client: &Client, digest: &str) -> Result<HashMap<String, String>, SupervisorError> {
    let request = InfoRequest { digest: digest.to_owned() };
    let answer = client.retry(request, |client, request| async move { client.content().info(request).await }).await?;
    Ok(answer.info.unwrap_or_default().labels)
}

/// Reads a whole blob of at most `limit` bytes.
pub async fn read(client: &Client, digest: &str, limit: usize) -> Result<Vec<u8>, SupervisorError> {
    let too_large = || SupervisorError::Refused {
        kind: ErrorKind::DataLoss,
        message: format!("blob {digest} is larger than {limit} bytes"),
    };
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut stream =
        client.retry(request, |client, request| async move { client.content().read(request).await }).await?;
    let mut blob = Vec::new();
    while let Some(piece) = stream.message().await? {
        if blob.len() + piece.data.len() > limit {
            return Err(too_large());
        }
        blob.extend_from_slice(&piece.data);
    }
    Ok(blob)
}

/// The digests of all blobs.
pub async fn digests(client: &Client) -> Result<HashSet<String>, SupervisorError> {
    let request = ListContentRequest::default();
    let mut stream =
        client.retry(request, |client, request| async move { client.content().list(request).await }).await?;
    let mut digests = HashSet::new();
    while let Some(page) = stream.message().await? {
        digests.extend(page.info.into_iter().map(|info| info.digest));
    }
    Ok(digests)
}

/// A blob whose digest is known before it is written; one that exists already is fine.
pub async fn write(client: &Client, blob: Vec<u8>, labels: HashMap<String, String>) -> Result<Digest, SupervisorError> {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    let digest = Digest::of(&blob);
    // Two may write the same at once, and an ingest has one writer.
    let own = WRITERS.fetch_add(1, Ordering::Relaxed);
    let mut writer = Writer::open(client, &format!("berth-{}-{own}", digest.hex())).await?;
    writer.send(blob.into()).await?;
    writer.commit(Some(digest), labels).await?;
    Ok(digest)
}

/// A blob being written. Dropped without commit, the supervisor keeps the ingest until [`Writer::abort`] or its collector.
pub struct Writer {
    client: Client,
    reference: String,
    offset: i64,
    sender: mpsc::Sender<WriteContentRequest>,
    answers: tonic::Streaming<proto::containerd::services::content::v1::WriteContentResponse>,
}

impl Writer {
    /// Starts an ingest under a name of the caller's, from its beginning.
    pub async fn open(client: &Client, reference: &str) -> Result<Self, SupervisorError> {
        let (sender, requests) = mpsc::channel(4);
        let stat = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_owned(),
            ..WriteContentRequest::default()
        };
        sender.send(stat).await.map_err(|_| closed())?;
        let mut answers = client.content().write(ReceiverStream::new(requests)).await?.into_inner();
        answers.message().await?.ok_or_else(closed)?;
        Ok(Self { client: client.clone(), reference: reference.to_owned(), offset: 0, sender, answers })
    }

    /// Appends bytes.
    pub async fn send(&mut self, mut data: Bytes) -> Result<(), SupervisorError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(1 << 20));
            let length = piece.len() as i64;
            let write = WriteContentRequest {
                action: WriteAction::Write.into(),
                r#ref: self.reference.clone(),
                offset: self.offset,
                data: piece.into(),
                ..WriteContentRequest::default()
            };
            self.exchange(write).await?;
            self.offset += length;
        }
        Ok(())
    }

    /// Ends the blob, checked against `expected` by the supervisor; gives its digest. A blob that exists already is fine.
    pub async fn commit(
        &mut self,
        expected: Option<Digest>,
        labels: HashMap<String, String>,
    ) -> Result<String, SupervisorError> {
        let commit = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: self.reference.clone(),
            total: self.offset,
            offset: self.offset,
            expected: expected.map(|digest| digest.to_string()).unwrap_or_default(),
            labels,
            ..WriteContentRequest::default()
        };
        match (self.exchange(commit).await, expected) {
            (Ok(digest), _) => Ok(digest),
            (Err(error), Some(expected)) if error.kind() == ErrorKind::AlreadyExists => Ok(expected.to_string()),
            (Err(error), _) => Err(error),
        }
    }

    /// Throws away what was written.
    pub async fn abort(self) -> Result<(), SupervisorError> {
        let Self { client, reference, sender, answers, .. } = self;
        // The ingest is locked while its stream lives.
        drop((sender, answers));
        client
            .retry(AbortRequest { r#ref: reference.clone() }, |client, request| async move {
                client.content().abort(request).await
            })
            .await
    }

    async fn exchange(&mut self, request: WriteContentRequest) -> Result<String, SupervisorError> {
        if self.sender.send(request).await.is_err() {
            // The stream ended early: its error says why.
            return Err(self.answers.message().await.err().map_or_else(closed, SupervisorError::from));
        }
        Ok(self.answers.message().await?.ok_or_else(closed)?.digest)
    }
}

fn closed() -> SupervisorError {
    SupervisorError::Lost("the supervisor closed the write stream".into())
}

/// Copies a stream into a writer; an error of the source is returned as `Cancelled`.
pub async fn copy<S>(writer: &mut Writer, mut source: S, mut each: impl FnMut(&[u8])) -> Result<(), SupervisorError>
where
    S: Stream<Item = Result<Bytes, std::io::Error>> + Unpin,
{
    while let Some(bytes) = source.next().await {
        let bytes = bytes.map_err(|error| SupervisorError::Refused {
            kind: ErrorKind::Cancelled,
            message: format!("read archive from the client: {error}"),
        })?;
        each(&bytes);
        writer.send(bytes).await?;
    }
    Ok(())
}
