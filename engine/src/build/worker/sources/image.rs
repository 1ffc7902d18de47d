//! Images: `docker-image://`. What a name stands for is asked of the engine's own images first, as dockerd does, then of the
//! registry; files are fetched only when somebody works on them.

use crate::{
    build::tree::{Tree, Trees},
    images::{ImageContent, ImageError, Images, platform::Platform, unpack},
    supervisor::{Credentials, Lease},
};
use proto::{
    containerd::types,
    digest::{Digest, chain_id},
    image_ref::ImageRef,
    kind::ErrorKind,
    moby::buildkit::v1::VertexStatus,
    pb,
};
use serde::Deserialize;
use solver::{Pin, Step, StepError};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// How sources are called.
pub const SCHEME: &str = "docker-image://";
/// BuildKit's attributes of such a source.
const RESOLVE_MODE: &str = "image.resolvemode";
const CHECKSUM: &str = "image.checksum";
const LAYER_LIMIT: &str = "image.layerlimit";
/// Ours: the manifest that was chosen.
const MANIFEST: &str = "berth.manifest";
/// How often progress is told.
const REPORTS: Duration = Duration::from_millis(100);

/// Where a name is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Here, then at the registry.
    #[default]
    Default,
    /// At the registry.
    Pull,
    /// Here.
    Local,
}

impl Mode {
    /// BuildKit's words.
    pub fn parse(text: &str) -> Result<Self, StepError> {
        match text {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::Pull),
            "local" => Ok(Self::Local),
            other => Err(StepError::Invalid(format!("invalid resolvemode: {other}"))),
        }
    }
}

/// What a name was found to stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The whole name.
    pub reference: ImageRef,
    /// Digest of what it names: a manifest or an index.
    pub digest: Digest,
    /// Digest of the manifest for the platform.
    pub manifest: Digest,
    /// The image's configuration.
    pub config: Vec<u8>,
}

/// Who knows the user's credentials for a registry; asked only if one is needed.
pub trait Keyring: Send + Sync {
    /// For the registry of this name.
    fn credentials(&self, host: &str) -> impl Future<Output = Option<Credentials>> + Send;
}

/// Nobody's.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKeys;

impl Keyring for NoKeys {
    async fn credentials(&self, _: &str) -> Option<Credentials> {
        None
    }
}

/// Finds out what `name` stands for.
pub async fn look_up(
    images: &Images,
    trees: &Trees,
    name: &str,
    platform: &Platform,
    mode: Mode,
    keys: &impl Keyring,
) -> Result<Found, ImageError> {
    let reference = name.parse::<ImageRef>()?.with_default_tag();
    if mode != Mode::Pull
        && let Some(found) = here(images, name, &reference, platform).await?
    {
        return Ok(found);
    }
    if mode == Mode::Local {
        return Err(ImageError::NotFound(reference.familiar()));
    }
    let credentials = keys.credentials(reference.domain()).await;
    if let Some(remote) = images.remote(&reference, platform, credentials.clone()).await? {
        let crate::images::fetch::Remote { digest, manifest, config } = remote;
        return Ok(Found { reference, digest, manifest, config });
    }
    // The supervisor can't be asked for less.
    let target = images.fetch(trees.client(), &reference, platform, credentials, |_| {}).await?;
    let image = images.for_platform(name, &target, platform).await?;
    let image = image.ok_or_else(|| ImageError::NotFound(reference.familiar()))?;
    found(images, reference, &target, &image).await
}

