use clap::Parser;
use proto::kind::ErrorKind;

use super::{meter::tests::Live, *};
use crate::{
    app::Draining,
    config::Args,
    containers::Containers,
    cri::{
        Node,
        place::Place,
        record::{CONTAINERS, Container, End, SANDBOXES},
    },
    events::EventBus,
    failure::Failure,
    store::Stores,
    tasks::Tasks,
};

/// Pods in a folder of their own, with no task.
async fn pods(folder: &Path) -> Arc<Pods> {
    let at = |name: &str| folder.join(name).display().to_string();
    let roots = ["--data-root", &at("data"), "--run-root", &at("run")];
    let config = Args::try_parse_from([&["berth-supervisor"], &roots[..]].concat()).unwrap().into_config().unwrap();
    let stores = Stores::open(&config.data_root, &config.snapshots, Arc::new(|_, _, _| {})).unwrap();
    let events = Arc::new(EventBus::open(&config.data().join("events")));
    let containers = Arc::new(Containers::new(stores.db.clone(), events.clone()));
    let (_, draining) = Draining::new();
    let tasks = Tasks::new(&config, containers.clone(), stores.content.clone(), events, draining.clone());
    let node = Node::new(&config, &stores, tasks.clone());
    Pods::open(&config, Arc::new(node), (stores, containers, tasks), draining).await.unwrap()
}

/// Takes the mounts of a sandbox away, however the test ends.
struct Made(Place);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

fn labels(app: &str) -> HashMap<String, String> {
    [("app".to_owned(), app.to_owned())].into()
}

fn sandbox(phase: Phase, app: &str) -> Sandbox {
    let mut sandbox = Sandbox::default();
    sandbox.set_phase(phase);
    let metadata = cri::PodSandboxMetadata { name: app.into(), ..Default::default() };
    let config = cri::PodSandboxConfig { metadata: Some(metadata), labels: labels(app), ..Default::default() };
    sandbox.request.config = Some(config);
    sandbox
}

fn container(sandbox: &str, app: &str, started_at: i64, end: Option<End>) -> Container {
    let config = cri::ContainerConfig { labels: labels(app), ..Default::default() };
    Container { sandbox: sandbox.into(), config, started_at, end, ..Default::default() }
}

