//! The clients of a build as a run asks them: by their sessions.

use super::Outside;
use crate::build::{
    session::{SessionError, Sessions},
    tree::Tree,
};
use proto::{digest::Digest, kind::ErrorKind};
use solver::{Step, StepError};
use std::{pin::Pin, sync::Arc};
use tokio::net::UnixStream;
use tracing::debug;

/// Finds the digest of all that is in a filesystem: the worker's [`solver::Worker::content`].
pub type Content =
    Arc<dyn Fn(Tree, Step) -> Pin<Box<dyn Future<Output = Result<Digest, StepError>> + Send>> + Send + Sync>;

/// Clients by their sessions.
#[derive(Clone)]
pub struct Clients {
    /// Who is there.
    pub sessions: Sessions,
    /// Who knows filesystems.
    pub content: Content,
}

fn failed(what: String) -> impl FnOnce(SessionError) -> StepError {
    move |cause| StepError::Failed { what, cause: cause.into() }
}

fn lacks(error: &SessionError) -> bool {
    // Of a build without sessions nobody is there to have anything.
    error.is_not_served() || error.kind() == ErrorKind::NotFound || matches!(error, SessionError::None(_))
}

impl Outside for Clients {
    async fn secret(&self, id: &str, step: &Step) -> Result<Option<Vec<u8>>, StepError> {
        let asked = self.sessions.any(&step.sessions, "secrets", |session| async move { session.secret(id).await });
        match asked.await {
            Ok(data) => Ok(Some(data)),
            Err(error) if lacks(&error) => Ok(None),
            Err(error) => Err(failed(format!("get secret {id}"))(error)),
        }
    }

    async fn has_agent(&self, id: &str, step: &Step) -> Result<bool, StepError> {
        let asked = self.sessions.any(&step.sessions, "ssh", |session| async move { session.check_agent(id).await });
        match asked.await {
            Ok(()) => Ok(true),
            Err(error) if lacks(&error) => Ok(false),
            Err(error) => Err(failed(format!("ask for ssh agent {id}"))(error)),
        }
    }

    async fn forward(&self, id: &str, stream: UnixStream, step: &Step) {
        // Whoever has it: asked again, for the one that had it may be gone.
        for session in &step.sessions {
            let Some(session) = self.sessions.now(session) else { continue };
            if session.check_agent(id).await.is_ok() {
                if let Err(error) = session.forward_agent(id, stream).await {
                    debug!(error = %proto::kind::chain(&error), id, "connection to an agent");
                }
                return;
            }
        }
    }

    async fn content(&self, of: &Tree, step: &Step) -> Result<Digest, StepError> {
        (self.content)(of.clone(), step.clone()).await
    }
}
