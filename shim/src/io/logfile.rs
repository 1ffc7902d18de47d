//! A log in a file: entries in few calls, a new file at the size asked for, the old ones numbered and, if asked for, packed.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use proto::stdio::LogFile as Place;

use super::{
    discard::{self, Discard},
    format::{Format, Stamp},
    jsonlog,
    lines::{Entry, LINE_LIMIT, Lines, Stream},
    queue::Record,
};
use crate::report::warn_line;

/// Encoded entries are written when there are that many bytes of them, and at the end of every read. What a file system
/// spends on a byte falls with the length of the call, since it takes memory in pieces as large as that.
const BATCH: usize = 512 << 10;

/// Room for the entry that makes a batch full; one that is escaped heavily takes more.
const LARGEST: usize = 2 * LINE_LIMIT;

/// The file and its rotated predecessors.
#[derive(Debug)]
pub(super) struct LogFile {
    place: Place,
    format: Format,
    file: File,
    /// What is in the file.
    size: u64,
    /// What is still to be written.
    batch: Vec<u8>,
    /// A write stopped half-way (disk full): the next one begins on a line of its own.
    torn: bool,
    /// The last failure was told; not again until a write succeeds.
    failing: bool,
    /// Entries that the disk didn't take since it last took one.
    lost: u64,
    /// There may be a rotated file to be packed.
    pack_due: bool,
    /// The number of the file that is being packed; it grows when files turn meanwhile.
    packing: Option<u32>,
    discard: Discard,
}

fn open(path: &Path) -> io::Result<File> {
    // Append: the engine may have written there before us, and a shim started later goes on behind.
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes a file that may not be there.
fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => warn_line!("remove {}: {error}", path.display()),
        _ => {}
    }
}

impl LogFile {
    /// Opens the newest file to append to it.
    pub(super) fn open(place: Place, format: Format) -> io::Result<Self> {
        let file = open(&place.path)?;
        let size = file.metadata()?.len();
        let mut log = Self {
            place,
            format,
            file,
            size,
            batch: Vec::new(),
            torn: false,
            failing: false,
            lost: 0,
            pack_due: false,
            packing: None,
            discard: Discard::default(),
        };
        if log.place.compress {
            // Left by a shim that ended while it packed.
            remove(&log.unfinished());
            log.pack_due = true;
        }
        Ok(log)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.place.path
    }

    /// Writes what `lines` makes of `data`.
    pub(super) fn write(&mut self, lines: &mut Lines, data: &[u8]) {
        let stamp = Stamp::new(SystemTime::now(), &self.format);
        let mut scratch = jsonlog::SCRATCH;
        let mut rest = data;
        while !rest.is_empty() {
            if lines.at_begin()
                && let Some(tail) = stamp.json_tail(lines.stream())
            {
                rest = self.add_lines(rest, tail, &mut scratch);
            }
            rest = lines.step(rest, |entry| self.add(&entry, &stamp));
        }
        self.flush();
    }

