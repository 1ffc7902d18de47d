//! Command line and configuration file, made into one complete, typed `Config`. A flag beats the file, the file beats the
//! default; both have the same keys. Nothing else in this program reads the command line.

mod file;
mod period;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

pub(crate) use file::{DEFAULT, Problem, Reading, Settings};
pub(crate) use period::Period;

use crate::{
    gc::GcConfig,
    registry::{Proxies, Registries},
    snapshots::SnapshotConfig,
};

/// Lifecycle daemon for containers on containerd's API: content, images, snapshots, containers, tasks.
#[derive(Debug, Default, Parser)]
#[command(name = "berth-supervisor", version)]
pub(crate) struct Args {
    /// Folder for what must outlive a reboot [default: /var/lib/berth]
    #[arg(long, value_name = "DIR", global = true)]
    data_root: Option<PathBuf>,
    /// Folder for sockets and what runs, best on a tmpfs [default: /run/berth]
    #[arg(long, value_name = "DIR", global = true)]
    run_root: Option<PathBuf>,
    /// Socket to serve on [default: unix://RUN-ROOT/supervisor.sock]
    #[arg(long, value_name = "unix:///PATH", global = true)]
    listen: Option<String>,
    /// TOML file with the same keys as these flags
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, or a list of target=level [default: info]
    #[arg(long, value_name = "LEVEL", global = true)]
    log_level: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT", global = true)]
    log_format: Option<LogFormat>,
    /// File to append log lines to [default: standard error]
    #[arg(long, value_name = "FILE", global = true)]
    log_file: Option<PathBuf>,
    /// Where to serve Prometheus metrics: unix:///PATH or tcp://ADDRESS:PORT [default: nowhere]
    #[arg(long, value_name = "ADDRESS", global = true)]
    metrics: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What to do, if not to serve.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Says what the configuration is, or what is wrong with it
    Config {
        /// Which of them.
        #[command(subcommand)]
        action: ConfigCommand,
    },
    /// Looks for damage in the data root: database, blobs, snapshots; exit code 1 if something is wrong
    Check {
        /// Puts it right; what is bad is moved to DATA-ROOT/supervisor/lost, never deleted
        #[arg(long)]
        repair: bool,
    },
}

/// What to say about the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints every key with the value in effect, from flags, file and defaults
    Dump,
    /// Says what is wrong, with file and line; exit code 1 if something is
    Check,
    /// Prints a file of every key with its default and what it is for
    Default,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object on a line.
    Json,
}

/// What to log, how, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// A level, or a list of `target=level`.
    pub(crate) level: String,
    /// How lines look.
    pub(crate) format: LogFormat,
    /// Where they go; stderr if nowhere else.
    pub(crate) file: Option<PathBuf>,
}

/// Where metrics are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MetricsAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

/// Where networks of pods are found (CNI).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CniConfig {
    /// Folder of configurations.
    pub(crate) conf_dir: PathBuf,
    /// Folders of plugins, in the order in which they count.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// How long one call of a plugin may take.
    pub(crate) plugin_limit: Duration,
}

/// Plugins that change containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NriConfig {
    /// Where they connect, if they may.
    pub(crate) socket: Option<PathBuf>,
    /// Folder of those that are started by us.
    pub(crate) plugins: PathBuf,
    /// Folder of their configurations.
    pub(crate) configurations: PathBuf,
    /// How long one may take until it has said who it is.
    pub(crate) registration: Duration,
    /// How long one may take to answer.
    pub(crate) request: Duration,
}

/// A handler of RuntimeClass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    /// Its name; empty is the one of pods without a class.
    pub(crate) name: String,
    /// The runtime, by whose name its shim is found.
    pub(crate) runtime: String,
    /// The OCI runtime that the shim is told to use.
    pub(crate) program: Option<PathBuf>,
}

