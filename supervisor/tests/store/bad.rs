//! Images that are wrong, disks that are full, supervisors that are killed: a clear error, and nothing left behind.

use std::{path::PathBuf, process::Command};

use proto::digest::Digest;
use serde_json::json;
use tonic::{Code, Status};

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, eventually, unpacking},
    registries::Fake,
};

async fn assert_nothing_left(supervisor: &Supervisor, client: &Client) {
    assert!(client.images().await.is_empty());
    eventually("leftovers collected", async || {
        client.snapshots().await.is_empty()
            && supervisor.names("snapshots/overlayfs").is_empty()
            && supervisor.names("content/blobs/sha256").is_empty()
    })
    .await;
}

async fn refused(change: impl FnOnce(&mut Fake, &Image)) -> (Status, Image) {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")]), layer(&[("b", &noise(100_000))])], gzip);
    let mut fake = Fake::of(&image);
    change(&mut fake, &image);
    let (port, _) = fake.serve();
    let error = client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap_err();
    assert!(!error.message().contains('\n'));
    assert_nothing_left(&supervisor, &client).await;
    (error, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_digest() {
    let (error, image) = refused(|fake, image| {
        let digest = Digest::of(&image.layers[1]);
        let mut other = image.layers[1].clone();
        other[500] ^= 1;
        fake.blobs.insert(digest, other);
    })
    .await;
    assert_eq!(error.code(), Code::DataLoss);
    let mut other = image.layers[1].clone();
    other[500] ^= 1;
    let (wanted, got) = (Digest::of(&image.layers[1]), Digest::of(&other));
    assert!(error.message().contains(&format!("sent blob {wanted} with digest {got}")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_lying_layers() {
    // The blob is what the manifest says, but not a whole layer.
    let change = |fake: &mut Fake, bytes: Vec<u8>, config: &[u8]| {
        let manifest = json!({
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)],
        });
        fake.manifests.insert("1".into(), manifest.to_string().into_bytes());
        fake.blobs.insert(Digest::of(&bytes), bytes);
    };
    let one = Image::new(&[layer(&[("b", &noise(100_000))])], gzip);
    let config = one.config.clone();
    let cut = one.layers[0][..one.layers[0].len() / 2].to_vec();
    let name = Digest::of(&cut);
    let (error, _) = refused(|fake, _| {
        fake.blobs.insert(Digest::of(&config), config.clone());
        change(fake, cut, &config);
    })
    .await;
    assert_eq!(error.code(), Code::DataLoss);
    assert!(error.message().starts_with(&format!("unpack layer {name}: layer is corrupt")), "{error:?}");
    let (error, _) = refused(|fake, _| {
        fake.blobs.insert(Digest::of(&config), config.clone());
        change(fake, gzip(&layer(&[("other", b"x")])), &config);
    })
    .await;
    assert!(error.message().contains("the image's configuration says"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_manifest_and_index() {
    let (error, _) = refused(|fake, image| {
        let mut both: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        both["manifests"] = json!([]);
        fake.manifests.insert("1".into(), both.to_string().into_bytes());
    })
    .await;
    assert!(error.message().contains("both a manifest and an index"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giant_manifest_is_not_read() {
    let (error, _) = refused(|fake, _| {
        fake.manifests.insert("1".into(), vec![b' '; 5 << 20]);
    })
    .await;
    assert!(error.message().contains("larger than 4194304 bytes"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_archives() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", &noise(50_000))])], <[u8]>::to_vec);
    let archive = image.docker_archive(&["a:1"]);
    let cases: [(Vec<u8>, &str); 5] = [
        (archive[..archive.len() / 2].to_vec(), "archive ends within an entry"),
        (layer(&[("x", b"y")]), "neither manifest.json nor repositories (docker) nor index.json"),
        (vec![b'x'; 3000], "checksum does not match"),
        (b"\xfd7zXZ\0rest".to_vec(), "it is cut short or damaged"),
        (layer(&[("manifest.json", br#"[{"Config":"c.json","Layers":["l.tar"]}]"#)]), "\"c.json\" is missing"),
    ];
    for (archive, wanted) in cases {
        let (done, _) = client.import(archive, &unpacking()).await;
        let error = done.unwrap_err();
        assert!(error.message().contains(wanted), "{wanted}: {error:?}");
        assert_nothing_left(&supervisor, &client).await;
        assert!(supervisor.names("content/ingest").is_empty());
    }
}

/// A small file system; unmounted when dropped.
pub(crate) struct Tmpfs(pub(crate) PathBuf);

impl Tmpfs {
    pub(crate) fn new(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = format!("size={size}");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).status().unwrap();
        assert!(done.success());
        Self(at)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_while_unpacking() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(dir.path().join("disk"), "12m");
    let supervisor = Supervisor::start_in(disk.0.clone(), None);
    let client = supervisor.client().await;
    // Small as a blob, large on disk.
    let large = Image::new(&[layer(&[("ok", b"1")]), layer(&[("zeros", &vec![0; 30 << 20])])], gzip);
    let digest = Digest::of(&large.layers[1]);
    let (done, _) = client.import(large.docker_archive(&["large:1"]), &unpacking()).await;
    let error = done.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(error.message().starts_with(&format!("unpack layer {digest}: write file \"zeros\": ENOSPC")), "{error:?}");
    assert_nothing_left(&supervisor, &client).await;
    // The blob itself doesn't fit.
    let noisy = Image::new(&[layer(&[("noise", &noise(20 << 20))])], <[u8]>::to_vec);
    let error = client.import(noisy.docker_archive(&["noisy:1"]), &unpacking()).await.0.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert_nothing_left(&supervisor, &client).await;
    // And it goes on with what fits.
    let small = Image::new(&[layer(&[("ok", b"1")])], gzip);
    client.import(small.docker_archive(&["small:1"]), &unpacking()).await.0.unwrap();
    drop(client);
    drop(supervisor);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_importing() {
    let mut supervisor = Supervisor::start();
    let files: Vec<(String, Vec<u8>)> = (0..400).map(|i| (format!("dir/{i}"), noise(20_000))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(p, d)| (p.as_str(), d.as_slice())).collect();
    let image = Image::new(&[layer(&files)], <[u8]>::to_vec);
    for round in 0..4 {
        let client = supervisor.client().await;
        let archive = image.docker_archive(&["a:1"]);
        let running = tokio::spawn(async move { client.import(archive, &unpacking()).await.0 });
        // Each time a little further.
        tokio::time::sleep(std::time::Duration::from_millis(40 * (round + 1))).await;
        supervisor.kill_and_restart();
        let _ = running.await;
        let client = supervisor.client().await;
        if client.images().await.is_empty() {
            assert_nothing_left(&supervisor, &client).await;
        } else {
            client.remove_image("docker.io/library/a:1").await.unwrap();
        }
    }
    let client = supervisor.client().await;
    client.import(image.docker_archive(&["a:1"]), &unpacking()).await.0.unwrap();
    assert_eq!(client.snapshots().await.len(), 1);
}
