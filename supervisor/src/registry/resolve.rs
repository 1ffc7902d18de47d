//! What a reference stands for, down to the configuration of the image in it.

use proto::digest::Digest;

use super::{Registry, RegistryError};
use crate::images::manifest::{CONFIG_LIMIT, Descriptor, Document, MANIFEST_LIMIT, Platform};

/// Indexes within indexes that are followed.
const DEPTH: u32 = 4;

/// A manifest or index as the registry has it.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Its type.
    pub(crate) media_type: String,
    /// Its digest.
    pub(crate) digest: Digest,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

impl Registry {
    /// What a tag or digest stands for.
    pub(crate) async fn resolve(&self, reference: &str) -> Result<Resolved, RegistryError> {
        let (bytes, media_type, digest) = self.manifest(reference).await?;
        Ok(Resolved { media_type, digest, bytes })
    }

    /// The image for a platform in what was resolved, and its configuration (empty if it has none that is one).
    pub(crate) async fn image_of(
        &self,
        resolved: &Resolved,
        platform: &Platform,
    ) -> Result<(Resolved, Vec<u8>), RegistryError> {
        let mut here = resolved.clone();
        for _ in 0..DEPTH {
            match Document::parse(&here.bytes, here.digest, &here.media_type)? {
                Document::Manifest(manifest) => {
                    let config = self.small_blob(&manifest.config, CONFIG_LIMIT).await?;
                    return Ok((here, config));
                }
                Document::Index(index) => {
                    let chosen: &Descriptor = index.select(here.digest, platform)?;
                    if chosen.size > MANIFEST_LIMIT {
                        let what = format!("manifest {}", chosen.digest);
                        return Err(RegistryError::TooBig { what, host: self.host(), limit: MANIFEST_LIMIT });
                    }
                    let chosen = chosen.digest.to_string();
                    here = self.resolve(&chosen).await?;
                }
            }
        }
        let why = format!("{}: indexes are nested too deeply", resolved.digest);
        Err(RegistryError::Protocol { host: self.host(), why })
    }
}
