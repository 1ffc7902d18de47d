//! A step that nobody watches, and clients with some secrets: for tests of sources.

use crate::build::{tree::Tree, worker::run::Outside};
use proto::{
    digest::Digest,
    moby::buildkit::v1::{VertexLog, VertexStatus, VertexWarning},
};
use solver::{Step, StepError};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{net::UnixStream, sync::watch};

#[derive(Debug)]
struct Nobody;

impl solver::worker::Progress for Nobody {
    fn log(&self, _: VertexLog) {}
    fn status(&self, _: VertexStatus) {}
    fn warn(&self, _: VertexWarning) {}
}

/// A step.
pub fn step() -> Step {
    Step {
        digest: "sha256:1".into(),
        name: "ADD".into(),
        sessions: Vec::new(),
        entitlements: Vec::new(),
        progress: Arc::new(Nobody),
        cancelled: watch::channel(false).1,
    }
}

/// Clients with secrets.
#[derive(Default)]
pub struct Clients(pub BTreeMap<String, String>);

impl Outside for Clients {
    async fn secret(&self, id: &str, _: &Step) -> Result<Option<Vec<u8>>, StepError> {
        Ok(self.0.get(id).map(|text| text.as_bytes().to_vec()))
    }

    async fn has_agent(&self, _: &str, _: &Step) -> Result<bool, StepError> {
        Ok(false)
    }

    async fn forward(&self, _: &str, _: UnixStream, _: &Step) {}

    async fn content(&self, _: &Tree, _: &Step) -> Result<Digest, StepError> {
        Ok(Digest::of(b""))
    }
}
