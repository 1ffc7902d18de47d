//! The actions of file operations, on the open roots of filesystems.

use super::{
    FileError, Stop,
    copy::{self, Made, Options},
    filter::Filter,
    mode::Modes,
    owner::{self, Databases},
    paths::{self, Clean, is_folder, kind},
};
use crate::{
    containers::archive::{Options as ExtractOptions, View, extract},
    unpack::unpacked,
    untar::Untar,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::{
        stat::{Mode, SFlag, fchmod, mkdirat},
        time::TimeSpec,
    },
    unistd::symlinkat,
};
use proto::pb::{self, file_action::Action};
use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
};

/// Does one action on `target`; `source` is what is copied from.
pub fn perform(
    action: Option<&Action>,
    target: &OwnedFd,
    source: Option<&OwnedFd>,
    databases: Databases<'_>,
    stop: &Stop,
) -> Result<(), FileError> {
    match action {
        Some(Action::Copy(action)) => {
            let nothing = || FileError::Invalid("copy: it has nothing to copy from".into());
            copy(action, source.ok_or_else(nothing)?, target, databases, stop)
        }
        Some(Action::Mkfile(action)) => make_file(action, target, databases),
        Some(Action::Mkdir(action)) => make_folder(action, target, databases),
        Some(Action::Rm(action)) => remove(action, target),
        Some(Action::Symlink(action)) => make_link(action, target, databases),
        None => Err(FileError::Invalid("file operation: an action that this builder does not know".into())),
    }
}

/// Nanoseconds since 1970; -1: as it is.
fn time(nanos: i64) -> Option<TimeSpec> {
    (nanos != -1).then(|| TimeSpec::new(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000)))
}

fn copy(
    action: &pb::FileActionCopy,
    source: &OwnedFd,
    target: &OwnedFd,
    databases: Databases<'_>,
    stop: &Stop,
) -> Result<(), FileError> {
    if !action.create_dest_path {
        let to = paths::resolve(target, &action.dest, true)?;
        let above = to.split().map(|(above, _)| above).unwrap_or_default();
        if paths::stat(target, &above)?.is_none() {
            return Err(FileError::At {
                operation: "failed to stat",
                path: action.dest.clone(),
                cause: Errno::ENOENT.into(),
            });
        }
    }
    let mode = match (action.mode_str.as_str(), action.mode) {
        ("", -1) => None,
        ("", mode) => Some(Modes::parse(&format!("0{:o}", mode & 0o7777))?),
        (text, _) => Some(Modes::parse(text)?),
    };
    let options = Options {
        owner: owner::find(action.owner.as_ref(), databases)?,
        mode,
        time: time(action.timestamp),
        filter: Filter::new(&action.include_patterns, &action.exclude_patterns)?,
        contents: action.dir_copy_contents,
        follow: action.follow_symlink,
        replace: action.always_replace_existing_dest_paths,
    };
    let found = match action.allow_wildcard {
        true => paths::wildcards(source, &action.src, action.follow_symlink)?,
        false => vec![Clean::of(&action.src)],
    };
    if found.is_empty() && !action.allow_empty_wildcard {
        return Err(FileError::Invalid(format!("{} not found", action.src)));
    }
    for path in &action.required_paths {
        required(source, &action.src, path)?;
    }
    for from in found {
        let is_unpacked =
            action.attempt_unpack_docker_compatibility && unpack(source, &from, target, action, &options)?;
        if !is_unpacked {
            copy::copy(source, &from, target, &action.dest, &options, stop)?;
        }
    }
    Ok(())
}

/// What has to be there below the source, with or without wildcards.
fn required(source: &OwnedFd, base: &str, path: &str) -> Result<(), FileError> {
    let whole = format!("{}/{path}", base.trim_end_matches('/'));
    let found = match paths::has_wildcards(path) {
        true => !paths::wildcards(source, &whole, false)?.is_empty(),
        false => paths::stat(source, &paths::resolve(source, &whole, false)?)?.is_some(),
    };
    match found {
        true => Ok(()),
        false => Err(FileError::at(&Clean::of(whole), "lstat", Errno::ENOENT)),
    }
}

/// Unpacks what is an archive, packed or not; tells whether it was one.
fn unpack(
    source: &OwnedFd,
    from: &Clean,
    target: &OwnedFd,
    action: &pb::FileActionCopy,
    options: &Options,
) -> Result<bool, FileError> {
    let path = paths::resolve(source, from.relative(), true)?;
    if paths::stat(source, &path)?.is_none_or(|stat| kind(&stat) != SFlag::S_IFREG) {
        return Ok(false);
    }
    let failed = |error| FileError::io(from, "open", error);
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let mut file = File::from(paths::open(source, &path, flags).map_err(|error| FileError::at(from, "open", error))?);
    // Its first entry tells.
    let first = unpacked(&file).and_then(|plain| Untar::new(plain).next_entry());
    if !matches!(first, Ok(Some(_))) {
        return Ok(false);
    }
    file.rewind().map_err(failed)?;
    let to = paths::resolve(target, &action.dest, true)?;
    copy::folders(target, &to, 0o755, &Made { owner: options.owner, time: options.time })?;
    let view = View::of_folder(target.try_clone().map_err(failed)?);
    let plain = unpacked(&file).map_err(failed)?;
    // What is unpacked keeps its owners, as BuildKit has it: --chown is for the folder alone.
    let how = ExtractOptions { whole: true, ..ExtractOptions::default() };
    let broken = |error| FileError::Invalid(format!("unpack {}: {}", from.shown(), proto::kind::chain(&error)));
    extract(&view, &to.shown(), plain, how).map_err(broken)?;
    Ok(true)
}

