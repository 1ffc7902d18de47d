//! Runs hooks: state on stdin, exactly the environment given, a timeout that ends the hook and whatever it started. Until the
//! container is gone a hook is killed with the command that runs it, so that none works for a container that is deleted.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use sys::Errno;
use sys::process::Exit;
use sys::spawn::{Program, kill_group, spawn};

use super::descendants::Adopter;
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
        cause: Errno,
    },
    /// It said no.
    #[error("{kind} hook {path}: {end}{output}")]
    Failed { kind: &'static str, path: PathBuf, end: String, output: String },
    /// It took too long.
    #[error("{kind} hook {path}: no end within {seconds} s{output}")]
    Timeout { kind: &'static str, path: PathBuf, seconds: i64, output: String },
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

/// Kinds that run in the runtime's own namespaces and cgroup.
const OUTSIDE: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

/// How much of a hook's output goes into the error: its end, where the reason is.
const MAX_OUTPUT: u64 = 1024;

/// A file in memory rather than a pipe: nobody has to read or write at the right moment, and nothing is left waiting for a
/// grandchild that holds the other end.
fn memory(name: &str) -> Result<File, Errno> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from)
}

fn run_one(kind: &'static str, hook: &Hook, input: &[u8]) -> Result<(), HookError> {
    let failed = |cause: Errno| HookError::Run { kind, path: hook.path.clone(), cause };
    let io = |error: std::io::Error| failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw));
    let mut stdin = memory("hook-stdin").map_err(failed)?;
    stdin.write_all(input).and_then(|()| stdin.rewind()).map_err(io)?;
    let (stdout, stderr) = (memory("hook-stdout").map_err(failed)?, memory("hook-stderr").map_err(failed)?);
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| failed(Errno::EINVAL));
    let list = |list: &[String]| list.iter().map(|entry| text(entry.as_bytes())).collect::<Result<Vec<_>, _>>();
    let path = text(hook.path.as_os_str().as_bytes())?;
    let (mut args, env) = (list(&hook.args)?, list(hook.env.as_deref().unwrap_or_default())?);
    if args.is_empty() {
        args.push(path.clone());
    }
    let stdio = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let limit = hook.timeout.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(1)));
    // What hooks in the container start goes with the container.
    let adopter = limit.filter(|_| OUTSIDE.contains(&kind)).and_then(|_| Adopter::new());
    // Those of a container that is gone clean up; nobody would do it again.
    let dies_with_parent = kind != "poststop";
    let pid = spawn(&Program { path: &path, args: &args, env: &env, stdio, further: &[], dies_with_parent })
        .map_err(failed)?;
    let end = wait(pid, limit).map_err(failed)?;
    if let (None, Some(adopter)) = (end, &adopter) {
        adopter.end();
    }
    if end == Some(Exit::Code(0)) {
        return Ok(());
    }
    let output = said(stdout, "stdout") + &said(stderr, "stderr");
    let path = hook.path.clone();
    Err(match end {
        None => HookError::Timeout { kind, path, seconds: hook.timeout.unwrap_or_default(), output },
        Some(Exit::Code(code)) => HookError::Failed { kind, path, end: format!("exit status {code}"), output },
        Some(Exit::Signal(signal)) => HookError::Failed { kind, path, end: format!("signal {signal}"), output },
    })
}

/// Waits for the hook's end; when it takes too long all of it is killed, and there is none.
fn wait(pid: Pid, limit: Option<Duration>) -> Result<Option<Exit>, Errno> {
    let Some(limit) = limit else { return sys::process::wait(pid).map(Some) };
    let pidfd = sys::process::pidfd_open(pid)?;
    let deadline = Instant::now().checked_add(limit);
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        // Longer than poll(2) can wait: it is asked again.
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if left.is_zero() => {
                // ESRCH: it ended this very moment.
                let _ = kill_group(pid);
                sys::process::wait(pid)?;
                return Ok(None);
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return sys::process::wait(pid).map(Some),
            Err(error) => return Err(error),
        }
    }
}

/// The last of what a hook wrote, on one line.
fn said(mut file: File, name: &str) -> String {
    let mut bytes = Vec::new();
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let start = std::io::SeekFrom::Start(length.saturating_sub(MAX_OUTPUT));
    // What cannot be read back is no reason to hide that the hook failed.
    let _ = file.seek(start).and_then(|_| file.take(MAX_OUTPUT).read_to_end(&mut bytes));
    let text = String::from_utf8_lossy(&bytes).trim().replace('\n', "; ");
    if text.is_empty() { text } else { format!(", {name}: {text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(str::to_owned).to_vec();
        Hook { path: "/bin/sh".into(), args, env: Some(vec!["PATH=/bin:/usr/bin".to_owned()]), timeout }
    }

    #[test]
    fn the_end_of_a_hook_is_told_with_what_it_said() {
        run_one("prestart", &hook("read line; test \"$line\" = state", Some(60)), b"state\n").expect("ok");
        for (script, text) in [
            ("echo out; echo a >&2; echo b >&2; exit 3", "exit status 3, stdout: out, stderr: a; b"),
            ("kill -9 $$", "signal 9"),
        ] {
            let error = run_one("prestart", &hook(script, None), b"").expect_err(script).to_string();
            assert_eq!(error, format!("prestart hook /bin/sh: {text}"));
        }
        let missing = Hook { path: "/no/such".into(), ..Hook::default() };
        let error = run_one("poststop", &missing, b"").expect_err("error");
        assert_eq!(
            crate::launch::handshake::chain(&error),
            "run poststop hook /no/such: ENOENT: No such file or directory"
        );
    }

    #[test]
    fn a_timeout_ends_what_the_hook_started_too() {
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&writer));
        // The grandchild holds the pipe open, and nothing else does.
        let script = format!("exec 9>{path}; sleep 1000 & echo begun >&2; sleep 1000");
        let error = run_one("createRuntime", &hook(&script, Some(1)), b"").expect_err("error").to_string();
        assert_eq!(error, "createRuntime hook /bin/sh: no end within 1 s, stderr: begun");
        drop(writer);
        assert_eq!(reader.read(&mut [0]).expect("read"), 0, "all of it is gone");
    }
}
