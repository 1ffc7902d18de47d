//! Pushes: to a real registry behind a proxy that counts and cuts, read back by skopeo.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
};

use proto::{containerd::types::transfer::Progress, digest::Digest};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Client, Supervisor, unpacking},
    registries::{DockerRegistry, Fake},
    weather::{Act, Sky, rule, under},
};

const CONFIG: &str = "[registry]\nsilence = \"5s\"\nconfig-path = []\n";

pub(crate) fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Puts an image into a registry without our help.
pub(crate) fn fill(image: &Image, reference: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    std::fs::write(&file, image.oci_archive("org.opencontainers.image.ref.name", "x")).unwrap();
    let source = format!("oci-archive:{}:x", file.display());
    run("skopeo", &["copy", "--dest-tls-verify=false", &source, &format!("docker://{reference}")]);
}

fn events<'a>(told: &'a [Progress], name: &str) -> Vec<&'a str> {
    told.iter().filter(|p| p.name == name).map(|p| p.event.as_str()).collect()
}

// What skopeo finds under a name: the manifest, and the files of the image.
fn read_back(reference: &str, into: &Path) -> Value {
    run(
        "skopeo",
        &["copy", "--src-tls-verify=false", &format!("docker://{reference}"), &format!("dir:{}", into.display())],
    );
    serde_json::from_slice(&std::fs::read(into.join("manifest.json")).unwrap()).unwrap()
}

