//! As much of rtnetlink(7) as moving a device takes: requests, answers, attributes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use sys::Errno;

/// A request that the kernel refused, with its words if it had some.
#[derive(Debug, thiserror::Error)]
#[error("{}", text.as_ref().map_or_else(|| errno.to_string(), |text| format!("{errno}: {text}")))]
pub(crate) struct Refused {
    pub(crate) errno: Errno,
    pub(crate) text: Option<String>,
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, text: None }
    }
}

/// Opens a socket; it belongs to the network namespace of its maker for good.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
}

/// A conversation with the kernel.
#[derive(Debug)]
pub(crate) struct Conversation {
    socket: OwnedFd,
    sequence: u32,
}

const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 0x01;
const ACK: u16 = 0x04;
/// All objects rather than one.
pub(crate) const DUMP: u16 = 0x300;

impl Conversation {
    /// Talks over a socket.
    pub(crate) fn new(socket: OwnedFd) -> Self {
        // Without it there are no words with errors, only numbers.
        let _ = sys::netlink::extend_acknowledgements(socket.as_fd());
        Self { socket, sequence: 0 }
    }

    /// Asks, and gives the bodies of all answers of the kind `answer`.
    pub(crate) fn ask(&mut self, kind: u16, flags: u16, body: &[u8], answer: u16) -> Result<Vec<Vec<u8>>, Refused> {
        self.sequence += 1;
        let flags = REQUEST | if flags & DUMP == DUMP { flags } else { flags | ACK };
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend(0_u32.to_ne_bytes());
        request.extend(body);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let mut rest = &buffer[..count];
            while let Some((message, next)) = split(rest) {
                rest = next;
                if message.sequence != self.sequence {
                    continue; // the tail of an answer that was given up
                }
                match message.kind {
                    ERROR => return verdict(&message).map(|()| answers),
                    DONE => return Ok(answers),
                    kind if kind == answer => answers.push(message.body.to_vec()),
                    _ => {}
                }
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    let message = Message { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, body };
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An acknowledgement is an error of number 0. With it come attributes, one of which is a text.
fn verdict(message: &Message<'_>) -> Result<(), Refused> {
    const CAPPED: u16 = 0x100;
    const TLVS: u16 = 0x200;
    const TEXT: u16 = 1;
    let number = u32_at(message.body, 0).ok_or(Errno::EBADMSG)? as i32;
    if number == 0 {
        return Ok(());
    }
    // Behind the number is the header of the request, and the rest of it unless that was cut off.
    let request = if message.flags & CAPPED != 0 { HEADER } else { u32_at(message.body, 4).unwrap_or(0) as usize };
    let more = message.body.get(4 + request.next_multiple_of(4)..).filter(|_| message.flags & TLVS != 0);
    let text = more.and_then(|more| attributes(more).find(|(kind, _)| *kind == TEXT));
    let text = text.map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Err(Refused { errno: Errno::from_raw(-number), text })
}

/// Appends an attribute.
pub(crate) fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((4 + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes in a message.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = u16_at(rest, 0)? as usize;
        let found = (u16_at(rest, 2)? & TYPE_MASK, rest.get(4..length)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_went() {
        let mut message = Vec::new();
        push(&mut message, 3, b"eth0\0");
        push(&mut message, 19, &7_u32.to_ne_bytes());
        assert_eq!(message.len(), 12 + 8);
        let found: Vec<_> = attributes(&message).collect();
        assert_eq!(found, [(3, &b"eth0\0"[..]), (19, &7_u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn the_loopback_device_is_known_and_others_are_not() {
        let mut talk = Conversation::new(open().expect("socket"));
        let ask = |name: &[u8]| {
            let mut body = vec![0; 16];
            push(&mut body, 3, name);
            body
        };
        assert_eq!(talk.ask(18, 0, &ask(b"lo\0"), 16).expect("lo").len(), 1);
        assert_eq!(talk.ask(18, 0, &ask(b"no-such-device\0"), 16).expect_err("none").errno, Errno::ENODEV);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = attributes(&bytes).count();
            let mut rest = &bytes[..];
            while let Some((message, next)) = split(rest) {
                let _ = verdict(&message);
                assert!(next.len() < rest.len());
                rest = next;
            }
        }
    }
}
