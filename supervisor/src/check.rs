//! `berth-supervisor check`: looks at everything that is kept, says what is wrong and what depends on it; with `--repair`
//! puts it right. What is bad is moved to `DATA/supervisor/lost/`, never deleted. To be run while no supervisor does.
//!
//! The order is that of trust: the database (or what its journal holds), then blobs against their digests, then snapshots
//! against their folders, then names against blobs.

mod blob;
mod content;
mod database;
mod records;
mod snapshots;
pub(crate) mod verify;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use proto::kind::chain;

use crate::{
    app::{RootError, Roots},
    config::Config,
    snapshots::SnapshotConfig,
    store::{Database, StoreError},
};

/// Why the check itself can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// A supervisor runs, or the roots can't be had.
    #[error(transparent)]
    Roots(#[from] RootError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("{step} {at}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        at: PathBuf,
        /// Why it failed.
        #[source]
        cause: io::Error,
    },
}

impl CheckError {
    fn file(step: &'static str, at: &Path) -> impl FnOnce(io::Error) -> Self {
        let at = at.to_owned();
        move |cause| Self::File { step, at, cause }
    }
}

/// One check of one data root.
struct Check {
    /// `DATA/supervisor`.
    data: PathBuf,
    repair: bool,
    /// Where layers are.
    snapshots: SnapshotConfig,
    /// Where bad things go; made with the first of them.
    lost: PathBuf,
    found: usize,
    left: usize,
    // The database could not be rebuilt whole: what it doesn't know may be somebody's.
    incomplete: bool,
}

/// Checks, and tells on stdout. Exit code 0: all is well, or is again; 1: something is wrong.
pub(crate) fn run(config: &Config, repair: bool) -> ExitCode {
    match check(config, repair) {
        Ok((0, _)) => {
            println!("all is well");
            ExitCode::SUCCESS
        }
        Ok((found, 0)) => {
            println!("{found} found, all repaired");
            ExitCode::SUCCESS
        }
        Ok((found, left)) => {
            let cure = if repair { "" } else { ": run \"berth-supervisor check --repair\"" };
            println!("{found} found, {left} left{cure}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("berth-supervisor: check: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn check(config: &Config, repair: bool) -> Result<(usize, usize), CheckError> {
    // Held meanwhile: no supervisor may begin on what is being moved about.
    let _roots = Roots::take(config)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let data = config.data();
    // Two repairs within a second keep their finds apart.
    let lost = data.join("lost").join(format!("{now}-{}", std::process::id()));
    let mut check =
        Check { data, repair, snapshots: config.snapshots.clone(), lost, found: 0, left: 0, incomplete: false };
    if let Some(db) = check.database(config)? {
        check.records(&db)?;
        check.content(&db)?;
        check.snapshots(&db)?;
        check.images(&db)?;
    }
    Ok((check.found, check.left))
}

impl Check {
    /// Tells of something wrong, and of what became of it.
    fn tell(&mut self, what: impl fmt::Display, repaired: Option<&str>) {
        self.found += 1;
        match repaired {
            Some(done) if self.repair => println!("{what}: {done}"),
            _ => {
                self.left += 1;
                println!("{what}");
            }
        }
    }

    /// Moves a file or folder to where lost things are kept, under the name that it has below the data root.
    fn set_aside(&self, at: &Path) -> Result<(), CheckError> {
        let to = match (at.strip_prefix(&self.data), at.parent(), self.lost.file_name(), at.file_name()) {
            (Ok(name), ..) => self.lost.join(name),
            // Layers that are kept elsewhere, perhaps on another file system.
            (Err(_), Some(folder), Some(when), Some(name)) => folder.join("lost").join(when).join(name),
            _ => self.lost.join("unnamed"),
        };
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(CheckError::file("make folder", folder))?;
        }
        match fs::rename(at, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CheckError::file("move aside", at)(error)),
            _ => Ok(()),
        }
    }

    /// Keeps bytes that are no file, under a name of ours.
    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), CheckError> {
        let to = self.lost.join(name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(CheckError::file("make folder", folder))?;
        }
        fs::write(&to, bytes).map_err(CheckError::file("write", &to))
    }
}

/// Names in a list, the first few of them.
fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> String {
    let all: Vec<_> = names.into_iter().map(String::as_str).collect();
    match all.len() {
        0 => "nothing".into(),
        1..=6 => all.join(", "),
        more => format!("{} and {} more", all[..6].join(", "), more - 6),
    }
}

/// The names in a folder; none if it isn't there.
fn entries(at: &Path) -> Result<Vec<String>, CheckError> {
    let list = match fs::read_dir(at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        list => list.map_err(CheckError::file("list", at))?,
    };
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.map_err(CheckError::file("list", at))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
