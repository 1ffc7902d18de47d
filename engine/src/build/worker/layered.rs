//! Filesystems put together: merges, and differences. A difference is done again above another tree, file by file; within a
//! merge, files keep their names, owners, modes, times and links.

use super::files::{FileError, Stop, copy, on_thread, paths};
use crate::build::tree::{Tree, Trees};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FileStat, Mode, SFlag, fstatat},
};
use paths::{Clean, is_folder, kind};
use proto::pb;
use solver::StepError;
use std::{
    collections::{BTreeSet, HashMap},
    ffi::{CStr, CString},
    fs::File,
    io::Read,
    os::fd::OwnedFd,
};

/// Deeper trees than this are refused.
const DEPTH: usize = 400;

/// One tree on top of the other. What only one has is taken as it is.
pub async fn merge(trees: &Trees, op: &pb::MergeOp, inputs: &[Option<Tree>]) -> Result<Tree, StepError> {
    let mut chosen = Vec::new();
    for merged in &op.inputs {
        let input = usize::try_from(merged.input).ok().and_then(|at| inputs.get(at));
        let input = input.ok_or_else(|| StepError::Invalid("merge: an input is out of range".into()))?;
        chosen.extend(input.clone().filter(|tree| !tree.is_scratch()));
    }
    let mut chosen = chosen.into_iter();
    let Some(mut merged) = chosen.next() else { return Ok(trees.scratch()) };
    for upper in chosen {
        // Layer by layer: what one of them removes goes from below, too.
        let mut layers = vec![upper.clone()];
        let mut next = upper.below().await?;
        while let Some(below) = next {
            next = below.below().await?;
            layers.push(below);
        }
        let mut below = trees.scratch();
        for layer in layers.into_iter().rev() {
            if layer.is_scratch() {
                continue;
            }
            merged = apply(trees, &below, &layer, &merged).await?;
            below = layer;
        }
    }
    Ok(merged)
}

/// What `upper` has changed of `lower`, alone. Of what is removed nothing remains but in merges.
pub async fn diff(trees: &Trees, op: &pb::DiffOp, inputs: &[Option<Tree>]) -> Result<Tree, StepError> {
    let input = |at: i64| match at {
        -1 => Ok(trees.scratch()),
        at => {
            let input = usize::try_from(at).ok().and_then(|at| inputs.get(at));
            let input = input.ok_or_else(|| StepError::Invalid("diff: an input is out of range".into()))?;
            Ok::<_, StepError>(input.clone().unwrap_or_else(|| trees.scratch()))
        }
    };
    let lower = input(op.lower.map_or(-1, |lower| lower.input))?;
    let upper = input(op.upper.map_or(-1, |upper| upper.input))?;
    if lower.is_scratch() || upper.is_scratch() {
        return Ok(upper);
    }
    if lower.snapshot_key() == upper.snapshot_key() {
        return Ok(trees.scratch());
    }
    apply(trees, &lower, &upper, &trees.scratch()).await
}

/// Does to `target` what was done to `old` to become `new`.
async fn apply(trees: &Trees, old: &Tree, new: &Tree, target: &Tree) -> Result<Tree, StepError> {
    let draft = trees.draft(target).await?;
    let (old, new, root) = (old.open().await?, new.open().await?, draft.open().await?);
    on_thread(move |stop| change(&old, &new, &root, stop)).await?;
    Ok(draft.commit().await?)
}

/// The same on open roots.
pub fn change(old: &OwnedFd, new: &OwnedFd, target: &OwnedFd, stop: &Stop) -> Result<(), FileError> {
    let mut work = Work { target, stop, links: HashMap::new(), options: copy::Options::default() };
    work.options.replace = true;
    work.folder(Some(old), new, &Clean::default(), 0)
}

