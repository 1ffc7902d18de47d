//! Unpacks an archive that a container had a hand in: nothing is ever made or changed outside of the destination.
//!
//! Every folder on the way to an entry is opened below the destination by openat2(2): a link that leads out is refused whether
//! the archive brought it or it lay there before (the way of CVE-2018-15664 and of kubectl's CVE-2019-1002101, for a client). The
//! last part of a name is never followed: what is there is removed and made anew.

use super::paths;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Entry, EntryType};

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// A name with "..", or a link on the way that leads out.
    #[error("{name:?} leads out of the destination {destination}: refused")]
    Escapes {
        /// As it is in the archive.
        name: String,
        /// Where it was to be unpacked.
        destination: String,
    },
    /// A file where there is a folder.
    #[error("cannot overwrite directory {path:?} with non-directory {destination:?}")]
    Directory {
        /// What is there.
        path: String,
        /// Where the archive was to be unpacked.
        destination: String,
    },
    /// A folder where there is something else.
    #[error("cannot overwrite non-directory {path:?} with directory {destination:?}")]
    NotDirectory {
        /// What is there.
        path: String,
        /// Where the archive was to be unpacked.
        destination: String,
    },
    /// A call failed.
    #[error("{operation} {path}: {}", cause.desc().to_lowercase())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: String,
        /// What happened.
        cause: Errno,
    },
    /// The archive is damaged, or broke off.
    #[error("read the archive: {0}")]
    Archive(io::Error),
}

/// Unpacks below a folder that exists. `rename` is for the first part of the names; with `owners`, users and groups are kept.
pub fn unpack(
    archive: impl Read,
    destination: &str,
    rename: Option<&(String, String)>,
    owners: bool,
) -> Result<(), UnpackError> {
    let root = open(destination, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|cause| UnpackError::System { operation: "open", path: destination.to_owned(), cause })?;
    let mut unpacker = Unpacker { root, destination, rename, owners, folders: Vec::new() };
    let mut archive = tar::Archive::new(archive);
    for entry in archive.entries().map_err(UnpackError::Archive)? {
        unpacker.entry(entry.map_err(UnpackError::Archive)?)?;
    }
    unpacker.finish()?;
    // What follows the end mark is read, too: the engine's connection is not to be torn down in the middle of it.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(UnpackError::Archive)?;
    Ok(())
}

struct Unpacker<'d> {
    root: OwnedFd,
    destination: &'d str,
    rename: Option<&'d (String, String)>,
    owners: bool,
    /// Folders, whose mode and time are set when all is in them.
    folders: Vec<(PathBuf, Mode, TimeSpec)>,
}

