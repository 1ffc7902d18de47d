//! `/_ping`, `/version`, `/info`.

use super::{ApiError, ApiResult, json};
use crate::{
    app::App,
    config::{Address, Config},
    containers::{Container, record::Phase},
    networks::Attached,
    time::Timestamp,
};
use axum::{
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::{path::Path, sync::Arc};

/// `GET /_ping` (axum answers HEAD with the same headers).
pub async fn ping() -> Response {
    let mut response = "OK".into_response();
    let headers = response.headers_mut();
    headers.insert("Builder-Version", HeaderValue::from_static("2"));
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
pub async fn version(State(app): State<Arc<App>>) -> ApiResult {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let minimum = app.config.manner.minimum.to_string();
    let experimental = app.config.manner.experimental;
    let details = json!({
        "ApiVersion": "1.51", "MinAPIVersion": minimum, "Arch": arch(), "Os": "linux", "KernelVersion": kernel,
        "BuildTime": "", "Experimental": experimental.to_string(), "GitCommit": "", "GoVersion": "",
    });
    let mut components = vec![json!({"Name": "Engine", "Version": version, "Details": details})];
    if let Ok((supervisor, revision)) = app.supervisor.version().await {
        components.push(json!({"Name": "supervisor", "Version": supervisor, "Details": {"GitCommit": revision}}));
    }
    let live = app.live();
    if live.default_runtime() == "berth-runtime" {
        components.push(json!({"Name": "berth-runtime", "Version": version, "Details": {"GitCommit": ""}}));
    }
    let mut body = json!({
        "Platform": {"Name": "Berth"},
        "Components": components,
        "Version": version, "ApiVersion": "1.51", "MinAPIVersion": minimum, "GitCommit": "", "GoVersion": "",
        "Os": "linux", "Arch": arch(), "KernelVersion": kernel, "BuildTime": "",
    });
    if experimental {
        body["Experimental"] = true.into();
    }
    Ok(json(StatusCode::OK, &body))
}

/// `GET /debug/vars`
pub async fn variables(State(app): State<Arc<App>>) -> ApiResult {
    Ok(json(StatusCode::OK, &crate::metrics::variables(&app)))
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
    let (config, live) = (&app.config, app.live());
    let (limits, mut warnings) = (Limits::of_host(app.unified_cgroups), warnings(config));
    warnings.extend(app.apparmor.warning().await.map(|text| format!("WARNING: {text}")));
    warnings.extend(open_ports(&app).await);
    let mut security = config.containers.security_options();
    if app.apparmor.protects().await {
        security.insert(0, "name=apparmor".to_owned());
    }
    let proxy = |text: &str| without_password(text);
    let mut volume_drivers = app.volumes.plugins.used();
    volume_drivers.insert(0, crate::volumes::LOCAL.to_owned());
    let mut body = json!({
        "ID": app.identity.id,
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "Driver": app.supervisor.snapshotter(),
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Plugins": {"Volume": volume_drivers, "Network": ["bridge", "host", "null"], "Authorization": null, "Log": ["journald", "json-file", "local", "none", "syslog"]},
        "MemoryLimit": limits.memory, "SwapLimit": limits.swap, "CpuCfsPeriod": limits.cpu, "CpuCfsQuota": limits.cpu,
        "CPUShares": limits.shares, "CPUSet": limits.cpuset, "PidsLimit": limits.pids, "OomKillDisable": limits.oom,
        "IPv4Forwarding": reads("/proc/sys/net/ipv4/ip_forward", "1"),
        "Debug": live.debug,
        "NFd": open_files,
        "NGoroutines": tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        "SystemTime": Timestamp::now(),
        "LoggingDriver": config.containers.log_driver(),
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if app.unified_cgroups { "2" } else { "1" },
        "NEventsListener": app.events.listeners(),
        "KernelVersion": word(uname.as_ref().map(|u| u.release())),
        "OperatingSystem": operating_system("PRETTY_NAME"),
        "OSVersion": operating_system("VERSION_ID"),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": live.registries.info(),
        "NCPU": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "MemTotal": total_memory(),
        "GenericResources": null,
        "DockerRootDir": config.data_root,
        "HttpProxy": proxy(&config.proxies.http_proxy),
        "HttpsProxy": proxy(&config.proxies.https_proxy),
        "NoProxy": config.proxies.no_proxy,
        "Name": host_name(),
        "Labels": live.labels,
        "ExperimentalBuild": config.manner.experimental,
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "Runtimes": live.shown_runtimes(),
        "DefaultRuntime": live.default_runtime(),
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
                  "RemoteManagers": null},
        // Containers never depend on the engine: there is no other mode.
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": supervisor.map_or_else(String::new, |(version, _)| version)},
        "RuncCommit": {"ID": if live.default_runtime() == "berth-runtime" { env!("CARGO_PKG_VERSION") } else { "" }},
        "InitCommit": {"ID": ""},
        "SecurityOptions": security,
        "FirewallBackend": {"Driver": "nftables"},
        "DiscoveredDevices": null,
        "CDISpecDirs": if config.cdi_spec_dirs.is_empty() { json!(["/etc/cdi", "/var/run/cdi"]) } else { json!(config.cdi_spec_dirs) },
        "Containerd": {"Address": config.supervisor, "Namespaces": {"Containers": "berth", "Plugins": ""}},
        "Warnings": if warnings.is_empty() { json!(null) } else { json!(warnings) },
    });
    if !config.address_pools.is_empty() {
        let pools = config.address_pools.iter().map(|pool| json!({"Base": pool.base, "Size": pool.size}));
        body["DefaultAddressPools"] = pools.collect();
    }
    Ok(json(StatusCode::OK, &body))
}

/// What this host's kernel can limit.
struct Limits {
    memory: bool,
    swap: bool,
    cpu: bool,
    shares: bool,
    cpuset: bool,
    pids: bool,
    oom: bool,
}

impl Limits {
    fn of_host(unified: bool) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        if unified {
            let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let has = |name: &str| text.split_whitespace().any(|word| word == name);
            let (memory, cpu) = (has("memory"), has("cpu"));
            let swap = memory && std::fs::exists("/proc/swaps").unwrap_or(false);
            return Self { memory, swap, cpu, shares: cpu, cpuset: has("cpuset"), pids: has("pids"), oom: false };
        }
        let has = |file: &str| root.join(file).exists();
        Self {
            memory: has("memory/memory.limit_in_bytes"),
            swap: has("memory/memory.memsw.limit_in_bytes"),
            cpu: has("cpu/cpu.cfs_quota_us"),
            shares: has("cpu/cpu.shares"),
            cpuset: has("cpuset/cpuset.cpus"),
            pids: has("pids"),
            oom: has("memory/memory.oom_control"),
        }
    }
}

