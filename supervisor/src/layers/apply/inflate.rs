//! One thread reads, inflates and hashes a layer; the other reads here what came out.

use std::{
    fs::File,
    io::{self, Read},
    sync::mpsc::{Receiver, SyncSender},
};

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::{Applied, CHUNK};
use crate::layers::{LayerError, decompress::decompressed};

/// A piece of the uncompressed archive.
pub(super) type Chunk = Result<Vec<u8>, io::Error>;

/// Inflates `blob` into a channel; tells digest and size of what came out.
pub(super) fn inflate(
    blob: File,
    sender: &SyncSender<Chunk>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Applied, LayerError> {
    let counted = Counted { inner: blob, count: 0, progress };
    let (mut reader, _) = match decompressed(counted) {
        Ok(reader) => reader,
        Err(error) => {
            // The other side sees the end; this error is the one that is told.
            return Err(error);
        }
    };
    let (mut hasher, mut size) = (Sha256::new(), 0);
    loop {
        let mut chunk = vec![0; CHUNK];
        let mut filled = 0;
        while filled < CHUNK {
            match reader.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let copy = io::Error::new(error.kind(), error.to_string());
                    // Nobody reads any more if the other side failed first.
                    let _ = sender.send(Err(error));
                    return Err(LayerError::Read(copy));
                }
            }
        }
        if filled == 0 {
            return Ok(Applied { diff_id: Digest::from_bytes(hasher.finalize().into()), size });
        }
        chunk.truncate(filled);
        hasher.update(&chunk);
        size += filled as u64;
        if sender.send(Ok(chunk)).is_err() {
            return Err(LayerError::Thread("unpacking stopped"));
        }
    }
}

struct Counted<'a> {
    inner: File,
    count: u64,
    progress: &'a (dyn Fn(u64) + Sync),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.count += got as u64;
        (self.progress)(self.count);
        Ok(got)
    }
}

/// The other end of the channel.
pub(super) struct Pipe {
    receiver: Receiver<Chunk>,
    chunk: Vec<u8>,
    at: usize,
}

impl Pipe {
    /// What comes through `receiver`.
    pub(super) fn new(receiver: Receiver<Chunk>) -> Self {
        Self { receiver, chunk: Vec::new(), at: 0 }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = buffer.len().min(self.chunk.len() - self.at);
        buffer[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
