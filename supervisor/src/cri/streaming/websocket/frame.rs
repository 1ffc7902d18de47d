//! Frames (RFC 6455, 5.2). Reading is a pure function on their first bytes.

/// Largest message that is accepted. Clients cut their input into pieces of 32 KiB.
pub(super) const MESSAGE_LIMIT: usize = 1 << 20;
/// Bytes of a frame's beginning, at most: two, a long length, a mask.
#[cfg(test)]
pub(super) const HEAD_LIMIT: usize = 14;
/// Longest control frame.
const CONTROL_LIMIT: u64 = 125;

/// Codes of a close frame.
pub(super) mod code {
    /// All is done.
    pub(in super::super) const NORMAL: u16 = 1000;
    /// The client didn't keep to the protocol.
    pub(in super::super) const PROTOCOL: u16 = 1002;
    /// A message is too large.
    pub(in super::super) const TOO_LARGE: u16 = 1009;
}

/// What ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    /// It isn't what the protocol says.
    #[error("{0} that makes no sense")]
    Malformed(&'static str),
    /// It is more than anybody needs.
    #[error("message is too large")]
    TooLarge,
}

impl FrameError {
    /// What the client is told.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Malformed(_) => code::PROTOCOL,
            Self::TooLarge => code::TOO_LARGE,
        }
    }
}

impl From<FrameError> for std::io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// More of the message before it.
    Continuation,
    /// A message of text.
    Text,
    /// A message of bytes.
    Binary,
    /// The last frame.
    Close,
    /// To be answered.
    Ping,
    /// An answer.
    Pong,
}

/// The beginning of a client's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Whether the message ends with it.
    pub(super) fin: bool,
    /// What it carries.
    pub(super) kind: Kind,
    /// How many bytes follow.
    pub(super) length: usize,
    /// What they are masked with.
    pub(super) mask: [u8; 4],
    /// How long the beginning is itself.
    pub(super) size: usize,
}

impl Head {
    /// How many bytes a beginning takes that begins with these two.
    pub(super) fn size([_, second]: [u8; 2]) -> usize {
        let length = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if second & 0x80 != 0 { 4 } else { 0 }
    }

    /// Reads a beginning, of as many bytes as [`Head::size`] says.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let short = FrameError::Malformed("frame");
        let [first, second, rest @ ..] = bytes else { return Err(short) };
        if first & 0x70 != 0 {
            return Err(FrameError::Malformed("extension of a frame"));
        }
        let kind = match first & 0x0f {
            0 => Kind::Continuation,
            1 => Kind::Text,
            2 => Kind::Binary,
            8 => Kind::Close,
            9 => Kind::Ping,
            10 => Kind::Pong,
            _ => return Err(FrameError::Malformed("kind of a frame")),
        };
        let (length, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk().ok_or(short)?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk().ok_or(short)?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let fin = first & 0x80 != 0;
        if matches!(kind, Kind::Close | Kind::Ping | Kind::Pong) && (!fin || length > CONTROL_LIMIT) {
            return Err(FrameError::Malformed("control frame"));
        }
        if length > MESSAGE_LIMIT as u64 {
            return Err(FrameError::TooLarge);
        }
        if second & 0x80 == 0 {
            return Err(FrameError::Malformed("frame without a mask"));
        }
        let mask = *rest.first_chunk().ok_or(short)?;
        Ok(Self { fin, kind, length: length as usize, mask, size: bytes.len() - rest.len() + 4 })
    }
}

/// Takes a mask off, or puts it on.
pub(super) fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    for (byte, mask) in bytes.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes a frame of ours: whole, without a mask, of the parts given.
pub(super) fn write(kind: Kind, parts: &[&[u8]], to: &mut Vec<u8>) {
    let opcode = match kind {
        Kind::Continuation => 0,
        Kind::Text => 1,
        Kind::Binary => 2,
        Kind::Close => 8,
        Kind::Ping => 9,
        Kind::Pong => 10,
    };
    to.push(0x80 | opcode);
    let length: usize = parts.iter().map(|part| part.len()).sum();
    match length {
        0..=125 => to.push(length as u8),
        126..=0xffff => {
            to.push(126);
            to.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            to.push(127);
            to.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    for part in parts {
        to.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_of_the_standard_are_read() {
        // RFC 6455, 5.7: "Hello", masked.
        let mut frame = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(Head::size([frame[0], frame[1]]), 6);
        let head = Head::parse(&frame[..6]).unwrap();
        assert_eq!((head.fin, head.kind, head.length, head.size), (true, Kind::Text, 5, 6));
        unmask(&mut frame[6..], head.mask);
        assert_eq!(&frame[6..], b"Hello");
        type Row<'a> = (&'a [u8], Result<(bool, Kind, usize), FrameError>);
        let table: [Row<'_>; 10] = [
            (&[0x02, 0xfe, 1, 0, 0, 0, 0, 0], Ok((false, Kind::Binary, 256))),
            (&[0x80, 0xff, 0, 0, 0, 0, 0, 16, 0, 0, 1, 2, 3, 4], Ok((true, Kind::Continuation, MESSAGE_LIMIT))),
            (&[0x80, 0xff, 0, 0, 0, 0, 0, 16, 0, 1, 1, 2, 3, 4], Err(FrameError::TooLarge)),
            (&[0x80, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4], Err(FrameError::TooLarge)),
            (&[0x88, 0x80, 0, 0, 0, 0], Ok((true, Kind::Close, 0))),
            (&[0x08, 0x80, 0, 0, 0, 0], Err(FrameError::Malformed("control frame"))),
            (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], Err(FrameError::Malformed("control frame"))),
            (&[0xc2, 0x80, 0, 0, 0, 0], Err(FrameError::Malformed("extension of a frame"))),
            (&[0x83, 0x80, 0, 0, 0, 0], Err(FrameError::Malformed("kind of a frame"))),
            (&[0x82, 0x05], Err(FrameError::Malformed("frame without a mask"))),
        ];
        for (bytes, expected) in table {
            let read = Head::parse(bytes);
            assert_eq!(read.map(|head| (head.fin, head.kind, head.length)), expected, "{bytes:?}");
            assert_eq!(Head::size([bytes[0], bytes[1]]), bytes.len());
        }
    }

    #[test]
    fn frames_are_written() {
        for (length, begin) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let (mut bytes, payload) = (Vec::new(), vec![7; length]);
            let (one, two) = payload.split_at(length / 3);
            write(Kind::Binary, &[one, two], &mut bytes);
            assert_eq!((&bytes[..begin.len()], &bytes[begin.len()..]), (begin, &payload[..]));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(head) = Head::parse(&bytes) {
                prop_assert!(head.length <= MESSAGE_LIMIT && head.size <= HEAD_LIMIT);
                prop_assert_eq!(head.size, Head::size([bytes[0], bytes[1]]));
            }
        }
    }
}
