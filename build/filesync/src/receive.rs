//! The side that wants the folder.
//!
//! What the sender tells is compared with what is known to be there ([`Index`]), path by path, both in the same order: what is the
//! same isn't asked for, what is no longer there goes, what has changed or is new is asked for, some at once.
//! A file is written beside its place under a name of its own and renamed when it is whole.
//!
//! A sender is not to be trusted: paths are checked, looked up below the folder without following any link (openat2(2)), counted
//! and bounded; what it sends without being asked ends the exchange.

use crate::{
    index::{Entry, Index, order},
    mode,
    patterns::is_plain,
    walk::{is_kept, open_below},
};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, renameat},
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, makedev, mkdirat, mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use proto::{
    fsutil::types::{Packet, Stat, packet::PacketType},
    kind::chain,
};
use sha2::{Digest, Sha256};
use std::{
    any::Any,
    collections::{BTreeSet, HashMap, VecDeque},
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;

/// These many files are asked for at once. Senders of fsutil take up 128 questions before they answer one.
const AT_ONCE: usize = 64;
/// These many entries at most.
const MOST: usize = 4_000_000;
/// A path has these many bytes at most (PATH_MAX), a name these (NAME_MAX).
const LONGEST: (usize, usize) = (4096, 255);
/// Attributes of an entry, in bytes with their names.
const ATTRIBUTES: usize = 64 << 10;
/// A file may grow while it is sent: by its own size and this. More is no file, but a source without end.
const GROWTH: u64 = 64 << 20;

/// What was received.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Received {
    /// Files, folders and links that are in the folder now.
    pub entries: u64,
    /// Of these: files whose content was asked for.
    pub fetched: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// What had been there and isn't any more.
    pub removed: u64,
    /// Whether anything was written.
    pub changed: bool,
    /// What is in the folder now.
    pub index: Index,
}

/// How to receive.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is in the folder, from the last time or by [`Index::scan`]. What else is there stays, unless it is in the way.
    pub known: Index,
    /// Everything belongs to these, whatever the sender says.
    pub owner: Option<(u32, u32)>,
    /// Whether digests of the contents are wanted. Then files whose digest isn't known are asked for.
    pub digests: bool,
    /// Bytes so far, for those who show them.
    pub progress: Arc<AtomicU64>,
}

/// A folder that may be made only when something has to be written.
pub struct Folder(Open);

type Open = Box<dyn FnOnce() -> io::Result<(OwnedFd, Box<dyn Any + Send>)> + Send>;

impl Folder {
    /// One that is asked for from the thread that writes, at the first change. What comes with it is dropped when the thread
    /// writes no more, which may be after nobody waits for it.
    pub fn later<G: Any + Send>(open: impl FnOnce() -> io::Result<(OwnedFd, G)> + Send + 'static) -> Self {
        Self(Box::new(move || open().map(|(folder, guard)| (folder, Box::new(guard) as Box<dyn Any + Send>))))
    }
}

impl From<OwnedFd> for Folder {
    fn from(folder: OwnedFd) -> Self {
        Self::later(move || Ok((folder, ())))
    }
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder").finish_non_exhaustive()
    }
}

