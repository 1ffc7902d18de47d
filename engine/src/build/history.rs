//! Builds that ended, for those who ask what was built: as many as the configuration says, until the engine ends.

use super::progress::Progress;
use proto::moby::buildkit::v1::{BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord};
use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::broadcast;

/// What is told of builds to those who listen.
#[derive(Debug)]
pub struct History {
    builds: Mutex<VecDeque<Remembered>>,
    events: broadcast::Sender<BuildHistoryEvent>,
    entries: usize,
    age: Duration,
}

#[derive(Debug)]
struct Remembered {
    record: BuildHistoryRecord,
    progress: Progress,
}

/// Which of them.
#[derive(Debug, Clone, Default)]
pub struct Selected {
    /// Only those that run.
    pub active: bool,
    /// Only this one.
    pub id: String,
    /// `ref==x`, `status==completed`: any of these strings, all of its parts.
    pub filters: Vec<Vec<Condition>>,
    /// The newest ones, as many; 0: all.
    pub limit: usize,
}

/// One part of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    key: String,
    equal: bool,
    value: String,
}

impl Selected {
    /// Reads filters.
    pub fn filters(texts: &[String]) -> Result<Vec<Vec<Condition>>, String> {
        texts.iter().map(|text| text.split(',').map(Condition::read).collect()).collect()
    }

    fn has(&self, record: &BuildHistoryRecord) -> bool {
        (!self.active || record.completed_at.is_none())
            && (self.id.is_empty() || self.id == record.r#ref)
            && (self.filters.is_empty() || self.filters.iter().any(|all| all.iter().all(|part| part.holds(record))))
    }
}

impl Condition {
    fn read(text: &str) -> Result<Self, String> {
        let (key, rest) = text
            .find(['=', '!'])
            .map(|at| text.split_at(at))
            .ok_or_else(|| format!("filter {text:?}: it has the form key==value or key!=value"))?;
        let (equal, value) = match (rest.strip_prefix("=="), rest.strip_prefix("!=")) {
            (Some(value), _) => (true, value),
            (_, Some(value)) => (false, value),
            _ => return Err(format!("filter {text:?}: it has the form key==value or key!=value")),
        };
        if !["ref", "status", "repository"].contains(&key) {
            return Err(format!("filter {text:?}: nobody knows {key:?}, only ref, status and repository"));
        }
        Ok(Self { key: key.to_owned(), equal, value: value.to_owned() })
    }

    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        let found = match self.key.as_str() {
            "ref" => record.r#ref == self.value,
            "status" => {
                let status = match (&record.completed_at, &record.error) {
                    (None, _) => "running",
                    (Some(_), None) => "completed",
                    (Some(_), Some(error)) if error.code == tonic::Code::Cancelled as i32 => "canceled",
                    (Some(_), Some(_)) => "error",
                };
                status == self.value
            }
            _ => record.frontend_attrs.get("vcs:source").is_some_and(|source| *source == self.value),
        };
        found == self.equal
    }
}

impl History {
    /// An empty one with these limits.
    pub fn new(entries: usize, age: Duration) -> Self {
        Self { builds: Mutex::default(), events: broadcast::channel(256).0, entries, age }
    }

