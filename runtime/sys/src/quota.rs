//! Project quotas: files count for the project that their folder has (FS_IOC_FSSETXATTR), and a project may have a limit
//! (quotactl_fd(2), Linux 5.14, with the commands of XFS, which ext4 and f2fs understand too).

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use crate::raw::check;

// struct fsxattr of linux/fs.h
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

const GET: libc::c_ulong = nix::request_code_read!(b'X', 31, size_of::<Attributes>());
const SET: libc::c_ulong = nix::request_code_write!(b'X', 32, size_of::<Attributes>());
const INHERIT: u32 = 0x200;

// struct fs_disk_quota of linux/dqblk_xfs.h
#[repr(C)]
#[derive(Default)]
struct Disk {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    inode_timer: i32,
    block_timer: i32,
    inode_warnings: u16,
    block_warnings: u16,
    inode_timer_high: i8,
    block_timer_high: i8,
    rt_block_timer_high: i8,
    pad: i8,
    rt_blocks_hard: u64,
    rt_blocks_soft: u64,
    rt_blocks: u64,
    rt_block_timer: i32,
    rt_block_warnings: u16,
    pad_end: [i8; 10],
}

const VERSION: i8 = 1;
const PROJECT_QUOTA: i8 = 1 << 1;
const HARD_AND_SOFT: u16 = (1 << 2) | (1 << 3);
const Q_XGETQUOTA: u32 = (b'X' as u32) << 8 | 3;
const Q_XSETQLIM: u32 = (b'X' as u32) << 8 | 4;
const PRJQUOTA: u32 = 2;
/// The unit of limits and usage.
const BLOCK: u64 = 512;

/// What counts for a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that its files take.
    pub bytes: u64,
    /// Most bytes that they may take; 0 for any.
    pub limit: u64,
    /// How many files there are.
    pub files: u64,
}

/// The project of a file or folder; 0 is nobody's.
pub fn project(file: impl AsFd) -> Result<u32, Errno> {
    attributes(&file).map(|attributes| attributes.project)
}

fn attributes(file: &impl AsFd) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes a structure of the size that the request's number says.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET, &raw mut attributes) }.into())?;
    Ok(attributes)
}

/// Puts a folder into a project, and everything that will be made in it.
pub fn set_project(folder: impl AsFd, project: u32) -> Result<(), Errno> {
    let mut attributes = attributes(&folder)?;
    attributes.project = project;
    attributes.flags |= INHERIT;
    // SAFETY: the kernel reads a structure of the size that the request's number says.
    check(unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), SET, &raw const attributes) }.into()).map(drop)
}

/// Limits the bytes of a project on the file system of a file; 0 takes the limit away.
pub fn set_limit(file: impl AsFd, project: u32, bytes: u64) -> Result<(), Errno> {
    let blocks = bytes.div_ceil(BLOCK);
    let mut limits = Disk {
        version: VERSION,
        flags: PROJECT_QUOTA,
        fields: HARD_AND_SOFT,
        id: project,
        blocks_hard: blocks,
        blocks_soft: blocks,
        ..Disk::default()
    };
    quotactl(&file, Q_XSETQLIM, project, &mut limits)
}

/// What a project has; `None` for one that the file system doesn't know.
pub fn usage(file: impl AsFd, project: u32) -> Result<Option<Usage>, Errno> {
    let mut found = Disk::default();
    match quotactl(&file, Q_XGETQUOTA, project, &mut found) {
        Ok(()) => {
            Ok(Some(Usage { bytes: found.blocks * BLOCK, limit: found.blocks_hard * BLOCK, files: found.inodes }))
        }
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn quotactl(file: &impl AsFd, command: u32, project: u32, data: &mut Disk) -> Result<(), Errno> {
    let command = command << 8 | PRJQUOTA;
    // SAFETY: the descriptor is borrowed and open; both commands read or write one `fs_disk_quota`.
    let done = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, file.as_fd().as_raw_fd(), command, project, std::ptr::from_mut(data))
    };
    check(done).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!((size_of::<Attributes>(), size_of::<Disk>()), (28, 112));
        assert_eq!((GET, SET), (0x801c_581f, 0x401c_5820));
        assert_eq!(Q_XSETQLIM, 0x5804);
    }

    #[test]
    fn a_file_system_without_quotas_says_so() {
        let folder = std::fs::File::open("/proc").unwrap();
        assert!(project(&folder).is_err());
        assert!(usage(&folder, 1).is_err());
        assert!(set_limit(&folder, 1, 1 << 20).is_err());
    }
}