/// The engine's own, for this platform.
async fn here(
    images: &Images,
    name: &str,
    reference: &ImageRef,
    platform: &Platform,
) -> Result<Option<Found>, ImageError> {
    let resolved = match images.resolve(name).await {
        Ok(resolved) => resolved,
        Err(ImageError::NotFound(_) | ImageError::Ambiguous(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    match images.for_platform(name, &resolved.target, platform).await? {
        Some(image) => found(images, reference.clone(), &resolved.target, &image).await.map(Some),
        None => Ok(None),
    }
}

async fn found(
    images: &Images,
    reference: ImageRef,
    target: &types::Descriptor,
    image: &ImageContent,
) -> Result<Found, ImageError> {
    let bad = |e| ImageError::Invalid(format!("{}: digest {:?}: {e}", reference.familiar(), target.digest));
    let digest = target.digest.parse::<Digest>().map_err(bad)?;
    let config = images.config_bytes(image).await?;
    Ok(Found { reference, digest, manifest: image.manifest, config })
}

/// The platform that is meant: this machine's, if nothing is said.
pub fn platform_of(platform: Option<&pb::Platform>) -> Platform {
    match platform {
        Some(platform) if !platform.os.is_empty() || !platform.architecture.is_empty() => {
            let text = |text: &String| text.clone();
            Platform {
                os: text(&platform.os),
                architecture: text(&platform.architecture),
                variant: text(&platform.variant),
            }
            .normalized()
        }
        _ => Platform::host(),
    }
}

/// [`solver::Worker::pin`] of an image.
pub async fn pin(
    images: &Images,
    trees: &Trees,
    source: &pb::SourceOp,
    platform: Option<&pb::Platform>,
    keys: &impl Keyring,
) -> Result<Pin, StepError> {
    let name = source.identifier.strip_prefix(SCHEME).unwrap_or(&source.identifier);
    let attribute = |key: &str| source.attrs.get(key).map(String::as_str).unwrap_or_default();
    if !attribute(LAYER_LIMIT).is_empty() {
        return Err(StepError::Unsupported(format!("{LAYER_LIMIT} of {name}: this builder takes whole images")));
    }
    let mode = Mode::parse(attribute(RESOLVE_MODE))?;
    let platform = platform_of(platform);
    let found = look_up(images, trees, name, &platform, mode, keys).await.map_err(|error| said(name, error))?;
    let checksum = attribute(CHECKSUM);
    if !checksum.is_empty() && checksum != found.digest.to_string() {
        return Err(StepError::Invalid(format!("{name}: its digest is {}, not {checksum}", found.digest)));
    }
    let mut pinned = source.clone();
    pinned.identifier = format!("{SCHEME}{}", found.reference.with_digest(found.digest));
    pinned.attrs.insert(MANIFEST.into(), found.manifest.to_string());
    Ok(Pin { key: key_of(&found), source: pinned })
}

/// The same for the same files, wherever they come from.
fn key_of(found: &Found) -> Digest {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct RootFs {
        diff_ids: Vec<Digest>,
    }
    let config: Config = serde_json::from_slice(&found.config).unwrap_or_default();
    match chain_id(&config.rootfs.diff_ids) {
        Some(chain) => Digest::of(format!("image {chain}").as_bytes()),
        None => Digest::of(format!("image without layers {}", found.manifest).as_bytes()),
    }
}

/// [`solver::Worker::perform`] of an image: its files.
pub async fn perform(
    images: &Images,
    trees: &Trees,
    pinned: &pb::SourceOp,
    platform: Option<&pb::Platform>,
    keys: &impl Keyring,
    step: &Step,
) -> Result<Tree, StepError> {
    let name = pinned.identifier.strip_prefix(SCHEME).unwrap_or(&pinned.identifier);
    let failed = |error| said(name, error);
    let random = crate::ids::random_bytes::<8>();
    let random = random.map_err(|cause| StepError::Failed { what: "make a name".into(), cause: Box::new(cause) })?;
    let lease = Lease::take(trees.client(), &format!("berth-fetch-{}", proto::digest::hex(&random))).await;
    let lease = lease.map_err(|cause| StepError::Failed { what: format!("fetch {name}"), cause: cause.into() })?;
    let tree = async {
        let image = load(images, &lease, name, pinned, &platform_of(platform), keys, step).await.map_err(failed)?;
        unpack::missing_layers(&lease.client, name, &image).await.map_err(failed)?;
        Ok(trees.image(&image).await?)
    };
    let tree = tree.await;
    lease.give_back_later().await;
    tree
}

async fn load(
    images: &Images,
    lease: &Lease,
    name: &str,
    pinned: &pb::SourceOp,
    platform: &Platform,
    keys: &impl Keyring,
    step: &Step,
) -> Result<Arc<ImageContent>, ImageError> {
    if let Some(manifest) = pinned.attrs.get(MANIFEST) {
        let target = types::Descriptor { digest: manifest.clone(), ..types::Descriptor::default() };
        match images.content(name, &target).await {
            // Its parts may be gone, though they were here a moment ago.
            Ok(image) if is_whole(lease, &image).await => return Ok(image),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let reference: ImageRef = name.parse()?;
    let credentials = keys.credentials(reference.domain()).await;
    let mut reports = Reports { step, layers: HashMap::new() };
    let report = |progress: &_| reports.take(progress);
    let target = images.fetch(&lease.client, &reference, platform, credentials, report).await?;
    let image = images.for_platform(name, &target, platform).await?;
    image.ok_or_else(|| ImageError::NotFound(reference.familiar()))
}

/// Whether its files are unpacked, or can be.
async fn is_whole(lease: &Lease, image: &ImageContent) -> bool {
    use proto::containerd::services::{content::v1::InfoRequest, snapshots::v1::StatSnapshotRequest};
    let Some(chain) = image.chain_id() else { return true };
    let snapshotter = lease.client.snapshotter().to_owned();
    let request = StatSnapshotRequest { snapshotter, key: chain.to_string() };
    let call = |client: crate::supervisor::Client, request| async move { client.snapshots().stat(request).await };
    if lease.client.retry(request, call).await.is_ok() {
        return true;
    }
    for layer in &image.layers {
        let request = InfoRequest { digest: layer.digest.to_string() };
        let call = |client: crate::supervisor::Client, request| async move { client.content().info(request).await };
        if lease.client.retry(request, call).await.is_err() {
            return false;
        }
    }
    true
}

/// Tells how far each part is.
struct Reports<'a> {
    step: &'a Step,
    layers: HashMap<String, (SystemTime, Instant)>,
}

impl Reports<'_> {
    fn take(&mut self, progress: &proto::containerd::types::transfer::Progress) {
        let Some(part) = progress.desc.as_ref() else { return };
        let (now, done) = (SystemTime::now(), progress.total > 0 && progress.progress >= progress.total);
        let known = self.layers.get(&part.digest).copied();
        if let Some((_, told)) = known
            && !done
            && told.elapsed() < REPORTS
        {
            return;
        }
        let started = known.map_or(now, |(started, _)| started);
        self.layers.insert(part.digest.clone(), (started, Instant::now()));
        self.step.progress.status(VertexStatus {
            id: part.digest.clone(),
            vertex: self.step.digest.clone(),
            name: progress.event.clone(),
            current: progress.progress,
            total: if progress.total > 0 { progress.total } else { part.size },
            timestamp: Some(now.into()),
            started: Some(started.into()),
            completed: done.then(|| now.into()),
        });
    }
}

/// An error with the image's name, of a kind that the solver knows.
fn said(name: &str, error: ImageError) -> StepError {
    match error.kind() {
        ErrorKind::NotFound => StepError::NotFound(format!("{name}: {error}")),
        ErrorKind::InvalidArgument | ErrorKind::PermissionDenied => StepError::Invalid(format!("{name}: {error}")),
        _ => StepError::Failed { what: name.to_owned(), cause: error.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_of_the_files() {
        let image = |config: &str, manifest: &[u8]| Found {
            reference: "a".parse::<ImageRef>().unwrap().with_default_tag(),
            digest: Digest::of(b"index"),
            manifest: Digest::of(manifest),
            config: config.into(),
        };
        let layer = Digest::of(b"layer");
        let config = |user: &str| {
            format!(r#"{{"config":{{"User":"{user}"}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#)
        };
        assert_eq!(key_of(&image(&config("a"), b"1")), key_of(&image(&config("b"), b"2")));
        assert_ne!(key_of(&image(&config("a"), b"1")), key_of(&image("{}", b"1")));
        assert_ne!(key_of(&image("{}", b"2")), key_of(&image("{}", b"1")));
    }

    #[test]
    fn modes() {
        assert_eq!(Mode::parse("pull").unwrap(), Mode::Pull);
        assert_eq!(Mode::parse("").unwrap(), Mode::Default);
        assert!(Mode::parse("prefer").is_err());
    }
}
