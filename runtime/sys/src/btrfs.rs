//! btrfs subvolumes (linux/btrfs.h): made, copied, made read-only and removed by ioctl(2), no helper program.

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd},
};

use nix::errno::Errno;

use crate::raw::check;

/// Magic number of btrfs, as statfs(2) tells it.
pub const MAGIC: i64 = 0x9123_683e;
/// Inode number of the top of every subvolume.
pub const SUBVOLUME_INODE: u64 = 256;

const GROUP: u8 = 0x94;
const RDONLY: u64 = 1 << 1;

// struct btrfs_ioctl_vol_args
#[repr(C)]
struct Named {
    fd: i64,
    name: [u8; 4088],
}

// struct btrfs_ioctl_vol_args_v2
#[repr(C)]
struct Copied {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

const SUBVOL_CREATE: libc::c_ulong = nix::request_code_write!(GROUP, 14, size_of::<Named>());
const SNAP_DESTROY: libc::c_ulong = nix::request_code_write!(GROUP, 15, size_of::<Named>());
const SNAP_CREATE_V2: libc::c_ulong = nix::request_code_write!(GROUP, 23, size_of::<Copied>());
const SUBVOL_GETFLAGS: libc::c_ulong = nix::request_code_read!(GROUP, 25, size_of::<u64>());
const SUBVOL_SETFLAGS: libc::c_ulong = nix::request_code_write!(GROUP, 26, size_of::<u64>());

// A name is one component; its buffer keeps room for the closing NUL.
fn put_name(name: &CStr, buffer: &mut [u8]) -> Result<(), Errno> {
    let bytes = name.to_bytes();
    if bytes.is_empty() || bytes.len() > 255 {
        return Err(Errno::ENAMETOOLONG);
    }
    buffer[..bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// Makes an empty subvolume `name` in a directory.
pub fn create_subvolume(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let mut args = Named { fd: 0, name: [0; 4088] };
    put_name(name, &mut args.name)?;
    // SAFETY: the kernel reads a structure of the size that the request's number says.
    check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), SUBVOL_CREATE, &raw const args) }.into()).map(drop)
}

/// Makes `name` in a directory a writable snapshot of the subvolume whose top is `source`; on disk when it returns.
pub fn snapshot(source: impl AsFd, directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let fd = source.as_fd().as_raw_fd().into();
    let mut args = Copied { fd, transid: 0, flags: 0, unused: [0; 4], name: [0; 4040] };
    put_name(name, &mut args.name)?;
    // SAFETY: as above; the descriptor in it is borrowed for the call.
    check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), SNAP_CREATE_V2, &raw const args) }.into()).map(drop)
}

/// Removes the subvolume `name` of a directory with everything in it. `ENOTEMPTY` if there are subvolumes below.
pub fn destroy_subvolume(directory: impl AsFd, name: &CStr) -> Result<(), Errno> {
    let mut args = Named { fd: 0, name: [0; 4088] };
    put_name(name, &mut args.name)?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), SNAP_DESTROY, &raw const args) }.into()).map(drop)
}

/// Whether the subvolume whose top is `subvolume` is read-only.
pub fn is_read_only(subvolume: impl AsFd) -> Result<bool, Errno> {
    let mut flags = 0_u64;
    // SAFETY: the kernel writes the eight bytes that the request's number says.
    check(unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_GETFLAGS, &raw mut flags) }.into())?;
    Ok(flags & RDONLY != 0)
}

/// Makes a subvolume read-only, or writable again.
pub fn set_read_only(subvolume: impl AsFd, on: bool) -> Result<(), Errno> {
    let flags = if on { RDONLY } else { 0 };
    // SAFETY: the kernel reads the eight bytes that the request's number says.
    check(unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_SETFLAGS, &raw const flags) }.into()).map(drop)
}

/// Whether a file lies on btrfs.
pub fn is_btrfs(file: impl AsFd) -> Result<bool, Errno> {
    Ok(crate::path::filesystem_magic(file)? == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What linux/btrfs.h makes of its macros on x86-64 and arm64.
    #[test]
    fn structures_and_numbers_are_the_kernels() {
        assert_eq!((size_of::<Named>(), size_of::<Copied>()), (4096, 4096));
        assert_eq!((SUBVOL_CREATE, SNAP_DESTROY), (0x5000_940e, 0x5000_940f));
        assert_eq!((SNAP_CREATE_V2, SUBVOL_GETFLAGS, SUBVOL_SETFLAGS), (0x5000_9417, 0x8008_9419, 0x4008_941a));
    }

    #[test]
    fn another_file_system_refuses() {
        let dir = std::fs::File::open("/proc").expect("open");
        assert_eq!(is_btrfs(&dir), Ok(false));
        assert!(create_subvolume(&dir, c"x").is_err());
        assert_eq!(create_subvolume(&dir, c""), Err(Errno::ENAMETOOLONG));
    }
}
