//! Runs plugins. What they print is read as they print it and no further than is sensible; one that doesn't end is killed with all
//! that it has started, and so is one whose caller goes away.

use std::{
    fmt, io,
    os::fd::OwnedFd,
    path::PathBuf,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};
use std::os::unix::process::ExitStatusExt as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, unix::AsyncFd},
    process::{Child, ChildStdin, Command},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    INTERFACE, config,
    error::{PluginError, Refusal},
};

/// Most that a plugin may print. A result is a kilobyte or two, and is kept in the record of its sandbox.
const OUTPUT_LIMIT: usize = 256 << 10;
/// Most of its error stream that is kept.
const ERRORS_LIMIT: usize = 8 << 10;
/// Most of its words that become part of an error.
const WORDS_LIMIT: usize = 1 << 10;
/// How long the ends of its streams may be held open by what it left behind, once it has ended.
const STREAMS_GRACE: Duration = Duration::from_millis(200);
/// How long the kernel may take to end what was killed, before we stop waiting for it.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// How often, and how far apart, a program is tried that somebody is just writing.
const BUSY: (u32, Duration) = (50, Duration::from_millis(100));

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// Say whether ADD would work.
    Status,
    /// Say which versions it speaks.
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        })
    }
}

/// One call of a plugin.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// What it is to do.
    pub(super) verb: Verb,
    /// The name of its program.
    pub(super) plugin: &'a str,
    /// Id of the sandbox; empty where there is none.
    pub(super) pod: &'a str,
    /// Path of the network namespace; empty if it is gone.
    pub(super) netns: &'a str,
    /// CNI_ARGS.
    pub(super) arguments: &'a str,
    /// What it reads.
    pub(super) input: &'a [u8],
}

/// Where plugins are, and how long they may take.
#[derive(Debug)]
pub(super) struct Programs {
    /// Folders, in the order in which they count.
    pub(super) folders: Vec<PathBuf>,
    /// The longest call.
    pub(super) limit: Duration,
}

/// How a plugin's run ended, as far as we let it.
enum End {
    Itself,
    Flooding,
    TooLate,
}

struct Flooded;

impl Programs {
    /// The program of a plugin.
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, PluginError> {
        if !config::is_program(plugin) {
            return Err(PluginError::Name(plugin.to_owned()));
        }
        let found = self.folders.iter().map(|folder| folder.join(plugin)).find(|at| at.is_file());
        found.ok_or_else(|| PluginError::Missing(self.folders.clone()))
    }

    /// Calls a plugin and gives back what it printed.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Vec<u8>, PluginError> {
        self.call_within(call, self.limit).await
    }

    /// The same with a limit of its own.
    pub(super) async fn call_within(&self, call: &Call<'_>, limit: Duration) -> Result<Vec<u8>, PluginError> {
        let at = self.find(call.plugin)?;
        let begun = Instant::now();
        let start = |cause| PluginError::Start { at: at.clone(), cause };
        let mut running = Running::start(self.command(&at, call)).await.map_err(start)?;
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let end = running.talk(call.input, &mut output, &mut errors, limit).await;
        let status = running.finish(&end).await.map_err(start)?;
        let Call { verb, plugin, pod: id, .. } = *call;
        let (ms, words) = (begun.elapsed().as_millis() as u64, excerpt(&errors, ERRORS_LIMIT));
        let outcome = judge(end, status, output, &errors, limit);
        match &outcome {
            Ok(_) => debug!(id, plugin, operation = %verb, ms, words, "plugin called"),
            // The failure is its caller's to tell; what it said beside it nobody else knows.
            Err(_) if !words.is_empty() => {
                warn!(id, plugin, operation = %verb, ms, words, "said by a plugin that failed")
            }
            Err(_) => debug!(id, plugin, operation = %verb, ms, "plugin failed"),
        }
        outcome
    }

    fn command(&self, at: &PathBuf, call: &Call<'_>) -> Command {
        let folders = self.folders.iter().map(|folder| folder.as_os_str()).collect::<Vec<_>>().join(":".as_ref());
        let mut command = Command::new(at);
        command
            .env("CNI_COMMAND", call.verb.to_string())
            .env("CNI_CONTAINERID", call.pod)
            .env("CNI_NETNS", call.netns)
            .env("CNI_IFNAME", INTERFACE)
            .env("CNI_ARGS", call.arguments)
            .env("CNI_PATH", folders)
            // Its own process group, by which all that it starts is found.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// A plugin at work. Dropped before its end it is killed, with its process group; tokio reaps it.
struct Running {
    child: Child,
    group: Pid,
    // Readable when it has ended, before it is reaped: as long as it isn't, its number is nobody else's.
    ended: AsyncFd<OwnedFd>,
    reaped: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
    }
}

