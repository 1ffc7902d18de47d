//! The backend on the solver: what builds ask for becomes its business, and its errors and filesystems become ours.

use super::{
    backend::{Backend, FILE_LIMIT, Filesystem, Finished, ImageWanted, Work},
    error::BuildError,
    running::{Build, Outcome},
    tree::Tree,
    worker::files::{FileError, on_thread, paths},
};
use dockerfile::convert::ImageConfig;
use nix::{
    fcntl::{OFlag, readlinkat},
    sys::stat::{FileStat, SFlag, major, minor},
};
use proto::{
    digest::Digest,
    fsutil::types::Stat,
    kind::{ErrorKind, chain},
    moby::buildkit::v1::{CacheOptionsEntry, Exporter, PruneRequest, UsageRecord},
    pb,
};
use solver::{
    BuildOptions, Graph, PruneError, PruneOptions, SolveError, Solver, Step, StepError, progress::StepBoard,
    worker::Worker,
};
use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io::Read as _,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// What builds need of a worker that the solver doesn't.
pub trait Workshop: Worker<Ref = Tree> {
    /// An image's configuration.
    fn image(&self, wanted: &ImageWanted, step: &Step) -> impl Future<Output = Result<ImageConfig, BuildError>> + Send;

    /// Puts a result somewhere; `index` is its place among the outputs.
    fn export(
        &self,
        index: u32,
        exporter: &Exporter,
        result: &Results,
        step: &Step,
    ) -> impl Future<Output = Result<BTreeMap<String, String>, BuildError>> + Send;
}

/// What is to be exported.
pub struct Results {
    /// The filesystems by platform (`linux/amd64`; a single one may have no name); nothing is an empty one.
    pub trees: BTreeMap<String, Option<Tree>>,
    /// What was said of them, `containerimage.config[/platform]` above all.
    pub outcome: Outcome,
}

impl Results {
    fn of(finished: &Finished) -> Result<Self, BuildError> {
        let trees = finished.trees.iter().map(|(name, filesystem)| {
            let Some(filesystem) = filesystem else { return Ok((name.clone(), None)) };
            let any: &dyn Any = filesystem.as_ref();
            let held = any.downcast_ref::<Held>();
            let held = held.ok_or_else(|| BuildError::new(ErrorKind::Internal, "a filesystem of somebody else"))?;
            Ok((name.clone(), Some(held.0.clone())))
        });
        Ok(Self { trees: trees.collect::<Result<_, BuildError>>()?, outcome: finished.outcome.clone() })
    }
}

/// Solver and worker.
pub struct Solving<W: Workshop> {
    solver: Solver<W>,
    /// What the solver holds for builds that run.
    builds: Mutex<HashMap<String, solver::Build<W>>>,
    /// A folder on the disk whose free space counts.
    disk: PathBuf,
}

impl<W: Workshop> fmt::Debug for Solving<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Solving").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl<W: Workshop> Solving<W> {
    /// Has `solver` do the work; the cache is on the disk of `disk`.
    pub fn new(solver: Solver<W>, disk: PathBuf) -> Self {
        Self { solver, builds: Mutex::default(), disk }
    }

    fn build(&self, build: &Build) -> solver::Build<W> {
        let mut builds = self.builds.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let options = BuildOptions { sessions: build.sessions.clone(), entitlements: build.entitlements.clone() };
            self.solver.build(options, build.progress.board().clone())
        };
        builds.entry(build.id.clone()).or_insert_with(new).clone()
    }

    /// A step of the builder's own.
    fn step(&self, name: &str, build: &Build) -> Step {
        let digest = Digest::of(name.as_bytes());
        Step {
            digest: digest.to_string(),
            name: name.to_owned(),
            sessions: build.sessions.clone(),
            entitlements: build.entitlements.clone(),
            progress: Arc::new(StepBoard::new(build.progress.board().clone(), &digest)),
            cancelled: build.cancelled.subscribe(),
        }
    }
}

impl<W: Workshop> Backend for Solving<W> {
    fn check(&self, definition: &pb::Definition) -> Result<(), BuildError> {
        Graph::decode(definition).map(drop).map_err(|error| BuildError::of(ErrorKind::InvalidArgument, &error))
    }

