//! The life of a container, cut off by SIGKILL between any two system calls of the command that is at work: of the command, of
//! the process that it clones, or of both. Whatever is left can be asked about and cleaned up, and the id can be used again.
//!
//! A sample of the system calls by default; `BERTH_FAULTS=all` takes every one, `BERTH_FAULTS=137` that one.

mod hostile_host;
mod tracer;

use std::process::{Command, Stdio};

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours, texts};
use tracer::{Trace, Victim, trace};

/// How many system calls of each life are taken, unless told otherwise.
const SAMPLE: usize = 12;

/// The system calls to be killed at, of `count`.
fn choice(count: usize) -> Vec<usize> {
    let wanted = std::env::var("BERTH_FAULTS").unwrap_or_default();
    if let Ok(one) = wanted.parse() {
        return vec![one];
    }
    let stride = if wanted == "all" { 1 } else { count.div_ceil(SAMPLE).max(1) };
    // Others every time, so that many runs see them all.
    let first = std::process::id() as usize % stride;
    (1..=count).skip(first).step_by(stride).collect()
}

/// A step in the life of a container: what comes before it, and its command line.
struct Life {
    bundle: Bundle,
    /// Brings the container to where the command is used.
    before: fn(&Bundle),
    command: Vec<String>,
    victim: Victim,
}

impl Life {
    fn new(bundle: Bundle, before: fn(&Bundle), command: &[&str], victim: Victim) -> Self {
        bundle.write_config();
        let folder = bundle.path("bundle").display().to_string();
        let word = |word: &&str| match *word {
            "BUNDLE" => folder.clone(),
            "ID" => bundle.id.clone(),
            other => other.to_owned(),
        };
        let command = command.iter().map(word).collect();
        Self { bundle, before, command, victim }
    }

    fn command(&self) -> Command {
        self.bundle.command(&self.command.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Counts an undisturbed life, then cuts off others; `check` looks at each before it is cleaned up.
    fn cut(&self, check: fn(&Bundle, &Trace)) {
        if !is_ours() {
            println!("skipped: peers do not promise it");
            return;
        }
        (self.before)(&self.bundle);
        let undisturbed = trace(&self.command(), None);
        assert_eq!(undisturbed.code, Some(0), "undisturbed");
        self.bundle.ok(&["delete", "--force", &self.bundle.id]);
        self.bundle.assert_nothing_left();
        let count = undisturbed.count(self.victim);
        assert!(count > 20, "no life: {count} system calls");
        let choice = choice(count);
        println!("{:?} {:?}: {} of {count} system calls", self.command[0], self.victim, choice.len());
        for at in choice {
            let context = format!("{} {:?} killed before system call {at} of {count}", self.command[0], self.victim);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.cut_at(at, check)));
            assert!(result.is_ok(), "{context}");
        }
    }

    fn cut_at(&self, at: usize, check: fn(&Bundle, &Trace)) {
        let bundle = &self.bundle;
        (self.before)(bundle);
        let trace = trace(&self.command(), Some((self.victim, at)));
        self.ask();
        check(bundle, &trace);
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_nothing_left();
        assert_eq!(trace.survivors(), [], "processes are left");
        // The name is free, and nothing stands in the way of its next owner.
        assert!(bundle.create(&[]), "create again");
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_nothing_left();
    }

    /// Whoever asks gets a sane answer.
    fn ask(&self) {
        let bundle = &self.bundle;
        let output = bundle.call(&["state", &bundle.id]);
        let (stdout, stderr) = texts(&output);
        if output.status.success() {
            let state: serde_json::Value = serde_json::from_str(&stdout).expect("state is JSON");
            let known = ["creating", "created", "running", "paused", "stopped"];
            assert!(state["status"].as_str().is_some_and(|status| known.contains(&status)), "{state}");
            assert_eq!(state["id"], json!(bundle.id));
        } else {
            assert!(stderr.contains("container does not exist"), "{stderr}");
        }
        bundle.ok(&["list"]);
        let listed = bundle.ok(&["list", "--quiet"]);
        assert!(!output.status.success() || listed.lines().any(|id| id == bundle.id), "{listed:?}");
    }
}

