//! From what a user typed to an image.

use super::{
    ImageContent, ImageError, Images, Record,
    names::{RecordName, Wanted, missing_name},
};
use crate::http::suggest;
use proto::{digest::Digest, image_ref::ImageRef};
use std::{collections::HashMap, sync::Arc};
use tracing::debug;

/// An image that a user asked for.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Digest of the config: what Docker calls the image's id.
    pub id: Digest,
    /// The name it was found by; none if it was found by its id.
    pub name: Option<ImageRef>,
    /// Manifest or index that the name points to.
    pub target: proto::containerd::types::Descriptor,
    /// Its parts: config, layers, [`ImageContent::chain_id`].
    pub content: Arc<ImageContent>,
}

/// An image with all its names.
#[derive(Debug, Clone)]
pub struct ImageGroup {
    /// Digest of the config.
    pub id: Digest,
    /// Its parts.
    pub content: Arc<ImageContent>,
    /// The records that keep it, at least one.
    pub records: Vec<Record>,
}

impl ImageGroup {
    /// `nginx:1`, sorted.
    pub fn tags(&self) -> Vec<String> {
        let mut tags: Vec<_> = self
            .records
            .iter()
            .filter_map(|record| match &record.kind {
                RecordName::Tagged(reference) => Some(reference.familiar()),
                _ => None,
            })
            .collect();
        tags.sort();
        tags
    }

    /// `nginx@sha256:…` for each repository that it has a name in, sorted.
    pub fn digests(&self) -> Vec<String> {
        let mut digests: Vec<_> = self
            .records
            .iter()
            .filter_map(|record| {
                let reference = record.kind.reference()?;
                Some(format!("{}@{}", reference.familiar_repository(), record.target.digest))
            })
            .collect();
        digests.sort();
        digests.dedup();
        digests
    }

    /// Whether no name is left.
    pub fn is_dangling(&self) -> bool {
        self.records.iter().all(|record| record.kind == RecordName::Dangling)
    }
}

impl Images {
    /// Finds an image by name, digest, id or the unique beginning of an id.
    pub async fn resolve(&self, text: &str) -> Result<ResolvedImage, ImageError> {
        let found = |record: Record, content: Arc<ImageContent>| ResolvedImage {
            id: content.id(),
            name: record.kind.reference().cloned(),
            target: record.target,
            content,
        };
        let wanted = Wanted::parse(text)?;
        // The usual case, without a look at all the others.
        if let Wanted::Name { reference, .. } = &wanted
            && let Some(record) = self.record(&reference.to_string()).await?
        {
            let content = self.content(&record.name, &record.target).await?;
            return Ok(found(record, content));
        }
        let group = self.find(text, &wanted, self.groups().await?)?;
        let by_name = matches!(&wanted, Wanted::Name { reference, .. } if reference.digest().is_some());
        let mut image = group
            .records
            .into_iter()
            .next()
            .map(|record| found(record, group.content))
            .ok_or_else(|| ImageError::NotFound(missing_name(text)))?;
        if !by_name {
            image.name = None;
        }
        Ok(image)
    }

    /// The same with all names of the image.
    pub async fn resolve_group(&self, text: &str) -> Result<ImageGroup, ImageError> {
        let wanted = Wanted::parse(text)?;
        self.find(text, &wanted, self.groups().await?)
    }

    /// All images.
    pub async fn groups(&self) -> Result<Vec<ImageGroup>, ImageError> {
        let mut groups: HashMap<Digest, ImageGroup> = HashMap::new();
        for record in self.records().await? {
            // Half an image (its platform isn't here, a pull by another client isn't over) is no image to docker.
            let content = match self.content(&record.name, &record.target).await {
                Ok(content) => content,
                Err(error @ ImageError::Supervisor { .. }) if error.kind() == proto::kind::ErrorKind::Unavailable => {
                    return Err(error);
                }
                Err(error) => {
                    debug!(record = record.name, error = %proto::kind::chain(&error), "image left out");
                    continue;
                }
            };
            groups
                .entry(content.id())
                .or_insert_with(|| ImageGroup { id: content.id(), content, records: Vec::new() })
                .records
                .push(record);
        }
        Ok(groups.into_values().collect())
    }

    fn find(&self, text: &str, wanted: &Wanted, groups: Vec<ImageGroup>) -> Result<ImageGroup, ImageError> {
        let names: Vec<String> = groups.iter().flat_map(ImageGroup::tags).collect();
        let missing = || {
            let name = missing_name(text);
            let near = suggest::suffix(&name, names.iter().map(String::as_str));
            ImageError::NotFound(format!("{name}{near}"))
        };
        let prefix = match wanted {
            Wanted::Id(id) => {
                // The digest of a manifest or index names an image as well.
                let whole = id.to_string();
                let named = |group: &ImageGroup| group.records.iter().any(|record| record.target.digest == whole);
                return groups.into_iter().find(|group| group.id == *id || named(group)).ok_or_else(missing);
            }
            Wanted::Prefix(prefix) => prefix,
            Wanted::Name { reference, or_prefix } => {
                let position = groups.iter().position(|group| group.records.iter().any(|r| means(reference, r)));
                match (position, or_prefix) {
                    (Some(at), _) => return groups.into_iter().nth(at).ok_or_else(missing),
                    (None, Some(prefix)) => prefix,
                    (None, None) => return Err(missing()),
                }
            }
        };
        let mut fitting = groups.into_iter().filter(|group| group.id.hex().starts_with(prefix.as_str()));
        match (fitting.next(), fitting.next()) {
            (Some(group), None) => Ok(group),
            (Some(_), Some(_)) => Err(ImageError::Ambiguous(text.to_owned())),
            (None, _) => Err(missing()),
        }
    }
}

/// Whether a reference means this record: the same name, or a name in the same repository with the digest asked for.
pub(super) fn means(reference: &ImageRef, record: &Record) -> bool {
    let Some(name) = record.kind.reference() else { return false };
    match reference.digest() {
        None => name == reference,
        Some(digest) => {
            name.repository() == reference.repository()
                && record.target.digest == digest.to_string()
                && reference.tag().is_none_or(|tag| name.tag().is_none_or(|own| own == tag))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use proto::containerd::types::Descriptor;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn record(name: &str) -> Record {
        let target = Descriptor { digest: D.into(), ..Descriptor::default() };
        Record { name: name.into(), kind: RecordName::parse(name), target, updated_at: Timestamp::NEVER }
    }

    #[test]
    fn references_and_records() {
        let other = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("a:1".to_owned(), "docker.io/library/a:1", true),
            ("a:2".to_owned(), "docker.io/library/a:1", false),
            ("b:1".to_owned(), "docker.io/library/a:1", false),
            (format!("a@{D}"), "docker.io/library/a:1", true),
            (format!("a:1@{D}"), "docker.io/library/a:1", true),
            (format!("a:2@{D}"), "docker.io/library/a:1", false),
            (format!("a@{other}"), "docker.io/library/a:1", false),
            (format!("b@{D}"), "docker.io/library/a:1", false),
            ("a:1".to_owned(), "import@x", false),
        ];
        for (text, name, expected) in cases {
            let reference: ImageRef = text.parse().unwrap();
            assert_eq!(means(&reference, &record(name)), expected, "{text} {name}");
        }
    }
}
