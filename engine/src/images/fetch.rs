//! Images for builds: what a name stands for, found out without fetching more than its configuration, and files without a name in
//! the list of images.

use super::{
    ImageContent, ImageError, Images,
    content::Descriptor,
    platform::Platform,
    pull::{registry_error, scheme},
    registry::auth,
};
use crate::supervisor::{Client, Credentials, Step, SupervisorError, Transfer, content};
use proto::{
    berth::registry::v1::ResolveRequest,
    containerd::types::{
        self,
        transfer::{ImageStore, OciRegistry, Progress, RegistryResolver, UnpackConfiguration},
    },
    digest::Digest,
    image_ref::ImageRef,
    kind::ErrorKind,
    typeurl,
};
use serde::Deserialize;
use std::sync::Arc;

/// Largest manifest, index or configuration.
const LIMIT: usize = 8 << 20;

/// An image as its registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Digest of what the name stands for: a manifest or an index.
    pub digest: Digest,
    /// Digest of the manifest for the platform.
    pub manifest: Digest,
    /// Its configuration.
    pub config: Vec<u8>,
}

impl Images {
    /// Asks the registry. Nothing, if the supervisor can't: a containerd.
    pub async fn remote(
        &self,
        reference: &ImageRef,
        platform: &Platform,
        credentials: Option<Credentials>,
    ) -> Result<Option<Remote>, ImageError> {
        let request = ResolveRequest {
            reference: reference.to_string(),
            with_config: true,
            platform: Some(platform.to_proto()),
            host_dir: self.host_dir(reference.domain()).await?,
            auth: auth(credentials),
        };
        let call = |client: Client, request| async move { client.registry().resolve(request).await };
        let found = match self.client.retry(request, call).await {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::Unimplemented => return Ok(None),
            Err(error) => return Err(registry_error(reference, error)),
        };
        let digest = |text: &str| {
            let bad = |e| registry_error(reference, SupervisorError::Protocol(format!("digest {text:?}: {e}")));
            text.parse::<Digest>().map_err(bad)
        };
        if found.config.is_empty() {
            return Err(ImageError::Invalid(format!("{}: it is no image for {platform}", reference.familiar())));
        }
        let (whole, manifest) = (digest(&found.digest)?, digest(&found.image_digest)?);
        Ok(Some(Remote { digest: whole, manifest, config: found.config }))
    }

    /// Fetches an image and unpacks it, all under the lease of `client`; no name stays for it.
    pub async fn fetch(
        &self,
        client: &Client,
        reference: &ImageRef,
        platform: &Platform,
        credentials: Option<Credentials>,
        mut report: impl FnMut(&Progress),
    ) -> Result<types::Descriptor, ImageError> {
        let failed = |error| registry_error(reference, error);
        let random = crate::ids::random_id().map_err(|e| ImageError::Invalid(format!("make a name: {e}")))?;
        let name = format!("{}-{random}", super::names::dangling_name("berth-build"));
        let wanted = platform.to_proto();
        let unpack =
            UnpackConfiguration { platform: Some(wanted.clone()), snapshotter: self.client.snapshotter().into() };
        let store =
            ImageStore { name: name.clone(), platforms: vec![wanted], unpacks: vec![unpack], ..ImageStore::default() };
        let host_dir = self.host_dir(reference.domain()).await?;
        let source = |auth_stream| {
            let resolver = RegistryResolver {
                auth_stream,
                host_dir,
                parallel: self.outside().downloads,
                default_scheme: scheme(reference.domain()).into(),
                ..RegistryResolver::default()
            };
            typeurl::pack(&OciRegistry { reference: reference.to_string(), resolver: Some(resolver) })
        };
        let mut transfer = Transfer::pull(client, reference, credentials, store, source).await.map_err(failed)?;
        let fetched = loop {
            match transfer.next().await {
                Some(Step::Progress(progress)) => report(&progress),
                Some(Step::Done(result)) => break result.map_err(failed),
                None => break Err(failed(SupervisorError::Protocol("transfer without result".into()))),
            }
        };
        let found = match fetched {
            Ok(()) => self.record(&name).await,
            Err(error) => Err(error),
        };
        // The lease keeps it from here on.
        let request =
            proto::containerd::services::images::v1::DeleteImageRequest { name: name.clone(), ..Default::default() };
        let call = |client: Client, request| async move { client.images().delete(request).await };
        match self.client.retry(request, call).await {
            Err(error) if !error.is_not_found() => {
                tracing::warn!(error = %proto::kind::chain(&error), "image of a build keeps a name");
            }
            _ => {}
        }
        Ok(found?.ok_or_else(|| ImageError::NotFound(reference.familiar()))?.target)
    }

    /// The image for a platform that a manifest or an index has, as far as it is here.
    pub async fn for_platform(
        &self,
        name: &str,
        target: &types::Descriptor,
        platform: &Platform,
    ) -> Result<Option<Arc<ImageContent>>, ImageError> {
        #[derive(Deserialize)]
        struct Index {
            #[serde(default)]
            manifests: Vec<Descriptor>,
        }
        let wanted = platform.normalized();
        let missing = |error: &ImageError| error.kind() == ErrorKind::NotFound;
        match self.content(name, target).await {
            Ok(image) if image.platform() == wanted => return Ok(Some(image)),
            Ok(_) => {}
            Err(error) if missing(&error) => {}
            Err(error) => return Err(error),
        }
        let failed = |error| ImageError::supervisor("read image", name, error);
        let blob = match content::read(&self.client, &target.digest, LIMIT).await {
            Err(error) if error.is_not_found() => return Ok(None),
            other => other.map_err(failed)?,
        };
        let Ok(index) = serde_json::from_slice::<Index>(&blob) else { return Ok(None) };
        for entry in index.manifests {
            if entry.platform.as_ref().map(Platform::normalized) != Some(wanted.clone()) {
                continue;
            }
            let descriptor = types::Descriptor { digest: entry.digest.to_string(), ..types::Descriptor::default() };
            return match self.content(name, &descriptor).await {
                Ok(image) => Ok(Some(image)),
                Err(error) if missing(&error) => Ok(None),
                Err(error) => Err(error),
            };
        }
        Ok(None)
    }

    /// The configuration of an image, byte by byte.
    pub async fn config_bytes(&self, image: &ImageContent) -> Result<Vec<u8>, ImageError> {
        let id = image.id().to_string();
        content::read(&self.client, &id, LIMIT).await.map_err(|error| ImageError::supervisor("read config", id, error))
    }
}
