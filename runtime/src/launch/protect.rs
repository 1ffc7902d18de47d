//! Keeps the container's hands off the runtime's own program file (CVE-2019-5736).
//!
//! A container whose entry point is `/proc/self/exe`, or a script that begins `#!/proc/self/exe`, makes the kernel execute what the
//! process is at that moment: this program. It would then run inside the container as an ordinary process, and
//! `/proc/PID/exe` would be a way to the file on the host, to be written to. Being undumpable until execve does not help against
//! that, since it ends with the very execve. So the process that enters a container must not have a writable file as its
//! program: it runs from a detached, read-only copy of the mount. Once the descriptor of that mount is closed (by execve, it is
//! close-on-exec) the mount belongs to no namespace: no mount call can make it writable again, and opening the file for writing is EROFS.
//! Changing over to that copy takes a few mappings (`sys::reseat`). Where the kernel or a missing privilege forbids that, it takes
//! a second execve, about 0.4 ms; copying the program to a sealed memfd costs more still.

#![expect(clippy::disallowed_methods, reason = "the runtime's own program, before it enters anything")]

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use sys::Errno;
use sys::mount::{Reach, attr, clone_tree, set_attributes};

const SELF: &str = "/proc/self/exe";

/// Makes sure that the program file cannot be written through this process; executes itself anew for that, once, if it must.
pub(crate) fn run_from_read_only() -> Result<(), Errno> {
    if statvfs(SELF)?.flags().contains(FsFlags::ST_RDONLY) || is_sealed()? {
        return Ok(());
    }
    let program = match read_only_mount() {
        Ok(mount) if change_over(&mount).is_ok() => return Ok(()),
        Ok(mount) => mount,
        Err(_) => sealed_copy()?,
    };
    let strings = |list: &mut dyn Iterator<Item = Vec<u8>>| -> Result<Vec<CString>, Errno> {
        list.map(|bytes| CString::new(bytes).map_err(|_| Errno::EINVAL)).collect()
    };
    let args = strings(&mut std::env::args_os().map(OsStringExt::into_vec))?;
    let env = strings(&mut std::env::vars_os().map(|(name, value)| {
        let mut entry = name.into_vec();
        entry.push(b'=');
        entry.extend(value.into_vec());
        entry
    }))?;
    Err(sys::process::execveat(program.as_fd(), &args, &env))
}

fn read_only_mount() -> Result<OwnedFd, Errno> {
    let program = open(SELF, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let mount = clone_tree(&program, "", Reach::One)?;
    set_attributes(&mount, Reach::One, attr::RDONLY, 0, None)?;
    Ok(mount)
}

/// Makes the file behind a mount of this very program the one that this process runs from.
fn change_over(mount: &OwnedFd) -> Result<(), Errno> {
    // Mappings need a descriptor that is open for more than its path.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(mount));
    let file = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    sys::reseat::onto(&std::fs::File::from(file))
}

const SEALS: i32 = nix::libc::F_SEAL_SEAL | nix::libc::F_SEAL_SHRINK | nix::libc::F_SEAL_GROW | nix::libc::F_SEAL_WRITE;

/// Without the right to mount (in a user namespace that lacks it) a copy has to do.
fn sealed_copy() -> Result<OwnedFd, Errno> {
    let errno = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let mut source = std::fs::File::open(SELF).map_err(errno)?;
    let copy = memfd_create("berth-runtime", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut copy = std::fs::File::from(copy);
    std::io::copy(&mut source, &mut copy).map_err(errno)?;
    let seals = nix::fcntl::SealFlag::from_bits_truncate(SEALS);
    nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
    // Executing a descriptor that is open for writing is ETXTBSY, so another one is needed.
    open(
        std::path::Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy))),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
}

fn is_sealed() -> Result<bool, Errno> {
    let program = open(SELF, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match nix::fcntl::fcntl(&program, nix::fcntl::FcntlArg::F_GET_SEALS) {
        Ok(seals) => Ok(seals & SEALS == SEALS),
        Err(_) => Ok(false), // not a memfd
    }
}