impl Handler {
    /// The handlers that a configuration leads to, the default one first.
    fn all(settings: &BTreeMap<String, String>) -> Vec<Self> {
        const OURS: &str = "io.containerd.berth.v1";
        let ours = Self { name: String::new(), runtime: OURS.to_owned(), program: None };
        let mut named = BTreeMap::from([("runc".to_owned(), "io.containerd.runc.v2".to_owned())]);
        named.extend(settings.clone());
        let others = named.into_iter().map(|(name, what)| match what.starts_with('/') {
            true => Self { name, runtime: OURS.to_owned(), program: Some(what.into()) },
            false => Self { name, runtime: what, program: None },
        });
        std::iter::once(ours).chain(others).collect()
    }
}

/// Everything that can be set, complete and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Folder for what must outlive a reboot.
    pub(crate) data_root: PathBuf,
    /// Folder for sockets and what runs.
    pub(crate) run_root: PathBuf,
    /// Path of the socket to serve on.
    pub(crate) socket: PathBuf,
    /// Logging.
    pub(crate) log: LogConfig,
    /// Where metrics are served, if they are.
    pub(crate) metrics: Option<MetricsAddress>,
    /// How long requests in hand may take once we are asked to end.
    pub(crate) drain: Duration,
    /// Whether shims are talkative.
    pub(crate) shim_debug: bool,
    /// When garbage is collected.
    pub(crate) gc: GcConfig,
    /// Runtime names and the shim binaries that serve them, over the rule that makes a binary's name from the runtime's.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
    /// Whether blobs of layers stay once they are unpacked.
    pub(crate) keep_layers: bool,
    /// Snapshotters.
    pub(crate) snapshots: SnapshotConfig,
    /// How registries are reached.
    pub(crate) registries: Registries,
    /// Where networks of pods are found.
    pub(crate) cni: CniConfig,
    /// Plugins that change containers, if there may be any.
    pub(crate) nri: Option<NriConfig>,
    /// Where streams of CRI are served.
    pub(crate) streaming: SocketAddr,
    /// Folders of descriptions of devices (CDI).
    pub(crate) cdi: Vec<PathBuf>,
    /// Handlers of RuntimeClass, the default one first.
    pub(crate) handlers: Vec<Handler>,
}

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file can't be read.
    #[error("read configuration {at}")]
    Read {
        /// The file.
        at: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The file isn't TOML, or holds a key or value that isn't known.
    #[error("configuration {at}: {}", list(.problems))]
    Parse {
        /// The file.
        at: PathBuf,
        /// Places and reasons; at least one.
        problems: Vec<Problem>,
    },
    /// A value can't be used.
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValueError {
    /// Roots and sockets are absolute, since what runs outlives our working directory.
    #[error("{key} {path} is not an absolute path")]
    Relative {
        /// The key.
        key: String,
        /// Its value.
        path: PathBuf,
    },
    /// What lists folders with colons in between can't have one with a colon inside.
    #[error("{key} {path} has a colon in its name, which CNI_PATH can't carry")]
    Colon {
        /// The key.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// Only unix sockets are served.
    #[error("listen {address:?} is not of the form unix:///path/of/socket")]
    Listen {
        /// What was given.
        address: String,
    },
    /// A socket's path fits into 107 bytes (unix(7)).
    #[error("{key} {path} is longer than a unix socket's path can be (107 bytes): choose a shorter --run-root")]
    SocketTooLong {
        /// The key.
        key: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// Metrics are served on one of two.
    #[error("metrics {address:?} is neither unix:///path/of/socket nor tcp://address:port")]
    Metrics {
        /// What was given.
        address: String,
    },
    /// Streams are served on a TCP port.
    #[error("cri.streaming-address {address:?} is not an address and a port, such as 127.0.0.1:0")]
    Streaming {
        /// What was given.
        address: String,
    },
    /// A name that no RuntimeClass can have, or nothing for it.
    #[error("cri.handlers.{name} = {what:?}: a handler has a name, and is a path or the name of a runtime")]
    Handler {
        /// Its name.
        name: String,
        /// What it is.
        what: String,
    },
    /// Neither a level nor a list.
    #[error("log-level {level:?} is none (use error, warn, info, debug, or a list of target=level)")]
    Level {
        /// What was given.
        level: String,
    },
}

impl ValueError {
    /// The key whose value it is.
    fn key(&self) -> &str {
        match self {
            Self::Relative { key, .. } => key,
            Self::Listen { .. } => "listen",
            Self::SocketTooLong { key, .. } | Self::Colon { key, .. } => key,
            Self::Metrics { .. } => "metrics",
            Self::Streaming { .. } => "cri.streaming-address",
            Self::Handler { .. } => "cri.handlers",
            Self::Level { .. } => "log-level",
        }
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("; ")
}

impl Args {
    /// What to do, if not to serve.
    pub(crate) fn command(&self) -> Option<Command> {
        self.command.clone()
    }

    /// Reads the file, if one is named, and settles every value.
    pub(crate) fn into_config(self) -> Result<Config, ConfigError> {
        Ok(Config::settle(&self.into_settings()?)?)
    }

    /// Every key with its value in effect.
    pub(crate) fn into_settings(self) -> Result<Settings, ConfigError> {
        let Some(at) = self.config.clone() else {
            let settings = self.over(Settings::default());
            Config::settle(&settings)?;
            return Ok(settings);
        };
        let text = std::fs::read_to_string(&at).map_err(|cause| ConfigError::Read { at: at.clone(), cause })?;
        let reading = Reading::of(&text).map_err(|problems| ConfigError::Parse { at: at.clone(), problems })?;
        // Judged alone first: what is wrong in the file is said with its line, whichever flag covers it.
        if let Err(error) = Config::settle(&reading.settings)
            && let Some(line) = reading.line(error.key())
        {
            let problems = vec![Problem { line, what: error.to_string() }];
            return Err(ConfigError::Parse { at, problems });
        }
        let settings = self.over(reading.settings);
        Config::settle(&settings)?;
        Ok(settings)
    }

    fn over(self, mut settings: Settings) -> Settings {
        fn set<T>(place: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *place = value;
            }
        }
        set(&mut settings.data_root, self.data_root);
        set(&mut settings.run_root, self.run_root);
        set(&mut settings.listen, self.listen);
        set(&mut settings.log_level, self.log_level);
        set(&mut settings.log_format, self.log_format);
        set(&mut settings.log_file, self.log_file);
        set(&mut settings.metrics, self.metrics);
        if settings.listen.is_empty() {
            settings.listen = format!("unix://{}", settings.run_root.join("supervisor.sock").display());
        }
        settings
    }
}

fn absolute(key: &str, path: &Path) -> Result<PathBuf, ValueError> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(ValueError::Relative { key: key.to_owned(), path: path.to_owned() })
}

fn socket(key: &'static str, path: PathBuf) -> Result<PathBuf, ValueError> {
    if path.as_os_str().len() > 107 { Err(ValueError::SocketTooLong { key, path }) } else { Ok(path) }
}

impl Config {
    /// Checks values, and gives them their types.
    fn settle(settings: &Settings) -> Result<Self, ValueError> {
        let file = &settings.log_file;
        let run_root = absolute("run-root", &settings.run_root)?;
        let listen = match settings.listen.as_str() {
            "" => run_root.join("supervisor.sock"),
            address => match address.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => PathBuf::from(path),
                _ => return Err(ValueError::Listen { address: address.to_owned() }),
            },
        };
        let metrics = match settings.metrics.as_str() {
            "" => None,
            address => {
                let unix = address.strip_prefix("unix://").filter(|path| path.starts_with('/'));
                let tcp = address.strip_prefix("tcp://").unwrap_or(address).parse().ok();
                Some(match (unix, tcp) {
                    (Some(path), _) => MetricsAddress::Unix(socket("metrics", path.into())?),
                    (None, Some(address)) => MetricsAddress::Tcp(address),
                    (None, None) => return Err(ValueError::Metrics { address: address.to_owned() }),
                })
            }
        };
        if crate::logging::filter(&settings.log_level).is_none() {
            return Err(ValueError::Level { level: settings.log_level.clone() });
        }
        for (name, path) in &settings.runtimes {
            absolute(&format!("runtimes.{name}"), path)?;
        }
        for (key, path) in settings.snapshots.roots() {
            absolute(key, path)?;
        }
        for path in &settings.registry.config_path {
            absolute("registry.config-path", path)?;
        }
        for path in &settings.cri.cdi_spec_dirs {
            absolute("cri.cdi-spec-dirs", path)?;
        }
        for path in &settings.cri.cni_bin_dirs {
            absolute("cri.cni-bin-dirs", path)?;
            if path.as_os_str().as_encoded_bytes().contains(&b':') {
                return Err(ValueError::Colon { key: "cri.cni-bin-dirs", path: path.clone() });
            }
        }
        if let Some((name, what)) = settings.cri.handlers.iter().find(|(name, what)| name.is_empty() || what.is_empty())
        {
            return Err(ValueError::Handler { name: name.clone(), what: what.clone() });
        }
        let address = &settings.cri.streaming_address;
        let streaming = address.parse().map_err(|_| ValueError::Streaming { address: address.clone() })?;
        let nri = &settings.cri.nri;
        let nri = NriConfig {
            socket: Some(socket("cri.nri.socket-path", absolute("cri.nri.socket-path", &nri.socket_path)?)?)
                .filter(|_| !nri.disable_connections),
            plugins: absolute("cri.nri.plugin-path", &nri.plugin_path)?,
            configurations: absolute("cri.nri.plugin-config-path", &nri.plugin_config_path)?,
            registration: nri.plugin_registration_timeout.0.max(Duration::from_millis(1)),
            request: nri.plugin_request_timeout.0.max(Duration::from_millis(1)),
        };
        let proxies = Proxies::read(|name| std::env::var(name).ok());
        Ok(Self {
            data_root: absolute("data-root", &settings.data_root)?,
            socket: socket("listen", listen)?,
            run_root,
            log: LogConfig {
                level: settings.log_level.clone(),
                format: settings.log_format,
                file: if file.as_os_str().is_empty() { None } else { Some(absolute("log-file", file)?) },
            },
            metrics,
            drain: settings.drain.0,
            shim_debug: settings.shim.debug,
            gc: settings.gc.into(),
            runtimes: settings.runtimes.clone(),
            keep_layers: settings.content.keep_layers,
            snapshots: settings.snapshots.clone(),
            registries: Registries::new(
                settings.registry.config_path.clone(),
                proxies,
                settings.registry.silence.0.max(Duration::from_millis(1)),
            ),
            cni: CniConfig {
                conf_dir: absolute("cri.cni-conf-dir", &settings.cri.cni_conf_dir)?,
                bin_dirs: settings.cri.cni_bin_dirs.clone(),
                plugin_limit: settings.cri.cni_plugin_limit.0.max(Duration::from_millis(1)),
            },
            nri: Some(nri).filter(|_| !settings.cri.nri.disable),
            streaming,
            cdi: settings.cri.cdi_spec_dirs.clone(),
            handlers: Handler::all(&settings.cri.handlers),
        })
    }

    /// Our own part of the data root.
    pub(crate) fn data(&self) -> PathBuf {
        self.data_root.join("supervisor")
    }

    /// Our own part of the run root; the bundles of tasks are below it.
    pub(crate) fn run(&self) -> PathBuf {
        self.run_root.join("supervisor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(args: &[&str]) -> Args {
        Args::try_parse_from([&["berth-supervisor"], args].concat()).expect("arguments")
    }

    fn config(given: &[&str]) -> Result<Config, ConfigError> {
        args(given).into_config()
    }

    fn file(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().expect("folder");
        let at = folder.path().join("supervisor.toml");
        std::fs::write(&at, text).expect("write");
        let at = at.to_str().expect("utf-8").to_owned();
        (folder, at)
    }

    #[test]
    fn defaults_are_complete() {
        let config = config(&[]).unwrap();
        assert_eq!(config.data_root, Path::new("/var/lib/berth"));
        assert_eq!(config.socket, Path::new("/run/berth/supervisor.sock"));
        assert_eq!(config.log, LogConfig { level: "info".into(), format: LogFormat::Text, file: None });
        let handlers: Vec<_> = config.handlers.iter().map(|handler| (&*handler.name, &*handler.runtime)).collect();
        assert_eq!(handlers, [("", "io.containerd.berth.v1"), ("runc", "io.containerd.runc.v2")]);
        assert_eq!((config.metrics, config.streaming), (None, "127.0.0.1:0".parse().unwrap()));
        assert_eq!(args(&[]).into_settings().unwrap().listen, "unix:///run/berth/supervisor.sock");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_the_default() {
        let (_folder, at) = file(
            "run-root = '/r'\nlog-level = 'warn'\nlog-format = 'json'\n[runtimes]\n'io.containerd.x.v1' = '/usr/bin/x'\n",
        );
        let config = config(&["--config", &at, "--log-level", "debug"]).unwrap();
        assert_eq!(config.socket, Path::new("/r/supervisor.sock"));
        assert_eq!(config.log, LogConfig { level: "debug".into(), format: LogFormat::Json, file: None });
        assert_eq!(config.runtimes["io.containerd.x.v1"], Path::new("/usr/bin/x"));
    }

    #[test]
    fn every_flag_is_a_key_and_flags_go_before_and_after_commands() {
        use clap::CommandFactory;
        let keys = toml::Table::try_from(Settings::default()).unwrap();
        for flag in <Args as CommandFactory>::command().get_arguments().filter_map(clap::Arg::get_long) {
            let known = ["config", "help", "version"].contains(&flag) || keys.contains_key(flag);
            assert!(known, "--{flag} is no key of the file");
        }
        let command = Some(Command::Config { action: ConfigCommand::Dump });
        assert_eq!(args(&["--run-root", "/r", "config", "dump"]).command(), command);
        assert_eq!(args(&["config", "dump", "--run-root", "/r"]).into_settings().unwrap().run_root, Path::new("/r"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("unix:///{}", "x".repeat(120));
        let table: [(&[&str], &str); 7] = [
            (&["--data-root", "d"], "data-root d is not an absolute path"),
            (&["--listen", "tcp://0:1"], "listen \"tcp://0:1\""),
            (&["--listen", "unix://r"], "listen \"unix://r\""),
            (&["--listen", &long], "107 bytes"),
            (&["--config", "/nonexistent/x.toml"], "read configuration /nonexistent/x.toml"),
            (&["--metrics", "localhost"], "metrics \"localhost\" is neither"),
            (&["--log-level", "loud"], "log-level \"loud\" is none"),
        ];
        for (args, words) in table {
            let error = config(args).unwrap_err().to_string();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        for (text, words) in [
            ("data-rot = '/d'", "line 1: unknown key \"data-rot\": did you mean \"data-root\"?"),
            ("log-format = 'xml'", "unknown variant `xml`"),
            ("\n\nlisten = 1", "line 3"),
            ("[runtimes]\na = 'b'", "line 2: runtimes.a b is not an absolute path"),
            ("[snapshots]\ndefault = 'zfs'", "unknown variant `zfs`"),
            ("[snapshots.native]\nroot = 'n'", "line 2: snapshots.native.root n is not an absolute path"),
            ("\n[cri.handlers]\ncrun = ''", "line 2: cri.handlers.crun = \"\": a handler has"),
            ("\n[cri]\nstreaming-address = 'localhost'", "line 3: cri.streaming-address \"localhost\" is not"),
            ("drain = '1s'\nmetrics = 'x'", "line 2: metrics \"x\""),
        ] {
            let (_folder, at) = file(text);
            let error = config(&["--config", &at]).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("supervisor.toml"), "{text:?}: {error}");
        }
    }

    #[test]
    fn metrics_have_two_kinds_of_addresses() {
        let metrics = |address: &str| config(&["--metrics", address]).unwrap().metrics;
        assert_eq!(metrics("unix:///m"), Some(MetricsAddress::Unix("/m".into())));
        let port = MetricsAddress::Tcp("127.0.0.1:9".parse().unwrap());
        assert_eq!((metrics("tcp://127.0.0.1:9"), metrics("127.0.0.1:9")), (Some(port.clone()), Some(port)));
    }
}
