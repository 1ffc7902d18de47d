//! Digests of what is in filesystems: paths, content, modes, owners, links and attributes; no times, and nothing of how it came to
//! be. Equal digests are equal inputs of an operation.
//!
//! ```text
//! SHA-256 of, for each thing in order of its path, folder by folder:
//!   length of path | path | kind | mode | uid | gid | device | length of link | link | attributes | SHA-256 of its content
//! ```

use super::files::{
    FileError, STACK, Stop,
    copy::travels,
    filter::{Filter, Verdict},
    on_thread,
    paths::{self, Clean, is_folder, kind},
};
use crate::build::tree::Tree;
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};
use proto::digest::Digest;
use sha2::{Digest as _, Sha256};
use solver::{Selection, StepError};
use std::{
    collections::HashMap,
    ffi::{CStr, CString},
    fs::File,
    io::Read,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Deeper trees than this are refused.
const DEPTH: usize = 400;
/// Threads that hash.
const THREADS: usize = 8;
/// Digests of files that are remembered.
const REMEMBERED: usize = 1 << 18;
/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// Digests that were found before. A filesystem doesn't change, so they hold as long as it is there; its name never comes back.
#[derive(Debug, Default)]
pub struct Contents {
    found: Mutex<HashMap<(String, Selection), Digest>>,
    files: Mutex<Files>,
}

/// Digest of a file's content.
type Hash = [u8; 32];
/// Digests of the files of one filesystem, by path.
type Known = Arc<Mutex<HashMap<Vec<u8>, Hash>>>;

#[derive(Debug, Default)]
struct Files {
    of: HashMap<String, Known>,
}

impl Contents {
    /// Digest of what `selection` says of a filesystem.
    pub async fn digest(&self, of: &Tree, selection: &Selection) -> Result<Digest, StepError> {
        let key = of.snapshot_key().map(|key| (key.to_owned(), selection.clone()));
        let lock = |error: PoisonError<_>| error.into_inner();
        if let Some(found) = key.as_ref().and_then(|key| self.found.lock().unwrap_or_else(lock).get(key).copied()) {
            return Ok(found);
        }
        let known = key.as_ref().map(|(key, _)| self.known(key)).unwrap_or_default();
        let (root, wanted) = (of.open().await?, selection.clone());
        let digest = on_thread(move |stop| digest(&root, &wanted, &known, stop)).await?;
        if let Some(key) = key {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            if found.len() >= REMEMBERED / 8 {
                found.clear();
            }
            found.insert(key, digest);
        }
        Ok(digest)
    }

    /// Takes digests of files that are known from elsewhere: those of a client's folder, which were made while it was sent.
    pub fn learn<'a>(&self, of: &Tree, files: impl Iterator<Item = (&'a str, Hash)>) {
        let Some(key) = of.snapshot_key() else { return };
        let known = self.known(key);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() {
            known.extend(files.map(|(path, hash)| (path.as_bytes().to_vec(), hash)));
        }
    }

    fn known(&self, key: &str) -> Known {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |known: &Known| known.lock().unwrap_or_else(PoisonError::into_inner).len();
        if files.of.values().map(count).sum::<usize>() >= REMEMBERED {
            files.of.clear();
        }
        files.of.entry(key.to_owned()).or_default().clone()
    }
}

/// A thing that was found, without its content.
struct Entry {
    /// From the root of the filesystem.
    at: Clean,
    /// Its path and facts, as they are hashed.
    said: Vec<u8>,
    /// Whether its content counts.
    is_file: bool,
    size: u64,
}

/// The same of any open root; `known` are digests of files found before, and takes those that are found.
pub fn digest(root: &OwnedFd, selection: &Selection, known: &Known, stop: &Stop) -> Result<Digest, FileError> {
    let filter = Filter::new(&selection.include, &selection.exclude)?;
    let mut walk = Walk { filter: &filter, stop, entries: Vec::new() };
    let all = ["/".to_owned()];
    let wanted = if selection.paths.is_empty() { &all[..] } else { &selection.paths };
    for path in wanted {
        if selection.wildcard && paths::has_wildcards(path) {
            for found in paths::wildcards(root, path, selection.follow_links)? {
                // What was found is part of what is told: its name decides where it goes.
                let name = found.name().unwrap_or_default().to_vec();
                walk.top(root, &found, selection.follow_links, &name)?;
            }
        } else {
            walk.top(root, &Clean::of(path), selection.follow_links, b"")?;
        }
    }
    let entries = walk.entries;
    let hashes = hash_all(root, &entries, known, stop)?;
    let mut whole = Sha256::new();
    for (entry, hash) in entries.iter().zip(hashes) {
        whole.update(&entry.said);
        if entry.is_file {
            whole.update(hash);
        }
    }
    let hex = proto::digest::hex(&whole.finalize());
    format!("sha256:{hex}").parse().map_err(|_| FileError::Invalid("a digest that is none".into()))
}

