//! What happened: a bounded ring of past events, kept on disk too, and a channel for those to come.
//!
//! Each event is a line at the end of a file before anybody hears of it, so that it outlives this process, whatever ends
//! it. Only a machine that stops may lose the last ones: history is not worth a wait for the disk at every event. Two files
//! take turns, each as long as the ring.

use crate::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};
use tokio::sync::broadcast;
use tracing::warn;

/// Events kept for `since`.
const RING: usize = 1024;
/// How far a reader may fall behind before it misses events.
const CHANNEL: usize = 4096;
/// Longest line that is read back.
const LINE: u64 = 1 << 20;
const KINDS: [&str; 9] = ["container", "image", "network", "volume", "daemon", "plugin", "builder", "secret", "config"];

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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Actor {
    /// Its id (containers) or name (images, volumes).
    #[serde(rename = "ID")]
    pub id: String,
    /// Labels, name and details of the action.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

/// An event read back.
#[derive(Deserialize)]
struct Kept {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Action")]
    action: String,
    #[serde(rename = "Actor")]
    actor: Actor,
    time: i64,
    #[serde(rename = "timeNano")]
    time_nano: i64,
}

impl Kept {
    fn event(self) -> Option<Event> {
        let kind = KINDS.into_iter().find(|kind| *kind == self.kind)?;
        let Self { action, actor, time, time_nano, .. } = self;
        Some(Event { kind, action, actor, scope: "local", time, time_nano })
    }
}

/// Where events are told and heard.
#[derive(Debug)]
pub struct Events {
    history: Mutex<History>,
    // Keeps what was sent until it is overwritten, so for good: shared with the ring.
    channel: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct History {
    ring: VecDeque<Arc<Event>>,
    file: Option<Lines>,
}

/// The newer one of the two files.
#[derive(Debug)]
struct Lines {
    path: PathBuf,
    file: File,
    count: usize,
}

impl Default for Events {
    fn default() -> Self {
        Self { history: Mutex::default(), channel: broadcast::channel(CHANNEL).0 }
    }
}

impl Events {
    /// With the history that is kept at `path`. Without a file that can be written, it is that of this process alone.
    pub fn open(path: &Path) -> Self {
        let mut ring = VecDeque::new();
        let mut count = 0;
        for path in [older(path), path.to_owned()] {
            let events = read(&path);
            count = events.len();
            ring.extend(events.into_iter().map(Arc::new));
        }
        ring.drain(..ring.len().saturating_sub(RING));
        let file = match Lines::open(path, count) {
            Ok(lines) => Some(lines),
            Err(error) => {
                warn!(%error, path = %path.display(), "events are not kept");
                None
            }
        };
        Self { history: Mutex::new(History { ring, file }), ..Self::default() }
    }

    /// Tells an event that happens now.
    pub fn publish(
        &self,
        kind: &'static str,
        action: impl Into<String>,
        id: impl Into<String>,
        attributes: BTreeMap<String, String>,
    ) {
        let mut history = lock(&self.history);
        // Under the lock, so that the order is that of the times.
        let now = Timestamp::now();
        let event = Arc::new(Event {
            kind,
            action: action.into(),
            actor: Actor { id: id.into(), attributes },
            scope: "local",
            time: now.seconds(),
            time_nano: now.nanos(),
        });
        if history.ring.len() == RING {
            history.ring.pop_front();
        }
        history.ring.push_back(event.clone());
        if let Some(lines) = &mut history.file
            && let Err(error) = lines.add(&event)
        {
            warn!(%error, "events are no longer kept");
            history.file = None;
        }
        // Sent under the lock, so that a subscriber gets each event once: from the ring or from the channel.
        let _ = self.channel.send(event);
    }

    /// How many follow right now.
    pub fn listeners(&self) -> usize {
        self.channel.receiver_count()
    }

    /// Past events since a moment (none without one), and all that follow.
    pub fn subscribe(&self, since: Option<Timestamp>) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let history = lock(&self.history);
        let past = since.map_or_else(Vec::new, |since| {
            history.ring.iter().filter(|event| event.time_nano >= since.nanos()).cloned().collect()
        });
        (past, self.channel.subscribe())
    }
}

impl Lines {
    fn open(path: &Path, count: usize) -> std::io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(path)?;
        // What a full disk cut off must not swallow the line after it.
        if !ends_with_newline(path) {
            file.write_all(b"\n")?;
        }
        Ok(Self { path: path.to_owned(), file, count })
    }

    fn add(&mut self, event: &Event) -> std::io::Result<()> {
        if self.count >= RING {
            std::fs::rename(&self.path, older(&self.path))?;
            *self = Self::open(&self.path.clone(), 0)?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.count += 1;
        // In one call: another process sees all of it or nothing.
        self.file.write_all(&line)
    }
}

fn ends_with_newline(path: &Path) -> bool {
    use std::os::unix::fs::FileExt;
    let Ok(file) = File::open(path) else { return true };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut last = [0];
    length == 0 || (file.read_exact_at(&mut last, length - 1).is_ok() && last == *b"\n")
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("old.log")
}

/// Events of a file; lines that can't be read are left out.
fn read(path: &Path) -> Vec<Event> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let mut reader = BufReader::new(file);
    let mut events = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return events,
            Ok(_) => events.extend(serde_json::from_slice::<Kept>(&line).ok().and_then(Kept::event)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(events: &Events) -> Vec<String> {
        let (all, _) = events.subscribe(Some(Timestamp::from_parts(0, 0)));
        all.iter().map(|event| event.actor.id.clone()).collect()
    }

    #[test]
    fn the_ring_is_bounded_and_since_selects() {
        let events = Events::default();
        for n in 0..RING + 10 {
            events.publish("container", "start", n.to_string(), BTreeMap::new());
        }
        let all = ids(&events);
        assert_eq!((all.len(), all[0].as_str()), (RING, "10"));
        let (none, mut live) = events.subscribe(None);
        assert!(none.is_empty());
        events.publish("container", "die", "x", BTreeMap::new());
        assert_eq!(live.try_recv().unwrap().action, "die");
    }

    #[test]
    fn they_outlive_us_and_stay_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.log");
        let publish = |from: usize, to: usize| {
            let events = Events::open(&path);
            for n in from..to {
                let attributes = BTreeMap::from([("name".to_owned(), "web".to_owned())]);
                events.publish("container", "start", n.to_string(), attributes);
            }
        };
        publish(0, 3);
        assert_eq!(ids(&Events::open(&path)), ["0", "1", "2"]);
        // Cut in the middle of a line, as by a full disk.
        File::options().append(true).open(&path).unwrap().write_all(b"{\"Type\":\"cont").unwrap();
        publish(3, 5);
        assert_eq!(ids(&Events::open(&path)), ["0", "1", "2", "3", "4"]);
        publish(5, 3 * RING + 7);
        let all = ids(&Events::open(&path));
        assert_eq!((all.len(), all[RING - 1].clone()), (RING, (3 * RING + 6).to_string()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= RING + 2, "{lines}");
    }
}
