//! The supervisor is killed at each step of the calls that make and take away pods and containers; a kubelet asks again.

use integration_tests::programs::{debug_bin_dir, workspace};
use proto::runtime::v1 as cri;
use tonic::Status;

use integration_tests::kubelet::{Node, Runtime, container, networked, pod};

/// The points that calls about pods pass.
fn points() -> Vec<String> {
    let all = proto::fault::points(&workspace().join("supervisor/src/cri")).unwrap();
    all.into_iter().filter(|point| !point.starts_with("supervisor.image")).collect()
}

/// Asks until it is answered: by a new supervisor, if the one that was asked is dead.
async fn stubborn<T>(node: &mut Node, mut ask: impl AsyncFnMut(&Node) -> Result<T, Status>) -> T {
    for _ in 0..3 {
        match ask(node).await {
            Ok(answer) => return answer,
            Err(error) => {
                integration_tests::kubelet::eventually("the supervisor is dead", async || {
                    assert!(!is_refusal(&error), "{error}\n{}", node.log());
                    node.died().then_some(())
                })
                .await;
                node.kill();
                node.start(&[]).await;
            }
        }
    }
    panic!("no answer after three attempts\n{}", node.log());
}

fn is_refusal(error: &Status) -> bool {
    // What a client says whose connection broke.
    !matches!(
        error.code(),
        tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Internal
    )
}

/// Snapshots, and leases.
fn layers(node: &Node) -> String {
    node.ctr(&["snapshot", "ls"]) + &node.ctr(&["leases", "ls", "-q"])
}

async fn life(node: &mut Node, config: &cri::PodSandboxConfig) {
    let id = stubborn(node, async |node| node.run_pod(config).await).await;
    assert_eq!(node.pods().await.len(), 1);
    let mut wanted = container("main", "exec sleep 1000");
    // With an image as a mount, for what is done about those.
    wanted.mounts.push(cri::Mount {
        container_path: "/image".into(),
        readonly: true,
        image: wanted.image.clone(),
        ..Default::default()
    });
    let main = stubborn(node, async |node| node.create(&id, &wanted, config).await).await;
    assert_eq!(node.containers().await.len(), 1);
    // A start that was cut off isn't done twice: it is an end, and the kubelet makes another container.
    let started = stubborn(node, async |node| match node.start_container(&main).await {
        Err(error) if error.code() == tonic::Code::FailedPrecondition => Ok(false),
        other => other.map(|()| true),
    })
    .await;
    if started {
        let ran = stubborn(node, async |node| match node.exec(&main, &["true"]).await {
            // It was cut off itself, and the kubelet asks again.
            Err(error) if error.code() == tonic::Code::FailedPrecondition => Ok(0),
            other => other.map(|done| done.exit_code),
        })
        .await;
        assert_eq!(ran, 0);
    }
    let state = node.container(&main).await.unwrap().state();
    assert!(started || state != cri::ContainerState::ContainerCreated, "{state:?}");
    stubborn(node, async |node| node.stop_container(&main, 0).await).await;
    assert_eq!(node.ended(&main).await.state(), cri::ContainerState::ContainerExited);
    stubborn(node, async |node| node.remove_container(&main).await).await;
    let wanted = container("second", "exec sleep 1000");
    let second = stubborn(node, async |node| node.create(&id, &wanted, config).await).await;
    stubborn(node, async |node| match node.start_container(&second).await {
        Err(error) if error.code() == tonic::Code::FailedPrecondition => Ok(()),
        other => other,
    })
    .await;
    stubborn(node, async |node| node.stop_pod(&id).await).await;
    stubborn(node, async |node| node.remove_pod(&id).await).await;
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_every_point() {
    if Runtime::under_test() != Runtime::Berth {
        eprintln!("skipped: about Berth's own points");
        return;
    }
    let points = points();
    assert!(points.len() > 15, "{points:?}");
    let has_plugins = std::path::Path::new("/usr/lib/cni/bridge").exists();
    let mut node = Node::with_programs(debug_bin_dir(&points)).await;
    if has_plugins {
        node.configure(&integration_tests::kubelet::bridge(node.path()));
    }
    let before = layers(&node);
    let mark = node.path().join("fault");
    let mut unreached = Vec::new();
    for (number, point) in points.iter().enumerate() {
        std::fs::remove_file(&mark).ok();
        node.kill();
        node.start(&[("BERTH_FAULT", point), ("BERTH_FAULT_ONCE", mark.to_str().unwrap())]).await;
        let name = format!("pod{number}");
        let mut config = if has_plugins { networked(&name) } else { pod(&name) };
        // Then it has a process of its own besides.
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let options = context.namespace_options.as_mut().unwrap();
        options.pid = cri::NamespaceMode::Pod.into();
        if has_plugins && (number % 2 == 1 || point.contains("user_namespace")) {
            let map = vec![cri::IdMapping { container_id: 0, host_id: 100_000, length: 65_536 }];
            options.userns_options = Some(cri::UserNamespace { uids: map.clone(), gids: map, ..Default::default() });
        }
        life(&mut node, &config).await;
        if !mark.exists() {
            unreached.push(point);
        }
    }
    // What a call that was cut off had made goes with the next start, and nothing waits for the collector.
    assert_eq!(layers(&node), before);
    unreached.retain(|point| has_plugins || !(point.contains("network") || point.contains("user_namespace")));
    assert!(unreached.is_empty(), "never reached: {unreached:?}");
    if has_plugins {
        let links = node.host.run(["ip", "-o", "link"]).success().stdout();
        assert!(!links.contains("veth"), "{links}");
        let kept = std::fs::read_dir(node.path().join("ipam/pods")).unwrap().flatten();
        let addresses: Vec<_> = kept
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().contains(['.', ':']) && !name.to_string_lossy().starts_with("last"))
            .collect();
        assert!(addresses.is_empty(), "{addresses:?}");
    }
}
