//! Tells the supervisor what happened, in order, however long it takes until there is one to tell.
//!
//! Events queue here and are forwarded one after the other; the next one goes out when the one before was taken. Each is in its
//! container's journal first (`journal`), so that the supervisor finds it there if we die. An event may arrive twice, when a
//! supervisor died between taking it and saying so: it is the last one then, the same in every byte, and no two events are
//! the same, because time stamps only grow. The connection is made when there is something to tell, and given up when there
//! has been nothing for a while.
//!
//! The queue is bounded without dropping anything: when [`LIMIT`] events wait, requests that would bring more are refused
//! ([`Events::is_full`]), and an out-of-memory kill is told once while it waits. What remains are the ends of processes that
//! exist already. Nobody can ask for much through a supervisor that is away, so this is for callers who ask past it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::{Duration, SystemTime},
};

use prost::{Message, Name};
use proto::{containerd::services::events::v1::Envelope, typeurl};
use tokio::{sync::Notify, time::timeout};

use crate::{
    bootstrap::EventSink,
    clock,
    forward::{Ended, Failure, Forwarder},
    journal::{Entry, Journal},
    report::warn_line,
};

/// First and longest pause before another try, unless the daemon's socket appears meanwhile.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(10));
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(1);
/// When so many wait, nothing is begun that would add more.
pub(crate) const LIMIT: usize = 2048;

/// Topics of containerd's task events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Topic {
    /// A container was built.
    Create,
    /// Its process runs.
    Start,
    /// A process ended.
    Exit,
    /// A container is gone.
    Delete,
    /// An exec is known.
    ExecAdded,
    /// Its process runs.
    ExecStarted,
    /// All processes are frozen.
    Paused,
    /// They run again.
    Resumed,
    /// An image of them was written.
    Checkpointed,
    /// The kernel killed for memory.
    Oom,
}

impl Topic {
    /// Its path.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Create => "/tasks/create",
            Self::Start => "/tasks/start",
            Self::Exit => "/tasks/exit",
            Self::Delete => "/tasks/delete",
            Self::ExecAdded => "/tasks/exec-added",
            Self::ExecStarted => "/tasks/exec-started",
            Self::Paused => "/tasks/paused",
            Self::Resumed => "/tasks/resumed",
            Self::Checkpointed => "/tasks/checkpointed",
            Self::Oom => "/tasks/oom",
        }
    }
}

/// The queue, and the one who empties it.
pub(crate) struct Events {
    sink: EventSink,
    namespace: String,
    queue: RefCell<VecDeque<Entry>>,
    last: Cell<SystemTime>,
    wake: Notify,
    emptied: Notify,
}

impl Events {
    /// A queue towards the daemon.
    pub(crate) fn new(sink: EventSink, namespace: &str) -> Self {
        Self {
            sink,
            namespace: namespace.to_owned(),
            queue: RefCell::default(),
            last: Cell::new(SystemTime::UNIX_EPOCH),
            wake: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Whether so much waits that nothing may be begun that would add to it.
    pub(crate) fn is_full(&self) -> bool {
        self.queue.borrow().len() >= LIMIT
    }

    /// Adds an event behind all others.
    pub(crate) fn push<M: Message + Name>(&self, journal: &Rc<Journal>, topic: Topic, event: &M) {
        if topic == Topic::Oom && journal.has_oom() {
            return;
        }
        // Also when the clock is set back: no two events may have the same time.
        let now = SystemTime::now().max(self.last.get() + Duration::from_nanos(1));
        self.last.set(now);
        let envelope = Envelope {
            timestamp: Some(clock::timestamp(now)),
            namespace: self.namespace.clone(),
            topic: topic.name().to_owned(),
            event: Some(typeurl::pack(event)),
            ..Envelope::default()
        };
        self.queue.borrow_mut().push_back(journal.append(envelope));
        self.wake.notify_one();
    }

    /// Waits until all is told, but no longer than that.
    pub(crate) async fn flush(&self, at_most: Duration) {
        let _ = timeout(at_most, async {
            while !self.queue.borrow().is_empty() {
                self.emptied.notified().await;
            }
        })
        .await;
    }

    /// Forwards for ever.
    pub(crate) async fn run(self: Rc<Self>) {
        let mut forwarder = Forwarder::new(self.sink.clone(), &self.namespace);
        let mut pause = PAUSES.0;
        loop {
            let first = self.queue.borrow().front().map(Entry::event);
            let Some(first) = first else {
                self.emptied.notify_one();
                if timeout(IDLE, self.wake.notified()).await.is_err() {
                    forwarder.disconnect();
                    sys::memory::trim_heap();
                    self.wake.notified().await;
                }
                continue;
            };
            let forwarded = match first {
                Some(envelope) => forwarder.forward(envelope).await,
                None => Ok(()),
            };
            match forwarded {
                Err(Failure::Later) => {
                    pause = match forwarder.pause(pause).await {
                        // It has bound its socket and listens in a moment.
                        Ended::Appeared => PAUSES.0,
                        Ended::TimeOut => (pause * 2).min(PAUSES.1),
                    };
                    continue;
                }
                Err(Failure::Refused(status)) => warn_line!("event refused by the supervisor: {}", status.message()),
                Ok(()) => {}
            }
            proto::fault!("shim.events.forwarded");
            pause = PAUSES.0;
            if let Some(taken) = self.queue.borrow_mut().pop_front() {
                taken.delivered();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use proto::containerd::events::TaskExit;

    #[test]
    fn nothing_is_dropped_and_no_two_events_have_the_same_time() {
        let folder = tempfile::tempdir().expect("folder");
        let journal = Journal::new(&Bundle::new(folder.path()));
        let events = Events::new(EventSink::Grpc("/nowhere".into()), "ns");
        // As after a clock that was set back a long way.
        events.last.set(SystemTime::now() + Duration::from_secs(1_000_000));
        for number in 0..LIMIT as u32 {
            assert!(!events.is_full());
            events.push(&journal, Topic::Exit, &TaskExit { pid: number, ..TaskExit::default() });
        }
        assert!(events.is_full());
        events.push(&journal, Topic::Exit, &TaskExit { pid: LIMIT as u32, ..TaskExit::default() });
        let queue = events.queue.borrow();
        let waiting: Vec<_> = queue.iter().map(|entry| entry.event().expect("event")).collect();
        assert_eq!(waiting.len(), LIMIT + 1);
        let times = waiting.iter().map(|event| event.timestamp.map(|at| (at.seconds, at.nanos)));
        assert!(times.is_sorted_by(|a, b| a < b));
        let filed = std::fs::read(Bundle::new(folder.path()).journal()).expect("journal");
        assert_eq!(proto::journal::undelivered(&filed), waiting);
    }
}
