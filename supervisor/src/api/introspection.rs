//! What this supervisor is made of, in containerd's words: clients look here for snapshotters and features.

use std::{os::unix::fs::MetadataExt, path::Path, sync::Arc};

use proto::containerd::{
    services::introspection::v1::{Plugin, PluginsRequest, PluginsResponse, ServerResponse, introspection_server},
    types::Platform,
};
use proto::google::rpc::Status as InitError;
use tonic::{Request, Response, Status};

use super::filters;
use crate::{snapshots::State, store::Stores};

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
}

impl IntrospectionService {
    /// Reads the identity kept in `data`, or makes one.
    pub(crate) fn open(data: &Path, stores: Arc<Stores>) -> Result<Self, IdentityError> {
        let at = data.join("uuid");
        let failed = |cause| IdentityError::Read { at: at.clone(), cause };
        match std::fs::read_to_string(&at) {
            // An empty file is what a crash between creating and writing would leave behind.
            Ok(text) if !text.trim().is_empty() => return Ok(Self { uuid: text.trim().to_owned(), stores }),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?.trim().to_owned();
        std::fs::write(&at, &uuid).map_err(|cause| IdentityError::Write { at: at.clone(), cause })?;
        Ok(Self { uuid, stores })
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

#[tonic::async_trait]
impl introspection_server::Introspection for IntrospectionService {
    async fn plugins(&self, request: Request<PluginsRequest>) -> Result<Response<PluginsResponse>, Status> {
        let filters = filters(&request.into_inner().filters)?;
        let mut plugins = plugins(self.stores.snapshots.states());
        plugins.retain(|plugin| {
            filters.accept(|path| match path {
                ["type"] => Some(plugin.r#type.clone()),
                ["id"] => Some(plugin.id.clone()),
                _ => None,
            })
        });
        Ok(Response::new(PluginsResponse { plugins }))
    }

    async fn server(&self, _: Request<()>) -> Result<Response<ServerResponse>, Status> {
        let namespace = std::fs::metadata("/proc/self/ns/pid")
            .map_err(|error| Status::internal(format!("read /proc/self/ns/pid: {error}")))?;
        let pid = u64::from(std::process::id());
        Ok(Response::new(ServerResponse { uuid: self.uuid.clone(), pid, pidns: namespace.ino() }))
    }
}
