//! Images as CRI sees them: one per configuration, whatever names it has. Which those are is read from the records each time.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use proto::{
    digest::Digest,
    image_ref::ImageRef,
    kind::{ErrorKind, chain},
    runtime::v1 as cri,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::debug;

use super::NAMESPACE;
use crate::{
    content::ContentError,
    failure::Failure,
    gc::CollectError,
    images::{
        ImageError, Record,
        manifest::{CONFIG_LIMIT, Config, Descriptor, Document, MANIFEST_LIMIT, ManifestError, Platform},
    },
    snapshots::{Kind, SnapshotError, Usage},
    store::Stores,
};

/// Indexes within indexes that are followed.
const DEPTH: u32 = 4;
/// Shortest beginning of an id that is taken for one: `cafe` is a name, if not of an image that is here.
const SHORTEST_ID: usize = 12;
/// The label by which an image is kept from the kubelet's own collector, as in containerd.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Why images could not be read or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// A beginning that several ids have.
    #[error("image {0:?} is ambiguous: several ids begin so")]
    Ambiguous(String),
    /// Its documents lead nowhere.
    #[error("image {0}: indexes are nested too deeply")]
    TooDeep(Digest),
    /// A document of it.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The records.
    #[error(transparent)]
    Records(#[from] ImageError),
    /// The content store.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The snapshotter.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The collector.
    #[error(transparent)]
    Collect(#[from] CollectError),
}

impl Failure for ImagesError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Ambiguous(_) => ErrorKind::InvalidArgument,
            Self::TooDeep(_) => ErrorKind::DataLoss,
            Self::Manifest(error) => error.kind(),
            Self::Records(error) => error.kind(),
            Self::Content(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Collect(error) => error.kind(),
        }
    }
}

impl ImagesError {
    /// Whether one image is to blame, and others may be fine.
    fn is_of_one(&self) -> bool {
        match self {
            Self::Manifest(_) | Self::TooDeep(_) => true,
            Self::Content(error) => !matches!(error, ContentError::Store(_)),
            _ => false,
        }
    }
}

/// What an image's documents say. It never changes, since they are named by their digests.
#[derive(Debug, Clone)]
struct Facts {
    id: Digest,
    chain: Option<Digest>,
    size: u64,
    user: String,
}

/// An image that containers can be made of.
#[derive(Debug)]
pub(super) struct Image {
    /// Its id is the digest of its configuration; the chain is the snapshot of all its layers, if it has some.
    facts: Facts,
    /// Names of its records, and what they point to.
    names: Vec<(String, Digest)>,
    pinned: bool,
}

/// The images of CRI's namespace.
#[derive(Clone)]
pub(super) struct Images {
    /// Where they are.
    pub(super) stores: Arc<Stores>,
    // By what records point to; kubelets ask several times a minute, and before each start of a container.
    read: Arc<Mutex<HashMap<Digest, Facts>>>,
}

