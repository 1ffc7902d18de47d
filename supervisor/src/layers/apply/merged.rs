//! What a layer removes from a merged tree: what other layers have put there, and nothing of its own, in whatever order
//! its entries come.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    os::fd::OwnedFd,
};

use nix::{errno::Errno, sys::stat::SFlag};

use super::is_layers;
use crate::layers::{
    copy::{join, open_plain},
    tar::Entry,
    tree::{entries, is, look, open_dir_at, remove},
};

/// The paths that a layer has made, their parents included.
#[derive(Default)]
pub(super) struct Merged {
    made: HashSet<Vec<u8>>,
}

impl Merged {
    /// Notes an entry of the layer.
    pub(super) fn note(&mut self, parts: &[&[u8]]) {
        // From the end: where one path is known, its parents are.
        for length in (1..=parts.len()).rev() {
            if !self.made.insert(parts[..length].join(&b'/')) {
                return;
            }
        }
    }

    /// Removes what other layers have put at `name` in a directory, whose path is `parents`.
    pub(super) fn remove(&self, dir: &OwnedFd, parents: &[&[u8]], name: &[u8]) -> Result<(), Errno> {
        let path = [parents, &[name]].concat();
        if !self.made.contains(&path.join(&b'/')) {
            return match remove(dir, name) {
                // Nothing there, or not where the layer thinks: nothing to hide.
                Err(Errno::ENOENT) => Ok(()),
                other => other,
            };
        }
        match look(dir, name)? {
            Some(found) if is(&found, SFlag::S_IFDIR) => self.clear(&open_dir_at(dir, name)?, &path),
            _ => Ok(()),
        }
    }

    /// Removes everything that other layers have put below a directory.
    pub(super) fn clear(&self, dir: &OwnedFd, path: &[&[u8]]) -> Result<(), Errno> {
        // By path and not by descriptor: a directory may hold more directories than we may have open.
        let mut todo = vec![Vec::new()];
        while let Some(below) = todo.pop() {
            let here = open_plain(dir, &below)?;
            for (name, is_dir) in entries(&here)? {
                let inner = join(&below, name.to_bytes());
                if !self.made.contains(&join(&path.join(&b'/'), &inner)) {
                    remove(&here, name.to_bytes())?;
                } else if is_dir {
                    todo.push(inner);
                }
            }
        }
        Ok(())
    }
}

/// Drops the attributes that an entry doesn't have: those that a directory had before its new entry, and those that were
/// inherited from the directory above.
pub(super) fn drop_attributes(path: &CStr, entry: &Entry) -> Result<(), Errno> {
    for name in sys::xattr::llist(path)? {
        if is_layers(&name) && !entry.xattrs.iter().any(|(key, _)| *key == name) {
            sys::xattr::lremove(path, &CString::new(name).map_err(|_| Errno::EINVAL)?)?;
        }
    }
    Ok(())
}
