//! Reads tar archives one entry at a time: ustar, PAX and GNU long names. Every extended header has a limit, since
//! archives come from clients (CVE-2017-14992).

use std::io::{self, Read};

const BLOCK: usize = 512;
/// Largest extended header: names and attributes of one entry.
const EXTENDED_LIMIT: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// A folder.
    Folder,
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name of an entry before.
    HardLink(Vec<u8>),
    /// A character device.
    CharDevice(u64, u64),
    /// A block device.
    BlockDevice(u64, u64),
    /// A FIFO.
    Fifo,
}

/// One entry, with all that extended headers said of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The archive; after [`Untar::next_entry`] it reads as the bytes of that entry.
#[derive(Debug)]
pub struct Untar<R> {
    input: R,
    /// Bytes of the present entry still to come, and the zeros behind them.
    left: u64,
    padding: u64,
    /// Bytes read so far, for error messages.
    at: u64,
    global: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Read for Untar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within an entry"));
        }
        self.left -= got as u64;
        self.at += got as u64;
        Ok(got)
    }
}

/// What extended headers said of the entry that follows them.
#[derive(Debug, Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Untar<R> {
    /// Reads from here.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, at: 0, global: Vec::new() }
    }

    /// Goes on to the next entry; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let mut said = Said::default();
        loop {
            self.skip_rest()?;
            let begin = self.at;
            let Some(block) = self.block()? else { return Ok(None) };
            let header = Header { block: &block, begin };
            header.check()?;
            let size = header.number(124..136, "size")?;
            let kind = block[156];
            self.left = size;
            self.padding = size.next_multiple_of(BLOCK as u64) - size;
            match kind {
                b'x' => said.records = records(&self.extended(begin)?).ok_or_else(|| header.bad("PAX records"))?,
                b'g' => self.global = records(&self.extended(begin)?).ok_or_else(|| header.bad("PAX records"))?,
                b'L' => said.path = Some(text(&self.extended(begin)?)),
                b'K' => said.link = Some(text(&self.extended(begin)?)),
                _ => {
                    let (entry, size) = finish(&header, said, &self.global, size)?;
                    // Only files have bytes; what others announce is nothing.
                    let has_data = entry.kind == Kind::File;
                    self.left = if has_data { size } else { 0 };
                    self.padding = if has_data { size.next_multiple_of(BLOCK as u64) - size } else { 0 };
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn extended(&mut self, begin: u64) -> io::Result<Vec<u8>> {
        if self.left > EXTENDED_LIMIT {
            return Err(invalid(begin, "an extended header larger than 1 MiB"));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let (left, padding) = (self.left, std::mem::take(&mut self.padding));
        io::copy(&mut (&mut *self).take(left), &mut io::sink())?;
        let skipped = io::copy(&mut (&mut self.input).take(padding), &mut io::sink())?;
        self.at += skipped;
        Ok(())
    }

    /// The next header; `None` at a block of zeros or where the stream ends between entries.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(invalid(self.at, "it ends within a header")),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += BLOCK as u64;
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    /// Reads what comes behind the archive, so that its sender is not cut off.
    pub fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop)
    }
}

fn invalid(at: u64, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid tar header at byte {at}: {why}"))
}

fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// `LENGTH KEY=VALUE\n`, as often as there is room.
fn records(mut bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut list = Vec::new();
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        list.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Some(list)
}

struct Header<'a> {
    block: &'a [u8; BLOCK],
    begin: u64,
}

impl Header<'_> {
    fn bad(&self, why: &str) -> io::Error {
        invalid(self.begin, why)
    }

    fn check(&self) -> io::Result<()> {
        let sum: u64 = self
            .block
            .iter()
            .enumerate()
            .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
            .sum();
        if self.number(148..156, "checksum")? == sum { Ok(()) } else { Err(self.bad("wrong checksum")) }
    }

    /// Octal digits, or GNU's binary form for what they can't hold.
    fn number(&self, at: std::ops::Range<usize>, what: &str) -> io::Result<u64> {
        let field = &self.block[at];
        let number = if field[0] & 0x80 != 0 {
            let mut bytes = field.to_vec();
            bytes[0] &= 0x7f;
            bytes.iter().try_fold(0_u64, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)))
        } else {
            let digits = std::str::from_utf8(field).ok().map(|text| text.trim_matches([' ', '\0']));
            digits.and_then(|text| if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() })
        };
        number.ok_or_else(|| self.bad(what))
    }

    fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = text(&self.block[345..500]);
        // GNU's own format uses the place of the prefix for other things.
        if &self.block[257..263] != b"ustar\0" || prefix.is_empty() {
            return name;
        }
        [prefix, name].join(&b'/')
    }
}

