//! Images made by buildah, docker, skopeo and umoci, in every format, in by every way and out by every way: the same ids,
//! and the same file trees as the peer's own unpacking.

pub(crate) mod peers;
mod tree;

use std::path::Path;

use proto::{
    containerd::{
        services::snapshots::v1::{RemoveSnapshotRequest, ViewSnapshotRequest, snapshots_client::SnapshotsClient},
        types::transfer::ImageExportStream,
    },
    digest::{Digest, chain_id},
};
use serde_json::{Value, json};

use self::{
    peers::{Containerd, Docker, Podman, installed, mounted, run, sh, umoci_tree},
    tree::{Tree, assert_same},
};
use crate::{
    archives::descriptor,
    harness::{Client, Supervisor, request, unpacking},
    registries::DockerRegistry,
};

/// Two layers with everything that a layer can have, as GNU tar writes them; and the lower one without sparse entries, of
/// which dockerd and podman can't make the layer again that they have loaded.
pub(crate) fn oddities(folder: &Path) -> ([String; 2], String) {
    let script = r#"
        umask 022; cd "$1"; mkdir -p one two; cd one
        long=$(printf 'd%.0s' $(seq 120)); longer=$(printf 'e%.0s' $(seq 110))
        mkdir -p etc "deep/$long/$longer" dev opaque/inner gone.d links/a links/b sticky becomes-file "with space"
        echo one > etc/one; echo long > "deep/$long/$longer/$longer"; echo n > "with space/naïve"
        ln -s "$longer/$longer/$longer" links/long; ln -s ../etc/one links/relative; ln -s /nowhere/at/all links/absolute
        truncate -s 3M sparse; printf middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
        truncate -s 1M holes; : > empty
        ln etc/one links/a/one; ln etc/one links/b/one; echo replaced > etc/replaced; ln etc/replaced links/replaced
        mkfifo pipe; mknod dev/null c 1 3; mknod dev/loop b 7 300; chmod 666 dev/null
        echo x > opaque/inner/file; echo x > opaque/file; echo x > gone.d/file; echo x > gone; echo x > becomes-file/file
        echo owned > etc/owned; chown 1000:1001 etc/owned; chown -h 5:6 links/relative
        echo big > etc/big; chown 100000:200000 etc/big
        cp etc/one setuid; chmod 4755 setuid; cp etc/one setgid; chmod 2711 setgid; chmod 1777 sticky
        echo cap > capable; chmod 755 capable; setcap cap_net_raw,cap_net_bind_service+ep capable
        touch -d @1234567890.123456789 etc/one; touch -d @0 empty; touch -h -d @999999999 links/long
        cd ../two
        mkdir -p opaque/new etc links; : > opaque/.wh..wh..opq; echo new > opaque/new/file; : > .wh.gone; : > .wh.gone.d
        echo file > becomes-file; echo again > etc/replaced; echo two > etc/two; ln etc/two links/two; chown 7:8 links/two
        mkdir capable; mkdir opaque/inner
    "#;
    run("sh", &["-euc", script, "sh", folder.to_str().unwrap()]);
    let attribute = std::ffi::CString::new(folder.join("one/etc/owned").to_str().unwrap()).unwrap();
    sys::xattr::lset(&attribute, c"user.note", b"hello\0world").unwrap();
    let pack = |layer: &str, to: &str, sparse: &str| {
        let (from, to) = (folder.join(layer).display().to_string(), folder.join(to).display().to_string());
        let options = "--format=posix --pax-option=delete=atime,delete=ctime --numeric-owner --sort=name";
        sh(&format!("tar {options} {sparse} --xattrs --xattrs-include='*' -C {from} -cf {to} ."));
        to
    };
    ([pack("one", "one.tar", "--sparse"), pack("two", "two.tar", "")], pack("one", "whole.tar", ""))
}

/// An image of these layers in an OCI layout, made by umoci.
fn by_umoci(layout: &str, layers: &[&str]) -> String {
    let image = format!("{layout}:1");
    run("umoci", &["init", "--layout", layout]);
    run("umoci", &["new", "--image", &image]);
    for layer in layers {
        run("umoci", &["raw", "add-layer", "--image", &image, layer]);
    }
    run("umoci", &["config", "--image", &image, "--config.cmd", "/bin/true", "--architecture", "amd64"]);
    image
}

