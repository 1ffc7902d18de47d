//! Content service: blobs and ingests.

use std::{io::Read, pin::Pin, sync::Arc};

use proto::{
    containerd::{
        events::ContentDelete,
        services::content::v1::{self as api, content_server},
    },
    digest::Digest,
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::required;
use crate::{
    content::{Info, IngestStatus, Writer},
    failure::{blocking, lease, namespace, status},
    labels::check,
    store::{Stores, labels_from},
};

/// Bytes of a blob per message.
const CHUNK: usize = 1 << 20;
/// Records per message of a listing.
const PAGE: usize = 100;

/// The service over the content store.
pub(crate) struct ContentService(Arc<Stores>);

impl ContentService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error: proto::digest::DigestError| Status::invalid_argument(error.to_string()))
}

fn optional_digest(text: &str) -> Result<Option<Digest>, Status> {
    if text.is_empty() { Ok(None) } else { digest(text).map(Some) }
}

fn to_info(digest: impl ToString, info: Info) -> api::Info {
    api::Info {
        digest: digest.to_string(),
        size: info.size as i64,
        created_at: Some(info.created_at.to_proto()),
        updated_at: Some(info.updated_at.to_proto()),
        labels: info.labels.into_iter().collect(),
    }
}

fn to_status(status: IngestStatus) -> api::Status {
    api::Status {
        started_at: Some(status.started_at.to_proto()),
        updated_at: Some(status.updated_at.to_proto()),
        r#ref: status.reference,
        offset: status.offset as i64,
        total: status.total as i64,
        expected: status.expected.map(|d| d.to_string()).unwrap_or_default(),
    }
}

fn unsigned(number: i64, what: &str) -> Result<u64, Status> {
    u64::try_from(number).map_err(|_| Status::invalid_argument(format!("{what} is negative")))
}

#[async_trait]
impl content_server::Content for ContentService {
    async fn info(&self, request: Request<api::InfoRequest>) -> Result<Response<api::InfoResponse>, Status> {
        let namespace = namespace(&request)?;
        let digest = digest(&request.get_ref().digest)?;
        let info = self.0.content.info(namespace.as_str(), &digest).map_err(status)?;
        Ok(Response::new(api::InfoResponse { info: Some(to_info(digest, info)) }))
    }

    async fn update(&self, request: Request<api::UpdateRequest>) -> Result<Response<api::UpdateResponse>, Status> {
        let (namespace, content) = (namespace(&request)?, self.0.content.clone());
        let request = request.into_inner();
        let info = required(request.info, "info")?;
        let digest = digest(&info.digest)?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let labels = labels_from(info.labels);
        check(&labels).map_err(Status::invalid_argument)?;
        let stores = self.0.clone();
        blocking(move || {
            let info = content.update(namespace.as_str(), &digest, &labels, &paths).map_err(status)?;
            stores.gc.schedule(); // a label less may be all that kept something
            Ok(Response::new(api::UpdateResponse { info: Some(to_info(digest, info)) }))
        })
        .await
    }

    type ListStream = Answers<api::ListContentResponse>;