struct Walk<'a> {
    filter: &'a Filter,
    stop: &'a Stop,
    entries: Vec<Entry>,
}

impl Walk<'_> {
    /// A path that was asked for, with all below it.
    fn top(&mut self, root: &OwnedFd, path: &Clean, follow: bool, name: &[u8]) -> Result<(), FileError> {
        let missing = || FileError::Missing(path.shown());
        let at = paths::resolve(root, path.relative(), follow)?;
        let stat = paths::stat(root, &at)?.ok_or_else(missing)?;
        let failed = |error| FileError::at(&at, "open", error);
        let Some((above, own)) = at.split() else {
            // The root itself has nothing to say of itself.
            let folder = paths::folder(root, &at).map_err(failed)?;
            return self.children(&folder, &at, &[], &Verdict::default(), 0, &mut Vec::new());
        };
        let above = paths::folder(root, &above).map_err(failed)?;
        self.entries.push(entry(&above, &own, &stat, at.clone(), name)?);
        if is_folder(&stat) {
            let folder = paths::folder(root, &at).map_err(failed)?;
            self.children(&folder, &at, &[], &Verdict::default(), 0, &mut Vec::new())?;
        }
        Ok(())
    }

    /// `pending`: folders above that count only if something in them does.
    fn children(
        &mut self,
        folder: &OwnedFd,
        at: &Clean,
        path: &[Vec<u8>],
        verdict: &Verdict,
        depth: usize,
        pending: &mut Vec<Entry>,
    ) -> Result<(), FileError> {
        if depth > DEPTH {
            return Err(FileError::at(at, "open", Errno::ENAMETOOLONG));
        }
        for name in paths::names(folder).map_err(|error| FileError::at(at, "readdir", error))? {
            self.stop.check()?;
            let here = at.join(name.to_bytes());
            let mut child = path.to_vec();
            child.push(name.to_bytes().to_vec());
            let failed = |error| FileError::at(&here, "lstat", error);
            let stat = fstatat(folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
            let verdict = self.filter.look(&child, verdict);
            let (wanted, is_folder) = (verdict.is_wanted(), is_folder(&stat));
            let leads_on = is_folder && self.filter.may_have_more(&child, &verdict);
            if !(wanted || leads_on) {
                continue;
            }
            let found = entry(folder, &name, &stat, here.clone(), &child.join(&b'/'))?;
            let before = pending.len();
            if wanted {
                self.entries.append(pending);
                self.entries.push(found);
            } else {
                pending.push(found);
            }
            if is_folder {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let below = openat(folder, name.as_c_str(), flags, Mode::empty()).map_err(failed)?;
                self.children(&below, &here, &child, &verdict, depth + 1, pending)?;
                if !wanted && pending.len() > before {
                    pending.pop();
                }
            }
        }
        Ok(())
    }
}

fn entry(folder: &OwnedFd, name: &CStr, stat: &FileStat, at: Clean, path: &[u8]) -> Result<Entry, FileError> {
    let mut said = Vec::with_capacity(path.len() + 64);
    let put = |said: &mut Vec<u8>, bytes: &[u8]| {
        said.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        said.extend_from_slice(bytes);
    };
    put(&mut said, path);
    let kind = kind(stat);
    let device = if matches!(kind, SFlag::S_IFCHR | SFlag::S_IFBLK) { stat.st_rdev } else { 0 };
    // Of a link the mode says nothing.
    let mode = if kind == SFlag::S_IFLNK { stat.st_mode & !0o7777 } else { stat.st_mode };
    for number in [mode, stat.st_uid, stat.st_gid] {
        said.extend_from_slice(&number.to_le_bytes());
    }
    said.extend_from_slice(&device.to_le_bytes());
    let link = match kind {
        SFlag::S_IFLNK => readlinkat(folder, name).map_err(|error| FileError::at(&at, "readlink", error))?,
        _ => Default::default(),
    };
    put(&mut said, link.as_bytes());
    let file = CString::new([format!("/proc/self/fd/{}/", folder.as_raw_fd()).as_bytes(), name.to_bytes()].concat());
    if let Ok(file) = file {
        let mut keys = sys::xattr::llist(&file).unwrap_or_default();
        keys.retain(|key| travels(key));
        keys.sort();
        said.extend_from_slice(&(keys.len() as u64).to_le_bytes());
        for key in keys {
            put(&mut said, &key);
            let value = CString::new(key).ok().and_then(|key| sys::xattr::lget(&file, &key).ok().flatten());
            put(&mut said, &value.unwrap_or_default());
        }
    }
    let is_file = kind == SFlag::S_IFREG;
    Ok(Entry { at, said, is_file, size: if is_file { stat.st_size.unsigned_abs() } else { 0 } })
}

