//! The container of a command: made, started, waited for, taken away. Whatever was begun is noted here first, so that
//! [`Container::end`] finds all of it, however far things went.

use super::{output::Output, plan::Plan, spec};
use crate::{
    app::App,
    containers::{files, shims, start},
    ids,
    networks::{AttachRequest, Endpoint, MemberRequest, NetworkKind},
    supervisor::{Client, SupervisorError},
};
use proto::{
    containerd::{
        runc::v1::Options,
        services::{
            containers::v1::{Container as Entry, CreateContainerRequest, DeleteContainerRequest, container::Runtime},
            tasks::v1::{CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest},
        },
        types::Mount,
    },
    kind::chain,
    typeurl,
};
use serde_json::Value;
use solver::{Step, StepError};
use std::{
    collections::HashMap,
    fs::DirBuilder,
    net::IpAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

/// Label of containers of builds; its value is the id.
pub const LABEL: &str = "berth/engine.build";
/// How long a supervisor that went away may take to come back to a command that runs.
const ABSENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

type Attached = Result<Endpoint, crate::networks::NetworkError>;

/// A container, in the making or running.
pub struct Container {
    app: Arc<App>,
    /// 64 hex digits.
    pub id: String,
    /// Where its files are.
    pub folder: PathBuf,
    registered: bool,
    task: bool,
    attaching: Option<JoinHandle<Attached>>,
    pub(super) endpoint: Option<Endpoint>,
    detaching: Option<JoinHandle<()>>,
    output: Option<Output>,
}

fn failed<E>(what: &str) -> impl FnOnce(E) -> StepError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = what.to_owned();
    move |cause| StepError::Failed { what, cause: cause.into() }
}

/// Where folders of runs are.
pub fn folders(app: &App) -> PathBuf {
    app.config.engine_run().join("builds")
}

impl Container {
    /// Makes its folder.
    pub fn new(app: &Arc<App>) -> Result<Self, StepError> {
        let id = ids::random_id().map_err(failed("make an id"))?;
        let folder = folders(app).join(&id);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(failed("make the folder of a run"))?;
        Ok(Self {
            app: app.clone(),
            id,
            folder,
            registered: false,
            task: false,
            attaching: None,
            endpoint: None,
            detaching: None,
            output: None,
        })
    }

    /// Begins to make its network.
    pub fn begin_network(&mut self, kind: NetworkKind) {
        let (app, id) = (self.app.clone(), self.id.clone());
        let attach = move || match kind {
            NetworkKind::None => app.networks.attach_none(&id),
            _ => {
                let network_id = app.networks.network_id(NetworkKind::Bridge).to_owned();
                let member = MemberRequest { network_id, ..MemberRequest::default() };
                let name = format!("build-{}", ids::short(&id));
                app.networks.attach(&id, &AttachRequest { name, members: vec![member], ..AttachRequest::default() })
            }
        };
        if kind != NetworkKind::Host {
            self.attaching = Some(tokio::task::spawn_blocking(attach));
        }
    }

    async fn join_network(&mut self) -> Result<(), StepError> {
        let Some(attaching) = &mut self.attaching else { return Ok(()) };
        let attached = attaching.await;
        self.attaching = None;
        let attached = attached.map_err(failed("attach to the network"))?;
        self.endpoint = Some(attached.map_err(failed("attach to the network"))?);
        Ok(())
    }

    /// Waits for the network, and writes the files that say so.
    pub async fn finish_network(
        &mut self,
        plan: &Plan,
        record: &crate::containers::record::Record,
    ) -> Result<(), StepError> {
        self.join_network().await?;
        let members = self.endpoint.as_ref().map(Endpoint::members).unwrap_or_default();
        let addresses: Vec<IpAddr> =
            members.iter().flat_map(|member| member.address.all().map(|address| address.ip)).collect();
        let facts = files::Facts {
            hostname: &plan.hostname,
            domainname: "",
            addresses: &addresses,
            gateway: self.app.networks.gateway(),
            extra_hosts: &plan.extra_hosts,
            dns: &record.host.dns,
            dns_search: &record.host.dns_search,
            dns_options: &record.host.dns_options,
            host_network: plan.network == NetworkKind::Host,
            names: false,
        };
        files::check(&facts).map_err(|error| StepError::Invalid(error.message))?;
        files::write(&self.folder, &facts).map_err(failed("write hosts and resolv.conf"))
    }

