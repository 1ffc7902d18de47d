//! Compression, told from the first bytes: media types are often wrong, the bytes never are.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::LayerError;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all.
    Plain,
    /// gzip, of one or more members.
    Gzip,
    /// zstd, of one or more frames.
    Zstd,
}

impl Compression {
    /// What the first bytes of a stream stand for.
    pub(crate) fn of(head: &[u8]) -> Result<Self, LayerError> {
        // A skippable zstd frame (0x184D2A50 to 5F, little endian) may come first, e.g. from estargz-like writers.
        Ok(match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(LayerError::Compression("xz")),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => return Err(LayerError::Compression("bzip2")),
            _ => Self::Plain,
        })
    }
}

/// The uncompressed bytes of a stream, and how they were compressed.
pub(crate) fn decompressed<'a>(
    input: impl Read + Send + 'a,
) -> Result<(Box<dyn Read + Send + 'a>, Compression), LayerError> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let head = fill(&mut input).map_err(LayerError::Read)?;
    let compression = Compression::of(&head)?;
    let head = io::Cursor::new(head);
    let whole = BufReader::with_capacity(64 << 10, head.chain(input));
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::Plain => Box::new(whole),
        Compression::Gzip => Box::new(MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(LayerError::Read)?),
    };
    Ok((reader, compression))
}

// The first bytes: at least six, unless the stream is shorter. A pipe may give them one by one.
fn fill(input: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    input.take(6).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        decompressed(bytes).unwrap().0.read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn finds_out_by_itself() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read(&gzip), b"hello");
        assert_eq!(read(&[gzip.clone(), gzip].concat()), b"hellohello");
        assert_eq!(read(&zstd::encode_all(&b"hello"[..], 1).unwrap()), b"hello");
        assert_eq!(read(b"hello"), b"hello");
        assert_eq!(read(b""), b"");
        assert!(matches!(Compression::of(b"\xfd7zXZ\0"), Err(LayerError::Compression("xz"))));
    }
}