/// With everything that makes a process or a message of its own: hooks of every kind, limits, masks.
fn busy() -> Option<Bundle> {
    let hook = || json!([{"path": "/bin/true", "args": ["true"]}]);
    let mut hooks = json!({});
    for kind in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
        hooks[kind] = hook();
    }
    let bundle = Bundle::new()?
        .shell("sleep 1000")
        .set("/hooks", hooks)
        .set("/linux/maskedPaths", json!(["/proc/keys", "/sys/firmware"]))
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/pids", json!({"limit": 50}));
    Some(bundle)
}

const CREATE: &[&str] = &["create", "--bundle", "BUNDLE", "ID"];
const RUN: &[&str] = &["run", "--detach", "--bundle", "BUNDLE", "ID"];

fn nothing(_: &Bundle) {}

fn created(bundle: &Bundle) {
    assert!(bundle.create(&[]), "create");
}

fn running(bundle: &Bundle) {
    created(bundle);
    bundle.ok(&["start", &bundle.id]);
}

fn stopped(bundle: &Bundle) {
    running(bundle);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
}

/// What fails cleans up by itself, and what does not has a container to show.
fn done_or_undone(bundle: &Bundle, trace: &Trace) {
    match trace.code {
        Some(0) => drop(bundle.state()),
        Some(_) => bundle.assert_nothing_left(),
        None => panic!("the runtime itself was not to be killed"),
    }
}

#[test]
fn create_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, nothing, CREATE, Victim::Runtime).cut(|_, _| {});
}

#[test]
fn the_child_of_create_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, nothing, CREATE, Victim::Child).cut(done_or_undone);
}

#[test]
fn create_and_its_child_are_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, nothing, CREATE, Victim::Both).cut(|_, _| {});
}

/// A user namespace has a step more; time offsets and a joined pid namespace have a helper between parent and child.
#[test]
fn create_with_a_user_namespace_is_killed() {
    let Some(bundle) = busy() else { return };
    let map = || json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let bundle = bundle
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map())
        .set("/linux/gidMappings", map());
    Life::new(bundle, nothing, CREATE, Victim::Runtime).cut(|_, _| {});
}

#[test]
fn create_with_a_helper_is_killed() {
    for victim in [Victim::Runtime, Victim::Child] {
        let Some(bundle) = busy() else { return };
        let bundle = bundle
            .set("/linux/namespaces/-", json!({"type": "time"}))
            .set("/linux/timeOffsets", json!({"boottime": {"secs": 1000, "nanosecs": 0}}));
        let check = if victim == Victim::Child { done_or_undone } else { |_: &Bundle, _: &Trace| {} };
        Life::new(bundle, nothing, CREATE, victim).cut(check);
    }
}

#[test]
fn create_in_the_hosts_pid_namespace_is_killed() {
    let Some(bundle) = busy() else { return };
    let namespaces = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
    let bundle = bundle.set("/linux/namespaces", namespaces);
    Life::new(bundle, nothing, CREATE, Victim::Runtime).cut(|_, _| {});
}

/// The cgroup's path is given to another container as well, which has it before, or gets it after the first one is deleted: that
/// never ends the other.
fn harms_nobody(bundle: &Bundle, _: &Trace) {
    let (folder, other) = (bundle.path("bundle").display().to_string(), format!("{}-other", bundle.id));
    let start = || {
        let created =
            quiet(bundle.command(&["create", "--bundle", &folder, &other])).status().expect("create").success();
        if created {
            bundle.ok(&["start", &other]);
        }
        created
    };
    let before = start();
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(before || start(), "the cgroup is free now");
    let state: serde_json::Value = serde_json::from_str(&bundle.ok(&["state", &other])).expect("json");
    assert_eq!(state["status"], "running", "had it before: {before}");
    bundle.ok(&["exec", &other, "true"]);
    bundle.ok(&["delete", "--force", &other]);
}

