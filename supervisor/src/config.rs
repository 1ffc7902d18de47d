//! Command line and configuration file, made into one complete, typed `Config`. A flag beats the file, the file beats the
//! default; both have the same keys. Nothing else in this program reads the command line.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};
use serde::Deserialize;

/// Lifecycle daemon for containers on containerd's API: content, images, snapshots, containers, tasks.
#[derive(Debug, Default, Parser)]
#[command(name = "berth-supervisor", version)]
pub(crate) struct Args {
    /// Folder for what must outlive a reboot [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    data_root: Option<PathBuf>,
    /// Folder for sockets and what runs, best on a tmpfs [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    run_root: Option<PathBuf>,
    /// Socket to serve on [default: unix://RUN-ROOT/supervisor.sock]
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// TOML file with the same keys as these flags
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a list of target=level [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object on a line.
    Json,
}

/// The configuration file: the flags, and what is too long for a flag.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    data_root: Option<PathBuf>,
    run_root: Option<PathBuf>,
    listen: Option<String>,
    log_level: Option<String>,
    log_format: Option<LogFormat>,
    runtimes: BTreeMap<String, PathBuf>,
}

/// What to log, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// A level, or a list of `target=level`.
    pub(crate) level: String,
    /// How lines look.
    pub(crate) format: LogFormat,
}

/// Everything that can be set, complete.
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
    /// Runtime names and the shim binaries that serve them, over the rule that makes a binary's name from the runtime's.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
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
    #[error("configuration {at}: {why}")]
    Parse {
        /// The file.
        at: PathBuf,
        /// One line: place and reason.
        why: String,
    },
    /// Roots and sockets are absolute, since what runs outlives our working directory.
    #[error("{key} {path} is not an absolute path")]
    Relative {
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
    #[error("listen {path} is longer than a unix socket's path can be (107 bytes): choose a shorter --run-root")]
    SocketTooLong {
        /// The path.
        path: PathBuf,
    },
}

impl Args {
    /// Reads the file, if one is named, and settles every value.
    pub(crate) fn into_config(self) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(at) => read_file(at)?,
            None => File::default(),
        };
        let absolute = |key: &'static str, path: PathBuf| {
            if path.is_absolute() { Ok(path) } else { Err(ConfigError::Relative { key, path }) }
        };
        let data_root =
            absolute("data-root", self.data_root.or(file.data_root).unwrap_or_else(|| "/var/lib/berth".into()))?;
        let run_root = absolute("run-root", self.run_root.or(file.run_root).unwrap_or_else(|| "/run/berth".into()))?;
        let socket = match self.listen.or(file.listen) {
            None => run_root.join("supervisor.sock"),
            Some(address) => match address.strip_prefix("unix://") {
                Some(path) if path.starts_with('/') => PathBuf::from(path),
                _ => return Err(ConfigError::Listen { address }),
            },
        };
        if socket.as_os_str().len() > 107 {
            return Err(ConfigError::SocketTooLong { path: socket });
        }
        for path in file.runtimes.values() {
            absolute("runtimes", path.clone())?;
        }
        let log = LogConfig {
            level: self.log_level.or(file.log_level).unwrap_or_else(|| "info".into()),
            format: self.log_format.or(file.log_format).unwrap_or_default(),
        };
        Ok(Config { data_root, run_root, socket, log, runtimes: file.runtimes })
    }
}

fn read_file(at: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(at).map_err(|cause| ConfigError::Read { at: at.to_owned(), cause })?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError::Parse { at: at.to_owned(), why: format!("line {line}: {}", error.message().replace('\n', " ")) }
    })
}

impl Config {
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

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        Args::try_parse_from([&["berth-supervisor"], args].concat()).expect("arguments").into_config()
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
        assert_eq!(config.log, LogConfig { level: "info".into(), format: LogFormat::Text });
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_the_default() {
        let (_folder, at) = file(
            "run-root = '/r'\nlog-level = 'warn'\nlog-format = 'json'\n[runtimes]\n'io.containerd.x.v1' = '/usr/bin/x'\n",
        );
        let config = config(&["--config", &at, "--log-level", "debug"]).unwrap();
        assert_eq!(config.socket, Path::new("/r/supervisor.sock"));
        assert_eq!(config.log, LogConfig { level: "debug".into(), format: LogFormat::Json });
        assert_eq!(config.runtimes["io.containerd.x.v1"], Path::new("/usr/bin/x"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!("unix:///{}", "x".repeat(120));
        let table: [(&[&str], &str); 5] = [
            (&["--data-root", "d"], "data-root d is not an absolute path"),
            (&["--listen", "tcp://0:1"], "listen \"tcp://0:1\""),
            (&["--listen", "unix://r"], "listen \"unix://r\""),
            (&["--listen", &long], "107 bytes"),
            (&["--config", "/nonexistent/x.toml"], "read configuration /nonexistent/x.toml"),
        ];
        for (args, words) in table {
            let error = config(args).unwrap_err().to_string();
            assert!(error.contains(words), "{args:?}: {error}");
        }
        for (text, words) in [
            ("data-rot = '/d'", "unknown field `data-rot`"),
            ("log-format = 'xml'", "unknown variant `xml`"),
            ("\n\nlisten = 1", "line 3"),
            ("[runtimes]\na = 'b'", "runtimes b is not an absolute path"),
        ] {
            let (_folder, at) = file(text);
            let error = config(&["--config", &at]).unwrap_err().to_string();
            assert!(error.contains(words), "{text:?}: {error}");
        }
    }
}
