//! Docker's `local` format: protobuf records, each between two copies of its length.
//!
//! ```text
//!   u32 length (big endian) │ LogEntry │ the same u32
//!   LogEntry  { source = 1 string, time_nano = 2 int64, line = 3 bytes, partial = 4 bool, partial_log_metadata = 5 }
//!   metadata  { last = 1 bool, id = 2 string, ordinal = 3 int32 }
//! ```
//! The second length lets a reader go backwards. A line has no line feed; a piece that isn't the last of its line says so.

use super::lines::Entry;

/// Bytes of one length.
const LENGTH: usize = 4;

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    // Absent means empty (proto3).
    if !content.is_empty() {
        out.push(field << 3 | 2);
        varint(out, content.len() as u64);
        out.extend_from_slice(content);
    }
}

/// Appends one record.
pub(super) fn encode(out: &mut Vec<u8>, entry: &Entry<'_>, nanos: i64) {
    let begin = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    bytes(out, 1, entry.stream.name().as_bytes());
    if nanos != 0 {
        out.push(2 << 3);
        varint(out, nanos.cast_unsigned());
    }
    bytes(out, 3, entry.text);
    if let Some(partial) = entry.partial {
        out.extend_from_slice(&[4 << 3, 1]);
        let mut metadata = Vec::new();
        if partial.last {
            metadata.extend_from_slice(&[1 << 3, 1]);
        }
        bytes(&mut metadata, 2, format!("{:064x}", partial.id).as_bytes());
        metadata.push(3 << 3);
        varint(&mut metadata, u64::from(partial.ordinal));
        bytes(out, 5, &metadata);
    }
    let length = u32::try_from(out.len() - begin - LENGTH).unwrap_or(u32::MAX).to_be_bytes();
    out[begin..begin + LENGTH].copy_from_slice(&length);
    out.extend_from_slice(&length);
}

/// How many records of `batch` aren't whole in its first `done` bytes, and where the last whole one ends.
pub(super) fn missing(batch: &[u8], done: usize) -> (u64, usize) {
    let (mut place, mut whole, mut lost) = (0, 0, 0);
    while let Some(length) = batch.get(place..).and_then(|rest| rest.first_chunk::<LENGTH>()) {
        place += u32::from_be_bytes(*length) as usize + 2 * LENGTH;
        if place <= done {
            whole = place;
        } else {
            lost += 1;
        }
    }
    (lost, whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::lines::{Partial, Stream};

    #[test]
    fn records_are_framed_by_their_length() {
        let mut out = Vec::new();
        encode(&mut out, &Entry { stream: Stream::Stdout, text: b"hi", partial: None }, 300);
        let record = b"\x0a\x06stdout\x10\xac\x02\x1a\x02hi";
        let length = (record.len() as u32).to_be_bytes();
        assert_eq!(out, [&length[..], record, &length[..]].concat());
        let first = out.len();
        let partial = Some(Partial { id: 0xab, ordinal: 2, last: true });
        encode(&mut out, &Entry { stream: Stream::Stderr, text: b"", partial }, 1);
        let id = format!("{:064x}", 0xab);
        let record =
            [&b"\x0a\x06stderr\x10\x01\x20\x01\x2a\x46\x08\x01\x12\x40"[..], id.as_bytes(), b"\x18\x02"].concat();
        assert_eq!(&out[first + 4..out.len() - 4], record);
        assert_eq!(missing(&out, out.len()), (0, out.len()));
        assert_eq!(missing(&out, out.len() - 1), (1, first));
        assert_eq!(missing(&out, 0), (2, 0));
    }
}
