//! A reader of output that isn't the container's master: an attached client, or a logging process.
//!
//! Its pipe is the bound. When it is full the process is made to wait, but only as long as the reader has patience left:
//! endless for the client that runs the process, little for all others. After that, what doesn't fit is left out; as soon
//! as the reader takes something again, a line tells it how much it has missed.

use std::{
    cell::Cell,
    io,
    os::fd::BorrowedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use super::fd::Pipe;

/// How long a process may have to wait for a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as the reader lives.
    Endless,
    /// So long; what was used up comes back at a tenth of the time that passes.
    Limited(Duration),
}

/// The share of time that a process can lose to a reader without end: one in so many.
const REFILL: u32 = 10;

/// Way to one reader.
#[derive(Debug)]
pub(super) struct Tap {
    pipe: Pipe,
    patience: Patience,
    left: Cell<Duration>,
    counted_at: Cell<Instant>,
    /// Ends a line on the reader's side.
    line_end: &'static str,
    /// The last byte it got was within a line.
    mid_line: Cell<bool>,
    skipping: Cell<bool>,
    skipped: Cell<u64>,
}

impl Tap {
    /// A tap on a pipe; `terminal` if its reader shows a terminal.
    pub(super) fn new(pipe: Pipe, patience: Patience, terminal: bool) -> Rc<Self> {
        let left = match patience {
            Patience::Endless => Duration::MAX,
            Patience::Limited(most) => most,
        };
        Rc::new(Self {
            pipe,
            patience,
            left: Cell::new(left),
            counted_at: Cell::new(Instant::now()),
            line_end: if terminal { "\r\n" } else { "\n" },
            mid_line: Cell::new(false),
            skipping: Cell::new(false),
            skipped: Cell::new(0),
        })
    }

    /// Gives the reader what waits in `source`, by reference; it is still to be read from there, and [`Tap::shared`] to be told.
    /// Returns how much it is. Nothing, if the reader has no room or has gone: then [`Tap::write`] is the way.
    pub(super) fn share(&self, source: BorrowedFd<'_>, most: usize) -> usize {
        if self.skipping.get() { 0 } else { sys::pipe::tee(source, self.pipe.fd(), most).unwrap_or(0) }
    }

    /// The reader has this already.
    pub(super) fn shared(&self, data: &[u8]) {
        self.mid_line.set(data.last() != Some(&b'\n'));
    }

    /// Passes output on, or leaves it out. An error means that the reader has gone.
    pub(super) async fn write(self: &Rc<Self>, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        while !rest.is_empty() && !self.skipping.get() {
            // Asked of the kernel: readiness as the runtime last saw it may be old, and would count as a stall.
            let written = match self.pipe.write_now(rest)? {
                Some(count) => count,
                None => match self.await_room(rest).await? {
                    Some(count) => count,
                    None => {
                        self.skip();
                        break;
                    }
                },
            };
            self.mid_line.set(rest.get(written.wrapping_sub(1)) != Some(&b'\n'));
            rest = &rest[written..];
        }
        self.skipped.set(self.skipped.get() + rest.len() as u64);
        Ok(())
    }

    /// Writes as soon as there is room; `None` when patience is at its end.
    async fn await_room(&self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let Patience::Limited(most) = self.patience else { return self.pipe.write_some(bytes).await.map(Some) };
        let now = Instant::now();
        let earned = now.duration_since(self.counted_at.get()) / REFILL;
        let left = (self.left.get() + earned).min(most);
        let result = tokio::time::timeout(left, self.pipe.write_some(bytes)).await;
        self.left.set(left.saturating_sub(now.elapsed()));
        self.counted_at.set(Instant::now());
        result.ok().transpose()
    }

    /// Leaves out what comes, until the reader takes something and has been told.
    fn skip(self: &Rc<Self>) {
        self.skipping.set(true);
        let tap = self.clone();
        tokio::task::spawn_local(async move {
            let mark = || {
                let begin = if tap.mid_line.get() { tap.line_end } else { "" };
                let skipped = tap.skipped.get();
                format!("{begin}[berth: {skipped} bytes left out: this reader is too slow]{}", tap.line_end)
            };
            // Short enough to be written as a whole (pipe(7), PIPE_BUF). An error: the next write sees it too.
            if tap.pipe.write_made(|| mark().into_bytes()).await.is_ok() {
                tap.mid_line.set(false);
                tap.skipped.set(0);
            }
            tap.skipping.set(false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    fn tap(patience: Patience) -> (Rc<Tap>, OwnedFd) {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
        (Tap::new(Pipe::writer(writer).expect("writer"), patience, false), reader)
    }

    fn read(reader: &OwnedFd, most: usize) -> Vec<u8> {
        let mut buffer = vec![0; most];
        let count = nix::unistd::read(reader, &mut buffer).expect("read");
        buffer.truncate(count);
        buffer
    }

    #[tokio::test]
    async fn what_is_left_out_is_counted_to_the_byte() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (tap, reader) = tap(Patience::Limited(Duration::from_millis(20)));
                let (begin, mut sent) = (Instant::now(), 0);
                for _ in 0..100 {
                    let data = [b'x'; 5000];
                    tap.write(&data).await.expect("alive");
                    sent += data.len();
                }
                assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
                let first = read(&reader, 1 << 20);
                // The mark comes although nothing more is written.
                while tap.skipping.get() {
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                tap.write(b"again\n").await.expect("alive");
                let rest = String::from_utf8(read(&reader, 1 << 20)).expect("text");
                let skipped = sent - first.len();
                assert!(skipped > 100_000);
                let mark = format!("\n[berth: {skipped} bytes left out: this reader is too slow]\nagain\n");
                assert_eq!(rest, mark);
                drop(reader);
                assert!(tap.write(b"x").await.is_err());
            })
            .await;
    }

    #[tokio::test]
    async fn an_endless_one_loses_nothing() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (tap, reader) = tap(Patience::Endless);
                let writer = tokio::task::spawn_local(async move { tap.write(&[b'y'; 300_000]).await });
                let mut count = 0;
                while count < 300_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    let piece = read(&reader, 50_000);
                    assert!(piece.iter().all(|byte| *byte == b'y'));
                    count += piece.len();
                }
                writer.await.expect("task").expect("written");
            })
            .await;
    }
}
