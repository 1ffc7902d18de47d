//! Encoding and decoding of netlink messages (netlink(7)): a header, a fixed part, and attributes that may nest.
//!
//! A [`Batch`] holds several messages that go to the kernel in one `sendto`; each is a *step* with a name, so that an
//! error can say which of them failed.

use std::borrow::Cow;
use std::net::IpAddr;

use nix::errno::Errno;
use nix::libc;

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
/// Length of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The bits of an attribute's type that say its kind; the other two are flags.
const KIND_MASK: u16 = 0x3fff;
/// Set on attributes that hold attributes.
const NESTED: u16 = 1 << 15;

/// Messages and attributes start at multiples of four.
const fn aligned(length: usize) -> usize {
    (length + 3) & !3
}

/// Appends attributes to a message.
pub(crate) struct Attributes<'a> {
    buffer: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    /// Attributes at the end of `buffer`, for parts that are encoded before the message they go into.
    pub(crate) fn append_to(buffer: &'a mut Vec<u8>) -> Self {
        Self { buffer }
    }

    /// An attribute with these bytes as its value.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (ATTRIBUTE + value.len()) as u16;
        self.buffer.extend_from_slice(&length.to_ne_bytes());
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(value);
        self.buffer.resize(aligned(self.buffer.len()), 0);
        self
    }

    /// A byte.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    /// A number in the byte order of the machine, as rtnetlink has them.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A number in network byte order, as netfilter has them.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// An address.
    pub(crate) fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }

    /// A string, with the NUL at its end that most of the kernel's parsers want.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute that holds the attributes `inside` appends.
    pub(crate) fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.nest_after(kind | NESTED, &[], inside)
    }

    /// As [`Attributes::nest`], with a fixed part before the attributes (only veth's peer has that).
    pub(crate) fn nest_after(
        &mut self,
        kind: u16,
        fixed: &[u8],
        inside: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0, 0]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(fixed);
        self.buffer.resize(aligned(self.buffer.len()), 0);
        inside(&mut Attributes { buffer: self.buffer });
        let length = self.buffer.len() - start;
        // Lists are cut into pieces far below this by those who write them (`nft::map`).
        debug_assert!(length <= usize::from(u16::MAX), "a nested attribute holds at most 64 KiB");
        self.buffer[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self
    }
}

/// One message of a batch.
#[derive(Debug)]
pub(crate) struct Step {
    offset: usize,
    what: Cow<'static, str>,
    tolerated: &'static [Errno],
    acknowledged: bool,
}

impl Step {
    /// What the step does, as a verb and an object: `create veth vethab12`.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Whether this error is as good as success for the step.
    pub(crate) fn tolerates(&self, errno: Errno) -> bool {
        self.tolerated.contains(&errno)
    }

    /// Whether the kernel has to answer the step.
    pub(crate) fn is_acknowledged(&self) -> bool {
        self.acknowledged
    }
}

/// Messages that are sent together, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    buffer: Vec<u8>,
    steps: Vec<Step>,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends a message: its type, its flags (`NLM_F_REQUEST` is always set), its fixed part and its attributes.
    pub(crate) fn push(
        &mut self,
        what: impl Into<Cow<'static, str>>,
        kind: u16,
        flags: i32,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        let offset = self.buffer.len();
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        self.buffer.extend_from_slice(&[0; 4]); // the length, known below
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&flags.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 8]); // sequence number and port: given on sending
        self.buffer.extend_from_slice(fixed);
        self.buffer.resize(aligned(self.buffer.len()), 0);
        attributes(&mut Attributes { buffer: &mut self.buffer });
        let length = (self.buffer.len() - offset) as u32;
        self.buffer[offset..offset + 4].copy_from_slice(&length.to_ne_bytes());
        let acknowledged = flags & (libc::NLM_F_ACK as u16) != 0;
        self.steps.push(Step { offset, what: what.into(), tolerated: &[], acknowledged });
        self
    }

    /// Makes these errors of the last message as good as success.
    pub(crate) fn tolerating(&mut self, errors: &'static [Errno]) -> &mut Self {
        if let Some(step) = self.steps.last_mut() {
            step.tolerated = errors;
        }
        self
    }

    /// Numbers the messages from `first` on and returns the bytes to send.
    pub(crate) fn number(&mut self, first: u32) -> &[u8] {
        for (position, step) in self.steps.iter().enumerate() {
            let sequence = first.wrapping_add(position as u32);
            self.buffer[step.offset + 8..step.offset + 12].copy_from_slice(&sequence.to_ne_bytes());
        }
        &self.buffer
    }

    /// The messages in order.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// A message from the kernel.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits what one `recv` returned into messages. A message that claims more bytes than there are ends the list.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let length = u32_at(bytes, 0)? as usize;
        if length < HEADER || length > bytes.len() {
            return None;
        }
        let message = Received {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
            payload: &bytes[HEADER..length],
        };
        bytes = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some(message)
    })
}

/// Splits a payload, from `offset` on, into attributes: kind and value. Ends at the first that doesn't fit.
pub(crate) fn attributes(payload: &[u8], offset: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut bytes = payload.get(offset..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        if length < ATTRIBUTE || length > bytes.len() {
            return None;
        }
        let attribute = (u16_at(bytes, 2)? & KIND_MASK, &bytes[ATTRIBUTE..length]);
        bytes = bytes.get(aligned(length)..).unwrap_or(&[]);
        Some(attribute)
    })
}

/// The value of the first attribute of this kind.
pub(crate) fn attribute(payload: &[u8], offset: usize, kind: u16) -> Option<&[u8]> {
    attributes(payload, offset).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// The two bytes at `offset`, in the byte order of the machine.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// The four bytes at `offset`, in the byte order of the machine.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A string that may end in a NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// An address; `None` when the value is neither four nor sixteen bytes.
pub(crate) fn ip(value: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::new();
        batch
            .push("one", 16, libc::NLM_F_ACK, &[1, 2, 3, 4], |a| {
                a.u32(1, 7).text(2, "eth0").nest(3, |inner| {
                    inner.u8(4, 9);
                });
            })
            .tolerating(&[Errno::EEXIST]);
        batch.push("two", 17, 0, &[], |_| {});
        let bytes = batch.number(u32::MAX).to_vec();

        let read: Vec<_> = messages(&bytes).collect();
        assert_eq!(read.iter().map(|m| (m.kind, m.sequence)).collect::<Vec<_>>(), [(16, u32::MAX), (17, 0)]);
        let found: Vec<_> = attributes(read[0].payload, 4).collect();
        assert_eq!(found[0], (1, 7u32.to_ne_bytes().as_slice()));
        assert_eq!((found[1].0, text(found[1].1)), (2, "eth0".to_owned()));
        assert_eq!(attributes(found[2].1, 0).collect::<Vec<_>>(), [(4, [9].as_slice())]);
        assert!(batch.steps()[0].tolerates(Errno::EEXIST) && batch.steps()[0].is_acknowledged());
        assert!(!batch.steps()[1].tolerates(Errno::EEXIST) && !batch.steps()[1].is_acknowledged());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic_or_run_on(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len() / HEADER + 1);
            for message in messages(&bytes) {
                prop_assert!(attributes(message.payload, 4).count() <= bytes.len());
            }
            prop_assert!(attributes(&bytes, 0).count() <= bytes.len() / ATTRIBUTE + 1);
        }
    }
}
