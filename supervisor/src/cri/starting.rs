//! Containers whose start is at work. Their records say that they were started, so that a start that is cut off is never done twice; but until
//! it is done they are CREATED to everybody who asks, and nothing can be done in them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::record::Container;

/// Their ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Starting(Arc<Mutex<Ids>>);

#[derive(Debug, Default)]
struct Ids {
    all: HashSet<String>,
    changes: u64,
}

/// A start that is at work as long as this lives.
#[derive(Debug)]
pub(super) struct Start {
    all: Starting,
    id: String,
}

impl Starting {
    /// Begins a start.
    pub(super) fn begin(&self, id: &str) -> Start {
        let mut ids = self.lock();
        ids.all.insert(id.to_owned());
        ids.changes += 1;
        drop(ids);
        Start { all: self.clone(), id: id.to_owned() }
    }

    fn lock(&self) -> MutexGuard<'_, Ids> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Grows with each begin and end, for who keeps what was shown.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// A record as it is shown.
    pub(super) fn shown(&self, id: &str, mut container: Container) -> Container {
        if container.end.is_none() && self.lock().all.contains(id) {
            container.started_at = 0;
        }
        container
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        let mut ids = self.all.lock();
        ids.all.remove(&self.id);
        ids.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use proto::runtime::v1::ContainerState::*;

    use super::*;

    #[test]
    fn created_until_it_is_started() {
        let starting = Starting::default();
        let state = || starting.shown("a", Container { started_at: 5, ..Container::default() }).state();
        let start = starting.begin("a");
        assert_eq!(state(), ContainerCreated);
        assert_eq!(starting.shown("b", Container { started_at: 5, ..Container::default() }).state(), ContainerRunning);
        let before = starting.changes();
        drop(start);
        assert_eq!(state(), ContainerRunning);
        assert!(starting.changes() > before);
    }
}
