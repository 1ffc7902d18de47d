//! Walks two trees side by side, names in their order, and tells what has changed from the first to the second. The second
//! may be an overlay's upper folder: then only that is walked, and the first looked at where it has something.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    vec,
};

use nix::{
    errno::Errno,
    sys::stat::{FileStat, SFlag, fstat},
};

use super::compare::{Place, Trust, same};
use crate::layers::{
    copy::{join, open_plain},
    tree::{Layout, entries, is, is_opaque, is_whiteout, look, path_of},
};

/// Why a walk ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum WalkError<E> {
    /// The upper folder refers to the layers below in a way that only the kernel follows (a directory that was moved, a
    /// file without its data): what is mounted has to be walked.
    #[error("the upper folder can't be read by itself")]
    Refers,
    /// Something can't be read.
    #[error("read {path:?}")]
    Read {
        /// Where it is.
        path: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// Whoever is told has failed.
    #[error(transparent)]
    Told(E),
}

/// What a walk finds.
pub(super) enum Change<'a> {
    /// Not there before, or other than before.
    Present(Place<'a>),
    /// As before.
    Unchanged(Place<'a>),
    /// Not there any more.
    Gone,
}

/// Two trees.
pub(super) struct Trees {
    /// What was; nothing at all if there is none.
    pub(super) old: Option<OwnedFd>,
    /// What is, or the upper folder of it.
    pub(super) new: OwnedFd,
    /// Which of the two.
    pub(super) layout: Layout,
    /// What times tell.
    pub(super) trust: Trust,
}

// One directory on the way.
struct Frame {
    path: Vec<u8>,
    // Open while it is the one in hand, or not far above.
    dirs: Option<Rc<Dirs>>,
    has_old: bool,
    // Everything below is new, whatever was there: names of old come from the old directory alone.
    hides: bool,
    todo: vec::IntoIter<(CString, bool)>,
    stat: FileStat,
    told: bool,
}

// The directory as it was, if it was one, and as it is.
struct Dirs(Option<OwnedFd>, OwnedFd);

type Id = (u64, u64);

// Which file was which, of those with several names: names may have been joined or parted though nothing else has changed.
#[derive(Default)]
struct Links {
    by_old: HashMap<Id, Id>,
    by_new: HashMap<Id, Id>,
}

impl Links {
    // Whether an unchanged file has kept its company.
    fn keep(&mut self, old: &FileStat, new: &FileStat) -> bool {
        if old.st_nlink < 2 && new.st_nlink < 2 {
            return true;
        }
        let (old, new) = ((old.st_dev, old.st_ino), (new.st_dev, new.st_ino));
        *self.by_old.entry(old).or_insert(new) == new && *self.by_new.entry(new).or_insert(old) == old
    }
}

/// How many directories above the present one stay open.
const OPEN: usize = 100;

type Told<'t, E> = &'t mut dyn FnMut(&[u8], Change<'_>) -> Result<(), E>;

fn read_at<E>(path: &[u8]) -> impl Fn(Errno) -> WalkError<E> {
    move |cause| WalkError::Read { path: String::from_utf8_lossy(path).into_owned(), cause }
}

impl Trees {
    /// Tells every change, directories before what is in them, and of unchanged ones those with a change below. Unchanged
    /// files are told too if they have several names: one of these may be new.
    pub(super) fn walk<E>(&self, told: Told<'_, E>) -> Result<(), WalkError<E>> {
        let mut frames = vec![self.top(told)?];
        let mut links = Links::default();
        while let Some(frame) = frames.last_mut() {
            let Some((name, is_new)) = frame.todo.next() else {
                frames.pop();
                continue;
            };
            let path = join(&frame.path, name.to_bytes());
            if let Some(deeper) = self.visit(&mut frames, &mut links, &name, is_new, path, told)? {
                frames.push(deeper);
                if frames.len() > OPEN {
                    let above = frames.len() - OPEN;
                    frames[above - 1].dirs = None;
                }
            }
        }
        Ok(())
    }

    fn top<E>(&self, told: Told<'_, E>) -> Result<Frame, WalkError<E>> {
        let failed = read_at::<E>(b"");
        let stat = fstat(&self.new).map_err(&failed)?;
        let old = match &self.old {
            Some(old) => Some(open_plain(old, b"").map_err(&failed)?),
            None => None,
        };
        let new = open_plain(&self.new, b"").map_err(&failed)?;
        let same = match &old {
            Some(old) => {
                let old_stat = fstat(old).map_err(&failed)?;
                let was = Place { dir: old.as_fd(), name: b".", stat: &old_stat };
                let is = Place { dir: new.as_fd(), name: b".", stat: &stat };
                same(was, is, self.trust, true).map_err(&failed)?
            }
            None => false,
        };
        if !same {
            told(b"", Change::Present(Place { dir: new.as_fd(), name: b".", stat: &stat })).map_err(WalkError::Told)?;
        }
        let mut frame = self.frame(Vec::new(), old, new, false, stat).map_err(&failed)?;
        frame.told = true;
        Ok(frame)
    }

    fn frame(
        &self,
        path: Vec<u8>,
        old: Option<OwnedFd>,
        new: OwnedFd,
        hides: bool,
        stat: FileStat,
    ) -> Result<Frame, Errno> {
        let hides = hides || (self.layout == Layout::Overlay && is_opaque(&new)?);
        let mut names = BTreeMap::new();
        for (name, _) in entries(&new)? {
            names.insert(name, true);
        }
        // Below an upper folder that hides nothing, what it doesn't name is as it was.
        if let Some(old) = old.as_ref().filter(|_| hides || self.layout == Layout::Merged) {
            for (name, _) in entries(old)? {
                names.entry(name).or_insert(false);
            }
        }
        let names: Vec<_> = names.into_iter().collect();
        let has_old = old.is_some();
        Ok(Frame {
            path,
            dirs: Some(Rc::new(Dirs(old, new))),
            has_old,
            hides,
            todo: names.into_iter(),
            stat,
            told: false,
        })
    }

    fn dirs(&self, frame: &mut Frame) -> Result<Rc<Dirs>, Errno> {
        if let Some(dirs) = &frame.dirs {
            return Ok(dirs.clone());
        }
        let old = match &self.old {
            Some(old) if frame.has_old => Some(open_plain(old, &frame.path)?),
            _ => None,
        };
        let dirs = Rc::new(Dirs(old, open_plain(&self.new, &frame.path)?));
        frame.dirs = Some(dirs.clone());
        Ok(dirs)
    }

    fn visit<E>(
        &self,
        frames: &mut [Frame],
        links: &mut Links,
        name: &CString,
        is_new: bool,
        path: Vec<u8>,
        told: Told<'_, E>,
    ) -> Result<Option<Frame>, WalkError<E>> {
        let failed = read_at::<E>(&path);
        let Some((frame, above)) = frames.split_last_mut() else { return Ok(None) };
        let dirs = self.dirs(frame).map_err(&failed)?;
        let Dirs(old_dir, new_dir) = &*dirs;
        let name = name.to_bytes();
        let old = match old_dir {
            Some(dir) => look(dir, name).map_err(&failed)?,
            None => None,
        };
        let new = if is_new { look(new_dir, name).map_err(&failed)? } else { None };
        let new = new.filter(|new| self.layout == Layout::Merged || !is_whiteout(new));
        let Some(new) = new else {
            if old.is_some() {
                self.tell_parents(above, frame, told)?;
                told(&path, Change::Gone).map_err(WalkError::Told)?;
            }
            return Ok(None);
        };
        let is_dir = is(&new, SFlag::S_IFDIR);
        if self.layout == Layout::Overlay {
            self.refuse_references(new_dir, name, &new).map_err(|e| e.map_or(WalkError::Refers, &failed))?;
        }
        let here = Place { dir: new_dir.as_fd(), name, stat: &new };
        let unchanged = match (&old, old_dir) {
            // What is in an upper folder has been parted from its other names below.
            (Some(old), _) if self.layout == Layout::Overlay && !is_dir && old.st_nlink > 1 => false,
            (Some(old), Some(dir)) => {
                let was = Place { dir: dir.as_fd(), name, stat: old };
                same(was, here, self.trust, false).map_err(&failed)? && (is_dir || links.keep(old, &new))
            }
            _ => false,
        };
        let deeper = if is_dir {
            let below = match (&old, old_dir) {
                (Some(old), Some(dir)) if is(old, SFlag::S_IFDIR) => Some(open_plain(dir, name).map_err(&failed)?),
                _ => None,
            };
            let dir = open_plain(new_dir, name).map_err(&failed)?;
            let mut deeper = self.frame(path.clone(), below, dir, frame.hides, new).map_err(&failed)?;
            deeper.told = !unchanged;
            Some(deeper)
        } else {
            None
        };
        if !unchanged {
            self.tell_parents(above, frame, told)?;
            told(&path, Change::Present(here)).map_err(WalkError::Told)?;
        } else if !is_dir && new.st_nlink > 1 {
            told(&path, Change::Unchanged(here)).map_err(WalkError::Told)?;
        }
        Ok(deeper)
    }

    // Directories whose content has changed are told as well: an archive with an entry has the directories of it.
    fn tell_parents<E>(&self, above: &mut [Frame], here: &mut Frame, told: Told<'_, E>) -> Result<(), WalkError<E>> {
        if here.told {
            return Ok(());
        }
        for frame in above.iter_mut().chain([here]).filter(|frame| !frame.told) {
            let dirs = self.dirs(frame).map_err(|errno| read_at(&frame.path)(errno))?;
            let place = Place { dir: dirs.1.as_fd(), name: b".", stat: &frame.stat };
            told(&frame.path, Change::Present(place)).map_err(WalkError::Told)?;
            frame.told = true;
        }
        Ok(())
    }

    // `None` as error: it refers to the layers below.
    fn refuse_references(&self, dir: &OwnedFd, name: &[u8], stat: &FileStat) -> Result<(), Option<Errno>> {
        let marks: &[&std::ffi::CStr] = if is(stat, SFlag::S_IFDIR) {
            // `x` marks a directory with whiteouts that are files (Linux 6.7).
            &[c"trusted.overlay.redirect"]
        } else if is(stat, SFlag::S_IFREG) {
            &[c"trusted.overlay.metacopy", c"trusted.overlay.whiteout"]
        } else {
            return Ok(());
        };
        let path = path_of(dir, name).map_err(Some)?;
        for mark in marks {
            if sys::xattr::lget(&path, mark).map_err(Some)?.is_some() {
                return Err(None);
            }
        }
        Ok(())
    }
}
