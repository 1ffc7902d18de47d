//! The event bus: who publishes, who listens, and what happens to a listener that is too slow.
//!
//! A subscriber has a bounded queue. Publishing never waits: a subscriber whose queue is full is cut off, and told so after
//! it has read what it had, so that it knows it missed something (a silent gap would be worse than an end). It may come back
//! and ask for what came after the last event that it has: every event has a number, and `log` keeps the latest of them.

mod fields;
mod log;

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};

use prost::{Message, Name};
use prost_types::Any;
use proto::{containerd::services::events::v1::Envelope, id::NamespaceName, kind::ErrorKind, typeurl};
use tokio::sync::mpsc;

use self::log::{EventLog, LOG_BYTES};
pub(crate) use self::{fields::field, log::Replay};
use crate::{failure::Failure, metrics::METRICS};

/// Events that a subscriber may be behind. A burst (a hundred containers removed at once) is some hundreds.
const QUEUE: usize = 8192;

/// Bytes that a subscriber may be behind: events of foreign shims can be long.
const QUEUE_BYTES: usize = 8 << 20;

/// Longest event that is taken from clients and shims.
const EVENT_LIMIT: usize = 256 << 10;

/// Decides whether a subscriber wants an event.
pub(crate) type Wanted = Arc<dyn Fn(&Envelope) -> bool + Send + Sync>;

/// Why an event was refused, or a subscription ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EventError {
    /// Topics look like `/tasks/exit`.
    #[error("event topic {topic:?} must be a path of letters, digits, '_', '-' and '.', like /tasks/exit")]
    Topic {
        /// What was given.
        topic: String,
    },
    /// Every event belongs to somebody.
    #[error("event on topic {topic:?}: namespace {namespace:?} is none")]
    Namespace {
        /// Its topic.
        topic: String,
        /// What was given.
        namespace: String,
    },
    /// An event without content.
    #[error("event on topic {topic:?} has no content")]
    Empty {
        /// Its topic.
        topic: String,
    },
    /// An event beyond what is kept and handed on.
    #[error("event on topic {topic:?} is {size} bytes long, more than the {EVENT_LIMIT} allowed")]
    Long {
        /// Its topic.
        topic: String,
        /// Its size.
        size: usize,
    },
    /// What the subscriber missed isn't kept any more.
    #[error("events after number {since} are gone up to {oldest}: look at everything anew and subscribe from there")]
    Gone {
        /// What was asked for.
        since: u64,
        /// The oldest event that is kept.
        oldest: u64,
    },
    /// The log can't be read.
    #[error("read the event log: {0}")]
    Log(String),
    /// The subscriber didn't read fast enough.
    #[error("subscriber fell more than {QUEUE} events behind and was cut off: read faster, or filter")]
    Slow,
    /// This process ends.
    #[error("supervisor is shutting down")]
    Closed,
}

impl Failure for EventError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Topic { .. } | Self::Namespace { .. } | Self::Empty { .. } | Self::Long { .. } => {
                ErrorKind::InvalidArgument
            }
            Self::Gone { .. } => ErrorKind::FailedPrecondition,
            Self::Log(_) => ErrorKind::DataLoss,
            Self::Slow => ErrorKind::ResourceExhausted,
            Self::Closed => ErrorKind::Unavailable,
        }
    }
}

struct Subscriber {
    wanted: Wanted,
    queue: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
    slow: Arc<AtomicBool>,
}

/// An event in a subscriber's queue, and its size there.
struct Queued {
    envelope: Arc<Envelope>,
    size: usize,
}

/// What the lock protects.
struct State {
    // `None` once the bus is closed.
    subscribers: Option<Vec<Subscriber>>,
    // `None` where events aren't kept: in unit tests.
    log: Option<EventLog>,
}

/// Takes events from services and shims, and hands them to subscribers in the order they came.
pub(crate) struct EventBus {
    state: Mutex<State>,
}

