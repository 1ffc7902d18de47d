//! What a create request asks for is either honoured or refused by name; nothing is dropped in silence. Pure.

use super::{caps, files, mounts, ports, restart, security};
use crate::{
    api::{Config, CreateRequest, HostConfig, serial::is_zero},
    http::{ApiError, ApiResult},
    networks::NetworkKind,
};
use std::time::Duration;

/// The least memory a container can have, as in Docker.
const MIN_MEMORY: i64 = 6 << 20;

/// Fields that old clients still send and that have had no meaning for years, or that only clients read.
const IGNORED: [&str; 5] = ["KernelMemory", "KernelMemoryTCP", "DiskQuota", "PublishService", "LxcConf"];

/// Checks everything about a request that can be checked without looking at the image or the host.
pub fn check(request: &CreateRequest) -> ApiResult<()> {
    check_config(&request.config)?;
    let host = &request.host_config;
    check_unknown(host)?;
    check_modes(host)?;
    check_resources(host)?;
    restart::check(&host.restart_policy, host.auto_remove)?;
    caps::effective(words(&host.cap_add), words(&host.cap_drop), host.privileged)?;
    security::parse(host)?;
    check_log(host)?;
    let network = network_kind(&host.network_mode)?;
    if network != NetworkKind::Bridge && !host.port_bindings.is_empty() && network == NetworkKind::None {
        // Docker accepts and ignores this as well; the ports lead nowhere.
        tracing::debug!("published ports mean nothing on network none");
    }
    ports::requests(host, &request.config.exposed_ports)?;
    for port in &request.config.exposed_ports.0 {
        ports::parse_port(port)?;
    }
    mounts::wanted(host, &request.config.volumes)?;
    for (name, endpoint) in &request.networking_config.endpoints_config {
        let kind = network_kind(name)?;
        let wanted = if network == kind { Ok(()) } else { Err(()) };
        wanted.map_err(|()| not_yet(&format!("a second network ({name})")))?;
        if let Some((key, _)) =
            endpoint.iter().flat_map(|e| &e.other).find(|(key, value)| !endpoint_default(key, value))
        {
            return Err(not_yet(&format!("NetworkingConfig.EndpointsConfig.{name}.{key}")));
        }
    }
    Ok(())
}

/// Which network a mode means. Networks of the user's and other containers' are not there yet.
pub fn network_kind(mode: &str) -> ApiResult<NetworkKind> {
    match mode {
        "" | "default" | "bridge" => Ok(NetworkKind::Bridge),
        "host" => Ok(NetworkKind::Host),
        "none" => Ok(NetworkKind::None),
        mode if mode.starts_with("container:") => Err(not_yet(&format!("network mode {mode}"))),
        // Not 404: clients take a 404 at create for a missing image, and pull it.
        name => Err(ApiError::not_implemented(format!(
            "network {name} not found (networks other than bridge, host and none are not implemented in berth yet)"
        ))),
    }
}

fn check_config(config: &Config) -> ApiResult<()> {
    if config.healthcheck.as_ref().is_some_and(|check| check.is_active()) {
        return Err(not_yet("Healthcheck"));
    }
    for word in &config.env {
        if word.is_empty() || word.starts_with('=') || word.contains('\0') {
            return Err(ApiError::invalid(format!("invalid environment variable: {word}")));
        }
    }
    let line = config.entrypoint.iter().chain(&config.cmd).flatten();
    if line.into_iter().any(|word| word.contains('\0')) {
        return Err(ApiError::invalid("command line contains a NUL character"));
    }
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if !config.stop_signal.is_empty() {
        super::signal::parse(&config.stop_signal)?;
    }
    if config.stop_timeout.is_some_and(|seconds| seconds < -1) {
        return Err(ApiError::invalid("StopTimeout must be -1 or more"));
    }
    if config.network_disabled {
        return Err(not_yet("NetworkDisabled (use network mode none)"));
    }
    Ok(())
}

fn check_unknown(host: &HostConfig) -> ApiResult<()> {
    let unlimited = serde_json::json!(-1);
    let unset = |key: &str, value| is_zero(value) || (key == "MemorySwappiness" && *value == unlimited);
    let isolation = |key: &str, value: &serde_json::Value| key == "Isolation" && value == "default";
    let legacy = |key: &str| IGNORED.contains(&key);
    match host.other.iter().find(|(k, v)| !unset(k, v) && !isolation(k, v) && !legacy(k)) {
        Some((key, _)) => Err(not_yet(&format!("HostConfig.{key}"))),
        None => Ok(()),
    }
}