    fn builds(&self) -> MutexGuard<'_, VecDeque<Remembered>> {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody may be listening.
        let _ = self.events.send(BuildHistoryEvent { r#type: kind.into(), record: Some(record) });
    }

    /// A build has begun.
    pub fn begin(&self, record: BuildHistoryRecord, progress: Progress) {
        let mut builds = self.builds();
        // A client may use a name again.
        builds.retain(|known| known.record.r#ref != record.r#ref);
        builds.push_back(Remembered { record: record.clone(), progress });
        self.tell(BuildHistoryEventType::Started, record);
    }

    /// A build has ended; `note` says how.
    pub fn end(&self, id: &str, note: impl FnOnce(&mut BuildHistoryRecord)) {
        let mut builds = self.builds();
        if let Some(known) = builds.iter_mut().find(|known| known.record.r#ref == id) {
            note(&mut known.record);
            known.record.generation += 1;
            self.tell(BuildHistoryEventType::Complete, known.record.clone());
        }
        let old = |record: &BuildHistoryRecord| {
            let at = record.completed_at.and_then(|at| SystemTime::try_from(at).ok());
            at.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > self.age)
        };
        let ended = builds.iter().filter(|known| known.record.completed_at.is_some() && !known.record.pinned).count();
        let mut surplus = ended.saturating_sub(self.entries);
        builds.retain(|known| {
            if known.record.completed_at.is_none() || known.record.pinned {
                return true;
            }
            let goes = surplus > 0 || old(&known.record);
            surplus = surplus.saturating_sub(1);
            if goes {
                self.tell(BuildHistoryEventType::Deleted, known.record.clone());
            }
            !goes
        });
    }

    /// Everything that is known now, and, after that, what happens.
    pub fn listen(&self, selected: &Selected) -> (Vec<BuildHistoryEvent>, broadcast::Receiver<BuildHistoryEvent>) {
        let builds = self.builds();
        let events = self.events.subscribe();
        let mut known: Vec<BuildHistoryEvent> = builds
            .iter()
            .rev()
            .filter(|known| selected.has(&known.record))
            .take(if selected.limit == 0 { usize::MAX } else { selected.limit })
            .map(|known| {
                let kind = match known.record.completed_at {
                    Some(_) => BuildHistoryEventType::Complete,
                    None => BuildHistoryEventType::Started,
                };
                BuildHistoryEvent { r#type: kind.into(), record: Some(known.record.clone()) }
            })
            .collect();
        known.reverse();
        (known, events)
    }

    /// Whether an event is one of those.
    pub fn passes(selected: &Selected, event: &BuildHistoryEvent) -> bool {
        event.record.as_ref().is_some_and(|record| selected.has(record))
    }

    /// What a build told of itself.
    pub fn progress(&self, id: &str) -> Option<Progress> {
        self.builds().iter().find(|known| known.record.r#ref == id).map(|known| known.progress.clone())
    }

    /// Whether it is kept beyond the limits. Whether there is one.
    pub fn pin(&self, id: &str, pinned: bool) -> bool {
        let mut builds = self.builds();
        let Some(known) = builds.iter_mut().find(|known| known.record.r#ref == id) else { return false };
        known.record.pinned = pinned;
        known.record.generation += 1;
        let kind = match known.record.completed_at {
            Some(_) => BuildHistoryEventType::Complete,
            None => BuildHistoryEventType::Started,
        };
        self.tell(kind, known.record.clone());
        true
    }

    /// Forgets a build that has ended. Whether there was one.
    pub fn forget(&self, id: &str) -> bool {
        let mut builds = self.builds();
        let found = builds.iter().position(|b| b.record.r#ref == id && b.record.completed_at.is_some());
        let Some(known) = found.and_then(|index| builds.remove(index)) else { return false };
        self.tell(BuildHistoryEventType::Deleted, known.record);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> BuildHistoryRecord {
        BuildHistoryRecord { r#ref: id.into(), ..BuildHistoryRecord::default() }
    }

    fn end(history: &History, id: &str) {
        history.end(id, |record| record.completed_at = Some(super::super::progress::now()));
    }

    fn known(history: &History, selected: &Selected) -> Vec<String> {
        let events = history.listen(selected).0;
        events.into_iter().filter_map(|event| event.record).map(|record| record.r#ref).collect()
    }

    #[test]
    fn the_oldest_go() {
        let history = History::new(2, Duration::from_secs(3600));
        for id in ["a", "b", "c", "d"] {
            history.begin(record(id), Progress::default());
        }
        let mut events = history.listen(&Selected::default()).1;
        assert!(history.pin("a", true) && !history.pin("x", true));
        for id in ["a", "b", "c"] {
            end(&history, id);
        }
        assert_eq!(known(&history, &Selected::default()), ["a", "b", "c", "d"]);
        end(&history, "d");
        assert_eq!(known(&history, &Selected::default()), ["a", "c", "d"]);
        let last = Selected { limit: 1, ..Selected::default() };
        assert_eq!(known(&history, &last), ["d"]);
        let mut kinds = Vec::new();
        while let Ok(event) = events.try_recv() {
            kinds.push(event.r#type());
        }
        assert_eq!(kinds.last(), Some(&BuildHistoryEventType::Deleted));
        assert!(history.forget("c") && !history.forget("c"));
        assert!(history.progress("a").is_some() && history.progress("c").is_none());
    }

    #[test]
    fn filters() {
        let history = History::new(9, Duration::from_secs(3600));
        for id in ["a", "b"] {
            history.begin(record(id), Progress::default());
        }
        end(&history, "a");
        let with =
            |text: &str| Selected { filters: Selected::filters(&[text.to_owned()]).unwrap(), ..Selected::default() };
        assert_eq!(known(&history, &with("status==running")), ["b"]);
        assert_eq!(known(&history, &with("status==completed,ref!=a")), [""; 0]);
        assert_eq!(known(&history, &with("ref==a")), ["a"]);
        assert_eq!(known(&history, &Selected { active: true, ..Selected::default() }), ["b"]);
        for bad in ["x==y", "ref", "ref=a"] {
            assert!(Selected::filters(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