#[tokio::test]
async fn lists_have_what_runs_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let pods = pods(folder.path()).await;
    let stats = Arc::new(Stats {
        layers: folder.path().into(),
        ..Arc::into_inner(Stats::new(pods.clone(), "/".into())).unwrap()
    });
    let Some(live) = Live::new("lists") else { return };
    // Two that run, one of which is ours; one that was made, one that has ended.
    let alive = live.id.clone();
    let records = [
        (alive.as_str(), container("pod-a", "shop", 1, None)),
        ("c-lost", container("pod-a", "shop", 1, None)),
        ("c-made", container("pod-a", "shop", 0, None)),
        ("c-over", container("pod-a", "shop", 1, Some(End::default()))),
    ];
    pods.stores
        .db
        .write(|tx| {
            for (id, record) in &records {
                CONTAINERS.put(tx, NAMESPACE, id, record)?;
            }
            SANDBOXES.put(tx, NAMESPACE, "pod-a", &sandbox(Phase::Ready, "shop"))?;
            SANDBOXES.put(tx, NAMESPACE, "pod-b", &sandbox(Phase::Ready, "other"))?;
            SANDBOXES.put(tx, NAMESPACE, "pod-c", &sandbox(Phase::NotReady, "shop"))?;
            Ok::<_, CriError>(())
        })
        .unwrap();
    pods.stores.snapshots.get_or_default("").unwrap().prepare(NAMESPACE, &alive, "", Default::default(), None).unwrap();
    // The network of one is there, that of the other was lost.
    let made = Made(pods.place("pod-a"));
    made.0.make(sandbox(Phase::Ready, "shop").config(), &Default::default()).unwrap();
    let pids: Pids = [(alive.clone(), live.pid()), ("c-made".to_owned(), 1), ("c-over".to_owned(), 1)].into();

    let filter = |id: &str, pod_sandbox_id: &str, app: &str| cri::ContainerStatsFilter {
        id: id.into(),
        pod_sandbox_id: pod_sandbox_id.into(),
        label_selector: if app.is_empty() { HashMap::new() } else { labels(app) },
    };
    for (filter, count) in [
        (filter("", "", ""), 1),
        (filter(&alive[..60], "pod-a", "shop"), 1),
        (filter("x", "", ""), 0),
        (filter("", "pod-b", ""), 0),
        (filter("", "", "other"), 0),
    ] {
        let found = stats.containers_that(&pids, &filter).unwrap();
        assert_eq!(found.len(), count, "{filter:?}");
        for one in found {
            assert_eq!(one.attributes.unwrap().id, alive);
            assert!(one.cpu.is_some() && one.writable_layer.unwrap().inodes_used.unwrap().value > 0);
        }
    }

    let all = stats.pods_that(&pids, |_, _| true).unwrap();
    let names: Vec<_> = all.iter().map(|pod| pod.attributes.as_ref().unwrap().id.as_str()).collect();
    assert_eq!(names, ["pod-a", "pod-b"]);
    let linux = |pod: &cri::PodSandboxStats| pod.linux.clone().unwrap();
    let (a, b) = (linux(&all[0]), linux(&all[1]));
    assert_eq!((a.containers.len(), a.process.unwrap().process_count), (1, Some(cri::UInt64Value { value: 1 })));
    assert_eq!(
        a.cpu.unwrap().usage_core_nano_seconds,
        a.containers[0].cpu.as_ref().unwrap().usage_core_nano_seconds,
        "the sum of one"
    );
    assert_eq!(a.network.map(|network| network.interfaces.len()), Some(0), "the loopback isn't told");
    assert!(b.containers.is_empty() && b.cpu.is_none() && b.memory.is_none() && b.network.is_none());

    // A pod with a process of its own, and no container.
    let own: Pids = [(alive.clone(), live.pid())].into();
    let put = |tx: &crate::store::WriteTx| SANDBOXES.put(tx, NAMESPACE, &alive, &sandbox(Phase::Ready, "pid"));
    pods.stores.db.write(put).unwrap();
    pods.stores.db.write(|tx| CONTAINERS.remove(tx, NAMESPACE, &alive)).unwrap();
    let found = stats.pods_that(&own, |id, _| id == alive).unwrap();
    let pause = linux(&found[0]);
    assert!(pause.containers.is_empty() && pause.cpu.is_some());
    assert_eq!(pause.process.unwrap().process_count, Some(cri::UInt64Value { value: 1 }));
    pods.stores.db.write(|tx| SANDBOXES.remove(tx, NAMESPACE, &alive)).unwrap();
    pods.stores.db.write(|tx| CONTAINERS.put(tx, NAMESPACE, &alive, &records[0].1)).unwrap();

    let metrics = stats.all_metrics(&pids).unwrap();
    assert_eq!(metrics.iter().map(|pod| pod.container_metrics.len()).collect::<Vec<_>>(), [1, 0]);
    let inside = &metrics[0].container_metrics[0];
    let has = |name: &str| inside.metrics.iter().any(|metric| metric.name == name);
    assert!(inside.container_id == alive && has("container_processes") && has("container_fs_limit_bytes"));
    assert!(has("container_file_descriptors") && has("container_ulimits_soft") && has("container_fs_usage_bytes"));

    // As callers ask; the tasks, who know best, say that nothing runs.
    assert!(stats.containers(None).await.unwrap().is_empty());
    assert_eq!(stats.container(alive).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(stats.container("none".into()).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        stats.pods(Some(cri::PodSandboxStatsFilter { id: "pod-b".into(), ..Default::default() })).await.unwrap().len(),
        1
    );
    let shop = cri::PodSandboxStatsFilter { label_selector: labels("shop"), ..Default::default() };
    assert_eq!(stats.pods(Some(shop)).await.unwrap().len(), 1);
    assert!(stats.pod("pod-a".into()).await.unwrap().linux.unwrap().containers.is_empty());
    assert_eq!(stats.pod("pod-c".into()).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(stats.metrics().await.unwrap().len(), 2);
    assert!(!stats.descriptors().await.unwrap().is_empty());
}

#[test]
fn the_cgroup_of_several_pods_is_nobodys() {
    let with = |parent: &str| {
        let mut sandbox = sandbox(Phase::Ready, "a");
        let linux = cri::LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() };
        sandbox.request.config.as_mut().unwrap().linux = Some(linux);
        (String::new(), sandbox)
    };
    let shared = shared_parents(&[with("/pods/a"), with("/pods"), with("/pods/b"), with("/pods")]);
    assert_eq!(shared, HashSet::from(["/pods".to_owned()]));
}
