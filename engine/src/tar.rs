//! Writes tar archives: ustar, with a PAX header before an entry where ustar can't say it.

use nix::sys::stat::FileStat;
use std::io::{self, Read, Write};

const BLOCK: usize = 512;
// What a header's fields hold.
const NAME: usize = 100;
const MAX_ID: u64 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link to this.
    Symlink(&'a [u8]),
    /// Another name of an entry before.
    HardLink(&'a [u8]),
    /// A character device, by the entry's device number.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
}

/// An archive that is being written.
pub struct TarWriter<W> {
    output: W,
    // Of a file on its way.
    buffer: Vec<u8>,
}

/// Bytes of a file that are read at once.
const PIECE: usize = 128 << 10;

impl<W: Write> TarWriter<W> {
    /// An archive that begins here.
    pub fn new(output: W) -> Self {
        Self { output, buffer: vec![0; PIECE] }
    }

    /// Adds an entry; of a file, as many bytes of `data` follow as were announced, filled up with zeros if there are fewer.
    pub fn entry(
        &mut self,
        path: &[u8],
        kind: Kind<'_>,
        stat: &FileStat,
        xattrs: &[(Vec<u8>, Vec<u8>)],
        data: &mut dyn Read,
    ) -> io::Result<()> {
        let (header, records) = header(path, kind, stat, xattrs);
        if !records.is_empty() {
            let mut extended = Header::new(b'x');
            extended.text(0, NAME, b"PaxHeaders/entry");
            extended.number(100, 8, 0o644);
            extended.number(124, 12, records.len() as u64);
            self.output.write_all(&extended.finish())?;
            self.output.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.output.write_all(&header.finish())?;
        if let Kind::File(size) = kind {
            self.copy(data, size)?;
            self.pad(size)?;
        }
        Ok(())
    }

    fn copy(&mut self, data: &mut dyn Read, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let most = left.min(PIECE as u64) as usize;
            match data.read(&mut self.buffer[..most]) {
                // A running container may write to it meanwhile.
                Ok(0) => break,
                Ok(read) => {
                    self.output.write_all(&self.buffer[..read])?;
                    left -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        io::copy(&mut io::repeat(0).take(left), &mut self.output).map(drop)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.output.write_all(&[0; BLOCK][over..]) }
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }
}

struct Header([u8; BLOCK]);

impl Header {
    fn new(kind: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.0[156] = kind;
        header.text(257, 8, b"ustar\x0000");
        header
    }

    fn text(&mut self, at: usize, room: usize, text: &[u8]) {
        let length = text.len().min(room);
        self.0[at..at + length].copy_from_slice(&text[..length]);
    }

    // Octal digits and a NUL; what is too large is said in a PAX record.
    fn number(&mut self, at: usize, room: usize, value: u64) {
        let digits = room - 1;
        let value = value.min((1 << (3 * digits as u32)) - 1);
        self.text(at, digits, format!("{value:0digits$o}").as_bytes());
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.text(148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

fn header(path: &[u8], kind: Kind<'_>, stat: &FileStat, xattrs: &[(Vec<u8>, Vec<u8>)]) -> (Header, Vec<u8>) {
    let mut path = path.to_vec();
    if kind == Kind::Folder && !path.ends_with(b"/") {
        path.push(b'/');
    }
    let (flag, size, link) = match kind {
        Kind::File(size) => (b'0', size, &[][..]),
        Kind::HardLink(link) => (b'1', 0, link),
        Kind::Symlink(link) => (b'2', 0, link),
        Kind::CharDevice => (b'3', 0, &[][..]),
        Kind::BlockDevice => (b'4', 0, &[][..]),
        Kind::Folder => (b'5', 0, &[][..]),
        Kind::Fifo => (b'6', 0, &[][..]),
    };
    let mut records = Vec::new();
    for (key, text) in [(&b"path"[..], &path[..]), (b"linkpath", link)] {
        if text.len() > NAME {
            record(key, text, &mut records);
        }
    }
    for (key, value, limit) in [
        (&b"uid"[..], u64::from(stat.st_uid), MAX_ID),
        (b"gid", u64::from(stat.st_gid), MAX_ID),
        (b"size", size, MAX_SIZE),
    ] {
        if value > limit {
            record(key, value.to_string().as_bytes(), &mut records);
        }
    }
    let (seconds, nanos) = (stat.st_mtime, stat.st_mtime_nsec);
    if nanos != 0 || seconds < 0 || seconds as u64 > MAX_SIZE {
        record(b"mtime", pax_time(seconds, nanos).as_bytes(), &mut records);
    }
    for (name, value) in xattrs {
        record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value, &mut records);
    }
    let mut header = Header::new(flag);
    header.text(0, NAME, &path);
    header.number(100, 8, u64::from(stat.st_mode & 0o7777));
    header.number(108, 8, stat.st_uid.into());
    header.number(116, 8, stat.st_gid.into());
    header.number(124, 12, size);
    header.number(136, 12, seconds.max(0) as u64);
    header.text(157, NAME, link);
    if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        header.number(329, 8, nix::sys::stat::major(stat.st_rdev));
        header.number(337, 8, nix::sys::stat::minor(stat.st_rdev));
    }
    (header, records)
}

// Seconds since 1970 with as many digits behind the point as it takes.
fn pax_time(seconds: i64, nanos: i64) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        ("", seconds as u64, nanos)
    };
    let digits = format!("{fraction:09}");
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

// `LENGTH KEY=VALUE\n`; the length counts its own digits too.
fn record(key: &[u8], value: &[u8], into: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    into.extend_from_slice(format!("{length} ").as_bytes());
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (time, text) in [((0, 0), "0"), ((5, 500_000_000), "5.5"), ((-2, 500_000_000), "-1.5"), ((-3, 0), "-3")] {
            assert_eq!(pax_time(time.0, time.1), text);
        }
    }

    #[test]
    fn gnu_tar_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("x");
        std::fs::write(&source, b"data").unwrap();
        let stat = nix::sys::stat::stat(&source).unwrap();
        let long = "l".repeat(180);
        let mut tar = TarWriter::new(Vec::new());
        let none = &mut io::empty();
        tar.entry(b"d", Kind::Folder, &stat, &[], none).unwrap();
        tar.entry(format!("d/{long}").as_bytes(), Kind::File(4), &stat, &[], &mut &b"data"[..]).unwrap();
        tar.entry(b"d/short", Kind::File(700), &stat, &[], &mut &b"cut"[..]).unwrap();
        tar.entry(b"d/link", Kind::Symlink(long.as_bytes()), &stat, &[], none).unwrap();
        tar.entry(b"d/hard", Kind::HardLink(b"d/short"), &stat, &[], none).unwrap();
        let archive = tar.finish().unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        let file = folder.path().join("a.tar");
        std::fs::write(&file, archive).unwrap();
        let done =
            std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(folder.path()).output().unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        let at = |name: &str| folder.path().join("d").join(name);
        assert_eq!(std::fs::read(at(&long)).unwrap(), b"data");
        assert_eq!(std::fs::read(at("hard")).unwrap().len(), 700);
        assert_eq!(std::fs::read_link(at("link")).unwrap().to_str(), Some(&*long));
    }
}
