//! Stdio of a process: pipes or a terminal on its side; FIFOs, files, logs and attachments on the other.
//!
//! ```text
//!   process ──stdout──▶ pipe ──▶ output::pump ──▶ sink (FIFO, file, json-file log)
//!                                             └─▶ attachments (FIFOs that came later)
//!   FIFO, attachments ──▶ stdin::feed ──▶ pipe ──stdin──▶ process
//! ```
//! With a terminal there is one master instead of the pipes, and its output is stdout.

mod console;
mod fd;
mod jsonlog;
mod logfile;
mod output;
mod stdin;

use std::{
    cell::RefCell,
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
    berth::streams::v1::AttachRequest,
    kind::ErrorKind,
    stdio::{FifoReader, StdioError, StdioUri},
};
use tokio::task::AbortHandle;

pub(crate) use self::fd::watch;
use self::{
    console::Console,
    fd::{Pipe, open_reader, open_writer},
    logfile::LogFile,
    output::{Output, Sink, Source},
    stdin::Stdin,
};
use crate::oci::ChildStdio;

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
            Self::Open { cause, .. } | Self::System { cause, .. } => ErrorKind::of_io(cause),
            Self::NoStream(_) | Self::NoTerminal => ErrorKind::FailedPrecondition,
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> IoError {
    move |cause| IoError::System { what, cause }
}

/// Where stdio of a process leads, as its caller wrote it.
#[derive(Debug, Clone, Default)]
pub(crate) struct StdioConfig {
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

fn open_sink(
    stream: &'static str,
    uri: &StdioUri,
    log: &mut Option<(StdioUri, Rc<RefCell<LogFile>>)>,
) -> Result<Sink, IoError> {
    let failed = |path: &Path, cause| IoError::Open { stream, path: path.to_owned(), cause };
    Ok(match uri {
        StdioUri::Null => Sink::Null,
        StdioUri::Attach => return Err(IoError::Direction { stream, uri: uri.to_string() }),
        StdioUri::Fifo { path, reader: FifoReader::Awaited } => {
            // Both ends, as containerd: without a reader the bytes wait in the FIFO.
            fd::open_both(path)
                .and_then(|fd| Sink::fifo(fd, FifoReader::Awaited))
                .map_err(|cause| failed(path, cause))?
        }
        StdioUri::Fifo { path, reader: FifoReader::Optional } => match open_writer(path) {
            // The reader has gone already: nobody is to wait for it.
            Err(cause) if cause.raw_os_error() == Some(nix::libc::ENXIO) => Sink::Null,
            other => other.and_then(|fd| Sink::fifo(fd, FifoReader::Optional)).map_err(|cause| failed(path, cause))?,
        },
        StdioUri::File { path } => Sink::file(path).map_err(|cause| failed(path, cause))?,
        StdioUri::JsonFile(place) => {
            let file = match log {
                Some((same, file)) if same == uri => file.clone(),
                _ => {
                    let file = LogFile::open(place.clone()).map_err(|cause| failed(&place.path, cause))?;
                    let file = Rc::new(RefCell::new(file));
                    *log = Some((uri.clone(), file.clone()));
                    file
                }
            };
            Sink::log(file, stream)
        }
    })
}

impl Prepared {
    /// Opens everything. `console_path` is where a runtime can connect to hand over a terminal.
    pub(crate) fn open(config: &StdioConfig, console_path: &Path) -> Result<Self, IoError> {
        let (stdin, stdout) = (parse("stdin", &config.stdin)?, parse("stdout", &config.stdout)?);
        let stderr = if config.terminal { StdioUri::Null } else { parse("stderr", &config.stderr)? };
        let mut log = None;
        let sinks = [open_sink("stdout", &stdout, &mut log)?, open_sink("stderr", &stderr, &mut log)?];
        let stdin_feed = match &stdin {
            StdioUri::Null | StdioUri::Attach => None,
            StdioUri::Fifo { path, reader } => {
                let failed = |cause| IoError::Open { stream: "stdin", path: path.clone(), cause };
                let source = open_reader(path).map_err(failed)?;
                let waits = config.stdin_waits && *reader == FifoReader::Awaited;
                let keep = if waits { Some(open_writer(path).map_err(failed)?) } else { None };
                Some((source, keep))
            }
            StdioUri::File { .. } | StdioUri::JsonFile(_) => {
                return Err(IoError::Direction { stream: "stdin", uri: config.stdin.clone() });
            }
        };
        if config.terminal {
            let console = Console::listen(console_path).map_err(system("listen for the terminal"))?;
            return Ok(Self {
                child: Some(ChildStdio::null()),
                console: Some(console),
                stdin_pipe: None,
                outputs: [None, None],
                sinks,
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
        let child = ChildStdio { stdin: child_stdin, stdout: out_writer.into(), stderr: err_writer.into() };
        let outputs = [Some(out_reader), Some(err_reader)];
        Ok(Self { child: Some(child), console: None, stdin_pipe, outputs, sinks, stdin_feed })
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
        let mut io = ProcessIo { stdin: None, outputs: [None, None], master: None, tasks: Vec::new() };
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
    tasks: Vec<AbortHandle>,
}

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

    /// Joins FIFOs to the process. All of them or none.
    pub(crate) fn attach(&self, request: &AttachRequest) -> Result<(), IoError> {
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
            joins.push((output, Pipe::writer(fifo).map_err(|cause| failed(stream, path, cause))?));
        }
        if !request.stdin.is_empty() {
            let stdin = self.stdin.as_ref().filter(|stdin| stdin.is_open()).ok_or(IoError::NoStream("stdin"))?;
            let source = open_reader(Path::new(&request.stdin))
                .and_then(Pipe::reader)
                .map_err(|cause| failed("stdin", &request.stdin, cause))?;
            stdin.feed(source, if request.close_stdin { AtEnd::Close } else { AtEnd::Leave }, None);
        }
        for (output, pipe) in joins {
            output.join(pipe);
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
        async move {
            let all = async {
                for output in &outputs {
                    output.settled().await;
                }
            };
            // Nothing to do about a slow reader: copying goes on behind.
            let _ = tokio::time::timeout(SETTLE, all).await;
        }
    }

    /// An exec is forgotten. A child of it may still hold its pipes: it is read on, into nothing, so that it neither
    /// blocks nor dies by SIGPIPE.
    pub(crate) fn abandon(mut self) {
        for output in self.outputs.iter().flatten() {
            output.discard();
        }
        self.tasks.clear();
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
