//! What a create request asks for is either honoured or refused by name; nothing is dropped in silence. Pure.

use super::{cdi, files, links, mounts, namespaces, ports, resources, restart, security, volumes_from};
use crate::{
    api::{Config, CreateRequest, HostConfig, serial::is_zero},
    http::{ApiError, ApiResult},
    networks::Mac,
};
use ::spec::caps;
use std::time::Duration;

/// Fields that old clients still send and that have had no meaning for years.
const IGNORED: [&str; 4] = ["DiskQuota", "PublishService", "LxcConf", "Capabilities"];

/// Checks everything about a request that can be checked without looking at the image or the host.
pub fn check(request: &CreateRequest) -> ApiResult<()> {
    check_config(&request.config)?;
    let host = &request.host_config;
    check_unknown(host)?;
    check_modes(host)?;
    resources::check(host)?;
    cdi::check(host.device_requests.as_deref().unwrap_or_default())?;
    volumes_from::check(words(&host.volumes_from))?;
    for link in words(&host.links) {
        links::parse(link)?;
    }
    restart::check(&host.restart_policy, host.auto_remove)?;
    caps::effective(words(&host.cap_add), words(&host.cap_drop), host.privileged)?;
    security::check(host)?;
    check_log(host)?;
    super::networking::check_mode(request)?;
    for port in &request.config.exposed_ports.0 {
        ports::parse_port(port)?;
    }
    mounts::wanted(host, &request.config.volumes)?;
    Ok(())
}

fn check_config(config: &Config) -> ApiResult<()> {
    if let Some(check) = &config.healthcheck {
        super::health::check(check)?;
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
        ::spec::signal::parse(&config.stop_signal)?;
    }
    if config.stop_timeout.is_some_and(|seconds| seconds < -1) {
        return Err(ApiError::invalid("StopTimeout must be -1 or more"));
    }
    if !config.mac_address.is_empty() && config.mac_address.parse::<Mac>().is_err() {
        return Err(ApiError::invalid(format!("invalid MAC address: {}", config.mac_address)));
    }
    Ok(())
}

/// What Docker has never heard of it ignores. A field that differs by its capitals only is honoured by Go's reader of JSON, and
/// would be lost here: it is refused.
fn check_unknown(host: &HostConfig) -> ApiResult<()> {
    if host.other.is_empty() {
        return Ok(());
    }
    let mut known = serde_json::to_value(HostConfig::default()).unwrap_or_default();
    for absent in ["Annotations", "Init", "KernelMemory", "KernelMemoryTCP", "Mounts", "StorageOpt", "Sysctls", "Tmpfs"]
    {
        known[absent] = serde_json::Value::Null;
    }
    for (key, value) in &host.other {
        let meant = known.as_object().and_then(|map| map.keys().find(|known| known.eq_ignore_ascii_case(key)));
        if let Some(meant) = meant.filter(|_| !is_zero(value) || value.as_object().is_some_and(|map| !map.is_empty())) {
            return Err(ApiError::invalid(format!("unknown field HostConfig.{key}; did you mean {meant}?")));
        }
        if !IGNORED.contains(&key.as_str()) {
            tracing::debug!(field = key, "unknown field of HostConfig ignored");
        }
    }
    Ok(())
}

fn check_modes(host: &HostConfig) -> ApiResult<()> {
    namespaces::check(host)?;
    if !matches!(host.isolation.as_str(), "" | "default") {
        return Err(ApiError::invalid(format!(
            "Invalid isolation: {:?} - linux only supports 'default'",
            host.isolation
        )));
    }
    if !host.cgroup.is_empty() {
        return Err(ApiError::invalid(format!(
            "HostConfig.Cgroup {:?} has no meaning: a cgroup is chosen by CgroupParent",
            host.cgroup
        )));
    }
    if let Some(key) = host.storage_opt.keys().find(|key| !key.eq_ignore_ascii_case("size")) {
        return Err(ApiError::invalid(format!("Unknown option: {key}")));
    }
    if !host.storage_opt.is_empty() {
        // A quota for each container is for the file system below to keep; in dockerd's words.
        let text = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
        return Err(ApiError::invalid(text));
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
        addresses: &[],
        gateway: None,
        extra_hosts: host.extra_hosts.as_deref().unwrap_or_default(),
        dns: &host.dns,
        dns_search: &host.dns_search,
        dns_options: &host.dns_options,
        host_network: false,
        names: false,
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

fn check_log(host: &HostConfig) -> ApiResult<()> {
    super::log_config::parse(&host.log_config).map(drop)
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
            (r#"{"HostConfig":{"DeviceRequests":[{"Driver":"cdi","DeviceIDs":["x"]}]}}"#, 400, "CDI device name \"x\""),
            (r#"{"HostConfig":{"VolumesFrom":["a:x"]}}"#, 400, "invalid mode: x"),
            (r#"{"HostConfig":{"Links":["a:b:c"]}}"#, 400, "bad format for links: a:b:c"),
            (r#"{"HostConfig":{"Isolation":"hyperv"}}"#, 400, "linux only supports 'default'"),
            (r#"{"HostConfig":{"Cgroup":"x"}}"#, 400, "CgroupParent"),
            (r#"{"HostConfig":{"StorageOpt":{"size":"1G"}}}"#, 400, "--storage-opt is supported only"),
            (r#"{"HostConfig":{"StorageOpt":{"foo":"1G"}}}"#, 400, "Unknown option: foo"),
            (r#"{"HostConfig":{"UTSMode":"container:x"}}"#, 400, "invalid UTS mode"),
            (r#"{"HostConfig":{"SecurityOpt":["foo"]}}"#, 400, "invalid --security-opt 1"),
            (r#"{"MacAddress":"zz"}"#, 400, "zz"),
            (r#"{"HostConfig":{"UsernsMode":"x"}}"#, 400, "invalid user namespace mode: x"),
            (r#"{"HostConfig":{"BlkioWeight":5}}"#, 400, "blkio weight"),
            (r#"{"HostConfig":{"privileged":true}}"#, 400, "did you mean Privileged"),
            (r#"{"HostConfig":{"tmpFS":{"/x":""}}}"#, 400, "did you mean Tmpfs"),
            (r#"{"HostConfig":{"NetworkMode":"container:"}}"#, 400, "container:"),
            (r#"{"NetworkingConfig":{"EndpointsConfig":{"x":{"Nonsense":1}}}}"#, 501, "x.Nonsense"),
            (r#"{"HostConfig":{"Memory":1000}}"#, 400, "6MB"),
            (r#"{"HostConfig":{"PidMode":"x"}}"#, 400, "PID mode"),
            (r#"{"HostConfig":{"CapAdd":["NOPE"]}}"#, 400, "NOPE"),
            (r#"{"HostConfig":{"Sysctls":{"kernel.core_pattern":"|x"}}}"#, 400, "core_pattern"),
            (r#"{"HostConfig":{"NetworkMode":"host","Sysctls":{"net.core.somaxconn":"1"}}}"#, 400, "somaxconn"),
            (r#"{"HostConfig":{"LogConfig":{"Type":"splunk"}}}"#, 501, "splunk"),
            (r#"{"Healthcheck":{"Test":["RUN","x"]}}"#, 400, "Unknown healthcheck type 'RUN'"),
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
        request(
            r#"{"HostConfig":{"Sysctls":{"net.core.somaxconn":"1"},"NoSuchThing":1,"Isolation":"default",
            "UsernsMode":"host","LxcConf":[{}]}}"#,
        )
        .unwrap();
    }
}
