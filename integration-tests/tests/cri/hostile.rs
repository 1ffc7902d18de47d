//! Requests that mean no good, or nothing. (Random ones, of every message: `supervisor/src/cri/fuzz.rs`.)

use std::fs;

use proto::runtime::v1::{self as cri, runtime_service_client::RuntimeServiceClient};
use tonic::Code;

use integration_tests::kubelet::{Node, container, pod};

use crate::scene::{Scene, script};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_15_mib_are_taken_and_of_more_than_16_refused() {
    let Some(node) = Node::of_berth("containerd 1.6 answers RESOURCE_EXHAUSTED").await else { return };
    let mut config = pod("large");
    config.annotations.insert("much".into(), "x".repeat(15 * MIB));
    let id = node.run_pod(&config).await.unwrap();
    let mut kubelet = node.kubelet().max_decoding_message_size(16 * MIB);
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let status = kubelet.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.annotations["much"].len(), 15 * MIB);
    node.stop_pod(&id).await.unwrap();
    node.remove_pod(&id).await.unwrap();

    let mut config = pod("larger");
    config.annotations.insert("much".into(), "x".repeat(17 * MIB));
    let refused = node.run_pod(&config).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("too large"), "{refused}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_are_too_long_for_a_message_come_in_pieces() {
    let Some(node) = Node::of_berth("containerd 1.6 has no StreamPodSandboxes").await else { return };
    let mut all = Vec::new();
    for number in 0..3 {
        let mut config = pod(&format!("large{number}"));
        config.annotations.insert("much".into(), "x".repeat(7 * MIB));
        all.push(node.run_pod(&config).await.unwrap());
    }
    let refused = node
        .kubelet()
        .max_decoding_message_size(64 * MIB)
        .list_pod_sandbox(cri::ListPodSandboxRequest::default())
        .await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    let mut kubelet = node.kubelet().max_decoding_message_size(16 * MIB);
    let mut stream =
        kubelet.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default()).await.unwrap().into_inner();
    let mut found = 0;
    while let Some(message) = stream.message().await.unwrap() {
        found += message.pod_sandboxes.len();
    }
    assert_eq!(found, 3);
    for id in all {
        node.stop_pod(&id).await.unwrap();
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_output_than_a_message_holds_is_cut() {
    let scene = Scene::of_berth("output", "containerd 1.6 fails on its own limit of messages").await;
    let Some(scene) = scene else { return };
    let id = scene.start(&script("exec sleep 1000")).await;
    // As a kubelet: it takes 16 MiB, and no more.
    let mut kubelet = scene.node.kubelet().max_decoding_message_size(16 * MIB);
    let much = "head -c 20000000 /dev/zero; head -c 20000000 /dev/zero >&2; exit 3";
    let cmd = ["sh", "-c", much].map(str::to_owned).into();
    let request = cri::ExecSyncRequest { container_id: id, cmd, timeout: 60 };
    let done = kubelet.exec_sync(request).await.unwrap().into_inner();
    assert_eq!(done.exit_code, 3);
    assert!(done.stdout.len() > MIB && done.stderr.len() > MIB, "{} {}", done.stdout.len(), done.stderr.len());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_lead_nowhere() {
    let Some(node) = Node::of_berth("containerd 1.6 finds nothing to stop").await else { return };
    let (pod, main) = node.sleeper(&pod("ids")).await;
    for id in ["..", "../..", ".", "/", "/etc/passwd", "a/../b", "a\0b", "\n", "%2e%2e", &"x".repeat(100_000)] {
        // Stop and Remove of what isn't there are well; everything else isn't found.
        node.stop_pod(id).await.unwrap();
        node.remove_pod(id).await.unwrap();
        node.stop_container(id, 0).await.unwrap();
        node.remove_container(id).await.unwrap();
        assert_eq!(node.pod(id).await.unwrap_err().code(), Code::NotFound, "{id:?}");
        assert_eq!(node.container(id).await.unwrap_err().code(), Code::NotFound, "{id:?}");
        assert_eq!(node.start_container(id).await.unwrap_err().code(), Code::NotFound, "{id:?}");
        assert_eq!(node.exec(id, &["true"]).await.unwrap_err().code(), Code::NotFound, "{id:?}");
        let request = cri::ReopenContainerLogRequest { container_id: id.into() };
        assert_eq!(node.kubelet().reopen_container_log(request).await.unwrap_err().code(), Code::NotFound, "{id:?}");
    }
    // No id is the beginning of all ids: it means none of them.
    assert_eq!(node.stop_pod("").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(node.remove_pod("").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(node.remove_container("").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(node.exec(&main, &["true"]).await.unwrap().exit_code, 0);
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_not_paths() {
    let node = Node::new().await;
    for name in ["..", "../../etc", "/", "a\nb", "a\0b", "-rf", &"n".repeat(5000)] {
        let mut config = pod("odd");
        config.metadata.as_mut().unwrap().name = name.into();
        config.metadata.as_mut().unwrap().namespace = name.into();
        config.metadata.as_mut().unwrap().uid = name.into();
        config.log_directory = node.path().join("logs").display().to_string();
        let id = node.run_pod(&config).await.unwrap();
        let mut wanted = container(name, "echo hello");
        wanted.log_path = "odd.log".into();
        match node.create(&id, &wanted, &config).await {
            Ok(one) => {
                // What no annotation can hold is refused by the runtime, and that is an end like others.
                if node.start_container(&one).await.is_ok() {
                    assert_eq!(node.ended(&one).await.exit_code, 0, "{name:?}");
                }
            }
            Err(error) => assert_eq!(error.code(), Code::InvalidArgument, "{name:?}: {error}"),
        }
        node.stop_pod(&id).await.unwrap();
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_stay_in_their_folder() {
    let Some(node) = Node::of_berth("containerd joins the paths as they are").await else { return };
    let mut config = pod("logpaths");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    for path in ["../x", "/etc/cron.d/x", "a/../../x", "a/", "..", ".", "a\0b", "a//../../../x"] {
        let mut wanted = container("odd", "true");
        wanted.log_path = path.into();
        let refused = node.create(&id, &wanted, &config).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{path:?}: {refused}");
    }
    assert!(!node.path().join("x").exists() && !fs::exists("/etc/cron.d/x").unwrap());
    node.stop_pod(&id).await.unwrap();
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_a_whole_pod_or_none() {
    let Some(node) = Node::of_berth("containerd answers that the name is reserved, with UNKNOWN").await else { return };
    let config = pod("gone");
    for patience in [0, 1, 3, 10] {
        let channel = node.new_channel().await;
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut kubelet = RuntimeServiceClient::new(channel);
        let call = kubelet.run_pod_sandbox(request);
        let _ = tokio::time::timeout(std::time::Duration::from_millis(patience), call).await;
        drop(kubelet);
        // The same again waits for what is under way, and is it.
        let id = node.run_pod(&config).await.unwrap();
        assert_eq!(node.pods().await.len(), 1);
        node.stop_pod(&id).await.unwrap();
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}
