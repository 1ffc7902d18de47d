//! Arguments and the configuration file become one complete `Config`. The file is docker's daemon.json, or TOML with the same keys.
//! Of daemon.json and flags each may say a thing once, as with dockerd; in TOML a flag wins over the file, and the file over the
//! default. Only this module reads the environment (`BERTH_LOG`, `DOCKER_MIN_API_VERSION`, `DBUS_SYSTEM_BUS_ADDRESS`, `container`).

mod address;
mod args;
mod budget;
mod builder;
mod container;
mod keys;
mod live;
mod network;
mod settings;

pub use address::Address;
pub use args::Args;
pub use budget::{Budget, parse_size};
pub use builder::{BuilderConfig, duration};
pub use container::ContainerDefaults;
pub use live::Live;
pub use network::DefaultBridge;
pub use settings::{AddressPool, Proxies};

use crate::access::{AccessConfig, AccessError};
use crate::http::{ApiVersion, Manner};
use crate::registries::RegistriesError;
use serde_json::{Map, Value};
use settings::Settings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a configuration is looked for, in this order.
const PLACES: [&str; 2] = ["/etc/berth/daemon.json", "/etc/berth/engine.toml"];

/// Whether the engine is in a container itself, as those who make containers tell by the variable `container`.
pub fn in_container() -> bool {
    std::env::var_os("container").is_some_and(|name| !name.is_empty())
}

/// Sockets of the system's message bus.
fn system_bus() -> Vec<String> {
    match std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok().filter(|text| !text.is_empty()) {
        Some(address) => sys::dbus::sockets(&address),
        None => vec!["/run/dbus/system_bus_socket".to_owned()],
    }
}

/// Everything the engine is told from outside, complete and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root of what must survive a reboot.
    pub data_root: PathBuf,
    /// Root of what need not.
    pub run_root: PathBuf,
    /// Where to serve; empty for the service manager's sockets, or [`Config::default_socket`].
    pub listen: Vec<Address>,
    /// Group of unix sockets.
    pub group: String,
    /// Whether somebody asked for that very group.
    pub group_chosen: bool,
    /// TLS of TCP sockets.
    pub tls: Tls,
    /// Path of the supervisor's socket.
    pub supervisor: PathBuf,
    /// Whether the engine may start the supervisor itself: only when the socket was not chosen by the user.
    pub owns_supervisor: bool,
    /// Proxies for that supervisor.
    pub proxies: Proxies,
    /// Snapshotter for what is made from now on, if one was chosen.
    pub storage_driver: Option<String>,
    /// The default bridge.
    pub bridge: DefaultBridge,
    /// Sockets of the system's message bus.
    pub bus: Vec<String>,
    /// Options of new networks that say nothing about them, by driver.
    pub network_options: BTreeMap<String, BTreeMap<String, String>>,
    /// MTU of networks.
    pub mtu: u32,
    /// Where subnets of new networks are taken from; empty for docker's.
    pub address_pools: Vec<AddressPool>,
    /// The same, or the default ones: where subnets of networks come from that say nothing.
    pub pools: Vec<crate::networks::Pool>,
    /// Folders with CDI specifications; empty for the usual ones.
    #[allow(dead_code, reason = "read where devices are looked up")]
    pub cdi_spec_dirs: Vec<String>,
    /// Folders with plugins; empty for docker's and one below the run root.
    pub plugin_dirs: Vec<PathBuf>,
    /// What containers get that don't say otherwise.
    pub containers: ContainerDefaults,
    /// How much disk images and logs may take.
    pub budget: Budget,
    /// What builds may do and keep.
    pub builder: BuilderConfig,
    /// Who may do what, and whether it is noted.
    pub access: AccessConfig,
    /// What all answers are like.
    pub manner: Manner,
    /// Log as JSON.
    pub json_log: bool,
    /// Where metrics are served.
    pub metrics: Option<Address>,
    /// File for the process' number.
    pub pidfile: Option<PathBuf>,
    /// oom_score_adj.
    pub oom_score_adjust: Option<i32>,
    /// What a reload replaces.
    pub live: Live,
    args: Args,
}