    /// Tells the supervisor what is to run.
    pub async fn register(&mut self, spec: &Value) -> Result<(), StepError> {
        let what = "register the container of a run";
        let (live, run) = (self.app.live(), self.app.config.engine_run());
        let attaches = self.app.supervisor.attaches().await.map_err(failed(what))?;
        let configured = shims::by_name(&live.runtime, &live, &run).map_err(failed(what))?;
        let choice = shims::choose(&configured, &configured, attaches);
        let options = Options { binary_name: choice.runtime, ..Options::default() };
        let spec = serde_json::to_vec(spec).map_err(failed(what))?;
        let entry = Entry {
            id: self.id.clone(),
            labels: HashMap::from([(LABEL.to_owned(), self.id.clone())]),
            runtime: Some(Runtime { name: choice.shim, options: Some(typeurl::pack(&options)) }),
            spec: Some(typeurl::pack_json(typeurl::SPEC, spec)),
            ..Entry::default()
        };
        self.registered = true;
        let request = CreateContainerRequest { container: Some(entry) };
        let call = |client: Client, request| async move { client.containers().create(request).await };
        self.app.supervisor.retry(request, call).await.map(drop).map_err(failed(what))
    }

    /// Makes the task: when this returns, all is mounted and nothing runs.
    pub async fn create(&mut self, rootfs: Vec<Mount>, plan: &Plan, step: &Step) -> Result<(), StepError> {
        let output = Output::open(&self.folder, step).map_err(failed("make the pipes of a run"))?;
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs,
            stdout: output.stdout.clone(),
            stderr: output.stderr.clone(),
            ..CreateTaskRequest::default()
        };
        self.output = Some(output);
        self.task = true;
        let created = self.app.supervisor.tasks().create(request).await.map_err(SupervisorError::from);
        created.map_err(|error| refused(plan, error))?;
        if let Some(output) = &mut self.output {
            output.settle();
        }
        Ok(())
    }

    /// Lets the command run. Its process is in the namespace: the name of that goes.
    pub async fn start(&mut self, plan: &Plan) -> Result<(), StepError> {
        let (app, id) = (self.app.clone(), self.id.clone());
        let request = StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        let mut tasks = self.app.supervisor.tasks();
        let unpin = tokio::task::spawn_blocking(move || app.networks.unpin(&id));
        let (started, unpinned) = tokio::join!(tasks.start(request), unpin);
        if let Ok(Err(error)) = unpinned {
            warn!(id = ids::short(&self.id), error = %chain(&error), "network namespace stays pinned");
        }
        started.map(drop).map_err(|error| refused(plan, error.into()))
    }

    /// Waits until the command has ended; also while the supervisor is away.
    pub async fn wait(&self) -> Result<u32, StepError> {
        let request = WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let mut away: Option<Instant> = None;
        loop {
            let asked = Instant::now();
            match self.app.supervisor.tasks().wait(request.clone()).await.map_err(SupervisorError::from) {
                Ok(answer) => return Ok(answer.into_inner().exit_status),
                Err(error) if error.is_disconnect() => {
                    // A wait that lasted was answered by somebody: his absence begins now.
                    let since = match away {
                        Some(since) if asked.elapsed() < PAUSE => since,
                        _ => Instant::now(),
                    };
                    away = Some(since);
                    if since.elapsed() > ABSENCE {
                        return Err(failed("wait for the command")(error));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(failed("wait for the command")(error)),
            }
        }
    }

    /// Whether the kernel has killed something of it because memory ran out. While the task is there.
    pub fn ran_out_of_memory(&self, plan: &Plan) -> bool {
        let parent = plan.cgroup_parent.trim_matches('/');
        let parent = if parent.is_empty() { "berth" } else { parent };
        let root = Path::new("/sys/fs/cgroup");
        let counted = |path: PathBuf| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
            count.and_then(|count| count.trim().parse::<u64>().ok()).is_some_and(|count| count > 0)
        };
        counted(root.join(parent).join(&self.id).join("memory.events"))
            || counted(root.join("memory").join(parent).join(&self.id).join("memory.oom_control"))
    }

    /// Nothing runs in its network any more: begins to take that away.
    pub fn leave_network(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            let (app, id) = (self.app.clone(), self.id.clone());
            self.detaching = Some(tokio::spawn(async move { start::detach_network(&app, &id, endpoint).await }));
        }
    }

    /// The task goes, and nothing of the root is mounted any more; all of the output was told. Of a command that still runs, it is
    /// killed.
    pub async fn end_task(&mut self) -> Result<(), StepError> {
        let mut left = false;
        if self.task {
            let request = DeleteTaskRequest { container_id: self.id.clone() };
            let deleted = self.app.supervisor.tasks().delete(request).await.map_err(SupervisorError::from);
            left = match deleted {
                Ok(_) => false,
                Err(error) if error.is_not_found() => false,
                Err(_) => !start::delete_task(&self.app, &self.id).await,
            };
            self.task = left;
        }
        if let Some(output) = self.output.take() {
            output.finish().await;
        }
        if left {
            Err(StepError::Failed {
                what: "end the container of a run".into(),
                cause: "its task is left behind".into(),
            })
        } else {
            Ok(())
        }
    }

    /// Takes away what is left: after this there is nothing of it.
    pub async fn end(mut self) {
        // An attachment that goes on can't be stopped, only undone.
        let _ = self.join_network().await;
        if let Err(error) = self.end_task().await {
            debug!(id = ids::short(&self.id), error = %chain(&error), "left to the next start");
        }
        self.leave_network();
        let detaching = self.detaching.take();
        let detach = async {
            if let Some(detaching) = detaching {
                let _ = detaching.await;
            }
        };
        let forget = async {
            if self.registered && !self.task {
                forget(&self.app, &self.id).await;
            }
        };
        tokio::join!(detach, forget);
        // Not with all that is below: should something still be mounted there, it isn't ours to empty.
        if let Err(error) = remove_plain(&self.folder) {
            warn!(folder = %self.folder.display(), %error, "folder of a run left behind");
        }
    }
}

