//! Archive -> image store: docker-archive (also of the oldest kind) and OCI layout, one or several images, all the platforms
//! that are in it.
//!
//! docker's archives have no manifests; ours are made from the bytes as they are in the archive, so that the digest of the
//! configuration, which is docker's image id, stays what it was. An image without a name is recorded as `import@DIGEST`
//! with the label `berth.untagged`.

mod legacy;

use std::sync::Arc;

use proto::{
    containerd::types::transfer::{ImageImportStream, ImageReference, ImageStore},
    digest::Digest,
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
    images::manifest::{
        DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, Descriptor, Document, Index, MANIFEST_LIMIT, Manifest,
    },
    layers::decompress::Compression,
    store::Labels,
};

/// Label of images that have no name of their own.
pub(super) const UNTAGGED: &str = "berth.untagged";

/// An image of an archive.
struct Found {
    target: Descriptor,
    // The manifest to unpack; none of an artifact that is no image.
    manifest: Option<Manifest>,
    // Of every platform that came along.
    configs: Vec<Digest>,
    names: Vec<String>,
}

impl Context {
    /// Reads an archive from the client's stream and records what is in it.
    pub(super) async fn import(self, from: ImageImportStream, to: &ImageStore) -> Result<(), TransferError> {
        let wanted = Wanted::by(to, &self.stores.snapshots)?;
        let stream = self.streams.take(&self.namespace, &from.stream).await?;
        let (operation, found) = {
            let (wanted, naming) = (wanted.clone(), Naming::by(to));
            self.patiently(move |this| {
                let operation = this.lease()?;
                let archive = this.read_archive(&operation, StreamReader::new(stream))?;
                let found = this.images_of(&operation, &archive, &wanted, &naming)?;
                Ok((operation, found))
            })
            .await?
        };
        let operation = Arc::new(operation);
        let labels: Labels = to.labels.clone().into_iter().collect();
        // Names come last: of an archive with one bad image nothing is seen.
        for manifest in found.iter().filter_map(|image| image.manifest.as_ref()) {
            if !wanted.unpack.is_empty() {
                self.unpack_image(&operation, manifest, &wanted.unpack).await?;
            }
        }
        for image in found {
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
        for descriptor in archive.index.iter().flat_map(|index| &index.manifests) {
            let mut target = descriptor.clone();
            let annotations = target.annotations.take().unwrap_or_default();
            let names: Vec<String> =
                annotated_name(&annotations).and_then(|name| naming.name(name)).into_iter().collect();
            // The same image under several names is in the index several times.
            match found.iter_mut().find(|known: &&mut Found| known.target.digest == target.digest) {
                Some(known) => known.names.extend(names),
                None => {
                    let (manifest, configs) = self.look_through(archive, &target, wanted)?;
                    found.push(Found { target, manifest, configs, names });
                }
            }
        }
        for image in &archive.docker {
            let config = archive.find(&image.config)?.digest;
            // docker and ctr put both documents into one archive; the tags may be in only one of them.
            match found.iter_mut().find(|known| known.configs.contains(&config)) {
                Some(known) if known.names.is_empty() => {
                    let tags = image.repo_tags.iter().flatten();
                    known.names.extend(tags.filter_map(|tag| naming.name(tag)));
                }
                Some(_) => {}
                None => found.push(self.docker_image(operation, archive, image, naming)?),
            }
        }
        // Newer archives have the old documents too, for old readers.
        if found.is_empty() {
            for image in self.legacy_images(operation, archive)? {
                let names = image.names.iter().filter_map(|name| naming.name(name)).collect();
                found.push(self.made(operation, image.config, &image.layers, names)?);
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
            return Err(TransferError::Archive("no image is in it".into()));
        }
        Ok(found)
    }

    // Everything below an entry of the index that came along, each document with the labels that keep what it points to:
    // the manifest to unpack, and the configurations of all platforms.
    fn look_through(
        &self,
        archive: &Archive,
        target: &Descriptor,
        wanted: &Wanted,
    ) -> Result<(Option<Manifest>, Vec<Digest>), TransferError> {
        let mut images = Vec::new();
        if archive.blob(&target.digest).is_none() {
            let digest = target.digest;
            return Err(TransferError::Archive(format!("its index names {digest}, which is missing in it")));
        }
        let incomplete = self.gather(archive, target, DEPTH, &mut images)?;
        if let (true, Some(missing)) = (images.is_empty(), incomplete) {
            return Err(missing);
        }
        images.retain(|(_, manifest)| manifest.config.media_type.contains("image"));
        let configs = images.iter().map(|(_, manifest)| manifest.config.digest).collect();
        let choice = Index { manifests: images.iter().map(|(descriptor, _)| descriptor.clone()).collect() };
        // One for another platform, if it is all there is: as docker loads it.
        let chosen = choice.select(target.digest, &wanted.platform).map(|chosen| chosen.digest).ok();
        let position = images.iter().position(|(descriptor, _)| Some(descriptor.digest) == chosen);
        let runs = |(descriptor, _): &(Descriptor, Manifest)| {
            descriptor.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
        };
        let position = position.or_else(|| images.iter().position(runs));
        Ok((position.map(|position| images.swap_remove(position).1), configs))
    }

    // Collects the manifests that are complete; gives what is missing of one that isn't.
    fn gather(
        &self,
        archive: &Archive,
        at: &Descriptor,
        depth: u32,
        images: &mut Vec<(Descriptor, Manifest)>,
    ) -> Result<Option<TransferError>, TransferError> {
        let missing = |what: &str, part: &Descriptor| {
            TransferError::Archive(format!("{what} {} of image {} is missing in it", part.digest, at.digest))
        };
        if at.size > MANIFEST_LIMIT {
            return Err(TransferError::Archive(format!(
                "manifest {} in it is larger than {MANIFEST_LIMIT} bytes",
                at.digest
            )));
        }
        match self.document(at)? {
            Document::Manifest(manifest) => {
                for (what, part) in
                    manifest.layers.iter().map(|layer| ("layer", layer)).chain([("configuration", &manifest.config)])
                {
                    // Layers that nobody may pass on are fetched from where they are.
                    let elsewhere = part.media_type.contains("foreign") || part.media_type.contains("nondistributable");
                    match archive.blob(&part.digest) {
                        Some(blob) if blob.size != part.size => {
                            return Err(TransferError::Archive(format!(
                                "{what} {} in it is {} bytes long, the manifest says {}",
                                part.digest, blob.size, part.size
                            )));
                        }
                        None if !elsewhere => return Ok(Some(missing(what, part))),
                        _ => {}
                    }
                }
                images.push((at.clone(), manifest));
                Ok(None)
            }
            Document::Index(_) if depth == 0 => {
                Err(TransferError::Archive(format!("{}: indexes are nested too deeply", at.digest)))
            }
            Document::Index(index) => {
                let mut incomplete = None;
                for entry in &index.manifests {
                    if archive.blob(&entry.digest).is_some() {
                        let lacking = self.gather(archive, entry, depth - 1, images)?;
                        incomplete = incomplete.or(lacking);
                    } else {
                        incomplete = incomplete.or_else(|| Some(missing("manifest", entry)));
                    }
                }
                Ok(incomplete)
            }
        }
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
            layers.push((Descriptor::new("", blob.digest, blob.size), blob.compression));
        }
        let names = image.repo_tags.iter().flatten().filter_map(|tag| naming.name(tag)).collect();
        self.made(operation, Descriptor::new(DOCKER_CONFIG, config.digest, config.size), &layers, names)
    }

    // An image of an archive without manifests gets one.
    fn made(
        &self,
        operation: &Operation,
        config: Descriptor,
        layers: &[(Descriptor, Compression)],
        names: Vec<String>,
    ) -> Result<Found, TransferError> {
        let typed = |(layer, compression): &(Descriptor, Compression)| {
            let media_type = match compression {
                Compression::Plain => DOCKER_LAYER.to_owned(),
                Compression::Gzip => format!("{DOCKER_LAYER}.gzip"),
                Compression::Zstd => format!("{DOCKER_LAYER}.zstd"),
                Compression::Xz => format!("{DOCKER_LAYER}.xz"),
                Compression::Bzip2 => format!("{DOCKER_LAYER}.bzip2"),
            };
            Descriptor::new(&media_type, layer.digest, layer.size)
        };
        let manifest = Manifest { config, layers: layers.iter().map(typed).collect() };
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
        Ok(Found { target, configs: vec![manifest.config.digest], manifest: Some(manifest), names })
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
