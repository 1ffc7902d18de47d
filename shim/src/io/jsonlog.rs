//! Docker's json-file format: one JSON object per line of output.
//!
//! `{"log":"text\n","stream":"stdout","time":"2026-11-21T00:56:31.25Z"}`. Escapes are those of docker's own writer (and of
//! Go's encoding/json before it knew short names for them): `\n`, `\r`, `\"`, `\\`; other control characters, `<`, `>`, `&`,
//! U+2028 and U+2029 as `\u00XX`; a byte that isn't UTF-8 as `\ufffd`.
//!
//! Most lines are short and need no escape. For them (`encode_lines`) looking for the end, for what must be escaped, and copying
//! are one pass over words; calls and checks per line would cost more than its bytes.

/// What stands before the text of a line.
const HEAD: &[u8; 8] = b"{\"log\":\"";

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Whether an ASCII byte stands for itself.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x20;
    while byte < 0x80 {
        table[byte] = !matches!(byte as u8, b'"' | b'\\' | b'<' | b'>' | b'&');
        byte += 1;
    }
    table
};

/// What stands behind the text of a line: its line feed, the stream, attributes, time.
#[derive(Debug)]
pub(super) struct Tail {
    text: String,
    /// The same, to be copied without a call; of no use if it is longer.
    padded: [u8; TAIL_ROOM],
}

/// Room for tails without attributes.
const TAIL_ROOM: usize = 64;

impl Tail {
    /// For one stream and moment.
    pub(super) fn new(stream: &str, attributes: &str, time: &str) -> Self {
        let text = format!("\\n\",\"stream\":\"{stream}\",{attributes}\"time\":\"{time}\"}}\n");
        let mut padded = [0; TAIL_ROOM];
        let fits = text.len().min(TAIL_ROOM);
        padded[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        Self { text, padded }
    }
}

/// The member `attrs`, or nothing.
pub(super) fn attributes(attributes: &[(String, String)]) -> String {
    if attributes.is_empty() {
        return String::new();
    }
    let text = |text: &str| {
        let mut out = Vec::new();
        escape(&mut out, text.as_bytes());
        String::from_utf8_lossy(&out).into_owned()
    };
    let members: Vec<_> =
        attributes.iter().map(|(key, value)| format!("\"{}\":\"{}\"", text(key), text(value))).collect();
    format!("\"attrs\":{{{}}},", members.join(","))
}

/// Appends one object and its line feed. Whole lines end with `\n` in the log, parts of a line don't.
#[inline]
pub(super) fn encode(out: &mut Vec<u8>, text: &[u8], whole: bool, tail: &Tail) {
    out.extend_from_slice(HEAD);
    escape(out, text);
    // The escaped line feed is the first two bytes.
    out.extend_from_slice(&tail.text.as_bytes()[if whole { 0 } else { 2 }..]);
}

/// Where [`encode_lines`] puts its lines.
pub(super) type Scratch = [u8; 4 << 10];

/// An empty one.
pub(super) const SCRATCH: Scratch = [0; 4 << 10];

/// How much of a line [`encode_lines`] looks at: longer ones gain nothing from it.
const SHORT: usize = 128;

/// What [`encode_lines`] did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Encoded {
    /// Bytes of output, line feeds included.
    pub(super) read: usize,
    /// Bytes of the log.
    pub(super) written: usize,
}

/// Encodes lines that are whole, short and need no escape, up to the first that isn't; begins none when `limit` bytes are
/// written or `scratch` is full.
pub(super) fn encode_lines(scratch: &mut Scratch, data: &[u8], tail: &Tail, limit: usize) -> Encoded {
    let mut done = Encoded { read: 0, written: 0 };
    if tail.text.len() > TAIL_ROOM {
        return done;
    }
    while done.written < limit {
        let Some(place) = scratch[done.written..].first_chunk_mut() else { break };
        let Some(length) = encode_line(place, &data[done.read..], tail) else { break };
        done.read += length + 1;
        done.written += HEAD.len() + length + tail.text.len();
    }
    done
}

/// Room for a short line; what is written behind its end is overwritten by the next one.
type Place = [u8; HEAD.len() + SHORT + TAIL_ROOM];

