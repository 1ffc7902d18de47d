//! Folders of the client: the context, the Dockerfile's folder, named contexts.

use super::Outgoing;
use filesync::send::{Filter, send};
use proto::fsutil::types::Packet;
use proto::moby::filesync::v1::file_sync_server::FileSync;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// Packets that wait for the connection.
const AHEAD: usize = 64;

/// The folders, by the names under which they were offered; no other one can be reached.
#[derive(Debug)]
pub struct Files {
    folders: BTreeMap<String, PathBuf>,
}

impl Files {
    /// Offers these.
    pub fn new(folders: BTreeMap<String, PathBuf>) -> Self {
        Self { folders }
    }
}

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Outgoing<Packet>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let about = request.metadata();
        let name = values(about, "dir-name").pop().unwrap_or_default();
        let Some(folder) = self.folders.get(&name).cloned() else {
            return Err(Status::not_found(format!("no access allowed to dir {name:?}")));
        };
        let filter = Filter {
            include: values(about, "include-patterns"),
            exclude: values(about, "exclude-patterns"),
            follow: values(about, "followpaths"),
            owned_by_root: true,
        };
        let incoming = packets(request.into_inner());
        let (outgoing, mut packets) = mpsc::channel(AHEAD);
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            let pass = async {
                while let Some(packet) = packets.recv().await {
                    if answers.send(Ok(packet)).await.is_err() {
                        return;
                    }
                }
            };
            let (sent, ()) = tokio::join!(send(&folder, &filter, incoming, outgoing), pass);
            if let Err(error) = sent {
                // The other end may be gone: then nobody waits for this.
                let _ = answers.send(Err(Status::unknown(chain(&error)))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type TarStreamStream = Outgoing<Packet>;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("folders are sent by DiffCopy"))
    }
}

/// A stream of packets as a channel; it ends with the stream.
fn packets(mut stream: Streaming<Packet>) -> mpsc::Receiver<Packet> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        while let Some(Ok(packet)) = stream.next().await {
            if sender.send(packet).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// All values of a header; those that are not ASCII are escaped like a query.
fn values(about: &MetadataMap, key: &str) -> Vec<String> {
    let escaped = about.get(format!("{key}-encoded")).is_some_and(|value| value == "1" || value == "true");
    let all = about.get_all(key).iter().filter_map(|value| value.to_str().ok());
    all.map(|text| if escaped { unescaped(text) } else { text.to_owned() }).collect()
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(*first),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_any_letters() {
        assert_eq!(unescaped("a%2Fb+%C3%A4%zz%"), "a/b ä%zz%");
        let mut about = MetadataMap::new();
        about.append("include-patterns", "a%20b".parse().unwrap());
        about.append("include-patterns", "c".parse().unwrap());
        assert_eq!(values(&about, "include-patterns"), ["a%20b", "c"]);
        about.insert("include-patterns-encoded", "1".parse().unwrap());
        assert_eq!(values(&about, "include-patterns"), ["a b", "c"]);
        assert!(values(&about, "dir-name").is_empty());
    }
}
