//! Directories and files of one hierarchy, always relative to its descriptor.

use std::io::Read;
use std::os::fd::OwnedFd;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use sys::Errno;

use super::{CgroupError, Hierarchy};

fn shown(hierarchy: &Hierarchy, path: &str, file: &str) -> String {
    hierarchy.mount_point().join(path).join(file).display().to_string()
}

/// Makes the directory and those above it; false if it was there.
pub(super) fn make(hierarchy: &Hierarchy, path: &str) -> Result<bool, CgroupError> {
    let mode = Mode::from_bits_truncate(0o755);
    let failed = |path: &str, cause| CgroupError::Make { path: hierarchy.mount_point().join(path), cause };
    match mkdirat(&hierarchy.dir, if path.is_empty() { "." } else { path }, mode) {
        Ok(()) => return Ok(true),
        Err(Errno::EEXIST) => return Ok(false),
        Err(Errno::ENOENT) => {}
        Err(cause) => return Err(failed(path, cause)),
    }
    // A parent may go with its last other child while we are at it.
    const ATTEMPTS: u32 = 5;
    for attempt in 1.. {
        let levels = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let made = levels.map(|at| &path[..at]).try_for_each(|level| match mkdirat(&hierarchy.dir, level, mode) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(cause) => Err((level, cause)),
        });
        match made {
            Ok(()) => break,
            Err((_, Errno::ENOENT)) if attempt < ATTEMPTS => {}
            Err((level, cause)) => return Err(failed(level, cause)),
        }
    }
    Ok(true)
}

fn joined(path: &str, file: &str) -> String {
    if path.is_empty() { file.to_owned() } else { format!("{path}/{file}") }
}

pub(super) fn open_for_writing(hierarchy: &Hierarchy, path: &str, file: &str) -> Result<OwnedFd, CgroupError> {
    openat(&hierarchy.dir, joined(path, file).as_str(), OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|cause| CgroupError::Write { file: shown(hierarchy, path, file), value: String::new(), cause })
}

/// Writes a value with one write, as the kernel wants it.
pub(super) fn write(hierarchy: &Hierarchy, path: &str, file: &str, value: &str) -> Result<(), CgroupError> {
    let failed = |cause| CgroupError::Write { file: shown(hierarchy, path, file), value: value.to_owned(), cause };
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let opened = openat(&hierarchy.dir, joined(path, file).as_str(), flags, Mode::empty()).map_err(failed)?;
    nix::unistd::write(&opened, value.as_bytes()).map(drop).map_err(failed)
}

/// Writes values of which some bound others (quota, period and burst, say): one that is refused is tried again after the rest.
pub(super) fn write_in_some_order(
    hierarchy: &Hierarchy,
    path: &str,
    values: &[(String, String)],
) -> Result<(), CgroupError> {
    let mut left: Vec<&(String, String)> = values.iter().collect();
    while !left.is_empty() {
        let (mut refused, mut first) = (Vec::new(), None);
        for value in &left {
            match write(hierarchy, path, &value.0, &value.1) {
                Err(error @ CgroupError::Write { cause: Errno::EINVAL, .. }) => {
                    refused.push(*value);
                    first.get_or_insert(error);
                }
                done => done?,
            }
        }
        match first {
            Some(error) if refused.len() == left.len() => return Err(error),
            _ => left = refused,
        }
    }
    Ok(())
}

/// Like [`write()`], but false when there is no such file.
pub(super) fn write_if_there(hierarchy: &Hierarchy, path: &str, file: &str, value: &str) -> Result<bool, CgroupError> {
    match write(hierarchy, path, file, value) {
        Ok(()) => Ok(true),
        Err(CgroupError::Write { cause: Errno::ENOENT, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn read(hierarchy: &Hierarchy, path: &str, file: &str) -> Result<String, CgroupError> {
    let failed = |cause| CgroupError::Read { file: shown(hierarchy, path, file), cause };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let opened = openat(&hierarchy.dir, joined(path, file).as_str(), flags, Mode::empty()).map_err(failed)?;
    let mut text = String::new();
    std::fs::File::from(opened).read_to_string(&mut text).map_err(|error| failed(super::errno(&error)))?;
    Ok(text)
}
