//! How ingests become blobs: synced, put in place, recorded. Those that are ready at the same moment share what costs time,
//! the disk's answers: an image has many small layers.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
};

use proto::digest::Digest;

use super::{CONTENT, Content, ContentError, Info};
use crate::{
    leases, namespaces,
    store::{Labels, StoreError, Time, WriteTx},
};

/// An ingest whose bytes are what was promised.
pub(super) struct Ready {
    pub(super) namespace: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) labels: Labels,
    pub(super) lease: Option<String>,
    pub(super) data: File,
    pub(super) folder: PathBuf,
}

type Outcome = Result<Digest, ContentError>;

/// Commits on their way.
#[derive(Default)]
pub(super) struct Commits {
    waiting: Mutex<Vec<(Ready, Sender<Outcome>)>>,
    // Whoever has it works for all who wait.
    working: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Commits {
    /// Commits one ingest, and those of others that wait; returns when this one is done.
    pub(super) fn commit(&self, content: &Content, ready: Ready) -> Outcome {
        let digest = ready.digest;
        let (sender, outcome) = channel();
        lock(&self.waiting).push((ready, sender));
        {
            let _turn = lock(&self.working);
            let lot = std::mem::take(&mut *lock(&self.waiting));
            if !lot.is_empty() {
                content.commit_lot(lot);
            }
        }
        let lost = || ContentError::Invalid(format!("content {digest} was not stored: its commit met a bug"));
        outcome.recv().unwrap_or_else(|_| Err(lost()))
    }
}

impl Content {
    fn commit_lot(&self, mut lot: Vec<(Ready, Sender<Outcome>)>) {
        // Once one of several has been synced, the file system's journal holds the others too.
        lot.retain(|(ready, sender)| match ready.data.sync_data() {
            Ok(()) => true,
            Err(cause) => {
                let what = format!("store content {}", ready.digest);
                let _ = sender.send(Err(ContentError::Io { what, cause }));
                false
            }
        });
        proto::fault!("supervisor.content_commit.synced");
        let together = self.place(&lot.iter().map(|(ready, _)| ready).collect::<Vec<_>>());
        match together {
            Ok(existed) => {
                for ((ready, sender), existed) in lot.into_iter().zip(existed) {
                    let _ = sender.send(ready.settle(existed));
                }
            }
            // One of them can't be placed: each for itself, so that it harms no other.
            Err(_) => {
                for (ready, sender) in lot {
                    let outcome = self.place(&[&ready]).map(|existed| existed.first() == Some(&true));
                    let _ = sender.send(outcome.and_then(|existed| ready.settle(existed)));
                }
            }
        }
    }

    // For each whether its namespace had it before.
    fn place(&self, lot: &[&Ready]) -> Result<Vec<bool>, ContentError> {
        self.db.write(|tx| {
            let mut existed = Vec::with_capacity(lot.len());
            for ready in lot {
                existed.push(self.place_one(tx, ready)?);
            }
            if existed.contains(&false) {
                // The names must be on disk before the records; the database's own sync doesn't cover this folder.
                proto::fault!("supervisor.content_commit.placed");
                let failed = |cause| ContentError::Io { what: "sync the folder of blobs".into(), cause };
                File::open(&self.blobs).and_then(|folder| folder.sync_all()).map_err(failed)?;
            }
            Ok::<_, ContentError>(existed)
        })
    }

    fn place_one(&self, tx: &WriteTx, ready: &Ready) -> Result<bool, ContentError> {
        let digest = &ready.digest;
        if CONTENT.get(tx, &ready.namespace, &digest.to_string())?.is_some() {
            if let Some(lease) = &ready.lease {
                leases::add_in(tx, &ready.namespace, lease, "content", &digest.to_string())?;
            }
            return Ok(true);
        }
        let (data, blob) = (ready.folder.join("data"), self.file_of(digest));
        match fs::rename(&data, &blob) {
            // Placed by an attempt whose transaction failed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && blob.exists() => {}
            other => {
                other.map_err(|cause| ContentError::Io { what: format!("store content {digest}"), cause })?;
            }
        }
        ready.record(tx)?;
        Ok(false)
    }
}

impl Ready {
    /// Writes the record of a blob whose file is in place.
    fn record(&self, tx: &WriteTx) -> Result<(), StoreError> {
        let (key, now) = (self.digest.to_string(), Time::now());
        let info = Info { size: self.size, created_at: now, updated_at: now, labels: self.labels.clone() };
        CONTENT.put(tx, &self.namespace, &key, &info)?;
        namespaces::touch_in(tx, &self.namespace)?;
        match &self.lease {
            Some(lease) => leases::add_in(tx, &self.namespace, lease, "content", &key),
            None => Ok(()),
        }
    }

    fn settle(self, existed: bool) -> Outcome {
        proto::fault!("supervisor.content_commit.recorded");
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(folder = %self.folder.display(), %error, "ingest folder left to the collector");
        }
        if existed { Err(ContentError::Exists(self.digest)) } else { Ok(self.digest) }
    }
}
