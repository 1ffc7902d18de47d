//! What of an image is pushed: its documents, and whether all that they name is here.

use proto::image_ref::ImageRef;

use crate::{
    content::ContentError,
    images::manifest::{Descriptor, Document, MANIFEST_LIMIT, Manifest, Platform},
    transfer::{Context, TransferError},
};

/// A document that is to be pushed, with everything below it.
#[derive(Clone)]
pub(super) struct Planned {
    pub(super) descriptor: Descriptor,
    pub(super) bytes: Vec<u8>,
    pub(super) below: Below,
}

#[derive(Clone)]
pub(super) enum Below {
    Image(Manifest),
    Index(Vec<Planned>),
    // What an index names, and isn't here.
    Nothing,
}

impl Planned {
    pub(super) fn images(&self) -> Vec<&Manifest> {
        match &self.below {
            Below::Image(manifest) => vec![manifest],
            Below::Index(children) => children.iter().flat_map(Self::images).collect(),
            Below::Nothing => Vec::new(),
        }
    }

    // Children before their index.
    pub(super) fn documents(&self) -> Vec<&Self> {
        let mut all: Vec<&Self> = match &self.below {
            Below::Index(children) => children.iter().flat_map(Self::documents).collect(),
            _ => Vec::new(),
        };
        all.push(self);
        all
    }
}

impl Context {
    // Reads a document and those below it; one below that is missing is noted as such.
    pub(super) fn planned(
        &self,
        descriptor: &Descriptor,
        depth: u32,
        image: &ImageRef,
    ) -> Result<Planned, TransferError> {
        let content = &self.stores.content;
        let bytes = content.read_all(&self.namespace, &descriptor.digest, MANIFEST_LIMIT)?;
        if depth == 0 {
            let text = format!("{image}: indexes are nested too deeply");
            return Err(TransferError::Invalid(text));
        }
        let below = match Document::parse(&bytes, descriptor.digest, &descriptor.media_type)? {
            Document::Manifest(manifest) => Below::Image(manifest),
            Document::Index(index) => {
                let mut children = Vec::new();
                for child in &index.manifests {
                    children.push(match self.planned(child, depth - 1, image) {
                        Err(TransferError::Content(ContentError::NotFound(_))) => {
                            Planned { descriptor: child.clone(), bytes: Vec::new(), below: Below::Nothing }
                        }
                        other => other?,
                    });
                }
                Below::Index(children)
            }
        };
        let mut descriptor = descriptor.clone();
        if descriptor.media_type.is_empty() {
            let raw: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let said = raw.get("mediaType").and_then(|value| value.as_str());
            let plain = match below {
                Below::Image(_) => crate::images::manifest::OCI_MANIFEST,
                _ => crate::images::manifest::OCI_INDEX,
            };
            descriptor.media_type = said.unwrap_or(plain).to_owned();
        }
        Ok(Planned { descriptor, bytes, below })
    }

    // The first part that isn't here.
    fn missing(&self, planned: &Planned) -> Result<Option<String>, TransferError> {
        let platform = planned.descriptor.platform.as_ref();
        let of = platform.map(|platform| format!(" of {platform}")).unwrap_or_default();
        match &planned.below {
            Below::Nothing => Ok(Some(format!("manifest {}{of}", planned.descriptor.digest))),
            Below::Index(children) => {
                for child in children {
                    if let Some(missing) = self.missing(child)? {
                        return Ok(Some(missing));
                    }
                }
                Ok(None)
            }
            Below::Image(manifest) => {
                let layers = manifest.layers.iter().filter(|layer| !layer.is_foreign());
                let parts = layers.map(|layer| ("layer", layer)).chain([("configuration", &manifest.config)]);
                for (what, part) in parts {
                    match self.stores.content.info(&self.namespace, &part.digest) {
                        Ok(_) => {}
                        Err(ContentError::NotFound(_)) => return Ok(Some(format!("{what} {}{of}", part.digest))),
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(None)
            }
        }
    }

    // What of an image is pushed: the platform that is asked for; all of it; or the one platform that is here.
    pub(super) fn chosen(
        &self,
        whole: &Planned,
        platform: Option<&Platform>,
        image: &ImageRef,
    ) -> Result<Planned, TransferError> {
        let missing = |what, cure| Err(TransferError::Missing { image: image.familiar(), what, cure });
        let mut here = whole;
        if let Some(platform) = platform {
            while let Below::Index(children) = &here.below {
                let index = crate::images::manifest::Index {
                    manifests: children.iter().map(|child| child.descriptor.clone()).collect(),
                };
                let wanted = index.select(here.descriptor.digest, platform)?.digest;
                let Some(child) = children.iter().find(|child| child.descriptor.digest == wanted) else { break };
                here = child;
            }
        }
        let Some(what) = self.missing(here)? else { return Ok(here.clone()) };
        let Below::Index(children) = &here.below else {
            return missing(what, "pull it for this platform again");
        };
        let mut complete = Vec::new();
        for child in children {
            if self.missing(child)?.is_none() {
                complete.push(child);
            }
        }
        match complete.as_slice() {
            [only] => Ok((*only).clone()),
            [] => missing(what, "pull the image for the platform that is to be pushed"),
            _ => missing(what, "pull it for all platforms, or say with --platform which one is to be pushed"),
        }
    }
}
