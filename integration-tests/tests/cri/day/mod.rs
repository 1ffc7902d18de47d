//! A node's day: pods come and go, with all that a kubelet does to them, while the supervisor and shims are killed and networks fail.
//! What the kubelet hears must agree with itself all the time, every log has each line once, and in the end nothing is left.
//!
//! | variable | meaning |
//! |---|---|
//! | `BERTH_DAY_SECONDS=N` | pods come for N seconds (`make soak-cri`); else 100 of them come |
//! | `BERTH_DAY_SEED=N` | the same choices again; the seed is printed |

mod calls;
mod garbage;
mod logs;
mod pod;
mod watch;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use integration_tests::{
    Dice,
    kubelet::{IMAGE, Node, bridge, eventually, networked},
    leftovers,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::runtime::v1 as cri;
use tokio::sync::RwLock;

use calls::{Day, ON_PURPOSE};
use pod::Pod;
use watch::Seen;

/// Pods at a time.
const SLOTS: usize = 30;
const PODS: usize = 100;
const IMAGES: usize = 6;

/// Stands for Debian's bridge plugin, and fails when it is told to: there is a file for each failure, which it takes away.
const SHAKY: &str = "#!/bin/sh\n\
    take() { for one in \"$(dirname $0)/failures/$1\".*; do rm \"$one\" 2>/dev/null && return 0; done; return 1; }\n\
    fail() { echo '{\"cniVersion\":\"1.0.0\",\"code\":7,\"msg\":\"MADE\"}'; exit 1; }\n\
    if [ $CNI_COMMAND = ADD ]; then\n\
      take before && fail\n\
      take after && { /usr/lib/cni/bridge >/dev/null || exit 1; fail; }\n\
      take slow && sleep 2\n\
    elif [ $CNI_COMMAND = DEL ]; then\n\
      take delete && fail\n\
    fi\n\
    exec /usr/lib/cni/bridge\n";

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

/// All files and folders below one, links and their targets as well.
fn paths(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found
}

/// What there is on the node that pods may leave behind.
#[derive(Debug, Default)]
struct Inventory(BTreeMap<&'static str, BTreeSet<String>>);

impl Inventory {
    fn of(node: &Node) -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let mut all = BTreeMap::new();
        all.insert("file below the run root", paths(&node.path().join("r")));
        let data = paths(&node.path().join("d"));
        // The trees of snapshots are told by their folders; events are kept in files that take turns.
        let counts = |path: &String| !path.contains("/fs/") && !path.ends_with(".events");
        all.insert("file below the data root", data.into_iter().filter(counts).collect());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned);
        all.insert("mount", mounts.filter(|at| Path::new(at).starts_with(node.path())).collect());
        let links = node.host.run(["ip", "-o", "link"]).success().stdout();
        all.insert("link", links.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned).collect());
        let rules = node.host.rules();
        let of_pods =
            |line: &&str| line.contains("CNI-DN-") || line.contains("10.99.0.") || line.contains("comment \"id:");
        all.insert("rule", rules.lines().filter(of_pods).map(str::to_owned).collect());
        let kept = paths(&node.path().join("ipam"));
        let is_address = |path: &String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            name.contains(['.', ':']) && !name.starts_with("last_reserved")
        };
        all.insert("address", kept.into_iter().filter(is_address).collect());
        all.insert("container", lines(node.ctr(&["container", "ls", "-q"])));
        all.insert("task", lines(node.ctr(&["task", "ls", "-q"])));
        let snapshots = node.ctr(&["snapshot", "ls"]);
        let keys = snapshots.lines().filter_map(|line| line.split_whitespace().next());
        all.insert("snapshot", keys.map(str::to_owned).collect());
        all.insert("lease", lines(node.ctr(&["leases", "ls", "-q"])));
        all.insert("image", lines(node.ctr(&["image", "ls", "-q"])));
        let shims = leftovers::processes_of(node.path(), "shim");
        all.insert("shim", shims.iter().map(ToString::to_string).collect());
        Self(all)
    }

    fn added_since(&self, before: &Self) -> Vec<String> {
        let nothing = BTreeSet::new();
        let each = self.0.iter().flat_map(|(kind, now)| {
            now.difference(before.0.get(kind).unwrap_or(&nothing)).map(move |item| format!("{kind} {item}"))
        });
        each.collect()
    }
}

