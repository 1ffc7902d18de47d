//! Clients of builds, who serve files, secrets and credentials.
//!
//! A client comes with `POST /session` (or the method `Session` of BuildKit's Control) and then is the *server* of an HTTP/2
//! connection on it: we ask, it answers, until the build is done. [`Sessions`] knows who is there, a [`Session`] is one of them,
//! with a function for whatever it can be asked ([`calls`], [`files`]). A client that goes away ends all that is under way.

mod calls;
#[cfg(test)]
mod clients;
mod connection;
mod error;
mod files;
mod hijack;
mod metadata;
#[cfg(test)]
pub(in crate::build) mod tests;

pub use connection::stream_of_messages;
pub use error::SessionError;
pub use files::FilesRequest;
pub use hijack::take_over;

use axum::http::HeaderMap;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use tonic::{metadata::MetadataMap, transport::Channel};
use tracing::debug;

/// How long a build waits for a session that its client has named, but not opened yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many there can be: more are not builds, but somebody who means harm.
const MOST: usize = 4096;
/// What a client may announce: more is no name.
const LONGEST: usize = 1024;
/// How many methods a client may announce.
const MOST_METHODS: usize = 256;

/// What a client says of itself in the headers of its request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Announced {
    /// Its id, made up by the client.
    pub id: String,
    /// A name, of the folder as a rule.
    pub name: String,
    /// The same for builds of the same folder of the same client.
    pub shared_key: String,
    /// What it serves: `/moby.filesync.v1.FileSync/DiffCopy` in lower case.
    methods: HashSet<String>,
}

impl Announced {
    /// From the headers of an HTTP request.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, SessionError> {
        Self::new(|name| headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect())
    }

    /// From what comes along with a gRPC call.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Self, SessionError> {
        Self::new(|name| metadata.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect())
    }

    fn new(values: impl Fn(&'static str) -> Vec<String>) -> Result<Self, SessionError> {
        let one = |name| values(name).into_iter().next().unwrap_or_default();
        let announced = Self {
            id: one("x-docker-expose-session-uuid"),
            name: one("x-docker-expose-session-name"),
            shared_key: one("x-docker-expose-session-sharedkey"),
            methods: values("x-docker-expose-session-grpc-method").iter().map(|m| m.to_ascii_lowercase()).collect(),
        };
        if announced.id.is_empty() {
            return Err(SessionError::Invalid("X-Docker-Expose-Session-Uuid is missing: a session needs an id".into()));
        }
        // It gets into names of files and logs.
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if announced.id.len() > 128 || !announced.id.chars().all(fine) {
            return Err(SessionError::Invalid(
                "the id of a session has letters, digits, '-', '_' and '.', 128 at most".into(),
            ));
        }
        if announced.name.len() > LONGEST
            || announced.shared_key.len() > LONGEST
            || announced.methods.len() > MOST_METHODS
        {
            return Err(SessionError::Invalid(format!("session {} announces too much", announced.id)));
        }
        Ok(announced)
    }
}

/// The clients that are there. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: Mutex<HashMap<String, Session>>,
    // Told of every one that comes.
    arrivals: watch::Sender<u64>,
}

