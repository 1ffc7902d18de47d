//! Unpacks one layer: into the upper folder of an overlay, where whiteouts become devices 0/0 and opaque marks become
//! attributes, or into a merged tree, from which they remove what is there.
//!
//! One thread reads, inflates and hashes; the other parses and makes files.

mod inflate;
mod merged;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::mpsc::sync_channel,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, makedev, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchownat, linkat, symlinkat},
};
use proto::digest::Digest;

use self::{
    inflate::{Pipe, inflate},
    merged::Merged,
};
use super::{
    LayerError,
    copy::Copier,
    place::{PlaceError, open_folder},
    tar::{Entry, Kind, TarReader},
    tree::{Layout, OPAQUE, Tree, components, is, is_whiteout, look, open_dir_at, path_of, remove},
};

const CHUNK: usize = 256 << 10;

/// Where a layer goes.
#[derive(Debug)]
pub(crate) struct Target {
    pub(super) root: OwnedFd,
    // The layers below, nearest first; of an overlay only.
    pub(super) lowers: Vec<OwnedFd>,
    pub(super) layout: Layout,
}

impl Target {
    /// The upper folder of an overlay, empty at first, and the folders of the layers below, nearest first.
    pub(crate) fn overlay(upper: &Path, lowers: &[PathBuf]) -> Result<Self, PlaceError> {
        let lowers = lowers.iter().map(|lower| open_folder(lower)).collect::<Result<_, _>>()?;
        Ok(Self { root: open_folder(upper)?, lowers, layout: Layout::Overlay })
    }

    /// A tree that holds what the layers below have made.
    pub(crate) fn merged(root: OwnedFd) -> Self {
        Self { root, lowers: Vec::new(), layout: Layout::Merged }
    }

    /// Writes what the tree has in memory to the disk.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        nix::unistd::syncfs(&self.root)
    }
}

/// What came out of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applied {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Its size.
    pub(crate) size: u64,
}

/// Unpacks `blob`; `progress` is told how many (compressed) bytes are read.
pub(crate) fn apply(blob: File, target: &Target, progress: &(dyn Fn(u64) + Sync)) -> Result<Applied, LayerError> {
    let (sender, receiver) = sync_channel(8);
    std::thread::scope(|scope| {
        let inflate = std::thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflate(blob, &sender, progress))
            .map_err(|_| LayerError::Thread("no thread to inflate"))?;
        let unpacked = unpack(Pipe::new(receiver), target);
        let inflated = inflate.join().map_err(|_| LayerError::Thread("inflating met a bug"))?;
        unpacked?;
        inflated
    })
}

fn unpack(input: impl Read, target: &Target) -> Result<(), LayerError> {
    let top = |cause| LayerError::Entry { what: "open", path: ".".into(), cause };
    let mut unpacker = Unpacker {
        tree: Tree::open(target).map_err(top)?,
        merged: (target.layout == Layout::Merged).then(Merged::default),
        inherits: target.layout == Layout::Merged,
        times: Vec::new(),
        buffer: vec![0; CHUNK],
    };
    let mut archive = TarReader::new(input);
    while let Some(entry) = archive.next_entry()? {
        unpacker.entry(&entry, &mut archive)?;
    }
    archive.drain()?;
    unpacker.finish();
    Ok(())
}

