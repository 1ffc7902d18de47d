//! Image store -> archive: an OCI layout with docker's `manifest.json` and `repositories` in it, so that readers of both
//! kinds, old and new, can load it. What is in it is decided first; then each blob is copied once, whoever needs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use proto::{
    containerd::types::transfer::{ImageExportStream, ImageStore},
    digest::Digest,
    image_ref::ImageRef,
};
use serde_json::json;
use tar::{EntryType, Header};

use super::{Context, TransferError, fetch::DEPTH, streams::StreamWriter};
use crate::{
    content::ContentError,
    images::{
        Record,
        manifest::{Descriptor, Document, Index, MANIFEST_LIMIT, Manifest, Platform},
    },
};

const BLOCK: u64 = 512;

/// Which platforms of an image go into the archive.
enum Platforms {
    /// Every one that is here.
    All,
    /// These; each must be here.
    These(Vec<Platform>),
    /// This machine's; another one if that is all there is.
    Usual,
}

impl Platforms {
    fn of(from: &ImageStore, to: &ImageExportStream) -> Self {
        let these = if to.platforms.is_empty() { &from.platforms } else { &to.platforms };
        match (to.all_platforms, these.is_empty()) {
            (true, _) => Self::All,
            (false, false) => Self::These(these.iter().cloned().map(Platform::from_proto).collect()),
            (false, true) => Self::Usual,
        }
    }
}

/// A manifest of which everything is here.
struct Complete {
    descriptor: Descriptor,
    manifest: Manifest,
}

/// What goes into the archive.
#[derive(Default)]
struct Plan {
    blobs: BTreeSet<Digest>,
    index: Vec<Descriptor>,
    // By manifest: docker knows nothing of indexes.
    docker: BTreeMap<Digest, (Manifest, Vec<ImageRef>)>,
}

impl Context {
    /// Writes the images named in `from` to the client's stream. A name may be a digest, of a manifest, an index or a
    /// configuration: the image then has no name in the archive.
    pub(super) async fn export(self, from: ImageStore, to: ImageExportStream) -> Result<(), TransferError> {
        let stream = self.streams.take(&self.namespace, &to.stream).await?;
        let platforms = Platforms::of(&from, &to);
        self.patiently(move |this| {
            let operation = this.lease()?;
            let mut names = from.export_images.clone();
            if names.is_empty() && !from.name.is_empty() {
                names.push(from.name.clone());
            }
            if names.is_empty() {
                return Err(TransferError::Invalid("no image to export was named".into()));
            }
            let mut plan = Plan::default();
            for name in &names {
                let (record, name) = this.exported(name)?;
                let target = this.with_layers(&operation, &record.target)?;
                this.plan_image(&mut plan, name, &target, &platforms)?;
            }
            let mut out = StreamWriter::new(stream);
            this.write_archive(&plan, !to.skip_docker_manifest, &mut out)?;
            out.flush().map_err(TransferError::Export)?;
            drop(operation);
            Ok(())
        })
        .await
    }

