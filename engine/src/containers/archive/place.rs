//! Which thing in a container a path of a request means: cleaned as Docker does, looked up below the root, described.

use super::view::View;
use crate::time::Timestamp;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{FileStat, SFlag, fstat, fstatat},
};
use serde::Serialize;
use std::{
    ffi::CString,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
};
use sys::path::{Within, open_within};

/// A path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute, without `.` and `..`.
    pub path: String,
    /// It ended in `/` or `/.`: a link at its end is followed, and what it means has to be a folder.
    pub folder: bool,
    /// The name it has in headers and archives.
    pub name: String,
}

impl Place {
    /// Reads a path; `..` is taken off as text, as in Docker.
    pub fn new(text: &str) -> Self {
        let mut parts: Vec<&str> = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let dot = text == "." || text.ends_with("/.");
        let name = match parts.last() {
            _ if dot => ".",
            Some(name) => name,
            None => "/",
        };
        Self { path: format!("/{}", parts.join("/")), folder: dot || text.ends_with('/'), name: name.to_owned() }
    }

    /// The folder around it and its name there; `None` for the root.
    pub fn parent(&self) -> Option<(&str, &str)> {
        self.path.rsplit_once('/').filter(|(_, name)| !name.is_empty())
    }
}

/// The header `X-Docker-Container-Path-Stat`.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct PathStat {
    name: String,
    size: i64,
    mode: u32,
    mtime: Timestamp,
    #[serde(rename = "linkTarget")]
    link_target: String,
}

/// A place that was found.
#[derive(Debug)]
pub enum Found {
    /// A folder, open for listing.
    Folder(OwnedFd, FileStat),
    /// Anything else: the folder around it, its name there.
    Other(OwnedFd, CString, FileStat),
}

impl Found {
    /// Looks a place up.
    pub fn look_up(view: &View, place: &Place) -> Result<Self, Errno> {
        let list = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let whole = |flags| open_within(&view.root, place.path.as_str(), flags, 0, Within::Root);
        if let Some((parent, name)) = place.parent().filter(|_| !place.folder) {
            let parent = if parent.is_empty() { "/" } else { parent };
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let parent = open_within(&view.root, parent, flags, 0, Within::Root)?;
            let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
            let stat = fstatat(&parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if kind(&stat) != SFlag::S_IFDIR {
                return Ok(Self::Other(parent, name, stat));
            }
            let folder = whole(list | OFlag::O_NOFOLLOW)?;
            let stat = fstat(&folder)?;
            return Ok(Self::Folder(folder, stat));
        }
        let folder = whole(list)?;
        let stat = fstat(&folder)?;
        Ok(Self::Folder(folder, stat))
    }

    /// What is told of it in the header.
    pub fn stat(&self, view: &View, place: &Place) -> PathStat {
        let (Self::Folder(_, stat) | Self::Other(_, _, stat)) = self;
        let target = match self {
            Self::Other(parent, name, stat) if kind(stat) == SFlag::S_IFLNK => {
                target(view, place, readlinkat(parent, name.as_c_str()).unwrap_or_default().as_bytes())
            }
            _ => String::new(),
        };
        PathStat {
            name: place.name.clone(),
            size: stat.st_size,
            mode: go_mode(stat.st_mode),
            mtime: Timestamp::from_parts(stat.st_mtime, stat.st_mtime_nsec),
            link_target: target,
        }
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Where a link leads to in the end, seen from the container's root; if that is nowhere, what it says.
fn target(view: &View, place: &Place, link: &[u8]) -> String {
    if let Ok(end) = open_within(&view.root, place.path.as_str(), OFlag::O_PATH, 0, Within::Root)
        && let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd()))
        && path.is_absolute()
    {
        // In the namespace of the container its root is the top.
        return path.display().to_string();
    }
    let link = String::from_utf8_lossy(link);
    let parent = place.parent().map_or("", |(parent, _)| parent);
    if link.starts_with('/') { Place::new(&link).path } else { Place::new(&format!("{parent}/{link}")).path }
}

/// Mode bits the way Go's `os.FileMode` has them.
fn go_mode(mode: u32) -> u32 {
    let kind = match SFlag::from_bits_truncate(mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => 1 << 31,
        SFlag::S_IFLNK => 1 << 27,
        SFlag::S_IFBLK => 1 << 26,
        SFlag::S_IFCHR => 1 << 26 | 1 << 21,
        SFlag::S_IFIFO => 1 << 25,
        SFlag::S_IFSOCK => 1 << 24,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special: u32 = special.iter().filter(|(bit, _)| mode & bit != 0).map(|(_, go)| go).sum();
    kind | special | mode & 0o777
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_docker_does() {
        for (text, path, folder, name) in [
            ("/", "/", true, "/"),
            ("/data", "/data", false, "data"),
            ("data/f", "/data/f", false, "f"),
            ("/data/", "/data", true, "data"),
            ("/data/.", "/data", true, "."),
            (".", "/", true, "."),
            ("/data/../etc", "/etc", false, "etc"),
            ("/../../etc//x/./y", "/etc/x/y", false, "y"),
        ] {
            let place = Place::new(text);
            assert_eq!((place.path.as_str(), place.folder, place.name.as_str()), (path, folder, name), "{text}");
        }
    }

    #[test]
    fn modes_of_go() {
        assert_eq!(go_mode(0o040_755), 2_147_484_141);
        assert_eq!(go_mode(0o120_777), 134_218_239);
        assert_eq!(go_mode(0o100_644), 420);
        assert_eq!(go_mode(0o104_755), 1 << 23 | 0o755);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
    }
}
