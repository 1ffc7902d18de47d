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
    /// xz: no registry has such layers, but archives of older builders do.
    Xz,
    /// bzip2, as docker still reads it.
    Bzip2,
}

/// What an xz stream may take to be read, in KiB: `xz -9` wants a dictionary of 64 MiB.
const XZ_MEMORY: u32 = 66 << 10;

impl Compression {
    /// What the first bytes of a stream stand for.
    pub(crate) fn of(head: &[u8]) -> Result<Self, LayerError> {
        // A skippable zstd frame (0x184D2A50 to 5F, little endian) may come first, e.g. from estargz-like writers.
        Ok(match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [b'L', b'Z', b'I', b'P', ..] => return Err(LayerError::Compression("lzip")),
            [0x04, 0x22, 0x4d, 0x18, ..] => return Err(LayerError::Compression("lz4")),
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
        // Refuses windows of more than 2^27 bytes by itself.
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole).map_err(LayerError::Read)?),
        Compression::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
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

    // `echo hello | xz`
    const XZ: [u8; 60] = [
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x16, 0x00,
        0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x0a, 0x00, 0x00, 0x00,
        0x20, 0x30, 0x3a, 0x36, 0x00, 0x01, 0x1a, 0x06, 0xc5, 0xea, 0xc8, 0x79, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00,
        0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

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
        assert_eq!(read(&XZ), b"hello\n");
        let cut = &XZ[..XZ.len() - 9];
        assert!(decompressed(cut).unwrap().0.read_to_end(&mut Vec::new()).is_err());
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(b"hello").unwrap();
        let bzip2 = bzip2.finish().unwrap();
        assert_eq!(read(&[bzip2.clone(), bzip2].concat()), b"hellohello");
        assert!(matches!(Compression::of(b"LZIP\x01"), Err(LayerError::Compression("lzip"))));
    }
}
