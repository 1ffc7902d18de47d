//! state.json that is corrupt, cut short, or lies: every command says so in one line, and `delete --force` clears up.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bundle::{Bundle, is_ours, texts};
use crate::security::host::bounded;

/// All commands that read state, with what else they need.
const COMMANDS: &[(&[&str], &[&str])] = &[
    (&["state"], &[]),
    (&["start"], &[]),
    (&["kill"], &["KILL"]),
    (&["kill", "--all"], &["KILL"]),
    (&["exec"], &["true"]),
    (&["ps"], &[]),
    (&["pause"], &[]),
    (&["resume"], &[]),
    (&["update", "--pids-limit", "5"], &[]),
    (&["events", "--stats"], &[]),
    (&["delete"], &[]),
];

fn one_line(bundle: &Bundle, words: &[&str], what: &str) {
    let output = bounded(&mut bundle.command(words), Duration::from_secs(20));
    let (stdout, stderr) = texts(&output);
    assert!(!output.status.success(), "{what}: {words:?} succeeded: {stdout}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {words:?}: {stderr}");
    assert!(stderr.contains(&bundle.id) && !stderr.contains("panicked"), "{what}: {words:?}: {stderr}");
}

/// Puts something in the place of a running container's state, and sees to it that it can be got rid of.
fn hostile(what: &str, change: impl FnOnce(&std::path::Path, Value)) {
    let (Some(bundle), Some(other)) = (Bundle::new(), Bundle::new()) else { return };
    if !is_ours() {
        println!("skipped: other runtimes have other files");
        return;
    }
    let (bundle, other) = (bundle.shell("sleep 1000"), other.shell("sleep 1000"));
    other.start();
    bundle.start();
    let pid = bundle.pid();
    let path = bundle.path("state").join(&bundle.id).join("state.json");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect("state.json")).expect("json");
    change(&path, good);
    for (before, after) in COMMANDS {
        one_line(&bundle, &[*before, &[bundle.id.as_str()], *after].concat(), what);
    }
    // The others in the folder can still be seen.
    let list = bundle.call(&["list"]);
    assert!(list.status.success(), "{what}: {list:?}");
    let output = bounded(&mut bundle.command(&["delete", "--force", &bundle.id]), Duration::from_secs(20));
    assert!(output.status.success(), "{what}: {output:?}");
    bundle.assert_nothing_left();
    // Whoever has inherited it may take its time to reap it.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let lives = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']));
    assert!(!lives, "{what}: its process lives on: {stat}");
    assert_eq!(other.state()["status"], "running", "{what}: somebody else's container was ended");
}

#[test]
fn corrupt_state() {
    for (what, bytes) in [
        ("empty", &b""[..]),
        ("cut short", b"{\"id\":\"x\",\"pid\":"),
        ("not JSON", b"\x00\xff\xfe garbage"),
        ("another type", b"[1,2,3]"),
        ("a word", b"null"),
        ("without fields", b"{}"),
    ] {
        hostile(what, |path, _| std::fs::write(path, bytes).expect("write"));
    }
    hostile("deep", |path, _| std::fs::write(path, "[".repeat(100_000)).expect("write"));
    hostile("half of it", |path, good| {
        let text = good.to_string();
        std::fs::write(path, &text[..text.len() / 2]).expect("write");
    });
}

#[test]
fn state_that_lies() {
    for (what, field, value) in [
        ("another id", "id", json!("somebody-else")),
        ("an id that leads elsewhere", "id", json!("../../../etc")),
        ("the root's cgroup again", "cgroup", json!("/")),
        ("a cgroup that leads elsewhere", "cgroup", json!("../../..")),
        ("a cgroup with a newline", "cgroup", json!("a\nb")),
        ("a negative pid", "pid", json!(-1)),
        ("a pid beyond all", "pid", json!(1_u64 << 40)),
        ("a pid that is a word", "pid", json!("1")),
    ] {
        hostile(what, |path, mut good| {
            good[field] = value;
            std::fs::write(path, good.to_string()).expect("write");
        });
    }
}

#[test]
fn something_else_in_the_place_of_state() {
    hostile("a folder", |path, _| {
        std::fs::remove_file(path).expect("remove");
        std::fs::create_dir(path).expect("folder");
    });
    hostile("a FIFO", |path, _| {
        std::fs::remove_file(path).expect("remove");
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).expect("fifo");
    });
    hostile("a loop of links", |path, _| {
        std::fs::remove_file(path).expect("remove");
        std::os::unix::fs::symlink("state.json", path).expect("link");
    });
}
