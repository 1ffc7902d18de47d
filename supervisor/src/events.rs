//! The event bus: who publishes, who listens, and what happens to a listener that is too slow.
//!
//! A subscriber has a bounded queue. Publishing never waits: a subscriber whose queue is full is cut off, and told so after
//! it has read what it had, so that it knows it missed something (a silent gap would be worse than an end).

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};

use prost::{Message, Name};
use prost_types::Any;
use proto::{
    containerd::{
        events::{TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit},
        services::events::v1::Envelope,
    },
    id::NamespaceName,
    kind::ErrorKind,
    typeurl,
};
use tokio::sync::mpsc;

use crate::{failure::Failure, metrics::METRICS};

/// Events that a subscriber may be behind. A burst (a hundred containers removed at once) is some hundreds.
const QUEUE: usize = 8192;

/// Decides whether a subscriber wants an event.
pub(crate) type Wanted = Box<dyn Fn(&Envelope) -> bool + Send + Sync>;

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
            Self::Topic { .. } | Self::Namespace { .. } | Self::Empty { .. } => ErrorKind::InvalidArgument,
            Self::Slow => ErrorKind::ResourceExhausted,
            Self::Closed => ErrorKind::Unavailable,
        }
    }
}

struct Subscriber {
    wanted: Wanted,
    queue: mpsc::Sender<Arc<Envelope>>,
    slow: Arc<AtomicBool>,
}

/// What the lock protects; `None` once the bus is closed.
type Subscribers = Option<Vec<Subscriber>>;

/// Takes events from services and shims, and hands them to subscribers in the order they came.
pub(crate) struct EventBus {
    subscribers: Mutex<Subscribers>,
}

impl EventBus {
    /// A bus without subscribers.
    pub(crate) fn new() -> Self {
        Self { subscribers: Mutex::new(Some(Vec::new())) }
    }

    /// Publishes one of our own events, now.
    pub(crate) fn publish<M: Message + Name>(&self, namespace: &NamespaceName, topic: &str, event: &M) {
        self.send(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(typeurl::pack(event)),
        });
    }

    /// Publishes an event of ours that is packed already, now.
    pub(crate) fn publish_any(&self, namespace: &str, topic: &str, event: Any) {
        self.send(Envelope {
            timestamp: Some(SystemTime::now().into()),
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(event),
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
        self.send(envelope);
        Ok(())
    }

    fn send(&self, envelope: Envelope) {
        tracing::debug!(namespace = %envelope.namespace, topic = %envelope.topic, "event");
        METRICS.event();
        let envelope = Arc::new(envelope);
        // Queueing happens under the lock, hence every subscriber sees the same order.
        if let Some(subscribers) = &mut *self.lock() {
            subscribers.retain(|subscriber| {
                if !(subscriber.wanted)(&envelope) {
                    return !subscriber.queue.is_closed();
                }
                match subscriber.queue.try_send(envelope.clone()) {
                    Ok(()) => true,
                    Err(mpsc::error::TrySendError::Closed(_)) => false,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        tracing::warn!("event subscriber is too slow, cut off");
                        METRICS.cut_off();
                        subscriber.slow.store(true, Ordering::Release);
                        false
                    }
                }
            });
        }
    }

    /// Every event from now on that `wanted` says yes to.
    pub(crate) fn subscribe(&self, wanted: Wanted) -> Result<Subscription, EventError> {
        let (queue, events) = mpsc::channel(QUEUE);
        let slow = Arc::new(AtomicBool::new(false));
        match &mut *self.lock() {
            Some(subscribers) => {
                // Those who left are noticed here too, so that a quiet bus doesn't collect them.
                subscribers.retain(|other| !other.queue.is_closed());
                subscribers.push(Subscriber { wanted, queue, slow: slow.clone() });
            }
            None => return Err(EventError::Closed),
        }
        Ok(Subscription { events, slow, ended: false })
    }

    /// How many subscribers there are, and how many events the slowest of them has yet to read.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        let subscribers = self.lock();
        let all = subscribers.iter().flatten().filter(|subscriber| !subscriber.queue.is_closed());
        let queued = all.map(|subscriber| subscriber.queue.max_capacity() - subscriber.queue.capacity());
        queued.fold((0, 0), |(count, most), queued| (count + 1, most.max(queued)))
    }

    /// Ends every subscription; later events go nowhere.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    // The list stays consistent whatever panics while it is held: at worst one subscriber misses one event.
    fn lock(&self) -> MutexGuard<'_, Subscribers> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receiving side: a stream that ends with the reason why it ended.