/// Encodes the first line and returns the length of its text.
#[inline]
fn encode_line(place: &mut Place, data: &[u8], tail: &Tail) -> Option<usize> {
    let (head, place) = place.split_first_chunk_mut()?;
    *head = *HEAD;
    for (number, word) in data.as_chunks::<8>().0.iter().take(SHORT / 8).enumerate() {
        let at = 8 * number;
        place[at..at + 8].copy_from_slice(word);
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            let length = at + special.trailing_zeros() as usize / 8;
            if data[length] != b'\n' {
                return None;
            }
            place[length..length + TAIL_ROOM].copy_from_slice(&tail.padded);
            return Some(length);
        }
    }
    None
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The lowest bit set in it is in the first byte of the word that doesn't stand for itself; the others say nothing, since a
/// subtraction borrows from the bytes above.
#[inline]
fn special(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let is = |byte: u8| zero(word ^ (ONES * u64::from(byte)));
    // Pairs that differ in one bit.
    let one_of = |bit: u8, byte: u8| zero((word | (ONES * u64::from(bit))) ^ (ONES * u64::from(byte)));
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let found = word | control | is(b'\\') | one_of(b'"' ^ b'&', b'&') | one_of(b'<' ^ b'>', b'>');
    found & (ONES << 7)
}

/// How many bytes at the beginning stand for themselves.
#[inline]
fn plain_length(text: &[u8]) -> usize {
    let (blocks, _) = text.as_chunks::<16>();
    // Without a branch per byte, so that the compiler makes vector instructions of it.
    let is_plain = |block: &&[u8; 16]| {
        block.iter().fold(0, |odd, &byte| {
            odd | u8::from(!(0x20..0x80).contains(&byte))
                | u8::from(byte == b'"')
                | u8::from(byte == b'\\')
                | u8::from(byte == b'<')
                | u8::from(byte == b'>')
                | u8::from(byte == b'&')
        }) == 0
    };
    let begin = 16 * blocks.iter().take_while(is_plain).count();
    let found = text[begin..].iter().position(|&byte| !PLAIN[usize::from(byte)]);
    found.map_or(text.len(), |at| begin + at)
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    let mut rest = text;
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let Some(&byte) = rest.first() else { return };
        if byte < 0x80 {
            escape_ascii(out, byte);
            rest = &rest[1..];
        } else {
            // Up to the next ASCII byte: short, so that a line with one umlaut isn't checked twice as a whole.
            let end = rest.iter().position(|byte| *byte < 0x80).unwrap_or(rest.len());
            escape_unicode(out, &rest[..end]);
            rest = &rest[end..];
        }
    }
}

fn escape_ascii(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        _ => {
            let digits = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
        }
    }
}

