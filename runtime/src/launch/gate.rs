//! Where a created container waits for `start`: a socket in its state folder.
//!
//! Better than a FIFO, because `start` learns whether execve worked: the connection is close-on-exec, and carries the error.

#![expect(clippy::disallowed_methods, reason = "the state folder is the runtime's own")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as connect_to, listen, socket,
};
use nix::sys::stat::Mode;
use sys::Errno;

use super::handshake::{Channel, Kind};
use super::own_namespaces::Namespaces;

/// An address below the folder's descriptor: paths of sockets end at 108 bytes, and roots may be longer.
pub(super) fn address(path: &Path) -> Result<(OwnedFd, UnixAddr), Errno> {
    let (folder, name) = path.parent().zip(path.file_name()).ok_or(Errno::EINVAL)?;
    let folder = open(folder, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    let address = UnixAddr::new(&short)?;
    Ok((folder, address))
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
}

/// Makes the gate. The folder is 0700, so only its owner gets to it.
pub(crate) fn build(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = unix_socket()?;
    let (_folder, address) = address(path)?;
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(4)?)?;
    Ok(socket)
}

/// Goes to the gate; `ECONNREFUSED` when nobody waits behind it any more.
pub(crate) fn connect(path: &Path) -> Result<Channel, Errno> {
    let socket = unix_socket()?;
    let (_folder, address) = address(path)?;
    connect_to(socket.as_raw_fd(), &address)?;
    Ok(Channel::from_fd(socket))
}

/// Says Start; false when nobody heard it: another `start` was first, or the process is gone.
pub(crate) fn start(channel: &Channel) -> Result<bool, Errno> {
    if channel.send(Kind::Start, "").is_err() {
        return Ok(false);
    }
    Ok(channel.receive()?.is_some_and(|message| message.kind == Kind::Start))
}

/// Asks the process behind the gate for its namespaces.
pub(crate) fn namespaces(path: &Path) -> Result<Namespaces, Errno> {
    let channel = connect(path)?;
    channel.send(Kind::Namespaces, "")?;
    channel.receive()?.map_or(Ok(Namespaces::default()), Namespaces::take)
}

/// Waits behind the gate until somebody says Start. Those who only look whether we are here say nothing.
pub(crate) fn wait(gate: &OwnedFd, own: &Namespaces) -> Result<Channel, Errno> {
    loop {
        let visitor = match accept4(gate.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
            other => other?,
        };
        let visitor = Channel::from_fd(sys::fd::take_inherited(visitor)?);
        match visitor.receive() {
            // Others may have said it too: only this one is told that it was heard. If it is gone, nobody has started anything.
            Ok(Some(message)) if message.kind == Kind::Start && visitor.send(Kind::Start, "").is_ok() => {
                return Ok(visitor);
            }
            Ok(Some(message)) if message.kind == Kind::Namespaces => own.show(&visitor),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_come_and_go_until_one_starts() {
        let dir = tempfile::tempdir().expect("folder");
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("folder");
        let path = deep.join("gate");
        let gate = build(&path).expect("gate");
        let waiting = std::thread::spawn(move || {
            wait(&gate, &Namespaces::default()).map(|visitor| visitor.send(Kind::Failed, "no").is_ok())
        });
        drop(connect(&path).expect("a look"));
        assert!(!namespaces(&path).expect("an answer").are_known());
        let starter = connect(&path).expect("connect");
        let late = connect(&path).expect("connect");
        assert_eq!(start(&starter), Ok(true));
        assert_eq!(starter.receive().expect("answer").expect("one").text, "no");
        assert_eq!(waiting.join().expect("thread"), Ok(true));
        assert_eq!(start(&late), Ok(false));
        assert_eq!(connect(&path).err(), Some(Errno::ECONNREFUSED));
    }
}
