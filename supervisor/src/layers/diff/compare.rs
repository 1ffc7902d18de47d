//! Whether an entry of two trees is the same one: type, mode, owner, device, attributes, time; and content, where nothing
//! else can tell.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag},
};

use crate::layers::{
    apply::is_layers,
    tar::Records,
    tree::{is, path_of},
};

/// Something in a directory: where it is, and what is known of it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) dir: BorrowedFd<'a>,
    pub(super) name: &'a [u8],
    pub(super) stat: &'a FileStat,
}

/// How much can be told from times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Nothing: what looks the same is compared byte by byte, unless both are one file, or an untouched clone of it.
    Nothing,
    /// What was last changed before this moment is as it was copied; a change time can't be set by hand.
    UnchangedBefore(i64, i64),
}

/// The attributes that belong into layers, sorted.
pub(super) fn attributes(place: Place<'_>) -> Result<Records, Errno> {
    let path = path_of(place.dir, place.name)?;
    let mut found = Vec::new();
    for name in sys::xattr::llist(&path)? {
        if is_layers(&name) {
            let c_name = CString::new(name.as_slice()).map_err(|_| Errno::EINVAL)?;
            found.extend(sys::xattr::lget(&path, &c_name)?.map(|value| (name, value)));
        }
    }
    found.sort();
    Ok(found)
}

/// Whether `new` is what `old` was. The modification time of a tree's top is not looked at: any change in it moves that.
pub(super) fn same(old: Place<'_>, new: Place<'_>, trust: Trust, is_top: bool) -> Result<bool, Errno> {
    let (a, b) = (old.stat, new.stat);
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) {
        return Ok(true);
    }
    if (a.st_mode, a.st_uid, a.st_gid) != (b.st_mode, b.st_uid, b.st_gid) {
        return Ok(false);
    }
    let is_device = is(a, SFlag::S_IFCHR) || is(a, SFlag::S_IFBLK);
    if is_device && a.st_rdev != b.st_rdev {
        return Ok(false);
    }
    if !is_top && (a.st_mtime, a.st_mtime_nsec) != (b.st_mtime, b.st_mtime_nsec) {
        return Ok(false);
    }
    if attributes(old)? != attributes(new)? {
        return Ok(false);
    }
    if is(a, SFlag::S_IFLNK) {
        return Ok(readlinkat(old.dir, old.name)? == readlinkat(new.dir, new.name)?);
    }
    if !is(a, SFlag::S_IFREG) {
        return Ok(true);
    }
    if a.st_size != b.st_size {
        return Ok(false);
    }
    let changed = (b.st_ctime, b.st_ctime_nsec);
    let told = match trust {
        _ if a.st_size == 0 => true,
        // A file of a lower layer, or of a snapshot of the file system's own, not touched since.
        _ if a.st_ino == b.st_ino && (a.st_ctime, a.st_ctime_nsec) == changed => true,
        Trust::Nothing => false,
        Trust::UnchangedBefore(seconds, nanos) => changed < (seconds, nanos),
    };
    if told { Ok(true) } else { same_content(old, new) }
}

fn open(place: Place<'_>) -> Result<File, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    openat(place.dir, place.name, flags, Mode::empty()).map(File::from)
}

fn same_content(old: Place<'_>, new: Place<'_>) -> Result<bool, Errno> {
    const CHUNK: usize = 64 << 10;
    let (mut old, mut new) = (open(old)?, open(new)?);
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let read = fill(&mut old, &mut a).and_then(|first| Ok((first, fill(&mut new, &mut b)?)));
        let (first, second) = read.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        if a[..first] != b[..second] {
            return Ok(false);
        }
        if first == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
