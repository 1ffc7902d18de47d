//! Pods with a user namespace of their own: whose ids are whose, inside and outside.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::kubelet::{Node, container, eventually, networked, pod};

const FIRST: u32 = 100_000;
const LENGTH: u32 = 65_536;
const DIFFERS: &str = "containerd 1.6 has no user namespaces for pods";

fn ids(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
    cri::IdMapping { container_id, host_id, length }
}

fn own_users(uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> cri::UserNamespace {
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: uids.into(), gids: gids.into() }
}

fn mapped() -> cri::UserNamespace {
    let map = [ids(0, FIRST, LENGTH)];
    own_users(&map, &map)
}

fn options(pod: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let context = pod.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap()
}

/// A pod whose root is somebody else on the node. Its network is its own, as it has to be.
fn with_users(name: &str) -> cri::PodSandboxConfig {
    let mut config = networked(name);
    options(&mut config).userns_options = Some(mapped());
    config
}

/// A container in it: kubelets repeat there what they have said of the pod.
fn inside(name: &str, script: &str) -> cri::ContainerConfig {
    let mut config = container(name, script);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().userns_options = Some(mapped());
    config
}

/// What a command in a container says, without its last end of line.
async fn said(node: &Node, id: &str, script: &str) -> String {
    let done = node.exec(id, &["sh", "-c", script]).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert_eq!(done.exit_code, 0, "{script}: {} {}", text(&done.stdout), text(&done.stderr));
    text(&done.stdout)
}

async fn start(node: &Node, pod: &str, wanted: &cri::ContainerConfig, of: &cri::PodSandboxConfig) -> String {
    let id = node.create(pod, wanted, of).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    node.start_container(&id).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    id
}

