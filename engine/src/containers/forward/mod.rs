//! Log drivers that send messages over a network: gelf and fluentd. The shim writes the log to a file, as for the driver
//! `local`; here it is read and sent, behind a cursor that is on disk. So a receiver that is slow or away holds up no
//! container, the death of this engine loses nothing, and `docker logs` shows the file.
//!
//! A message may arrive twice: what was sent when the cursor was last written is sent again. It is lost only if the receiver
//! stays away for longer than the file takes to be rotated away.

pub mod fluentd;
pub mod gelf;

use super::{
    Container, is_up, log_config,
    logs::{self, Entry},
    record::Record,
};
use crate::{app::App, ids, time::Timestamp};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tracing::{info, warn};

/// Messages that are sent before the cursor is moved, and their bytes.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long a receiver may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long messages of a container that is removed may still take.
const FAREWELL: Duration = Duration::from_secs(10);
const CURSOR: &str = "forwarded.json";

/// Where messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Graylog's format.
    Gelf(gelf::Options),
    /// Fluentd's forward protocol.
    Fluentd(fluentd::Options),
}

/// What every message says of its container.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Full id.
    pub id: String,
    /// Without the slash.
    pub name: String,
    /// Digest.
    pub image_id: String,
    /// As it was asked for.
    pub image: String,
    /// With its arguments.
    pub command: String,
    /// When the container was made.
    pub created: String,
    /// The driver's tag.
    pub tag: String,
    /// By the options `labels` and `env`.
    pub attributes: Vec<(String, String)>,
    /// This machine.
    pub host: String,
}

impl Facts {
    fn of(record: &Record, tag: Option<String>, attributes: Vec<(String, String)>) -> Self {
        let words = std::iter::once(&record.path).chain(&record.args).map(String::as_str).collect::<Vec<_>>();
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        Self {
            id: record.id.clone(),
            name: record.name.clone(),
            image_id: record.image_id.clone(),
            image: record.config.image.clone(),
            command: words.join(" "),
            created: record.created.to_string(),
            tag: tag.unwrap_or_else(|| ids::short(&record.id).to_owned()),
            attributes,
            host: host.unwrap_or_else(|| "localhost".into()),
        }
    }
}

/// A connection to a receiver.
enum Receiver {
    Gelf(gelf::Sender),
    Fluentd(fluentd::Sender),
}

impl Receiver {
    async fn connect(target: &Target) -> io::Result<Self> {
        match target {
            Target::Gelf(options) => gelf::Sender::connect(options).await.map(Self::Gelf),
            Target::Fluentd(options) => fluentd::Sender::connect(options).await.map(Self::Fluentd),
        }
    }

    async fn send(&mut self, facts: &Facts, entries: &[Entry]) -> io::Result<()> {
        match self {
            Self::Gelf(sender) => sender.send(facts, entries).await,
            Self::Fluentd(sender) => sender.send(facts, entries).await,
        }
    }
}

/// How far messages have been sent: a time, and how many of that very time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cursor {
    time: i64,
    same: usize,
}

impl Cursor {
    fn load(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join(CURSOR)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn pass(&mut self, entries: &[Entry]) {
        for entry in entries {
            let time = entry.time.nanos();
            *self = Self { time, same: if time == self.time { self.same + 1 } else { 1 } };
        }
    }

    fn save(self, folder: &Path) -> io::Result<()> {
        let new = folder.join("forwarded.new");
        std::fs::write(&new, serde_json::to_vec(&self)?)?;
        std::fs::rename(new, folder.join(CURSOR))
    }
}

/// A log read from the cursor on.
struct Source {
    reader: logs::Reader,
    cursor: Cursor,
    /// Messages of the cursor's time that are still to be passed over.
    skip: usize,
}

impl Source {
    fn open(log: &Path, folder: &Path, format: log_config::Format) -> Self {
        let cursor = Cursor::load(folder);
        let time = Timestamp::from_parts(cursor.time.div_euclid(1_000_000_000), cursor.time.rem_euclid(1_000_000_000));
        let since = (cursor.time != 0).then_some(time);
        let options =
            logs::Options { stdout: true, stderr: true, since, format, timestamps: true, ..logs::Options::default() };
        Self { reader: logs::Reader::open(log, &options), cursor, skip: cursor.same }
    }

    fn batch(&mut self) -> Vec<Entry> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH
            && bytes < BATCH_BYTES
            && let Some(entry) = self.reader.next_entry()
        {
            if self.skip > 0 && entry.time.nanos() == self.cursor.time {
                self.skip -= 1;
                continue;
            }
            self.skip = 0;
            bytes += entry.text.len();
            batch.push(entry);
        }
        batch
    }
}