impl Unpacker<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), UnpackError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let name = paths::rename(&entry.path_bytes(), self.rename);
        let Some((parents, last)) = self.parts(&name)? else { return Ok(()) };
        let path = parents.join(&last);
        let parent = self.folder(&parents, &path)?;
        let fault = |operation, cause| self.fault(operation, &path, cause);
        let there = match fstatat(&parent, last.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR),
            Err(Errno::ENOENT) => None,
            Err(cause) => return Err(fault("lstat", cause)),
        };
        let shown = || (Path::new(self.destination).join(&path).display().to_string(), self.destination.to_owned());
        match (there, kind.is_dir()) {
            (Some(true), false) => {
                let (path, destination) = shown();
                return Err(UnpackError::Directory { path, destination });
            }
            (Some(false), true) => {
                let (path, destination) = shown();
                return Err(UnpackError::NotDirectory { path, destination });
            }
            (Some(false), false) => {
                unlinkat(&parent, last.as_os_str(), UnlinkatFlags::NoRemoveDir)
                    .map_err(|cause| fault("remove", cause))?;
            }
            (Some(true), true) | (None, _) => {}
        }
        let header = entry.header();
        let mode = Mode::from_bits_truncate(header.mode().map_err(UnpackError::Archive)?);
        let time = TimeSpec::new(i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0);
        let owner = (header.uid().unwrap_or(0), header.gid().unwrap_or(0));
        let private = Mode::S_IRUSR | Mode::S_IWUSR;
        match kind {
            EntryType::Directory => {
                if there.is_none() {
                    mkdirat(&parent, last.as_os_str(), private | Mode::S_IXUSR)
                        .map_err(|cause| fault("mkdir", cause))?;
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                symlinkat(OsStr::from_bytes(&target), &parent, last.as_os_str())
                    .map_err(|cause| fault("symlink", cause))?;
            }
            EntryType::Link => {
                let target = paths::rename(&entry.link_name_bytes().unwrap_or_default(), self.rename);
                let Some((folders, file)) = self.parts(&target)? else {
                    return Err(self.fault("link", &path, Errno::EPERM));
                };
                let folder = self.folder(&folders, &path)?;
                linkat(&folder, file.as_os_str(), &parent, last.as_os_str(), AtFlags::empty())
                    .map_err(|cause| fault("link", cause))?;
                // The file has its mode and owner from its first name.
                return Ok(());
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let kind = match kind {
                    EntryType::Fifo => SFlag::S_IFIFO,
                    EntryType::Char => SFlag::S_IFCHR,
                    _ => SFlag::S_IFBLK,
                };
                let number = |number: io::Result<Option<u32>>| u64::from(number.ok().flatten().unwrap_or(0));
                let device = makedev(number(header.device_major()), number(header.device_minor()));
                mknodat(&parent, last.as_os_str(), kind, private, device).map_err(|cause| fault("mknod", cause))?;
            }
            _ => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(&parent, last.as_os_str(), flags, private).map_err(|cause| fault("create", cause))?;
                let capability = capability(&mut entry);
                let mut file = File::from(file);
                io::copy(&mut entry, &mut file).map_err(UnpackError::Archive)?;
                if self.owners {
                    self.own(&parent, &last, owner, &path)?;
                }
                fchmod(&file, mode).map_err(|cause| self.fault("chmod", &path, cause))?;
                if let Some(value) = capability {
                    // Not everywhere and not for everybody; docker goes on without, too.
                    let _ = sys::xattr::fset(&file, c"security.capability", &value);
                }
                return self.touch(&parent, &last, time, &path);
            }
        }
        if self.owners {
            self.own(&parent, &last, owner, &path)?;
        }
        match kind {
            EntryType::Directory => {
                self.folders.push((path, mode, time));
                Ok(())
            }
            EntryType::Symlink => self.touch(&parent, &last, time, &path),
            _ => {
                // Nobody else can have put a link here since: the name is only looked up below the destination, and a link
                // would be followed to what it names there.
                fchmodat(&parent, last.as_os_str(), mode, FchmodatFlags::FollowSymlink)
                    .map_err(|cause| self.fault("chmod", &path, cause))?;
                self.touch(&parent, &last, time, &path)
            }
        }
    }

    /// Folders get their modes and times last, the innermost first.
    fn finish(&mut self) -> Result<(), UnpackError> {
        for (path, mode, time) in std::mem::take(&mut self.folders).into_iter().rev() {
            let fault = |cause| self.fault("chmod", &path, cause);
            let how = OpenHow::new()
                .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            let folder = openat2(&self.root, &path, how).map_err(fault)?;
            fchmod(&folder, mode).map_err(fault)?;
            nix::sys::stat::futimens(&folder, &time, &time).map_err(fault)?;
        }
        Ok(())
    }

    /// Folders and last part of a name; nothing for the destination itself.
    fn parts(&self, name: &[u8]) -> Result<Option<(PathBuf, OsString)>, UnpackError> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(self.escapes(OsStr::from_bytes(name))),
                part => parts.push(part),
            }
        }
        let Some(last) = parts.pop() else { return Ok(None) };
        Ok(Some((parts.into_iter().map(OsStr::from_bytes).collect(), OsStr::from_bytes(last).to_owned())))
    }

    /// Opens a folder below the destination, and makes what is missing of it.
    fn folder(&self, folders: &Path, name: &Path) -> Result<OwnedFd, UnpackError> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let here = || self.root.as_fd().try_clone_to_owned().map_err(UnpackError::Archive);
        if folders.as_os_str().is_empty() {
            return here();
        }
        let refused = |cause| match cause {
            Errno::EXDEV | Errno::ELOOP => self.escapes(name.as_os_str()),
            cause => self.fault("open", folders, cause),
        };
        match openat2(&self.root, folders, how) {
            Err(Errno::ENOENT) => {}
            other => return other.map_err(refused),
        }
        let (mut parent, mut below) = (here()?, PathBuf::new());
        for part in folders {
            match mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(cause) => return Err(self.fault("mkdir", folders, cause)),
            }
            below.push(part);
            parent = openat2(&self.root, &below, how).map_err(refused)?;
        }
        Ok(parent)
    }

    fn own(&self, parent: &OwnedFd, name: &OsStr, (uid, gid): (u64, u64), path: &Path) -> Result<(), UnpackError> {
        let id = |id: u64| u32::try_from(id).map_err(|_| self.fault("chown", path, Errno::EINVAL));
        let (uid, gid) = (Uid::from_raw(id(uid)?), Gid::from_raw(id(gid)?));
        match fchownat(parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // Only root can give files away; everybody else gets copies of their own, as from cp -a.
            Err(Errno::EPERM) if !Uid::effective().is_root() => Ok(()),
            other => other.map_err(|cause| self.fault("chown", path, cause)),
        }
    }

    fn touch(&self, parent: &OwnedFd, name: &OsStr, time: TimeSpec, path: &Path) -> Result<(), UnpackError> {
        utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(|cause| self.fault("set the time of", path, cause))
    }

    fn fault(&self, operation: &'static str, path: &Path, cause: Errno) -> UnpackError {
        let path = Path::new(self.destination).join(path).display().to_string();
        UnpackError::System { operation, path, cause }
    }

    fn escapes(&self, name: &OsStr) -> UnpackError {
        UnpackError::Escapes { name: name.display().to_string(), destination: self.destination.to_owned() }
    }
}

