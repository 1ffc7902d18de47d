//! Logs, stdin and attachments of containers whose shim isn't Berth's.
//!
//! Such a shim knows FIFOs and neither `cri://` nor `Attach`. Beside each of its containers runs a relay, which is our shim's program with
//! another action (`shim/src/relay.rs`): it holds the FIFOs' other ends, writes the log, and answers for the container to what that
//! shim doesn't know. It is a process, and not a task of ours, so that a container never waits for a supervisor and stdin doesn't end with
//! one. A logging process (`binary://`) wouldn't do: few shims know it, and it has no stdin.
//!
//! A relay's folder is `RUN/supervisor/relays/CONTAINER`: FIFOs, socket, and `log` for what it has to say. The other shim holds both ends of
//! the FIFOs, so that nothing is lost while a relay that died is replaced.

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::AsRawFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{errno::Errno, sys::stat::Mode, unistd::mkfifo};
use proto::{
    berth::streams::v1::{AttachRequest, Lag, ReopenLogRequest},
    containerd::task::v3::ShutdownRequest,
    id::{ContainerId, NamespaceName},
    kind::{ErrorKind, chain},
    stdio::{Delivery, StdioUri},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::unix::pipe::OpenOptions,
    process::Command,
    time::timeout,
};
use tonic::Status;
use tracing::{info, warn};

use crate::{
    failure::Failure,
    tasks::{ConnectError, Connection, RuntimeError, ShimLog, Tasks, request, shims::Bootstrap},
};

/// How long a relay may take to come up, or to answer.
const LIMIT: Duration = Duration::from_secs(15);
/// How long one may take to end: a disk that hangs holds it up.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Until what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Most that is taken of what one says.
const WORDS: u64 = 1 << 10;
/// The FIFOs in a relay's folder.
const STREAMS: [&str; 3] = ["stdin", "stdout", "stderr"];

/// A relay didn't do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// Our program isn't there.
    #[error(transparent)]
    Program(#[from] RuntimeError),
    /// Its folder or FIFOs.
    #[error("make {}", .at.display())]
    Place {
        /// Which.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It doesn't run.
    #[error("run a relay")]
    Run(#[source] io::Error),
    /// It ended at once.
    #[error("the relay failed: {0}")]
    Failed(String),
    /// It says nothing.
    #[error("the relay did not answer within {} s", LIMIT.as_secs())]
    Slow,
    /// It doesn't listen.
    #[error("reach the relay")]
    Connect(#[source] ConnectError),
    /// It refused.
    #[error("{}", .0.message())]
    Answer(Box<Status>),
    /// The container has none.
    #[error("container {0} has a shim of somebody else and no relay beside it")]
    None(String),
}

impl Failure for RelayError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Program(error) => error.kind(),
            Self::Place { cause, .. } | Self::Run(cause) => ErrorKind::of_io(cause),
            Self::Failed(_) => ErrorKind::Internal,
            Self::Slow => ErrorKind::DeadlineExceeded,
            Self::Connect(_) => ErrorKind::Unavailable,
            Self::Answer(status) => ErrorKind::from_grpc(status.code()),
            Self::None(_) => ErrorKind::FailedPrecondition,
        }
    }
}

/// What a container wants of its relay.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// A stdin that clients feed.
    pub(super) stdin: bool,
    /// Whether it has a terminal.
    pub(super) terminal: bool,
    /// Its log; empty for none.
    pub(super) log: String,
}

impl Wanted {
    /// The output's way, as shims of Berth's are told.
    pub(super) fn output(&self) -> StdioUri {
        match self.log.as_str() {
            "" => StdioUri::Null,
            path => StdioUri::Cri { path: path.into(), delivery: Delivery::Blocking },
        }
    }

    fn streams(&self) -> [bool; 3] {
        [self.stdin, true, !self.terminal]
    }
}

struct Relay {
    connection: Connection,
    // Passes on what it says.
    _log: Option<ShimLog>,
}

/// All relays of this node.
pub(super) struct Relays {
    tasks: Arc<Tasks>,
    namespace: NamespaceName,
    folder: PathBuf,
    known: Mutex<HashMap<String, Arc<Relay>>>,
}

