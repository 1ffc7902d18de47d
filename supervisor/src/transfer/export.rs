//! Image store -> archive: an OCI layout with docker's `manifest.json` in it, so that both kinds of readers can load it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use proto::{
    containerd::types::transfer::{ImageExportStream, ImageStore},
    digest::Digest,
    image_ref::ImageRef,
};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{
    Context, TransferError,
    fetch::{DEPTH, Wanted},
    streams::StreamWriter,
};
use crate::images::manifest::{Descriptor, Document, Manifest, Platform};

#[derive(Default)]
struct Plan {
    // Everything that goes into the archive, each once.
    blobs: BTreeSet<Digest>,
    index: Vec<Descriptor>,
    docker: BTreeMap<Digest, (Manifest, Vec<String>)>,
}

impl Context {
    /// Writes the images named in `from` to the client's stream.
    pub(super) async fn export(self, from: ImageStore, to: ImageExportStream) -> Result<(), TransferError> {
        let stream = self.streams.take(&self.namespace, &to.stream).await?;
        let platform = to.platforms.first().cloned().map(Platform::from_proto);
        let platform = match platform {
            Some(platform) => platform,
            None => Wanted::by(&from, &self.stores.snapshots)?.platform,
        };
        self.blocking(move |this| {
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
                let target = this.stores.images.get(&this.namespace, name)?.target;
                this.plan_image(&mut plan, name, &target, &platform)?;
            }
            let mut out = StreamWriter::new(stream);
            this.write_archive(&plan, !to.skip_docker_manifest, &mut out)?;
            out.flush().map_err(TransferError::Export)?;
            drop(operation);
            Ok(())
        })
        .await
    }

    // One platform of an image: an archive is for loading elsewhere, and only its blobs are certain to be here.
    fn plan_image(
        &self,
        plan: &mut Plan,
        name: &str,
        target: &Descriptor,
        platform: &Platform,
    ) -> Result<(), TransferError> {
        let mut descriptor = target.clone();
        let mut manifest = None;
        for _ in 0..DEPTH {
            match self.document(&descriptor)? {
                Document::Manifest(found) => {
                    manifest = Some(found);
                    break;
                }
                Document::Index(index) => descriptor = index.select(descriptor.digest, platform)?.clone(),
            }
        }
        let too_deep = || TransferError::Invalid(format!("{name}: indexes are nested too deeply"));
        let manifest = manifest.ok_or_else(too_deep)?;
        plan.blobs.extend([descriptor.digest, manifest.config.digest]);
        plan.blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        let mut annotations = BTreeMap::new();
        let parsed = name.parse::<ImageRef>().ok().filter(|parsed| parsed.tag().is_some());
        if let Some(parsed) = &parsed {
            annotations.insert("io.containerd.image.name".to_owned(), name.to_owned());
            let tag = parsed.tag().unwrap_or_default().to_owned();
            annotations.insert("org.opencontainers.image.ref.name".to_owned(), tag);
        }
        let digest = descriptor.digest;
        plan.index.push(Descriptor { annotations: Some(annotations), ..descriptor });
        let (_, tags) = plan.docker.entry(digest).or_insert_with(|| (manifest, Vec::new()));
        tags.extend(parsed.map(|parsed| parsed.familiar()));
        Ok(())
    }

    fn write_archive(&self, plan: &Plan, docker: bool, out: &mut impl Write) -> Result<(), TransferError> {
        let failed = TransferError::Export;
        let mut tar = Builder::new(out);
        for folder in ["blobs/", "blobs/sha256/"] {
            let mut header = header(EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, folder, io::empty()).map_err(failed)?;
        }
        for digest in &plan.blobs {
            let (file, size) = self.stores.content.reader(&self.namespace, digest)?;
            let mut header = header(EntryType::Regular, 0o644, size);
            tar.append_data(&mut header, blob_path(digest), file.take(size)).map_err(failed)?;
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": crate::images::manifest::OCI_INDEX,
            "manifests": plan.index,
        });
        let images: Vec<_> = plan
            .docker
            .values()
            .map(|(manifest, tags)| {
                json!({
                    "Config": blob_path(&manifest.config.digest),
                    "RepoTags": if tags.is_empty() { None } else { Some(tags) },
                    "Layers": manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect::<Vec<_>>(),
                })
            })
            .collect();
        let mut documents = vec![("index.json", index.to_string())];
        if docker {
            documents.push(("manifest.json", json!(images).to_string()));
        }
        documents.push(("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned()));
        for (name, text) in documents {
            let mut header = header(EntryType::Regular, 0o644, text.len() as u64);
            tar.append_data(&mut header, name, text.as_bytes()).map_err(failed)?;
        }
        tar.finish().map_err(failed)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

// No times and no owners: the same images give the same archive.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}
