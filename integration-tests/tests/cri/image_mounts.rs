//! Images as mounts of containers.

use std::fs;

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::images::{add_file, docker_archive, sha256};
use integration_tests::kubelet::{Node, container, networked, pod};

const DATA: &str = "docker.io/library/data:latest";
const DIFFERS: &str = "containerd 1.6 has no images as mounts";

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in files {
        match text.strip_prefix("-> ") {
            Some(target) => {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                header.set_mode(0o777);
                archive.append_link(&mut header, path, target).unwrap();
            }
            None => add_file(&mut archive, path, text.as_bytes(), 0o755),
        }
    }
    archive.into_inner().unwrap()
}

/// An image of two layers, the second of which takes something away; and one of a single layer.
fn import(node: &Node) {
    let lower = layer(&[
        ("data/one", "1"),
        ("data/gone", "x"),
        ("etc/passwd", "of the image"),
        ("run.sh", "#!/bin/sh\necho ran"),
        ("out", "-> /etc"),
        ("up", "-> ../../../../../../etc"),
        ("inner", "-> data"),
    ]);
    let upper = layer(&[("data/two", "2"), ("data/.wh.gone", "")]);
    let ids: Vec<_> = [&lower, &upper].map(|layer| format!("sha256:{}", sha256(layer))).into();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": ids },
    })
    .to_string();
    let name = format!("{}.json", sha256(config.as_bytes()));
    let manifest =
        serde_json::json!([{ "Config": name, "RepoTags": ["data"], "Layers": ["1/layer.tar", "2/layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    add_file(&mut archive, &name, config.as_bytes(), 0o644);
    add_file(&mut archive, "1/layer.tar", &lower, 0o644);
    add_file(&mut archive, "2/layer.tar", &upper, 0o644);
    add_file(&mut archive, "manifest.json", manifest.to_string().as_bytes(), 0o644);
    let single = docker_archive("single", &layer(&[("alone", "3")]), serde_json::json!({}));
    for (file, bytes) in [("data.tar", archive.into_inner().unwrap()), ("single.tar", single)] {
        fs::write(node.path().join(file), bytes).unwrap();
        node.ctr(&["image", "import", node.path().join(file).to_str().unwrap()]);
    }
}

fn mount(image: &str, sub_path: &str, at: &str) -> cri::Mount {
    cri::Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

async fn said(node: &Node, id: &str, script: &str) -> (i32, String) {
    let done = node.exec(id, &["sh", "-c", script]).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let text = [done.stdout, done.stderr].concat();
    (done.exit_code, String::from_utf8_lossy(&text).trim_end().to_owned())
}

async fn forget(node: &Node, image: &str) {
    let image = Some(cri::ImageSpec { image: image.into(), ..Default::default() });
    node.images().remove_image(cri::RemoveImageRequest { image }).await.unwrap();
}

/// How many snapshots are layers of images.
fn committed(node: &Node) -> usize {
    node.ctr(&["snapshot", "ls"]).lines().filter(|line| line.contains("Committed")).count()
}

/// Has the collector come by, as it does before the removal of an image is answered.
async fn collect(node: &Node) {
    node.ctr(&["image", "import", node.path().join("single.tar").to_str().unwrap()]);
    forget(node, "single").await;
}

/// What of the node's own mounts is an image.
fn mounted(node: &Node) -> usize {
    let below = node.path().join("r/supervisor/image-mounts");
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|line| line.contains(below.to_str().unwrap())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_mounted_and_go_with_their_container() {
    let Some(mut node) = Node::of_berth(DIFFERS).await else { return };
    import(&node);
    let views = |node: &Node| node.ctr(&["snapshot", "ls"]).lines().filter(|line| line.contains("-image-")).count();
    let layers = committed(&node);
    let config = pod("images");
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "exec sleep 1000");
    wanted.mounts = vec![
        mount(DATA, "", "/all"),
        mount(DATA, "data", "/sub"),
        mount(DATA, "inner", "/by-link"),
        mount(DATA, "./out", "/out"),
        mount(DATA, "up", "/up"),
        mount("single", "", "/single"),
    ];
    let main = node.create(&id, &wanted, &config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    assert_eq!((views(&node), mounted(&node)), (6, 0));
    // Nobody needs their names any more.
    for image in [DATA, "single"] {
        forget(&node, image).await;
    }
    // Nor does a created container need the supervisor that made it.
    node.kill();
    node.start(&[]).await;
    node.start_container(&main).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    assert_eq!(mounted(&node), 0, "it is in the container's table alone");
    for (script, said_there) in [
        ("ls /all/data; cat /all/data/one", "one\ntwo\n1"),
        ("cat /sub/two /by-link/one", "21"),
        // Links end in the image, wherever they would lead.
        ("cat /out/passwd; echo; cat /up/passwd", "of the image\nof the image"),
        ("cat /single/alone", "3"),
    ] {
        assert_eq!(said(&node, &main, script).await, (0, said_there.to_owned()), "{script}");
    }
    for script in
        ["echo x > /all/data/one", "touch /sub/new", "rm /single/alone", "mount -o remount,rw /all", "/all/run.sh"]
    {
        let (code, text) = said(&node, &main, script).await;
        assert_ne!(code, 0, "{script}: {text}");
    }
    assert_eq!(node.container(&main).await.unwrap().mounts, wanted.mounts);
    node.remove_container(&main).await.unwrap();
    // The images' own have gone with it, since nothing else named them.
    collect(&node).await;
    assert_eq!((views(&node), committed(&node)), (0, layers - 3));
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_can_not_be_mounted() {
    let Some(node) = Node::of_berth(DIFFERS).await else { return };
    import(&node);
    let config = pod("refused");
    let id = node.run_pod(&config).await.unwrap();
    let with = |change: fn(&mut cri::Mount)| {
        let mut mount = mount(DATA, "data", "/image");
        change(&mut mount);
        mount
    };
    for (bad, code, words) in [
        (with(|mount| mount.readonly = false), Code::InvalidArgument, "readonly"),
        (with(|mount| mount.host_path = "/etc".into()), Code::InvalidArgument, "host_path"),
        (with(|mount| mount.propagation = 2), Code::InvalidArgument, "propagation"),
        (with(|mount| mount.image.as_mut().unwrap().image.clear()), Code::InvalidArgument, "no name"),
        (
            with(|mount| mount.image.as_mut().unwrap().image = "no.example/such".into()),
            Code::NotFound,
            "no.example/such",
        ),
        (with(|mount| mount.image_sub_path = "none".into()), Code::NotFound, "none"),
        (with(|mount| mount.image_sub_path = "data/gone".into()), Code::NotFound, "data/gone"),
        // A folder, as with containerd: Kubernetes has said so.
        (with(|mount| mount.image_sub_path = "data/one".into()), Code::InvalidArgument, "data/one"),
        (with(|mount| mount.image_sub_path = "../etc".into()), Code::InvalidArgument, "../etc"),
        (with(|mount| mount.image_sub_path = "/data".into()), Code::InvalidArgument, "/data"),
        (with(|mount| mount.image = None), Code::InvalidArgument, "image_sub_path"),
    ] {
        let mut wanted = container("main", "true");
        wanted.mounts.push(bad);
        let refused = node.create(&id, &wanted, &config).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(words), "{words}: {refused}");
    }
    assert!(!node.ctr(&["snapshot", "ls"]).contains("-image-"), "no view stays");
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_images_are_roots_of_the_pod() {
    let Some(node) = crate::users::node_with_users().await else { return };
    import(&node);
    let map = |host_id| vec![cri::IdMapping { container_id: 0, host_id, length: 65_536 }];
    let mut config = networked("mapped");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    let users = cri::UserNamespace { uids: map(100_000), gids: map(100_000), ..Default::default() };
    context.namespace_options.as_mut().unwrap().userns_options = Some(users);
    let id = node.run_pod(&config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let mut wanted = container("main", "exec sleep 1000");
    wanted.mounts = vec![mount(DATA, "data", "/sub"), mount("single", "", "/single"), mount(DATA, "", "/told")];
    (wanted.mounts[2].uid_mappings, wanted.mounts[2].gid_mappings) = (map(100_007), map(100_008));
    let main = node.create(&id, &wanted, &config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    node.start_container(&main).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    let script = "stat -c %u:%g /sub/one /sub/two /single/alone /told/data/one";
    assert_eq!(said(&node, &main, script).await, (0, "0:0\n0:0\n0:0\n7:8".to_owned()));
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
