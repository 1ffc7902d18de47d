//! Images as kubelets see them. (Against a registry that a test has in its hand, with moved tags, logins and lies:
//! `supervisor/tests/store/cri.rs`.)

use std::{fs, process::Stdio};

use proto::runtime::v1 as cri;
use tonic::{Code, Status};

use integration_tests::{
    images,
    kubelet::{IMAGE, Node, container, eventually, pod},
};

fn spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: image.into(), ..Default::default() })
}

async fn status(node: &Node, image: &str) -> Option<cri::Image> {
    let request = cri::ImageStatusRequest { image: spec(image), verbose: false };
    node.images().image_status(request).await.unwrap().into_inner().image
}

async fn list(node: &Node) -> Vec<cri::Image> {
    node.images().list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images
}

async fn remove(node: &Node, image: &str) {
    node.images().remove_image(cri::RemoveImageRequest { image: spec(image) }).await.unwrap();
}

async fn pull(node: &Node, image: &str) -> Result<String, Status> {
    let request = cri::PullImageRequest { image: spec(image), ..Default::default() };
    Ok(node.images().pull_image(request).await?.into_inner().image_ref)
}

/// A registry on the node's loopback.
struct Registry(std::process::Child);

impl Registry {
    async fn on(node: &Node) -> Option<Self> {
        integration_tests::programs::peer_or_skip("docker-registry")?;
        let (config, root) = (node.path().join("registry.yml"), node.path().join("registry"));
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\nhttp: {{ addr: '127.0.0.1:5000' }}\n",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(node.path().join("registry.log")).unwrap();
        let mut command = node.host.command("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let registry = Self(command.spawn().unwrap());
        eventually("the registry answers", async || {
            let asked = node.host.run(["busybox", "wget", "-q", "-O-", "http://127.0.0.1:5000/v2/"]);
            (asked.code() == 0).then_some(())
        })
        .await;
        Some(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Puts an image of this configuration into the node's registry, and not on the node.
fn push(node: &Node, name: &str, config: serde_json::Value) {
    let file = node.path().join("pushed.tar");
    fs::write(&file, images::docker_archive("pushed:latest", &images::busybox_rootfs(), config)).unwrap();
    let from = format!("docker-archive:{}", file.display());
    let to = format!("docker://127.0.0.1:5000/{name}");
    node.host.run(["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", &from, &to]).success();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_here_has_no_status_and_is_no_error() {
    let node = Node::new().await;
    assert_eq!(status(&node, "docker.io/library/no-such-image:1").await, None);
    assert_eq!(status(&node, &format!("sha256:{}", "0".repeat(64))).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_removed_any_number_of_times() {
    let node = Node::new().await;
    for _ in 0..2 {
        remove(&node, IMAGE).await;
        assert_eq!(status(&node, IMAGE).await, None);
    }
    remove(&node, "docker.io/library/no-such-image:1").await;
    remove(&node, &format!("sha256:{}", "0".repeat(64))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_removed_by_its_id_with_all_its_names() {
    let node = Node::new().await;
    node.ctr(&["image", "tag", IMAGE, "docker.io/library/second:1"]);
    let id = eventually("both names are known", async || {
        status(&node, IMAGE).await.filter(|image| image.repo_tags.len() == 2).map(|image| image.id)
    })
    .await;
    assert_eq!(status(&node, "second:1").await.unwrap().id, id);
    assert_eq!(list(&node).await.iter().filter(|image| image.id == id).count(), 1);
    remove(&node, &id).await;
    assert_eq!((status(&node, IMAGE).await, status(&node, "second:1").await), (None, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_says_its_size_and_user() {
    let node = Node::new().await;
    for (name, user, uid, username) in [("number", "1000:7", Some(1000), ""), ("name", "user", None, "user")] {
        let config = serde_json::json!({ "Cmd": ["sh"], "User": user });
        let file = node.path().join("image.tar");
        fs::write(&file, images::docker_archive(&format!("{name}:1"), &images::busybox_rootfs(), config)).unwrap();
        node.ctr(&["image", "import", file.to_str().unwrap()]);
        let name = format!("docker.io/library/{name}:1");
        let image = eventually("the image is known", async || status(&node, &name).await).await;
        assert_eq!((image.uid.map(|uid| uid.value), &*image.username), (uid, username));
        assert!(image.size > 0 && image.id.starts_with("sha256:") && image.repo_tags == [name], "{image:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let node = Node::new().await;
    let Some(_registry) = Registry::on(&node).await else { return };
    push(&node, "app:1", serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": { "a": "1" } }));
    let id = pull(&node, "127.0.0.1:5000/app:1").await.unwrap();
    let image = status(&node, "127.0.0.1:5000/app:1").await.unwrap();
    assert_eq!((&image.id, &image.repo_tags[..]), (&id, &["127.0.0.1:5000/app:1".to_owned()][..]));
    let [digest] = &image.repo_digests[..] else { panic!("{image:?}") };
    assert!(digest.starts_with("127.0.0.1:5000/app@sha256:"));
    assert_eq!(pull(&node, digest).await.unwrap(), id);
    assert_eq!(status(&node, digest).await.unwrap().id, id);
    // One that is the same is one image, under whatever names.
    push(&node, "app:2", serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": { "a": "1" } }));
    assert_eq!(pull(&node, "127.0.0.1:5000/app:2").await.unwrap(), id);
    push(&node, "other:1", serde_json::json!({ "Labels": { "a": "2" } }));
    assert_ne!(pull(&node, "127.0.0.1:5000/other:1").await.unwrap(), id);
    assert_eq!(list(&node).await.iter().filter(|image| image.id == id).count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_has_the_image_that_the_pull_answered() {
    let node = Node::new().await;
    let Some(_registry) = Registry::on(&node).await else { return };
    push(&node, "app:1", serde_json::json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"], "Labels": { "a": "1" } }));
    let id = pull(&node, "127.0.0.1:5000/app:1").await.unwrap();
    let config = pod("consistent");
    let sandbox = node.run_pod(&config).await.unwrap();
    for (number, name) in ["127.0.0.1:5000/app:1", &id].into_iter().enumerate() {
        let mut wanted = container(&format!("c{number}"), "true");
        wanted.image = spec(name);
        let one = node.create(&sandbox, &wanted, &config).await.unwrap();
        let told = node.container(&one).await.unwrap();
        let found = status(&node, &told.image_ref).await.unwrap();
        assert_eq!(found.id, id, "{told:?}");
        let listed = node.containers().await.into_iter().find(|listed| listed.id == one).unwrap();
        assert_eq!(status(&node, &listed.image_ref).await.unwrap().id, id);
    }
    node.remove_pod(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_is_nowhere_is_not_pulled() {
    let node = Node::new().await;
    let Some(_registry) = Registry::on(&node).await else { return };
    let refused = pull(&node, "127.0.0.1:5000/nothing:1").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    let id = format!("sha256:{}", "0".repeat(64));
    for name in ["Not A Name", "", &id] {
        pull(&node, name).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_narrowed_by_name() {
    let Some(node) = Node::of_berth("containerd 1.6 takes no notice of the filter").await else { return };
    let found = async |name: &str| {
        let filter = Some(cri::ImageFilter { image: spec(name) });
        node.images().list_images(cri::ListImagesRequest { filter }).await.unwrap().into_inner().images.len()
    };
    assert_eq!((found(IMAGE).await, found("docker.io/library/other:1").await), (1, 0));
    assert!(!list(&node).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_system_of_images_and_that_of_containers() {
    let Some(node) = Node::of_berth("containerd 1.6 tells that of images alone").await else { return };
    let info = node.images().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    for all in [info.image_filesystems, info.container_filesystems] {
        let [one] = &all[..] else { panic!("{all:?}") };
        assert!(one.timestamp > 0 && one.used_bytes.as_ref().unwrap().value > 0, "{one:?}");
        assert!(std::path::Path::new(&one.fs_id.as_ref().unwrap().mountpoint).is_dir());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_in_use_leaves_its_containers_alone() {
    let node = Node::new().await;
    let (pod, main) = node.sleeper(&pod("inuse")).await;
    remove(&node, IMAGE).await;
    assert_eq!(node.exec(&main, &["cat", "/www/index.html"]).await.unwrap().stdout, b"hello from berth\n");
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
}
