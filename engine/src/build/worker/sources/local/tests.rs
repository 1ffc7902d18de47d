//! What attributes mean, slots on disk, and folders that come as trees of a real supervisor.

use super::*;
use crate::{
    build::session::tests::{Client, announced, serve},
    supervisor,
};
use proto::moby::buildkit::v1::{VertexLog, VertexWarning};
use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    process::{Child, Command, Stdio},
    time::Instant,
};
use tokio::sync::watch;

fn source(attrs: &[(&str, &str)]) -> pb::SourceOp {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    pb::SourceOp { identifier: "local://context".into(), attrs }
}

#[test]
fn attributes() {
    let wanted = Wanted::new(&source(&[
        ("local.session", "web:abc"),
        ("local.includepattern", r#"["a","b"]"#),
        ("local.excludepatterns", r#"["c"]"#),
        ("local.followpaths", "null"),
        ("local.sharedkeyhint", "hint"),
        ("local.differ", "none"),
    ]))
    .unwrap();
    assert_eq!((wanted.request.name.as_str(), wanted.session.as_deref()), ("web-context", Some("abc")));
    assert_eq!((wanted.request.include.len(), wanted.request.exclude.len()), (2, 1));
    assert_eq!((wanted.request.follow.len(), wanted.hint.as_str(), wanted.compare), (0, "hint", false));
    for (attr, value) in [("local.differ", "x"), ("local.followpaths", "x"), ("local.metadatatransfer", "true")] {
        assert!(Wanted::new(&source(&[(attr, value)])).is_err(), "{attr}");
    }
    assert!(Wanted::new(&pb::SourceOp { identifier: "git://x".into(), ..Default::default() }).is_err());
}

#[test]
fn slots_are_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let header = |tree: &str| Header { tree: tree.into(), depth: 1, written: 5, description: "x".into() };
    let path = folder.path().join("group/file");
    assert_eq!(write_slot(folder.path(), &path, &header("one"), &Index::default()).unwrap(), Vec::<String>::new());
    assert_eq!(read_slot(&path), Some((header("one"), Index::default())));
    assert_eq!(read_header(&path), Some(header("one")));
    assert_eq!(latest(path.parent().unwrap()), Some(path.clone()));
    let mut bytes = fs::read(&path).unwrap();
    bytes.pop();
    fs::write(&path, bytes).unwrap();
    assert_eq!(read_slot(&path), None);
    // What is old goes with the next one that is written.
    let old = fs::File::open(&path).unwrap();
    old.set_modified(SystemTime::now() - UNUSED * 2).unwrap();
    let other = folder.path().join("other/file");
    assert_eq!(write_slot(folder.path(), &other, &header("two"), &Index::default()).unwrap(), ["one"]);
    assert!(!path.exists() && !path.parent().unwrap().exists());
    assert_eq!(slots(folder.path()).len(), 1);
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<VertexStatus>>);

impl solver::worker::Progress for Told {
    fn log(&self, _: VertexLog) {}
    fn status(&self, status: VertexStatus) {
        lock(&self.0).push(status);
    }
    fn warn(&self, _: VertexWarning) {}
}

/// A supervisor of its own, and a client with a folder.
struct Bench {
    folder: tempfile::TempDir,
    supervisor: Child,
    client: Client,
    sessions: Sessions,
    told: Arc<Told>,
}

impl Bench {
    async fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: snapshots need root");
            return None;
        }
        let chosen = std::env::var_os("BERTH_BIN_DIR").map(PathBuf::from);
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned()));
        let mut programs = chosen.into_iter().chain(beside).map(|folder| folder.join("berth-supervisor"));
        let Some(program) = programs.find(|path| path.exists()) else {
            eprintln!("skipped: berth-supervisor is not built");
            return None;
        };
        let folder = tempfile::Builder::new().prefix("berth-local-").tempdir().unwrap();
        let log = fs::File::create(folder.path().join("supervisor.log")).unwrap();
        let supervisor = Command::new(program)
            .args(["--data-root".as_ref(), folder.path().join("D").as_os_str()])
            .args(["--run-root".as_ref(), folder.path().join("R").as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let context = folder.path().join("context");
        fs::create_dir(&context).unwrap();
        let client = Client::with_context(&context);
        let bench = Self { folder, supervisor, client, sessions: Sessions::new(), told: Arc::default() };
        bench.attach("s1");
        Some(bench)
    }

    fn attach(&self, id: &str) {
        let (stream, _) = serve(&self.client);
        self.sessions.attach(announced(id, &["/moby.filesync.v1.FileSync/DiffCopy"]), stream).unwrap();
    }

    /// As an engine that has just started.
    async fn locals(&self) -> Locals {
        let socket = self.folder.path().join("R/supervisor.sock");
        let client = supervisor::Client::new(&socket).with_storage_driver(None).await.unwrap();
        let trees = Trees::open(&client).await.unwrap();
        let slots = self.folder.path().join("slots");
        Locals::open(self.sessions.clone(), trees, Arc::default(), slots).unwrap()
    }

    fn step(&self) -> Step {
        let (_, cancelled) = watch::channel(false);
        Step {
            digest: "sha256:1".into(),
            name: "[internal] load build context".into(),
            sessions: vec!["s1".into()],
            entitlements: Vec::new(),
            progress: self.told.clone(),
            cancelled,
        }
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.folder.path().join("context").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Pins, and how many files were asked for.
    async fn pin(&self, locals: &Locals, attrs: &[(&str, &str)]) -> (Pin, u64) {
        self.client.asked.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        let pin = locals.pin(&source(attrs), &self.step()).await.unwrap();
        eprintln!("pinned in {:?}", begun.elapsed());
        (pin, self.client.asked.load(Ordering::Relaxed))
    }

    async fn read(&self, locals: &Locals, pin: &Pin, path: &str) -> Option<String> {
        let tree = locals.perform(pin, &self.step()).await.unwrap();
        let root = tree.open().await.unwrap();
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(root, path, flags, nix::sys::stat::Mode::empty()).ok()?;
        let (mut file, mut text) = (fs::File::from(file), String::new());
        assert_eq!((file.metadata().unwrap().uid(), file.metadata().unwrap().gid()), (0, 0));
        file.read_to_string(&mut text).unwrap();
        Some(text)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.supervisor.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.supervisor.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("supervisor.log")).unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_has_changed_travels() {
    let Some(bench) = Bench::new().await else { return };
    for i in 0..200 {
        bench.write(&format!("d{}/f{i}", i % 7), &format!("content {i}"));
    }
    let locals = bench.locals().await;
    let (first, asked) = bench.pin(&locals, &[]).await;
    assert_eq!(asked, 200);
    assert_eq!(bench.read(&locals, &first, "d3/f3").await.as_deref(), Some("content 3"));
    let (again, asked) = bench.pin(&locals, &[]).await;
    assert_eq!((again.key, asked), (first.key, 0));
    // Touched: sent, found to be the same.
    bench.write("d3/f3", "content 3");
    let (touched, asked) = bench.pin(&locals, &[]).await;
    assert_eq!((touched.key, asked), (first.key, 1));
    bench.write("d3/f3", "changed");
    fs::remove_file(bench.folder.path().join("context/d4/f4")).unwrap();
    let (changed, asked) = bench.pin(&locals, &[]).await;
    assert_ne!(changed.key, first.key);
    assert_eq!(asked, 1);
    assert_eq!(bench.read(&locals, &changed, "d3/f3").await.as_deref(), Some("changed"));
    assert_eq!(bench.read(&locals, &changed, "d4/f4").await, None);
    // What builds still use is as it was.
    assert_eq!(bench.read(&locals, &first, "d3/f3").await.as_deref(), Some("content 3"));
    // Another filter begins with what is there.
    let (less, asked) = bench.pin(&locals, &[("local.excludepatterns", r#"["d3"]"#)]).await;
    assert_eq!(asked, 0);
    assert_eq!(bench.read(&locals, &less, "d3/f3").await, None);
    assert_eq!(bench.read(&locals, &less, "d5/f5").await.as_deref(), Some("content 5"));
    let (_, asked) = bench.pin(&locals, &[("local.differ", "none")]).await;
    assert_eq!(asked, 199);
    // The next engine knows it all, and lets go of what the last one didn't get to write down.
    let tree = locals.perform(&changed, &bench.step()).await.unwrap();
    let stray = locals.0.trees.keep(&tree, "slot: local source for context").await.unwrap().name;
    let other = locals.0.trees.keep(&tree, "a step").await.unwrap().name;
    drop((tree, locals));
    let locals = bench.locals().await;
    locals.sweep().await.unwrap();
    let names: Vec<String> = locals.0.trees.lasting().await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!((names.len(), names.contains(&stray), names.contains(&other)), (3, false, true), "{names:?}");
    let (after, asked) = bench.pin(&locals, &[]).await;
    assert_eq!((after.key, asked), (changed.key, 0));
    assert_eq!(bench.read(&locals, &after, "d3/f3").await.as_deref(), Some("changed"));
    let told = lock(&bench.told.0).clone();
    assert!(told.iter().all(|status| status.id == "transferring context:" && status.vertex == "sha256:1"));
    assert!(told.iter().any(|status| status.completed.is_some() && status.current > 0));
    // Pruned, it is sent anew.
    let usage = locals.usage().await;
    assert_eq!(usage.len(), 2);
    assert!(usage.iter().all(|slot| slot.description == "local source for context"));
    let chosen = usage[0].id.clone();
    locals.prune(move |slot| slot.id == chosen).await.unwrap();
    assert_eq!(locals.usage().await.len(), 1);
    locals.prune(|_| true).await.unwrap();
    let (anew, asked) = bench.pin(&locals, &[]).await;
    assert_eq!((anew.key, asked), (changed.key, 199));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_changes_do_not_pile_up() {
    let Some(bench) = Bench::new().await else { return };
    let locals = bench.locals().await;
    let mut sent_anew = 0;
    for i in 0..(DEEPEST * 2 + 2) {
        bench.write("fixed", "fixed");
        bench.write("changing", &format!("number {i}"));
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::open(bench.folder.path().join("context/fixed")).unwrap().set_modified(modified).unwrap();
        let (pin, asked) = bench.pin(&locals, &[]).await;
        sent_anew += u32::from(asked == 2);
        assert_eq!(bench.read(&locals, &pin, "changing").await, Some(format!("number {i}")));
        assert_eq!(bench.read(&locals, &pin, "fixed").await.as_deref(), Some("fixed"));
    }
    assert_eq!(sent_anew, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_not_there() {
    let Some(bench) = Bench::new().await else { return };
    bench.write("f", "x");
    let locals = bench.locals().await;
    let empty = Step { sessions: Vec::new(), ..bench.step() };
    let error = locals.pin(&source(&[]), &empty).await.unwrap_err();
    assert!(error.to_string().contains("the build has no session"), "{error}");
    let other = pb::SourceOp { identifier: "local://other".into(), ..Default::default() };
    let error = locals.pin(&other, &bench.step()).await.unwrap_err();
    assert!(matches!(&error, StepError::NotFound(text) if text.contains("no access allowed to dir")), "{error}");
    // An empty folder is one, too.
    fs::remove_file(bench.folder.path().join("context/f")).unwrap();
    let (pin, _) = bench.pin(&locals, &[]).await;
    assert_eq!(bench.read(&locals, &pin, "f").await, None);
}