    async fn list(&self, request: Request<api::ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        let namespace = namespace(&request)?;
        let found = self.0.content.list(namespace.as_str(), &request.get_ref().filters).map_err(status)?;
        let pages: Vec<_> = found
            .chunks(PAGE)
            .map(|page| {
                let info = page.iter().map(|(digest, info)| to_info(digest, info.clone())).collect();
                Ok(api::ListContentResponse { info })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn delete(&self, request: Request<api::DeleteContentRequest>) -> Result<Response<()>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let digest = digest(&request.get_ref().digest)?;
        blocking(move || {
            stores.content.delete(namespace.as_str(), &digest).map_err(status)?;
            stores.gc.schedule(); // what it referred to
            let event = ContentDelete { digest: digest.to_string() };
            stores.publish(namespace.as_str(), "/content/delete", &event);
            Ok(Response::new(()))
        })
        .await
    }

    type ReadStream = Answers<api::ReadContentResponse>;

    async fn read(&self, request: Request<api::ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let namespace = namespace(&request)?;
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        // As containerd: a negative offset is the beginning, a size that leads behind the end is what there is.
        let (offset, wanted) = (request.offset.max(0) as u64, request.size.max(0) as u64);
        let (mut file, size) = self.0.content.reader(namespace.as_str(), &digest).map_err(status)?;
        if offset > size {
            return Err(Status::out_of_range(format!("read at {offset} of {digest}, which is {size} bytes long")));
        }
        let mut left = if wanted == 0 { size - offset } else { wanted.min(size - offset) };
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Err(error) = std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)) {
                let _ = sender.send(Err(Status::internal(format!("read blob {digest}: {error}")))).await;
                return;
            }
            let mut at = offset;
            while left > 0 {
                let want = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
                let read = blocking(move || {
                    let mut data = vec![0; want];
                    let done = file.read_exact(&mut data);
                    done.map_err(|error| Status::data_loss(format!("read blob {digest}: {error}")))?;
                    Ok((file, data))
                });
                let message = match read.await {
                    Ok((same, data)) => {
                        file = same;
                        let message = api::ReadContentResponse { offset: at as i64, data };
                        at += want as u64;
                        left -= want as u64;
                        Ok(message)
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                };
                if sender.send(message).await.is_err() {
                    return; // the client has what it wants
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(&self, request: Request<api::StatusRequest>) -> Result<Response<api::StatusResponse>, Status> {
        let namespace = namespace(&request)?;
        let found = self.0.content.status(namespace.as_str(), &request.get_ref().r#ref).map_err(status)?;
        Ok(Response::new(api::StatusResponse { status: Some(to_status(found)) }))
    }

    async fn list_statuses(
        &self,
        request: Request<api::ListStatusesRequest>,
    ) -> Result<Response<api::ListStatusesResponse>, Status> {
        let namespace = namespace(&request)?;
        let found = self.0.content.statuses(namespace.as_str(), &request.get_ref().filters).map_err(status)?;
        Ok(Response::new(api::ListStatusesResponse { statuses: found.into_iter().map(to_status).collect() }))
    }

    type WriteStream = Answers<api::WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<api::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let (namespace, lease) = (namespace(&request)?, lease(&request));
        let mut inbound = request.into_inner();
        let stores = self.0.clone();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut open = None;
            loop {
                let message = match inbound.message().await {
                    Ok(Some(message)) => message,
                    // Dropping the writer keeps what it has for a later one.
                    Ok(None) | Err(_) => return,
                };
                let (stores, namespace, lease) = (stores.clone(), namespace.clone(), lease.clone());
                let step = blocking(move || {
                    let writer = match open {
                        Some(writer) => writer,
                        None => begin(&stores, namespace.as_str(), lease.as_deref(), &message)?,
                    };
                    write_step(&stores, namespace.as_str(), writer, message)
                });
                let answer = match step.await {
                    Ok((writer, answer)) => {
                        let done = writer.is_none();
                        open = writer;
                        if sender.send(Ok(answer)).await.is_err() || done {
                            return;
                        }
                        continue;
                    }
                    Err(error) => Err(error),
                };
                let _ = sender.send(answer).await;
                return;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn abort(&self, request: Request<api::AbortRequest>) -> Result<Response<()>, Status> {
        let (namespace, content) = (namespace(&request)?, self.0.content.clone());
        let reference = request.into_inner().r#ref;
        blocking(move || content.abort(namespace.as_str(), &reference).map_err(status).map(Response::new)).await
    }
}

// The first message names the ingest and may say what is to come.
fn begin(
    stores: &Stores,
    namespace: &str,
    lease: Option<&str>,
    message: &api::WriteContentRequest,
) -> Result<Writer, Status> {
    if message.r#ref.is_empty() {
        return Err(Status::invalid_argument("first message of a write must have a reference"));
    }
    let expected = optional_digest(&message.expected)?;
    let total = unsigned(message.total, "total")?;
    stores.content.writer(namespace, &message.r#ref, total, expected, lease).map_err(status)
}

/// One message: a question, bytes, or the end. Its offset is where the bytes go: at the end of what is there, or at the
/// very beginning, which starts anew.
fn write_step(
    stores: &Stores,
    namespace: &str,
    mut writer: Writer,
    message: api::WriteContentRequest,
) -> Result<(Option<Writer>, api::WriteContentResponse), Status> {
    let action = api::WriteAction::try_from(message.action)
        .map_err(|_| Status::invalid_argument(format!("write action {} is not known", message.action)))?;
    let expected = optional_digest(&message.expected)?;
    if let Some(digest) = expected
        && stores.content.adopt_for(namespace, &digest, &writer).map_err(status)?
    {
        writer.abort().map_err(status)?;
        return Err(Status::already_exists(format!("content {digest}: already exists")));
    }
    if action != api::WriteAction::Stat {
        let (offset, at) = (unsigned(message.offset, "offset")?, writer.offset());
        if offset != 0 && offset != at {
            return Err(Status::out_of_range(format!(
                "write at {offset} of ingest {:?} must be at its end, {at}, or begin it anew at 0",
                writer.reference()
            )));
        }
        writer.seek(offset).map_err(status)?;
        writer.write(&message.data).map_err(status)?;
    }
    let now = writer.status();
    let mut answer = api::WriteContentResponse {
        action: message.action,
        started_at: Some(now.started_at.to_proto()),
        updated_at: Some(now.updated_at.to_proto()),
        offset: now.offset as i64,
        total: now.total as i64,
        digest: String::new(),
    };
    if action != api::WriteAction::Commit {
        // Asked for it is worth a copy of the hasher; at every chunk it would be waste.
        if action == api::WriteAction::Stat {
            answer.digest = writer.digest().to_string();
        }
        return Ok((Some(writer), answer));
    }
    let total = unsigned(message.total, "total")?;
    let labels = labels_from(message.labels);
    check(&labels).map_err(Status::invalid_argument)?;
    let digest = writer.commit(total, expected, &labels).map_err(status)?;
    stores.gc.changed();
    answer.digest = digest.to_string();
    Ok((None, answer))
}
