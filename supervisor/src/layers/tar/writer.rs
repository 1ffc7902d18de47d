//! Writes tar archives: ustar, with a PAX header where ustar can't say it. The same entries give the same bytes.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::{BLOCK, Entry, Kind};

// What a header's octal fields hold.
const MAX_ID: u32 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;
const NAME_LIMIT: usize = 100;

/// An archive that is being written.
pub(crate) struct TarWriter<W> {
    output: W,
}

// Seconds since 1970 with as many digits behind the point as it takes.
fn pax_time((seconds, nanos): (i64, u32)) -> String {
    if nanos == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = if seconds < 0 {
        ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanos)
    } else {
        ("", seconds.unsigned_abs(), nanos)
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
    into.extend_from_slice(length.to_string().as_bytes());
    into.push(b' ');
    into.extend_from_slice(key);
    into.push(b'=');
    into.extend_from_slice(value);
    into.push(b'\n');
}

fn zeros(size: u64) -> &'static [u8] {
    const ZEROS: [u8; BLOCK] = [0; BLOCK];
    &ZEROS[..super::padding(size) as usize]
}

impl<W: Write> TarWriter<W> {
    /// An archive that begins here.
    pub(crate) fn new(output: W) -> Self {
        Self { output }
    }

    /// Adds an entry; of a file, `entry.size` bytes of `data` follow, filled up with zeros if there are fewer.
    pub(crate) fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        let (header, records) = header(entry);
        if !records.is_empty() {
            let mut extended = Header::new_ustar();
            extended.set_entry_type(EntryType::XHeader);
            put(&mut extended.as_ustar_mut().expect_ustar().name, b"PaxHeaders/entry");
            extended.set_mode(0o644);
            extended.set_size(records.len() as u64);
            self.header(extended)?;
            self.output.write_all(&records)?;
            self.output.write_all(zeros(records.len() as u64))?;
        }
        self.header(header)?;
        if entry.kind == Kind::File {
            // A running container may write to it meanwhile: what was announced is what follows.
            let copied = io::copy(&mut data.take(entry.size), &mut self.output)?;
            io::copy(&mut io::repeat(0).take(entry.size - copied), &mut self.output)?;
            self.output.write_all(zeros(entry.size))?;
        }
        Ok(())
    }

    fn header(&mut self, mut header: Header) -> io::Result<()> {
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }

    /// Ends the archive and gives back what it was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }
}

// What `new_ustar` makes is ustar.
trait Ustar<T> {
    fn expect_ustar(self) -> T;
}

impl<'a> Ustar<&'a mut tar::UstarHeader> for Option<&'a mut tar::UstarHeader> {
    fn expect_ustar(self) -> &'a mut tar::UstarHeader {
        match self {
            Some(header) => header,
            None => unreachable!("the header was made as ustar"),
        }
    }
}

fn put(field: &mut [u8], value: &[u8]) {
    let length = value.len().min(field.len());
    field[..length].copy_from_slice(&value[..length]);
}

fn header(entry: &Entry) -> (Header, Vec<u8>) {
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    let mut path = entry.path.clone();
    if entry.kind == Kind::Directory && !path.ends_with(b"/") {
        path.push(b'/');
    }
    let none = (&[][..], None);
    let (kind, (link, device)) = match &entry.kind {
        Kind::File => (EntryType::Regular, none),
        Kind::Directory => (EntryType::Directory, none),
        Kind::Symlink(link) => (EntryType::Symlink, (&link[..], None)),
        Kind::HardLink(link) => (EntryType::Link, (&link[..], None)),
        Kind::CharDevice(major, minor) => (EntryType::Char, (&[][..], Some((*major, *minor)))),
        Kind::BlockDevice(major, minor) => (EntryType::Block, (&[][..], Some((*major, *minor)))),
        Kind::Fifo => (EntryType::Fifo, none),
    };
    header.set_entry_type(kind);
    if path.len() > NAME_LIMIT {
        record(b"path", &path, &mut records);
    }
    if link.len() > NAME_LIMIT {
        record(b"linkpath", link, &mut records);
    }
    let size = if entry.kind == Kind::File { entry.size } else { 0 };
    for (key, value, limit) in [
        (&b"uid"[..], entry.uid.into(), u64::from(MAX_ID)),
        (b"gid", entry.gid.into(), u64::from(MAX_ID)),
        (b"size", size, MAX_SIZE),
    ] {
        if value > limit {
            record(key, value.to_string().as_bytes(), &mut records);
        }
    }
    let (seconds, nanos) = entry.mtime;
    if nanos != 0 || !(0..=MAX_SIZE as i64).contains(&seconds) {
        record(b"mtime", pax_time(entry.mtime).as_bytes(), &mut records);
    }
    for (name, value) in &entry.xattrs {
        record(&[b"SCHILY.xattr.", name.as_slice()].concat(), value, &mut records);
    }
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_size(size);
    header.set_mtime(seconds.clamp(0, MAX_SIZE as i64) as u64);
    let ustar = header.as_ustar_mut().expect_ustar();
    put(&mut ustar.name, &path);
    put(&mut ustar.linkname, link);
    let (major, minor) = device.unwrap_or_default();
    ustar.set_device_major(major);
    ustar.set_device_minor(minor);
    (header, records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::tar::TarReader;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (time, text) in [
            ((0, 0), "0"),
            ((5, 500_000_000), "5.5"),
            ((-2, 500_000_000), "-1.5"),
            ((-1, 999_999_999), "-0.000000001"),
            ((-3, 0), "-3"),
        ] {
            assert_eq!(pax_time(time), text);
        }
    }

    fn bytes(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>().prop_map(|b| if b == 0 { b'x' } else { b }), size)
    }

    fn kind() -> impl Strategy<Value = Kind> {
        prop_oneof![
            Just(Kind::File),
            Just(Kind::Directory),
            Just(Kind::Fifo),
            bytes(1..300).prop_map(Kind::Symlink),
            bytes(1..300).prop_map(Kind::HardLink),
            (0..4096_u32, 0..4096_u32).prop_map(|(major, minor)| Kind::CharDevice(major, minor)),
            (0..4096_u32, 0..4096_u32).prop_map(|(major, minor)| Kind::BlockDevice(major, minor)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            path in bytes(1..300).prop_filter("a slash at the end makes a directory", |p| !p.ends_with(b"/")),
            kind in kind(),
            (mode, uid, gid) in (0..0o10000_u32, any::<u32>(), any::<u32>()),
            mtime in (-10_000_000_000_i64..100_000_000_000, 0..1_000_000_000_u32),
            data in prop::collection::vec(any::<u8>(), 0..2000),
            xattrs in prop::collection::btree_map("user\\.[a-z]{1,120}", prop::collection::vec(any::<u8>(), 0..300), 0..3),
        ) {
            let size = if kind == Kind::File { data.len() as u64 } else { 0 };
            let xattrs: Vec<_> = xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            let entry = Entry { path, kind, mode, uid, gid, mtime, size, xattrs, sparse: None };
            let mut writer = TarWriter::new(Vec::new());
            writer.entry(&entry, &mut &data[..]).unwrap();
            let archive = writer.finish().unwrap();
            prop_assert_eq!(archive.len() % BLOCK, 0);
            let mut reader = TarReader::new(&archive[..]);
            let mut found = reader.next_entry().unwrap().unwrap();
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            if found.kind == Kind::Directory {
                found.path.pop();
            }
            prop_assert_eq!(format!("{found:?}"), format!("{entry:?}"));
            prop_assert!(entry.kind != Kind::File || read == data);
            prop_assert!(reader.next_entry().unwrap().is_none());
        }
    }
}
