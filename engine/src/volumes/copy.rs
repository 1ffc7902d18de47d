//! Copies a folder of an image into a new volume: owners, modes, times, links and devices as they are. The source is
//! untrusted: it is walked by descriptors and no link in it is followed.

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, fstatat, futimens, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, symlinkat},
};
use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

/// Deeper trees than this are refused: one descriptor pair is open per level.
const DEPTH: usize = 200;

/// Copies the content and attributes of folder `from` into the folder `to`.
pub fn copy_tree(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    copy_folder(from, to, 0)
}

fn copy_folder(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
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
        match entry.file_type().unwrap_or_else(|| kind_of(&stat)) {
            Type::Directory => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | nofollow;
                let source = openat(from, name, flags, Mode::empty())?;
                match mkdirat(to, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                let target = openat(to, name, flags, Mode::empty())?;
                copy_folder(&source, &target, depth + 1)?;
            }
            Type::File => {
                let source = openat(from, name, OFlag::O_RDONLY | nofollow, Mode::empty())?;
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | nofollow;
                let target = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
                let (mut reader, mut writer) = (File::from(source), File::from(target));
                // copy_file_range or sendfile under the hood.
                io::copy(&mut reader, &mut writer)?;
                attributes(&writer, &stat)?;
            }
            Type::Symlink => {
                let target = readlinkat(from, name)?;
                symlinkat(target.as_os_str(), to, name)?;
                own_and_date(to, name, &stat)?;
            }
            Type::Fifo | Type::CharacterDevice | Type::BlockDevice | Type::Socket => {
                let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
                mknodat(to, name, kind, Mode::from_bits_truncate(stat.st_mode & 0o777), stat.st_rdev)?;
                own_and_date(to, name, &stat)?;
            }
        }
    }
    attributes(to, &fstat(from)?)
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

fn own_and_date(folder: &OwnedFd, name: &std::ffi::CStr, stat: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(folder, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let (accessed, modified) = times(stat);
    Ok(utimensat(folder, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?)
}

fn times(stat: &FileStat) -> (TimeSpec, TimeSpec) {
    (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

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
        let open = |path: &std::path::Path| OwnedFd::from(File::open(path).unwrap());
        copy_tree(&open(&from), &open(&to)).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("sub/file")).unwrap(), "text");
        assert_eq!(std::fs::metadata(to.join("sub/file")).unwrap().mode() & 0o7777, 0o4750);
        let sub = std::fs::metadata(to.join("sub")).unwrap();
        assert_eq!((sub.uid(), sub.gid()), (7, 8));
        assert!(std::fs::symlink_metadata(to.join("link")).unwrap().is_symlink());
    }
}
