//! Paths looked up below a directory that they cannot leave (openat2(2), Linux 5.6), and what they lead to.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::raw::{check, own, with_path};

/// How far a look-up may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// The directory is the root: absolute links and `..` stay inside. The rule for anything that comes from an image.
    Root,
    /// Nothing but plain components of the same mount: no links of any kind. The rule for our own and the kernel's files.
    Plain,
}

const RESOLVE_NO_XDEV: u64 = 0x01;
const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
const RESOLVE_NO_SYMLINKS: u64 = 0x04;
const RESOLVE_BENEATH: u64 = 0x08;
const RESOLVE_IN_ROOT: u64 = 0x10;

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// Opens `path` below `directory`, close-on-exec. `EXDEV` or `ELOOP` when it leads where it must not.
pub fn open_within<P: NixPath + ?Sized>(
    directory: impl AsFd,
    path: &P,
    flags: OFlag,
    mode: u32,
    within: Within,
) -> Result<OwnedFd, Errno> {
    let resolve = match within {
        Within::Root => RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        Within::Plain => RESOLVE_BENEATH | RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
    };
    let mode = if flags.contains(OFlag::O_CREAT) { u64::from(mode) } else { 0 };
    let how = OpenHow { flags: (flags | OFlag::O_CLOEXEC).bits() as u64, mode, resolve };
    let directory = directory.as_fd().as_raw_fd();
    // The kernel gives EAGAIN when a rename somewhere raced with the look-up of a "..": try again, but not for ever.
    let mut attempts = 0;
    loop {
        let opened = with_path(path, |path| {
            // SAFETY: the path is NUL-terminated, `how` is a complete open_how of the size given.
            own(unsafe { libc::syscall(libc::SYS_openat2, directory, path, &how, size_of::<OpenHow>()) })
        });
        match opened {
            Err(Errno::EAGAIN) if attempts < 128 => attempts += 1,
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The magic number of the filesystem a descriptor is on, as fstatfs(2) tells it.
pub fn filesystem_magic(file: impl AsFd) -> Result<i64, Errno> {
    Ok(nix::sys::statfs::fstatfs(file.as_fd())?.filesystem_type().0 as i64)
}

/// Magic number of procfs.
pub const PROC_MAGIC: i64 = 0x9fa0;
/// Magic number of devpts.
pub const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Magic number of cgroup2.
pub const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Magic number of tmpfs.
pub const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The working directory as the kernel knows it: a leading `(unreachable)` says that it is outside the root, something
/// that libc's getcwd turns into an error of its own.
pub fn kernel_cwd() -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0_u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most the length given into the buffer.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })? as usize;
    buffer.truncate(length.saturating_sub(1)); // without the NUL
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn links_stay_inside_or_are_refused() {
        let dir = std::env::temp_dir().join(format!("sys-path-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("etc")).expect("folder");
        std::fs::write(dir.join("etc/passwd"), "mine").expect("file");
        let _ = std::os::unix::fs::symlink("/etc/passwd", dir.join("link"));
        let root = std::fs::File::open(&dir).expect("open");
        let open = |path: &str, within| open_within(&root, Path::new(path), OFlag::O_RDONLY, 0, within);
        let file = open("link", Within::Root).expect("inside");
        assert_eq!(std::io::read_to_string(std::fs::File::from(file)).expect("read"), "mine");
        assert!(open("../../../etc/passwd", Within::Root).is_ok());
        assert_eq!(open("link", Within::Plain).err(), Some(Errno::ELOOP));
        assert_eq!(open("../x", Within::Plain).err(), Some(Errno::EXDEV));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn cwd_is_the_kernels() {
        let cwd = kernel_cwd().expect("cwd");
        assert_eq!(cwd, std::env::current_dir().expect("cwd").into_os_string().into_encoded_bytes());
    }
}
