//! Images: what they are called, what they consist of, how they come and go. The supervisor keeps them; here are
//! Docker's rules about them.
//!
//! An image is known by its id, the digest of its config. Image records in the supervisor give it names; a record under
//! a name of its own (`names::dangling_name`) keeps one that has lost its last name, until it is deleted or pruned.

mod board;
pub mod changes;
pub mod commit;
pub mod config;
pub mod content;
pub mod fetch;
pub mod history;
pub mod import;
pub mod inspect;
pub mod list;
pub mod load;
pub mod names;
pub mod platform;
pub mod progress;
pub mod pull;
pub mod push;
pub mod registry;
pub mod remove;
pub mod resolve;
pub mod save;
pub mod tag;
#[cfg(test)]
pub mod testing;
pub mod unpack;
pub mod usage;
pub mod verify;
mod words;

pub use content::ImageContent;
pub use resolve::{ImageGroup, ResolvedImage};

use crate::{
    registries::Registries,
    supervisor::{Client, SupervisorError},
};
use names::RecordName;
use proto::{
    containerd::{services::images::v1 as api, types::Descriptor},
    digest::Digest,
    image_ref::ImageRefError,
    kind::ErrorKind,
};
use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// Images whose parts are kept parsed.
const CACHED: usize = 256;

/// How often a name is made that others take away at the same moment.
const NAMING_ATTEMPTS: u32 = 20;

/// Why something with an image went wrong.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such image; docker's words, which SDKs look for.
    #[error("No such image: {0}")]
    NotFound(String),
    /// The beginning of an id fits several images.
    #[error("multiple IDs found with provided prefix: {0}")]
    Ambiguous(String),
    /// Not a name.
    #[error(transparent)]
    Reference(#[from] ImageRefError),
    /// Another fault in the request.
    #[error("{0}")]
    Invalid(String),
    /// `scratch` is not an image.
    #[error("'scratch' is a reserved name")]
    Reserved,
    /// The state of things is against it.
    #[error("{0}")]
    Conflict(String),
    /// Not built yet.
    #[error("{0}")]
    Unimplemented(String),
    /// The registry has no such image, or doesn't show it to this user; docker's words.
    #[error("{0}")]
    Registry(String),
    /// The store holds something that is no image.
    #[error("image {image}: its {what} cannot be used: {cause}")]
    Corrupt {
        /// The image's name.
        image: String,
        /// Which part.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The supervisor refused or failed.
    #[error("{operation} {object}")]
    Supervisor {
        /// What was tried.
        operation: &'static str,
        /// With what.
        object: String,
        /// Why not.
        #[source]
        cause: SupervisorError,
    },
}

impl ImageError {
    /// An error of the supervisor with what was tried on what.
    pub fn supervisor(operation: &'static str, object: impl Into<String>, cause: SupervisorError) -> Self {
        Self::Supervisor { operation, object: object.into(), cause }
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Registry(_) => ErrorKind::NotFound,
            Self::Ambiguous(_) | Self::Reference(_) | Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::Reserved => ErrorKind::PermissionDenied,
            Self::Conflict(_) => ErrorKind::FailedPrecondition,
            Self::Unimplemented(_) => ErrorKind::Unimplemented,
            Self::Corrupt { .. } => ErrorKind::DataLoss,
            Self::Supervisor { cause, .. } => cause.kind(),
        }
    }
}

/// A container that needs an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The container's whole id.
    pub container_id: String,
    /// Whether it runs.
    pub running: bool,
}

/// Tells which containers use an image.
pub trait ImageUsers {
    /// The containers made from the image with this id.
    fn users_of(&self, image: &Digest) -> Vec<ImageUser>;
}

/// How registries are met, by configuration.
#[derive(Debug, Clone, Default)]
pub struct Outside {
    /// What is said about them.
    pub registries: Registries,
    /// Layers that are fetched at the same time; 0 leaves it to the supervisor.
    pub downloads: u32,
    /// The same for pushes.
    pub uploads: u32,
}

/// The images of the engine's namespace.
#[derive(Debug)]
pub struct Images {
    client: Client,
    cache: Mutex<Cache>,
    /// Held while names are looked at and then changed: two removals must not each see the other's name.
    names: tokio::sync::Mutex<()>,
    outside: std::sync::RwLock<Outside>,
    /// Where hosts folders for transfers are written.
    hosts: PathBuf,
}

#[derive(Debug, Default)]
struct Cache {
    by_target: HashMap<String, Arc<ImageContent>>,
    // Oldest first: what is thrown out when there are too many.
    order: VecDeque<String>,
}

/// A name in the supervisor and what it points to.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The whole name.
    pub name: String,
    /// What it means.
    pub kind: RecordName,
    /// Manifest or index.
    pub target: Descriptor,
    /// When the name last changed.
    pub updated_at: crate::time::Timestamp,
}

impl From<api::Image> for Record {
    fn from(image: api::Image) -> Self {
        Self {
            kind: RecordName::parse(&image.name),
            updated_at: image.updated_at.map_or(crate::time::Timestamp::NEVER, Into::into),
            target: image.target.unwrap_or_default(),
            name: image.name,
        }
    }
}

impl Images {
    /// The images that this supervisor keeps; `hosts` is a folder for what it is told about registries.
    pub fn new(client: Client, outside: Outside, hosts: PathBuf) -> Self {
        let (cache, names) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { client, cache, names, outside: outside.into(), hosts }
    }

    /// How registries are met from now on.
    pub fn set_outside(&self, outside: Outside) {
        *self.outside.write().unwrap_or_else(PoisonError::into_inner) = outside;
    }