#[test]
fn create_is_killed_and_its_cgroup_is_given_to_another() {
    for (own_pids, victim) in [(true, Victim::Runtime), (true, Victim::Both), (false, Victim::Runtime)] {
        let Some(mut bundle) = busy() else { return };
        if !own_pids {
            let namespaces = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
            bundle = bundle.set("/linux/namespaces", namespaces);
        }
        Life::new(bundle, nothing, CREATE, victim).cut(harms_nobody);
    }
}

#[test]
fn start_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, created, &["start", "ID"], Victim::Runtime).cut(|bundle, _| {
        // It has begun or it has not: never lost in between.
        let status = bundle.state()["status"].clone();
        assert!(status == "created" || status == "running", "{status}");
    });
}

#[test]
fn run_is_killed() {
    for victim in [Victim::Runtime, Victim::Both] {
        let Some(bundle) = busy() else { return };
        Life::new(bundle, nothing, RUN, victim).cut(|_, _| {});
    }
}

#[test]
fn the_child_of_run_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, nothing, RUN, Victim::Child).cut(done_or_undone);
}

#[test]
fn exec_is_killed() {
    for victim in [Victim::Runtime, Victim::Both] {
        let Some(bundle) = busy() else { return };
        Life::new(bundle, running, &["exec", "ID", "true"], victim).cut(|bundle, _| {
            assert_eq!(bundle.state()["status"], "running");
            // What has not become the program yet goes with the runtime; a program that runs is the container's.
            eventually("no half-made process is left", || half_made(bundle).is_empty());
        });
    }
}

/// Processes in the container's cgroup that are still the runtime itself.
fn half_made(bundle: &Bundle) -> Vec<String> {
    let procs = std::fs::read_to_string(bundle.cgroup("pids").join("cgroup.procs")).unwrap_or_default();
    let exe = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default().display().to_string();
    procs.lines().map(exe).filter(|exe| exe.contains("berth-runtime")).collect()
}

#[test]
fn the_child_of_exec_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, running, &["exec", "ID", "true"], Victim::Child).cut(|bundle, trace| {
        assert_eq!(bundle.state()["status"], "running");
        assert!(trace.code.is_some());
        if trace.killed {
            assert_ne!(trace.code, Some(0));
        }
    });
}

#[test]
fn delete_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, stopped, &["delete", "ID"], Victim::Runtime).cut(|_, _| {});
}

#[test]
fn delete_by_force_is_killed() {
    for before in [created as fn(&Bundle), running] {
        let Some(bundle) = busy() else { return };
        Life::new(bundle, before, &["delete", "--force", "ID"], Victim::Runtime).cut(|_, _| {});
    }
}

#[test]
fn run_in_the_foreground_is_killed() {
    let Some(bundle) = busy() else { return };
    let bundle = bundle.shell("true");
    Life::new(bundle, nothing, &["run", "--bundle", "BUNDLE", "ID"], Victim::Runtime).cut(|_, _| {});
}

#[test]
fn kill_is_killed() {
    let Some(bundle) = busy() else { return };
    Life::new(bundle, running, &["kill", "--all", "ID", "KILL"], Victim::Runtime).cut(|_, _| {});
}

#[test]
fn pause_and_resume_are_killed() {
    fn paused(bundle: &Bundle) {
        running(bundle);
        bundle.ok(&["pause", &bundle.id]);
    }
    for (before, command) in [(running as fn(&Bundle), "pause"), (paused, "resume")] {
        let Some(bundle) = busy() else { return };
        Life::new(bundle, before, &[command, "ID"], Victim::Runtime).cut(|bundle, _| {
            // Either can be had from whatever it is now.
            if bundle.state()["status"] == "paused" {
                bundle.ok(&["resume", &bundle.id]);
            }
            bundle.ok(&["exec", &bundle.id, "true"]);
        });
    }
}

#[test]
fn update_is_killed() {
    let Some(bundle) = busy() else { return };
    let command = ["update", "--memory", "33554432", "--pids-limit", "40", "ID"];
    Life::new(bundle, running, &command, Victim::Runtime).cut(|bundle, _| {
        bundle.ok(&["exec", &bundle.id, "true"]);
        bundle.ok(&["update", "--memory", "33554432", "--pids-limit", "40", &bundle.id]);
    });
}

/// Ends of calls that nobody reads.
fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
