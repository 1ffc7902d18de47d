//! Which namespaces containers are in, in each mode.

use std::fs;

use proto::runtime::v1::{self as cri, NamespaceMode};
use tonic::Code;

use integration_tests::kubelet::{Node, networked, pod};

use crate::scene::{Scene, script, secured};

/// Where a process of the node is, of a kind.
fn of_node(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

fn look(kind: &str) -> String {
    format!("readlink /proc/self/ns/{kind}")
}

fn sandbox_options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.get_or_insert_default()
}

fn with_options(text: &str, change: impl FnOnce(&mut cri::NamespaceOption)) -> cri::ContainerConfig {
    secured(text, |context| change(context.namespace_options.get_or_insert_default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_of_their_own() {
    let scene = Scene::new("pidcontainer").await;
    let first = scene.ask(&script(&format!("echo $$; {}", look("pid")))).await;
    let second = scene.ask(&script(&format!("echo $$; {}", look("pid")))).await;
    assert!(first.starts_with("1 pid:") && second.starts_with("1 pid:"), "{first} {second}");
    assert!(!first.contains(&of_node("pid")) && !second.contains(&of_node("pid")));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_processes() {
    let mut config = pod("pidnode");
    sandbox_options(&mut config).pid = NamespaceMode::Node.into();
    let scene = Scene::of(Node::new().await, config).await;
    let wanted = with_options(&look("pid"), |options| options.pid = NamespaceMode::Node.into());
    assert_eq!(scene.ask(&wanted).await, of_node("pid"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_processes_of_another_container() {
    let scene = Scene::new("pidtarget").await;
    let target = scene.start(&script("exec sleep 1234")).await;
    let other = scene.start(&script("exec sleep 1000")).await;
    let wanted = with_options(
        "tr '\\0' ' ' < /proc/1/cmdline; cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 1000'",
        |options| {
            options.pid = NamespaceMode::Target.into();
            options.target_id.clone_from(&target);
        },
    );
    let found = scene.ask(&wanted).await;
    assert!(found.starts_with("sleep 1234"), "{found}");
    assert!(found.ends_with(" 0") || !found.contains("sleep 1000"), "{found}");
    scene.node.stop_container(&other, 0).await.unwrap();
    // One that isn't there, and one that doesn't run.
    for target in ["no-such-container".to_owned(), other] {
        let wanted = with_options("true", |options| {
            options.pid = NamespaceMode::Target.into();
            options.target_id = target;
        });
        scene.refused(&wanted).await;
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_ipc() {
    let scene = Scene::new("ipcpod").await;
    let first = scene.ask(&script(&format!("echo shared > /dev/shm/file; {}", look("ipc")))).await;
    assert_ne!(first, of_node("ipc"));
    let second = scene.ask(&script(&format!("{}; cat /dev/shm/file", look("ipc")))).await;
    assert_eq!(second, format!("{first} shared"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_ipc() {
    let mut config = pod("ipcnode");
    sandbox_options(&mut config).ipc = NamespaceMode::Node.into();
    let scene = Scene::of(Node::new().await, config).await;
    let name = format!("/dev/shm/berth-test-{}", std::process::id());
    fs::write(&name, "of the node").unwrap();
    let wanted =
        with_options(&format!("{}; cat {name}", look("ipc")), |options| options.ipc = NamespaceMode::Node.into());
    let found = scene.ask(&wanted).await;
    fs::remove_file(&name).unwrap();
    assert_eq!(found, format!("{} of the node", of_node("ipc")));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_network() {
    let Some(node) = Node::with_network().await else { return };
    let scene = Scene::of(node, networked("netpod")).await;
    let text = format!("{}; ip -o -4 addr show eth0 | grep -o 'inet [0-9.]*'", look("net"));
    let (first, second) = (scene.ask(&script(&text)).await, scene.ask(&script(&text)).await);
    assert_eq!(first, second);
    let ip = scene.node.pod(&scene.pod).await.unwrap().network.unwrap().ip;
    assert!(first.ends_with(&format!("inet {ip}")) && !first.contains(&of_node("net")), "{first} {ip}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nodes_network() {
    let scene = Scene::new("netnode").await;
    let of_node = scene.node.host.run(["readlink", "/proc/self/ns/net"]).success().stdout();
    let wanted = with_options(&look("net"), |options| options.network = NamespaceMode::Node.into());
    assert_eq!(scene.ask(&wanted).await, of_node);
    let status = scene.node.pod(&scene.pod).await.unwrap();
    assert_eq!(status.network.unwrap().ip, "");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_has_a_host_name_of_its_own_for_itself() {
    let Some(node) = Node::with_network().await else { return };
    let mut config = networked("utspod");
    config.hostname = "web-0".into();
    let scene = Scene::of(node, config).await;
    assert_eq!(scene.ask(&script("hostname; cat /etc/hostname; echo $HOSTNAME")).await, "web-0 web-0 web-0");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_nodes_network_the_host_name_is_the_nodes() {
    let scene = Scene::new("utsnode").await;
    let name = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    assert_eq!(scene.ask(&script("hostname; cat /etc/hostname")).await, format!("{name} {name}"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_of_a_sandbox_says_its_namespaces() {
    let mut config = pod("nsstatus");
    sandbox_options(&mut config).pid = NamespaceMode::Node.into();
    let wanted = sandbox_options(&mut config).clone();
    let scene = Scene::of(Node::new().await, config).await;
    let status = scene.node.pod(&scene.pod).await.unwrap();
    assert_eq!(status.linux.unwrap().namespaces.unwrap().options, Some(wanted));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_that_the_sandbox_has_not_are_refused() {
    let differs = "containerd gives a container the sandbox's namespaces, whatever it asks for";
    let Some(node) = Node::of_berth(differs).await else { return };
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let mut config = pod("nsrefused");
        sandbox_options(&mut config).ipc = mode.into();
        assert_eq!(node.run_pod(&config).await.unwrap_err().code(), Code::InvalidArgument);
    }
    let scene = Scene::of(node, pod("nsrefused")).await;
    type Change = fn(&mut cri::NamespaceOption);
    let wrong: [(Change, &str); 4] = [
        (|options| options.ipc = NamespaceMode::Node.into(), "ipc"),
        (|options| options.pid = NamespaceMode::Node.into(), "pid"),
        (|options| options.pid = NamespaceMode::Pod.into(), "pid"),
        (|options| options.network = NamespaceMode::Container.into(), "network"),
    ];
    for (change, kind) in wrong {
        let refused = scene.refused(&with_options("true", change)).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(kind), "{refused}");
    }
    scene.end().await;
}
