//! User namespaces whose only use is their id map, for mounts that show files with other owners (mount_setattr(2)).

use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sys::Errno;
use sys::clone::{Cloned, Options, clone};

use super::RootfsError;
use crate::confine::limits;
use crate::plan::id_maps::{IdMap, Ids};
use crate::plan::libc_flag::NEWUSER;
use crate::plan::namespaces::map_lines;
use crate::spec::IdMapping;

/// The maps made so far: several mounts tend to have the same one.
#[derive(Debug)]
pub(crate) struct IdMaps<'a> {
    /// The host's procfs.
    proc: &'a OwnedFd,
    /// The user namespace that the container joins.
    joined: Option<&'a OwnedFd>,
    made: Vec<(Vec<IdMapping>, Vec<IdMapping>, OwnedFd)>,
}

impl<'a> IdMaps<'a> {
    pub(crate) fn new(proc: &'a OwnedFd, joined: Option<&'a OwnedFd>) -> Self {
        Self { proc, joined, made: Vec::new() }
    }

    /// Maps the ids of a detached mount.
    pub(crate) fn apply(&mut self, map: &IdMap, mount: &OwnedFd, what: &str) -> Result<(), RootfsError> {
        let failed = |cause| match cause {
            Errno::EINVAL => RootfsError::IdMapUnsupported { what: what.to_owned(), cause },
            cause => RootfsError::IdMap { what: what.to_owned(), cause },
        };
        let namespace =
            self.namespace(&map.ids).map_err(|cause| RootfsError::IdMap { what: what.to_owned(), cause })?;
        sys::mount::set_id_mapping(mount, map.reach, namespace).map_err(failed)
    }

    /// A copy of the descriptor of the namespace for a map.
    pub(crate) fn namespace(&mut self, ids: &Ids) -> Result<OwnedFd, Errno> {
        let copy = |fd: &OwnedFd| sys::fd::duplicate_above(fd, 3);
        let Ids::Map { uids, gids } = ids else { return copy(self.joined.ok_or(Errno::EBADF)?) };
        if let Some((.., found)) = self.made.iter().find(|(u, g, _)| u == uids && g == gids) {
            return copy(found);
        }
        let namespace = make(self.proc, uids, gids)?;
        let answer = copy(&namespace)?;
        self.made.push((uids.clone(), gids.clone(), namespace));
        Ok(answer)
    }
}

/// A process is what a user namespace begins with; once its descriptor is open, it can go.
fn make(proc: &OwnedFd, uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, Errno> {
    // It ends when the other end of the pipe closes, so it cannot outlive us either.
    let (ours, theirs) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let options = Options { namespaces: NEWUSER, ..Options::default() };
    let pid = match clone(&options)? {
        Cloned::Child => {
            drop(theirs);
            let _ = nix::unistd::read(ours.as_fd(), &mut [0]);
            sys::process::exit_now(0)
        }
        Cloned::Parent { pid, .. } => pid,
    };
    let opened = write_and_open(proc, &pid.to_string(), uids, gids);
    drop(theirs);
    sys::process::wait(pid)?;
    opened
}

fn write_and_open(proc: &OwnedFd, pid: &str, uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd, Errno> {
    limits::write_proc(proc, &format!("{pid}/uid_map"), map_lines(uids).as_bytes())?;
    limits::write_proc(proc, &format!("{pid}/gid_map"), map_lines(gids).as_bytes())?;
    let path = format!("{pid}/ns/user");
    nix::fcntl::openat(proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_per_map() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        // A process with several threads must not clone; tests have several.
        let proc = limits::open_proc().expect("proc");
        let ids = Ids::Map { uids: Vec::new(), gids: Vec::new() };
        let mut maps = IdMaps::new(&proc, None);
        assert_eq!(maps.namespace(&ids).err(), Some(Errno::EBUSY));
        assert_eq!(maps.namespace(&Ids::Joined).err(), Some(Errno::EBADF));
    }
}
