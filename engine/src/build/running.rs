//! Builds under way: who asked for what, and what was made for them so far.

use super::{
    backend::{Backend, Filesystem, Finished},
    error::BuildError,
    frontend::Plan,
    progress::Progress,
};
use proto::{moby::buildkit::v1::frontend::Attestation, pb};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{OnceCell, oneshot, watch};

/// What one build may have of references; a client that makes more is up to no good.
const REFERENCES: usize = 10_000;

/// A build.
#[derive(Debug)]
pub struct Build {
    /// The client's name for it.
    pub id: String,
    /// The client's session; more of them for folders that come from elsewhere.
    pub sessions: Vec<String>,
    /// What the client allowed and the configuration lets it allow: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<String>,
    /// LLB that was given along.
    pub inputs: HashMap<String, pb::Definition>,
    /// What it tells of itself.
    pub progress: Progress,
    /// Becomes true when nobody wants it any more.
    pub cancelled: watch::Sender<bool>,
    /// What the frontend made of a Dockerfile, once it has.
    pub plan: watch::Sender<Option<Arc<Plan>>>,
    references: Mutex<HashMap<String, Arc<Reference>>>,
    /// Where a client that is the frontend itself puts the end.
    succeeded: AtomicBool,
    returned: Mutex<Option<oneshot::Sender<Result<Outcome, BuildError>>>>,
}

/// What a frontend made.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The filesystems.
    pub references: References,
    /// Configurations of images and the like.
    pub metadata: BTreeMap<String, Vec<u8>>,
    /// Attestations by platform.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// One filesystem, or one per platform.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "says all")]
pub enum References {
    One(Option<Arc<Reference>>),
    Many(BTreeMap<String, Option<Arc<Reference>>>),
}

impl Default for References {
    fn default() -> Self {
        Self::One(None)
    }
}

impl References {
    /// All, by name.
    pub fn named(&self) -> BTreeMap<String, Option<Arc<Reference>>> {
        match self {
            Self::One(reference) => [(String::new(), reference.clone())].into(),
            Self::Many(references) => references.clone(),
        }
    }
}

/// Something that can be made, and will be once somebody asks.
#[derive(Debug)]
pub struct Reference {
    /// Name of it within its build.
    pub id: String,
    /// What it is.
    pub definition: Arc<pb::Definition>,
    made: OnceCell<Result<Option<Arc<dyn Filesystem>>, BuildError>>,
}

impl Reference {
    /// Has it made.
    pub async fn make(
        &self,
        build: &Arc<Build>,
        backend: &dyn Backend,
    ) -> Result<Option<Arc<dyn Filesystem>>, BuildError> {
        self.made.get_or_init(|| backend.solve(&self.definition, build)).await.clone()
    }

    /// Has it made; an empty filesystem, in which nothing can be read, is an error.
    pub async fn filesystem(
        &self,
        build: &Arc<Build>,
        backend: &dyn Backend,
    ) -> Result<Arc<dyn Filesystem>, BuildError> {
        let made = self.make(build, backend).await?;
        made.ok_or_else(|| BuildError::not_found("no such file or directory: the filesystem is empty (scratch)"))
    }
}

impl Build {
    /// One that begins.
    pub fn new(id: String, sessions: Vec<String>, entitlements: Vec<String>) -> Self {
        Self {
            id,
            sessions,
            entitlements,
            inputs: HashMap::new(),
            progress: Progress::default(),
            cancelled: watch::channel(false).0,
            plan: watch::channel(None).0,
            references: Mutex::default(),
            succeeded: AtomicBool::new(false),
            returned: Mutex::default(),
        }
    }

    /// It ended, well or not.
    pub fn end(&self, succeeded: bool) {
        self.succeeded.store(succeeded, Ordering::Release);
        self.cancelled.send_replace(true);
    }

    /// Whether it ended well.
    pub fn succeeded(&self) -> bool {
        self.succeeded.load(Ordering::Acquire)
    }

    /// A reference to what `definition` stands for.
    pub fn refer(&self, definition: pb::Definition, backend: &dyn Backend) -> Result<Arc<Reference>, BuildError> {
        backend.check(&definition)?;
        let id = crate::ids::random_id()
            .map_err(|cause| BuildError::of(proto::kind::ErrorKind::Internal, &cause).while_doing("name a result"))?;
        let reference = Arc::new(Reference { id: id.clone(), definition: Arc::new(definition), made: OnceCell::new() });
        let mut references = self.references.lock().unwrap_or_else(PoisonError::into_inner);
        if references.len() >= REFERENCES {
            return Err(BuildError::new(
                proto::kind::ErrorKind::ResourceExhausted,
                format!("build {} has {REFERENCES} results already", self.id),
            ));
        }
        references.insert(id, reference.clone());
        Ok(reference)
    }

    /// The reference of this name.
    pub fn reference(&self, id: &str) -> Result<Arc<Reference>, BuildError> {
        let references = self.references.lock().unwrap_or_else(PoisonError::into_inner);
        references.get(id).cloned().ok_or_else(|| BuildError::not_found(format!("no such ref: {id}")))
    }

    /// The client is the frontend: the other end of what it will return.
    pub fn await_return(&self) -> oneshot::Receiver<Result<Outcome, BuildError>> {
        let (sender, receiver) = oneshot::channel();
        *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Whether the client is the frontend, and hasn't come to its end.
    pub fn is_open(&self) -> bool {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The client's frontend has come to its end.
    pub fn give_back(&self, result: Result<Outcome, BuildError>) -> Result<(), BuildError> {
        let waiting = self.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone =
            || BuildError::new(proto::kind::ErrorKind::FailedPrecondition, format!("build {} has ended", self.id));
        waiting.ok_or_else(gone)?.send(result).map_err(|_| gone())
    }

    /// Has everything of an outcome made, all at once.
    pub async fn make_all(self: &Arc<Self>, outcome: Outcome, backend: &dyn Backend) -> Result<Finished, BuildError> {
        let making = outcome.references.named().into_iter().map(|(name, reference)| async move {
            let made = match reference {
                Some(reference) => reference.make(self, backend).await?,
                None => None,
            };
            Ok::<_, BuildError>((name, made))
        });
        let trees = futures_util::future::try_join_all(making).await?.into_iter().collect();
        Ok(Finished { outcome, trees })
    }
}

/// Whether a name from outside may be one of a build: it may become part of paths (CVE-2026-33747).
pub fn is_name(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_builds() {
        for (name, fine) in [
            ("vt0yzqxq4pmwu", true),
            ("a-b_c.1", true),
            ("", false),
            ("..", false),
            (".hidden", false),
            ("a/b", false),
            ("a\0", false),
            ("ä", false),
        ] {
            assert_eq!(is_name(name), fine, "{name:?}");
        }
        assert!(!is_name(&"x".repeat(129)));
    }
}
