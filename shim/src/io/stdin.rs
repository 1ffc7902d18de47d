//! What a process reads: bytes of one FIFO given at creation, and of every attachment.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
};

use tokio::{sync::Notify, task::AbortHandle};

use super::{AtEnd, fd::Pipe};

/// Read from a source at once; a pipe takes that much without waiting.
const CHUNK: usize = 64 << 10;

/// The write end of a process's stdin.
#[derive(Debug)]
pub(super) struct Stdin {
    target: RefCell<Option<Rc<Pipe>>>,
    /// A terminal has no end of input that could be sent by closing.
    terminal: bool,
    /// CloseIO came: sources are drained, not waited for.
    closing: Cell<bool>,
    wake: Notify,
    feeders: RefCell<Vec<AbortHandle>>,
    running: Cell<usize>,
}

impl Stdin {
    fn new(target: Rc<Pipe>, terminal: bool) -> Rc<Self> {
        Rc::new(Self {
            target: RefCell::new(Some(target)),
            terminal,
            closing: Cell::new(false),
            wake: Notify::new(),
            feeders: RefCell::default(),
            running: Cell::new(0),
        })
    }

    /// Stdin that is a pipe.
    pub(super) fn pipe(writer: Pipe) -> Rc<Self> {
        Self::new(Rc::new(writer), false)
    }

    /// Stdin that is a terminal.
    pub(super) fn terminal(master: Rc<Pipe>) -> Rc<Self> {
        Self::new(master, true)
    }

    /// Whether it still takes input.
    pub(super) fn is_open(&self) -> bool {
        !self.closing.get() && self.target.borrow().is_some()
    }

    /// Copies `source` to the process. `keep` is a write end of a FIFO that holds its end back until CloseIO.
    pub(super) fn feed(self: &Rc<Self>, source: Pipe, at_end: AtEnd, keep: Option<OwnedFd>) {
        self.running.set(self.running.get() + 1);
        let stdin = self.clone();
        let feeder = tokio::task::spawn_local(async move {
            let ended = stdin.copy(&source).await;
            drop(keep);
            stdin.running.set(stdin.running.get() - 1);
            if stdin.terminal {
                return;
            }
            let last_one_while_closing = stdin.closing.get() && stdin.running.get() == 0;
            if last_one_while_closing || (ended && at_end == AtEnd::Close) {
                stdin.close();
            }
        });
        let mut feeders = self.feeders.borrow_mut();
        feeders.retain(|feeder| !feeder.is_finished());
        feeders.push(feeder.abort_handle());
    }

    /// Copies until the source ends (true), or until stdin is closing and the source is empty, or nobody reads.
    async fn copy(&self, source: &Pipe) -> bool {
        loop {
            let closing = self.closing.get();
            // Taken only while there is something to copy: an idle terminal costs no buffer.
            let mut buffer = vec![0; CHUNK];
            loop {
                let read = if closing { source.read_now(&mut buffer) } else { source.try_read(&mut buffer) };
                match read {
                    Ok(Some(0)) => return true,
                    Ok(Some(count)) => {
                        let Some(target) = self.target.borrow().clone() else { return false };
                        // EPIPE: the process has closed its stdin, or is gone.
                        if target.write_all(&buffer[..count]).await.is_err() {
                            return false;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return true,
                }
            }
            if closing {
                return false;
            }
            drop(buffer);
            // CloseIO came while a slow process was being written to.
            if self.closing.get() {
                continue;
            }
            // Before the first writer comes, a FIFO reads as ended; readiness tells the difference, so it is waited for.
            tokio::select! {
                ready = source.readable() => if ready.is_err() { return true },
                () = self.wake.notified() => {}
            }
        }
    }

    /// CloseIO: what the sources hold now still gets through, then the process reads the end.
    pub(super) fn close_when_drained(&self) {
        self.closing.set(true);
        if self.running.get() == 0 {
            self.close();
        } else {
            self.wake.notify_waiters();
        }
    }

    /// Closes it at once and ends all copying.
    pub(super) fn close(&self) {
        for feeder in self.feeders.borrow_mut().drain(..) {
            feeder.abort();
        }
        self.target.borrow_mut().take();
    }
}