/// The image id as the peer has it: the digest of the configuration.
#[track_caller]
fn id_of(source: &str) -> String {
    let config = sh(&format!("skopeo inspect --tls-verify=false --config --raw {source} | sha256sum"));
    format!("sha256:{}", config.split(' ').next().unwrap())
}

#[track_caller]
fn copy(options: &str, from: &str, to: &str) {
    sh(&format!("skopeo copy -q --src-tls-verify=false --dest-tls-verify=false {options} {from} {to}"));
}

/// Our side.
struct Ours {
    supervisor: Supervisor,
    client: Client,
}

/// What became of an image here.
struct Image {
    name: String,
    manifest: String,
    config: String,
    tree: Tree,
}

impl Ours {
    async fn start() -> Self {
        let supervisor = Supervisor::start();
        let client = supervisor.client().await;
        Self { supervisor, client }
    }

    /// Loads an archive into an empty store.
    async fn load(&self, archive: &str) -> Image {
        self.clear().await;
        let bytes = std::fs::read(archive).unwrap();
        self.client.import(bytes, &unpacking()).await.0.unwrap_or_else(|error| panic!("{archive}: {error:?}"));
        self.look().await
    }

    async fn pull(&self, reference: &str) -> Image {
        self.clear().await;
        self.client
            .pull(reference, None, &unpacking())
            .await
            .0
            .unwrap_or_else(|error| panic!("{reference}: {error:?}"));
        self.look().await
    }

    async fn clear(&self) {
        for image in self.client.images().await {
            self.client.remove_image(&image.name).await.unwrap();
        }
        assert_eq!(self.client.snapshots().await.len(), 0);
    }

