//! Gives up large files beside the thread that copies output. Where the file system tells the disk which blocks are free (the
//! mount option `discard`) that takes tens of milliseconds, and the container would wait for them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::fcntl::OFlag;

/// Smaller ones are freed on the spot.
const LARGE: u64 = 1 << 20;

/// So many may wait.
const MOST: usize = 4;

/// All that a thread needs to close a file.
const STACK: usize = 64 << 10;

/// Frees one file after the other.
#[derive(Debug, Default, Clone)]
pub(super) struct Discard(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    files: Vec<File>,
    /// There is a thread that will look for them.
    attended: bool,
}

/// Keeps a file whose name is about to go, if it is a large one.
pub(super) fn hold(path: &Path) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= LARGE).then_some(file)
}

impl Discard {
    /// Closes a file without a name. The caller has to wait if too many are waiting already: files must not go more slowly
    /// than they come.
    pub(super) fn free(&self, file: Option<File>) {
        let Some(file) = file else { return };
        let mut waiting = self.lock();
        if waiting.files.len() >= MOST {
            drop(waiting);
            return drop(file);
        }
        waiting.files.push(file);
        if !waiting.attended {
            waiting.attended = true;
            drop(waiting);
            let this = self.clone();
            if thread::Builder::new().stack_size(STACK).spawn(move || this.close_all()).is_err() {
                self.close_all();
            }
        }
    }

    fn close_all(&self) {
        while let Some(file) = self.next() {
            drop(file);
        }
    }

    fn next(&self) -> Option<File> {
        let mut waiting = self.lock();
        let file = waiting.files.pop();
        waiting.attended = file.is_some();
        file
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_large_file_is_held_until_it_is_freed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("log.4");
        assert!(hold(&path).is_none(), "there is none");
        fs::write(&path, "small").expect("write");
        assert!(hold(&path).is_none());
        File::create(&path).and_then(|file| file.set_len(LARGE)).expect("size");
        let held = hold(&path).expect("held");
        fs::remove_file(&path).expect("remove");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let is_open = || fs::read_link(&link).is_ok_and(|target| target.starts_with(folder.path()));
        assert!(is_open());
        let discard = Discard::default();
        discard.free(Some(held));
        while discard.lock().attended {
            thread::yield_now();
        }
        assert!(!is_open());
    }

    #[test]
    fn no_more_than_a_few_wait() {
        let discard = Discard::default();
        // As if the thread were busy with a disk that hangs.
        discard.lock().attended = true;
        for _ in 0..2 * MOST {
            discard.free(Some(tempfile::tempfile().expect("file")));
        }
        assert_eq!(discard.lock().files.len(), MOST);
        discard.close_all();
        let waiting = discard.lock();
        assert!(waiting.files.is_empty() && !waiting.attended);
    }
}