/// Removes the supervisor's record.
pub async fn forget(app: &App, id: &str) {
    let request = DeleteContainerRequest { id: id.to_owned() };
    let call = |client: Client, request| async move { client.containers().delete(request).await };
    match app.supervisor.retry(request, call).await {
        Err(error) if !error.is_not_found() => {
            warn!(id = ids::short(id), error = %chain(&error), "container of a run left behind");
        }
        _ => {}
    }
}

/// A command that can't be started, in the words of the runtime.
fn refused(plan: &Plan, error: SupervisorError) -> StepError {
    StepError::Failed { what: format!("run \"{}\"", plan.command()), cause: error.into() }
}

/// Removes what runs of engines before this one have left: containers, mounts, folders.
pub async fn sweep(app: &Arc<App>) {
    use proto::containerd::services::containers::v1::ListContainersRequest;
    let request = ListContainersRequest { filters: vec![format!("labels.\"{LABEL}\"")] };
    let call = |client: Client, request| async move { client.containers().list(request).await };
    match app.supervisor.retry(request, call).await {
        Ok(answer) => {
            for found in answer.containers.iter().filter(|found| found.labels.contains_key(LABEL)) {
                tracing::info!(id = ids::short(&found.id), "container of an interrupted build swept up");
                start::delete_task(app, &found.id).await;
                forget(app, &found.id).await;
            }
        }
        Err(error) => warn!(error = %chain(&error), "list containers of builds"),
    }
    for entry in std::fs::read_dir(folders(app)).into_iter().flatten().flatten() {
        for place in std::fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            super::sources::unmount(&place.path());
        }
        // What is still mounted, if anything is, holds its folder and loses no file.
        let _ = remove_plain(&entry.path());
    }
}

/// Removes a folder of plain files, sockets and folders of these; stops at what is mounted.
fn remove_plain(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with("agent-") {
                let _ = std::fs::remove_file(path.join("agent.sock"));
            }
            let _ = std::fs::remove_dir(&path);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
    std::fs::remove_dir(folder)
}

/// Where its network namespace is found.
pub fn netns(app: &App, plan: &Plan, id: &str) -> Option<PathBuf> {
    spec::netns(app, plan.network, id)
}
