//! Docker's json-file format: one JSON object per line of output.
//!
//! `{"log":"text\n","stream":"stdout","time":"2026-11-21T00:56:31.25Z"}`. Escapes are those of docker's own writer (and of
//! Go's encoding/json before it knew short names for them): `\n`, `\r`, `\"`, `\\`; other control characters, `<`, `>`, `&`,
//! U+2028 and U+2029 as `\u00XX`; a byte that isn't UTF-8 as `\ufffd`.

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
pub(super) fn tail(stream: &str, attributes: &str, time: &str) -> String {
    format!("\\n\",\"stream\":\"{stream}\",{attributes}\"time\":\"{time}\"}}\n")
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
pub(super) fn encode(out: &mut Vec<u8>, text: &[u8], whole: bool, tail: &str) {
    out.extend_from_slice(b"{\"log\":\"");
    escape(out, text);
    // The escaped line feed is the first two bytes.
    out.extend_from_slice(&tail.as_bytes()[if whole { 0 } else { 2 }..]);
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
        encode(&mut out, text, whole, &tail("stdout", "", "T"));
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
        encode(&mut out, b"x", true, &tail("stderr", &attributes, "T"));
        let expected = r#"{"log":"x\n","stream":"stderr","attrs":{"a\"b":"c\u003cd","e":"f"},"time":"T"}"#;
        assert_eq!(String::from_utf8(out).expect("text").trim_end(), expected);
    }

    proptest! {
        #[test]
        fn every_line_is_json_and_says_the_same(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let json: serde_json::Value = serde_json::from_str(&line(&text, true)).unwrap();
            if let Ok(valid) = std::str::from_utf8(&text) {
                prop_assert_eq!(json["log"].as_str().unwrap(), format!("{valid}\n"));
            }
        }
    }
}