/// Hashes the content of all files, on several threads if that is worth it.
fn hash_all(root: &OwnedFd, entries: &[Entry], known: &Known, stop: &Stop) -> Result<Vec<Hash>, FileError> {
    let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let mut hashes = vec![Hash::default(); entries.len()];
    let mut open = Vec::new();
    {
        let known = lock();
        for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.is_file) {
            match known.get(entry.at.relative().as_bytes()) {
                Some(hash) => hashes[at] = *hash,
                None => open.push(at),
            }
        }
    }
    let bytes: u64 = open.iter().map(|at| entries[*at].size).sum();
    let threads = match open.len() {
        few if few < 64 && bytes < 4 << 20 => 1,
        many => std::thread::available_parallelism().map_or(1, usize::from).min(THREADS).min(many),
    };
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(open.len())));
    let work = || {
        let (mut buffer, mut mine) = (vec![0; PIECE], Vec::new());
        while let Some(at) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
            mine.push((*at, hash(root, &entries[*at], &mut buffer, stop)?));
        }
        found.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
        Ok::<_, FileError>(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let broken = |_| Err(FileError::Invalid("a thread that hashes broke down".into()));
        others.into_iter().map(|other| other.join().unwrap_or_else(broken)).fold(own, Result::and)
    })?;
    let mut known = lock();
    for (at, hash) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        known.insert(entries[at].at.relative().as_bytes().to_vec(), hash);
        hashes[at] = hash;
    }
    Ok(hashes)
}