/// What goes wrong.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The other side has said so.
    #[error("the sender: {0}")]
    Refused(String),
    /// The other side is gone.
    #[error("the sender has gone")]
    Gone,
    /// The other side breaks the protocol, or tries to get out of the folder.
    #[error("the sender breaks the protocol: {0}")]
    Protocol(String),
    /// A file became shorter while it was sent.
    #[error("{path} changed while it was sent: {sent} bytes of the {size} that it had")]
    Changed {
        /// Its path.
        path: String,
        /// What came.
        sent: u64,
        /// What was told.
        size: u64,
    },
    /// A file here.
    #[error("write {path}")]
    Write {
        /// Its path.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The thread that writes broke down.
    #[error("the thread that receives files broke down")]
    Thread(#[source] tokio::task::JoinError),
}

/// Makes `folder` what the other side has: what is there already with the same size, mode, owner, link and time of change isn't
/// asked for again. Nothing outside of `folder` is touched, whatever the other side says.
pub async fn receive(
    folder: impl Into<Folder>,
    incoming: mpsc::Receiver<Packet>,
    outgoing: mpsc::Sender<Packet>,
    options: Options,
) -> Result<Received, ReceiveError> {
    let folder = folder.into();
    // One thread for all of it: to hash and to write is what takes time, and the sender is another process.
    let thread = tokio::task::spawn_blocking(move || {
        let told = outgoing.clone();
        let result = Receiver::new(folder, outgoing, options).run(incoming);
        if let Err(error) = &result
            && !matches!(error, ReceiveError::Refused(_) | ReceiveError::Gone)
        {
            let data = chain(error).into();
            let _ = told.try_send(Packet { r#type: PacketType::PacketErr.into(), data, ..Packet::default() });
        }
        result
    });
    thread.await.map_err(ReceiveError::Thread)?
}

struct Receiver {
    folder: Option<Folder>,
    root: Option<Rc<OwnedFd>>,
    /// The folder that was needed last.
    parent: Option<(String, Rc<OwnedFd>)>,
    /// Files whose content is asked for.
    open: HashMap<u32, Option<Unfinished>>,
    /// Comes with the folder. After all that is open in it.
    guard: Option<Box<dyn Any + Send>>,
    outgoing: mpsc::Sender<Packet>,
    owner: Option<(u32, u32)>,
    digests: bool,
    progress: Arc<AtomicU64>,
    known: std::iter::Peekable<std::vec::IntoIter<Entry>>,
    /// A folder that was removed with all that is known to be below it.
    removed_folder: Option<String>,
    /// What was told so far, in its order; the place is the number in the protocol.
    entries: Vec<Entry>,
    told_all: bool,
    wanted: VecDeque<u32>,
    /// Links to files: made when these are whole.
    links: Vec<usize>,
    /// Files that are new ones now: links to them have to be made again.
    renewed: BTreeSet<String>,
    /// Folders whose mode and times are set at the end: what is written into them changes the times.
    folders: BTreeSet<usize>,
    /// The same by path, for what is found out before its place is known.
    touched: BTreeSet<String>,
    /// Folders that differ in nothing but their times, and these: not worth writing anything, if there is nothing else.
    older: Vec<(usize, i64)>,
    temporaries: u64,
    received: Received,
}

/// A file whose content is coming.
struct Unfinished {
    parent: Rc<OwnedFd>,
    /// The name that it has meanwhile.
    name: String,
    file: File,
    hash: Option<Sha256>,
    size: u64,
    /// It has its place: nothing is left to remove.
    done: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            let _ = unlinkat(self.parent.as_fd(), self.name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn at(path: &str) -> impl Fn(Errno) -> ReceiveError {
    move |errno| ReceiveError::Write { path: path.to_owned(), cause: errno.into() }
}

fn protocol(text: impl Into<String>) -> ReceiveError {
    ReceiveError::Protocol(text.into())
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn is_below(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

impl Receiver {
    fn new(folder: Folder, outgoing: mpsc::Sender<Packet>, options: Options) -> Self {
        Self {
            folder: Some(folder),
            root: None,
            parent: None,
            open: HashMap::new(),
            guard: None,
            outgoing,
            owner: options.owner,
            digests: options.digests,
            progress: options.progress,
            known: options.known.into_entries().into_iter().peekable(),
            removed_folder: None,
            entries: Vec::new(),
            told_all: false,
            wanted: VecDeque::new(),
            links: Vec::new(),
            renewed: BTreeSet::new(),
            folders: BTreeSet::new(),
            older: Vec::new(),
            touched: BTreeSet::new(),
            temporaries: 0,
            received: Received::default(),
        }
    }

    fn run(mut self, mut incoming: mpsc::Receiver<Packet>) -> Result<Received, ReceiveError> {
        while !(self.told_all && self.open.is_empty() && self.wanted.is_empty()) {
            let packet = incoming.blocking_recv().ok_or(ReceiveError::Gone)?;
            match packet.r#type() {
                PacketType::PacketStat if self.told_all => return Err(protocol("more files after the last one")),
                PacketType::PacketStat => match packet.stat {
                    Some(stat) => self.take(stat)?,
                    None => {
                        self.told_all = true;
                        self.remove_known_before(None)?;
                    }
                },
                PacketType::PacketData => self.data(packet.id, &packet.data)?,
                PacketType::PacketErr => {
                    return Err(ReceiveError::Refused(String::from_utf8_lossy(&packet.data).into_owned()));
                }
                PacketType::PacketReq => return Err(protocol("it asks for files")),
                PacketType::PacketFin => return Err(protocol("it ends before it has sent what it was asked for")),
            }
            self.ask()?;
        }
        self.make_links()?;
        self.finish_folders()?;
        self.send(PacketType::PacketFin, 0)?;
        let last = incoming.blocking_recv().ok_or(ReceiveError::Gone)?;
        match last.r#type() {
            PacketType::PacketFin => {}
            PacketType::PacketErr => {
                return Err(ReceiveError::Refused(String::from_utf8_lossy(&last.data).into_owned()));
            }
            _ => return Err(protocol("it goes on after the end")),
        }
        self.received.entries = self.entries.len() as u64;
        self.received.index = Index::of(self.entries);
        Ok(self.received)
    }

    fn send(&self, kind: PacketType, id: u32) -> Result<(), ReceiveError> {
        let packet = Packet { r#type: kind.into(), id, ..Packet::default() };
        self.outgoing.blocking_send(packet).map_err(|_| ReceiveError::Gone)
    }

    /// Asks for what is wanted, as far as the sender can be asked.
    fn ask(&mut self) -> Result<(), ReceiveError> {
        while self.open.len() < AT_ONCE {
            let Some(id) = self.wanted.pop_front() else { return Ok(()) };
            self.open.insert(id, None);
            self.send(PacketType::PacketReq, id)?;
        }
        Ok(())
    }

    /// One more entry of the sender's.
    fn take(&mut self, mut stat: Stat) -> Result<(), ReceiveError> {
        self.check(&stat)?;
        self.progress.fetch_add(stat.path.len() as u64 + 32, Ordering::Relaxed);
        stat.xattrs.retain(|name, _| is_kept(name.as_bytes()));
        if let Some((uid, gid)) = self.owner {
            (stat.uid, stat.gid) = (uid, gid);
        }
        if mode::is_dir(stat.mode) {
            stat.size = 0;
        }
        self.remove_known_before(Some(&stat.path))?;
        let known = self.known.next_if(|known| known.stat.path == stat.path);
        let known = known.filter(|_| self.removed_folder.as_deref().is_none_or(|gone| !is_below(&stat.path, gone)));
        let place = self.entries.len();
        let is_link = mode::is_file(stat.mode) && !stat.linkname.is_empty();
        let is_file = mode::is_file(stat.mode) && !is_link;
        let same = known.as_ref().is_some_and(|known| is_same(&known.stat, &stat));
        let content = known.as_ref().and_then(|known| known.content).filter(|_| same && is_file);
        if is_link {
            self.links.push(place);
        }
        if same && !(is_file && self.digests && content.is_none()) {
            if let Some(known) = known.filter(|known| known.stat.mod_time != stat.mod_time) {
                self.older.push((place, known.stat.mod_time));
            }
            self.entries.push(Entry { stat, content });
            return Ok(());
        }
        // What was a folder and isn't any more goes with all below it.
        if known.is_some_and(|known| mode::is_dir(known.stat.mode)) && !mode::is_dir(stat.mode) {
            self.removed_folder = Some(stat.path.clone());
        }
        self.received.changed = true;
        if is_link {
            self.renewed.insert(stat.path.clone());
        } else if is_file {
            self.renewed.insert(stat.path.clone());
            if stat.size == 0 {
                let empty = self.begin(&stat.path)?;
                let content = self.finish(empty, &stat)?;
                self.entries.push(Entry { stat, content });
                return Ok(());
            }
            self.wanted.push_back(u32::try_from(place).map_err(|_| protocol("too many files"))?);
        } else if mode::is_dir(stat.mode) {
            self.make_folder(&stat)?;
            self.folders.insert(place);
        } else {
            self.make_node(&stat)?;
        }
        self.entries.push(Entry { stat, content: None });
        Ok(())
    }

    /// What a path and a mode may be.
    fn check(&self, stat: &Stat) -> Result<(), ReceiveError> {
        let path = &stat.path;
        if self.entries.len() >= MOST {
            return Err(protocol(format!("more than {MOST} files")));
        }
        if path.len() > LONGEST.0
            || path.split('/').any(|name| name.len() > LONGEST.1)
            || stat.linkname.len() > LONGEST.0
        {
            return Err(protocol("a path is too long"));
        }
        if !is_plain(path) {
            return Err(protocol(format!("invalid path {path:?}")));
        }
        let last = self.entries.last().map(|entry| &entry.stat);
        if last.is_some_and(|last| order(&last.path, path).is_ge()) {
            let last = last.map(|last| last.path.as_str()).unwrap_or_default();
            return Err(protocol(format!("changes out of order: {path:?} after {last:?}")));
        }
        let (parent, _) = split(path);
        // In order, a folder's entries follow it at once: it is found by a look back through those that it is in.
        if !parent.is_empty() && !self.entry_of(parent).is_some_and(|entry| mode::is_dir(entry.stat.mode)) {
            return Err(protocol(format!("{path:?} is in no folder that was sent")));
        }
        let kind = stat.mode & mode::TYPE;
        let is_known = [0, mode::DIR, mode::SYMLINK, mode::NAMED_PIPE, mode::DEVICE, mode::DEVICE | mode::CHAR_DEVICE];
        if !is_known.contains(&kind) {
            return Err(protocol(format!("{path:?} has the unknown mode {:#o}", stat.mode)));
        }
        if stat.size < 0 {
            return Err(protocol(format!("{path:?} has the size {}", stat.size)));
        }
        if kind == mode::SYMLINK && (stat.linkname.is_empty() || stat.linkname.contains('\0')) {
            return Err(protocol(format!("{path:?} is a link to nothing")));
        }
        if kind == 0 && !stat.linkname.is_empty() {
            let to = self.entry_of(&stat.linkname).map(|entry| &entry.stat);
            if !to.is_some_and(|to| mode::is_file(to.mode) && to.linkname.is_empty()) {
                return Err(protocol(format!("invalid link {path:?} to unknown path {:?}", stat.linkname)));
            }
        }
        let attributes: usize = stat.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if attributes > ATTRIBUTES {
            return Err(protocol(format!("{path:?} has {attributes} bytes of attributes")));
        }
        Ok(())
    }

    fn entry_of(&self, path: &str) -> Option<&Entry> {
        let place = self.entries.binary_search_by(|entry| order(&entry.stat.path, path)).ok()?;
        self.entries.get(place)
    }

    /// What is known to be there and has not been told of is there no more.
    fn remove_known_before(&mut self, path: Option<&str>) -> Result<(), ReceiveError> {
        while let Some(known) =
            self.known.next_if(|known| path.is_none_or(|path| order(&known.stat.path, path).is_lt()))
        {
            self.received.removed += 1;
            self.received.changed = true;
            let gone = &known.stat.path;
            if self.removed_folder.as_deref().is_some_and(|folder| is_below(gone, folder)) {
                continue;
            }
            let (folder, name) = split(gone);
            let parent = self.parent(folder)?;
            remove(parent.as_fd(), name).map_err(at(gone))?;
            self.touched.insert(folder.to_owned());
            if mode::is_dir(known.stat.mode) {
                self.parent = None;
                self.removed_folder = Some(known.stat.path);
            }
        }
        Ok(())
    }

    fn root(&mut self) -> Result<Rc<OwnedFd>, ReceiveError> {
        if let Some(open) = self.folder.take() {
            let failed = |cause| ReceiveError::Write { path: ".".into(), cause };
            let (root, guard) = (open.0)().map_err(failed)?;
            (self.root, self.guard) = (Some(Rc::new(root)), Some(guard));
        }
        self.root.clone().ok_or_else(|| protocol("the folder is closed"))
    }

    /// The folder that something is in.
    fn parent(&mut self, path: &str) -> Result<Rc<OwnedFd>, ReceiveError> {
        if let Some((last, fd)) = &self.parent
            && last == path
        {
            return Ok(fd.clone());
        }
        let root = self.root()?;
        let fd = match path {
            "" => root,
            path => Rc::new(open_below(&*root, path, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(at(path))?),
        };
        self.parent = Some((path.to_owned(), fd.clone()));
        Ok(fd)
    }

    /// A name that nobody has.
    fn temporary(&mut self) -> String {
        self.temporaries += 1;
        // A sender can't know the address, and what is there under this name is refused.
        let salt = std::ptr::from_ref(self).addr() ^ std::process::id() as usize;
        format!(".berth-{salt:x}-{}", self.temporaries)
    }

    /// Begins a file.
    fn begin(&mut self, path: &str) -> Result<Unfinished, ReceiveError> {
        let parent = self.parent(split(path).0)?;
        let name = self.temporary();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(parent.as_fd(), name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(at(path))?;
        let hash = self.digests.then(Sha256::new);
        Ok(Unfinished { parent, name, file: File::from(file), hash, size: 0, done: false })
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), ReceiveError> {
        let Some(place) = self.open.remove(&id) else {
            return Err(protocol(format!("content for {id}, which nobody asked for")));
        };
        let Some(stat) = self.entries.get(id as usize).map(|entry| entry.stat.clone()) else {
            return Err(protocol(format!("content for {id}, which nobody asked for")));
        };
        let size = u64::try_from(stat.size).unwrap_or_default();
        let mut file = match place {
            Some(file) => file,
            None => self.begin(&stat.path)?,
        };
        if data.is_empty() {
            if file.size < size {
                return Err(ReceiveError::Changed { path: stat.path, sent: file.size, size });
            }
            self.received.fetched += 1;
            let grown = file.size;
            let content = self.finish(file, &stat)?;
            if let Some(entry) = self.entries.get_mut(id as usize) {
                // As it is here: the next time it counts as changed.
                entry.stat.size = i64::try_from(grown).unwrap_or(i64::MAX);
                entry.content = content;
            }
            return Ok(());
        }
        file.size += data.len() as u64;
        if file.size > size.saturating_mul(2).saturating_add(GROWTH) {
            return Err(protocol(format!("{:?} has no end: it was to have {size} bytes", stat.path)));
        }
        file.file.write_all(data).map_err(|cause| ReceiveError::Write { path: stat.path, cause })?;
        if let Some(hash) = &mut file.hash {
            hash.update(data);
        }
        self.received.bytes += data.len() as u64;
        self.progress.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.open.insert(id, Some(file));
        Ok(())
    }

    /// Gives a file that is whole its owner, mode, times and place.
    fn finish(&mut self, mut file: Unfinished, stat: &Stat) -> Result<Option<[u8; 32]>, ReceiveError> {
        self.dress(&file.parent, &file.name, stat)?;
        self.place(&file.parent, &file.name, &stat.path)?;
        file.done = true;
        Ok(file.hash.take().map(|hash| hash.finalize().into()))
    }

    /// Renames what was made to where it belongs.
    fn place(&mut self, parent: &Rc<OwnedFd>, name: &str, path: &str) -> Result<(), ReceiveError> {
        let (folder, wanted) = split(path);
        match renameat(parent.as_fd(), name, parent.as_fd(), wanted) {
            // A folder is in the way.
            Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
                remove(parent.as_fd(), wanted).map_err(at(path))?;
                self.parent = None;
                renameat(parent.as_fd(), name, parent.as_fd(), wanted).map_err(at(path))?;
            }
            other => other.map_err(at(path))?,
        }
        self.touched.insert(folder.to_owned());
        Ok(())
    }

    /// Owner, attributes, mode and times.
    fn dress(&self, parent: &OwnedFd, name: &str, stat: &Stat) -> Result<(), ReceiveError> {
        let failed = at(&stat.path);
        let (uid, gid) = (Uid::from_raw(stat.uid), Gid::from_raw(stat.gid));
        let is_link = stat.mode & mode::SYMLINK != 0;
        match fchownat(parent.as_fd(), name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW) {
            // A user may own what is his, and nothing else.
            Err(Errno::EPERM) if self.owner.is_some() => {}
            other => other.map_err(&failed)?,
        }
        for (attribute, value) in &stat.xattrs {
            // File systems without them, users who may not: the content is what counts.
            let path = CString::new(format!("/proc/self/fd/{}/{name}", parent.as_raw_fd()));
            if let (Ok(path), Ok(attribute)) = (path, CString::new(attribute.as_str())) {
                let _ = sys::xattr::lset(&path, &attribute, value);
            }
        }
        // After the owner: chown(2) takes setuid away.
        if !is_link {
            let bits = Mode::from_bits_truncate(mode::permissions(stat.mode));
            if mode::is_dir(stat.mode) {
                // In a folder of others a link may have taken its place.
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let folder = openat(parent.as_fd(), name, flags, Mode::empty()).map_err(&failed)?;
                fchmod(folder, bits).map_err(&failed)?;
            } else {
                fchmodat(parent.as_fd(), name, bits, FchmodatFlags::FollowSymlink).map_err(&failed)?;
            }
        }
        set_time(parent, name, stat.mod_time).map_err(&failed)
    }

    /// Makes a folder, or takes the one that is there. Only we get in until it is complete.
    fn make_folder(&mut self, stat: &Stat) -> Result<(), ReceiveError> {
        let failed = at(&stat.path);
        let (folder, name) = split(&stat.path);
        let parent = self.parent(folder)?;
        match mkdirat(parent.as_fd(), name, Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                let there = fstatat(parent.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(&failed)?;
                if there.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR {
                    return Ok(());
                }
                remove(parent.as_fd(), name).map_err(&failed)?;
                mkdirat(parent.as_fd(), name, Mode::S_IRWXU).map_err(&failed)?;
            }
            Err(errno) => return Err(failed(errno)),
        }
        self.touched.insert(folder.to_owned());
        Ok(())
    }

    /// Makes a symbolic link, a device or a named pipe.
    fn make_node(&mut self, stat: &Stat) -> Result<(), ReceiveError> {
        let parent = self.parent(split(&stat.path).0)?;
        let name = self.temporary();
        let failed = at(&stat.path);
        let made = match stat.mode & mode::TYPE {
            mode::SYMLINK => symlinkat(stat.linkname.as_str(), parent.as_fd(), name.as_str()),
            kind => {
                let number = |n: i64| u64::try_from(n).unwrap_or_default();
                let device = makedev(number(stat.devmajor), number(stat.devminor));
                let (kind, device) = match kind {
                    mode::NAMED_PIPE => (SFlag::S_IFIFO, 0),
                    mode::DEVICE => (SFlag::S_IFBLK, device),
                    _ => (SFlag::S_IFCHR, device),
                };
                mknodat(parent.as_fd(), name.as_str(), kind, Mode::S_IRUSR | Mode::S_IWUSR, device)
            }
        };
        made.map_err(&failed)?;
        let placed = self.dress(&parent, &name, stat).and_then(|()| self.place(&parent, &name, &stat.path));
        if placed.is_err() {
            let _ = unlinkat(parent.as_fd(), name.as_str(), UnlinkatFlags::NoRemoveDir);
        }
        placed
    }

    /// Makes links to files, now that all of these are whole.
    fn make_links(&mut self) -> Result<(), ReceiveError> {
        for place in std::mem::take(&mut self.links) {
            let stat = self.entries[place].stat.clone();
            if !self.renewed.contains(&stat.path) && !self.renewed.contains(&stat.linkname) {
                continue;
            }
            self.received.changed = true;
            let failed = at(&stat.path);
            let (folder, name) = split(&stat.linkname);
            let from = self.parent(folder)?;
            let to = self.parent(split(&stat.path).0)?;
            let temporary = self.temporary();
            linkat(from.as_fd(), name, to.as_fd(), temporary.as_str(), LinkatFlags::empty()).map_err(&failed)?;
            // rename(2) does nothing to two names of one file.
            let wanted = split(&stat.path).1;
            match remove(to.as_fd(), wanted) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    let _ = unlinkat(to.as_fd(), temporary.as_str(), UnlinkatFlags::NoRemoveDir);
                    return Err(failed(errno));
                }
            }
            self.place(&to, &temporary, &stat.path)?;
        }
        Ok(())
    }

    /// Gives folders what they are to have, those deepest down first.
    fn finish_folders(&mut self) -> Result<(), ReceiveError> {
        for (place, time) in std::mem::take(&mut self.older) {
            if self.received.changed {
                self.folders.insert(place);
            } else {
                self.entries[place].stat.mod_time = time;
            }
        }
        for path in std::mem::take(&mut self.touched) {
            if let Ok(place) = self.entries.binary_search_by(|entry| order(&entry.stat.path, &path)) {
                self.folders.insert(place);
            }
        }
        for place in std::mem::take(&mut self.folders).into_iter().rev() {
            let stat = self.entries[place].stat.clone();
            let (folder, name) = split(&stat.path);
            let parent = self.parent(folder)?;
            self.dress(&parent, name, &stat)?;
        }
        Ok(())
    }
}

/// Whether there is nothing to be done: what fsutil compares, and attributes. A folder's time changes with what is in it.
fn is_same(known: &Stat, told: &Stat) -> bool {
    let content = mode::is_dir(told.mode) || (known.size == told.size && known.mod_time == told.mod_time);
    content
        && known.mode == told.mode
        && (known.uid, known.gid) == (told.uid, told.gid)
        && (known.devmajor, known.devminor) == (told.devmajor, told.devminor)
        && known.linkname == told.linkname
        && known.xattrs == told.xattrs
}

fn set_time(parent: &OwnedFd, name: &str, nanoseconds: i64) -> Result<(), Errno> {
    let time = TimeSpec::new(nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000));
    utimensat(parent.as_fd(), name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

/// Removes whatever has a name, folders with all that is in them; follows nothing.
fn remove(parent: impl AsFd, name: &str) -> Result<(), Errno> {
    remove_all(parent.as_fd(), &CString::new(name).map_err(|_| Errno::EINVAL)?)
}

fn remove_all(parent: std::os::fd::BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<(), Errno> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(Errno::ENOENT) => return Ok(()),
        other => return other,
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut dir = nix::dir::Dir::from_fd(openat(parent, name, flags, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        remove_all(dir.as_fd(), &name)?;
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}
