//! Where the programs under test are, and whether peers are installed.

use std::{env, path::PathBuf};

/// The folder of the five programs: `BERTH_BIN_DIR`, else the workspace's `target/bin` (`make build`).
pub fn bin_dir() -> PathBuf {
    env::var_os("BERTH_BIN_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bin"), PathBuf::from)
        .canonicalize()
        .expect("the programs are not built: make build")
}

/// One of the five programs.
pub fn program(name: &str) -> PathBuf {
    let path = bin_dir().join(name);
    assert!(path.exists(), "{} is not built: make build", path.display());
    path
}

/// A peer on the PATH, if it is installed.
pub fn peer(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A peer on the PATH; where it is missing, says on standard error why the test is skipped.
pub fn peer_or_skip(name: &str) -> Option<PathBuf> {
    let found = peer(name);
    if found.is_none() {
        eprintln!("skipped: {name} is not installed (make deps-test)");
    }
    found
}