impl Running {
    async fn start(mut command: Command) -> io::Result<Self> {
        let mut child = command.spawn();
        for _ in 0..BUSY.0 {
            match &child {
                // An installer that writes it in place will be done soon.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                    tokio::time::sleep(BUSY.1).await;
                    child = command.spawn();
                }
                _ => break,
            }
        }
        let child = child?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or(Errno::ESRCH)?;
        let group = Pid::from_raw(pid);
        let ended = sys::process::pidfd_open(group).map_err(io::Error::from).and_then(watch);
        match ended {
            Ok(ended) => Ok(Self { child, group, ended, reaped: false }),
            Err(error) => {
                let _ = sys::spawn::kill_group(group);
                Err(error)
            }
        }
    }

    fn kill(&self) {
        match sys::spawn::kill_group(self.group) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => warn!(%error, group = self.group.as_raw(), "plugin not killed"),
        }
    }

    /// Feeds it and listens to it until it ends, says too much, or takes too long.
    async fn talk(&mut self, input: &[u8], output: &mut Vec<u8>, errors: &mut Vec<u8>, limit: Duration) -> End {
        let Child { stdin, stdout, stderr, .. } = &mut self.child;
        let streams = (stdin.take(), stdout.take(), stderr.take());
        let ended = &self.ended;
        let work = async {
            let talk = async {
                tokio::try_join!(feed(streams.0, input), gather(streams.1, output), skim(streams.2, errors)).map(drop)
            };
            let mut talk = pin!(talk);
            tokio::select! {
                done = &mut talk => {
                    done?;
                    let _ = ended.readable().await;
                }
                _ = ended.readable() => {
                    // What it wrote is in the pipes by now. Their end may not come, if something that it started lives on.
                    if let Ok(done) = timeout(STREAMS_GRACE, &mut talk).await {
                        done?;
                    }
                }
            }
            Ok(())
        };
        match timeout(limit, work).await {
            Ok(Ok(())) => End::Itself,
            Ok(Err(Flooded)) => End::Flooding,
            Err(_) => End::TooLate,
        }
    }

    /// Reaps it. Unless it ended by its own will, nothing of what it started goes on: it could still be taking an address.
    async fn finish(mut self, end: &End) -> io::Result<Option<ExitStatus>> {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let exited = matches!(waitid(Id::Pid(self.group), peek), Ok(WaitStatus::Exited(..)));
        if !(exited && matches!(end, End::Itself)) {
            self.kill();
        }
        // One that hangs in the kernel takes its death late; tokio reaps it then.
        let status = timeout(KILL_GRACE, self.child.wait()).await;
        self.reaped = true;
        status.ok().transpose()
    }
}

fn judge(
    end: End,
    status: Option<ExitStatus>,
    output: Vec<u8>,
    errors: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, PluginError> {
    let status = match (end, status) {
        (End::Flooding, _) => return Err(PluginError::Flood(OUTPUT_LIMIT)),
        (End::TooLate, _) | (End::Itself, None) => return Err(PluginError::Slow(limit)),
        (End::Itself, Some(status)) => status,
    };
    if status.success() {
        return Ok(output);
    }
    if let Some(signal) = status.signal() {
        return Err(PluginError::Signal { signal, words: excerpt(errors, WORDS_LIMIT) });
    }
    match serde_json::from_slice::<Refusal>(&output) {
        Ok(refusal) if refusal.code != 0 || !refusal.msg.is_empty() => {
            let cut = |text: String| excerpt(text.as_bytes(), WORDS_LIMIT);
            let Refusal { code, msg, details } = refusal;
            Err(PluginError::Refused(Refusal { code, msg: cut(msg), details: cut(details) }))
        }
        _ => {
            let words = if output.trim_ascii().is_empty() { errors } else { &output };
            Err(PluginError::Failed { code: status.code().unwrap_or_default(), words: excerpt(words, WORDS_LIMIT) })
        }
    }
}

#[expect(deprecated, reason = "its successor is unsafe for what may change its descriptor; an OwnedFd doesn't")]
fn watch(process: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(process, tokio::io::Interest::READABLE)
}

/// Gives it its input. One that doesn't read it all has no need of it.
async fn feed(to: Option<ChildStdin>, input: &[u8]) -> Result<(), Flooded> {
    if let Some(mut to) = to {
        let _ = to.write_all(input).await;
    }
    Ok(())
}

/// Keeps all of a stream.
async fn gather(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Flooded> {
    let Some(from) = from else { return Ok(()) };
    // A stream that breaks is one that ends: what is missing shows in the result.
    let _ = from.take(OUTPUT_LIMIT as u64 + 1).read_to_end(into).await;
    if into.len() > OUTPUT_LIMIT { Err(Flooded) } else { Ok(()) }
}

/// Keeps the beginning of a stream, and reads the rest so that its writer can go on.
async fn skim(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> Result<(), Flooded> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let kept = length.min(ERRORS_LIMIT - into.len());
        into.extend_from_slice(&buffer[..kept]);
    }
    Ok(())
}

/// The beginning of what a plugin said, on one line.
pub(super) fn excerpt(said: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(&said[..said.len().min(limit)]);
    text.trim().replace(|c: char| c.is_control(), " ")
}
