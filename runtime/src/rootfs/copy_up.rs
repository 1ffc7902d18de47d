//! `tmpcopyup`: a new tmpfs starts with what the image has at its place. Runs before the container's process exists.

use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use sys::Errno;

/// Folders below folders that are followed; an image has no more.
const MAX_DEPTH: u32 = 128;

/// Copies everything below `from` (O_PATH) to `to`.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let from = openat(from, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = nix::sys::stat::fstat(&from)?;
    let to = openat(to, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    nix::sys::stat::fchmod(&to, Mode::from_bits_truncate(stat.st_mode))?;
    directory(from, &to, 0)
}

fn directory(from: OwnedFd, to: &OwnedFd, depth: u32) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::ELOOP);
    }
    let mut entries = Dir::from_fd(from)?;
    let names: Vec<_> =
        entries.iter().map(|entry| entry.map(|entry| entry.file_name().to_owned())).collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !matches!(name.to_bytes(), b"." | b"..")) {
        let name = name.as_c_str();
        let stat = fstatat(&entries, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        let open_flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match kind {
            SFlag::S_IFDIR => {
                mkdirat(to, name, mode)?;
                let below = openat(&entries, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
                let target = openat(to, name, open_flags | OFlag::O_DIRECTORY, Mode::empty())?;
                directory(below, &target, depth + 1)?;
            }
            SFlag::S_IFREG => {
                let source = std::fs::File::from(openat(&entries, name, open_flags, Mode::empty())?);
                let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let target = std::fs::File::from(openat(to, name, create, mode)?);
                std::io::copy(&mut &source, &mut &target)
                    .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
            }
            SFlag::S_IFLNK => {
                let link = readlinkat(&entries, name)?;
                symlinkat(link.as_os_str(), to, name)?;
            }
            kind => mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
        own(to, name, &stat, kind)?;
    }
    Ok(())
}

fn own(to: impl AsFd, name: &std::ffi::CStr, stat: &FileStat, kind: SFlag) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(&to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if kind != SFlag::S_IFLNK {
        // After the owner, since changing that clears set-id bits. The tmpfs is ours alone, so no link can be in between.
        fchmodat(&to, name, Mode::from_bits_truncate(stat.st_mode), FchmodatFlags::FollowSymlink)?;
    }
    Ok(())
}
