//! Compression of what clients send, told from the first bytes and taken off in this process.

use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufReader, Read};

/// What an xz stream may take to be read, in KiB: `xz -9` wants a dictionary of 64 MiB.
const XZ_MEMORY: u32 = 66 << 10;

/// The plain bytes of a stream that may be packed by gzip, bzip2, xz or zstd.
pub fn unpacked<'a>(mut input: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut head = [0; 6];
    let mut filled = 0;
    while filled < head.len() {
        match input.read(&mut head[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    let whole = BufReader::with_capacity(64 << 10, io::Cursor::new(head[..filled].to_vec()).chain(input));
    Ok(match head {
        [0x1f, 0x8b, 8, ..] => Box::new(MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(lzma_rust2::XzReader::new_mem_limit(whole, true, XZ_MEMORY)),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(whole)),
        _ => Box::new(whole),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn packed_and_plain() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"some text").unwrap();
        for bytes in [gzip.finish().unwrap(), zstd::encode_all(&b"some text"[..], 1).unwrap(), b"some text".to_vec()] {
            let mut text = String::new();
            unpacked(&bytes[..]).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "some text");
        }
        let mut nothing = Vec::new();
        unpacked(&b""[..]).unwrap().read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
    }
}
