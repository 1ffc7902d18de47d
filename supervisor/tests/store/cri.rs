//! CRI's ImageService, as a kubelet uses it.

use proto::{
    containerd::services::images::v1::{
        Image as Record, ListImagesRequest, UpdateImageRequest, images_client::ImagesClient,
    },
    digest::Digest,
    runtime::v1 as cri,
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Supervisor, unpacking},
    registries::Fake,
};

/// The calls of a kubelet.
#[derive(Clone)]
struct Kubelet(cri::image_service_client::ImageServiceClient<Channel>, Channel);

fn spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: image.into(), ..Default::default() })
}

fn login(user: &str, secret: &str) -> Option<cri::AuthConfig> {
    Some(cri::AuthConfig { username: user.into(), password: secret.into(), ..Default::default() })
}

impl Kubelet {
    async fn of(supervisor: &Supervisor) -> Self {
        let channel = supervisor.client().await.channel;
        Self(cri::image_service_client::ImageServiceClient::new(channel.clone()), channel)
    }

    async fn pull(&self, image: &str, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
        let message = cri::PullImageRequest { image: spec(image), auth, sandbox_config: None };
        Ok(self.0.clone().pull_image(message).await?.into_inner().image_ref)
    }

    async fn list(&self) -> Vec<cri::Image> {
        self.0.clone().list_images(cri::ListImagesRequest::default()).await.unwrap().into_inner().images
    }

    async fn status(&self, image: &str) -> Option<cri::Image> {
        let message = cri::ImageStatusRequest { image: spec(image), verbose: false };
        self.0.clone().image_status(message).await.unwrap().into_inner().image
    }

    async fn remove(&self, image: &str) {
        self.0.clone().remove_image(cri::RemoveImageRequest { image: spec(image) }).await.unwrap();
    }

    /// Bytes and files that images take.
    async fn usage(&self) -> (String, u64, u64) {
        let info = self.0.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
        assert_eq!(info.image_filesystems, info.container_filesystems);
        let [usage] = &info.image_filesystems[..] else { panic!("{info:?}") };
        assert!(usage.timestamp > 0);
        let mountpoint = usage.fs_id.clone().unwrap().mountpoint;
        (mountpoint, usage.used_bytes.unwrap().value, usage.inodes_used.unwrap().value)
    }

    /// What containerd's service has of CRI's images.
    async fn records(&self) -> Vec<Record> {
        let mut request = Request::new(ListImagesRequest::default());
        request.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
        ImagesClient::new(self.1.clone()).list(request).await.unwrap().into_inner().images
    }
}

/// An image whose files are named by `seed`, and whose configuration says USER.
fn image(seed: &str, user: &str) -> Image {
    let mut image = Image::new(&[layer(&[(seed, &noise(1 << 20))]), layer(&[("small", seed.as_bytes())])], gzip);
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    config["config"]["User"] = json!(user);
    image.config = config.to_string().into_bytes();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &image.config);
    image.manifest = manifest.to_string().into_bytes();
    image
}

/// A registry that has the image under the tag 1 and by its digest.
fn registry(image: &Image) -> Fake {
    let mut fake = Fake::of(image);
    fake.manifests.insert(image.digest().to_string(), image.manifest.clone());
    fake
}

