//! What README.md has to be copied and pasted, as far as it can be tried here.

use std::fs;

use integration_tests::{
    kubelet::{Node, networked},
    programs::{program, workspace},
    run,
};
use tonic::Code;

/// The lines of a block of README.md after one that has these words, up to the next one of these.
fn block(after: &str, end: &str) -> String {
    let text = fs::read_to_string(workspace().join("README.md")).unwrap();
    let lines = text.lines().skip_while(|line| !line.contains(after)).skip(1);
    lines.take_while(|line| line.trim() != end).map(|line| line.trim_start().to_owned() + "\n").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_works() {
    if !std::path::Path::new("/usr/lib/cni/bandwidth").exists() {
        eprintln!("skipped: containernetworking-plugins is not installed");
        return;
    }
    let node = Node::new().await;
    let mut list: serde_json::Value = serde_json::from_str(&block("10-pods.conflist <<", "EOF")).unwrap();
    // On this machine nothing is to be left.
    list["plugins"][0]["ipam"]["dataDir"] = node.path().join("ipam").display().to_string().into();
    node.configure(&list.to_string());
    node.await_network().await;
    let mut config = networked("readme");
    let limits = [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "10M")];
    config.annotations = limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let (pod, main) = node.sleeper(&config).await;
    let status = node.pod(&pod).await.unwrap();
    assert!(status.network.unwrap().ip.starts_with("10.244.0."));
    let question = integration_tests::host::Host::question();
    assert_eq!(node.exec(&main, &question.each_ref().map(String::as_str)).await.unwrap().exit_code, 0);
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handlers_are_known() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("supervisor.toml");
    fs::write(&file, block("supervisor.toml: handlers of RuntimeClass", "")).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains("[cri.handlers]"), "{text}");
    let args = ["--config", file.to_str().unwrap(), "config", "dump"];
    let told = run(program("berth-supervisor"), args).success().stdout();
    assert!(told.contains("crun = \"/usr/bin/crun\""), "{told}");
    // And a class that no handler stands for is refused by its name.
    let Some(node) = Node::of_berth("handlers are configured otherwise").await else { return };
    let refused = node.run_pod_by("crun", &integration_tests::kubelet::pod("class")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("\"crun\"") && refused.message().contains("cri.handlers"), "{refused}");
}
