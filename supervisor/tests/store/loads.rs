//! Archives of every age and make: what is in them is found, whatever lies is refused and leaves nothing.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use proto::{
    containerd::types::{Platform, transfer::ImageExportStream},
    digest::Digest,
};
use serde_json::{Value, json};
use tar::{EntryType, Header};
use tonic::{Code, Status};

use crate::{
    archives::{Image, descriptor, gzip, header, layer, noise},
    harness::{Client, Supervisor, eventually, unpacking},
};

/// An archive entry by entry, in the order given; names may be anything.
#[derive(Clone, Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        let mut header: Header = header(kind, 0o644, data.len());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, "", data.as_ref())
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn pack(program: &str, bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect(program);
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    output.stdout
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn layers() -> [Vec<u8>; 2] {
    [layer(&[("etc/one", &noise(70_000)), ("etc/gone", b"g")]), layer(&[("etc/two", b"2"), ("etc/.wh.gone", b"")])]
}

/// The configuration of an image by its manifest.
async fn config_of(client: &Client, name: &str) -> Digest {
    let target = client.images().await.into_iter().find(|image| image.name == name).expect(name).target.unwrap();
    let manifest: Value = serde_json::from_slice(&client.blob(&target.digest).await).unwrap();
    manifest["config"]["digest"].as_str().unwrap().parse().unwrap()
}

async fn loaded(archive: Vec<u8>, name: &str) -> (Supervisor, Client, Digest) {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    client.import(archive, &unpacking()).await.0.unwrap();
    let config = config_of(&client, name).await;
    client.assert_sound().await;
    (supervisor, client, config)
}

fn seen(supervisor: &Supervisor) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for id in supervisor.names("snapshots/overlayfs") {
        for name in ["one", "two"] {
            if let Ok(bytes) = std::fs::read(supervisor.path(&format!("snapshots/overlayfs/{id}/fs/etc/{name}"))) {
                found.insert(name.to_owned(), bytes);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_as_a_whole_and_layer_by_layer() {
    let image = Image::new(&layers(), plain);
    for program in ["gzip", "zstd", "xz", "bzip2"] {
        let archive = pack(program, &image.docker_archive(&["app:1"]));
        let (supervisor, _, config) = loaded(archive, "docker.io/library/app:1").await;
        assert_eq!(config, Digest::of(&image.config), "{program}");
        assert_eq!(seen(&supervisor)["one"], noise(70_000), "{program}");
        let of_layers = Image::new(&layers(), |bytes| pack(program, bytes));
        let (supervisor, client, config) =
            loaded(of_layers.docker_archive(&["app:1"]), "docker.io/library/app:1").await;
        assert_eq!(config, Digest::of(&image.config), "{program}");
        assert_eq!(seen(&supervisor)["one"], noise(70_000), "{program}");
        // Who gets it from us must be able to read it: no compression that has no media type.
        let kept = client.blobs().await.contains(&Digest::of(&of_layers.layers[0]).to_string());
        assert_eq!(kept, matches!(program, "gzip" | "zstd"), "{program}");
    }
    let error = refused(b"LZIP\x01 and so on".to_vec()).await;
    assert!(error.message().contains("compression lzip is not supported"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_archives_of_every_age() {
    let image = Image::new(&layers(), plain);
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let manifest =
        |layers: [&str; 2]| json!([{"Config": config, "RepoTags": ["app:1", "app:2"], "Layers": layers}]).to_string();
    // 1.10 to 24: `manifest.json` first or last, `./` before names, layers behind symlinks, hard links and linked folders.
    let files = Tar::default().file("b/layer.tar", &image.layers[1]).file("./a/layer.tar", &image.layers[0]);
    let archives = [
        Tar::default()
            .file("manifest.json", manifest(["a/layer.tar", "b/layer.tar"]))
            .file(&config, &image.config)
            .entry(EntryType::Directory, "./a/", "", b"")
            .file("./b/layer.tar", &image.layers[1])
            .file("a/layer.tar", &image.layers[0]),
        files
            .clone()
            .symlink("c/layer.tar", "../a/layer.tar")
            .entry(EntryType::Link, "d/layer.tar", "b/layer.tar", b"")
            .symlink("e", "./d")
            .file(&format!("./{config}"), &image.config)
            .file("./manifest.json", manifest(["c/layer.tar", "e/layer.tar"])),
        // An entry that comes twice counts as it was last.
        Tar::default()
            .file("a/layer.tar", b"nothing of use")
            .file("repositories", "{}")
            .file("manifest.json", "[]")
            .file("manifest.json", manifest(["a/layer.tar", "b/layer.tar"]))
            .file(&config, &image.config)
            .file("b/layer.tar", &image.layers[1])
            .file("a/layer.tar", &image.layers[0]),
    ];
    for (number, archive) in archives.into_iter().enumerate() {
        let (_supervisor, client, found) = loaded(archive.end(), "docker.io/library/app:2").await;
        assert_eq!(found, Digest::of(&image.config), "{number}");
        assert_eq!(config_of(&client, "docker.io/library/app:1").await, found, "{number}");
        assert_eq!(client.snapshots().await.len(), 2, "{number}");
    }

    // 25 and later: an OCI layout, with `manifest.json` for names.
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
    let docker = json!([{
        "Config": blob(&image.config), "RepoTags": ["app:1"], "Layers": [blob(&image.layers[0]), blob(&image.layers[1])],
    }]);
    let mut both = Tar::default().file("index.json", json!({"schemaVersion": 2, "manifests": [entry]}).to_string());
    for bytes in image.layers.iter().chain([&image.config, &image.manifest]) {
        both = both.file(&blob(bytes), bytes);
    }
    let both = both.file("manifest.json", docker.to_string()).file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let (_supervisor, client, found) = loaded(both.end(), "docker.io/library/app:1").await;
    assert_eq!(found, Digest::of(&image.config));
    assert_eq!(client.images().await[0].target.clone().unwrap().digest, image.digest().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_docker_archives() {
    let [lower, upper] = layers();
    let below = json!({"id": "low", "created": "2015-01-01T00:00:00Z", "container_config": {"Cmd": ["/bin/sh"]}});
    let top = json!({
        "id": "top", "parent": "low", "created": "2015-02-01T00:00:00.5Z", "docker_version": "1.9.0",
        "author": "someone <a@b>", "config": {"Cmd": ["x"]}, "architecture": "amd64", "os": "linux", "Size": 5,
    });
    let archive = |repositories: &str| {
        Tar::default()
            .file("repositories", repositories)
            .file("top/VERSION", "1.0")
            .file("top/json", top.to_string())
            .file("top/layer.tar", gzip(&upper))
            .file("low/VERSION", "1.0")
            .file("low/layer.tar", &lower)
            .file("low/json", below.to_string())
            .end()
    };
    let (supervisor, client, found) = loaded(archive(r#"{"old/app":{"v1":"top"}}"#), "docker.io/old/app:v1").await;
    // As dockerd makes it: sorted, without what belongs to the old format, and with Go's escapes.
    let wanted = format!(
        concat!(
            r#"{{"architecture":"amd64","author":"someone \u003ca@b\u003e","config":{{"Cmd":["x"]}},"#,
            r#""created":"2015-02-01T00:00:00.5Z","docker_version":"1.9.0","#,
            r#""history":[{{"created":"2015-01-01T00:00:00Z","created_by":"/bin/sh"}},"#,
            r#"{{"created":"2015-02-01T00:00:00.5Z","author":"someone \u003ca@b\u003e"}}],"os":"linux","#,
            r#""rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#
        ),
        Digest::of(&lower),
        Digest::of(&upper)
    );
    assert_eq!(String::from_utf8(client.blob(&found.to_string()).await).unwrap(), wanted);
    assert_eq!(seen(&supervisor)["two"], b"2");
    let error = refused(archive(r#"{"old/app":{"v1":"other"}}"#)).await;
    assert!(error.message().contains("\"other/json\" is missing in it"), "{error:?}");
}

async fn refused(archive: Vec<u8>) -> Status {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let error = client.import(archive, &unpacking()).await.0.unwrap_err();
    assert!(!error.message().contains('\n'), "{error:?}");
    assert!(client.images().await.is_empty());
    eventually("leftovers collected", async || {
        supervisor.names("snapshots/overlayfs").is_empty()
            && supervisor.names("content/blobs/sha256").is_empty()
            && supervisor.names("content/ingest").is_empty()
    })
    .await;
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_that_lie() {
    let image = Image::new(&layers(), plain);
    let whole = image.docker_archive(&["app:1"]);
    let layout = image.oci_archive("io.containerd.image.name", "docker.io/library/app:1");
    let swap = |archive: &[u8], old: &[u8], new: &[u8]| {
        let at = archive.windows(old.len()).position(|window| window == old).unwrap();
        [&archive[..at], new, &archive[at + old.len()..]].concat()
    };
    let damaged = {
        let at = layout.windows(500).position(|window| window == &noise(70_000)[..500]).unwrap();
        let mut bytes = layout.clone();
        bytes[at] ^= 1;
        bytes
    };
    let other_layer = {
        let at = whole.windows(500).position(|window| window == &noise(70_000)[..500]).unwrap();
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let size = |n: usize| format!("\"size\":{n}");
    let lying_manifest = {
        let (old, new) = (image.layers[1].len(), image.layers[1].len() + 9);
        let manifest = swap(&image.manifest, size(old).as_bytes(), size(new).as_bytes());
        let lying = Image { config: image.config.clone(), layers: image.layers.clone(), manifest };
        lying.oci_archive("io.containerd.image.name", "docker.io/library/app:1")
    };
    for (archive, words) in [
        (whole[..whole.len() / 2].to_vec(), "cut short or damaged"),
        (pack("xz", &whole)[..40_000].to_vec(), "cut short or damaged"),
        (damaged, "is damaged: its bytes have the digest sha256:"),
        (other_layer, "the image's configuration says"),
        (swap(&whole, b"\"0/layer.tar\"", b"\"9/layer.tar\""), "\"9/layer.tar\" is missing in it"),
        (lying_manifest, "bytes long, the manifest says"),
        (
            Tar::default().file("../manifest.json", "[]").end(),
            "\"../manifest.json\" leads out of it; nothing was loaded",
        ),
        (Tar::default().file("/etc/passwd", "x").end(), "\"/etc/passwd\" leads out of it"),
        (Tar::default().file("manifest.json", "{").end(), "\"manifest.json\" is malformed"),
        (
            Tar::default().file("manifest.json", noise(4 << 20).repeat(2)).end(),
            "\"manifest.json\" in it is larger than",
        ),
        (
            Tar::default()
                .symlink("x/layer.tar", "../../../../../etc/passwd")
                .file("c.json", &image.config)
                .file("manifest.json", r#"[{"Config":"c.json","Layers":["x/layer.tar","x/layer.tar"]}]"#)
                .end(),
            "\"x/layer.tar\" is missing in it",
        ),
        ((0..70).fold(Tar::default(), |tar, n| tar.file(&format!("etc/{n}"), "x")).end(), "neither manifest.json"),
        (Vec::new(), "neither manifest.json"),
    ] {
        let error = refused(archive).await;
        assert!(error.message().contains(words), "{words}: {error:?}");
        assert!(matches!(error.code(), Code::InvalidArgument | Code::DataLoss), "{error:?}");
    }
}

/// An index of two platforms, and the images in it: amd64, arm64.
fn two_platforms() -> ([Image; 2], Vec<u8>) {
    let of = |architecture: &str| {
        let [lower, _] = layers();
        let image = Image::new(&[lower, layer(&[("arch", architecture.as_bytes())])], gzip);
        let config = String::from_utf8(image.config).unwrap().replace("amd64", architecture).into_bytes();
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
        Image { config, layers: image.layers, manifest: manifest.to_string().into_bytes() }
    };
    let images = [of("amd64"), of("arm64")];
    let entries: Vec<_> = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string().into_bytes();
    (images, index)
}

fn layout(images: &[&Image], index: &[u8], name: &str) -> Vec<u8> {
    let mut top = descriptor("application/vnd.oci.image.index.v1+json", index);
    top["annotations"] = json!({"io.containerd.image.name": name});
    let mut tar = Tar::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    for bytes in images.iter().flat_map(|image| image.layers.iter().chain([&image.config, &image.manifest])) {
        tar = tar.file(&blob(bytes), bytes);
    }
    tar.file(&blob(index), index).file("index.json", json!({"schemaVersion": 2, "manifests": [top]}).to_string()).end()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_platform_of_an_archive_is_kept_and_saved() {
    let ([amd, arm], index) = two_platforms();
    let name = "docker.io/library/multi:1";
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    client.import(layout(&[&amd, &arm], &index, name), &unpacking()).await.0.unwrap();
    let totals = client.assert_sound().await;
    assert_eq!((totals.blobs, totals.snapshots), (1 + 2 * 2 + 3, 2));
    assert_eq!(client.images().await[0].target.clone().unwrap().digest, Digest::of(&index).to_string());

    let tops = |archive: &[u8]| -> Vec<String> {
        let mut names = Vec::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().to_str() == Some("index.json") {
                let mut text = String::new();
                std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
                let index: Value = serde_json::from_str(&text).unwrap();
                names.extend(
                    index["manifests"].as_array().unwrap().iter().map(|m| m["digest"].as_str().unwrap().into()),
                );
            }
        }
        names
    };
    let platform = |architecture: &str| ImageExportStream {
        platforms: vec![Platform { os: "linux".into(), architecture: architecture.into(), variant: String::new() }],
        ..Default::default()
    };
    let all = ImageExportStream { all_platforms: true, ..Default::default() };
    let whole = client.export_of(&[name], all.clone()).await.unwrap();
    assert_eq!(tops(&whole), [Digest::of(&index).to_string()]);
    assert_eq!(tops(&client.export(&[name]).await.unwrap()), [amd.digest().to_string()]);
    let arm_only = client.export_of(&[name], platform("arm64")).await.unwrap();
    assert_eq!(tops(&arm_only), [arm.digest().to_string()]);
    let error = client.export_of(&[name], platform("s390x")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error:?}");
    // By id, which is the digest of a configuration or a manifest: without a name.
    for id in [Digest::of(&amd.config), Digest::of(&index)] {
        let archive = client.export(&[&id.to_string()]).await.unwrap();
        assert_eq!(tops(&archive), [amd.digest().to_string()]);
        assert!(!String::from_utf8_lossy(&archive).contains("multi"));
    }
    let unknown = Digest::of(b"unknown").to_string();
    assert_eq!(client.export(&[&unknown]).await.unwrap_err().code(), Code::NotFound);

    // All of it comes back the same; an archive of the other platform alone is unpacked, for want of a better one.
    client.remove_image(name).await.unwrap();
    eventually("all is gone", async || supervisor.names("content/blobs/sha256").is_empty()).await;
    client.import(whole, &unpacking()).await.0.unwrap();
    assert_eq!(client.assert_sound().await.blobs, 8);
    client.remove_image(name).await.unwrap();
    client.import(arm_only, &unpacking()).await.0.unwrap();
    assert_eq!(config_of(&client, name).await, Digest::of(&arm.config));
    assert_eq!(client.snapshots().await.len(), 2);
    // An index of which one platform came along is kept as it is, and saved as what is there.
    client.remove_image(name).await.unwrap();
    client.import(layout(&[&arm], &index, name), &unpacking()).await.0.unwrap();
    client.assert_sound().await;
    assert_eq!(tops(&client.export_of(&[name], all).await.unwrap()), [arm.digest().to_string()]);
    let (_, none) = two_platforms();
    let error = refused(layout(&[], &none, name)).await;
    assert!(error.message().contains("is missing in it"), "{error:?}");
}