    /// Adds lines as long as they are easy ones; what is left begins with one that isn't.
    fn add_lines<'a>(&mut self, data: &'a [u8], tail: &jsonlog::Tail, scratch: &mut jsonlog::Scratch) -> &'a [u8] {
        let mut rest = data;
        loop {
            // An entry turns the file if it is full before, as when they are added one by one.
            let full = self.place.max_size.map_or(u64::MAX, |limit| limit.saturating_sub(self.size));
            let room = full.min(BATCH as u64).saturating_sub(self.batch.len() as u64);
            let lines = jsonlog::encode_lines(scratch, rest, tail, usize::try_from(room).unwrap_or(usize::MAX));
            if lines.read == 0 {
                return rest;
            }
            rest = &rest[lines.read..];
            self.reserve();
            self.batch.extend_from_slice(&scratch[..lines.written]);
            if self.batch.len() >= BATCH {
                self.flush();
            }
        }
    }

    /// Writes what is left in `lines`.
    pub(super) fn finish(&mut self, lines: &mut Lines) {
        let stamp = Stamp::new(SystemTime::now(), &self.format);
        lines.finish(|entry| self.add(&entry, &stamp));
        self.flush();
    }

    /// Writes entries that have waited.
    pub(super) fn write_records(&mut self, records: VecDeque<Record>) {
        for record in records {
            let stamp = Stamp::new(record.time, &self.format);
            self.add(&record.entry(), &stamp);
        }
        self.flush();
        self.rest();
    }

    /// Nothing to write at the moment: gives the buffer back.
    pub(super) fn rest(&mut self) {
        self.batch = Vec::new();
    }

    /// Goes on in a file at the same path, whatever has become of the old one.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.place.path)?;
        self.size = self.file.metadata()?.len();
        self.torn = false;
        Ok(())
    }

    #[inline]
    fn add(&mut self, entry: &Entry<'_>, stamp: &Stamp) {
        if self.place.max_size.is_some_and(|limit| self.size + self.batch.len() as u64 >= limit) {
            self.flush();
            // Unless the disk took nothing.
            if self.place.max_size.is_some_and(|limit| self.size >= limit) {
                self.rotate();
            }
        }
        self.reserve();
        self.format.encode(&mut self.batch, entry, stamp);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    #[inline]
    fn reserve(&mut self) {
        if self.batch.capacity() == 0 {
            // At once, rather than by doubling; what isn't used costs nothing.
            self.batch.reserve_exact(BATCH + LARGEST);
        }
    }

    /// Writes what has been collected. A container must not stop because its log can't be written: what the disk doesn't
    /// take is lost, counted, and the count is the first thing in the log once the disk takes something again.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let recovered = self.lost == 0 || self.tell_lost();
        let done = if recovered { self.put(&batch) } else { 0 };
        if done < batch.len() {
            self.lost += self.format.missing(&batch, done).0;
        }
        batch.clear();
        self.batch = batch;
    }

    fn tell_lost(&mut self) -> bool {
        let text = format!("[berth: {} messages could not be written to this log]", self.lost);
        let stamp = Stamp::new(SystemTime::now(), &self.format);
        let mut mark = Vec::new();
        let entry = Entry { stream: Stream::Stderr, text: text.as_bytes(), partial: None };
        self.format.encode(&mut mark, &entry, &stamp);
        let told = self.put(&mark) == mark.len();
        if told {
            warn_line!("log {} is written again, {} messages were lost", self.place.path.display(), self.lost);
            self.lost = 0;
        }
        told
    }

    /// How many bytes the file took.
    fn put(&mut self, bytes: &[u8]) -> usize {
        if self.torn {
            match self.file.write(b"\n") {
                Ok(1) => (self.size, self.torn) = (self.size + 1, false),
                _ => return 0,
            }
        }
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write(&bytes[done..]) {
                Ok(0) => break,
                Ok(count) => {
                    self.size += count as u64;
                    done += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    if !self.failing {
                        self.failing = true;
                        warn_line!("write log {}: {error}", self.place.path.display());
                    }
                    let whole = self.format.missing(bytes, done).1;
                    if whole < done {
                        self.mend((done - whole) as u64);
                    }
                    return done;
                }
            }
        }
        self.failing = false;
        done
    }

    /// An entry was cut off after `bytes` bytes.
    fn mend(&mut self, bytes: u64) {
        if !matches!(self.format, Format::Local) {
            // A line feed ends it, as soon as there is room for one. A reader may have seen the piece already.
            self.torn = true;
        } else if let Err(error) = self.file.set_len(self.size - bytes) {
            warn_line!("cut log {} to its last whole record: {error}", self.place.path.display());
        } else {
            self.size -= bytes;
        }
    }

    fn numbered(&self, number: u32) -> PathBuf {
        with_suffix(&self.place.path, &format!(".{number}"))
    }

    fn packed_name(&self, number: u32) -> PathBuf {
        with_suffix(&self.place.path, &format!(".{number}.gz"))
    }

    /// Where a packed file comes into being.
    fn unfinished(&self) -> PathBuf {
        with_suffix(&self.place.path, ".gz.tmp")
    }

    fn rotate(&mut self) {
        if let Err(error) = self.try_rotate() {
            // Rather a log that is too long than none.
            warn_line!("rotate log {}: {error}", self.place.path.display());
        }
    }

    fn try_rotate(&mut self) -> io::Result<()> {
        let most = self.place.max_files;
        if most < 2 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        // Only those that exist are moved up: max-file may be a great number.
        let exists = |number: &u32| self.numbered(*number).exists() || self.packed_name(*number).exists();
        let present = u32::try_from((1..most - 1).take_while(exists).count()).unwrap_or(u32::MAX);
        // The next file takes its name.
        let oldest = discard::hold(&self.numbered(present + 1));
        for number in (1..=present).rev() {
            for (from, to, other) in [
                (self.packed_name(number), self.packed_name(number + 1), self.numbered(number + 1)),
                (self.numbered(number), self.numbered(number + 1), self.packed_name(number + 1)),
            ] {
                match fs::rename(&from, to) {
                    // One file per number, whichever form it has.
                    Ok(()) => remove(&other),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        match fs::rename(&self.place.path, self.numbered(1)) {
            // Somebody removed it; a new one is due anyway.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if most == 2 {
            remove(&self.packed_name(1));
        }
        self.packing = self.packing.map(|number| number + 1);
        self.pack_due = self.place.compress;
        self.discard.free(oldest);
        self.reopen()
    }

    /// A rotated file that is to be packed, and where to; the caller does it and calls [`LogFile::packed`].
    pub(super) fn pack_request(&mut self) -> Option<(PathBuf, PathBuf)> {
        if !self.pack_due || self.packing.is_some() {
            return None;
        }
        self.pack_due = false;
        // The oldest first: the newer ones may be turned away before their time comes.
        let exists = |number: &u32| self.numbered(*number).exists() || self.packed_name(*number).exists();
        let number = (1..self.place.max_files).take_while(exists).filter(|n| self.numbered(*n).exists()).last()?;
        self.packing = Some(number);
        Some((self.numbered(number), self.unfinished()))
    }

    /// The packer is done; puts the result in the place of the file, wherever it has turned to meanwhile.
    pub(super) fn packed(&mut self, succeeded: bool) {
        let (Some(number), unfinished) = (self.packing.take(), self.unfinished()) else { return };
        if !succeeded {
            // Not again before the next turn: what failed once would fail on and on.
            warn_line!("pack {}: the packer failed", self.numbered(number).display());
            return remove(&unfinished);
        }
        self.pack_due = true;
        let plain = self.numbered(number);
        if number >= self.place.max_files || !plain.exists() {
            return remove(&unfinished);
        }
        match fs::rename(&unfinished, self.packed_name(number)) {
            Ok(()) => remove(&plain),
            Err(error) => warn_line!("put packed log {} in place: {error}", plain.display()),
        }
    }
}

#[cfg(test)]
mod tests;