    fn solve<'a>(
        &'a self,
        definition: &'a pb::Definition,
        build: &'a Arc<Build>,
    ) -> Work<'a, Option<Arc<dyn Filesystem>>> {
        Box::pin(async move {
            let solved = self.build(build).solve(definition).await.map_err(|error| failed(&error, definition))?;
            Ok(solved.result.map(|tree| {
                let filesystem: Arc<dyn Filesystem> = Arc::new(Held(tree));
                filesystem
            }))
        })
    }

    fn image<'a>(&'a self, wanted: &'a ImageWanted, build: &'a Arc<Build>) -> Work<'a, ImageConfig> {
        Box::pin(async move { self.solver.worker().image(wanted, &self.step(&wanted.step, build)).await })
    }

    fn pin<'a>(
        &'a self,
        source: &'a pb::SourceOp,
        platform: Option<&'a pb::Platform>,
        build: &'a Arc<Build>,
    ) -> Work<'a, solver::Pin> {
        Box::pin(async move {
            let step = self.step(&source.identifier, build);
            self.solver.worker().pin(source, platform, &step).await.map_err(|error| of_step(&error))
        })
    }

    fn export<'a>(
        &'a self,
        index: u32,
        exporter: &'a Exporter,
        result: &'a Finished,
        build: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let name = match exporter.r#type.as_str() {
                "moby" | "image" => "exporting to image".to_owned(),
                "local" | "tar" => format!("exporting to client {}", exporter.r#type),
                other => format!("exporting to {other} image format"),
            };
            let own = build.progress.step(&name);
            let step = self.step(&name, build);
            let exported = match Results::of(result) {
                Ok(results) => self.solver.worker().export(index, exporter, &results, &step).await,
                Err(error) => Err(error),
            };
            own.end(&exported);
            exported
        })
    }

    fn import_cache<'a>(&'a self, from: &'a CacheOptionsEntry, build: &'a Arc<Build>) -> Work<'a, ()> {
        Box::pin(async move {
            let name = from.attrs.get("ref").or_else(|| from.attrs.get("src")).unwrap_or(&from.r#type);
            let error = BuildError::unsupported(format!(
                "cache import of type {} is not implemented in berth yet",
                from.r#type
            ));
            // As BuildKit: a cache that can't be had makes a build slower, not impossible.
            build.progress.step(&format!("importing cache manifest from {name}")).end(&Err::<(), _>(error));
            Ok(())
        })
    }

    fn export_cache<'a>(
        &'a self,
        to: &'a CacheOptionsEntry,
        _: &'a Finished,
        _: &'a Arc<Build>,
    ) -> Work<'a, BTreeMap<String, String>> {
        Box::pin(async move {
            let kind = &to.r#type;
            Err(BuildError::unsupported(format!("cache export of type {kind} is not implemented in berth yet")))
        })
    }

    fn ended(&self, build: &Build) {
        self.builds.lock().unwrap_or_else(PoisonError::into_inner).remove(&build.id);
    }

    fn usage<'a>(&'a self, filters: &'a [String]) -> Work<'a, Vec<UsageRecord>> {
        Box::pin(async move { self.solver.usage(filters).await.map_err(|error| of_prune(&error)) })
    }

    fn prune<'a>(&'a self, request: &'a PruneRequest) -> Work<'a, Vec<UsageRecord>> {
        Box::pin(async move {
            let free = nix::sys::statvfs::statvfs(&self.disk)
                .map_or(u64::MAX, |stat| stat.blocks_available() * stat.fragment_size());
            let options = PruneOptions::of_request(request, free);
            let options = options.map_err(|error| BuildError::of(ErrorKind::InvalidArgument, &error))?;
            self.solver.prune(&options).await.map_err(|error| of_prune(&error))
        })
    }
}

fn of_prune(error: &PruneError) -> BuildError {
    let kind = match error {
        PruneError::Filter(_) => ErrorKind::InvalidArgument,
        PruneError::Index(_) | PruneError::Worker(_) => ErrorKind::Internal,
    };
    BuildError::of(kind, error)
}