async fn imported(client: &Client, image: &Image, name: &str) {
    let archive = image.oci_archive("io.containerd.image.name", name);
    client.import(archive, &unpacking()).await.0.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_registry_lacks() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let image = Image::new(&[layer(&[("a", &noise(3 << 20))]), layer(&[("b", b"2")])], gzip);
    imported(&client, &image, "docker.io/library/mine:1").await;
    let (port, sky) = under(registry.port, Sky::default());
    let name = format!("127.0.0.1:{port}/team/app:1");
    let (done, told) = client.push_as("docker.io/library/mine:1", &name, None).await;
    done.unwrap();
    let big = Digest::of(&image.layers[0]).to_string();
    let seen = events(&told, &big);
    assert!(seen[0] == "waiting" && seen.contains(&"uploading") && seen.last() == Some(&"complete"), "{seen:?}");
    assert_eq!((told.last().unwrap().event.as_str(), told.last().unwrap().name.as_str()), ("pushed", name.as_str()));
    assert_eq!(told.last().unwrap().desc.as_ref().unwrap().digest, image.digest().to_string());
    let dir = tempfile::tempdir().unwrap();
    read_back(&name, dir.path());
    assert!(std::fs::read(dir.path().join("manifest.json")).unwrap() == image.manifest);
    assert_eq!(sky.lock().unwrap().count("POST uploads"), 3, "{:?}", sky.lock().unwrap().seen);

    // Again: not one upload is begun.
    sky.lock().unwrap().seen.clear();
    let (done, told) = client.push_as("docker.io/library/mine:1", &name, None).await;
    done.unwrap();
    assert_eq!(events(&told, &big), ["waiting", "already exists"]);
    let count = |words: &str| sky.lock().unwrap().count(words);
    assert_eq!((count("POST"), count("PATCH"), count("PUT blobs"), count("PUT manifests")), (0, 0, 0, 1));

    // Elsewhere in the registry: nothing is sent.
    sky.lock().unwrap().seen.clear();
    let (done, told) = client.push_as("docker.io/library/mine:1", &format!("127.0.0.1:{port}/other:2"), None).await;
    done.unwrap();
    let mounted = told.iter().find(|p| p.name == big && p.event == "mounted").unwrap();
    assert_eq!(mounted.parents, ["team/app"]);
    assert_eq!((count("POST mount= from=team%2Fapp"), count("PATCH"), count("PUT blobs")), (3, 0, 0));
    read_back(&format!("127.0.0.1:{port}/other:2"), tempfile::tempdir().unwrap().path());

    // What isn't there at all.
    let none = client.push_as("docker.io/library/none:1", &name, None).await.0.unwrap_err();
    assert_eq!(none.code(), Code::NotFound, "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uncompressed_layers_are_compressed_once() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let text: Vec<u8> = (0..5_000_000_u32).map(|i| (i.wrapping_mul(i) >> 9) as u8 % 29).collect();
    let layers = [layer(&[("a", &text)]), layer(&[("b", b"2")])];
    let image = Image::new(&layers, <[u8]>::to_vec);
    client.import(image.docker_archive(&["mine:1"]), &unpacking()).await.0.unwrap();
    let before = client.images().await[0].target.clone().unwrap().digest;
    let (port, sky) = under(registry.port, Sky::default());
    let name = format!("127.0.0.1:{port}/app:1");
    let (done, told) = client.push_as("docker.io/library/mine:1", &name, None).await;
    done.unwrap();
    let big = Digest::of(&layers[0]).to_string();
    let seen = events(&told, &big);
    assert!(["compressing", "uploading", "complete"].iter().all(|event| seen.contains(event)), "{seen:?}");
    let dir = tempfile::tempdir().unwrap();
    let manifest = read_back(&name, dir.path());
    assert_eq!(manifest["config"]["digest"], Digest::of(&image.config).to_string());
    for (sent, layer) in manifest["layers"].as_array().unwrap().iter().zip(&layers) {
        assert!(sent["mediaType"].as_str().unwrap().ends_with("gzip"), "{manifest}");
        let file = dir.path().join(sent["digest"].as_str().unwrap().trim_start_matches("sha256:"));
        assert!(run("sh", &["-c", &format!("gzip -dc < {}", file.display())]) == *layer);
        assert!(std::fs::metadata(&file).unwrap().len() < layer.len() as u64);
    }
    // What was pushed is what is kept under the name.
    let after = client.images().await[0].target.clone().unwrap().digest;
    let pushed = Digest::of(&std::fs::read(dir.path().join("manifest.json")).unwrap()).to_string();
    assert!(after == pushed && after != before);
    sky.lock().unwrap().seen.clear();
    let (done, told) = client.push_as("docker.io/library/mine:1", &format!("127.0.0.1:{port}/app:2"), None).await;
    done.unwrap();
    assert!(told.iter().all(|p| p.event != "compressing"), "{told:?}");
    assert_eq!(sky.lock().unwrap().count("POST"), 0);
    // And it is as good as before.
    client.export(&["docker.io/library/mine:1"]).await.unwrap();
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    assert_eq!(client.snapshots().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_weather_for_uploads() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", &noise(3 << 20))]), layer(&[("b", b"2")])], gzip);
    imported(&client, &image, "docker.io/library/mine:1").await;
    for (name, rules) in [
        ("cut", vec![rule("PATCH", 1, Act::CutRequest(1_000_000))]),
        ("cut often", vec![rule("PATCH", 2, Act::CutRequest(0)), rule("PUT", 2, Act::CutRequest(0))]),
        ("answers lost", vec![rule("PATCH", 1, Act::Cut(0)), rule("PUT blobs", 1, Act::Status("502 x", ""))]),
        (
            "no answer",
            vec![rule("HEAD", 1, Act::Stall(0)), rule("POST", 1, Act::Status("503 x", "Retry-After: 1\r\n"))],
        ),
        (
            "uploads forgotten",
            vec![rule("PATCH", 1, Act::Status("404 x", "")), rule("PUT manifests", 1, Act::Status("500 x", ""))],
        ),
        ("rate limit", vec![rule("POST", 1, Act::Status("429 x", "Retry-After: 1\r\n"))]),
    ] {
        let registry = DockerRegistry::start();
        let (port, sky) = under(registry.port, Sky { rules, ..Sky::default() });
        let reference = format!("127.0.0.1:{port}/app:1");
        let (done, _) = client.push_as("docker.io/library/mine:1", &reference, None).await;
        done.unwrap_or_else(|error| panic!("{name}: {error:?} {:?}", sky.lock().unwrap().seen));
        read_back(&reference, tempfile::tempdir().unwrap().path());
    }
    // Nothing is named before all is there.
    let registry = DockerRegistry::start();
    let rules = vec![rule("PATCH", 99, Act::Status("500 x", ""))];
    let (port, sky) = under(registry.port, Sky { rules, ..Sky::default() });
    let error =
        client.push_as("docker.io/library/mine:1", &format!("127.0.0.1:{port}/app:1"), None).await.0.unwrap_err();
    assert!(error.code() == Code::Unavailable && error.message().contains("answered 500"), "{error:?}");
    assert_eq!(sky.lock().unwrap().count("PUT manifests"), 0);
}

/// A registry that remembers half an upload.
#[derive(Default)]
struct Keeper {
    cuts: u32,
    received: usize,
    upload: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    ranges: Vec<String>,
}

fn keep(mut stream: TcpStream, keeper: &Mutex<Keeper>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |name: &str| {
        let found = head.lines().filter_map(|line| line.split_once(':')).find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let length: usize = header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut keeper = keeper.lock().unwrap();
    let mut reply = |status: &str, headers: String| {
        let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n");
        let _ = stream.write_all(text.as_bytes());
    };
    let place = |keeper: &Keeper| {
        format!("Location: /up?at={}\r\nRange: 0-{}\r\n", keeper.upload.len(), keeper.upload.len().max(1) - 1)
    };
    match (method, path) {
        ("POST", _) => {
            keeper.upload.clear();
            reply("202 Accepted", place(&keeper));
        }
        ("GET", _) => reply("204 No Content", place(&keeper)),
        ("PATCH", _) => {
            keeper.ranges.extend(header("content-range"));
            let mut body = vec![0; if keeper.cuts > 0 { length / 2 } else { length }];
            stream.read_exact(&mut body).unwrap();
            keeper.received += body.len();
            keeper.upload.extend_from_slice(&body);
            if keeper.cuts > 0 {
                keeper.cuts -= 1;
                return; // the connection ends
            }
            let place = place(&keeper);
            let text = format!("HTTP/1.1 202 x\r\nConnection: close\r\nContent-Length: 0\r\n{place}\r\n");
            let _ = stream.write_all(text.as_bytes());
        }
        ("PUT", path) if path.contains("digest=") => {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            keeper.upload.extend_from_slice(&body);
            let digest = Digest::of(&keeper.upload).to_string();
            let right = path.ends_with(&digest.replace(':', "%3A"));
            let upload = std::mem::take(&mut keeper.upload);
            keeper.blobs.insert(digest, upload);
            let status = if right { "201 Created" } else { "400 Bad" };
            let _ = stream
                .write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        ("PUT", _) => {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let _ = stream.write_all(b"HTTP/1.1 201 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        }
        _ => reply("404 Not Found", String::new()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_upload_goes_on_where_it_was() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", &noise(3 << 20))])], gzip);
    imported(&client, &image, "docker.io/library/mine:1").await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let keeper = Arc::new(Mutex::new(Keeper { cuts: 2, ..Keeper::default() }));
    let shared = keeper.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            keep(stream, &shared);
        }
    });
    client.push_as("docker.io/library/mine:1", &format!("127.0.0.1:{port}/app:1"), None).await.0.unwrap();
    let keeper = keeper.lock().unwrap();
    let big = &image.layers[0];
    assert!(keeper.blobs[&Digest::of(big).to_string()] == *big);
    assert_eq!((keeper.received, keeper.ranges.len()), (big.len(), 2), "sent again: {:?}", keeper.ranges);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_platforms_what_is_here() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let images: Vec<Image> =
        ["amd64", "s390x"].iter().map(|name| Image::new(&[layer(&[(name, name.as_bytes())])], gzip)).collect();
    let entry = |image: &Image, architecture: &str| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let manifests = [entry(&images[0], "amd64"), entry(&images[1], "s390x")];
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let index = index.to_string().into_bytes();
    let mut fake = Fake::of(&images[0]);
    fake.manifests.insert("multi".into(), index.clone());
    for image in &images {
        fake.manifests.insert(image.digest().to_string(), image.manifest.clone());
        for blob in image.layers.iter().chain([&image.config]) {
            fake.blobs.insert(Digest::of(blob), blob.clone());
        }
    }
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app:multi");
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    let target = format!("127.0.0.1:{}/app:1", registry.port);
    let (done, told) = client.push_as(&name, &target, None).await;
    done.unwrap();
    let partial = told.iter().find(|p| p.event == "partial").unwrap();
    assert_eq!(partial.desc.as_ref().unwrap().digest, images[0].digest().to_string());
    let dir = tempfile::tempdir().unwrap();
    read_back(&target, dir.path());
    assert!(std::fs::read(dir.path().join("manifest.json")).unwrap() == images[0].manifest);
    // With the other one here as well, all of it goes.
    let mut other = unpacking();
    other.unpacks.clear();
    other.platforms = vec![proto::containerd::types::Platform {
        os: "linux".into(),
        architecture: "s390x".into(),
        variant: String::new(),
    }];
    client.pull(&name, None, &other).await.0.unwrap();
    let (done, told) = client.push_as(&name, &target, None).await;
    done.unwrap();
    assert!(told.iter().all(|p| p.event != "partial"));
    let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{target}")]);
    assert!(raw == index);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pushes_send_each_blob_once() {
    let supervisor = Supervisor::start_with(CONFIG);
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let layers: Vec<_> = (0..6_u8).map(|i| layer(&[("a", &[i; 70_000][..])])).collect();
    let image = Image::new(&layers, <[u8]>::to_vec);
    client.import(image.docker_archive(&["mine:1", "mine:2"]), &unpacking()).await.0.unwrap();
    let (port, sky) = under(registry.port, Sky::default());
    let other = supervisor.client().await;
    let names = [format!("127.0.0.1:{port}/app:1"), format!("127.0.0.1:{port}/app:2")];
    // Streams have names of their own per push in a real client.
    let (one, two) = tokio::join!(
        client.push_silently("docker.io/library/mine:1", &names[0]),
        other.push_silently("docker.io/library/mine:2", &names[1]),
    );
    one.unwrap();
    two.unwrap();
    assert_eq!(sky.lock().unwrap().count("POST uploads"), 7, "{:?}", sky.lock().unwrap().seen);
    for name in names {
        read_back(&name, tempfile::tempdir().unwrap().path());
    }
}

/// Whatever a killed push left, the next one brings the image, and the store is sound.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_point() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/transfer");
    let points = proto::fault::points(&sources).unwrap();
    let sent = proto::fault::points(&sources.with_file_name("registry")).unwrap();
    let points: Vec<_> = points.into_iter().chain(sent).filter(|p| p.starts_with("supervisor.push.")).collect();
    assert!(points.len() >= 7, "{points:?}");
    let image = Image::new(&[layer(&[("a", &noise(2 << 20))]), layer(&[("b", b"2")])], <[u8]>::to_vec);
    let registry = DockerRegistry::start();
    for (index, point) in points.iter().enumerate() {
        let mut supervisor = Supervisor::start_with(CONFIG);
        let archive = image.docker_archive(&["mine:1"]);
        supervisor.client().await.import(archive, &unpacking()).await.0.unwrap();
        supervisor.kill();
        let variables = supervisor.root.join("env");
        std::fs::write(&variables, format!("BERTH_FAULT={point}\n")).unwrap();
        supervisor.start_again();
        // A repository of its own: one that has everything would not be sent anything.
        let name = format!("127.0.0.1:{}/app{index}:1", registry.port);
        let client = supervisor.client().await;
        client.push_silently("docker.io/library/mine:1", &name).await.expect_err(point);
        supervisor.kill();
        std::fs::remove_file(&variables).unwrap();
        supervisor.start_again();
        let client = supervisor.client().await;
        client.push_silently("docker.io/library/mine:1", &name).await.unwrap_or_else(|e| panic!("{point}: {e:?}"));
        let manifest = read_back(&name, tempfile::tempdir().unwrap().path());
        assert_eq!(manifest["config"]["digest"], Digest::of(&image.config).to_string(), "{point}");
        client.export(&["docker.io/library/mine:1"]).await.unwrap();
        assert!(supervisor.names("content/ingest").is_empty(), "{point}: half a blob is left");
        supervisor.kill();
        let (is_sound, said) = supervisor.check(&[]);
        assert!(is_sound, "{point}: {said}");
    }
}