fn check_modes(host: &HostConfig) -> ApiResult<()> {
    for (key, mode, allowed) in [
        ("IpcMode", &host.ipc_mode, &["", "private", "shareable", "host", "none"][..]),
        ("PidMode", &host.pid_mode, &["", "private", "host"]),
        ("UTSMode", &host.uts_mode, &["", "private", "host"]),
        ("CgroupnsMode", &host.cgroupns_mode, &["", "private", "host"]),
    ] {
        if mode.starts_with("container:") {
            return Err(not_yet(&format!("HostConfig.{key} {mode}")));
        }
        if !allowed.contains(&mode.as_str()) {
            return Err(ApiError::invalid(format!("invalid {key}: {mode}")));
        }
    }
    if !matches!(host.volume_driver.as_str(), "" | "local") {
        return Err(not_yet(&format!("volume driver {}", host.volume_driver)));
    }
    if host.init == Some(true) {
        return Err(not_yet("HostConfig.Init"));
    }
    for rule in host.device_cgroup_rules.iter().flatten() {
        super::spec::parse_device_rule(rule)?;
    }
    for device in &host.devices {
        if device.path_on_host.is_empty() || !device.path_on_host.starts_with('/') {
            return Err(ApiError::invalid(format!("invalid device path: {:?}", device.path_on_host)));
        }
        let permissions = &device.cgroup_permissions;
        if permissions.len() > 3 || !permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(ApiError::invalid(format!("invalid device mode: {permissions}")));
        }
    }
    if host.cgroup_parent.contains("..") || host.cgroup_parent.contains(['\0', '\n']) {
        return Err(ApiError::invalid(format!("invalid CgroupParent: {:?}", host.cgroup_parent)));
    }
    if host.shm_size < 0 {
        return Err(ApiError::invalid("SHM size can not be less than 0"));
    }
    for key in host.annotations.keys() {
        if key.is_empty() {
            return Err(ApiError::invalid("invalid Annotations: an empty key is not permitted"));
        }
    }
    for (key, value) in &host.sysctls {
        check_sysctl(host, key, value)?;
    }
    let facts = files::Facts {
        hostname: "",
        domainname: "",
        address: None,
        gateway: None,
        extra_hosts: host.extra_hosts.as_deref().unwrap_or_default(),
        dns: &host.dns,
        dns_search: &host.dns_search,
        dns_options: &host.dns_options,
        host_network: false,
    };
    files::check(&facts)
}

/// Only sysctls of a namespace the container has for itself: any other would change the host (CVE-2022-0532).
fn check_sysctl(host: &HostConfig, key: &str, value: &str) -> ApiResult<()> {
    let in_namespace = |own: bool, what: &str| match own {
        true => Ok(()),
        false => Err(ApiError::invalid(format!("sysctl '{key}' is not allowed with the host's {what} namespace"))),
    };
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
    if !plain(key) || key.contains("..") || value.contains(['\0', '\n']) {
        return Err(ApiError::invalid(format!("invalid sysctl: {key:?}")));
    }
    let ipc = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    if key.starts_with("net.") {
        in_namespace(host.network_mode != "host", "network")
    } else if ipc.contains(&key) || key.starts_with("fs.mqueue.") {
        in_namespace(host.ipc_mode != "host", "IPC")
    } else if matches!(key, "kernel.domainname" | "kernel.hostname") {
        in_namespace(host.uts_mode != "host", "UTS")
    } else {
        Err(ApiError::invalid(format!("sysctl '{key}' is not whitelisted: it belongs to no namespace")))
    }
}