    // The record of an image, and the name that it has in the archive.
    fn exported<'a>(&self, name: &'a str) -> Result<(Record, Option<&'a str>), TransferError> {
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok((self.stores.images.get(&self.namespace, name)?, Some(name)));
        };
        let records = self.stores.images.list(&self.namespace, &[])?;
        if let Some((_, record)) = records.iter().find(|(_, record)| record.target.digest == digest) {
            return Ok((record.clone(), None));
        }
        for (_, record) in records {
            if self.has_config(&record.target, &digest, DEPTH)? {
                return Ok((record, None));
            }
        }
        Err(crate::images::ImageError::NotFound(name.to_owned()).into())
    }

    fn has_config(&self, at: &Descriptor, config: &Digest, depth: u32) -> Result<bool, TransferError> {
        if depth == 0 || !self.has(at)? {
            return Ok(false);
        }
        match self.document(at)? {
            Document::Manifest(manifest) => Ok(manifest.config.digest == *config),
            Document::Index(index) => {
                for entry in &index.manifests {
                    if self.has_config(entry, config, depth - 1)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    fn has(&self, part: &Descriptor) -> Result<bool, TransferError> {
        match self.stores.content.info(&self.namespace, &part.digest) {
            Ok(_) => Ok(true),
            Err(ContentError::NotFound(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    // Collects the manifests below `at` of which everything is here; gives something that is missing of another.
    fn complete(
        &self,
        at: &Descriptor,
        depth: u32,
        images: &mut Vec<Complete>,
    ) -> Result<Option<Digest>, TransferError> {
        if !self.has(at)? {
            return Ok(Some(at.digest));
        }
        match self.document(at)? {
            Document::Manifest(manifest) => {
                for part in manifest.layers.iter().chain([&manifest.config]) {
                    if !self.has(part)? {
                        return Ok(Some(part.digest));
                    }
                }
                images.push(Complete { descriptor: at.clone(), manifest });
                Ok(None)
            }
            Document::Index(_) if depth == 0 => {
                Err(TransferError::Invalid(format!("{}: indexes are nested too deeply", at.digest)))
            }
            Document::Index(index) => {
                let mut missing = None;
                for entry in &index.manifests {
                    let lacking = self.complete(entry, depth - 1, images)?;
                    missing = missing.or(lacking);
                }
                Ok(missing)
            }
        }
    }

    fn plan_image(
        &self,
        plan: &mut Plan,
        name: Option<&str>,
        target: &Descriptor,
        platforms: &Platforms,
    ) -> Result<(), TransferError> {
        let mut images = Vec::new();
        let missing = self.complete(target, DEPTH, &mut images)?;
        if let (true, Some(digest)) = (images.is_empty(), missing) {
            let name = name.map_or_else(|| target.digest.to_string(), str::to_owned);
            return Err(TransferError::Invalid(format!(
                "image {name} is not complete here: {digest} is missing; pull it again"
            )));
        }
        let choice = Index { manifests: images.iter().map(|image| image.descriptor.clone()).collect() };
        let choose = |platform: &Platform| choice.select(target.digest, platform).map(|chosen| chosen.digest);
        let usual = choose(&Platform::host()).ok().or_else(|| choice.manifests.first().map(|first| first.digest));
        let is_index = choice.manifests.iter().all(|image| image.digest != target.digest);
        let chosen: Vec<Digest> = match platforms {
            Platforms::All if is_index => choice.manifests.iter().map(|image| image.digest).collect(),
            Platforms::All | Platforms::Usual => usual.into_iter().collect(),
            Platforms::These(these) if is_index => these.iter().map(choose).collect::<Result<_, _>>()?,
            Platforms::These(these) => {
                self.check_platform(&images, these)?;
                usual.into_iter().collect()
            }
        };
        let mut annotations = BTreeMap::new();
        let parsed = name.and_then(|name| name.parse::<ImageRef>().ok()).filter(|parsed| parsed.tag().is_some());
        if let (Some(parsed), Some(name)) = (&parsed, name) {
            annotations.insert("io.containerd.image.name".to_owned(), name.to_owned());
            let tag = parsed.tag().unwrap_or_default().to_owned();
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        }
        let annotated = |at: &Descriptor| Descriptor { annotations: Some(annotations.clone()), ..at.clone() };
        // The index itself only if readers find all of it: many refuse one of which a part is missing.
        if matches!(platforms, Platforms::All) && is_index && missing.is_none() && chosen.len() > 1 {
            self.plan_documents(plan, target, DEPTH)?;
            plan.index.push(annotated(target));
        } else {
            plan.index.extend(choice.manifests.iter().filter(|image| chosen.contains(&image.digest)).map(annotated));
        }
        for image in images.into_iter().filter(|image| chosen.contains(&image.descriptor.digest)) {
            plan.blobs.extend([image.descriptor.digest, image.manifest.config.digest]);
            plan.blobs.extend(image.manifest.layers.iter().map(|layer| layer.digest));
            // Of several platforms one: docker's older readers would take the last for the image.
            let first = usual.filter(|usual| chosen.contains(usual)).or(chosen.first().copied());
            if first == Some(image.descriptor.digest) && image.manifest.config.media_type.contains("image") {
                let (_, names) =
                    plan.docker.entry(image.descriptor.digest).or_insert_with(|| (image.manifest, Vec::new()));
                names.extend(parsed.clone());
            }
        }
        Ok(())
    }

    // Whether the one platform of an image without index is the one that is asked for.
    fn check_platform(&self, images: &[Complete], wanted: &[Platform]) -> Result<(), TransferError> {
        let Some(image) = images.first() else { return Ok(()) };
        let config = image.manifest.config.digest;
        let limit = crate::images::manifest::CONFIG_LIMIT;
        let bytes = self.stores.content.read_all(&self.namespace, &config, limit)?;
        let Ok(actual) = serde_json::from_slice::<Platform>(&bytes) else { return Ok(()) };
        if actual.architecture.is_empty() {
            return Ok(());
        }
        let descriptor = Descriptor { platform: Some(actual), ..image.descriptor.clone() };
        let choice = Index { manifests: vec![descriptor] };
        for platform in wanted {
            choice.select(image.descriptor.digest, platform)?;
        }
        Ok(())
    }

    fn plan_documents(&self, plan: &mut Plan, at: &Descriptor, depth: u32) -> Result<(), TransferError> {
        plan.blobs.insert(at.digest);
        if let (Document::Index(index), true) = (self.document(at)?, depth > 0) {
            index.manifests.iter().try_for_each(|entry| self.plan_documents(plan, entry, depth - 1))?;
        }
        Ok(())
    }

    fn write_archive(&self, plan: &Plan, docker: bool, out: &mut StreamWriter) -> Result<(), TransferError> {
        let failed = TransferError::Export;
        for folder in ["blobs/", "blobs/sha256/"] {
            out.write_all(header(EntryType::Directory, folder, 0o755, 0).as_bytes()).map_err(failed)?;
        }
        // Small documents of the images first: who reads the stream knows early what it is about.
        let index = json!({
            "schemaVersion": 2,
            "mediaType": crate::images::manifest::OCI_INDEX,
            "manifests": plan.index,
        });
        let mut documents = vec![("index.json", index.to_string())];
        if docker {
            documents.extend(docker_documents(plan));
        }
        documents.push(("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()));
        for (name, text) in documents {
            out.write_all(header(EntryType::Regular, name, 0o644, text.len() as u64).as_bytes()).map_err(failed)?;
            out.write_all(text.as_bytes()).map_err(failed)?;
            pad(out, text.len() as u64).map_err(failed)?;
        }
        for digest in &plan.blobs {
            let (mut file, size) = self.stores.content.reader(&self.namespace, digest)?;
            let entry = header(EntryType::Regular, &blob_path(digest), 0o644, size);
            out.write_all(entry.as_bytes()).map_err(failed)?;
            if size > MANIFEST_LIMIT {
                let _ = nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
            }
            out.copy(&mut file, size).map_err(|cause| broken(digest, cause))?;
            pad(out, size).map_err(failed)?;
        }
        // Two empty blocks end an archive.
        out.write_all(&[0; 2 * BLOCK as usize]).map_err(failed)
    }
}

fn broken(digest: &Digest, cause: std::io::Error) -> TransferError {
    if cause.kind() == std::io::ErrorKind::BrokenPipe {
        return TransferError::Export(cause);
    }
    ContentError::Io { what: format!("read blob {digest}"), cause }.into()
}

/// `manifest.json`, and `repositories` for those that came before it.
fn docker_documents(plan: &Plan) -> Vec<(&'static str, String)> {
    let mut repositories = BTreeMap::<String, BTreeMap<&str, String>>::new();
    let mut images = Vec::new();
    for (manifest, names) in plan.docker.values() {
        let tags: BTreeSet<_> = names.iter().map(ImageRef::familiar).collect();
        let layers: Vec<_> = manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect();
        images.push(json!({
            "Config": blob_path(&manifest.config.digest),
            "RepoTags": if tags.is_empty() { None } else { Some(tags) },
            "Layers": layers,
        }));
        let top = manifest.layers.last().map_or(manifest.config.digest, |layer| layer.digest);
        for name in names {
            let tags = repositories.entry(name.familiar_repository()).or_default();
            tags.insert(name.tag().unwrap_or_default(), top.hex());
        }
    }
    let mut documents = vec![("manifest.json", json!(images).to_string())];
    if !repositories.is_empty() {
        documents.push(("repositories", json!(repositories).to_string()));
    }
    documents
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn pad(out: &mut impl Write, size: u64) -> std::io::Result<()> {
    let rest = (size.next_multiple_of(BLOCK) - size) as usize;
    out.write_all(&[0; BLOCK as usize][..rest])
}

// No times and no owners: the same images give the same archive.
fn header(kind: EntryType, path: &str, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    // Our own names, none of them longer than a header takes.
    header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    header
}
