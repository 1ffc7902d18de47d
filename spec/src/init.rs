//! Process 1 where it is Berth's own: the shim under another name. Containers get a copy of it: one with the right to mount could
//! make its view of the file writable, and the shim is run on the host.

use std::{
    fs::{File, Metadata, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// Copies a program unless that is done; one that containers run from already is replaced, not written to.
pub fn copy_of(from: &Path, to: &Path) -> io::Result<()> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let source = File::open(from)?;
    let meta = source.metadata()?;
    let is_same = |copy: Metadata| copy.len() == meta.len() && copy.modified().ok() == meta.modified().ok();
    if std::fs::metadata(to).is_ok_and(is_same) {
        return Ok(());
    }
    // One of each start: two may copy at once. What a process of this number has left is half a copy.
    let part = to.with_extension(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let made = (|| {
        let mut target = File::create(&part)?;
        io::copy(&mut &source, &mut target)?;
        target.set_permissions(Permissions::from_mode(0o755))?;
        target.set_modified(meta.modified()?)?;
        drop(target);
        std::fs::rename(&part, to)
    })();
    if made.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copied_once_and_again_when_there_is_a_newer_one() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, "one").unwrap();
        copy_of(&from, &to).unwrap();
        let first = std::fs::metadata(&to).unwrap();
        assert_eq!(first.mode() & 0o777, 0o755);
        copy_of(&from, &to).unwrap();
        assert_eq!(std::fs::metadata(&to).unwrap().ino(), first.ino());
        std::fs::write(&from, "another").unwrap();
        copy_of(&from, &to).unwrap();
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "another");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
