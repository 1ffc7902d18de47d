//! Action `relay`: stdio of one container whose shim isn't Berth's.
//!
//! Other shims know FIFOs and nothing else of ours. This process holds the FIFOs' other ends for as long as the container lives:
//! it writes the log, serves those who attach, and keeps stdin open, whether there is a supervisor or not. To its caller it is a
//! shim that knows `Attach`, `ReopenLog` and `CloseIO` of one container, and `Shutdown`, by which it ends once the output has.
//!
//! `berth-shim relay FOLDER NAMESPACE ID STDIN STDOUT STDERR TERMINAL`: the FIFOs are in the folder, and so is the socket; the next three
//! are stdio URIs as in Task/Create. It says `ready` and a line's end when it listens, or what is wrong on standard error.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::LocalSet,
};

use crate::{
    bundle::Key,
    connections,
    desk::Request,
    error::TaskError,
    io::{IoError, ProcessIo, StdioConfig},
    reaper::Reaper,
    report::report,
    server::Desk,
    start,
    task::Call,
};

/// The word on the command line; the supervisor's to use, and no action of the shim contract.
pub(crate) const ACTION: &str = "relay";
/// The socket in the folder. It is bound from within, because the folder's path can be too long for one.
const SOCKET: &str = "./socket";
/// How long output may go on after the container's end: a process that it has left behind may hold the FIFO.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    /// It isn't called as the supervisor does.
    #[error("{ACTION} is for the supervisor's own use")]
    Usage,
    /// Something of its surroundings.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The FIFOs or the log.
    #[error("stdio of container {id}")]
    Io {
        /// Whose.
        id: String,
        /// Why.
        #[source]
        cause: IoError,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> RelayError {
    move |cause| RelayError::System { what, cause }
}

/// The process: serves until it is told to end.
pub(crate) fn main(words: &[OsString]) -> ExitCode {
    let done = parse(words).and_then(|(folder, config)| serve(&folder, &config));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("{}", proto::kind::chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[OsString]) -> Result<(PathBuf, StdioConfig), RelayError> {
    let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let Some([folder, namespace, container, stdin, stdout, stderr, terminal]) = words.as_deref() else {
        return Err(RelayError::Usage);
    };
    let config = StdioConfig {
        container: (*container).to_owned(),
        namespace: (*namespace).to_owned(),
        stdin: (*stdin).to_owned(),
        stdout: (*stdout).to_owned(),
        stderr: (*stderr).to_owned(),
        terminal: *terminal == "terminal",
        ..StdioConfig::default()
    };
    Ok((PathBuf::from(folder), config))
}

fn serve(folder: &Path, config: &StdioConfig) -> Result<(), RelayError> {
    // Its caller's end, by a key or a service manager's signal to the group, is not its own.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir(folder).map_err(system("go to the folder"))?;
    let listen = system("listen in the folder");
    let in_use = || listen(io::ErrorKind::AddrInUse.into());
    let listener = start::listen(Path::new(SOCKET)).map_err(&listen)?.ok_or_else(in_use)?;
    listener.set_nonblocking(true).map_err(&listen)?;
    // What the supervisor forgot to close must not live as long as we do.
    sys::inherited::close_all_but(listener.as_fd()).map_err(|errno| listen(errno.into()))?;
    sys::memory::keep_heap_small();
    start::adjust_oom_score();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_io_events_per_tick(64).build();
    let runtime = runtime.map_err(system("start serving"))?;
    let served = LocalSet::new().block_on(&runtime, run(folder, config, listener));
    let _ = std::fs::remove_file(SOCKET);
    served
}

async fn run(
    folder: &Path,
    config: &StdioConfig,
    listener: std::os::unix::net::UnixListener,
) -> Result<(), RelayError> {
    let serving = system("start serving");
    // A log that can't be written is told to its writer, not by a signal.
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        drop(signal(kind).map_err(&serving)?);
    }
    let listener = tokio::net::UnixListener::from_std(listener).map_err(&serving)?;
    let reaper = Rc::new(Reaper::default());
    tokio::task::spawn_local(reaper.clone().run(signal(SignalKind::child()).map_err(&serving)?));
    let opened = ProcessIo::of_fifos(Path::new("."), config, &reaper).await;
    let io = opened.map_err(|cause| RelayError::Io { id: config.container.clone(), cause })?;
    let (sender, requests) = mpsc::unbounded_channel();
    let (end, ending) = watch::channel(false);
    let server = tokio::task::spawn_local(connections::serve(listener, Desk::new(sender), Rc::default(), ending));
    let said = io::stdout().write_all(b"ready\n").and_then(|()| io::stdout().flush());
    said.map_err(system("say that it is ready"))?;
    start::redirect_stdio(folder).map_err(|errno| serving(errno.into()))?;
    let now = answer(&config.container, &io, requests).await;
    if !now {
        // What is in the FIFOs after that is that of who else holds them.
        let _ = tokio::time::timeout(LAST_WORDS, io.ended()).await;
    }
    io.settle().await;
    io.close().await;
    let _ = std::fs::remove_file(SOCKET);
    let _ = end.send(true);
    let _ = server.await;
    Ok(())
}

/// Answers until it is told to end; true: without waiting for more.
async fn answer(container: &str, io: &ProcessIo, mut requests: mpsc::UnboundedReceiver<Request>) -> bool {
    let failed = |cause| TaskError::Io { id: container.to_owned(), cause };
    while let Some(request) = requests.recv().await {
        // Whoever has asked may be gone. What isn't answered is for a container, or of a kind, that isn't here.
        match request {
            Request::Call(id, call) if id == container => match call {
                Call::Attach(request, reply) => drop(reply.send(io.attach(&request, true).map_err(failed))),
                Call::ReopenLog(Key::Init, reply) => {
                    let (reopened, id) = (io.reopen(), id.clone());
                    tokio::task::spawn_local(async move {
                        let done = reopened.await.map_err(|cause| TaskError::Io { id, cause });
                        drop(reply.send(done));
                    });
                }
                Call::CloseIo(Key::Init, reply) => {
                    io.close_stdin();
                    drop(reply.send(Ok(())));
                }
                _ => {}
            },
            Request::Shutdown(now, reply) => {
                drop(reply.send(Ok(true)));
                return now;
            }
            _ => {}
        }
    }
    true
}
