//! A logging process (containerd's `binary://`): stdout on descriptor 3, stderr on 4, readiness on 5.
//!
//! In containerd the container holds the pipes itself, so that a logger that dies takes it along, and one that hangs stops
//! it. Here the shim stands between: a logger that is gone gets nothing more, one that hangs gets what it can take.

use std::{
    cell::RefCell,
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::PathBuf,
    rc::Rc,
    time::Duration,
};

use nix::{fcntl::OFlag, unistd::Pid, unistd::pipe2};
use proto::stdio::Binary;
use tokio::sync::oneshot;

use super::fd::{self, Pipe};
use crate::{
    reaper::{Exit, Reaper},
    report::warn_line,
};

/// How long a logger may take to be ready.
const READY: Duration = Duration::from_secs(10);
/// How long it may go on once its input has ended, before it is asked to end.
const ENDS_ITSELF: Duration = Duration::from_secs(2);
/// How long it may take to end when asked to (containerd's figure, less the above).
const ENDS_ASKED: Duration = Duration::from_secs(10);

/// A logger that runs.
#[derive(Debug)]
pub(super) struct Logger {
    path: PathBuf,
    pid: Pid,
    exit: RefCell<Option<oneshot::Receiver<Exit>>>,
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(io::Error::other)
}

impl Logger {
    /// Starts it and waits until it is ready; gives the ends that output is to be written to.
    pub(super) async fn start(
        place: &Binary,
        container: &str,
        namespace: &str,
        reaper: &Reaper,
    ) -> io::Result<(Rc<Self>, [OwnedFd; 2])> {
        let pipe = || pipe2(OFlag::O_CLOEXEC);
        let ((out, out_writer), (err, err_writer), (ready, ready_writer)) = (pipe()?, pipe()?, pipe()?);
        let mut args = vec![text(place.path.as_os_str().as_bytes())?];
        for (key, value) in &place.args {
            args.extend([text(key.as_bytes())?, text(value.as_bytes())?]);
        }
        let env = [
            text(format!("CONTAINER_ID={container}").as_bytes())?,
            text(format!("CONTAINER_NAMESPACE={namespace}").as_bytes())?,
        ];
        let path = text(place.path.as_os_str().as_bytes())?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let stdio = [null.as_fd(), null.as_fd(), null.as_fd()];
        let further = [out.as_fd(), err.as_fd(), ready_writer.as_fd()];
        let pid = sys::spawn::spawn(&sys::spawn::Program {
            path: &path,
            args: &args,
            env: &env,
            stdio,
            further: &further,
            dies_with_parent: false,
        })?;
        // Nothing is awaited in between, so the reaper can't have seen it yet.
        let exit = reaper.claim(pid.as_raw().unsigned_abs());
        drop((out, err, ready_writer));
        let logger = Rc::new(Self { path: place.path.clone(), pid, exit: RefCell::new(Some(exit)) });
        let ready = Pipe::reader(ready)?;
        let waited = tokio::time::timeout(READY, async {
            // A byte, or the end: it has closed the descriptor.
            while ready.try_read(&mut [0])?.is_none() {
                ready.readable().await?;
            }
            Ok::<_, io::Error>(())
        });
        let waited = waited.await.unwrap_or_else(|_| Err(io::Error::other("it was not ready within 10 s")));
        if let Err(error) = waited {
            logger.force();
            return Err(error);
        }
        for end in [&out_writer, &err_writer] {
            fd::enlarge(end);
        }
        Ok((logger, [out_writer, err_writer]))
    }

    /// Whether nobody has heard of its exit, so that its number means nobody else.
    fn is_alive(&self) -> bool {
        self.exit.borrow_mut().as_mut().is_some_and(|exit| exit.try_recv().is_err())
    }

    /// Kills it and what it has started.
    fn force(&self) {
        if self.is_alive() {
            let _ = sys::spawn::kill_group(self.pid);
        }
    }

    /// To be called when its input has been closed: waits for its end, asks for it, forces it.
    pub(super) async fn end(&self) {
        let Some(mut exit) = self.exit.borrow_mut().take() else { return };
        for (signal, patience) in [(nix::libc::SIGTERM, ENDS_ITSELF), (nix::libc::SIGKILL, ENDS_ASKED)] {
            if tokio::time::timeout(patience, &mut exit).await.is_ok() {
                return;
            }
            if signal == nix::libc::SIGKILL {
                warn_line!("logging process {} did not end when asked to, and is killed", self.path.display());
            }
            let _ = sys::process::kill(self.pid, signal);
        }
        let _ = exit.await;
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // Its container has not come to be; it has seen the end of its input, and may not care.
        if self.is_alive() {
            let _ = sys::process::kill(self.pid, nix::libc::SIGTERM);
        }
    }
}
