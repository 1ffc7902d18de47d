//! How entries look in a file.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{
    jsonlog,
    lines::{Entry, Stream},
    locallog,
};
use crate::clock;

/// The three formats.
#[derive(Debug, Clone)]
pub(super) enum Format {
    /// Docker's JSON lines; with the member `attrs` as text, if there are attributes.
    Json(Box<str>),
    /// Docker's binary records.
    Local,
    /// CRI: `TIME STREAM TAG TEXT`, tag `P` for a piece of a line, `F` for its end (Kubernetes, CRI logging).
    Cri,
}

/// A moment, ready to be written with every entry of one read.
#[derive(Debug)]
pub(super) struct Stamp {
    nanos: i64,
    text: String,
    /// What follows the text in a JSON entry, by stream.
    tails: Option<[jsonlog::Tail; 2]>,
}

impl Stamp {
    /// A moment, as `format` wants it.
    pub(super) fn new(at: SystemTime, format: &Format) -> Self {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let text = if matches!(format, Format::Local) { String::new() } else { clock::rfc3339_nano(at) };
        let tails = match format {
            Format::Json(attributes) => Some(
                [Stream::Stdout, Stream::Stderr].map(|stream| jsonlog::Tail::new(stream.name(), attributes, &text)),
            ),
            Format::Local | Format::Cri => None,
        };
        Self { nanos: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX), text, tails }
    }

    /// What follows the text of a JSON entry.
    #[inline]
    pub(super) fn json_tail(&self, stream: Stream) -> Option<&jsonlog::Tail> {
        self.tails.as_ref().map(|tails| &tails[usize::from(stream == Stream::Stderr)])
    }
}

impl Format {
    /// JSON with these attributes.
    pub(super) fn json(attributes: &[(String, String)]) -> Self {
        Self::Json(jsonlog::attributes(attributes).into())
    }

    /// Appends an entry.
    #[inline]
    pub(super) fn encode(&self, out: &mut Vec<u8>, entry: &Entry<'_>, stamp: &Stamp) {
        match self {
            Self::Json(_) => {
                // Every stamp of this format has them.
                if let Some(tail) = stamp.json_tail(entry.stream) {
                    jsonlog::encode(out, entry.text, entry.ends_line(), tail);
                }
            }
            Self::Local => locallog::encode(out, entry, stamp.nanos),
            Self::Cri => {
                out.extend_from_slice(stamp.text.as_bytes());
                out.push(b' ');
                out.extend_from_slice(entry.stream.name().as_bytes());
                out.extend_from_slice(if entry.ends_line() { b" F " } else { b" P " });
                out.extend_from_slice(entry.text);
                out.push(b'\n');
            }
        }
    }

    /// How many entries of `batch` aren't whole in its first `done` bytes, and where the last whole one ends.
    pub(super) fn missing(&self, batch: &[u8], done: usize) -> (u64, usize) {
        if let Self::Local = self {
            return locallog::missing(batch, done);
        }
        let lost = memchr::memchr_iter(b'\n', &batch[done..]).count();
        (lost as u64, memchr::memrchr(b'\n', &batch[..done]).map_or(0, |at| at + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::lines::Partial;
    use std::time::Duration;

    #[test]
    fn cri_lines() {
        let stamp = Stamp::new(UNIX_EPOCH + Duration::new(1, 500_000_000), &Format::Cri);
        let mut out = Vec::new();
        let piece = |last| Some(Partial { id: 7, ordinal: 1, last });
        for (stream, text, partial) in [
            (Stream::Stdout, &b"a line"[..], None),
            (Stream::Stderr, b"begin", piece(false)),
            (Stream::Stderr, b"", piece(true)),
        ] {
            Format::Cri.encode(&mut out, &Entry { stream, text, partial }, &stamp);
        }
        let expected = "1970-01-01T00:00:01.5Z stdout F a line\n1970-01-01T00:00:01.5Z stderr P begin\n\
                        1970-01-01T00:00:01.5Z stderr F \n";
        assert_eq!(String::from_utf8(out.clone()).expect("text"), expected);
        assert_eq!(Format::Cri.missing(&out, out.len()), (0, out.len()));
        assert_eq!(Format::Cri.missing(&out, out.len() - 1), (1, 77));
        assert_eq!(Format::Cri.missing(&out, 3), (3, 0));
    }
}
