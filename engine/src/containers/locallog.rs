//! Docker's `local` log format, as the shim writes it: protobuf records, each between two copies of its length.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
};

/// Bytes of one length.
const LENGTH: usize = 4;
/// Longest record that is taken for one; the shim writes lines of 16 KiB.
const LIMIT: usize = 1 << 20;

/// Docker's message (moby, api/types/plugins/logdriver/entry.proto), as far as it is shown.
#[derive(Clone, PartialEq, prost::Message)]
struct LogEntry {
    #[prost(string, tag = "1")]
    source: String,
    #[prost(int64, tag = "2")]
    time_nano: i64,
    #[prost(bytes = "vec", tag = "3")]
    line: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    partial: Option<Partial>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Partial {
    #[prost(bool, tag = "1")]
    last: bool,
}

/// Continues to read a record with its lengths into `partial`; true when it is whole, and then it is the message alone.
pub fn read_record(reader: &mut BufReader<File>, partial: &mut Vec<u8>) -> bool {
    for _ in 0..2 {
        let length = partial.first_chunk::<LENGTH>().map(|length| u32::from_be_bytes(*length) as usize);
        if length.is_some_and(|length| length > LIMIT) {
            // Not a record: nothing behind it can be told apart any more.
            return false;
        }
        let wanted = length.map_or(LENGTH, |length| length + 2 * LENGTH);
        // An error is an end: what can't be read is not there.
        let _ = reader.by_ref().take((wanted - partial.len()) as u64).read_to_end(partial);
        if partial.len() < wanted {
            return false;
        }
        if length.is_some() {
            break;
        }
    }
    partial.drain(..LENGTH);
    partial.truncate(partial.len() - LENGTH);
    true
}

/// The record that ends at a place, and where it begins.
pub fn record_before(file: &File, end: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut length = [0; LENGTH];
    let Some(at) = end.checked_sub(LENGTH as u64) else { return Ok(None) };
    file.read_exact_at(&mut length, at)?;
    let size = u32::from_be_bytes(length) as usize;
    let begin = end.checked_sub(size as u64 + 2 * LENGTH as u64).filter(|_| size <= LIMIT);
    let Some(begin) = begin else { return Ok(None) };
    let mut record = vec![0; size];
    file.read_exact_at(&mut record, begin + LENGTH as u64)?;
    Ok(Some((begin, record)))
}

/// Stream, time in nanoseconds since 1970, and text of a record; a line has its line feed back.
pub fn decode(record: &[u8]) -> Option<(String, i64, Vec<u8>)> {
    let LogEntry { source, time_nano, mut line, partial } = prost::Message::decode(record).ok()?;
    if partial.is_none_or(|partial| partial.last) {
        line.push(b'\n');
    }
    Some((source, time_nano, line))
}