impl Images {
    /// The images of these stores.
    pub(super) fn new(stores: Arc<Stores>) -> Self {
        Self { stores, read: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Facts>> {
        // Only whole entries come and go under the lock.
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every image, in the order of their ids.
    pub(super) fn list(&self) -> Result<Vec<Image>, ImagesError> {
        let mut images = BTreeMap::<Digest, Image>::new();
        let records = self.stores.images.list(NAMESPACE, &[])?;
        for (name, record) in &records {
            let Some(facts) = self.usable(name, record)? else { continue };
            let image = Image { facts, names: Vec::new(), pinned: false };
            let image = images.entry(image.facts.id).or_insert(image);
            image.pinned |= record.labels.get(PINNED.0).is_some_and(|value| value == PINNED.1);
            image.names.push((name.clone(), record.target.digest));
        }
        let used: HashSet<_> = records.iter().map(|(_, record)| record.target.digest).collect();
        self.lock().retain(|target, _| used.contains(target));
        Ok(images.into_values().collect())
    }

    /// The image of a name, an id, or the beginning of one.
    pub(super) fn find(&self, wanted: &str) -> Result<Option<Image>, ImagesError> {
        let mut all = self.list()?;
        if let Ok(name) = wanted.parse::<ImageRef>() {
            let name = record_name(&name);
            if let Some(at) = all.iter().position(|image| image.names.iter().any(|(known, _)| *known == name)) {
                return Ok(Some(all.swap_remove(at)));
            }
        }
        let id = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if id.len() < SHORTEST_ID || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(None);
        }
        let mut found = all.into_iter().filter(|image| image.facts.id.hex().starts_with(id));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(ImagesError::Ambiguous(wanted.to_owned())),
            (one, _) => Ok(one),
        }
    }

    /// The id of what a pull has just brought.
    pub(super) fn id_of(&self, target: &Descriptor) -> Result<Digest, ImagesError> {
        Ok(self.facts(target)?.id)
    }

    // One that lacks documents, or was never unpacked, is none that a container could be made of: to the kubelet it isn't here, so
    // that it pulls it.
    fn usable(&self, name: &str, record: &Record) -> Result<Option<Facts>, ImagesError> {
        let facts = match self.facts(&record.target) {
            Err(error) if error.is_of_one() => {
                debug!(image = name, error = %chain(&error), "image passed over");
                return Ok(None);
            }
            other => other?,
        };
        if let Some(top) = &facts.chain {
            match self.stores.snapshots.get_or_default("")?.stat(NAMESPACE, &top.to_string()) {
                Err(SnapshotError::NotFound(_) | SnapshotError::Making(_)) => {
                    debug!(image = name, "image passed over: it is not unpacked");
                    return Ok(None);
                }
                other => other?,
            };
        }
        Ok(Some(facts))
    }

    fn facts(&self, target: &Descriptor) -> Result<Facts, ImagesError> {
        let known = self.lock().get(&target.digest).cloned();
        if let Some(facts) = known {
            // Clients of the content service can remove anything.
            self.stores.content.info(NAMESPACE, &facts.id)?;
            return Ok(facts);
        }
        let facts = self.read(target)?;
        self.lock().insert(target.digest, facts.clone());
        Ok(facts)
    }

    fn read(&self, target: &Descriptor) -> Result<Facts, ImagesError> {
        let content = &self.stores.content;
        let (mut digest, mut media_type) = (target.digest, target.media_type.clone());
        for _ in 0..DEPTH {
            let bytes = content.read_all(NAMESPACE, &digest, MANIFEST_LIMIT)?;
            let manifest = match Document::parse(&bytes, digest, &media_type)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(index) => {
                    let chosen = index.select(digest, &Platform::host())?;
                    (digest, media_type) = (chosen.digest, chosen.media_type.clone());
                    continue;
                }
            };
            let id = manifest.config.digest;
            let json = content.read_all(NAMESPACE, &id, CONFIG_LIMIT)?;
            let layers = manifest.layers.iter().map(|layer| layer.size);
            return Ok(Facts {
                id,
                chain: Config::parse(&json, id)?.chain_id(),
                // As somebody else wrote them.
                size: layers.fold((bytes.len() + json.len()) as u64, u64::saturating_add),
                user: user(&json, id)?,
            });
        }
        Err(ImagesError::TooDeep(target.digest))
    }

    /// What a verbose answer has besides, as JSON under the names that crictl knows.
    pub(super) fn info(&self, image: &Image) -> Result<String, ImagesError> {
        #[derive(serde::Serialize)]
        struct Info {
            #[serde(rename = "chainID")]
            chain: Option<Digest>,
            #[serde(rename = "imageSpec")]
            config: Box<RawValue>,
        }
        let malformed = |error: serde_json::Error| ManifestError::Malformed {
            what: "image configuration",
            digest: image.facts.id,
            why: error.to_string(),
        };
        let config = serde_json::from_slice(&self.config(image)?).map_err(malformed)?;
        Ok(serde_json::to_string(&Info { chain: image.facts.chain, config }).map_err(malformed)?)
    }

    /// The configuration of an image.
    pub(super) fn config(&self, image: &Image) -> Result<Vec<u8>, ImagesError> {
        Ok(self.stores.content.read_all(NAMESPACE, &image.facts.id, CONFIG_LIMIT)?)
    }

