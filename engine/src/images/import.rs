//! `docker import`: a tar of a file system becomes an image of one layer.
//!
//! Made of the published calls alone (content, snapshots, diff, images), under a lease, so that a failure at any step
//! leaves nothing: the layer blob goes with the lease, the snapshot is removed.

use super::{
    ImageError, Images, changes,
    config::{History, ImageConfig, RootFs},
    platform::Platform,
    unpack,
};
use crate::{
    api::Config,
    ids::random_id,
    supervisor::{Client, SupervisorError, content, lease::Lease, transfer::Archive},
    time::Timestamp,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use proto::{containerd::types, digest::Digest, image_ref::ImageRef, kind::chain};
use serde_json::json;
use std::collections::HashMap;
use tracing::warn;

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What the image is to be besides its files.
#[derive(Debug, Clone, Default)]
pub struct ImportRequest {
    /// Its name, if it gets one.
    pub name: Option<ImageRef>,
    /// A note.
    pub message: String,
    /// What its config says.
    pub config: Config,
    /// For which platform, if not for this machine's.
    pub platform: Option<Platform>,
}

impl ImportRequest {
    /// Reads the arguments of `POST /images/create?fromSrc=`.
    pub fn parse<'a>(
        source: &str,
        repo: Option<&str>,
        tag: Option<&str>,
        message: Option<&str>,
        platform: Option<&str>,
        changes: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, ImageError> {
        if source != "-" {
            return Err(ImageError::Unimplemented(format!(
                "import from {source}: not implemented in berth yet, fetch it and import from standard input"
            )));
        }
        let name = repo.map(|repo| super::tag::new_name(repo, tag)).transpose()?;
        let platform = platform.map(Platform::parse).transpose().map_err(|e| ImageError::Invalid(e.to_string()))?;
        let mut config = Config::default();
        changes::apply(&mut config, changes).map_err(|e| ImageError::Invalid(e.to_string()))?;
        let message = message.unwrap_or("Imported from -").to_owned();
        Ok(Self { name, message, config, platform })
    }
}

/// The form of a layer, seen in its first bytes.
fn media_type(first: &[u8]) -> Result<&'static str, ImageError> {
    let refused = |form: &str| {
        Err(ImageError::Invalid(format!("import archive: {form} compression is not supported, use gzip, zstd or none")))
    };
    match first {
        [] => Err(ImageError::Invalid("import archive: it is empty".into())),
        [0x1f, 0x8b, ..] => Ok("application/vnd.oci.image.layer.v1.tar+gzip"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok("application/vnd.oci.image.layer.v1.tar+zstd"),
        [b'B', b'Z', b'h', ..] => refused("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => refused("xz"),
        _ => Ok("application/vnd.oci.image.layer.v1.tar"),
    }
}

impl Images {
    /// Makes an image of an archive; gives its id.
    pub async fn import(&self, request: ImportRequest, mut archive: Archive) -> Result<Digest, ImageError> {
        let mut first = Bytes::new();
        // Enough to tell the form; pieces of a chunked body may be small.
        while first.len() < 6 {
            match archive.next().await {
                Some(Ok(bytes)) => first = [first, bytes].concat().into(),
                Some(Err(error)) => return Err(ImageError::Invalid(format!("import archive: {error}"))),
                None => break,
            }
        }
        let media_type = media_type(&first)?;
        let id = random_id().map_err(|e| ImageError::Invalid(format!("import: make an id: {e}")))?;
        let operation = format!("berth-import-{}", &id[..16]);
        let lease = Lease::take(&self.client, &operation).await.map_err(failed)?;
        let whole = Box::pin(tokio_stream::once(Ok(first)).chain(archive));
        let made = self.import_under(&lease.client, &operation, media_type, request, whole).await;
        lease.give_back().await;
        made
    }

    async fn import_under(
        &self,
        client: &Client,
        operation: &str,
        media_type: &str,
        request: ImportRequest,
        archive: Archive,
    ) -> Result<Digest, ImageError> {
        let layer = write_layer(client, operation, media_type, archive).await?;
        let diff_id = unpack::apply(client, operation, &[], &layer).await.map_err(failed)?;
        content::label(client, &layer.digest, "containerd.io/uncompressed", &diff_id.to_string())
            .await
            .map_err(failed)?;

        let now = Timestamp::now();
        let platform = request.platform.unwrap_or_else(Platform::host);
        let config = ImageConfig {
            created: now,
            architecture: platform.architecture,
            variant: platform.variant,
            os: platform.os,
            comment: request.message.clone(),
            config: request.config,
            rootfs: RootFs { diff_ids: vec![diff_id], ..RootFs::default() },
            history: vec![History { created: now, comment: request.message, ..History::default() }],
            ..ImageConfig::default()
        };
        let config = encode(&config)?;
        let config_size = config.len();
        // The collector follows these: record, manifest, config and layer, config to snapshot.
        let keeps_snapshot = [(unpack::gc_label(client), diff_id.to_string())];
        let id = content::write(client, config, keeps_snapshot.into()).await.map_err(failed)?;
        let manifest = encode(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": id, "size": config_size},
            "layers": [{"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}],
        }))?;
        let size = manifest.len() as i64;
        let keeps_blobs = [
            ("containerd.io/gc.ref.content.config".to_owned(), id.to_string()),
            ("containerd.io/gc.ref.content.l.0".to_owned(), layer.digest.clone()),
        ];
        let digest = content::write(client, manifest, keeps_blobs.into()).await.map_err(failed)?.to_string();
        let target = types::Descriptor { media_type: MANIFEST.into(), digest, size, ..types::Descriptor::default() };

        self.name_new(request.name.as_ref(), &target).await?;
        Ok(id)
    }
}

fn failed(error: SupervisorError) -> ImageError {
    ImageError::supervisor("import", "archive", error)
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|e| ImageError::Invalid(format!("import: encode image: {e}")))
}

async fn write_layer(
    client: &Client,
    operation: &str,
    media_type: &str,
    archive: Archive,
) -> Result<types::Descriptor, ImageError> {
    let mut writer = content::Writer::open(client, operation).await.map_err(failed)?;
    let mut size = 0;
    let mut hasher = sha2::Sha256::default();
    let written = async {
        let count = |bytes: &[u8]| {
            size += bytes.len() as i64;
            sha2::Digest::update(&mut hasher, bytes);
        };
        content::copy(&mut writer, archive, count).await?;
        let digest = Digest::from_bytes(sha2::Digest::finalize(hasher).into());
        writer.commit(Some(digest), HashMap::new()).await
    };
    match written.await {
        Ok(digest) => {
            Ok(types::Descriptor { media_type: media_type.into(), digest, size, ..types::Descriptor::default() })
        }
        Err(error) => {
            if let Err(error) = writer.abort().await {
                warn!(error = %chain(&error), "half-written layer left to the collector");
            }
            Err(failed(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::kind::ErrorKind;

    #[test]
    fn forms_of_archives() {
        let ends = |first: &[u8]| {
            media_type(first).map(|t| t.rsplit('.').next().unwrap_or("").to_owned()).map_err(|e| e.to_string())
        };
        assert_eq!(ends(&[0x1f, 0x8b, 8, 0]), Ok("tar+gzip".into()));
        assert_eq!(ends(&[0x28, 0xb5, 0x2f, 0xfd]), Ok("tar+zstd".into()));
        assert_eq!(ends(b"./bin\0"), Ok("tar".into()));
        assert!(ends(b"BZh91AY").unwrap_err().contains("bzip2"));
        assert!(ends(b"\xfd7zXZ\0").unwrap_err().contains("xz"));
        assert!(ends(b"").unwrap_err().contains("empty"));
    }

    #[test]
    fn requests() {
        let parse = |source: &str, repo: Option<&str>, change: &str| {
            ImportRequest::parse(source, repo, Some("1"), None, None, [change]).map_err(|e| (e.kind(), e.to_string()))
        };
        let request = parse("-", Some("imp"), "CMD x").unwrap();
        assert_eq!(request.name.map(|n| n.familiar()).as_deref(), Some("imp:1"));
        assert_eq!(request.message, "Imported from -");
        assert!(parse("-", None, "CMD x").unwrap().name.is_none());
        assert_eq!(parse("http://h/x.tar", None, "").unwrap_err().0, ErrorKind::Unimplemented);
        assert_eq!(parse("-", Some("Bb"), "").unwrap_err().0, ErrorKind::InvalidArgument);
        let refused = (ErrorKind::InvalidArgument, "foo is not a valid change command".to_owned());
        assert_eq!(parse("-", None, "FOO x").unwrap_err(), refused);
    }
}
