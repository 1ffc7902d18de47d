//! A log that its container doesn't wait for: a bounded ring between the two.
//!
//! ```text
//!   pump ──push──▶ ring (max-buffer-size) ──drain──▶ file, journal, syslog
//!                     └─ full: dropped and counted; the count takes its place in the log when there is room again
//! ```
//! With `mode=blocking` the container waits for room, but only for as long as the other side works: one that has failed
//! is tried again and again, and what doesn't fit meanwhile is dropped too.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, oneshot};

use super::{
    lines::{Entry, Lines, Partial, Stream},
    logfile::LogFile,
    pack,
};
use crate::{reaper::Reaper, report::warn_line};

/// What a message costs beside its text.
const OVERHEAD: u64 = 64;
/// First pause after a failure; it doubles up to the last one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// An entry that waits.
#[derive(Debug)]
pub(super) struct Record {
    /// When it was read.
    pub(super) time: SystemTime,
    stream: Stream,
    partial: Option<Partial>,
    text: Box<[u8]>,
}

impl Record {
    fn new(entry: &Entry<'_>, time: SystemTime) -> Self {
        Self { time, stream: entry.stream, partial: entry.partial, text: entry.text.into() }
    }

    fn cost(&self) -> u64 {
        self.text.len() as u64 + OVERHEAD
    }

    /// The entry.
    pub(super) fn entry(&self) -> Entry<'_> {
        Entry { stream: self.stream, text: &self.text, partial: self.partial }
    }
}

/// Answers a request for a new file.
type Reopened = oneshot::Sender<io::Result<()>>;

/// The ring.
#[derive(Debug)]
pub(super) struct Queue {
    /// What is logged to, for messages.
    name: String,
    /// The file behind it, if it is one.
    file: Option<PathBuf>,
    records: RefCell<VecDeque<Record>>,
    /// Cost of the records, those that are being written included.
    cost: Cell<u64>,
    limit: u64,
    blocking: bool,
    /// Dropped since the last mark.
    lost: Cell<u64>,
    failing: Cell<bool>,
    closed: Cell<bool>,
    /// Nothing is left to write, and nothing will come.
    ended: Cell<bool>,
    reopen: RefCell<Option<Reopened>>,
    filled: Notify,
    moved: Notify,
}

impl Queue {
    /// An empty ring.
    pub(super) fn new(name: String, file: Option<PathBuf>, limit: u64, blocking: bool) -> Rc<Self> {
        Rc::new(Self {
            name,
            file,
            records: RefCell::default(),
            cost: Cell::new(0),
            limit,
            blocking,
            lost: Cell::new(0),
            failing: Cell::new(false),
            closed: Cell::new(false),
            ended: Cell::new(false),
            reopen: RefCell::default(),
            filled: Notify::new(),
            moved: Notify::new(),
        })
    }

    /// The path of the file behind it.
    pub(super) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Takes what `lines` makes of `data`.
    pub(super) fn write(&self, lines: &mut Lines, data: &[u8]) {
        let now = SystemTime::now();
        lines.cut(data, |entry| self.push(&entry, now));
        self.filled.notify_one();
    }

    /// Takes what is left in `lines`.
    pub(super) fn finish(&self, lines: &mut Lines) {
        let now = SystemTime::now();
        lines.finish(|entry| self.push(&entry, now));
        self.filled.notify_one();
    }

