//! The check of a namespace while it is in use: every blob is read, every image followed, every snapshot looked at, and
//! nothing changed.
//!
//! What is removed meanwhile is no fault: whatever looks wrong is looked at once more with its record, and counts only if
//! that is still the same.

mod images;

use std::collections::{BTreeSet, HashSet};

use proto::{digest::Digest, kind::ErrorKind};

use super::blob::{self, Users};
use crate::{
    content::{CONTENT, ContentError, Info},
    failure::Failure,
    images::{IMAGES, ImageError},
    snapshots::{self, Kind as SnapshotKind, SNAPSHOTS, split},
    store::{StoreError, Stores},
};

/// Indexes within indexes that are followed.
const DEPTH: u32 = 8;
/// How often something is looked at again that changes while we look.
const LOOKS: u32 = 5;

/// Why a namespace can't be verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    /// No such image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The records can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file can't be opened.
    #[error("verify blob {digest}: read it")]
    Blob {
        /// The blob.
        digest: String,
        /// Why it failed.
        #[source]
        cause: std::io::Error,
    },
}

impl Failure for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Image(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Blob { cause, .. } => ErrorKind::of_io(cause),
        }
    }
}

/// What kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A blob, by digest.
    Blob,
    /// An image, by name.
    Image,
    /// A snapshot, by `SNAPSHOTTER/KEY`.
    Snapshot,
}

/// One object that was looked at.
#[derive(Debug)]
pub(crate) struct Object {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
    /// Its size as recorded, of a blob.
    pub(crate) bytes: u64,
    /// What is wrong with it.
    pub(crate) problems: Vec<String>,
    /// Images that need it, if something is wrong.
    pub(crate) images: Vec<String>,
}

/// Numbers of objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Blobs.
    pub(crate) blobs: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Images.
    pub(crate) images: u64,
    /// Snapshots.
    pub(crate) snapshots: u64,
    /// Layers without blob that can be made again.
    pub(crate) remakeable: u64,
    /// Objects with problems.
    pub(crate) faulty: u64,
}

/// What the walk tells as it goes.
#[derive(Debug)]
pub(crate) enum Event {
    /// How much there is to do.
    Plan(Totals),
    /// One is done.
    Object(Object),
    /// All is done.
    Totals(Totals),
}

/// Who listens.
pub(crate) trait Listener {
    /// Takes an event.
    fn tell(&mut self, event: Event);
    /// Whether somebody still listens.
    fn is_there(&self) -> bool;
}

struct Verify<'a, L> {
    stores: &'a Stores,
    namespace: &'a str,
    listener: &'a mut L,
    totals: Totals,
    remakeable: HashSet<Digest>,
}

/// Looks at all that `namespace` has, or at what belongs to the images named.
pub(crate) fn verify(
    stores: &Stores,
    namespace: &str,
    only: &[String],
    listener: &mut impl Listener,
) -> Result<(), VerifyError> {
    let (mut blobs, mut images, mut snapshots) = stores.db.read(|tx| {
        let blobs = CONTENT.list(tx, namespace, "")?;
        Ok::<_, StoreError>((blobs, IMAGES.list(tx, namespace, "")?, SNAPSHOTS.list(tx, namespace, "")?))
    })?;
    snapshots.retain(|(_, record)| !record.making);
    if let Some(missing) = only.iter().find(|name| !images.iter().any(|(known, _)| known == *name)) {
        return Err(ImageError::NotFound(missing.clone()).into());
    }
    if !only.is_empty() {
        images.retain(|(name, _)| only.contains(name));
    }
    let of_here = |blobs: Vec<(String, Info)>| -> Vec<_> {
        blobs.into_iter().map(|(digest, info)| (namespace.to_owned(), digest, info)).collect()
    };
    let records = of_here(std::mem::take(&mut blobs));
    let named: Vec<_> =
        images.iter().map(|(name, image)| (namespace.to_owned(), name.clone(), image.clone())).collect();
    let users = Users::find(&records, &named);
    let (of_blob, of_snapshot) = (users.of_blob, users.of_snapshot);
    let mut records = records;
    if !only.is_empty() {
        records.retain(|(_, digest, _)| of_blob.contains_key(digest));
        let mut wanted: BTreeSet<String> = of_snapshot.keys().cloned().collect();
        // Children come after their parents nowhere in particular: until nothing is added any more.
        loop {
            let parents = snapshots.iter().filter(|(full, _)| wanted.contains(&shown(full)));
            let parents =
                parents.filter_map(|(full, record)| Some(format!("{}/{}", split(full).0, record.parent.as_ref()?)));
            let more: Vec<String> = parents.filter(|parent| !wanted.contains(parent)).collect();
            if more.is_empty() {
                break;
            }
            wanted.extend(more);
        }
        snapshots.retain(|(full, _)| wanted.contains(&shown(full)));
    }
    let plan = Totals {
        blobs: records.len() as u64,
        bytes: records.iter().map(|(_, _, info)| info.size).sum(),
        images: images.len() as u64,
        snapshots: snapshots.len() as u64,
        ..Totals::default()
    };
    listener.tell(Event::Plan(plan));
    let mut verify = Verify { stores, namespace, listener, totals: Totals::default(), remakeable: HashSet::new() };
    let names = |users: Option<&BTreeSet<(String, String)>>| -> Vec<String> {
        users.into_iter().flatten().map(|(_, name)| name.clone()).collect()
    };
    for (_, digest, info) in &records {
        let Some(problem) = verify.blob(digest, info)? else { continue };
        let problems = problem.into_iter().collect::<Vec<_>>();
        let images = if problems.is_empty() { Vec::new() } else { names(of_blob.get(digest)) };
        verify.done(Object { kind: Kind::Blob, name: digest.clone(), bytes: info.size, problems, images });
    }
    for (name, _) in &images {
        let Some(problems) = verify.image(name)? else { continue };
        verify.done(Object { kind: Kind::Image, name: name.clone(), bytes: 0, problems, images: Vec::new() });
    }
    for (full, record) in &snapshots {
        let Some(problems) = verify.snapshot(full, record)? else { continue };
        let name = shown(full);
        let images = if problems.is_empty() { Vec::new() } else { names(of_snapshot.get(&name)) };
        verify.done(Object { kind: Kind::Snapshot, name, bytes: 0, problems, images });
    }
    let totals = Totals { remakeable: verify.remakeable.len() as u64, ..verify.totals };
    listener.tell(Event::Totals(totals));
    Ok(())
}

