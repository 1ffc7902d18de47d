//! Real clients, as scripts that run on both engines unchanged; what they print is compared, line by line.

use crate::engine::Engine;
use integration_tests::{
    Outcome,
    programs::{peer_or_skip, workspace},
    run_with,
};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

mod bollard;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/clients").join(name)
}

// Where `.ci/deps test` puts what Debian has no packages of.
fn client_folder(name: &str) -> Option<PathBuf> {
    let folder = workspace().join("target/clients").join(name);
    if !folder.exists() {
        eprintln!("skipped: {} is not there (make deps-test, which needs package registries)", folder.display());
        return None;
    }
    Some(folder)
}

// Lines that differ on purpose, or for a known lack: `*` patterns of `client | line`.
fn meant(client: &str, line: &str) -> bool {
    let text = fs::read_to_string(script("differences.tsv")).unwrap_or_default();
    let place = format!("{client} | {line}");
    text.lines().filter_map(|row| row.split_once('\t')).any(|(pattern, reason)| {
        let fits = crate::compare::glob(pattern, &place);
        if fits {
            println!("{place}: {}", reason.trim());
        }
        fits
    })
}

/// Runs the same command on both engines and compares what it prints.
fn same_on_both(client: &str, prepare: impl Fn(&Engine) -> Command) {
    compared(client, |engine| run_with(&mut prepare(engine), b"", Duration::from_secs(120)));
}

/// What a client printed, and whether it came to its end.
trait Told: std::fmt::Display {
    fn told(&self) -> String;
    fn fine(&self) -> bool;
}

impl Told for Outcome {
    fn told(&self) -> String {
        self.stdout()
    }

    fn fine(&self) -> bool {
        self.code() == 0
    }
}

impl Told for String {
    fn told(&self) -> String {
        self.clone()
    }

    fn fine(&self) -> bool {
        true
    }
}

fn compared<T: Told>(client: &str, outcome: impl Fn(&Engine) -> T) {
    let only = env::var("CONFORMANCE").unwrap_or_default();
    let theirs = if only == "berth" { None } else { Engine::dockerd() }.map(|engine| outcome(&engine));
    if let Some(theirs) = &theirs {
        assert!(theirs.fine(), "on dockerd: {theirs}");
    }
    if only == "dockerd" {
        println!("{}", theirs.expect("dockerd"));
        return;
    }
    let engine = Engine::berth().expect("berth");
    let ours = outcome(&engine);
    drop(engine);
    let Some(theirs) = theirs else {
        println!("{ours}");
        return;
    };
    let (their, our) = (theirs.told(), ours.told());
    let (their, our): (Vec<&str>, Vec<&str>) = (their.lines().collect(), our.lines().collect());
    let (of_theirs, of_ours): (BTreeSet<&str>, BTreeSet<&str>) =
        (their.iter().copied().collect(), our.iter().copied().collect());
    let missing: Vec<&str> =
        their.iter().copied().filter(|line| !of_ours.contains(line) && !meant(client, line)).collect();
    let extra: Vec<&str> =
        our.iter().copied().filter(|line| !of_theirs.contains(line) && !meant(client, line)).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "{client}: only dockerd says {missing:#?}\nonly berth says {extra:#?}\n{ours}"
    );
    assert!(ours.fine(), "on berth: {ours}");
}

#[test]
fn the_docker_client() {
    if peer_or_skip("docker").is_some() {
        same_on_both("docker", |engine| {
            let mut command = engine.client("bash");
            command.arg(script("docker.sh"));
            command
        });
    }
}

#[test]
fn python_docker() {
    if let Some(python) = client_folder("venv/bin/python") {
        same_on_both("docker-py", |engine| {
            let mut command = engine.client(&python);
            command.arg(script("docker_py.py"));
            command
        });
    }
}

#[test]
fn dockerode() {
    if let (Some(node), Some(modules)) = (peer_or_skip("node"), client_folder("node/node_modules")) {
        same_on_both("dockerode", |engine| {
            let mut command = engine.client(&node);
            command.env("NODE_PATH", &modules).arg(script("dockerode.js"));
            command
        });
    }
}

#[test]
fn testcontainers() {
    if let Some(python) = client_folder("venv/bin/python") {
        same_on_both("testcontainers", |engine| {
            let mut command = engine.client(&python);
            let host = "TESTCONTAINERS_HOST_OVERRIDE";
            command
                .env("TESTCONTAINERS_RYUK_DISABLED", "true")
                .env(host, "127.0.0.1")
                .arg(script("testcontainers_run.py"));
            command
        });
    }
}

#[test]
fn bollard() {
    compared("bollard", bollard::talk);
}

fn compose(client: &str, folder: &str) {
    if peer_or_skip("docker-compose").is_some() && peer_or_skip("docker").is_some() {
        same_on_both(client, |engine| {
            let mut command = engine.client("bash");
            command.current_dir(script(folder)).arg(script(folder).join("up.sh"));
            command
        });
    }
}

#[test]
fn docker_compose() {
    compose("docker-compose", "compose");
}

#[test]
fn docker_compose_networks() {
    compose("compose-networks", "compose-networks");
}