    /// How registries are met.
    fn outside(&self) -> Outside {
        self.outside.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The hosts folder for transfers with a registry; empty if nothing is configured for it.
    async fn host_dir(&self, domain: &str) -> Result<String, ImageError> {
        let written = self.outside().registries.host_dir(&self.hosts, domain).await;
        written.map_err(|e| {
            ImageError::Invalid(format!("write hosts.toml of {domain} below {}: {e}", self.hosts.display()))
        })
    }

    /// The same for a registry that the user trusts for this one request, in a folder of its own.
    async fn insecure_host_dir(&self, domain: &str) -> Result<String, ImageError> {
        let registries = Registries::parse(&[domain.to_owned()], &[])
            .map_err(|e| ImageError::Invalid(format!("look up {domain} without checks: {e}")))?;
        let folder = self.hosts.join("unchecked");
        let written = registries.host_dir(&folder, domain).await;
        written
            .map_err(|e| ImageError::Invalid(format!("write hosts.toml of {domain} below {}: {e}", folder.display())))
    }

    /// What a record points to, parsed.
    pub async fn content(&self, name: &str, target: &Descriptor) -> Result<Arc<ImageContent>, ImageError> {
        if let Some(content) = self.cache().by_target.get(&target.digest) {
            return Ok(content.clone());
        }
        let (content, for_good) = content::load(&self.client, name, target).await?;
        let content = Arc::new(content);
        if for_good {
            let mut cache = self.cache();
            if cache.by_target.insert(target.digest.clone(), content.clone()).is_none() {
                cache.order.push_back(target.digest.clone());
            }
            if cache.order.len() > CACHED
                && let Some(oldest) = cache.order.pop_front()
            {
                cache.by_target.remove(&oldest);
            }
        }
        Ok(content)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every name.
    pub async fn records(&self) -> Result<Vec<Record>, ImageError> {
        let request = api::ListImagesRequest::default();
        let answer =
            self.client.retry(request, |client, request| async move { client.images().list(request).await }).await;
        let images = answer.map_err(|error| ImageError::supervisor("list", "images", error))?.images;
        Ok(images.into_iter().map(Record::from).collect())
    }

    /// One name; `None` if nothing is called so.
    pub async fn record(&self, name: &str) -> Result<Option<Record>, ImageError> {
        let request = api::GetImageRequest { name: name.to_owned() };
        match self.client.retry(request, |client, request| async move { client.images().get(request).await }).await {
            Ok(answer) => Ok(answer.image.map(Record::from)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(ImageError::supervisor("look up image", name, error)),
        }
    }

    /// Points a name to a target, whether or not the name was there.
    async fn put_record(&self, name: &str, target: &Descriptor) -> Result<(), ImageError> {
        let failed = |error| ImageError::supervisor("name image", name, error);
        let mut image = api::Image { name: name.to_owned(), target: Some(target.clone()), ..api::Image::default() };
        if RecordName::parse(name) == RecordName::Dangling {
            image.labels.insert(names::UNTAGGED_LABEL.into(), "true".into());
        }
        let create = api::CreateImageRequest { image: Some(image.clone()) };
        let update = api::UpdateImageRequest {
            image: Some(image),
            update_mask: Some(prost_types::FieldMask { paths: vec!["target".into()] }),
        };
        proto::fault!("engine.image_record.begun");
        // The API has no call for both, and others may take the name away between them: then it is made anew.
        for _ in 0..NAMING_ATTEMPTS {
            let (create, update) = (create.clone(), update.clone());
            match self
                .client
                .retry(create, |client, request| async move { client.images().create(request).await })
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed(error)),
            }
            match self
                .client
                .retry(update, |client, request| async move { client.images().update(request).await })
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(ImageError::Conflict(format!("name image {name}: others keep removing the name; try again")))
    }

    /// Takes a name away; one that is gone already is fine.
    async fn delete_record(&self, name: &str) -> Result<(), ImageError> {
        // Synchronous: the space is free when the user reads "Deleted".
        let request = api::DeleteImageRequest { name: name.to_owned(), sync: true, target: None };
        match self.client.retry(request, |client, request| async move { client.images().delete(request).await }).await {
            Err(error) if !error.is_not_found() => Err(ImageError::supervisor("remove image", name, error)),
            _ => Ok(()),
        }
    }

    /// Before a name moves to another image: keeps the one it points to, if nothing else does. Gives the name of the
    /// record that was made for this.
    async fn keep_displaced(&self, name: &str, records: &[Record]) -> Result<Option<Kept>, ImageError> {
        let Some(old) = records.iter().find(|record| record.name == name) else { return Ok(None) };
        let shared = records.iter().any(|other| other.name != name && other.target.digest == old.target.digest);
        if shared {
            return Ok(None);
        }
        let kept = Kept { record: names::dangling_name(&old.target.digest), target: old.target.digest.clone() };
        self.put_record(&kept.record, &old.target).await?;
        Ok(Some(kept))
    }

    /// After the name was to move: the kept record goes again if the name still points where it did.
    async fn settle_displaced(&self, name: &str, kept: Option<Kept>) -> Result<(), ImageError> {
        let Some(kept) = kept else { return Ok(()) };
        let stayed = self.record(name).await?.is_some_and(|record| record.target.digest == kept.target);
        if stayed { self.delete_record(&kept.record).await } else { Ok(()) }
    }
}

/// An image kept while its name moves.
struct Kept {
    record: String,
    target: String,
}
