//! How a recipe is written down: a magic number, then zstd of steps; each a letter and what belongs to it, numbers in little
//! endian. Read with limits: it is a blob like others, and anybody with access to the store can put one there.

use std::io::{self, BufReader, Read, Write};

use proto::digest::Digest;

const MAGIC: &[u8; 8] = b"BRTHRCP1";
/// Bytes of one step.
const BYTES: usize = 64 << 10;
/// The longest path that Linux takes.
const PATH: usize = 4096;
/// Headers and paths shrink a lot, whatever the level.
const LEVEL: i32 = 3;

/// One step of a recipe.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Bytes of an unpacked file.
    File {
        /// Its path below the layer's folder.
        path: Vec<u8>,
        /// The first of them.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// That was all.
    End {
        /// How much it must have been.
        size: u64,
        /// And what digest it has.
        digest: Digest,
    },
}

/// Writes steps.
pub(super) struct StepWriter<W: Write> {
    out: zstd::stream::write::Encoder<'static, W>,
    bytes: Vec<u8>,
}

impl<W: Write> StepWriter<W> {
    pub(super) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out: zstd::stream::write::Encoder::new(out, LEVEL)?, bytes: Vec::with_capacity(BYTES) })
    }

    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(BYTES - self.bytes.len());
            self.bytes.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.bytes.len() == BYTES {
                self.flush_bytes()?;
            }
        }
        Ok(())
    }

    fn flush_bytes(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.out.write_all(b"b")?;
        self.out.write_all(&(self.bytes.len() as u32).to_le_bytes())?;
        self.out.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    pub(super) fn file(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        self.flush_bytes()?;
        self.out.write_all(b"f")?;
        self.out.write_all(&(path.len() as u32).to_le_bytes())?;
        self.out.write_all(path)?;
        self.out.write_all(&offset.to_le_bytes())?;
        self.out.write_all(&length.to_le_bytes())
    }

    pub(super) fn end(mut self, size: u64, digest: [u8; 32]) -> io::Result<()> {
        self.flush_bytes()?;
        self.out.write_all(b"e")?;
        self.out.write_all(&size.to_le_bytes())?;
        self.out.write_all(&digest)?;
        self.out.finish()?.flush()
    }
}

/// Reads steps.
pub(super) struct StepReader<R: Read> {
    input: zstd::stream::read::Decoder<'static, BufReader<R>>,
}

fn malformed(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the recipe is malformed: {why}"))
}

impl<R: Read> StepReader<R> {
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != *MAGIC {
            return Err(malformed("it does not begin as one"));
        }
        Ok(Self { input: zstd::stream::read::Decoder::new(input)? })
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.input.read_exact(&mut array)?;
        Ok(array)
    }

    fn vector(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        if length > limit {
            return Err(malformed("a step is too long"));
        }
        let mut bytes = vec![0; length];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn next(&mut self) -> io::Result<Step> {
        match self.array()? {
            [b'b'] => self.vector(BYTES).map(Step::Bytes),
            [b'f'] => {
                let path = self.vector(PATH)?;
                let (offset, length) = (u64::from_le_bytes(self.array()?), u64::from_le_bytes(self.array()?));
                if offset.checked_add(length).is_none_or(|end| end > i64::MAX as u64) {
                    return Err(malformed("a file ends beyond all files"));
                }
                Ok(Step::File { path, offset, length })
            }
            [b'e'] => {
                let size = u64::from_le_bytes(self.array()?);
                Ok(Step::End { size, digest: Digest::from_bytes(self.array()?) })
            }
            _ => Err(malformed("a step of a kind that is not known")),
        }
    }
}
