//! The multiplexed form of output without a terminal: eight bytes (stream, three zeros, length), then the payload.

/// Bytes in front of each payload.
pub const HEADER: usize = 8;

/// The streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

impl Stream {
    /// As logs write it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "stdout" => Some(Self::Stdout),
            "stderr" => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// Header of a payload of this length.
pub fn header(stream: Stream, length: usize) -> [u8; HEADER] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream as u8, 0, 0, 0, length[0], length[1], length[2], length[3]]
}

/// Recognizes the keys that detach a client, across reads.
#[derive(Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q` or `a,b`; empty means the default.
    pub fn parse(text: &str) -> Option<Self> {
        let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
        let keys = text.split(',').map(|key| match key.strip_prefix("ctrl-").map(str::as_bytes) {
            Some([letter @ b'a'..=b'z']) => Some(letter - b'a' + 1),
            Some([letter @ b'A'..=b'Z']) => Some(letter - b'A' + 1),
            Some([b'@']) => Some(0),
            Some([b'[']) => Some(27),
            Some([b'\\']) => Some(28),
            Some([b']']) => Some(29),
            Some([b'^']) => Some(30),
            Some([b'_']) => Some(31),
            Some(_) => None,
            None => match key.as_bytes() {
                [byte] => Some(*byte),
                _ => None,
            },
        });
        Some(Self { keys: keys.collect::<Option<_>>()?, matched: 0 })
    }

    /// What of `input` goes on to the process, and whether the client wants to leave. A beginning that might become the
    /// sequence is held back until it is decided.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut output = Vec::with_capacity(input.len());
        for &byte in input {
            if byte != self.keys[self.matched] {
                output.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (output, true);
                }
            } else {
                output.push(byte);
            }
        }
        (output, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        assert_eq!(header(Stream::Stderr, 0x0102), [2, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn detaching() {
        let mut keys = DetachKeys::parse("").unwrap();
        assert_eq!(keys.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(keys.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10\x11d"), (b"\x10".to_vec(), true));
        for bad in ["ctrl-", "ctrl-1", "ab", "a,", "ctrl-ab"] {
            assert!(DetachKeys::parse(bad).is_none(), "{bad}");
        }
        assert!(DetachKeys::parse("x,ctrl-a").unwrap().filter(b"x\x01").1);
    }
}