fn check_resources(host: &HostConfig) -> ApiResult<()> {
    let refuse = |text: &str| Err(ApiError::invalid(text));
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return refuse("Minimum memory limit allowed is 6MB");
    }
    if host.memory > 0 && host.memory_swap > 0 && host.memory_swap < host.memory {
        return refuse("Minimum memoryswap limit should be larger than memory limit, see usage");
    }
    if host.memory == 0 && host.memory_swap > 0 {
        return refuse("You should always set the Memory limit when using Memoryswap limit, see usage");
    }
    if host.memory_swap < -1 || host.memory < 0 || host.memory_reservation < 0 {
        return refuse("memory limits must not be negative");
    }
    if host.memory_reservation > 0 && host.memory_reservation < MIN_MEMORY {
        return refuse("Minimum memory reservation allowed is 6MB");
    }
    if host.memory > 0 && host.memory_reservation > host.memory {
        return refuse("Minimum memory limit can not be less than memory reservation limit, see usage");
    }
    if host.memory_swappiness.is_some_and(|n| !(-1..=100).contains(&n)) {
        return refuse("Invalid value for memory swappiness: valid range is 0-100");
    }
    if host.nano_cpus != 0 && (host.cpu_period != 0 || host.cpu_quota != 0) {
        return refuse("Conflicting options: Nano CPUs cannot be set together with CPU period or quota");
    }
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as i64);
    if host.nano_cpus < 0 || host.nano_cpus > cpus * 1_000_000_000 {
        return Err(ApiError::invalid(format!(
            "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        )));
    }
    if host.cpu_period != 0 && !(1000..=1_000_000).contains(&host.cpu_period) {
        return refuse("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
    }
    if host.cpu_quota > 0 && host.cpu_quota < 1000 {
        return refuse("CPU cfs quota can not be less than 1ms (i.e. 1000)");
    }
    if host.cpu_shares < 0 {
        return refuse("invalid CPU shares: value must be a positive integer");
    }
    for (what, list) in [("cpus", &host.cpuset_cpus), ("mems", &host.cpuset_mems)] {
        if !list.bytes().all(|b| b.is_ascii_digit() || b == b',' || b == b'-') {
            return Err(ApiError::invalid(format!("Invalid value {list} for cpuset {what}")));
        }
    }
    if !(-1000..=1000).contains(&host.oom_score_adj) {
        return Err(ApiError::invalid(format!(
            "Invalid value {}, range for oom score adj is [-1000, 1000]",
            host.oom_score_adj
        )));
    }
    for ulimit in &host.ulimits {
        super::spec::rlimit(ulimit)?;
    }
    Ok(())
}

fn check_log(host: &HostConfig) -> ApiResult<()> {
    super::log_config::parse(&host.log_config).map(drop)
}

fn endpoint_default(key: &str, value: &serde_json::Value) -> bool {
    // What inspect shows and scripts send back; compose adds aliases, which the default network has not.
    let operational = ["NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "DNSNames", "Aliases"];
    is_zero(value) || operational.contains(&key) || (key == "IPAMConfig" && ipam_supported(value))
}

fn ipam_supported(value: &serde_json::Value) -> bool {
    value.as_object().is_some_and(|map| map.iter().all(|(key, v)| key == "IPv4Address" || is_zero(v)))
}

/// The error for what Docker has and Berth lacks.
pub fn not_yet(what: &str) -> ApiError {
    ApiError::not_implemented(format!("{what} is not implemented in berth yet"))
}

/// An optional list as a slice.
pub fn words(list: &Option<Vec<String>>) -> &[String] {
    list.as_deref().unwrap_or_default()
}

/// How long a stop waits before it kills; None is for ever.
pub fn stop_timeout(config: &Config, asked: Option<i64>) -> Option<Duration> {
    let seconds = asked.or(config.stop_timeout).unwrap_or(10);
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> ApiResult<()> {
        check(&serde_json::from_str(json).unwrap())
    }

    #[test]
    fn what_the_docker_client_sends_for_a_plain_run_passes() {
        let json = r#"{"Hostname":"","Domainname":"","User":"","AttachStdin":false,"AttachStdout":true,"AttachStderr":true,
            "Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["true"],"Image":"busybox","Volumes":{},
            "WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{},"HostConfig":{"Binds":null,"ContainerIDFile":"",
            "LogConfig":{"Type":"","Config":{}},"NetworkMode":"default","PortBindings":{},"RestartPolicy":{"Name":"no",
            "MaximumRetryCount":0},"AutoRemove":true,"VolumeDriver":"","VolumesFrom":null,"ConsoleSize":[0,0],"CapAdd":null,
            "CapDrop":null,"CgroupnsMode":"","Dns":[],"DnsOptions":[],"DnsSearch":[],"ExtraHosts":null,"GroupAdd":null,
            "IpcMode":"","Cgroup":"","Links":null,"OomScoreAdj":0,"PidMode":"","Privileged":false,"PublishAllPorts":false,
            "ReadonlyRootfs":false,"SecurityOpt":null,"UTSMode":"","UsernsMode":"","ShmSize":0,"Isolation":"","CpuShares":0,
            "Memory":0,"NanoCpus":0,"CgroupParent":"","BlkioWeight":0,"BlkioWeightDevice":[],"BlkioDeviceReadBps":[],
            "BlkioDeviceWriteBps":[],"BlkioDeviceReadIOps":[],"BlkioDeviceWriteIOps":[],"CpuPeriod":0,"CpuQuota":0,
            "CpuRealtimePeriod":0,"CpuRealtimeRuntime":0,"CpusetCpus":"","CpusetMems":"","Devices":[],
            "DeviceCgroupRules":null,"DeviceRequests":null,"MemoryReservation":0,"MemorySwap":0,"MemorySwappiness":-1,
            "OomKillDisable":false,"PidsLimit":0,"Ulimits":[],"CpuCount":0,"CpuPercent":0,"IOMaximumIOps":0,
            "IOMaximumBandwidth":0,"MaskedPaths":null,"ReadonlyPaths":null},
            "NetworkingConfig":{"EndpointsConfig":{"default":{"IPAMConfig":null,"Links":null,"Aliases":null,"MacAddress":"",
            "DriverOpts":null,"GwPriority":0,"NetworkID":"","EndpointID":"","Gateway":"","IPAddress":"","IPPrefixLen":0,
            "IPv6Gateway":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,"DNSNames":null}}}}"#;
        request(json).unwrap();
    }

    #[test]
    fn refused_by_name() {
        let cases = [
            (r#"{"HostConfig":{"VolumesFrom":["a"]}}"#, 501, "HostConfig.VolumesFrom"),
            (r#"{"HostConfig":{"DeviceRequests":[{"Count":-1}]}}"#, 501, "DeviceRequests"),
            (r#"{"HostConfig":{"UsernsMode":"host"}}"#, 501, "UsernsMode"),
            (r#"{"HostConfig":{"BlkioWeight":10}}"#, 501, "BlkioWeight"),
            (r#"{"HostConfig":{"NoSuchThing":1}}"#, 501, "NoSuchThing"),
            (r#"{"HostConfig":{"Init":true}}"#, 501, "Init"),
            (r#"{"HostConfig":{"NetworkMode":"container:x"}}"#, 501, "container:x"),
            (r#"{"HostConfig":{"NetworkMode":"mynet"}}"#, 501, "network mynet not found"),
            (r#"{"HostConfig":{"Memory":1000}}"#, 400, "6MB"),
            (r#"{"HostConfig":{"PidMode":"x"}}"#, 400, "PidMode"),
            (r#"{"HostConfig":{"CapAdd":["NOPE"]}}"#, 400, "NOPE"),
            (r#"{"HostConfig":{"Sysctls":{"kernel.core_pattern":"|x"}}}"#, 400, "core_pattern"),
            (r#"{"HostConfig":{"NetworkMode":"host","Sysctls":{"net.core.somaxconn":"1"}}}"#, 400, "somaxconn"),
            (r#"{"HostConfig":{"LogConfig":{"Type":"gelf"}}}"#, 501, "gelf"),
            (r#"{"Healthcheck":{"Test":["CMD","x"]}}"#, 501, "Healthcheck"),
            (r#"{"WorkingDir":"rel"}"#, 400, "rel"),
            (r#"{"StopSignal":"SIGNOPE"}"#, 400, "SIGNOPE"),
            (r#"{"HostConfig":{"CgroupParent":"/../x"}}"#, 400, "CgroupParent"),
            (r#"{"HostConfig":{"OomScoreAdj":2000}}"#, 400, "2000"),
        ];
        for (json, status, word) in cases {
            let error = request(json).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{json}: {error}");
            assert!(error.message.contains(word), "{json}: {error}");
        }
        request(r#"{"HostConfig":{"Sysctls":{"net.core.somaxconn":"1"},"KernelMemory":5,"Isolation":"default"}}"#)
            .unwrap();
    }
}
