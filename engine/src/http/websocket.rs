//! RFC 6455 as far as `/containers/{id}/attach/ws` needs it: what a process writes goes out in binary frames, what a client
//! sends, in frames of either kind, goes in as bytes. Nothing of a frame is held back: payloads pass as they come.

use crate::containers::streams::ClientStream;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Largest payload of a frame that we send.
const PIECE: usize = 32 << 10;
/// Largest payload of a control frame.
const CONTROL: u64 = 125;
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// `Sec-WebSocket-Accept` for a key.
pub fn accept(key: &str) -> String {
    STANDARD.encode(sha1(&[key.trim().as_bytes(), GUID].concat()))
}

/// SHA-1 (RFC 3174): for this handshake only, where it protects nothing.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (at, word) in words.iter().enumerate() {
            let (mix, constant) = match at {
                0..20 => ((b & c) | (!b & d), 0x5a82_7999_u32),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (word, add) in state.iter_mut().zip([a, b, c, d, e]) {
            *word = word.wrapping_add(add);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    /// Input for the process.
    Data(Vec<u8>),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// It says good-bye.
    Close,
}

/// The frame that is being read.
#[derive(Debug)]
struct Frame {
    opcode: u8,
    mask: [u8; 4],
    left: u64,
    /// Bytes of the payload so far.
    passed: u64,
    /// Of a control frame, which is taken as a whole.
    control: Vec<u8>,
}

/// Takes frames apart, however they arrive.
#[derive(Debug, Default)]
struct Decoder {
    head: Vec<u8>,
    frame: Option<Frame>,
    /// Between the first and the last frame of a message.
    fragmented: bool,
}

/// The client doesn't keep to the protocol.
#[derive(Debug, PartialEq, Eq)]
struct Violation;

impl Decoder {
    /// Takes bytes in; what they complete comes out.
    fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Message>) -> Result<(), Violation> {
        loop {
            if let Some(frame) = &mut self.frame {
                let take = bytes.len().min(usize::try_from(frame.left).unwrap_or(usize::MAX));
                let mut payload = bytes[..take].to_vec();
                for (at, byte) in payload.iter_mut().enumerate() {
                    *byte ^= frame.mask[((frame.passed + at as u64) % 4) as usize];
                }
                bytes = &bytes[take..];
                frame.left -= take as u64;
                frame.passed += take as u64;
                if frame.opcode < 8 {
                    if !payload.is_empty() {
                        out.push(Message::Data(payload));
                    }
                } else {
                    frame.control.extend(payload);
                }
                if frame.left > 0 {
                    return Ok(());
                }
                match (frame.opcode, std::mem::take(&mut frame.control)) {
                    (8, _) => out.push(Message::Close),
                    (9, payload) => out.push(Message::Ping(payload)),
                    _ => {}
                }
                self.frame = None;
            }
            let Some((byte, rest)) = bytes.split_first() else { return Ok(()) };
            bytes = rest;
            self.head.push(*byte);
            self.begin()?;
        }
    }

    /// Begins a frame if its head is complete.
    fn begin(&mut self) -> Result<(), Violation> {
        let [first, second, more @ ..] = self.head.as_slice() else { return Ok(()) };
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        // No extension was agreed on, and clients have to mask what they send.
        if first & 0x70 != 0 || second & 0x80 == 0 || !matches!(opcode, 0..=2 | 8..=10) {
            return Err(Violation);
        }
        let short = second & 0x7f;
        let width = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if more.len() < width + 4 {
            return Ok(());
        }
        let length = match width {
            0 => u64::from(short),
            _ => more[..width].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        if length >> 63 != 0 || (opcode >= 8 && (length > CONTROL || !last)) {
            return Err(Violation);
        }
        if opcode < 8 {
            // A message goes on in frames without a kind of their own, and only there.
            if (opcode == 0) != self.fragmented {
                return Err(Violation);
            }
            self.fragmented = !last;
        }
        let mask = [more[width], more[width + 1], more[width + 2], more[width + 3]];
        self.frame = Some(Frame { opcode, mask, left: length, passed: 0, control: Vec::new() });
        self.head.clear();
        Ok(())
    }
}

/// A frame of ours: whole, unmasked.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..126 => frame.push(length as u8),
        length @ 126..65536 => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// Puts the protocol between a connection and what it gives back, which is plain bytes.
pub fn bridge(client: ClientStream) -> std::io::Result<ClientStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let (from_client, to_client) = client.stream.into_split();
    let (from_process, to_process) = ours.into_split();
    // Answers to control frames; a client that floods us with them waits.
    let (control, controls) = mpsc::channel(8);
    tokio::spawn(inward(from_client, client.early, to_process, control));
    tokio::spawn(outward(from_process, to_client, controls));
    Ok(ClientStream { stream: theirs, early: Bytes::new() })
}

