//! Where mounts of a command come from: filesystems of the build, caches, secrets, sockets of agents.
//!
//! What isn't a folder of this machine yet is mounted below the folder of the run until the runtime has taken it. A path within is
//! opened there by descriptor, and what was opened is mounted beside it: the runtime is told a path that only we can change, and no
//! link leads anywhere else meanwhile (CVE-2024-23651). Secrets are only ever in memory.

use super::{
    Outside,
    plan::{Kind, Mount, Plan},
};
use crate::build::{
    tree::{Draft, Tree, Trees},
    worker::caches::{Base, Caches, Taken},
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    mount::{MntFlags, umount2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat},
    unistd::{Gid, Uid, fchown, fchownat},
};
use proto::pb;
use serde_json::{Value, json};
use solver::{Step, StepError};
use std::{
    collections::HashMap,
    fs::{DirBuilder, File},
    io::Write as _,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};
use sys::{
    mount::{Filesystem, Reach, attach, attr, clone_tree, set_attributes},
    path::{Within, open_within},
};
use tokio::{net::UnixListener, task::JoinSet};
use tracing::{debug, warn};

/// Agents' sockets that are served at once, per mount.
const CONNECTIONS: usize = 64;

/// What a command has mounted, and who has to have it back.
#[derive(Default)]
pub struct Sources {
    /// What the specification says.
    pub mounts: Vec<Value>,
    /// Filesystems that are written, and which result each becomes.
    pub drafts: Vec<(Option<usize>, Draft)>,
    /// Inputs that are results as they are.
    pub kept: Vec<(usize, Tree)>,
    mounted: Vec<PathBuf>,
    trees: Vec<Tree>,
    /// By name and by what it began as.
    caches: Vec<((String, String), Taken)>,
    /// Which of them is where.
    places: HashMap<String, usize>,
    agents: JoinSet<()>,
}

/// A failure, in the words of the one who sees it happen.
fn failed<E>(what: impl Into<String>) -> impl FnOnce(E) -> StepError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = what.into();
    move |cause| StepError::Failed { what, cause: cause.into() }
}

impl Sources {
    /// Opens all that is mounted besides the root.
    pub async fn open<O: Outside>(&mut self, plan: &Plan, with: &With<'_, O>) -> Result<(), StepError> {
        // In the order of their names: of two commands that want the same two alone, one gets both.
        let mut caches: Vec<(&String, &Mount, pb::CacheSharingOpt)> = Vec::new();
        for mount in &plan.mounts {
            if let Kind::Cache { id, sharing } = &mount.kind {
                caches.push((id, mount, *sharing));
            }
        }
        caches.sort_by_key(|(id, ..)| *id);
        for (id, mount, sharing) in caches {
            self.take_cache(mount, id, sharing, with).await?;
        }
        for mount in &plan.mounts {
            let opened = match &mount.kind {
                Kind::Bind => self.bind(mount, with).await?,
                Kind::Tmpfs { size } => Some(tmpfs(mount, *size)),
                Kind::Cache { .. } => self.cache(mount, with.folder)?,
                Kind::Secret(secret) => self.secret(mount, secret, with).await?,
                Kind::Ssh(agent) => self.agent(mount, agent, with).await?,
            };
            self.mounts.extend(opened);
        }
        Ok(())
    }

    async fn bind<O: Outside>(&mut self, mount: &Mount, with: &With<'_, O>) -> Result<Option<Value>, StepError> {
        let what = format!("mount {}", mount.dest);
        let input = mount.slot.input.and_then(|at| with.inputs.get(at).cloned().flatten());
        let input = input.unwrap_or_else(|| with.trees.scratch());
        let root = if mount.readonly {
            if let Some(output) = mount.slot.output {
                self.kept.push((output, input.clone()));
            }
            let root = input.open().await.map_err(failed(what.clone()))?;
            self.trees.push(input);
            root
        } else {
            // What is written and wanted by nobody goes with the draft.
            let draft = with.trees.draft(&input).await.map_err(failed(what.clone()))?;
            let root = draft.open().await.map_err(failed(what.clone()))?;
            self.drafts.push((mount.slot.output, draft));
            root
        };
        let source = self.show(&root, &mount.selector, with.folder).map_err(missing(mount))?;
        Ok(Some(bound(mount, &source)))
    }

    /// Takes the cache of a mount, unless another mount of the command has it already.
    async fn take_cache<O: Outside>(
        &mut self,
        mount: &Mount,
        id: &str,
        sharing: pb::CacheSharingOpt,
        with: &With<'_, O>,
    ) -> Result<(), StepError> {
        let what = || format!("cache mount {}", mount.dest);
        let base = match mount.slot.input.and_then(|at| with.inputs.get(at).cloned().flatten()) {
            Some(input) if !input.is_scratch() => {
                let key = with.outside.content(&input, with.step).await?.to_string();
                let root = input.open().await.map_err(failed(what()))?;
                Some(Base { key, root })
            }
            _ => None,
        };
        let key = (id.to_owned(), base.as_ref().map(|base| base.key.clone()).unwrap_or_default());
        let at = match self.caches.iter().position(|(known, _)| *known == key) {
            Some(at) => at,
            None => {
                let taken = with.caches.take(id, base, sharing).await.map_err(failed(what()))?;
                self.caches.push((key, taken));
                self.caches.len() - 1
            }
        };
        self.places.insert(mount.dest.clone(), at);
        Ok(())
    }