fn escape_unicode(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        let mut valid = chunk.valid();
        while let Some(at) = valid.find(['\u{2028}', '\u{2029}']) {
            out.extend_from_slice(&valid.as_bytes()[..at]);
            out.extend_from_slice(if valid[at..].starts_with('\u{2028}') { b"\\u2028" } else { b"\\u2029" });
            valid = &valid[at + '\u{2028}'.len_utf8()..];
        }
        out.extend_from_slice(valid.as_bytes());
        // One per byte, as Go decodes.
        for _ in chunk.invalid() {
            out.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(text: &[u8], whole: bool) -> String {
        let mut out = Vec::new();
        encode(&mut out, text, whole, &Tail::new("stdout", "", "T"));
        String::from_utf8(out).expect("a log is UTF-8")
    }

    #[test]
    fn lines_are_dockers() {
        for (text, whole, log) in [
            (&b"hello"[..], true, r"hello\n"),
            (b"", true, r"\n"),
            (b"part", false, "part"),
            (b"a\"b\\c", true, r#"a\"b\\c\n"#),
            (b"\ta\rb\x00\x1b[0m\x7f", true, "\\u0009a\\rb\\u0000\\u001b[0m\x7f\\n"),
            (b"<a href=\"x\">&</a>", true, r#"\u003ca href=\"x\"\u003e\u0026\u003c/a\u003e\n"#),
            ("grün ☃ 🐙".as_bytes(), true, r"grün ☃ 🐙\n"),
            ("\u{2028}x\u{2029}".as_bytes(), true, r"\u2028x\u2029\n"),
            (b"a\xffb\xe2\x82c", true, r"a\ufffdb\ufffd\ufffdc\n"),
        ] {
            let expected = format!("{{\"log\":\"{log}\",\"stream\":\"stdout\",\"time\":\"T\"}}\n");
            assert_eq!(line(text, whole), expected, "{text:?}");
        }
    }

    #[test]
    fn attributes_stand_before_the_time() {
        let attributes = attributes(&[("a\"b".into(), "c<d".into()), ("e".into(), "f".into())]);
        let mut out = Vec::new();
        encode(&mut out, b"x", true, &Tail::new("stderr", &attributes, "T"));
        let expected = r#"{"log":"x\n","stream":"stderr","attrs":{"a\"b":"c\u003cd","e":"f"},"time":"T"}"#;
        assert_eq!(String::from_utf8(out).expect("text").trim_end(), expected);
    }

    #[test]
    fn short_lines_are_encoded_together() {
        let tail = Tail::new("stdout", "", "T");
        let mut scratch = SCRATCH;
        let mut encode = |data: &[u8], limit| {
            let done = encode_lines(&mut scratch, data, &tail, limit);
            (done.read, String::from_utf8(scratch[..done.written].to_vec()).expect("text"))
        };
        let text = b"one\n\ntwo and some more\na\"b\nand so on";
        let expected = line(b"one", true) + &line(b"", true) + &line(b"two and some more", true);
        assert_eq!(encode(text, 1000), (23, expected.clone()));
        // Whoever has a byte of room left has it for a line.
        assert_eq!(encode(text, expected.len() - 1), (23, expected));
        assert_eq!(encode(text, 1), (4, line(b"one", true)));
        assert_eq!(encode(text, 0), (0, String::new()));
        // More than a scratch holds.
        let (read, log) = encode(&b"x\n".repeat(5000), usize::MAX);
        assert!((2..5000).contains(&read) && log == line(b"x", true).repeat(read / 2), "{read}");
        let attributes = attributes(&[("key".into(), "a rather long value".into())]);
        let long = Tail::new("stdout", &attributes, "2026-11-21T00:56:31.123456789Z");
        assert_eq!(encode_lines(&mut scratch, text, &long, 1000), Encoded { read: 0, written: 0 });
    }

    proptest! {
        #[test]
        fn together_or_one_by_one_they_are_the_same(
            texts in proptest::collection::vec(("[ -~]{0,150}", proptest::option::weighted(0.1, any::<u8>())), 1..20),
        ) {
            let tail = Tail::new("stdout", "", "T");
            let lines: Vec<Vec<u8>> = texts.iter().map(|(text, odd)| [text.as_bytes(), odd.as_slice()].concat()).collect();
            let data: Vec<u8> = lines.iter().flat_map(|line| [line, &b"\n"[..]].concat()).collect();
            let (mut rest, mut log) = (&data[..], Vec::new());
            while let Some(end) = memchr::memchr(b'\n', rest) {
                let mut scratch = SCRATCH;
                let done = encode_lines(&mut scratch, rest, &tail, usize::MAX);
                log.extend_from_slice(&scratch[..done.written]);
                if done.read == 0 {
                    encode(&mut log, &rest[..end], true, &tail);
                    rest = &rest[end + 1..];
                }
                rest = &rest[done.read..];
            }
            let mut expected = Vec::new();
            for text in data.strip_suffix(b"\n").expect("lines").split(|byte| *byte == b'\n') {
                encode(&mut expected, text, true, &tail);
            }
            prop_assert_eq!(String::from_utf8(log), String::from_utf8(expected));
        }

        #[test]
        fn every_line_is_json_and_says_the_same(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let json: serde_json::Value = serde_json::from_str(&line(&text, true)).unwrap();
            if let Ok(valid) = std::str::from_utf8(&text) {
                prop_assert_eq!(json["log"].as_str().unwrap(), format!("{valid}\n"));
            }
        }
    }
}