/// Files for TLS, and whether it may be done without.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// Speak TLS.
    pub on: bool,
    /// Clients show certificates.
    pub verify: bool,
    /// Certificates that sign those of clients.
    pub ca: PathBuf,
    /// The engine's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Whoever can connect may do everything.
    pub insecure: bool,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("unable to configure the engine with file {path}: {cause}")]
    File { path: PathBuf, cause: String },
    #[error("{0}")]
    Flags(String),
    #[error("{what} {path} is not an absolute path")]
    Relative { what: &'static str, path: PathBuf },
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Registries(#[from] RegistriesError),
}

impl Config {
    /// Merges flags, file and defaults.
    pub fn load(args: Args) -> Result<Self, ConfigError> {
        let flags = args.given().map_err(ConfigError::Flags)?;
        let found = args.config.clone().or_else(|| PLACES.map(PathBuf::from).into_iter().find(|path| path.exists()));
        let Some(path) = found else {
            let flags = keys::sort(flags).map_err(ConfigError::Flags)?;
            return Self::of(args, Settings::read(flags).map_err(ConfigError::Flags)?).map_err(told_by_flags);
        };
        let wrong = |cause: String| ConfigError::File { path: path.clone(), cause };
        let (file, kind) = read_file(&path).map_err(wrong)?;
        let file = keys::sort(file).map_err(wrong)?;
        // By itself first, so that it is said which of the two is wrong.
        Settings::read(file.clone())
            .map_err(|cause| wrong(format!("configuration validation from file failed: {cause}")))?;
        let flags = keys::sort(flags).map_err(ConfigError::Flags)?;
        if kind == Kind::Json {
            keys::conflicts(&flags, &file).map_err(wrong)?;
        }
        let merged = merge(file, flags);
        Self::of(args, Settings::read(merged).map_err(ConfigError::Flags)?).map_err(|error| match error {
            Wrong::Text(cause) => wrong(cause),
            Wrong::Other(error) => *error,
        })
    }

    /// The configuration as the same flags and the file as it is now give it.
    pub fn reload(&self) -> Result<Self, ConfigError> {
        Self::load(self.args.clone())
    }

    fn of(args: Args, settings: Settings) -> Result<Self, Wrong> {
        let pools = network::pools(&settings)?;
        let network_options = network::options(&settings)?;
        let bridge = DefaultBridge::read(&settings)?;
        let live = Live::new(&settings, std::env::var("BERTH_LOG").ok()).map_err(ConfigError::from)?;
        let data_root = settings.data_root.unwrap_or_else(|| "/var/lib/berth".into());
        let run_root = settings.exec_root.unwrap_or_else(|| "/run/berth".into());
        for (what, path) in [("data root", &data_root), ("run root", &run_root)] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { what, path: path.clone() }.into());
            }
        }
        let folder = PathBuf::from("/etc/berth");
        if let Some(path) = settings.plugin_dirs.iter().find(|path| !path.is_absolute()) {
            return Err(ConfigError::Relative { what: "plugin folder", path: path.clone() }.into());
        }
        let tls = Tls {
            on: settings.tls == Some(true) || settings.tlsverify == Some(true),
            verify: settings.tlsverify == Some(true),
            ca: settings.tlscacert.unwrap_or_else(|| folder.join("ca.pem")),
            cert: settings.tlscert.unwrap_or_else(|| folder.join("cert.pem")),
            key: settings.tlskey.unwrap_or_else(|| folder.join("key.pem")),
            insecure: args.insecure_tcp || (settings.tls == Some(false) && settings.tlsverify != Some(true)),
        };
        let default_socket = run_root.join("engine.sock");
        let listen = settings.hosts.iter().map(|text| Address::parse(text, &default_socket, tls.on));
        let listen = listen.collect::<Result<Vec<_>, _>>()?;
        if let Some(Address::Tcp(at)) = listen.iter().find(|address| matches!(address, Address::Tcp(_)))
            && !(tls.verify || tls.insecure)
        {
            return Err(Wrong::Text(format!(
                "tcp://{at} without client certificates gives this machine to whoever connects: use --tlsverify with --tlscacert, --tlscert and --tlskey, or say --insecure-tcp"
            )));
        }
        let default_supervisor = run_root.join("supervisor.sock");
        let supervisor = match settings.supervisor.as_deref() {
            None | Some("") => default_supervisor.clone(),
            Some(text) => {
                let path = text.strip_prefix("unix://").unwrap_or(text);
                if !path.starts_with('/') {
                    return Err(Wrong::Text(format!("supervisor {text:?}: not unix:///PATH")));
                }
                PathBuf::from(path)
            }
        };
        let owns_supervisor = supervisor == default_supervisor;
        if settings.proxies != Proxies::default() && !owns_supervisor {
            return Err(Wrong::Text(
                "proxies: it is the supervisor that talks to registries, and this one is started by somebody else: set HTTPS_PROXY for it".into(),
            ));
        }
        let minimum = settings.min_api_version.or_else(|| std::env::var("DOCKER_MIN_API_VERSION").ok());
        let minimum = match minimum.filter(|text| !text.is_empty()) {
            None => ApiVersion::MINIMUM,
            Some(text) => ApiVersion::parse(&text)
                .filter(|version| (ApiVersion::MINIMUM..=ApiVersion::CURRENT).contains(version))
                .ok_or_else(|| {
                    format!(
                        "min-api-version: {text:?} is not a version from {} to {}",
                        ApiVersion::MINIMUM,
                        ApiVersion::CURRENT
                    )
                })?,
        };
        let cors = match settings.api_cors_header.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| format!("api-cors-header: {text:?} fits in no header"))?),
        };
        let metrics = match settings.metrics_addr.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) if text.contains("://") => Some(Address::parse(&text, &default_socket, false)?),
            Some(text) => Some(Address::parse(&format!("tcp://{text}"), &default_socket, false)?),
        };
        let budget = Budget::read(
            settings.image_budget.as_deref(),
            settings.image_budget_named,
            settings.log_budget.as_deref(),
            &data_root,
        )?;
        let builder = settings.builder.read(budget::disk(&data_root))?;
        if let Some(mtu) = settings.mtu.filter(|mtu| *mtu != 0 && !(68..=65_535).contains(mtu)) {
            return Err(Wrong::Text(format!("mtu: {mtu} is not from 68 to 65535")));
        }
        if let Some(score) = settings.oom_score_adjust.filter(|score| !(-1000..=1000).contains(score)) {
            return Err(Wrong::Text(format!("oom-score-adjust: {score} is not from -1000 to 1000")));
        }
        Ok(Self {
            access: AccessConfig::new(settings.access, settings.audit, &data_root).map_err(ConfigError::from)?,
            listen,
            group_chosen: settings.group.is_some(),
            group: settings.group.filter(|name| !name.is_empty()).unwrap_or_else(|| "berth".into()),
            tls,
            owns_supervisor,
            supervisor,
            proxies: settings.proxies,
            storage_driver: settings.storage_driver.filter(|name| !name.is_empty()),
            bridge,
            bus: system_bus(),
            network_options,
            mtu: settings.mtu.filter(|mtu| *mtu != 0).unwrap_or(1500),
            address_pools: settings.default_address_pools,
            pools,
            cdi_spec_dirs: settings.cdi_spec_dirs,
            plugin_dirs: settings.plugin_dirs,
            containers: settings.containers,
            budget,
            builder,
            manner: Manner { minimum, experimental: settings.experimental, cors },
            json_log: settings.log_format.as_deref() == Some("json"),
            metrics,
            pidfile: settings.pidfile.filter(|path| !path.as_os_str().is_empty()),
            oom_score_adjust: settings.oom_score_adjust,
            live,
            data_root,
            run_root,
            args,
        })
    }

    /// Where the engine serves if nobody says otherwise.
    pub fn default_socket(&self) -> PathBuf {
        self.run_root.join("engine.sock")
    }

    /// Folder of the engine below the data root.
    pub fn engine_data(&self) -> PathBuf {
        self.data_root.join("engine")
    }

    /// Where plugins are looked for.
    pub fn plugin_folders(&self) -> Vec<PathBuf> {
        if !self.plugin_dirs.is_empty() {
            return self.plugin_dirs.clone();
        }
        let usual = crate::volumes::plugins::FOLDERS.map(PathBuf::from);
        std::iter::once(self.engine_run().join("plugins")).chain(usual).collect()
    }

    /// Folder of the engine below the run root.
    pub fn engine_run(&self) -> PathBuf {
        self.run_root.join("engine")
    }
}

