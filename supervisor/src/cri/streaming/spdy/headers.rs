//! Header blocks: names and values, compressed with one zlib stream for all blocks of a direction, which begins with a dictionary.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::frame::SpdyError;

/// Largest header block, uncompressed.
pub(super) const LIMIT: usize = 16 << 10;
/// Most headers in one.
const COUNT: usize = 64;

/// Words of the dictionary, each with its length before it (SPDY/3 draft, 2.6.10.1).
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// What stands behind them.
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-\
    Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 \
    Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,\
    text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TEXT.as_bytes());
    dictionary
}

/// Headers of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header, whose name is written in small letters; the first one if it has several.
    pub(in super::super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        Some(found.1.split('\0').next().unwrap_or_default())
    }

    /// Reads an uncompressed block.
    pub(super) fn parse(block: &[u8]) -> Result<Self, SpdyError> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > COUNT {
            return Err(SpdyError::TooLarge("header block"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            headers.push((text(&mut rest)?, text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Self(headers)) } else { Err(SpdyError::Malformed("header block")) }
    }
}

#[cfg(test)]
impl Headers {
    /// These headers.
    pub(in super::super) fn of(headers: &[(&str, &str)]) -> Self {
        Self(headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
    }

    /// The uncompressed block.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for text in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, SpdyError> {
    let (number, behind) = rest.split_first_chunk().ok_or(SpdyError::Malformed("header block"))?;
    *rest = behind;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = number(rest)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(SpdyError::Malformed("header block"))?;
    *rest = behind;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Malformed("header block"))
}

/// The blocks of the client's direction.
#[derive(Debug)]
pub(super) struct Inflater(Decompress);

impl Inflater {
    /// Before the first block.
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Reads a compressed block. After an error nothing that follows can be read: its beginning may be missing.
    pub(super) fn read(&mut self, mut block: &[u8]) -> Result<Headers, SpdyError> {
        let mut out = Vec::with_capacity(1 << 10);
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress_vec(block, &mut out, FlushDecompress::Sync);
            let taken = (self.0.total_in() - read) as usize;
            block = block.get(taken..).unwrap_or_default();
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| SpdyError::Malformed("dictionary of headers"))?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(SpdyError::Malformed("compressed header block")),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if out.len() > LIMIT {
                return Err(SpdyError::TooLarge("header block"));
            }
            if out.len() == out.capacity() {
                out.reserve(out.len().max(1));
            } else if block.is_empty() {
                return Headers::parse(&out);
            } else if taken == 0 && self.0.total_out() == written {
                return Err(SpdyError::Malformed("compressed header block"));
            }
        }
    }
}

/// The blocks of our direction.
#[derive(Debug)]
pub(super) struct Deflater(Compress);

impl Deflater {
    /// Before the first block.
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        // Refused only in the middle of a stream.
        let _ = compress.set_dictionary(&dictionary());
        Self(compress)
    }

    /// Compresses a block.
    pub(super) fn write(&mut self, block: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(block.len() + 128);
        let mut rest = block;
        loop {
            let before = self.0.total_in();
            // Fails for a state that is broken, which ours can't be.
            let _ = self.0.compress_vec(rest, &mut out, FlushCompress::Sync);
            rest = rest.get((self.0.total_in() - before) as usize..).unwrap_or_default();
            // Room that is left means that all is flushed (zlib's manual, deflate).
            if out.len() < out.capacity() {
                return out;
            }
            out.reserve(128);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Adler-32, by which zlib names dictionaries.
    fn checksum(bytes: &[u8]) -> u32 {
        let (mut a, mut b) = (1_u32, 0_u32);
        for byte in bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_that_of_the_draft() {
        assert_eq!((dictionary().len(), checksum(&dictionary())), (1423, 0xe3c6_a7c2));
        let block = Deflater::new().write(&Headers::default().write());
        assert_eq!(block[1] & 0x20, 0x20, "the stream names a dictionary");
        assert_eq!(block[2..6], 0xe3c6_a7c2_u32.to_be_bytes());
    }

    #[test]
    fn blocks_of_a_client_are_read() {
        // Made with zlib itself at its best compression, as Go's clients ask for: two blocks of one stream.
        let first = [
            0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x46, 0x70, 0x3a, 0x2b, 0x29, 0x4a, 0x4d, 0xcc, 0x85,
            0x16, 0x25, 0xac, 0xc5, 0x25, 0xc0, 0x3c, 0x01, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let second = [
            0x02, 0x65, 0x1c, 0x0c, 0x29, 0x60, 0x62, 0x4e, 0xc9, 0x07, 0x97, 0xd1, 0xc0, 0x22, 0xbb, 0x08, 0x44, 0x33,
            0x59, 0x18, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff,
        ];
        let mut inflater = Inflater::new();
        assert_eq!(inflater.read(&first), Ok(Headers::of(&[("streamtype", "stdin")])));
        assert_eq!(inflater.read(&second), Ok(Headers::of(&[("streamtype", "stdout"), ("port", "80")])));
        assert_eq!(Headers::of(&[("StreamType", "a\0b")]).get("streamtype"), Some("a"));
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let mut deflater = Deflater::new();
        let bomb = deflater.write(&vec![0; 100 << 20]);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(Inflater::new().read(&bomb), Err(SpdyError::TooLarge("header block")));
        let value = "x".repeat(LIMIT);
        let block = Deflater::new().write(&Headers::of(&[("a", &value)]).write());
        assert_eq!(Inflater::new().read(&block), Err(SpdyError::TooLarge("header block")));
        let block = Deflater::new().write(&Headers::of(&[("a", &value[..LIMIT - 13])]).write());
        assert_eq!(Inflater::new().read(&block).unwrap().get("a").unwrap().len(), LIMIT - 13);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let many = Headers(vec![(String::new(), String::new()); COUNT + 1]).write();
        assert_eq!(Headers::parse(&many), Err(SpdyError::TooLarge("header block")));
        for block in [&[][..], &[0, 0, 0, 1], &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], &[0, 0, 0, 0, 0], &[0xff; 4]] {
            assert!(Headers::parse(block).is_err(), "{block:?}");
        }
    }

    proptest! {
        #[test]
        fn no_block_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Headers::parse(&bytes);
            let mut inflater = Inflater::new();
            let _ = inflater.read(&bytes);
            // The header of a stream that is well, and then anything.
            let mut inflater = Inflater::new();
            inflater.read(&Deflater::new().write(&[0; 4])).unwrap();
            if let Ok(headers) = inflater.read(&bytes) {
                prop_assert!(headers.0.len() <= COUNT);
            }
        }

        #[test]
        fn what_is_written_is_read(headers in proptest::collection::vec(("[a-z-]{1,20}", "\\PC{0,40}"), 0..20)) {
            let headers = Headers(headers);
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for _ in 0..3 {
                let block = deflater.write(&headers.write());
                prop_assert_eq!(&inflater.read(&block).unwrap(), &headers);
            }
        }
    }
}
