//! Unpacks one layer: into the upper folder of an overlay, where whiteouts become devices 0/0 and opaque marks become
//! attributes, or into a merged tree, from which they remove what is there.
//!
//! One thread reads and inflates, one hashes, parses and makes files, one writes what is in them.
//!
//! An overlay's layer can be unpacked apart from those below it, before they are there: it needs them only for the looks of
//! directories that it doesn't describe, which are put right later ([`dress`]), and for links to their files, which are rare and
//! make it start over ([`LayerError::NeedsBelow`]).

mod inflate;
mod merged;
#[cfg(test)]
mod tests;
mod write;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sched::{CloneFlags, unshare},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, makedev, mkdirat, mknodat,
            umask, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat},
};
use proto::digest::Digest;

use self::{
    inflate::{Pipe, pipe},
    merged::Merged,
    write::{Handed, Writer, writer},
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
    // There are layers below, and they aren't known yet.
    pub(super) apart: bool,
    pub(super) layout: Layout,
}

impl Target {
    /// The upper folder of an overlay, empty at first, and the folders of the layers below, nearest first.
    pub(crate) fn overlay(upper: &Path, lowers: &[PathBuf]) -> Result<Self, PlaceError> {
        let lowers = lowers.iter().map(|lower| open_folder(lower)).collect::<Result<_, _>>()?;
        Ok(Self { root: open_folder(upper)?, lowers, apart: false, layout: Layout::Overlay })
    }

    /// The upper folder of an overlay, empty at first, whose layers below are still to come.
    pub(crate) fn apart(upper: &Path) -> Result<Self, PlaceError> {
        Ok(Self { root: open_folder(upper)?, lowers: Vec::new(), apart: true, layout: Layout::Overlay })
    }

    /// A tree that holds what the layers below have made.
    pub(crate) fn merged(root: OwnedFd) -> Self {
        Self { root, lowers: Vec::new(), apart: false, layout: Layout::Merged }
    }

    /// Writes what the tree has in memory to the disk.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        nix::unistd::syncfs(&self.root)
    }
}

/// What came out of a layer.
#[derive(Debug, Clone)]
pub(crate) struct Applied {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Its size.
    pub(crate) size: u64,
    /// Of a layer that was unpacked apart: directories on whose looks it says nothing.
    pub(crate) implied: BTreeSet<Vec<u8>>,
}

