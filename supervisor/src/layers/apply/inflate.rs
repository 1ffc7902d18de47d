//! One thread reads and inflates a layer; the other reads here what came out, and hashes it on the way.

use std::{
    io::{self, BufRead, Read},
    ops::Range,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::CHUNK;
use crate::layers::{LayerError, decompress::decompressed};

/// A piece of the uncompressed archive.
pub(super) type Chunk = Result<Vec<u8>, io::Error>;

/// Chunks that may wait to be unpacked.
const AHEAD: usize = 8;

/// The end for the thread that inflates.
pub(super) struct Inflater {
    chunks: SyncSender<Chunk>,
    // Chunks that were read come back: fresh memory would cost a page fault for every page.
    used: Receiver<Arc<Vec<u8>>>,
}

/// Both ends.
pub(super) fn pipe() -> (Inflater, Pipe) {
    let (chunks, receiver) = sync_channel(AHEAD);
    let (give_back, used) = sync_channel(AHEAD);
    let pipe = Pipe { receiver, give_back, chunk: Arc::default(), at: 0, hasher: Sha256::new(), size: 0 };
    (Inflater { chunks, used }, pipe)
}

impl Inflater {
    /// Inflates `blob`; `progress` is told how many compressed bytes are read.
    pub(super) fn run(self, blob: impl Read + Send, progress: &(dyn Fn(u64) + Sync)) -> Result<(), LayerError> {
        let counted = Counted { inner: blob, count: 0, progress };
        // The other side sees the end; an error here is the one that is told.
        let (mut reader, _) = decompressed(counted)?;
        loop {
            // Unless a piece of it still waits to be written.
            let mut chunk = self.used.try_recv().ok().and_then(|used| Arc::try_unwrap(used).ok()).unwrap_or_default();
            chunk.resize(CHUNK, 0);
            let mut filled = 0;
            while filled < CHUNK {
                match reader.read(&mut chunk[filled..]) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        let copy = io::Error::new(error.kind(), error.to_string());
                        // Nobody reads any more if the other side failed first.
                        let _ = self.chunks.send(Err(error));
                        return Err(LayerError::Read(copy));
                    }
                }
            }
            if filled == 0 {
                return Ok(());
            }
            chunk.truncate(filled);
            if self.chunks.send(Ok(chunk)).is_err() {
                return Err(LayerError::Thread("unpacking stopped"));
            }
        }
    }
}

struct Counted<'a, R> {
    inner: R,
    count: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.count += got as u64;
        (self.progress)(self.count);
        Ok(got)
    }
}

/// The end for the thread that unpacks.
pub(super) struct Pipe {
    receiver: Receiver<Chunk>,
    give_back: SyncSender<Arc<Vec<u8>>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
    hasher: Sha256,
    size: u64,
}

/// Some bytes of a chunk, without a copy.
pub(super) struct Piece {
    chunk: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Piece {
    /// The bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.chunk[self.range.clone()]
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }
}

impl Pipe {
    /// The next bytes of those that `fill_buf` gave, to be kept; they still have to be consumed.
    pub(super) fn piece(&self, length: usize) -> Piece {
        let end = (self.at + length).min(self.chunk.len());
        Piece { chunk: self.chunk.clone(), range: self.at..end }
    }

    /// Digest and size of what came through, once that is all.
    pub(super) fn digest(&self) -> (Digest, u64) {
        (Digest::from_bytes(self.hasher.clone().finalize().into()), self.size)
    }
}

impl BufRead for Pipe {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.chunk.len() {
            let chunk = match self.receiver.recv() {
                Ok(chunk) => chunk?,
                Err(_) => return Ok(&[]),
            };
            self.hasher.update(&chunk);
            self.size += chunk.len() as u64;
            let used = std::mem::replace(&mut self.chunk, Arc::new(chunk));
            self.at = 0;
            // Full, or nobody there any more: then it is freed.
            let _ = self.give_back.try_send(used);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at = (self.at + amount).min(self.chunk.len());
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = buffer.len().min(there.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}