async fn inward(mut client: OwnedReadHalf, early: Bytes, process: OwnedWriteHalf, control: mpsc::Sender<Vec<u8>>) {
    let mut decoder = Decoder::default();
    let mut process = Some(process);
    let mut bytes = early.to_vec();
    let mut buffer = vec![0; PIECE];
    loop {
        let mut messages = Vec::new();
        let kept = decoder.feed(&bytes, &mut messages);
        for message in messages {
            match message {
                Message::Data(payload) => {
                    // A process that no longer reads is no reason to stop showing its output.
                    if let Some(writer) = &mut process
                        && writer.write_all(&payload).await.is_err()
                    {
                        process = None;
                    }
                }
                Message::Ping(payload) => drop(control.send(frame(10, &payload)).await),
                Message::Close => return drop(control.send(frame(8, &NORMAL.to_be_bytes())).await),
            }
        }
        if kept.is_err() {
            return drop(control.send(frame(8, &PROTOCOL_ERROR.to_be_bytes())).await);
        }
        match client.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => bytes = buffer[..read].to_vec(),
        }
    }
}

async fn outward(mut process: OwnedReadHalf, mut client: OwnedWriteHalf, mut controls: mpsc::Receiver<Vec<u8>>) {
    let mut buffer = vec![0; PIECE];
    loop {
        let written = tokio::select! {
            control = controls.recv() => match control {
                Some(control) => {
                    let close = control[0] & 0x0f == 8;
                    let written = client.write_all(&control).await;
                    if close { Err(std::io::ErrorKind::ConnectionAborted.into()) } else { written }
                }
                // The client has gone: dropping our end tells whoever serves it.
                None => return,
            },
            read = process.read(&mut buffer) => match read {
                Ok(0) | Err(_) => {
                    let _ = client.write_all(&frame(8, &NORMAL.to_be_bytes())).await;
                    break;
                }
                Ok(read) => client.write_all(&frame(2, &buffer[..read])).await,
            },
        };
        if written.is_err() {
            break;
        }
    }
    let _ = client.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn handshake() {
        // RFC 6455, section 1.3, and RFC 3174, section 7.3.
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(hex(&sha1(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(&sha1(&[b'a'; 1_000_000])), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
    }

    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut sent = frame(first & 0x0f, payload);
        sent[0] = first;
        sent[1] |= 0x80;
        let at = sent.len() - payload.len();
        let body: Vec<u8> = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        sent.truncate(at);
        sent.extend(mask);
        sent.extend(body);
        sent
    }

    fn all(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<Message>), Violation> {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece, &mut out)?;
        }
        let mut data = Vec::new();
        out.retain(|message| match message {
            Message::Data(payload) => {
                data.extend(payload);
                false
            }
            _ => true,
        });
        Ok((data, out))
    }

    #[test]
    fn violations_and_control() {
        let mask = [1, 2, 3, 4];
        assert_eq!(all(&[&frame(2, b"not masked")]), Err(Violation));
        assert_eq!(all(&[&masked(0xc2, b"reserved bit", mask)]), Err(Violation));
        assert_eq!(all(&[&masked(0x83, b"opcode", mask)]), Err(Violation));
        assert_eq!(all(&[&masked(0x80, b"goes on without a beginning", mask)]), Err(Violation));
        assert_eq!(all(&[&masked(0x89, &[0; 126], mask)]), Err(Violation));
        assert_eq!(all(&[&masked(0x09, b"in pieces", mask)]), Err(Violation));
        let sent =
            [masked(0x01, b"a", mask), masked(0x89, b"p", mask), masked(0x80, b"b", mask), masked(0x88, b"", mask)];
        assert_eq!(all(&[&sent.concat()]), Ok((b"ab".to_vec(), vec![Message::Ping(b"p".to_vec()), Message::Close])));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            payloads in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>()), 0..6),
            large in 60_000_usize..70_000,
            cuts in proptest::collection::vec(1_usize..500, 1..20),
        ) {
            let mut payloads = payloads;
            payloads.push((vec![7; large], [9, 8, 7, 6]));
            let sent: Vec<u8> = payloads.iter().flat_map(|(payload, mask)| masked(0x82, payload, *mask)).collect();
            let expected: Vec<u8> = payloads.iter().flat_map(|(payload, _)| payload.clone()).collect();
            let mut pieces = Vec::new();
            let (mut rest, mut cuts) = (&sent[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let at = (*cuts.next().unwrap()).min(rest.len());
                pieces.push(&rest[..at]);
                rest = &rest[at..];
            }
            prop_assert_eq!(all(&pieces), Ok((expected, Vec::new())));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = all(&[&bytes]);
        }
    }
}
