//! What a shim costs: a thousand of them run on one machine.

mod common;

use std::{fs, time::Duration};

use common::Stage;
use proto::containerd::task::v3::{ConnectRequest, ExecProcessRequest, StatsRequest};

/// A line of smaps_rollup in kB.
fn kilobytes(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line = text.lines().find(|line| line.starts_with(name)).expect("line");
    line.split_whitespace().nth(1).expect("number").parse().expect("number")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_shim_is_small_and_stays_so() {
    const COUNT: u64 = 8;
    let stage = Stage::new().await;
    let mut shims = Vec::new();
    for number in 0..COUNT {
        let id = format!("c{number}");
        let bundle = stage.bundle(&id, &["sh", "-c", "seq 1 20000; exec sleep 100"], |_| ());
        let mut shim = stage.shim(&id, bundle.clone()).await;
        let mut request = stage.create(&id, &bundle);
        request.stdout = format!("json-file://{}", stage.path(&format!("{id}.log")).display());
        request.stderr = request.stdout.clone();
        shim.create(request).await.expect("create");
        shim.start("").await.expect("start");
        let pid = shim.task.connect(ConnectRequest { id }).await.expect("connect").into_inner().shim_pid;
        shims.push((shim, pid));
    }
    // Until unused connections are given up and the heap is trimmed.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let sum = |name: &str| shims.iter().map(|(_, pid)| kilobytes(*pid, name)).sum::<u64>() / COUNT;
    let (fresh, pss) = (sum("Anonymous"), sum("Pss:"));
    let fds = fs::read_dir(format!("/proc/{}/fd", shims[0].1)).expect("fds").count();
    for round in 0..std::env::var("ROUNDS").map_or(20, |n| n.parse().expect("number")) {
        let (shim, _) = &mut shims[0];
        let exec = format!("e{round}");
        let stdio = ExecProcessRequest { stdout: "".into(), ..ExecProcessRequest::default() };
        shim.exec(&exec, &["seq", "1", "50000"], stdio).await.expect("exec");
        shim.wait(&exec).await;
        shim.delete(&exec).await.expect("delete");
        shim.task.stats(StatsRequest { id: "c0".into() }).await.expect("stats");
    }
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let busy = kilobytes(shims[0].1, "Anonymous");
    eprintln!(
        "idle shim with a container: anonymous {fresh} kB, PSS of {COUNT} beside each other {pss} kB; after 20 execs {busy} kB"
    );
    assert!(fresh < 800, "{fresh} kB");
    assert!(busy < fresh + 200, "{busy} kB after, {fresh} kB before");
    let now = fs::read_dir(format!("/proc/{}/fd", shims[0].1)).expect("fds").count();
    assert!(now <= fds, "{now} descriptors, {fds} before");
    for (shim, _) in shims {
        shim.finish().await;
    }
    stage.leaves_nothing().await;
}

/// Times that a process went to sleep.
fn wakes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.expect("a counter").trim().parse().expect("number")
}

/// A daemon that is away is not asked for again and again: it is seen when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_with_news_for_nobody_is_asleep_and_wakes_for_the_daemon() {
    let mut stage = Stage::new().await;
    let mut shim = stage.container("news", &["sleep", "1000"]).await;
    shim.start("").await.expect("start");
    let pid = shim.task.connect(ConnectRequest { id: "news".into() }).await.expect("connect").into_inner().shim_pid;
    common::eventually("start is told", || (stage.story() == ["create", "start"]).then_some(())).await;
    stage.supervisor_down();
    shim.kill("", 9).await.expect("kill");
    shim.wait("").await;
    // Pauses double from 10 ms on: the one that is under way after 6 s lasts for 5 s.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let before = wakes(pid);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(wakes(pid), before);
    stage.supervisor_up();
    let back = std::time::Instant::now();
    common::eventually("the exit is told", || (stage.story().len() == 3).then_some(())).await;
    assert!(back.elapsed() < Duration::from_millis(1500), "{:?}", back.elapsed());
    shim.finish().await;
    stage.leaves_nothing().await;
}

/// No timer, no polling: a shim whose container sleeps, sleeps too, with a caller and without.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_shim_is_asleep() {
    let stage = Stage::new().await;
    let mut called = stage.container("called", &["sleep", "1000"]).await;
    called.start("").await.expect("start");
    let mut left = stage.container("left", &["sleep", "1000"]).await;
    left.start("").await.expect("start");
    let mut pids = Vec::new();
    for shim in [&mut called, &mut left] {
        let request = ConnectRequest { id: shim.id.clone() };
        pids.push(shim.task.connect(request).await.expect("connect").into_inner().shim_pid);
    }
    let bundle = left.bundle.clone();
    drop(left);
    // Unused connections are given up after a second, the heap is trimmed then.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let before: Vec<u64> = pids.iter().copied().map(wakes).collect();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(pids.iter().copied().map(wakes).collect::<Vec<_>>(), before);
    called.finish().await;
    stage.shim("left", bundle).await.finish().await;
    stage.leaves_nothing().await;
}
