//! What a container's files take on disk: what it wrote, and that together with its image's layers.

use super::record::Record;
use crate::{app::App, images::usage, supervisor::SupervisorError};
use std::collections::HashMap;

/// Sizes of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// What it wrote.
    pub written: i64,
    /// With what lies below.
    pub root: i64,
}

/// Sizes of layers that several containers stand on, asked for once.
#[derive(Debug, Default)]
pub struct Layers(HashMap<(String, String), i64>);

impl Layers {
    /// Of a container.
    pub async fn sizes_of(&mut self, app: &App, record: &Record) -> Result<Sizes, SupervisorError> {
        let written = usage::snapshot(&app.supervisor, &record.snapshotter, &record.id).await?;
        let key = (record.snapshotter.clone(), record.chain_id.clone());
        let below = match self.0.get(&key) {
            Some(below) => *below,
            None => {
                let below = usage::whole(&app.supervisor, &key.0, &key.1).await?;
                self.0.insert(key, below);
                below
            }
        };
        Ok(Sizes { written, root: written + below })
    }

    /// The same; one that is just being removed counts as nothing.
    pub async fn sizes_or_none(&mut self, app: &App, record: &Record) -> Result<Sizes, SupervisorError> {
        match self.sizes_of(app, record).await {
            Err(error) if error.is_not_found() => Ok(Sizes { written: 0, root: 0 }),
            sizes => sizes,
        }
    }
}
