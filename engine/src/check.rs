//! `berth-engine check`: says how the host's links, firewall rules and settings differ from what they have to be. While an engine runs it is
//! asked; else what it has on record is compared. Changes nothing.

use crate::{
    app::{self, AppError},
    cleanup,
    config::{Address, Args, Config, ConfigError},
    containers::store::{Store, StoreError},
    identity::{Identity, IdentityError},
    networks::{Attached, NetworkError, Networks},
};
use clap::Parser;
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// The word that asks for it.
pub const ARGUMENT: &str = "check";
/// The exit code where nothing could be compared.
pub const FAILED: u8 = 2;
/// How long a running engine may take for its answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was asked for: the flags of the engine whose links and rules are looked at.
#[derive(Debug, Parser)]
#[command(
    name = "berth-engine check",
    about = "Says how the host's links, firewall rules and settings differ from what this engine wants: a line for each difference",
    after_help = "Exit codes: 0 nothing differs, 1 something does, 2 it can't be told.\n\
                  A running engine repairs by itself what others change; SIGHUP makes it look at once. One that doesn't run repairs at its next \
                  start, and `berth-engine cleanup` takes everything away."
)]
struct Check {
    #[command(flatten)]
    engine: Args,
}

/// Why it can't be told.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The configuration can't be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine's folders can't be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// What is on record can't be read.
    #[error("read records")]
    Store(#[from] StoreError),
    /// Who the engine is can't be read.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The host can't be looked at.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No engine was ever here.
    #[error("no engine has used {0} yet")]
    Nobody(PathBuf),
    /// An engine runs and can't be reached.
    #[error("ask the engine that runs at {socket}")]
    Ask {
        /// Where.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It answers something else.
    #[error("ask the engine that runs at {socket}: it answers {answer:?}")]
    Answer {
        /// Where.
        socket: PathBuf,
        /// The answer's beginning.
        answer: String,
    },
}

/// Does it; returns whether nothing differs.
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<bool, CheckError> {
    let check = Check::parse_from(std::iter::once("berth-engine check".into()).chain(arguments));
    let config = Config::load(check.engine)?;
    if !config.engine_data().join("engine.redb").exists() {
        return Err(CheckError::Nobody(config.data_root));
    }
    let differences = match app::lock_root(&config.engine_data()) {
        Ok(_lock) => by_itself(&config)?,
        Err(AppError::Taken(_)) => ask(&config)?,
        Err(error) => return Err(error.into()),
    };
    differences.iter().for_each(|line| println!("{line}"));
    Ok(differences.is_empty())
}

/// Compares what is on record. Nobody else may use it meanwhile.
fn by_itself(config: &Config) -> Result<Vec<String>, CheckError> {
    let data = config.engine_data();
    let identity = Identity::load_or_make(&data.join("identity.json"))?;
    let (_, records, definitions) = Store::open(&data.join("engine.redb"))?;
    let networks = Networks::on_record(app::bridge_config(config, &identity), &config.run_root, definitions)?;
    let attached = |record: crate::containers::record::Record| {
        let lives = cleanup::runs(record.state.pid, &record.id);
        let endpoint = record.state.endpoint.filter(|_| lives)?;
        Some(Attached { id: record.id, name: record.name, endpoint })
    };
    let containers: Vec<Attached> = records.into_iter().filter_map(attached).collect();
    // An engine that has ended in an orderly way, with nothing attached, has left nothing behind.
    if containers.is_empty() && !networks.is_anything_there()? {
        return Ok(Vec::new());
    }
    networks.assume(&containers);
    Ok(networks.differences(&containers)?)
}

/// Asks the engine that runs.
fn ask(config: &Config) -> Result<Vec<String>, CheckError> {
    let mut sockets = config.listen.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(path.clone()),
        _ => None,
    });
    let socket = sockets.next().unwrap_or_else(|| config.default_socket());
    let answer = get(&socket, "/system/check").map_err(|cause| CheckError::Ask { socket: socket.clone(), cause })?;
    let read = || -> Option<Vec<String>> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let body: serde_json::Value = head.starts_with("HTTP/1.0 200").then(|| serde_json::from_str(body).ok())??;
        body["Differences"].as_array()?.iter().map(|line| Some(line.as_str()?.to_owned())).collect()
    };
    read().ok_or_else(|| CheckError::Answer { socket, answer: answer.chars().take(300).collect() })
}

fn get(socket: &Path, path: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: berth\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
