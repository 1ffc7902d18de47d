//! File operations: [`actions`] on the roots of filesystems, given as descriptors, and here what of which filesystem they work on.

mod actions;
pub mod copy;
pub mod filter;
mod mode;
mod owner;
pub mod paths;
#[cfg(test)]
mod tests;

use crate::build::tree::{Draft, Tree, TreeError, Trees};
use nix::errno::Errno;
use paths::Clean;
use proto::pb;
use solver::StepError;
use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file; said as Go's programs do.
    #[error("{operation} {path}: {}", said(.cause))]
    At {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: String,
        /// Why not.
        cause: io::Error,
    },
    /// Something that is to be copied isn't there.
    #[error("failed to calculate checksum: \"{0}\": not found")]
    Missing(String),
    /// The client asked for what can't be.
    #[error("{0}")]
    Invalid(String),
    /// The passwd or group file.
    #[error(transparent)]
    Users(#[from] ::spec::users::ReadError),
    /// Nobody wants it any more.
    #[error("cancelled")]
    Stopped,
}

impl FileError {
    /// A call of the kernel that failed.
    pub fn at(path: &Clean, operation: &'static str, cause: Errno) -> Self {
        Self::At { operation, path: path.shown(), cause: cause.into() }
    }

    /// The same.
    pub fn io(path: &Clean, operation: &'static str, cause: io::Error) -> Self {
        Self::At { operation, path: path.shown(), cause }
    }

    fn of_data(path: &Clean, cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::Interrupted { Self::Stopped } else { Self::io(path, "copy", cause) }
    }
}

fn said(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

impl From<FileError> for StepError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::At { ref cause, .. } if cause.kind() == io::ErrorKind::NotFound => {
                Self::NotFound(error.to_string())
            }
            FileError::Missing(_) => Self::NotFound(error.to_string()),
            FileError::Invalid(text) => Self::Invalid(text),
            FileError::Stopped => Self::Cancelled,
            FileError::Users(cause) => Self::Failed { what: "look up the owner".into(), cause: cause.into() },
            FileError::At { operation, path, cause } => {
                Self::Failed { what: format!("{operation} {path}"), cause: cause.into() }
            }
        }
    }
}

/// Tells work on a thread that nobody wants it any more.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// An error when it is time to stop.
    pub fn check(&self) -> Result<(), FileError> {
        if self.0.load(Ordering::Relaxed) { Err(FileError::Stopped) } else { Ok(()) }
    }

    fn check_io(&self) -> io::Result<()> {
        self.check().map_err(|_| io::ErrorKind::Interrupted.into())
    }
}

/// Stops the work when it is dropped.
pub struct Stopper(pub Stop);

