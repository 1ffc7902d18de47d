//! sd_notify(3) out of containers: what a container's process says about itself reaches the service manager.
//!
//! The service manager knows the runtime, not the container, and its socket has no place in there. So `create` and `run` bind a
//! folder with a socket of our own into the container, and whoever starts the process waits at that socket for READY=1 and passes it on,
//! together with the pid to watch from then on:
//!
//! ```text
//! process --/run/notify/notify.sock--> start | run --detach --$NOTIFY_SOCKET--> READY=1, MAINPID=<process>, BARRIER=1; then it ends
//!                                      run                  --$NOTIFY_SOCKET--> READY=1, MAINPID=<run>, and whatever comes later
//! ```

#![expect(clippy::disallowed_methods, reason = "the state folder is the runtime's own")]

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sys::Errno;

use crate::spec::{Mount, Spec};

const IN_CONTAINER: &str = "/run/notify";
const SOCKET: &str = "notify.sock";
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager's socket, when there is one.
pub(super) fn manager() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(Into::into)
}

/// Makes the folder part of the container.
pub(super) fn add_to(spec: &mut Spec, folder: &Path) {
    spec.mounts.push(Mount {
        destination: IN_CONTAINER.to_owned(),
        source: folder.to_string_lossy().into_owned(),
        options: ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec(),
        ..Mount::default()
    });
    if let Some(process) = &mut spec.process {
        process.env.push(format!("{VARIABLE}={IN_CONTAINER}/{SOCKET}"));
    }
}

/// Makes the folder; everybody in the container may come in.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

/// Our socket, and the way to the service manager.
pub(super) struct Notify {
    socket: UnixDatagram,
    manager: UnixDatagram,
}

impl Notify {
    /// Opens both. `None` when the container was made without the folder.
    pub(super) fn open(folder: &Path, manager: &Path) -> Result<Option<Self>> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match open(folder, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other?,
        };
        // By its descriptor, since addresses end at 108 bytes, and folders may be deeper.
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()));
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
        socket.set_nonblocking(true)?;
        let client = UnixDatagram::unbound()?;
        match manager.as_os_str().as_bytes().strip_prefix(b"@") {
            Some(name) => client.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => client.connect(manager)?,
        }
        Ok(Some(Self { socket, manager: client }))
    }

    /// Waits until the process says that it is ready, and tells the service manager; or until it has ended.
    pub(super) fn wait_until_ready(&self, pid: Pid) -> Result<()> {
        let pidfd = match sys::process::pidfd_open(pid) {
            Err(Errno::ESRCH) => return Ok(()),
            other => other?,
        };
        loop {
            let mut fds =
                [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN), PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let ended = fds[1].revents().is_some_and(|events| !events.is_empty());
            // What it said before it ended counts.
            if self.pass(pid)? {
                return self.barrier();
            }
            if ended {
                return Ok(());
            }
        }
    }

    /// Passes on what is there, with `main` for the pid to watch. True once the process has said that it is ready.
    pub(super) fn pass(&self, main: Pid) -> Result<bool> {
        let mut buffer = [0; 4096];
        let mut ready = false;
        loop {
            let length = match self.socket.recv(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(ready),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            let Some((lines, is_ready)) = translate(&buffer[..length], main) else { continue };
            self.manager.send(&lines)?;
            ready |= is_ready;
        }
    }

    /// Waits until the service manager has read all that, as sd_notify_barrier(3) does: it looks up who sent a message by
    /// the sender's pid, and we are about to end. One that knows no barriers is not waited for beyond this.
    fn barrier(&self) -> Result<()> {
        const PATIENCE_MS: u16 = 30_000;
        let (reader, writer) = std::io::pipe()?;
        sys::fd::send_fds(&self.manager, b"BARRIER=1", &[writer.as_fd()])?;
        drop(writer);
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::empty())];
        loop {
            match poll(&mut fds, PollTimeout::from(PATIENCE_MS)) {
                Err(Errno::EINTR) => {}
                other => return other.map(drop).map_err(Error::from),
            }
        }
    }
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What of a message concerns the service manager: pids and descriptors mean something else outside. With READY=1 comes MAINPID.
fn translate(message: &[u8], main: Pid) -> Option<(Vec<u8>, bool)> {
    const PASSED: [&[u8]; 9] = [
        b"READY=",
        b"STATUS=",
        b"RELOADING=",
        b"STOPPING=",
        b"WATCHDOG=",
        b"MONOTONIC_USEC=",
        b"EXTEND_TIMEOUT_USEC=",
        b"ERRNO=",
        b"EXIT_STATUS=",
    ];
    let passes = |line: &&[u8]| PASSED.iter().any(|key| line.starts_with(key));
    let lines: Vec<&[u8]> = message.split(|byte| *byte == b'\n').filter(passes).collect();
    let ready = lines.iter().any(|line| *line == b"READY=1");
    let mut text = lines.join(&b'\n');
    if ready {
        text.extend_from_slice(format!("\nMAINPID={main}").as_bytes());
    }
    (!lines.is_empty()).then_some((text, ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_and_descriptors_stay_inside() {
        let translate = |text: &str| {
            translate(text.as_bytes(), Pid::from_raw(77))
                .map(|(text, ready)| (String::from_utf8(text).expect("utf-8"), ready))
        };
        for (message, passed) in [
            ("READY=1", Some(("READY=1\nMAINPID=77", true))),
            ("READY=1\nSTATUS=up\nMAINPID=1\n", Some(("READY=1\nSTATUS=up\nMAINPID=77", true))),
            ("STATUS=starting", Some(("STATUS=starting", false))),
            ("FDSTORE=1\nFDNAME=x", None),
            ("BARRIER=1", None),
            ("", None),
        ] {
            assert_eq!(translate(message), passed.map(|(text, ready)| (text.to_owned(), ready)), "{message}");
        }
    }

    #[test]
    fn ready_reaches_the_manager() {
        let dir = tempfile::tempdir().expect("folder");
        let folder = dir.path().join("n".repeat(120));
        make_folder(&folder).expect("folder");
        let path = dir.path().join("manager");
        let manager = UnixDatagram::bind(&path).expect("bind");
        let notify = Notify::open(&folder, &path).expect("opens").expect("is there");
        let process = UnixDatagram::unbound().expect("socket");
        let directory = open(&folder, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).expect("open");
        process.connect(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd())).expect("connect");
        process.send(b"STATUS=soon").expect("send");
        process.send(b"READY=1").expect("send");
        let own = Pid::this();
        let waiting = std::thread::spawn(move || notify.wait_until_ready(own));
        let next = || {
            let mut buffer = [0; 100];
            let length = manager.recv(&mut buffer).expect("receive");
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert_eq!(next(), "STATUS=soon");
        assert_eq!(next(), format!("READY=1\nMAINPID={own}"));
        // Reading it drops the descriptor that came along: that is the answer.
        assert_eq!(next(), "BARRIER=1");
        waiting.join().expect("thread").expect("ok");
        assert!(Notify::open(&dir.path().join("none"), &path).expect("ok").is_none());
    }
}
