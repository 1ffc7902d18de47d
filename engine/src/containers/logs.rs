//! The log of a container, as the shim writes it: read from its end or its beginning, across rotated files, and followed
//! by inotify.

use super::{frames::Stream, locallog, log_config::Format};
use crate::time::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};
use tokio::io::unix::AsyncFd;

/// Longest line that is taken for one; the shim writes lines of 16 KiB, escaped six-fold at worst.
const LINE_LIMIT: u64 = 1 << 20;
/// Block of the backward search for the last lines.
const BLOCK: u64 = 64 << 10;

/// Which part of a log.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// From this moment on.
    pub since: Option<Timestamp>,
    /// Up to this moment.
    pub until: Option<Timestamp>,
    /// Only so many last lines.
    pub tail: Option<usize>,
    /// The time in front of each line.
    pub timestamps: bool,
    /// Attributes in front of each line.
    pub details: bool,
    /// How the log is written.
    pub format: Format,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    time: std::borrow::Cow<'a, str>,
    #[serde(default)]
    attrs: std::collections::BTreeMap<String, String>,
}

/// Reads lines in order.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    options: Options,
    /// Rotated files still to be read, oldest first, then the current one.
    files: VecDeque<File>,
    current: Option<BufReader<File>>,
    /// Inode of the newest file that was opened.
    newest: Option<u64>,
    partial: Vec<u8>,
    done: bool,
}

/// One message, whatever the format.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Which output.
    pub stream: Stream,
    /// When; not read where no option asks for times.
    pub time: Timestamp,
    /// With the end of its line, unless it is a part of one.
    pub text: Vec<u8>,
    /// By the driver's options.
    pub attributes: std::collections::BTreeMap<String, String>,
}

impl Reader {
    /// Opens the log; one that does not exist yet is empty.
    pub fn open(path: &Path, options: &Options) -> Self {
        let mut reader = Self {
            path: path.to_owned(),
            options: options.clone(),
            files: VecDeque::new(),
            current: None,
            newest: None,
            partial: Vec::new(),
            done: options.tail == Some(0),
        };
        let mut files = Vec::new();
        if let Ok(file) = File::open(path) {
            reader.newest = file.metadata().ok().map(|m| m.ino());
            files.push(file);
        }
        // Opened newest first, since a rotation meanwhile moves names to higher numbers: a file may then be seen twice,
        // which its inode tells, but none is missed.
        let mut seen: Vec<u64> = reader.newest.into_iter().collect();
        for number in 1.. {
            let Some((file, inode)) = open_rotated(path, number) else { break };
            if !seen.contains(&inode) {
                seen.push(inode);
                files.push(file);
            }
        }
        if let Some(lines) = options.tail {
            reader.files = last_lines(files, lines, options).into();
            if options.tail == Some(0) {
                // Only what comes from now on: the current file, at its end.
                reader.done = false;
                reader.files = seek_to_end(path).into_iter().collect();
            }
        } else {
            files.reverse();
            reader.files = files.into();
        }
        reader
    }

    /// The next line that is there and passes the options, as it is to be shown.
    pub fn next_line(&mut self) -> Option<(Stream, Vec<u8>)> {
        while !self.done {
            let raw = self.next_raw()?;
            if let Some(shown) = self.show(&raw) {
                return Some(shown);
            }
        }
        None
    }

    /// The next one as it is, if it passes the options.
    pub fn next_entry(&mut self) -> Option<Entry> {
        while !self.done {
            let raw = self.next_raw()?;
            if let Some(entry) = self.passing(&raw) {
                return Some(entry);
            }
        }
        None
    }

