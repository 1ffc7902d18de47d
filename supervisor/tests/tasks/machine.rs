//! The machine under running tasks goes bad: its run root is emptied, descriptors or processes run out, it is told to end.
//! And when all is well and nothing happens, nobody wakes.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use proto::containerd::v1::types::Status as State;
use tonic::Code;

use crate::stack::{NAMESPACE, Stack, assert_state, eventually, lives, request};

/// Removes the run root with everything in it, as a careless clean-up does.
fn empty_run_root(stack: &Stack) {
    let ours = format!("{}/", stack.run().display());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&ours)) {
        nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).expect("umount");
    }
    fs::remove_dir_all(stack.run()).expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_run_root_ends_what_ran_and_its_exit_is_known() {
    let mut stack = Stack::new().await;
    let pid = stack.run_task("a", "sleep 1000 & exec sleep 1000").await;
    stack.record("never-started", "true").await;
    stack.kill();
    empty_run_root(&stack);
    assert!(lives(pid), "the container doesn't notice");
    stack.start().await;
    eventually("the container has ended", || !lives(pid)).await;
    let process = stack.get("a").await.expect("known");
    assert_state(&process, State::Stopped);
    assert_eq!(process.exit_status, 137);
    assert_eq!(stack.wait("a").await.exit_status, 137);
    assert_eq!(stack.get("never-started").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stack.delete("a").await.expect("delete"), 137);
    stack.nothing_left().await;
    // And it can run again.
    stack.create("a").await;
    stack.start_task("a").await;
    stack.finish("a").await;
    stack.nothing_left().await;
}

/// How many threads and processes the supervisor is.
fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_processes_a_create_fails_clearly_and_leaves_nothing() {
    let stack = Stack::new().await;
    let group = Path::new("/sys/fs/cgroup/pids").join(format!("{}-daemon", stack.cgroup()));
    if !Path::new("/sys/fs/cgroup/pids/cgroup.procs").exists() {
        eprintln!("skipped: no pids controller of cgroup v1 here");
        return;
    }
    fs::create_dir(&group).expect("cgroup");
    fs::write(group.join("cgroup.procs"), stack.pid().to_string()).expect("join");
    stack.record("a", "exec sleep 1000").await;
    // From none at all to almost enough: each way of failing is met.
    let mut refused = 0;
    for room in 0..12 {
        fs::write(group.join("pids.max"), (threads(stack.pid()) + room).to_string()).expect("limit");
        match stack.tasks().create(request(stack.create_request("a"))).await {
            Ok(_) => {
                fs::write(group.join("pids.max"), "max").expect("no limit");
                stack.delete("a").await.expect("delete");
            }
            Err(status) => {
                refused += 1;
                assert!(!status.message().is_empty() && !status.message().contains("transport"), "{status:?}");
                assert_ne!(status.code(), Code::AlreadyExists, "something was left: {status:?}");
                fs::write(group.join("pids.max"), "max").expect("no limit");
            }
        }
        stack.nothing_left().await;
    }
    assert!(refused > 0);
    stack.create("a").await;
    stack.start_task("a").await;
    stack.finish("a").await;
    // Back where it was, so that the group can go.
    fs::write("/sys/fs/cgroup/pids/cgroup.procs", stack.pid().to_string()).expect("leave");
    stack.nothing_left().await;
    eventually("the group is empty", || fs::remove_dir(&group).is_ok()).await;
}

