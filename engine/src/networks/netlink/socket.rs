//! A netlink socket: sends a batch, collects every answer.
//!
//! The kernel works through a netlink message inside the `sendto` that brings it, so when the call returns all answers
//! lie in the receive buffer already. Reading until it is empty therefore needs no timeout, no poll and no thread.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, sendto,
    setsockopt, socket, sockopt,
};

use super::message::{self, Batch, HEADER};

/// The kernel answers dumps in pieces of at most 32 KiB.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Room for a batch of many published ports (a range of ten thousand is about 1 MiB). Only accounted while it is used.
const SEND_BUFFER: usize = 8 * 1024 * 1024;
/// `NLMSGERR_ATTR_MSG`: the text of an error, in an extended acknowledgement.
const ERROR_TEXT: u16 = 1;
/// How often a dump is taken again that changed while it was read.
const DUMP_ATTEMPTS: usize = 8;

/// A request that the kernel refused, or that didn't get there.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket itself failed.
    #[error("{step} on a netlink socket")]
    Socket {
        /// What was tried: open, send, receive.
        step: &'static str,
        /// What the kernel said.
        #[source]
        cause: Errno,
    },
    /// The kernel refused a step.
    #[error("{step}")]
    Refused {
        /// The step, as a verb and an object.
        step: String,
        /// What the kernel said.
        #[source]
        cause: Refusal,
    },
    /// The kernel didn't answer a step; it always should.
    #[error("{step}: the kernel gave no answer")]
    Unanswered {
        /// The step, as a verb and an object.
        step: String,
    },
}

impl NetlinkError {
    /// The errno behind it, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Socket { cause, .. } => Some(*cause),
            Self::Refused { cause, .. } => Some(cause.errno),
            Self::Unanswered { .. } => None,
        }
    }
}

/// Why the kernel refused: an errno, and since Linux 4.12 often a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The errno.
    pub errno: Errno,
    /// The kernel's sentence about it, if it gave one.
    pub text: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{} ({text})", self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for Refusal {}

/// A message with data that came in answer to a step.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The message after its header.
    pub(crate) payload: Vec<u8>,
}

/// Which part of the kernel a socket talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Links, addresses, routes.
    Route,
    /// nftables and connection tracking.
    Netfilter,
}

/// A netlink socket. It stays in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    next_sequence: u32,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub(crate) fn open(family: Family) -> Result<Self, NetlinkError> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|cause| NetlinkError::Socket { step: "open", cause })?;
        // Both only make errors more readable; an old kernel without them works.
        let _ = sys::netlink::extend_acknowledgements(fd.as_fd());
        if family == Family::Netfilter {
            let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
            let _ = setsockopt(&fd, sockopt::RcvBufForce, &SEND_BUFFER);
        }
        Ok(Self { fd, next_sequence: 1 })
    }

    /// The number by which the kernel knows the socket: what it tells others of a change says who made it.
    pub(crate) fn port(&self) -> Result<u32, NetlinkError> {
        let address = getsockname::<NetlinkAddr>(self.fd.as_raw_fd());
        address.map(|address| address.pid()).map_err(|cause| NetlinkError::Socket { step: "name", cause })
    }

    /// Sends a batch and returns the data answers in order, or the first error that isn't tolerated.
    ///
    /// rtnetlink carries out each message for itself, so later ones may have taken effect although an earlier one
    /// failed; nftables takes all or nothing.
    pub(crate) fn run(&mut self, batch: &mut Batch) -> Result<Vec<Answer>, NetlinkError> {
        let mut answers = Vec::new();
        self.visit(batch, |payload| answers.push(Answer { payload: payload.to_vec() }))?;
        Ok(answers)
    }

    /// Sends a request for a list, again if the list changed while it was read.
    pub(crate) fn dump(&mut self, batch: &mut Batch) -> Result<Vec<Answer>, NetlinkError> {
        let mut answers = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            answers.clear();
            let read = self.visit(batch, |payload| answers.push(Answer { payload: payload.to_vec() }))?;
            if read == Read::Consistent {
                break;
            }
        }
        Ok(answers)
    }

    /// Sends a batch and shows each data answer to `visit`, for lists that may be long.
    pub(crate) fn visit(&mut self, batch: &mut Batch, visit: impl FnMut(&[u8])) -> Result<Read, NetlinkError> {
        if batch.is_empty() {
            return Ok(Read::Consistent);
        }
        let first = self.next_sequence;
        self.next_sequence = first.wrapping_add(batch.steps().len() as u32);
        let bytes = batch.number(first);
        let sent = sendto(self.fd.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty());
        sent.map_err(|cause| NetlinkError::Socket { step: "send", cause })?;
        self.collect(Outcome::new(batch, first, visit))
    }

    fn collect(&self, mut outcome: Outcome<'_, impl FnMut(&[u8])>) -> Result<Read, NetlinkError> {
        // Only while it is needed: there are two sockets for each stack, and seldom something to say.
        let mut buffer = vec![0; RECEIVE_BUFFER];
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::EAGAIN) => break,
                Ok(length) => message::messages(&buffer[..length]).for_each(|received| outcome.take(&received)),
                Err(Errno::EINTR) => {}
                Err(cause) => return Err(NetlinkError::Socket { step: "receive", cause }),
            }
        }
        outcome.finish()
    }
}