    fn push(&self, entry: &Entry<'_>, now: SystemTime) {
        // One read may go over the limit where its writer is made to wait for room afterwards.
        let waits = self.blocking && !self.failing.get();
        let full = self.cost.get() + entry.text.len() as u64 + OVERHEAD > self.limit;
        // Something always fits, or a message larger than the ring would never be logged.
        if self.ended.get() || (full && !waits && self.cost.get() > 0) {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        if let Some(mark) = self.take_mark(now) {
            self.add(mark);
        }
        self.add(Record::new(entry, now));
    }

    fn add(&self, record: Record) {
        self.cost.set(self.cost.get() + record.cost());
        self.records.borrow_mut().push_back(record);
    }

    fn take_mark(&self, now: SystemTime) -> Option<Record> {
        let lost = self.lost.replace(0);
        let text = format!("[berth: {lost} messages were dropped here: the log could not keep up or was away]");
        let entry = Entry { stream: Stream::Stderr, text: text.as_bytes(), partial: None };
        (lost > 0).then(|| Record::new(&entry, now))
    }

    /// With `mode=blocking`: waits for room.
    pub(super) async fn has_room(&self) {
        while self.blocking && self.cost.get() > self.limit && !self.failing.get() && !self.ended.get() {
            self.moved.notified().await;
        }
    }

    /// No more will come.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.filled.notify_one();
    }

    /// Done when everything is written, or can't be at the moment.
    pub(super) async fn flushed(&self) {
        while self.cost.get() > 0 && !self.failing.get() && !self.ended.get() {
            self.moved.notified().await;
        }
    }

    /// Asks for a new file.
    pub(super) async fn reopen(&self) -> io::Result<()> {
        let (sender, answer) = oneshot::channel();
        *self.reopen.borrow_mut() = Some(sender);
        self.filled.notify_one();
        answer.await.unwrap_or_else(|_| Err(io::Error::other("the log has ended")))
    }

    fn changed(&self) {
        // The pumps of two streams and whoever waits for the end.
        self.moved.notify_waiters();
        self.moved.notify_one();
    }

    /// All that is there; `None` at the end.
    async fn next(&self) -> Option<VecDeque<Record>> {
        loop {
            if self.reopen.borrow().is_some() {
                return Some(VecDeque::new());
            }
            let mut records = std::mem::take(&mut *self.records.borrow_mut());
            // The last of a burst was dropped: that is told without waiting for the next.
            if records.is_empty()
                && let Some(mark) = self.take_mark(SystemTime::now())
            {
                self.cost.set(self.cost.get() + mark.cost());
                records.push_back(mark);
            }
            if !records.is_empty() {
                return Some(records);
            }
            if self.closed.get() {
                return None;
            }
            self.filled.notified().await;
        }
    }

    fn written(&self, cost: u64) {
        self.cost.set(self.cost.get() - cost);
        self.changed();
    }

    fn end(&self) {
        let lost = self.lost.get() + self.records.borrow().len() as u64;
        if lost > 0 {
            warn_line!("{lost} messages for {} were lost", self.name);
        }
        self.records.borrow_mut().clear();
        self.ended.set(true);
        self.changed();
    }
}

/// Something that takes one message after another.
pub(super) trait Outlet {
    /// Passes one on. After an error it is asked again for the same message.
    fn send(&mut self, record: &Record) -> impl Future<Output = io::Result<()>>;
}

/// Empties the ring into the journal or a syslog daemon, until it is closed and empty, or closed and without hope.
pub(super) async fn drain(queue: Rc<Queue>, mut outlet: impl Outlet) {
    while let Some(mut records) = queue.next().await {
        let mut pause = FIRST_PAUSE;
        while let Some(record) = records.front() {
            match outlet.send(record).await {
                Ok(()) => {
                    queue.written(record.cost());
                    records.pop_front();
                    pause = FIRST_PAUSE;
                    if queue.failing.replace(false) {
                        warn_line!("{} takes messages again", queue.name);
                    }
                }
                Err(error) => {
                    if !queue.failing.replace(true) {
                        warn_line!("{}: {error}; messages are kept in a ring of {} bytes", queue.name, queue.limit);
                        queue.changed();
                    }
                    if queue.closed.get() {
                        queue.lost.set(queue.lost.get() + records.len() as u64);
                        return queue.end();
                    }
                    // Until the next attempt, or the end.
                    let _ = tokio::time::timeout(pause, async {
                        while !queue.closed.get() {
                            queue.filled.notified().await;
                        }
                    })
                    .await;
                    pause = (2 * pause).min(LAST_PAUSE);
                }
            }
        }
    }
    queue.end();
}

