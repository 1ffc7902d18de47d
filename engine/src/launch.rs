//! Starts `berth-supervisor` when nobody listens on its socket: a process of its own (own session, no shared
//! descriptors) that outlives the engine.

use crate::config::Config;
use std::{
    fs::OpenOptions,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tracing::info;

const PROGRAM: &str = "berth-supervisor";
const PATIENCE: Duration = Duration::from_secs(10);
/// Whoever stopped it may be about to start a newer one.
const REVIVE_AFTER: Duration = Duration::from_secs(3);

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("nobody listens on the supervisor's socket {0}, which was given by name and is therefore not started")]
    Absent(PathBuf),
    #[error("open supervisor log {path}")]
    Log {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("start {program}")]
    Start {
        program: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{PROGRAM} ended at once ({status}): {last_line} (its log: {log})")]
    Ended { status: std::process::ExitStatus, last_line: String, log: PathBuf },
    #[error("{PROGRAM} does not listen on {socket} after {PATIENCE:?} (its log: {log})")]
    Silent { socket: PathBuf, log: PathBuf },
}

/// Returns once somebody listens on the supervisor's socket.
pub async fn ensure_supervisor(config: &Config) -> Result<(), LaunchError> {
    if listens(&config.supervisor).await {
        return Ok(());
    }
    if !config.owns_supervisor {
        return Err(LaunchError::Absent(config.supervisor.clone()));
    }
    let program = beside_us(PROGRAM);
    let log = config.data_root.join("supervisor.log");
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)
        .map_err(|cause| LaunchError::Log { path: log.clone(), cause })?;
    let err = out.try_clone().map_err(|cause| LaunchError::Log { path: log.clone(), cause })?;
    let mut command = Command::new(&program);
    command
        .arg("--data-root")
        .arg(&config.data_root)
        .arg("--run-root")
        .arg(&config.run_root)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .current_dir("/");
    let proxies = &config.proxies;
    for (variable, value) in
        [("HTTP_PROXY", &proxies.http_proxy), ("HTTPS_PROXY", &proxies.https_proxy), ("NO_PROXY", &proxies.no_proxy)]
    {
        if !value.is_empty() {
            command.env(variable, value);
        }
    }
    let mut child = sys::session::in_new_session(&mut command)
        .spawn()
        .map_err(|cause| LaunchError::Start { program: program.clone(), cause })?;
    info!(pid = child.id(), program = %program.display(), "supervisor started");
    let begun = Instant::now();
    while !listens(&config.supervisor).await {
        if let Ok(Some(status)) = child.try_wait() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let last_line = text.lines().next_back().unwrap_or("no message").to_owned();
            return Err(LaunchError::Ended { status, last_line, log });
        }
        if begun.elapsed() > PATIENCE {
            return Err(LaunchError::Silent { socket: config.supervisor.clone(), log });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Reaps it should it end while we live; an orphan of ours is init's.
    std::thread::spawn(move || child.wait());
    Ok(())
}

/// Starts the supervisor again if it has gone and nobody else does so within a short time.
pub async fn revive_supervisor(config: &Config) {
    if !config.owns_supervisor {
        return;
    }
    tokio::time::sleep(REVIVE_AFTER).await;
    if listens(&config.supervisor).await {
        return;
    }
    if let Err(error) = ensure_supervisor(config).await {
        tracing::error!(error = %proto::kind::chain(&error), "supervisor not revived");
    }
}

/// Whether a connection to the socket is accepted.
pub async fn listens(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Another program of Berth: beside this one, else whatever the PATH has.
pub fn beside_us(program: &str) -> PathBuf {
    let sibling = std::fs::read_link("/proc/self/exe").ok().map(|exe| exe.with_file_name(program));
    sibling.filter(|path| path.exists()).unwrap_or_else(|| program.into())
}
