//! What the supervisor is told of a container before its task: the record with the complete specification.

use super::{
    Container, cdi, init,
    layers::Layers,
    links,
    namespaces::{self, Joined},
    propagation,
    record::Record,
    rootfs, security, shims,
    sources::{self, Sources},
    spec::{self, Surroundings},
    validate::words,
};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
    networks::NetworkKind,
};
use ::spec::users::{self, Database, Memberships, User};
use proto::{
    containerd::{
        runc::v1::Options,
        services::containers::v1::{
            Container as SupervisorContainer, CreateContainerRequest, UpdateContainerRequest, container::Runtime,
        },
        types::Mount,
    },
    kind::{ErrorKind, chain},
    typeurl,
};
use std::{collections::HashMap, path::PathBuf, sync::Arc};

/// What the start of a container goes on with.
#[derive(Debug)]
pub struct Registered {
    /// Mounts of the root file system.
    pub rootfs: Vec<Mount>,
    /// Namespaces of other containers.
    pub joined: Joined,
    /// Open until the task is created.
    pub sources: Sources,
    /// AppArmor's profile of its processes.
    pub apparmor: Option<String>,
}

/// Tells the supervisor what is to run.
pub async fn register(
    app: &Arc<App>,
    container: &Container,
    record: &Record,
    kind: NetworkKind,
) -> ApiResult<Registered> {
    let snapshot = rootfs::mounts(app, container, record).await.map_err(|e| {
        ApiError::internal(format!("start container {}: find its root file system: {}", record.name, chain(&e)))
    })?;
    let user = find_user(app, record, &snapshot).await?;
    let netns = netns_path(app, &record.id);
    let folder = app.containers.folder_of(&record.id);
    let security = security::parse(&record.host)?;
    let apparmor =
        app.apparmor.settle(security.apparmor.as_deref(), record.host.privileged).await.map_err(|error| {
            let mut error = ApiError::from(error);
            error.message = format!("start container {}: {}", record.name, error.message);
            error
        })?;
    let joined = namespaces::join(app, record)?;
    let init = init::program(app, record)?;
    let environment = links::environment(app, record)?;
    let devices = cdi::edits(
        &::spec::cdi::folders(&app.config.cdi_spec_dirs),
        record.host.device_requests.as_deref().unwrap_or_default(),
    )?;
    propagation::check(record)?;
    let sources = sources::open(app, record).await?;
    let around = Surroundings {
        user: &user,
        hostname: &record.config.hostname,
        folder: &folder,
        network: kind,
        netns: (kind != NetworkKind::Host).then_some(netns.as_path()),
        unified_cgroups: app.unified_cgroups,
        security: &security,
        apparmor: apparmor.as_deref(),
        init: init.as_deref(),
        joined: &joined,
        sources: &sources.paths,
        links: &environment,
        devices: &devices,
    };
    let spec = spec::build(record, &around)?;
    let choice = choice(app, record).await?;
    let options = Options { binary_name: choice.runtime.clone(), ..Options::default() };
    let spec = serde_json::to_vec(&spec).map_err(|e| ApiError::unexpected(&e))?;
    let entry = SupervisorContainer {
        id: record.id.clone(),
        labels: HashMap::from([(super::create::LABEL.to_owned(), record.id.clone())]),
        image: record.config.image.clone(),
        runtime: Some(Runtime { name: choice.shim.clone(), options: Some(typeurl::pack(&options)) }),
        spec: Some(typeurl::pack_json(typeurl::SPEC, spec)),
        snapshotter: record.snapshotter.clone(),
        snapshot_key: record.id.clone(),
        ..SupervisorContainer::default()
    };
    let create = CreateContainerRequest { container: Some(entry.clone()) };
    let update = UpdateContainerRequest { container: Some(entry), update_mask: None };
    let told = if record.registered {
        app.supervisor
            .retry(update.clone(), |client, request| async move { client.containers().update(request).await })
            .await
            .map(drop)
    } else {
        let created = app
            .supervisor
            .retry(create.clone(), |client, request| async move { client.containers().create(request).await })
            .await;
        match created {
            // An engine before us got this far and no further.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => app
                .supervisor
                .retry(update.clone(), |client, request| async move { client.containers().update(request).await })
                .await
                .map(drop),
            created => created.map(drop),
        }
    };
    told.map_err(|e| ApiError::internal(format!("start container {}: register: {}", record.name, chain(&e))))?;
    Ok(Registered { rootfs: snapshot, joined, sources, apparmor })
}

/// The shim and the runtime of a container.
pub async fn choice(app: &App, record: &Record) -> ApiResult<shims::Choice> {
    let attaches = app.supervisor.attaches().await.map_err(|e| ApiError::of(e.kind(), &e))?;
    let (live, run) = (app.live(), app.config.engine_run());
    let failed = |cause| ApiError::internal(format!("runtime of container {}: {cause}", record.name));
    let asked = shims::by_name(&record.host.runtime, &live, &run).map_err(failed)?;
    let configured = shims::by_name(&live.runtime, &live, &run).map_err(failed)?;
    Ok(shims::choose(&asked, &configured, attaches))
}

/// Who the process runs as. The files of an image are read once; those of a container that ran before may have changed.
async fn find_user(app: &Arc<App>, record: &Record, snapshot: &[Mount]) -> ApiResult<User> {
    let fresh = !record.state.started_at.is_set();
    let cached = if fresh { super::lock(&app.containers.users).get(&record.chain_id).cloned() } else { None };
    let database = match cached {
        Some(database) => database,
        None => {
            let mounts = snapshot.to_vec();
            let read = tokio::task::spawn_blocking(move || Layers::open(&mounts)?.users()).await;
            let database: Arc<Database> =
                Arc::new(read.map_err(|e| ApiError::unexpected(&e))?.map_err(|e| ApiError::unexpected(&e))?);
            // Small files of few images; a large one is not worth keeping.
            if fresh && database.passwd.len() + database.group.len() < 64 << 10 {
                let mut cache = super::lock(&app.containers.users);
                if cache.len() >= 64 {
                    cache.clear();
                }
                cache.insert(record.chain_id.clone(), database.clone());
            }
            database
        }
    };
    let extra = words(&record.host.group_add);
    Ok(users::find(&database, &record.config.user, Memberships::WithoutGroup, extra)?)
}

/// Path where the namespace of a container is pinned; the network makes it, the specification names it.
pub fn netns_path(app: &App, id: &str) -> PathBuf {
    app.config.engine_run().join("netns").join(id)
}
