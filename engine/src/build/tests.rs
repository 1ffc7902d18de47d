//! Filesystems of builds on a real supervisor.

use super::{
    export::{
        self,
        archive::{Layout, archive},
        image::{Options, Part, image},
    },
    tree::{PREFIX, Tree, Trees},
    worker::{content::Contents, files, layered, sources::image as source},
};
use crate::{
    images::{Images, Outside, platform::Platform},
    supervisor::{Client, Lease},
    untar::Untar,
};
use proto::{
    containerd::services::{
        leases::v1::ListRequest,
        snapshots::v1::{Info, ListSnapshotsRequest},
    },
    moby::buildkit::v1::{VertexLog, VertexStatus, VertexWarning},
    pb::{self, file_action::Action},
};
use solver::{Selection, Step, worker::Progress};
use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_stream::StreamExt as _;

/// A supervisor in a folder of its own; ends with the test.
struct Supervisor {
    child: Child,
    folder: tempfile::TempDir,
}

impl Supervisor {
    /// Nothing if the programs aren't built.
    fn start() -> Option<Self> {
        let built = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bin");
        let programs = std::env::var_os("BERTH_BIN_DIR").map_or(built, PathBuf::from);
        let program = programs.join("berth-supervisor");
        if !program.exists() || !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: {} is not built, or this is not root", program.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(program);
        command.arg("--data-root").arg(folder.path().join("data")).arg("--run-root").arg(folder.path().join("run"));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Some(Self { child, folder })
    }

    async fn client(&self) -> Client {
        let client = Client::new(self.folder.path().join("run/supervisor.sock"));
        client.with_storage_driver(None).await.unwrap()
    }

    fn images(&self, client: &Client) -> Images {
        Images::new(client.clone(), Outside::default(), self.folder.path().join("registries"))
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.child.id().cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        );
        let _ = self.child.wait();
    }
}

#[derive(Debug)]
struct Quiet;

impl Progress for Quiet {
    fn log(&self, _: VertexLog) {}
    fn status(&self, _: VertexStatus) {}
    fn warn(&self, _: VertexWarning) {}
}

fn step() -> Step {
    Step {
        digest: "sha256:step".into(),
        name: "step".into(),
        sessions: Vec::new(),
        entitlements: Vec::new(),
        progress: Arc::new(Quiet),
        cancelled: tokio::sync::watch::channel(false).1,
    }
}

fn file(path: &str, text: &str) -> Action {
    let data = text.as_bytes().to_vec();
    Action::Mkfile(pb::FileActionMkFile { path: path.into(), mode: 0o644, data, owner: None, timestamp: -1 })
}

fn remove(path: &str) -> Action {
    Action::Rm(pb::FileActionRm { path: path.into(), allow_not_found: false, allow_wildcard: false })
}

/// Actions one after the other, the last one with the output.
async fn make(trees: &Trees, below: Option<&Tree>, actions: Vec<Action>) -> Tree {
    let count = actions.len() as i64;
    let each = |(at, action)| {
        let at = at as i64;
        let input = if at == 0 { if below.is_some() { 0 } else { -1 } } else { below.iter().len() as i64 + at - 1 };
        let output = if at + 1 == count { 0 } else { -1 };
        pb::FileAction { input, secondary_input: -1, output, action: Some(action) }
    };
    let op = pb::FileOp { actions: actions.into_iter().enumerate().map(each).collect() };
    let inputs: Vec<_> = below.iter().map(|tree| Some((*tree).clone())).collect();
    files::perform(trees, &op, &inputs).await.unwrap().remove(0).unwrap()
}

async fn text(tree: &Tree, path: &str) -> Option<String> {
    let root = tree.open().await.unwrap();
    fs::read_to_string(format!("{}/{path}", at(&root))).ok()
}

fn at(root: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", root.as_raw_fd())
}

async fn snapshots(client: &Client) -> Vec<Info> {
    let request = ListSnapshotsRequest { snapshotter: client.snapshotter().into(), filters: Vec::new() };
    let mut pages = client.snapshots().list(request).await.unwrap().into_inner();
    let mut found = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        found.extend(page.info);
    }
    found
}

