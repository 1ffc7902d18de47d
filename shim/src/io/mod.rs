//! Stdio of a process: pipes or a terminal on its side; FIFOs, files, logs and attachments on the other.
//!
//! ```text
//!   process ──stdout──▶ pipe ──▶ output::pump ──▶ sink: FIFO, file, log file, ring ──▶ journal, syslog
//!                                             └─▶ taps: attachments (FIFOs that came later), a logging process
//!   FIFO, attachments ──▶ stdin::feed ──▶ pipe ──stdin──▶ process
//! ```
//! With a terminal there is one master instead of the pipes, and its output is stdout.

mod binary;
mod console;
mod discard;
mod fd;
mod format;
mod journald;
mod jsonlog;
mod lines;
mod locallog;
mod logfile;
mod output;
pub(crate) mod pack;
mod queue;
mod relayed;
mod sink;
mod stdin;
mod syslog;
mod tap;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    rc::Rc,
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    unistd::{Gid, Uid, fchown, pipe2},
};
use proto::{
    berth::streams::v1::{AttachRequest, Lag},
    kind::ErrorKind,
    stdio::{FifoReader, StdioError, StdioUri},
};
use tokio::task::AbortHandle;

pub(crate) use self::fd::watch;
use self::{
    console::Console,
    fd::{Pipe, open_reader, open_writer},
    output::{Output, Source},
    sink::{Keeper, Opener, Sink},
    stdin::Stdin,
    tap::{Patience, Tap},
};
use crate::{oci::ChildStdio, reaper::Reaper, report::warn_line};