/// Memory of its own, and descriptors, of a process.
fn weight(pid: u32) -> (usize, BTreeMap<String, usize>) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok());
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        let kind =
            if target.starts_with('/') { "file" } else { target.split(':').next().unwrap_or_default() }.to_owned();
        *files.entry(kind).or_default() += 1;
    }
    (pss.unwrap_or(0), files)
}

/// Kills, and lets networks fail, until the day is over.
async fn trouble(day: &Day, node: &RwLock<Node>, seed: u64) {
    let mut dice = Dice::new(seed);
    let failures = day.folder.join("cni/failures");
    let mut serial = 0;
    while !day.is_over() {
        tokio::time::sleep(Duration::from_millis(700 + dice.roll(2300) as u64)).await;
        match dice.roll(8) {
            0..=2 => {
                let pause = Duration::from_millis([0, 0, 50, 300, 1000][dice.roll(5)]);
                let _import = day.import.lock().await;
                let mut node = node.write().await;
                day.generation.fetch_add(1, Ordering::SeqCst);
                node.kill();
                tokio::time::sleep(pause).await;
                node.start(&[]).await;
                day.generation.fetch_add(1, Ordering::SeqCst);
                day.count("supervisor killed");
            }
            3 => {
                let shims = leftovers::processes_of(&day.folder, "berth-shim");
                if shims.is_empty() {
                    continue;
                }
                let shim = shims[dice.roll(shims.len())];
                let line = fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                // It is known by the first container of the pod that it had, or by the pod.
                let seen = day.seen.lock().unwrap().clone();
                let sandbox = seen.iter().find(|(id, seen)| line.contains(*id) || line.contains(&seen.sandbox));
                let Some((_, Seen { sandbox, .. })) = sandbox else { continue };
                let logs = |pod: &Arc<Pod>| {
                    pod.logs.lock().unwrap().keys().any(|id| seen.get(id).is_some_and(|one| one.sandbox == *sandbox))
                };
                let pod = day.pods.lock().unwrap().values().find(|pod| logs(pod)).cloned();
                let Some(pod) = pod else { continue };
                pod.shots.fetch_add(1, Ordering::SeqCst);
                eprintln!("shim {shim} of {} is killed: {line}", pod.name);
                kill(Pid::from_raw(shim as i32), Signal::SIGKILL).ok();
                day.count("shims killed");
            }
            other => {
                let kinds = if other < 6 { ["before", "after"] } else { ["delete", "slow"] };
                serial += 1;
                fs::write(failures.join(format!("{}.{serial}", kinds[dice.roll(2)])), "").unwrap();
            }
        }
    }
    for entry in fs::read_dir(failures).into_iter().flatten().flatten() {
        fs::remove_file(entry.path()).ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_nodes_day() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("BERTH_DAY_SEED").unwrap_or(clock);
    let seconds = number("BERTH_DAY_SECONDS");
    println!("BERTH_DAY_SEED={seed}");
    let Some(node) = Node::of_berth("about kills of Berth's daemon, and Berth's records").await else { return };
    if !Path::new("/usr/lib/cni/bridge").exists() {
        eprintln!("skipped: containernetworking-plugins is not installed");
        return;
    }
    fs::create_dir_all(node.path().join("cni/failures")).unwrap();
    let plugin = node.path().join("cni/shaky");
    fs::write(&plugin, SHAKY.replace("MADE", ON_PURPOSE)).unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
    node.configure(&bridge(node.path()).replace("\"type\":\"bridge\"", "\"type\":\"shaky\""));
    node.await_network().await;
    node.ctr(&["image", "label", IMAGE, "io.cri-containerd.pinned=pinned"]);
    garbage::write_archives(&node, IMAGES);
    // What comes with the first pod, and stays.
    let mut first = networked("first");
    let context = first.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
    let (first, _) = node.sleeper(&first).await;
    node.remove_pod(&first).await.unwrap();
    node.assert_empty().await;
    eventually("its shim has left", async || leftovers::processes_of(node.path(), "shim").is_empty().then_some(()))
        .await;
    let before = Inventory::of(&node);
    let (pss_before, files_before) = weight(node.pids()[0]);

    let network = fs::File::open(node.host.namespace()).unwrap();
    let day = Arc::new(Day::new(node.channel(), network, node.path().to_owned()));
    let node = Arc::new(RwLock::new(node));
    let began = Instant::now();
    let mut beside = Vec::new();
    for task in ["collect", "relist", "listen", "measure", "images"] {
        let day = day.clone();
        beside.push(tokio::spawn(async move {
            match task {
                "collect" => day.collect().await,
                "relist" => day.relist(seed ^ 1).await,
                "listen" => day.listen().await,
                "measure" => day.measure(seed ^ 2).await,
                _ => day.collect_images(seed ^ 3).await,
            }
        }));
    }
    let next = Arc::new(AtomicUsize::new(0));
    let slots: Vec<_> = (0..SLOTS)
        .map(|slot| {
            let (day, node, next) = (day.clone(), node.clone(), next.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(slot as u64 * 50)).await;
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let more = match seconds {
                        Some(seconds) => began.elapsed() < Duration::from_secs(seconds),
                        None => number < PODS,
                    };
                    if !more {
                        return;
                    }
                    let pod = Arc::new(Pod::make_up(number, seed, &day.folder, IMAGES));
                    day.clone().play(pod, node.clone(), seed ^ (number as u64) << 8).await;
                }
            })
        })
        .collect();
    let all = async {
        for slot in slots {
            slot.await.unwrap();
        }
        day.over.store(true, Ordering::SeqCst);
    };
    tokio::join!(trouble(&day, &node, seed ^ 4), all);
    for task in beside {
        task.await.unwrap();
    }
    println!("{:.1} s\n{}", began.elapsed().as_secs_f64(), day.report());

    let node = Arc::into_inner(node).unwrap().into_inner();
    day.collect_images_once().await.unwrap();
    node.assert_empty().await;
    let mut left = Vec::new();
    for _ in 0..100 {
        left = Inventory::of(&node).added_since(&before);
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Their kubelet's own.
    let parent = format!("berth-test-day-{}", std::process::id());
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for root in hierarchies.chain(["/sys/fs/cgroup".into()]) {
        for pod in fs::read_dir(root.join(&parent)).into_iter().flatten().flatten() {
            if pod.file_type().is_ok_and(|kind| kind.is_dir())
                && let Err(error) = fs::remove_dir(pod.path())
            {
                left.push(format!("cgroup {}: {error} {:?}", pod.path().display(), paths(&pod.path())));
            }
        }
        fs::remove_dir(root.join(&parent)).ok();
    }
    let (pss, files) = weight(node.pids()[0]);
    println!("supervisor: {pss_before} kB PSS and {files_before:?} before, {pss} kB and {files:?} after");
    let wrong = day.wrong.lock().unwrap().clone();
    if !wrong.is_empty() || !left.is_empty() {
        let kept = Path::new("/tmp/berth-day.log");
        fs::write(kept, node.log()).ok();
        panic!("BERTH_DAY_SEED={seed}\n{wrong:#?}\nleft: {left:#?}");
    }
    let grown: Vec<_> =
        files.iter().filter(|(kind, count)| **count > files_before.get(*kind).unwrap_or(&0) + 3).collect();
    assert!(grown.is_empty(), "descriptors: {grown:?} of {files:?}, before {files_before:?}");
    eventually("shims have left", async || leftovers::processes_of(node.path(), "shim").is_empty().then_some(())).await;
}
