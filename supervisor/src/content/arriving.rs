//! Blobs that are read while they arrive: the writer says how far it is, the reader waits for more.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// How far a writer is, for those who follow it.
#[derive(Debug, Default)]
pub(super) struct Growth {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    size: u64,
    // Counts how often the writer went back: what was read before may be something else now.
    begun_anew: u32,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    GivenUp,
}

impl Growth {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The numbers stay right even if a thread died while it held the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The writer has `size` bytes.
    pub(super) fn grown(&self, size: u64) {
        self.change(|state| state.size = size);
    }

    /// The writer went back to `size`.
    pub(super) fn cut(&self, size: u64) {
        self.change(|state| (state.size, state.begun_anew) = (size, state.begun_anew + 1));
    }

    /// All is there, and is what was promised.
    pub(super) fn complete(&self) {
        self.change(|state| state.end = Some(End::Complete));
    }

    /// Nothing more will come, unless all was there.
    pub(super) fn given_up(&self) {
        self.change(|state| state.end = state.end.or(Some(End::GivenUp)));
    }
}

/// A blob on its way. Reading ends when the blob is complete and its digest right; it fails when the writer gave up, or had to
/// begin anew.
#[derive(Debug)]
pub(crate) struct Arriving {
    file: File,
    at: u64,
    begun_anew: u32,
    growth: Arc<Growth>,
}

impl Arriving {
    pub(super) fn open(data: &Path, growth: Arc<Growth>) -> io::Result<Self> {
        let begun_anew = growth.lock().begun_anew;
        Ok(Self { file: File::open(data)?, at: 0, begun_anew, growth })
    }

    /// Tells, also when the reader is gone, whether what it read may not be what was stored in the end.
    pub(crate) fn beginning(&self) -> Beginning {
        Beginning { begun_anew: self.begun_anew, growth: self.growth.clone() }
    }
}

/// Where a reader of a blob on its way began.
#[derive(Debug)]
pub(crate) struct Beginning {
    begun_anew: u32,
    growth: Arc<Growth>,
}

impl Beginning {
    /// Whether the writer has begun anew since.
    pub(crate) fn is_over(&self) -> bool {
        self.growth.lock().begun_anew != self.begun_anew
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = {
            let mut state = self.growth.lock();
            loop {
                if state.begun_anew != self.begun_anew {
                    return Err(io::Error::new(io::ErrorKind::ConnectionReset, "the download began anew"));
                }
                match state.end {
                    _ if state.size > self.at => break state.size - self.at,
                    Some(End::Complete) => return Ok(0),
                    Some(End::GivenUp) => {
                        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download was given up"));
                    }
                    None => {
                        state = self.growth.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        };
        let want = buffer.len().min(usize::try_from(there).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into()); // cut between the look and the read
        }
        self.at += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, thread};

    #[test]
    fn follows_to_the_end_and_tells_when_there_is_none() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let growth = Arc::new(Growth::default());
        let mut reader = Arriving::open(file.path(), growth.clone()).unwrap();
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        for piece in ["one ", "two ", "three"] {
            file.write_all(piece.as_bytes()).unwrap();
            growth.grown(file.as_file().metadata().unwrap().len());
        }
        growth.complete();
        growth.given_up();
        assert_eq!(reading.join().unwrap().unwrap(), "one two three");

        let growth = Arc::new(Growth::default());
        growth.grown(3);
        let mut reader = Arriving::open(file.path(), growth.clone()).unwrap();
        let mut three = [0; 3];
        reader.read_exact(&mut three).unwrap();
        growth.given_up();
        assert_eq!(reader.read(&mut three).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let beginning = reader.beginning();
        assert!(!beginning.is_over());
        growth.cut(0);
        growth.grown(5);
        assert!(beginning.is_over());
        assert_eq!(reader.read(&mut three).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
