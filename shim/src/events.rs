//! Tells the supervisor what happened, in order, however long it takes until there is one to tell.
//!
//! Events queue here and are forwarded one after the other; the next one goes out when the one before was taken. An event
//! may arrive twice, when a supervisor died between taking it and saying so. The connection is made when there is
//! something to tell, and given up when there has been nothing for a while.

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
    forward::{Failure, Forwarder},
    report::warn_line,
};

/// First and longest pause before another try.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long an unused connection is kept.
const IDLE: Duration = Duration::from_secs(1);
/// So many wait at most; then those that say least go first. Births and deaths are never dropped.
const LIMIT: usize = 2048;

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
    /// The kernel killed for memory.
    Oom,
}

impl Topic {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "/tasks/create",
            Self::Start => "/tasks/start",
            Self::Exit => "/tasks/exit",
            Self::Delete => "/tasks/delete",
            Self::ExecAdded => "/tasks/exec-added",
            Self::ExecStarted => "/tasks/exec-started",
            Self::Paused => "/tasks/paused",
            Self::Resumed => "/tasks/resumed",
            Self::Oom => "/tasks/oom",
        }
    }

    fn droppable(self) -> bool {
        matches!(self, Self::ExecAdded | Self::ExecStarted | Self::Paused | Self::Resumed | Self::Oom)
    }
}

struct Queued {
    number: u64,
    topic: Topic,
    envelope: Envelope,
}

/// The queue, and the one who empties it.
pub(crate) struct Events {
    sink: EventSink,
    namespace: String,
    queue: RefCell<VecDeque<Queued>>,
    next: Cell<u64>,
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
            next: Cell::new(0),
            wake: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Adds an event behind all others.
    pub(crate) fn push<M: Message + Name>(&self, topic: Topic, event: &M) {
        let envelope = Envelope {
            timestamp: Some(clock::timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.name().to_owned(),
            event: Some(typeurl::pack(event)),
        };
        let number = self.next.get();
        self.next.set(number + 1);
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= LIMIT
            && let Some(place) = queue.iter().position(|queued| queued.topic.droppable())
        {
            queue.remove(place);
        }
        queue.push_back(Queued { number, topic, envelope });
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
            let first = self.queue.borrow().front().map(|queued| (queued.number, queued.envelope.clone()));
            let Some((number, envelope)) = first else {
                self.emptied.notify_one();
                if timeout(IDLE, self.wake.notified()).await.is_err() {
                    forwarder.disconnect();
                    sys::memory::trim_heap();
                    self.wake.notified().await;
                }
                continue;
            };
            match forwarder.forward(envelope).await {
                Err(Failure::Later) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
                Err(Failure::Refused(status)) => warn_line!("event refused by the supervisor: {}", status.message()),
                Ok(()) => {}
            }
            proto::fault!("shim.events.forwarded");
            pause = PAUSES.0;
            let mut queue = self.queue.borrow_mut();
            // A full queue may have dropped it meanwhile.
            if queue.front().is_some_and(|queued| queued.number == number) {
                queue.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::containerd::events::{TaskExit, TaskPaused};

    #[test]
    fn a_full_queue_never_drops_an_exit() {
        let events = Events::new(EventSink::Grpc("/nowhere".into()), "ns");
        for number in 0..LIMIT {
            if number % 2 == 0 {
                events.push(Topic::Exit, &TaskExit { pid: number as u32, ..TaskExit::default() });
            } else {
                events.push(Topic::Paused, &TaskPaused::default());
            }
        }
        for number in 0..LIMIT {
            events.push(Topic::Exit, &TaskExit { pid: (LIMIT + number) as u32, ..TaskExit::default() });
        }
        let queue = events.queue.borrow();
        assert!(queue.iter().all(|queued| queued.topic == Topic::Exit));
        assert_eq!(queue.len(), LIMIT / 2 + LIMIT);
        assert!(queue.iter().map(|queued| queued.number).is_sorted());
    }
}
