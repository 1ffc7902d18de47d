//! CVE-2016-9962 and CVE-2020-14300: a process on its way into the container can be looked into, and lends what it holds.
//!
//! The attacker is this very program, run inside a container: busybox cannot attach to processes.

use std::collections::HashSet;
use std::path::Path;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::host::{Host, volume};
use crate::bundle::eventually;

/// Looks into every process, attaches to it, and reports those that are not yet what they are to become. For the container only.
#[test]
#[ignore = "the attacker that the other test runs inside a container"]
fn hunt() {
    if std::env::var_os("BERTH_ATTACK").is_none() {
        return;
    }
    let own = std::process::id() as i32;
    let mut found = HashSet::new();
    let (mut met, mut refused) = (HashSet::new(), 0_u64);
    std::fs::write("/data/hunting", "").expect("write");
    while !Path::new("/data/stop").exists() {
        let pids = std::fs::read_dir("/proc").expect("proc").flatten();
        for pid in pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter(|pid| *pid != own) {
            met.insert(pid);
            if let Ok(program) = std::fs::read_link(format!("/proc/{pid}/exe"))
                && !program.ends_with("busybox")
            {
                found.insert(format!("program: {}", program.display()));
            }
            // Their numbers may be read by whoever is the same user; where they lead may not.
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                match std::fs::read_link(entry.path()) {
                    Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => refused += 1,
                    Ok(target) if !matches!(entry.file_name().to_str(), Some("0" | "1" | "2")) => {
                        found.insert(format!("descriptor: {}", target.display()));
                    }
                    _ => {}
                }
            }
            if ptrace::attach(Pid::from_raw(pid)).is_ok() {
                let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL));
                if let Ok(program) = std::fs::read_link(format!("/proc/{pid}/exe"))
                    && !program.ends_with("busybox")
                {
                    found.insert(format!("attached: {}", program.display()));
                }
                let _ = ptrace::detach(Pid::from_raw(pid), None);
                // Another stop than the one of the attack may have come first; that one would last.
                let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGCONT);
            }
        }
    }
    std::fs::write("/data/report", json!({"met": met.len(), "refused": refused, "found": found}).to_string())
        .expect("write");
}

#[test]
fn cve_2016_9962_and_cve_2020_14300_processes_that_enter_cannot_be_looked_into() {
    let Some(host) = Host::new() else { return };
    let program = std::env::current_exe().expect("this program");
    let host = host.with(|bundle| {
        bundle
            .set("/mounts/-", volume(&program, "/attacker"))
            .set("/process/args", json!(["/attacker", "security::attacker::hunt", "--exact", "--ignored"]))
            .set("/process/env", json!(["PATH=/bin", "BERTH_ATTACK=1"]))
    });
    let bundle = &host.bundle;
    bundle.start();
    eventually("the attacker hunts", || bundle.rootfs("data/hunting").exists());
    let many = if std::env::var_os("BERTH_RACE_SECONDS").is_some() { 1000 } else { 200 };
    for at in 0..many {
        // Attached to, the program may be stopped for a while; what it does in the end is not the point.
        let user = if at % 2 == 0 { "0" } else { "1000" };
        bundle.call(&["exec", "--user", user, &bundle.id, "true"]);
    }
    std::fs::write(bundle.rootfs("data/stop"), "").expect("write");
    eventually("a report", || bundle.rootfs("data/report").exists());
    bundle.wait_for("stopped");
    let report = std::fs::read_to_string(bundle.rootfs("data/report")).expect("read");
    let report: serde_json::Value = serde_json::from_str(&report).expect("json");
    assert_eq!(report["found"], json!([]), "{report}");
    // It has met them, and been sent away.
    assert!(report["met"].as_u64() > Some(20) && report["refused"].as_u64() > Some(0), "{report}");
    host.assert_untouched("attacks on exec");
}

/// The same for a container that waits for `start`: whoever shares its pid namespace gets nothing.
#[test]
fn cve_2016_9962_a_waiting_container_cannot_be_looked_into() {
    let Some(host) = Host::new() else { return };
    let bundle = &host.bundle;
    assert!(bundle.create(&[]));
    let inside = bundle.call(&[
        "exec",
        &bundle.id,
        "sh",
        "-c",
        "for f in /proc/1/fd/*; do readlink $f; done; readlink /proc/1/exe; cat /proc/1/environ; echo tried",
    ]);
    let text = String::from_utf8_lossy(&inside.stdout);
    assert_eq!(text.trim(), "tried", "{inside:?}");
}
