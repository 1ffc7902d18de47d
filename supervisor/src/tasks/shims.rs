//! Runs a shim's program: `start`, which leaves a shim behind and says where it listens, and `delete`, which cleans up
//! after one that is gone (containerd's shim contract).

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use prost::Message;
use proto::{
    containerd::{runtime::bootstrap::v1::BootstrapResult, task::v3::DeleteResponse},
    id::{ContainerId, NamespaceName},
    kind::ErrorKind,
};
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{bundle::Exit, connection::ConnectError};
use crate::failure::Failure;

/// How long a shim may take to come up. It is some milliseconds; a machine under load may need a second.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long the clean-up may take: the runtime kills, unmounts and waits for it.
const DELETE_LIMIT: Duration = Duration::from_secs(20);

/// Most of what a shim's program may print that we keep.
const OUTPUT_LIMIT: usize = 64 * 1024;

/// A shim didn't do its part.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// The program doesn't run.
    #[error("run shim {shim}")]
    Run {
        /// The program.
        shim: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It ended with an error.
    #[error("shim {shim} {action} failed ({status}): {words}")]
    Failed {
        /// The program.
        shim: PathBuf,
        /// start or delete.
        action: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        words: String,
    },
    /// It didn't end.
    #[error("shim {shim} {action} did not end within {} s", .limit.as_secs())]
    Slow {
        /// The program.
        shim: PathBuf,
        /// start or delete.
        action: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// What it printed says nothing.
    #[error("shim {shim} printed {output:?} where its address should be")]
    Output {
        /// The program.
        shim: PathBuf,
        /// What it printed, cut.
        output: String,
    },
    /// It speaks what we don't.
    #[error("shim {shim} speaks {protocol} (version {version}); versions 2 and 3 over ttrpc and 3 over grpc are known")]
    Protocol {
        /// The program.
        shim: PathBuf,
        /// Which protocol.
        protocol: String,
        /// Which version.
        version: i32,
    },
    /// Its socket doesn't answer.
    #[error("reach shim at {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: ConnectError,
    },
}

impl Failure for ShimError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Protocol { .. } => ErrorKind::Unimplemented,
            Self::Slow { .. } => ErrorKind::DeadlineExceeded,
            Self::Connect { .. } => ErrorKind::Unavailable,
            Self::Run { .. } | Self::Failed { .. } | Self::Output { .. } => ErrorKind::Internal,
        }
    }
}

/// Where a shim listens and how it speaks; printed by `start`, kept in the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bootstrap {
    /// Version of the task service.
    pub(crate) version: i32,
    /// Path of the socket.
    pub(crate) address: String,
    /// `grpc` or `ttrpc`.
    pub(crate) protocol: String,
}

impl Bootstrap {
    /// Whether it speaks ttrpc.
    pub(crate) fn is_ttrpc(&self) -> bool {
        self.protocol == "ttrpc"
    }
}

/// Where shims that speak ttrpc send their events: beside the socket, as containerd has it.
pub(crate) fn ttrpc_socket(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".ttrpc");
    path.into()
}

/// A shim's program and what it is told about us.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The shim.
    pub(crate) shim: PathBuf,
    /// Our socket, where it sends its events.
    pub(crate) socket: PathBuf,
    /// Whether it should be talkative.
    pub(crate) debug: bool,
}

impl Program {
    /// Leaves a shim running for `id`.
    pub(crate) async fn start(
        &self,
        namespace: &NamespaceName,
        id: &ContainerId,
        bundle: &Path,
    ) -> Result<Bootstrap, ShimError> {
        let output = self.run("start", START_LIMIT, self.command(namespace, id, bundle).arg("start")).await?;
        let bootstrap = parse_bootstrap(&output)
            .ok_or_else(|| ShimError::Output { shim: self.shim.clone(), output: excerpt(&output) })?;
        if !matches!((bootstrap.protocol.as_str(), bootstrap.version), ("grpc", 3) | ("ttrpc", 2 | 3)) {
            let Bootstrap { version, protocol, .. } = bootstrap;
            return Err(ShimError::Protocol { shim: self.shim.clone(), protocol, version });
        }
        Ok(bootstrap)
    }

