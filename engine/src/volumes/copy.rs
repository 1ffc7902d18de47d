//! Copies a folder of an image into a new volume: owners, modes, times, attributes, links and devices as they are. The source is
//! untrusted: it is walked by descriptors and no link in it is followed.
//!
//! Each file gets its name when it is complete, and what has its name already is left alone: a copy that was interrupted is gone on
//! with by copying once more.

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat},
};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};
use sys::path::{Within, open_within};

/// Deeper trees than this are refused: one descriptor pair is open per level.
const DEPTH: usize = 200;
/// What a file is called until it is complete.
const PART: &CStr = c".berth-part";

/// Copies the content and attributes of folder `from` into the folder `to`.
pub fn copy_tree(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    Copy { root: to, linked: HashMap::new() }.folder(from, to, &[], 0)
}

struct Copy<'a> {
    root: &'a OwnedFd,
    /// First names of files that have several, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Copy<'_> {
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        if depth > DEPTH {
            return Err(io::Error::other(format!("folders nested deeper than {DEPTH}")));
        }
        let nofollow = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut listing = Dir::openat(from, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | nofollow, Mode::empty())?;
        for entry in listing.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let child = [path, name.to_bytes()].join(&b'/');
            if kind_of(&stat) == Type::Directory {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | nofollow;
                let source = openat(from, name, flags, Mode::empty())?;
                unless_there(mkdirat(to, name, Mode::S_IRWXU))?;
                let target = openat(to, name, flags, Mode::empty())?;
                self.folder(&source, &target, &child, depth + 1)?;
                continue;
            }
            if stat.st_nlink > 1 {
                let key = (stat.st_dev, stat.st_ino);
                match self.linked.get(&key) {
                    Some(first) if self.link(first, to, name)? => continue,
                    Some(_) => {}
                    None => _ = self.linked.insert(key, child),
                }
            }
            leaf(from, to, name, &stat)?;
        }
        copy_xattrs(from, c".", to)?;
        attributes(to, &fstat(from)?)
    }

    /// Gives a file that was copied another name; false if it isn't there any more.
    fn link(&self, first: &[u8], to: &OwnedFd, name: &CStr) -> io::Result<bool> {
        let mut parts = first.rsplitn(2, |byte| *byte == b'/');
        let (file, folder) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let folder = CString::new([b"./", folder.strip_prefix(b"/").unwrap_or(folder)].concat())?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        // Whoever uses the volume at the same time may have put a link in the folder's place.
        let folder = open_within(self.root, folder.as_c_str(), flags, 0, Within::Plain)?;
        match linkat(&folder, CString::new(file)?.as_c_str(), to, name, LinkatFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => Ok(true),
            // Also where the file system has no hard links: a file of its own.
            Err(Errno::ENOENT | Errno::EPERM | Errno::EMLINK | Errno::ENOTSUP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn unless_there(made: nix::Result<()>) -> io::Result<()> {
    match made {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Copies anything but a folder.
fn leaf(from: &OwnedFd, to: &OwnedFd, name: &CStr, stat: &FileStat) -> io::Result<()> {
    let nofollow = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match fstatat(to, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => {}
        Ok(_) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    match unlinkat(to, PART, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match kind_of(stat) {
        Type::Symlink => {
            let target = readlinkat(from, name)?;
            symlinkat(target.as_os_str(), to, PART)?;
            own_and_date(to, stat)?;
        }
        Type::File => {
            let source = openat(from, name, OFlag::O_RDONLY | nofollow, Mode::empty())?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | nofollow;
            let target = openat(to, PART, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let (mut reader, mut writer) = (File::from(source), File::from(target));
            // copy_file_range or sendfile under the hood.
            io::copy(&mut reader, &mut writer)?;
            let target = OwnedFd::from(writer);
            fchown(&target, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
            // After chown, which clears capabilities and set-id bits.
            copy_xattrs(from, name, &target)?;
            attributes(&target, stat)?;
            proto::fault!("engine.volume_fill.written");
        }
        _ => {
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
            mknodat(to, PART, kind, Mode::S_IRUSR, stat.st_rdev)?;
            own_and_date(to, stat)?;
            // Should it have been exchanged for a link meanwhile, this fails rather than follow it.
            fchmodat(to, PART, mode, FchmodatFlags::NoFollowSymlink)?;
        }
    }
    // What came to have the name meanwhile stays.
    match linkat(to, PART, to, name, LinkatFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(unlinkat(to, PART, UnlinkatFlags::NoRemoveDir)?),
        Err(Errno::EPERM | Errno::ENOTSUP) => Ok(nix::fcntl::renameat(to, PART, to, name)?),
        Err(error) => Err(error.into()),
    }
}

/// Attributes of users, capabilities and access lists; not what this machine's security module or overlay notes.
fn copy_xattrs(folder: &OwnedFd, name: &CStr, to: &OwnedFd) -> io::Result<()> {
    let path = [format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat();
    let path = CString::new(path)?;
    for key in sys::xattr::llist(&path)? {
        let wanted =
            key.starts_with(b"user.") || key == b"security.capability" || key.starts_with(b"system.posix_acl_");
        let key = CString::new(key)?;
        let Some(value) = wanted.then(|| sys::xattr::lget(&path, &key)).transpose()?.flatten() else { continue };
        match sys::xattr::fset(to, &key, &value) {
            // Not every file system of a volume has them.
            Ok(()) | Err(Errno::ENOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn kind_of(stat: &FileStat) -> Type {
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => Type::Directory,
        SFlag::S_IFLNK => Type::Symlink,
        SFlag::S_IFIFO => Type::Fifo,
        SFlag::S_IFCHR => Type::CharacterDevice,
        SFlag::S_IFBLK => Type::BlockDevice,
        SFlag::S_IFSOCK => Type::Socket,
        _ => Type::File,
    }
}

fn attributes(file: impl AsFd, stat: &FileStat) -> io::Result<()> {
    fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    // After chown, which clears set-id bits.
    fchmod(&file, Mode::from_bits_truncate(stat.st_mode & 0o7777))?;
    let (accessed, modified) = times(stat);
    Ok(futimens(&file, &accessed, &modified)?)
}

fn own_and_date(folder: &OwnedFd, stat: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(folder, PART, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (accessed, modified) = times(stat);
    Ok(utimensat(folder, PART, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{sys::stat::mknod, unistd::mkfifo};
    use std::{
        os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
        path::Path,
    };

    fn open(path: &Path) -> OwnedFd {
        File::open(path).unwrap().into()
    }

    #[test]
    fn copies_attributes_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("sub/file"), "text").unwrap();
        std::fs::set_permissions(from.join("sub/file"), PermissionsExt::from_mode(0o4750)).unwrap();
        std::os::unix::fs::chown(from.join("sub"), Some(7), Some(8)).unwrap();
        symlink("/etc", from.join("link")).unwrap();
        std::fs::hard_link(from.join("sub/file"), from.join("same")).unwrap();
        mkfifo(&from.join("fifo"), Mode::from_bits_truncate(0o640)).unwrap();
        std::fs::set_permissions(from.join("fifo"), PermissionsExt::from_mode(0o622)).unwrap();
        let null = nix::sys::stat::makedev(1, 3);
        let device = mknod(&from.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), null).is_ok();
        let attribute = |path: &Path| {
            let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
            sys::xattr::lget(&path, c"user.berth").unwrap()
        };
        let kept = sys::xattr::fset(open(&from.join("sub/file")), c"user.berth", b"value").is_ok();
        copy_tree(&open(&from), &open(&to)).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert_eq!(std::fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4750);
        let sub = std::fs::metadata(to.join("sub")).unwrap();
        assert_eq!((sub.uid(), sub.gid()), (7, 8));
        assert_eq!(std::fs::read_link(to.join("link")).unwrap(), Path::new("/etc"));
        let inode = |name: &str| std::fs::metadata(to.join(name)).unwrap().ino();
        assert_eq!(inode("same"), inode("sub/file"));
        let fifo = std::fs::symlink_metadata(to.join("fifo")).unwrap();
        assert!(fifo.file_type().is_fifo() && fifo.mode() & 0o7777 == 0o622);
        assert!(!device || std::fs::metadata(to.join("null")).unwrap().rdev() == null);
        assert!(!kept || attribute(&to.join("sub/file")) == Some(b"value".to_vec()));
    }

    #[test]
    fn an_interrupted_copy_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::create_dir_all(to.join("sub")).unwrap();
        for name in ["one", "sub/two", "sub/three"] {
            std::fs::write(from.join(name), "image").unwrap();
        }
        // One was copied and then written to by somebody; two was on its way.
        std::fs::write(to.join("one"), "mine").unwrap();
        std::fs::write(to.join("sub/.berth-part"), "im").unwrap();
        copy_tree(&open(&from), &open(&to)).unwrap();
        let text = |name: &str| std::fs::read_to_string(to.join(name)).unwrap();
        assert_eq!([text("one"), text("sub/two"), text("sub/three")], ["mine", "image", "image"]);
        assert!(!to.join("sub/.berth-part").exists());
    }
}