/// A socket that hears of changes that others make.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
}

/// A change.
#[derive(Debug)]
pub(crate) struct Change {
    /// The type of the message.
    pub(crate) kind: u16,
    /// The socket by which it was made; 0 for the kernel itself.
    pub(crate) port: u32,
    /// The message after its header.
    pub(crate) payload: Vec<u8>,
}

impl Listener {
    /// Opens a socket in the network namespace of the calling thread; `groups` has a bit for each group, the first for group 1.
    pub(crate) fn open(family: Family, groups: u32) -> Result<Self, NetlinkError> {
        let fd = Socket::open(family)?.fd;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .map_err(|cause| NetlinkError::Socket { step: "listen", cause })?;
        Ok(Self { fd })
    }

    /// What has been heard since; none when it was more than the socket could hold.
    pub(crate) fn changes(&self) -> Result<Option<Vec<Change>>, NetlinkError> {
        let mut buffer = vec![0; RECEIVE_BUFFER];
        let mut changes = Vec::new();
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(Errno::EAGAIN) => return Ok(Some(changes)),
                Ok(length) => changes.extend(message::messages(&buffer[..length]).map(|received| Change {
                    kind: received.kind,
                    port: received.port,
                    payload: received.payload.to_vec(),
                })),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Ok(None),
                Err(cause) => return Err(NetlinkError::Socket { step: "receive", cause }),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a list was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Read {
    /// As it was at one moment.
    Consistent,
    /// While it was changed: something may be missing, or there twice.
    Interrupted,
}

/// What has been heard about a batch so far.
struct Outcome<'a, V> {
    batch: &'a Batch,
    first: u32,
    visit: V,
    answered: Vec<bool>,
    failure: Option<(usize, Refusal)>,
    interrupted: bool,
}

impl<'a, V: FnMut(&[u8])> Outcome<'a, V> {
    fn new(batch: &'a Batch, first: u32, visit: V) -> Self {
        let answered = vec![false; batch.steps().len()];
        Self { batch, first, visit, answered, failure: None, interrupted: false }
    }

    fn take(&mut self, received: &message::Received<'_>) {
        let position = received.sequence.wrapping_sub(self.first) as usize;
        // An answer to something that an earlier, failed exchange left behind.
        let Some(step) = self.batch.steps().get(position) else { return };
        self.interrupted |= i32::from(received.flags) & libc::NLM_F_DUMP_INTR != 0;
        match i32::from(received.kind) {
            libc::NLMSG_ERROR => {
                self.answered[position] = true;
                let refusal = refusal(received);
                if let Some(refusal) = refusal.filter(|refusal| !step.tolerates(refusal.errno))
                    && self.failure.as_ref().is_none_or(|(earlier, _)| position < *earlier)
                {
                    self.failure = Some((position, refusal));
                }
            }
            libc::NLMSG_DONE => self.answered[position] = true,
            _ => (self.visit)(received.payload),
        }
    }

    fn finish(self) -> Result<Read, NetlinkError> {
        let step = |position: usize| self.batch.steps()[position].what().to_owned();
        if let Some((position, cause)) = self.failure {
            return Err(NetlinkError::Refused { step: step(position), cause });
        }
        let silent = |position: &usize| self.batch.steps()[*position].is_acknowledged() && !self.answered[*position];
        match (0..self.answered.len()).find(silent) {
            Some(position) => Err(NetlinkError::Unanswered { step: step(position) }),
            None if self.interrupted => Ok(Read::Interrupted),
            None => Ok(Read::Consistent),
        }
    }
}

/// Reads an error message (`struct nlmsgerr`); `None` for an acknowledgement, which is error 0.
fn refusal(received: &message::Received<'_>) -> Option<Refusal> {
    let code = message::u32_at(received.payload, 0)? as i32;
    if code == 0 {
        return None;
    }
    let flags = i32::from(received.flags);
    let text = (flags & libc::NLM_F_ACK_TLVS != 0).then(|| {
        let request = message::u32_at(received.payload, 4).unwrap_or(0) as usize;
        let repeated = if flags & libc::NLM_F_CAPPED != 0 { HEADER } else { request.max(HEADER) };
        message::attribute(received.payload, 4 + repeated, ERROR_TEXT).map(message::text)
    });
    Some(Refusal { errno: Errno::from_raw(code.saturating_neg()), text: text.flatten() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_step_and_the_errno() {
        let mut socket = Socket::open(Family::Route).expect("socket");
        let mut batch = Batch::new();
        // RTM_DELLINK of a link that can't exist: its name holds a slash.
        batch.push("delete link a/b", libc::RTM_DELLINK, libc::NLM_F_ACK, &[0; 16], |a| {
            a.text(libc::IFLA_IFNAME, "a/b");
        });
        let error = socket.run(&mut batch).expect_err("no such link");
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        assert_eq!(error.to_string(), "delete link a/b");

        // The next exchange isn't confused by the former.
        batch.tolerating(&[Errno::ENODEV]);
        socket.run(&mut batch).expect("tolerated");
    }
}
