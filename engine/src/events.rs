//! What happened: a bounded ring of past events and a channel for those to come.

use crate::time::Timestamp;
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};
use tokio::sync::broadcast;

/// Events kept for `since`.
const RING: usize = 1024;
/// How far a reader may fall behind before it misses events.
const CHANNEL: usize = 4096;

/// One event as the API shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Kind of the thing: container, image, network, volume, daemon.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// What happened to it.
    #[serde(rename = "Action")]
    pub action: String,
    /// Which thing.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Always `local`.
    pub scope: &'static str,
    /// Unix seconds.
    pub time: i64,
    /// Unix nanoseconds.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// The thing an event is about.
#[derive(Debug, Clone, Serialize)]
pub struct Actor {
    /// Its id (containers) or name (images, volumes).
    #[serde(rename = "ID")]
    pub id: String,
    /// Labels, name and details of the action.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// Where events are told and heard.
#[derive(Debug)]
pub struct Events {
    ring: Mutex<VecDeque<Event>>,
    channel: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self { ring: Mutex::default(), channel: broadcast::channel(CHANNEL).0 }
    }
}

impl Events {
    /// Tells an event that happens now.
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        let now = Timestamp::now();
        let event = Event {
            kind,
            action: action.into(),
            actor: Actor { id: id.into(), attributes },
            scope: "local",
            time: now.seconds(),
            time_nano: now.nanos(),
        };
        let mut ring = lock(&self.ring);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Sent under the lock, so that a subscriber gets each event once: from the ring or from the channel.
        let _ = self.channel.send(event);
    }

    /// How many follow right now.
    pub fn listeners(&self) -> usize {
        self.channel.receiver_count()
    }

    /// Past events since a moment (none without one), and all that follow.
    pub fn subscribe(&self, since: Option<Timestamp>) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let ring = lock(&self.ring);
        let past = since.map_or_else(Vec::new, |since| {
            ring.iter().filter(|event| event.time_nano >= since.nanos()).cloned().collect()
        });
        (past, self.channel.subscribe())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_bounded_and_since_selects() {
        let events = Events::default();
        for n in 0..RING + 10 {
            events.publish("container", "start", n.to_string(), BTreeMap::new());
        }
        let (all, mut live) = events.subscribe(Some(Timestamp::from_parts(0, 0)));
        assert_eq!((all.len(), all[0].actor.id.as_str()), (RING, "10"));
        assert!(events.subscribe(None).0.is_empty());
        events.publish("container", "die", "x", BTreeMap::new());
        assert_eq!(live.try_recv().unwrap().action, "die");
    }
}
