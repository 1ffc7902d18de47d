//! Checkpoints are criu's work; this starts it and talks to it.
//!
//! ```text
//! we: request ->   criu: <- notify (a step is reached), we: -> notified, ...   criu: <- response, ends
//! ```
//! `criu swrk FD` serves one client over a socket. Its command line could do most of it, but only this way says which process was
//! restored, hands over the master of a terminal, and waits while hooks run.

#![expect(clippy::disallowed_methods, reason = "criu and its logs are the host's")]

pub(crate) mod network;
pub(crate) mod outside;
pub(crate) mod rpc;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use sys::Errno;
use sys::process::{Exit, Fork};

use rpc::{Malformed, Message, Response, kind};

/// Why there is no checkpoint, or nothing restored from one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CriuError {
    /// It is not installed.
    #[error("criu is not installed (no such program in $PATH): install the package criu")]
    NotInstalled,
    /// It could not be started, or spoken to.
    #[error("{0}")]
    System(&'static str, #[source] Errno),
    /// It said something odd.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It ended in the middle.
    #[error("criu ended without an answer{0}")]
    Silent(String),
    /// It said no.
    #[error("criu could not {action}{why}")]
    Failed { action: &'static str, why: String },
    /// It, or the kernel, is too old for what is asked.
    #[error("{feature} needs {needs}")]
    Missing { feature: &'static str, needs: &'static str },
    /// A namespace, mount or file of the container could not be looked at.
    #[error("look at {what} of the container")]
    Look {
        what: String,
        #[source]
        cause: Errno,
    },
    /// The network of what is restored.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
}

/// A step that criu has come to; it waits for the answer.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) pid: i32,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A criu that waits for its request.
#[derive(Debug)]
pub(crate) struct Criu {
    socket: Option<OwnedFd>,
    pid: Pid,
    ended: bool,
}

/// Longest message; criu's own limit is less.
const MAX_MESSAGE: usize = 64 << 10;

impl Criu {
    /// Starts it. `inherited` keep their numbers there; `prepare` runs in the new process before.
    pub(crate) fn start(
        inherited: &[BorrowedFd<'_>],
        prepare: impl FnOnce() -> Result<(), String>,
    ) -> Result<Self, CriuError> {
        let system = |stage| move |errno| CriuError::System(stage, errno);
        let program = find().ok_or(CriuError::NotInstalled)?;
        let (ours, theirs) = sys::fd::message_pair().map_err(system("make a pair of sockets"))?;
        let pid = match sys::process::fork().map_err(system("fork for criu"))? {
            Fork::Parent(pid) => pid,
            Fork::Child => {
                drop(ours);
                let text = prepare().err().unwrap_or_else(|| become_criu(&program, &theirs, inherited));
                let _ = sys::fd::send_fds(&theirs, Message::failure(&text).bytes(), &[]);
                sys::process::exit_now(1)
            }
        };
        drop(theirs);
        let mut criu = Self { socket: None, pid, ended: false };
        let mut buffer = vec![0; MAX_MESSAGE];
        let (count, fds) = sys::fd::recv_fds(&ours, &mut buffer).map_err(system("talk to criu"))?;
        criu.socket = fds.into_iter().next();
        match criu.socket {
            Some(_) => Ok(criu),
            None if count == 0 => Err(CriuError::Silent(criu.how_it_ended())),
            None => {
                let response = Response::parse(&buffer[..count])?;
                Err(CriuError::Failed { action: "be started", why: format!(": {}", response.text) })
            }
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a request, goes along with all steps, and gives the answer. A step that is refused makes criu undo what it did.
    pub(crate) fn ask(
        &mut self,
        request: &Message,
        on_step: &mut dyn FnMut(Step) -> bool,
    ) -> Result<Response, CriuError> {
        let socket = self.socket.as_ref().ok_or(CriuError::Silent(String::new()))?;
        let system = |errno| CriuError::System("talk to criu", errno);
        let send = |message: &Message| match sys::fd::send_fds(socket, message.bytes(), &[]) {
            // Whoever is gone has said why, or will be found to have said nothing.
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(system(errno)),
        };
        send(request)?;
        let mut buffer = vec![0; MAX_MESSAGE];
        loop {
            let (count, fds) = match sys::fd::recv_fds(socket, &mut buffer) {
                Err(Errno::ECONNRESET) => continue,
                other => other.map_err(system)?,
            };
            if count == 0 {
                return Err(CriuError::Silent(self.how_it_ended()));
            }
            let response = Response::parse(&buffer[..count])?;
            match response.notify {
                Some((name, pid)) if response.kind == kind::NOTIFY => {
                    send(&Message::notified(on_step(Step { name, pid, fds })))?;
                }
                _ => return Ok(response),
            }
        }
    }

    fn how_it_ended(&mut self) -> String {
        self.socket = None;
        self.ended = true;
        match sys::process::wait(self.pid) {
            Ok(Exit::Signal(signal)) => format!(", killed by signal {signal}"),
            Ok(exit) => format!(", with status {}", exit.status()),
            Err(_) => String::new(),
        }
    }
}

impl Drop for Criu {
    fn drop(&mut self) {
        // The closed socket ends it, even in the middle of a series of pre-dumps.
        self.socket = None;
        if !self.ended {
            let _ = sys::process::wait(self.pid);
        }
    }
}

/// The program, as a shell would find it.
fn find() -> Option<PathBuf> {
    const DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT.into());
    let executable =
        |file: &PathBuf| file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok();
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("criu"))
        .find(executable)
}

/// Comes back only with a reason why it cannot.
///
/// criu finds descriptors of a request in the process that made its socket. That is this one, which becomes criu, so that what they
/// lead to is in the mounts that criu sees.
fn become_criu(program: &Path, client: &OwnedFd, inherited: &[BorrowedFd<'_>]) -> String {
    let sent = sys::fd::message_pair()
        .and_then(|(theirs, socket)| sys::fd::send_fds(client, b"s", &[theirs.as_fd()]).map(|_| socket));
    let socket = match sent {
        Ok(socket) => socket,
        Err(errno) => return format!("make a socket for criu: {errno}"),
    };
    let number = socket.as_raw_fd();
    let numbers = inherited.iter().map(AsRawFd::as_raw_fd).chain([number]);
    for number in numbers {
        if let Err(errno) = sys::fd::set_cloexec(number, false) {
            return format!("pass descriptors to criu: {errno}");
        }
    }
    if let Err(errno) = sys::process::reset_signals() {
        return format!("reset signals for criu: {errno}");
    }
    let text = |bytes: &[u8]| CString::new(bytes).ok();
    let arguments = ["criu".to_owned(), "swrk".to_owned(), number.to_string()];
    let arguments: Vec<CString> = arguments.iter().filter_map(|argument| text(argument.as_bytes())).collect();
    let entry = |(mut key, value): (std::ffi::OsString, std::ffi::OsString)| {
        key.push("=");
        key.push(value);
        text(key.as_bytes())
    };
    let environment: Vec<CString> = std::env::vars_os().filter_map(entry).collect();
    let errno = sys::process::execve(program, &arguments, &environment);
    let text = format!("execute {}: {errno}", program.display());
    let _ = sys::fd::send_fds(&socket, Message::failure(&text).bytes(), &[]);
    sys::process::exit_now(1)
}

/// What a version of criu can do, when it matters.
pub(crate) fn version() -> Result<u64, CriuError> {
    let mut criu = Criu::start(&[], || Ok(()))?;
    let response = criu.ask(&Message::request(kind::VERSION, None), &mut |_| true)?;
    check(&response, "say its version", None)?;
    Ok(response.version)
}

/// Refuses what criu or the kernel cannot do; criu itself would only find out in the middle.
pub(crate) fn check_features(mem_track: bool, lazy_pages: bool) -> Result<(), CriuError> {
    if !mem_track && !lazy_pages {
        return Ok(());
    }
    let mut criu = Criu::start(&[], || Ok(()))?;
    let response = criu.ask(&Message::features(mem_track, lazy_pages), &mut |_| true)?;
    check(&response, "say what it can do", None)?;
    if mem_track && !response.mem_track {
        let needs = "a kernel that tracks changes of memory (CONFIG_MEM_SOFT_DIRTY)";
        return Err(CriuError::Missing { feature: "--pre-dump", needs });
    }
    if lazy_pages && !response.lazy_pages {
        let needs = "a kernel and a criu with userfaultfd for other processes";
        return Err(CriuError::Missing { feature: "--lazy-pages", needs });
    }
    Ok(())
}

/// Makes an error of a response that says no, with what criu's log has to say about it.
pub(crate) fn check(response: &Response, action: &'static str, log: Option<&Path>) -> Result<(), CriuError> {
    if response.success {
        return Ok(());
    }
    let mut why = String::new();
    if response.errno != 0 {
        why.push_str(&format!(": {}", Errno::from_raw(response.errno)));
    }
    let quoted = log.and_then(|log| std::fs::read(log).ok()).map(|log| reasons(&String::from_utf8_lossy(&log)));
    let quoted = quoted.unwrap_or_default();
    // criu's own message is the first error of the log.
    let text = if quoted.is_empty() { response.text.trim() } else { &quoted };
    if !text.is_empty() {
        why.push_str(&format!(": {text}"));
    }
    if let Some(log) = log.filter(|log| log.exists()) {
        why.push_str(&format!(" (see {})", log.display()));
    }
    Err(CriuError::Failed { action, why })
}

/// The last errors of a log that say more than that it failed.
fn reasons(log: &str) -> String {
    let lines = log.lines().filter_map(|line| line.split_once("Error ")).map(|(_, text)| text.trim());
    // A limit that could not be raised is no reason for anything.
    let telling = |text: &&str| !text.ends_with("FAILED.") && !text.contains("RLIMIT_NOFILE");
    let all: Vec<&str> = lines.filter(telling).collect();
    all[all.len().saturating_sub(3)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_quoted_where_it_tells_something() {
        let log = "(00.1) Dumping\n(00.2) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
                   (00.3) Error (criu/mount.c:9): mnt: no root\n(00.4) Error (criu/cr-dump.c:2): Dumping FAILED.\n";
        assert_eq!(reasons(log), "(criu/mount.c:9): mnt: no root");
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("dump.log");
        std::fs::write(&file, log).expect("write");
        let response = Response { errno: 52, ..Response::default() };
        let text = check(&response, "dump", Some(&file)).expect_err("failed").to_string();
        assert!(text.starts_with("criu could not dump: ") && text.contains("mnt: no root (see "), "{text}");
        assert!(check(&Response { success: true, ..Response::default() }, "dump", None).is_ok());
    }
}
