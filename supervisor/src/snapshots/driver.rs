//! What differs between snapshotters: how a layer's files are kept, and how they are mounted.

use std::io;

use proto::containerd::types::Mount;

use super::{Record, SnapshotError, Usage, folders::Folders};
use crate::layers::apply::Target;

/// How long it takes to make a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Always the same moment: folder and record are made in one transaction.
    Instant,
    /// It depends on what is below: the record comes first, marked as unfinished, and no transaction waits for the copy.
    Long,
}

/// A way to keep layers. The files of snapshot `ID` are below `ROOT/ID`, with every driver.
pub(crate) trait Driver: Send + Sync {
    /// Its name in the API.
    fn name(&self) -> &'static str;
    /// Where its layers are.
    fn folders(&self) -> &Folders;
    /// How long `make` takes.
    fn pace(&self) -> Pace;
    /// Makes the folder of a snapshot, with what is below it where that is copied. Durable, if it takes long.
    fn make(&self, key: &str, record: &Record) -> Result<(), SnapshotError>;
    /// Removes a folder; that there is none is no error.
    fn remove(&self, id: u64) -> Result<(), SnapshotError> {
        self.folders().remove(id)
    }
    /// How to mount a writable or read-only snapshot.
    fn mounts(&self, key: &str, record: &Record) -> Result<Vec<Mount>, SnapshotError>;
    /// Makes the files of an active snapshot durable: it is about to be committed.
    fn sync(&self, record: &Record) -> Result<(), SnapshotError> {
        self.folders().sync(record.id)
    }
    /// Tells that the record has become a committed one, or that the record of an active one was found at start.
    fn settled(&self, _record: &Record) -> Result<(), SnapshotError> {
        Ok(())
    }
    /// What an unfinished or active snapshot takes.
    fn usage(&self, record: &Record) -> Result<Usage, SnapshotError> {
        self.folders().usage(record.id)
    }
    /// Whether a layer's files are the same whatever is below it.
    fn fills_apart(&self) -> bool {
        false
    }
    /// Where a layer is unpacked for an active snapshot.
    fn target(&self, record: &Record) -> Result<Target, SnapshotError>;
}

/// An error that says what was tried.
pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> SnapshotError {
    let what = what.into();
    move |cause| SnapshotError::Io { what, cause }
}
