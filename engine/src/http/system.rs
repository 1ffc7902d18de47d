//! `/_ping`, `/version`, `/info`.

use super::{ApiResult, json};
use crate::{app::App, containers::record::Phase, time::Timestamp};
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::Arc;

/// `GET /_ping` (axum answers HEAD with the same headers).
pub async fn ping() -> Response {
    let mut response = "OK".into_response();
    let headers = response.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("1"));
    headers.insert("Swarm", HeaderValue::from_static("inactive"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, must-revalidate"));
    headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// `HEAD /_ping`: as GET, and says itself that there is no body.
pub async fn ping_head() -> Response {
    let mut response = ping().await;
    *response.body_mut() = axum::body::Body::empty();
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

/// `GET /version`
pub async fn version() -> ApiResult {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let details = json!({
        "ApiVersion": "1.51", "MinAPIVersion": "1.24", "Arch": arch(), "Os": "linux", "KernelVersion": kernel,
        "BuildTime": "", "Experimental": "false", "GitCommit": "", "GoVersion": "",
    });
    let body = json!({
        "Platform": {"Name": "Berth"},
        "Components": [{"Name": "Engine", "Version": version, "Details": details}],
        "Version": version, "ApiVersion": "1.51", "MinAPIVersion": "1.24", "GitCommit": "", "GoVersion": "",
        "Os": "linux", "Arch": arch(), "KernelVersion": kernel, "BuildTime": "",
    });
    Ok(json(StatusCode::OK, &body))
}

/// `GET /info`: what is true here; fields of what Berth does not have say so or are absent.
pub async fn info(State(app): State<Arc<App>>) -> ApiResult {
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for container in app.containers.all() {
        match container.live().record.state.phase {
            Phase::Running | Phase::Restarting => running += 1,
            Phase::Paused => paused += 1,
            Phase::Created | Phase::Exited | Phase::Removing => stopped += 1,
        }
    }
    let images = app.images.groups().await.map_or(0, |groups| groups.len());
    let supervisor = app.supervisor.version().await.ok();
    let uname = nix::sys::utsname::uname().ok();
    let word = |text: Option<&std::ffi::OsStr>| text.map(|t| t.to_string_lossy().into_owned()).unwrap_or_default();
    let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let warnings: Vec<String> = Vec::new();
    let runtime = if app.config.runtime.is_empty() { "berth-runtime" } else { &app.config.runtime };
    let body = json!({
        "ID": app.identity.id,
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "Driver": app.supervisor.snapshotter(),
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "host", "null"], "Authorization": null, "Log": ["journald", "json-file", "local", "none", "syslog"]},
        "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true,
        "CPUSet": true, "PidsLimit": true, "OomKillDisable": !app.unified_cgroups,
        "IPv4Forwarding": true,
        "Debug": tracing::enabled!(tracing::Level::DEBUG),
        "NFd": open_files,
        "NGoroutines": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "SystemTime": Timestamp::now(),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if app.unified_cgroups { "2" } else { "1" },
        "NEventsListener": app.events.listeners(),
        "KernelVersion": word(uname.as_ref().map(|u| u.release())),
        "OperatingSystem": operating_system("PRETTY_NAME"),
        "OSVersion": operating_system("VERSION_ID"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": null,
        "NCPU": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "MemTotal": total_memory(),
        "GenericResources": null,
        "DockerRootDir": app.config.data_root,
        "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
        "Name": word(uname.as_ref().map(|u| u.nodename())),
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Runtimes": {(runtime): {"path": runtime}},
        "DefaultRuntime": runtime,
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
                  "RemoteManagers": null},
        // Containers never depend on the engine: there is no other mode.
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": supervisor.map_or_else(String::new, |(version, _)| version)},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "Warnings": warnings,
    });
    Ok(json(StatusCode::OK, &body))
}

fn operating_system(key: &str) -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    found.unwrap_or("linux").trim_matches('"').to_owned()
}

/// The machine's memory in bytes.
pub fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Go's name of this machine's architecture.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
