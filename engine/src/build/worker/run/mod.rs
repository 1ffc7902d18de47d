//! RUN: a command in a container, on filesystems of the build.
//!
//! ```text
//! plan ─┬─▶ network ───────────────┐
//!       ├─▶ root: draft, user ─────┼─▶ register ─▶ create ─▶ start ─▶ wait ─▶ end ─▶ mount points go ─▶ commit
//!       └─▶ sources of the mounts ─┘
//! ```
//!
//! All of it happens in a task of its own, which is told when nobody wants the result any more: the command is killed at once, and
//! what was made is taken back in order, whoever waits.

pub mod clients;
mod container;
mod output;
mod plan;
mod rootfs;
mod sources;
mod spec;
#[cfg(test)]
mod tests;
mod variables;

use super::caches::Caches;
use crate::{
    app::App,
    build::tree::{Tree, Trees},
    containers::{cdi, security},
    http::ApiError,
    time::Timestamp,
};
use container::Container;
use plan::Plan;
use proto::{digest::Digest, pb};
use solver::{Step, StepError};
use sources::{Sources, With};
use std::{path::Path, sync::Arc, time::Instant};
use tokio::{net::UnixStream, sync::oneshot};
use tracing::debug;
use variables::Variables;

pub use container::sweep;

/// Who is asked for what a command needs and the builder hasn't: the clients, by their sessions; and the worker itself.
pub trait Outside: Send + Sync + 'static {
    /// A secret; nothing if no client has it.
    fn secret(&self, id: &str, step: &Step) -> impl Future<Output = Result<Option<Vec<u8>>, StepError>> + Send;

    /// Whether a client forwards an agent under this name.
    fn has_agent(&self, id: &str, step: &Step) -> impl Future<Output = Result<bool, StepError>> + Send;

    /// Carries a connection to the client's agent until either side ends it.
    fn forward(&self, id: &str, stream: UnixStream, step: &Step) -> impl Future<Output = ()> + Send;

    /// Digest of all that is in a filesystem.
    fn content(&self, of: &Tree, step: &Step) -> impl Future<Output = Result<Digest, StepError>> + Send;
}

/// Runs commands.
pub struct Runner<O> {
    app: Arc<App>,
    trees: Trees,
    caches: Caches,
    outside: Arc<O>,
}

impl<O> Clone for Runner<O> {
    fn clone(&self) -> Self {
        let (app, trees) = (self.app.clone(), self.trees.clone());
        Self { app, trees, caches: self.caches.clone(), outside: self.outside.clone() }
    }
}

/// A failure that has words for users.
fn failed<E>(what: &str) -> impl FnOnce(E) -> StepError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = what.to_owned();
    move |cause| StepError::Failed { what, cause: cause.into() }
}

fn of_api(error: ApiError) -> StepError {
    if error.status.is_client_error() { StepError::Invalid(error.message) } else { failed("run")(error) }
}

impl<O: Outside> Runner<O> {
    /// Runs commands with these.
    pub fn new(app: Arc<App>, trees: Trees, caches: Caches, outside: Arc<O>) -> Self {
        Self { app, trees, caches, outside }
    }

    /// Does an operation; one result per output. Dropped, it is ended, and nothing of it stays.
    pub async fn run(
        &self,
        op: &pb::ExecOp,
        inputs: Vec<Option<Tree>>,
        step: &Step,
    ) -> Result<Vec<Option<Tree>>, StepError> {
        let plan = Plan::new(op, inputs.len(), &step.entitlements)?;
        // Told by being dropped.
        let (_wanted, unwanted) = oneshot::channel();
        let (runner, step) = (self.clone(), step.clone());
        let work = tokio::spawn(async move { runner.perform(&plan, &inputs, &step, unwanted).await });
        work.await.map_err(failed("a task of the builder broke down"))?
    }

