//! The shim's side of a container's event journal (`proto::journal`): appended before an event may leave, moved on when it has
//! been taken. On a tmpfs, so a few microseconds each.
//!
//! The queue of events holds places in the journal instead of the events, so that a supervisor that stays away costs the shim
//! no memory. Where the file can't be written (a full or deleted run root) an event is held in memory instead.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    rc::Rc,
};

use proto::{containerd::services::events::v1::Envelope, journal};

use crate::{bundle::Bundle, events::Topic, report::warn_line};

/// The journal of one container.
#[derive(Debug)]
pub(crate) struct Journal {
    file: RefCell<Option<File>>,
    end: Cell<u64>,
    waiting: Cell<usize>,
    oom_waits: Cell<bool>,
}

/// An event on its way, in the file or, without one, here.
#[derive(Debug)]
pub(crate) struct Entry {
    journal: Rc<Journal>,
    place: Place,
    is_oom: bool,
}

#[derive(Debug)]
enum Place {
    Filed { at: u64, length: u32 },
    Held(Box<Envelope>),
}

impl Journal {
    /// A new journal in `bundle`.
    pub(crate) fn new(bundle: &Bundle) -> Rc<Self> {
        let path = bundle.journal();
        let made = File::options().read(true).write(true).create(true).truncate(true).open(&path).and_then(|file| {
            file.write_all_at(&journal::front(journal::FRONT), 0)?;
            Ok(file)
        });
        let file = made.map_err(|error| warn_line!("{}: {error}", path.display())).ok();
        Rc::new(Self {
            file: RefCell::new(file),
            end: Cell::new(journal::FRONT),
            waiting: Cell::new(0),
            oom_waits: Cell::new(false),
        })
    }

    /// Whether an out-of-memory kill waits to be told. One more says nothing new, and a container can provoke them at will.
    pub(crate) fn has_oom(&self) -> bool {
        self.oom_waits.get()
    }

    /// Notes an event.
    pub(crate) fn append(self: &Rc<Self>, event: Envelope) -> Entry {
        let is_oom = event.topic == Topic::Oom.name();
        self.oom_waits.set(self.oom_waits.get() || is_oom);
        let record = journal::record(&event);
        let at = self.end.get();
        let written = self.file.borrow().as_ref().map(|file| file.write_all_at(&record, at));
        let place = match written {
            Some(Ok(())) => {
                self.end.set(at + record.len() as u64);
                self.waiting.set(self.waiting.get() + 1);
                Place::Filed { at, length: record.len() as u32 }
            }
            Some(Err(error)) => {
                warn_line!("note event {} in the bundle: {error}", event.topic);
                Place::Held(Box::new(event))
            }
            None => Place::Held(Box::new(event)),
        };
        Entry { journal: self.clone(), place, is_oom }
    }

    fn moved_on(&self, to: u64) -> io::Result<()> {
        self.waiting.set(self.waiting.get() - 1);
        let file = self.file.borrow();
        let Some(file) = file.as_ref() else { return Ok(()) };
        if self.waiting.get() > 0 {
            return file.write_all_at(&journal::front(to), 0);
        }
        // Cut first: a front that points past the end says the same as one that points at it.
        file.write_all_at(&journal::front(to), 0)?;
        file.set_len(journal::FRONT)?;
        self.end.set(journal::FRONT);
        file.write_all_at(&journal::front(journal::FRONT), 0)
    }
}

impl Entry {
    /// The event. `None` if it can't be read back, which a tmpfs never has cause for.
    pub(crate) fn event(&self) -> Option<Envelope> {
        match &self.place {
            Place::Held(event) => Some((**event).clone()),
            Place::Filed { at, length } => {
                let mut record = vec![0; *length as usize];
                self.journal.file.borrow().as_ref()?.read_exact_at(&mut record, *at).ok()?;
                journal::event(&record)
            }
        }
    }

    /// Somebody has taken it.
    pub(crate) fn delivered(self) {
        if self.is_oom {
            self.journal.oom_waits.set(false);
        }
        if let Place::Filed { at, length } = self.place
            && let Err(error) = self.journal.moved_on(at + u64::from(length))
        {
            // At worst the last event is told twice after our death.
            warn_line!("event journal: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(topic: &str) -> Envelope {
        Envelope { topic: topic.into(), ..Envelope::default() }
    }

    #[test]
    fn what_waits_is_in_the_file_and_what_was_taken_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let bundle = Bundle::new(folder.path());
        let journal = Journal::new(&bundle);
        let on_disk = || {
            let bytes = std::fs::read(bundle.journal()).expect("journal");
            proto::journal::undelivered(&bytes).into_iter().map(|event| event.topic).collect::<Vec<_>>()
        };
        assert!(on_disk().is_empty());
        let oom = journal.append(envelope("/tasks/oom"));
        assert!(journal.has_oom());
        oom.delivered();
        assert!(!journal.has_oom() && on_disk().is_empty());
        let mut entries: Vec<_> = ["a", "b", "c"].map(|topic| journal.append(envelope(topic))).into();
        assert_eq!(on_disk(), ["a", "b", "c"]);
        let first = entries.remove(0);
        assert_eq!(first.event().map(|event| event.topic).as_deref(), Some("a"));
        first.delivered();
        assert_eq!(on_disk(), ["b", "c"]);
        entries.push(journal.append(envelope("d")));
        for entry in entries {
            entry.delivered();
        }
        assert!(on_disk().is_empty());
        assert_eq!(std::fs::metadata(bundle.journal()).expect("journal").len(), proto::journal::FRONT, "does not grow");
        // The folder may go while something waits: the supervisor removes it after the last Delete.
        let last = journal.append(envelope("e"));
        assert_eq!(on_disk(), ["e"]);
        drop(folder);
        assert_eq!(last.event().map(|event| event.topic).as_deref(), Some("e"));
        last.delivered();
    }

    #[test]
    fn without_a_file_events_are_held() {
        let journal = Journal::new(&Bundle::new("/nonexistent"));
        let entry = journal.append(envelope("a"));
        assert_eq!(entry.event().map(|event| event.topic).as_deref(), Some("a"));
        entry.delivered();
    }
}
