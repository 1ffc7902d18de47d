//! Makes a layer's archive again: from its recipe, and the folder into which it was unpacked. Read to its end it is
//! certainly the same: size and digest are compared.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
};

use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    format::{Step, StepReader},
    record::open_file,
};

/// An uncompressed layer, made again as it is read.
pub(crate) struct Remake<R: Read> {
    steps: StepReader<R>,
    tree: OwnedFd,
    now: Now,
    hasher: Sha256,
    size: u64,
}

enum Now {
    Bytes(Vec<u8>, usize),
    File { file: File, path: Vec<u8>, at: u64, left: u64 },
    Done,
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn shown(path: &[u8]) -> &std::path::Path {
    std::ffi::OsStr::from_bytes(path).as_ref()
}

impl<R: Read> Remake<R> {
    /// From a recipe and the folder of the layer's snapshot.
    pub(crate) fn new(recipe: R, tree: OwnedFd) -> io::Result<Self> {
        let now = Now::Bytes(Vec::new(), 0);
        Ok(Self { steps: StepReader::new(recipe)?, tree, now, hasher: Sha256::new(), size: 0 })
    }

    /// The digest of what has been read.
    pub(super) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    fn step(&mut self) -> io::Result<()> {
        self.now = match self.steps.next()? {
            Step::Bytes(bytes) => Now::Bytes(bytes, 0),
            Step::File { path, offset, length } => {
                let missing = || broken(format!("the unpacked file {:?} is missing", shown(&path)));
                let file = open_file(&self.tree, &path).ok_or_else(missing)?;
                Now::File { file, path, at: offset, left: length }
            }
            Step::End { size, digest } => {
                let actual = self.digest();
                if (size, digest) != (self.size, actual) {
                    return Err(broken(format!("what was made has the digest {actual} instead of {digest}")));
                }
                Now::Done
            }
        };
        Ok(())
    }
}

impl<R: Read> Read for Remake<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let got = match &mut self.now {
                Now::Done => return Ok(0),
                Now::Bytes(bytes, at) => {
                    let got = buffer.len().min(bytes.len() - *at);
                    buffer[..got].copy_from_slice(&bytes[*at..*at + got]);
                    *at += got;
                    got
                }
                Now::File { left: 0, .. } => 0,
                Now::File { file, path, at, left } => {
                    let want = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let got = file.read_at(&mut buffer[..want], *at)?;
                    if got == 0 {
                        return Err(broken(format!("the unpacked file {:?} is shorter than it was", shown(path))));
                    }
                    *at += got as u64;
                    *left -= got as u64;
                    got
                }
            };
            if got > 0 {
                self.hasher.update(&buffer[..got]);
                self.size += got as u64;
                return Ok(got);
            }
            self.step()?;
        }
    }
}
