//! Frames: ten bytes of header, then data.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Most that one message may have; the protocol's own limit.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// Length of a header.
pub(super) const HEADER: usize = 10;

/// Lengths from here on have a first byte that the protocol reserves: whoever sends one speaks something else.
const FOREIGN: u32 = 1 << 24;

/// A call.
pub(super) const REQUEST: u8 = 1;
/// Its outcome.
pub(super) const RESPONSE: u8 = 2;
/// A part of a stream, which no call here is.
pub(super) const DATA: u8 = 3;

/// Flag of a request: its client has more to send.
pub(super) const OPEN: u8 = 2;

/// What stands before the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Length of the data.
    pub(super) length: u32,
    /// Which call it belongs to.
    pub(super) stream: u32,
    /// What it is.
    pub(super) kind: u8,
    /// More about the stream; 0 with unary calls.
    pub(super) flags: u8,
}

impl Header {
    fn encode(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.stream.to_be_bytes());
        (bytes[8], bytes[9]) = (self.kind, self.flags);
        bytes
    }

    fn decode(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, kind, flags] = bytes;
        Self { length: u32::from_be_bytes([a, b, c, d]), stream: u32::from_be_bytes([e, f, g, h]), kind, flags }
    }
}

/// A frame that came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its header.
    pub(super) header: Header,
    /// Its data; `None` if there was more than a message may have. Then it has been skipped.
    pub(super) data: Option<Vec<u8>>,
}

/// One frame as it goes out. `message` must be within the limit.
pub(super) fn encode(stream: u32, kind: u8, message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(HEADER + length);
    let header = Header { length: u32::try_from(length).unwrap_or(u32::MAX), stream, kind, flags: 0 };
    bytes.extend_from_slice(&header.encode());
    message.encode_raw(&mut bytes);
    bytes
}

/// Reads a frame; `None` at an orderly end.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut bytes = [0; HEADER];
    let first = reader.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut bytes[first..]).await?;
    let header = Header::decode(bytes);
    if header.length >= FOREIGN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not ttrpc"));
    }
    let length = u64::from(header.length);
    let mut body = reader.take(length);
    if length > MESSAGE_LIMIT as u64 {
        return match tokio::io::copy(&mut body, &mut tokio::io::sink()).await? {
            skipped if skipped == length => Ok(Some(Frame { header, data: None })),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        };
    }
    // Grows with what really comes: a header alone makes nobody allocate.
    let mut data = Vec::with_capacity(header.length.min(8 << 10) as usize);
    if body.read_to_end(&mut data).await? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Frame { header, data: Some(data) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ttrpc::message::Request;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Result<Vec<Frame>, io::ErrorKind> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut reader, mut frames) = (bytes, Vec::new());
            while let Some(frame) = read(&mut reader).await.map_err(|error| error.kind())? {
                frames.push(frame);
            }
            Ok(frames)
        })
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let request = Request { service: "s".into(), method: "m".into(), ..Request::default() };
        let bytes = encode(3, REQUEST, &request);
        assert_eq!(bytes, b"\0\0\0\x06\0\0\0\x03\x01\0\x0a\x01s\x12\x01m");
    }

    #[test]
    fn what_is_too_long_is_skipped_and_what_is_no_ttrpc_ends_it() {
        let header = |length: u32| Header { length, stream: 1, kind: REQUEST, flags: 0 }.encode();
        let mut bytes = header(MESSAGE_LIMIT as u32 + 1).to_vec();
        bytes.resize(bytes.len() + MESSAGE_LIMIT + 1, 7);
        bytes.extend(header(1));
        bytes.push(9);
        let frames = all(&bytes).unwrap();
        assert_eq!(frames.iter().map(|frame| frame.data.clone()).collect::<Vec<_>>(), [None, Some(vec![9])]);
        for (bytes, error) in [
            (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], io::ErrorKind::InvalidData),
            (&header(5)[..], io::ErrorKind::UnexpectedEof),
            (&header(5)[..4], io::ErrorKind::UnexpectedEof),
            (&header(MESSAGE_LIMIT as u32 + 1)[..], io::ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(all(bytes), Err(error), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&bytes);
        }

        #[test]
        fn frames_survive(frames in proptest::collection::vec((any::<u32>(), any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..5)) {
            let mut bytes = Vec::new();
            let mut wanted = Vec::new();
            for (stream, kind, flags, data) in frames {
                let header = Header { length: data.len() as u32, stream, kind, flags };
                bytes.extend(header.encode());
                bytes.extend(&data);
                wanted.push(Frame { header, data: Some(data) });
            }
            prop_assert_eq!(all(&bytes), Ok(wanted));
        }

        /// Whoever sends garbage in place of messages gets no further than the decoder.
        #[test]
        fn any_request_is_decoded_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = <Request as prost::Message>::decode(data.as_slice());
        }
    }
}