fn id(image: &Image) -> String {
    Digest::of(&image.config).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_known_by_tag_digest_and_id() {
    let mut supervisor = Supervisor::start();
    let kubelet = Kubelet::of(&supervisor).await;
    let image = image("one", "1000:7");
    let (port, _) = registry(&image).serve();
    let (tag, digest) = (format!("127.0.0.1:{port}/app:1"), format!("127.0.0.1:{port}/app@{}", image.digest()));
    assert_eq!(kubelet.status(&tag).await, None);
    let (folder, bytes, files) = kubelet.usage().await;
    assert_eq!((bytes, files), (0, 0));
    assert!(supervisor.path("snapshots").join(folder.rsplit('/').next().unwrap()).is_dir(), "{folder}");

    assert_eq!(kubelet.pull(&tag, None).await.unwrap(), id(&image));
    let blobs = image.layers.iter().chain([&image.config, &image.manifest]).map(Vec::len).sum::<usize>() as u64;
    let wanted = cri::Image {
        id: id(&image),
        repo_tags: vec![tag.clone()],
        repo_digests: vec![digest.clone()],
        size: blobs,
        uid: Some(cri::Int64Value { value: 1000 }),
        ..Default::default()
    };
    assert_eq!(kubelet.list().await, std::slice::from_ref(&wanted));
    let hex = wanted.id.strip_prefix("sha256:").unwrap().to_owned();
    let both = format!("{tag}@{}", image.digest());
    for name in [&tag, &digest, &both, &wanted.id, &hex, &hex[..12]] {
        assert_eq!(kubelet.status(name).await.as_ref(), Some(&wanted), "{name}");
    }
    for name in [&hex[..11], "127.0.0.1:1/app:1", "Not A Name", &format!("sha256:{}", "0".repeat(64))] {
        assert_eq!(kubelet.status(name).await, None, "{name}");
    }
    let verbose = cri::ImageStatusRequest { image: spec(&tag), verbose: true };
    let info = kubelet.0.clone().image_status(verbose).await.unwrap().into_inner().info;
    let info: Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["config"]["User"], "1000:7");
    assert!(info["chainID"].as_str().unwrap().starts_with("sha256:"));
    let (_, bytes, files) = kubelet.usage().await;
    // As blobs, and unpacked.
    assert!(bytes > blobs + (1 << 20) && files > 4, "{bytes} bytes in {files} files");

    // The same again is the same; a stream and a filter tell the same; and so does the next supervisor.
    assert_eq!(kubelet.pull(&digest, None).await.unwrap(), wanted.id);
    let mut stream = kubelet.0.clone().stream_images(cri::StreamImagesRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().images, std::slice::from_ref(&wanted));
    assert_eq!(stream.message().await.unwrap(), None);
    for (name, count) in [(tag.as_str(), 1), ("other:1", 0)] {
        let filter = Some(cri::ImageFilter { image: spec(name) });
        let found = kubelet.0.clone().list_images(cri::ListImagesRequest { filter }).await.unwrap().into_inner();
        assert_eq!(found.images.len(), count, "{name}");
    }
    supervisor.kill_and_restart();
    let kubelet = Kubelet::of(&supervisor).await;
    assert_eq!(kubelet.list().await, [wanted]);
    // The engine has images of its own.
    assert!(supervisor.client().await.images().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_on_and_removal_takes_all_names_and_everything_below() {
    let supervisor = Supervisor::start();
    let kubelet = Kubelet::of(&supervisor).await;
    let (old, new) = (image("old", ""), image("new", "nobody"));
    let (port, fake) = Fake::of(&old).serve();
    let name = format!("127.0.0.1:{port}/app");
    kubelet.pull(&format!("{name}:1"), None).await.unwrap();
    {
        let mut fake = fake.lock().unwrap();
        let Fake { manifests, blobs, .. } = Fake::of(&new);
        fake.manifests.insert("2".into(), new.manifest.clone());
        fake.manifests.extend(manifests);
        fake.blobs.extend(blobs);
    }
    for tag in ["1", "2"] {
        assert_eq!(kubelet.pull(&format!("{name}:{tag}"), None).await.unwrap(), id(&new));
    }
    let left = kubelet.status(&id(&old)).await.unwrap();
    assert_eq!((left.repo_tags.len(), left.repo_digests), (0, vec![format!("{name}@{}", old.digest())]));
    assert_eq!(left.uid, Some(cri::Int64Value { value: 0 }));
    let moved = kubelet.status(&format!("{name}:1")).await.unwrap();
    assert_eq!(moved.repo_tags, [format!("{name}:1"), format!("{name}:2")]);
    assert_eq!((moved.uid, &*moved.username), (None, "nobody"));

    kubelet.remove(&id(&old)).await;
    assert_eq!(kubelet.list().await.len(), 1);
    assert!(!supervisor.path("content/blobs/sha256").join(Digest::of(&old.layers[0]).hex()).exists());
    // One of its tags stands for the image; nothing is left when the answer is there.
    kubelet.remove(&format!("{name}:2")).await;
    assert!(kubelet.list().await.is_empty() && kubelet.records().await.is_empty());
    assert!(supervisor.names("content/blobs/sha256").is_empty() && supervisor.names("snapshots/overlayfs").is_empty());
    for gone in [format!("{name}:2"), id(&new), "Not A Name".to_owned()] {
        kubelet.remove(&gone).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_for_one_pull_and_one_registry() {
    let supervisor = Supervisor::start_with("log-level = 'debug'\n");
    let kubelet = Kubelet::of(&supervisor).await;
    let image = image("secret", "");
    let mut fake = Fake::of(&image);
    fake.login = Some(("me".to_owned(), "hush-hush".to_owned()));
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app:1");
    let elsewhere =
        cri::AuthConfig { server_address: "https://other.example/v1/".into(), ..login("me", "hush-hush").unwrap() };
    for wrong in [None, login("me", "guess"), Some(elsewhere)] {
        assert_eq!(kubelet.pull(&name, wrong).await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(kubelet.pull(&name, login("me", "hush-hush")).await.unwrap(), id(&image));
    // It is here, and yet not for everybody.
    assert_eq!(kubelet.pull(&name, None).await.unwrap_err().code(), Code::Unauthenticated);
    let encoded = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode("me:hush-hush")
    };
    let auth =
        cri::AuthConfig { auth: encoded.clone(), server_address: format!("127.0.0.1:{port}"), ..Default::default() };
    assert_eq!(kubelet.pull(&name, Some(auth)).await.unwrap(), id(&image));
    let grep = std::process::Command::new("grep")
        .args(["-rlE", &format!("hush-hush|{encoded}|sesame")])
        .arg(&supervisor.root)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_of_names_stay_and_what_is_not_unpacked_is_not_here() {
    let supervisor = Supervisor::start();
    let kubelet = Kubelet::of(&supervisor).await;
    let image = image("pinned", "");
    let (port, _) = registry(&image).serve();
    let name = format!("127.0.0.1:{port}/app:1");
    kubelet.pull(&name, None).await.unwrap();
    let mut record = kubelet.records().await.into_iter().find(|record| record.name == name).unwrap();
    record.labels.insert("io.cri-containerd.pinned".into(), "pinned".into());
    let mut update = Request::new(UpdateImageRequest { image: Some(record), update_mask: None });
    update.metadata_mut().insert("containerd-namespace", "k8s.io".parse().unwrap());
    ImagesClient::new(kubelet.1.clone()).update(update).await.unwrap();
    kubelet.pull(&name, None).await.unwrap();
    assert!(kubelet.status(&name).await.unwrap().pinned);
    kubelet.remove(&name).await;

    // Somebody else brought one without unpacking it: a kubelet that finds nothing pulls.
    let archive = supervisor.root.join("web.tar");
    std::fs::write(&archive, image.docker_archive(&["web:1"])).unwrap();
    let import = ["-n", "k8s.io", "images", "import", "--no-unpack", archive.to_str().unwrap()];
    supervisor.ctr(&import).unwrap();
    assert_eq!((kubelet.records().await.len(), kubelet.list().await.len()), (1, 0));
    kubelet.remove("web:1").await;
    assert!(kubelet.records().await.is_empty());
    supervisor.ctr(&[&import[..4], &import[5..]].concat()).unwrap();
    let [imported] = &kubelet.list().await[..] else { panic!("one image") };
    assert_eq!((&imported.repo_tags, imported.repo_digests.len()), (&vec!["docker.io/library/web:1".to_owned()], 0));
    assert_eq!(kubelet.status("web:1").await.as_ref(), Some(imported));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_killed_between_its_names_can_be_repeated_and_removed() {
    let mut supervisor = Supervisor::start();
    let image = image("killed", "");
    let (port, _) = registry(&image).serve();
    let name = format!("127.0.0.1:{port}/app");
    std::fs::write(supervisor.root.join("env"), "BERTH_FAULT=supervisor.image_record.put\n").unwrap();
    supervisor.kill_and_restart();
    let kubelet = Kubelet::of(&supervisor).await;
    kubelet.pull(&format!("{name}:1"), None).await.unwrap_err();
    std::fs::remove_file(supervisor.root.join("env")).unwrap();
    supervisor.kill_and_restart();
    let kubelet = Kubelet::of(&supervisor).await;
    // By digest first: it is known, complete, and can be removed.
    assert_eq!(kubelet.status(&format!("{name}:1")).await, None);
    assert_eq!(kubelet.status(&format!("{name}@{}", image.digest())).await.unwrap().id, id(&image));
    assert_eq!(kubelet.pull(&format!("{name}:1"), None).await.unwrap(), id(&image));
    assert_eq!(kubelet.list().await.len(), 1);
    kubelet.remove(&id(&image)).await;
    assert!(kubelet.records().await.is_empty() && supervisor.names("content/blobs/sha256").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_the_image_of_this_machine() {
    let supervisor = Supervisor::start();
    let kubelet = Kubelet::of(&supervisor).await;
    let image = image("multi", "");
    let mut mine = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
    mine["platform"] = json!({"os": "linux", "architecture": std::env::consts::ARCH.replace("x86_64", "amd64")});
    let mut other = descriptor("application/vnd.oci.image.manifest.v1+json", b"absent");
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [other, mine]}).to_string().into_bytes();
    let mut fake = Fake::of(&image);
    fake.manifests.insert("1".into(), index.clone());
    fake.manifests.insert(image.digest().to_string(), image.manifest.clone());
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app");
    assert_eq!(kubelet.pull(&format!("{name}:1"), None).await.unwrap(), id(&image));
    assert_eq!(kubelet.list().await[0].repo_digests, [format!("{name}@{}", Digest::of(&index))]);
    // By the manifest's own digest it is the same image, under one more name.
    assert_eq!(kubelet.pull(&format!("{name}@{}", image.digest()), None).await.unwrap(), id(&image));
    let [known] = &kubelet.list().await[..] else { panic!("one image") };
    assert_eq!((known.repo_tags.len(), known.repo_digests.len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    let supervisor = Supervisor::start();
    let kubelet = Kubelet::of(&supervisor).await;
    assert_eq!(kubelet.pull("", None).await.unwrap_err().message(), "image is required");
    for name in ["Not A Name", &format!("sha256:{}", "0".repeat(64))] {
        assert_eq!(kubelet.pull(name, None).await.unwrap_err().code(), Code::InvalidArgument, "{name}");
    }
    let auth = Some(cri::AuthConfig { auth: "hush!".into(), ..Default::default() });
    let refused = kubelet.pull("127.0.0.1:1/app", auth).await.unwrap_err();
    assert_eq!(refused.message(), "auth of the request is not the base64 of NAME:PASSWORD");
    let image = Some(cri::ImageSpec { image: "a".into(), runtime_handler: "kata".into(), ..Default::default() });
    let message = cri::PullImageRequest { image, ..Default::default() };
    let refused = kubelet.0.clone().pull_image(message).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("runtime handler \"kata\" is not known"), "{refused}");
    let nothing = kubelet.0.clone().image_status(cri::ImageStatusRequest::default()).await.unwrap_err();
    assert_eq!(nothing.code(), Code::InvalidArgument);
    // Messages may be as large as a kubelet's: gRPC's own limit is 4 MiB.
    let message = cri::ImageStatusRequest { image: spec(&"x".repeat(5 << 20)), verbose: false };
    assert_eq!(kubelet.0.clone().image_status(message).await.unwrap().into_inner().image, None);
    // What the engine has is nobody else's.
    let other = self::image("engine", "");
    let (done, _) = supervisor.client().await.import(other.docker_archive(&["web:1"]), &unpacking()).await;
    done.unwrap();
    assert!(kubelet.list().await.is_empty() && kubelet.usage().await.1 == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_shim_is_not_ready() {
    let supervisor = Supervisor::start_with("[runtimes]\n'io.containerd.berth.v1' = '/nonexistent/shim'\n");
    let channel = supervisor.client().await.channel;
    let mut kubelet = cri::runtime_service_client::RuntimeServiceClient::new(channel);
    let status = kubelet.status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let ready = &status.status.unwrap().conditions[0];
    assert_eq!((&*ready.r#type, ready.status, &*ready.reason), ("RuntimeReady", false, "ShimMissing"));
    assert!(ready.message.contains("/nonexistent/shim was not found"), "{}", ready.message);
    assert!(status.runtime_handlers.iter().all(|handler| !handler.name.is_empty()));
}
