//! What an idle supervisor takes: after it has worked, not before.

use std::{fs, process::Command};

use crate::daemon::Daemon;

/// Kilobytes of `what` in smaps_rollup.
fn kilobytes(pid: u32, what: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn an_idle_supervisor_gives_memory_back() {
    let mut daemon = Daemon::prepare();
    // Figures of an optimized one are another thing: BERTH_SUPERVISOR names it.
    let optimized = std::env::var_os("BERTH_SUPERVISOR");
    let mut command = Command::new(optimized.as_deref().unwrap_or(crate::daemon::PROGRAM.as_ref()));
    command.arg("--data-root").arg(daemon.path("data")).arg("--run-root").arg(daemon.path("run"));
    let pid = daemon.run(&mut command);
    daemon.wait_until_up();
    let blob = daemon.path("blob");
    fs::write(&blob, vec![7; 24 << 20]).unwrap();
    for _ in 0..4 {
        let mut callers: Vec<_> = (0..4)
            .map(|number| {
                let mut ctr = Command::new("ctr");
                ctr.arg("-a").arg(daemon.socket()).args(["content", "ingest", &format!("blob-{number}")]);
                ctr.stdin(fs::File::open(&blob).unwrap()).spawn().unwrap()
            })
            .collect();
        for caller in &mut callers {
            assert!(caller.wait().unwrap().success());
        }
    }
    // Threads that wait for work end after two seconds.
    crate::daemon::eventually("spare threads have ended", || {
        fs::read_dir(format!("/proc/{pid}/task")).unwrap().count() <= 3
    });
    let (private, pss) = (kilobytes(pid, "Private_Dirty"), kilobytes(pid, "Pss"));
    eprintln!("idle after work: {private} kB of its own, {pss} kB PSS");
    assert!(private < 5 << 10, "{private} kB");
    assert!(optimized.is_none() || pss < 12 << 10, "{pss} kB PSS");
}
