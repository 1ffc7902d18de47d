//! Images against what they refer to: documents, configuration, layers.

use proto::digest::Digest;

use super::{DEPTH, LOOKS, Listener, Verify, VerifyError};
use crate::{
    content::{CONTENT, ContentError},
    images::{
        IMAGES, Record as Image,
        manifest::{CONFIG_LIMIT, Config, Descriptor, Document, MANIFEST_LIMIT, Manifest},
    },
    recipes::keep::{Keeper, layers_of},
};

impl<L: Listener> Verify<'_, L> {
    pub(super) fn image(&mut self, name: &str) -> Result<Option<Vec<String>>, VerifyError> {
        for _ in 0..LOOKS {
            let Some(image) = self.image_record(name)? else { return Ok(None) };
            let mut problems = Vec::new();
            self.target(&image.target, DEPTH, &mut problems)?;
            if problems.is_empty() {
                return Ok(Some(problems));
            }
            match self.image_record(name)? {
                None => return Ok(None),
                Some(now) if now.target == image.target => return Ok(Some(problems)),
                Some(_) => {}
            }
        }
        Ok(None)
    }

    fn image_record(&self, name: &str) -> Result<Option<Image>, VerifyError> {
        Ok(self.stores.db.read(|tx| IMAGES.get(tx, self.namespace, name))?)
    }

    // A manifest or index. Damaged bytes are the blob's fault and told there; here it counts whether they make sense.
    fn target(&mut self, at: &Descriptor, depth: u32, problems: &mut Vec<String>) -> Result<(), VerifyError> {
        let Some(bytes) = self.read("manifest", at, MANIFEST_LIMIT, problems)? else { return Ok(()) };
        match Document::parse(&bytes, at.digest, &at.media_type) {
            Err(error) => problems.push(error.to_string()),
            Ok(Document::Manifest(manifest)) => self.manifest(at, &manifest, problems)?,
            Ok(Document::Index(_)) if depth == 0 => {
                problems.push(format!("index {} is nested too deeply", at.digest));
            }
            Ok(Document::Index(index)) => {
                let mut present = 0;
                for entry in &index.manifests {
                    // Of an index one has the platforms that one asked for.
                    if self.is_here(entry)? {
                        present += 1;
                        self.target(entry, depth - 1, problems)?;
                    }
                }
                if present == 0 && !index.manifests.is_empty() {
                    problems.push(format!("of index {} no platform is here", at.digest));
                }
            }
        }
        Ok(())
    }

    fn manifest(
        &mut self,
        at: &Descriptor,
        manifest: &Manifest,
        problems: &mut Vec<String>,
    ) -> Result<(), VerifyError> {
        let config = self.read("configuration", &manifest.config, CONFIG_LIMIT, problems)?;
        let is_image = manifest.config.media_type.contains("image");
        let config = match config.map(|bytes| Config::parse(&bytes, manifest.config.digest)) {
            // Artifacts have configurations of their own kinds.
            Some(Err(error)) if is_image => {
                problems.push(error.to_string());
                None
            }
            Some(Ok(config)) if is_image => Some(config),
            _ => None,
        };
        if let Some(config) = &config
            && let Err(error) = config.check(manifest)
        {
            problems.push(format!("manifest {}: {error}", at.digest));
        }
        // No lease: nothing is made.
        let keeper = Keeper { stores: self.stores, namespace: self.namespace, lease: "" };
        let recorded = config.as_ref().map(|config| layers_of(manifest, config)).unwrap_or_default();
        for (number, layer) in manifest.layers.iter().enumerate() {
            match self.stores.content.info(self.namespace, &layer.digest) {
                Err(ContentError::NotFound(_))
                    if keeper.named(&manifest.config.digest, number).is_ok_and(|named| named.is_some()) =>
                {
                    // Dropped after it was unpacked: as good as there if it comes out right.
                    let Some(recorded) = recorded.get(number) else { continue };
                    if self.remakeable.contains(&layer.digest) || !self.listener.is_there() {
                        continue;
                    }
                    match keeper.check(&manifest.config.digest, recorded) {
                        Ok(()) => drop(self.remakeable.insert(layer.digest)),
                        Err(error) => problems.push(proto::kind::chain(&error)),
                    }
                }
                Ok(info) if info.size == layer.size => {}
                Ok(info) => problems.push(format!(
                    "layer {} is {} bytes long, the manifest says {}",
                    layer.digest, info.size, layer.size
                )),
                Err(ContentError::Store(error)) => return Err(error.into()),
                Err(_) => problems.push(format!("layer {} is missing; pull the image again", layer.digest)),
            }
        }
        Ok(())
    }

    fn has(&self, digest: &Digest) -> Result<bool, VerifyError> {
        Ok(self.stores.db.read(|tx| CONTENT.get(tx, self.namespace, &digest.to_string()))?.is_some())
    }

    // Whether one entry of an index was fetched. A manifest of which nothing else is there was only read.
    fn is_here(&self, at: &Descriptor) -> Result<bool, VerifyError> {
        if !self.has(&at.digest)? {
            return Ok(false);
        }
        let bytes = self.stores.content.read_all(self.namespace, &at.digest, MANIFEST_LIMIT).unwrap_or_default();
        let Ok(Document::Manifest(manifest)) = Document::parse(&bytes, at.digest, &at.media_type) else {
            return Ok(true);
        };
        for part in manifest.layers.iter().chain([&manifest.config]) {
            if self.has(&part.digest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn read(
        &self,
        what: &str,
        at: &Descriptor,
        limit: u64,
        problems: &mut Vec<String>,
    ) -> Result<Option<Vec<u8>>, VerifyError> {
        match self.stores.content.read_all(self.namespace, &at.digest, limit) {
            Ok(bytes) => {
                if bytes.len() as u64 != at.size {
                    let (digest, actual) = (at.digest, bytes.len());
                    problems
                        .push(format!("{what} {digest} is {actual} bytes long, what refers to it says {}", at.size));
                }
                Ok(Some(bytes))
            }
            Err(ContentError::Store(error)) => Err(error.into()),
            Err(ContentError::NotFound(digest)) => {
                problems.push(format!("{what} {digest} is missing; pull the image again"));
                Ok(None)
            }
            Err(error) => {
                problems.push(format!("{what} {}: {}", at.digest, proto::kind::chain(&error)));
                Ok(None)
            }
        }
    }
}