fn reads(path: &str, wanted: &str) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == wanted)
}

/// What `docker info` prints last.
fn warnings(config: &Config) -> Vec<String> {
    let open = config.listen.iter().filter_map(|address| match address {
        Address::Tcp(at) if !config.tls.verify => Some(at),
        _ => None,
    });
    open.map(|at| match config.tls.on {
        true => format!("WARNING: API is accessible on https://{at} without TLS client verification.\n         Access to the remote API is equivalent to root access on the host."),
        false => format!("WARNING: API is accessible on http://{at} without encryption.\n         Access to the remote API is equivalent to root access on the host."),
    })
    .collect()
}

/// `GET /system/check`, Berth's own: what of links, rules and settings isn't as it has to be.
pub async fn check(State(app): State<Arc<App>>) -> ApiResult {
    let attached = |container: Arc<Container>| {
        let record = container.record();
        let endpoint = record.state.endpoint.filter(|_| record.state.phase.is_live())?;
        Some(Attached { id: record.id, name: record.name, endpoint })
    };
    let containers: Vec<Attached> = app.containers.all().into_iter().filter_map(attached).collect();
    let look = move || app.networks.differences(&containers);
    let differences = tokio::task::spawn_blocking(look).await.map_err(|error| ApiError::unexpected(&error))?;
    Ok(json(StatusCode::OK, &json!({"Differences": differences.map_err(|error| ApiError::unexpected(&error))?})))
}

/// Said where the host's owner believes that ports are closed.
async fn open_ports(app: &Arc<App>) -> Option<String> {
    let owner = app.clone();
    let firewall = tokio::task::spawn_blocking(move || owner.networks.closed_by()).await.ok()?.ok()??;
    Some(format!(
        "WARNING: {firewall} keeps ports of this host closed; ports that containers publish to all addresses are open all the same.\n         Publish on loopback (-p 127.0.0.1:..., or \"ip\" in the configuration), or use chain user of table inet {}.",
        app.networks.table()
    ))
}

/// A proxy's address, its password replaced as dockerd does.
fn without_password(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
        Some((scheme, host)) => format!("{scheme}://xxxxx:xxxxx@{host}"),
        None => url.to_owned(),
    }
}

/// The host's name.
pub fn host_name() -> String {
    nix::sys::utsname::uname().map(|u| u.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}

/// A value of /etc/os-release.
pub fn operating_system(key: &str) -> String {
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
