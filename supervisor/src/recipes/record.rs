//! Writes the recipe of a layer: reads its archive beside the folder into which it was unpacked.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    rc::Rc,
};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use proto::digest::Digest;
use sha2::{Digest as _, Sha256};

use super::{RecipeError, format::StepWriter};
use crate::layers::{
    tar::{Entry, Kind, TarReader},
    tree::components,
};

const CHUNK: usize = 256 << 10;
/// Files of fewer bytes stand in the recipe: naming and opening them costs more.
const INLINE: u64 = 128;

/// What was recorded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recorded {
    /// Digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
}

/// Opens a file of an unpacked layer; its path leads over no symlink.
pub(super) fn open_file(tree: &OwnedFd, path: &[u8]) -> Option<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let file = File::from(openat2(tree, path, OpenHow::new().flags(flags).resolve(resolve)).ok()?);
    file.metadata().is_ok_and(|stat| stat.is_file()).then_some(file)
}

/// Reads the uncompressed archive of the layer that is unpacked in `tree`, and writes its recipe.
pub(crate) fn record(input: impl Read, tree: &OwnedFd, output: impl Write) -> Result<Recorded, RecipeError> {
    let writing = |cause| RecipeError::Io("write the recipe", cause);
    let shared = Rc::new(RefCell::new(Shared {
        steps: StepWriter::new(output).map_err(writing)?,
        hasher: Sha256::new(),
        size: 0,
        is_payload: false,
    }));
    let mut tar = TarReader::new(Tap { input, shared: shared.clone() });
    let (mut ours, mut theirs) = (vec![0; CHUNK], vec![0; CHUNK]);
    while let Some(entry) = tar.next_entry()? {
        if entry.kind != Kind::File || entry.size < INLINE {
            continue; // read with the next header, as it is
        }
        shared.borrow_mut().is_payload = true;
        payload(&entry, &mut tar, tree, &shared, (&mut ours, &mut theirs))?;
        shared.borrow_mut().is_payload = false;
    }
    tar.drain()?;
    let shared = Rc::into_inner(shared).map(RefCell::into_inner);
    let Some(Shared { steps, hasher, size, .. }) = shared else {
        return Err(writing(io::ErrorKind::Other.into())); // the reader, which had the other share, is gone
    };
    let digest: [u8; 32] = hasher.finalize().into();
    steps.end(size, digest).map_err(writing)?;
    Ok(Recorded { diff_id: Digest::from_bytes(digest) })
}

fn payload<W: Write>(
    entry: &Entry,
    tar: &mut impl Read,
    tree: &OwnedFd,
    shared: &RefCell<Shared<W>>,
    (ours, theirs): (&mut [u8], &mut [u8]),
) -> Result<(), RecipeError> {
    let writing = |cause| RecipeError::Io("write the recipe", cause);
    let path = components(&entry.path).join(&b'/');
    let mut file = open_file(tree, &path);
    let whole = [(0, entry.size)];
    for (offset, length) in entry.sparse.as_ref().map_or(&whole[..], |sparse| &sparse.pieces) {
        // So much of the piece is in the file.
        let (mut same, mut left) = (0, *length);
        while left > 0 {
            let want = ours.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = tar.read(&mut ours[..want]).map_err(|cause| RecipeError::Io("read the layer", cause))?;
            if got == 0 {
                return Err(RecipeError::Io("read the layer", io::ErrorKind::UnexpectedEof.into()));
            }
            left -= got as u64;
            let is_there = |file: &File| {
                file.read_exact_at(&mut theirs[..got], offset + same).is_ok() && theirs[..got] == ours[..got]
            };
            if file.as_ref().is_some_and(is_there) {
                same += got as u64;
                continue;
            }
            let mut shared = shared.borrow_mut();
            if file.take().is_some() {
                shared.steps.file(&path, *offset, same).map_err(writing)?;
            }
            shared.steps.bytes(&ours[..got]).map_err(writing)?;
        }
        if file.is_some() {
            shared.borrow_mut().steps.file(&path, *offset, same).map_err(writing)?;
        }
    }
    Ok(())
}

struct Shared<W: Write> {
    steps: StepWriter<W>,
    hasher: Sha256,
    size: u64,
    is_payload: bool,
}

/// Sees every byte of the archive: all are hashed, and those that are no file's stand in the recipe.
struct Tap<R, W: Write> {
    input: R,
    shared: Rc<RefCell<Shared<W>>>,
}

impl<R: Read, W: Write> Read for Tap<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        let mut shared = self.shared.borrow_mut();
        shared.hasher.update(&buffer[..got]);
        shared.size += got as u64;
        if !shared.is_payload {
            shared.steps.bytes(&buffer[..got])?;
        }
        Ok(got)
    }
}