impl Sessions {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up the connection of a client. It is found from now on, until the connection ends, by whichever side.
    pub fn attach<S>(&self, announced: Announced, stream: S) -> Result<Session, SessionError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let gone = Arc::new(watch::Sender::new(false));
        let id = announced.id.clone();
        let channel = connection::channel(stream, gone.clone());
        let session = Session { announced: Arc::new(announced), channel, gone };
        {
            let mut sessions = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            if sessions.len() >= MOST {
                return Err(SessionError::Invalid(format!("there are {MOST} sessions already")));
            }
            if sessions.get(&id).is_some_and(Session::is_alive) {
                return Err(SessionError::Exists(id));
            }
            sessions.insert(id.clone(), session.clone());
        }
        debug!(session = id, name = session.announced.name, "session of a client");
        self.inner.arrivals.send_modify(|count| *count = count.wrapping_add(1));
        tokio::spawn(connection::watch_health(session.clone()));
        let (inner, watched) = (Arc::downgrade(&self.inner), session.clone());
        tokio::spawn(async move {
            watched.ended().await;
            let Some(inner) = inner.upgrade() else { return };
            let mut sessions = inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            // By now the id may be another one's.
            if sessions.get(&id).is_some_and(|there| Arc::ptr_eq(&there.gone, &watched.gone)) {
                sessions.remove(&id);
            }
            debug!(session = id, "session ended");
        });
        Ok(session)
    }

    /// The session with this id, once it is there. `name:id` means `id`.
    pub async fn find(&self, id: &str) -> Result<Session, SessionError> {
        self.find_within(id, PATIENCE).await
    }

    /// The same with patience of one's own.
    pub async fn find_within(&self, id: &str, patience: Duration) -> Result<Session, SessionError> {
        let id = id.split_once(':').map_or(id, |(_, rest)| if rest.is_empty() { id } else { rest });
        let mut arrivals = self.inner.arrivals.subscribe();
        let waiting = async {
            loop {
                arrivals.mark_unchanged();
                if let Some(session) = self.now(id) {
                    return session;
                }
                if arrivals.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(patience, waiting).await.map_err(|_| SessionError::Missing(id.to_owned()))
    }

    /// The session with this id, if it is there now.
    pub fn now(&self, id: &str) -> Option<Session> {
        let sessions = self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.get(id).filter(|session| session.is_alive()).cloned()
    }

    /// Asks the sessions of a build one after the other, until one has what is asked for: `what` in words. Those that are gone are
    /// passed by; if no session has it, the first one's refusal is the answer.
    pub async fn any<T, F>(
        &self,
        ids: &[String],
        what: &'static str,
        mut ask: impl FnMut(Session) -> F,
    ) -> Result<T, SessionError>
    where
        F: Future<Output = Result<T, SessionError>>,
    {
        let mut refusal = None;
        for id in ids {
            let answer = match self.find(id).await {
                Ok(session) => ask(session).await,
                Err(missing) => Err(missing),
            };
            match answer {
                Ok(value) => return Ok(value),
                Err(error) if error.is_not_served() || matches!(error, SessionError::Gone(_)) => {
                    // That something isn't there says more than that somebody isn't.
                    if refusal.as_ref().is_none_or(|r| matches!(r, SessionError::Missing(_))) {
                        refusal = Some(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or(SessionError::None(what)))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.inner.sessions.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// A client of a build. A clone is the same.
#[derive(Debug, Clone)]
pub struct Session {
    announced: Arc<Announced>,
    channel: Channel,
    gone: Arc<watch::Sender<bool>>,
}

impl Session {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.announced.id
    }

    /// The name that it gave itself.
    pub fn name(&self) -> &str {
        &self.announced.name
    }

    /// The same for builds of the same folder of the same client.
    pub fn shared_key(&self) -> &str {
        &self.announced.shared_key
    }

    /// Whether it serves a method: `/moby.filesync.v1.FileSync/DiffCopy`.
    pub fn supports(&self, method: &str) -> bool {
        self.announced.methods.contains(&method.to_ascii_lowercase())
    }

    /// Whether the connection is there.
    pub fn is_alive(&self) -> bool {
        !*self.gone.borrow()
    }

    /// Returns when the client is gone.
    pub async fn ended(&self) {
        // It can't fail: we hold the other side.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Ends it, and its connection.
    pub fn hang_up(&self) {
        self.gone.send_replace(true);
    }

    fn needs(&self, method: &str) -> Result<(), SessionError> {
        if self.supports(method) { Ok(()) } else { Err(SessionError::Unsupported(method.to_owned())) }
    }

    /// What a call gives, unless the client goes away before.
    async fn unless_gone<T>(&self, call: impl Future<Output = Result<T, SessionError>>) -> Result<T, SessionError> {
        tokio::select! {
            biased;
            result = call => result,
            () = self.ended() => Err(SessionError::Gone("its connection has ended".into())),
        }
    }
}