    fn next_raw(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.current.is_none() {
                self.current = Some(BufReader::with_capacity(64 << 10, self.files.pop_front()?));
                self.partial.clear();
            }
            let reader = self.current.as_mut()?;
            let whole = match self.options.format {
                Format::Json => read_line(reader, &mut self.partial),
                Format::Local => locallog::read_record(reader, &mut self.partial),
            };
            if whole {
                return Some(std::mem::take(&mut self.partial));
            }
            // The end of this file; the last one may grow.
            if self.files.is_empty() {
                return None;
            }
            self.current = None;
        }
    }

    /// Takes up a file that a rotation has begun, once all of the one before is read.
    pub fn look_for_rotation(&mut self) {
        let Ok(file) = File::open(&self.path) else { return };
        let inode = file.metadata().ok().map(|m| m.ino());
        if inode != self.newest {
            // Several rotations since the last look: those in between have numbers by now. A packed file is another file;
            // how it begins tells whether it is the one that has been read.
            let head = |file: &File| {
                let mut head = [0; 256];
                let count = file.read_at(&mut head, 0).unwrap_or(0);
                head[..count].to_vec()
            };
            let known = self.current.as_ref().map(|current| head(current.get_ref())).filter(|head| !head.is_empty());
            let mut missed = Vec::new();
            for number in 1.. {
                let Some((older, inode)) = open_rotated(&self.path, number) else { break };
                if Some(inode) == self.newest || self.newest.is_none() || known.as_ref() == Some(&head(&older)) {
                    break;
                }
                missed.push(older);
            }
            missed.reverse();
            self.files.extend(missed);
            self.files.push_back(file);
            self.newest = inode;
        }
    }

    fn passing(&mut self, raw: &[u8]) -> Option<Entry> {
        let options = &self.options;
        let timed = options.since.is_some() || options.until.is_some() || options.timestamps;
        // A line that cannot be read (a full disk cut it) is left out; the log goes on.
        let entry = decode(raw, options.format, timed)?;
        let wanted = match entry.stream {
            Stream::Stdout => options.stdout,
            Stream::Stderr => options.stderr,
        };
        if options.until.is_some_and(|until| entry.time > until) {
            self.done = true;
            return None;
        }
        if !wanted || options.since.is_some_and(|since| entry.time < since) {
            return None;
        }
        Some(entry)
    }

    fn show(&mut self, raw: &[u8]) -> Option<(Stream, Vec<u8>)> {
        let entry = self.passing(raw)?;
        let options = &self.options;
        let mut text = Vec::with_capacity(entry.text.len() + 32);
        if options.timestamps {
            text.extend_from_slice(entry.time.fixed().as_bytes());
            text.push(b' ');
        }
        if options.details {
            // Without attributes Docker writes the separator alone.
            let pair = |(key, value): (&String, &String)| format!("{}={}", escaped(key), escaped(value));
            let pairs: Vec<_> = entry.attributes.iter().map(pair).collect();
            text.extend_from_slice(pairs.join(",").as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&entry.text);
        Some((entry.stream, text))
    }
}

/// As in a query (Go's `url.QueryEscape`): what separates attributes must not be in them.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn decode(raw: &[u8], format: Format, timed: bool) -> Option<Entry> {
    match format {
        Format::Json => {
            let line: Line<'_> = serde_json::from_slice(raw).ok()?;
            Some(Entry {
                stream: Stream::parse(&line.stream)?,
                time: if timed { line.time.parse().unwrap_or_default() } else { Timestamp::NEVER },
                text: line.log.into_owned().into_bytes(),
                attributes: line.attrs,
            })
        }
        Format::Local => {
            let (source, nanos, text) = locallog::decode(raw)?;
            let time = Timestamp::from_parts(nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
            Some(Entry { stream: Stream::parse(&source)?, time, text, attributes: Default::default() })
        }
    }
}

/// True when `partial` holds a whole line.
fn read_line(reader: &mut BufReader<File>, partial: &mut Vec<u8>) -> bool {
    let room = LINE_LIMIT.saturating_sub(partial.len() as u64);
    // An error is an end: what can't be read is not there.
    let _ = reader.by_ref().take(room).read_until(b'\n', partial);
    partial.last() == Some(&b'\n') || partial.len() as u64 >= LINE_LIMIT
}