/// Found in the whole of flags and file.
enum Wrong {
    Text(String),
    Other(Box<ConfigError>),
}

impl From<String> for Wrong {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<ConfigError> for Wrong {
    fn from(error: ConfigError) -> Self {
        Self::Other(Box::new(error))
    }
}

fn told_by_flags(wrong: Wrong) -> ConfigError {
    match wrong {
        Wrong::Text(cause) => ConfigError::Flags(cause),
        Wrong::Other(error) => *error,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Json,
    Toml,
}

fn read_file(path: &Path) -> Result<(Map<String, Value>, Kind), String> {
    let text = std::fs::read_to_string(path).map_err(|cause| format!("open {}: {cause}", path.display()))?;
    let text = text.trim_start_matches('\u{feff}');
    // No TOML begins with a brace.
    let named = path.extension().is_some_and(|extension| extension == "json");
    let kind = if named || text.trim_start().starts_with('{') { Kind::Json } else { Kind::Toml };
    if text.trim().is_empty() {
        return Ok((Map::new(), kind));
    }
    let read = match kind {
        Kind::Json => serde_json::from_str::<Map<String, Value>>(text).map_err(|error| error.to_string()),
        Kind::Toml => toml::from_str::<Map<String, Value>>(text)
            .map_err(|error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
    };
    Ok((read?, kind))
}

/// Flags win; runtimes and what is said about registries add up.
fn merge(mut file: Map<String, Value>, flags: Map<String, Value>) -> Map<String, Value> {
    for (key, value) in flags {
        match (key.as_str(), file.get_mut(&key), value) {
            ("runtimes", Some(Value::Object(all)), Value::Object(more)) => all.extend(more),
            ("insecure-registries" | "registry-mirrors", Some(Value::Array(all)), Value::Array(more)) => {
                all.splice(0..0, more);
            }
            (_, _, value) => _ = file.insert(key, value),
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use proptest::prelude::*;

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    fn load(name: &str, text: &str, line: &str) -> Result<Config, String> {
        let (_folder, path) = file(name, text);
        let words = ["berth-engine", "--config", path.to_str().unwrap()].into_iter().chain(line.split_whitespace());
        Config::load(Args::try_parse_from(words).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text = "data-root = '/d'\nrun-root = '/r'\nbridge = 'b1'\nstorage-driver = 'native'\n";
        let config = load("engine.toml", text, "--bridge b2").unwrap();
        assert_eq!(config.data_root, Path::new("/d"));
        assert_eq!(config.bridge.name, "b2");
        assert_eq!(config.storage_driver.as_deref(), Some("native"));
        assert!(config.listen.is_empty());
        assert_eq!(config.default_socket(), Path::new("/r/engine.sock"));
        assert_eq!(config.supervisor, Path::new("/r/supervisor.sock"));
        assert!(config.owns_supervisor);
    }

    #[test]
    fn dockers_own_file() {
        let text = r#"{
            "hosts": ["unix:///var/run/docker.sock", "tcp://0.0.0.0:2376"], "data-root": "/d", "exec-root": "/r", "group": "docker",
            "log-driver": "json-file", "log-opts": {"max-size": "10m", "max-file": "3"}, "debug": true, "bip": "10.1.0.1/24",
            "mtu": 1400, "dns": ["1.1.1.1"], "insecure-registries": ["r:5000"], "registry-mirrors": ["https://m"],
            "max-concurrent-downloads": 10, "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 64000}},
            "default-runtime": "crun", "runtimes": {"crun": {"path": "/usr/bin/crun"}}, "live-restore": true,
            "userland-proxy": false, "iptables": true, "icc": true, "tlsverify": true, "tlscacert": "/ca", "tlscert": "/c",
            "tlskey": "/k", "labels": ["a=b"], "exec-opts": ["native.cgroupdriver=cgroupfs"], "experimental": true,
            "features": {"buildkit": true}, "metrics-addr": "127.0.0.1:9323", "shutdown-timeout": 15, "min-api-version": "1.40",
            "builder": {"gc": {"enabled": true, "defaultKeepStorage": "10GB"}}, "oom-score-adjust": -500, "pidfile": "/p",
            "default-address-pools": [{"base": "10.10.0.0/16", "size": 24}], "cdi-spec-dirs": ["/etc/cdi"], "storage-driver": "overlayfs"
        }"#;
        let config = load("daemon.json", text, "").unwrap();
        assert_eq!(config.listen[0], Address::Unix("/var/run/docker.sock".into()));
        assert_eq!(config.listen[1], Address::Tcp("0.0.0.0:2376".into()));
        assert_eq!((config.group.as_str(), config.mtu, config.live.debug), ("docker", 1400, true));
        assert_eq!(config.live.runtime(config.live.default_runtime()), "/usr/bin/crun");
        assert_eq!((config.live.downloads, config.live.drain.as_secs()), (10, 15));
        assert_eq!(config.manner.minimum, ApiVersion::v1(40));
        assert_eq!(config.address_pools.len(), 1);
        assert!(config.tls.verify && config.manner.experimental);
        // By its content, where the name tells nothing.
        assert_eq!(load("config", r#"{"bridge": "b7"}"#, "").unwrap().bridge.name, "b7");
        assert_eq!(load("config", "bridge = 'b8'", "").unwrap().bridge.name, "b8");
        assert_eq!(load("daemon.json", " \n", "").unwrap().bridge.name, "berth0");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (name, text, line, words) in [
            (
                "daemon.json",
                r#"{"debug": true}"#,
                "-D",
                "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true)",
            ),
            (
                "daemon.json",
                r#"{"log-lvel": "x"}"#,
                "",
                "daemon.json: the following directives don't match any configuration option: log-lvel (did you mean log-level?)",
            ),
            (
                "daemon.json",
                r#"{"debug": "yes"}"#,
                "",
                "configuration validation from file failed: debug: \"yes\" is of the wrong kind",
            ),
            ("daemon.json", r#"{"debug": tru"#, "", "daemon.json: EOF"),
            (
                "daemon.json",
                r#"{"max-concurrent-downloads": -1}"#,
                "",
                "validation from file failed: invalid max concurrent downloads: -1",
            ),
            ("daemon.json", r#"{"labels": ["x"]}"#, "", "bad attribute format: x"),
            ("daemon.json", r#"{"labels": ["x=1", "x=2"]}"#, "", "conflict labels"),
            ("daemon.json", r#"{"dns": ["1.1.1.1x"]}"#, "", "1.1.1.1x is not an ip address"),
            ("daemon.json", r#"{"live-restore": false}"#, "", "live-restore: false can't be had"),
            ("daemon.json", r#"{"features": {"warp": true}}"#, "", "nobody knows warp"),
            ("daemon.json", r#"{"runtimes": {"a": {"runtimeType": "t", "runtimeArgs": ["x"]}}}"#, "", "runtimeArgs"),
            (
                "daemon.json",
                r#"{"exec-opts": ["native.cgroupdriver=systemd"]}"#,
                "",
                "native.cgroupdriver=systemd can't be had",
            ),
            ("daemon.json", r#"{"min-api-version": "1.20"}"#, "", "min-api-version"),
            ("daemon.json", r#"{"hosts": ["tcp://0.0.0.0:2375"]}"#, "", "gives this machine to whoever connects"),
            ("daemon.json", r#"{"proxies": {"http-proxy": "p"}}"#, "--supervisor unix:///s", "set HTTPS_PROXY for it"),
            ("daemon.json", r#"{"image-budget": "much"}"#, "", "image-budget"),
            ("engine.toml", "data-rot = '/d'", "", "data-rot (did you mean data-root?)"),
            ("engine.toml", "data-root = 'rel'", "", "data root rel is not an absolute path"),
            ("engine.toml", "", "-H /path", "neither unix:///PATH"),
            ("engine.toml", "", "--bip=x", "bip: "),
        ] {
            let error = load(name, text, line).unwrap_err();
            assert!(error.contains(words), "{text} {line}: {error}");
        }
        let nowhere = Args { config: Some("/nowhere/daemon.json".into()), ..Args::default() };
        assert!(Config::load(nowhere).unwrap_err().to_string().contains("open /nowhere/daemon.json"));
        for fine in ["-H tcp://a:1 --tlsverify", "-H tcp://a:1 --insecure-tcp", "-H tcp://a:1 --tls=false"] {
            assert!(load("engine.toml", "", fine).is_ok(), "{fine}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "\\PC{0,80}", key in "[a-z-]{0,20}", value in "[0-9a-z\\[\\]{}\",:-]{0,20}") {
            let _ = load("config", &text, "");
            let _ = load("daemon.json", &format!("{{\"{key}\": {value}}}"), "");
        }
    }
}
