//! CRI as a kubelet uses it: Berth's supervisor beside Debian's containerd, both with Debian's CNI plugins, each on a host of its own.

use crate::table::{Table, cpu_ms, pss_mb, settle};
use integration_tests::kubelet::{Node, bridge, container, networked, pod};
use proto::runtime::v1 as cri;
use std::{
    future::Future,
    io::Write as _,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tokio::runtime::Runtime;

/// Rounds of a median.
const ROUNDS: usize = 15;
/// Pods beside which lists are measured, and whose memory is.
const PODS: usize = 200;
/// How long idleness is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// A node, a pod that stays, and its container.
struct Side {
    name: &'static str,
    node: Node,
    pod: (String, cri::PodSandboxConfig),
    container: String,
}

impl Side {
    async fn new(name: &'static str, node: Node) -> Self {
        node.configure(&bridge(node.path()));
        node.await_network().await;
        let config = networked("stays");
        let (pod, container) = node.sleeper(&config).await;
        Self { name, node, pod: (pod, config), container }
    }
}

struct Bench {
    runtime: Runtime,
    sides: Vec<Side>,
    number: AtomicUsize,
}

impl Bench {
    fn name(&self) -> String {
        format!("n{}", self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Medians of what `work` finds on each side, by turns, in milliseconds; whoever is first changes.
    fn by_turns<'a, F: Future<Output = Option<f64>>>(&'a self, work: impl Fn(&'a Side) -> F) -> Vec<Option<f64>> {
        let mut found: Vec<Option<Vec<f64>>> =
            self.sides.iter().map(|side| self.runtime.block_on(work(side)).map(|_| Vec::new())).collect();
        for round in 0..ROUNDS {
            for turn in 0..self.sides.len() {
                let index = (round + turn) % self.sides.len();
                if let Some(list) = &mut found[index] {
                    match self.runtime.block_on(work(&self.sides[index])) {
                        Some(time) => list.push(time),
                        None => found[index] = None,
                    }
                }
            }
        }
        let middle = |mut list: Vec<f64>| {
            list.sort_by(f64::total_cmp);
            list[list.len() / 2]
        };
        found.into_iter().map(|list| list.map(middle)).collect()
    }

    fn row(&self, table: &mut Table, work: &str, unit: &'static str, found: &[Option<f64>], goal: &str) {
        let all: Vec<_> = self.sides.iter().zip(found).map(|(side, figure)| (side.name, *figure)).collect();
        table.row(work, unit, all[0].1, &all[1..], goal);
    }

    /// The life of a pod, and what plugins take of it by themselves.
    fn pods(&self, table: &mut Table, words: &str, config: Network, [added, gone]: [Option<f64>; 2]) {
        let starts = self.by_turns(async |side| {
            let config = config(&self.name());
            let begun = std::time::Instant::now();
            let pod = side.node.run_pod(&config).await.ok()?;
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            side.node.stop_pod(&pod).await.ok()?;
            side.node.remove_pod(&pod).await.ok()?;
            Some(took)
        });
        self.row_beside_plugins(table, &format!("pod start to ready{words}"), &starts, added);
        let ends = self.by_turns(async |side| {
            let pod = side.node.run_pod(&config(&self.name())).await.ok()?;
            time(async {
                side.node.stop_pod(&pod).await?;
                side.node.remove_pod(&pod).await
            })
            .await
        });
        self.row_beside_plugins(table, &format!("pod stop + remove{words}"), &ends, gone);
    }

    fn row_beside_plugins(&self, table: &mut Table, work: &str, found: &[Option<f64>], plugins: Option<f64>) {
        let mut all: Vec<_> = self.sides.iter().zip(found).map(|(side, figure)| (side.name, *figure)).collect();
        if plugins.is_some() {
            all.push(("its plugins by hand", plugins));
        }
        table.row(work, "ms", all[0].1, &all[1..], "<= 0.33 of containerd");
    }
}

/// A pod of a name, on some network.
type Network = fn(&str) -> cri::PodSandboxConfig;
/// What plugins a node has, in its folder.
type List = fn(&std::path::Path) -> String;

/// The same bridge for a node on which somebody else hides pods behind the node's address.
fn plain_bridge(folder: &std::path::Path) -> String {
    bridge(folder).replace(r#""ipMasq":true"#, r#""ipMasq":false"#)
}

/// Milliseconds that the plugins of the node's network take by themselves, to add a pod and to take it away.
fn plugins(node: &Node, list: &str, name: &str) -> Option<(f64, f64)> {
    let list: serde_json::Value = serde_json::from_str(list).ok()?;
    let plugins = list["plugins"].as_array()?;
    let netns = format!("/run/netns/{name}");
    let call = |verb: &str, plugin: &serde_json::Value, before: &serde_json::Value| {
        let mut input = plugin.clone();
        for key in ["name", "cniVersion"] {
            input[key] = list[key].clone();
        }
        if !before.is_null() {
            input["prevResult"] = before.clone();
        }
        let mut command = node.host_command(&format!("/usr/lib/cni/{}", plugin["type"].as_str()?));
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", name).env("CNI_NETNS", &netns);
        command.env("CNI_IFNAME", "eth0").env("CNI_PATH", "/usr/lib/cni");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        child.stdin.take()?.write_all(input.to_string().as_bytes()).ok()?;
        let output = child.wait_with_output().ok()?;
        output.status.success().then_some(output.stdout)
    };
    let netns_is = |verb: &str| node.host_command("ip").args(["netns", verb, name]).status().is_ok_and(|s| s.success());
    if !netns_is("add") {
        return None;
    }
    let mut result = serde_json::Value::Null;
    let begun = std::time::Instant::now();
    for plugin in plugins {
        result = serde_json::from_slice(&call("ADD", plugin, &result)?).ok()?;
    }
    let added = begun.elapsed().as_secs_f64() * 1000.0;
    let begun = std::time::Instant::now();
    for plugin in plugins.iter().rev() {
        call("DEL", plugin, &result)?;
    }
    let gone = begun.elapsed().as_secs_f64() * 1000.0;
    netns_is("del").then_some((added, gone))
}

/// Milliseconds of a call; `None` if it failed.
async fn time<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Option<f64> {
    let begun = std::time::Instant::now();
    match call.await {
        Ok(_) => Some(begun.elapsed().as_secs_f64() * 1000.0),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    }
}

/// Measures, and adds its rows.
pub fn measure(table: &mut Table) {
    let runtime = Runtime::new().expect("a runtime");
    let sides = runtime.block_on(async {
        let mut sides = vec![Side::new("berth", Node::of_berth("this is about both").await.expect("Berth")).await];
        if let Some(node) = Node::of_containerd().await {
            sides.push(Side::new("containerd", node).await);
        }
        sides
    });
    let bench = Bench { runtime, sides, number: AtomicUsize::new(0) };

    // On most nodes somebody else hides pods behind the node's address: with `ipMasq` it is iptables that is measured.
    for (words, list) in [("", bridge as List), (", a bridge without ipMasq", plain_bridge)] {
        for side in &bench.sides {
            side.node.configure(&list(side.node.path()));
        }
        // Both look at the folder when they like.
        settle();
        let by_hand: Vec<_> = (0..ROUNDS)
            .filter_map(|_| {
                let node = &bench.sides[0].node;
                plugins(node, &list(node.path()), &format!("by-hand-{}", bench.name()))
            })
            .collect();
        let middle = |of: fn(&(f64, f64)) -> f64| {
            let mut all: Vec<f64> = by_hand.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied()
        };
        bench.pods(table, words, networked, [middle(|both| both.0), middle(|both| both.1)]);
    }
    bench.pods(table, ", on the node's network", pod, [None, None]);
    let starts = bench.by_turns(async |side| {
        let (pod, config) = &side.pod;
        let wanted = container(&bench.name(), "exec sleep 100000");
        let mut made = String::new();
        let took = time(async {
            made = side.node.create(pod, &wanted, config).await?;
            side.node.start_container(&made).await
        })
        .await;
        side.node.remove_container(&made).await.ok()?;
        took
    });
    bench.row(table, "container create + start", "ms", &starts, "<= 0.33");
    let stops = bench.by_turns(async |side| {
        let (pod, config) = &side.pod;
        let made = side.node.create(pod, &container(&bench.name(), "exec sleep 100000"), config).await.ok()?;
        side.node.start_container(&made).await.ok()?;
        time(async {
            side.node.stop_container(&made, 0).await?;
            side.node.remove_container(&made).await
        })
        .await
    });
    bench.row(table, "container stop (kill) + remove", "ms", &stops, "<= 0.33");
    let execs = bench.by_turns(async |side| time(side.node.exec(&side.container, &["true"])).await);
    bench.row(table, "exec sync", "ms", &execs, "<= 0.33");

    let before: Vec<f64> = bench.sides.iter().map(|side| pss_mb(&side.node.pids())).collect();
    let mut many: Vec<Vec<String>> = Vec::new();
    for side in &bench.sides {
        many.push(bench.runtime.block_on(async {
            let mut pods = Vec::new();
            for _ in 0..PODS {
                pods.push(side.node.sleeper(&networked(&bench.name())).await.0);
            }
            pods
        }));
    }
    settle();
    let memory: Vec<_> = bench
        .sides
        .iter()
        .zip(&before)
        .map(|(side, before)| Some((pss_mb(&side.node.pids()) - before) / PODS as f64))
        .collect();
    bench.row(table, &format!("memory of a pod with a container, of {PODS}, PSS"), "MB", &memory, "<= 1 MB");
    let calls = bench.by_turns(async |side| time(side.node.kubelet().version(cri::VersionRequest::default())).await);
    bench.row(table, "an empty call (Version)", "ms", &calls, "none");
    let lists = bench
        .by_turns(async |side| time(side.node.kubelet().list_containers(cri::ListContainersRequest::default())).await);
    bench.row(table, &format!("list containers, {PODS} pods"), "ms", &lists, "<= 0.33");
    let lists = bench
        .by_turns(async |side| time(side.node.kubelet().list_pod_sandbox(cri::ListPodSandboxRequest::default())).await);
    bench.row(table, &format!("list pods, {PODS} pods"), "ms", &lists, "<= 0.33");
    let stats = bench.by_turns(async |side| {
        time(side.node.kubelet().list_container_stats(cri::ListContainerStatsRequest::default())).await
    });
    bench.row(table, &format!("stats of all containers, {PODS} pods"), "ms", &stats, "<= 0.33");
    let idle: Vec<_> = bench
        .sides
        .iter()
        .map(|side| {
            let pids = side.node.pids();
            let before = cpu_ms(&pids);
            std::thread::sleep(WATCHED);
            Some((cpu_ms(&pids) - before) / WATCHED.as_secs_f64())
        })
        .collect();
    bench.row(table, &format!("CPU of {PODS} idle pods, per second"), "ms", &idle, "0");
    for (side, pods) in bench.sides.iter().zip(many) {
        bench.runtime.block_on(async {
            for pod in pods.iter().chain([&side.pod.0]) {
                side.node.stop_pod(pod).await.ok();
                side.node.remove_pod(pod).await.ok();
            }
        });
    }
}
