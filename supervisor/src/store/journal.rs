//! The journal: every change of a record once more, in a file of its own and a form that damage can't spread in. The
//! database answers questions; should it be damaged, `check --repair` makes a new one of the journal, and nothing is lost.
//!
//! ```text
//! "berth journal 1\n"  { length u32 | crc32 u32 | changes }...
//! changes: { table: length u8, bytes | key: length u32, bytes | value: length u32 or REMOVED, bytes }...
//! ```
//! One frame is one transaction, appended after its commit, and not synced: what a power cut takes from its end it takes
//! only from here. Rewritten from the database at each start, and when it has grown.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use flate2::Crc;

const MAGIC: &[u8] = b"berth journal 1\n";

/// Length of a value that is none.
const REMOVED: u32 = u32::MAX;

/// A frame beyond this is no frame.
const FRAME_LIMIT: u32 = 256 << 20;

/// The dump is cut into frames of about this size: one that is damaged spoils no more.
const DUMP_FRAME: usize = 64 << 10;

/// A journal that has grown by so much, and doubled, is written anew.
const SLACK: u64 = 4 << 20;

/// The changes of one transaction.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<u8>);

impl Changes {
    /// Notes a record, or that there is none any more.
    pub(super) fn note(&mut self, table: &str, key: &str, value: Option<&[u8]>) {
        let length = |bytes: &[u8]| (bytes.len() as u32).to_le_bytes();
        self.0.push(table.len() as u8);
        self.0.extend_from_slice(table.as_bytes());
        self.0.extend_from_slice(&length(key.as_bytes()));
        self.0.extend_from_slice(key.as_bytes());
        match value {
            Some(value) => {
                self.0.extend_from_slice(&length(value));
                self.0.extend_from_slice(value);
            }
            None => self.0.extend_from_slice(&REMOVED.to_le_bytes()),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut crc = Crc::new();
        crc.update(&self.0);
        let head = [(self.0.len() as u32).to_le_bytes(), crc.sum().to_le_bytes()].concat();
        [&head, self.0.as_slice()].concat()
    }
}

/// The journal of an open database.
#[derive(Debug)]
pub(super) struct Journal {
    at: PathBuf,
    // None: not whole, and to be written anew after the next change.
    open: Option<File>,
    length: u64,
    dumped: u64,
}

impl Journal {
    /// A journal that is yet to be written.
    pub(super) fn new(at: PathBuf) -> Self {
        Self { at, open: None, length: 0, dumped: 0 }
    }

    /// Whether all of the database has to be dumped: it isn't whole, or has grown.
    pub(super) fn wants_dump(&self) -> bool {
        self.open.is_none() || self.length > 2 * self.dumped + SLACK
    }

    /// Adds a transaction. A journal that lacks one is none, and goes.
    pub(super) fn append(&mut self, changes: &Changes) {
        let (Some(file), false) = (&mut self.open, changes.0.is_empty()) else { return };
        let frame = changes.frame();
        match file.write_all(&frame) {
            Ok(()) => self.length += frame.len() as u64,
            Err(error) => self.give_up(&error),
        }
    }

    /// Forgets the file: it lacks something, or can't be written.
    pub(super) fn give_up(&mut self, error: &dyn std::error::Error) {
        if self.open.take().is_some() {
            tracing::warn!(%error, "journal of the metadata database dropped, to be written anew");
        }
        let _ = fs::remove_file(&self.at);
    }

    /// Writes the whole database, as (table, key, value), in place of what is there.
    pub(super) fn dump<E>(&mut self, records: impl IntoIterator<Item = Result<Record, E>>) -> Result<(), DumpError<E>> {
        let new = self.at.with_extension("journal.new");
        let mut file = File::options().create(true).truncate(true).write(true).open(&new).map_err(DumpError::Write)?;
        let mut length = MAGIC.len() as u64;
        file.write_all(MAGIC).map_err(DumpError::Write)?;
        let mut changes = Changes::default();
        let mut write = |changes: &mut Changes| {
            let frame = changes.frame();
            length += frame.len() as u64;
            changes.0.clear();
            file.write_all(&frame).map_err(DumpError::Write)
        };
        for record in records {
            let (table, key, value) = record.map_err(DumpError::Read)?;
            changes.note(&table, &key, Some(&value));
            if changes.0.len() >= DUMP_FRAME {
                write(&mut changes)?;
            }
        }
        write(&mut changes)?;
        // A name that is there after a power cut must have its content.
        file.sync_data().and_then(|()| fs::rename(&new, &self.at)).map_err(DumpError::Write)?;
        (self.open, self.length, self.dumped) = (Some(file), length, length);
        Ok(())
    }
}

/// Table, key with its namespace, value.
pub(crate) type Record = (String, String, Vec<u8>);

/// The journal can't be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DumpError<E> {
    /// The database.
    #[error("read the database")]
    Read(E),
    /// The file.
    #[error("write the journal")]
    Write(#[source] io::Error),
}

/// What a journal holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Records by table and key, as after the last frame that is well.
    pub(crate) records: BTreeMap<(String, String), Vec<u8>>,
    /// Whether it is whole up to its end.
    pub(crate) whole: bool,
}

