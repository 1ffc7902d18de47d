//! The command line: dockerd's flags by their names, and Berth's own. Nothing is checked here; what was given becomes a map with
//! the keys of the configuration file.

use clap::Parser;
use serde::Serialize;
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Command line of `berth-engine`.
#[derive(Debug, Default, Clone, Parser, Serialize)]
#[command(
    name = "berth-engine",
    version,
    about = "Serves the Docker Engine API.",
    after_help = "`berth-engine check` says what of links and rules isn't as it has to be, `berth-engine cleanup` takes them away when no engine \
                  runs. Both take the engine's options."
)]
#[serde(rename_all = "kebab-case")]
pub struct Args {
    /// Where containers, logs and volumes are kept [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Where sockets and other state that ends with the machine is kept [default: /run/berth]
    #[arg(long, value_name = "DIR", alias = "exec-root")]
    #[serde(rename = "exec-root")]
    pub run_root: Option<PathBuf>,
    /// Address to serve on, may be repeated: unix:///PATH, tcp://HOST:PORT, fd:// [default: unix://RUN_ROOT/engine.sock]
    #[arg(short = 'H', long = "host", visible_alias = "listen", value_name = "ADDRESS")]
    #[serde(rename = "hosts")]
    pub listen: Vec<String>,
    /// Group that may use the unix socket [default: berth]
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Address of berth-supervisor or another containerd [default: unix://RUN_ROOT/supervisor.sock]
    #[arg(long, value_name = "unix:///PATH", alias = "containerd")]
    pub supervisor: Option<String>,
    /// OCI runtime of containers that name none [default: berth-runtime]
    #[arg(long, value_name = "NAME|PATH", visible_alias = "default-runtime")]
    #[serde(rename = "default-runtime")]
    pub runtime: Option<String>,
    /// Another OCI runtime that containers may ask for, may be repeated
    #[arg(long = "add-runtime", value_name = "NAME=PATH")]
    pub runtimes: Vec<String>,
    /// Snapshotter of the supervisor for new containers and images, say overlayfs or native [default: the supervisor's]
    #[arg(short = 's', long, value_name = "NAME")]
    pub storage_driver: Option<String>,
    /// Options of the storage driver
    #[arg(long = "storage-opt", value_name = "KEY=VALUE")]
    pub storage_opts: Vec<String>,
    /// Name of the default bridge [default: berth0]
    #[arg(short = 'b', long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Address and prefix of the default bridge [default: the first free of docker's]
    #[arg(long, value_name = "CIDR")]
    pub bip: Option<String>,
    /// IPv6 address and prefix of the default bridge
    #[arg(long, value_name = "CIDR")]
    pub bip6: Option<String>,
    /// MTU of containers' networks [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Registry whose certificate isn't checked and which may speak plain HTTP: HOST, HOST:PORT or a network; may be repeated
    #[arg(long = "insecure-registry", value_name = "HOST|CIDR")]
    pub insecure_registries: Vec<String>,
    /// Mirror of Docker Hub that is asked first, may be repeated
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub registry_mirrors: Vec<String>,
    /// Configuration file: docker's daemon.json, or TOML [default: /etc/berth/daemon.json or engine.toml, if there]
    #[arg(long, value_name = "FILE", alias = "config-file")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    #[serde(skip)]
    pub validate: bool,
    /// Serve tcp:// without client certificates: whoever reaches the port becomes root of this machine
    #[arg(long)]
    #[serde(skip)]
    pub insecure_tcp: bool,

    /// Tell more in the log
    #[arg(short = 'D', long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub debug: Option<bool>,
    /// debug, info, warn, error or fatal [default: info]
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log without colours, as it always is
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub raw_logs: Option<bool>,
    /// Log driver of containers that name none [default: json-file]
    #[arg(long, value_name = "NAME")]
    pub log_driver: Option<String>,
    /// Option of that log driver, may be repeated
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    pub log_opts: Vec<String>,
    /// Label of this engine, may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Limit of processes of containers that name none, may be repeated
    #[arg(long = "default-ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub default_ulimits: Vec<String>,
    /// Size of /dev/shm [default: 64M]
    #[arg(long, value_name = "BYTES")]
    pub default_shm_size: Option<String>,
    /// private or host [default: private on cgroup2 hosts and on others]
    #[arg(long, value_name = "MODE")]
    pub default_cgroupns_mode: Option<String>,
    /// private or shareable [default: private]
    #[arg(long, value_name = "MODE")]
    pub default_ipc_mode: Option<String>,
    /// Run an init in each container that doesn't say otherwise
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub init: Option<bool>,
    /// Path of docker-init
    #[arg(long, value_name = "PATH")]
    pub init_path: Option<String>,
    /// Parent of containers' cgroups
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Seccomp profile of containers that name none
    #[arg(long, value_name = "FILE")]
    pub seccomp_profile: Option<String>,
    /// No privileges by setuid programs in containers that don't say otherwise
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub no_new_privileges: Option<bool>,
    /// DNS server of containers that name none, may be repeated
    #[arg(long, value_name = "IP")]
    pub dns: Vec<String>,
    /// Option of resolv.conf, may be repeated
    #[arg(long = "dns-opt", value_name = "OPTION")]
    pub dns_opts: Vec<String>,
    /// Search domain, may be repeated
    #[arg(long, value_name = "DOMAIN")]
    pub dns_search: Vec<String>,
    /// Address of this host that ports are published on [default: 0.0.0.0]
    #[arg(long, value_name = "IP")]
    pub ip: Option<String>,
    /// Containers outlive the engine: always so
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub live_restore: Option<bool>,
    /// Ports are published by the kernel, also those of 127.0.0.1
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub userland_proxy: Option<bool>,
    #[arg(long, hide = true)]
    pub userland_proxy_path: Option<String>,
    /// Firewall rules, which published ports need
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub iptables: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub ip6tables: Option<bool>,
    /// The default bridge has IPv6, too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ipv6: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub ip_forward: Option<bool>,
    /// What leaves the default bridge gets the host's address
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub ip_masq: Option<bool>,
    /// Containers on the default bridge reach each other
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub icc: Option<bool>,
    /// Where containers on the default bridge get their IPv4 addresses from
    #[arg(long, value_name = "CIDR")]
    pub fixed_cidr: Option<String>,
    /// The default bridge's IPv6 network
    #[arg(long, value_name = "CIDR")]
    pub fixed_cidr_v6: Option<String>,
    #[arg(long, hide = true)]
    pub default_gateway: Option<String>,
    #[arg(long, hide = true)]
    pub default_gateway_v6: Option<String>,
    /// Where the subnets of new networks are taken from, may be repeated
    #[arg(long = "default-address-pool", value_name = "base=CIDR,size=BITS")]
    pub default_address_pools: Vec<String>,
    /// Option of new networks that say nothing about it, may be repeated
    #[arg(long = "default-network-opt", value_name = "DRIVER=OPTION=VALUE")]
    pub default_network_opts: Vec<String>,
    #[arg(long, hide = true)]
    pub firewall_backend: Option<String>,
    #[arg(long, hide = true)]
    pub host_gateway_ip: Option<String>,
    #[arg(long, hide = true)]
    pub network_control_plane_mtu: Option<u32>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub selinux_enabled: Option<bool>,
    #[arg(long, hide = true)]
    pub userns_remap: Option<String>,
    #[arg(long = "exec-opt", hide = true)]
    pub exec_opts: Vec<String>,
    #[arg(long, hide = true)]
    pub cpu_rt_period: Option<i64>,
    #[arg(long, hide = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// Say that experimental features are on
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub experimental: Option<bool>,
    /// A feature to switch, may be repeated
    #[arg(long = "feature", value_name = "NAME[=BOOL]")]
    pub features: Vec<String>,
    /// Serve metrics for Prometheus on this address: HOST:PORT or unix:///PATH
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_addr: Option<String>,
    #[arg(long, hide = true)]
    pub api_cors_header: Option<String>,
    /// File for the number of the engine's process
    #[arg(short = 'p', long, value_name = "FILE")]
    pub pidfile: Option<String>,
    /// oom_score_adj of the engine
    #[arg(long, value_name = "SCORE")]
    pub oom_score_adjust: Option<i32>,
    /// Seconds that requests in hand get when the engine ends [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub shutdown_timeout: Option<i64>,
    /// Layers of one image that are fetched at the same time [default: 6]
    #[arg(long, value_name = "N")]
    pub max_concurrent_downloads: Option<i64>,
    /// The same for a push [default: 6]
    #[arg(long, value_name = "N")]
    pub max_concurrent_uploads: Option<i64>,
    #[arg(long, hide = true)]
    pub max_download_attempts: Option<i64>,
    /// Oldest version of the API that is served [default: 1.24]
    #[arg(long, value_name = "VERSION")]
    pub min_api_version: Option<String>,
    /// TLS on tcp://
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls: Option<bool>,
    /// TLS on tcp://, with client certificates that are checked
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tlsverify: Option<bool>,
    /// Certificates that sign those of clients
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// The engine's certificate
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Proxy for the supervisor that the engine starts
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    pub http_proxy: Option<String>,
    /// The same for HTTPS
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    pub https_proxy: Option<String>,
    /// Hosts that need no proxy
    #[arg(long, value_name = "HOSTS")]
    #[serde(skip)]
    pub no_proxy: Option<String>,
    #[arg(long = "authorization-plugin", hide = true)]
    pub authorization_plugins: Vec<String>,
    #[arg(long = "node-generic-resource", hide = true)]
    pub node_generic_resources: Vec<String>,
    #[arg(long, hide = true)]
    pub swarm_default_advertise_addr: Option<String>,
    #[arg(long = "allow-nondistributable-artifacts", hide = true)]
    pub allow_nondistributable_artifacts: Vec<String>,
    #[arg(long, hide = true)]
    pub containerd_namespace: Option<String>,
    #[arg(long, hide = true)]
    pub containerd_plugins_namespace: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub cri_containerd: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub rootless: Option<bool>,
    /// Folder with CDI specifications, may be repeated
    #[arg(long = "cdi-spec-dir", value_name = "DIR")]
    pub cdi_spec_dirs: Vec<String>,
    /// Bytes that images may take before those without a name go, oldest first; "off" for no limit [default: a tenth of the disk]
    #[arg(long, value_name = "BYTES")]
    pub image_budget: Option<String>,
    /// Also remove images with a name that no container uses, least recently used first
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub image_budget_named: Option<bool>,
    /// Bytes that all logs of containers may take before the oldest rotated files go; "off" for no limit
    #[arg(long, value_name = "BYTES")]
    pub log_budget: Option<String>,
}

impl Args {
    /// What was given, by the keys of the file.
    pub fn given(&self) -> Result<Map<String, Value>, String> {
        let Ok(Value::Object(mut map)) = serde_json::to_value(self) else { return Ok(Map::new()) };
        map.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        let words = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap_or_default() };
        if let Some(value) = map.get_mut("log-opts") {
            let options = words(value).into_iter().map(|text| pair(&text, "--log-opt"));
            *value = options.collect::<Result<Map<_, _>, _>>()?.into();
        }
        if let Some(value) = map.get_mut("default-network-opts") {
            let mut drivers = Map::new();
            for text in words(value) {
                let (driver, option) = text.split_once('=').unwrap_or((&text, ""));
                let (name, value) = pair(option, "--default-network-opt").map_err(|_| {
                    format!("invalid argument {text:?} for --default-network-opt: not DRIVER=OPTION=VALUE")
                })?;
                let options = drivers.entry(driver).or_insert_with(|| Map::new().into());
                options[name] = value;
            }
            *value = drivers.into();
        }
        if let Some(value) = map.get_mut("features") {
            let mut features = Map::new();
            for text in words(value) {
                let (name, on) = text.split_once('=').unwrap_or((&text, "true"));
                let on = on.parse::<bool>().map_err(|_| format!("--feature {text}: neither true nor false"))?;
                features.insert(name.to_owned(), on.into());
            }
            *value = features.into();
        }
        if let Some(value) = map.get_mut("runtimes") {
            let mut runtimes = Map::new();
            for text in words(value) {
                let (name, path) = pair(&text, "--add-runtime")?;
                runtimes.insert(name, serde_json::json!({ "path": path }));
            }
            *value = runtimes.into();
        }
        if let Some(value) = map.get_mut("default-ulimits") {
            let mut limits = Map::new();
            for text in words(value) {
                let bad = || format!("invalid argument {text:?} for --default-ulimit: not NAME=SOFT[:HARD]");
                let (name, numbers) = text.split_once('=').ok_or_else(bad)?;
                let (soft, hard) = numbers.split_once(':').unwrap_or((numbers, numbers));
                let (soft, hard): (i64, i64) = (soft.parse().map_err(|_| bad())?, hard.parse().map_err(|_| bad())?);
                limits.insert(name.to_owned(), serde_json::json!({"Name": name, "Soft": soft, "Hard": hard}));
            }
            *value = limits.into();
        }
        if let Some(value) = map.get_mut("default-address-pools") {
            let mut pools = Vec::new();
            for text in words(value) {
                let bad = || format!("invalid argument {text:?} for --default-address-pool: not base=CIDR,size=BITS");
                let field =
                    |name: &str| text.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
                let size: u8 = field("size").and_then(|n| n.parse().ok()).ok_or_else(bad)?;
                pools.push(serde_json::json!({"base": field("base").ok_or_else(bad)?, "size": size}));
            }
            *value = pools.into();
        }
        let proxies =
            [("http-proxy", &self.http_proxy), ("https-proxy", &self.https_proxy), ("no-proxy", &self.no_proxy)];
        let proxies: Map<String, Value> =
            proxies.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?.into()))).collect();
        if !proxies.is_empty() {
            map.insert("proxies".into(), proxies.into());
        }
        Ok(map)
    }
}

