//! Archive -> image store: docker-archive and OCI layout, one or several images.
//!
//! docker's archives have no manifests; ours are made from the bytes as they are in the archive, so that the digest of the
//! configuration, which is docker's image id, stays what it was. An image without a name is recorded as `import@DIGEST`
//! with the label `berth.untagged`.

use std::sync::Arc;

use proto::{
    containerd::types::transfer::{ImageImportStream, ImageReference, ImageStore},
    image_ref::ImageRef,
};
use serde_json::json;

use super::{
    Context, Operation, TransferError,
    archive::{Archive, DockerImage, annotated_name},
    fetch::{DEPTH, Wanted},
    streams::StreamReader,
};
use crate::{
    images::manifest::{DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Document, Manifest},
    layers::decompress::Compression,
    store::Labels,
};

/// Label of images that have no name of their own.
pub(super) const UNTAGGED: &str = "berth.untagged";

/// An image of an archive.
struct Found {
    target: Descriptor,
    // The manifest to unpack.
    manifest: Manifest,
    names: Vec<String>,
}

impl Context {
    /// Reads an archive from the client's stream and records what is in it.
    pub(super) async fn import(self, from: ImageImportStream, to: &ImageStore) -> Result<(), TransferError> {
        let wanted = Wanted::by(to, &self.stores.snapshots)?;
        let stream = self.streams.take(&self.namespace, &from.stream).await?;
        let (operation, found) = {
            let (wanted, naming) = (wanted.clone(), Naming::by(to));
            self.blocking(move |this| {
                let operation = this.lease()?;
                let archive = this.read_archive(&operation, StreamReader::new(stream))?;
                let found = this.images_of(&operation, &archive, &wanted, &naming)?;
                Ok((operation, found))
            })
            .await?
        };
        let operation = Arc::new(operation);
        let labels: Labels = to.labels.clone().into_iter().collect();
        for image in found {
            if !wanted.unpack.is_empty() {
                self.unpack_image(&operation, &image.manifest, &wanted.unpack).await?;
            }
            let labels = labels.clone();
            self.blocking(move |this| {
                if image.names.is_empty() {
                    let mut labels = labels.clone();
                    labels.insert(UNTAGGED.into(), "true".into());
                    return this.record_image(&format!("import@{}", image.target.digest), &image.target, &labels);
                }
                image.names.iter().try_for_each(|name| this.record_image(name, &image.target, &labels))
            })
            .await?;
        }
        Ok(())
    }

    fn images_of(
        &self,
        operation: &Operation,
        archive: &Archive,
        wanted: &Wanted,
        naming: &Naming,
    ) -> Result<Vec<Found>, TransferError> {
        let mut found = Vec::new();
        match &archive.index {
            Some(index) => {
                for descriptor in &index.manifests {
                    if !archive.has(&descriptor.digest) {
                        let digest = descriptor.digest;
                        return Err(TransferError::Archive(format!(
                            "its index names {digest}, which is missing in it"
                        )));
                    }
                    let mut target = descriptor.clone();
                    let annotations = target.annotations.take().unwrap_or_default();
                    let Some(manifest) = self.choose(&target, wanted)? else { continue };
                    let names: Vec<String> =
                        annotated_name(&annotations).and_then(|name| naming.name(name)).into_iter().collect();
                    // The same image under several names is in the index several times.
                    match found.iter_mut().find(|known: &&mut Found| known.target.digest == target.digest) {
                        Some(known) => known.names.extend(names),
                        None => found.push(Found { target, manifest, names }),
                    }
                }
                self.names_from_docker(archive, naming, &mut found)?;
            }
            None => {
                for image in &archive.docker {
                    found.push(self.docker_image(operation, archive, image, naming)?);
                }
            }
        }
        if let [only] = found.as_mut_slice() {
            only.names.extend(naming.only.iter().cloned());
        }
        if naming.with_digest {
            for image in &mut found {
                let digest = image.target.digest;
                let names = image.names.iter().filter_map(|name| name.parse::<ImageRef>().ok());
                let more: Vec<_> = names.map(|name| name.with_digest(digest).to_string()).collect();
                image.names.extend(more);
            }
        }
        for image in &mut found {
            image.names.sort();
            image.names.dedup();
        }
        if found.is_empty() {
            return Err(TransferError::Archive(format!("no image for {} is in it", wanted.platform)));
        }
        Ok(found)
    }