/// Why stdio couldn't be set up or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IoError {
    /// A URI that isn't one, or has a scheme that isn't served.
    #[error("{stream} of the process")]
    Uri {
        /// Which stream.
        stream: &'static str,
        /// What is wrong.
        #[source]
        cause: StdioError,
    },
    /// A URI that makes no sense for this stream.
    #[error("{stream} of the process can't be {uri:?}")]
    Direction {
        /// Which stream.
        stream: &'static str,
        /// The URI.
        uri: String,
    },
    /// A FIFO or file couldn't be opened.
    #[error("open {path} for {stream}")]
    Open {
        /// Which stream.
        stream: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A logging process couldn't be started.
    #[error("start logging process {path}")]
    Logger {
        /// Its program.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// A log couldn't be begun anew.
    #[error("reopen log {path}")]
    Reopen {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// There is no file to open anew.
    #[error("the output of the process goes to no file that could be reopened")]
    NoFile,
    /// A pipe, console socket or terminal failed.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The process has no such stream, or it has ended.
    #[error("the process has no {0} to attach to")]
    NoStream(&'static str),
    /// Only terminals have a size.
    #[error("the process has no terminal to resize")]
    NoTerminal,
}

impl IoError {
    /// What kind of failure it is.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Uri { cause: StdioError::Scheme(_), .. } => ErrorKind::Unimplemented,
            Self::Uri { .. } | Self::Direction { .. } => ErrorKind::InvalidArgument,
            // A FIFO that nobody reads: the caller was to hold its end open.
            Self::Open { cause, .. } if cause.raw_os_error() == Some(nix::libc::ENXIO) => ErrorKind::FailedPrecondition,
            Self::Open { cause, .. }
            | Self::System { cause, .. }
            | Self::Logger { cause, .. }
            | Self::Reopen { cause, .. } => ErrorKind::of_io(cause),
            Self::NoStream(_) | Self::NoTerminal | Self::NoFile => ErrorKind::FailedPrecondition,
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> IoError {
    move |cause| IoError::System { what, cause }
}

/// Where stdio of a process leads, as its caller wrote it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StdioConfig {
    /// The container it belongs to, and that container's namespace: some logs name them.
    pub(crate) container: String,
    /// As above.
    pub(crate) namespace: String,
    /// URI of stdin.
    pub(crate) stdin: String,
    /// URI of stdout.
    pub(crate) stdout: String,
    /// URI of stderr.
    pub(crate) stderr: String,
    /// Whether the process has a terminal.
    pub(crate) terminal: bool,
    /// Who owns the pipes (runc Options io_uid, io_gid).
    pub(crate) owner: (u32, u32),
    /// Whether the end of a plain stdin FIFO leaves stdin open until CloseIO (containerd's way with init: a client may
    /// come back) or closes it (an exec ends with its client).
    pub(crate) stdin_waits: bool,
}

/// Everything that can be refused has been; the runtime has yet to run.
pub(crate) struct Prepared {
    child: Option<ChildStdio>,
    console: Option<Console>,
    stdin_pipe: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    sinks: [Sink; 2],
    keepers: Vec<Keeper>,
    stdin_feed: Option<(OwnedFd, Option<OwnedFd>)>,
}

/// What happens when the source of stdin ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AtEnd {
    Close,
    Leave,
}

fn parse(stream: &'static str, uri: &str) -> Result<StdioUri, IoError> {
    uri.parse().map_err(|cause| IoError::Uri { stream, cause })
}

fn pipe(owner: (u32, u32)) -> Result<(OwnedFd, OwnedFd), IoError> {
    let failed = system("make a pipe");
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    if owner != (0, 0) {
        for end in [&reader, &writer] {
            fchown(end, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
                .map_err(|errno| system("give a pipe to its user")(errno.into()))?;
        }
    }
    Ok((reader, writer))
}

impl Prepared {
    /// Opens everything. `console_path` is where a runtime can connect to hand over a terminal.
    pub(crate) async fn open(config: &StdioConfig, console_path: &Path, reaper: &Rc<Reaper>) -> Result<Self, IoError> {
        let (stdin, stdout) = (parse("stdin", &config.stdin)?, parse("stdout", &config.stdout)?);
        let stderr = if config.terminal { StdioUri::Null } else { parse("stderr", &config.stderr)? };
        let stdin_feed = match &stdin {
            StdioUri::Null | StdioUri::Attach => None,
            StdioUri::Fifo { path, reader } => {
                let failed = |cause| IoError::Open { stream: "stdin", path: path.clone(), cause };
                let source = open_reader(path).map_err(failed)?;
                let waits = config.stdin_waits && *reader == FifoReader::Awaited;
                let keep = if waits { Some(open_writer(path).map_err(failed)?) } else { None };
                Some((source, keep))
            }
            _ => {
                return Err(IoError::Direction { stream: "stdin", uri: config.stdin.clone() });
            }
        };
        // Last of what the caller named: it may start a process, which something that fails later leaves behind.
        let opener = Opener { container: &config.container, namespace: &config.namespace, reaper };
        let (sinks, keepers) = opener.open([&stdout, &stderr]).await?;
        if config.terminal {
            let console = Console::listen(console_path).map_err(system("listen for the terminal"))?;
            return Ok(Self {
                child: Some(ChildStdio::null()),
                console: Some(console),
                stdin_pipe: None,
                outputs: [None, None],
                sinks,
                keepers,
                stdin_feed,
            });
        }
        let (child_stdin, stdin_pipe) = if stdin == StdioUri::Null {
            (Stdio::null(), None)
        } else {
            let (reader, writer) = pipe(config.owner)?;
            (reader.into(), Some(writer))
        };
        let (out_reader, out_writer) = pipe(config.owner)?;
        let (err_reader, err_writer) = pipe(config.owner)?;
        let child =
            ChildStdio { stdin: child_stdin, stdout: out_writer.into(), stderr: err_writer.into(), further: None };
        let outputs = [Some(out_reader), Some(err_reader)];
        Ok(Self { child: Some(child), console: None, stdin_pipe, outputs, sinks, keepers, stdin_feed })
    }

    /// The streams for the runtime; null ones when asked twice.
    pub(crate) fn child(&mut self) -> ChildStdio {
        self.child.take().unwrap_or_else(ChildStdio::null)
    }

    /// The console socket for the runtime.
    pub(crate) fn console(&self) -> Option<&Path> {
        self.console.as_ref().map(Console::path)
    }

    /// The runtime has succeeded: takes the terminal it sent, and begins to copy. After a failure this isn't called, and
    /// what the runtime wrote to the container's stderr is nobody's output.
    pub(crate) fn begin(self) -> Result<ProcessIo, IoError> {
        let [out_sink, err_sink] = self.sinks;
        let [out_pipe, err_pipe] = self.outputs;
        let copying = system("watch stdio");
        let mut io =
            ProcessIo { stdin: None, outputs: [None, None], master: None, keepers: self.keepers, tasks: Vec::new() };
        if let Some(console) = self.console {
            let master = console.receive().map_err(system("receive the terminal from the OCI runtime"))?;
            let master = Rc::new(Pipe::both(master).map_err(&copying)?);
            io.stdin = Some(Stdin::terminal(master.clone()));
            // Without it, output would end for good when the process closes its terminal, even if it opens it again.
            let peer = sys::pty::open_peer(master.fd()).map_err(|errno| system("open the terminal")(errno.into()))?;
            io.outputs[0] = Some(io.spawn_pump(Source::Terminal(master.clone(), Some(peer)), out_sink));
            io.master = Some(master);
        } else {
            if let Some(writer) = self.stdin_pipe {
                io.stdin = Some(Stdin::pipe(Pipe::writer(writer).map_err(&copying)?));
            }
            for (place, (reader, sink)) in [(out_pipe, out_sink), (err_pipe, err_sink)].into_iter().enumerate() {
                if let Some(reader) = reader {
                    let source = Source::Pipe(Pipe::reader(reader).map_err(&copying)?);
                    io.outputs[place] = Some(io.spawn_pump(source, sink));
                }
            }
        }
        if let (Some((source, keep)), Some(stdin)) = (self.stdin_feed, &io.stdin) {
            stdin.feed(Pipe::reader(source).map_err(&copying)?, AtEnd::Close, keep);
        }
        Ok(io)
    }
}

/// Running stdio of a process.
pub(crate) struct ProcessIo {
    stdin: Option<Rc<Stdin>>,
    outputs: [Option<Rc<Output>>; 2],
    master: Option<Rc<Pipe>>,
    keepers: Vec<Keeper>,
    tasks: Vec<AbortHandle>,
}

/// How long a log may take to come to its end when its container is removed; a logging process keeps its own time.
const LAST_WORK: Duration = Duration::from_secs(15);

/// How long a process may be held up by a client that came while it ran.
const CLIENT_PATIENCE: Duration = Duration::from_millis(250);

/// How long output may take to pass to a reader that is alive but slow, once the process has ended. After that the end is
/// told anyway, and copying goes on.
const SETTLE: Duration = Duration::from_secs(2);

impl ProcessIo {
    fn spawn_pump(&mut self, source: Source, sink: Sink) -> Rc<Output> {
        let output = Rc::new(Output::default());
        let pump = tokio::task::spawn_local(output::pump(source, sink, output.clone()));
        self.tasks.push(pump.abort_handle());
        output
    }

    /// Joins FIFOs to the process. All of them or none. A client that was there before the process `started` runs it, and
    /// may slow it down as in a shell's pipeline; one that came later may not.
    pub(crate) fn attach(&self, request: &AttachRequest, started: bool) -> Result<(), IoError> {
        let patience = match request.lag() {
            Lag::Wait => Patience::Endless,
            Lag::Unspecified if !started => Patience::Endless,
            Lag::Unspecified | Lag::Skip => Patience::Limited(CLIENT_PATIENCE),
        };
        let failed = |stream, path: &str, cause| IoError::Open { stream, path: path.into(), cause };
        let mut joins = Vec::new();
        for (stream, path, output) in
            [("stdout", &request.stdout, &self.outputs[0]), ("stderr", &request.stderr, &self.outputs[1])]
        {
            // A terminal has no stderr; whoever asks for both gets everything as stdout.
            if path.is_empty() || (stream == "stderr" && self.master.is_some()) {
                continue;
            }
            let output = output.as_ref().filter(|output| !output.has_ended()).ok_or(IoError::NoStream(stream))?;
            let fifo = open_writer(Path::new(path)).map_err(|cause| failed(stream, path, cause))?;
            fd::enlarge(&fifo);
            let pipe = Pipe::writer(fifo).map_err(|cause| failed(stream, path, cause))?;
            joins.push((output, Tap::new(pipe, patience, self.master.is_some())));
        }
        if !request.stdin.is_empty() {
            let stdin = self.stdin.as_ref().filter(|stdin| stdin.is_open()).ok_or(IoError::NoStream("stdin"))?;
            let source = open_reader(Path::new(&request.stdin))
                .and_then(Pipe::reader)
                .map_err(|cause| failed("stdin", &request.stdin, cause))?;
            stdin.feed(source, if request.close_stdin { AtEnd::Close } else { AtEnd::Leave }, None);
        }
        for (output, tap) in joins {
            output.join(tap);
        }
        Ok(())
    }

    /// Closes stdin once what has been sent so far is through.
    pub(crate) fn close_stdin(&self) {
        if let Some(stdin) = &self.stdin {
            stdin.close_when_drained();
        }
    }

    /// Sets the size of the terminal.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), IoError> {
        let master = self.master.as_ref().ok_or(IoError::NoTerminal)?;
        sys::pty::set_size(master.fd(), sys::pty::Size { rows, columns })
            .map_err(|errno| system("resize the terminal")(errno.into()))
    }

    /// The process has ended: what it wrote is passed on, and then its readers see the end. The returned future is done
    /// when all that is through, or when a reader took too long.
    pub(crate) fn settle(&self) -> impl Future<Output = ()> + 'static {
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
        let outputs: Vec<_> = self.outputs.iter().flatten().cloned().collect();
        for output in &outputs {
            output.process_ended();
        }
        let keepers = self.keepers.clone();
        async move {
            let all = async {
                for output in &outputs {
                    output.settled().await;
                }
                for keeper in &keepers {
                    keeper.flushed().await;
                }
            };
            // Nothing to do about a slow reader: copying goes on behind.
            let _ = tokio::time::timeout(SETTLE, all).await;
        }
    }

    /// Begins log files anew at their paths.
    pub(crate) fn reopen(&self) -> impl Future<Output = Result<(), IoError>> + 'static {
        let keepers = self.keepers.clone();
        async move {
            let mut found = false;
            for keeper in &keepers {
                if let Some((path, result)) = keeper.reopen().await {
                    result.map_err(|cause| IoError::Reopen { path, cause })?;
                    found = true;
                }
            }
            if found { Ok(()) } else { Err(IoError::NoFile) }
        }
    }

    /// The container is removed: copying ends, and then what output was given to comes to its end. Done when it has.
    pub(crate) fn close(mut self) -> impl Future<Output = ()> + 'static {
        let keepers = std::mem::take(&mut self.keepers);
        drop(self);
        async move {
            // The pumps are dropped at their next turn, and with them their ends of a logging process's pipes.
            tokio::task::yield_now().await;
            for keeper in keepers {
                if tokio::time::timeout(LAST_WORK, keeper.end()).await.is_err() {
                    warn_line!("a log was not complete when its container was removed");
                }
            }
        }
    }

    /// An exec is forgotten. A child of it may still hold its pipes: it is read on, into nothing, so that it neither
    /// blocks nor dies by SIGPIPE.
    pub(crate) fn abandon(mut self) {
        for output in self.outputs.iter().flatten() {
            output.discard();
        }
        self.tasks.clear();
        let keepers = std::mem::take(&mut self.keepers);
        if !keepers.is_empty() {
            tokio::task::spawn_local(async move {
                tokio::task::yield_now().await;
                for keeper in keepers {
                    keeper.end().await;
                }
            });
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Some(stdin) = &self.stdin {
            stdin.close();
        }
    }
}
