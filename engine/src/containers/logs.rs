//! The log of a container, as the shim writes it: read from its end or its beginning, across rotated files, and followed
//! by inotify.

use super::frames::Stream;
use crate::time::Timestamp;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Deserialize;
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, RawFd},
        unix::fs::MetadataExt,
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
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    log: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    stream: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    time: std::borrow::Cow<'a, str>,
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
            let Ok(file) = File::open(rotated(path, number)) else { break };
            let inode = file.metadata().map(|m| m.ino()).unwrap_or(0);
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

    fn next_raw(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.current.is_none() {
                self.current = Some(BufReader::with_capacity(64 << 10, self.files.pop_front()?));
                self.partial.clear();
            }
            let reader = self.current.as_mut()?;
            let room = LINE_LIMIT.saturating_sub(self.partial.len() as u64);
            let read = reader.by_ref().take(room).read_until(b'\n', &mut self.partial).unwrap_or(0);
            if self.partial.last() == Some(&b'\n') || self.partial.len() as u64 >= LINE_LIMIT {
                return Some(std::mem::take(&mut self.partial));
            }
            if read == 0 {
                // The end of this file; the last one may grow.
                if self.files.is_empty() {
                    return None;
                }
                self.current = None;
            }
        }
    }

    /// Takes up a file that a rotation has begun, once all of the one before is read.
    pub fn look_for_rotation(&mut self) {
        let Ok(file) = File::open(&self.path) else { return };
        let inode = file.metadata().ok().map(|m| m.ino());
        if inode != self.newest {
            // Several rotations since the last look: those in between have numbers by now.
            let mut missed = Vec::new();
            for number in 1.. {
                let Ok(older) = File::open(rotated(&self.path, number)) else { break };
                if older.metadata().ok().map(|m| m.ino()) == self.newest || self.newest.is_none() {
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

    fn show(&mut self, raw: &[u8]) -> Option<(Stream, Vec<u8>)> {
        // A line that cannot be read (a full disk cut it) is left out; the log goes on.
        let line: Line<'_> = serde_json::from_slice(raw).ok()?;
        let stream = Stream::parse(&line.stream)?;
        let options = &self.options;
        let wanted = match stream {
            Stream::Stdout => options.stdout,
            Stream::Stderr => options.stderr,
        };
        let timed = options.since.is_some() || options.until.is_some() || options.timestamps;
        let time = if timed { line.time.parse::<Timestamp>().unwrap_or_default() } else { Timestamp::NEVER };
        if options.until.is_some_and(|until| time > until) {
            self.done = true;
            return None;
        }
        if !wanted || options.since.is_some_and(|since| time < since) {
            return None;
        }
        let mut text = Vec::with_capacity(line.log.len() + 32);
        if options.timestamps {
            text.extend_from_slice(time.fixed().as_bytes());
            text.push(b' ');
        }
        if options.details {
            // No log option adds attributes so far, so there are none; Docker then writes the separator alone.
            text.push(b' ');
        }
        text.extend_from_slice(line.log.as_bytes());
        Some((stream, text))
    }
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
        let found = if selective {
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