/// A build's error, with its step and the step's place in the source.
fn failed(error: &SolveError, definition: &pb::Definition) -> BuildError {
    match error {
        SolveError::Step { digest, cause, .. } => of_step(cause).of_step(&digest.to_string(), definition),
        SolveError::Graph(_) => BuildError::of(ErrorKind::InvalidArgument, error),
        SolveError::Index { .. } | SolveError::Stuck { .. } => BuildError::of(ErrorKind::Internal, error),
    }
}

fn of_step(error: &StepError) -> BuildError {
    let kind = match error {
        StepError::Exit { .. } | StepError::Failed { .. } => ErrorKind::Internal,
        StepError::Cancelled => ErrorKind::Cancelled,
        StepError::Invalid(_) => ErrorKind::InvalidArgument,
        StepError::Denied(_) => ErrorKind::PermissionDenied,
        StepError::NotFound(_) => ErrorKind::NotFound,
        StepError::Unsupported(_) => ErrorKind::Unimplemented,
    };
    BuildError::new(kind, chain(error))
}

/// A tree that was made for a build.
struct Held(Tree);

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.0.snapshot_key()).finish()
    }
}

impl Filesystem for Held {
    fn read_file<'a>(&'a self, path: &'a str, offset: u64, length: Option<u64>) -> Work<'a, Vec<u8>> {
        let most = length.unwrap_or(FILE_LIMIT).min(FILE_LIMIT);
        look(&self.0, path, move |root, path| read_file(&root, &path, offset, most))
    }

    fn read_dir<'a>(&'a self, path: &'a str, pattern: Option<&'a str>) -> Work<'a, Vec<Stat>> {
        let pattern = pattern.map(str::to_owned);
        look(&self.0, path, move |root, path| read_dir(&root, &path, pattern.as_deref()))
    }

    fn stat<'a>(&'a self, path: &'a str) -> Work<'a, Stat> {
        look(&self.0, path, move |root, path| {
            let clean = paths::resolve(&root, &path, true)?;
            describe(&root, &clean)?.ok_or_else(|| missing("stat", &path))
        })
    }
}

/// Does something with the root of a tree, where waiting for a disk holds up nobody.
fn look<'a, T: Send + 'static>(
    tree: &'a Tree,
    path: &'a str,
    work: impl FnOnce(OwnedFd, String) -> Result<T, FileError> + Send + 'static,
) -> Work<'a, T> {
    Box::pin(async move {
        let root = tree.open().await.map_err(|error| BuildError::of(error.kind(), &error))?;
        let path = path.to_owned();
        on_thread(move |_| work(root, path)).await.map_err(|error| of_step(&error))
    })
}

fn missing(operation: &'static str, path: &str) -> FileError {
    FileError::At { operation, path: path.to_owned(), cause: nix::errno::Errno::ENOENT.into() }
}