    /// Removes every name of an image, and, when this returns, what nothing else keeps.
    pub(super) fn remove(&self, wanted: &str) -> Result<(), ImagesError> {
        let names = match self.find(wanted)? {
            Some(image) => image.names,
            // Its name may stand for something that isn't usable.
            None => match wanted.parse::<ImageRef>().map(|name| record_name(&name)) {
                Err(_) => return Ok(()),
                Ok(name) => match self.stores.images.get(NAMESPACE, &name) {
                    Ok(record) => vec![(name, record.target.digest)],
                    Err(ImageError::NotFound(_)) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
            },
        };
        for (name, target) in names {
            match self.stores.images.delete(NAMESPACE, &name, Some(&target.to_string())) {
                Ok(()) => {
                    let event = proto::containerd::services::images::v1::ImageDelete { name };
                    self.stores.publish(NAMESPACE, "/images/delete", &event);
                }
                // By now it is another image's name, or gone.
                Err(ImageError::NotFound(_) | ImageError::Moved { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.stores.gc.collect()?;
        Ok(())
    }

    /// What images take: blobs and committed snapshots.
    pub(super) fn usage(&self) -> Result<Usage, ImagesError> {
        let blobs = self.stores.content.list(NAMESPACE, &[])?;
        let mut sum = Usage { bytes: 0, inodes: 0 };
        let mut add = |bytes: u64, inodes: u64| {
            sum = Usage { bytes: sum.bytes.saturating_add(bytes), inodes: sum.inodes.saturating_add(inodes) };
        };
        blobs.iter().for_each(|(_, info)| add(info.size, 1));
        for snapshotter in self.stores.snapshots.loaded() {
            let snapshots = snapshotter.list(NAMESPACE, &[])?;
            let committed = snapshots.iter().filter(|(_, snapshot)| snapshot.kind == Kind::Committed);
            committed.for_each(|(_, snapshot)| add(snapshot.usage.bytes, snapshot.usage.inodes));
        }
        Ok(sum)
    }
}

/// The name under which a pull of `image` is found: a digest says more than a tag.
fn record_name(image: &ImageRef) -> String {
    match image.digest() {
        Some(digest) => image.with_digest(digest).to_string(),
        None => image.clone().with_default_tag().to_string(),
    }
}

fn user(config: &[u8], id: Digest) -> Result<String, ManifestError> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Process {
        user: Option<String>,
    }
    #[derive(Deserialize)]
    struct Raw {
        config: Option<Process>,
    }
    let raw: Raw = serde_json::from_slice(config).map_err(|error| ManifestError::Malformed {
        what: "image configuration",
        digest: id,
        why: error.to_string(),
    })?;
    Ok(raw.config.unwrap_or_default().user.unwrap_or_default())
}

impl Image {
    /// Its id: the digest of its configuration.
    pub(super) fn id(&self) -> Digest {
        self.facts.id
    }

    /// The snapshot of all its layers, if it has some.
    pub(super) fn chain(&self) -> Option<Digest> {
        self.facts.chain
    }

    /// A name of it.
    pub(super) fn first_name(&self) -> Option<String> {
        self.names.first().map(|(name, _)| name.clone())
    }

    /// The image as CRI's message.
    pub(super) fn to_proto(&self) -> cri::Image {
        let names: Vec<ImageRef> = self.names.iter().filter_map(|(name, _)| name.parse().ok()).collect();
        let (by_digest, by_tag): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.digest().is_some());
        let texts = |names: Vec<&ImageRef>| names.into_iter().map(ToString::to_string).collect();
        let (uid, username) = identity(&self.facts.user);
        cri::Image {
            id: self.facts.id.to_string(),
            repo_tags: texts(by_tag),
            repo_digests: texts(by_digest),
            size: self.facts.size,
            uid: uid.map(|value| cri::Int64Value { value }),
            username,
            spec: None,
            pinned: self.pinned,
        }
    }
}

// `USER` of an image: a number, or a name that only the image's own /etc/passwd knows; nothing is root.
fn identity(user: &str) -> (Option<i64>, String) {
    match user.split(':').next().unwrap_or_default() {
        "" => (Some(0), String::new()),
        name => match name.parse::<u32>() {
            Ok(uid) => (Some(uid.into()), String::new()),
            Err(_) => (None, name.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images() {
        for (user, uid, name) in [
            ("", Some(0), ""),
            ("0", Some(0), ""),
            ("1000:1000", Some(1000), ""),
            ("nobody", None, "nobody"),
            ("web:www", None, "web"),
            ("-1", None, "-1"),
            (":5", Some(0), ""),
        ] {
            assert_eq!(identity(user), (uid, name.to_owned()), "{user:?}");
        }
    }

    #[test]
    fn names_of_records() {
        let digest = Digest::of(b"");
        for (written, recorded) in [
            ("busybox".to_owned(), "docker.io/library/busybox:latest".to_owned()),
            ("reg.example/a/b:1".to_owned(), "reg.example/a/b:1".to_owned()),
            (format!("busybox:1@{digest}"), format!("docker.io/library/busybox@{digest}")),
        ] {
            assert_eq!(record_name(&written.parse().unwrap()), recorded);
        }
    }

    #[test]
    fn tags_and_digests_are_told_apart_and_other_names_left_out() {
        let digest = Digest::of(b"x");
        let name = |name: &str| (name.to_owned(), digest);
        let image = Image {
            facts: Facts { id: digest, chain: None, size: 7, user: "5".into() },
            names: vec![name("reg.example/a:1"), name(&format!("reg.example/a@{digest}")), name("Not A Name")],
            pinned: true,
        };
        let message = image.to_proto();
        assert_eq!(message.repo_tags, ["reg.example/a:1"]);
        assert_eq!(message.repo_digests, [format!("reg.example/a@{digest}")]);
        assert_eq!((message.size, message.uid, message.pinned), (7, Some(cri::Int64Value { value: 5 }), true));
    }
}