fn pair(text: &str, flag: &str) -> Result<(String, Value), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("invalid argument {text:?} for {flag}: not KEY=VALUE"))?;
    Ok((key.to_owned(), value.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flags_become_keys() {
        let line = "berth-engine -H unix:///a -H tcp://b:1 -D --icc=false --log-opt max-size=1m --default-ulimit nofile=1:2 --add-runtime crun=/c \
                    --feature buildkit --default-address-pool base=10.0.0.0/8,size=24 --http-proxy p --exec-root /r";
        let args = Args::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(
            Value::Object(args.given().unwrap()),
            json!({
                "hosts": ["unix:///a", "tcp://b:1"], "debug": true, "icc": false, "log-opts": {"max-size": "1m"},
                "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1, "Hard": 2}}, "runtimes": {"crun": {"path": "/c"}},
                "features": {"buildkit": true}, "default-address-pools": [{"base": "10.0.0.0/8", "size": 24}],
                "proxies": {"http-proxy": "p"}, "exec-root": "/r",
            })
        );
        for bad in [
            "--log-opt x",
            "--default-ulimit nofile",
            "--feature a=b",
            "--default-address-pool base=1",
            "--add-runtime x",
        ] {
            let args = Args::try_parse_from(["berth-engine"].into_iter().chain(bad.split(' '))).unwrap();
            assert!(args.given().is_err(), "{bad}");
        }
        assert!(Args::try_parse_from(["berth-engine", "--no-such-flag"]).is_err());
    }
}
