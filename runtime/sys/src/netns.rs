//! Network namespaces: made, pinned in the file system, entered and given up.
//!
//! A network namespace belongs to a thread. Everything here that enters one does so on a thread of its own that ends
//! with the call, so no thread of the caller is ever left in the wrong namespace, whatever fails. Such a thread costs
//! some 30 microseconds, a small part of what the kernel needs to build a namespace.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

/// The namespace of the calling thread, as the kernel shows it.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// Enough for a few system calls; the default of 2 MiB is a larger mapping to set up and to tear down.
const STACK: usize = 128 * 1024;

/// What could not be done with a network namespace.
#[derive(Debug)]
pub struct NetnsError {
    /// The step that failed, as a verb: `unshare`, `pin`, `enter`.
    pub step: &'static str,
    /// The pin it was about, where there is one.
    pub at: PathBuf,
    /// What the kernel said.
    pub cause: Errno,
}

impl NetnsError {
    fn new(step: &'static str, at: &Path, cause: Errno) -> Self {
        Self { step, at: at.to_owned(), cause }
    }

    fn io(step: &'static str, at: &Path, cause: &io::Error) -> Self {
        Self::new(step, at, Errno::from_raw(cause.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl fmt::Display for NetnsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} network namespace {}", self.step, self.at.display())
    }
}

impl std::error::Error for NetnsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.cause)
    }
}

/// Makes a new network namespace, pins it at `pin` (a file that must not exist yet), and runs `inside` on a thread in
/// it. Returns a descriptor of the namespace and what `inside` returned. On failure nothing is left at `pin`.
///
/// Sockets that `inside` opens stay in the namespace for their whole life, whichever thread uses them later.
pub fn create<T, F>(pin: &Path, inside: F) -> Result<(OwnedFd, T), NetnsError>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(pin)
        .map_err(|error| NetnsError::io("create pin of", pin, &error))?;
    let made = on_a_thread(pin, || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::new("unshare", pin, errno))?;
        let namespace: OwnedFd =
            fs::File::open(OWN_NAMESPACE).map_err(|error| NetnsError::io("open", pin, &error))?.into();
        mount(Some(OWN_NAMESPACE), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| NetnsError::new("pin", pin, errno))?;
        Ok((namespace, inside()))
    });
    if made.is_err() {
        // The first failure is the one to tell; a pin that stays is found by the next sweep.
        let _ = delete(pin);
    }
    made
}

/// Pins a namespace that somebody has already. On failure nothing is left at `pin`.
pub fn pin(namespace: BorrowedFd<'_>, pin: &Path) -> Result<(), NetnsError> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(pin)
        .map_err(|error| NetnsError::io("create pin of", pin, &error))?;
    let source = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    let made = mount(Some(source.as_str()), pin, None::<&str>, MsFlags::MS_BIND, None::<&str>);
    made.map_err(|errno| {
        // The first failure is the one to tell.
        let _ = delete(pin);
        NetnsError::new("pin", pin, errno)
    })
}

/// Opens a pinned namespace; `None` when nothing is pinned there.
pub fn open(pin: &Path) -> Result<Option<OwnedFd>, NetnsError> {
    if !is_pinned(pin) {
        return Ok(None);
    }
    match fs::File::open(pin) {
        Ok(file) => Ok(Some(file.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetnsError::io("open", pin, &error)),
    }
}

/// Whether a namespace is pinned at `pin` (and not merely a left-over file there).
pub fn is_pinned(pin: &Path) -> bool {
    statfs(pin).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Removes a pin. Done already is fine too: the pin may be half gone after a crash. The kernel takes the namespace
/// down once its last process, descriptor and pin are gone, in the background.
pub fn delete(pin: &Path) -> Result<(), NetnsError> {
    // More than one mount can lie there only if somebody else put it there; each goes.
    loop {
        match umount2(pin, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: no mount, just a file.
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(errno) => return Err(NetnsError::new("unmount", pin, errno)),
        }
    }
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetnsError::io("unlink pin of", pin, &error)),
        _ => Ok(()),
    }
}

/// Runs `inside` on a thread in `namespace` and returns what it returned.
pub fn within<T, F>(namespace: BorrowedFd<'_>, inside: F) -> Result<T, NetnsError>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    let nowhere = Path::new("");
    on_a_thread(nowhere, || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::new("enter", nowhere, errno))?;
        Ok(inside())
    })
}

/// Runs `work` on a thread that ends with the call. A panic in `work` goes on in the caller.
fn on_a_thread<T, F>(pin: &Path, work: F) -> Result<T, NetnsError>
where
    T: Send,
    F: FnOnce() -> Result<T, NetnsError> + Send,
{
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, work)
            .map_err(|error| NetnsError::io("start a thread for", pin, &error))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets the loopback interface of this thread's network namespace up.
pub fn loopback_up() -> Result<(), Errno> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: ifreq is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request wants a complete ifreq, which it fills.
    crate::raw::check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)
    }))?;
    // SAFETY: SIOCGIFFLAGS filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the request reads a complete ifreq.
    crate::raw::check(libc::c_long::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_namespace() -> PathBuf {
        fs::read_link(OWN_NAMESPACE).expect("own namespace")
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sys-netns-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("scratch folder");
        dir
    }

    #[test]
    fn a_namespace_is_pinned_entered_and_gone() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = scratch("life");
        let pin = dir.join("one");
        let before = own_namespace();

        let (namespace, made_in) = create(&pin, own_namespace).expect("create");
        assert_ne!(made_in, before, "made a namespace of its own");
        assert_eq!(own_namespace(), before, "the caller stayed where it was");
        assert!(is_pinned(&pin));
        assert_eq!(within(namespace.as_fd(), own_namespace).expect("enter"), made_in);

        let second = dir.join("two");
        super::pin(namespace.as_fd(), &second).expect("pin once more");
        let found = open(&second).expect("open").expect("pinned");
        assert_eq!(within(found.as_fd(), own_namespace).expect("enter"), made_in);
        delete(&second).expect("delete");

        let reopened = open(&pin).expect("open").expect("pinned");
        assert_eq!(within(reopened.as_fd(), own_namespace).expect("enter"), made_in);

        let again = create(&pin, || ()).expect_err("a pin is not overwritten");
        assert_eq!(again.cause, Errno::EEXIST);
        assert!(is_pinned(&pin), "a refused create leaves the pin of the other alone");

        delete(&pin).expect("delete");
        assert!(!pin.exists());
        delete(&pin).expect("deleting twice is fine");
        assert!(open(&pin).expect("open").is_none());
        fs::remove_dir(&dir).expect("nothing left in the folder");
    }

    #[test]
    fn a_left_over_file_is_no_namespace_and_goes_away() {
        let dir = scratch("leftover");
        let pin = dir.join("stale");
        fs::write(&pin, "").expect("file");
        assert!(!is_pinned(&pin));
        assert!(open(&pin).expect("open").is_none());
        delete(&pin).expect("delete");
        fs::remove_dir(&dir).expect("nothing left in the folder");
    }

    #[test]
    fn a_failed_create_leaves_nothing() {
        let missing = std::env::temp_dir().join("sys-netns-no-such-folder/pin");
        let error = create(&missing, || ()).expect_err("no folder");
        assert_eq!(error.cause, Errno::ENOENT);
    }
}
