//! Whether a cgroup is a container's own, for whoever finds that container half made.
//!
//! state.json names the cgroup before it is made, so that nothing is lost; but the path may be somebody else's already, or become
//! it once the creator is dead. Hence a claim: a link in the container's folder, whose text is what is claimed (one system call,
//! with all of its text or not at all, and only one can be the first to make it).
//!
//! ```text
//! create: state.json -> cgroup made, nobody in it -> claim "PID START" -> the process may outlive its creator -> state.json
//! delete of one without a pid: claim "nobody" -> made: no process of its is left or will be, so only empty folders go
//!                                             -> there was one: that process and that cgroup are the container's
//! ```

use std::fs;
use std::io::ErrorKind::{AlreadyExists, NotFound, StorageFull};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::unistd::Pid;

use super::{Entry, StateDir, StateError, io};
use crate::state::ContainerId;

const CLAIM: &str = "claim";

/// What stands in the way of those who would still claim it.
const NOBODY: &str = "nobody";

/// What a container without a pid in its state has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Neither process nor cgroup, and from now on it can have none.
    Nothing,
    /// Its cgroup, and this process (0: one that is known by the cgroup alone) with its start time.
    Own { pid: i32, start_time: u64 },
}

impl Claim {
    fn parse(text: &str) -> Self {
        let numbers = text.split_once(' ').and_then(|(pid, start)| Some((pid.parse().ok()?, start.parse().ok()?)));
        // Anything else than a claim of ours has claimed nothing.
        numbers.filter(|(pid, _)| *pid >= 0).map_or(Self::Nothing, |(pid, start_time)| Self::Own { pid, start_time })
    }
}

impl Entry {
    /// Says that the cgroup is the container's, and that its process may live without its creator. Fails once the container was
    /// deleted.
    pub(crate) fn claim(&self, process: Option<(Pid, u64)>) -> Result<(), StateError> {
        let (pid, start_time) = process.map_or((0, 0), |(pid, start_time)| (pid.as_raw(), start_time));
        let text = format!("{pid} {start_time}");
        symlink(text, self.inside().join(CLAIM)).map_err(|error| match error.kind() {
            AlreadyExists | NotFound => StateError::Deleted(self.dir.clone()),
            _ => io("make", &self.dir.join(CLAIM))(error),
        })
    }

    /// Another container of this folder that has this cgroup.
    pub(crate) fn other_with_cgroup(&self, path: &str) -> Option<ContainerId> {
        let states = StateDir::new(self.dir.parent().map(PathBuf::from)?);
        let ids = states.list().ok()?.into_iter();
        let mut others = ids.filter(|id| !self.dir.ends_with(id.as_str()));
        others.find(|id| states.load(id).is_ok_and(|state| state.cgroup.trim_matches('/') == path))
    }
}

impl StateDir {
    /// Settles what a container without a pid has: after that nothing more can be claimed.
    pub(crate) fn settle(&self, id: &ContainerId) -> Result<Claim, StateError> {
        let path = self.dir(id).join(CLAIM);
        match symlink(NOBODY, &path) {
            Ok(()) => Ok(Claim::Nothing),
            Err(error) if error.kind() == AlreadyExists => {
                let text = fs::read_link(&path).unwrap_or_default();
                Ok(Claim::parse(&text.to_string_lossy()))
            }
            // Where a link does not fit, theirs did not either, and it will not once the folder is gone.
            Err(error) if matches!(error.kind(), NotFound | StorageFull) => Ok(Claim::Nothing),
            Err(error) => Err(io("make", &path)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_has_it() {
        let root = tempfile::tempdir().expect("folder");
        let states = StateDir::new(root.path().to_owned());
        let id = |name: &str| ContainerId::parse(name).expect("id");
        let entry = states.reserve(&id("claimed")).expect("entry");
        entry.claim(Some((Pid::from_raw(12), 34))).expect("free");
        for _ in 0..2 {
            assert_eq!(states.settle(&id("claimed")).expect("settle"), Claim::Own { pid: 12, start_time: 34 });
        }
        let entry = states.reserve(&id("known-by-cgroup")).expect("entry");
        entry.claim(None).expect("free");
        assert_eq!(states.settle(&id("known-by-cgroup")).expect("settle"), Claim::Own { pid: 0, start_time: 0 });
        let entry = states.reserve(&id("fenced")).expect("entry");
        for _ in 0..2 {
            assert_eq!(states.settle(&id("fenced")).expect("settle"), Claim::Nothing);
        }
        assert!(matches!(entry.claim(None), Err(StateError::Deleted(_))));
        states.remove(&id("fenced")).expect("removed with its claim");
        assert!(matches!(entry.claim(None), Err(StateError::Deleted(_))));
        assert_eq!(states.settle(&id("fenced")).expect("gone"), Claim::Nothing);
    }

    #[test]
    fn what_was_never_written_claims_nothing() {
        for text in ["", "nobody", "1", "1 ", "-1 5", "a b", "1 2 3", "99999999999 1", "1 -2"] {
            assert_eq!(Claim::parse(text), Claim::Nothing, "{text:?}");
        }
        assert_eq!(Claim::parse("7 8"), Claim::Own { pid: 7, start_time: 8 });
    }
}
