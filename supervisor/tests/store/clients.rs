//! Import, export, names, and containerd's own client.

use proto::{
    containerd::{
        services::snapshots::v1::{PrepareSnapshotRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
        types::transfer::{ImageReference, ImageStore},
    },
    digest::{Digest, chain_id},
};

use crate::{
    archives::{Image, gzip, layer},
    harness::{Client, Supervisor, eventually, request, unpacking},
};

fn two_layers(compress: impl Fn(&[u8]) -> Vec<u8>) -> (Image, [Vec<u8>; 2]) {
    let layers = [layer(&[("etc/one", b"1"), ("etc/gone", b"x")]), layer(&[("etc/two", b"2"), ("etc/.wh.gone", b"")])];
    (Image::new(&layers, compress), layers)
}

async fn prepare(client: &Client, key: &str, parent: &str) -> Vec<proto::containerd::types::Mount> {
    let message = PrepareSnapshotRequest {
        snapshotter: "overlayfs".into(),
        key: key.into(),
        parent: parent.into(),
        labels: Default::default(),
    };
    SnapshotsClient::new(client.channel.clone()).prepare(request(message)).await.unwrap().into_inner().mounts
}

#[tokio::test]
async fn docker_archive_from_import_to_removal() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let (image, layers) = two_layers(<[u8]>::to_vec);
    // The archive itself is compressed, as `docker save | gzip` makes it.
    let archive = gzip(&image.docker_archive(&["web:1", "reg.example/web:2"]));
    let (done, told) = client.import(archive, &unpacking()).await;
    done.unwrap();
    let saved: Vec<_> = told.iter().filter(|p| p.event == "saved").map(|p| p.name.as_str()).collect();
    assert_eq!(saved, ["docker.io/library/web:1", "reg.example/web:2"]);
    for layer in &layers {
        let digest = Digest::of(layer).to_string();
        let events: Vec<_> = told.iter().filter(|p| p.name == digest).map(|p| p.event.as_str()).collect();
        assert!(events.contains(&"complete") && events.last() == Some(&"extracted"), "{events:?}");
    }
    let images = client.images().await;
    assert_eq!(images.len(), 2);
    let top = chain_id(&layers.each_ref().map(|l| Digest::of(l))).unwrap().to_string();
    assert_eq!(client.snapshots().await.len(), 2);
    let mounts = prepare(&client, "box", &top).await;
    assert_eq!(mounts[0].r#type, "overlay");
    let option = |name: &str| mounts[0].options.iter().find_map(|o| o.strip_prefix(name)).unwrap().to_owned();
    let lowers = option("lowerdir=");
    let (upper, lower) = lowers.split_once(':').unwrap();
    assert_eq!(std::fs::read(format!("{lower}/etc/one")).unwrap(), b"1");
    assert_eq!(std::fs::read(format!("{upper}/etc/two")).unwrap(), b"2");
    assert!(option("workdir=").ends_with("/work") && option("upperdir=").ends_with("/fs"));
    // The image's names go, what the container stands on stays.
    client.remove_image("docker.io/library/web:1").await.unwrap();
    assert!(client.blobs().await.contains(&image_config(&image)));
    client.remove_image("reg.example/web:2").await.unwrap();
    assert_eq!(client.blobs().await, Vec::<String>::new());
    assert_eq!(client.snapshots().await.len(), 3);
    let remove = RemoveSnapshotRequest { snapshotter: "overlayfs".into(), key: top };
    let mut snapshots = SnapshotsClient::new(client.channel.clone());
    let refused = snapshots.remove(request(remove.clone())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    snapshots.remove(request(RemoveSnapshotRequest { key: "box".into(), ..remove })).await.unwrap();
    assert_eq!(client.remove_image("web").await.unwrap_err().code(), tonic::Code::NotFound);
    // The next collection, here by another image's removal, takes the layers.
    client.import(image.docker_archive(&["web:1"]), &ImageStore::default()).await.0.unwrap();
    client.remove_image("docker.io/library/web:1").await.unwrap();
    assert_eq!((client.snapshots().await.len(), supervisor.names("snapshots/overlayfs").len()), (0, 0));
    assert!(supervisor.names("content/blobs/sha256").is_empty() && supervisor.names("content/ingest").is_empty());
}

fn image_config(image: &Image) -> String {
    Digest::of(&image.config).to_string()
}

#[tokio::test]
async fn names_of_imported_images() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let (image, _) = two_layers(gzip);
    let import = async |archive: Vec<u8>, to: &ImageStore| -> Vec<String> {
        let (done, told) = client.import(archive, to).await;
        done.unwrap();
        told.into_iter().filter(|p| p.event == "saved").map(|p| p.name).collect()
    };
    let untagged = import(image.docker_archive(&[]), &ImageStore::default()).await;
    assert!(untagged[0].starts_with("import@sha256:"), "{untagged:?}");
    let record = client.images().await.into_iter().find(|i| i.name == untagged[0]).unwrap();
    assert_eq!(record.labels.get("berth.untagged").map(String::as_str), Some("true"));
    let full = image.oci_archive("io.containerd.image.name", "reg.example/app:3");
    assert_eq!(import(full, &ImageStore::default()).await, ["reg.example/app:3"]);
    let tag = image.oci_archive("org.opencontainers.image.ref.name", "v1");
    assert!(import(tag.clone(), &ImageStore::default()).await[0].starts_with("import@"));
    let prefix = |name: &str, is_prefix| ImageStore {
        extra_references: vec![ImageReference { name: name.into(), is_prefix, ..Default::default() }],
        ..Default::default()
    };
    assert_eq!(import(tag.clone(), &prefix("reg.example/app", true)).await, ["reg.example/app:v1"]);
    assert_eq!(import(tag, &prefix("docker.io/library/mine:1", false)).await, ["docker.io/library/mine:1"]);
}

#[tokio::test]
async fn export_comes_back_the_same() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let (image, _) = two_layers(gzip);
    client
        .import(image.oci_archive("io.containerd.image.name", "docker.io/library/a:1"), &unpacking())
        .await
        .0
        .unwrap();
    let archive = client.export(&["docker.io/library/a:1"]).await.unwrap();
    assert_eq!(client.export(&["nope"]).await.unwrap_err().code(), tonic::Code::NotFound);
    client.remove_image("docker.io/library/a:1").await.unwrap();
    assert!(client.blobs().await.is_empty());
    let (done, told) = client.import(archive.clone(), &unpacking()).await;
    done.unwrap();
    let saved = told.iter().find(|p| p.event == "saved").unwrap();
    let digest = saved.desc.clone().unwrap().digest;
    assert_eq!((saved.name.as_str(), digest), ("docker.io/library/a:1", image.digest().to_string()));
    // Other tools read it as well.
    let file = supervisor.root.join("out.tar");
    std::fs::write(&file, archive).unwrap();
    let inspect = |kind: &str| {
        let source = format!("{kind}:{}", file.display());
        let output = std::process::Command::new("skopeo").args(["inspect", "--config", &source]).output().unwrap();
        assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
    };
    inspect("docker-archive");
    inspect("oci-archive");
}