/// Waits until of builds' snapshots so many are left.
async fn until_left(client: &Client, count: usize) {
    let started = Instant::now();
    loop {
        let found = snapshots(client).await;
        if found.len() == count {
            return;
        }
        let names: Vec<_> = found.iter().map(|info| &info.name).collect();
        assert!(started.elapsed() < Duration::from_secs(10), "left: {names:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_are_kept_as_long_as_somebody_has_them() {
    let Some(supervisor) = Supervisor::start() else { return };
    let client = supervisor.client().await;
    let trees = Trees::open(&client).await.unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let one = make(&trees, None, vec![file("/a", "1"), file("/b", "2")]).await;
    assert_eq!(snapshots(&client).await.len(), 1, "actions share a snapshot");
    let two = make(&trees, Some(&one), vec![file("/a", "changed"), remove("/b")]).await;
    assert_eq!((text(&one, "a").await, text(&one, "b").await), (Some("1".into()), Some("2".into())));
    assert_eq!((text(&two, "a").await, text(&two, "b").await), (Some("changed".into()), None));
    let root = two.open().await.unwrap();
    assert_eq!(fs::write(format!("{}/c", at(&root)), "").unwrap_err().raw_os_error(), Some(30), "read-only");
    drop(root);
    assert_eq!(before, mounts(), "nothing is in the mount table");
    // What isn't committed goes.
    let draft = trees.draft(&two).await.unwrap();
    let root = draft.open().await.unwrap();
    fs::write(format!("{}/c", at(&root)), "c").unwrap();
    drop(root);
    drop(draft);
    let kept = trees.keep(&two, "second").await.unwrap();
    assert!(kept.size > 0 && kept.name.starts_with("berth-keeps-"), "{kept:?}");
    assert_eq!(trees.find("berth-keeps-000000000000000000000000").await.unwrap().map(|_| ()), None);
    assert_eq!(trees.find("../etc").await.unwrap().map(|_| ()), None);
    drop((one, two));
    until_left(&client, 2).await;
    trees.collect().await.unwrap();
    assert_eq!(snapshots(&client).await.len(), 2, "what it stands on stays as well");
    // The next engine.
    drop(trees);
    let half = Lease::take_for_good(&client, "berth-builds-dead").await.unwrap();
    let request = proto::containerd::services::snapshots::v1::PrepareSnapshotRequest {
        snapshotter: client.snapshotter().into(),
        key: "berth-builds-dead-1".into(),
        ..Default::default()
    };
    half.client.snapshots().prepare(request).await.unwrap();
    Lease::sweep(&client).await.unwrap();
    let trees = Trees::open(&client).await.unwrap();
    trees.collect().await.unwrap();
    assert_eq!(snapshots(&client).await.len(), 2, "what was half-made is gone");
    let found = trees.find(&kept.name).await.unwrap().unwrap();
    assert_eq!(text(&found, "a").await.as_deref(), Some("changed"));
    let below = found.below().await.unwrap().unwrap();
    assert_eq!(text(&below, "b").await.as_deref(), Some("2"));
    assert!(below.below().await.unwrap().unwrap().is_scratch());
    trees.remove(&kept.name).await.unwrap();
    assert_eq!(trees.find(&kept.name).await.unwrap().map(|_| ()), None);
    trees.collect().await.unwrap();
    assert_eq!(text(&found, "a").await.as_deref(), Some("changed"), "who has it keeps it");
    drop((found, below));
    let started = Instant::now();
    loop {
        let left = snapshots(&client).await;
        if left.is_empty() {
            break;
        }
        let leases = client.leases().list(ListRequest::default()).await.unwrap().into_inner().leases;
        assert!(started.elapsed() < Duration::from_secs(10), "{left:?} {leases:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        trees.collect().await.unwrap();
    }
    let leases = client.leases().list(ListRequest::default()).await.unwrap().into_inner().leases;
    assert_eq!(leases.len(), 1, "only that of the builds: {leases:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_what_was_built() {
    let Some(supervisor) = Supervisor::start() else { return };
    let client = supervisor.client().await;
    let (trees, images) = (Trees::open(&client).await.unwrap(), supervisor.images(&client));
    let one = make(&trees, None, vec![file("/a", "1")]).await;
    let two = make(&trees, Some(&one), vec![file("/b", "2")]).await;
    let part = |tree: &Tree, config: &str| Part {
        tree: tree.clone(),
        config: config.into(),
        platform: None,
        annotations: [("k".to_owned(), "v".to_owned())].into(),
        descriptor_annotations: Default::default(),
    };
    let config = r#"{"config":{"Cmd":["/a"]},"history":[{"created_by":"COPY a"},{"created_by":"COPY b"}]}"#;
    let named = |name: &str| Options {
        names: vec![name.parse::<proto::image_ref::ImageRef>().unwrap().with_default_tag()],
        ..Options::default()
    };
    let first = image(&images, &trees, &[part(&two, config)], &named("built")).await.unwrap();
    first.lease.give_back().await;
    let again = image(&images, &trees, &[part(&two, config)], &named("built:again")).await.unwrap();
    assert_eq!((&again.target.digest, again.id), (&first.target.digest, first.id), "the same once more");
    again.lease.give_back().await;
    let found = images.resolve("built").await.unwrap();
    assert_eq!((found.id, found.content.layers.len()), (first.id, 2));
    assert_eq!(found.content.config.config.cmd.as_deref(), Some(&["/a".to_owned()][..]));
    // A container stands on it without anything being unpacked.
    let chain = found.content.chain_id().unwrap().to_string();
    assert!(snapshots(&client).await.iter().any(|info| info.name == chain && info.parent.starts_with(PREFIX)));
    // Kept and found again, the layers aren't made anew.
    let kept = trees.keep(&two, "two").await.unwrap();
    drop((one, two));
    let two = trees.find(&kept.name).await.unwrap().unwrap();
    let third = image(&images, &trees, &[part(&two, config)], &named("built:third")).await.unwrap();
    assert_eq!(third.id, first.id);
    // As an archive.
    let names = [named("built").names.remove(0)];
    let mut stream = archive(third, &names, Layout::Docker).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let (mut tar, mut listed) = (Untar::new(bytes.as_slice()), Vec::new());
    while let Some(entry) = tar.next_entry().unwrap() {
        listed.push(String::from_utf8(entry.path).unwrap());
    }
    for name in ["index.json", "manifest.json", "oci-layout"] {
        assert!(listed.iter().any(|path| path == name), "{listed:?}");
    }
    assert_eq!(listed.iter().filter(|path| path.starts_with("blobs/sha256/") && path.len() > 20).count(), 4);
    // As a tar of its files.
    let mut stream = export::tar(&[(String::new(), two.clone())]).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let (mut tar, mut listed) = (Untar::new(bytes.as_slice()), Vec::new());
    while let Some(entry) = tar.next_entry().unwrap() {
        listed.push(String::from_utf8(entry.path).unwrap());
    }
    assert_eq!(listed, ["a", "b"]);
    // For two platforms, and with times of its own.
    let platform = |text: &str| Some(Platform::parse(text).unwrap());
    let parts = [
        Part { platform: platform("linux/amd64"), ..part(&two, r#"{"architecture":"amd64","os":"linux"}"#) },
        Part { platform: platform("linux/arm64"), ..part(&two, r#"{"architecture":"arm64","os":"linux"}"#) },
    ];
    let options = Options { epoch: Some(1_000_000_000), rewrite: true, ..named("both") };
    let both = image(&images, &trees, &parts, &options).await.unwrap();
    assert_eq!(both.manifests.len(), 2);
    both.lease.give_back().await;
    let other = Platform::parse("linux/arm64").unwrap();
    let arm = images.for_platform("both", &both.target, &other).await.unwrap().unwrap();
    assert_eq!(arm.config.architecture, "arm64");
    assert_ne!(arm.config.rootfs.diff_ids, found.content.config.rootfs.diff_ids, "other times");
    let old = trees.image(&arm).await.unwrap();
    let root = old.open().await.unwrap();
    let facts = fs::metadata(format!("{}/a", at(&root))).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&facts), 1_000_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_built_on() {
    let Some(supervisor) = Supervisor::start() else { return };
    let client = supervisor.client().await;
    let (trees, images) = (Trees::open(&client).await.unwrap(), supervisor.images(&client));
    let base = make(&trees, None, vec![file("/base", "1")]).await;
    let part = |tree: &Tree| Part {
        tree: tree.clone(),
        config: br#"{"history":[{"created_by":"base"}]}"#.to_vec(),
        platform: None,
        annotations: Default::default(),
        descriptor_annotations: Default::default(),
    };
    let options = |name: &str| Options { names: vec![name.parse().unwrap()], ..Options::default() };
    image(&images, &trees, &[part(&base)], &options("base:1")).await.unwrap().lease.give_back().await;
    drop(base);
    let op = |name: &str| pb::SourceOp {
        identifier: format!("docker-image://{name}"),
        attrs: [("image.resolvemode".to_owned(), "local".to_owned())].into(),
    };
    let missing = source::pin(&images, &trees, &op("nowhere:1"), None, &source::NoKeys).await.unwrap_err();
    assert!(matches!(missing, solver::StepError::NotFound(_)), "{missing}");
    let pin = source::pin(&images, &trees, &op("base:1"), None, &source::NoKeys).await.unwrap();
    assert!(pin.source.identifier.starts_with("docker-image://docker.io/library/base@sha256:"), "{pin:?}");
    let tree = source::perform(&images, &trees, &pin.source, None, &source::NoKeys, &step()).await.unwrap();
    assert_eq!(text(&tree, "base").await.as_deref(), Some("1"));
    let kept = trees.keep(&tree, "base").await.unwrap();
    let more = make(&trees, Some(&tree), vec![file("/more", "2")]).await;
    drop(tree);
    // The image loses its name: the build has its parts.
    images.remove("base:1", true, &Nobody).await.unwrap();
    trees.collect().await.unwrap();
    let found = trees.find(&kept.name).await.unwrap().unwrap();
    assert_eq!(found.base(), more.base());
    let built = image(&images, &trees, &[part(&more)], &options("more:1")).await.unwrap();
    built.lease.give_back().await;
    let content = images.resolve("more:1").await.unwrap().content;
    assert_eq!((content.layers.len(), content.config.history.len()), (2, 2));
    let whole = trees.image(&content).await.unwrap();
    assert_eq!((text(&whole, "base").await, text(&whole, "more").await), (Some("1".into()), Some("2".into())));
}

struct Nobody;

impl crate::images::ImageUsers for Nobody {
    fn users_of(&self, _: &proto::digest::Digest) -> Vec<crate::images::ImageUser> {
        Vec::new()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_differences_and_digests() {
    let Some(supervisor) = Supervisor::start() else { return };
    let client = supervisor.client().await;
    let trees = Trees::open(&client).await.unwrap();
    let base = make(&trees, None, vec![file("/a", "1"), file("/b", "2")]).await;
    let upper = make(&trees, Some(&base), vec![file("/a", "new"), remove("/b"), file("/c", "3")]).await;
    let other = make(&trees, None, vec![file("/b", "other"), file("/d", "4")]).await;
    let inputs = [Some(base.clone()), Some(upper.clone()), Some(other.clone()), None];
    let op = pb::DiffOp { lower: Some(pb::LowerDiffInput { input: 0 }), upper: Some(pb::UpperDiffInput { input: 1 }) };
    let diff = layered::diff(&trees, &op, &inputs).await.unwrap();
    let shown = async |tree: &Tree| {
        let mut all = Vec::new();
        for name in ["a", "b", "c", "d"] {
            all.push(text(tree, name).await.unwrap_or_default());
        }
        all.join(" ")
    };
    assert_eq!(shown(&diff).await, "new  3 ");
    let merge =
        |list: &[i64]| pb::MergeOp { inputs: list.iter().map(|input| pb::MergeInput { input: *input }).collect() };
    let merged = layered::merge(&trees, &merge(&[2, 1, 3]), &inputs).await.unwrap();
    assert_eq!(shown(&merged).await, "new  3 4");
    let merged = layered::merge(&trees, &merge(&[1, 2]), &inputs).await.unwrap();
    assert_eq!(shown(&merged).await, "new other 3 4");
    assert!(layered::merge(&trees, &merge(&[9]), &inputs).await.is_err());
    let contents = Contents::default();
    let of = async |tree: &Tree, path: &str| {
        let selection = Selection { paths: vec![path.into()], follow_links: true, ..Selection::default() };
        contents.digest(tree, &selection).await.unwrap()
    };
    assert_eq!(of(&upper, "/a").await, of(&merged, "/a").await);
    assert_ne!(of(&base, "/a").await, of(&merged, "/a").await);
    assert_ne!(of(&upper, "/").await, of(&merged, "/").await);
    let same = make(&trees, None, vec![file("/b", "2"), file("/a", "1")]).await;
    assert_eq!(of(&base, "/").await, of(&same, "/").await, "made another way, at another time");
    assert_eq!(of(&trees.scratch(), "/").await, of(&trees.scratch(), "/").await);
}

/// What a step costs besides its work; run it by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn cost_of_steps() {
    let Some(supervisor) = Supervisor::start() else { return };
    let client = supervisor.client().await;
    let trees = Trees::open(&client).await.unwrap();
    let mut tree = trees.scratch();
    let started = Instant::now();
    for number in 0..50 {
        tree = make(&trees, Some(&tree), vec![file(&format!("/{number}"), "x")]).await;
        trees.keep(&tree, "step").await.unwrap();
    }
    println!("a step: {:?}", started.elapsed() / 50);
    let started = Instant::now();
    let draft = trees.draft(&tree).await.unwrap();
    println!("draft: {:?}", started.elapsed());
    let started = Instant::now();
    let root = draft.open().await.unwrap();
    println!("open: {:?}", started.elapsed());
    drop(root);
    let started = Instant::now();
    let tree = draft.commit().await.unwrap();
    println!("commit: {:?}", started.elapsed());
    let started = Instant::now();
    let kept = trees.keep(&tree, "x").await.unwrap();
    println!("keep: {:?}", started.elapsed());
    let started = Instant::now();
    trees.find(&kept.name).await.unwrap().unwrap();
    println!("find: {:?}", started.elapsed());
    let source = tempfile::tempdir_in(supervisor.folder.path()).unwrap();
    let mut big = fs::File::create(source.path().join("big")).unwrap();
    for _ in 0..512 {
        std::io::Write::write_all(&mut big, &vec![7; 1 << 20]).unwrap();
    }
    big.sync_all().unwrap();
    let action = pb::FileActionCopy {
        src: "/big".into(),
        dest: "/".into(),
        mode: -1,
        timestamp: -1,
        create_dest_path: true,
        ..Default::default()
    };
    let draft = trees.draft(&tree).await.unwrap();
    let (root, from) = (draft.open().await.unwrap(), OwnedFd::from(fs::File::open(source.path()).unwrap()));
    let started = Instant::now();
    files::copied(&action, &from, &root).unwrap();
    println!("512 MiB copied: {:?}", started.elapsed());
    drop(root);
    let started = Instant::now();
    let tree = draft.commit().await.unwrap();
    println!("committed: {:?}", started.elapsed());
    let started = Instant::now();
    let layers = export::image::layers(&client, &tree, false, None).await.unwrap();
    println!("{} layers: {:?}", layers.len(), started.elapsed());
    let contents = Contents::default();
    let started = Instant::now();
    contents.digest(&tree, &Selection { paths: vec!["/".into()], ..Selection::default() }).await.unwrap();
    println!("digest: {:?}", started.elapsed());
}
