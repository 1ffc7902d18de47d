//! What parent and child say to each other over a pair of sockets that keep message boundaries: a byte for the kind, then text.
//!
//! ```text
//! child: [NeedMaps ->  <- Mapped]  [NetDevices(fd) ->  <- NetDone]  .. (namespaces, mounts) ..  <- Cgroup(fds)  [Hooks ->  <- HooksDone]  Ready ->
//! run:   <- Start, [Listener ->] then the socket closes by execve, or Failed ->
//! ```
//! The child may say Warning at any time, and Failed in place of anything else. Its end of the socket is close-on-exec: that it
//! closes after Ready says that the container's own program runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::Errno;

/// The kinds of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Child: my user namespace needs id maps, or my time namespace its offsets.
    NeedMaps = b'u' as isize,
    /// Parent: written.
    Mapped = b'm' as isize,
    /// Child: this socket is in my network namespace, bring the devices.
    NetDevices = b'n' as isize,
    /// Parent: they are there.
    NetDone = b'e' as isize,
    /// Parent: these are the `tasks` files of your cgroups.
    Cgroup = b'g' as isize,
    /// Child: namespaces and mounts are there, run the createRuntime hooks.
    Hooks = b'h' as isize,
    /// Parent: they have run.
    HooksDone = b'd' as isize,
    /// Helper: the pid of the container's process, in decimal.
    Pid = b'p' as isize,
    /// Child: something to be logged.
    Warning = b'w' as isize,
    /// Child: it cannot be done, and why.
    Failed = b'f' as isize,
    /// Child: only execve is left.
    Ready = b'r' as isize,
    /// Child: this is the listener of my seccomp filter.
    Listener = b'l' as isize,
    /// Parent, or `start`: go.
    Start = b's' as isize,
    /// `exec`: which are your namespaces? Child: these.
    Namespaces = b'a' as isize,
}

const ALL: [Kind; 14] = [
    Kind::NeedMaps,
    Kind::Mapped,
    Kind::NetDevices,
    Kind::NetDone,
    Kind::Cgroup,
    Kind::Hooks,
    Kind::HooksDone,
    Kind::Pid,
    Kind::Warning,
    Kind::Failed,
    Kind::Ready,
    Kind::Listener,
    Kind::Start,
    Kind::Namespaces,
];

/// One message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Longest text that is sent; errors beyond that are cut.
const MAX_TEXT: usize = 4000;

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(crate) fn pair() -> Result<(Self, Self), Errno> {
        let (here, there) = sys::fd::message_pair()?;
        Ok((Self(here), Self(there)))
    }

    /// Takes over a socket.
    pub(crate) fn from_fd(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Says something.
    pub(crate) fn send(&self, kind: Kind, text: &str) -> Result<(), Errno> {
        self.send_with(kind, text, &[])
    }

    /// Says something and hands over descriptors.
    pub(crate) fn send_with(&self, kind: Kind, text: &str, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.push(kind as u8);
        bytes.extend_from_slice(&text.as_bytes()[..text.len().min(MAX_TEXT)]);
        sys::fd::send_fds(&self.0, &bytes, fds).map(drop)
    }

    /// Says something without a text, with a descriptor, and without taking memory: its system calls may be filtered.
    pub(crate) fn send_bare(&self, kind: Kind, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        sys::fd::send_fd(&self.0, kind as u8, fd)
    }

    /// Listens for the next message; `None` when the other end is closed.
    pub(crate) fn receive(&self) -> Result<Option<Message>, Errno> {
        let mut buffer = [0; MAX_TEXT + 1];
        let (count, fds) = match sys::fd::recv_fds(&self.0, &mut buffer) {
            // The other end went without having read what we said. That is told once; what it said itself comes after.
            Err(Errno::ECONNRESET) => match sys::fd::recv_fds(&self.0, &mut buffer) {
                Err(Errno::ECONNRESET) => return Ok(None),
                other => other?,
            },
            other => other?,
        };
        let Some((kind, text)) = buffer[..count].split_first() else { return Ok(None) };
        let kind = ALL.into_iter().find(|known| *known as u8 == *kind).ok_or(Errno::EBADMSG)?;
        Ok(Some(Message { kind, text: String::from_utf8_lossy(text).into_owned(), fds }))
    }

    /// Listens for one kind of message. `EPIPE` when the other end is gone: then there is nobody left to build for.
    pub(crate) fn expect(&self, kind: Kind) -> Result<Message, Errno> {
        let message = self.receive()?.ok_or(Errno::EPIPE)?;
        if message.kind == kind { Ok(message) } else { Err(Errno::EBADMSG) }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An error and its causes on one line, as users read it. What is quoted may be very long: then the middle is left out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    const MAX: usize = 2000;
    if text.len() > MAX {
        let (start, end) = (text.floor_char_boundary(MAX / 2), text.ceil_char_boundary(text.len() - MAX / 4));
        text = format!("{} ... {}", &text[..start], &text[end..]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole() {
        let (here, there) = Channel::pair().expect("pair");
        here.send(Kind::Warning, "careful").expect("send");
        here.send(Kind::Failed, &"x".repeat(10_000)).expect("send");
        drop(here);
        let first = there.receive().expect("receive").expect("a message");
        assert_eq!((first.kind, first.text.as_str()), (Kind::Warning, "careful"));
        assert_eq!(there.receive().expect("receive").expect("a message").text.len(), MAX_TEXT);
        assert!(there.receive().expect("receive").is_none());
    }

    #[test]
    fn last_words_are_heard_from_one_who_did_not_listen() {
        let (here, there) = Channel::pair().expect("pair");
        here.send(Kind::Cgroup, "unread").expect("send");
        there.send(Kind::Failed, "because").expect("send");
        drop(there);
        assert_eq!(here.receive().expect("receive").expect("a message").text, "because");
        assert!(here.receive().expect("receive").is_none());
    }

    #[test]
    fn the_unexpected_is_an_error() {
        let (here, there) = Channel::pair().expect("pair");
        here.send(Kind::Start, "").expect("send");
        assert_eq!(there.expect(Kind::Mapped).err(), Some(Errno::EBADMSG));
        drop(here);
        assert_eq!(there.expect(Kind::Mapped).err(), Some(Errno::EPIPE));
    }
}
