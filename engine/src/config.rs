//! Arguments and the configuration file become one complete `Config`. A flag wins over the file, the file over the
//! default. Only this module reads the environment (`BERTH_LOG`).

use clap::Parser;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Command line of `berth-engine`.
#[derive(Debug, Default, Parser)]
#[command(name = "berth-engine", version, about = "Serves the Docker Engine API.")]
pub struct Args {
    /// Where containers, logs and volumes are kept [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// Where sockets and other state that ends with the machine is kept [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    pub run_root: Option<PathBuf>,
    /// Address to serve on, may be repeated [default: unix://RUN_ROOT/engine.sock]
    #[arg(long, value_name = "unix:///PATH")]
    pub listen: Vec<String>,
    /// Address of berth-supervisor or another containerd [default: unix://RUN_ROOT/supervisor.sock]
    #[arg(long, value_name = "unix:///PATH")]
    pub supervisor: Option<String>,
    /// OCI runtime of containers that name none [default: berth-runtime]
    #[arg(long, value_name = "NAME|PATH")]
    pub runtime: Option<String>,
    /// Snapshotter of the supervisor for new containers and images, say overlayfs or native [default: the supervisor's]
    #[arg(long, value_name = "NAME")]
    pub storage_driver: Option<String>,
    /// Name of the default bridge [default: berth0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Address and prefix of the default bridge [default: the first free of docker's]
    #[arg(long, value_name = "CIDR")]
    pub bip: Option<String>,
    /// TOML file with the same keys as these flags
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The configuration file: same keys as the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data_root: Option<PathBuf>,
    run_root: Option<PathBuf>,
    #[serde(default)]
    listen: Vec<String>,
    supervisor: Option<String>,
    runtime: Option<String>,
    storage_driver: Option<String>,
    bridge: Option<String>,
    bip: Option<String>,
}

/// Everything the engine is told from outside, complete and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Root of what must survive a reboot.
    pub data_root: PathBuf,
    /// Root of what need not.
    pub run_root: PathBuf,
    /// Paths of the sockets to serve on.
    pub listen: Vec<PathBuf>,
    /// Path of the supervisor's socket.
    pub supervisor: PathBuf,
    /// Whether the engine may start the supervisor itself: only when the socket was not chosen by the user.
    pub owns_supervisor: bool,
    /// OCI runtime name or path; empty means the shim's own choice (berth-runtime).
    pub runtime: String,
    /// Snapshotter for what is made from now on, if one was chosen.
    pub storage_driver: Option<String>,
    /// Name of the default bridge.
    pub bridge: String,
    /// Address of the default bridge with prefix length, if one was chosen.
    pub bip: Option<String>,
    /// Filter of log messages, from `BERTH_LOG`.
    pub log_filter: String,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("configuration {path}: {cause}")]
    Parse { path: PathBuf, cause: String },
    #[error("{what} {path} is not an absolute path")]
    Relative { what: &'static str, path: PathBuf },
    #[error("address {0:?}: only unix:///PATH is served so far (tcp:// needs TLS, which is not built yet)")]
    Address(String),
}

impl Config {
    /// Merges flags, file and defaults.
    pub fn load(args: Args) -> Result<Self, ConfigError> {
        let file = match &args.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let data_root = args.data_root.or(file.data_root).unwrap_or_else(|| "/var/lib/berth".into());
        let run_root = args.run_root.or(file.run_root).unwrap_or_else(|| "/run/berth".into());
        for (what, path) in [("data root", &data_root), ("run root", &run_root)] {
            if !path.is_absolute() {
                return Err(ConfigError::Relative { what, path: path.clone() });
            }
        }
        let listen = if args.listen.is_empty() { file.listen } else { args.listen };
        let listen = listen.iter().map(|l| socket_path(l)).collect::<Result<Vec<_>, _>>()?;
        let chosen = args.supervisor.or(file.supervisor);
        let default_supervisor = run_root.join("supervisor.sock");
        let supervisor = match &chosen {
            Some(address) => socket_path(address)?,
            None => default_supervisor.clone(),
        };
        Ok(Self {
            listen: if listen.is_empty() { vec![run_root.join("engine.sock")] } else { listen },
            owns_supervisor: supervisor == default_supervisor,
            supervisor,
            runtime: args.runtime.or(file.runtime).unwrap_or_default(),
            storage_driver: args.storage_driver.or(file.storage_driver).filter(|name| !name.is_empty()),
            bridge: args.bridge.or(file.bridge).unwrap_or_else(|| "berth0".to_owned()),
            bip: args.bip.or(file.bip),
            log_filter: std::env::var("BERTH_LOG").ok().filter(|l| !l.is_empty()).unwrap_or_else(|| "info".into()),
            data_root,
            run_root,
        })
    }

    /// Folder of the engine below the data root.
    pub fn engine_data(&self) -> PathBuf {
        self.data_root.join("engine")
    }

    /// Folder of the engine below the run root.
    pub fn engine_run(&self) -> PathBuf {
        self.run_root.join("engine")
    }
}

fn read_file(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|cause| ConfigError::Read { path: path.to_owned(), cause })?;
    toml::from_str(&text).map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        cause: error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

fn socket_path(address: &str) -> Result<PathBuf, ConfigError> {
    let path = address.strip_prefix("unix://").map(PathBuf::from).filter(|p| p.is_absolute());
    path.ok_or_else(|| ConfigError::Address(address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = file("data-root = '/d'\nrun-root = '/r'\nbridge = 'b1'\nstorage-driver = 'native'\n");
        let args = Args { config: Some(file.path().into()), bridge: Some("b2".into()), ..Args::default() };
        let config = Config::load(args).unwrap();
        assert_eq!(config.data_root, Path::new("/d"));
        assert_eq!(config.bridge, "b2");
        assert_eq!(config.storage_driver.as_deref(), Some("native"));
        assert_eq!(config.listen, [PathBuf::from("/r/engine.sock")]);
        assert_eq!(config.supervisor, Path::new("/r/supervisor.sock"));
        assert!(config.owns_supervisor);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let file = file("data-rot = '/d'\n");
        let error = Config::load(Args { config: Some(file.path().into()), ..Args::default() }).unwrap_err();
        assert!(error.to_string().contains("data-rot"), "{error}");
        for listen in ["tcp://127.0.0.1:2375", "unix://rel", "/path"] {
            assert!(Config::load(Args { listen: vec![listen.into()], ..Args::default() }).is_err(), "{listen}");
        }
        assert!(Config::load(Args { data_root: Some("rel".into()), ..Args::default() }).is_err());
    }
}