/// A predecessor, unpacked if need be, and what tells it from others.
fn open_rotated(path: &Path, number: u32) -> Option<(File, u64)> {
    let plain = rotated(path, number);
    if let Ok(file) = File::open(&plain) {
        let inode = file.metadata().ok()?.ino();
        return Some((file, inode));
    }
    let mut name = plain.into_os_string();
    name.push(".gz");
    let packed = File::open(name).ok()?;
    let inode = packed.metadata().ok()?.ino();
    // Without a name, so that nothing is left of it whatever happens.
    let mut unpacked = File::options();
    unpacked.read(true).write(true).custom_flags(nix::libc::O_TMPFILE);
    let mut unpacked = unpacked.open(path.parent()?).ok()?;
    // What a broken file holds before the break is shown.
    let _ = io::copy(&mut flate2::read::GzDecoder::new(packed), &mut unpacked);
    unpacked.rewind().ok()?;
    Some((unpacked, inode))
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn seek_to_end(path: &Path) -> Option<File> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::End(0)).ok()?;
    Some(file)
}

/// The files that hold the last lines, oldest first, each at the place where they begin. `files` are newest first.
fn last_lines(files: Vec<File>, lines: usize, options: &Options) -> Vec<File> {
    // Lines of the other stream don't count, so they have to be looked at.
    let selective = !(options.stdout && options.stderr) || options.until.is_some();
    let mut missing = lines;
    let mut chosen = Vec::new();
    for mut file in files {
        let found = if options.format == Format::Local {
            start_by_records(&mut file, missing, options)
        } else if selective {
            start_by_reading(&mut file, missing, options)
        } else {
            start_by_newlines(&mut file, missing)
        };
        let Ok((start, counted)) = found else { break };
        if file.seek(SeekFrom::Start(start)).is_err() {
            break;
        }
        chosen.push(file);
        missing = missing.saturating_sub(counted);
        if missing == 0 {
            break;
        }
    }
    chosen.reverse();
    chosen
}

/// Where the last `lines` lines begin, and how many there are; reads backwards.
fn start_by_newlines(file: &mut File, lines: usize) -> io::Result<(u64, usize)> {
    let length = file.metadata()?.len();
    let (mut position, mut counted) = (length, 0);
    let mut block = vec![0; BLOCK as usize];
    while position > 0 {
        let size = position.min(BLOCK);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let piece = &mut block[..size as usize];
        file.read_exact(piece)?;
        for (at, _) in piece.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = position + at as u64 + 1;
            // The newline at the very end closes the last line and begins none.
            if after < length {
                counted += 1;
                if counted == lines {
                    return Ok((after, lines));
                }
            }
        }
    }
    Ok((0, counted + usize::from(length > 0)))
}

fn start_by_reading(file: &mut File, lines: usize, options: &Options) -> io::Result<(u64, usize)> {
    let mut starts = VecDeque::new();
    let mut reader = BufReader::with_capacity(64 << 10, &mut *file);
    let (mut position, mut raw) = (0, Vec::new());
    loop {
        raw.clear();
        let read = reader.read_until(b'\n', &mut raw)? as u64;
        if read == 0 {
            break;
        }
        if let Ok(line) = serde_json::from_slice::<Line<'_>>(&raw) {
            let wanted = match Stream::parse(&line.stream) {
                Some(Stream::Stdout) => options.stdout,
                Some(Stream::Stderr) => options.stderr,
                None => false,
            };
            let late = options.until.is_some_and(|until| line.time.parse::<Timestamp>().is_ok_and(|time| time > until));
            if wanted && !late {
                starts.push_back(position);
                if starts.len() > lines {
                    starts.pop_front();
                }
            }
        }
        position += read;
    }
    Ok((starts.front().copied().unwrap_or(position), starts.len()))
}

/// The same for records, by the length behind each.
fn start_by_records(file: &mut File, lines: usize, options: &Options) -> io::Result<(u64, usize)> {
    let mut position = file.metadata()?.len();
    let mut counted = 0;
    let timed = options.until.is_some();
    while counted < lines
        && let Some((begin, record)) = locallog::record_before(file, position)?
    {
        position = begin;
        let entry = decode(&record, Format::Local, timed);
        counted += usize::from(entry.is_some_and(|entry| {
            let wanted = if entry.stream == Stream::Stdout { options.stdout } else { options.stderr };
            wanted && options.until.is_none_or(|until| entry.time <= until)
        }));
    }
    Ok((position, counted))
}

