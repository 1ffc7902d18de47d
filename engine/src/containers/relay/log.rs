//! The log that the engine writes for a relay: docker's json-file format, rotated by size.

use crate::{containers::frames::Stream, time::Timestamp};
use serde::Serialize;
use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
};
use tracing::warn;

/// Longest piece of a line in one entry (docker's copier).
const LINE_LIMIT: usize = 16 << 10;

/// Where the log is, and how much of it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlace {
    /// Newest file; older ones have `.1`, `.2` behind their name.
    pub path: PathBuf,
    /// Bytes after which a new file begins.
    pub max_size: Option<u64>,
    /// Files kept.
    pub max_files: u32,
}

/// The open log.
#[derive(Debug)]
pub struct LogFile {
    place: LogPlace,
    file: File,
    size: u64,
    /// The unfinished lines of stdout and stderr.
    rest: [Vec<u8>; 2],
    /// The last failure was told; not again until a write succeeds.
    failing: bool,
}

#[derive(Serialize)]
struct Entry<'a> {
    log: Cow<'a, str>,
    stream: &'static str,
    time: String,
}

impl LogFile {
    /// Opens the newest file to append to it.
    pub fn open(place: LogPlace) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&place.path)?;
        let size = file.metadata()?.len();
        Ok(Self { place, file, size, rest: Default::default(), failing: false })
    }

    /// Adds output: whole lines are written, the rest is kept for the next call.
    pub fn write(&mut self, stream: Stream, piece: &[u8]) {
        let at = usize::from(stream == Stream::Stderr);
        let mut rest = std::mem::take(&mut self.rest[at]);
        rest.extend_from_slice(piece);
        let time = Timestamp::now().to_string();
        let mut batch = Vec::new();
        let mut begin = 0;
        while begin < rest.len() {
            let newline = rest[begin..].iter().position(|byte| *byte == b'\n').map(|at| begin + at + 1);
            let end = match newline {
                Some(end) if end - begin <= LINE_LIMIT + 1 => end,
                _ if rest.len() - begin >= LINE_LIMIT => begin + LINE_LIMIT,
                _ => break,
            };
            encode(&mut batch, &rest[begin..end], stream, &time);
            begin = end;
        }
        rest.drain(..begin);
        self.rest[at] = rest;
        self.append(&batch);
    }

    /// Writes unfinished lines: the output has ended.
    pub fn finish(&mut self) {
        let time = Timestamp::now().to_string();
        let mut batch = Vec::new();
        for (at, stream) in [Stream::Stdout, Stream::Stderr].into_iter().enumerate() {
            let rest = std::mem::take(&mut self.rest[at]);
            if !rest.is_empty() {
                encode(&mut batch, &rest, stream, &time);
            }
        }
        self.append(&batch);
    }

    fn append(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        if self.place.max_size.is_some_and(|limit| self.size >= limit) {
            self.rotate();
        }
        // A container must not stop because its log can't be written.
        match self.file.write_all(batch) {
            Ok(()) => {
                self.size += batch.len() as u64;
                self.failing = false;
            }
            Err(error) => {
                if !self.failing {
                    warn!(log = %self.place.path.display(), %error, "output is not kept");
                }
                self.failing = true;
                self.size = self.file.metadata().map_or(self.size, |metadata| metadata.len());
            }
        }
    }

    fn rotate(&mut self) {
        let name = |number: u32| match number {
            0 => self.place.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.place.path.display())),
        };
        for number in (1..self.place.max_files).rev() {
            // What isn't there needs no new name.
            let _ = fs::rename(name(number - 1), name(number));
        }
        if self.place.max_files <= 1 {
            let _ = self.file.set_len(0);
            self.size = 0;
            return;
        }
        match OpenOptions::new().append(true).create(true).mode(0o640).open(&self.place.path) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
            }
            Err(error) => warn!(log = %self.place.path.display(), %error, "log not rotated"),
        }
    }
}

fn encode(batch: &mut Vec<u8>, text: &[u8], stream: Stream, time: &str) {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    let entry = Entry { log: String::from_utf8_lossy(text), stream, time: time.to_owned() };
    // Writing to memory doesn't fail, and there is nothing in it that JSON can't hold.
    let _ = serde_json::to_writer(&mut *batch, &entry);
    batch.push(b'\n');
}
