//! Archives of images: `type=oci` and `type=docker`. Both have the layout of the image-spec; docker's has `manifest.json` besides,
//! which old `docker load`s read.

use super::image::{ExportError, Exported};
use crate::{
    containers::export::Sink,
    supervisor::{Client, SupervisorError, content},
    tar::{Kind, TarWriter},
};
use bytes::Bytes;
use nix::sys::stat::FileStat;
use proto::{
    containerd::services::content::v1::{ReadContentRequest, ReadContentResponse},
    image_ref::ImageRef,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

/// Largest manifest or index.
const LIMIT: usize = 4 << 20;
/// Pieces that wait for a slow client.
const AHEAD: usize = 4;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The image-spec's.
    Oci,
    /// Docker's besides.
    Docker,
}

/// Documents that name blobs, and the blobs by their sizes.
#[derive(Debug, Default)]
struct Parts {
    documents: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<String, u64>,
    manifests: Vec<Value>,
}

/// Writes an image with everything that it consists of, while the archive is read.
pub async fn archive(
    exported: Exported,
    names: &[ImageRef],
    layout: Layout,
) -> Result<ReceiverStream<io::Result<Bytes>>, ExportError> {
    let client = exported.lease.client.clone();
    let parts = collect(&client, &exported.target.digest).await?;
    let (index, docker) = (index(&exported, names), manifests(&parts, names));
    let (sender, receiver) = mpsc::channel(AHEAD);
    let runtime = Handle::current();
    let work = move || {
        let write = || -> io::Result<()> {
            let mut tar = TarWriter::new(Sink::new(sender.clone()));
            let stat = plain()?;
            let mut folder = stat;
            folder.st_mode = nix::libc::S_IFDIR | 0o755;
            for name in ["blobs/", "blobs/sha256/"] {
                tar.entry(name.as_bytes(), Kind::Folder, &folder, &[], &mut io::empty())?;
            }
            let mut file = |name: String, size: u64, data: &mut dyn Read| {
                let mut stat = stat;
                stat.st_size = i64::try_from(size).map_err(io::Error::other)?;
                tar.entry(name.as_bytes(), Kind::File(size), &stat, &[], data)
            };
            let path = |digest: &str| format!("blobs/{}", digest.replacen(':', "/", 1));
            for (digest, bytes) in &parts.documents {
                file(path(digest), bytes.len() as u64, &mut bytes.as_slice())?;
            }
            for (digest, size) in &parts.blobs {
                let mut blob = Blob::open(&runtime, &client, digest)?;
                file(path(digest), *size, &mut blob)?;
                if blob.read_bytes != *size {
                    return Err(io::Error::other(format!("blob {digest} has {} bytes, not {size}", blob.read_bytes)));
                }
            }
            let mut text = |name: &str, value: &Value| {
                let bytes = value.to_string().into_bytes();
                file(name.into(), bytes.len() as u64, &mut bytes.as_slice())
            };
            text("index.json", &index)?;
            if layout == Layout::Docker {
                text("manifest.json", &docker)?;
            }
            text("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
            tar.finish()?.flush()
        };
        match write() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => drop(sender.blocking_send(Err(error))),
            _ => {}
        }
        runtime.block_on(exported.lease.give_back_later());
    };
    let failed = |cause| ExportError::Write { what: "an archive".into(), cause };
    std::thread::Builder::new().name("archive".into()).spawn(work).map_err(failed)?;
    Ok(ReceiverStream::new(receiver))
}

/// All that a manifest or an index refers to.
async fn collect(client: &Client, target: &str) -> Result<Parts, ExportError> {
    let mut parts = Parts::default();
    let mut open = vec![target.to_owned()];
    while let Some(digest) = open.pop() {
        if parts.documents.contains_key(&digest) {
            continue;
        }
        let failed = |cause| ExportError::Supervisor { operation: "read", object: digest.clone(), cause };
        let bytes = content::read(client, &digest, LIMIT).await.map_err(failed)?;
        let bad = |e| failed(SupervisorError::Protocol(format!("not a manifest: {e}")));
        let document: Value = serde_json::from_slice(&bytes).map_err(bad)?;
        let entries = |key: &str| document[key].as_array().cloned().unwrap_or_default();
        open.extend(entries("manifests").iter().filter_map(|entry| Some(entry["digest"].as_str()?.to_owned())));
        if document["config"].is_object() {
            let blobs = entries("layers").into_iter().chain([document["config"].clone()]);
            for blob in blobs {
                if let (Some(digest), Some(size)) = (blob["digest"].as_str(), blob["size"].as_u64()) {
                    parts.blobs.insert(digest.to_owned(), size);
                }
            }
            parts.manifests.push(document);
        }
        parts.documents.insert(digest, bytes);
    }
    Ok(parts)
}

/// `index.json`: an entry for each name.
fn index(exported: &Exported, names: &[ImageRef]) -> Value {
    let target = &exported.target;
    let entry = |name: Option<&ImageRef>| {
        let mut entry = json!({"mediaType": target.media_type, "digest": target.digest, "size": target.size});
        if let Some(name) = name {
            entry["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or("latest"),
            });
        }
        entry
    };
    let entries: Vec<Value> = match names {
        [] => vec![entry(None)],
        names => names.iter().map(|name| entry(Some(name))).collect(),
    };
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
}

/// `manifest.json`, of docker.
fn manifests(parts: &Parts, names: &[ImageRef]) -> Value {
    let path = |blob: &Value| format!("blobs/{}", blob["digest"].as_str().unwrap_or_default().replacen(':', "/", 1));
    let names: Vec<String> = names.iter().map(ImageRef::familiar).collect();
    let entry = |manifest: &Value| {
        let layers: Vec<String> = manifest["layers"].as_array().into_iter().flatten().map(path).collect();
        json!({"Config": path(&manifest["config"]), "RepoTags": names, "Layers": layers})
    };
    parts.manifests.iter().map(entry).collect()
}

/// The facts of a file in an archive: of nobody, at no time.
fn plain() -> io::Result<FileStat> {
    let mut stat = nix::sys::stat::stat("/")?;
    stat.st_mode = nix::libc::S_IFREG | 0o644;
    (stat.st_uid, stat.st_gid, stat.st_size) = (0, 0, 0);
    (stat.st_mtime, stat.st_mtime_nsec) = (0, 0);
    Ok(stat)
}

/// A blob that is read by a thread.
struct Blob<'a> {
    runtime: &'a Handle,
    stream: tonic::Streaming<ReadContentResponse>,
    piece: Bytes,
    read_bytes: u64,
}

impl<'a> Blob<'a> {
    fn open(runtime: &'a Handle, client: &Client, digest: &str) -> io::Result<Self> {
        let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
        // Moves at the pace of the client.
        let client = {
            let _inside = runtime.enter();
            client.apart()
        };
        let answer = runtime.block_on(async move { client.content().read(request).await });
        let stream = answer.map_err(|error| io::Error::other(SupervisorError::from(error)))?.into_inner();
        Ok(Self { runtime, stream, piece: Bytes::new(), read_bytes: 0 })
    }
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            let next = self.runtime.block_on(self.stream.message());
            match next.map_err(|error| io::Error::other(SupervisorError::from(error)))? {
                Some(answer) => self.piece = Bytes::from(answer.data),
                None => return Ok(0),
            }
        }
        let taken = self.piece.split_to(self.piece.len().min(buffer.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        self.read_bytes += taken.len() as u64;
        Ok(taken.len())
    }
}
