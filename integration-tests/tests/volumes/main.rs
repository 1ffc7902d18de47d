//! Volumes on file systems of all kinds: with quotas, of servers, with options of mount(8). What this machine's kernel lacks is skipped
//! with a word about it; in the test VM, which has it all (`make test-vm SUITE=volumes`), that is a failure.

mod cifs;
mod nfs;
mod options;
mod quotas;
mod servers;

use integration_tests::{Stack, eventually, run};
use std::{fs, path::Path, process::Command};

/// Says why a test ends here; in the test VM there is no reason to.
#[track_caller]
fn skipped(why: &str) {
    assert!(std::env::var_os("TEST_VM").is_none(), "the test VM should have it: {why}");
    eprintln!("skipped: {why}");
}

fn stdout(stack: &Stack, args: &[&str]) -> String {
    stack.berth(args).success().stdout()
}

/// Makes a volume of a type.
fn make(stack: &Stack, name: &str, kind: &str, options: &str, device: &str) {
    let [kind, options, device] = [format!("type={kind}"), format!("o={options}"), format!("device={device}")];
    stdout(stack, &["volume", "create", "-d", "local", "-o", &kind, "-o", &options, "-o", &device, name]);
}

/// Runs a shell in a container that has the volume at `/v`.
fn with(stack: &Stack, volume: &str, script: &str) -> integration_tests::Outcome {
    stack.berth(["run", "--rm", "-v", &format!("{volume}:/v"), "busybox", "sh", "-c", script])
}

/// Whether the host has the volume mounted.
fn is_mounted(stack: &Stack, volume: &str) -> bool {
    let at = stack.data_root().join("engine/volumes").join(volume).join("_data");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter_map(|line| line.split(' ').nth(4)).any(|point| Path::new(point) == at)
}

#[track_caller]
fn await_unmounted(stack: &Stack, volume: &str) {
    eventually(&format!("volume {volume} is unmounted"), || (!is_mounted(stack, volume)).then_some(()));
}

/// Whether the kernel has a file system, after loading its module where there are modules.
fn kernel_has(file_system: &str) -> bool {
    let _ = Command::new("modprobe").arg(file_system).output();
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    known.lines().any(|line| line.split_whitespace().last() == Some(file_system))
}

/// Runs a program of the host that must not fail.
#[track_caller]
fn host(program: &str, args: &[&str]) -> String {
    run(program, args).success().stdout()
}
