//! How many tasks there are, by state: for the metrics.

use std::collections::BTreeMap;

use super::{Phase, Tasks};

/// Numbers of tasks.
#[derive(Debug, Default)]
pub(crate) struct Census {
    /// By namespace and state.
    pub(crate) states: BTreeMap<(String, String), usize>,
    /// Those with a shim that we are connected to.
    pub(crate) connections: usize,
}

impl Tasks {
    /// Counts.
    pub(crate) fn census(&self) -> Census {
        let mut census = Census::default();
        for task in self.lock().values() {
            let facts = task.facts.borrow();
            let state = match facts.phase {
                Phase::Making | Phase::Adopting | Phase::Ending | Phase::Ended => format!("{:?}", facts.phase),
                Phase::Live | Phase::Orphan => format!("{:?}", facts.state),
            };
            *census.states.entry((task.namespace.to_string(), state.to_lowercase())).or_default() += 1;
            census.connections +=
                usize::from(facts.connection.as_ref().is_some_and(|connection| !connection.is_lost()));
        }
        census
    }
}
