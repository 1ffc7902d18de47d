//! Containers whose start is at work. Their records say that they were started, so that a start that is cut off is never done twice; but until
//! it is done they are CREATED to everybody who asks, and nothing can be done in them.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use super::record::Container;

/// Their ids.
#[derive(Debug, Clone, Default)]
pub(super) struct Starting(Arc<Mutex<HashSet<String>>>);

/// A start that is at work as long as this lives.
#[derive(Debug)]
pub(super) struct Start {
    all: Starting,
    id: String,
}

impl Starting {
    /// Begins a start.
    pub(super) fn begin(&self, id: &str) -> Start {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned());
        Start { all: self.clone(), id: id.to_owned() }
    }

    /// A record as it is shown.
    pub(super) fn shown(&self, id: &str, mut container: Container) -> Container {
        if container.end.is_none() && self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(id) {
            container.started_at = 0;
        }
        container
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
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
        drop(start);
        assert_eq!(state(), ContainerRunning);
    }
}
