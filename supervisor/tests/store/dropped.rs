//! `[content] keep-layers = false`: layers go once they are unpacked, and are made again when somebody wants them.

use std::{collections::BTreeSet, fs};

use proto::{containerd::types::transfer::ImageExportStream, digest::Digest};
use serde_json::Value;
use tonic::Code;

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, eventually, unpacking},
    matrix::{oddities, peers::installed},
    registries::{DockerRegistry, Fake},
};

async fn dropping() -> (Supervisor, Client) {
    let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
    let root = dir.path().to_owned();
    fs::write(root.join("config.toml"), "[content]\nkeep-layers = false\n").unwrap();
    let supervisor = Supervisor::start_in(root, Some(dir));
    let client = supervisor.client().await;
    (supervisor, client)
}

async fn gone(client: &Client, layers: &[Vec<u8>]) {
    let layers: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    eventually("layers are dropped", async || {
        let blobs = client.blobs().await;
        layers.iter().all(|layer| !blobs.contains(layer))
    })
    .await;
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

fn two() -> [Vec<u8>; 2] {
    [layer(&[("one", &noise(300_000)), ("gone", b"x")]), layer(&[("two", &noise(40_000)), (".wh.gone", b"")])]
}

/// What an archive says: digests of manifest, configuration and layers of its one image.
fn contents(archive: &[u8]) -> (Digest, Digest, Vec<Digest>) {
    let mut files = std::collections::HashMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut bytes) = (entry.path().unwrap().display().to_string(), Vec::new());
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            assert_eq!(Digest::of(&bytes).hex(), hex);
        }
        files.insert(path, bytes);
    }
    let json = |path: &str| -> Value { serde_json::from_slice(&files[path]).unwrap() };
    let digest = |value: &Value| -> Digest { value["digest"].as_str().unwrap().parse().unwrap() };
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let manifest = digest(&json("index.json")["manifests"][0]);
    let document = json(&blob(&manifest));
    let layers: Vec<_> = document["layers"].as_array().unwrap().iter().map(digest).collect();
    assert!(layers.iter().all(|layer| files.contains_key(&blob(layer))));
    (manifest, digest(&document["config"]), layers)
}

