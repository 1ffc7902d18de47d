//! `POST /containers/create`: everything is checked, then the root file system, the volumes and the record come to be;
//! what fails undoes what was made.

use super::{
    Container, Containers, files,
    layers::Layers,
    links, merge, mounts, names, namespaces, networking,
    record::{MountKind, MountPoint, Record, State},
    resources, rootfs, security, shims, sources, spec,
    validate::{self, not_yet},
    volumes_from,
};
use crate::{
    api::{Config, CreateRequest, HostConfig},
    app::App,
    http::{ApiError, ApiResult},
    ids,
    images::{ResolvedImage, platform::Platform, unpack},
    supervisor::Client,
    time::Timestamp,
    volumes::{NewVolume, copy_tree},
};
use proto::{
    containerd::{
        services::snapshots::v1::{MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest},
        types::Mount,
    },
    kind::{ErrorKind, chain},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{DirBuilder, File},
    io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};
use tracing::{debug, warn};

/// Label of everything in the supervisor that belongs to a container of the engine.
pub const LABEL: &str = "berth/engine.container";

/// A container that was made.
#[derive(Debug)]
pub struct Created {
    /// Its id.
    pub id: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Makes a container.
pub async fn create(
    app: &Arc<App>,
    name: Option<&str>,
    platform: Option<&str>,
    request: CreateRequest,
) -> ApiResult<Created> {
    let begun = std::time::Instant::now();
    validate::check(&request)?;
    let networks = networking::joinings(app, &request)?;
    let CreateRequest { mut config, mut host_config, .. } = request;
    if config.image.is_empty() {
        return Err(ApiError::invalid("no image specified"));
    }
    let image = app.images.resolve(&config.image).await?;
    check_platform(platform, &image)?;
    let mut warnings = Vec::new();
    if host_config.network_mode == "host" && !host_config.port_bindings.is_empty() {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    let defaults = image_defaults(&image)?;
    merge::merge(&mut config, &defaults);
    crate::access::settle_owner(&mut config, &host_config);
    let (path, args) = merge::command_line(&config)?;
    if config.open_stdin && config.attach_stdin && !config.tty {
        // The client that attaches is the one whose end of input counts.
        debug!("stdin is attached");
    }
    app.config.containers.apply(&mut host_config)?;
    fill_host_defaults(&mut host_config, app.unified_cgroups);
    if !shims::is_known(&host_config.runtime, &app.live()) {
        return Err(ApiError::invalid(format!("unknown or invalid runtime name: {}", host_config.runtime)));
    }
    warnings.extend(resources::adapt(&mut host_config, &::spec::kernel::Kernel::probe(app.unified_cgroups))?);
    namespaces::settle(app, &mut host_config)?;
    let inherited = volumes_from::inherit(app, host_config.volumes_from.as_deref().unwrap_or_default())?;
    links::settle(app, &host_config.network_mode, &mut host_config.links)?;
    let id = ids::random_id().map_err(|e| ApiError::unexpected(&e))?;
    if config.hostname.is_empty() {
        config.hostname = match (host_config.network_mode.as_str(), host_config.uts_mode.as_str()) {
            ("host", _) | (_, "host") => host_name(),
            // As of the container whose network it shares.
            (mode, _) if mode.starts_with("container:") => networking::shared_hostname(app, &mut host_config)?,
            _ => ids::short(&id).to_owned(),
        };
    }
    check_hostname(&config)?;
    let mut wanted = mounts::wanted(&host_config, &config.volumes)?;
    // What others have goes before what the image has, and behind what is asked for.
    wanted.retain(|mount| !mount.from_image || inherited.iter().all(|have| have.destination != mount.destination));
    let name = reserve_name(&app.containers, name, &id)?;
    let mut undo =
        Undo { app: app.clone(), id: id.clone(), name: name.clone(), snapshot: false, views: Vec::new(), armed: true };

    proto::fault!("engine.create.name_reserved");
    let (mut resolved, fresh) = resolve_mounts(app, &id, wanted).await?;
    for mount in inherited {
        if resolved.iter().all(|have| have.destination != mount.destination) {
            if let Some(volume) = &mount.volume {
                app.volumes.hold(volume, &id);
                app.volumes.get(volume)?;
            }
            resolved.push(mount);
        }
    }
    resolved.sort_by_key(|mount| mount.destination.matches('/').count());
    proto::fault!("engine.create.volumes_made");
    let mut record = Record {
        id: id.clone(),
        name,
        created: Timestamp::now(),
        image_id: image.id.to_string(),
        image_digest: image.target.digest.clone(),
        chain_id: image.content.chain_id().map(|chain| chain.to_string()).unwrap_or_default(),
        snapshotter: app.supervisor.snapshotter().to_owned(),
        config,
        host: host_config,
        // Where engines before this one look.
        mac: networks.first().and_then(|first| first.mac.clone()),
        ip: networks.first().and_then(|first| first.ip.clone()),
        networks,
        path,
        args,
        mounts: resolved,
        registered: false,
        update_pending: false,
        state: State::created(),
    };
    undo.snapshot = true;
    if record.mounts.iter().any(|mount| mount.kind == MountKind::Image) {
        let made = sources::make_views(app, &mut record).await;
        undo.views.clone_from(&record.mounts);
        made?;
    }
    let folder = app.containers.folder_of(&id);
    let keep = async || app.containers.store.put(&record).await.map_err(|e| ApiError::unexpected(&e));
    let (snapshot, kept) = tokio::join!(prepare_snapshot(app, &record, &image), async {
        DirBuilder::new().recursive(true).mode(0o710).create(&folder).map_err(|e| ApiError::unexpected(&e))?;
        proto::fault!("engine.create.folder_made");
        // An engine that dies before the snapshot is there is followed by one that misses it. Half-filled volumes nobody
        // would miss: with them the record comes last.
        if fresh.is_empty() { keep().await } else { Ok(()) }
    });
    proto::fault!("engine.create.recorded");
    let snapshot = snapshot?;
    kept?;
    rootfs::mark(&snapshot).map_err(|e| ApiError::internal(format!("create container {}: {e}", record.name)))?;
    if !fresh.is_empty() {
        fill(app, &id, &snapshot, fresh).await?;
        proto::fault!("engine.create.volumes_filled");
        keep().await?;
    }
    app.volumes.finished(&id);
    let container = Arc::new(Container::new(record));
    container.live().snapshot = Some(snapshot);
    app.containers.insert(container.clone());
    proto::fault!("engine.create.known");
    undo.armed = false;
    app.events.publish("container", "create", &id, container.attributes());
    debug!(id = ids::short(&id), took = ?begun.elapsed(), "container created");
    Ok(Created { id, warnings })
}

/// Given back on drop, unless disarmed.
struct Undo {
    app: Arc<App>,
    id: String,
    name: String,
    snapshot: bool,
    views: Vec<MountPoint>,
    armed: bool,
}

impl Drop for Undo {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        self.app.containers.release_name(&self.name, &self.id);
        self.app.volumes.release(&self.id);
        self.app.containers.store.remove_soon(&self.id);
        let _ = std::fs::remove_dir_all(self.app.containers.folder_of(&self.id));
        let (app, id) = (self.app.clone(), self.id.clone());
        tokio::task::spawn_blocking(move || app.volumes.abandon(&id));
        if self.snapshot {
            let (app, id) = (self.app.clone(), self.id.clone());
            let views = std::mem::take(&mut self.views);
            tokio::spawn(async move {
                if let Err(error) = sources::remove_views(&app.supervisor, app.supervisor.snapshotter(), &views).await {
                    warn!(error = %chain(&error), "view of an image left behind");
                }
                let request = RemoveSnapshotRequest { snapshotter: app.supervisor.snapshotter().into(), key: id };
                match app
                    .supervisor
                    .retry(request.clone(), |client, request| async move { client.snapshots().remove(request).await })
                    .await
                {
                    Err(error) if !error.is_not_found() => warn!(error = %chain(&error), "snapshot left behind"),
                    _ => {}
                }
            });
        }
    }
}

/// What the image says about its containers, in the words of the API.
fn image_defaults(image: &ResolvedImage) -> ApiResult<Config> {
    let value = serde_json::to_value(&image.content.config.config).map_err(|e| ApiError::unexpected(&e))?;
    serde_json::from_value(value).map_err(|e| ApiError::internal(format!("config of image {}: {e}", image.id)))
}

fn check_platform(wanted: Option<&str>, image: &ResolvedImage) -> ApiResult<()> {
    let Some(text) = wanted.filter(|text| !text.is_empty()) else { return Ok(()) };
    let wanted = Platform::parse(text).map_err(|e| ApiError::invalid(e.to_string()))?;
    let has = image.content.platform();
    let variant = wanted.variant.is_empty() || has.variant.is_empty() || wanted.variant == has.variant;
    if wanted.os == has.os && wanted.architecture == has.architecture && variant {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "image with reference {} was found but does not match the specified platform: wanted {text}, actual: {has}",
        image.name.as_ref().map_or_else(|| image.id.to_string(), |n| n.familiar()),
    )))
}