fn read_file(root: &OwnedFd, path: &str, offset: u64, most: u64) -> Result<Vec<u8>, FileError> {
    let clean = paths::resolve(root, path, true)?;
    let stat = paths::stat(root, &clean)?.ok_or_else(|| missing("open", path))?;
    // A FIFO would be waited for, a device is none of the client's business.
    if paths::kind(&stat) != SFlag::S_IFREG {
        return Err(FileError::Invalid(format!("{path} is not a regular file")));
    }
    let opened = paths::open(root, &clean, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
    let file = File::from(opened.map_err(|cause| FileError::at(&clean, "open", cause))?);
    let failed = |cause| FileError::io(&clean, "read", cause);
    let mut bytes = Vec::new();
    if offset == 0 {
        file.take(most).read_to_end(&mut bytes).map_err(failed)?;
        return Ok(bytes);
    }
    let size = u64::try_from(stat.st_size).unwrap_or(0).saturating_sub(offset).min(most);
    bytes.resize(usize::try_from(size).unwrap_or(0), 0);
    file.read_exact_at(&mut bytes, offset).map_err(failed)?;
    Ok(bytes)
}

fn read_dir(root: &OwnedFd, path: &str, pattern: Option<&str>) -> Result<Vec<Stat>, FileError> {
    let clean = paths::resolve(root, path, true)?;
    let stat = paths::stat(root, &clean)?.ok_or_else(|| missing("open", path))?;
    if !paths::is_folder(&stat) {
        return Err(FileError::Invalid(format!("{path} is not a directory")));
    }
    let folder = paths::folder(root, &clean).map_err(|cause| FileError::at(&clean, "open", cause))?;
    let mut names = paths::names(&folder).map_err(|cause| FileError::at(&clean, "read", cause))?;
    names.sort();
    let mut entries = Vec::new();
    for name in names {
        if let Some(pattern) = pattern {
            let matched = paths::go_match(pattern.as_bytes(), name.to_bytes());
            match matched {
                Some(true) => {}
                Some(false) => continue,
                None => return Err(FileError::Invalid(format!("syntax error in pattern {pattern:?}"))),
            }
        }
        // One that has just gone is none; trees don't change, but who knows.
        if let Some(mut entry) = describe(root, &clean.join(name.to_bytes()))? {
            entry.path = String::from_utf8_lossy(name.to_bytes()).into_owned();
            entries.push(entry);
        }
    }
    Ok(entries)
}

fn describe(root: &OwnedFd, path: &paths::Clean) -> Result<Option<Stat>, FileError> {
    let Some(stat) = paths::stat(root, path)? else { return Ok(None) };
    let mut entry = of_stat(&stat);
    entry.path = path.name().map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_else(|| "/".to_owned());
    if paths::kind(&stat) == SFlag::S_IFLNK
        && let Some((above, name)) = path.split()
    {
        let failed = |cause| FileError::at(path, "read the link", cause);
        let folder = paths::folder(root, &above).map_err(failed)?;
        let target = readlinkat(&folder, name.as_c_str()).map_err(failed)?;
        entry.linkname = String::from_utf8_lossy(target.as_bytes()).into_owned();
    }
    Ok(Some(entry))
}

fn of_stat(stat: &FileStat) -> Stat {
    let is_device = matches!(paths::kind(stat), SFlag::S_IFCHR | SFlag::S_IFBLK);
    let number = |part: u64| if is_device { i64::try_from(part).unwrap_or(0) } else { 0 };
    Stat {
        mode: filesync::mode::from_unix(stat.st_mode),
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size,
        mod_time: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec),
        devmajor: number(major(stat.st_rdev)),
        devminor: number(minor(stat.st_rdev)),
        ..Stat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::{fcntl::open, sys::stat::Mode};
    use std::os::unix::fs::symlink;

    #[test]
    fn files_are_read_below_the_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("root")).unwrap();
        std::fs::write(at("secret"), "outside").unwrap();
        std::fs::write(at("root/a.txt"), "0123456789").unwrap();
        std::fs::write(at("root/b.md"), "").unwrap();
        symlink("../secret", at("root/escape")).unwrap();
        symlink("/a.txt", at("root/inside")).unwrap();
        nix::unistd::mkfifo(&at("root/fifo"), Mode::S_IRWXU).unwrap();
        let root = open(&at("root"), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let read = |path: &str, offset, most| read_file(&root, path, offset, most);
        assert_eq!(read("/a.txt", 0, 4).unwrap(), b"0123");
        assert_eq!(read("a.txt", 8, 4).unwrap(), b"89");
        assert_eq!(read("a.txt", 20, 4).unwrap(), b"");
        assert_eq!(read("inside", 0, 2).unwrap(), b"01");
        assert_eq!(read("../root/a.txt", 0, 2).map_err(|e| e.to_string()).ok(), None);
        assert!(matches!(read("escape", 0, 9), Err(FileError::At { .. })));
        assert!(matches!(read("fifo", 0, 9), Err(FileError::Invalid(_))));
        assert!(matches!(read("nope", 0, 9), Err(FileError::At { .. })));
        let names = |pattern| {
            let entries = read_dir(&root, "/", pattern).unwrap();
            entries.into_iter().map(|entry| entry.path).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["a.txt", "b.md", "escape", "fifo", "inside"]);
        assert_eq!(names(Some("*.txt")), ["a.txt"]);
        assert!(read_dir(&root, "/", Some("[")).is_err());
        assert!(read_dir(&root, "a.txt", None).is_err());
        let entries = read_dir(&root, "/", Some("inside")).unwrap();
        assert_eq!(entries[0].linkname, "/a.txt");
        assert!(filesync::mode::is_file(read_dir(&root, "/", Some("b.md")).unwrap()[0].mode));
    }
}
