//! The other end of SCMP_ACT_NOTIFY: who answers the calls that a filter leaves to somebody outside.
//!
//! ```text
//! create: probe listenerPath            child (after start): load filter, Listener(descriptor) -> whoever let it go
//! start, run, exec: <- Listener, connect to listenerPath, send container process state and descriptor, close
//! ```
//! The filter is loaded after the wait for `start`, so it is `start` that hands the descriptor over: the agent gets it when there
//! will be calls to answer, and no connection stays open in between. That the agent is there at all is found out by `create`,
//! before anything is made.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
use serde::Serialize;
use sys::Errno;

use super::gate;
use super::handshake::Message;
use crate::confine::seccomp::Filter;
use crate::spec::{Spec, SpecError, VERSION, load_json};
use crate::state::Report;

/// Why the agent does not get its descriptor.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenerError {
    /// Nobody there.
    #[error("connect to linux.seccomp.listenerPath {path}")]
    Connect {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A socket of another kind.
    #[error("linux.seccomp.listenerPath {0} is not a stream socket")]
    NotStream(PathBuf),
    /// The agent hung up.
    #[error("send the seccomp listener to {path}")]
    Send {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// The copy of config.json.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The process sent something else.
    #[error("the process sent no seccomp listener")]
    NoDescriptor,
}

/// "Container process state" of the specification.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'static str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "str::is_empty")]
    metadata: &'a str,
    state: Report,
}

/// Makes sure that a filter can be loaded and its agent is there, before anything is made.
pub(crate) fn check(filter: Option<&mut Filter>, mut warn: impl FnMut(String)) -> Result<(), ListenerError> {
    let Some(filter) = filter else { return Ok(()) };
    if let Some(flag) = filter.drop_missing_flag() {
        warn(format!("linux.seccomp.flags: {flag} is left out, for this kernel does not know it"));
    }
    filter.listener.as_ref().map_or(Ok(()), |listener| probe(&listener.path))
}

/// Looks whether somebody listens, without bothering them: for a socket of another kind the kernel finds the listener and
/// then says that the kinds do not match.
fn probe(path: &Path) -> Result<(), ListenerError> {
    let knock = || {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let (_folder, address) = gate::address(path)?;
        connect(socket.as_raw_fd(), &address)
    };
    match knock() {
        Err(Errno::EPROTOTYPE) => Ok(()),
        Ok(()) => Err(ListenerError::NotStream(path.to_owned())),
        Err(cause) => Err(ListenerError::Connect { path: path.to_owned(), cause }),
    }
}

/// Sends on what a process has sent: the descriptor and who it belongs to. One connection for one descriptor, closed at once, as
/// the specification wants it. `config` is the container's config.json.
pub(crate) fn forward(message: &Message, config: &Path, state: Report, pid: i32) -> Result<(), ListenerError> {
    let descriptor = message.fds.first().ok_or(ListenerError::NoDescriptor)?;
    let spec: Spec = load_json(config)?;
    let section = spec.linux.and_then(|linux| linux.seccomp).unwrap_or_default();
    let path = &section.listener_path;
    let text = serde_json::to_vec(&ProcessState {
        oci_version: VERSION,
        fds: ["seccompFd"],
        pid,
        metadata: &section.listener_metadata,
        state,
    });
    let text = text.unwrap_or_default(); // numbers and strings: it cannot fail
    let agent = dial(path).map_err(|cause| ListenerError::Connect { path: path.clone(), cause })?;
    let send = || {
        let sent = sys::fd::send_fds(&agent, &text, &[descriptor.as_fd()])?;
        // What did not fit goes after it, without the descriptor.
        (&agent).write_all(&text[sent..]).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    send().map_err(|cause| ListenerError::Send { path: path.clone(), cause })
}

fn dial(path: &Path) -> Result<UnixStream, Errno> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let (_folder, address) = gate::address(path)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_finds_listeners_and_leaves_them_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("x".repeat(90)); // longer than an address
        let said = |path: &Path| probe(path).expect_err("nobody").to_string();
        assert!(said(&path).starts_with("connect to linux.seccomp.listenerPath /"));
        std::fs::write(&path, "").expect("a file");
        assert!(said(&path).starts_with("connect"));
        std::fs::remove_file(&path).expect("remove");
        let (_folder, address) = gate::address(&path).expect("address");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("socket");
        nix::sys::socket::bind(listener.as_raw_fd(), &address).expect("bind");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).expect("one")).expect("listen");
        probe(&path).expect("somebody listens");
        assert_eq!(nix::sys::socket::accept(listener.as_raw_fd()), Err(Errno::EAGAIN), "nobody came");
        drop(listener);
        assert!(said(&path).starts_with("connect"), "a socket that nobody listens on any more");
        std::fs::remove_file(&path).expect("remove");
        let (_folder, address) = gate::address(&path).expect("address");
        let other = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None).expect("socket");
        nix::sys::socket::bind(other.as_raw_fd(), &address).expect("bind");
        assert!(said(&path).ends_with("is not a stream socket"));
    }
}
