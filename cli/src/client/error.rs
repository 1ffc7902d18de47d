//! Failures of talking with the engine.

use super::host::Host;
use std::io;

/// A request that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("Cannot connect to the Berth engine at {host}. Is berth-engine running?{}", cure(host))]
    NotRunning {
        /// Where.
        host: Host,
    },
    /// The socket is not for this user.
    #[error(
        "permission denied while connecting to the Berth engine at {host}: run this as root, or as a user with access to that socket"
    )]
    Permission {
        /// Where.
        host: Host,
    },
    /// Another failure of connecting.
    #[error("connect to the Berth engine at {host}: {cause}")]
    Connect {
        /// Where.
        host: Host,
        /// Why.
        cause: io::Error,
    },
    /// TLS could not be agreed on.
    #[error("error during connect: {call} at {host}: {cause}")]
    Tls {
        /// The request.
        call: String,
        /// Where.
        host: Host,
        /// Why.
        cause: String,
    },
    /// The engine answered with an error.
    #[error("Error response from daemon: {message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// What the engine says.
        message: String,
    },
    /// The connection broke, or did not speak HTTP.
    #[error("{method} {path}: {cause}")]
    Http {
        /// Method of the request.
        method: String,
        /// Its path.
        path: String,
        /// What happened.
        cause: hyper::Error,
    },
    /// A request that can't be put into HTTP.
    #[error("invalid request for {path}: {cause}")]
    Request {
        /// Its path.
        path: String,
        /// Why.
        cause: hyper::http::Error,
    },
    /// The engine did not switch to a stream.
    #[error("unable to upgrade {path} to a stream, the engine answered {status}")]
    NotUpgraded {
        /// The path.
        path: String,
        /// HTTP status.
        status: u16,
    },
    /// The engine sent something else than promised.
    #[error("unexpected answer to {path}: {cause}")]
    Decode {
        /// The path.
        path: String,
        /// Why.
        cause: serde_json::Error,
    },
    /// The engine is older than anything berth can talk to.
    #[error("engine's API version {0} is too old: at least 1.24 is needed")]
    TooOld(String),
}

/// What to do where nobody listens.
fn cure(host: &Host) -> String {
    const DOCKER: &str = "/var/run/docker.sock";
    match host {
        Host::Unix(path) if *host == Host::default() => {
            let start = " Start it with `systemctl start berth-engine`, or with `berth-engine`";
            let other = if std::path::Path::new(DOCKER).exists() && path.as_path() != std::path::Path::new(DOCKER) {
                "; docker's engine is reached by `-H unix:///var/run/docker.sock`"
            } else {
                ""
            };
            format!("{start}{other}.")
        }
        Host::Unix(path) if !path.exists() => " There is no such socket.".to_owned(),
        _ => String::new(),
    }
}

impl ClientError {
    /// The engine says that this is none of its business: no swarm, no plugins, not built.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Api { status: 400 | 403 | 405 | 406 | 501 | 503, .. })
    }

    /// The engine says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api { status: 404, .. })
    }
}
