//! Mounts of the request: folders of the node, propagation, what is read-only.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::runtime::v1::{self as cri, MountPropagation};
use tonic::Code;

use integration_tests::kubelet::{Node, eventually, pod};

use crate::scene::{Scene, script, secured};

fn at(container_path: &str, host_path: &Path) -> cri::Mount {
    cri::Mount {
        container_path: container_path.into(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn mounted(text: &str, mounts: &[cri::Mount]) -> cri::ContainerConfig {
    let mut wanted = script(text);
    wanted.mounts = mounts.to_vec();
    wanted
}

/// A tmpfs on the node whose mounts are shared with others, with a folder in it; goes when dropped.
struct Shared(PathBuf);

impl Shared {
    fn new(node: &Node) -> Self {
        let path = node.path().join("shared");
        fs::create_dir(&path).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let shared = Self(path);
        mount(None::<&str>, &shared.0, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>).unwrap();
        fs::create_dir(shared.0.join("below")).unwrap();
        shared
    }

    /// Mounts something there, after others have begun to look.
    fn mount_below(&self) {
        mount(Some("tmpfs"), &self.0.join("below"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(self.0.join("below/file"), "from the node").unwrap();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_node() {
    let scene = Scene::new("hostpath").await;
    let folder = scene.node.path().join("data");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("in"), "from the node\n").unwrap();
    let found = scene.ask(&mounted("cat /data/in; echo from the container > /data/out", &[at("/data", &folder)])).await;
    assert_eq!(found, "from the node");
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "from the container\n");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_not_there_is_made() {
    let scene = Scene::new("hostpathnew").await;
    let folder = scene.node.path().join("not/there/yet");
    assert_eq!(scene.ask(&mounted("echo here > /data/out; echo $?", &[at("/data", &folder)])).await, "0");
    assert_eq!(fs::read_to_string(folder.join("out")).unwrap(), "here\n");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_and_a_link_of_the_node() {
    let scene = Scene::new("hostfile").await;
    let (file, link) = (scene.node.path().join("file"), scene.node.path().join("link"));
    fs::write(&file, "content\n").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mounts = [at("/tmp/new/file", &file), at("/tmp/link", &link)];
    let found = scene.ask(&mounted("cat /tmp/new/file /tmp/link; test -L /tmp/link || echo resolved", &mounts)).await;
    assert_eq!(found, "content content resolved");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_is_read_only() {
    let scene = Scene::new("hostreadonly").await;
    let folder = scene.node.path().join("data");
    fs::create_dir(&folder).unwrap();
    let mounts = [cri::Mount { readonly: true, ..at("/data", &folder) }];
    assert_eq!(scene.ask(&mounted("touch /data/x 2>/dev/null || echo refused", &mounts)).await, "refused");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_lie_on_each_other_in_whatever_order_they_come() {
    let scene = Scene::new("nested").await;
    let (outer, inner) = (scene.node.path().join("outer"), scene.node.path().join("inner"));
    fs::create_dir_all(outer.join("sub")).unwrap();
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("file"), "inner\n").unwrap();
    let mounts = [at("/data/sub", &inner), at("/data", &outer)];
    assert_eq!(scene.ask(&mounted("cat /data/sub/file", &mounts)).await, "inner");
    scene.end().await;
}

async fn with_propagation(name: &str, wanted: MountPropagation) -> (Scene, Shared, String) {
    let scene = Scene::secured(name, |context| context.privileged = true).await;
    let shared = Shared::new(&scene.node);
    let text = "while ! test -e /done; do sleep 0.05; done";
    let mut config = secured(text, |context| context.privileged = true);
    config.mounts = vec![cri::Mount { propagation: wanted.into(), ..at("/data", &shared.0) }];
    let id = scene.start(&config).await;
    (scene, shared, id)
}

const MOUNT_INSIDE: &str =
    "mkdir /data/inside && mount -t tmpfs tmpfs /data/inside && touch /data/inside/file && echo mounted";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_mounts_pass_in_neither_direction() {
    let (scene, shared, id) = with_propagation("private", MountPropagation::PropagationPrivate).await;
    shared.mount_below();
    assert_eq!(scene.exec(&id, "ls /data/below").await, "");
    assert_eq!(scene.exec(&id, MOUNT_INSIDE).await, "mounted");
    assert!(!shared.0.join("inside/file").exists());
    drop(shared);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_of_the_node_come_to_a_container() {
    let (scene, shared, id) = with_propagation("rslave", MountPropagation::PropagationHostToContainer).await;
    shared.mount_below();
    scene.hears(&id, "cat /data/below/file 2>/dev/null", "from the node").await;
    assert_eq!(scene.exec(&id, MOUNT_INSIDE).await, "mounted");
    assert!(!shared.0.join("inside/file").exists());
    drop(shared);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_of_a_container_come_to_the_node() {
    let (scene, shared, id) = with_propagation("rshared", MountPropagation::PropagationBidirectional).await;
    shared.mount_below();
    scene.hears(&id, "cat /data/below/file 2>/dev/null", "from the node").await;
    assert_eq!(scene.exec(&id, MOUNT_INSIDE).await, "mounted");
    eventually("the node sees it", async || shared.0.join("inside/file").exists().then_some(())).await;
    drop(shared);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn propagation_needs_a_mount_that_is_shared() {
    let scene = Scene::secured("unshared", |context| context.privileged = true).await;
    let private = scene.node.path().join("private");
    fs::create_dir(&private).unwrap();
    mount(Some("tmpfs"), &private, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    mount(None::<&str>, &private, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    for propagation in [MountPropagation::PropagationHostToContainer, MountPropagation::PropagationBidirectional] {
        let mut wanted = secured("true", |context| context.privileged = true);
        wanted.mounts = vec![cri::Mount { propagation: propagation.into(), ..at("/data", &private) }];
        let refused = scene.refused(&wanted).await;
        assert!(refused.message().contains("shared"), "{refused}");
    }
    umount2(&private, MntFlags::MNT_DETACH).unwrap();
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_with_all_that_is_mounted_below() {
    let Some(scene) = Scene::of_berth("rro", "containerd 1.6 knows no recursive_read_only").await else { return };
    let shared = Shared::new(&scene.node);
    shared.mount_below();
    let text =
        "touch /data/x 2>/dev/null || echo top; touch /data/below/x 2>/dev/null || echo below; cat /data/below/file";
    let read_only = cri::Mount { readonly: true, ..at("/data", &shared.0) };
    assert_eq!(scene.ask(&mounted(text, std::slice::from_ref(&read_only))).await, "top from the node");
    let all = cri::Mount { recursive_read_only: true, ..read_only };
    assert_eq!(scene.ask(&mounted(text, &[all])).await, "top below from the node");
    drop(shared);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recursive_read_only_that_could_not_hold_is_refused() {
    let Some(scene) = Scene::of_berth("rrorefused", "containerd 1.6 knows no recursive_read_only").await else {
        return;
    };
    let all = cri::Mount { recursive_read_only: true, readonly: true, ..at("/data", scene.node.path()) };
    let writable = cri::Mount { readonly: false, ..all.clone() };
    let slave = cri::Mount { propagation: MountPropagation::PropagationHostToContainer.into(), ..all.clone() };
    let shared = cri::Mount { propagation: MountPropagation::PropagationBidirectional.into(), ..all };
    for mount in [writable, slave, shared] {
        let refused = scene.refused(&mounted("true", &[mount])).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("recursive_read_only"), "{refused}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn options_of_a_mount() {
    let Some(scene) = Scene::of_berth("mountoptions", "containerd 1.6 knows no mount_options").await else { return };
    let folder = scene.node.path().join("data");
    fs::create_dir(&folder).unwrap();
    fs::copy("/bin/busybox", folder.join("busybox")).unwrap();
    let mut mount = at("/data", &folder);
    assert_eq!(scene.ask(&mounted("/data/busybox echo ran", std::slice::from_ref(&mount))).await, "ran");
    mount.mount_options = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    let text = "/data/busybox echo ran 2>/dev/null; grep ' /data ' /proc/mounts | grep -o 'nosuid,nodev,noexec'";
    assert_eq!(scene.ask(&mounted(text, std::slice::from_ref(&mount))).await, "nosuid,nodev,noexec");
    mount.mount_options = vec!["suid".into()];
    assert_eq!(scene.refused(&mounted("true", &[mount])).await.code(), Code::InvalidArgument);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_the_pod_give_way_to_mounts_of_the_request() {
    let scene = Scene::new("ownfiles").await;
    let (file, folder) = (scene.node.path().join("mine"), scene.node.path().join("shm"));
    fs::write(&file, "mine\n").unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("x"), "").unwrap();
    let mounts =
        [at("/etc/hosts", &file), at("/etc/resolv.conf", &file), at("/etc/hostname", &file), at("/dev/shm", &folder)];
    let text = "cat /etc/hosts /etc/resolv.conf /etc/hostname; ls /dev/shm";
    assert_eq!(scene.ask(&mounted(text, &mounts)).await, "mine mine mine x");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_for_the_last_words() {
    // What kubelets do with terminationMessagePath.
    let scene = Scene::new("lastwords").await;
    let file = scene.node.path().join("termination-log");
    fs::write(&file, "").unwrap();
    let (_, code) =
        scene.run(&mounted("echo it broke > /dev/termination-log; exit 3", &[at("/dev/termination-log", &file)])).await;
    assert_eq!((code, &*fs::read_to_string(&file).unwrap()), (3, "it broke\n"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_that_make_no_sense_are_refused() {
    let Some(node) = Node::of_berth("containerd resolves relative paths where it stands").await else { return };
    let scene = Scene::of(node, pod("badmounts")).await;
    let there = scene.node.path().to_owned();
    for (mount, field) in [
        (at("/data", Path::new("relative")), "host_path"),
        (at("/data", Path::new("")), "host_path"),
        (at("/", &there), "container_path"),
        (at("/a/../..", &there), "container_path"),
        (at("", &there), "container_path"),
        (cri::Mount { propagation: 7, ..at("/data", &there) }, "propagation"),
        (cri::Mount { image_sub_path: "x".into(), ..at("/data", &there) }, "image_sub_path"),
    ] {
        let refused = scene.refused(&mounted("true", &[mount])).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_the_image_are_folders_of_the_container() {
    let scene = Scene::new("volumes").await;
    let config = serde_json::json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": { "/www": {}, "/new": {} } });
    let archive =
        integration_tests::images::docker_archive("vol:latest", &integration_tests::images::busybox_rootfs(), config);
    fs::write(scene.node.path().join("vol.tar"), archive).unwrap();
    scene.node.ctr(&["image", "import", scene.node.path().join("vol.tar").to_str().unwrap()]);
    let mut wanted =
        script("cat /www/index.html; touch /new/x && ls /new; grep -c -e ' /www ' -e ' /new ' /proc/mounts");
    wanted.image = Some(cri::ImageSpec { image: "docker.io/library/vol:latest".into(), ..Default::default() });
    assert_eq!(scene.ask(&wanted).await, "hello from berth x 2");
    scene.end().await;
}
