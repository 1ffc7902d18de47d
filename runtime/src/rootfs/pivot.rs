//! Moves the process into the container's root. Which mounts exist is decided elsewhere (`mounts`).

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir};
use sys::mount::{Propagation, Reach, attach, attr, set_attributes};

use super::RootfsError;

/// Makes the root the root. The order: enter it, pivot, detach the old root, and only then what config.json wants of the root
/// itself (a shared root before that could not be pivoted to).
#[expect(
    clippy::disallowed_methods,
    reason = "the working directory is the container's root, by descriptor; there is no other path"
)]
pub(crate) fn enter(
    root: &OwnedFd,
    no_pivot: bool,
    read_only: bool,
    propagation: (Propagation, Reach),
) -> Result<(), RootfsError> {
    fchdir(root).map_err(RootfsError::Pivot)?;
    if no_pivot {
        // A ramfs root cannot be pivoted from. The old root stays mounted underneath, which is why this is not the default.
        let slash = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        slash.and_then(|slash| attach(root, slash)).and_then(|()| chroot(".")).map_err(RootfsError::Pivot)?;
    } else {
        sys::mount::pivot_to_cwd().map_err(RootfsError::Pivot)?;
    }
    chdir("/").map_err(RootfsError::Pivot)?;
    let (kind, reach) = propagation;
    if kind != Propagation::Slave {
        set_attributes(root, reach, 0, 0, Some(kind)).map_err(RootfsError::Pivot)?;
    }
    if read_only {
        set_attributes(root, Reach::One, attr::RDONLY, 0, None).map_err(RootfsError::Pivot)?;
    }
    Ok(())
}