    fn cache(&mut self, mount: &Mount, folder: &Path) -> Result<Option<Value>, StepError> {
        let what = || format!("cache mount {}", mount.dest);
        let Some((_, taken)) = self.places.get(&mount.dest).and_then(|at| self.caches.get(*at)) else {
            return Err(StepError::Invalid(format!("{}: two of them at the same place", what())));
        };
        let data = taken.folder();
        let source = match relative(&mount.selector) {
            "." => data.display().to_string(),
            path => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = nix::fcntl::open(&data, flags, Mode::empty()).map_err(failed(what()))?;
                self.below(&root, path, folder).map_err(missing(mount))?
            }
        };
        Ok(Some(bound(mount, &source)))
    }

    async fn secret<O: Outside>(
        &mut self,
        mount: &Mount,
        secret: &pb::SecretOpt,
        with: &With<'_, O>,
    ) -> Result<Option<Value>, StepError> {
        let Some(data) = find_secret(&secret.id, secret.optional, with).await? else { return Ok(None) };
        let what = format!("secret mount {}", mount.dest);
        let root = hidden_file(&data, secret).map_err(failed(what.clone()))?;
        let source = format!("{}/{SECRET}", self.show(&root, "", with.folder).map_err(failed(what))?);
        let options = ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
        Ok(Some(json!({"type": "bind", "destination": mount.dest, "source": source, "options": options})))
    }

    async fn agent<O: Outside>(
        &mut self,
        mount: &Mount,
        agent: &pb::SshOpt,
        with: &With<'_, O>,
    ) -> Result<Option<Value>, StepError> {
        if !with.outside.has_agent(&agent.id, with.step).await? {
            let text = format!("ssh mount {}: no SSH key {:?} forwarded from the client", mount.dest, agent.id);
            return if agent.optional { Ok(None) } else { Err(StepError::NotFound(text)) };
        }
        let what = format!("ssh mount {}", mount.dest);
        let folder = with.folder.join(format!("agent-{}", self.agents.len()));
        let listener = listen(&folder, agent).map_err(failed(what))?;
        let (outside, id, step) = (with.outside.clone(), agent.id.clone(), with.step.clone());
        self.agents.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let stream = match listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        debug!(%error, "socket of an agent");
                        return;
                    }
                };
                while served.len() >= CONNECTIONS && served.join_next().await.is_some() {}
                let (outside, id, step) = (outside.clone(), id.clone(), step.clone());
                served.spawn(async move { outside.forward(&id, stream, &step).await });
            }
        });
        let source = folder.join(SOCKET);
        let options = ["bind", "rprivate", "rw", "nosuid", "nodev", "noexec"];
        Ok(Some(json!({"type": "bind", "destination": mount.dest, "source": source, "options": options})))
    }

    /// Mounts a root below the folder of the run; a path in it as what the runtime is to mount.
    fn show(&mut self, root: &OwnedFd, path: &str, folder: &Path) -> Result<String, Errno> {
        let at = folder.join(format!("m{}", self.mounted.len()));
        DirBuilder::new().mode(0o700).create(&at).map_err(errno)?;
        // Programs are run from what is mounted, as from the root.
        set_attributes(root, Reach::One, 0, attr::NOEXEC | attr::NOSUID, None)?;
        self.put(root, &at)?;
        match relative(path) {
            "." => Ok(at.display().to_string()),
            path => self.below(root, path, folder),
        }
    }

    /// What a path leads to, wherever links lead, below a root that is mounted.
    fn below(&mut self, root: &OwnedFd, path: &str, folder: &Path) -> Result<String, Errno> {
        let opened = open_within(root, relative(path), OFlag::O_PATH, 0, Within::Root)?;
        let kind = SFlag::from_bits_truncate(fstat(&opened)?.st_mode) & SFlag::S_IFMT;
        let at = folder.join(format!("m{}", self.mounted.len()));
        if kind == SFlag::S_IFDIR {
            DirBuilder::new().mode(0o700).create(&at).map_err(errno)?;
        } else {
            File::create_new(&at).map_err(errno)?;
        }
        self.put(&clone_tree(&opened, c"", Reach::One)?, &at)?;
        Ok(at.display().to_string())
    }

    fn put(&mut self, mount: &OwnedFd, at: &Path) -> Result<(), Errno> {
        let place = nix::fcntl::open(at, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        self.mounted.push(at.to_owned());
        attach(mount, &place)
    }

    /// The runtime has taken what it needs: nothing is mounted on the host any more.
    pub fn settle(&mut self) {
        for at in self.mounted.drain(..).rev() {
            unmount(&at);
        }
    }

    /// Nobody runs any more: caches are free, agents are not to be reached.
    pub async fn give_back(&mut self) {
        self.settle();
        self.agents.shutdown().await;
        self.caches.clear();
        self.places.clear();
        self.trees.clear();
    }
}

