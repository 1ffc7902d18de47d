//! Reads an image archive as it streams in: what looks like a part of an image becomes a blob, and what the archive says
//! about images is found in a few small documents, wherever in the stream they are: `manifest.json` (docker since 1.10),
//! `index.json` (OCI layout), `repositories` with `ID/json` (docker before that).

mod paths;
mod pending;

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read},
};

use proto::digest::Digest;
use serde::Deserialize;

pub(super) use self::paths::Paths;
use self::pending::Pending;
use super::{Context, Operation, TransferError};
use crate::{
    content::ContentError,
    images::manifest::{Descriptor, Index, MANIFEST_LIMIT},
    layers::{
        LayerError,
        decompress::{Compression, decompressed},
        tar::{Entry, Kind, TarError, TarReader},
    },
    leases::unique,
};

/// Entries that an archive may have; real ones have a few per layer.
const ENTRIES: usize = 100_000;
/// Files of no known name that are stored before a document of an image has come by. More is some other archive, say the
/// root of a file system, which nobody wants in the content store file by file.
const UNKNOWN: usize = 64;
/// What `ID/json` files may take in memory, all of them.
const LEGACY_LIMIT: usize = 4 << 20;
const CHUNK: usize = 1 << 20;

/// A file of the archive, now a blob.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    /// Its digest.
    pub(super) digest: Digest,
    /// Its size.
    pub(super) size: u64,
    /// How it is compressed, by its first bytes.
    pub(super) compression: Compression,
}

/// What an archive holds.
#[derive(Debug, Default)]
pub(super) struct Archive {
    /// Its files and links.
    pub(super) paths: Paths<Blob>,
    /// Images as docker describes them.
    pub(super) docker: Vec<DockerImage>,
    /// Images as an OCI layout describes them.
    pub(super) index: Option<Index>,
    /// Images as docker described them before 1.10.
    pub(super) legacy: Legacy,
}

/// Documents of docker's oldest format.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// Repository, tag, layer.
    pub(super) repositories: BTreeMap<String, BTreeMap<String, String>>,
    /// `ID/json` by id. Newer archives have it too, for old readers.
    pub(super) layers: HashMap<String, Vec<u8>>,
    bytes: usize,
    /// Not all of them were kept.
    pub(super) too_big: bool,
}

/// One entry of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    /// Path of the configuration.
    pub(super) config: String,
    /// Names.
    pub(super) repo_tags: Option<Vec<String>>,
    /// Paths of the layers, lowest first.
    pub(super) layers: Option<Vec<String>>,
}

impl Archive {
    /// The blob at a path of the archive, links followed.
    pub(super) fn find(&self, path: &str) -> Result<Blob, TransferError> {
        self.paths.find(path).copied().ok_or_else(|| TransferError::Archive(format!("{path:?} is missing in it")))
    }

    /// The blob of a digest, if the archive brought it along.
    pub(super) fn blob(&self, digest: &Digest) -> Option<Blob> {
        self.paths.find(&format!("blobs/sha256/{}", digest.hex())).copied()
    }

    fn is_described(&self) -> bool {
        !self.docker.is_empty() || self.index.is_some() || !self.legacy.repositories.is_empty()
    }

    // Takes a document into account; the file is one if its name says so.
    fn document(&mut self, path: &str, entry: &Entry, tar: &mut impl Read) -> Result<bool, TransferError> {
        match path {
            "manifest.json" => self.docker = json(&small(tar, entry.size, path)?, path)?,
            "index.json" => self.index = Some(json(&small(tar, entry.size, path)?, path)?),
            "repositories" => self.legacy.repositories = json(&small(tar, entry.size, path)?, path)?,
            "oci-layout" => drop(small(tar, entry.size, path)?),
            _ => match path.split_once('/') {
                Some((id, "json")) => self.legacy.take(id, &small(tar, entry.size, path)?),
                Some((_, "VERSION")) => {}
                _ => return Ok(false),
            },
        }
        Ok(true)
    }
}

impl Legacy {
    fn take(&mut self, id: &str, json: &[u8]) {
        self.bytes += json.len();
        self.too_big |= self.bytes > LEGACY_LIMIT;
        if self.too_big {
            self.layers.clear(); // wanted only if nothing else describes the images
        } else {
            self.layers.insert(id.to_owned(), json.to_vec());
        }
    }
}

impl Context {
    /// Reads the whole archive; what is in it stays under the operation's lease.
    pub(super) fn read_archive(
        &self,
        operation: &Operation,
        stream: impl Read + Send,
    ) -> Result<Archive, TransferError> {
        let unreadable = |error| match error {
            LayerError::Compression(name) => TransferError::Archive(format!(
                "its compression {name} is not supported, only gzip, zstd, xz and bzip2"
            )),
            other => other.into(),
        };
        let (input, _) = decompressed(stream).map_err(unreadable)?;
        let mut tar = TarReader::new(input);
        let mut archive = Archive::default();
        let (mut entries, mut unknown) = (0, 0);
        let mut room = Room { buffer: vec![0; CHUNK], pending: Pending::default() };
        let no_image = || {
            let what = "neither manifest.json nor repositories (docker) nor index.json (OCI layout) is in it";
            TransferError::Archive(what.into())
        };
        while let Some(entry) = tar.next_entry().map_err(torn)? {
            entries += 1;
            if entries > ENTRIES {
                return Err(TransferError::Archive(format!("it has more than {ENTRIES} entries")));
            }
            let shown = String::from_utf8_lossy(&entry.path).into_owned();
            let escapes = || TransferError::Archive(format!("its entry {shown:?} leads out of it; nothing was loaded"));
            let Some(path) = paths::entry_name(&entry.path).map_err(|()| escapes())? else { continue };
            match &entry.kind {
                Kind::File => {
                    if archive.document(&path, &entry, &mut tar)? {
                        continue;
                    }
                    unknown += usize::from(!paths::is_usual(&path));
                    if unknown > UNKNOWN && !archive.is_described() {
                        return Err(no_image());
                    }
                    let blob = self.store_file(operation, &path, entry.size, &mut tar, &mut room)?;
                    archive.paths.file(path, blob);
                }
                Kind::Symlink(target) => archive.paths.symlink(path, target),
                Kind::HardLink(target) => archive.paths.hard_link(path, target),
                _ => {}
            }
        }
        tar.drain().map_err(torn)?;
        room.pending.finish()?;
        if !archive.is_described() {
            return Err(no_image());
        }
        Ok(archive)
    }

