//! Pods on a network that CNI's plugins make.

use proto::runtime::v1 as cri;

use integration_tests::kubelet::{Node, container, eventually, networked};

async fn listener(node: &Node, config: &cri::PodSandboxConfig) -> (String, String) {
    let pod = node.run_pod(config).await.unwrap();
    let script = "mkdir -p /www && hostname > /www/index.html && exec busybox httpd -f -p 80 -h /www";
    let main = node.create(&pod, &container("web", script), config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let status = node.pod(&pod).await.unwrap().network.unwrap();
    assert_eq!(status.additional_ips.len(), 1, "{status:?}");
    (pod, status.ip)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_each_other_the_outside_and_are_reached() {
    let Some(node) = Node::with_network().await else { return };
    eventually("the network is ready", async || {
        let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        status.conditions.iter().all(|condition| condition.status).then_some(())
    })
    .await;
    let mut server = networked("server");
    server.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    }];
    let (server, address) = listener(&node, &server).await;
    let (client, main) = node.sleeper(&networked("client")).await;
    let fetch = async |url: String| {
        let command = ["busybox", "timeout", "2", "wget", "-q", "-O-", &url];
        node.exec(&main, &command).await.ok().filter(|done| done.exit_code == 0)
    };
    let page = eventually("the other pod answers", async || fetch(format!("http://{address}/")).await).await;
    assert_eq!(String::from_utf8_lossy(&page.stdout), "server\n");
    let outside =
        node.exec(&main, &integration_tests::host::Host::question().each_ref().map(String::as_str)).await.unwrap();
    assert_eq!(outside.exit_code, 0, "{outside:?}");
    assert_eq!(node.host.ask(8080).trim(), "server");
    for pod in [server, client] {
        node.stop_pod(&pod).await.unwrap();
        assert_eq!(node.pod(&pod).await.unwrap().network.unwrap().ip, "");
        node.remove_pod(&pod).await.unwrap();
    }
    assert_eq!(node.host.ask(8080), "");
    let links = node.host.run(["ip", "-o", "link"]).success().stdout();
    assert!(!links.contains("veth"), "{links}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_fails_leaves_nothing() {
    let Some(node) = Node::of_berth("containerd finds new networks by inotify, and its words are others").await else {
        return;
    };
    let none = node.run_pod(&networked("early")).await.unwrap_err();
    assert!(none.message().contains("net.d"), "{none}");
    node.assert_empty().await;
    std::fs::create_dir(node.path().join("cni")).unwrap();
    let plugin = node.path().join("cni/broken");
    let script = "#!/bin/sh\nread -r _\n[ $CNI_COMMAND = DEL ] && { echo deleted >> \"$(dirname $0)/calls\"; exit 0; }\necho '{\"cniVersion\":\"1.0.0\",\"code\":7,\"msg\":\"no room\"}'\nexit 1\n";
    std::fs::write(&plugin, script).unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.configure(r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"broken"}]}"#);
    let refused = eventually("the plugin is asked", async || {
        let refused = node.run_pod(&networked("pod")).await.unwrap_err();
        refused.message().contains("no room").then_some(refused)
    })
    .await;
    assert!(refused.message().contains("broken"), "{refused}");
    assert!(std::fs::read_to_string(node.path().join("cni/calls")).unwrap().contains("deleted"));
    node.assert_empty().await;
}
