//! Network namespaces for programs with many threads: made, pinned to a file, and entered by a thread of their own.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;

fn io_errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Runs `work` in a thread that is thrown away afterwards, so that whatever it enters stays with that thread.
fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        match thread.map_err(|error| io_errno(&error))?.join() {
            Ok(result) => result,
            Err(_) => Err(Errno::ENOTRECOVERABLE),
        }
    })
}

/// Makes a new network namespace and pins it at `path` (a file created here): it lives until [`unpin`].
pub fn create_pinned(path: &Path) -> Result<(), Errno> {
    OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| io_errno(&error))?;
    let made = in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&Path> = None;
        mount(Some(Path::new("/proc/thread-self/ns/net")), path, none, MsFlags::MS_BIND, none)
    });
    if made.is_err() {
        // The file is ours alone; if even that can't go, the first error is the one to tell.
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Makes a new network namespace that lives as long as the descriptor.
pub fn create() -> Result<OwnedFd, Errno> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        open_pinned(Path::new("/proc/thread-self/ns/net"))
    })
}

/// Opens a pinned namespace, or any `/proc/PID/ns/net`.
pub fn open_pinned(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Removes the pin; the namespace goes once nobody uses it. A pin that is not there is not an error.
pub fn unpin(path: &Path) -> Result<(), Errno> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Not mounted (EINVAL): a creator died between file and mount.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_errno(&error)),
        _ => Ok(()),
    }
}

/// Runs `work` in a thread inside the namespace. Sockets it opens there belong to the namespace for good.
pub fn run_in<T: Send>(namespace: impl AsFd + Sync, work: impl FnOnce() -> T + Send) -> Result<T, Errno> {
    in_thread(|| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(path: &str) -> std::path::PathBuf {
        std::fs::read_link(path).expect("a namespace link")
    }

    #[test]
    fn pinned_entered_and_removed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = std::env::temp_dir().join(format!("sys-netns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("folder");
        let pin = dir.join("net");
        create_pinned(&pin).expect("create");
        assert_eq!(create_pinned(&pin), Err(Errno::EEXIST));
        let here = identity("/proc/thread-self/ns/net");
        let namespace = open_pinned(&pin).expect("open");
        let there = run_in(&namespace, || identity("/proc/thread-self/ns/net")).expect("enter");
        assert_ne!(here, there);
        assert_eq!(here, identity("/proc/thread-self/ns/net"));
        unpin(&pin).expect("unpin");
        unpin(&pin).expect("again");
        std::fs::remove_dir(&dir).expect("nothing is left in the folder");
    }
}