    fn store_file(
        &self,
        operation: &Operation,
        path: &str,
        size: u64,
        data: &mut (impl Read + Send),
        room: &mut Room,
    ) -> Result<Blob, TransferError> {
        let expected = path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        let read = fill(data, &mut room.buffer).map_err(|error| broken(path, error))?;
        let unreadable = |error| match error {
            LayerError::Compression(name) => {
                TransferError::Archive(format!("{path:?} has the compression {name}, which is not supported"))
            }
            other => other.into(),
        };
        let compression = Compression::of(&room.buffer[..read]).map_err(unreadable)?;
        if expected.is_none() && matches!(compression, Compression::Xz | Compression::Bzip2) {
            // No media type stands for these: such a layer is kept uncompressed, as whoever reads it next expects.
            let whole = io::Cursor::new(room.buffer[..read].to_vec()).chain(data);
            let (mut plain, _) = decompressed(whole).map_err(unreadable)?;
            let read = fill(&mut plain, &mut room.buffer).map_err(|error| broken(path, error))?;
            return self.store(operation, path, Expected::default(), Compression::Plain, &mut plain, room, read);
        }
        self.store(operation, path, Expected { digest: expected, size }, compression, data, room, read)
    }

    // The first `read` bytes are in the buffer already.
    #[allow(clippy::too_many_arguments, reason = "one caller's two ways to the same loop")]
    fn store(
        &self,
        operation: &Operation,
        path: &str,
        expected: Expected,
        compression: Compression,
        data: &mut impl Read,
        room: &mut Room,
        mut read: usize,
    ) -> Result<Blob, TransferError> {
        let (content, namespace) = (&self.stores.content, self.namespace.as_str());
        let reference = unique("import");
        let mut writer =
            match content.writer(namespace, &reference, expected.size, expected.digest, Some(&operation.id)) {
                Err(ContentError::Exists(digest)) => {
                    // The rest of it is skipped.
                    let blob = Blob { digest, size: content.info(namespace, &digest)?.size, compression };
                    self.announce("already exists", &blob);
                    return Ok(blob);
                }
                other => other?,
            };
        let mut size = 0;
        let written = loop {
            if read == 0 {
                break Ok(());
            }
            if let Err(error) = writer.write(&room.buffer[..read]) {
                break Err(error.into());
            }
            size += read as u64;
            read = match fill(data, &mut room.buffer) {
                Ok(read) => read,
                Err(error) => break Err(broken(path, error)),
            };
        };
        if let Err(error) = written {
            // Its name is used once: nobody would ever take it up.
            drop(writer);
            let _ = content.abort(namespace, &reference);
            return Err(error);
        }
        let digest = writer.digest();
        if let Some(actual) = expected.digest.filter(|expected| *expected != digest).map(|_| digest) {
            writer.abort()?;
            return Err(TransferError::Archive(format!(
                "{path:?} in it is damaged: its bytes have the digest {actual}"
            )));
        }
        room.pending.commit(writer, size)?;
        let blob = Blob { digest, size, compression };
        self.announce("complete", &blob);
        Ok(blob)
    }

    fn announce(&self, event: &str, blob: &Blob) {
        self.progress.blob(event, &Descriptor::new("", blob.digest, blob.size), blob.size);
    }
}

/// What one file after another needs.
struct Room {
    buffer: Vec<u8>,
    pending: Pending,
}

/// What is known of a file before it is read: nothing, if the size is 0.
#[derive(Default)]
struct Expected {
    digest: Option<Digest>,
    size: u64,
}

fn torn(error: TarError) -> TransferError {
    match error {
        TarError::Read(cause) if cause.kind() != io::ErrorKind::ConnectionReset => {
            TransferError::Archive(format!("it is cut short or damaged: {cause}"))
        }
        other => other.into(),
    }
}

fn broken(path: &str, error: io::Error) -> TransferError {
    if error.kind() == io::ErrorKind::ConnectionReset {
        return TransferError::Tar(TarError::Read(error));
    }
    TransferError::Archive(format!("{path:?} in it is cut short or damaged: {error}"))
}

/// Reads until the buffer is full or the end is reached.
fn fill(data: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match data.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn small(data: &mut impl Read, size: u64, path: &str) -> Result<Vec<u8>, TransferError> {
    if size > MANIFEST_LIMIT {
        return Err(TransferError::Archive(format!("{path:?} in it is larger than {MANIFEST_LIMIT} bytes")));
    }
    let mut bytes = Vec::new();
    data.take(size).read_to_end(&mut bytes).map_err(|error| broken(path, error))?;
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], path: &str) -> Result<T, TransferError> {
    serde_json::from_slice(bytes).map_err(|error| TransferError::Archive(format!("{path:?} is malformed: {error}")))
}

/// Annotations of an index entry that hold a name.
pub(super) fn annotated_name(annotations: &BTreeMap<String, String>) -> Option<&str> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .find_map(|key| annotations.get(*key))
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}