#[tokio::test(flavor = "multi_thread")]
async fn uncompressed_layers_come_back_as_they_were() {
    let (supervisor, client) = dropping().await;
    let image = Image::new(&two(), plain);
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    let name = "docker.io/library/app:1";
    gone(&client, &image.layers).await;
    let totals = client.assert_sound().await;
    assert_eq!((totals.remakeable, totals.snapshots, totals.images), (2, 2, 1));
    // Manifest, configuration, two recipes: a small part of what the image is.
    assert!(totals.bytes < 10_000 && totals.blobs == 4, "{totals:?}");
    let target = client.images().await[0].target.clone().unwrap().digest;
    let (manifest, config, layers) = contents(&client.export(&[name]).await.unwrap());
    assert_eq!((manifest.to_string(), config), (target, Digest::of(&image.config)));
    assert_eq!(layers, image.layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
    // And go again; also what is loaded once more, or by its id, is the same.
    gone(&client, &image.layers).await;
    let by_id = client.export(&[&config.to_string()]).await.unwrap();
    client.import(by_id, &unpacking()).await.0.unwrap();
    gone(&client, &image.layers).await;
    assert_eq!(client.assert_sound().await.remakeable, 2);
    for image in client.images().await {
        client.remove_image(&image.name).await.unwrap();
    }
    eventually("nothing is left, recipes neither", async || {
        supervisor.names("content/blobs/sha256").is_empty() && supervisor.names("snapshots/overlayfs").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_that_is_ours_is_repeated_and_other_is_not() {
    if !installed(&["docker-registry"]) {
        return;
    }
    let registry = DockerRegistry::start();
    let name = format!("127.0.0.1:{}/app:1", registry.port);
    let (_supervisor, client) = dropping().await;
    let foreign = Image::new(&two(), gzip);
    client.import(foreign.oci_archive("io.containerd.image.name", &name), &unpacking()).await.0.unwrap();
    gone(&client, &foreign.layers).await;
    let (manifest, config, layers) = contents(&client.export(&[&name]).await.unwrap());
    assert!(manifest != foreign.digest() && config == Digest::of(&foreign.config));
    assert_eq!(layers, two().map(|layer| Digest::of(&layer)));
    client.assert_sound().await;
    // What others compressed is pushed as we compress it; from then on it is ours.
    client.push(&name).await.unwrap();
    client.remove_image(&name).await.unwrap();
    eventually("all is gone", async || client.blobs().await.is_empty()).await;
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    let target = client.images().await[0].target.clone().unwrap().digest;
    eventually("layers are dropped", async || client.blobs().await.len() == 4).await;
    let (manifest, config, layers) = contents(&client.export(&[&name]).await.unwrap());
    assert_eq!((manifest.to_string(), config), (target.clone(), Digest::of(&foreign.config)));
    assert!(layers.iter().all(|layer| !two().map(|layer| Digest::of(&layer)).contains(layer)));
    // The same bytes to another place: the same manifest.
    let other = format!("127.0.0.1:{}/other:1", registry.port);
    client.tag(&name, &other).await;
    eventually("layers are dropped", async || client.blobs().await.len() == 4).await;
    client.push(&other).await.unwrap();
    eventually("layers are dropped", async || client.blobs().await.len() == 4).await;
    client.remove_image(&name).await.unwrap();
    client.remove_image(&other).await.unwrap();
    client.pull(&other, None, &unpacking()).await.0.unwrap();
    assert_eq!(client.images().await[0].target.clone().unwrap().digest, target);
    client.assert_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_two_images_share() {
    let (supervisor, client) = dropping().await;
    let [lower, upper] = two();
    let one = Image::new(&[lower.clone(), upper], plain);
    let other = Image::new(&[lower.clone(), layer(&[("three", &noise(5000))])], plain);
    client.import(one.docker_archive(&["one:1"]), &unpacking()).await.0.unwrap();
    gone(&client, &one.layers).await;
    client.import(other.docker_archive(&["other:1"]), &unpacking()).await.0.unwrap();
    gone(&client, &other.layers).await;
    let (first, second) = ("docker.io/library/one:1", "docker.io/library/other:1");
    assert_eq!(client.assert_sound().await.remakeable, 3);
    client.remove_image(first).await.unwrap();
    assert_eq!(client.assert_sound().await.remakeable, 2);
    let (_, config, _) = contents(&client.export(&[second]).await.unwrap());
    assert_eq!(config, Digest::of(&other.config));
    gone(&client, &other.layers).await;

    // What the unpacked files lose, the layer has lost: it is told, by verify and by whoever wants the layer.
    let ids = supervisor.names("snapshots/overlayfs");
    let file = ids.iter().map(|id| supervisor.path(&format!("snapshots/overlayfs/{id}/fs/one"))).find(|at| at.exists());
    fs::write(file.unwrap(), vec![7; 300_000]).unwrap();
    let (objects, totals) = client.verify(&[]).await.unwrap();
    let faulty: Vec<_> = objects.into_iter().filter(|object| !object.problems.is_empty()).collect();
    assert_eq!((faulty.len(), totals.faulty, faulty[0].name.as_str()), (1, 1, second));
    let words = format!("layer {} was dropped after it was unpacked, and can't be made again", Digest::of(&lower));
    assert!(faulty[0].problems[0].starts_with(&words), "{faulty:?}");
    let error = client.export(&[second]).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss);
    assert!(error.message().starts_with(&words) && error.message().ends_with("pull the image again"), "{error:?}");
    assert!(!error.message().contains('\n'));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_a_client_makes_on_another_has_its_layers() {
    let (supervisor, client) = dropping().await;
    let [lower, upper] = two();
    let base = Image::new(&[lower, upper], plain);
    client.import(base.docker_archive(&["base:1"]), &unpacking()).await.0.unwrap();
    gone(&client, &base.layers).await;
    // As a commit does it: a layer, a configuration and a manifest more, and a name.
    let [lower, upper] = two();
    let new = Image::new(&[lower, upper, layer(&[("new", b"n")])], plain);
    let parts = |bytes: &[u8]| Digest::of(bytes).to_string();
    // Under a lease: whatever no image names yet is a collector's.
    client.lease("commit").await;
    client.write(&new.layers[2], &[], Some("commit")).await;
    client.write(&new.config, &[], Some("commit")).await;
    let layers = new.layers.iter().enumerate().map(|(n, layer)| (format!("l.{n}"), parts(layer)));
    let labels: Vec<_> = layers.chain([("config".to_owned(), parts(&new.config))]).collect();
    client.write(&new.manifest, &labels, Some("commit")).await;
    let manifest = descriptor("application/vnd.oci.image.manifest.v1+json", &new.manifest);
    client.name_image("docker.io/library/new:1", &manifest).await;
    client.assert_sound().await;
    // A name may also stand for something that is no image at all.
    client.write(b"no manifest", &[], Some("commit")).await;
    client.name_image("thing", &descriptor("text/plain", b"no manifest")).await;
    client.remove_image("thing").await.unwrap();
    // Its base may go.
    client.remove_image("docker.io/library/base:1").await.unwrap();
    let (manifest, config, layers) = contents(&client.export(&["docker.io/library/new:1"]).await.unwrap());
    assert_eq!((manifest, config), (new.digest(), Digest::of(&new.config)));
    assert_eq!(layers, new.layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>());
    drop(supervisor);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_is_not_fetched_again() {
    let (supervisor, client) = dropping().await;
    let image = Image::new(&two(), gzip);
    let (port, fake) = Fake::of(&image).serve();
    let name = format!("127.0.0.1:{port}/app:1");
    let fetched = || {
        let seen = std::mem::take(&mut fake.lock().unwrap().seen);
        let of_layers = image.layers.iter().map(|layer| format!("/blobs/{}", Digest::of(layer)));
        of_layers.filter(|path| seen.iter().any(|request| request.contains(path))).count()
    };
    for wanted in [2, 0, 0] {
        client.pull(&name, None, &unpacking()).await.0.unwrap();
        assert_eq!(fetched(), wanted);
        gone(&client, &image.layers).await;
        assert_eq!(client.assert_sound().await.remakeable, 2);
    }
    // Another image with the same layers, here under another configuration.
    let [lower, upper] = two();
    let more = Image::new(&[lower, upper, layer(&[("new", b"n")])], gzip);
    {
        let mut fake = fake.lock().unwrap();
        fake.manifests.insert("2".into(), more.manifest.clone());
        for blob in more.layers.iter().chain([&more.config]) {
            fake.blobs.insert(Digest::of(blob), blob.clone());
        }
    }
    let other = format!("127.0.0.1:{port}/app:2");
    client.pull(&other, None, &unpacking()).await.0.unwrap();
    assert_eq!(fetched(), 0, "only its own layer is fetched");
    gone(&client, &more.layers).await;
    client.remove_image(&name).await.unwrap();
    assert_eq!(client.assert_sound().await.remakeable, 3);
    contents(&client.export(&[&other]).await.unwrap());
    // Who has nothing to make it of fetches it.
    client.remove_image(&other).await.unwrap();
    eventually("all is gone", async || supervisor.names("content/blobs/sha256").is_empty()).await;
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    assert_eq!(fetched(), 2);
    // And who wants it without unpacking gets the bytes.
    gone(&client, &image.layers).await;
    client.pull(&name, None, &Default::default()).await.0.unwrap();
    assert_eq!(fetched(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_odd_comes_back_byte_for_byte() {
    if !installed(&["setcap"]) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-dropped-").tempdir().unwrap();
    let ([lower, upper], _) = oddities(dir.path());
    let image = Image::new(&[fs::read(lower).unwrap(), fs::read(upper).unwrap()], plain);
    let (_supervisor, client) = dropping().await;
    client.import(image.docker_archive(&["odd:1"]), &unpacking()).await.0.unwrap();
    gone(&client, &image.layers).await;
    assert_eq!(client.assert_sound().await.remakeable, 2);
    let archive = client.export_of(&["docker.io/library/odd:1"], ImageExportStream::default()).await.unwrap();
    let (_, config, layers) = contents(&archive);
    assert_eq!(config, Digest::of(&image.config));
    let all: BTreeSet<_> = image.layers.iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(layers.into_iter().collect::<BTreeSet<_>>(), all);
}

/// What was not dropped stays, what was dropped can be made again: whenever it is cut off.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point() {
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/recipes");
    let points = proto::fault::points(&sources).unwrap();
    assert_eq!(points.len(), 3, "{points:?}");
    let image = Image::new(&two(), plain);
    for point in points {
        let (mut supervisor, _) = dropping().await;
        supervisor.kill();
        let variables = supervisor.root.join("env");
        fs::write(&variables, format!("BERTH_FAULT={point}\n")).unwrap();
        supervisor.start_again();
        // It dies behind the transfer, of which the end may or may not be heard.
        let _ = supervisor.client().await.import(image.docker_archive(&["app:1"]), &unpacking()).await;
        let socket = supervisor.socket();
        eventually("the fault strikes", async || std::os::unix::net::UnixStream::connect(&socket).is_err()).await;
        supervisor.kill();
        fs::remove_file(&variables).unwrap();
        supervisor.start_again();
        let client = supervisor.client().await;
        client.assert_sound().await;
        let (_, config, _) = contents(&client.export(&["docker.io/library/app:1"]).await.unwrap());
        assert_eq!(config, Digest::of(&image.config), "{point}");
        gone(&client, &image.layers).await;
        assert_eq!(client.assert_sound().await.remakeable, 2, "{point}");
        client.remove_image("docker.io/library/app:1").await.unwrap();
        eventually("nothing is left", async || {
            supervisor.names("content/blobs/sha256").is_empty() && supervisor.names("content/ingest").is_empty()
        })
        .await;
    }
}