    async fn perform(
        &self,
        plan: &Plan,
        inputs: &[Option<Tree>],
        step: &Step,
        unwanted: oneshot::Receiver<()>,
    ) -> Result<Vec<Option<Tree>>, StepError> {
        let begun = Instant::now();
        let mut container = Container::new(&self.app)?;
        let mut sources = Sources::default();
        let done = self.go(plan, inputs, step, unwanted, &mut container, &mut sources).await;
        let ended = begun.elapsed();
        sources.settle();
        if done.is_ok() {
            container.leave_network();
        }
        // The root is written to until the task is gone.
        let gone = container.end_task().await;
        sources.give_back().await;
        let gone_after = begun.elapsed();
        let results = async {
            match (done, gone) {
                (Ok(root), Ok(())) => self.results(plan, root, &mut sources).await,
                (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            }
        };
        let (results, ()) = tokio::join!(results, container.end());
        debug!(?ended, gone = ?gone_after, all = ?begun.elapsed(), "run");
        results
    }

    /// Up to the end of the command. What this makes is taken back by its caller.
    async fn go(
        &self,
        plan: &Plan,
        inputs: &[Option<Tree>],
        step: &Step,
        unwanted: oneshot::Receiver<()>,
        container: &mut Container,
        sources: &mut Sources,
    ) -> Result<Run, StepError> {
        let mut cancelled = step.cancelled.clone();
        let mut cancelled = std::pin::pin!(async move {
            let told = async {
                if cancelled.wait_for(|is| *is).await.is_err() {
                    // Nobody can say so any more.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = told => {}
                _ = unwanted => {}
            }
        });
        let begun = Instant::now();
        let (app, folder) = (&self.app, container.folder.clone());
        container.begin_network(plan.network);
        let with =
            With { trees: &self.trees, caches: &self.caches, inputs, outside: &self.outside, step, folder: &folder };
        // Clients and other builds may keep us waiting here.
        let prepared = async {
            let (root, secrets, ()) =
                tokio::try_join!(self.root(plan, inputs), secret_env(plan, &with), sources.open(plan, &with))?;
            Ok::<_, StepError>((root, secrets))
        };
        let (mut root, secret_env) = tokio::select! {
            prepared = prepared => prepared?,
            () = &mut cancelled => return Err(StepError::Cancelled),
        };
        let record = spec::record(app, plan, &container.id).map_err(of_api)?;
        let security = security::parse(&record.host).map_err(of_api)?;
        let settled = app.apparmor.settle(security.apparmor.as_deref(), record.host.privileged).await;
        let apparmor = settled.map_err(failed("choose a profile of AppArmor"))?;
        let devices = self.devices(plan)?;
        let variables = match secret_env.as_slice() {
            [] => None,
            variables => Some(Variables::offer(app, variables, &folder, &root.user)?),
        };
        let netns = container::netns(app, plan, &container.id);
        let around = spec::Around {
            user: &root.user,
            folder: &folder,
            netns: netns.as_deref(),
            security: &security,
            apparmor: apparmor.as_deref(),
            devices: &devices,
            variables: variables.as_ref(),
            mounts: &sources.mounts,
        };
        let written = spec::build(app, plan, &record, &around).map_err(of_api)?;
        let prepared = begun.elapsed();
        container.register(&written).await?;
        let registered = begun.elapsed();
        container.finish_network(plan, &record).await?;
        let attached = begun.elapsed();
        container.create(root.draft.mounts().to_vec(), plan, step).await?;
        sources.settle();
        root.begun = now();
        let created = begun.elapsed();
        container.start(plan).await?;
        debug!(?prepared, ?registered, ?attached, ?created, started = ?begun.elapsed(), "launch of a run");
        let code = tokio::select! {
            code = container.wait() => code?,
            () = cancelled => return Err(StepError::Cancelled),
        };
        if plan.valid_codes.contains(&code) {
            return Ok(root);
        }
        if code != 0 && container.ran_out_of_memory(plan) {
            let what = format!("process \"{}\" did not complete successfully", plan.command());
            return Err(StepError::Failed { what, cause: "cannot allocate memory".into() });
        }
        Err(StepError::Exit { command: plan.command(), code })
    }

    /// A draft of the root, looked into once.
    async fn root(&self, plan: &Plan, inputs: &[Option<Tree>]) -> Result<Run, StepError> {
        let below = plan.root.input.and_then(|at| inputs.get(at).cloned().flatten());
        let below = below.unwrap_or_else(|| self.trees.scratch());
        let draft = self.trees.draft(&below).await.map_err(failed("prepare the root of a run"))?;
        let fd = draft.open().await.map_err(failed("prepare the root of a run"))?;
        let files = spec::POINTS.iter().map(|&point| point.to_owned());
        let points: Vec<String> = files.chain(plan.mounts.iter().map(|mount| mount.dest.clone())).collect();
        let copy = plan.clone();
        // Nobody has it open when the container mounts it.
        let look = tokio::task::spawn_blocking(move || rootfs::prepare(&fd, &copy, &points)).await;
        let prepared =
            look.map_err(failed("prepare the root of a run"))?.map_err(failed("prepare the root of a run"))?;
        Ok(Run { draft, user: prepared.user, stubs: prepared.stubs, begun: (0, 0) })
    }

    fn devices(&self, plan: &Plan) -> Result<::spec::cdi::Edits, StepError> {
        if plan.devices.is_empty() {
            return Ok(::spec::cdi::Edits::default());
        }
        let folders = ::spec::cdi::folders(&self.app.config.cdi_spec_dirs);
        let mut all = Vec::new();
        for device in &plan.devices {
            let request = crate::api::host_config::DeviceRequest {
                driver: "cdi".into(),
                device_ids: vec![device.name.clone()].into(),
                ..Default::default()
            };
            match cdi::edits(&folders, std::slice::from_ref(&request)) {
                Ok(_) => all.push(request),
                Err(_) if device.optional => {}
                Err(error) => return Err(of_api(error)),
            }
        }
        cdi::edits(&folders, &all).map_err(of_api)
    }

    /// What was written becomes the results.
    async fn results(&self, plan: &Plan, run: Run, sources: &mut Sources) -> Result<Vec<Option<Tree>>, StepError> {
        let mut results: Vec<Option<Tree>> = vec![None; plan.outputs];
        let mut put = |output: usize, tree: Tree| {
            if let Some(place) = results.get_mut(output) {
                *place = Some(tree);
            }
        };
        let commit = "commit what a run has written";
        if let Some(output) = plan.root.output {
            if !run.stubs.is_empty() {
                let root = run.draft.open().await.map_err(failed(commit))?;
                let (stubs, begun) = (run.stubs, run.begun);
                let cleaned = tokio::task::spawn_blocking(move || rootfs::clean(&root, &stubs, begun)).await;
                cleaned.map_err(failed(commit))?.map_err(failed(commit))?;
            }
            put(output, run.draft.commit().await.map_err(failed(commit))?);
        }
        for (output, draft) in sources.drafts.drain(..) {
            if let Some(output) = output {
                put(output, draft.commit().await.map_err(failed(commit))?);
            }
        }
        sources.kept.drain(..).for_each(|(output, tree)| put(output, tree));
        Ok(results)
    }
}

/// A root and what is to be done with it.
struct Run {
    draft: crate::build::tree::Draft,
    user: ::spec::users::User,
    stubs: Vec<rootfs::Stub>,
    begun: (i64, i64),
}

fn now() -> (i64, i64) {
    let now = Timestamp::now();
    (now.seconds(), i64::from(now.subsec_nanos()))
}

async fn secret_env<O: Outside>(plan: &Plan, with: &With<'_, O>) -> Result<Vec<String>, StepError> {
    let mut env = Vec::new();
    for secret in &plan.secret_env {
        let Some(data) = sources::find_secret(&secret.id, secret.optional, with).await? else { continue };
        if secret.name.is_empty() || secret.name.contains(['=', '\0']) {
            return Err(StepError::Invalid(format!(
                "secret {}: no variable has the name {:?}",
                secret.id, secret.name
            )));
        }
        let value = String::from_utf8(data).ok().filter(|value| !value.contains('\0'));
        // The value is told nobody.
        let value = value
            .ok_or_else(|| StepError::Invalid(format!("secret {}: not a text that can be a variable", secret.id)))?;
        env.push(format!("{}={value}", secret.name));
    }
    Ok(env)
}

/// Takes up the caches, beside what else engines keep of builds. Blocks.
pub fn open_caches(data: &Path) -> Result<Caches, super::caches::CacheError> {
    Caches::open(data.join("builds").join("caches"))
}