/// Wakes up when something happens to the files of a log.
pub struct Watch(AsyncFd<Watched>);

/// Gives its number, which nix's type keeps to itself.
struct Watched(Inotify);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Watches the folder of a log.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)?;
        #[expect(
            deprecated,
            reason = "the new form is unsafe; what it asks for holds: `Watched` owns the one number it gives"
        )]
        let watched = AsyncFd::new(Watched(inotify))?;
        Ok(Self(watched))
    }

    /// Returns when something has happened since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        // What exactly does not matter; the queue is emptied so that it can wake us again.
        while guard.get_inner().0.read_events().is_ok_and(|events| !events.is_empty()) {}
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(n: u32, stream: &str) -> String {
        let time = Timestamp::from_parts(i64::from(n), 5);
        format!("{{\"log\":\"{n}\\n\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n")
    }

    fn both() -> Options {
        Options { stdout: true, stderr: true, ..Options::default() }
    }

    fn read(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_line())
            .map(|(_, text)| String::from_utf8(text).unwrap().trim().to_owned())
            .collect()
    }

    #[test]
    fn selection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let lines = |range: std::ops::Range<u32>| {
            range.map(|n| line(n, if n % 2 == 0 { "stdout" } else { "stderr" })).collect::<String>()
        };
        std::fs::write(rotated(&path, 2), lines(0..3)).unwrap();
        std::fs::write(rotated(&path, 1), lines(3..6)).unwrap();
        std::fs::write(&path, lines(6..9)).unwrap();
        let at = |n| Some(Timestamp::from_parts(n, 0));
        let cases: [(Options, &[&str]); 7] = [
            (both(), &["0", "1", "2", "3", "4", "5", "6", "7", "8"]),
            (Options { tail: Some(2), ..both() }, &["7", "8"]),
            (Options { tail: Some(5), ..both() }, &["4", "5", "6", "7", "8"]),
            (Options { tail: Some(99), stderr: false, ..both() }, &["0", "2", "4", "6", "8"]),
            (Options { tail: Some(3), stdout: false, ..both() }, &["3", "5", "7"]),
            (Options { since: at(3), until: at(6), ..both() }, &["3", "4", "5"]),
            (Options { tail: Some(0), ..both() }, &[]),
        ];
        for (options, expected) in cases {
            assert_eq!(read(&mut Reader::open(&path, &options)), expected, "{options:?}");
        }
        let stamped = Options { tail: Some(1), timestamps: true, ..both() };
        assert_eq!(read(&mut Reader::open(&path, &stamped)), ["1970-01-01T00:00:08.000000005Z 8"]);
    }

    /// A record as the shim writes it.
    fn record(n: u32, stream: &str, partial: bool) -> Vec<u8> {
        let mut message = vec![0x0a, u8::try_from(stream.len()).unwrap()];
        message.extend_from_slice(stream.as_bytes());
        // A varint.
        message.push(0x10);
        let mut nanos = u64::from(n) * 1_000_000_000;
        while nanos >= 0x80 {
            message.push(nanos as u8 | 0x80);
            nanos >>= 7;
        }
        message.push(nanos as u8);
        let text = n.to_string();
        message.extend_from_slice(&[0x1a, u8::try_from(text.len()).unwrap()]);
        message.extend_from_slice(text.as_bytes());
        if partial {
            message.extend_from_slice(&[0x20, 1, 0x2a, 0]);
        }
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&length[..], &message, &length[..]].concat()
    }

    fn pack(path: &Path) {
        let text = std::fs::read(path).unwrap();
        let mut name = path.as_os_str().to_owned();
        name.push(".gz");
        let mut packed = flate2::GzBuilder::new().write(File::create(name).unwrap(), flate2::Compression::fast());
        packed.write_all(&text).unwrap();
        packed.finish().unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn local_logs_are_read_from_both_ends_and_packed_ones_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("container.log");
        let records = |range: std::ops::Range<u32>| {
            let stream = |n| if n % 2 == 0 { "stdout" } else { "stderr" };
            range.flat_map(|n| record(n, stream(n), false)).collect::<Vec<u8>>()
        };
        for (number, range) in [(2, 0..3), (1, 3..6)] {
            std::fs::write(rotated(&path, number), records(range)).unwrap();
            pack(&rotated(&path, number));
        }
        std::fs::write(&path, records(6..9)).unwrap();
        let local = || Options { format: Format::Local, ..both() };
        let at = |n| Some(Timestamp::from_parts(n, 0));
        let cases: [(Options, &[&str]); 6] = [
            (local(), &["0", "1", "2", "3", "4", "5", "6", "7", "8"]),
            (Options { tail: Some(2), ..local() }, &["7", "8"]),
            (Options { tail: Some(5), ..local() }, &["4", "5", "6", "7", "8"]),
            (Options { tail: Some(3), stdout: false, ..local() }, &["3", "5", "7"]),
            (Options { since: at(3), until: at(6), ..local() }, &["3", "4", "5", "6"]),
            (Options { tail: Some(0), ..local() }, &[]),
        ];
        for (options, expected) in cases {
            assert_eq!(read(&mut Reader::open(&path, &options)), expected, "{options:?}");
        }
        let mut reader = Reader::open(&path, &Options { tail: Some(1), timestamps: true, ..local() });
        assert_eq!(read(&mut reader), ["1970-01-01T00:00:08.000000000Z 8"]);
        // A record that comes in pieces, and a piece of a line.
        let (whole, piece) = (record(9, "stdout", false), record(10, "stdout", true));
        let append = |bytes: &[u8]| File::options().append(true).open(&path).unwrap().write_all(bytes).unwrap();
        for bytes in [&whole[..2], &whole[2..7], &whole[7..]] {
            append(bytes);
            let complete = bytes.len() == whole.len() - 7;
            assert_eq!(reader.next_line().is_some(), complete);
        }
        append(&piece);
        assert!(reader.next_line().is_some_and(|(_, text)| text.ends_with(b" 10")), "no line feed");
        // Rotated and packed before the reader looks: nothing comes twice.
        for number in [2, 1] {
            let name = |n| format!("{}.gz", rotated(&path, n).display());
            std::fs::rename(name(number), name(number + 1)).unwrap();
        }
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        pack(&rotated(&path, 1));
        std::fs::write(&path, record(11, "stdout", false)).unwrap();
        reader.look_for_rotation();
        assert_eq!(read(&mut reader), ["1970-01-01T00:00:11.000000000Z 11"]);
        // What isn't a record ends the log, and nothing worse.
        append(&[0xff; 64]);
        append(&whole);
        assert!(read(&mut reader).is_empty());
        assert!(read(&mut Reader::open(&path, &Options { tail: Some(1), ..local() })).len() <= 1);
    }

    #[test]
    fn growing_and_rotated_while_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let append =
            |text: &str| File::options().append(true).create(true).open(&path).unwrap().write_all(text.as_bytes());
        append(&line(1, "stdout")).unwrap();
        let half = line(2, "stdout");
        append(&half[..10]).unwrap();
        let mut reader = Reader::open(&path, &both());
        assert_eq!(read(&mut reader), ["1"]);
        append(&half[10..]).unwrap();
        assert_eq!(read(&mut reader), ["2"]);
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        append(&line(3, "stdout")).unwrap();
        std::fs::rename(rotated(&path, 1), rotated(&path, 2)).unwrap();
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
        append(&line(4, "stdout")).unwrap();
        reader.look_for_rotation();
        assert_eq!(read(&mut reader), ["3", "4"]);
        append("garbage\n").unwrap();
        append(&line(5, "stdout")).unwrap();
        assert_eq!(read(&mut reader), ["5"]);
        let mut nothing = Reader::open(&folder.path().join("none"), &both());
        assert!(read(&mut nothing).is_empty());
    }
}