/// Takes away a mount of a run and its folder; nothing there is fine.
pub fn unmount(at: &Path) {
    match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return warn!(at = %at.display(), %error, "mount of a build stays"),
    }
    // Only an empty folder goes: never what is mounted.
    let _ = std::fs::remove_dir(at).or_else(|_| std::fs::remove_file(at));
}

/// What sources are made with.
pub struct With<'a, O> {
    /// Makes filesystems.
    pub trees: &'a Trees,
    /// The caches.
    pub caches: &'a Caches,
    /// Inputs of the operation.
    pub inputs: &'a [Option<Tree>],
    /// Who is asked for secrets and agents.
    pub outside: &'a Arc<O>,
    /// For whom.
    pub step: &'a Step,
    /// The folder of the run.
    pub folder: &'a Path,
}

/// A secret; none if it may be missing and is.
pub async fn find_secret<O: Outside>(
    id: &str,
    optional: bool,
    with: &With<'_, O>,
) -> Result<Option<Vec<u8>>, StepError> {
    match with.outside.secret(id, with.step).await? {
        None if !optional => Err(StepError::NotFound(format!("secret {id}: not found"))),
        found => Ok(found),
    }
}

const SECRET: &str = "secret";
const SOCKET: &str = "agent.sock";

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

fn relative(path: &str) -> &str {
    match path.trim_start_matches('/') {
        "" => ".",
        path => path,
    }
}

fn missing(mount: &Mount) -> impl FnOnce(Errno) -> StepError {
    let (dest, selector) = (mount.dest.clone(), mount.selector.clone());
    move |cause| match cause {
        Errno::ENOENT | Errno::ENOTDIR => StepError::NotFound(format!("mount {dest}: {selector:?}: not found")),
        cause => StepError::Failed { what: format!("mount {dest}: open {selector:?}"), cause: cause.into() },
    }
}

fn bound(mount: &Mount, source: &str) -> Value {
    let access = if mount.readonly { "ro" } else { "rw" };
    json!({"type": "bind", "destination": mount.dest, "source": source, "options": ["bind", "rprivate", access]})
}

fn tmpfs(mount: &Mount, size: i64) -> Value {
    let mut options = vec!["nosuid".to_owned()];
    if mount.readonly {
        options.push("ro".to_owned());
    }
    if size > 0 {
        options.push(format!("size={size}"));
    }
    json!({"type": "tmpfs", "destination": mount.dest, "source": "tmpfs", "options": options})
}

/// A filesystem in memory with the secret as its only file.
fn hidden_file(data: &[u8], secret: &pb::SecretOpt) -> Result<OwnedFd, Errno> {
    // Not even in swap, where the kernel can promise that (6.4).
    let make = |noswap: bool| {
        let filesystem = Filesystem::open("tmpfs")?;
        filesystem.string("mode", "0700")?;
        filesystem.string("nr_inodes", "4")?;
        if noswap {
            filesystem.flag("noswap")?;
        }
        filesystem.mount(attr::NOSUID | attr::NODEV | attr::NOEXEC)
    };
    let root = make(true).or_else(|_| make(false))?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(&root, SECRET, flags, Mode::S_IRUSR)?;
    let mut file = File::from(file);
    file.write_all(data).map_err(errno)?;
    fchown(file.as_fd(), Some(Uid::from_raw(secret.uid)), Some(Gid::from_raw(secret.gid)))?;
    fchmod(file.as_fd(), Mode::from_bits_truncate(secret.mode & 0o777))?;
    drop(file);
    set_attributes(&root, Reach::One, attr::RDONLY, 0, None)?;
    Ok(root)
}

fn listen(folder: &Path, agent: &pb::SshOpt) -> std::io::Result<UnixListener> {
    DirBuilder::new().mode(0o700).create(folder)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = nix::fcntl::open(folder, flags, Mode::empty())?;
    // Addresses of sockets are short, data roots need not be.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", opened.as_raw_fd()))?;
    let (uid, gid) = (Uid::from_raw(agent.uid), Gid::from_raw(agent.gid));
    fchownat(&opened, SOCKET, Some(uid), Some(gid), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_bits_truncate(if agent.mode == 0 { 0o600 } else { agent.mode & 0o777 });
    fchmodat(&opened, SOCKET, mode, FchmodatFlags::FollowSymlink)?;
    Ok(listener)
}