impl EventBus {
    /// A bus without subscribers, which remembers nothing.
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State { subscribers: Some(Vec::new()), log: None }) }
    }

    /// A bus without subscribers, and the events of an earlier one in `folder`. A log that can't be opened is begun anew:
    /// no container must wait for it.
    pub(crate) fn open(folder: &Path) -> Self {
        let log = EventLog::open(folder, LOG_BYTES).or_else(|error| {
            tracing::error!(%error, folder = %folder.display(), "event log is damaged and begins anew");
            std::fs::rename(folder, folder.with_extension("damaged"))?;
            EventLog::open(folder, LOG_BYTES)
        });
        let log = log.inspect_err(|error| tracing::error!(%error, "events are not kept"));
        Self { state: Mutex::new(State { subscribers: Some(Vec::new()), log: log.ok() }) }
    }

    /// Publishes one of our own events, now.
    pub(crate) fn publish<M: Message + Name>(&self, namespace: &NamespaceName, topic: &str, event: &M) {
        self.send(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(typeurl::pack(event)),
            ..Envelope::default()
        });
    }

    /// Publishes an event of ours that is packed already, now.
    pub(crate) fn publish_any(&self, namespace: &str, topic: &str, event: Any) {
        self.send(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
            ..Envelope::default()
        });
    }

    /// Publishes an event of somebody else's, who stamped it.
    pub(crate) fn forward(&self, envelope: Envelope) -> Result<(), EventError> {
        check_topic(&envelope.topic)?;
        if NamespaceName::new(envelope.namespace.as_str()).is_err() {
            return Err(EventError::Namespace { topic: envelope.topic, namespace: envelope.namespace });
        }
        if envelope.event.is_none() {
            return Err(EventError::Empty { topic: envelope.topic });
        }
        let size = envelope.encoded_len();
        if size > EVENT_LIMIT {
            return Err(EventError::Long { topic: envelope.topic, size });
        }
        self.send(envelope);
        Ok(())
    }

    fn send(&self, mut envelope: Envelope) {
        tracing::debug!(namespace = %envelope.namespace, topic = %envelope.topic, "event");
        METRICS.event();
        let size = envelope.encoded_len() + size_of::<Envelope>();
        // Numbering and queueing happen under one lock, hence every subscriber sees the same order. The log is a short
        // write into the kernel's cache.
        let state = &mut *self.lock();
        if let Some(log) = &mut state.log
            && let Err(error) = log.append(&mut envelope)
        {
            tracing::warn!(%error, "event not kept: who is away now can't be told of it later");
        }
        let envelope = Arc::new(envelope);
        let Some(subscribers) = &mut state.subscribers else { return };
        subscribers.retain(|subscriber| {
            if !(subscriber.wanted)(&envelope) {
                return !subscriber.queue.is_closed();
            }
            let waiting = subscriber.bytes.fetch_add(size, Ordering::AcqRel);
            let queued = if waiting + size > QUEUE_BYTES && waiting > 0 {
                Err(mpsc::error::TrySendError::Full(()))
            } else {
                let queued = Queued { envelope: envelope.clone(), size };
                subscriber.queue.try_send(queued).map_err(|error| match error {
                    mpsc::error::TrySendError::Full(_) => mpsc::error::TrySendError::Full(()),
                    mpsc::error::TrySendError::Closed(_) => mpsc::error::TrySendError::Closed(()),
                })
            };
            match queued {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(())) => false,
                Err(mpsc::error::TrySendError::Full(())) => {
                    tracing::warn!("event subscriber is too slow, cut off");
                    METRICS.cut_off();
                    subscriber.slow.store(true, Ordering::Release);
                    false
                }
            }
        });
    }

    /// Every event from now on that `wanted` says yes to.
    pub(crate) fn subscribe(&self, wanted: Wanted) -> Result<Subscription, EventError> {
        Self::subscribe_in(&mut self.lock(), wanted)
    }

    /// How many subscribers there are, and how many events the slowest of them has yet to read.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        let state = self.lock();
        let all = state.subscribers.iter().flatten().filter(|subscriber| !subscriber.queue.is_closed());
        let queued = all.map(|subscriber| subscriber.queue.max_capacity() - subscriber.queue.capacity());
        queued.fold((0, 0), |(count, most), queued| (count + 1, most.max(queued)))
    }

    /// The same, and what came after event number `since` until now, to be read before: together there is no gap and
    /// nothing twice.
    pub(crate) fn subscribe_since(&self, wanted: Wanted, since: u64) -> Result<(Replay, Subscription), EventError> {
        let state = &mut *self.lock();
        let log = state.log.as_ref().ok_or_else(|| EventError::Log("events are not kept".into()))?;
        let gone = EventError::Gone { since, oldest: log.oldest() };
        let replay = log.replay(since).map_err(|error| EventError::Log(error.to_string()))?.ok_or(gone)?;
        Ok((replay, Self::subscribe_in(state, wanted)?))
    }

    fn subscribe_in(state: &mut State, wanted: Wanted) -> Result<Subscription, EventError> {
        let (queue, events) = mpsc::channel(QUEUE);
        let (slow, bytes) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let subscribers = state.subscribers.as_mut().ok_or(EventError::Closed)?;
        // Those who left are noticed here too, so that a quiet bus doesn't collect them.
        subscribers.retain(|other| !other.queue.is_closed());
        subscribers.push(Subscriber { wanted, queue, slow: slow.clone(), bytes: bytes.clone() });
        Ok(Subscription { events, slow, bytes, ended: false })
    }

    /// Ends every subscription; later events go nowhere but into the log.
    pub(crate) fn close(&self) {
        self.lock().subscribers = None;
    }

    // The list stays consistent whatever panics while it is held: at worst one subscriber misses one event.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving side: a stream that ends with the reason why it ended.
pub(crate) struct Subscription {
    events: mpsc::Receiver<Queued>,
    slow: Arc<AtomicBool>,
    bytes: Arc<AtomicUsize>,
    ended: bool,
}