#[tokio::test]
async fn containerds_own_client() {
    let supervisor = Supervisor::start();
    let (image, _) = two_layers(gzip);
    let file = supervisor.root.join("image.tar");
    std::fs::write(&file, image.docker_archive(&["reg.example/app:1"])).unwrap();
    let ctr = |args: &[&str]| supervisor.ctr(args).unwrap_or_else(|error| panic!("ctr {args:?}: {error}"));
    ctr(&["images", "import", file.to_str().unwrap()]);
    assert!(ctr(&["images", "ls"]).contains("reg.example/app:1"));
    assert!(ctr(&["images", "check"]).contains("complete (3/3)"));
    assert_eq!(ctr(&["snapshots", "ls"]).matches("Committed").count(), 2);
    assert!(ctr(&["content", "ls"]).contains("containerd.io/gc.ref.snapshot.overlayfs"));
    assert!(ctr(&["images", "label", "reg.example/app:1", "a=b"]).contains("a=b"));
    ctr(&["images", "tag", "reg.example/app:1", "reg.example/app:2"]);
    let mnt = supervisor.root.join("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let mnt = mnt.to_str().unwrap();
    ctr(&["images", "mount", "reg.example/app:1", mnt]);
    let seen = (std::fs::read(format!("{mnt}/etc/two")).unwrap(), std::fs::exists(format!("{mnt}/etc/gone")).unwrap());
    ctr(&["images", "unmount", "--rm", mnt]);
    assert_eq!(seen, (b"2".to_vec(), false));
    let out = supervisor.root.join("out.tar");
    ctr(&["images", "export", out.to_str().unwrap(), "reg.example/app:1"]);
    assert!(out.metadata().unwrap().len() > 1000);
    ctr(&["leases", "create", "--id", "mine"]);
    assert!(ctr(&["leases", "ls"]).contains("mine"));
    ctr(&["leases", "rm", "mine"]);
    ctr(&["namespaces", "create", "other", "x=y"]);
    assert!(ctr(&["namespaces", "ls"]).contains("x=y"));
    let busy = supervisor.ctr(&["namespaces", "rm", "default"]).unwrap_err();
    assert!(busy.contains("must be empty"), "{busy}");
    ctr(&["namespaces", "rm", "other"]);
    ctr(&["images", "rm", "--sync", "reg.example/app:1", "reg.example/app:2"]);
    // ctr's own lease for the mount view may have been the last to go.
    eventually("everything collected", async || {
        supervisor.names("content/blobs/sha256").is_empty() && supervisor.names("snapshots/overlayfs").is_empty()
    })
    .await;
}

#[tokio::test]
async fn unpacked_for_several_snapshotters() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let (image, layers) = two_layers(gzip);
    let mut to = unpacking();
    let mut native = to.unpacks[0].clone();
    native.snapshotter = "native".into();
    to.unpacks.push(native);
    client.import(image.docker_archive(&["a:1"]), &to).await.0.unwrap();
    let top = chain_id(&layers.each_ref().map(|l| Digest::of(l))).unwrap().to_string();
    for snapshotter in ["overlayfs", "native"] {
        assert_eq!(supervisor.names(&format!("snapshots/{snapshotter}")).len(), 2, "{snapshotter}");
        let message = PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: "box".into(),
            parent: top.clone(),
            labels: Default::default(),
        };
        let mounts = SnapshotsClient::new(client.channel.clone()).prepare(request(message)).await.unwrap();
        assert_eq!(mounts.into_inner().mounts[0].r#type, if snapshotter == "native" { "bind" } else { "overlay" });
    }
    // What nobody is asked for isn't made: an unknown one is refused before anything is.
    to.unpacks[0].snapshotter = "zfs".into();
    let error = client.import(image.docker_archive(&["b:1"]), &to).await.0.unwrap_err();
    assert!(error.message().contains("snapshotter \"zfs\" is not known"), "{error:?}");
}
