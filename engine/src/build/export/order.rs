//! What a client wants done with a result: its words (`type=image,name=…`) become an image, an archive or a folder.

use super::{
    archive::{Layout, archive},
    image::{ExportError, Exported, Options, Part, image},
    tar,
};
use crate::{
    build::{
        error::BuildError,
        frontend::parse_bool,
        running::References,
        tree::Tree,
        work::Results,
        worker::whole::{Whole, internal},
    },
    images::platform::Platform,
};
use base64::Engine as _;
use bytes::Bytes;
use futures_util::Stream;
use proto::{image_ref::ImageRef, kind::ErrorKind, moby::buildkit::v1::Exporter};
use serde_json::json;
use solver::Step;
use std::{collections::BTreeMap, io, os::fd::AsRawFd as _, path::PathBuf};

/// One output of a build.
pub struct Order<'a> {
    /// Who made it.
    pub whole: &'a Whole,
    /// Its place among the outputs.
    pub index: u32,
    /// What is wanted.
    pub exporter: &'a Exporter,
    /// What was made.
    pub results: &'a Results,
    /// Whose it is.
    pub step: &'a Step,
}

type Told = BTreeMap<String, String>;

/// Attributes that change nothing here: what they ask for is so, or they are the client's own.
const GRANTED: &[&str] =
    &["unpack", "store", "name-canonical", "dest", "tar", "context", "buildinfo", "attestation-inline"];

