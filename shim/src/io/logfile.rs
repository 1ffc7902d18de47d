//! A json-file log: cuts output into lines, writes them in few calls, turns to a new file at the size asked for.

use std::{
    cell::RefCell,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    rc::Rc,
    time::SystemTime,
};

use proto::stdio::JsonFile;

use super::jsonlog;
use crate::{clock, report::warn_line};

/// Longest piece of a line in one entry (docker's copier).
const LINE_LIMIT: usize = 16 << 10;
/// Encoded entries are written when there are that many bytes of them, and at the end of every read.
const BATCH: usize = 128 << 10;

/// The file and its rotated predecessors.
#[derive(Debug)]
pub(super) struct LogFile {
    place: JsonFile,
    file: File,
    /// What is in the file.
    size: u64,
    /// What is still to be written.
    batch: Vec<u8>,
    /// A write stopped half-way (disk full): the next one begins on a line of its own.
    torn: bool,
    /// The last failure was told; not again until a write succeeds.
    failing: bool,
}

fn open(path: &std::path::Path) -> io::Result<File> {
    // Append: the engine may have written there before us, and a shim started later goes on behind.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl LogFile {
    /// Opens the newest file to append to it.
    pub(super) fn open(place: JsonFile) -> io::Result<Self> {
        let file = open(&place.path)?;
        let size = file.metadata()?.len();
        Ok(Self { place, file, size, batch: Vec::new(), torn: false, failing: false })
    }

    fn add(&mut self, text: &[u8], whole: bool, stream: &str, time: &str) {
        if self.place.max_size.is_some_and(|limit| self.size + self.batch.len() as u64 >= limit) {
            self.flush();
            self.rotate();
        }
        jsonlog::encode(&mut self.batch, text, whole, stream, time);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes what has been collected. A container must not stop because its log can't be written: what the disk doesn't
    /// take is lost, and said once.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut rest = self.batch.as_slice();
        if self.torn && matches!(self.file.write(b"\n"), Ok(1)) {
            self.size += 1;
            self.torn = false;
        }
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => break,
                Ok(count) => {
                    self.size += count as u64;
                    rest = &rest[count..];
                    self.failing = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Entries end with a line feed: anything else before the rest means that one was cut.
                    let done = self.batch.len() - rest.len();
                    self.torn |= done > 0 && self.batch[done - 1] != b'\n';
                    if !self.failing {
                        self.failing = true;
                        warn_line!("write log {}: {error}", self.place.path.display());
                    }
                    break;
                }
            }
        }
        self.batch.clear();
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.place.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) {
        if let Err(error) = self.try_rotate() {
            // Rather a log that is too long than none.
            warn_line!("rotate log {}: {error}", self.place.path.display());
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        if self.place.max_files < 2 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        // Only those that exist are moved up: max-file may be a great number.
        let present = (1..self.place.max_files - 1).take_while(|number| self.numbered(*number).exists()).count();
        for number in (1..=u32::try_from(present).unwrap_or(u32::MAX)).rev() {
            fs::rename(self.numbered(number), self.numbered(number + 1))?;
        }
        match fs::rename(&self.place.path, self.numbered(1)) {
            // Somebody removed it; a new one is due anyway.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.file = open(&self.place.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

/// One stream's way into a log.
#[derive(Debug)]
pub(super) struct LogSink {
    file: Rc<RefCell<LogFile>>,
    stream: &'static str,
    /// The beginning of a line whose end hasn't come; at most [`LINE_LIMIT`].
    pending: Vec<u8>,
}

impl LogSink {
    /// A sink for `stream`.
    pub(super) fn new(file: Rc<RefCell<LogFile>>, stream: &'static str) -> Self {
        Self { file, stream, pending: Vec::new() }
    }

    /// Writes all lines that are complete, and keeps the rest.
    pub(super) fn write(&mut self, data: &[u8]) {
        let file = &mut *self.file.borrow_mut();
        let time = clock::rfc3339_nano(SystemTime::now());
        let mut rest = data;
        while !rest.is_empty() {
            let room = LINE_LIMIT - self.pending.len();
            let window = &rest[..rest.len().min(room)];
            match memchr::memchr(b'\n', window) {
                Some(end) if self.pending.is_empty() => {
                    file.add(&window[..end], true, self.stream, &time);
                    rest = &rest[end + 1..];
                }
                Some(end) => {
                    self.pending.extend_from_slice(&window[..end]);
                    file.add(&self.pending, true, self.stream, &time);
                    // Lines in pieces are the exception; memory is counted.
                    self.pending = Vec::new();
                    rest = &rest[end + 1..];
                }
                None => {
                    self.pending.extend_from_slice(window);
                    rest = &rest[window.len()..];
                    if self.pending.len() == LINE_LIMIT {
                        file.add(&self.pending, false, self.stream, &time);
                        self.pending = Vec::new();
                    }
                }
            }
        }
        file.flush();
    }

    /// Nothing to write at the moment: gives the buffer back.
    pub(super) fn rest(&mut self) {
        self.file.borrow_mut().batch = Vec::new();
    }

    /// The stream has ended: what is left of its last line is written.
    pub(super) fn finish(&mut self) {
        let file = &mut *self.file.borrow_mut();
        if !self.pending.is_empty() {
            let time = clock::rfc3339_nano(SystemTime::now());
            file.add(&std::mem::take(&mut self.pending), false, self.stream, &time);
            file.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sink(folder: &std::path::Path, max_size: Option<u64>, max_files: u32) -> LogSink {
        let place = JsonFile { path: folder.join("c-json.log"), max_size, max_files };
        LogSink::new(Rc::new(RefCell::new(LogFile::open(place).expect("log"))), "stdout")
    }

    fn entries(path: &std::path::Path) -> Vec<String> {
        let text = fs::read_to_string(path).expect("log");
        assert!(text.is_empty() || text.ends_with('\n'));
        let entry =
            |line| serde_json::from_str::<serde_json::Value>(line).expect("json")["log"].as_str().map(str::to_owned);
        text.lines().map(|line| entry(line).expect("log field")).collect()
    }

    #[test]
    fn lines_are_put_together_and_cut() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), None, 1);
        sink.write(b"one\ntw");
        sink.write(b"o\n\n");
        sink.write(&[b'x'; LINE_LIMIT]);
        sink.write(b"y\n");
        sink.write(&[b'z'; LINE_LIMIT + 1]);
        sink.write(b"\nend");
        sink.finish();
        sink.rest();
        let (x, z) = ("x".repeat(LINE_LIMIT), "z".repeat(LINE_LIMIT));
        let expected = ["one\n", "two\n", "\n", &x, "y\n", &z, "z\n", "end"];
        assert_eq!(entries(&folder.path().join("c-json.log")), expected);
    }

    #[test]
    fn files_turn_at_the_size_and_the_oldest_goes() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Some(200), 3);
        for number in 0..20 {
            sink.write(format!("line {number}\nsame read {number}\n").as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("name"))
            .collect();
        names.sort();
        assert_eq!(names, ["c-json.log", "c-json.log.1", "c-json.log.2"]);
        let mut all = Vec::new();
        for name in names.iter().rev() {
            let path = folder.path().join(name);
            assert!(fs::metadata(&path).expect("size").len() < 300);
            all.extend(entries(&path));
        }
        let expected: Vec<_> = (0..20).flat_map(|n| [format!("line {n}\n"), format!("same read {n}\n")]).collect();
        assert!(all.len() > 5 && expected.ends_with(&all), "the newest lines, each once: {all:?}");
    }

    #[test]
    fn a_single_file_begins_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let mut sink = sink(folder.path(), Some(100), 1);
        for number in 0..9 {
            sink.write(format!("line {number}\n").as_bytes());
        }
        let all = entries(&folder.path().join("c-json.log"));
        assert!(all.len() < 9 && all.last().is_some_and(|line| line == "line 8\n"), "{all:?}");
    }

    #[test]
    fn an_existing_log_is_continued() {
        let folder = tempfile::tempdir().expect("folder");
        sink(folder.path(), None, 1).write(b"before\n");
        sink(folder.path(), None, 1).write(b"after\n");
        assert_eq!(entries(&folder.path().join("c-json.log")), ["before\n", "after\n"]);
    }

    proptest! {
        #[test]
        fn however_it_is_read_the_text_is_the_same(pieces in proptest::collection::vec("[a\n]{0,40}", 0..20)) {
            let folder = tempfile::tempdir().unwrap();
            let mut sink = sink(folder.path(), Some(300), 1000);
            for piece in &pieces {
                sink.write(piece.as_bytes());
            }
            sink.finish();
            let mut names: Vec<u32> = fs::read_dir(folder.path()).unwrap()
                .filter_map(|e| e.unwrap().file_name().to_str().unwrap().strip_prefix("c-json.log.").and_then(|n| n.parse().ok()))
                .collect();
            names.sort_unstable_by(|a, b| b.cmp(a));
            let mut text: String = names.iter().flat_map(|n| entries(&folder.path().join(format!("c-json.log.{n}")))).collect();
            text.extend(entries(&folder.path().join("c-json.log")));
            prop_assert_eq!(text, pieces.concat());
        }
    }
}