    // The manifest of an index entry for the platform; `None` for what is no image (attestations and other artifacts).
    fn choose(&self, target: &Descriptor, wanted: &Wanted) -> Result<Option<Manifest>, TransferError> {
        let mut descriptor = target.clone();
        for _ in 0..DEPTH {
            match self.document(&descriptor)? {
                Document::Manifest(manifest) => return Ok(Some(manifest)),
                Document::Index(index) => {
                    descriptor = index.select(descriptor.digest, &wanted.platform)?.clone();
                }
            }
        }
        Err(TransferError::Archive(format!("{}: indexes are nested too deeply", target.digest)))
    }

    // docker and ctr put both documents into one archive; the tags may be in only one of them.
    fn names_from_docker(&self, archive: &Archive, naming: &Naming, found: &mut [Found]) -> Result<(), TransferError> {
        for image in &archive.docker {
            let config = archive.find(&image.config)?.digest;
            for known in found.iter_mut().filter(|known| known.manifest.config.digest == config) {
                if known.names.is_empty() {
                    let tags = image.repo_tags.iter().flatten();
                    known.names.extend(tags.filter_map(|tag| naming.name(tag)));
                }
            }
        }
        Ok(())
    }

    fn docker_image(
        &self,
        operation: &Operation,
        archive: &Archive,
        image: &DockerImage,
        naming: &Naming,
    ) -> Result<Found, TransferError> {
        let config = archive.find(&image.config)?;
        let mut layers = Vec::new();
        for path in image.layers.iter().flatten() {
            let blob = archive.find(path)?;
            let media_type = match blob.compression {
                Compression::Plain => DOCKER_LAYER.to_owned(),
                Compression::Gzip => format!("{DOCKER_LAYER}.gzip"),
                Compression::Zstd => format!("{DOCKER_LAYER}.zstd"),
            };
            layers.push(Descriptor::new(&media_type, blob.digest, blob.size));
        }
        let manifest = Manifest { config: Descriptor::new(DOCKER_CONFIG, config.digest, config.size), layers };
        let bytes = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": manifest.config,
            "layers": manifest.layers,
        }))
        .map_err(|error| TransferError::Archive(error.to_string()))?;
        // Reads the configuration too: what isn't one is refused before anything is recorded.
        self.config(&manifest, &[])?.check(&manifest)?;
        let labels = Document::Manifest(manifest.clone()).gc_labels();
        let digest = self.stores.content.put(&self.namespace, &bytes, &labels, Some(&operation.id))?;
        let target = Descriptor::new(DOCKER_MANIFEST, digest, bytes.len() as u64);
        let names = image.repo_tags.iter().flatten().filter_map(|tag| naming.name(tag)).collect();
        Ok(Found { target, manifest, names })
    }
}

/// How images of an archive are named.
struct Naming {
    // For the one image of an archive.
    only: Vec<String>,
    // In front of bare tags.
    prefix: Option<String>,
    with_digest: bool,
}

impl Naming {
    fn by(store: &ImageStore) -> Self {
        let mut naming = Self { only: Vec::new(), prefix: None, with_digest: false };
        if !store.name.is_empty() {
            naming.only.push(store.name.clone());
        }
        for ImageReference { name, is_prefix, add_digest, .. } in &store.extra_references {
            naming.with_digest |= add_digest;
            match (is_prefix, name.is_empty()) {
                (_, true) => {}
                (true, _) => naming.prefix = Some(name.clone()),
                (false, _) => naming.only.push(name.clone()),
            }
        }
        naming
    }

    // The complete name for one of an archive; a bare tag (`1.0`) needs a prefix. What isn't a name gives none.
    fn name(&self, text: &str) -> Option<String> {
        if !text.contains(['/', ':', '@']) {
            // `latest` in an OCI layout is a tag; docker always writes `name:tag`.
            let prefix = self.prefix.as_ref()?;
            return format!("{prefix}:{text}").parse::<ImageRef>().ok().map(|name| name.to_string());
        }
        text.parse::<ImageRef>().ok().map(|name| name.with_default_tag().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let mut naming = Naming::by(&ImageStore::default());
        assert_eq!(naming.name("nginx:1").as_deref(), Some("docker.io/library/nginx:1"));
        assert_eq!(naming.name("reg.example/a").as_deref(), Some("reg.example/a:latest"));
        assert_eq!(naming.name("latest"), None);
        assert_eq!(naming.name("<none>:<none>"), None);
        naming.prefix = Some("reg.example/app".into());
        assert_eq!(naming.name("1.0").as_deref(), Some("reg.example/app:1.0"));
    }
}
