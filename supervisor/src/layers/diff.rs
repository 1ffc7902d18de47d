//! Makes a layer of the difference between two trees.
//!
//! An overlay on top of the other tree keeps the difference already, in its upper folder, which is read directly. Everything
//! else is walked twice, side by side.

mod archive;
mod compare;
mod walk;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
};

use nix::{errno::Errno, sys::stat::fstat};
use proto::{containerd::types::Mount, digest::Digest, kind::ErrorKind};
use sha2::{Digest as _, Sha256};

use self::{
    archive::Archive,
    compare::Trust,
    walk::{Trees, WalkError},
};
use super::{
    decompress::Compression,
    place::{PlaceError, folders, open_folder, readable},
    tree::Layout,
};
use crate::failure::Failure;

/// Why no layer came out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiffError {
    /// The mounts can't be used.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Something can't be read.
    #[error("read {path:?}")]
    Read {
        /// Where it is.
        path: String,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// A name that means something else in a layer.
    #[error("{0:?} can't be put into a layer: names that begin with .wh. stand there for what is removed; rename it")]
    Reserved(String),
    /// A file can't be read, or the layer not be written, while the one is copied into the other.
    #[error("copy {path:?} into the layer")]
    Copy {
        /// Where it is.
        path: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The layer can't be written.
    #[error("write layer")]
    Write(#[source] io::Error),
}

impl Failure for DiffError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Place(error) => error.kind(),
            Self::Read { cause, .. } => ErrorKind::of_io(&(*cause).into()),
            Self::Reserved(_) => ErrorKind::FailedPrecondition,
            Self::Copy { cause, .. } | Self::Write(cause) => ErrorKind::of_io(cause),
        }
    }
}

/// What is to be compared, and how.
pub(crate) struct Difference<'a> {
    /// Mounts of the tree that was; none for an empty one.
    pub(crate) left: &'a [Mount],
    /// Mounts of the tree that is.
    pub(crate) right: &'a [Mount],
    /// Where to mount things.
    pub(crate) scratch: &'a Path,
    /// The folder of the snapshot behind `right`, if that was copied from `left`: it was last touched when the copy was
    /// complete.
    pub(crate) copy: Option<&'a Path>,
    /// The latest time in the layer, in seconds since 1970.
    pub(crate) epoch: Option<i64>,
    /// Paths that stay out of the layer, without a slash before them.
    pub(crate) except: BTreeSet<Vec<u8>>,
}

/// A layer that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    /// The digest of the archive in a compressed layer; an uncompressed one is its own, and its writer hashes it anyway.
    pub(crate) diff_id: Option<Digest>,
}

impl Difference<'_> {
    /// Writes the layer, compressed as told.
    pub(crate) fn write(&self, output: &mut dyn Write, compression: Compression) -> Result<Written, DiffError> {
        let encoder = Encoder::new(output, compression).map_err(DiffError::Write)?;
        let trees = self.trees()?;
        let hasher = (compression != Compression::Plain).then(Sha256::new);
        let hashed = Hashed { inner: encoder, hasher };
        let mut archive = Archive::new(hashed, &trees.new, self.epoch);
        let except = &self.except;
        match trees.walk(&mut |path, change| if except.contains(path) { Ok(()) } else { archive.take(path, change) }) {
            Ok(()) => {}
            Err(WalkError::Told(error)) => return Err(error),
            Err(WalkError::Read { path, cause }) => return Err(DiffError::Read { path, cause }),
            Err(WalkError::Refers) => return Err(DiffError::Read { path: String::new(), cause: Errno::EINVAL }),
        }
        let Hashed { inner, hasher } = archive.finish()?;
        inner.finish().map_err(DiffError::Write)?;
        Ok(Written { diff_id: hasher.map(|hasher| Digest::from_bytes(hasher.finalize().into())) })
    }

    fn trees(&self) -> Result<Trees, DiffError> {
        if let Some(trees) = self.upper_folder()? {
            // Looked through before a byte is written: where the upper folder doesn't tell all, what is mounted does.
            match trees.walk(&mut |_, _| Ok::<_, DiffError>(())) {
                Ok(()) => return Ok(trees),
                Err(WalkError::Refers) => {}
                Err(WalkError::Told(error)) => return Err(error),
                Err(WalkError::Read { path, cause }) => return Err(DiffError::Read { path, cause }),
            }
        }
        let old = readable(self.left, self.scratch)?;
        let new = match readable(self.right, self.scratch)? {
            Some(new) => new,
            None => return Err(DiffError::Read { path: "/".into(), cause: Errno::ENOENT }),
        };
        let trust = match self.copy {
            Some(folder) => {
                let at = open_folder(folder)?;
                let stat = fstat(&at).map_err(|cause| DiffError::Read { path: folder.display().to_string(), cause })?;
                Trust::UnchangedBefore(stat.st_mtime, stat.st_mtime_nsec)
            }
            None => Trust::Nothing,
        };
        Ok(Trees { old, new, layout: Layout::Merged, trust })
    }

    // The topmost folder of `right`, if what lies below it is `left`.
    fn upper_folder(&self) -> Result<Option<Trees>, DiffError> {
        let (Some(left), Some(right)) = (folders(self.left), folders(self.right)) else { return Ok(None) };
        if left.is_empty() || right.len() != left.len() + 1 || right[1..] != left {
            return Ok(None);
        }
        let old = readable(self.left, self.scratch)?;
        Ok(Some(Trees { old, new: open_folder(&right[0])?, layout: Layout::Overlay, trust: Trust::Nothing }))
    }
}

struct Hashed<W> {
    inner: W,
    hasher: Option<Sha256>,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..written]);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

enum Encoder<'a> {
    Plain(&'a mut dyn Write),
    Gzip(flate2::write::GzEncoder<&'a mut dyn Write>),
    Zstd(zstd::stream::write::Encoder<'static, &'a mut dyn Write>),
}

impl<'a> Encoder<'a> {
    fn new(output: &'a mut dyn Write, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Plain => Self::Plain(output),
            // Without name and time: the same layer has the same digest.
            Compression::Gzip => Self::Gzip(flate2::write::GzEncoder::new(output, flate2::Compression::default())),
            Compression::Zstd => Self::Zstd(zstd::stream::write::Encoder::new(output, 3)?),
            Compression::Xz | Compression::Bzip2 => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "layers are written plain, as gzip or as zstd"));
            }
        })
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(encoder) => encoder.finish()?.flush(),
            Self::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl Write for Encoder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