/// Empties the ring into a file. A disk that hangs holds up a thread of its own, and nothing else.
pub(super) async fn drain_to_file(queue: Rc<Queue>, mut file: LogFile, reaper: Rc<Reaper>) {
    let mut packer = None;
    loop {
        if packer.is_none()
            && let Some((source, target)) = file.pack_request()
        {
            packer = pack::start(&source, &target, &reaper);
            if packer.is_none() {
                file.packed(false);
            }
        }
        let packed = async {
            match packer.as_mut() {
                Some(exit) => exit.await.is_ok_and(|exit| exit.status == 0),
                None => std::future::pending().await,
            }
        };
        let records = tokio::select! {
            records = queue.next() => records,
            succeeded = packed => {
                packer = None;
                file.packed(succeeded);
                continue;
            }
        };
        let Some(records) = records else { break };
        let cost = records.iter().map(Record::cost).sum();
        let reopened = queue.reopen.take();
        let work = tokio::task::spawn_blocking(move || {
            file.write_records(records);
            let result = reopened.is_some().then(|| file.reopen());
            (file, reopened.zip(result))
        });
        // It panics for no reason that a log could give.
        let Ok((returned, answer)) = work.await else { return queue.end() };
        file = returned;
        if let Some((reopened, result)) = answer {
            let _ = reopened.send(result);
        }
        queue.written(cost);
    }
    if let Some(exit) = packer {
        file.packed(exit.await.is_ok_and(|exit| exit.status == 0));
    }
    queue.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(records: &VecDeque<Record>) -> Vec<String> {
        records.iter().map(|record| String::from_utf8_lossy(&record.text).into_owned()).collect()
    }

    #[tokio::test]
    async fn a_full_ring_drops_the_newest_and_says_so() {
        let queue = Queue::new("test".into(), None, 3 * (OVERHEAD + 1), false);
        let mut lines = Lines::new(Stream::Stdout);
        queue.write(&mut lines, b"a\nb\nc\nd\ne\n");
        let first = queue.next().await.expect("records");
        assert_eq!(texts(&first), ["a", "b", "c"]);
        // Being written, they still take room.
        queue.write(&mut lines, b"f\n");
        queue.written(first.iter().map(Record::cost).sum());
        queue.write(&mut lines, b"g\n");
        let next = texts(&queue.next().await.expect("records"));
        assert!(next[0].contains(" 3 messages were dropped") && next[1] == "g" && next.len() == 2, "{next:?}");
        queue.close();
        assert!(queue.next().await.is_none());
    }

    #[tokio::test]
    async fn the_count_does_not_wait_for_the_next_message() {
        let queue = Queue::new("test".into(), None, OVERHEAD, false);
        queue.write(&mut Lines::new(Stream::Stdout), b"larger than the ring\nb\n");
        assert_eq!(texts(&queue.next().await.expect("records")), ["larger than the ring"]);
        let mark = texts(&queue.next().await.expect("records"));
        assert!(mark.len() == 1 && mark[0].contains(" 1 messages"), "{mark:?}");
    }

    #[tokio::test]
    async fn a_blocking_ring_makes_its_writer_wait_unless_all_hope_is_gone() {
        let queue = Queue::new("test".into(), None, OVERHEAD + 1, true);
        queue.write(&mut Lines::new(Stream::Stdout), b"a\nb\nc\n");
        let waits =
            |queue: Rc<Queue>| async move { tokio::time::timeout(Duration::from_millis(20), queue.has_room()).await };
        assert!(waits(queue.clone()).await.is_err(), "over its limit");
        let records = queue.next().await.expect("records");
        assert_eq!(texts(&records), ["a", "b", "c"]);
        queue.failing.set(true);
        assert!(waits(queue.clone()).await.is_ok());
        queue.write(&mut Lines::new(Stream::Stdout), b"d\n");
        assert_eq!(queue.lost.get(), 1);
        queue.failing.set(false);
        queue.written(records.iter().map(Record::cost).sum());
        assert!(waits(queue).await.is_ok());
    }
}
