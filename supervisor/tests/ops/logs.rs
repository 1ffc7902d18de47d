//! Log lines: text, JSON, to a file that is rotated, for the journal.

use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::daemon::{Daemon, eventually};

#[test]
fn json_lines_have_fields_and_a_moved_file_is_opened_anew() {
    let mut daemon = Daemon::prepare();
    let at = daemon.path("berth.log");
    let file = at.to_str().unwrap().to_owned();
    daemon.run(&mut daemon.command(&["--log-format", "json", "--log-level", "debug", "--log-file", &file]));
    daemon.wait_until_up();
    assert!(daemon.ctr(&["-n", "ours", "namespaces", "ls"]).0);
    let lines = |at: &std::path::Path| -> Vec<Value> {
        let text = std::fs::read_to_string(at).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    };
    let listed = || {
        let all = lines(&at);
        all.into_iter().find(|line| line["operation"] == "/containerd.services.namespaces.v1.Namespaces/List")
    };
    eventually("the call is logged", || listed().is_some());
    let line = listed().unwrap();
    assert_eq!((&line["namespace"], &line["code"], &line["level"]), (&"ours".into(), &"OK".into(), &"DEBUG".into()));
    assert!(line["ms"].as_f64().unwrap() > 0.0 && line["timestamp"].is_string(), "{line}");

    let moved = daemon.path("berth.log.1");
    std::fs::rename(&at, &moved).unwrap();
    daemon.signal(Signal::SIGHUP);
    eventually("a new file", || at.exists());
    assert!(daemon.terminate().success());
    let last = lines(&at).pop().unwrap();
    assert_eq!(last["message"], "supervisor ends; shims stay");
    assert!(lines(&moved).iter().any(|line| line["message"] == "supervisor serves"));
    assert_eq!(daemon.log(), "", "nothing is said twice");
}

#[test]
fn a_bad_log_file_is_refused() {
    let daemon = Daemon::prepare();
    let output = daemon.command(&["--log-file", "/nonexistent/x.log"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert_eq!(words, "berth-supervisor: open log file /nonexistent/x.log: No such file or directory (os error 2)\n");
}

#[test]
fn the_journal_gets_levels_and_no_times() {
    let mut daemon = Daemon::prepare();
    let log = std::fs::File::create(daemon.path("log")).unwrap();
    // What tells the journal's pipe from any other: its device and inode.
    let stat = nix::sys::stat::fstat(log.as_fd()).unwrap();
    let mut command = daemon.command(&[]);
    command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    daemon.run(&mut command);
    daemon.wait_until_up();
    assert!(daemon.terminate().success());
    let log = daemon.log();
    assert!(log.lines().count() >= 3 && log.lines().all(|line| line.starts_with("<6>")), "{log}");
    assert!(log.contains("<6> INFO supervisor serves version="), "{log}");
}
