//! Takes apart the stream of a container without a terminal: frames of 8 bytes header and payload.

use bytes::{Buf, BytesMut};

/// Where a piece of output belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output; docker's "stdin" channel is written there, too.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A stream that breaks the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DemuxError {
    /// A channel nobody knows.
    #[error("unrecognized stream {0} in the engine's output")]
    Channel(u8),
    /// The engine reports an error inside the stream.
    #[error("error from daemon in stream: {0}")]
    Engine(String),
    /// The stream ended within a frame.
    #[error("the engine's output ended in the middle of a frame")]
    Truncated,
}

/// Longest message of an engine error; output frames are passed on as they come, whatever their length.
const LONGEST_ERROR: usize = 64 * 1024;

/// Bytes that belong together, ready to be written.
pub type Piece = (Channel, BytesMut);

/// The state between two reads.
#[derive(Debug, Default)]
pub struct Demux {
    header: [u8; 8],
    filled: usize,
    /// What is left of the frame under way.
    left: usize,
    /// Text of a system error under way.
    error: Vec<u8>,
}

impl Demux {
    /// Sorts newly read bytes, in order; neighbours of one channel become one piece.
    pub fn push(&mut self, mut data: &[u8], pieces: &mut Vec<Piece>) -> Result<(), DemuxError> {
        while !data.is_empty() {
            if self.left == 0 {
                let count = data.len().min(8 - self.filled);
                self.header[self.filled..self.filled + count].copy_from_slice(&data[..count]);
                self.filled += count;
                data.advance(count);
                if self.filled < 8 {
                    return Ok(());
                }
                if self.header[0] > 3 {
                    return Err(DemuxError::Channel(self.header[0]));
                }
                let [_, _, _, _, a, b, c, d] = self.header;
                self.left = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
                if self.left == 0 {
                    self.end_frame()?;
                }
                continue;
            }
            let count = data.len().min(self.left);
            match self.header[0] {
                2 => append(pieces, Channel::Stderr, &data[..count]),
                3 => {
                    let room = LONGEST_ERROR.saturating_sub(self.error.len());
                    self.error.extend_from_slice(&data[..count.min(room)]);
                }
                _ => append(pieces, Channel::Stdout, &data[..count]),
            }
            data.advance(count);
            self.left -= count;
            if self.left == 0 {
                self.end_frame()?;
            }
        }
        Ok(())
    }

    /// The stream has ended.
    pub fn finish(&self) -> Result<(), DemuxError> {
        if self.filled == 0 { Ok(()) } else { Err(DemuxError::Truncated) }
    }

    fn end_frame(&mut self) -> Result<(), DemuxError> {
        self.filled = 0;
        if self.header[0] == 3 {
            return Err(DemuxError::Engine(String::from_utf8_lossy(&self.error).trim().to_owned()));
        }
        Ok(())
    }
}

fn append(pieces: &mut Vec<Piece>, channel: Channel, data: &[u8]) {
    match pieces.last_mut() {
        Some((last, bytes)) if *last == channel => bytes.extend_from_slice(data),
        _ => pieces.push((channel, BytesMut::from(data))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![channel, 0, 0, 0];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn sorted(pieces: &[Piece]) -> (Vec<u8>, Vec<u8>) {
        let of = |wanted| pieces.iter().filter(|(c, _)| *c == wanted).flat_map(|(_, b)| b.to_vec()).collect();
        (of(Channel::Stdout), of(Channel::Stderr))
    }

    #[test]
    fn bad_streams() {
        let mut pieces = Vec::new();
        assert_eq!(Demux::default().push(&frame(4, b""), &mut pieces), Err(DemuxError::Channel(4)));
        assert_eq!(Demux::default().push(&frame(3, b"oh\n"), &mut pieces), Err(DemuxError::Engine("oh".into())));
        let mut demux = Demux::default();
        demux.push(&frame(1, b"abc")[..9], &mut pieces).unwrap();
        assert_eq!(demux.finish(), Err(DemuxError::Truncated));
        assert_eq!(pieces, [(Channel::Stdout, BytesMut::from("a"))]);
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            frames in prop::collection::vec((1u8..3, prop::collection::vec(any::<u8>(), 0..40)), 0..8),
            cut in 1usize..64,
        ) {
            let stream: Vec<u8> = frames.iter().flat_map(|(c, p)| frame(*c, p)).collect();
            let (mut demux, mut pieces) = (Demux::default(), Vec::new());
            for part in stream.chunks(cut) {
                demux.push(part, &mut pieces).unwrap();
            }
            prop_assert_eq!(demux.finish(), Ok(()));
            let of = |wanted: u8| frames.iter().filter(|(c, _)| *c == wanted).flat_map(|(_, p)| p.clone()).collect::<Vec<_>>();
            prop_assert_eq!(sorted(&pieces), (of(1), of(2)));
        }

        #[test]
        fn garbage_never_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut pieces = Vec::new();
            let mut demux = Demux::default();
            let _ = demux.push(&data, &mut pieces);
            prop_assert!(sorted(&pieces).0.len() <= data.len());
        }
    }
}
