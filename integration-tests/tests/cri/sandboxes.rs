//! Sandboxes: their files, settings, cgroups and names.

use std::{fs, path::Path};

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::kubelet::{Node, eventually, networked, pod};

use crate::scene::{Scene, script};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_looked_up_as_the_request_says() {
    let mut config = pod("dns");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.96.0.10".into(), "fd00::a".into()],
        searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let scene = Scene::of(Node::new().await, config).await;
    let found = scene.ask(&script("cat /etc/resolv.conf")).await;
    for line in [
        "nameserver 10.96.0.10",
        "nameserver fd00::a",
        "search default.svc.cluster.local svc.cluster.local",
        "options ndots:5",
    ] {
        assert!(found.contains(line), "{found}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn else_names_are_looked_up_as_the_node_does() {
    let scene = Scene::new("nodedns").await;
    let (found, _) = scene.run(&script("cat /etc/resolv.conf")).await;
    assert_eq!(found, fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_hosts_of_its_own() {
    let scene = Scene::new("hosts").await;
    assert!(scene.ask(&script("cat /etc/hosts")).await.contains("localhost"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_64_mib_of_shared_memory() {
    let scene = Scene::new("shm").await;
    let found = scene.ask(&script("df -k /dev/shm | tail -1 | awk '{print $2}'; stat -c %a /dev/shm; grep -o ' /dev/shm [^ ]* [^ ]*' /proc/mounts")).await;
    assert!(found.starts_with("65536 1777 /dev/shm tmpfs "), "{found}");
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(found.contains(option), "{found}");
    }
    scene.end().await;
}

fn with_sysctls(mut config: cri::PodSandboxConfig, settings: &[(&str, &str)]) -> cri::PodSandboxConfig {
    let sysctls = settings.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    config.linux.as_mut().unwrap().sysctls = sysctls.collect();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_kernel_are_the_pods() {
    let scene = Scene::of(Node::new().await, with_sysctls(pod("sysctls"), &[("kernel.shm_rmid_forced", "1")])).await;
    let before = fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap();
    assert_eq!(scene.ask(&script("cat /proc/sys/kernel/shm_rmid_forced")).await, "1");
    assert_eq!(before, fs::read_to_string("/proc/sys/kernel/shm_rmid_forced").unwrap());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_network_are_the_pods() {
    let Some(node) = Node::with_network().await else { return };
    let settings = [("net.ipv4.ip_local_port_range", "1024 2048"), ("net/ipv4/conf/all/log_martians", "1")];
    let scene = Scene::of(node, with_sysctls(networked("netsysctls"), &settings)).await;
    let look = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/ipv4/conf/all/log_martians";
    assert_eq!(scene.ask(&script(look)).await, "1024 2048 1");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_the_nodes_are_refused() {
    let Some(node) = Node::of_berth("containerd leaves it to runc, at the start").await else { return };
    for key in ["vm.swappiness", "kernel.hostname", "net.ipv4.ip_forward", "kernel/../vm/swappiness", "..", ""] {
        // On the node's network those of the network are the node's, too.
        let refused = node.run_pod(&with_sysctls(pod("unsafe"), &[(key, "1")])).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("sysctl"), "{refused}");
    }
    node.assert_empty().await;
}

/// The cgroups of a container's first process.
fn cgroups(node: &Node, id: &str) -> String {
    let tasks = node.ctr(&["task", "ls"]);
    let line = tasks.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{id}: {tasks}"));
    let pid = line.split_whitespace().nth(1).unwrap();
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_in_the_cgroup_of_their_pod() {
    let scene = Scene::new("cgroup").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    let parent = scene.config.linux.as_ref().unwrap().cgroup_parent.clone();
    let found = cgroups(&scene.node, &id);
    assert!(found.lines().any(|line| line.contains(&parent) && line.contains(&id)), "{found}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cgroups_that_lead_elsewhere_are_refused() {
    let Some(node) = Node::of_berth("containerd finds out at the start").await else { return };
    let systemd = Path::new("/run/systemd/system").is_dir();
    let other = if systemd { "/kubepods/pod1" } else { "kubepods-besteffort-pod1.slice" };
    for parent in ["/kubepods/../../etc", "a:b:c", "/pod\n", &"x".repeat(2000), other] {
        let mut config = pod("badcgroup");
        config.linux.as_mut().unwrap().cgroup_parent = parent.into();
        // `run_pod` would remember it, to remove it.
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        let refused = node.kubelet().run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("cgroup_parent"), "{refused}");
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pods_do_not_have_one_name() {
    let node = Node::new().await;
    let id = node.run_pod(&pod("name")).await.unwrap();
    let mut other = pod("name");
    other.labels.insert("other".into(), "yes".into());
    node.run_pod(&other).await.unwrap_err();
    // Of another namespace, uid or attempt it is another pod.
    let mut all = vec![id];
    type Change = fn(&mut cri::PodSandboxMetadata);
    let changes: [Change; 3] =
        [|meta| meta.namespace = "other".into(), |meta| meta.uid = "other".into(), |meta| meta.attempt = 1];
    for change in changes {
        let mut other = pod("name");
        change(other.metadata.as_mut().unwrap());
        all.push(node.run_pod(&other).await.unwrap());
    }
    // A name is free again when its pod has gone.
    node.remove_pod(&all.remove(0)).await.unwrap();
    all.push(node.run_pod(&pod("name")).await.unwrap());
    for id in all {
        node.stop_pod(&id).await.unwrap();
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_removed_with_its_containers() {
    let scene = Scene::new("removed").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    scene.create(&script("true")).await.unwrap();
    scene.node.stop_pod(&scene.pod).await.unwrap();
    scene.node.remove_pod(&scene.pod).await.unwrap();
    assert_eq!(scene.node.container(&id).await.unwrap_err().code(), Code::NotFound);
    scene.node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stops_and_removals_may_be_repeated() {
    let scene = Scene::new("repeated").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    let node = &scene.node;
    for _ in 0..2 {
        node.stop_container(&id, 0).await.unwrap();
    }
    for _ in 0..2 {
        node.remove_container(&id).await.unwrap();
    }
    for _ in 0..2 {
        node.stop_pod(&scene.pod).await.unwrap();
    }
    for _ in 0..2 {
        node.remove_pod(&scene.pod).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_knows_is_stopped_and_removed_and_otherwise_not_found() {
    let Some(node) = Node::of_berth("containerd 1.6 finds nothing to stop").await else { return };
    let unknown = "0123456789abcdef".repeat(4);
    node.stop_pod(&unknown).await.unwrap();
    node.remove_pod(&unknown).await.unwrap();
    node.stop_container(&unknown, 1).await.unwrap();
    node.remove_container(&unknown).await.unwrap();
    assert_eq!(node.pod(&unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.container(&unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.start_container(&unknown).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.exec(&unknown, &["true"]).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_the_node_leads_to_a_pod() {
    let Some(node) = Node::with_network().await else { return };
    let mut config = networked("ports");
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 12000,
        host_ip: String::new(),
    }];
    let scene = Scene::of(node, config).await;
    let id =
        scene.start(&script("mkdir -p /www; echo served > /www/index.html; exec busybox httpd -f -p 80 -h /www")).await;
    eventually("the port answers", async || (scene.node.host.ask(12000).trim() == "served").then_some(())).await;
    // From inside, at the pod's own address.
    let ip = scene.node.pod(&scene.pod).await.unwrap().network.unwrap().ip;
    assert_eq!(scene.exec(&id, &format!("busybox timeout 2 wget -q -O- http://{ip}/")).await, "served");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_nodes_network_a_port_is_the_nodes() {
    let scene = Scene::new("hostnetwork").await;
    scene.start(&script("mkdir -p /www; echo served > /www/index.html; exec busybox httpd -f -p 12001 -h /www")).await;
    eventually("the port answers", async || (scene.node.host.ask(12001).trim() == "served").then_some(())).await;
    scene.end().await;
}