/// Unpacks `blob`; `progress` is told how many (compressed) bytes are read.
pub(crate) fn apply(
    blob: impl Read + Send,
    target: &Target,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Applied, LayerError> {
    let (inflater, pipe) = pipe();
    let (writer, filler) = writer();
    std::thread::scope(|scope| {
        let inflating = std::thread::Builder::new()
            .name("inflate".into())
            .spawn_scoped(scope, move || inflater.run(blob, progress))
            .map_err(|_| LayerError::Thread("no thread to inflate"))?;
        let unpacking = std::thread::Builder::new()
            .name("unpack".into())
            .spawn_scoped(scope, move || {
                // Of this thread alone: files are made with the mode they are to have.
                unshare(CloneFlags::CLONE_FS).map_err(|_| LayerError::Thread("no umask of its own"))?;
                umask(Mode::empty());
                unpack(pipe, target, writer)
            })
            .map_err(|_| LayerError::Thread("no thread to unpack"))?;
        let writing = std::thread::Builder::new()
            .name("write".into())
            .spawn_scoped(scope, move || filler.run())
            .map_err(|_| LayerError::Thread("no thread to write"))?;
        let unpacked = unpacking.join().map_err(|_| LayerError::Thread("unpacking met a bug"))?;
        let written = writing.join().map_err(|_| LayerError::Thread("writing met a bug"))?;
        let inflated = inflating.join().map_err(|_| LayerError::Thread("inflating met a bug"))?;
        // Who fails first makes the others stop; what inflating says about the archive explains what unpacking made of it.
        match (inflated, written, unpacked) {
            (Err(LayerError::Thread(_)) | Ok(()), Err(error), _) => Err(error),
            (Err(LayerError::Thread(_)) | Ok(()), Ok(()), Err(error)) => Err(error),
            (Err(error), ..) => Err(error),
            (Ok(()), Ok(()), unpacked) => unpacked,
        }
    })
}

/// Gives the directories that a layer implied the looks they have in the layers below, which `target` knows by now.
pub(crate) fn dress(target: &Target, implied: &BTreeSet<Vec<u8>>) -> Result<(), LayerError> {
    let failed = |cause| LayerError::Entry { what: "set attributes of directories in", path: ".".into(), cause };
    Tree::open(target).and_then(|tree| tree.dress(implied)).map_err(failed)
}

fn unpack(input: Pipe, target: &Target, writer: Writer) -> Result<Applied, LayerError> {
    let top = |cause| LayerError::Entry { what: "open", path: ".".into(), cause };
    let is_merged = target.layout == Layout::Merged;
    let tree = Tree::open(target).map_err(top)?;
    let gives_group =
        is_merged || !target.lowers.is_empty() || fstat(&target.root).map_err(top)?.st_mode & SET_GROUP != 0;
    let mut unpacker = Unpacker {
        tree,
        merged: is_merged.then(Merged::default),
        inherits: is_merged,
        gives_group,
        needs_below: false,
        times: Vec::new(),
        writer,
    };
    let mut archive = TarReader::new(input);
    while let Some(entry) = archive.next_entry()? {
        if let Err(error) = unpacker.entry(&entry, &mut archive) {
            return Err(if unpacker.needs_below { LayerError::NeedsBelow } else { error });
        }
    }
    unpacker.writer.flush()?;
    let input = archive.drain()?;
    unpacker.finish();
    let (diff_id, size) = input.digest();
    Ok(Applied { diff_id, size, implied: unpacker.tree.implied().clone() })
}

/// The set-group-ID bit: what is made in a directory that has it gets its group.
const SET_GROUP: u32 = 0o2000;

struct Unpacker {
    tree: Tree,
    // What this layer has made, where that has to be told from what was there.
    merged: Option<Merged>,
    // Whether there may be directories with a default ACL, of which what is made in them gets attributes of its own.
    inherits: bool,
    // Whether there may be directories that give their group to what is made in them.
    gives_group: bool,
    // Whether it failed for want of the layers below.
    needs_below: bool,
    // Times of directories, set when nothing is written into them any more.
    times: Vec<(Vec<u8>, (i64, u32))>,
    writer: Writer,
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, data: &mut TarReader<Pipe>) -> Result<(), LayerError> {
        let parts = components(&entry.path);
        let shown = || String::from_utf8_lossy(&entry.path).chars().take(300).collect::<String>();
        let failed = |what| move |cause| LayerError::Entry { what, path: shown(), cause };
        let Some((name, parents)) = parts.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(LayerError::Refused { path: shown(), why: "the root must be a directory" });
            }
            let root = self.tree.root().try_clone_to_owned().map_err(|_| failed("open")(Errno::EMFILE))?;
            self.attributes(&root, b".", entry).map_err(failed("set attributes of"))?;
            self.tree.described(b".");
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
            Kind::File => return self.file(&dir, name, entry, data),
            Kind::Directory => {
                self.directory(&dir, name).map_err(failed("make directory"))?;
                self.gives_group |= entry.mode & SET_GROUP != 0;
                let path = parts.join(&b'/');
                self.tree.described(&path);
                self.times.push((path, entry.mtime));
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

    fn file(
        &mut self,
        dir: &Rc<OwnedFd>,
        name: &[u8],
        entry: &Entry,
        data: &mut TarReader<Pipe>,
    ) -> Result<(), LayerError> {
        let failed = |what| {
            move |cause| LayerError::Entry { what, path: String::from_utf8_lossy(&entry.path).into_owned(), cause }
        };
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // Whoever it will belong to, it takes effect for them once it is whole.
        let plain = Mode::from_bits_truncate(entry.mode & 0o777);
        let make = || openat(&**dir, name, flags, plain);
        let mut file = File::from(self.replace(dir, name, make).map_err(failed("write file"))?);
        // What takes more than bytes, owner and time is rare.
        let is_plain = entry.sparse.is_none() && entry.xattrs.is_empty() && entry.mode & 0o7000 == 0;
        if is_plain && !self.inherits {
            return self.hand_over(file, entry, data);
        }
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let whole = [(0, entry.size)];
        let pieces = entry.sparse.as_ref().map_or(&whole[..], |sparse| &sparse.pieces);
        for (at, length) in pieces {
            if entry.sparse.is_some() {
                file.seek(SeekFrom::Start(*at)).map_err(|error| failed("write file")(errno(error)))?;
            }
            let mut left = *length;
            while left > 0 {
                let there = data.fill().map_err(LayerError::Read)?;
                let got = there.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                if got == 0 {
                    return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
                }
                file.write_all(&there[..got]).map_err(|error| failed("write file")(errno(error)))?;
                data.consume(got);
                left -= got as u64;
            }
        }
        if let Some(sparse) = &entry.sparse {
            file.set_len(sparse.size).map_err(|error| failed("write file")(errno(error)))?;
        }
        self.finish_file(&file, dir, name, entry).map_err(failed("set attributes of"))
    }

    fn hand_over(&mut self, file: File, entry: &Entry, data: &mut TarReader<Pipe>) -> Result<(), LayerError> {
        let mut handed = Handed::new(file, entry);
        let mut left = entry.size;
        while left > 0 {
            let there = data.fill().map_err(LayerError::Read)?.len();
            let got = there.min(usize::try_from(left).unwrap_or(usize::MAX));
            if got == 0 {
                return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let piece = data.input().piece(got);
            data.consume(got);
            left -= got as u64;
            self.writer.piece(&mut handed, piece)?;
        }
        let owner = (self.gives_group || (entry.uid, entry.gid) != (0, 0)).then_some((entry.uid, entry.gid));
        self.writer.end(handed, owner, entry.mtime)
    }

    // Owner, then mode and attributes, as for everything else; by the open file, and only what isn't so already.
    fn finish_file(&mut self, file: &File, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
        if self.gives_group || (entry.uid, entry.gid) != (0, 0) {
            fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        }
        if self.inherits || entry.mode & 0o7000 != 0 {
            fchmod(file, Mode::from_bits_truncate(entry.mode))?;
        }
        if self.inherits || !entry.xattrs.is_empty() {
            self.extended_attributes(dir, name, entry)?;
        }
        let time = TimeSpec::new(entry.mtime.0, entry.mtime.1.into());
        futimens(file, &time, &time)
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
            if self.tree.is_apart() {
                self.needs_below = true;
                return Err(Errno::ENOENT);
            }
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
        self.extended_attributes(dir, name, entry)
    }

    fn extended_attributes(&mut self, dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
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
