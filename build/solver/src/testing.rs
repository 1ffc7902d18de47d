//! A worker whose filesystems are maps, and definitions in a few words.

use crate::{CacheMount, Index, Kept, Layer, Options, Pin, Selection, Solver, Step, StepError, Work, Worker};
use prost::Message as _;
use proto::{
    digest::Digest,
    moby::buildkit::v1::VertexLog,
    pb::{self, file_action::Action, op::Op},
};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::sync::{Barrier, Notify, Semaphore};

pub(crate) type Tree = BTreeMap<String, String>;

/// What survives a crash.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) kept: Mutex<BTreeMap<String, Arc<Tree>>>,
    pub(crate) next: AtomicU64,
    /// Of a worker that may be killed: what is kept is in files.
    folder: Option<PathBuf>,
}

impl Disk {
    /// With what an earlier process left there.
    pub(crate) fn in_folder(folder: &Path) -> Arc<Self> {
        std::fs::create_dir_all(folder).unwrap();
        let mut kept = BTreeMap::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("kept") {
                let tree: Tree = serde_json::from_slice(&std::fs::read(entry.path()).unwrap()).unwrap();
                kept.insert(name, Arc::new(tree));
            }
        }
        let next = AtomicU64::new(u64::from(std::process::id()) * 1_000_000);
        Arc::new(Self { kept: Mutex::new(kept), next, folder: Some(folder.to_owned()) })
    }
}

pub(crate) struct Fake {
    pub(crate) disk: Arc<Disk>,
    /// What sources stand for; all but `docker-image` are pinned to something new each time, as folders of clients are.
    pub(crate) sources: Mutex<BTreeMap<String, Tree>>,
    pub(crate) performed: Mutex<Vec<String>>,
    pub(crate) pinned: AtomicUsize,
    pub(crate) fail_keep: AtomicBool,
    /// Keeping waits as `wait` does.
    pub(crate) hold_keep: AtomicBool,
    /// For `meet`: all of them at once, or nothing goes on.
    pub(crate) barrier: Mutex<Arc<Barrier>>,
    /// For `wait`: tells that it waits, and goes on when it may.
    pub(crate) waiting: Notify,
    pub(crate) go: Arc<Semaphore>,
    /// Operations begun, not ended and not dropped.
    pub(crate) under_way: Arc<AtomicUsize>,
    pub(crate) most: AtomicUsize,
    pub(crate) sessions: Mutex<Vec<Vec<String>>>,
    pub(crate) mounts: Mutex<Vec<CacheMount>>,
    pub(crate) shared: Mutex<HashSet<String>>,
    /// Layers that can be had.
    pub(crate) layers: Mutex<BTreeMap<Digest, Arc<Tree>>>,
}

struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Fake {
    pub(crate) fn new(disk: &Arc<Disk>) -> Arc<Self> {
        Arc::new(Self {
            disk: disk.clone(),
            sources: Mutex::default(),
            performed: Mutex::default(),
            pinned: AtomicUsize::new(0),
            fail_keep: AtomicBool::new(false),
            hold_keep: AtomicBool::new(false),
            barrier: Mutex::new(Arc::new(Barrier::new(1))),
            waiting: Notify::new(),
            go: Arc::new(Semaphore::new(0)),
            under_way: Arc::default(),
            most: AtomicUsize::new(0),
            sessions: Mutex::default(),
            mounts: Mutex::default(),
            shared: Mutex::default(),
            layers: Mutex::default(),
        })
    }

    pub(crate) fn set(&self, source: &str, files: &[(&str, &str)]) {
        let tree = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        self.sources.lock().unwrap().insert(source.to_owned(), tree);
    }

    /// Names of what was done since the last question.
    pub(crate) fn took(&self) -> Vec<String> {
        let mut names = std::mem::take(&mut *self.performed.lock().unwrap());
        names.sort();
        names
    }

    pub(crate) fn kept(&self) -> HashSet<String> {
        self.disk.kept.lock().unwrap().keys().cloned().collect()
    }

    async fn exec(
        &self,
        exec: &pb::ExecOp,
        work: &Work<Arc<Tree>>,
        step: &Step,
    ) -> Result<Vec<Option<Arc<Tree>>>, StepError> {
        let args = &exec.meta.as_ref().unwrap().args;
        let command = args.join(" ");
        match args[0].as_str() {
            "fail" => return Err(StepError::Exit { command, code: 3 }),
            "meet" => {
                let barrier = self.barrier.lock().unwrap().clone();
                barrier.wait().await;
            }
            "wait" => {
                self.waiting.notify_one();
                self.go.acquire().await.unwrap().forget();
            }
            "panic" => panic!("asked for"),
            "say" => {
                step.progress.log(VertexLog { msg: command.clone().into_bytes(), stream: 1, ..VertexLog::default() })
            }
            _ => {}
        }
        let mut saw = command.clone();
        for mount in exec.mounts.iter().filter(|mount| mount.mount_type == pb::MountType::Bind as i32) {
            if let Some(Some(tree)) = usize::try_from(mount.input).ok().map(|input| work.inputs[input].clone()) {
                saw.push_str(&format!("{:?}", select(&tree, std::slice::from_ref(&mount.selector))));
            }
        }
        if args[0] == "random" {
            saw.push_str(&format!("{}", self.disk.next.fetch_add(1, SeqCst)));
        }
        let mut outputs =
            exec.mounts.iter().filter(|mount| mount.output != -1 && mount.mount_type == 0).collect::<Vec<_>>();
        outputs.sort_by_key(|mount| mount.output);
        let results = outputs.into_iter().map(|mount| {
            let mut tree = match usize::try_from(mount.input) {
                Ok(input) => work.inputs[input].as_deref().cloned().unwrap_or_default(),
                Err(_) => Tree::new(),
            };
            tree.insert(format!("ran/{command}"), Digest::of(saw.as_bytes()).short());
            Some(Arc::new(tree))
        });
        Ok(results.collect())
    }
}

/// Files at or below paths, named from there on.
fn select(tree: &Tree, paths: &[String]) -> Tree {
    let all = [String::new()];
    let paths = if paths.is_empty() { &all } else { paths };
    let mut found = Tree::new();
    for path in paths {
        let path = path.trim_matches('/');
        for (name, text) in tree {
            let below = if path.is_empty() { Some(name.as_str()) } else { name.strip_prefix(path) };
            if let Some(rest) = below.filter(|rest| path.is_empty() || rest.is_empty() || rest.starts_with('/')) {
                let shown = if paths.len() > 1 { name.as_str() } else { rest };
                found.insert(shown.to_owned(), text.clone());
            }
        }
    }
    found
}

impl Worker for Fake {
    type Ref = Arc<Tree>;

    async fn pin(&self, source: &pb::SourceOp, _: Option<&pb::Platform>, _: &Step) -> Result<Pin, StepError> {
        self.pinned.fetch_add(1, SeqCst);
        let count = self.disk.next.fetch_add(1, SeqCst);
        if !self.sources.lock().unwrap().contains_key(&source.identifier) {
            return Err(StepError::NotFound(format!("{}: not found", source.identifier)));
        }
        let stable = source.identifier.starts_with("docker-image");
        let text = if stable { source.identifier.clone() } else { format!("{} {count}", source.identifier) };
        Ok(Pin { key: Digest::of(text.as_bytes()), source: source.clone() })
    }

    async fn perform(&self, work: Work<Arc<Tree>>, step: &Step) -> Result<Vec<Option<Arc<Tree>>>, StepError> {
        self.performed.lock().unwrap().push(step.name.clone());
        self.sessions.lock().unwrap().push(step.sessions.clone());
        if self.disk.folder.is_some() {
            println!("performs {}", step.name);
        }
        let now = self.under_way.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        let _under_way = UnderWay(self.under_way.clone());
        tokio::task::yield_now().await;
        match work.op.op.as_ref().unwrap() {
            Op::Source(source) => {
                assert!(work.pin.is_some());
                Ok(vec![Some(Arc::new(self.sources.lock().unwrap()[&source.identifier].clone()))])
            }
            Op::Exec(exec) => self.exec(exec, &work, step).await,
            Op::File(file) => {
                let [action] = file.actions.as_slice() else { panic!("one action") };
                let input = |input: i64| usize::try_from(input).ok().and_then(|input| work.inputs[input].clone());
                let mut tree = input(action.input).as_deref().cloned().unwrap_or_default();
                let Some(Action::Copy(copy)) = &action.action else { panic!("a copy") };
                let from = input(action.secondary_input).unwrap_or_default();
                for (name, text) in select(&from, std::slice::from_ref(&copy.src)) {
                    tree.insert(format!("{}{name}", copy.dest), text);
                }
                Ok(vec![Some(Arc::new(tree))])
            }
            Op::Merge(_) => {
                let all = work.inputs.iter().flatten().flat_map(|tree| tree.as_ref().clone());
                Ok(vec![Some(Arc::new(all.collect()))])
            }
            _ => Ok(vec![None]),
        }
    }

