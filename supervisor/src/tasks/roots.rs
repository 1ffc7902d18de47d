//! What tasks keep from the collector: the snapshots that they run on, also when their container's record is gone.

use std::sync::Arc;

use super::Tasks;
use crate::{
    gc::{Graph, Node, Roots},
    store::{StoreError, WriteTx},
};

/// The tasks as the collector sees them.
pub(crate) struct TaskRoots(pub(crate) Arc<Tasks>);

impl Roots for TaskRoots {
    fn enter(&self, _: &WriteTx, namespace: &str, graph: &mut Graph) -> Result<(), StoreError> {
        let tasks: Vec<_> =
            self.0.lock().values().filter(|task| task.namespace.as_str() == namespace).cloned().collect();
        for task in tasks {
            let known = task.facts.borrow().origin.clone();
            // One that is being adopted may not have been read yet.
            let origin = known.or_else(|| task.bundle.origin());
            if let Some((driver, key)) = origin.and_then(|origin| origin.snapshot) {
                graph.root(Node::Snapshot(driver, key));
            }
        }
        Ok(())
    }
}
