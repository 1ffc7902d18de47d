//! Runs hooks: state on stdin, exactly the environment given, a timeout.

use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use crate::spec::Hook;
use crate::state::{State, Status};

/// A hook that did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HookError {
    /// It could not be run.
    #[error("run {kind} hook {path}")]
    Run {
        kind: &'static str,
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    /// It said no.
    #[error("{kind} hook {path}: {status}{output}")]
    Failed { kind: &'static str, path: PathBuf, status: std::process::ExitStatus, output: String },
    /// It took too long.
    #[error("{kind} hook {path}: no end within {seconds} s")]
    Timeout { kind: &'static str, path: PathBuf, seconds: i64 },
}

/// Runs hooks in order until one fails.
pub(crate) fn run(
    kind: &'static str,
    hooks: &[Hook],
    state: &State,
    pid: i32,
    status: Status,
) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let mut report = state.report(status);
    report.pid = pid;
    // A report has nothing in it that JSON cannot hold.
    let input = serde_json::to_vec(&report).unwrap_or_default();
    hooks.iter().try_for_each(|hook| run_one(kind, hook, &input))
}

/// How much of a hook's stderr goes into the error.
const MAX_OUTPUT: u64 = 1024;

fn run_one(kind: &'static str, hook: &Hook, input: &[u8]) -> Result<(), HookError> {
    let path = &hook.path;
    let failed = |cause: std::io::Error| HookError::Run { kind, path: path.clone(), cause };
    let memory = |name: &str| nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    // Files in memory rather than pipes: nobody has to read or write at the right moment.
    let mut stdin = std::fs::File::from(memory("hook-stdin").map_err(|errno| failed(errno.into()))?);
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(failed)?;
    let mut stderr = std::fs::File::from(memory("hook-stderr").map_err(|errno| failed(errno.into()))?);
    let mut command = Command::new(path);
    command.env_clear();
    if let Some((name, rest)) = hook.args.split_first() {
        command.arg0(name).args(rest);
    }
    for entry in hook.env.iter().flatten() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if !name.is_empty() {
            command.env(name, value);
        }
    }
    command.stdin(stdin).stdout(Stdio::null()).stderr(stderr.try_clone().map_err(failed)?);
    let mut child = command.spawn().map_err(failed)?;
    if let Some(seconds) = hook.timeout {
        let pidfd = sys::process::pidfd_open(Pid::from_raw(child.id() as i32)).map_err(|errno| failed(errno.into()))?;
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, timeout).map_err(|errno| failed(errno.into()))? == 0 {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            return Err(HookError::Timeout { kind, path: path.clone(), seconds });
        }
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut output = Vec::new();
    stderr.rewind().and_then(|()| (&mut stderr).take(MAX_OUTPUT).read_to_end(&mut output)).map_err(failed)?;
    let output = String::from_utf8_lossy(&output).trim().replace('\n', "; ");
    let output = if output.is_empty() { output } else { format!(", stderr: {output}") };
    Err(HookError::Failed { kind, path: path.clone(), status, output })
}
