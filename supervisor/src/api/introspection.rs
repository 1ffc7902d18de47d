//! What this supervisor is made of, in containerd's words: clients look here for snapshotters and features.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc};

use proto::{
    containerd::{
        services::introspection::v1::{
            Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest, PluginsResponse, ServerResponse,
            introspection_server,
        },
        types::{Platform, RuntimeRequest},
    },
    google::rpc::Status as InitError,
    typeurl,
};
use tonic::{Request, Response, Status};

use super::filters;
use crate::{failure::status, snapshots::State, store::Stores, tasks::Tasks};

/// Type and id of what we have, as containerd names them.
const PLUGINS: &[(&str, &str)] = &[
    ("io.containerd.content.v1", "content"),
    ("io.containerd.metadata.v1", "redb"),
    ("io.containerd.gc.v1", "scheduler"),
    ("io.containerd.differ.v1", "walking"),
    ("io.containerd.event.v1", "exchange"),
    ("io.containerd.runtime.v2", "task"),
    ("io.containerd.streaming.v1", "manager"),
    ("io.containerd.transfer.v1", "local"),
    ("io.containerd.grpc.v1", "containers"),
    ("io.containerd.grpc.v1", "content"),
    ("io.containerd.grpc.v1", "diff"),
    ("io.containerd.grpc.v1", "events"),
    ("io.containerd.grpc.v1", "healthcheck"),
    ("io.containerd.grpc.v1", "images"),
    ("io.containerd.grpc.v1", "introspection"),
    ("io.containerd.grpc.v1", "leases"),
    ("io.containerd.grpc.v1", "namespaces"),
    ("io.containerd.grpc.v1", "snapshots"),
    ("io.containerd.grpc.v1", "streaming"),
    ("io.containerd.grpc.v1", "tasks"),
    ("io.containerd.grpc.v1", "transfer"),
    ("io.containerd.grpc.v1", "version"),
];

/// Kinds of plugin whose work depends on the platform.
const WITH_PLATFORM: &[&str] = &[
    "io.containerd.snapshotter.v1",
    "io.containerd.differ.v1",
    "io.containerd.runtime.v2",
    "io.containerd.transfer.v1",
];

