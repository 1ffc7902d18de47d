//! An archive of a client's, unpacked into a folder of our own.

use super::{Body, ExtractError, Options, Pieces, extract::extract, view::View};
use crate::patience::Turn;
use bytes::Bytes;
use std::{
    io::{self, Read},
    os::fd::OwnedFd,
};

/// Unpacks an archive, packed or not, below `root`; no more than `most` bytes of it.
pub async fn unpack_below(root: OwnedFd, pieces: Pieces, most: u64) -> Result<(), ExtractError> {
    let thread = |cause: io::Error| ExtractError::Archive(cause);
    let turn = Turn::take().await.map_err(|error| thread(io::Error::other(error)))?;
    let work = move || -> Result<(), ExtractError> {
        let view = View::of_folder(root);
        let body = Body { pieces, piece: Bytes::new() };
        let plain = crate::unpack::unpacked(body).map_err(ExtractError::Archive)?;
        extract(&view, "/", Bounded { inner: plain, left: most }, Options { whole: false, ..Options::default() })
    };
    let done = turn.run("context", work).map_err(thread)?.await;
    done.map_err(|error| thread(io::Error::other(error)))?
}

/// Reads so much and no more: a packed archive may hold more than the disk does.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(got as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::QuotaExceeded, "the archive unpacks to more than the disk may take")
        })?;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_an_end() {
        let mut bytes = Vec::new();
        let bounded = |left| Bounded { inner: &b"0123456789"[..], left };
        bounded(10).read_to_end(&mut bytes).unwrap();
        assert_eq!(bounded(9).read_to_end(&mut bytes).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