struct Work<'a> {
    target: &'a OwnedFd,
    stop: &'a Stop,
    links: HashMap<(u64, u64), Clean>,
    options: copy::Options,
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Work<'_> {
    /// A folder that both have, or the new one alone.
    fn folder(&mut self, old: Option<&OwnedFd>, new: &OwnedFd, at: &Clean, depth: usize) -> Result<(), FileError> {
        let failed = |error| FileError::at(at, "open", error);
        if depth > DEPTH {
            return Err(failed(Errno::ENAMETOOLONG));
        }
        let names = |folder: &OwnedFd| paths::names(folder).map_err(failed);
        let mut all: BTreeSet<CString> = names(new)?.into_iter().collect();
        if let Some(old) = old {
            all.extend(names(old)?);
        }
        for name in all {
            self.stop.check()?;
            let here = at.join(name.to_bytes());
            let before = match old {
                Some(old) => look(old, &name, &here)?,
                None => None,
            };
            match (before, look(new, &name, &here)?) {
                (_, None) => self.remove(&here)?,
                (before, Some(after)) => self.one(old.zip(before), (new, &after), &name, &here, depth)?,
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        old: Option<(&OwnedFd, FileStat)>,
        (new, after): (&OwnedFd, &FileStat),
        name: &CStr,
        at: &Clean,
        depth: usize,
    ) -> Result<(), FileError> {
        let failed = |error| FileError::at(at, "open", error);
        let is_same = match &old {
            Some((old, before)) => same(old, before, new, after, name).map_err(failed)?,
            None => false,
        };
        if !is_folder(after) {
            return if is_same { Ok(()) } else { self.copy(new, name, after, at) };
        }
        let was_there = self.is_there(at)?;
        if !is_same {
            self.copy(new, name, after, at)?;
        }
        let open = |folder: &OwnedFd| openat(folder, name, FOLDER, Mode::empty()).map_err(failed);
        let below = open(new)?;
        let before = match &old {
            Some((old, before)) if is_folder(before) => Some(open(old)?),
            _ => None,
        };
        self.folder(before.as_ref(), &below, at, depth + 1)?;
        // What was done in it has changed its times; or it is there only now, on the way to something.
        let dress = !is_same || (!was_there && self.is_there(at)?);
        if dress { self.copy(new, name, after, at) } else { Ok(()) }
    }

    fn is_there(&self, at: &Clean) -> Result<bool, FileError> {
        Ok(paths::stat(self.target, at)?.as_ref().is_some_and(is_folder))
    }

    fn remove(&self, at: &Clean) -> Result<(), FileError> {
        let Some((above, name)) = at.split() else { return Ok(()) };
        match paths::folder(self.target, &above).and_then(|above| copy::remove(&above, &name, 0)) {
            // What isn't there needs no removal.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            other => other.map_err(|error| FileError::at(at, "remove", error)),
        }
    }

    /// Removes what is no folder on the way to one.
    fn clear(&self, path: &Clean) -> Result<(), FileError> {
        let mut at = Clean::default();
        for part in path.parts() {
            at = at.join(part);
            match paths::stat(self.target, &at)? {
                Some(stat) if is_folder(&stat) => {}
                Some(_) => return self.remove(&at),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// One thing without what is below it; folders on the way to it come from the tree that it is in.
    fn copy(&mut self, new: &OwnedFd, name: &CStr, stat: &FileStat, at: &Clean) -> Result<(), FileError> {
        let Some((above, to)) = at.split() else { return Ok(()) };
        let above = match paths::folder(self.target, &above) {
            Ok(above) => above,
            // Only what is in it has changed; here something else may have its name.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {
                self.clear(&above)?;
                copy::folders(self.target, &above, 0o755, &copy::Made::default())?
            }
            Err(error) => return Err(FileError::at(&above, "open", error)),
        };
        copy::single(new, name, stat, (&above, &to, at), (self.target, &mut self.links), &self.options, self.stop)
    }
}

fn look(folder: &OwnedFd, name: &CStr, at: &Clean) -> Result<Option<FileStat>, FileError> {
    match fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(FileError::at(at, "lstat", error)),
    }
}

/// Whether nothing was done to it. Where times and sizes agree, files are.
fn same(old: &OwnedFd, before: &FileStat, new: &OwnedFd, after: &FileStat, name: &CStr) -> Result<bool, Errno> {
    let facts = |stat: &FileStat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let times = |stat: &FileStat| (stat.st_mtime, stat.st_mtime_nsec, stat.st_size);
    if facts(before) != facts(after) {
        return Ok(false);
    }
    match kind(after) {
        SFlag::S_IFDIR => Ok((before.st_mtime, before.st_mtime_nsec) == (after.st_mtime, after.st_mtime_nsec)),
        SFlag::S_IFLNK => Ok(readlinkat(old, name)? == readlinkat(new, name)?),
        SFlag::S_IFREG if times(before) != times(after) => Ok(false),
        // Times without fractions come from archives, and say less.
        SFlag::S_IFREG if after.st_mtime_nsec == 0 && before.st_ino != after.st_ino => content(old, new, name),
        _ => Ok(true),
    }
}

fn content(old: &OwnedFd, new: &OwnedFd, name: &CStr) -> Result<bool, Errno> {
    let open = |folder: &OwnedFd| {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        openat(folder, name, flags, Mode::empty()).map(File::from)
    };
    let (mut one, mut other) = (open(old)?, open(new)?);
    let (mut a, mut b) = (vec![0; 128 << 10], vec![0; 128 << 10]);
    let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    loop {
        let read = one.read(&mut a).map_err(errno)?;
        if read == 0 {
            return Ok(other.read(&mut b).map_err(errno)? == 0);
        }
        match other.read_exact(&mut b[..read]) {
            Ok(()) if a[..read] == b[..read] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(errno(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, symlink},
        path::Path,
        time::{Duration, SystemTime},
    };

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn what_was_done_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let root = |name: &str| folder.path().join(name);
        let (old, new, target) = (root("old"), root("new"), root("target"));
        for (path, text) in [("same", "1"), ("gone", "2"), ("d/changed", "3"), ("d/same", "4"), ("was/file", "5")] {
            write(&old, path, text);
        }
        let status = std::process::Command::new("cp").arg("-a").arg(&old).arg(&new).status().unwrap();
        assert!(status.success());
        fs::remove_file(new.join("gone")).unwrap();
        fs::write(new.join("d/changed"), "new").unwrap();
        fs::remove_dir_all(new.join("was")).unwrap();
        symlink("d", new.join("was")).unwrap();
        write(&new, "made/here", "x");
        fs::hard_link(new.join("made/here"), new.join("made/too")).unwrap();
        fs::set_permissions(new.join("made"), fs::Permissions::from_mode(0o700)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1234);
        File::open(new.join("made")).unwrap().set_modified(time).unwrap();
        for (path, text) in [("gone", "other"), ("same", "other"), ("d/more", "m"), ("was/that", "w"), ("made", "f")] {
            write(&target, path, text);
        }
        fs::write(folder.path().join("canary"), "alive").unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        change(&open(&old), &open(&new), &open(&target), &Stop::default()).unwrap();
        let text = |path: &str| fs::read_to_string(target.join(path)).unwrap();
        assert!(!target.join("gone").exists() && !target.join("d/same").exists());
        assert_eq!([text("same"), text("d/changed"), text("d/more"), text("made/too")], ["other", "new", "m", "x"]);
        assert_eq!(fs::read_link(target.join("was")).unwrap(), Path::new("d"));
        let facts = |path: &str| fs::metadata(target.join(path)).unwrap();
        assert_eq!(facts("made/here").ino(), facts("made/too").ino());
        assert_eq!((facts("made").mode() & 0o777, facts("made").modified().unwrap()), (0o700, time));
        assert_eq!(fs::read_to_string(folder.path().join("canary")).unwrap(), "alive");
    }

    #[test]
    fn links_in_the_target_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let root = |name: &str| folder.path().join(name);
        let (old, new, target) = (root("old"), root("new"), root("target"));
        for path in [&old, &new, &target] {
            fs::create_dir(path).unwrap();
        }
        write(folder.path(), "outside/file", "alive");
        write(&old, "d/file", "x");
        write(&new, "d/other", "y");
        symlink("../outside", target.join("d")).unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        change(&open(&old), &open(&new), &open(&target), &Stop::default()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("outside/file")).unwrap(), "alive");
        assert!(!folder.path().join("outside/other").exists());
        assert_eq!(fs::read_to_string(target.join("d/other")).unwrap(), "y");
    }
}
