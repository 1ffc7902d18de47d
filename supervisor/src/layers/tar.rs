//! Reads tar archives one entry at a time: ustar, PAX and GNU long names; the `tar` crate interprets single headers.
//!
//! Its own iterator reads long names and PAX records of any size into memory; here each has a limit, since archives come
//! from strangers (CVE-2017-14992).

mod sparse;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

pub(crate) use sparse::Sparse;
use sparse::SparseRecords;

const BLOCK: usize = 512;
/// Names and values, as bytes.
pub(crate) type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Largest extended header: names and attributes of one entry.
const EXTENDED_LIMIT: u64 = 1 << 20;

/// Why an archive can't be read further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// Not a header.
    #[error("tar header at byte {at}: {why}")]
    Header {
        /// Where it begins.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// An extended header that is too big or not in its format.
    #[error("extended tar header at byte {at}: {why}")]
    Extended {
        /// Where it begins.
        at: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A kind of entry that we don't know.
    #[error("tar entry {path:?} has the unsupported type {kind:?}")]
    Kind {
        /// Its path.
        path: String,
        /// The type byte.
        kind: char,
    },
    /// The stream failed or ended early.
    #[error("read archive")]
    Read(#[source] io::Error),
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and where it points.
    Symlink(Vec<u8>),
    /// Another name for an earlier entry.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One entry, with everything that extended headers said about it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Its path, as the archive has it.
    pub(crate) path: Vec<u8>,
    /// What it is.
    pub(crate) kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes that follow.
    pub(crate) size: u64,
    /// Extended attributes.
    pub(crate) xattrs: Records,
    /// Of a sparse file: where the bytes that follow belong.
    pub(crate) sparse: Option<Sparse>,
}

/// The archive; after `next_entry` it reads as the bytes of that entry.
pub(crate) struct TarReader<R> {
    input: R,
    // Bytes of the present entry still to come, and the zeros after them.
    left: u64,
    padding: u64,
    at: u64,
    global: Records,
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends within an entry"));
        }
        self.left -= got as u64;
        self.at += got as u64;
        Ok(got)
    }
}

impl<R: BufRead> TarReader<R> {
    /// Some bytes of the present entry, without copying them; none at its end. `consume` takes them.
    pub(crate) fn fill(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let there = self.input.fill_buf()?;
        if there.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "archive ends within an entry"));
        }
        let n = there.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        Ok(&there[..n])
    }

    /// What the archive is read from.
    pub(crate) fn input(&self) -> &R {
        &self.input
    }

    /// Takes so many of the bytes that `fill` gave.
    pub(crate) fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left -= amount as u64;
        self.at += amount as u64;
    }
}

