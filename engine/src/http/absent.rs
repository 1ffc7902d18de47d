//! What Docker's API has and an engine for one machine hasn't: swarm, plugins, Go's profiler, checkpoints. Each answers as dockerd does
//! where it has nothing of the kind, so that clients which only ask go on; what would change something is refused.

use super::{ApiError, ApiVersion, json};
use crate::http::Query;
use axum::{
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// dockerd's words on a node that manages no swarm; the CLI and compose look for them.
const NO_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
const NO_SWARM: &str = "This node is not part of a swarm";

/// What has to do with a swarm and is asked for elsewhere.
pub fn no_swarm() -> super::ApiError {
    super::ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, NO_MANAGER)
}

/// What a path below belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Only a manager of a swarm has it: 503.
    Manager,
    /// A member of a swarm could: 503.
    Member,
    /// Would make a swarm: 501.
    MakesSwarm,
    /// There are no plugins: an empty list.
    PluginList,
    /// A plugin by its name: there is none of it.
    Plugin,
    /// Would bring a plugin: 501.
    BringsPlugin,
    /// A volume of a cluster: 503.
    ClusterVolume,
    /// Go's profiler: 501.
    Profiler,
    /// Checkpoint and restore: 501.
    Checkpoint,
}

const TABLE: &[(&str, &str, Family)] = &[
    ("GET", "/swarm", Family::Manager),
    ("POST", "/swarm/init", Family::MakesSwarm),
    ("POST", "/swarm/join", Family::MakesSwarm),
    ("POST", "/swarm/leave", Family::Member),
    ("POST", "/swarm/update", Family::Manager),
    ("GET", "/swarm/unlockkey", Family::Manager),
    ("POST", "/swarm/unlock", Family::Manager),
    ("GET", "/nodes", Family::Manager),
    ("GET", "/nodes/{id}", Family::Manager),
    ("DELETE", "/nodes/{id}", Family::Manager),
    ("POST", "/nodes/{id}/update", Family::Manager),
    ("GET", "/services", Family::Manager),
    ("POST", "/services/create", Family::Manager),
    ("GET", "/services/{id}", Family::Manager),
    ("DELETE", "/services/{id}", Family::Manager),
    ("POST", "/services/{id}/update", Family::Manager),
    ("GET", "/services/{id}/logs", Family::Manager),
    ("GET", "/tasks", Family::Manager),
    ("GET", "/tasks/{id}", Family::Manager),
    ("GET", "/tasks/{id}/logs", Family::Manager),
    ("GET", "/secrets", Family::Manager),
    ("POST", "/secrets/create", Family::Manager),
    ("GET", "/secrets/{id}", Family::Manager),
    ("DELETE", "/secrets/{id}", Family::Manager),
    ("POST", "/secrets/{id}/update", Family::Manager),
    ("GET", "/configs", Family::Manager),
    ("POST", "/configs/create", Family::Manager),
    ("GET", "/configs/{id}", Family::Manager),
    ("DELETE", "/configs/{id}", Family::Manager),
    ("POST", "/configs/{id}/update", Family::Manager),
    ("PUT", "/volumes/{name}", Family::ClusterVolume),
    ("GET", "/plugins", Family::PluginList),
    ("GET", "/plugins/privileges", Family::BringsPlugin),
    ("POST", "/plugins/pull", Family::BringsPlugin),
    ("POST", "/plugins/create", Family::BringsPlugin),
    ("GET", "/plugins/{name...}/json", Family::Plugin),
    ("DELETE", "/plugins/{name...}", Family::Plugin),
    ("POST", "/plugins/{name...}/enable", Family::Plugin),
    ("POST", "/plugins/{name...}/disable", Family::Plugin),
    ("POST", "/plugins/{name...}/upgrade", Family::Plugin),
    ("POST", "/plugins/{name...}/push", Family::Plugin),
    ("POST", "/plugins/{name...}/set", Family::Plugin),
    ("GET", "/debug/pprof/", Family::Profiler),
    ("GET", "/debug/pprof/{profile}", Family::Profiler),
    ("POST", "/debug/pprof/{profile}", Family::Profiler),
    ("GET", "/containers/{id}/checkpoints", Family::Checkpoint),
    ("POST", "/containers/{id}/checkpoints", Family::Checkpoint),
    ("DELETE", "/containers/{id}/checkpoints/{checkpoint}", Family::Checkpoint),
];

/// The answer, if the path is one of these.
pub fn answer(method: &Method, path: &str, query: Option<&str>, version: ApiVersion) -> Option<Response> {
    let found = TABLE.iter().find(|(m, pattern, _)| *m == method.as_str() && super::routes::matches(pattern, path));
    let (_, _, family) = found?;
    let unavailable = |text: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text);
    let error = match family {
        Family::Manager => unavailable(NO_MANAGER).hint("berth runs containers on one machine and has no swarm mode"),
        Family::Member => unavailable(NO_SWARM),
        Family::MakesSwarm => {
            ApiError::not_implemented("swarm mode is not part of berth, which runs containers on one machine")
                .hint("services on one machine: docker compose")
        }
        Family::ClusterVolume if version.at_least(42) => {
            unavailable("volume update only valid for cluster volumes, but swarm is unavailable")
        }
        Family::ClusterVolume => ApiError::not_found("page not found"),
        Family::PluginList => {
            return Some(match Query::parse(query).filters(&["capability", "enabled"]) {
                Ok(_) => json(StatusCode::OK, &json!([])),
                Err(error) => error.into_response(),
            });
        }
        Family::Plugin => {
            let tail = path.strip_prefix("/plugins/").unwrap_or_default();
            let name = match method {
                &Method::DELETE => tail,
                _ => tail.rsplit_once('/').map_or(tail, |(name, _)| name),
            };
            ApiError::not_found(format!("plugin {name:?} not found"))
        }
        Family::BringsPlugin => ApiError::not_implemented(
            "plugins are not part of berth: volume, network and log drivers are built in, access rules take the place of authorization plugins",
        ),
        Family::Profiler => ApiError::not_implemented("berth is no Go program and has no pprof profiles")
            .hint("perf record -p $(pidof berth-engine); counters are at /debug/vars and at --metrics-addr"),
        Family::Checkpoint => ApiError::not_implemented(
            "checkpoints are not implemented in berth: its runtime can't freeze processes to disk",
        ),
    };
    Some(error.expected().into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, path: &str) -> Option<u16> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        answer(&method, path, None, ApiVersion::CURRENT).map(|response| response.status().as_u16())
    }

    #[test]
    fn tier_c() {
        for (method, path, expected) in [
            ("GET", "/swarm", Some(503)),
            ("POST", "/swarm/init", Some(501)),
            ("POST", "/swarm/leave", Some(503)),
            ("GET", "/services/x/logs", Some(503)),
            ("POST", "/configs/x/update", Some(503)),
            ("PUT", "/volumes/x", Some(503)),
            ("GET", "/plugins", Some(200)),
            ("GET", "/plugins/a/b/json", Some(404)),
            ("DELETE", "/plugins/a/b", Some(404)),
            ("POST", "/plugins/pull", Some(501)),
            ("GET", "/debug/pprof/heap", Some(501)),
            ("GET", "/containers/x/checkpoints", Some(501)),
            ("PATCH", "/swarm", None),
            ("GET", "/nodes/", None),
        ] {
            assert_eq!(status(method, path), expected, "{method} {path}");
        }
    }
}