fn hash(root: &OwnedFd, entry: &Entry, buffer: &mut [u8], stop: &Stop) -> Result<Hash, FileError> {
    if entry.size == 0 {
        return Ok(Sha256::digest(b"").into());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let file = paths::open(root, &entry.at, flags).map_err(|error| FileError::at(&entry.at, "open", error))?;
    let (mut file, mut hasher) = (File::from(file), Sha256::new());
    loop {
        stop.check()?;
        match file.read(buffer) {
            Ok(0) => return Ok(hasher.finalize().into()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileError::io(&entry.at, "read", error)),
        }
    }
}

/// On a stack of its own, for callers that are on a small one.
pub fn digest_apart(root: &OwnedFd, selection: &Selection, stop: &Stop) -> Result<Digest, FileError> {
    let work = || digest(root, selection, &Known::default(), stop);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        let broken = || FileError::Invalid("a thread that hashes broke down".into());
        thread.map_err(|_| broken())?.join().unwrap_or_else(|_| Err(broken()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
        path::Path,
        time::SystemTime,
    };

    fn of(folder: &Path, selection: &Selection) -> Result<Digest, String> {
        let root = OwnedFd::from(File::open(folder).unwrap());
        digest(&root, selection, &Known::default(), &Stop::default()).map_err(|error| error.to_string())
    }

    fn paths(paths: &[&str]) -> Selection {
        Selection {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            follow_links: true,
            ..Selection::default()
        }
    }

    fn tree(folder: &Path) {
        fs::create_dir_all(folder.join("d/e")).unwrap();
        for (path, text) in [("a", "1"), ("d/b", "2"), ("d/e/c", "3"), ("d/x.md", "4")] {
            fs::write(folder.join(path), text).unwrap();
        }
        symlink("a", folder.join("l")).unwrap();
    }

    #[test]
    fn all_that_counts_and_nothing_else() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (one.path(), other.path());
        tree(one);
        tree(other);
        let all = paths(&["/"]);
        assert_eq!(of(one, &all), of(other, &all));
        File::open(other.join("a")).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(of(one, &all), of(other, &all), "times don't count");
        type Change = (&'static str, fn(&Path));
        let changes: [Change; 9] = [
            ("content", |folder| fs::write(folder.join("d/b"), "5").unwrap()),
            ("mode", |folder| fs::set_permissions(folder.join("d/b"), Permissions::from_mode(0o600)).unwrap()),
            ("mode of a folder", |folder| {
                fs::set_permissions(folder.join("d/e"), Permissions::from_mode(0o700)).unwrap()
            }),
            ("owner", |folder| std::os::unix::fs::chown(folder.join("d/b"), Some(5), None).unwrap()),
            ("name", |folder| fs::rename(folder.join("d/b"), folder.join("d/bb")).unwrap()),
            ("more", |folder| fs::write(folder.join("d/more"), "").unwrap()),
            ("less", |folder| fs::remove_file(folder.join("d/b")).unwrap()),
            ("empty folder", |folder| fs::create_dir(folder.join("d/none")).unwrap()),
            ("kind", |folder| {
                fs::remove_file(folder.join("d/b")).unwrap();
                symlink("2", folder.join("d/b")).unwrap();
            }),
        ];
        let before = of(one, &all).unwrap();
        for (what, change) in changes {
            let folder = tempfile::tempdir().unwrap();
            tree(folder.path());
            change(folder.path());
            assert_ne!(of(folder.path(), &all).unwrap(), before, "{what}");
            assert_eq!(of(folder.path(), &paths(&["/a", "/l"])), of(one, &paths(&["/a", "/l"])), "{what}");
        }
    }

    #[test]
    fn selections() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        tree(folder);
        assert_eq!(of(folder, &paths(&["/a"])), of(folder, &paths(&["/l"])), "links are followed");
        let unfollowed = Selection { follow_links: false, ..paths(&["/l"]) };
        assert_ne!(of(folder, &paths(&["/l"])), of(folder, &unfollowed));
        let missing = of(folder, &paths(&["/no"])).unwrap_err();
        assert_eq!(missing, "failed to calculate checksum: \"/no\": not found");
        let wildcard = |path: &str| Selection { wildcard: true, ..paths(&[path]) };
        let before = [
            of(folder, &wildcard("/d/*.md")).unwrap(),
            of(folder, &wildcard("/none*")).unwrap(),
            of(folder, &Selection { include: vec!["**/*.md".into()], ..paths(&["/"]) }).unwrap(),
            of(folder, &Selection { exclude: vec!["**/b".into(), "more".into()], ..paths(&["/"]) }).unwrap(),
        ];
        fs::write(folder.join("d/b"), "changed").unwrap();
        fs::create_dir(folder.join("more")).unwrap();
        let after = [
            of(folder, &wildcard("/d/*.md")).unwrap(),
            of(folder, &wildcard("/none*")).unwrap(),
            of(folder, &Selection { include: vec!["**/*.md".into()], ..paths(&["/"]) }).unwrap(),
            of(folder, &Selection { exclude: vec!["**/b".into(), "more".into()], ..paths(&["/"]) }).unwrap(),
        ];
        assert_eq!(before, after);
        fs::rename(folder.join("d/x.md"), folder.join("d/y.md")).unwrap();
        assert_ne!(of(folder, &wildcard("/d/*.md")).unwrap(), before[0]);
        assert_ne!(of(folder, &Selection { include: vec!["**/*.md".into()], ..paths(&["/"]) }).unwrap(), before[2]);
    }

    #[test]
    fn links_are_looked_up_inside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(folder.path().join("secret"), "x").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(folder.path().join("secret"), root.join("absolute")).unwrap();
        for path in ["/up", "/absolute", "/../secret"] {
            assert!(of(&root, &paths(&[path])).unwrap_err().contains("not found"), "{path}");
        }
        assert!(of(&root, &paths(&["/"])).is_ok());
    }

    #[test]
    fn many_files_on_many_threads_and_again() {
        let folder = tempfile::tempdir().unwrap();
        for number in 0..300 {
            fs::write(folder.path().join(format!("f{number}")), number.to_string()).unwrap();
        }
        let root = OwnedFd::from(File::open(folder.path()).unwrap());
        let known = Known::default();
        let first = digest(&root, &paths(&["/"]), &known, &Stop::default()).unwrap();
        assert_eq!(known.lock().unwrap().len(), 300);
        assert_eq!(digest(&root, &paths(&["/"]), &known, &Stop::default()).unwrap(), first);
        assert_eq!(digest_apart(&root, &paths(&["/"]), &Stop::default()).unwrap(), first);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn different_trees_differ(
            one in proptest::collection::btree_map("[ab]{1,3}", "[xy]{0,2}", 0..5),
            other in proptest::collection::btree_map("[ab]{1,3}", "[xy]{0,2}", 0..5),
        ) {
            let make = |files: &std::collections::BTreeMap<String, String>| {
                let folder = tempfile::tempdir().unwrap();
                for (name, text) in files {
                    fs::write(folder.path().join(name), text).unwrap();
                }
                of(folder.path(), &paths(&["/"])).unwrap()
            };
            prop_assert_eq!(one == other, make(&one) == make(&other));
        }
    }
}