    async fn content(&self, of: &Arc<Tree>, selection: &Selection, _: &Step) -> Result<Digest, StepError> {
        Ok(Digest::of(format!("{:?}", select(of, &selection.paths)).as_bytes()))
    }

    async fn keep(&self, result: &Arc<Tree>, _: &str) -> Result<Kept, StepError> {
        if self.hold_keep.load(SeqCst) {
            self.waiting.notify_one();
            self.go.acquire().await.unwrap().forget();
        }
        if self.fail_keep.load(SeqCst) {
            return Err(StepError::Failed { what: "keep".into(), cause: "no space left".into() });
        }
        let name = format!("kept-{}", self.disk.next.fetch_add(1, SeqCst));
        if let Some(folder) = &self.disk.folder {
            std::fs::write(folder.join("new"), serde_json::to_vec(&**result).unwrap()).unwrap();
            std::fs::rename(folder.join("new"), folder.join(&name)).unwrap();
        }
        self.disk.kept.lock().unwrap().insert(name.clone(), result.clone());
        Ok(Kept { name, size: 100 })
    }

    async fn find(&self, name: &str) -> Result<Option<Arc<Tree>>, StepError> {
        Ok(self.disk.kept.lock().unwrap().get(name).cloned())
    }

    async fn remove(&self, name: &str) -> Result<(), StepError> {
        self.mounts.lock().unwrap().retain(|mount| mount.name != name);
        if let Some(folder) = &self.disk.folder {
            let _ = std::fs::remove_file(folder.join(name));
        }
        self.disk.kept.lock().unwrap().remove(name);
        Ok(())
    }

    async fn mounts(&self) -> Result<Vec<CacheMount>, StepError> {
        Ok(self.mounts.lock().unwrap().clone())
    }

    async fn fetch(&self, layers: &[Layer], _: &Step) -> Result<Option<Arc<Tree>>, StepError> {
        let there = self.layers.lock().unwrap();
        Ok(layers.last().and_then(|layer| there.get(&layer.digest)).cloned())
    }

    async fn shared(&self, names: &[String]) -> Result<HashSet<String>, StepError> {
        let shared = self.shared.lock().unwrap();
        Ok(names.iter().filter(|name| shared.contains(*name)).cloned().collect())
    }
}

/// A solver in a folder, with what survived of the last one there.
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) worker: Arc<Fake>,
    pub(crate) solver: Solver<Fake>,
    disk: Arc<Disk>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::default());
        let (worker, solver) = begin(folder.path(), &disk, options);
        Self { folder, worker, solver, disk }
    }

    /// In a folder, with what an earlier process left there.
    pub(crate) fn in_folder(path: &Path) -> Self {
        let disk = Disk::in_folder(&path.join("kept"));
        let (worker, solver) = begin(path, &disk, Options::default());
        Self { folder: tempfile::tempdir().unwrap(), worker, solver, disk }
    }

    /// As after a restart.
    pub(crate) fn again(self) -> Self {
        let Self { folder, worker, solver, disk } = self;
        let sources = worker.sources.lock().unwrap().clone();
        drop((worker, solver));
        let (worker, solver) = begin(folder.path(), &disk, Options::default());
        *worker.sources.lock().unwrap() = sources;
        Self { folder, worker, solver, disk }
    }

    /// As after SIGKILL: the files as they are, while the old one still runs.
    pub(crate) fn crash(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder.path().join("index.redb"), folder.path().join("index.redb")).unwrap();
        let disk = Arc::new(Disk::default());
        disk.kept.lock().unwrap().extend(self.disk.kept.lock().unwrap().clone());
        disk.next.store(1_000_000, SeqCst);
        let (worker, solver) = begin(folder.path(), &disk, Options::default());
        *worker.sources.lock().unwrap() = self.worker.sources.lock().unwrap().clone();
        Self { folder, worker, solver, disk }
    }
}

