//! Debian's `ctr` through everything it has, on Berth's supervisor and, row for row, on Debian's containerd: what a row
//! expects is expected of both, and where it says so both must print the same.

mod criu;
mod daemon;
mod table;

use daemon::Daemon;
use integration_tests::{programs::peer_or_skip, registry::Registry};
use std::thread;
use table::{ROWS, Row};

#[test]
fn ctr_does_on_the_supervisor_what_it_does_on_containerd() {
    for peer in ["ctr", "containerd", "containerd-shim-runc-v2", "runc", "docker-registry", "script", "jq"] {
        if peer_or_skip(peer).is_none() {
            return;
        }
    }
    let folder = tempfile::Builder::new().prefix("berth-ctr-").tempdir().unwrap();
    let registry = Registry::start(folder.path());
    let faults = faults(ROWS, &registry.host());
    assert!(faults.is_empty(), "{} of {} rows\n\n{}", faults.len(), ROWS.len(), faults.join("\n\n"));
}

/// Runs all rows on both, and tells what is wrong.
fn faults(rows: &[Row], registry: &str) -> Vec<String> {
    let [berth, containerd] = thread::scope(|scope| {
        let run = |daemon: Daemon| rows.iter().map(|row| daemon.run(row)).collect::<Vec<_>>();
        let berth = Daemon::berth(registry);
        let containerd = Daemon::containerd(registry);
        [scope.spawn(move || run(berth)), scope.spawn(move || run(containerd))]
            .map(|run| run.join().expect("a daemon's part could not be run"))
    });
    let mut faults = Vec::new();
    for ((row, ours), theirs) in rows.iter().zip(&berth).zip(&containerd) {
        for (who, answer) in [("Berth", ours), ("containerd", theirs)] {
            if let Some(fault) = row.fault(answer) {
                faults.push(format!("{}\non {who}: {fault}\n{answer}", row.line));
            }
        }
        if row.same && ours.output != theirs.output {
            faults.push(format!("{}\nBerth says: {}\ncontainerd says: {}", row.line, ours.output, theirs.output));
        }
    }
    faults
}
