//! Removal of folders with large files in them. Freeing the blocks of 100 MB of logs takes tens of milliseconds where the file
//! system tells the disk of each (mount option `discard`). The names go at once; whoever holds the files open decides when the
//! blocks do, and if we are killed meanwhile the kernel frees them all the same.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Smaller files go with their names.
const LARGE: u64 = 1 << 20;
/// So many are held open at most.
const MOST: usize = 32;

/// Removes a folder and all that is in it; its large files are to be dropped where nobody waits.
pub fn remove_folder(folder: &Path) -> (io::Result<()>, Vec<File>) {
    let large = fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| hold(&entry.path())).take(MOST);
    let large = large.collect();
    (fs::remove_dir_all(folder), large)
}

fn hold(path: &Path) -> Option<File> {
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_file() || meta.len() < LARGE {
        return None;
    }
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_and_large_files_stay_until_dropped() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("container");
        fs::create_dir_all(folder.join("deeper")).unwrap();
        fs::write(folder.join("small"), "x").unwrap();
        File::create(folder.join("large")).unwrap().set_len(LARGE).unwrap();
        std::os::unix::fs::symlink("large", folder.join("link")).unwrap();
        let (removed, large) = remove_folder(&folder);
        removed.unwrap();
        assert!(!folder.exists());
        assert_eq!(large.len(), 1);
        assert_eq!(large[0].metadata().unwrap().len(), LARGE);
        let (missing, large) = remove_folder(&folder);
        assert_eq!((missing.unwrap_err().kind(), large.len()), (io::ErrorKind::NotFound, 0));
    }
}