fn begin(folder: &Path, disk: &Arc<Disk>, options: Options) -> (Arc<Fake>, Solver<Fake>) {
    let worker = Fake::new(disk);
    let index = Index::open(&folder.join("index.redb")).unwrap();
    (worker.clone(), Solver::new(worker, index, options))
}

/// A definition under construction.
#[derive(Default, Clone)]
pub(crate) struct Def {
    pub(crate) definition: pb::Definition,
}

impl Def {
    pub(crate) fn add(&mut self, op: &pb::Op) -> pb::Input {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        self.definition.def.push(bytes);
        pb::Input { digest, index: 0 }
    }

    pub(crate) fn source(&mut self, identifier: &str) -> pb::Input {
        let source = pb::SourceOp { identifier: identifier.into(), ..pb::SourceOp::default() };
        self.add(&pb::Op { op: Some(Op::Source(source)), ..pb::Op::default() })
    }

    pub(crate) fn run(&mut self, root: &pb::Input, command: &str) -> pb::Input {
        self.run_with(root, command, &[])
    }

    /// With folders of others mounted read-only at `/mnt/0` and so on.
    pub(crate) fn run_with(&mut self, root: &pb::Input, command: &str, others: &[(&pb::Input, &str)]) -> pb::Input {
        let mut exec = exec(command);
        let mut inputs = vec![root.clone()];
        for (at, (input, selector)) in others.iter().enumerate() {
            inputs.push((*input).clone());
            let (input, dest) = (at as i64 + 1, format!("/mnt/{at}"));
            let selector = (*selector).to_owned();
            exec.mounts.push(pb::Mount { input, dest, selector, output: -1, readonly: true, ..pb::Mount::default() });
        }
        self.add(&pb::Op { inputs, op: Some(Op::Exec(exec)), ..pb::Op::default() })
    }

    pub(crate) fn copy(&mut self, base: &pb::Input, from: &pb::Input, src: &str, dest: &str) -> pb::Input {
        let copy = pb::FileActionCopy { src: src.into(), dest: dest.into(), mode: -1, ..pb::FileActionCopy::default() };
        let action = pb::FileAction { input: 0, secondary_input: 1, output: 0, action: Some(Action::Copy(copy)) };
        let file = pb::FileOp { actions: vec![action] };
        let inputs = vec![base.clone(), from.clone()];
        self.add(&pb::Op { inputs, op: Some(Op::File(file)), ..pb::Op::default() })
    }

    pub(crate) fn merge(&mut self, inputs: &[pb::Input]) -> pb::Input {
        let merge = pb::MergeOp { inputs: (0..inputs.len() as i64).map(|input| pb::MergeInput { input }).collect() };
        self.add(&pb::Op { inputs: inputs.to_vec(), op: Some(Op::Merge(merge)), ..pb::Op::default() })
    }

    pub(crate) fn no_cache(&mut self, input: &pb::Input) {
        self.definition.metadata.entry(input.digest.clone()).or_default().ignore_cache = true;
    }

    pub(crate) fn end(&self, input: &pb::Input) -> pb::Definition {
        let mut def = self.clone();
        def.add(&pb::Op { inputs: vec![input.clone()], ..pb::Op::default() });
        def.definition
    }
}

/// A command on the first input as root.
pub(crate) fn exec(command: &str) -> pb::ExecOp {
    let args = command.split(' ').map(str::to_owned).collect();
    pb::ExecOp {
        meta: Some(pb::Meta { args, cwd: "/".into(), ..pb::Meta::default() }),
        mounts: vec![pb::Mount { dest: "/".into(), ..pb::Mount::default() }],
        ..pb::ExecOp::default()
    }
}
