//! What goes on while the supervisor is away, and what it finds when it comes back.

use integration_tests::leftovers;
use proto::runtime::v1 as cri;

use integration_tests::kubelet::{Node, container, eventually, pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_run_on_and_their_ends_are_found() {
    let mut node = Node::new().await;
    let config = pod("steady");
    let (id, main) = node.sleeper(&config).await;
    let brief = node.create(&id, &container("brief", "sleep 1; exit 5"), &config).await.unwrap();
    node.start_container(&brief).await.unwrap();
    let before = node.container(&main).await.unwrap();
    node.kill();
    // Its end must come while nobody is there.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    node.start(&[]).await;
    assert_eq!(node.container(&main).await.unwrap(), before);
    assert_eq!(node.exec(&main, &["true"]).await.unwrap().exit_code, 0);
    let status = node.ended(&brief).await;
    assert_eq!((status.exit_code, &*status.reason), (5, "Error"));
    assert_eq!(node.pod(&id).await.unwrap().state(), cri::PodSandboxState::SandboxReady);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_was_started_anew_has_lost_its_pods() {
    let Some(mut node) = Node::of_berth("how a machine loses what runs on it is done by Berth's folders here").await
    else {
        return;
    };
    let config = pod("lost");
    let (id, main) = node.sleeper(&config).await;
    let shims = leftovers::processes_of(node.path(), "berth-shim");
    let [shim] = shims[..] else { panic!("one shim: {shims:?}") };
    node.kill();
    // All that a machine loses when it is switched off: processes, mounts, the run root.
    let status = std::process::Command::new("sh")
        .arg("-c")
        .arg(format!(
            "kill -STOP {shim}; pkill -9 -P {shim}; kill -9 {shim}; sleep 0.2; \
             grep -o '{run}[^ ]*' /proc/self/mounts | sort -r | xargs -r umount -l; rm -rf {run}/supervisor",
            run = node.path().join("r").display()
        ))
        .status()
        .unwrap();
    assert!(status.success());
    node.start(&[]).await;
    let status = node.ended(&main).await;
    assert_eq!((status.exit_code, &*status.reason), (255, "Unknown"));
    eventually("the sandbox isn't ready any more", async || {
        let status = node.pod(&id).await.unwrap();
        (status.state() == cri::PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