impl tokio_stream::Stream for Subscription {
    type Item = Result<Arc<Envelope>, EventError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(cx).map(|event| match event {
            Some(Queued { envelope, size }) => {
                self.bytes.fetch_sub(size, Ordering::AcqRel);
                Some(Ok(envelope))
            }
            None => {
                self.ended = true;
                let slow = self.slow.load(Ordering::Acquire);
                Some(Err(if slow { EventError::Slow } else { EventError::Closed }))
            }
        })
    }
}

// containerd's rule: a slash, then identifiers between slashes.
fn check_topic(topic: &str) -> Result<(), EventError> {
    let good = topic.strip_prefix('/').is_some_and(|path| {
        path.split('/').all(|part| {
            part.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        })
    });
    if good { Ok(()) } else { Err(EventError::Topic { topic: topic.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::containerd::events::TaskStart;
    use tokio_stream::StreamExt;

    fn namespace() -> NamespaceName {
        NamespaceName::new("test").expect("namespace")
    }

    fn start(pid: u32) -> TaskStart {
        TaskStart { container_id: "web".into(), pid }
    }

    #[tokio::test]
    async fn subscribers_get_what_they_want_in_order() {
        let bus = EventBus::new();
        let mut all = bus.subscribe(Arc::new(|_| true)).unwrap();
        let mut exits = bus.subscribe(Arc::new(|event| event.topic == "/tasks/exit")).unwrap();
        for (pid, topic) in [(1, "/tasks/start"), (2, "/tasks/exit"), (3, "/tasks/start")] {
            bus.publish(&namespace(), topic, &start(pid));
        }
        bus.close();
        let mut pids = Vec::new();
        while let Some(Ok(event)) = all.next().await {
            let any = event.event.as_ref().expect("content");
            pids.push(typeurl::unpack::<TaskStart>(any).expect("type").expect("bytes").pid);
        }
        assert_eq!(pids, [1, 2, 3]);
        assert_eq!(exits.next().await.unwrap().unwrap().topic, "/tasks/exit");
        assert_eq!(exits.next().await, Some(Err(EventError::Closed)));
        assert_eq!(exits.next().await, None);
        assert!(bus.subscribe(Arc::new(|_| true)).is_err());
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_cut_off_and_told_and_others_go_on() {
        let bus = EventBus::new();
        let mut slow = bus.subscribe(Arc::new(|_| true)).unwrap();
        let mut live = bus.subscribe(Arc::new(|_| true)).unwrap();
        let many = u32::try_from(QUEUE).unwrap() + 10;
        for pid in 0..many {
            bus.publish(&namespace(), "/tasks/start", &start(pid));
            assert!(live.next().await.unwrap().is_ok());
        }
        for _ in 0..QUEUE {
            assert!(slow.next().await.unwrap().is_ok());
        }
        assert_eq!(slow.next().await, Some(Err(EventError::Slow)));
        assert_eq!(bus.lock().subscribers.as_ref().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_subscriber_is_bounded_in_bytes_too() {
        let bus = EventBus::new();
        let mut slow = bus.subscribe(Arc::new(|_| true)).unwrap();
        let long = |size: usize| Envelope {
            namespace: "test".into(),
            topic: "/a".into(),
            event: Some(Any { type_url: "x".into(), value: vec![0; size] }),
            ..Default::default()
        };
        assert!(matches!(bus.forward(long(EVENT_LIMIT)), Err(EventError::Long { .. })));
        let mut taken = 0;
        for _ in 0..100 {
            bus.forward(long(EVENT_LIMIT - 1000)).unwrap();
        }
        while slow.next().await.unwrap().is_ok() {
            taken += 1;
        }
        assert_eq!(taken, QUEUE_BYTES / EVENT_LIMIT);
    }

    #[tokio::test]
    async fn who_was_away_gets_what_it_missed_once_and_then_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let bus = EventBus::open(folder.path());
        for pid in 1..=3 {
            bus.publish(&namespace(), "/tasks/start", &start(pid));
        }
        drop(bus);
        let bus = EventBus::open(folder.path());
        bus.publish(&namespace(), "/tasks/start", &start(4));
        let (mut replay, mut live) = bus.subscribe_since(Arc::new(|_| true), 2).unwrap();
        bus.publish(&namespace(), "/tasks/start", &start(5));
        let mut numbers = Vec::new();
        while let Some(envelope) = replay.next().unwrap() {
            numbers.push(envelope.sequence);
        }
        numbers.push(live.next().await.unwrap().unwrap().sequence);
        assert_eq!(numbers, [3, 4, 5]);
    }

    #[test]
    fn topics() {
        for good in ["/tasks/exit", "/a", "/tasks/exec-added", "/a.b/c_d"] {
            assert!(check_topic(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "tasks/exit", "/tasks/", "//a", "/a b", "/-a"] {
            assert!(check_topic(bad).is_err(), "{bad:?}");
        }
    }
}