impl<R: Read> TarReader<R> {
    /// An archive from its first byte.
    pub(crate) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, at: 0, global: Vec::new() }
    }

    /// Skips what is left of the present entry and reads the next one; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut records: Records = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip_entry()?;
            let at = self.at;
            let Some(header) = self.header()? else { return Ok(None) };
            let bad = |why| TarError::Header { at, why };
            let size = filled(header.entry_size(), &header.as_old().size).map_err(|_| bad("size is not a number"))?;
            // No file system holds more, and sums with it could overflow.
            if size > i64::MAX as u64 {
                return Err(bad("size is beyond 63 bits"));
            }
            let kind = header.entry_type();
            match kind {
                EntryType::XHeader => records.extend(self.records(at, size)?),
                EntryType::XGlobalHeader => {
                    self.global = self.records(at, size)?;
                    records.splice(0..0, self.global.clone());
                }
                EntryType::GNULongName => long_name = Some(self.name(at, size)?),
                EntryType::GNULongLink => long_link = Some(self.name(at, size)?),
                _ => return self.entry(at, &header, size, records, long_name, long_link).map(Some),
            }
        }
    }

    /// Reads to the end of the input, past the archive's end: digests cover that too.
    pub(crate) fn drain(mut self) -> Result<R, TarError> {
        self.skip_entry()?;
        io::copy(&mut self.input, &mut io::sink()).map_err(TarError::Read)?;
        Ok(self.input)
    }

    fn entry(
        &mut self,
        at: u64,
        header: &Header,
        size: u64,
        records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let bad = |why| TarError::Header { at, why };
        let mut path = long_name.unwrap_or_else(|| header.path_bytes().into_owned());
        let mut link = long_link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let mut uid = filled(header.uid(), &header.as_old().uid).map_err(|_| bad("owner is not a number"))?;
        let mut gid = filled(header.gid(), &header.as_old().gid).map_err(|_| bad("group is not a number"))?;
        let mut mtime = (header.mtime().map_or(0, |t| t.min(i64::MAX as u64) as i64), 0);
        let mut size = size;
        let mut xattrs = Vec::new();
        let mut sparse = SparseRecords::default();
        for (key, value) in records {
            let extended = |why| TarError::Extended { at, why };
            match key.as_slice() {
                b"path" => path = value,
                b"linkpath" => link = value,
                b"size" => size = number(&value).ok_or_else(|| extended("size is not a number"))?,
                b"uid" => uid = number(&value).ok_or_else(|| extended("uid is not a number"))?,
                b"gid" => gid = number(&value).ok_or_else(|| extended("gid is not a number"))?,
                b"mtime" => mtime = time(&value).ok_or_else(|| extended("mtime is not a time"))?,
                key if key.starts_with(b"SCHILY.xattr.") => {
                    // The last one wins, as for every other record.
                    let name = key[b"SCHILY.xattr.".len()..].to_vec();
                    xattrs.retain(|(known, _)| *known != name);
                    xattrs.push((name, value));
                }
                key if key.starts_with(b"GNU.sparse.") => {
                    sparse.take(&key[b"GNU.sparse.".len()..], value).map_err(extended)?;
                }
                _ => {}
            }
        }
        if let Some(name) = sparse.name.take() {
            path = name;
        }
        if path.contains(&0) || link.contains(&0) {
            return Err(bad("a name holds a NUL"));
        }
        let device = || {
            let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
            (number(header.device_major()), number(header.device_minor()))
        };
        let kind = match header.entry_type() {
            // Old archives mark directories by a slash alone.
            EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::HardLink(link),
            EntryType::Char => Kind::CharDevice(device().0, device().1),
            EntryType::Block => Kind::BlockDevice(device().0, device().1),
            EntryType::Fifo => Kind::Fifo,
            other => {
                let path = String::from_utf8_lossy(&path).into_owned();
                return Err(TarError::Kind { path, kind: char::from(other.as_byte()) });
            }
        };
        // Only files have bytes; writers are known to leave a size at links.
        if kind != Kind::File {
            size = if matches!(kind, Kind::HardLink(_) | Kind::Symlink(_)) { 0 } else { size };
        }
        self.left = size;
        self.padding = padding(size);
        let sparse = if kind == Kind::File { self.sparse(at, header, sparse)? } else { None };
        Ok(Entry {
            path,
            kind,
            mode: filled(header.mode(), &header.as_old().mode).map_err(|_| bad("mode is not a number"))? & 0o7777,
            uid: u32::try_from(uid).map_err(|_| bad("owner is beyond 32 bits"))?,
            gid: u32::try_from(gid).map_err(|_| bad("group is beyond 32 bits"))?,
            mtime,
            size: self.left,
            xattrs,
            sparse,
        })
    }

    fn skip_entry(&mut self) -> Result<(), TarError> {
        let mut chunk = [0; 8192];
        while self.left > 0 {
            let want = chunk.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.input.read_exact(&mut chunk[..want]).map_err(TarError::Read)?;
            self.left -= want as u64;
            self.at += want as u64;
        }
        // Some writers (umoci insert) end with the last entry's data, without its padding: nothing is missing then.
        while self.padding > 0 {
            match self.input.read(&mut chunk[..self.padding as usize]) {
                Ok(0) => break,
                Ok(n) => {
                    self.padding -= n as u64;
                    self.at += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        self.padding = 0;
        Ok(())
    }

    // `None` at the end: a block of zeros, or the end of the input at a block's boundary.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        let at = self.at;
        self.at += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 =
            block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
        match header.cksum() {
            Ok(wanted) if wanted == sum => Ok(Some(header)),
            _ => Err(TarError::Header { at, why: "checksum does not match" }),
        }
    }

    fn extended(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > EXTENDED_LIMIT {
            return Err(TarError::Extended { at, why: "longer than 1 MiB" });
        }
        let mut bytes = vec![0; size as usize];
        self.input.read_exact(&mut bytes).map_err(TarError::Read)?;
        self.at += size;
        self.padding = padding(size);
        Ok(bytes)
    }

    fn name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extended(at, size)?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    // Records `LENGTH KEY=VALUE\n`; the length counts itself.
    fn records(&mut self, at: u64, size: u64) -> Result<Records, TarError> {
        let bytes = self.extended(at, size)?;
        let bad = || TarError::Extended { at, why: "records are malformed" };
        let mut rest = bytes.as_slice();
        let mut records = Vec::new();
        while !rest.is_empty() && rest[0] != 0 {
            let space = rest.iter().take(8).position(|b| *b == b' ').ok_or_else(bad)?;
            let length = number(&rest[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
            if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &rest[space + 1..length - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
            records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            rest = &rest[length..];
        }
        Ok(records)
    }
}

// A number of a header; a blank field is zero, as other readers have it.
fn filled<T: Default>(number: io::Result<T>, field: &[u8]) -> io::Result<T> {
    if number.is_err() && field.iter().all(|b| matches!(b, 0 | b' ')) { Ok(T::default()) } else { number }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64).wrapping_sub(size)
}

fn number(text: &[u8]) -> Option<u64> {
    // `parse` would take a plus sign.
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Sizes beyond i64 can't be, and would overflow sums.
    std::str::from_utf8(text).ok()?.parse().ok().filter(|n| *n <= i64::MAX as u64)
}

// `SECONDS[.FRACTION]`, possibly before 1970.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    Some(if seconds.starts_with('-') && nanos > 0 {
        (whole.checked_sub(1)?, 1_000_000_000 - nanos)
    } else {
        (whole, nanos)
    })
}
