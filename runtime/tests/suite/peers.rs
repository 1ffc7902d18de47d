//! Other runtimes under the same tests: which one `RUNTIME` names, where it is known to differ, and an end to calls that hang.
//!
//! The suite is about the specification; what is Berth's own asks [`is_ours`]. Where a peer differs from the specification, or
//! from what callers can rely on, the table says so: the test is then left out for that peer, and says why. `PEERS=try` runs them
//! all the same, to see whether a newer version of the peer still differs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Test, peers, and what they do. A name that ends with `::` stands for all tests of a module.
const DIFFERENCES: &[(&str, &[&str], &str)] = &[
    (
        "confine::cgroups_are_shown_and_rooted",
        &["runc", "crun"],
        "leaves the tmpfs above v1 controllers writable where the mount is to be read-only",
    ),
    ("cgroups::a_frozen_cgroup_is_refused_rather_than_joined", &["crun"], "joins a frozen cgroup"),
    ("cgroups::exec_can_go_below", &["crun"], "exec follows a cgroup path that leads out of the container's"),
    ("cli::", &["crun"], "has a command line of its own beyond what callers use"),
    ("errors::errors_are_json_lines_for_callers", &["crun"], "has words of its own for a container that is not there"),
    ("errors::ids_are_checked_by_every_command", &["runc", "crun"], "takes ids that begin with a dot, or hold a space"),
    ("events::", &["crun"], "has no command events"),
    ("exec::confined_like_the_container", &["crun"], "exec by flags forgets noNewPrivileges of the container"),
    ("exec::not_in_what_has_ended", &["crun"], "an exec that fails to start exits with 1"),
    ("exec::status_environment_user_and_cwd", &["crun"], "exec has no flag -g"),
    ("faults::hostile_host::no_space_for_state", &["runc", "crun"], "does not say that there is no space"),
    (
        "faults::hostile_host::of_many_creates_one_wins",
        &["runc", "crun"],
        "those that lose undo the work of the one that wins",
    ),
    ("faults::hostile_host::of_many_starts_one_wins", &["runc", "crun"], "those that lose may harm the one that wins"),
    ("hooks::a_failing_early_hook_fails_create_or_start", &["crun"], "runs no poststop hooks where creating fails"),
    ("hooks::a_failing_early_hook_undoes_everything_and_poststop_runs", &["crun"], "does not tell what the hook said"),
    (
        "hooks::each_kind_is_told_status_and_pid",
        &["runc", "crun"],
        "tells createContainer hooks the pid in the container (runc), early hooks that it is created (crun)",
    ),
    (
        "hooks::a_failing_poststop_hook_is_logged_and_the_others_run",
        &["crun"],
        "is ended by SIGPIPE where a hook does not read the state",
    ),
    ("hooks::each_kind_runs_in_its_namespaces", &["crun"], "start does not wait for the startContainer hooks"),
    ("lifecycle::a_failing_hook_undoes_everything", &["crun"], "does not tell what the hook said"),
    (
        "lifecycle::what_a_killed_create_leaves_can_be_deleted",
        &["runc", "crun"],
        "knows nothing of a container before all of it is made, and leaves its cgroups",
    ),
    ("lifecycle::paused_is_still", &["crun"], "pause does not wait until v1 has frozen everything"),
    ("mounts::a_mount_label_needs_selinux", &["crun"], "ignores a mount label without SELinux"),
    ("mounts::mounts_propagate_as_told", &["crun"], "gives mounts of a shared root a propagation of their own"),
    (
        "mounts::recursive_attributes_reach_what_is_mounted_below",
        &["crun"],
        "asks for rnoatime without taking relatime back, which the kernel refuses",
    ),
    (
        "namespaces::the_hosts_own_namespaces_are_not_changed_by_another_name",
        &["crun"],
        "takes the host's own namespace, given by its path, for a private one",
    ),
    ("namespaces::what_cannot_be_is_refused", &["crun"], "lets some of it pass"),
    ("process::unknown_capabilities_are_left_out", &["crun"], "says nothing of a capability that it leaves out"),
    ("security::", &["crun"], "1.8 has several of these holes, which its later versions closed"),
    (
        "security::attacker::cve_2016_9962_a_waiting_container_cannot_be_looked_into",
        &["runc"],
        "shows the program of a container that waits for start to whoever is executed beside it",
    ),
    (
        "security::links::cve_2026_41579_and_cve_2026_47766_dev_as_a_link",
        &["runc"],
        "makes the links in /dev by path, which a link in place of /dev leads to the host",
    ),
    ("security::proc::cve_2019_16884_a_mount_over_proc", &["runc"], "lets a tmpfs cover all of /proc"),
    (
        "security::proc::cve_2019_19921_and_cve_2023_27561_a_link_into_proc",
        &["runc"],
        "lets a link of the image lead a mount into /proc/self",
    ),
    (
        "seccomp::an_agent_answers_calls_of_container_and_exec",
        &["crun"],
        "tells the agent of an exec that the container has pid 0",
    ),
    (
        "seccomp::calls_newer_than_the_profile_do_not_exist",
        &["crun"],
        "answers calls newer than the profile with its default, so libc does not fall back",
    ),
    ("sd_notify::a_detached_run_waits_too", &["crun"], "does not send all of READY, MAINPID and BARRIER"),
    ("sd_notify::start_waits_until_the_process_is_ready", &["crun"], "does not send all of READY, MAINPID and BARRIER"),
    (
        "terminal::run_serves_the_terminal_itself",
        &["runc", "crun"],
        "wants a terminal itself to give one to the container",
    ),
    ("update::a_created_container_can_be_paused_and_asked_about", &["crun"], "calls a paused one created"),
    (
        "update::a_failed_update_changes_nothing_and_says_which_field",
        &["crun"],
        "leaves what it had changed when it fails",
    ),
    ("update::only_what_lives_is_updated", &["crun"], "does not thaw a paused container that it kills"),
    ("update::pause_and_resume_check_the_state", &["crun"], "resumes what is not paused"),
    ("update::update_takes_every_flag", &["crun"], "takes sizes in bytes only"),
];