    async fn look(&self) -> Image {
        self.client.assert_sound().await;
        let image = self.client.images().await.pop().unwrap();
        let mut manifest = image.target.unwrap().digest;
        let mut document: Value = serde_json::from_slice(&self.client.blob(&manifest).await).unwrap();
        if let Some(entries) = document["manifests"].as_array() {
            let ours = entries.iter().find(|entry| entry["platform"]["architecture"] == "amd64").unwrap();
            manifest = ours["digest"].as_str().unwrap().to_owned();
            document = serde_json::from_slice(&self.client.blob(&manifest).await).unwrap();
        }
        let config = document["config"]["digest"].as_str().unwrap().to_owned();
        let fields: Value = serde_json::from_slice(&self.client.blob(&config).await).unwrap();
        let diff_ids: Vec<Digest> = fields["rootfs"]["diff_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap().parse().unwrap())
            .collect();
        let tree = self.tree(&chain_id(&diff_ids).unwrap().to_string()).await;
        Image { name: image.name, manifest, config, tree }
    }

    async fn tree(&self, chain: &str) -> Tree {
        let mut client = SnapshotsClient::new(self.client.channel.clone());
        let (snapshotter, key) = ("overlayfs".to_owned(), "look".to_owned());
        let view = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent: chain.into(),
            labels: Default::default(),
        };
        let mount = client.view(request(view)).await.unwrap().into_inner().mounts.remove(0);
        let options = mount.options.join(",");
        let tree = mounted(&["-t", &mount.r#type, "-o", &options, &mount.source]);
        client.remove(request(RemoveSnapshotRequest { snapshotter, key })).await.unwrap();
        tree
    }

    /// Saves an image into a file.
    async fn save(&self, image: &Image, to: &str) {
        let bytes = self.client.export_of(&[&image.name], ImageExportStream::default()).await.unwrap();
        std::fs::write(to, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn by_umoci_and_skopeo_in_every_format() {
    if !installed(&["umoci", "skopeo", "dockerd", "docker", "podman", "containerd", "ctr", "docker-registry", "setcap"])
    {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let ([lower, upper], whole) = oddities(dir.path());
    let made = by_umoci(&at("umoci"), &[&lower, &upper]);
    let (wanted, id) = (umoci_tree(&made), id_of(&format!("oci:{made}")));
    assert!(wanted["capable"].starts_with("folder") && !wanted.contains_key("gone") && wanted.contains_key("etc/one"));
    let ours = Ours::start().await;
    let docker = Docker::start(&ours.supervisor.socket());
    let (podman, containerd, registry) = (Podman::new(), Containerd::start(), DockerRegistry::start());

    // In: archives.
    copy("", &format!("oci:{made}"), &format!("docker-archive:{}:app:1", at("docker.tar")));
    copy("", &format!("oci:{made}"), &format!("oci-archive:{}:app:1", at("oci.tar")));
    copy("--dest-compress-format zstd", &format!("oci:{made}"), &format!("oci:{}:1", at("zstd")));
    let plain = "--dest-oci-accept-uncompressed-layers --dest-decompress";
    copy(plain, &format!("oci:{made}"), &format!("oci:{}:1", at("plain")));
    for layout in ["umoci", "zstd", "plain"] {
        sh(&format!("tar -C {} -cf {} .", at(layout), at(&format!("{layout}.tar"))));
    }
    docker.run(&["load", "-q", "-i", &at("docker.tar")]);
    assert_eq!(docker.run(&["image", "inspect", "-f", "{{.Id}}", "app:1"]), id);
    let dense = by_umoci(&at("dense"), &[&whole, &upper]);
    let dense_id = id_of(&format!("oci:{dense}"));
    copy("", &format!("oci:{dense}"), &format!("docker-archive:{}:dense:1", at("dense.tar")));
    docker.run(&["load", "-q", "-i", &at("dense.tar")]);
    docker.run(&["save", "-o", &at("docker-save.tar"), "dense:1"]);
    podman.run("podman", &["load", "-q", "-i", &at("docker.tar")]);
    podman.run("podman", &["load", "-q", "-i", &at("dense.tar")]);
    podman.run("podman", &["save", "-q", "-o", &at("podman-save.tar"), "dense:1"]);
    podman.run("podman", &["save", "-q", "--format", "oci-archive", "-o", &at("podman-oci.tar"), "dense:1"]);
    let archives = [
        "docker.tar",
        "oci.tar",
        "umoci.tar",
        "zstd.tar",
        "plain.tar",
        "docker-save.tar",
        "podman-save.tar",
        "podman-oci.tar",
    ];
    for archive in archives {
        let image = ours.load(&at(archive)).await;
        assert_same(&image.tree, &wanted, archive);
        let id = match archive {
            // podman writes its own configuration for the other format.
            "podman-oci.tar" => id_of(&format!("oci-archive:{}", at(archive))),
            "docker-save.tar" | "podman-save.tar" => dense_id.clone(),
            _ => id.clone(),
        };
        assert_eq!(image.config, id, "{archive}");
    }
    // The trees of the others, by way of which ours is also theirs.
    assert_same(&docker.tree("app:1"), &wanted, "dockerd's own");
    assert_same(&podman.tree("app:1"), &wanted, "podman's own");

    // In: a registry, in its two formats, with zstd, as an index of two platforms.
    let host = format!("127.0.0.1:{}", registry.port);
    let reference = |tag: &str| format!("{host}/app:{tag}");
    copy("--format v2s2", &format!("oci:{made}"), &format!("docker://{}", reference("s2")));
    copy("--format oci", &format!("oci:{made}"), &format!("docker://{}", reference("oci")));
    copy("--format oci", &format!("oci:{}:1", at("zstd")), &format!("docker://{}", reference("zstd")));
    two_platforms(&at("multi"), &made);
    copy("--all", &format!("oci:{}:1", at("multi")), &format!("docker://{}", reference("multi")));
    for tag in ["s2", "oci", "zstd", "multi"] {
        let image = ours.pull(&reference(tag)).await;
        assert_same(&image.tree, &wanted, tag);
        assert_eq!(image.config, id, "{tag}");
        let manifest = sh(&format!(
            "skopeo inspect --tls-verify=false --override-arch amd64 -f '{{{{.Digest}}}}' docker://{}",
            reference(tag)
        ));
        if tag != "multi" {
            assert_eq!(image.manifest, manifest, "{tag}");
        }

        // Out: what is saved here, the others load.
        let (file, name) = (at("saved.tar"), image.name.clone());
        ours.save(&image, &file).await;
        let loaded = docker_load(&docker, &file, tag);
        if let Some(loaded) = loaded {
            assert_eq!(loaded, id, "{tag}");
            assert_same(&docker.tree(&loaded), &wanted, &format!("docker load of {tag}"));
            docker.run(&["rmi", "-f", &loaded]);
        }
        podman.run("podman", &["rmi", "-af"]);
        podman.run("podman", &["load", "-q", "-i", &file]);
        assert_eq!(format!("sha256:{}", podman.id(&name)), id, "{tag}");
        assert_same(&podman.tree(&name), &wanted, &format!("podman load of {tag}"));
        for transport in ["docker-archive", "oci-archive"] {
            assert_eq!(id_of(&format!("{transport}:{file}")), id, "{tag} as {transport}");
        }
        // umoci knows no zstd.
        let options = if tag == "zstd" { "--dest-compress-format gzip" } else { "" };
        copy(options, &format!("oci-archive:{file}"), &format!("oci:{}:1", at(&format!("back-{tag}"))));
        assert_same(&umoci_tree(&format!("{}:1", at(&format!("back-{tag}")))), &wanted, tag);
        containerd.ctr(&["images", "import", "--no-unpack", &file]);
        let listed = containerd.ctr(&["images", "ls", &format!("name=={name}")]);
        assert!(listed.contains(&image.manifest), "{tag}: {listed}");
        // And what is pushed is what was there.
        let pushed = format!("{host}/pushed:{tag}");
        ours.client.tag(&name, &pushed).await;
        ours.client.push(&pushed).await.unwrap();
        assert_eq!(id_of(&format!("docker://{pushed}")), id, "{tag}");
        if tag != "multi" {
            let there = sh(&format!("skopeo inspect --tls-verify=false -f '{{{{.Digest}}}}' docker://{pushed}"));
            assert_eq!(there, image.manifest, "{tag}");
        }
        let again = ours.load(&file).await;
        assert_eq!((again.manifest, again.config, again.name), (image.manifest, image.config, name), "{tag}");
    }

    // What docker saves without the document of its newer format: the oldest one. dockerd makes the id anew, and so do we.
    sh(&format!(
        "cd {0} && mkdir old && tar -C old -xf docker-save.tar && rm old/manifest.json && tar -C old -cf old.tar .",
        dir.path().display()
    ));
    docker.run(&["rmi", "-f", "dense:1"]);
    docker.run(&["load", "-q", "-i", &at("old.tar")]);
    let old = ours.load(&at("old.tar")).await;
    assert_eq!(old.config, docker.run(&["image", "inspect", "-f", "{{.Id}}", "dense:1"]));
    assert_same(&old.tree, &wanted, "the oldest format");
}

/// Loads an archive by dockerd; `None` where it can't read the compression.
#[track_caller]
fn docker_load(docker: &Docker, file: &str, tag: &str) -> Option<String> {
    if tag == "zstd" {
        return None; // dockerd 20.10 does not know it
    }
    let said = docker.run(&["load", "-q", "-i", file]);
    let name = said.trim().rsplit_once(": ").unwrap().1.to_owned();
    Some(docker.run(&["image", "inspect", "-f", "{{.Id}}", &name]))
}

/// A layout with an index of two platforms, of which one is the image at `made`.
fn two_platforms(layout: &str, made: &str) {
    copy("", &format!("oci:{made}"), &format!("oci:{layout}:one"));
    let blob = |digest: &str| format!("{layout}/blobs/sha256/{}", digest.strip_prefix("sha256:").unwrap());
    let put = |bytes: &[u8]| std::fs::write(blob(&Digest::of(bytes).to_string()), bytes).unwrap();
    let read = |path: &str| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let index = read(&format!("{layout}/index.json"));
    let mut amd = index["manifests"][0].clone();
    let mut manifest = read(&blob(amd["digest"].as_str().unwrap()));
    let mut config = read(&blob(manifest["config"]["digest"].as_str().unwrap()));
    config["architecture"] = json!("arm64");
    let config = config.to_string().into_bytes();
    put(&config);
    manifest["config"] = descriptor("application/vnd.oci.image.config.v1+json", &config);
    let manifest = manifest.to_string().into_bytes();
    put(&manifest);
    let mut arm = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    for (entry, architecture) in [(&mut amd, "amd64"), (&mut arm, "arm64")] {
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry.as_object_mut().unwrap().remove("annotations");
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let both = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [arm, amd]}).to_string().into_bytes();
    put(&both);
    let mut top = descriptor(kind, &both);
    top["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    let top = json!({"schemaVersion": 2, "manifests": [top]});
    std::fs::write(format!("{layout}/index.json"), top.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_buildah_and_by_docker() {
    if !installed(&["buildah", "podman", "skopeo", "dockerd", "docker", "docker-registry", "setcap"]) {
        return;
    }
    let dir = tempfile::Builder::new().prefix("berth-matrix-").tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (_, lower) = oddities(dir.path());
    let ours = Ours::start().await;
    let (podman, registry) = (Podman::new(), DockerRegistry::start());
    let host = format!("127.0.0.1:{}", registry.port);

    // buildah: two layers of its own making.
    let build = |from: &str, change: &str, name: &str| {
        let container = podman.run("buildah", &["from", from]);
        let mount = podman.run("buildah", &["mount", &container]);
        sh(&format!("cd {mount} && {change}"));
        podman.run("buildah", &["umount", &container]);
        podman.run("buildah", &["commit", "-q", "--rm", &container, name]);
    };
    build("scratch", &format!("tar --xattrs --xattrs-include='*' -xpf {lower}"), "base:1");
    build(
        "localhost/base:1",
        "rm -r gone gone.d opaque links/a; mkdir opaque; echo n > opaque/new; echo 2 > etc/two",
        "built:1",
    );
    let wanted = podman.tree("localhost/built:1");
    for (format, to) in [
        ("", format!("docker-archive:{}:built:1", at("buildah-docker.tar"))),
        ("", format!("oci-archive:{}:built:1", at("buildah-oci.tar"))),
        ("--format=v2s2", format!("docker://{host}/built:s2")),
        ("--format=oci", format!("docker://{host}/built:oci")),
    ] {
        let options = ["push", "-q", "--tls-verify=false", format, "localhost/built:1", &to];
        let options: Vec<_> = options.into_iter().filter(|option| !option.is_empty()).collect();
        podman.run("buildah", &options);
        let (image, source) = match to.split_once("://") {
            Some((_, reference)) => (ours.pull(reference).await, to.clone()),
            None => {
                let file = to.split(':').nth(1).unwrap();
                (ours.load(file).await, to.rsplitn(3, ':').nth(2).unwrap().to_owned())
            }
        };
        assert_same(&image.tree, &wanted, &to);
        assert_eq!(image.config, id_of(&source), "{to}");
    }

    // docker: import and commit.
    let docker = Docker::start(&ours.supervisor.socket());
    docker.run(&["import", &lower, "base:1"]);
    docker.run(&["create", "--name", "box", "base:1", "/bin/true"]);
    docker.run(&["cp", &at("two/etc/two"), "box:/etc/two"]);
    docker.run(&["cp", &at("two/becomes-file"), "box:/new"]);
    docker.run(&["commit", "-c", "CMD [\"x\"]", "box", "made:1"]);
    let (wanted, id) = (docker.tree("made:1"), docker.run(&["image", "inspect", "-f", "{{.Id}}", "made:1"]));
    docker.run(&["save", "-o", &at("made.tar"), "made:1", "base:1"]);
    ours.clear().await;
    let archive = std::fs::read(at("made.tar")).unwrap();
    ours.client.import(archive, &unpacking()).await.0.unwrap();
    assert_eq!(ours.client.images().await.len(), 2);
    ours.client.remove_image("docker.io/library/base:1").await.unwrap();
    let image = ours.look().await;
    assert_same(&image.tree, &wanted, "docker save");
    assert_eq!(image.config, id);
    docker.run(&["tag", "made:1", &format!("{host}/made:1")]);
    docker.run(&["push", "-q", &format!("{host}/made:1")]);
    let pulled = ours.pull(&format!("{host}/made:1")).await;
    assert_same(&pulled.tree, &wanted, "docker push");
    assert_eq!(pulled.config, id);
    ours.save(&pulled, &at("out.tar")).await;
    docker.run(&["rm", "box"]);
    docker.run(&["rmi", "-f", &id]);
    assert_eq!(docker_load(&docker, &at("out.tar"), "made"), Some(id));
    assert_same(&docker.tree(&format!("{host}/made:1")), &wanted, "docker load of what docker made");
}
