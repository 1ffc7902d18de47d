//! Copies what a process writes to where it was sent from the beginning (the sink), and to whoever attached later.

use std::{
    cell::{Cell, RefCell},
    os::fd::{BorrowedFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use proto::stdio::FifoReader;
use tokio::sync::Notify;

use super::{
    fd::{self, Pipe},
    sink::Sink,
    tap::Tap,
};
use crate::report::warn_line;

/// Read at once. Only held while there is something to read.
const CHUNK: usize = 128 << 10;
/// When so much is read at once, what comes next goes to a reader by reference. Not less: each piece takes a place in the
/// reader's pipe, which is to hold a megabyte and not some hundred short lines.
const BULK: usize = 32 << 10;
/// How long buffers are kept while there is nothing to read.
const KEEP: Duration = Duration::from_millis(20);
/// What a process last wrote to a terminal passes through a work queue of the kernel; that long is waited for its end.
const TERMINAL_GRACE: Duration = Duration::from_millis(100);

/// Where bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A pipe of the process's own.
    Pipe(Pipe),
    /// The master of its terminal, and the other end too until the process has ended.
    Terminal(Rc<Pipe>, Option<OwnedFd>),
}

impl Source {
    fn pipe(&self) -> &Pipe {
        match self {
            Self::Pipe(pipe) => pipe,
            Self::Terminal(pipe, _) => pipe,
        }
    }
}

/// What others need to know of, and can tell to, a pump.
#[derive(Debug, Default)]
pub(super) struct Output {
    attachments: RefCell<Vec<Rc<Tap>>>,
    /// The process has been reaped: all that it wrote is in the pipe by now.
    process_ended: Cell<bool>,
    /// All that the process wrote is passed on.
    settled: Cell<bool>,
    /// Nobody writes any more.
    source_ended: Cell<bool>,
    /// Nobody is interested any more.
    discard: Cell<bool>,
    wake: Notify,
    on_settled: Notify,
}

impl Output {
    /// Adds a reader; it gets what is written from now on.
    pub(super) fn join(&self, tap: Rc<Tap>) {
        self.attachments.borrow_mut().push(tap);
    }

    /// Whether there is nothing to be read any more.
    pub(super) fn has_ended(&self) -> bool {
        self.source_ended.get() || self.settled.get()
    }

    /// The process is gone.
    pub(super) fn process_ended(&self) {
        self.process_ended.set(true);
        self.wake.notify_one();
    }

    /// From now on everything is thrown away.
    pub(super) fn discard(&self) {
        self.discard.set(true);
        self.attachments.borrow_mut().clear();
        self.wake.notify_one();
    }

    /// Done when all that the process wrote is passed on.
    pub(super) async fn settled(&self) {
        while !self.settled.get() {
            self.on_settled.notified().await;
        }
    }

    fn settle(&self) {
        self.settled.set(true);
        // Their readers see the end now, even if a child of the process still holds the pipe.
        self.attachments.borrow_mut().clear();
        self.on_settled.notify_waiters();
        self.on_settled.notify_one();
    }

    /// Gives what waits in `source` to the only reader; returns how much.
    fn share(&self, source: BorrowedFd<'_>) -> usize {
        match &self.attachments.borrow()[..] {
            [tap] => tap.share(source, CHUNK),
            // A pipe each, that may have room for more or less of it.
            _ => 0,
        }
    }

    /// What was given to the only reader has been read; others have joined behind it.
    fn shared(&self, data: &[u8]) {
        if let Some(tap) = self.attachments.borrow().first() {
            tap.shared(data);
        }
    }

    async fn pass_on(&self, data: &[u8]) {
        if self.attachments.borrow().is_empty() {
            return;
        }
        // Taken out, so that others may join while a slow one is waited for.
        let mut present = std::mem::take(&mut *self.attachments.borrow_mut());
        let mut kept = Vec::with_capacity(present.len());
        for tap in present.drain(..) {
            // EPIPE or whatever else: it is gone.
            if tap.write(data).await.is_ok() {
                kept.push(tap);
            }
        }
        if self.discard.get() {
            return;
        }
        let mut attachments = self.attachments.borrow_mut();
        kept.append(&mut attachments);
        *attachments = kept;
    }
}

/// Copies until nobody can write any more.
pub(super) async fn pump(mut source: Source, mut sink: Sink, output: Rc<Output>) {
    let (mut enlarged, mut idle, mut bulk) = (false, false, false);
    // So much of what is read next has gone to the only reader already.
    let mut shared = 0;
    let mut buffer = Vec::new();
    let mut ended_at = None;
    loop {
        if output.discard.get() {
            sink = Sink::Null;
        }
        if buffer.is_empty() {
            buffer = vec![0; CHUNK];
        }
        // Asked before the read: what the process wrote before its end can't be missed.
        let process_ended = output.process_ended.get();
        if process_ended && let Source::Terminal(_, peer) = &mut source {
            // Now the terminal may end.
            peer.take();
        }
        if bulk && shared == 0 && matches!(source, Source::Pipe(_)) {
            shared = output.share(source.pipe().fd());
        }
        let window = if shared > 0 { &mut buffer[..shared] } else { &mut buffer[..] };
        let read = if process_ended && !output.settled.get() {
            source.pipe().read_now(window)
        } else {
            source.pipe().try_read(window)
        };
        match read {
            Ok(Some(0)) => break,
            Ok(Some(count)) => {
                bulk = count >= BULK;
                sink.write(&buffer[..count]).await;
                if shared > 0 {
                    output.shared(&buffer[..count]);
                    shared -= count;
                } else {
                    output.pass_on(&buffer[..count]).await;
                }
                // A pipe that was full: let its writer run further ahead.
                if count >= 64 << 10 && !enlarged && matches!(source, Source::Pipe(_)) {
                    enlarged = true;
                    fd::enlarge(source.pipe().fd());
                }
                // Others have their turn too.
                tokio::task::coop::consume_budget().await;
                continue;
            }
            Ok(None) => {}
            Err(error) => {
                warn_line!("read output: {error}");
                break;
            }
        }
        let mut grace = Duration::MAX;
        if process_ended && !output.settled.get() {
            let since = ended_at.get_or_insert_with(std::time::Instant::now).elapsed();
            match source {
                Source::Terminal(..) if since < TERMINAL_GRACE => grace = TERMINAL_GRACE - since,
                _ => {
                    sink.finish();
                    if matches!(sink, Sink::Fifo(_, FifoReader::Optional)) {
                        sink = Sink::Null;
                    }
                    output.settle();
                }
            }
        }
        // Buffers are kept over a short pause, for a writer that is about to go on, and given back in a longer one.
        if idle {
            buffer = Vec::new();
            sink.rest();
        }
        let pause = if idle { grace } else { grace.min(KEEP) };
        tokio::select! {
            ready = source.pipe().readable() => match ready {
                Ok(()) => idle = false,
                Err(_) => break,
            },
            () = output.wake.notified() => {}
            () = tokio::time::sleep(pause), if pause != Duration::MAX => idle = true,
        }
    }
    sink.finish();
    sink.rest();
    drop(sink);
    output.source_ended.set(true);
    output.settle();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tap::Patience;
    use std::{
        fs::File,
        io::{Read as _, Write as _},
        thread,
    };

    fn pipe() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe")
    }

    /// Everything that a client reads of output written in pieces; it is slow at times.
    fn copied(pieces: Vec<Vec<u8>>, readers: usize) -> Vec<Vec<u8>> {
        let (source, writer) = pipe();
        let output = Rc::new(Output::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let _entered = runtime.enter();
        let clients: Vec<_> = (0..readers)
            .map(|number| {
                let (client, end) = pipe();
                fd::enlarge(&end);
                output.join(Tap::new(Pipe::writer(end).expect("writer"), Patience::Endless, false));
                thread::spawn(move || {
                    let (mut client, mut all, mut buffer) = (File::from(client), Vec::new(), vec![0; 50_000 + number]);
                    loop {
                        let count = client.read(&mut buffer).expect("read");
                        all.extend_from_slice(&buffer[..count]);
                        match count {
                            0 => return all,
                            _ if all.len() % 7 == 0 => thread::sleep(Duration::from_millis(1)),
                            _ => {}
                        }
                    }
                })
            })
            .collect();
        let writing = thread::spawn(move || {
            let mut writer = File::from(writer);
            pieces.iter().for_each(|piece| writer.write_all(piece).expect("write"));
        });
        let source = Source::Pipe(Pipe::reader(source).expect("reader"));
        tokio::task::LocalSet::new().block_on(&runtime, pump(source, Sink::Null, output));
        writing.join().expect("writer");
        clients.into_iter().map(|client| client.join().expect("client")).collect()
    }

    #[test]
    fn much_output_arrives_whole_by_copy_and_by_reference() {
        let number = |n: u32| format!("{n:010}\n").into_bytes();
        let large = (0..40).map(|part| (0..6_000).flat_map(|n| number(part * 6_000 + n)).collect());
        let pieces: Vec<Vec<u8>> = large.chain((240_000..241_000).map(number)).collect();
        let expected = pieces.concat();
        for readers in [1, 2] {
            for all in copied(pieces.clone(), readers) {
                assert!(all == expected, "{readers} readers: {} bytes of {}", all.len(), expected.len());
            }
        }
    }
}