impl Order<'_> {
    /// Does it.
    pub async fn run(&self) -> Result<Told, BuildError> {
        match self.exporter.r#type.as_str() {
            "moby" | "image" => self.image().await,
            "oci" => self.archive(Layout::Oci).await,
            "docker" => self.archive(Layout::Docker).await,
            "tar" => {
                let stream = tar(&self.trees()).await.map_err(|error| of(&error))?;
                self.send(stream).await?;
                Ok(Told::new())
            }
            "local" => self.folder().await,
            other => Err(BuildError::not_found(format!("exporter {other:?} could not be found"))),
        }
    }

    fn attribute(&self, key: &str) -> Option<&str> {
        self.exporter.attrs.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn flag(&self, key: &str) -> Result<bool, BuildError> {
        // `push` alone means `push=true`.
        let Some(value) = self.exporter.attrs.get(key) else { return Ok(false) };
        let read = if value.is_empty() { Some(true) } else { parse_bool(value) };
        read.ok_or_else(|| BuildError::invalid(format!("non-bool value specified for {key}: {value}")))
    }

    fn names(&self) -> Result<Vec<ImageRef>, BuildError> {
        let names =
            self.attribute("name").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        names
            .map(|name| {
                let read = name.parse::<ImageRef>().map(ImageRef::with_default_tag);
                read.map_err(|error| BuildError::invalid(format!("failed to parse {name}: {error}")))
            })
            .collect()
    }

    fn is_multi(&self) -> bool {
        matches!(self.results.outcome.references, References::Many(_))
    }

    /// The filesystems; of a single platform without name.
    fn trees(&self) -> Vec<(String, Tree)> {
        let scratch = || self.whole.trees.scratch();
        let trees = self.results.trees.iter().map(|(name, tree)| {
            let name = if self.is_multi() { name.replace('/', "_") } else { String::new() };
            (name, tree.clone().unwrap_or_else(scratch))
        });
        trees.collect()
    }

    fn metadata(&self, key: &str, platform: &str) -> Option<Vec<u8>> {
        let metadata = &self.results.outcome.metadata;
        metadata.get(&format!("{key}/{platform}")).or_else(|| metadata.get(key)).cloned()
    }

    fn parts(&self) -> Result<Vec<Part>, BuildError> {
        let mut annotations = BTreeMap::new();
        let mut descriptor_annotations = BTreeMap::new();
        for (key, value) in &self.exporter.attrs {
            let manifest = key.strip_prefix("annotation.").or_else(|| key.strip_prefix("annotation-manifest."));
            if let Some(name) = manifest {
                annotations.insert(name.to_owned(), value.clone());
            } else if let Some(name) = key.strip_prefix("annotation-manifest-descriptor.") {
                descriptor_annotations.insert(name.to_owned(), value.clone());
            }
        }
        let parts = self.results.trees.iter().map(|(name, tree)| {
            let platform = if name.is_empty() {
                Platform::host()
            } else {
                Platform::parse(name).map_err(|error| BuildError::invalid(error.to_string()))?
            };
            let plain = || {
                json!({"architecture": platform.architecture, "os": platform.os, "config": {}}).to_string().into_bytes()
            };
            Ok(Part {
                tree: tree.clone().unwrap_or_else(|| self.whole.trees.scratch()),
                config: self.metadata("containerimage.config", name).unwrap_or_else(plain),
                platform: Some(platform.clone()),
                annotations: annotations.clone(),
                descriptor_annotations: descriptor_annotations.clone(),
            })
        });
        parts.collect()
    }

    /// What is asked for and can't be had is said rather than left out.
    fn check(&self) -> Result<(), BuildError> {
        if self.flag("push")? {
            return Err(BuildError::unsupported(
                "pushing the result of a build is not implemented in berth yet: push the image",
            ));
        }
        for (key, value) in &self.exporter.attrs {
            let known = GRANTED.contains(&key.as_str())
                || key.starts_with("annotation.")
                || key.starts_with("annotation-manifest.")
                || key.starts_with("annotation-manifest-descriptor.")
                || key.starts_with("annotation-index.")
                || matches!(
                    key.as_str(),
                    "name" | "oci-mediatypes" | "push" | "source-date-epoch" | "rewrite-timestamp"
                )
                || (key == "compression" && matches!(value.as_str(), "" | "gzip" | "uncompressed"))
                || (matches!(key.as_str(), "force-compression" | "push-by-digest" | "registry.insecure")
                    && parse_bool(value) == Some(false));
            if !known {
                return Err(BuildError::unsupported(format!(
                    "{key}={value} of exporter {} is not implemented in berth",
                    self.exporter.r#type
                )));
            }
        }
        Ok(())
    }

    async fn make(&self, names: Vec<ImageRef>, unnamed: bool) -> Result<Exported, BuildError> {
        self.check()?;
        let epoch = match self.attribute("source-date-epoch") {
            Some(text) => Some(text.to_owned()),
            None => self.metadata("source.date.epoch", "").and_then(|bytes| String::from_utf8(bytes).ok()),
        };
        let invalid = |text: &str| BuildError::invalid(format!("invalid SOURCE_DATE_EPOCH: {text}"));
        let index = self
            .exporter
            .attrs
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("annotation-index.")?.to_owned(), value.clone())));
        let options = Options {
            names,
            oci: self.flag("oci-mediatypes")? || self.exporter.r#type == "oci",
            index: self.is_multi(),
            index_annotations: index.collect(),
            epoch: epoch.map(|text| text.parse().map_err(|_| invalid(&text))).transpose()?,
            rewrite: self.flag("rewrite-timestamp")?,
            unnamed,
        };
        let parts = self.parts()?;
        image(&self.whole.app.images, &self.whole.trees, &parts, &options).await.map_err(|error| of(&error))
    }

    fn told(exported: &Exported, names: &[ImageRef]) -> Told {
        let target = &exported.target;
        let descriptor = json!({"mediaType": target.media_type, "digest": target.digest, "size": target.size});
        let mut told = Told::from([
            ("containerimage.digest".to_owned(), target.digest.clone()),
            ("containerimage.config.digest".to_owned(), exported.id.to_string()),
            (
                "containerimage.descriptor".to_owned(),
                base64::engine::general_purpose::STANDARD.encode(descriptor.to_string()),
            ),
        ]);
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            told.insert("image.name".to_owned(), names.join(","));
        }
        told
    }

    async fn image(&self) -> Result<Told, BuildError> {
        let names = self.names()?;
        let exported = self.make(names.clone(), false).await?;
        let told = Self::told(&exported, &names);
        exported.lease.give_back().await;
        Ok(told)
    }

    async fn archive(&self, layout: Layout) -> Result<Told, BuildError> {
        let names = self.names()?;
        let exported = self.make(names.clone(), true).await?;
        let told = Self::told(&exported, &names);
        let stream = archive(exported, &names, layout).await.map_err(|error| of(&error))?;
        self.send(stream).await?;
        Ok(told)
    }

    async fn send(&self, stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Result<(), BuildError> {
        let session = self.session().await?;
        let sent = session.export_file(self.index, &Told::new(), stream).await;
        sent.map_err(|error| BuildError::of(error.kind(), &error))
    }

    async fn folder(&self) -> Result<Told, BuildError> {
        let trees = self.trees();
        let [(_, tree)] = trees.as_slice() else {
            return Err(BuildError::unsupported(
                "type=local for several platforms is not implemented in berth yet: use type=tar",
            ));
        };
        let root = tree.open().await.map_err(|error| internal(&error))?;
        // Nobody else's way to a root that is mounted nowhere.
        let path = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        let session = self.session().await?;
        let sent = session.export_folder(self.index, &Told::new(), &path, &filesync::send::Filter::default()).await;
        sent.map_err(|error| BuildError::of(error.kind(), &error))?;
        Ok(Told::new())
    }

    async fn session(&self) -> Result<crate::build::session::Session, BuildError> {
        let id = self.step.sessions.first();
        let id = id.ok_or_else(|| BuildError::invalid("a result for the client needs a session of the client's"))?;
        let found = self.whole.app.sessions.find(id).await;
        found.map_err(|error| BuildError::of(error.kind(), &error))
    }
}

fn of(error: &ExportError) -> BuildError {
    let kind = match error {
        ExportError::Invalid(_) => ErrorKind::InvalidArgument,
        ExportError::Image(error) => error.kind(),
        ExportError::Tree(_) | ExportError::Supervisor { .. } | ExportError::Write { .. } => ErrorKind::Internal,
    };
    BuildError::of(kind, error)
}
