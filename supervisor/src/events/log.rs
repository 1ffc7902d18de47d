//! The event log: every event with its number, kept in files of bounded size, so that who was away can read what it missed.
//!
//! `FIRST.events` holds the events from number FIRST on; the newest file is appended to, the oldest goes when the newest is
//! full. One record is length, checksum, and the envelope with its number. An event is in the file before any subscriber
//! gets it: a supervisor that is killed repeats nothing and skips nothing.
//!
//! Nothing is synced: what a sync would save from is the loss of power, after which no container lives that an event could
//! be about. But numbers must not be given twice: the first start after a boot leaves a gap that is wider than anything
//! that may have been lost.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use prost::Message;
use proto::containerd::services::events::v1::Envelope;

/// How much of the disk the log takes, all files together.
pub(crate) const LOG_BYTES: u64 = 4 << 20;
/// Of how many files it consists.
const FILES: u64 = 4;
/// Longest record. Publishers are held to less.
const RECORD_LIMIT: usize = 1 << 20;
/// Numbers that are left out after a boot.
const BOOT_GAP: u64 = 1_000_000;

/// The log of one supervisor.
pub(super) struct EventLog {
    folder: PathBuf,
    limit: u64,
    // The first number of every file, oldest first.
    firsts: Vec<u64>,
    // The newest file and its length; `None` after a failure, until the next event.
    newest: Option<(File, u64)>,
    next: u64,
}

impl EventLog {
    /// Opens the log in `folder`, which may take `limit` bytes. Half a record at its end is what a crash left, and is cut off.
    pub(super) fn open(folder: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut firsts = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name();
            firsts.extend(name.to_str().and_then(|name| name.strip_suffix(".events")?.parse::<u64>().ok()));
        }
        firsts.sort_unstable();
        let mut log = Self { folder: folder.to_owned(), limit, firsts, newest: None, next: 1 };
        if let Some(first) = log.firsts.last().copied() {
            let file = File::options().read(true).append(true).open(log.file_of(first))?;
            let mut records = Records(BufReader::new(&file));
            log.next = first;
            let mut length = 0;
            while let Ok(Some((envelope, size))) = records.next() {
                log.next = envelope.sequence + 1;
                length += size;
            }
            file.set_len(length)?;
            log.newest = Some((file, length));
        }
        if log.is_first_since_boot()? && log.next > 1 {
            log.next += BOOT_GAP;
        }
        Ok(log)
    }

    fn is_first_since_boot(&self) -> io::Result<bool> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let note = self.folder.join("boot");
        if fs::read_to_string(&note).is_ok_and(|noted| noted == boot) {
            return Ok(false);
        }
        fs::write(note, boot)?;
        Ok(true)
    }

    fn file_of(&self, first: u64) -> PathBuf {
        self.folder.join(format!("{first:020}.events"))
    }

    /// The number of the last event.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The number of the oldest event that is kept.
    pub(super) fn oldest(&self) -> u64 {
        self.firsts.first().copied().unwrap_or(self.next)
    }

    /// Gives the event its number and keeps it. If that fails, the event has its number all the same, and the log begins
    /// anew behind it: a log with a hole would be taken for a whole one.
    pub(super) fn append(&mut self, envelope: &mut Envelope) -> io::Result<()> {
        envelope.sequence = self.next;
        self.next += 1;
        let kept = self.write(envelope);
        if kept.is_err() {
            self.newest = None;
            for first in std::mem::take(&mut self.firsts) {
                let _ = fs::remove_file(self.file_of(first));
            }
        }
        kept
    }

    fn write(&mut self, envelope: &Envelope) -> io::Result<()> {
        let payload = envelope.encode_to_vec();
        if payload.len() > RECORD_LIMIT {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "event is longer than 1 MiB"));
        }
        if self.newest.as_ref().is_none_or(|(_, length)| *length >= self.limit / FILES) {
            let first = envelope.sequence;
            let file = File::options().create(true).truncate(true).write(true).open(self.file_of(first))?;
            self.newest = Some((file, 0));
            self.firsts.push(first);
            while self.firsts.len() as u64 > FILES {
                let oldest = self.firsts.remove(0);
                fs::remove_file(self.file_of(oldest))?;
            }
        }
        let Some((file, length)) = &mut self.newest else { return Ok(()) };
        let mut record = Vec::with_capacity(8 + payload.len());
        record.extend((payload.len() as u32).to_le_bytes());
        record.extend(checksum(&payload).to_le_bytes());
        record.extend(&payload);
        file.write_all(&record)?;
        *length += record.len() as u64;
        Ok(())
    }

    /// The events after number `since`, up to now; `None` if some of them are gone. The files are open from now on: what is
    /// removed meanwhile is read nevertheless.
    pub(super) fn replay(&self, since: u64) -> io::Result<Option<Replay>> {
        // 0 asks for whatever is kept.
        if since != 0 && since + 1 < self.oldest() && since < self.last() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for (index, first) in self.firsts.iter().enumerate() {
            // All of a file is behind us if the next one begins there as well.
            if self.firsts.get(index + 1).is_none_or(|next| *next > since + 1) && since < self.last() {
                files.push(Records(BufReader::new(File::open(self.file_of(*first))?)));
            }
        }
        files.reverse();
        Ok(Some(Replay { files, since, last: self.last() }))
    }
}

/// Events of the past, oldest first.
pub(crate) struct Replay {
    // The one to read next is the last.
    files: Vec<Records<BufReader<File>>>,
    since: u64,
    last: u64,
}

