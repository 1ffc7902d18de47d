//! Files are filled by a thread of their own: making one and writing it take the kernel about as long.

use std::{
    fs::File,
    io::{self, Write},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use nix::{
    errno::Errno,
    sys::{stat::futimens, time::TimeSpec},
    unistd::{Gid, Uid, fchown},
};

use super::inflate::Piece;
use crate::layers::{LayerError, tar::Entry};

/// Bytes and jobs that are handed over together: a switch between threads costs more than a small file.
const LOT_BYTES: usize = 256 << 10;
const LOT_JOBS: usize = 16;
/// Lots that may wait.
const AHEAD: usize = 4;

/// Something to be written, after all that was handed over before.
struct Job {
    file: Arc<File>,
    pieces: Vec<Piece>,
    path: Arc<[u8]>,
    // After the last piece.
    end: Option<End>,
}

/// What a file gets once it is whole.
struct End {
    owner: Option<(u32, u32)>,
    time: (i64, u32),
}

/// The end for the thread that makes files.
pub(super) struct Writer {
    lots: SyncSender<Vec<Job>>,
    lot: Vec<Job>,
    bytes: usize,
}

/// The end for the thread that fills them.
pub(super) struct Filler(Receiver<Vec<Job>>);

/// Both ends.
pub(super) fn writer() -> (Writer, Filler) {
    let (lots, receiver) = sync_channel(AHEAD);
    (Writer { lots, lot: Vec::new(), bytes: 0 }, Filler(receiver))
}

/// A file that is handed over piece by piece.
pub(super) struct Handed {
    file: Arc<File>,
    path: Arc<[u8]>,
    pieces: Vec<Piece>,
}

impl Handed {
    /// A file that was made for an entry.
    pub(super) fn new(file: File, entry: &Entry) -> Self {
        Self { file: Arc::new(file), path: entry.path.as_slice().into(), pieces: Vec::new() }
    }
}

impl Writer {
    /// Takes some bytes of a file.
    pub(super) fn piece(&mut self, handed: &mut Handed, piece: Piece) -> Result<(), LayerError> {
        self.bytes += piece.len();
        handed.pieces.push(piece);
        if self.bytes >= LOT_BYTES {
            self.push(handed, None)?;
        }
        Ok(())
    }

    /// Takes the end of a file; `owner` where it isn't the right one from birth.
    pub(super) fn end(
        &mut self,
        mut handed: Handed,
        owner: Option<(u32, u32)>,
        time: (i64, u32),
    ) -> Result<(), LayerError> {
        self.push(&mut handed, Some(End { owner, time }))
    }

    fn push(&mut self, handed: &mut Handed, end: Option<End>) -> Result<(), LayerError> {
        let pieces = std::mem::take(&mut handed.pieces);
        self.lot.push(Job { file: handed.file.clone(), pieces, path: handed.path.clone(), end });
        if self.bytes >= LOT_BYTES || self.lot.len() >= LOT_JOBS { self.flush() } else { Ok(()) }
    }

    /// Hands over what is gathered.
    pub(super) fn flush(&mut self) -> Result<(), LayerError> {
        self.bytes = 0;
        let lot = std::mem::take(&mut self.lot);
        // The other thread has ended with an error, which it tells itself.
        self.lots.send(lot).map_err(|_| LayerError::Thread("writing stopped"))
    }
}

impl Filler {
    /// Writes what comes until nothing more does.
    pub(super) fn run(self) -> Result<(), LayerError> {
        for job in self.0.into_iter().flatten() {
            let failed = |what| {
                let path = String::from_utf8_lossy(&job.path).into_owned();
                move |cause| LayerError::Entry { what, path, cause }
            };
            let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            for piece in &job.pieces {
                (&*job.file).write_all(piece.bytes()).map_err(|error| failed("write file")(errno(error)))?;
            }
            if let Some(end) = &job.end {
                end.apply(&job.file).map_err(failed("set attributes of"))?;
            }
        }
        Ok(())
    }
}

impl End {
    fn apply(&self, file: &File) -> Result<(), Errno> {
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let time = TimeSpec::new(self.time.0, self.time.1.into());
        futimens(file, &time, &time)
    }
}
