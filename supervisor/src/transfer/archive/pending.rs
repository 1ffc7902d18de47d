//! Blobs that are written and wait for the disk: the next file is read meanwhile, and those that are ready at the same
//! moment are stored together.

use std::{
    collections::VecDeque,
    thread::{self, JoinHandle},
};

use super::super::TransferError;
use crate::{
    content::{ContentError, Writer},
    store::Labels,
};

/// Blobs that wait at the same time.
const MOST: usize = 16;

/// Commits on their way. Dropped, it waits for them: none goes on when the transfer has ended.
#[derive(Default)]
pub(super) struct Pending(VecDeque<JoinHandle<Result<(), ContentError>>>);

impl Pending {
    /// Commits what a writer has written, sooner or later; gives the error of an earlier one.
    pub(super) fn commit(&mut self, writer: Writer, size: u64) -> Result<(), TransferError> {
        while self.0.len() >= MOST {
            self.join_one()?;
        }
        let commit = move || match writer.commit(size, None, &Labels::new()) {
            Ok(_) | Err(ContentError::Exists(_)) => Ok(()),
            Err(error) => Err(error),
        };
        let spawned = thread::Builder::new().name("commit".into()).stack_size(256 << 10).spawn(commit);
        let cut = |_| TransferError::Cut("no thread to store a blob");
        self.0.push_back(spawned.map_err(cut)?);
        Ok(())
    }

    fn join_one(&mut self) -> Result<(), TransferError> {
        let Some(first) = self.0.pop_front() else { return Ok(()) };
        first.join().unwrap_or(Err(ContentError::Invalid("a blob was not stored: its commit met a bug".into())))?;
        Ok(())
    }

    /// Waits until all are stored.
    pub(super) fn finish(mut self) -> Result<(), TransferError> {
        while !self.0.is_empty() {
            self.join_one()?;
        }
        Ok(())
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for commit in self.0.drain(..) {
            let _ = commit.join();
        }
    }
}