    /// Cleans up what a shim left, and says how the container ended as far as can be known.
    pub(crate) async fn delete(
        &self,
        namespace: &NamespaceName,
        id: &ContainerId,
        bundle: &Path,
    ) -> Result<Option<Exit>, ShimError> {
        let mut command = self.command(namespace, id, bundle);
        let output = self.run("delete", DELETE_LIMIT, command.arg("-bundle").arg(bundle).arg("delete")).await?;
        let answer = DeleteResponse::decode(&*output).ok();
        Ok(answer.and_then(|a| Some(Exit { pid: a.pid, status: a.exit_status, at: a.exited_at? })))
    }

    // Flags with one dash, as containerd passes them: shims in Go take nothing else for granted.
    fn command(&self, namespace: &NamespaceName, id: &ContainerId, bundle: &Path) -> Command {
        let us = std::env::current_exe().unwrap_or_else(|_| "berth-supervisor".into());
        let mut command = Command::new(&self.shim);
        command.arg("-namespace").arg(namespace.as_str()).arg("-address").arg(&self.socket);
        command.arg("-publish-binary").arg(us).arg("-id").arg(id.as_str());
        if self.debug {
            command.arg("-debug");
        }
        command
            .env("GOMAXPROCS", "2")
            // The newest task service that we drive: Berth's shim then speaks gRPC; others take no notice.
            .env("MAX_SHIM_VERSION", "3")
            .env("TTRPC_ADDRESS", ttrpc_socket(&self.socket))
            .env("GRPC_ADDRESS", &self.socket)
            .env("NAMESPACE", namespace.as_str())
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, action: &'static str, limit: Duration, command: &mut Command) -> Result<Vec<u8>, ShimError> {
        let shim = self.shim.clone();
        let output = match tokio::time::timeout(limit, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(cause)) => return Err(ShimError::Run { shim, cause }),
            Err(_) => return Err(ShimError::Slow { shim, action, limit }),
        };
        if !output.status.success() {
            let words = excerpt(if output.stderr.is_empty() { &output.stdout } else { &output.stderr });
            return Err(ShimError::Failed { shim, action, status: output.status, words });
        }
        Ok(output.stdout)
    }
}

/// What `start` may print: a message since containerd 2.3, JSON since 1.7, or as older shims do, the address alone.
fn parse_bootstrap(output: &[u8]) -> Option<Bootstrap> {
    let output = output.get(..OUTPUT_LIMIT.min(output.len()))?;
    let text = std::str::from_utf8(output).map(str::trim);
    let mut bootstrap = match text {
        Ok(text) if text.starts_with('{') => serde_json::from_str::<Bootstrap>(text).ok()?,
        Ok(text) if text.starts_with(['/', 'u']) => {
            Bootstrap { version: 2, address: text.to_owned(), protocol: "ttrpc".into() }
        }
        _ => {
            let BootstrapResult { version, address, protocol, .. } = BootstrapResult::decode(output).ok()?;
            Bootstrap { version, address, protocol }
        }
    };
    if let Some(path) = bootstrap.address.strip_prefix("unix://") {
        bootstrap.address = path.to_owned();
    }
    (bootstrap.address.starts_with('/') && !bootstrap.address.contains(['\n', '\0'])).then_some(bootstrap)
}

fn excerpt(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(&output[..output.len().min(1024)]);
    text.trim().replace(['\n', '\r'], "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_start_prints() {
        let parsed = |text: &str| {
            let Bootstrap { version, address, protocol } = parse_bootstrap(text.as_bytes())?;
            Some((version, address, protocol))
        };
        let some = |version, address: &str, protocol: &str| Some((version, address.to_owned(), protocol.to_owned()));
        for (text, wanted) in [
            (r#"{"version":3,"address":"/run/s/1","protocol":"grpc"}"#, some(3, "/run/s/1", "grpc")),
            ("{\"version\":3,\"address\":\"unix:///s\",\"protocol\":\"grpc\"}\n", some(3, "/s", "grpc")),
            ("unix:///run/s/1\n", some(2, "/run/s/1", "ttrpc")),
            ("\u{8}\u{3}\u{12}\u{9}unix:///s\u{1a}\u{5}ttrpc", some(3, "/s", "ttrpc")),
            (r#"{"version":3,"address":"s","protocol":"grpc"}"#, None),
            (r#"{"version":3}"#, None),
            ("", None),
            ("panic: x", None),
        ] {
            assert_eq!(parsed(text), wanted, "{text}");
        }
        assert_eq!(parse_bootstrap(&[0xff, 0xfe]), None);
    }
}