/// Reads a journal up to its end, or to where it is damaged; `None` if there is none.
pub(crate) fn read(at: &Path) -> io::Result<Option<Contents>> {
    let file = match File::open(at) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    let mut contents = Contents::default();
    if reader.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Ok(Some(contents));
    }
    let mut at = MAGIC.len() as u64;
    while at < length {
        let Some(frame) = read_frame(&mut reader)? else { return Ok(Some(contents)) };
        at += 8 + frame.len() as u64;
        if apply(&frame, &mut contents.records).is_none() {
            return Ok(Some(contents));
        }
    }
    contents.whole = true;
    Ok(Some(contents))
}

fn read_frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    let ended = |error: io::Error| if error.kind() == io::ErrorKind::UnexpectedEof { Ok(None) } else { Err(error) };
    if let Err(error) = reader.read_exact(&mut head) {
        return ended(error);
    }
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if number(0) > FRAME_LIMIT {
        return Ok(None);
    }
    let mut frame = Vec::new();
    reader.take(number(0).into()).read_to_end(&mut frame)?;
    let mut crc = Crc::new();
    crc.update(&frame);
    Ok((frame.len() as u32 == number(0) && crc.sum() == number(4)).then_some(frame))
}

fn apply(mut frame: &[u8], records: &mut BTreeMap<(String, String), Vec<u8>>) -> Option<()> {
    fn number(frame: &mut &[u8]) -> Option<u32> {
        let (head, rest) = frame.split_first_chunk::<4>()?;
        *frame = rest;
        Some(u32::from_le_bytes(*head))
    }
    fn take<'a>(frame: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
        let (head, rest) = frame.split_at_checked(length)?;
        *frame = rest;
        Some(head)
    }
    while let Some((length, rest)) = frame.split_first() {
        frame = rest;
        let table = String::from_utf8(take(&mut frame, (*length).into())?.to_vec()).ok()?;
        let length = number(&mut frame)? as usize;
        let key = String::from_utf8(take(&mut frame, length)?.to_vec()).ok()?;
        match number(&mut frame)? {
            REMOVED => records.remove(&(table, key)),
            length => records.insert((table, key), take(&mut frame, length as usize)?.to_vec()),
        };
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &str) -> Result<Record, io::Error> {
        Ok(("things".into(), key.into(), value.into()))
    }

    fn values(contents: &Contents) -> Vec<(&str, &[u8])> {
        contents.records.iter().map(|((_, key), value)| (key.as_str(), value.as_slice())).collect()
    }

    #[test]
    fn what_is_written_is_read_up_to_the_first_damage() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("metadata.journal");
        assert_eq!(read(&at).unwrap(), None);
        let mut journal = Journal::new(at.clone());
        assert!(journal.wants_dump());
        journal.dump([record("a", "1"), record("b", "2")]).unwrap();
        assert!(!journal.wants_dump());
        let mut changes = Changes::default();
        changes.note("things", "a", None);
        changes.note("things", "c", Some(b"3"));
        journal.append(&changes);
        let whole = read(&at).unwrap().unwrap();
        assert_eq!((values(&whole), whole.whole), (vec![("b", &b"2"[..]), ("c", b"3")], true));
        // Cut anywhere, or with any byte wrong: a state that once was, and the word that it isn't whole.
        let bytes = fs::read(&at).unwrap();
        for end in 0..bytes.len() {
            fs::write(&at, &bytes[..end]).unwrap();
            let cut = read(&at).unwrap().unwrap();
            let first = cut.whole && values(&cut) == [("a", &b"1"[..]), ("b", b"2")];
            assert!(!cut.whole || first || values(&cut).is_empty(), "{end}: {cut:?}");
            let mut wrong = bytes.clone();
            wrong[end] ^= 0x10;
            fs::write(&at, &wrong).unwrap();
            assert!(!read(&at).unwrap().unwrap().whole, "{end}");
        }
    }

    #[test]
    fn a_journal_that_lacks_something_goes() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("metadata.journal");
        let mut journal = Journal::new(at.clone());
        journal.dump([record("a", "1")]).unwrap();
        journal.give_up(&io::Error::other("disk full"));
        assert!(journal.wants_dump() && !at.exists());
    }
}
