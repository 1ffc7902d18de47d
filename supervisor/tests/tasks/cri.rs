//! CRI's RuntimeService: what the kubelet is told about the node, and how the rest is refused.

use proto::{
    grpc::health::v1::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient},
    runtime::v1::{self as cri, runtime_service_client::RuntimeServiceClient},
};
use tonic::Code;

use crate::stack::Stack;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_says_what_it_is_and_can() {
    let stack = Stack::new().await;
    let mut kubelet = RuntimeServiceClient::new(stack.channel());
    let version = kubelet.version(cri::VersionRequest { version: "v1".into() }).await.unwrap().into_inner();
    assert_eq!((&*version.version, &*version.runtime_name, &*version.runtime_api_version), ("0.1.0", "berth", "v1"));
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));

    let status = kubelet.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions = status.status.unwrap().conditions;
    let [runtime, network] = &conditions[..] else { panic!("{conditions:?}") };
    assert_eq!((&*runtime.r#type, runtime.status, &*runtime.message), ("RuntimeReady", true, ""));
    assert_eq!((&*network.r#type, network.status, &*network.reason), ("NetworkReady", false, "NetworkPluginNotReady"));
    assert!(network.message.contains("/net.d") && status.info.is_empty(), "{network:?}");
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert_eq!(handlers, ["", "runc"]);
    for handler in status.runtime_handlers {
        let features = handler.features.unwrap();
        assert!(features.recursive_read_only_mounts && features.user_namespaces, "{features:?}");
    }
    let wanted = cri::RuntimeFeatures { supplemental_groups_policy: true, mount_options: true, ..Default::default() };
    assert_eq!(status.features, Some(wanted));

    let verbose = kubelet.status(cri::StatusRequest { verbose: true }).await.unwrap().into_inner().info;
    let config: serde_json::Value = serde_json::from_str(&verbose["config"]).unwrap();
    assert!(config["socket"].as_str().unwrap().ends_with("/supervisor.sock"), "{config}");
    let driver = kubelet.runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner().linux.unwrap();
    let systemd = std::path::Path::new("/run/systemd/system").is_dir();
    let wanted = if systemd { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
    assert_eq!(driver.cgroup_driver(), wanted);
    assert_eq!(config["cgroupDriver"], wanted.as_str_name().to_lowercase());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_built_is_refused_by_name() {
    let stack = Stack::new().await;
    let mut kubelet = RuntimeServiceClient::new(stack.channel());
    let refused = [
        ("CheckpointPod", kubelet.checkpoint_pod(cri::CheckpointPodRequest::default()).await.map(drop)),
        ("RestorePod", kubelet.restore_pod(cri::RestorePodRequest::default()).await.map(drop)),
    ];
    for (call, refused) in refused {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{call}");
        assert!(refused.message().starts_with(&format!("{call} is not supported by berth-supervisor")), "{refused}");
    }
    let mut health = HealthClient::new(stack.channel());
    for service in ["runtime.v1.RuntimeService", "runtime.v1.ImageService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
}
