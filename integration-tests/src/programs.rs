//! Where the programs under test are, and whether peers are installed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

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

/// The docker client, if it is of version `major` or later; else says on standard error why the test is skipped.
pub fn docker_or_skip(major: u32) -> Option<PathBuf> {
    let docker = peer_or_skip("docker")?;
    let said = Command::new(&docker).arg("--version").output().expect("run docker --version").stdout;
    let said = String::from_utf8_lossy(&said);
    // Docker version 28.2.2, build e6534b4
    let version = said.split_whitespace().nth(2).and_then(|text| text.split('.').next()?.parse::<u32>().ok());
    if version.is_none_or(|version| version < major) {
        eprintln!("skipped: needs a docker client of version {major}; here is {}", said.trim());
        return None;
    }
    Some(docker)
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").to_owned()
}

/// The folder of the programs as the dev profile builds them, with fault points in them. They lie beside the tests that cargo
/// runs; one that is missing, or lacks one of `points`, is built.
pub fn debug_bin_dir(points: &[String]) -> PathBuf {
    let test = env::current_exe().expect("our own path");
    let folder = test.parent().and_then(Path::parent).expect("target folder").to_owned();
    let complete = || {
        let has = |program: &str| {
            let bytes = fs::read(folder.join(format!("berth-{program}"))).unwrap_or_default();
            let wanted = points.iter().filter(|point| point.split('.').next() == Some(program));
            !bytes.is_empty() && wanted.into_iter().all(|point| holds(&bytes, point.as_bytes()))
        };
        ["runtime", "shim", "supervisor", "engine"].into_iter().all(has)
    };
    if !complete() {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--locked", "-p", "runtime", "-p", "shim", "-p", "supervisor", "-p", "engine"]);
        let built = command.current_dir(workspace()).status().expect("run cargo");
        assert!(built.success() && complete(), "the programs could not be built with their fault points");
    }
    folder
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(bytes, word).is_some()
}