impl Drop for Stopper {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` on a thread that may block; ends it when nobody waits for it any more.
pub async fn on_thread<T, E>(work: impl FnOnce(&Stop) -> Result<T, E> + Send + 'static) -> Result<T, StepError>
where
    T: Send + 'static,
    E: Into<StepError> + Send + 'static,
{
    let stop = Stop::default();
    let _stopper = Stopper(stop.clone());
    let (sender, done) = tokio::sync::oneshot::channel();
    let failed = |what: &str, cause: io::Error| StepError::Failed { what: what.into(), cause: cause.into() };
    std::thread::Builder::new()
        .name("files".into())
        .stack_size(STACK)
        .spawn(move || drop(sender.send(work(&stop))))
        .map_err(|error| failed("start a thread", error))?;
    match done.await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(failed("a thread of the builder broke down", io::ErrorKind::Other.into())),
    }
}

/// Trees are walked by recursion: room for as deep ones as are let in.
pub const STACK: usize = 16 << 20;

impl From<TreeError> for StepError {
    fn from(error: TreeError) -> Self {
        Self::Failed { what: "make a filesystem".into(), cause: error.into() }
    }
}

/// What an action has made: still being written, or fixed because others work on it.
enum State {
    Open(Draft, Arc<OwnedFd>),
    Fixed(Tree),
    Passed,
}

/// Does all actions of an operation. Those that go on from each other share one snapshot.
pub async fn perform(trees: &Trees, op: &pb::FileOp, inputs: &[Option<Tree>]) -> Result<Vec<Option<Tree>>, StepError> {
    let invalid = |what: &str| StepError::Invalid(format!("file operation: {what}"));
    let input = |at: i64| inputs.get(usize::try_from(at).ok()?).cloned();
    let action_of = |at: i64| usize::try_from(at - inputs.len() as i64).ok();
    // How often the result of an action is asked for.
    let mut uses = vec![0_usize; op.actions.len()];
    for action in &op.actions {
        for at in [Some(action.input), Some(action.secondary_input)].into_iter().chain(owner::inputs(action)).flatten()
        {
            if let Some(count) = action_of(at).and_then(|at| uses.get_mut(at)) {
                *count += 1;
            }
        }
    }
    let outputs = op.actions.iter().map(|action| action.output).max().unwrap_or(-1);
    let outputs = usize::try_from(outputs + 1).ok().filter(|count| *count <= op.actions.len());
    let mut results: Vec<Option<Tree>> = vec![None; outputs.ok_or_else(|| invalid("its outputs are out of range"))?];
    let mut states: Vec<State> = Vec::with_capacity(op.actions.len());
    for (number, action) in op.actions.iter().enumerate() {
        // A filesystem that is read: nothing is an empty one.
        let mut roots = Vec::new();
        for at in [Some(action.secondary_input)].into_iter().chain(owner::inputs(action)) {
            let Some(at) = at.filter(|at| *at >= 0) else {
                roots.push(None);
                continue;
            };
            let tree = match (input(at), action_of(at)) {
                (Some(tree), _) => tree.unwrap_or_else(|| trees.scratch()),
                (None, Some(before)) if before < number => fixed(&mut states, before).await?,
                _ => return Err(invalid("an input is out of range")),
            };
            roots.push(Some((tree.open().await?, tree)));
        }
        let (draft, root) = match (input(action.input), action_of(action.input)) {
            _ if action.input < 0 => begin(trees, &trees.scratch()).await?,
            (Some(tree), _) => begin(trees, &tree.unwrap_or_else(|| trees.scratch())).await?,
            (None, Some(before)) if before < number => {
                let alone = uses[before] == 1 && op.actions[before].output < 0;
                match states.get_mut(before) {
                    Some(state @ State::Open(..)) if alone => match std::mem::replace(state, State::Passed) {
                        State::Open(draft, root) => (draft, root),
                        _ => return Err(invalid("an input is used up")),
                    },
                    _ => begin(trees, &fixed(&mut states, before).await?).await?,
                }
            }
            _ => return Err(invalid("an input is out of range")),
        };
        let (work, target) = (action.action.clone(), root.clone());
        on_thread(move |stop| {
            let mut roots = roots.iter().map(|root| root.as_ref().map(|(root, _)| root));
            let source = roots.next().flatten();
            let (users, groups) = (roots.next().flatten(), roots.next().flatten());
            actions::perform(work.as_ref(), &target, source, owner::Databases { users, groups }, stop)
        })
        .await?;
        states.push(State::Open(draft, root));
        if let Ok(output) = usize::try_from(action.output) {
            results[output] = Some(fixed(&mut states, number).await?);
        }
    }
    Ok(results)
}

/// A copy between open roots, for measurements.
#[cfg(test)]
pub fn copied(action: &pb::FileActionCopy, source: &OwnedFd, target: &OwnedFd) -> Result<(), FileError> {
    let action = pb::file_action::Action::Copy(action.clone());
    actions::perform(Some(&action), target, Some(source), owner::Databases::default(), &Stop::default())
}

async fn begin(trees: &Trees, below: &Tree) -> Result<(Draft, Arc<OwnedFd>), StepError> {
    let draft = trees.draft(below).await?;
    let root = draft.open().await?;
    Ok((draft, Arc::new(root)))
}

/// The result of an action, for others to read.
async fn fixed(states: &mut [State], at: usize) -> Result<Tree, StepError> {
    let gone = || StepError::Invalid("file operation: an input is used up".into());
    let state = states.get_mut(at).ok_or_else(gone)?;
    let tree = match std::mem::replace(state, State::Passed) {
        State::Fixed(tree) => tree,
        State::Open(draft, root) => {
            drop(root);
            draft.commit().await?
        }
        State::Passed => return Err(gone()),
    };
    *state = State::Fixed(tree.clone());
    Ok(tree)
}
