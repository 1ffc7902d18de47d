//! Frames (SPDY/3.1 draft, 2.2): eight bytes that say what follows, and then that. Reading is a pure function on those bytes.

/// Bytes at the beginning of every frame.
pub(super) const HEAD: usize = 8;
/// Longest control frame that is accepted. Those of clients have some hundred bytes.
pub(super) const CONTROL_LIMIT: usize = 16 << 10;
/// The version of SPDY/3 and SPDY/3.1 in control frames.
const VERSION: u16 = 3;
const FIN: u8 = 1;

/// What ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SpdyError {
    /// It isn't what the protocol says.
    #[error("{0} that makes no sense")]
    Malformed(&'static str),
    /// It is more than anybody needs.
    #[error("{0} is too large")]
    TooLarge(&'static str),
}

impl From<SpdyError> for std::io::Error {
    fn from(error: SpdyError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// What a frame begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// So many bytes of a stream follow.
    Data { stream: u32, fin: bool, length: usize },
    /// A control frame's body of this length follows.
    Control { kind: u16, flags: u8, length: usize },
}

impl Head {
    /// Reads the first eight bytes of a frame.
    pub(super) fn parse(head: [u8; HEAD]) -> Result<Self, SpdyError> {
        let [a, b, c, d, flags, e, f, g] = head;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if a & 0x80 == 0 {
            return match u32::from_be_bytes([a, b, c, d]) {
                0 => Err(SpdyError::Malformed("data of no stream")),
                stream => Ok(Self::Data { stream, fin: flags & FIN != 0, length }),
            };
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Malformed("version of a control frame"));
        }
        if length > CONTROL_LIMIT {
            return Err(SpdyError::TooLarge("control frame"));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

/// A control frame; header blocks are still compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control<'a> {
    /// The client opens a stream.
    Open { stream: u32, fin: bool, block: &'a [u8] },
    /// Headers of a stream that is open, or of none that we opened.
    Headers { stream: u32, fin: bool, block: &'a [u8] },
    /// The client gives a stream up.
    Reset { stream: u32 },
    /// A sign of life, to be answered.
    Ping { id: u32 },
    /// The client opens no more streams.
    GoAway,
    /// Of no concern: settings, windows, what no client of ours sends.
    Ignored,
}

impl<'a> Control<'a> {
    /// Reads the body of a control frame.
    pub(super) fn parse(kind: u16, flags: u8, body: &'a [u8]) -> Result<Self, SpdyError> {
        let short = SpdyError::Malformed("control frame");
        let word = |at: usize| {
            let bytes = body.get(at..).and_then(<[u8]>::first_chunk).ok_or(short)?;
            Ok::<_, SpdyError>(u32::from_be_bytes(*bytes))
        };
        let stream = || match word(0)? & 0x7fff_ffff {
            0 => Err(SpdyError::Malformed("control frame of no stream")),
            stream => Ok(stream),
        };
        let exactly = |length: usize| if body.len() == length { Ok(()) } else { Err(short) };
        let fin = flags & FIN != 0;
        match kind {
            // The stream it is associated to, priority and slot are of no use here.
            1 => Ok(Self::Open { stream: stream()?, fin, block: body.get(10..).ok_or(short)? }),
            2 | 8 => Ok(Self::Headers { stream: stream()?, fin, block: body.get(4..).ok_or(short)? }),
            3 => exactly(8).and_then(|()| Ok(Self::Reset { stream: stream()? })),
            6 => exactly(4).and_then(|()| Ok(Self::Ping { id: word(0)? })),
            7 => exactly(8).map(|()| Self::GoAway),
            _ => Ok(Self::Ignored),
        }
    }
}

/// Writes data of a stream.
pub(super) fn data(stream: u32, fin: bool, bytes: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(&stream.to_be_bytes());
    to.extend_from_slice(&(bytes.len() as u32 | u32::from(fin) << 24).to_be_bytes());
    to.extend_from_slice(bytes);
}

/// Writes a control frame, of words and a header block.
pub(super) fn control(kind: u16, flags: u8, words: &[u32], block: &[u8], to: &mut Vec<u8>) {
    to.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    to.extend_from_slice(&kind.to_be_bytes());
    let length = words.len() * 4 + block.len();
    to.extend_from_slice(&(length as u32 | u32::from(flags) << 24).to_be_bytes());
    for word in words {
        to.extend_from_slice(&word.to_be_bytes());
    }
    to.extend_from_slice(block);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn heads_are_read() {
        let table: [([u8; HEAD], Result<Head, SpdyError>); 6] = [
            ([0, 0, 0, 5, 1, 0, 1, 0], Ok(Head::Data { stream: 5, fin: true, length: 256 })),
            (
                [0x7f, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff],
                Ok(Head::Data { stream: 0x7fff_ffff, fin: false, length: 0x00ff_ffff }),
            ),
            ([0; 8], Err(SpdyError::Malformed("data of no stream"))),
            ([0x80, 3, 0, 1, 1, 0, 0, 12], Ok(Head::Control { kind: 1, flags: 1, length: 12 })),
            ([0x80, 2, 0, 1, 0, 0, 0, 12], Err(SpdyError::Malformed("version of a control frame"))),
            ([0x80, 3, 0, 1, 0, 0, 0x40, 1], Err(SpdyError::TooLarge("control frame"))),
        ];
        for (bytes, expected) in table {
            assert_eq!(Head::parse(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn control_frames_are_read() {
        let malformed = Err(SpdyError::Malformed("control frame"));
        type Row<'a> = (u16, u8, &'a [u8], Result<Control<'a>, SpdyError>);
        let table: [Row<'_>; 14] = [
            (1, 0, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7], Ok(Control::Open { stream: 1, fin: false, block: &[7] })),
            (1, 1, &[0x80, 0, 0, 3, 0, 0, 0, 0, 0, 0], Ok(Control::Open { stream: 3, fin: true, block: &[] })),
            (1, 0, &[0, 0, 0, 1, 0, 0, 0, 0, 0], malformed),
            (1, 0, &[0; 10], Err(SpdyError::Malformed("control frame of no stream"))),
            (2, 0, &[0, 0, 0, 2, 9], Ok(Control::Headers { stream: 2, fin: false, block: &[9] })),
            (8, 1, &[0, 0, 0, 1], Ok(Control::Headers { stream: 1, fin: true, block: &[] })),
            (3, 0, &[0, 0, 0, 1, 0, 0, 0, 5], Ok(Control::Reset { stream: 1 })),
            (3, 0, &[0, 0, 0, 1], malformed),
            (6, 0, &[0, 0, 1, 1], Ok(Control::Ping { id: 257 })),
            (6, 0, &[0; 5], malformed),
            (7, 0, &[0; 8], Ok(Control::GoAway)),
            // Settings may say that there are four billion of them: nothing is made of it.
            (4, 0, &[0xff; 4], Ok(Control::Ignored)),
            (9, 0, &[0; 8], Ok(Control::Ignored)),
            (77, 0, &[], Ok(Control::Ignored)),
        ];
        for (kind, flags, body, expected) in table {
            assert_eq!(Control::parse(kind, flags, body), expected, "{kind} {body:?}");
        }
    }

    #[test]
    fn frames_are_written() {
        let mut bytes = Vec::new();
        data(5, true, b"ab", &mut bytes);
        control(2, 0, &[5], &[9], &mut bytes);
        let expected = [0, 0, 0, 5, 1, 0, 0, 2, b'a', b'b', 0x80, 3, 0, 2, 0, 0, 0, 5, 0, 0, 0, 5, 9];
        assert_eq!(bytes, expected);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(head: [u8; HEAD], body in proptest::collection::vec(any::<u8>(), 0..40), kind in 0_u16..12) {
            if let Ok(Head::Control { length, .. }) = Head::parse(head) {
                prop_assert!(length <= CONTROL_LIMIT);
            }
            let _ = Control::parse(kind, head[4], &body);
        }
    }
}