fn limit_descriptors(pid: u32, soft: usize) {
    let done = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={soft}:")).status();
    assert!(done.expect("prlimit").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_descriptors_a_create_fails_clearly_and_leaves_nothing() {
    let stack = Stack::new().await;
    stack.record("a", "exec sleep 1000").await;
    // A limit is on the number of a descriptor, not on how many there are: whoever runs the tests may leave some with high numbers.
    let lowest_free = || (0..).find(|number| !Path::new(&format!("/proc/{}/fd/{number}", stack.pid())).is_symlink());
    let mut refused = 0;
    for room in [0, 1, 2, 4, 6, 9, 12] {
        limit_descriptors(stack.pid(), lowest_free().expect("a number") + room);
        match stack.tasks().create(request(stack.create_request("a"))).await {
            Ok(_) => {
                limit_descriptors(stack.pid(), 1024);
                stack.delete("a").await.expect("delete");
            }
            Err(status) => {
                refused += 1;
                limit_descriptors(stack.pid(), 1024);
                assert!(status.message().contains("Too many open files"), "{room}: {status:?}");
                assert_ne!(status.code(), Code::AlreadyExists, "{room}: {status:?}");
            }
        }
        stack.nothing_left().await;
    }
    assert!(refused > 0);
    stack.create("a").await;
    stack.start_task("a").await;
    stack.finish("a").await;
    stack.nothing_left().await;
}

/// A shim that does nothing but take its time, the first time.
fn slow_shim(stack: &Stack, seconds: u32) -> String {
    let at = stack.folder().join("slow-shim");
    let marker = stack.folder().join("shim-runs");
    // Once only: what cleans up after it isn't kept waiting.
    let once = format!("[ -e {0} ] && exit 1; touch {0}", marker.display());
    let script = format!("#!/bin/sh\n{once}\nsleep {seconds}\necho slow shim says no >&2\nexit 1\n");
    testing::executable(&at, &script);
    at.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_hand_is_answered_before_the_end() {
    let mut stack = Stack::new().await;
    let pid = stack.run_task("a", "exec sleep 1000").await;
    stack.record_with("slow", "true", &slow_shim(&stack, 1)).await.expect("record");
    let (mut tasks, message) = (stack.tasks(), stack.create_request("slow"));
    let call = tokio::spawn(async move { tasks.create(request(message)).await });
    let marker = stack.folder().join("shim-runs");
    eventually("the call is in hand", || marker.exists()).await;
    assert!(stack.terminate().success());
    let answer = call.await.expect("call").unwrap_err();
    assert!(answer.message().contains("slow shim says no"), "{answer:?}");
    assert!(lives(pid), "containers run on");
    stack.start().await;
    assert_state(&stack.get("a").await.expect("a"), State::Running);
    stack.finish("a").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_takes_too_long_is_cut_off() {
    let mut stack = Stack::new().await;
    stack.record_with("slow", "true", &slow_shim(&stack, 7)).await.expect("record");
    let (mut tasks, message) = (stack.tasks(), stack.create_request("slow"));
    let call = tokio::spawn(async move { tasks.create(request(message)).await });
    let marker = stack.folder().join("shim-runs");
    eventually("the call is in hand", || marker.exists()).await;
    let began = Instant::now();
    assert!(stack.terminate().success());
    // `drain` is 5 s, and a second more for threads that hang.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert!(call.await.expect("call").is_err());
    assert!(stack.log().contains("requests cut off"));
    stack.start().await;
    let bundle = stack.run().join("supervisor/tasks").join(NAMESPACE).join("slow");
    eventually("the half-made task is undone", || !bundle.exists()).await;
}

/// How often the threads of a process have gone to sleep so far.
fn sleeps(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |text: String| -> u64 {
        let lines = text.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        lines.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    };
    threads.map(|thread| of(fs::read_to_string(thread.path().join("status")).unwrap_or_default())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_supervisor_and_its_shims_stay_asleep() {
    let stack = Stack::new().await;
    for id in ["a", "b"] {
        stack.run_task(id, "exec sleep 1000").await;
    }
    let everybody: Vec<u32> = stack.shims().into_iter().chain([stack.pid()]).collect();
    assert_eq!(everybody.len(), 3);
    let count = || everybody.iter().map(|pid| (*pid, sleeps(*pid))).collect::<Vec<_>>();
    // Until the last of the start has died away: threads that wait for work end after two seconds.
    let mut before = count();
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let now = count();
        if now == before {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "never quiet: {before:?} {now:?}\n{}", stack.log());
        before = now;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(count(), before, "somebody woke in three seconds in which nothing happened");
    for id in ["a", "b"] {
        stack.finish(id).await;
    }
    stack.nothing_left().await;
}
