//! The namespaces of a process that waits for `start`, for an `exec` by an ordinary user.
//!
//! The kernel shows what belongs to an undumpable process to those alone who are privileged in the user namespace in which its
//! program was executed. That is the runtime's, as long as the container's own program does not run: its owner is privileged in the
//! container's user namespace only. So the process opens its namespaces itself, and hands them out at the gate, which its owner
//! alone can reach.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use sys::Errno;

use super::handshake::{Channel, Kind, Message};
use crate::plan::libc_flag::{NEWCGROUP, NEWIPC, NEWNET, NEWNS, NEWPID, NEWTIME, NEWUSER, NEWUTS};
use crate::plan::namespaces::NamespacePlan;

/// In the order in which they can be entered: in the user namespace are the rights to the others.
const KINDS: [(u64, &str); 8] = [
    (NEWUSER, "user"),
    (NEWPID, "pid"),
    (NEWIPC, "ipc"),
    (NEWUTS, "uts"),
    (NEWNET, "net"),
    (NEWTIME, "time"),
    (NEWCGROUP, "cgroup"),
    (NEWNS, "mnt"),
];

/// Namespaces with their flags.
#[derive(Debug, Default)]
pub(crate) struct Namespaces(Vec<(u64, OwnedFd)>);

impl Namespaces {
    /// Those of this process that its plan names.
    pub(super) fn open(proc: &OwnedFd, plan: &NamespacePlan) -> Result<Self, Errno> {
        let open = |(flag, name): &(u64, &str)| {
            let path = format!("self/ns/{name}");
            nix::fcntl::openat(proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .map(|file| (*flag, file))
        };
        KINDS.iter().filter(|(flag, _)| plan.is_private(*flag)).map(open).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|(_, file)| file.as_fd())
    }

    /// Hands them out. A visitor who is gone does not want them any more.
    pub(super) fn show(&self, visitor: &Channel) {
        let _ = visitor.send_with(Kind::Namespaces, "", &self.descriptors().collect::<Vec<_>>());
    }

    /// What was handed out, each by what the kernel says it is.
    pub(super) fn take(message: Message) -> Result<Self, Errno> {
        message
            .fds
            .into_iter()
            .map(|file| sys::ns::kind(&file).map(|flag| (flag, file)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// False where there is nobody to hand them out, or no need to.
    pub(crate) fn are_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// Enters those that the flags name.
    pub(crate) fn enter(&self, flags: u64) -> Result<(), Errno> {
        self.0.iter().filter(|(flag, _)| flags & flag != 0).try_for_each(|(flag, file)| sys::ns::enter(file, *flag))
    }
}
