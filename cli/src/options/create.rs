//! The body of `POST /containers/create`.

use super::devices::{self, Device};
use super::volumes::{self, Volume};
use super::{OptionError, envs, networks, ports::Ports, security};
use crate::args::run::{CreateArgs, HealthFlags, IsolationFlags, ResourceFlags};
use crate::client::ApiVersion;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What the flags depend on beside themselves.
pub struct Surroundings<'a> {
    /// Working directory of the client.
    pub cwd: &'a Path,
    /// Environment of the client.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Variables that config.json adds (proxies).
    pub extra_env: &'a [(String, String)],
    /// API agreed with the engine.
    pub version: ApiVersion,
    /// Rows and columns of the terminal.
    pub console: (u16, u16),
}

/// A container to be, and how the client is to be connected with it.
#[derive(Debug)]
pub struct Request {
    /// The body.
    pub body: Value,
    /// Image as given.
    pub image: String,
    /// Attach to standard input.
    pub stdin: bool,
    /// Attach to standard output.
    pub stdout: bool,
    /// Attach to standard error.
    pub stderr: bool,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Works out the request; with `detached`, nothing is attached.
pub fn request(args: &CreateArgs, detached: bool, around: &Surroundings<'_>) -> Result<Request, OptionError> {
    let process = &args.process;
    let restart = restart_policy(&process.restart)?;
    let swappiness = args.resources.memory_swappiness;
    if swappiness != -1 && !(0..=100).contains(&swappiness) {
        let text = format!("invalid value: {swappiness}. Valid memory swappiness range is 0-100");
        return Err(OptionError::Invalid(text));
    }
    if process.rm && !matches!(process.restart.as_str(), "no" | "") {
        return Err(OptionError::Conflict("cannot specify both --restart and --rm"));
    }
    let [image, command @ ..] = &args.words[..] else {
        return Err(OptionError::Invalid("an image is required".to_owned()));
    };
    let attached = |name: &str| !detached && process.attach.iter().any(|a| a == name);
    let all = !detached && process.attach.is_empty();
    let (stdin, stdout, stderr) =
        (attached("stdin") || (all && process.interactive), attached("stdout") || all, attached("stderr") || all);

    let mut warnings = Vec::new();
    if args.resources.kernel_memory.is_some() {
        warnings.push("WARNING: --kernel-memory has no effect: kernels since 5.4 have no such limit".to_owned());
    }
    let networks = networks::resolve(&args.network)?;
    let mut ports = Ports::default();
    for text in &args.network.publish {
        ports.publish(text)?;
    }
    for text in &args.network.expose {
        ports.expose(text)?;
    }
    let mut config = container_config(args, command, image, around)?;
    config.insert("AttachStdin".into(), json!(stdin));
    config.insert("AttachStdout".into(), json!(stdout));
    config.insert("AttachStderr".into(), json!(stderr));
    config.insert("OpenStdin".into(), json!(process.interactive));
    config.insert("StdinOnce".into(), json!(process.interactive && stdin));
    if !ports.exposed.is_empty() {
        config.insert("ExposedPorts".into(), Value::Object(ports.exposed));
    }
    // Engines before API 1.44 know one address, of the container and not of its network.
    if !networks.mac.is_empty() && (around.version < ApiVersion { major: 1, minor: 44 }) {
        config.insert("MacAddress".into(), json!(networks.mac));
    }
    let mut host = host_config(args, &networks.mode, around)?;
    host.insert("RestartPolicy".into(), restart);
    host.insert("PortBindings".into(), Value::Object(ports.bindings));
    let mut anonymous = Map::new();
    let mut binds = Vec::new();
    for text in &args.storage.volume {
        match volumes::parse(text, around.cwd)? {
            Volume::Bind(bind) => binds.push(bind),
            Volume::Anonymous(path) => {
                anonymous.insert(path, json!({}));
            }
        }
    }
    config.insert("Volumes".into(), Value::Object(anonymous));
    host.insert("Binds".into(), if binds.is_empty() { Value::Null } else { json!(binds) });
    config.insert("HostConfig".into(), Value::Object(host));
    config.insert("NetworkingConfig".into(), json!({ "EndpointsConfig": networks.endpoints }));
    Ok(Request { body: Value::Object(config), image: image.clone(), stdin, stdout, stderr, warnings })
}

fn container_config(
    args: &CreateArgs,
    command: &[String],
    image: &str,
    around: &Surroundings<'_>,
) -> Result<Map<String, Value>, OptionError> {
    let process = &args.process;
    let mut env = envs::environment(&process.env_file, &process.env, around.env)?;
    for (name, value) in around.extra_env {
        if !env.iter().any(|set| set.split('=').next() == Some(name)) {
            env.push(format!("{name}={value}"));
        }
    }
    let entrypoint = process.entrypoint.as_ref().map_or(Value::Null, |program| json!([program]));
    let list = |items: &[String]| if items.is_empty() { Value::Null } else { json!(items) };
    let mut config = object(json!({
        "Hostname": args.network.hostname,
        "Domainname": args.network.domainname,
        "User": process.user,
        "Tty": process.tty,
        "Env": list(&env),
        "Cmd": list(command),
        "Image": image,
        "WorkingDir": process.workdir,
        "Entrypoint": entrypoint,
        "Labels": envs::labels(&process.label_file, &process.label)?,
    }));
    if let Some(signal) = &process.stop_signal {
        config.insert("StopSignal".into(), json!(signal));
    }
    if let Some(seconds) = process.stop_timeout {
        config.insert("StopTimeout".into(), json!(seconds));
    }
    if let Some(check) = health(&args.health)? {
        config.insert("Healthcheck".into(), check);
    }
    Ok(config)
}

fn health(flags: &HealthFlags) -> Result<Option<Value>, OptionError> {
    let times = [
        ("Interval", "--health-interval", flags.health_interval),
        ("Timeout", "--health-timeout", flags.health_timeout),
        ("StartPeriod", "--health-start-period", flags.health_start_period),
        ("StartInterval", "--health-start-interval", flags.health_start_interval),
    ];
    let any = !flags.health_cmd.is_empty() || flags.health_retries != 0 || times.iter().any(|(_, _, t)| t.is_some());
    if flags.no_healthcheck {
        if any {
            return Err(OptionError::Invalid("--no-healthcheck conflicts with --health-* options".to_owned()));
        }
        return Ok(Some(json!({ "Test": ["NONE"] })));
    }
    if !any {
        return Ok(None);
    }
    let mut check = Map::new();
    if !flags.health_cmd.is_empty() {
        check.insert("Test".into(), json!(["CMD-SHELL", flags.health_cmd]));
    }
    if flags.health_retries < 0 {
        return Err(OptionError::Invalid("--health-retries cannot be negative".to_owned()));
    }
    if flags.health_retries > 0 {
        check.insert("Retries".into(), json!(flags.health_retries));
    }
    for (name, flag, time) in times {
        let Some(time) = time else { continue };
        if time.0 < 0 {
            return Err(OptionError::Invalid(format!("{flag} cannot be negative")));
        }
        check.insert(name.into(), json!(time.0));
    }
    Ok(Some(Value::Object(check)))
}

fn host_config(
    args: &CreateArgs,
    network_mode: &str,
    around: &Surroundings<'_>,
) -> Result<Map<String, Value>, OptionError> {
    let (process, storage, isolation) = (&args.process, &args.storage, &args.isolation);
    check_modes(isolation)?;
    let log_options = envs::map(&process.log_opt);
    if process.log_driver == "none" && !log_options.is_empty() {
        return Err(OptionError::Invalid("invalid logging opts for driver none".to_owned()));
    }
    let mut host = resources(&args.resources);
    host.append(&mut object(json!({
        "AutoRemove": process.rm,
        "LogConfig": { "Type": process.log_driver, "Config": log_options },
        "NetworkMode": network_mode,
        "VolumeDriver": storage.volume_driver,
        "VolumesFrom": storage.volumes_from,
        "ReadonlyRootfs": storage.read_only,
        "ShmSize": storage.shm_size.unwrap_or_default().0,
        "ConsoleSize": [around.console.0, around.console.1],
        "CapAdd": security::capabilities(&isolation.cap_add),
        "CapDrop": security::capabilities(&isolation.cap_drop),
        "Privileged": isolation.privileged,
        "PidMode": isolation.pid,
        "IpcMode": isolation.ipc,
        "UTSMode": isolation.uts,
        "UsernsMode": isolation.userns,
        "CgroupnsMode": isolation.cgroupns,
        "Isolation": isolation.isolation,
        "Dns": args.network.dns,
        "DnsOptions": args.network.dns_option,
        "DnsSearch": args.network.dns_search,
        "ExtraHosts": args.network.add_host,
        "Links": args.network.link,
        "PublishAllPorts": args.network.publish_all,
        "GroupAdd": process.group_add,
        "ContainerIDFile": process.cidfile.as_deref().unwrap_or_default(),
    })));
    let security = security::parse(&isolation.security_opt)?;
    host.insert("SecurityOpt".into(), json!(security.options));
    if security.paths_unconfined {
        host.insert("MaskedPaths".into(), json!([]));
        host.insert("ReadonlyPaths".into(), json!([]));
    }
    if !isolation.runtime.is_empty() {
        host.insert("Runtime".into(), json!(isolation.runtime));
    }
    if process.init {
        host.insert("Init".into(), json!(true));
    }
    let maps = [
        ("Annotations", pairs(&process.annotation)),
        ("Sysctls", pairs(&isolation.sysctl)),
        ("StorageOpt", envs::map(&storage.storage_opt)),
        ("Tmpfs", storage.tmpfs.iter().map(|t| volumes::tmpfs(t)).map(|(path, opts)| (path, json!(opts))).collect()),
    ];
    host.extend(
        maps.into_iter().filter(|(_, map)| !map.is_empty()).map(|(name, map)| (name.into(), Value::Object(map))),
    );
    if !storage.mount.is_empty() {
        host.insert("Mounts".into(), storage.mount.iter().map(|mount| mount.0.clone()).collect());
    }
    let (mut nodes, mut cdi) = (Vec::new(), Vec::new());
    for text in &storage.device {
        match devices::parse(text)? {
            Device::Node(outer, inner, mode) => {
                nodes.push(json!({"PathOnHost": outer, "PathInContainer": inner, "CgroupPermissions": mode}));
            }
            Device::Cdi(name) => cdi.push(name),
        }
    }
    let mut requests: Vec<Value> = storage.gpus.iter().map(|request| request.0.clone()).collect();
    if !cdi.is_empty() {
        requests.push(json!({"Driver": "cdi", "Count": 0, "DeviceIDs": cdi, "Capabilities": null, "Options": null}));
    }
    host.insert("Devices".into(), json!(nodes));
    host.insert("DeviceRequests".into(), if requests.is_empty() { Value::Null } else { json!(requests) });
    host.insert("DeviceCgroupRules".into(), json!(storage.device_cgroup_rule));
    Ok(host)
}

fn resources(flags: &ResourceFlags) -> Map<String, Value> {
    let size = |value: Option<crate::args::values::ByteSize>| value.unwrap_or_default().0;
    let rates =
        |all: &[devices::ThrottleDevice]| -> Value { all.iter().map(|d| json!({"Path": d.0, "Rate": d.1})).collect() };
    let weights: Value = flags.blkio_weight_device.iter().map(|d| json!({"Path": d.0, "Weight": d.1})).collect();
    let ulimits: Value = flags.ulimit.iter().map(|u| json!({"Name": u.name, "Soft": u.soft, "Hard": u.hard})).collect();
    object(json!({
        "Memory": size(flags.memory),
        "MemoryReservation": size(flags.memory_reservation),
        "MemorySwap": size(flags.memory_swap),
        "MemorySwappiness": flags.memory_swappiness,
        "NanoCpus": flags.cpus.unwrap_or(0),
        "CpuShares": flags.cpu_shares,
        "CpuPeriod": flags.cpu_period,
        "CpuQuota": flags.cpu_quota,
        "CpuRealtimePeriod": flags.cpu_rt_period,
        "CpuRealtimeRuntime": flags.cpu_rt_runtime,
        "CpusetCpus": flags.cpuset_cpus,
        "CpusetMems": flags.cpuset_mems,
        "PidsLimit": flags.pids_limit,
        "BlkioWeight": flags.blkio_weight,
        "BlkioWeightDevice": weights,
        "BlkioDeviceReadBps": rates(&flags.device_read_bps),
        "BlkioDeviceWriteBps": rates(&flags.device_write_bps),
        "BlkioDeviceReadIOps": rates(&flags.device_read_iops),
        "BlkioDeviceWriteIOps": rates(&flags.device_write_iops),
        "OomKillDisable": flags.oom_kill_disable,
        "OomScoreAdj": flags.oom_score_adj,
        "Ulimits": ulimits,
        "CgroupParent": flags.cgroup_parent,
        "CpuCount": flags.cpu_count.unwrap_or(0),
        "CpuPercent": flags.cpu_percent.unwrap_or(0),
        "IOMaximumBandwidth": size(flags.io_maxbandwidth),
        "IOMaximumIOps": flags.io_maxiops.unwrap_or(0),
    }))
}

fn check_modes(flags: &IsolationFlags) -> Result<(), OptionError> {
    let container = |mode: &str| mode.strip_prefix("container:").is_some_and(|name| !name.is_empty());
    let bad = |text: &str| Err(OptionError::Invalid(text.to_owned()));
    if !(matches!(flags.pid.as_str(), "" | "host") || container(&flags.pid)) {
        return bad("--pid: invalid PID mode");
    }
    if !matches!(flags.uts.as_str(), "" | "host") {
        return bad("--uts: invalid UTS mode");
    }
    if !matches!(flags.userns.as_str(), "" | "host") {
        return bad("--userns: invalid USER mode");
    }
    if !matches!(flags.cgroupns.as_str(), "" | "host" | "private") {
        return bad("--cgroupns: invalid CGROUP mode");
    }
    Ok(())
}

/// `--restart`: a name, and a number of tries after a colon.
pub fn restart_policy(text: &str) -> Result<Value, OptionError> {
    let (name, count) = match text.split_once(':') {
        Some((name, count)) => (name, Some(count)),
        None => (text, None),
    };
    if count.is_some_and(|c| c.contains(':')) {
        return Err(OptionError::Invalid("invalid restart policy format".to_owned()));
    }
    if count.is_some() && name.is_empty() {
        return Err(OptionError::Invalid("invalid restart policy format: no policy provided before colon".to_owned()));
    }
    let count: i64 = match count {
        None => 0,
        Some(count) => count.parse().map_err(|_| {
            OptionError::Invalid("invalid restart policy format: maximum retry count must be an integer".to_owned())
        })?,
    };
    Ok(json!({ "Name": name, "MaximumRetryCount": count }))
}

fn pairs(words: &[(String, String)]) -> Map<String, Value> {
    words.iter().map(|(key, value)| (key.clone(), json!(value))).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests;