fn make_file(action: &pb::FileActionMkFile, target: &OwnedFd, databases: Databases<'_>) -> Result<(), FileError> {
    let path = paths::resolve(target, &action.path, true)?;
    let failed = |error| FileError::at(&path, "open", error);
    let (above, name) = path.split().ok_or_else(|| failed(Errno::EISDIR))?;
    let above = paths::folder(target, &above).map_err(failed)?;
    let mode = u32::from_ne_bytes(action.mode.to_ne_bytes()) & 0o777;
    let there = paths::stat(target, &path)?;
    match &there {
        None => {}
        Some(stat) if is_folder(stat) => return Err(failed(Errno::EISDIR)),
        // A file keeps its mode. Made anew, since it may have other names that are to stay as they are.
        Some(_) => copy::remove(&above, &name, 0).map_err(failed)?,
    }
    let mode = there.filter(|stat| kind(stat) == SFlag::S_IFREG).map_or(mode, |stat| stat.st_mode & 0o7777);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(&above, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?;
    let mut file = File::from(file);
    file.write_all(&action.data).map_err(|error| FileError::io(&path, "write", error))?;
    let (owner, time) = (owner::find(action.owner.as_ref(), databases)?, time(action.timestamp));
    let kept = there.map(|stat| (stat.st_uid, stat.st_gid));
    copy::dress(&above, &name, &Made { owner: owner.or(kept), time: None }).map_err(failed)?;
    fchmod(&file, Mode::from_bits_truncate(mode)).map_err(failed)?;
    copy::dress(&above, &name, &Made { owner: None, time }).map_err(failed)
}

fn make_folder(action: &pb::FileActionMkDir, target: &OwnedFd, databases: Databases<'_>) -> Result<(), FileError> {
    let path = paths::resolve(target, &action.path, true)?;
    let failed = |error| FileError::at(&path, "mkdir", error);
    let mode = u32::from_ne_bytes(action.mode.to_ne_bytes()) & 0o777;
    let made = Made { owner: owner::find(action.owner.as_ref(), databases)?, time: time(action.timestamp) };
    if action.make_parents {
        return copy::folders(target, &path, mode, &made).map(drop);
    }
    let Some((above, name)) = path.split() else { return Ok(()) };
    let above = paths::folder(target, &above).map_err(failed)?;
    match mkdirat(&above, name.as_c_str(), Mode::from_bits_truncate(mode)) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let folder = paths::folder(target, &path).map_err(failed)?;
    fchmod(&folder, Mode::from_bits_truncate(mode)).map_err(failed)?;
    copy::dress(&above, &name, &made).map_err(failed)
}

fn make_link(action: &pb::FileActionSymlink, target: &OwnedFd, databases: Databases<'_>) -> Result<(), FileError> {
    let path = paths::resolve(target, &action.newpath, false)?;
    let failed = |error| FileError::at(&path, "symlink", error);
    let (above, name) = path.split().ok_or_else(|| failed(Errno::EEXIST))?;
    let above = paths::folder(target, &above).map_err(failed)?;
    symlinkat(action.oldpath.as_str(), &above, name.as_c_str()).map_err(failed)?;
    let made = Made { owner: owner::find(action.owner.as_ref(), databases)?, time: time(action.timestamp) };
    copy::dress(&above, &name, &made).map_err(failed)
}

fn remove(action: &pb::FileActionRm, target: &OwnedFd) -> Result<(), FileError> {
    let found = match action.allow_wildcard {
        true => paths::wildcards(target, &action.path, false)?,
        false => vec![Clean::of(&action.path)],
    };
    for path in found {
        let (above, name) = path.split().ok_or_else(|| FileError::Invalid("rmPath: invalid empty path".into()))?;
        // Links lead to the folder, inside the root; what is removed is the name itself.
        let above = paths::resolve(target, above.relative(), true)?;
        let failed = |error| FileError::at(&path, "remove", error);
        let removed = paths::folder(target, &above).and_then(|above| copy::remove(&above, &name, 0));
        match removed {
            Err(Errno::ENOENT | Errno::ENOTDIR) if action.allow_not_found => {}
            other => other.map_err(failed)?,
        }
    }
    Ok(())
}

/// Reads a whole file of a tree of at most `limit` bytes; nothing if it isn't there.
pub fn read_file(root: &OwnedFd, path: &str, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let clean = paths::resolve(root, path, true)?;
    let failed = |error| FileError::at(&clean, "open", error);
    let Some(stat) = paths::stat(root, &clean)? else { return Ok(None) };
    if kind(&stat) != SFlag::S_IFREG {
        return Err(FileError::Invalid(format!("{} is not a regular file", clean.shown())));
    }
    let file = File::from(paths::open(root, &clean, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(failed)?);
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| FileError::io(&clean, "read", error))?;
    if bytes.len() as u64 > limit {
        return Err(FileError::Invalid(format!("{} is larger than {limit} bytes", clean.shown())));
    }
    Ok(Some(bytes))
}