fn capability(entry: &mut Entry<'_, impl Read>) -> Option<Vec<u8>> {
    let key = CString::new("SCHILY.xattr.security.capability").ok()?;
    let extensions = entry.pax_extensions().ok()??;
    let found = extensions.flatten().find(|extension| extension.key_bytes() == key.as_bytes());
    found.map(|extension| extension.value_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use tar::{Builder, Header};

    /// kind, name, and content or target.
    fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, text) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(if kind.is_dir() { 0o750 } else { 0o640 });
            header.set_mtime(1_000_000);
            // The tar crate itself refuses ".." in names: an attacker writes the field by hand.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let body = if kind.is_file() { text.as_bytes() } else { b"" };
            if !kind.is_file() && !kind.is_dir() {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body).unwrap();
        }
        builder.into_inner().unwrap()
    }

    use EntryType::{Directory as D, Link as H, Regular as F, Symlink as L};

    fn at(folder: &Path, entries: &[(EntryType, &str, &str)]) -> Result<(), UnpackError> {
        unpack(&archive(entries)[..], folder.to_str().unwrap(), None, false)
    }

    #[test]
    fn files_folders_and_links_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let entries =
            [(D, "a/", ""), (F, "a/f", "text"), (L, "a/l", "/etc/passwd"), (H, "a/h", "a/f"), (F, "b/c/d", "deep")];
        at(dir.path(), &entries).unwrap();
        let file = dir.path().join("a/f");
        assert_eq!(fs::read_to_string(&file).unwrap(), "text");
        assert_eq!(fs::read_link(dir.path().join("a/l")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(fs::metadata(&file).unwrap().ino(), fs::metadata(dir.path().join("a/h")).unwrap().ino());
        assert_eq!(fs::read_to_string(dir.path().join("b/c/d")).unwrap(), "deep");
        let folder = fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((folder.permissions().mode() & 0o7777, folder.mtime()), (0o750, 1_000_000));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        // Once more: files are replaced, folders are kept.
        at(dir.path(), &[(D, "a/", ""), (F, "a/f", "new")]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn nothing_is_written_outside() {
        for entries in [
            &[(F, "../out", "x")][..],
            &[(F, "a/../../out", "x")],
            &[(L, "a", ".."), (F, "a/out", "x")],
            &[(L, "a", "/tmp"), (F, "a/berth-cp-out", "x")],
            &[(D, "d/", ""), (L, "d/a", "../.."), (F, "d/a/out", "x")],
            &[(L, "a", "/proc/self/cwd"), (F, "a/out", "x")],
            &[(H, "a", "../secret"), (F, "b", "x")],
            &[(L, "s", ".."), (H, "a", "s/secret")],
            &[(L, "a", ".."), (D, "a/out/", "")],
            &[(L, "a", ".."), (L, "a/out", "x")],
        ] {
            let dir = tempfile::tempdir().unwrap();
            let inner = dir.path().join("inner");
            fs::create_dir(&inner).unwrap();
            fs::write(dir.path().join("secret"), "s").unwrap();
            let error = at(&inner, entries).unwrap_err();
            assert!(matches!(error, UnpackError::Escapes { .. }), "{entries:?}: {error}");
            let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            left.sort();
            assert_eq!(left, ["inner", "secret"], "{entries:?}");
            assert!(!Path::new("/tmp/berth-cp-out").exists() && !Path::new("out").exists());
            assert_eq!(fs::metadata(dir.path().join("secret")).unwrap().nlink(), 1);
        }
        // Names with a leading slash are names below the destination, as in docker.
        let dir = tempfile::tempdir().unwrap();
        at(dir.path(), &[(F, "/etc/x", "y")]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("etc/x")).unwrap(), "y");
    }

    #[test]
    fn links_that_lie_there_are_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (inner, outside) = (dir.path().join("inner"), dir.path().join("outside"));
        fs::create_dir(&inner).unwrap();
        fs::write(&outside, "untouched").unwrap();
        symlink(&outside, inner.join("f")).unwrap();
        symlink(dir.path(), inner.join("d")).unwrap();
        at(&inner, &[(F, "f", "new")]).unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(inner.join("f")).unwrap(), "new");
        assert!(matches!(at(&inner, &[(F, "d/outside", "x")]), Err(UnpackError::Escapes { .. })));
        // A folder in the place of a link is refused: nothing may be put behind it later.
        assert!(matches!(at(&inner, &[(D, "d/", "")]), Err(UnpackError::NotDirectory { .. })));
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    }

    #[test]
    fn kinds_don_t_replace_each_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        let error = at(dir.path(), &[(F, "d", "x")]).unwrap_err().to_string();
        assert!(error.starts_with("cannot overwrite directory"), "{error}");
        assert!(
            unpack(
                &b"not an archive, but long enough to be taken for a header"[..],
                dir.path().to_str().unwrap(),
                None,
                false
            )
            .is_err()
        );
        let error = unpack(&b""[..], "/no/such/folder", None, false).unwrap_err().to_string();
        assert_eq!(error, "open /no/such/folder: no such file or directory");
    }
}