/// What inspect shows for fields nobody set, as Docker fills them in at create.
fn fill_host_defaults(host: &mut HostConfig, unified_cgroups: bool) {
    if host.network_mode.is_empty() || host.network_mode == "default" {
        host.network_mode = "bridge".into();
    }
    if host.shm_size == 0 {
        host.shm_size = 64 << 20;
    }
    if host.ipc_mode.is_empty() {
        host.ipc_mode = "private".into();
    }
    if host.restart_policy.name.is_empty() {
        host.restart_policy.name = "no".into();
    }
    if host.log_config.kind.is_empty() {
        host.log_config.kind = "json-file".into();
    }
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if host.pids_limit.is_some_and(|n| n <= 0) {
        host.pids_limit = None;
    }
    // A kernel with cgroup2 has no such switch.
    host.oom_kill_disable = host.oom_kill_disable.or(Some(false)).filter(|on| *on || !unified_cgroups);
    if host.cgroupns_mode.is_empty() {
        host.cgroupns_mode = if unified_cgroups && !host.privileged { "private" } else { "host" }.into();
    }
    let open = host.privileged || security::parse(host).is_ok_and(|security| security.system_paths_unconfined);
    if !open {
        host.masked_paths.get_or_insert_with(spec::default_masked);
        host.readonly_paths.get_or_insert_with(spec::default_read_only);
    }
    if host.memory_swappiness == Some(-1) {
        host.memory_swappiness = None;
    }
}