struct Unpacker {
    tree: Tree,
    // What this layer has made, where that has to be told from what was there.
    merged: Option<Merged>,
    // Whether there may be directories with a default ACL, of which what is made in them gets attributes of its own.
    inherits: bool,
    // Times of directories, set when nothing is written into them any more.
    times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        let parts = components(&entry.path);
        let shown = || String::from_utf8_lossy(&entry.path).chars().take(300).collect::<String>();
        let failed = |what| move |cause| LayerError::Entry { what, path: shown(), cause };
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(LayerError::Refused { path: shown(), why: "the root must be a directory" });
            }
            let root = self.tree.root().try_clone_to_owned().map_err(|_| failed("open")(Errno::EMFILE))?;
            self.attributes(&root, b".", entry).map_err(failed("set attributes of"))?;
            self.times.push((b".".to_vec(), entry.mtime));
            return Ok(());
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            let dir = self.tree.make_dir(parents).map_err(failed("make parent of"))?;
            return self.whiteout(&dir, parents, hidden).map_err(|refused| match refused {
                Some(cause) => failed("make whiteout")(cause),
                None => LayerError::Refused { path: shown(), why: "a whiteout must name one entry" },
            });
        }
        let dir = self.tree.make_dir(parents).map_err(failed("make parent of"))?;
        if let Some(merged) = &mut self.merged {
            merged.note(&parts);
        }
        match &entry.kind {
            Kind::File => self.file(&dir, name, entry, data)?,
            Kind::Directory => {
                self.directory(&dir, name).map_err(failed("make directory"))?;
                self.times.push((parts.join(&b'/'), entry.mtime));
            }
            Kind::Symlink(link) => {
                self.replace(&dir, name, || symlinkat(link.as_slice(), &*dir, *name)).map_err(failed("make symlink"))?
            }
            Kind::HardLink(link) => {
                return self.hard_link(&dir, name, link).map_err(failed("make hard link"));
            }
            Kind::Fifo => self.node(&dir, name, SFlag::S_IFIFO, 0).map_err(failed("make fifo"))?,
            Kind::CharDevice(major, minor) => {
                let device = makedev((*major).into(), (*minor).into());
                self.node(&dir, name, SFlag::S_IFCHR, device).map_err(failed("make device"))?;
            }
            Kind::BlockDevice(major, minor) => {
                let device = makedev((*major).into(), (*minor).into());
                self.node(&dir, name, SFlag::S_IFBLK, device).map_err(failed("make device"))?;
            }
        }
        self.attributes(&dir, name, entry).map_err(failed("set attributes of"))?;
        if entry.kind != Kind::Directory {
            set_time(&dir, name, entry.mtime).map_err(failed("set time of"))?;
        }
        Ok(())
    }

    fn file(&mut self, dir: &Rc<OwnedFd>, name: &[u8], entry: &Entry, data: &mut impl Read) -> Result<(), LayerError> {
        let failed = |cause| LayerError::Entry {
            what: "write file",
            path: String::from_utf8_lossy(&entry.path).into_owned(),
            cause,
        };
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let make = || openat(&**dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(self.replace(dir, name, make).map_err(failed)?);
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let whole = [(0, entry.size)];
        let pieces = entry.sparse.as_ref().map_or(&whole[..], |sparse| &sparse.pieces);
        for (at, length) in pieces {
            if entry.sparse.is_some() {
                file.seek(SeekFrom::Start(*at)).map_err(|error| failed(errno(error)))?;
            }
            let mut left = *length;
            while left > 0 {
                let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let got = data.read(&mut self.buffer[..want]).map_err(LayerError::Read)?;
                if got == 0 {
                    return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                file.write_all(&self.buffer[..got]).map_err(|error| failed(errno(error)))?;
                left -= got as u64;
            }
        }
        if let Some(sparse) = &entry.sparse {
            file.set_len(sparse.size).map_err(|error| failed(errno(error)))?;
        }
        Ok(())
    }

    fn node(&mut self, dir: &Rc<OwnedFd>, name: &[u8], kind: SFlag, device: u64) -> Result<(), Errno> {
        self.replace(dir, name, || mknodat(&**dir, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device))
    }

    // Makes an entry; what an earlier entry of this name left goes away.
    fn replace<T>(&mut self, dir: &Rc<OwnedFd>, name: &[u8], make: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match make() {
            Err(Errno::EEXIST) => {
                remove(&**dir, name)?;
                self.tree.forget();
                make()
            }
            other => other,
        }
    }

    fn directory(&mut self, dir: &Rc<OwnedFd>, name: &[u8]) -> Result<(), Errno> {
        let mut hides = false;
        match look(&**dir, name)? {
            Some(found) if is(&found, SFlag::S_IFDIR) => return Ok(()),
            Some(found) => {
                // It takes the place of what the whiteout removed, and must not show it again.
                hides = self.tree.has_lowers() && is_whiteout(&found);
                remove(&**dir, name)?;
                self.tree.forget();
            }
            None => {}
        }
        mkdirat(&**dir, name, Mode::S_IRWXU)?;
        if hides {
            sys::xattr::fset(open_dir_at(&**dir, name)?, OPAQUE, b"y")?;
        }
        Ok(())
    }

    fn hard_link(&mut self, dir: &Rc<OwnedFd>, name: &[u8], link: &[u8]) -> Result<(), Errno> {
        let parts = components(link);
        let (source, parents) = parts.split_last().ok_or(Errno::EISDIR)?;
        let mut from = match self.tree.find_dir(parents) {
            Err(Errno::ENOENT | Errno::ENOTDIR) if self.tree.has_lowers() => None,
            found => Some(found?),
        };
        let found = match &from {
            Some(from) => look(&**from, source)?,
            None => None,
        };
        // The file is one of a layer below: it is brought up first, as overlayfs itself does it.
        if found.is_none() && self.tree.has_lowers() {
            from = Some(self.bring_up(&parts)?);
        }
        let from = from.ok_or(Errno::ENOENT)?;
        let make = || linkat(&*from, *source, &**dir, name, AtFlags::empty());
        match (look(&*from, source)?, look(&**dir, name)?) {
            (None, _) => Err(Errno::ENOENT),
            // A link to itself: there already, and removing it first would lose it.
            (Some(a), Some(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) => Ok(()),
            _ => self.replace(dir, name, make),
        }
    }

    fn bring_up(&mut self, parts: &[&[u8]]) -> Result<Rc<OwnedFd>, Errno> {
        let (name, parents) = parts.split_last().ok_or(Errno::EISDIR)?;
        let (below, stat) = self.tree.below(parts)?.ok_or(Errno::ENOENT)?;
        if is(&stat, SFlag::S_IFDIR) {
            return Err(Errno::EISDIR);
        }
        let dir = self.tree.make_dir(parents)?;
        Copier::default().single(below.as_fd(), name, dir.as_fd(), name, &stat)?;
        Ok(dir)
    }

    // `None` as error: not a name.
    fn whiteout(&mut self, dir: &Rc<OwnedFd>, parents: &[&[u8]], hidden: &[u8]) -> Result<(), Option<Errno>> {
        let is_opaque = hidden == b".wh..opq";
        if !is_opaque && hidden.starts_with(b".wh.") {
            return Ok(()); // bookkeeping of aufs
        }
        if !is_opaque && matches!(hidden, b"" | b"." | b"..") {
            return Err(None);
        }
        if let Some(merged) = &self.merged {
            self.tree.forget();
            return if is_opaque { merged.clear(dir, parents) } else { merged.remove(dir, parents, hidden) }
                .map_err(Some);
        }
        if !self.tree.has_lowers() {
            return Ok(());
        }
        if is_opaque {
            // Only what other layers put there; entries of this layer stay, in whatever order they come.
            return opaque(dir, b".").map_err(Some);
        }
        match look(&**dir, hidden).map_err(Some)? {
            None => mknodat(&**dir, hidden, SFlag::S_IFCHR, Mode::empty(), 0).map_err(Some),
            Some(found) if is(&found, SFlag::S_IFDIR) => opaque(dir, hidden).map_err(Some),
            Some(_) => Ok(()),
        }
    }

    // Owner, then mode and attributes: chown clears setuid bits and file capabilities.
    fn attributes(&mut self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if !matches!(entry.kind, Kind::Symlink(_)) {
            // We made it and nobody else is here: it is no symlink.
            fchmodat(dir, name, Mode::from_bits_truncate(entry.mode), FchmodatFlags::FollowSymlink)?;
        }
        let path = path_of(dir, name)?;
        if self.inherits {
            merged::drop_attributes(&path, entry)?;
        }
        self.inherits |= entry.xattrs.iter().any(|(key, _)| key == b"system.posix_acl_default");
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| is_layers(key)) {
            let Ok(key) = std::ffi::CString::new(key.as_slice()) else { return Err(Errno::EINVAL) };
            match sys::xattr::lset(&path, &key, value) {
                // The file system, or this kind of file, has none of these: the file is of use without (as docker does it).
                Err(Errno::ENOTSUP) => {}
                Err(Errno::EPERM) if key.to_bytes().starts_with(b"user.") => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn finish(&mut self) {
        // Last one first: an entry repeated later in the archive wins, and parents come after children.
        for (path, time) in self.times.iter().rev() {
            let parts: Vec<&[u8]> = components(path);
            let done = match parts.split_last() {
                None => set_time(self.tree.root(), b".", *time),
                // What has become something else, or went away, keeps what it has.
                Some((name, parents)) => match self.tree.find_dir(parents) {
                    Ok(dir) => set_time(&*dir, name, *time),
                    Err(errno) => Err(errno),
                },
            };
            if let Err(errno) = done {
                tracing::debug!(path = %String::from_utf8_lossy(path), %errno, "time of directory not set");
            }
        }
    }
}

fn opaque(dir: &Rc<OwnedFd>, name: &[u8]) -> Result<(), Errno> {
    sys::xattr::fset(open_dir_at(&**dir, name)?, OPAQUE, b"y")
}

/// Whether an attribute belongs into layers: those that steer overlayfs or the host's security modules are not the image's
/// to set.
pub(crate) fn is_layers(key: &[u8]) -> bool {
    if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
        return false;
    }
    key == b"security.capability"
        || [&b"user."[..], b"trusted.", b"system.posix_acl_"].iter().any(|prefix| key.starts_with(prefix))
}

fn set_time(dir: impl AsFd, name: &[u8], (seconds, nanos): (i64, u32)) -> Result<(), Errno> {
    let time = TimeSpec::new(seconds, nanos.into());
    utimensat(dir, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}
