//! Layers that are compressed for a push, and the documents that name them then.

use std::collections::BTreeMap;

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::plan::{Below, Planned};
use crate::{
    content::ContentError,
    images::manifest::{Descriptor, Document},
    store::Labels,
    transfer::{Context, TransferError, compress::gzip},
};

/// The label of an uncompressed layer that names, and keeps, its compressed form.
const COMPRESSED: &str = "containerd.io/gc.ref.content.gzip";
/// containerd's label for the digest of a layer's uncompressed form.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

impl Context {
    pub(super) fn compress(
        &self,
        layer: &Descriptor,
        media_type: String,
        lease: &str,
        meter: &(dyn Fn(u64) + Send + Sync),
        is_wanted: &(dyn Fn() -> bool + Sync),
    ) -> Result<Descriptor, TransferError> {
        let (content, namespace) = (&self.stores.content, &self.namespace);
        let known = content.info(namespace, &layer.digest)?.labels.get(COMPRESSED).cloned();
        if let Some(digest) = known.and_then(|digest| digest.parse::<Digest>().ok())
            && let Ok(info) = content.info(namespace, &digest)
        {
            let resource = crate::leases::Resource { kind: "content".to_owned(), id: digest.to_string() };
            self.stores.leases.add(namespace, lease, &resource)?;
            return Ok(Descriptor { media_type, digest, size: info.size, ..layer.clone() });
        }
        let failed = |cause| TransferError::Compress { layer: layer.digest, cause };
        let (file, _) = content.reader(namespace, &layer.digest)?;
        let mut writer = content.writer(namespace, &format!("compress-{}", layer.digest), 0, None, Some(lease))?;
        // What an earlier one left is made again: it is not known how far it had thought.
        writer.seek(0)?;
        let (mut hasher, mut read) = (Sha256::new(), 0);
        let mut store_failed = None;
        let done = gzip(
            file,
            |piece| {
                hasher.update(piece);
                read += piece.len() as u64;
                meter(read);
            },
            |piece| {
                if !is_wanted() {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                writer.write(piece).map_err(|error| {
                    store_failed = Some(error);
                    std::io::ErrorKind::Other.into()
                })
            },
        );
        if let Err(cause) = done {
            if let Err(left) = writer.abort() {
                tracing::warn!(error = %proto::kind::chain(&left), "half a compressed layer left to the collector");
            }
            return Err(store_failed.map_or_else(|| failed(cause), TransferError::from));
        }
        let actual = Digest::from_bytes(hasher.finalize().into());
        if actual != layer.digest {
            writer.abort()?;
            let why = format!("it is damaged: its digest is {actual} now");
            return Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
        }
        let (digest, size) = (writer.digest(), writer.offset());
        let labels: Labels = [(UNCOMPRESSED.to_owned(), layer.digest.to_string())].into();
        match writer.commit(size, None, &labels) {
            Ok(_) => {}
            Err(ContentError::Exists(_)) => content.add_labels(namespace, &digest, &labels)?,
            Err(error) => return Err(error.into()),
        }
        proto::fault!("supervisor.push.layer_compressed");
        content.add_labels(namespace, &layer.digest, &[(COMPRESSED.to_owned(), digest.to_string())].into())?;
        Ok(Descriptor { media_type, digest, size, ..layer.clone() })
    }

    // Stores a document anew with the descriptors that replace those below it; `renamed` learns old and new digests.
    pub(super) fn rewritten(
        &self,
        planned: &Planned,
        replaced: &BTreeMap<Digest, Descriptor>,
        lease: &str,
        renamed: &mut BTreeMap<Digest, Digest>,
    ) -> Result<Planned, TransferError> {
        let (list, below, new): (_, _, Vec<Option<Descriptor>>) = match &planned.below {
            Below::Nothing => return Ok(planned.clone()),
            Below::Image(manifest) => {
                let new = manifest.layers.iter().map(|layer| replaced.get(&layer.digest).cloned()).collect();
                ("layers", None, new)
            }
            Below::Index(children) => {
                let mut below = Vec::new();
                for child in children {
                    below.push(self.rewritten(child, replaced, lease, renamed)?);
                }
                let differs = |(old, new): (&Planned, &Planned)| {
                    (old.descriptor.digest != new.descriptor.digest).then(|| new.descriptor.clone())
                };
                let new = children.iter().zip(&below).map(differs).collect();
                ("manifests", Some(below), new)
            }
        };
        if new.iter().all(Option::is_none) {
            return Ok(planned.clone());
        }
        let malformed = || TransferError::Cut("a manifest that was read can't be written");
        // As it is but for these, with whatever else is in it.
        let mut value: serde_json::Value = serde_json::from_slice(&planned.bytes).map_err(|_| malformed())?;
        let entries = value.get_mut(list).and_then(|list| list.as_array_mut()).ok_or_else(malformed)?;
        for (entry, new) in entries.iter_mut().zip(new) {
            let (Some(new), Some(entry)) = (new, entry.as_object_mut()) else { continue };
            entry.insert("digest".into(), new.digest.to_string().into());
            entry.insert("size".into(), new.size.into());
            entry.insert("mediaType".into(), new.media_type.into());
        }
        let bytes = serde_json::to_vec(&value).map_err(|_| malformed())?;
        let digest = Digest::of(&bytes);
        let document = Document::parse(&bytes, digest, &planned.descriptor.media_type)?;
        self.stores.content.put(&self.namespace, &bytes, &document.gc_labels(), Some(lease))?;
        renamed.insert(planned.descriptor.digest, digest);
        let descriptor = Descriptor { digest, size: bytes.len() as u64, ..planned.descriptor.clone() };
        let below = match (document, below) {
            (Document::Manifest(manifest), _) => Below::Image(manifest),
            (Document::Index(_), below) => Below::Index(below.unwrap_or_default()),
        };
        Ok(Planned { descriptor, bytes, below })
    }
}

// What an uncompressed layer is once it is compressed; `None` if it isn't one.
pub(super) fn compressed_type(media_type: &str) -> Option<String> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" => Some(format!("{media_type}+gzip")),
        crate::images::manifest::DOCKER_LAYER => Some(format!("{media_type}.gzip")),
        _ => None,
    }
}