pub(crate) struct Subscription {
    events: mpsc::Receiver<Arc<Envelope>>,
    slow: Arc<AtomicBool>,
    ended: bool,
}

impl tokio_stream::Stream for Subscription {
    type Item = Result<Arc<Envelope>, EventError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events.poll_recv(cx).map(|event| {
            Some(event.ok_or_else(|| {
                self.ended = true;
                if self.slow.load(Ordering::Acquire) { EventError::Slow } else { EventError::Closed }
            }))
        })
    }
}

/// The fields of an event that filters can ask for: `namespace`, `topic`, and from the events about tasks and containers
/// `event.container_id`, `event.exec_id` and `event.id`.
pub(crate) fn field(envelope: &Envelope, path: &[&str]) -> Option<String> {
    let text = |value: String| (!value.is_empty()).then_some(value);
    match path {
        ["namespace"] => text(envelope.namespace.clone()),
        ["topic"] => text(envelope.topic.clone()),
        ["event", name] => {
            let any = envelope.event.as_ref()?;
            let kind = any.type_url.rsplit('/').next()?.strip_prefix("containerd.events.")?;
            match (kind, *name) {
                // Field 1 of every event about a task is its container; what stands second differs.
                (kind, "container_id") if kind.starts_with("Task") => text(First::decode(&*any.value).ok()?.id),
                ("TaskExit", "id") => text(TaskExit::decode(&*any.value).ok()?.id),
                ("TaskDelete", "id") => text(TaskDelete::decode(&*any.value).ok()?.id),
                ("TaskExecAdded", "exec_id") => text(TaskExecAdded::decode(&*any.value).ok()?.exec_id),
                ("TaskExecStarted", "exec_id") => text(TaskExecStarted::decode(&*any.value).ok()?.exec_id),
                (kind, "id") if kind.starts_with("Container") => text(First::decode(&*any.value).ok()?.id),
                _ => None,
            }
        }
        _ => None,
    }
}

/// An event as far as all kinds of one family agree.
#[derive(Clone, PartialEq, Message)]
struct First {
    #[prost(string, tag = "1")]
    id: String,
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
        let mut all = bus.subscribe(Box::new(|_| true)).unwrap();
        let mut exits = bus.subscribe(Box::new(|event| event.topic == "/tasks/exit")).unwrap();
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
        assert!(bus.subscribe(Box::new(|_| true)).is_err());
    }

    #[tokio::test]
    async fn a_slow_subscriber_is_cut_off_and_told_and_others_go_on() {
        let bus = EventBus::new();
        let mut slow = bus.subscribe(Box::new(|_| true)).unwrap();
        let mut live = bus.subscribe(Box::new(|_| true)).unwrap();
        let many = u32::try_from(QUEUE).unwrap() + 10;
        for pid in 0..many {
            bus.publish(&namespace(), "/tasks/start", &start(pid));
            assert!(live.next().await.unwrap().is_ok());
        }
        for _ in 0..QUEUE {
            assert!(slow.next().await.unwrap().is_ok());
        }
        assert_eq!(slow.next().await, Some(Err(EventError::Slow)));
        assert_eq!(bus.lock().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn fields_for_filters() {
        let exit = TaskExit { container_id: "web".into(), id: "exec-1".into(), ..Default::default() };
        let envelope = Envelope {
            namespace: "berth".into(),
            topic: "/tasks/exit".into(),
            event: Some(typeurl::pack(&exit)),
            ..Default::default()
        };
        for (filter, accepted) in [
            ("topic==\"/tasks/exit\"", true),
            ("topic==/tasks/exit", true),
            ("topic~=|^/tasks/|", true),
            ("topic~=/tasks/.*", true),
            ("namespace==berth,event.container_id==web", true),
            ("event.id==exec-1", true),
            ("event.container_id==other", false),
            ("namespace==moby", false),
        ] {
            let filters = crate::filters::Filters::parse(&[filter.to_owned()]).unwrap();
            assert_eq!(filters.accept(|path| field(&envelope, path)), accepted, "{filter}");
        }
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
