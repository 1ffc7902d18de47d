//! Gives up large files beside the thread that copies output. Where the file system tells the disk which blocks are free (the
//! mount option `discard`) that takes tens of milliseconds, and the container would wait for them.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    thread::{self, JoinHandle},
};

use nix::fcntl::OFlag;

/// Smaller ones are freed on the spot.
const LARGE: u64 = 1 << 20;

/// All that a thread needs to close a file.
const STACK: usize = 64 << 10;

/// Frees one file at a time.
#[derive(Debug, Default)]
pub(super) struct Discard(Option<JoinHandle<()>>);

/// Keeps a file whose name is about to go, if it is a large one.
pub(super) fn hold(path: &Path) -> Option<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).ok()?;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() >= LARGE).then_some(file)
}

impl Discard {
    /// Closes a file without a name. If the one before isn't done yet the caller has to wait: files must not go more slowly than
    /// they come.
    pub(super) fn free(&mut self, file: Option<File>) {
        let Some(file) = file else { return };
        if self.0.as_ref().is_none_or(JoinHandle::is_finished) {
            // Without a thread it is closed here.
            self.0 = thread::Builder::new().stack_size(STACK).spawn(move || drop(file)).ok();
        }
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
        let mut discard = Discard::default();
        let held = hold(&path).expect("held");
        fs::remove_file(&path).expect("remove");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        let is_open = || fs::read_link(&link).is_ok_and(|target| target.starts_with(folder.path()));
        assert!(is_open());
        discard.free(Some(held));
        discard.0.take().expect("a thread").join().expect("freed");
        assert!(!is_open());
    }
}