fn finish(header: &Header<'_>, said: Said, global: &[(Vec<u8>, Vec<u8>)], size: u64) -> io::Result<(Entry, u64)> {
    let value = |key: &[u8]| {
        let all = said.records.iter().rev().chain(global.iter().rev());
        all.clone().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    };
    let number = |key: &[u8]| -> io::Result<Option<u64>> {
        let parse = |bytes: Vec<u8>| std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok());
        value(key).map(|bytes| parse(bytes).ok_or_else(|| header.bad("a PAX number"))).transpose()
    };
    if said.records.iter().any(|(key, _)| key.starts_with(b"GNU.sparse.")) {
        return Err(header.bad("sparse files are not supported"));
    }
    let path = value(b"path").or(said.path.clone()).unwrap_or_else(|| header.path());
    let link = || value(b"linkpath").or(said.link.clone()).unwrap_or_else(|| text(&header.block[157..257]));
    let device =
        || -> io::Result<(u64, u64)> { Ok((header.number(329..337, "major")?, header.number(337..345, "minor")?)) };
    let kind = match header.block[156] {
        b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Folder,
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::HardLink(link()),
        b'2' => Kind::Symlink(link()),
        b'3' => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
        b'4' => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        b'5' => Kind::Folder,
        b'6' => Kind::Fifo,
        other => return Err(header.bad(&format!("entry type {:?} is not supported", char::from(other)))),
    };
    let id = |key: &[u8], at| -> io::Result<u32> {
        let id = number(key)?.map_or_else(|| header.number(at, "owner"), Ok)?;
        u32::try_from(id).map_err(|_| header.bad("an owner out of range"))
    };
    let mtime = match value(b"mtime") {
        Some(text) => seconds(&text).ok_or_else(|| header.bad("mtime"))?,
        None => (header.number(136..148, "mtime")? as i64, 0),
    };
    let xattrs = said
        .records
        .iter()
        .filter_map(|(key, value)| key.strip_prefix(b"SCHILY.xattr.").map(|name| (name.to_vec(), value.clone())));
    let entry = Entry {
        kind,
        mode: (header.number(100..108, "mode")? & 0o7777) as u32,
        uid: id(b"uid", 108..116)?,
        gid: id(b"gid", 116..124)?,
        mtime,
        xattrs: xattrs.collect(),
        path,
    };
    if entry.path.contains(&0) || entry.path.is_empty() {
        return Err(header.bad("an entry without a usable name"));
    }
    Ok((entry, number(b"size")?.unwrap_or(size)))
}

/// `12.5`, possibly negative.
fn seconds(text: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (whole, nanos): (i64, i64) = (whole.parse().ok()?, digits.parse().ok()?);
    match text.starts_with('-') && nanos > 0 {
        true => Some((whole.checked_sub(1)?, 1_000_000_000 - nanos)),
        false => Some((whole, nanos)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Kind as Written, TarWriter};
    use nix::sys::stat::stat;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_writer_writes() {
        let facts = stat("/").unwrap();
        let long = vec![b'n'; 300];
        let mut tar = TarWriter::new(Vec::new());
        let xattrs = [(b"user.a".to_vec(), b"b=\n".to_vec())];
        tar.entry(b"dir", Written::Folder, &facts, &[], &mut io::empty()).unwrap();
        tar.entry(&long, Written::File(5), &facts, &xattrs, &mut &b"hello"[..]).unwrap();
        tar.entry(b"link", Written::Symlink(&long), &facts, &[], &mut io::empty()).unwrap();
        tar.entry(b"hard", Written::HardLink(b"link"), &facts, &[], &mut io::empty()).unwrap();
        let bytes = tar.finish().unwrap();
        let mut untar = Untar::new(&bytes[..]);
        let entry = untar.next_entry().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.kind), (&b"dir/"[..], Kind::Folder));
        assert_eq!(entry.mtime, (facts.st_mtime, facts.st_mtime_nsec));
        let entry = untar.next_entry().unwrap().unwrap();
        assert_eq!((entry.path, entry.xattrs), (long.clone(), xattrs.to_vec()));
        let mut text = String::new();
        untar.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert_eq!(untar.next_entry().unwrap().unwrap().kind, Kind::Symlink(long));
        assert_eq!(untar.next_entry().unwrap().unwrap().kind, Kind::HardLink(b"link".to_vec()));
        assert!(untar.next_entry().unwrap().is_none());
    }

    #[test]
    fn broken_archives_are_refused() {
        assert!(Untar::new(&b"no tar"[..]).next_entry().is_err());
        assert!(Untar::new(&[b'x'; 512][..]).next_entry().is_err());
        assert!(Untar::new(&b""[..]).next_entry().unwrap().is_none());
        assert_eq!(seconds(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(seconds(b"7.25"), Some((7, 250_000_000)));
        for bad in [&b"9 a=b\n"[..], b"x a=b\n", b"6 a=bc", b"99999999999999999999999 a"] {
            assert!(records(bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 512..1600), fix in any::<bool>()) {
            if fix {
                let sum: u64 = bytes[..512].iter().enumerate().map(|(at, b)| u64::from(if (148..156).contains(&at) { b' ' } else { *b })).sum();
                bytes[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
            }
            let mut untar = Untar::new(&bytes[..]);
            while let Ok(Some(_)) = untar.next_entry() {
                let _ = io::copy(&mut (&mut untar).take(4096), &mut io::sink());
            }
        }

        #[test]
        fn pax_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = records(&bytes);
            let _ = seconds(&bytes);
        }
    }
}