/// The first process of a container, as the node sees it.
fn pid_of(node: &Node, id: &str) -> u32 {
    let tasks = node.ctr(&["task", "ls"]);
    let line = tasks.lines().find(|line| line.starts_with(id)).unwrap_or_else(|| panic!("{id}: {tasks}"));
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A node whose pods can have users of their own, and a network; `None` where the kernel is too old for it, and then they are refused.
pub(crate) async fn node_with_users() -> Option<Node> {
    let _ = Node::of_berth(DIFFERS).await?;
    let node = Node::with_network().await?;
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let own = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    if own.features.unwrap().user_namespaces {
        return Some(node);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    assert!(version < (6, 3), "no user namespaces on {release}");
    let refused = node.run_pod(&with_users("refused")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    node.assert_empty().await;
    eprintln!("skipped: the tmpfs of Linux {} can't be mounted with other owners (6.3 can)", release.trim());
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_of_a_pod_is_somebody_else_on_the_node() {
    let Some(node) = node_with_users().await else { return };
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let own = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    let features = own.features.unwrap();
    assert!(features.user_namespaces && features.recursive_read_only_mounts, "{features:?}");

    let mut config = with_users("users");
    config.log_directory = node.path().join("logs").display().to_string();
    let volume = node.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("given"), "from the node").unwrap();
    let id = node.run_pod(&config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let mut wanted = inside("main", "echo hello; exec sleep 1000");
    wanted.log_path = "main.log".into();
    wanted.mounts.push(cri::Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        uid_mappings: mapped().uids,
        gid_mappings: mapped().gids,
        ..Default::default()
    });
    let main = start(&node, &id, &wanted, &config).await;

    let words = |text: String| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    for file in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        assert_eq!(words(said(&node, &main, &format!("cat {file}")).await), format!("0 {FIRST} {LENGTH}"));
    }
    // Of the image, of the sandbox, of the kernel, of the kubelet, and its own: root's, all of them.
    for path in [
        "/",
        "/bin",
        "/bin/busybox",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/dev/shm",
        "/proc/sys/net/ipv4/ip_forward",
        "/sys/class/net/lo",
        "/volume/given",
        "/dev/pts",
    ] {
        assert_eq!(said(&node, &main, &format!("busybox stat -L -c %u:%g {path}")).await, "0:0", "{path}");
    }
    let script = "touch /made /volume/made /dev/shm/made && mkdir /dir && chown 5:6 /made && mv /www /mine && ls /mine/index.html";
    assert_eq!(said(&node, &main, script).await, "/mine/index.html");
    assert_eq!(said(&node, &main, "stat -c %u:%g /made").await, "5:6");
    let owner = |path: &Path| fs::metadata(path).map(|file| (file.uid(), file.gid())).unwrap();
    let process = format!("/proc/{}", pid_of(&node, &main));
    assert_eq!(owner(Path::new(&process)), (FIRST, FIRST));
    assert_eq!(owner(&Path::new(&process).join("root/made")), (FIRST + 5, FIRST + 6));
    assert_eq!(owner(&volume.join("made")), (0, 0), "root of the pod is root in its volumes");
    // Power over the pod's network and host name, and none over the node's devices.
    assert_eq!(said(&node, &main, "hostname").await, "users");
    let linked = node.exec(&main, &["ip", "addr", "show", "eth0"]).await.unwrap();
    assert!(
        linked.exit_code == 0 && String::from_utf8_lossy(&linked.stdout).contains("10.99.0."),
        "CNI has given an address"
    );
    assert_ne!(node.exec(&main, &["busybox", "mknod", "/dev/kmsg2", "c", "1", "11"]).await.unwrap().exit_code, 0);
    let log = fs::read_to_string(node.path().join("logs/main.log")).unwrap();
    assert!(log.ends_with(" stdout F hello\n"), "{log}");

    // Another user of the image's, and another container in the same namespace.
    let mut second = inside("second", "id -u; exec sleep 1000");
    second.linux.as_mut().unwrap().security_context.as_mut().unwrap().run_as_user =
        Some(cri::Int64Value { value: 1000 });
    let second = start(&node, &id, &second, &config).await;
    assert_eq!(said(&node, &second, "id -u").await, "1000");
    assert_eq!(owner(Path::new(&format!("/proc/{}", pid_of(&node, &second)))).0, FIRST + 1000);
    let of = |id: &str| fs::read_link(format!("/proc/{}/ns/user", pid_of(&node, id))).unwrap();
    assert_eq!(of(&main), of(&second));
    assert_ne!(of(&main), fs::read_link("/proc/self/ns/user").unwrap());
    let stats =
        node.kubelet().container_stats(cri::ContainerStatsRequest { container_id: main.clone() }).await.unwrap();
    assert!(stats.into_inner().stats.unwrap().memory.is_some());
    let shown = node.pod(&id).await.unwrap().linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(shown.userns_options, Some(mapped()));

    node.stop_pod(&id).await.unwrap();
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_users_of_its_own_outlives_the_supervisor() {
    let Some(mut node) = node_with_users().await else { return };
    let mut config = with_users("steady");
    // With a process of its own besides, and few ids.
    options(&mut config).pid = cri::NamespaceMode::Pod.into();
    let few = [ids(0, FIRST, 100)];
    options(&mut config).userns_options = Some(own_users(&few, &few));
    let id = node.run_pod(&config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let sharing = |name: &str| {
        let mut wanted = container(name, "exec sleep 1000");
        let context = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
        wanted
    };
    let main = start(&node, &id, &sharing("main"), &config).await;
    assert_eq!(said(&node, &main, "cat /proc/1/comm").await, "berth-pause");
    node.kill();
    node.start(&[]).await;
    assert_eq!(node.pod(&id).await.unwrap().state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(said(&node, &main, "cat /proc/self/uid_map | tr -s ' '").await.trim(), format!("0 {FIRST} 100"));
    let second = start(&node, &id, &sharing("second"), &config).await;
    assert_eq!(said(&node, &second, "grep -l sleep /proc/[0-9]*/comm | wc -l").await, "2");
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_of_the_node() {
    let Some(node) = Node::of_berth(DIFFERS).await else { return };
    let mut config = pod("node");
    options(&mut config).userns_options =
        Some(cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() });
    let (id, main) = node.sleeper(&config).await;
    let own = fs::read_to_string("/proc/self/uid_map").unwrap();
    assert_eq!(said(&node, &main, "cat /proc/self/uid_map").await, own.trim_end());
    let refused = node.create(&id, &inside("other", "true"), &config).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_that_can_not_be_are_refused() {
    let Some(node) = Node::of_berth(DIFFERS).await else { return };
    let (good, other) = ([ids(0, FIRST, LENGTH)], [ids(0, FIRST, 10)]);
    let two = [ids(0, FIRST, 10), ids(10, FIRST + 10, 10)];
    let on_node = cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..own_users(&good, &good) };
    let target = cri::UserNamespace { mode: cri::NamespaceMode::Target.into(), ..own_users(&good, &good) };
    for users in [
        own_users(&[], &[]),
        own_users(&good, &[]),
        own_users(&two, &two),
        own_users(&good, &two),
        own_users(&good, &other),
        own_users(&[ids(1, FIRST, 10)], &[ids(1, FIRST, 10)]),
        own_users(&[ids(0, FIRST, 0)], &[ids(0, FIRST, 0)]),
        own_users(&[ids(0, u32::MAX - 5, 10)], &[ids(0, u32::MAX - 5, 10)]),
        on_node,
        target,
    ] {
        let mut config = networked("bad");
        options(&mut config).userns_options = Some(users.clone());
        let refused = node.run_pod(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{users:?}: {refused}");
    }
    // Namespaces of the node would be out of reach for root of the pod.
    for spoil in [
        (|all| all.network = cri::NamespaceMode::Node.into()) as fn(&mut cri::NamespaceOption),
        |all| all.pid = cri::NamespaceMode::Node.into(),
        |all| all.ipc = cri::NamespaceMode::Node.into(),
    ] {
        let mut config = with_users("bad");
        spoil(options(&mut config));
        let refused = node.run_pod(&config).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
    }
    // A runtime that isn't there can't be asked what it knows.
    let refused = node.run_pod_by("missing", &with_users("bad")).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("missing"), "{refused}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runc_has_them_too() {
    let Some(node) = node_with_users().await else { return };
    let status = node.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner();
    let peer = status.runtime_handlers.iter().find(|handler| handler.name == "peer");
    let Some(features) = peer.and_then(|handler| handler.features) else { return };
    let config = with_users("peer");
    if !features.user_namespaces {
        let refused = node.run_pod_by("peer", &config).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        return;
    }
    let id = node.run_pod_by("peer", &config).await.unwrap();
    let main = start(&node, &id, &inside("main", "exec sleep 1000"), &config).await;
    assert_eq!(said(&node, &main, "stat -c %u /bin/busybox").await, "0");
    eventually("its root is somebody else", async || {
        (fs::metadata(format!("/proc/{}", pid_of(&node, &main))).unwrap().uid() == FIRST).then_some(())
    })
    .await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
