//! Changes as entries of a layer: what is gone becomes a whiteout, further names of one file become hard links.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{Mode, SFlag, fstat, major, minor},
};

use super::{
    DiffError,
    compare::{Place, attributes},
    walk::Change,
};
use crate::layers::{
    copy::open_plain,
    tar::{Entry, Kind, writer::TarWriter},
};

/// Writes changes into a layer.
pub(super) struct Archive<'a, W> {
    tar: TarWriter<W>,
    // The tree that is told of.
    root: &'a OwnedFd,
    // Directories that are in the layer.
    dirs: HashSet<Vec<u8>>,
    // Files with several names: where the first one is in the layer, or the names of those that aren't in it so far.
    written: HashMap<(u64, u64), Vec<u8>>,
    unchanged: HashMap<(u64, u64), Vec<Vec<u8>>>,
    // No time is later than this one, and whiteouts, which have none, get it.
    epoch: Option<i64>,
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

impl<'a, W: Write> Archive<'a, W> {
    /// A layer of changes in the tree `root`.
    pub(super) fn new(output: W, root: &'a OwnedFd, epoch: Option<i64>) -> Self {
        let tar = TarWriter::new(output);
        Self { tar, root, dirs: HashSet::new(), written: HashMap::new(), unchanged: HashMap::new(), epoch }
    }

    /// Ends the layer.
    pub(super) fn finish(self) -> Result<W, DiffError> {
        self.tar.finish().map_err(DiffError::Write)
    }

    /// Takes a change.
    pub(super) fn take(&mut self, path: &[u8], change: Change<'_>) -> Result<(), DiffError> {
        match change {
            Change::Gone => self.whiteout(path),
            Change::Unchanged(place) => {
                let id = (place.stat.st_dev, place.stat.st_ino);
                match self.written.get(&id).cloned() {
                    Some(first) => self.link(path, &first, place),
                    None => {
                        self.unchanged.entry(id).or_default().push(path.to_vec());
                        Ok(())
                    }
                }
            }
            Change::Present(place) => self.present(path, place),
        }
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), DiffError> {
        let at = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
        let entry = Entry {
            path: [&path[..at], b".wh.", &path[at..]].concat(),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (self.epoch.unwrap_or(0), 0),
            size: 0,
            xattrs: Vec::new(),
            sparse: None,
        };
        self.write(&entry, &mut io::empty())
    }

    fn write(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), DiffError> {
        self.tar.entry(entry, data).map_err(DiffError::Write)
    }

    fn present(&mut self, path: &[u8], place: Place<'_>) -> Result<(), DiffError> {
        let failed = |cause| DiffError::Read { path: shown(path), cause };
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        if name.starts_with(b".wh.") {
            return Err(DiffError::Reserved(shown(path)));
        }
        let stat = place.stat;
        let id = (stat.st_dev, stat.st_ino);
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        let device = (major(stat.st_rdev) as u32, minor(stat.st_rdev) as u32);
        let is_dir = kind == SFlag::S_IFDIR;
        if stat.st_nlink > 1
            && !is_dir
            && let Some(first) = self.written.get(&id).cloned()
        {
            return self.link(path, &first, place);
        }
        if is_dir && !self.dirs.insert(path.to_vec()) {
            return Ok(());
        }
        let kind = match kind {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Directory,
            SFlag::S_IFLNK => match readlinkat(place.dir, place.name) {
                Ok(link) => Kind::Symlink(link.into_encoded_bytes()),
                Err(Errno::ENOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            },
            SFlag::S_IFIFO => Kind::Fifo,
            SFlag::S_IFCHR => Kind::CharDevice(device.0, device.1),
            SFlag::S_IFBLK => Kind::BlockDevice(device.0, device.1),
            // Sockets: an archive can't hold them, and without their process they are of no use.
            _ => return Ok(()),
        };
        let mut entry = self.entry(path, kind, place)?;
        if entry.kind != Kind::File {
            self.write(&entry, &mut io::empty())?;
        } else {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let mut file = match openat(place.dir, place.name, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                // Gone since it was listed: a running container goes on.
                Err(Errno::ENOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            };
            entry.size = fstat(&file).map_err(failed)?.st_size.max(0) as u64;
            self.tar.entry(&entry, &mut file).map_err(|cause| DiffError::Copy { path: shown(path), cause })?;
        }
        if stat.st_nlink > 1 && !is_dir {
            self.written.insert(id, path.to_vec());
            // Those that looked unchanged are names of this file: they follow.
            for other in self.unchanged.remove(&id).unwrap_or_default() {
                self.link(&other, path, place)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], first: &[u8], place: Place<'_>) -> Result<(), DiffError> {
        self.parents(path)?;
        let mut entry = self.entry(path, Kind::HardLink(first.to_vec()), place)?;
        entry.xattrs.clear();
        self.write(&entry, &mut io::empty())
    }

    // A link in a directory that is as it was: making the link anew moves its time, which the directory's entry sets back.
    fn parents(&mut self, path: &[u8]) -> Result<(), DiffError> {
        for slash in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
            let parent = &path[..slash];
            if !self.dirs.contains(parent) {
                let failed = |cause| DiffError::Read { path: shown(parent), cause };
                let dir = open_plain(self.root, parent).map_err(failed)?;
                let stat = fstat(&dir).map_err(failed)?;
                self.present(parent, Place { dir: dir.as_fd(), name: b".", stat: &stat })?;
            }
        }
        Ok(())
    }

    fn entry(&self, path: &[u8], kind: Kind, place: Place<'_>) -> Result<Entry, DiffError> {
        let stat = place.stat;
        let xattrs = attributes(place).or_else(|cause| match cause {
            // Gone since it was listed.
            Errno::ENOENT => Ok(Vec::new()),
            cause => Err(DiffError::Read { path: shown(path), cause }),
        })?;
        let mtime = (stat.st_mtime, stat.st_mtime_nsec as u32);
        let mtime = self.epoch.map_or(mtime, |epoch| if mtime.0 >= epoch { (epoch, 0) } else { mtime });
        Ok(Entry {
            path: if path.is_empty() { b"./".to_vec() } else { path.to_vec() },
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime,
            size: stat.st_size.max(0) as u64,
            xattrs,
            sparse: None,
        })
    }
}