/// Why the identity of this installation can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// Reading what an earlier start wrote, or making a new one.
    #[error("read identity {at}")]
    Read {
        /// The file.
        at: std::path::PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// Writing the new one.
    #[error("write identity {at}")]
    Write {
        /// The file.
        at: std::path::PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
}

/// `containerd.services.introspection.v1.Introspection`.
pub(crate) struct IntrospectionService {
    uuid: String,
    stores: Arc<Stores>,
    tasks: Option<Arc<Tasks>>,
}

impl IntrospectionService {
    /// Reads the identity kept in `data`, or makes one.
    pub(crate) fn open(data: &Path, stores: Arc<Stores>) -> Result<Self, IdentityError> {
        let at = data.join("uuid");
        let failed = |cause| IdentityError::Read { at: at.clone(), cause };
        match std::fs::read_to_string(&at) {
            // An empty file is what a crash between creating and writing would leave behind.
            Ok(text) if !text.trim().is_empty() => {
                return Ok(Self { uuid: text.trim().to_owned(), stores, tasks: None });
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?.trim().to_owned();
        std::fs::write(&at, &uuid).map_err(|cause| IdentityError::Write { at: at.clone(), cause })?;
        Ok(Self { uuid, stores, tasks: None })
    }

    /// The service, once there is somebody to ask about tasks and runtimes.
    pub(crate) fn about(self, tasks: Arc<Tasks>) -> Self {
        Self { tasks: Some(tasks), ..self }
    }

    fn plugins(&self) -> Vec<Plugin> {
        let mut plugins = plugins(self.stores.snapshots.states());
        let stuck = self.tasks.iter().flat_map(|tasks| tasks.stuck());
        if let Some(runtimes) = plugins.iter_mut().find(|plugin| is_runtimes(&plugin.r#type, &plugin.id)) {
            runtimes.exports.extend(stuck.map(|stuck| {
                let what = format!("its shim has not answered {} for {} s", stuck.call, stuck.since.as_secs());
                (format!("stuck {}/{}", stuck.namespace, stuck.id), what)
            }));
        }
        plugins
    }
}

fn platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Platform { os: "linux".into(), architecture: architecture.into(), variant: String::new() }
}

/// A snapshotter, loaded or skipped; `ctr plugins ls` knows the latter by the last words.
fn snapshotter(state: &State) -> Plugin {
    let skipped = |reason: &String| InitError {
        code: tonic::Code::Unimplemented.into(),
        message: format!("{reason}: skip plugin"),
        details: Vec::new(),
    };
    Plugin {
        r#type: "io.containerd.snapshotter.v1".into(),
        id: state.name.into(),
        platforms: vec![platform()],
        // What a client that names none gets.
        exports: state.default.then(|| ("default".to_owned(), "true".to_owned())).into_iter().collect(),
        init_err: state.skipped.as_ref().map(skipped),
        ..Default::default()
    }
}

fn plugins(snapshotters: &[State]) -> Vec<Plugin> {
    let plugin = |&(kind, id): &(&str, &str)| Plugin {
        r#type: kind.into(),
        id: id.into(),
        platforms: if WITH_PLATFORM.contains(&kind) { vec![platform()] } else { Vec::new() },
        ..Default::default()
    };
    PLUGINS.iter().map(plugin).chain(snapshotters.iter().map(snapshotter)).collect()
}

fn is_runtimes(kind: &str, id: &str) -> bool {
    (kind, id) == ("io.containerd.runtime.v2", "task")
}

fn list(parts: impl Iterator<Item = String>) -> Option<String> {
    let text = parts.collect::<Vec<_>>().join(",");
    (!text.is_empty()).then_some(text)
}

#[tonic::async_trait]
impl introspection_server::Introspection for IntrospectionService {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        let filters = filters(&request.into_inner().filters)?;
        let mut plugins = self.plugins();
        plugins.retain(|plugin| {
            filters.accept(|path| match path {
                ["type"] => Some(plugin.r#type.clone()),
                ["id"] => Some(plugin.id.clone()),
                ["platforms"] => list(plugin.platforms.iter().map(|p| format!("{}/{}", p.os, p.architecture))),
                ["capabilities"] => list(plugin.capabilities.iter().cloned()),
                _ => None,
            })
        });
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn plugin_info(&self, request: Request<PluginInfoRequest>) -> Result<Response<PluginInfoResponse>, Status> {
        let PluginInfoRequest { r#type, id, options } = request.into_inner();
        let plugin = self.plugins().into_iter().find(|plugin| plugin.r#type == r#type && plugin.id == id);
        let plugin = plugin.ok_or_else(|| Status::not_found(format!("plugin {type}.{id}: not found")))?;
        if !is_runtimes(&r#type, &id) {
            if options.is_some() {
                return Err(Status::unimplemented(format!("plugin {type}.{id} takes no options")));
            }
            return Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra: None }));
        }
        let request = match options {
            Some(any) => typeurl::unpack::<RuntimeRequest>(&any)
                .and_then(Result::ok)
                .ok_or_else(|| Status::invalid_argument(format!("{} is no RuntimeRequest", any.type_url)))?,
            None => RuntimeRequest::default(),
        };
        let runtime =
            if request.runtime_path.is_empty() { "io.containerd.berth.v1" } else { request.runtime_path.as_str() };
        let tasks = self.tasks.as_ref().ok_or_else(|| Status::unavailable("runtimes are not known yet"))?;
        let info = tasks.runtime_info(runtime, request.options).await.map_err(status)?;
        Ok(Response::new(PluginInfoResponse { plugin: Some(plugin), extra: Some(typeurl::pack(&info)) }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<ServerResponse>, Status> {
        let namespace = std::fs::metadata("/proc/self/ns/pid")
            .map_err(|error| Status::internal(format!("read /proc/self/ns/pid: {error}")))?;
        let pid = u64::from(std::process::id());
        Ok(Response::new(ServerResponse { uuid: self.uuid.clone(), pid, pidns: namespace.ino() }))
    }
}
