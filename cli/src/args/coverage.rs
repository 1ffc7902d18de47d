//! The table of docker's commands and flags (`tests/commands.tsv`) against the definition of the command line: none is missing,
//! none is unknown, and every row names a test that exists.

use super::Cli;
use clap::CommandFactory;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const TABLE: &str = include_str!("../../tests/commands.tsv");

/// Commands that only berth has, and those that docker has without a page of its own.
const OURS: &[&str] = &["demo", "demo-guest", "completion", "man", "image verify", "builder du"];

struct Row {
    command: &'static str,
    flag: &'static str,
    state: &'static str,
    test: &'static str,
}

fn rows() -> Vec<Row> {
    let row = |line: &'static str| {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default();
        Row { command: next(), flag: next(), state: next(), test: next() }
    };
    TABLE.lines().map(row).collect()
}

/// Every command by its long name, with its flags: `docker ps` is `container ls` there.
fn defined() -> BTreeMap<String, BTreeSet<String>> {
    fn walk(command: &clap::Command, path: &str, all: &mut BTreeMap<String, BTreeSet<String>>) {
        for sub in command.get_subcommands() {
            let name = format!("{path}{}", sub.get_name());
            if sub.has_subcommands() {
                walk(sub, &format!("{name} "), all);
                continue;
            }
            let flags = sub.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
            all.insert(name, flags.collect());
        }
    }
    let mut root = Cli::command();
    root.build();
    let mut all = BTreeMap::new();
    walk(&root, "", &mut all);
    all
}

#[test]
fn every_command_and_flag_of_docker_is_here() {
    let defined = defined();
    let rows = rows();
    let mut missing = Vec::new();
    for row in &rows {
        assert!(matches!(row.state, "done" | "refused"), "{} {}: {}", row.command, row.flag, row.state);
        match defined.get(row.command) {
            None => missing.push(row.command.to_owned()),
            Some(flags) if row.flag != "-" && !flags.contains(row.flag) => {
                missing.push(format!("{} {}", row.command, row.flag));
            }
            Some(_) => {}
        }
    }
    assert!(missing.is_empty(), "not defined: {missing:?}");
    let known: BTreeSet<&str> = rows.iter().map(|row| row.command).collect();
    let short = |name: &str| {
        known.contains(name)
            || known.contains(format!("container {name}").as_str())
            || known.contains(format!("image {name}").as_str())
    };
    let aliases = ["ps", "images", "rmi", "events", "info"];
    let more: Vec<&String> = defined
        .keys()
        .filter(|name| !short(name) && !OURS.contains(&name.as_str()) && !aliases.contains(&name.as_str()))
        .collect();
    assert!(more.is_empty(), "commands without a row: {more:?}");
}

#[test]
fn shortcuts_have_the_flags_of_their_long_forms() {
    let defined = defined();
    let pairs = [
        ("ps", "container ls"),
        ("images", "image ls"),
        ("rmi", "image rm"),
        ("events", "system events"),
        ("info", "system info"),
    ];
    let same = defined
        .keys()
        .filter(|name| !name.contains(' '))
        .flat_map(|name| ["container", "image"].map(|group| (name.clone(), format!("{group} {name}"))));
    let all = same.chain(pairs.map(|(a, b)| (a.to_owned(), b.to_owned())));
    for (short, long) in all.filter(|(short, long)| {
        short != "inspect" && (short != "rm" || long != "image rm") && defined.contains_key(long)
    }) {
        assert_eq!(defined.get(&short), defined.get(&long), "{short} and {long}");
    }
}

#[test]
fn every_row_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = BTreeMap::new();
    for row in rows() {
        let (file, name) =
            row.test.split_once("::").unwrap_or_else(|| panic!("{} {}: {:?}", row.command, row.flag, row.test));
        let text = files.entry(file).or_insert_with(|| std::fs::read_to_string(root.join(file)).unwrap_or_default());
        assert!(text.contains(&format!("fn {name}(")), "{} {}: there is no test {}", row.command, row.flag, row.test);
    }
}

/// The flags of the docker client that is installed, as its help lists them.
#[test]
fn the_installed_client_has_no_flag_that_is_missing() {
    let Ok(output) = std::process::Command::new("docker").arg("--version").output() else {
        println!("skipped: no docker client here");
        return;
    };
    assert!(output.status.success());
    let defined = defined();
    let mut missing = Vec::new();
    for name in defined.keys().filter(|name| !OURS.contains(&name.as_str()) && *name != "bake") {
        let mut command = std::process::Command::new("docker");
        // Nobody to ask: the help then lists what any engine might have.
        command
            .env("DOCKER_HOST", "unix:///nonexistent.sock")
            .env("DOCKER_CONFIG", "/nonexistent")
            .env("DOCKER_BUILDKIT", "0");
        let help = command.args(name.split(' ')).arg("--help").output().unwrap();
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for word in help.lines().filter_map(|line| line.trim_start().strip_prefix('-').map(|_| line.trim_start())) {
            let Some(at) = word.find("--") else { continue };
            let flag = word[at..].split([' ', '=', ')']).next().unwrap_or_default();
            // Lines of a description begin with blanks only.
            if at <= 4 && flag.len() > 2 && !defined[name].contains(flag) && flag != "--help" {
                missing.push(format!("{name} {flag}"));
            }
        }
    }
    assert!(missing.is_empty(), "flags of docker that berth has not: {missing:?}");
}
