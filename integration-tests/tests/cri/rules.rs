//! What is refused, and how.

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::kubelet::{Node, container, pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_and_leave_nothing() {
    let Some(node) = Node::of_berth("containerd answers most of these with UNKNOWN").await else { return };
    type Spoil = fn(&mut cri::PodSandboxConfig);
    let spoil: [(Spoil, &str); 6] = [
        (|pod| pod.metadata = None, "metadata"),
        (|pod| pod.metadata.as_mut().unwrap().uid.clear(), "uid"),
        (|pod| pod.hostname = "a b".into(), "host name"),
        (|pod| pod.windows = Some(Default::default()), "Windows"),
        (
            |pod| {
                pod.dns_config =
                    Some(cri::DnsConfig { servers: vec!["1.1.1.1\nnameserver 6.6.6.6".into()], ..Default::default() });
            },
            "DNS",
        ),
        (|pod| drop(pod.linux.as_mut().unwrap().sysctls.insert("vm.swappiness".into(), "1".into())), "vm.swappiness"),
    ];
    for (change, words) in spoil {
        let mut bad = pod("bad");
        change(&mut bad);
        let refused = node.run_pod(&bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
    }
    let handler = cri::RunPodSandboxRequest { config: Some(pod("bad")), runtime_handler: "kata".into() };
    assert_eq!(node.kubelet().run_pod_sandbox(handler).await.unwrap_err().code(), Code::InvalidArgument);
    node.assert_empty().await;

    let mut config = pod("good");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    type SpoilContainer = fn(&mut cri::ContainerConfig);
    let spoil: [(SpoilContainer, Code, &str); 4] = [
        (|one| one.metadata = None, Code::InvalidArgument, "metadata"),
        (|one| one.image = None, Code::InvalidArgument, "image"),
        (|one| one.image.as_mut().unwrap().image = "no.example/such:1".into(), Code::NotFound, "no.example/such:1"),
        (|one| one.log_path = "../../etc/cron.d/x".into(), Code::InvalidArgument, "log path"),
    ];
    for (change, code, words) in spoil {
        let mut bad = container("bad", "true");
        change(&mut bad);
        let refused = node.create(&id, &bad, &config).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(words), "{refused}");
    }
    assert_eq!(node.create("no-such-pod", &container("x", "true"), &config).await.unwrap_err().code(), Code::NotFound);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_choose_the_runtime() {
    let Some(node) = Node::of_berth("handlers are configured otherwise").await else { return };
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let handlers: Vec<_> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    let has_runc = std::path::Path::new("/usr/sbin/runc").exists();
    assert_eq!(handlers.contains(&"peer"), has_runc, "{handlers:?}");
    assert!(
        handlers.starts_with(&[""]) && handlers.contains(&"runc") && !handlers.contains(&"missing"),
        "{handlers:?}"
    );

    let config = pod("missing");
    let id = node.run_pod_by("missing", &config).await.unwrap();
    let main = node.create(&id, &container("main", "true"), &config).await.unwrap();
    let refused = node.start_container(&main).await.unwrap_err();
    assert!(refused.message().contains("/no/such/runtime"), "{refused}");
    node.remove_pod(&id).await.unwrap();
    if has_runc {
        let config = pod("peer");
        let id = node.run_pod_by("peer", &config).await.unwrap();
        let main = node.create(&id, &container("main", "exec sleep 1000"), &config).await.unwrap();
        node.start_container(&main).await.unwrap();
        assert_eq!(node.exec(&main, &["sh", "-c", "exit 6"]).await.unwrap().exit_code, 6);
        assert!(node.ctr(&["container", "info", &main]).contains("runc"));
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}