/// What `RUNTIME` says, if it is not Berth's own.
fn foreign() -> Option<PathBuf> {
    let name = std::env::var_os("RUNTIME").filter(|name| !name.is_empty()).map(PathBuf::from)?;
    (name.file_name()? != "berth-runtime").then_some(name)
}

/// True when Berth's runtime is tested, and not somebody else's.
pub(crate) fn is_ours() -> bool {
    foreign().is_none()
}

/// The runtime under test: `RUNTIME` by path, or by name on the PATH and in the administrator's folders; else the one just built.
pub(crate) fn program() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_BIN_EXE_berth-runtime"));
    let Some(name) = std::env::var_os("RUNTIME").filter(|name| !name.is_empty()).map(PathBuf::from) else {
        return built();
    };
    if name.components().count() > 1 {
        return name;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(&name)).find(|path| path.is_file());
    found.unwrap_or_else(|| if is_ours() { built() } else { panic!("RUNTIME={}: not found", name.display()) })
}

/// Why the running test is left out for the runtime under test. The harness names the thread after the test.
pub(crate) fn difference() -> Option<String> {
    let peer = foreign()?.file_name()?.to_string_lossy().into_owned();
    if std::env::var_os("PEERS").is_some_and(|word| word == "try") {
        return None;
    }
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main")?;
    let row = DIFFERENCES.iter().find(|(name, peers, _)| {
        let named = if name.ends_with("::") { test.starts_with(name) } else { test == *name };
        named && peers.contains(&peer.as_str())
    });
    row.map(|(_, _, reason)| format!("differs on {peer}: {reason}"))
}

/// Longest time that any call of a runtime may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Ends calls of the runtime that hang, with the containers they are about: a test that waits for one fails, and the rest go on.
pub(crate) fn end_what_hangs() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        let program = program();
        std::thread::spawn(move || {
            let mut seen: Vec<(i32, u32)> = Vec::new();
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let now = calls(&program);
                seen.retain(|(pid, _)| now.contains(pid));
                for pid in now {
                    match seen.iter_mut().find(|(known, _)| *known == pid) {
                        Some((_, seconds)) => *seconds += 1,
                        None => seen.push((pid, 0)),
                    }
                }
                let limit = u32::try_from(LIMIT.as_secs()).unwrap_or(u32::MAX);
                seen.iter().filter(|(_, seconds)| *seconds == limit).for_each(|(pid, _)| end(*pid));
            }
        });
    });
}

/// Our children that run the program. One that was sealed or copied by itself still has its name.
fn calls(program: &Path) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<i32> =
        children.flat_map(|text| text.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    let first = program.display().to_string();
    pids.into_iter().filter(|pid| arguments(*pid).first() == Some(&first)).collect()
}

fn arguments(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).split('\0').map(str::to_owned).collect()
}

fn end(pid: i32) {
    let arguments = arguments(pid);
    eprintln!("killed, because it hangs: {}", arguments.join(" "));
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    // What it made holds the pipes that the test reads from.
    let id = arguments.iter().find(|word| word.starts_with("suite-")).cloned();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let cgroup = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if id.as_ref().is_some_and(|id| cgroup.lines().any(|line| line.ends_with(&format!("/berth-{id}")))) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

/// A command that runs the runtime.
pub(crate) fn command() -> Command {
    end_what_hangs();
    Command::new(program())
}

/// What a command prints until it ends. Containers that it leaves running may hold the pipes: they are waited for, but not for
/// ever.
pub(crate) fn output(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the runtime runs");
    let read = |mut pipe: Box<dyn Read + Send>| {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        receiver
    };
    let stdout = read(Box::new(child.stdout.take().expect("piped")));
    let stderr = read(Box::new(child.stderr.take().expect("piped")));
    let status = child.wait().expect("wait");
    let deadline = Instant::now() + Duration::from_secs(10);
    let collect = |receiver: std::sync::mpsc::Receiver<Vec<u8>>| {
        let mut text = Vec::new();
        while let Ok(chunk) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            text.extend(chunk);
        }
        text
    };
    Output { status, stdout: collect(stdout), stderr: collect(stderr) }
}

#[test]
fn rows_name_tests() {
    // A row whose test has another name by now would do nothing.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite");
    if !sources.is_dir() {
        println!("skipped: not where it was built");
        return;
    }
    for (name, peers, reason) in DIFFERENCES {
        assert!(!peers.is_empty() && !reason.is_empty(), "{name}");
        let mut path: Vec<&str> = name.trim_end_matches("::").split("::").collect();
        let test = if name.ends_with("::") { None } else { path.pop() };
        let base = sources.join(path.join("/"));
        let text = std::fs::read_to_string(base.with_extension("rs"))
            .or_else(|_| std::fs::read_to_string(base.join("mod.rs")))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(test.is_none_or(|test| text.contains(&format!("fn {test}("))), "no test {name}");
    }
}