impl Relays {
    /// None yet; those of an earlier supervisor are looked after one by one, by [`Relays::adopt`] or [`Relays::end`].
    pub(super) fn new(tasks: Arc<Tasks>, namespace: NamespaceName, run: &Path) -> Arc<Self> {
        Arc::new(Self { tasks, namespace, folder: run.join("relays"), known: Mutex::default() })
    }

    /// Starts a container's relay; answers the FIFOs for its shim (stdin, stdout, stderr), empty for those that it has not.
    pub(super) async fn start(self: &Arc<Self>, id: &str, wanted: &Wanted) -> Result<[String; 3], RelayError> {
        let folder = self.folder.join(id);
        let failed = |at: &Path| {
            let at = at.to_owned();
            move |cause| RelayError::Place { at, cause }
        };
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder).map_err(failed(&folder))?;
        let mut paths = [const { String::new() }; 3];
        for ((name, there), path) in STREAMS.into_iter().zip(wanted.streams()).zip(&mut paths) {
            let at = folder.join(name);
            match if there { mkfifo(&at, Mode::S_IRUSR | Mode::S_IWUSR) } else { continue } {
                Ok(()) | Err(Errno::EEXIST) => *path = at.display().to_string(),
                Err(errno) => return Err(failed(&at)(errno.into())),
            }
        }
        let relay = self.launch(id, wanted).await?;
        self.keep(id, wanted.clone(), relay);
        Ok(paths)
    }

    /// Goes on with the relay that an earlier supervisor has left beside a container that lives; starts another one if it is gone.
    pub(super) async fn adopt(self: &Arc<Self>, id: &str, wanted: &Wanted) -> Result<(), RelayError> {
        let folder = self.folder.join(id);
        if !folder.exists() {
            // Of a supervisor that knew none, or on a shim of ours.
            return Ok(());
        }
        let relay = match self.connect(id).await {
            Ok(relay) => relay,
            Err(_) => self.launch(id, wanted).await?,
        };
        self.keep(id, wanted.clone(), relay);
        Ok(())
    }

    /// Containers that have a folder here.
    pub(super) fn all(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Joins FIFOs to a container's stdio.
    pub(super) async fn attach(&self, attach: AttachRequest) -> Result<(), RelayError> {
        let relay = self.get(&attach.container_id)?;
        let mut streams = relay.connection.streams();
        let answer = timeout(LIMIT, streams.attach(request(&self.namespace, attach))).await;
        answer.map_err(|_| RelayError::Slow)?.map(drop).map_err(|status| RelayError::Answer(Box::new(status)))
    }

    /// Lets a container's log be begun anew.
    pub(super) async fn reopen_log(&self, reopen: ReopenLogRequest) -> Result<(), RelayError> {
        let relay = self.get(&reopen.container_id)?;
        let mut streams = relay.connection.streams();
        let answer = timeout(LIMIT, streams.reopen_log(request(&self.namespace, reopen))).await;
        answer.map_err(|_| RelayError::Slow)?.map(drop).map_err(|status| RelayError::Answer(Box::new(status)))
    }

    /// Whether a container with a relay had a stdin that has come to its end.
    pub(super) async fn stdin_has_ended(&self, id: &str) -> bool {
        let at = self.folder.join(id).join("probe");
        if !self.has(id) || mkfifo(&at, Mode::S_IRUSR | Mode::S_IWUSR).is_err() {
            return false;
        }
        // Nothing comes out of it, and its end means nothing.
        let probe = AttachRequest {
            container_id: id.to_owned(),
            stdin: at.display().to_string(),
            lag: Lag::Skip.into(),
            ..Default::default()
        };
        let writer = OpenOptions::new().read_write(true).open_sender(&at);
        let ended = matches!(self.attach(probe).await, Err(error @ RelayError::Answer(_)) if error.kind() == ErrorKind::FailedPrecondition);
        drop(writer);
        // It is nobody's any more, whether it goes now or with its folder.
        let _ = fs::remove_file(&at);
        ended
    }

    /// Whether a container has one.
    pub(super) fn has(&self, id: &str) -> bool {
        self.lock().contains_key(id)
    }

    /// Ends the relay of a container that has ended, if it has one, when all that the container has written is in its log; `now`:
    /// all that is there at the moment, since nobody may ever have written.
    pub(super) async fn end(&self, id: &str, now: bool) {
        let folder = self.folder.join(id);
        let known = self.lock().remove(id);
        if known.is_none() && !folder.exists() {
            return;
        }
        let relay = match known {
            Some(relay) => Some(relay),
            // Of an earlier supervisor; one that can't be reached is gone.
            None => self.connect(id).await.ok().map(Arc::new),
        };
        if let Some(Relay { connection, .. }) = relay.as_deref() {
            let asked = async {
                let message = ShutdownRequest { id: id.to_owned(), now };
                // It may have died; the loss shows either way.
                let _ = connection.tasks().shutdown(request(&self.namespace, message)).await;
                connection.lost().await;
            };
            if timeout(END_LIMIT, asked).await.is_err() {
                warn!(id, "relay of a container doesn't end; the end of its log may be missing");
            }
        }
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(id, %error, "folder of a relay stays");
            }
            _ => {}
        }
    }

    fn get(&self, id: &str) -> Result<Arc<Relay>, RelayError> {
        self.lock().get(id).cloned().ok_or_else(|| RelayError::None(id.to_owned()))
    }

    /// Takes a relay on, and sees to it that there is one until it is ended.
    fn keep(self: &Arc<Self>, id: &str, wanted: Wanted, relay: Relay) {
        let relay = Arc::new(relay);
        self.lock().insert(id.to_owned(), relay.clone());
        let (relays, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            relay.connection.lost().await;
            while relays.lock().get(&id).is_some_and(|known| Arc::ptr_eq(known, &relay)) {
                warn!(id, "relay of a container has gone; another one takes its place");
                match relays.launch(&id, &wanted).await {
                    Ok(new) => return relays.keep(&id, wanted, new),
                    Err(error) => warn!(id, error = %chain(&error), "no relay; it is tried again"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// Starts a relay's process and waits until it listens.
    async fn launch(&self, id: &str, wanted: &Wanted) -> Result<Relay, RelayError> {
        let program = self.tasks.own_shim()?;
        let output = wanted.output().to_string();
        let mut command = Command::new(program);
        command.arg("relay").arg(self.folder.join(id)).arg(self.namespace.as_str()).arg(id);
        command.arg(if wanted.stdin { StdioUri::Attach.to_string() } else { String::new() });
        command.arg(&output).arg(if wanted.terminal { "" } else { &output });
        command.arg(if wanted.terminal { "terminal" } else { "" });
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let log = self.log(id);
        let mut child = command.spawn().map_err(RelayError::Run)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let ready = async {
            let mut line = String::new();
            if let Some(stdout) = stdout {
                BufReader::new(stdout).take(WORDS).read_line(&mut line).await?;
            }
            let mut words = String::new();
            if line != "ready\n"
                && let Some(stderr) = stderr
            {
                stderr.take(WORDS).read_to_string(&mut words).await?;
            }
            Ok::<_, io::Error>((line == "ready\n").then_some(()).ok_or(words))
        };
        let answer = timeout(LIMIT, ready).await;
        if !matches!(answer, Ok(Ok(Ok(())))) {
            // It may have ended already.
            let _ = child.start_kill();
        }
        // Reaped whenever that is; it isn't ours to wait for.
        tokio::spawn(async move { child.wait().await });
        match answer {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(words))) => return Err(RelayError::Failed(words.trim().replace('\n', "; "))),
            Ok(Err(cause)) => return Err(RelayError::Run(cause)),
            Err(_) => return Err(RelayError::Slow),
        }
        let connection = self.open(id).await?;
        info!(id, "relay started");
        Ok(Relay { connection, _log: log })
    }

    async fn connect(&self, id: &str) -> Result<Relay, RelayError> {
        let log = self.log(id);
        Ok(Relay { connection: self.open(id).await?, _log: log })
    }

    fn log(&self, id: &str) -> Option<ShimLog> {
        let container = ContainerId::new(id).ok()?;
        ShimLog::open(&self.folder.join(id), &self.namespace, &container)
    }

    async fn open(&self, id: &str) -> Result<Connection, RelayError> {
        let failed = |cause: io::Error| RelayError::Connect(cause.into());
        // The path itself can be too long for a socket's.
        let folder = fs::File::open(self.folder.join(id)).map_err(failed)?;
        let address = format!("/proc/self/fd/{}/socket", folder.as_raw_fd());
        let relay = Bootstrap { version: 3, address, protocol: "grpc".into() };
        Connection::open(&relay).await.map_err(RelayError::Connect)
    }

    // Whole insertions and removals only: a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Relay>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
