//! Reads an image archive as it streams in: every file becomes a blob, and what the archive says about images is found in
//! two small documents, `manifest.json` (docker) and `index.json` (OCI layout), wherever in the stream they are.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
    path::{Component, Path},
};

use proto::digest::Digest;
use serde::Deserialize;

use super::{Context, Operation, TransferError};
use crate::{
    content::ContentError,
    images::manifest::{Descriptor, Index, MANIFEST_LIMIT},
    layers::{
        decompress::{Compression, decompressed},
        tar::{Kind, TarReader},
    },
    leases::unique,
    store::Labels,
};

/// Entries that an archive may have; real ones have a few per layer.
const ENTRIES: usize = 100_000;
/// Steps from link to link; docker's archives have links to layers that repeat.
const LINKS: u32 = 8;

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
    files: HashMap<String, Blob>,
    links: HashMap<String, String>,
    /// Images as docker describes them.
    pub(super) docker: Vec<DockerImage>,
    /// Images as an OCI layout describes them.
    pub(super) index: Option<Index>,
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
        let missing = || TransferError::Archive(format!("{path:?} is missing in it"));
        let mut at = normal(Path::new(path)).ok_or_else(missing)?;
        for _ in 0..LINKS {
            if let Some(blob) = self.files.get(&at) {
                return Ok(*blob);
            }
            at = self.links.get(&at).ok_or_else(missing)?.clone();
        }
        Err(missing())
    }

    /// Whether the archive brought a blob along.
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.files.contains_key(&format!("blobs/sha256/{}", digest.hex()))
    }
}

impl Context {
    /// Reads the whole archive; what is in it stays under the operation's lease.
    pub(super) fn read_archive(
        &self,
        operation: &Operation,
        stream: impl Read + Send,
    ) -> Result<Archive, TransferError> {
        let (input, _) = decompressed(stream).map_err(|error| match error {
            crate::layers::LayerError::Compression(name) => {
                TransferError::Archive(format!("compression {name} is not supported, only gzip and zstd"))
            }
            other => other.into(),
        })?;
        let mut tar = TarReader::new(input);
        let mut archive = Archive::default();
        let mut is_layout = false;
        while let Some(entry) = tar.next_entry()? {
            if archive.files.len() + archive.links.len() >= ENTRIES {
                return Err(TransferError::Archive(format!("it has more than {ENTRIES} entries")));
            }
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            // An entry that leads out of the archive is nothing that an image could mean.
            let Some(path) = normal(Path::new(&path)) else { continue };
            match &entry.kind {
                Kind::File if matches!(path.as_str(), "manifest.json" | "index.json" | "oci-layout") => {
                    let bytes = small(&mut tar, entry.size, &path)?;
                    match path.as_str() {
                        "manifest.json" => archive.docker = json(&bytes, &path)?,
                        "index.json" => archive.index = Some(json(&bytes, &path)?),
                        _ => is_layout = true,
                    }
                }
                // Files of docker's oldest format; nothing refers to them.
                Kind::File if path == "repositories" || path.ends_with("/VERSION") || path.ends_with("/json") => {}
                Kind::File => {
                    let blob = self.store_file(operation, &path, entry.size, &mut tar)?;
                    archive.files.insert(path, blob);
                }
                Kind::Symlink(target) | Kind::HardLink(target) => {
                    let target = String::from_utf8_lossy(target);
                    let folder = match entry.kind {
                        Kind::Symlink(_) => Path::new(&path).parent().unwrap_or(Path::new("")),
                        _ => Path::new(""),
                    };
                    if let Some(target) = normal(&folder.join(&*target)) {
                        archive.links.insert(path, target);
                    }
                }
                _ => {}
            }
        }
        tar.drain()?;
        if !is_layout {
            archive.index = None;
        }
        if archive.docker.is_empty() && archive.index.is_none() {
            let what = "neither manifest.json (docker) nor index.json with oci-layout (OCI) is in it";
            return Err(TransferError::Archive(what.into()));
        }
        Ok(archive)
    }