impl Replay {
    /// The next event.
    pub(crate) fn next(&mut self) -> io::Result<Option<Envelope>> {
        while let Some(file) = self.files.last_mut() {
            match file.next()? {
                Some((envelope, _)) if envelope.sequence > self.last => return Ok(None),
                Some((envelope, _)) if envelope.sequence > self.since => return Ok(Some(envelope)),
                Some(_) => {}
                None => drop(self.files.pop()),
            }
        }
        Ok(None)
    }
}

/// The records of one file.
struct Records<R>(R);

impl<R: Read> Records<R> {
    /// The next one and its length; `None` at the end, or at half a record, which ends a file after a crash.
    fn next(&mut self) -> io::Result<Option<(Envelope, u64)>> {
        let mut head = [0; 8];
        if !fill(&mut self.0, &mut head)? {
            return Ok(None);
        }
        let [a, b, c, d, sum @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let damaged = |why| io::Error::new(io::ErrorKind::InvalidData, format!("event log: {why}"));
        if length > RECORD_LIMIT {
            return Err(damaged("a record is too long"));
        }
        let mut payload = vec![0; length];
        if !fill(&mut self.0, &mut payload)? {
            return Ok(None);
        }
        if checksum(&payload) != u32::from_le_bytes(sum) {
            return Err(damaged("a checksum is wrong"));
        }
        let envelope = Envelope::decode(&*payload).map_err(|_| damaged("a record is no event"))?;
        Ok(Some((envelope, 8 + length as u64)))
    }
}

/// Fills the buffer; `false` if the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(topic: &str) -> Envelope {
        Envelope { topic: topic.into(), namespace: "ns".into(), ..Default::default() }
    }

    fn numbers(log: &EventLog, since: u64) -> Option<Vec<u64>> {
        let mut replay = log.replay(since).unwrap()?;
        let mut found = Vec::new();
        while let Some(envelope) = replay.next().unwrap() {
            found.push(envelope.sequence);
        }
        Some(found)
    }

    fn append(log: &mut EventLog, count: u64) {
        for _ in 0..count {
            log.append(&mut event("/a")).unwrap();
        }
    }

    #[test]
    fn what_was_missed_comes_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
        assert_eq!((log.last(), numbers(&log, 0)), (0, Some(vec![])));
        append(&mut log, 3);
        drop(log);
        let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
        append(&mut log, 2);
        assert_eq!(numbers(&log, 0), Some(vec![1, 2, 3, 4, 5]));
        assert_eq!(numbers(&log, 3), Some(vec![4, 5]));
        assert_eq!(numbers(&log, 5), Some(vec![]));
        // From a number that a lost log had given: nothing of it is known, but nothing is missed either.
        assert_eq!(numbers(&log, 99), Some(vec![]));
    }

    #[test]
    fn its_size_is_bounded_and_what_is_gone_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), 4096).unwrap();
        append(&mut log, 1000);
        let size: u64 = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(size < 6000, "{size}");
        let oldest = log.oldest();
        assert!(oldest > 800 && oldest < 1000, "{oldest}");
        assert_eq!(numbers(&log, oldest - 2), None);
        assert_eq!(numbers(&log, oldest - 1).unwrap().len() as u64, 1000 - oldest + 1);
        assert_eq!(numbers(&log, 0).unwrap().first(), Some(&oldest));
        // A replay that began reads on although its files go.
        let mut replay = log.replay(oldest).unwrap().unwrap();
        append(&mut log, 1000);
        let mut found = 0;
        while replay.next().unwrap().is_some() {
            found += 1;
        }
        assert_eq!(found, 1000 - oldest);
        let log = EventLog::open(folder.path(), 4096).unwrap();
        assert_eq!(log.last(), 2000);
    }

    #[test]
    fn half_a_record_is_cut_off_and_garbage_ends_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |log: &EventLog| log.file_of(*log.firsts.last().unwrap());
        for damage in [&b"\x09\0\0"[..], &b"\x01\0\0\0\0\0\0\0\x08"[..], &[0xff; 40][..]] {
            let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
            append(&mut log, 1);
            let last = log.last();
            let mut tail = File::options().append(true).open(file(&log)).unwrap();
            tail.write_all(damage).unwrap();
            drop(log);
            let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
            append(&mut log, 1);
            assert_eq!(numbers(&log, last - 1), Some(vec![last, last + 1]));
        }
    }

    #[test]
    fn after_a_boot_no_number_is_given_twice() {
        let folder = tempfile::tempdir().unwrap();
        append(&mut EventLog::open(folder.path(), LOG_BYTES).unwrap(), 2);
        fs::write(folder.path().join("boot"), "another").unwrap();
        let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
        append(&mut log, 1);
        assert_eq!(numbers(&log, 1), Some(vec![2, 3 + BOOT_GAP]));
        // One that was lost with the power.
        assert_eq!(numbers(&log, 7), Some(vec![3 + BOOT_GAP]));
    }

    #[test]
    fn a_log_that_can_not_be_written_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = EventLog::open(folder.path(), LOG_BYTES).unwrap();
        append(&mut log, 2);
        let mut long = event(&"x".repeat(RECORD_LIMIT));
        assert!(log.append(&mut long).is_err());
        assert_eq!(long.sequence, 3);
        append(&mut log, 1);
        assert_eq!((numbers(&log, 2), numbers(&log, 3)), (None, Some(vec![4])));
    }
}
