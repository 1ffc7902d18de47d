//! Checkpoints of containers: by criu where it works on this kernel; else what is refused, and that nothing is left.

use std::{
    collections::BTreeMap,
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use integration_tests::{
    kubelet::{Node, container, eventually, pod},
    run,
};
use proto::runtime::v1 as cri;
use tonic::{Code, Status};

async fn checkpoint(node: &Node, id: &str, location: &Path, timeout: i64) -> Result<(), Status> {
    let location = location.display().to_string();
    let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout };
    node.kubelet().checkpoint_container(request).await.map(drop)
}

fn assert_nothing_left(node: &Node, folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let scratch = fs::read_dir(node.path().join("d/supervisor/checkpoints")).into_iter().flatten().flatten().count();
    assert_eq!(scratch, 0);
    assert!(!node.ctr(&["snapshot", "ls"]).contains("checkpoint-"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_checkpointed_and_runs_on() {
    let Some(node) = Node::of_berth("containerd 1.6 has no CheckpointContainer").await else { return };
    let folder = node.path().join("checkpoints");
    fs::create_dir(&folder).unwrap();
    let at = folder.join("checkpoint-pod_default-main-2026-11-22T18:00:00Z.tar");
    let mut config = pod("checkpointed");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "echo written > /file; echo said; exec sleep 1000");
    wanted.log_path = "0.log".into();
    let main = node.create(&id, &wanted, &config).await.unwrap();
    let early = checkpoint(&node, &main, &at, 0).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    node.start_container(&main).await.unwrap();
    eventually("it has written", async || {
        let there = node.exec(&main, &["test", "-e", "/file"]).await.unwrap();
        (there.exit_code == 0).then_some(())
    })
    .await;
    let nobody = checkpoint(&node, "no-such-container", &at, 0).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound);
    for bad in ["", "relative.tar", "/"] {
        let refused = checkpoint(&node, &main, Path::new(bad), 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}: {refused}");
    }
    if run("sh", ["-c", "command -v criu"]).code() != 0 {
        let refused = checkpoint(&node, &main, &at, 0).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    } else if run("criu", ["check"]).code() != 0 {
        println!("skipped: criu doesn't work on this kernel; that its failure leaves nothing is seen");
        let failed = checkpoint(&node, &main, &at, 0).await.unwrap_err();
        assert!(failed.message().contains("criu"), "{failed}");
    } else {
        checkpoint(&node, &main, &at, 60).await.unwrap();
        assert_eq!(fs::metadata(&at).unwrap().permissions().mode() & 0o777, 0o600);
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(fs::File::open(&at).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, mut bytes) = (entry.path().unwrap().display().to_string(), Vec::new());
            entry.read_to_end(&mut bytes).unwrap();
            found.insert(name, bytes);
        }
        for name in ["config.dump", "spec.dump", "status.dump", "status", "rootfs-diff.tar", "container.log"] {
            assert!(found.contains_key(name), "{name}: {:?}", found.keys());
        }
        assert!(found.keys().any(|name| name.starts_with("checkpoint/core-")), "{:?}", found.keys());
        let told: serde_json::Value = serde_json::from_slice(&found["config.dump"]).unwrap();
        assert_eq!((told["id"].as_str(), told["name"].as_str()), (Some(main.as_str()), Some("main")));
        let mut layer = tar::Archive::new(&found["rootfs-diff.tar"][..]);
        let changed: Vec<_> = layer.entries().unwrap().map(|one| one.unwrap().path().unwrap().into_owned()).collect();
        assert!(changed.contains(&"file".into()), "{changed:?}");
        assert!(String::from_utf8_lossy(&found["container.log"]).contains("said"));
        let taken = checkpoint(&node, &main, &at, 0).await.unwrap_err();
        assert_eq!(taken.code(), Code::AlreadyExists, "{taken}");
        fs::remove_file(&at).unwrap();
    }
    assert_nothing_left(&node, &folder);
    assert_eq!(node.container(&main).await.unwrap().state(), cri::ContainerState::ContainerRunning);
    assert_eq!(node.exec(&main, &["true"]).await.unwrap().exit_code, 0);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_criu_it_is_said() {
    let Some(mut node) = Node::of_berth("containerd 1.6 has no CheckpointContainer").await else { return };
    // All that the harness itself needs to be found.
    let (bin, folder) = (node.path().join("bin"), node.path().join("checkpoints"));
    fs::create_dir(&bin).unwrap();
    fs::create_dir(&folder).unwrap();
    let nsenter = run("sh", ["-c", "command -v nsenter"]).success().stdout();
    symlink(nsenter.trim(), bin.join("nsenter")).unwrap();
    node.kill();
    node.start(&[("PATH", bin.to_str().unwrap())]).await;
    let (id, main) = node.sleeper(&pod("without")).await;
    let refused = checkpoint(&node, &main, &folder.join("a.tar"), 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    assert!(refused.message().contains("criu"), "{refused}");
    assert_nothing_left(&node, &folder);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
