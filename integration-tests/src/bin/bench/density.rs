//! A thousand sleeping containers on the default bridge: what they cost to start, to keep and to remove, beside how it is
//! with few; and Debian's containerd with its shim for the memory of a hundred, in the same run.

use crate::{
    engines::{create, shim_pids},
    table::{Table, cpu_ms, median, pss_mb, settle, timed},
};
use integration_tests::{Stack, http::Api, images, programs::peer, run, stack::Setup};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Sleeping containers; a bridge has room for 1,023 ports.
const MANY: usize = 1000;
/// Containers of the peer: its memory per container does not depend on their number.
const PEERS: usize = 100;
/// Clients that work at the same time.
const CLIENTS: usize = 16;
/// Rounds of a median.
const ROUNDS: usize = 11;
/// How long idleness is watched.
const WATCHED: Duration = Duration::from_secs(10);

fn sleeper() -> Value {
    json!({ "Image": "busybox", "Cmd": ["sleep", "100000"], "HostConfig": { "NetworkMode": "bridge" } })
}

fn start(api: &Api, name: &str) -> bool {
    create(api, name, &sleeper()) && api.post(&format!("/v1.41/containers/{name}/start"), None).status == 204
}

fn remove(api: &Api, name: &str) -> bool {
    api.delete(&format!("/v1.41/containers/{name}?force=1")).status == 204
}

/// The medians of starting one more container, and of removing it.
fn one_more(api: &Api) -> (Option<f64>, Option<f64>) {
    let number = AtomicUsize::new(0);
    let name = |number: usize| format!("one{number}");
    let started = median(ROUNDS, || start(api, &name(number.fetch_add(1, Ordering::Relaxed))));
    let removed = AtomicUsize::new(0);
    (started, median(ROUNDS, || remove(api, &name(removed.fetch_add(1, Ordering::Relaxed)))))
}

/// Does `work` for every number below [`MANY`], by several clients at once.
fn by_all(work: &(dyn Fn(usize) -> bool + Sync)) -> bool {
    let (next, failures) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= MANY {
                        return;
                    }
                    if !work(number) {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner();
    if failures > 0 {
        eprintln!("{failures} of {MANY} failed");
    }
    failures == 0
}

fn running(api: &Api) -> usize {
    api.get("/v1.41/containers/json").json().as_array().map_or(0, Vec::len)
}

/// Memory of Debian's containerd at rest, and of each of its containers with its shim.
fn containerd() -> Option<(f64, f64)> {
    for name in ["containerd", "ctr", "containerd-shim-runc-v2", "runc"] {
        peer(name)?;
    }
    let stack = Stack::start_with(Setup { containerd: true, ..Setup::default() });
    let archive = images::busybox_archive(stack.path());
    stack.ctr(["images", "import", archive.to_str()?]).success();
    settle();
    let daemon = [stack.supervisor_pid()];
    let idle = pss_mb(&daemon);
    let name = |number: usize| format!("bench{number}");
    for number in 0..PEERS {
        stack.ctr(["run", "-d", "docker.io/library/busybox:latest", &name(number), "sleep", "100000"]).success();
    }
    settle();
    let shims = shim_pids("containerd-shim-runc-v2");
    let each = (pss_mb(&shims) + pss_mb(&daemon) - idle) / PEERS as f64;
    for number in 0..PEERS {
        stack.ctr(["tasks", "delete", "--force", &name(number)]);
        stack.ctr(["containers", "delete", &name(number)]);
    }
    stack.ctr(["images", "rm", "docker.io/library/busybox:latest"]);
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        fs::remove_dir(controller.path().join("default")).ok();
    }
    Some((idle, each))
}

/// Measures, and adds its rows.
pub fn measure(table: &mut Table) {
    let theirs = containerd();
    let stack = Stack::start_with(Setup { prefix: Some(20), ..Setup::default() });
    stack.load_busybox();
    let api = stack.api();
    let daemons = || vec![stack.supervisor_pid(), stack.engine_pid()];
    settle();
    let supervisor = pss_mb(&[stack.supervisor_pid()]);
    let idle = pss_mb(&daemons());
    table.row("supervisor idle, PSS", "MB", Some(supervisor), &[("containerd", theirs.map(|t| t.0))], "<= 12 MB");

    let (first_start, first_removal) = one_more(&api);
    let name = |number: usize| format!("many{number}");
    let all = timed(|| by_all(&|number| start(&api, &name(number))));
    let per = |total: Option<f64>| total.map(|total| total / MANY as f64);
    table.row("start of each of 1,000 containers, bridge, 16 clients", "ms", per(all), &[], "");
    let (last_start, last_removal) = one_more(&api);
    let alone = |value| [("berth with none", value)];
    table.row("start of one more beside 1,000", "ms", last_start, &alone(first_start), "flat");
    table.row("removal of one beside 1,000", "ms", last_removal, &alone(first_removal), "flat");

    settle();
    let shims = shim_pids("berth-shim");
    let each = (pss_mb(&shims) + pss_mb(&daemons()) - idle) / MANY as f64;
    let work = "each of 1,000 running containers, PSS, shim and daemons' growth (containerd: of 100)";
    table.row(work, "MB", Some(each), &[("containerd", theirs.map(|t| t.1))], "<= 0.8 MB");
    let everyone: Vec<u32> = shims.iter().copied().chain(daemons()).collect();
    let before = cpu_ms(&everyone);
    std::thread::sleep(WATCHED);
    let used = (cpu_ms(&everyone) - before) / WATCHED.as_secs_f64();
    table.row("CPU of daemons and 1,000 shims at rest, per second", "ms", Some(used), &[], "asleep");
    let list = median(ROUNDS, || running(&api) == MANY);
    table.row("list 1,000 running containers", "ms", list, &[], "");

    stack.kill_engine();
    stack.kill_supervisor();
    let begun = Instant::now();
    stack.start_supervisor();
    stack.start_engine();
    while running(&api) < MANY && begun.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let right = (running(&api) == MANY).then(|| begun.elapsed().as_secs_f64() * 1000.0);
    table.row("both daemons killed: from their start until ps shows all 1,000", "ms", right, &[], "<= 1000 ms");
    let removed = timed(|| by_all(&|number| remove(&api, &name(number))));
    table.row("removal by force of each of 1,000, 16 clients", "ms", per(removed), &[], "");
    assert!(nothing_runs(stack.path()), "a container outlived its removal");
}

/// Whether no shim of the stack is left.
fn nothing_runs(folder: &Path) -> bool {
    let found = run("pgrep", ["-f", &format!("berth-shim.*{}", folder.display())]).stdout();
    found.is_empty()
}