fn shown(full: &str) -> String {
    let (driver, key) = split(full);
    format!("{driver}/{key}")
}

impl<L: Listener> Verify<'_, L> {
    fn done(&mut self, object: Object) {
        let totals = &mut self.totals;
        match object.kind {
            Kind::Blob => (totals.blobs, totals.bytes) = (totals.blobs + 1, totals.bytes + object.bytes),
            Kind::Image => totals.images += 1,
            Kind::Snapshot => totals.snapshots += 1,
        }
        totals.faulty += u64::from(!object.problems.is_empty());
        self.listener.tell(Event::Object(object));
    }

    // The outer `None`: it is gone by now, which is nobody's fault.
    fn blob(&self, name: &str, first: &Info) -> Result<Option<Option<String>>, VerifyError> {
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok(Some(Some("is no digest that content could have".into())));
        };
        let mut info = first.clone();
        for _ in 0..LOOKS {
            if !self.listener.is_there() {
                return Ok(None);
            }
            let failed = |cause| VerifyError::Blob { digest: name.to_owned(), cause };
            let file = self.stores.content.file_of(&digest);
            let found = blob::wrong(&file, name, info.size, &|| self.listener.is_there()).map_err(failed)?;
            let Some(problem) = found else { return Ok(Some(None)) };
            match self.stores.content.info(self.namespace, &digest) {
                Ok(now) if now.created_at == info.created_at => return Ok(Some(Some(problem))),
                Ok(now) => info = now,
                Err(ContentError::NotFound(_)) => return Ok(None),
                Err(ContentError::Store(error)) => return Err(error.into()),
                Err(_) => return Ok(Some(Some(problem))),
            }
        }
        Ok(None)
    }

    fn snapshot(&self, full: &str, first: &snapshots::Record) -> Result<Option<Vec<String>>, VerifyError> {
        let mut record = first.clone();
        for _ in 0..LOOKS {
            let problems = self.problems_of(full, &record)?;
            if problems.is_empty() {
                return Ok(Some(problems));
            }
            match self.stores.db.read(|tx| SNAPSHOTS.get(tx, self.namespace, full))? {
                None => return Ok(None),
                Some(now) if now.id == record.id => return Ok(Some(problems)),
                Some(now) => record = now,
            }
        }
        Ok(None)
    }

    fn problems_of(&self, full: &str, record: &snapshots::Record) -> Result<Vec<String>, VerifyError> {
        let mut problems = Vec::new();
        let (driver, _) = split(full);
        let snapshotter = match self.stores.snapshots.get(driver) {
            Ok(snapshotter) => snapshotter,
            Err(error) => return Ok(vec![format!("can't be looked at: {error}")]),
        };
        if !snapshotter.has_files(record.id) {
            problems.push("has lost its folder".into());
        }
        for below in record.chain.iter().filter(|below| !snapshotter.has_files(**below)) {
            problems.push(format!("stands on folder {below}, which is gone"));
        }
        if let Some(parent) = &record.parent {
            let at = format!("{driver}\0{parent}");
            match self.stores.db.read(|tx| SNAPSHOTS.get(tx, self.namespace, &at))? {
                None => problems.push(format!("stands on {parent}, which is not there")),
                Some(below) if below.kind != SnapshotKind::Committed => {
                    problems.push(format!("stands on {parent}, which is not committed"));
                }
                Some(below) if record.chain.first() != Some(&below.id) => {
                    problems.push(format!("stands on {parent}, but on another folder than that has"));
                }
                Some(_) => {}
            }
        }
        Ok(problems)
    }
}