fn check_hostname(config: &Config) -> ApiResult<()> {
    files::check(&files::Facts {
        hostname: &config.hostname,
        domainname: &config.domainname,
        addresses: &[],
        gateway: None,
        extra_hosts: &[],
        dns: &[],
        dns_search: &[],
        dns_options: &[],
        host_network: false,
        names: false,
    })
}

fn host_name() -> String {
    nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_else(|| "localhost".into())
}

fn reserve_name(containers: &Containers, name: Option<&str>, id: &str) -> ApiResult<String> {
    if let Some(name) = name {
        let name = names::check(name)?;
        containers.reserve_name(&name, id)?;
        return Ok(name);
    }
    for attempt in 0..64 {
        let name = names::generate(attempt).map_err(|e| ApiError::unexpected(&e))?;
        if containers.reserve_name(&name, id).is_ok() {
            return Ok(name);
        }
    }
    // The id is unique for sure.
    containers.reserve_name(id, id)?;
    Ok(id.to_owned())
}

/// A volume to be filled from the image.
#[derive(Debug)]
struct Fresh {
    volume: String,
    /// Where it will be mounted.
    destination: String,
    local: bool,
}

/// Gives every mount its source: volumes are made, missing host folders of `-v` too.
async fn resolve_mounts(app: &App, id: &str, wanted: Vec<mounts::Wanted>) -> ApiResult<(Vec<MountPoint>, Vec<Fresh>)> {
    let mut resolved = Vec::with_capacity(wanted.len());
    let mut fresh = Vec::new();
    for mount in wanted {
        let mut point = MountPoint {
            kind: mount.kind,
            volume: None,
            source: mount.source.clone(),
            destination: mount.destination.clone(),
            mode: mount.mode,
            writable: mount.writable,
            propagation: mount.propagation,
            non_recursive: mount.non_recursive,
            options: mount.options,
            read_only_tree: mount.read_only_tree,
            subpath: mount.subpath,
            ..MountPoint::default()
        };
        match mount.kind {
            MountKind::Tmpfs | MountKind::Image => {}
            MountKind::Bind => {
                point.propagation = if point.propagation.is_empty() { "rprivate".into() } else { point.propagation };
                bind_source(&mount.source, mount.create_source)?;
            }
            MountKind::Volume => {
                point.anonymous = mount.source.is_empty();
                let name = if point.anonymous {
                    ids::random_id().map_err(|e| ApiError::unexpected(&e))?
                } else {
                    mount.source
                };
                let new = NewVolume {
                    labels: mount.labels,
                    anonymous: point.anonymous,
                    options: mount.driver_options,
                    maker: Some(id.to_owned()),
                };
                let (volume, made) = app.volumes.make(&name, &mount.driver, new).await?;
                // As Docker shows those that somebody asked for.
                if point.mode.is_empty() && !mount.from_image {
                    point.mode = "z".into();
                }
                if made {
                    let driver = BTreeMap::from([("driver".into(), volume.driver.clone())]);
                    app.events.publish("volume", "create", &name, driver);
                }
                app.volumes.hold(&name, id);
                let local = volume.is_local();
                point.source = if local { app.volumes.path(&name).display().to_string() } else { String::new() };
                // What has to be mounted is looked into where it is mounted, when it is to be filled.
                let may_be_empty = || {
                    !local
                        || !volume.options.is_empty()
                        || is_empty(Path::new(&point.source))
                        || app.volumes.is_unfinished(&name)
                };
                if mount.copy_up && point.subpath.is_empty() && may_be_empty() {
                    fresh.push(Fresh { volume: name.clone(), destination: mount.destination, local });
                }
                point.driver = if local { String::new() } else { volume.driver.clone() };
                point.volume = Some(name);
            }
        }
        resolved.push(point);
    }
    Ok((resolved, fresh))
}