/// Forwards a container's log from now on, if its driver wants that; to be called at every start, of it or of the engine.
pub fn watch(app: &Arc<App>, container: &Arc<Container>) {
    let record = container.record();
    let Ok(driver) = log_config::parse(&record.host.log_config) else { return };
    let Some(target) = driver.target().cloned() else { return };
    {
        let mut live = container.live();
        if std::mem::replace(&mut live.forwarding, true) {
            return;
        }
    }
    let (tag, attributes) = driver.facts((&record).into());
    let facts = Facts::of(&record, tag, attributes);
    let (app, container) = (app.clone(), container.clone());
    tokio::spawn(async move {
        if let Err(error) = drive(&app, &container, &target, &facts).await {
            warn!(id = ids::short(&container.id), %error, "log is not forwarded any more");
            container.live().forwarding = false;
        }
    });
}

async fn drive(app: &Arc<App>, container: &Arc<Container>, target: &Target, facts: &Facts) -> io::Result<()> {
    let kind = container.live().record.host.log_config.kind.clone();
    let folder = app.containers.folder_of(&container.id);
    let log: PathBuf = log_config::path(&folder, &container.id, &kind);
    let mut ends = container.ends.subscribe();
    ends.mark_unchanged();
    // Before the first look, so that nothing is written unseen between look and watch.
    let watch = logs::Watch::new(&folder)?;
    let at = folder.clone();
    let opened = tokio::task::spawn_blocking(move || Source::open(&log, &at, log_config::Format::Local)).await;
    let mut source = opened.map_err(io::Error::other)?;
    let mut receiver = None;
    loop {
        // Asked before reading: what is written before the end is then surely read.
        let up = is_up(container.live().record.state.phase) || container.live().starting;
        let read = tokio::task::spawn_blocking(move || {
            let batch = source.batch();
            (source, batch)
        });
        let (back, batch) = read.await.map_err(io::Error::other)?;
        source = back;
        if batch.is_empty() {
            if !up {
                let mut live = container.live();
                // Under the lock that a start takes: it finds us gone, or we find it.
                if !is_up(live.record.state.phase) && !live.starting {
                    live.forwarding = false;
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                _ = ends.changed() => {}
            }
            source.reader.look_for_rotation();
            continue;
        }
        if !deliver(container, target, facts, &batch, &mut receiver).await {
            return Ok(());
        }
        source.cursor.pass(&batch);
        // Its folder goes with a container that is removed.
        if let Err(error) = source.cursor.save(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
}

/// Sends until it is sent; false if the container was removed and its time is over.
async fn deliver(
    container: &Container,
    target: &Target,
    facts: &Facts,
    batch: &[Entry],
    receiver: &mut Option<Receiver>,
) -> bool {
    let id = ids::short(&container.id);
    let mut delay = FIRST_RETRY;
    let mut away = false;
    let mut removal = container.ends.subscribe();
    let mut farewell = None;
    loop {
        let sent = tokio::time::timeout(PATIENCE, async {
            if receiver.is_none() {
                *receiver = Some(Receiver::connect(target).await?);
            }
            match receiver {
                Some(receiver) => receiver.send(facts, batch).await,
                None => Ok(()),
            }
        });
        let error = match sent.await {
            Ok(Ok(())) => {
                if away {
                    info!(id, "receiver of the log is there again");
                }
                return true;
            }
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        *receiver = None;
        if !away {
            warn!(id, %error, "receiver of the log is away, its file grows meanwhile");
            away = true;
        }
        if removal.borrow_and_update().removed {
            let until = *farewell.get_or_insert_with(|| tokio::time::Instant::now() + FAREWELL);
            if tokio::time::Instant::now() >= until {
                return false;
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(if farewell.is_some() { Duration::from_secs(1) } else { LAST_RETRY });
    }
}

/// A message without its line end, and whether it is only the beginning of a line.
fn line(entry: &Entry) -> (&[u8], bool) {
    match entry.text.strip_suffix(b"\n") {
        Some(line) => (line, false),
        None => (&entry.text, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::frames::Stream;

    fn entry(nanos: i64) -> Entry {
        Entry {
            stream: Stream::Stdout,
            time: Timestamp::from_parts(7, nanos),
            text: b"x\n".to_vec(),
            attributes: Default::default(),
        }
    }

    #[test]
    fn the_cursor_tells_messages_of_one_moment_apart() {
        let folder = tempfile::tempdir().unwrap();
        let mut cursor = Cursor::load(folder.path());
        assert_eq!(cursor, Cursor::default());
        cursor.pass(&[entry(1), entry(2), entry(2)]);
        assert_eq!(cursor, Cursor { time: 7_000_000_002, same: 2 });
        cursor.pass(&[entry(2)]);
        cursor.save(folder.path()).unwrap();
        assert_eq!(Cursor::load(folder.path()), Cursor { time: 7_000_000_002, same: 3 });
    }
}
