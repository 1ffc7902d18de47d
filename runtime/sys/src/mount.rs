//! The mount API that works on descriptors (Linux 5.2, mount_setattr 5.12): nothing here resolves a destination by path.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;

use crate::raw::{check, own, with_path};

/// Attributes of a mount, for [`Filesystem::mount`] and [`set_attributes`].
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x01;
    /// Set-uid bits have no effect.
    pub const NOSUID: u64 = 0x02;
    /// Device nodes have no effect.
    pub const NODEV: u64 = 0x04;
    /// Nothing can be executed.
    pub const NOEXEC: u64 = 0x08;
    /// All bits of the access time policy; the relative one is 0.
    pub const ATIME: u64 = 0x70;
    /// Access times are not updated.
    pub const NOATIME: u64 = 0x10;
    /// Access times are always updated.
    pub const STRICTATIME: u64 = 0x20;
    /// Access times of directories are not updated.
    pub const NODIRATIME: u64 = 0x80;
    /// The mount's ids are mapped by a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// How mounts made on one side appear on the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Neither way.
    Private,
    /// Both ways.
    Shared,
    /// From the origin to here.
    Slave,
    /// Private, and cannot be bind mounted.
    Unbindable,
}

impl Propagation {
    fn bits(self) -> u64 {
        match self {
            Self::Private => libc::MS_PRIVATE,
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Unbindable => libc::MS_UNBINDABLE,
        }
    }
}

/// One mount, or it and everything mounted below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only the mount itself.
    One,
    /// The mount and all below.
    Tree,
}

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const AT_EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;

/// A detached copy of the mount(s) at `path` seen from `directory`; an empty path means the descriptor itself.
pub fn clone_tree<P: NixPath + ?Sized>(directory: impl AsFd, path: &P, reach: Reach) -> Result<OwnedFd, Errno> {
    let recursive = if reach == Reach::Tree { AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | recursive;
    with_path(path, |path| {
        // SAFETY: a NUL-terminated path and integers.
        own(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_fd().as_raw_fd(), path, flags) })
    })
}

/// Attaches a detached mount, or moves an attached one, onto what the destination descriptor refers to.
pub fn attach(mount: impl AsFd, destination: impl AsFd) -> Result<(), Errno> {
    const F_EMPTY_PATH: libc::c_uint = 0x04;
    const T_EMPTY_PATH: libc::c_uint = 0x40;
    let (empty, flags) = (c"".as_ptr(), F_EMPTY_PATH | T_EMPTY_PATH);
    let (from, to) = (mount.as_fd().as_raw_fd(), destination.as_fd().as_raw_fd());
    // SAFETY: two empty C strings and integers.
    check(unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, flags) }).map(drop)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears attributes, and sets the propagation, of the mount(s) a descriptor is the root of.
pub fn set_attributes(
    mount: impl AsFd,
    reach: Reach,
    set: u64,
    clear: u64,
    propagation: Option<Propagation>,
) -> Result<(), Errno> {
    let propagation = propagation.map_or(0, Propagation::bits);
    setattr(mount, reach, &MountAttr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 })
}

/// Maps the ids of detached mount(s) by a user namespace.
pub fn set_id_mapping(mount: impl AsFd, reach: Reach, namespace: impl AsFd) -> Result<(), Errno> {
    let userns_fd = namespace.as_fd().as_raw_fd() as u64;
    setattr(mount, reach, &MountAttr { attr_set: attr::IDMAP, attr_clr: 0, propagation: 0, userns_fd })
}

fn setattr(mount: impl AsFd, reach: Reach, attributes: &MountAttr) -> Result<(), Errno> {
    let flags = AT_EMPTY_PATH | if reach == Reach::Tree { AT_RECURSIVE } else { 0 };
    let empty = c"".as_ptr();
    // SAFETY: an empty C string and a complete mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            empty,
            flags,
            attributes,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// A filesystem being configured (fsopen(2)).
#[derive(Debug)]
pub struct Filesystem(OwnedFd);

impl Filesystem {
    /// Begins the configuration of a new filesystem of this type. `ENODEV` when the kernel does not know the type.
    pub fn open(kind: &str) -> Result<Self, Errno> {
        const FSOPEN_CLOEXEC: libc::c_uint = 1;
        with_path(kind, |kind| {
            // SAFETY: a NUL-terminated string and an integer.
            own(unsafe { libc::syscall(libc::SYS_fsopen, kind, FSOPEN_CLOEXEC) }).map(Self)
        })
    }

    fn config<K: NixPath + ?Sized>(&self, command: libc::c_uint, key: &K, value: Option<&str>) -> Result<(), Errno> {
        let fd = self.0.as_raw_fd();
        with_path(key, |key| match value {
            None => {
                let none: *const libc::c_char = std::ptr::null();
                // SAFETY: a NUL-terminated key; flags and commands have a null value.
                check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, none, 0) }).map(drop)
            }
            Some(value) => with_path(value, |value| {
                // SAFETY: key and value are NUL-terminated strings.
                check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, command, key, value, 0) }).map(drop)
            }),
        })
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> Result<(), Errno> {
        self.config(0, key, None)
    }

    /// Sets an option to a value.
    pub fn string(&self, key: &str, value: &str) -> Result<(), Errno> {
        self.config(1, key, Some(value))
    }

    /// Changes a filesystem that exists to what was configured.
    pub fn apply(self) -> Result<(), Errno> {
        const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;
        let none: *const libc::c_char = std::ptr::null();
        // SAFETY: the command takes neither key nor value.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), FSCONFIG_CMD_RECONFIGURE, none, none, 0) })
            .map(drop)
    }

    /// Creates the filesystem and gives its mount, detached.
    pub fn mount(self, attributes: u64) -> Result<OwnedFd, Errno> {
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        const FSMOUNT_CLOEXEC: libc::c_uint = 1;
        let fd = self.0.as_raw_fd();
        let none: *const libc::c_char = std::ptr::null();
        // SAFETY: the create command takes neither key nor value.
        check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) })?;
        // SAFETY: integers only.
        own(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes as libc::c_uint) })
    }
}

/// Begins to change the configuration of the filesystem that is mounted at a descriptor (fspick(2)).
pub fn reconfigure(mount: impl AsFd) -> Result<Filesystem, Errno> {
    const FSPICK_CLOEXEC: libc::c_uint = 1;
    const FSPICK_EMPTY_PATH: libc::c_uint = 8;
    let (empty, flags) = (c"".as_ptr(), FSPICK_CLOEXEC | FSPICK_EMPTY_PATH);
    // SAFETY: an empty C string and integers.
    own(unsafe { libc::syscall(libc::SYS_fspick, mount.as_fd().as_raw_fd(), empty, flags) }).map(Filesystem)
}

/// Makes the working directory the root of this mount namespace and lets go of the old root.
///
/// "." twice stacks the old root over the new one, so that the image needs no spare directory (pivot_root(2)).
pub fn pivot_to_cwd() -> Result<(), Errno> {
    let dot = c".".as_ptr();
    // SAFETY: two C strings.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, dot, dot) })?;
    nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
}