fn bind_source(source: &str, create: bool) -> ApiResult<()> {
    match std::fs::symlink_metadata(source) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && create => std::fs::create_dir_all(source)
            .map_err(|cause| ApiError::internal(format!("error while creating mount source path '{source}': {cause}"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(ApiError::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {source}"
        ))),
        Err(error) => Err(ApiError::internal(format!("bind source path {source}: {error}"))),
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

async fn prepare_snapshot(app: &App, record: &Record, image: &ResolvedImage) -> ApiResult<Vec<Mount>> {
    let labels = HashMap::from([
        // Nothing of the supervisor's refers to the snapshot before the first start.
        ("containerd.io/gc.root".to_owned(), record.created.to_string()),
        (LABEL.to_owned(), record.id.clone()),
    ]);
    let request = PrepareSnapshotRequest {
        snapshotter: record.snapshotter.clone(),
        key: record.id.clone(),
        parent: record.chain_id.clone(),
        labels,
    };
    let prepare = async || {
        let call = |client: Client, request| async move { client.snapshots().prepare(request).await };
        app.supervisor.retry(request.clone(), call).await
    };
    let answer = match prepare().await {
        // Fetched by somebody who didn't unpack it.
        Err(error) if error.is_not_found() && !record.chain_id.is_empty() => {
            unpack::missing_layers(&app.supervisor, &record.config.image, &image.content).await?;
            prepare().await
        }
        answer => answer,
    };
    let mounts = match answer {
        Ok(answer) => Ok(answer.mounts),
        // Ids are never used twice: a supervisor that died made it for us before it could say so.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let request = MountsRequest { snapshotter: record.snapshotter.clone(), key: record.id.clone() };
            let call = |client: Client, request| async move { client.snapshots().mounts(request).await };
            app.supervisor.retry(request, call).await.map(|answer| answer.mounts)
        }
        Err(error) => Err(error),
    };
    match mounts {
        Ok(mounts) => Ok(mounts),
        Err(error) => {
            let text = format!("prepare root file system of image {}: {}", record.config.image, chain(&error));
            Err(ApiError::new(crate::http::error::status_of(error.kind()), text))
        }
    }
}

/// Copies what the image has at the mount points of new volumes.
async fn fill(app: &Arc<App>, id: &str, snapshot: &[Mount], fresh: Vec<Fresh>) -> ApiResult<()> {
    let user = format!("filling-{id}");
    let work = async {
        let mut places = Vec::with_capacity(fresh.len());
        for volume in fresh {
            let at = if volume.local { None } else { app.volumes.mount_driven(&volume.volume, &user).await? };
            places.push((volume, at));
        }
        let (app, user, id, snapshot) = (app.clone(), user.clone(), id.to_owned(), snapshot.to_vec());
        let copied = tokio::task::spawn_blocking(move || fill_volumes(&app, &user, &id, &snapshot, &places)).await;
        copied.map_err(|e| ApiError::unexpected(&e))?
    };
    let filled = work.await;
    if app.volumes.has_driven(&user) {
        app.volumes.unmount_driven(&user).await;
    }
    filled
}

fn fill_volumes(
    app: &App,
    user: &str,
    id: &str,
    snapshot: &[Mount],
    fresh: &[(Fresh, Option<PathBuf>)],
) -> ApiResult<()> {
    let layers = Layers::open(snapshot).map_err(|e| ApiError::unexpected(&e))?;
    for (Fresh { volume, destination, .. }, at) in fresh {
        let Some(from) = layers.folder(destination).map_err(|e| ApiError::unexpected(&e))? else { continue };
        let at = at.clone().unwrap_or_else(|| app.volumes.path(volume));
        app.volumes.mount(volume, user)?;
        let filled = fill_volume(app, volume, &at, id, &from);
        app.volumes.unmount(volume, user)?;
        filled.map_err(|cause| {
            ApiError::internal(format!("copy {destination} of the image into volume {volume}: {cause}"))
        })?;
    }
    Ok(())
}

fn fill_volume(app: &App, name: &str, at: &Path, id: &str, from: &OwnedFd) -> io::Result<()> {
    // Whoever wants to fill it too waits, and then finds it filled.
    let turn = app.volumes.filling(name);
    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
    if !app.volumes.begin_filling(name, at, id)? {
        return Ok(());
    }
    proto::fault!("engine.volume_fill.begun");
    copy_tree(from, &File::open(at)?.into())?;
    proto::fault!("engine.volume_fill.copied");
    Ok(())
}

/// Refuses options of the query that are not built.
pub fn check_query(query: &crate::http::Query) -> ApiResult<()> {
    match query.get("checkpoint") {
        Some(_) => Err(not_yet("checkpoint")),
        None => Ok(()),
    }
}
