//! Image records: a name that points to a manifest or an index in the content store.

pub(crate) mod manifest;

use proto::kind::ErrorKind;
use serde::{Deserialize, Serialize};

use crate::{
    failure::Failure,
    filters::{FilterError, Filters},
    namespaces,
    store::{Database, Labels, StoreError, Table, Time, update_labels},
};
use manifest::Descriptor;

/// Records of images: namespace and name.
pub(crate) const IMAGES: Table<Record> = Table::new("images");

/// An image as it is recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The manifest or index.
    pub(crate) target: Descriptor,
    /// Its labels.
    pub(crate) labels: Labels,
    /// When the name was made.
    pub(crate) created_at: Time,
    /// When it was last changed.
    pub(crate) updated_at: Time,
}

/// Why an image record could not be changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// No such name.
    #[error("image {0:?}: not found")]
    NotFound(String),
    /// The name is taken.
    #[error("image {0:?}: already exists")]
    Exists(String),
    /// It doesn't point any more to what the caller means.
    #[error("image {name:?} does not point to {target} but to {now}; nothing was removed")]
    Moved {
        /// The name.
        name: String,
        /// What the caller means.
        target: String,
        /// What it points to.
        now: String,
    },
    /// The request can't be carried out.
    #[error("{0}")]
    Invalid(String),
    /// A filter that can't be read.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Moved { .. } => ErrorKind::NotFound,
            Self::Exists(_) => ErrorKind::AlreadyExists,
            Self::Invalid(_) | Self::Filter(_) => ErrorKind::InvalidArgument,
            Self::Store(error) => error.kind(),
        }
    }
}

/// The image names of every namespace.
#[derive(Clone)]
pub(crate) struct Images {
    db: Database,
}

impl Images {
    /// Images kept in `db`.
    pub(crate) fn new(db: Database) -> Self {
        Self { db }
    }

    /// The image of a name.
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Result<Record, ImageError> {
        self.db.read(|tx| IMAGES.get(tx, namespace, name))?.ok_or_else(|| ImageError::NotFound(name.to_owned()))
    }

    /// The images that pass the filters.
    pub(crate) fn list(&self, namespace: &str, filters: &[String]) -> Result<Vec<(String, Record)>, ImageError> {
        let filters = Filters::parse(filters)?;
        let mut found = self.db.read(|tx| IMAGES.list(tx, namespace, ""))?;
        found.retain(|(name, record)| {
            filters.accept_labelled(&record.labels, |field| match field {
                "name" => Some(name.clone()),
                "target.digest" => Some(record.target.digest.to_string()),
                "target.mediatype" => Some(record.target.media_type.clone()),
                field => record.target.annotations.as_ref()?.get(field.strip_prefix("annotations.")?).cloned(),
            })
        });
        Ok(found)
    }

    /// Makes a name.
    pub(crate) fn create(
        &self,
        namespace: &str,
        name: &str,
        target: Descriptor,
        labels: Labels,
    ) -> Result<Record, ImageError> {
        check_name(name)?;
        let now = Time::now();
        let record = Record { target, labels, created_at: now, updated_at: now };
        self.db.write(|tx| {
            if IMAGES.get(tx, namespace, name)?.is_some() {
                return Err(ImageError::Exists(name.to_owned()));
            }
            IMAGES.put(tx, namespace, name, &record)?;
            Ok(namespaces::touch_in(tx, namespace)?)
        })?;
        proto::fault!("supervisor.image_record.created");
        Ok(record)
    }

    /// Changes what the field mask names; an empty mask replaces target and labels.
    pub(crate) fn update(
        &self,
        namespace: &str,
        name: &str,
        target: Option<Descriptor>,
        labels: &Labels,
        paths: &[String],
    ) -> Result<Record, ImageError> {
        let all = ["target".to_owned(), "labels".to_owned()];
        self.db.write(|tx| {
            let mut record = IMAGES.get(tx, namespace, name)?.ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
            for path in if paths.is_empty() { &all[..] } else { paths } {
                if path == "target" {
                    let missing = || ImageError::Invalid(format!("image {name:?}: target is missing"));
                    record.target = target.clone().ok_or_else(missing)?;
                } else if path == "annotations" || path.starts_with("annotations.") {
                    let missing = || ImageError::Invalid(format!("image {name:?}: target is missing"));
                    let new = target.as_ref().ok_or_else(missing)?.annotations.clone().unwrap_or_default();
                    let path = path.replacen("annotations", "labels", 1);
                    let mut notes = record.target.annotations.take().unwrap_or_default();
                    update_labels(&mut notes, &[path], &new).map_err(ImageError::Invalid)?;
                    record.target.annotations = Some(notes).filter(|notes| !notes.is_empty());
                } else {
                    update_labels(&mut record.labels, std::slice::from_ref(path), labels)
                        .map_err(|path| ImageError::Invalid(format!("image field {path:?} can't be updated")))?;
                }
            }
            record.updated_at = Time::now();
            IMAGES.put(tx, namespace, name, &record)?;
            Ok(record)
        })
    }

    /// Makes a name or points it to something else; tells whether it is new.
    pub(crate) fn put(
        &self,
        namespace: &str,
        name: &str,
        target: &Descriptor,
        labels: &Labels,
    ) -> Result<bool, ImageError> {
        check_name(name)?;
        // In one transaction: the name may go, or come, at any moment.
        let new = self.db.write(|tx| {
            let (known, now) = (IMAGES.get(tx, namespace, name)?, Time::now());
            let created_at = known.as_ref().map_or(now, |known| known.created_at);
            let record = Record { target: target.clone(), labels: labels.clone(), created_at, updated_at: now };
            IMAGES.put(tx, namespace, name, &record)?;
            namespaces::touch_in(tx, namespace)?;
            Ok::<_, ImageError>(known.is_none())
        })?;
        proto::fault!("supervisor.image_record.put");
        Ok(new)
    }

    /// Removes a name, only while it points to `target` if that is given; what it pointed to goes with the next collection.
    pub(crate) fn delete(&self, namespace: &str, name: &str, target: Option<&str>) -> Result<(), ImageError> {
        self.db.write(|tx| {
            if let Some(target) = target
                && let Some(record) = IMAGES.get(tx, namespace, name)?
                && record.target.digest.to_string() != target
            {
                let target = target.chars().take(100).collect();
                return Err(ImageError::Moved { name: name.to_owned(), target, now: record.target.digest.to_string() });
            }
            if IMAGES.remove(tx, namespace, name)? { Ok(()) } else { Err(ImageError::NotFound(name.to_owned())) }
        })
    }
}

fn check_name(name: &str) -> Result<(), ImageError> {
    if name.is_empty() || name.len() > 1024 || name.contains('\0') {
        return Err(ImageError::Invalid(format!("image name {name:?} is empty, too long, or holds a NUL")));
    }
    Ok(())
}
