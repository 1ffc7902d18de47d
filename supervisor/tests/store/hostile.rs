//! Attacks by tar on a real supervisor, by load and by pull: links that lead out, names that do, things that change their
//! kind under way (CVE-2026-17106 and its ancestors); bombs (CVE-2017-14992); documents that are two things at once
//! (CVE-2021-41190). What lies beside the layers stays as it is, and memory stays small.

use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use proto::digest::Digest;
use serde_json::json;
use tar::{EntryType, Header};

use crate::{
    archives::{Image, descriptor, gzip, header, layer},
    harness::{Client, Supervisor, eventually, unpacking},
    registries::Fake,
};

/// A layer entry by entry; names may be anything.
#[derive(Default)]
struct Layer(Vec<u8>);

impl Layer {
    fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        let mut header: Header = header(kind, mode, data.len());
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str) -> Self {
        self.add(EntryType::Regular, name, "", 0o666, b"dead")
    }

    fn folder(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, "", 0o777, b"")
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Symlink, name, to, 0o777, b"")
    }

    fn hard_link(self, name: &str, to: &str) -> Self {
        self.add(EntryType::Link, name, to, 0o666, b"")
    }

    fn node(self, name: &str) -> Self {
        self.add(EntryType::Fifo, name, "", 0o666, b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A file and a folder of the host, beside the supervisor's own.
struct Canary(PathBuf);

impl Canary {
    fn new(folder: &Path) -> Self {
        let canary = Self(folder.join("canary"));
        fs::create_dir_all(canary.0.join("folder")).unwrap();
        fs::write(canary.0.join("file"), "alive").unwrap();
        fs::set_permissions(canary.0.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        canary
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    #[track_caller]
    fn assert_alive(&self, attack: usize) {
        let stat = fs::symlink_metadata(self.0.join("file")).unwrap();
        assert_eq!(fs::read(self.0.join("file")).unwrap(), b"alive", "{attack}");
        assert_eq!((stat.mode() & 0o7777, stat.nlink(), stat.uid()), (0o640, 1, 0), "{attack}");
        let names = |at: &Path| fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(&self.0).len(), 2, "{attack}: {:?}", names(&self.0));
        assert!(names(&self.0.join("folder")).is_empty(), "{attack}");
        assert_eq!(fs::metadata(self.0.join("folder")).unwrap().mode() & 0o7777, 0o755, "{attack}");
    }
}

fn attacks(canary: &Canary, near: &str) -> Vec<Vec<u8>> {
    let new = Layer::default;
    let (file, folder, all) = (canary.at("file"), canary.at("folder"), canary.at(""));
    let (file, folder, all) = (file.as_str(), folder.as_str(), all.trim_end_matches('/'));
    let layers = [
        // A symlink, and something through it.
        new().symlink("x", file).file("x"),
        new().symlink("x", all).file("x/file"),
        new().symlink("x", all).folder("x/folder"),
        new().symlink("x", folder).folder("x"),
        new().symlink("x", folder).file("x/new"),
        new().symlink("x", folder).node("x/new"),
        new().symlink("x", folder).symlink("x/new", "/"),
        new().symlink("x", folder).hard_link("x/new", "x"),
        new().symlink("x", all).file("x/.wh.file"),
        new().symlink("x", all).file("x/.wh..wh..opq"),
        new().symlink("x", "y").symlink("y", all).file("x/file"),
        new().symlink("x", all).file("x/../file"),
        // A hard link to outside, or to a symlink that leads there.
        new().hard_link("x", file).file("x"),
        new().hard_link("x", &format!("../../../../../../../../../../..{file}")).file("x"),
        new().symlink("x", file).hard_link("y", "x").file("y"),
        new().symlink("x", all).hard_link("y", "x/file").file("y"),
        new().hard_link("x", near).file("x"),
        // Names.
        new().file(file),
        new().file(&format!("../../../../../../../../../../..{file}")),
        new().file(near),
        new().folder(near.trim_end_matches("/canary")),
        new().file(".wh...").file("a/.wh..").file(".wh."),
        new().symlink("./", all).file("file"),
        // What is a folder at first is a symlink later, and the other way round.
        new().folder("x").symlink("x", all).file("x/file").folder("x/folder"),
        new().folder("x").file("x/file").symlink("x", all).file("x/file").folder("x"),
        new().symlink("x", all).folder("x").file("x/file").symlink("x", folder).file("x/new"),
        // The layer below has the symlink.
        new().file("below/file").folder("below/folder").file("below/.wh.file"),
        new().hard_link("y", "below/file").file("y"),
        // Of the process that unpacks.
        new().symlink("x", "/proc/self/root").file(&format!("x{file}")),
        new().symlink("x", "/proc/self/cwd").file("x/canary"),
    ];
    layers.into_iter().map(Layer::end).collect()
}

async fn assert_well(supervisor: &Supervisor, client: &Client) {
    client.assert_sound().await;
    for image in client.images().await {
        client.remove_image(&image.name).await.unwrap();
    }
    eventually("leftovers are collected", async || {
        supervisor.names("snapshots/overlayfs").iter().all(|name| name == "canary")
            && supervisor.names("content/blobs/sha256").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_a_layer() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let canary = Canary::new(&supervisor.root);
    // One where short names lead: beside the folders of the layers.
    let near = supervisor.path("snapshots/overlayfs/canary");
    fs::write(&near, "alive").unwrap();
    let below = Layer::default().symlink("below", canary.at("").trim_end_matches('/')).file("ordinary").end();
    let mut unpacked = 0;
    for (number, attack) in attacks(&canary, "../../canary").into_iter().enumerate() {
        let image = Image::new(&[below.clone(), attack], gzip);
        let by_load = client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0;
        let (port, _) = Fake::of(&image).serve();
        let by_pull = client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0;
        assert_eq!(by_load.is_ok(), by_pull.is_ok(), "{number}: {by_load:?} {by_pull:?}");
        for refused in [by_load, by_pull].into_iter().filter_map(Result::err) {
            assert!(!refused.message().contains('\n') && refused.message().len() < 1000, "{number}: {refused:?}");
        }
        canary.assert_alive(number);
        assert_eq!(fs::read(&near).unwrap(), b"alive", "{number}");
        assert_eq!(fs::metadata(&near).unwrap().nlink(), 1, "{number}");
        unpacked += client.images().await.len();
        assert_well(&supervisor, &client).await;
    }
    // Most are good layers, as they stay inside; an error for all would show nothing.
    assert!(unpacked > 20, "{unpacked}");
    assert!(supervisor.root.join("data").exists() && Command::new("true").status().unwrap().success());
}

fn peak(supervisor: &Supervisor) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", supervisor.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// `count` zeros behind `bytes`, through a compressor.
fn inflated(bytes: &[u8], count: u64, program: &[&str]) -> Vec<u8> {
    let mut child =
        Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || {
        stdin.write_all(&bytes).unwrap();
        std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), &mut stdin).unwrap();
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.stdout
}

fn sized(kind: EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = header(kind, 0o644, 0);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_take_little_memory() {
    let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
    let root = dir.path().to_owned();
    // Recipes hold what lies between files, too.
    fs::write(root.join("config.toml"), "[content]\nkeep-layers = false\n").unwrap();
    let supervisor = Supervisor::start_in(root, Some(dir));
    let client = supervisor.client().await;
    let small = Image::new(&[layer(&[("a", b"1")])], gzip);
    client.import(small.docker_archive(&["small:1"]), &unpacking()).await.0.unwrap();
    let before = peak(&supervisor);
    // Far more than what the supervisor may take.
    let much = 128_u64 << 20;
    let zip = ["gzip", "-1", "-c"];
    let nest = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let archive = |name: &str, data: &[u8]| Layer::default().add(EntryType::Regular, name, "", 0o644, data).end();
    let image = |layers: &[Vec<u8>]| {
        let diff_ids: Vec<_> = layers.iter().map(|_| Digest::of(b"whatever").to_string()).collect();
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = config.to_string().into_bytes();
        let typed = |layer: &Vec<u8>| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer);
        let manifest = json!({
            "schemaVersion": 2, "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers.iter().map(typed).collect::<Vec<_>>(),
        });
        Image { config, layers: layers.to_vec(), manifest: manifest.to_string().into_bytes() }
    };
    let of_layer = |layer: Vec<u8>| image(&[layer]).docker_archive(&["bomb:1"]);
    let bombs = [
        // A lot between headers, at the end, in a header, as a name, as attributes.
        of_layer(inflated(&sized(EntryType::Directory, "d", much), much + 1024, &zip)),
        of_layer(inflated(&[0; 1024], much, &zip)),
        of_layer(inflated(&sized(EntryType::XHeader, "x", much), much, &zip)),
        of_layer(inflated(&sized(EntryType::XGlobalHeader, "x", much), much, &zip)),
        of_layer(inflated(&sized(EntryType::GNULongName, "x", much), much, &zip)),
        of_layer(inflated(&sized(EntryType::GNULongLink, "x", much), much, &zip)),
        // A window that the reader should make room for.
        of_layer(inflated(&[0; 1024], 8 << 20, &["zstd", "-q", "--long=31", "-c"])),
        // The same in the archive itself.
        inflated(&sized(EntryType::Directory, "d", much), much + 1024, &zip),
        inflated(&sized(EntryType::Regular, "manifest.json", much), much + 1024, &zip),
        inflated(&sized(EntryType::Regular, "layer/json", much), much + 1024, &zip),
        inflated(&sized(EntryType::GNULongName, "x", much), much, &zip),
        // Documents of many levels, and many entries.
        archive("manifest.json", nest(1 << 20).as_bytes()),
        archive("index.json", format!("{{\"manifests\":{}}}", nest(1 << 20)).as_bytes()),
        gzip(&sized(EntryType::Symlink, "link", 0).repeat(150_000)),
    ];
    for (number, bomb) in bombs.into_iter().enumerate() {
        let error = client.import(bomb, &unpacking()).await.0.unwrap_err();
        assert!(!error.message().contains('\n') && error.message().len() < 600, "{number}: {error:?}");
        let now = peak(&supervisor);
        assert!(now < before + (40 << 10), "{number}: {before} kB, then {now} kB ({})", error.message());
    }
    // A layer of its right name that is mostly nothing is a layer: its recipe is small, and so is the work with it.
    let zeros = vec![0; 32 << 20];
    let honest = Image::new(&[[layer(&[("a", b"1")]), zeros].concat()], gzip);
    client.import(honest.docker_archive(&["zeros:1"]), &unpacking()).await.0.unwrap();
    let blob = Digest::of(&honest.layers[0]).to_string();
    eventually("the layer is dropped", async || !client.blobs().await.contains(&blob)).await;
    assert_eq!(client.assert_sound().await.remakeable, 2);
    let now = peak(&supervisor);
    assert!(now < before + (40 << 10), "{before} kB, then {now} kB");
    eprintln!("peak: {before} kB before, {now} kB after all");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_are_two_things_at_once_in_an_archive() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")])], gzip);
    let part = |bytes: &[u8]| descriptor("application/vnd.oci.image.manifest.v1+json", bytes);
    let both = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image.config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &image.layers[0])],
        "manifests": [part(&image.manifest)],
    });
    let lying = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image.config), "layers": [],
    });
    for (document, words) in [(both, "both a manifest and an index"), (lying, "claims to be")] {
        let other = Image { manifest: document.to_string().into_bytes(), ..Image::new(&[layer(&[("a", b"1")])], gzip) };
        let archive = other.oci_archive("io.containerd.image.name", "docker.io/library/both:1");
        let error = client.import(archive, &unpacking()).await.0.unwrap_err();
        assert!(error.message().contains(words), "{words}: {error:?}");
        assert_well(&supervisor, &client).await;
    }
}
