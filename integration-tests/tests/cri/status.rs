//! What a kubelet is told of its node.

use proto::runtime::v1 as cri;

use integration_tests::kubelet::Node;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_version_is_one_that_kubelets_know() {
    let node = Node::new().await;
    let version = node.kubelet().version(cri::VersionRequest { version: "v1".into() }).await.unwrap().into_inner();
    assert_eq!((&*version.version, &*version.runtime_api_version), ("0.1.0", "v1"));
    assert!(!version.runtime_name.is_empty());
    let numbers = version.runtime_version.trim_start_matches('v').split(['-', '~', '+']).next().unwrap().split('.');
    assert!(numbers.clone().count() == 3 && numbers.clone().all(|part| part.parse::<u32>().is_ok()), "{version:?}");
}

async fn condition(node: &Node, kind: &str) -> cri::RuntimeCondition {
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    status.conditions.into_iter().find(|condition| condition.r#type == kind).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_network_is_not_ready_and_says_so() {
    let node = Node::new().await;
    assert!(condition(&node, "RuntimeReady").await.status);
    let network = condition(&node, "NetworkReady").await;
    assert_eq!((network.status, &*network.reason), (false, "NetworkPluginNotReady"));
    assert!(!network.message.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_network_is_ready() {
    let Some(node) = Node::with_network().await else { return };
    assert!(condition(&node, "RuntimeReady").await.status && condition(&node, "NetworkReady").await.status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verbose_status_says_more() {
    let node = Node::new().await;
    let ask = async |verbose| node.kubelet().status(cri::StatusRequest { verbose }).await.unwrap().into_inner().info;
    assert!(ask(false).await.is_empty() && ask(true).await.contains_key("config"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_and_features_are_told() {
    let Some(node) = Node::of_berth("containerd 1.6 tells neither").await else { return };
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let default = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    assert!(default.features.as_ref().unwrap().recursive_read_only_mounts);
    assert!(status.features.unwrap().supplemental_groups_policy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cgroup_driver_is_told() {
    let Some(node) = Node::of_berth("containerd 1.6 has no RuntimeConfig").await else { return };
    let config = node.kubelet().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let systemd = std::path::Path::new("/run/systemd/system").is_dir();
    let wanted = if systemd { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
    assert_eq!(config.linux.unwrap().cgroup_driver(), wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_range_of_addresses_is_taken() {
    let node = Node::new().await;
    let network_config = Some(cri::NetworkConfig { pod_cidr: "10.99.7.0/24".into() });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
    node.kubelet().update_runtime_config(request).await.unwrap();
    node.kubelet().update_runtime_config(cri::UpdateRuntimeConfigRequest::default()).await.unwrap();
}
