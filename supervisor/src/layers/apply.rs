//! Unpacks one layer into the upper folder of its snapshot, as overlayfs wants it: whiteouts become devices 0/0, opaque
//! marks become attributes.
//!
//! One thread reads, inflates and hashes; the other parses and makes files.

#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
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
use sha2::{Digest as _, Sha256};

use super::{
    LayerError,
    decompress::decompressed,
    tar::{Entry, Kind, TarReader},
    tree::{OPAQUE, Tree, components, is, is_whiteout, look, open_dir_at, path_of, remove},
};

const CHUNK: usize = 256 << 10;

/// Where a layer goes.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The folder to fill; empty at first.
    pub(crate) upper: PathBuf,
    /// The folders of the layers below, nearest first.
    pub(crate) lowers: Vec<PathBuf>,
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
        let unpacked = unpack(Pipe { receiver, chunk: Vec::new(), at: 0 }, target);
        let inflated = inflate.join().map_err(|_| LayerError::Thread("inflating met a bug"))?;
        unpacked?;
        inflated
    })
}

type Chunk = Result<Vec<u8>, io::Error>;

fn inflate(blob: File, sender: &SyncSender<Chunk>, progress: &(dyn Fn(u64) + Sync)) -> Result<Applied, LayerError> {
    let counted = Counted { inner: blob, count: 0, progress };
    let (mut reader, _) = match decompressed(counted) {
        Ok(reader) => reader,
        Err(error) => {
            // The other side sees the end; this error is the one that is told.
            return Err(error);
        }
    };
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match reader.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    // Nobody reads any more if the other side failed first.
                    let _ = sender.send(Err(error));
                    return Err(LayerError::Read(copy));
                }
            }
        }
        if filled == 0 {
            return Ok(Applied { diff_id: Digest::from_bytes(hasher.finalize().into()), size });
        }
        chunk.truncate(filled);
        hasher.update(&chunk);
        size += filled as u64;
        if sender.send(Ok(chunk)).is_err() {
            return Err(LayerError::Thread("unpacking stopped"));
        }
    }
}

struct Counted<'a> {
    inner: File,
    count: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.count += got as u64;
        (self.progress)(self.count);
        Ok(got)
    }
}

struct Pipe {
    receiver: Receiver<Chunk>,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

fn unpack(input: impl Read, target: &Target) -> Result<(), LayerError> {
    let top = |cause| LayerError::Entry { what: "open", path: target.upper.display().to_string(), cause };
    let mut unpacker = Unpacker {
        tree: Tree::open(&target.upper, &target.lowers).map_err(top)?,
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
            attributes(&root, b".", entry).map_err(failed("set attributes of"))?;
            self.times.push((b".".to_vec(), entry.mtime));
            return Ok(());
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            let dir = self.tree.make_dir(parents).map_err(failed("make parent of"))?;
            return self.whiteout(&dir, hidden).map_err(|refused| match refused {
                Some(cause) => failed("make whiteout")(cause),
                None => LayerError::Refused { path: shown(), why: "a whiteout must name one entry" },
            });
        }
        let dir = self.tree.make_dir(parents).map_err(failed("make parent of"))?;
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
        attributes(&dir, name, entry).map_err(failed("set attributes of"))?;
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
        let mut left = entry.size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = data.read(&mut self.buffer[..want]).map_err(LayerError::Read)?;
            if got == 0 {
                return Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            file.write_all(&self.buffer[..got]).map_err(|error| failed(errno(error)))?;
            left -= got as u64;
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
                hides = is_whiteout(&found) && self.tree.has_lowers();
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
        let from = self.tree.find_dir(parents)?;
        let make = || linkat(&*from, *source, &**dir, name, AtFlags::empty());
        match (look(&*from, source)?, look(&**dir, name)?) {
            (None, _) => Err(Errno::ENOENT),
            // A link to itself: there already, and removing it first would lose it.
            (Some(a), Some(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) => Ok(()),
            _ => self.replace(dir, name, make),
        }
    }

    // `None` as error: not a name.
    fn whiteout(&mut self, dir: &Rc<OwnedFd>, hidden: &[u8]) -> Result<(), Option<Errno>> {
        if hidden == b".wh..opq" {
            // Only what other layers put there; entries of this layer stay, in whatever order they come.
            return if self.tree.has_lowers() { opaque(dir, b".").map_err(Some) } else { Ok(()) };
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // bookkeeping of aufs
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(None);
        }
        if !self.tree.has_lowers() {
            return Ok(());
        }
        match look(&**dir, hidden).map_err(Some)? {
            None => mknodat(&**dir, hidden, SFlag::S_IFCHR, Mode::empty(), 0).map_err(Some),
            Some(found) if is(&found, SFlag::S_IFDIR) => opaque(dir, hidden).map_err(Some),
            Some(_) => Ok(()),
        }
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

// Owner, then mode and attributes: chown clears setuid bits and file capabilities.
fn attributes(dir: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if !matches!(entry.kind, Kind::Symlink(_)) {
        // We made it and nobody else is here: it is no symlink.
        fchmodat(dir, name, Mode::from_bits_truncate(entry.mode), FchmodatFlags::FollowSymlink)?;
    }
    for (key, value) in &entry.xattrs {
        if !wanted(key) {
            continue;
        }
        let Ok(key) = std::ffi::CString::new(key.as_slice()) else { return Err(Errno::EINVAL) };
        match sys::xattr::lset(&path_of(dir, name)?, &key, value) {
            // The file system, or this kind of file, has none of these: the file is of use without (as docker does it).
            Err(Errno::ENOTSUP) => {}
            Err(Errno::EPERM) if key.to_bytes().starts_with(b"user.") => {}
            other => other?,
        }
    }
    Ok(())
}

// Attributes that steer overlayfs or the host's security modules are not the image's to set.
fn wanted(key: &[u8]) -> bool {
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

/// Bytes and inodes below a folder, hard links counted once.
pub(crate) fn usage(root: &Path) -> Result<(u64, u64), Errno> {
    use nix::{fcntl::open, sys::stat::fstatat};
    let root = open(root, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let (mut bytes, mut inodes) = (0, 0);
    let mut linked = std::collections::HashSet::new();
    let mut todo: Vec<Vec<u8>> = vec![b".".to_vec()];
    while let Some(path) = todo.pop() {
        let dir = match super::tree::open_in(&root, &path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) {
            Ok(dir) => dir,
            // Gone meanwhile, or deeper than a path can say: an estimate must not fail.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG) => continue,
            Err(errno) => return Err(errno),
        };
        inodes += 1;
        for (name, is_dir) in super::tree::entries(&dir)? {
            if is_dir {
                todo.push([&path, &b"/"[..], name.to_bytes()].concat());
                continue;
            }
            let Ok(stat) = fstatat(&dir, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            if stat.st_nlink < 2 || linked.insert(stat.st_ino) {
                bytes += stat.st_blocks.max(0) as u64 * 512;
                inodes += 1;
            }
        }
    }
    Ok((bytes, inodes))
}
