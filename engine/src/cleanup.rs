//! `berth-engine cleanup`: takes away what an engine has made on the host, for one that was killed and shall not come back: links, bridges,
//! firewall rules, pinned namespaces, the resolver of names, mounts of volumes. What its users asked for stays on record, and the next
//! engine makes it again.

use crate::{
    app::{self, AppError},
    config::{Args, Config, ConfigError},
    containers::store::Store,
    networks::{NetworkError, Networks},
    volumes::{local::mount_points, mounter},
};
use clap::Parser;
use std::{io, path::Path};

/// The word that asks for it.
pub const ARGUMENT: &str = "cleanup";

/// What was asked for: the flags of the engine whose traces are to go.
#[derive(Debug, Parser)]
#[command(
    name = "berth-engine cleanup",
    about = "Removes links, firewall rules, namespaces and mounts of an engine that doesn't run"
)]
struct Cleanup {
    /// Also while containers run, which lose their networks
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    engine: Args,
}

/// Why nothing, or not all, was taken away.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The configuration can't be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The engine runs, or its folders can't be used.
    #[error(transparent)]
    App(#[from] AppError),
    /// They would lose their networks.
    #[error("containers are running: {0}; remove them first, or cut them off with --force")]
    Running(String),
    /// The host's state can't be changed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A volume stays mounted.
    #[error("unmount {at}")]
    Unmount {
        /// Where.
        at: String,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// What is on record can't be read.
    #[error("read records")]
    Store(#[source] crate::containers::store::StoreError),
}

/// Does it, and says what was taken away.
pub fn run(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<(), CleanupError> {
    let cleanup = Cleanup::parse_from(std::iter::once("berth-engine cleanup".into()).chain(arguments));
    let config = Config::load(cleanup.engine)?;
    app::make_folder(&config.engine_data(), 0o700)?;
    app::make_folder(&config.engine_run(), 0o700)?;
    let _data_lock = app::lock_root(&config.engine_data())?;
    let _run_lock = app::lock_root(&config.engine_run())?;
    let records = config.engine_data().join("engine.redb");
    if records.exists() {
        let (_, records, _) = Store::open(&records).map_err(CleanupError::Store)?;
        let running: Vec<String> =
            records.iter().filter(|record| runs(record.state.pid, &record.id)).map(|r| r.name.clone()).collect();
        if !running.is_empty() && !cleanup.force {
            return Err(CleanupError::Running(running.join(", ")));
        }
    }
    let mut removed = Networks::remove_all(&config.bridge.name, &config.run_root, &config.bus)?;
    removed.extend(unmount_below(&config.engine_data().join("volumes"))?);
    removed.extend(unmount_below(&config.engine_run().join("builds"))?);
    removed.iter().for_each(|what| println!("removed {what}"));
    Ok(())
}

/// Whether this process is still that container's.
pub fn runs(pid: u32, id: &str) -> bool {
    let cgroups = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cgroup"));
    pid != 0 && cgroups.is_ok_and(|cgroups| cgroups.contains(id))
}

/// Unmounts what is mounted below a folder, the last mounted first.
fn unmount_below(folder: &Path) -> Result<Vec<String>, CleanupError> {
    let failed = |at: &Path| {
        let at = at.display().to_string();
        move |cause| CleanupError::Unmount { at, cause }
    };
    let mut removed = Vec::new();
    for at in mount_points().map_err(failed(folder))?.into_iter().rev().filter(|at| at.starts_with(folder)) {
        mounter::unmount(&at).map_err(failed(&at))?;
        removed.push(format!("mount {}", at.display()));
    }
    Ok(removed)
}