    fn store_file(
        &self,
        operation: &Operation,
        path: &str,
        size: u64,
        data: &mut impl Read,
    ) -> Result<Blob, TransferError> {
        let expected = path.strip_prefix("blobs/sha256/").and_then(|hex| format!("sha256:{hex}").parse().ok());
        let (content, namespace) = (&self.stores.content, self.namespace.as_str());
        let reference = unique("import");
        let broken = |error: std::io::Error| {
            if error.kind() == std::io::ErrorKind::ConnectionReset {
                return TransferError::Tar(crate::layers::tar::TarError::Read(error));
            }
            TransferError::Archive(format!("{path:?} ends early: {error}"))
        };
        let mut chunk = vec![0; (256 << 10).min(usize::try_from(size).unwrap_or(usize::MAX).max(1))];
        let mut head = Vec::new();
        let mut fill = |chunk: &mut [u8]| -> Result<usize, TransferError> {
            let mut filled = 0;
            while filled < chunk.len() {
                match data.read(&mut chunk[filled..]).map_err(broken)? {
                    0 => break,
                    n => filled += n,
                }
            }
            if head.is_empty() {
                head.extend_from_slice(&chunk[..filled.min(8)]);
            }
            Ok(filled)
        };
        let mut writer = match content.writer(namespace, &reference, size, expected, Some(&operation.id)) {
            Err(ContentError::Exists(digest)) => {
                // The bytes of the archive are skipped, but for the first ones.
                fill(&mut chunk)?;
                let compression = Compression::of(&head)?;
                let blob = Blob { digest, size: content.info(namespace, &digest)?.size, compression };
                self.announce("already exists", &blob);
                return Ok(blob);
            }
            other => other?,
        };
        let written = loop {
            match fill(&mut chunk) {
                Ok(0) => break Ok(()),
                Ok(n) => {
                    if let Err(error) = writer.write(&chunk[..n]) {
                        break Err(error.into());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = written {
            // Its name is used once: nobody would ever take it up.
            drop(writer);
            let _ = content.abort(namespace, &reference);
            return Err(error);
        }
        let digest = match writer.commit(size, expected, &Labels::new()) {
            Err(ContentError::Exists(digest)) => digest,
            other => other?,
        };
        let blob = Blob { digest, size, compression: Compression::of(&head)? };
        self.announce("complete", &blob);
        Ok(blob)
    }

    fn announce(&self, event: &str, blob: &Blob) {
        self.progress.blob(event, &Descriptor::new("", blob.digest, blob.size), blob.size);
    }
}

fn small(data: &mut impl Read, size: u64, path: &str) -> Result<Vec<u8>, TransferError> {
    if size > MANIFEST_LIMIT {
        return Err(TransferError::Archive(format!("{path:?} in it is larger than {MANIFEST_LIMIT} bytes")));
    }
    let mut bytes = Vec::new();
    data.take(size)
        .read_to_end(&mut bytes)
        .map_err(|error| TransferError::Tar(crate::layers::tar::TarError::Read(error)))?;
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], path: &str) -> Result<T, TransferError> {
    serde_json::from_slice(bytes).map_err(|error| TransferError::Archive(format!("{path:?} is malformed: {error}")))
}

/// A path without `.` and `..`; `None` if it leads out.
fn normal(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir => drop(parts.pop()?),
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// Annotations of an index entry that hold a name.
pub(super) fn annotated_name(annotations: &BTreeMap<String, String>) -> Option<&str> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .find_map(|key| annotations.get(*key))
        .map(String::as_str)
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, wanted) in [
            ("./a/layer.tar", Some("a/layer.tar")),
            ("/a", Some("a")),
            ("a/../b", Some("b")),
            ("../a", None),
            ("a/../../b", None),
            (".", None),
        ] {
            assert_eq!(normal(Path::new(path)).as_deref(), wanted, "{path}");
        }
    }

    #[test]
    fn links_are_followed_but_not_in_circles() {
        let blob = Blob { digest: Digest::of(b""), size: 0, compression: Compression::Plain };
        let archive = Archive {
            files: [("x/layer.tar".to_owned(), blob)].into(),
            links: [("y".into(), "x/layer.tar".into()), ("a".into(), "b".into()), ("b".into(), "a".into())].into(),
            ..Archive::default()
        };
        assert!(archive.find("y").is_ok() && archive.find("./x/layer.tar").is_ok());
        assert!(archive.find("a").is_err() && archive.find("none").is_err() && archive.find("../y").is_err());
    }
}
