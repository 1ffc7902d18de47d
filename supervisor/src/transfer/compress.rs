//! Compresses layers as one gzip stream, on all processors: blocks are deflated apart and joined at byte boundaries, as pigz
//! does. The same bytes give the same stream, however many threads worked on it.

use std::{
    io::{self, Read},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use flate2::{Compress, Compression, Crc, FlushCompress};

/// What is deflated at a time.
const BLOCK: usize = 256 << 10;
/// What other tools take for layers comes out at a similar size.
const LEVEL: u32 = 5;
/// Beyond this, memory grows and the disk is the limit.
const MOST_THREADS: usize = 4;
/// Deflate, no name, no time, unknown system: nothing that differs between two runs (RFC 1952).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// An empty last block (RFC 1951, fixed codes).
const END: [u8; 2] = [3, 0];

struct Job {
    block: Vec<u8>,
    done: SyncSender<io::Result<Done>>,
}

struct Done {
    deflated: Vec<u8>,
    crc: Crc,
}

/// Reads to the end and hands the compressed stream over piece by piece; `seen` is shown all that is read, in order.
pub(crate) fn gzip(
    mut input: impl Read + Send,
    mut seen: impl FnMut(&[u8]) + Send,
    mut output: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let (jobs, waiting) = sync_channel::<Job>(threads);
    let (order, ordered) = sync_channel::<Receiver<io::Result<Done>>>(2 * threads);
    let waiting = Mutex::new(waiting);
    thread::scope(|scope| {
        for _ in 0..threads {
            let waiting = &waiting;
            scope.spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // Nobody waits for it any more if the whole has failed.
                    let _ = job.done.send(deflate(&job.block));
                }
            });
        }
        let reading = scope.spawn(move || -> io::Result<()> {
            loop {
                let mut block = Vec::with_capacity(BLOCK);
                input.by_ref().take(BLOCK as u64).read_to_end(&mut block)?;
                if block.is_empty() {
                    return Ok(());
                }
                seen(&block);
                let (done, result) = sync_channel(1);
                // Both ends are gone only when the output has failed, which is told there.
                if order.send(result).is_err() || jobs.send(Job { block, done }).is_err() {
                    return Ok(());
                }
            }
        });
        let written = (|| {
            output(&HEADER)?;
            let mut crc = Crc::new();
            for result in ordered {
                let done = result.recv().unwrap_or_else(|_| Err(io::Error::other("a compressing thread has ended")))?;
                crc.combine(&done.crc);
                output(&done.deflated)?;
            }
            output(&END)?;
            output(&[crc.sum().to_le_bytes(), crc.amount().to_le_bytes()].concat())
        })();
        let read = reading.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread met a bug")));
        read.and(written)
    })
}

fn deflate(block: &[u8]) -> io::Result<Done> {
    let mut crc = Crc::new();
    crc.update(block);
    let mut compress = Compress::new(Compression::new(LEVEL), false);
    let mut deflated = Vec::with_capacity(block.len() / 2 + 64);
    loop {
        let at = usize::try_from(compress.total_in()).unwrap_or(usize::MAX).min(block.len());
        // Flushed to a byte boundary, so that the next block can follow.
        compress.compress_vec(&block[at..], &mut deflated, FlushCompress::Sync).map_err(io::Error::other)?;
        if compress.total_in() == block.len() as u64 && deflated.len() < deflated.capacity() {
            return Ok(Done { deflated, crc });
        }
        deflated.reserve(block.len() / 4 + 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed(bytes: &[u8]) -> Vec<u8> {
        let (mut out, mut seen) = (Vec::new(), Vec::new());
        gzip(
            bytes,
            |piece| seen.extend_from_slice(piece),
            |piece| {
                out.extend_from_slice(piece);
                Ok(())
            },
        )
        .unwrap();
        assert!(seen == bytes);
        out
    }

    #[test]
    fn one_stream_that_others_read() {
        let text: Vec<u8> = (0..3 * BLOCK + 17).map(|i| ((i * i) >> 7) as u8 % 61).collect();
        let mut state = 7_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(2 * BLOCK)
        .collect();
        for bytes in [&b""[..], b"x", &text[..BLOCK], &text, &noise] {
            let stream = compressed(bytes);
            assert!(stream == compressed(bytes), "differs from run to run");
            let mut back = Vec::new();
            // Not the reader of several members: this is one.
            let mut decoder = flate2::bufread::GzDecoder::new(&stream[..]);
            decoder.read_to_end(&mut back).unwrap();
            assert!(back == bytes && decoder.into_inner().is_empty());
        }
        assert!(compressed(&text).len() < text.len() / 2);
    }

    #[test]
    fn failures_end_it() {
        let zeros = io::repeat(0).take(64 * BLOCK as u64);
        let full = gzip(zeros, |_| {}, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::InvalidData.into())
            }
        }
        assert_eq!(gzip(Broken, |_| {}, |_| Ok(())).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
