//! The source `git://`: files of a repository at a commit. `git` itself does the work, and nothing that a repository, its server or
//! this machine's configuration says makes it do anything else: no hooks, no filters, no helpers but ours, no protocol that
//! reaches this machine's files.
//!
//! Repositories are kept, bare and by the digest of their address, so that a commit is fetched once.

use crate::{
    app::App,
    build::{
        tree::{Tree, Trees},
        worker::run::Outside,
    },
};
use base64::Engine as _;
use nix::{errno::Errno, fcntl::OFlag};
use proto::{digest::Digest, pb};
use solver::{Pin, Step, StepError};
use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};
use sys::path::{Within, open_within};
use tokio::{io::AsyncReadExt as _, net::UnixListener, process::Command, task::JoinSet};

/// Names of attributes; BuildKit's.
const FULL_URL: &str = "git.fullurl";
const KEEP_DIR: &str = "git.keepgitdir";
const TOKEN: &str = "git.authtokensecret";
const HEADER: &str = "git.authheadersecret";
const KNOWN_HOSTS: &str = "git.knownsshhosts";
const SSH: &str = "git.mountsshsock";
const CHECKSUM: &str = "git.checksum";
const SKIP_SUBMODULES: &str = "git.skipsubmodules";

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Most that is read of what git says.
const WORDS: u64 = 1 << 20;
/// Protocols that leave this machine.
const PROTOCOLS: [&str; 4] = ["https", "http", "ssh", "git"];

/// Fetches repositories.
#[derive(Clone)]
pub struct Git(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    proxies: Vec<(&'static str, String)>,
    /// One at a time in the same repository.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

fn failed<E>(what: impl Into<String>) -> impl FnOnce(E) -> StepError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let what = what.into();
    move |cause| StepError::Failed { what, cause: cause.into() }
}

fn invalid(text: impl Into<String>) -> StepError {
    StepError::Invalid(text.into())
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    url: String,
    /// Branch, tag or commit; empty for the server's own choice.
    reference: String,
    /// A folder below.
    subdir: String,
    keep_dir: bool,
    skip_submodules: bool,
    checksum: String,
    known_hosts: String,
    ssh: Option<String>,
    token: Option<String>,
    header: Option<String>,
}

impl Wish {
    fn read(source: &pb::SourceOp) -> Result<Self, StepError> {
        let attr = |key: &str| source.attrs.get(key).filter(|value| !value.is_empty()).cloned();
        let rest = source.identifier.strip_prefix("git://").unwrap_or(&source.identifier);
        let (address, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        let url = match attr(FULL_URL) {
            Some(url) => url.split('#').next().unwrap_or_default().to_owned(),
            None => format!("https://{address}"),
        };
        check_url(&url)?;
        let bad = |what: &str| invalid(format!("git source {}: invalid {what}", shown(&url)));
        // As an argument it must not look like an option, nor as a reference like several.
        let fine = |c: char| c.is_ascii_graphic() && !matches!(c, '~' | '^' | ':' | '?' | '*' | '[' | '\\');
        if reference.starts_with('-') || reference.contains("..") || !reference.chars().all(fine) {
            return Err(bad(&format!("reference {reference:?}")));
        }
        let checksum = attr(CHECKSUM).unwrap_or_default();
        if !checksum.is_empty() && (checksum.len() < 7 || !is_hex(&checksum)) {
            return Err(bad(&format!("checksum {checksum:?}")));
        }
        let subdir = subdir.trim_matches('/');
        if subdir.split('/').any(|name| matches!(name, "." | ".." | ".git")) || subdir.contains('\0') {
            return Err(bad(&format!("folder {subdir:?}")));
        }
        Ok(Self {
            reference: reference.to_owned(),
            subdir: subdir.to_owned(),
            keep_dir: attr(KEEP_DIR).is_some_and(|value| value == "true"),
            skip_submodules: attr(SKIP_SUBMODULES).is_some_and(|value| value == "true"),
            checksum,
            known_hosts: attr(KNOWN_HOSTS).unwrap_or_default(),
            ssh: attr(SSH),
            token: attr(TOKEN),
            header: attr(HEADER),
            url,
        })
    }

    fn what(&self, verb: &str) -> String {
        format!("{verb} git repository {}", shown(&self.url))
    }

    /// What the files depend on besides the commit.
    fn key(&self, commit: &str) -> Digest {
        let git = if self.keep_dir { ".git" } else { "" };
        let modules = if self.skip_submodules { "-submodules" } else { "" };
        let text = format!("{commit}\0{git}\0{modules}\0{}", self.subdir);
        Digest::of(if self.keep_dir { format!("{text}\0{}", self.url) } else { text }.as_bytes())
    }
}

/// Without passwords.
fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = host.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

/// A URL of a known protocol, or `user@host:path`.
fn check_url(url: &str) -> Result<(), StepError> {
    let bad = || invalid(format!("invalid git URL {:?}", shown(url)));
    if url.starts_with('-') || url.chars().any(|c| c.is_control() || c == ' ') {
        return Err(bad());
    }
    match url.split_once("://") {
        Some((scheme, rest)) if PROTOCOLS.contains(&scheme) => {
            let host = rest.split('/').next().unwrap_or_default().rsplit('@').next().unwrap_or_default();
            // A host that begins with a dash would be an option of ssh (CVE-2017-1000117).
            if host.is_empty() || host.starts_with('-') { Err(bad()) } else { Ok(()) }
        }
        Some(_) => Err(bad()),
        None => match url.split_once(':') {
            Some((host, path)) if host.contains('@') && !host.contains('/') && !path.is_empty() => {
                let host = host.rsplit('@').next().unwrap_or_default();
                if host.is_empty() || host.starts_with('-') || path.starts_with('-') { Err(bad()) } else { Ok(()) }
            }
            _ => Err(bad()),
        },
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hex(text)
}

/// What git may use of the client's, while it is there.
struct Leave {
    /// Variables of its environment.
    env: Vec<(String, String)>,
    _agent: JoinSet<()>,
    folder: PathBuf,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Git {
    /// Keeps repositories in the data root of builds. Blocks.
    pub fn open(app: &App) -> io::Result<Self> {
        let set = &app.config.proxies;
        let proxies = [("HTTP_PROXY", &set.http_proxy), ("HTTPS_PROXY", &set.https_proxy), ("NO_PROXY", &set.no_proxy)];
        let proxies = proxies.into_iter().map(|(name, configured)| {
            let lower = name.to_ascii_lowercase();
            let value = Some(configured.clone()).filter(|value| !value.is_empty());
            (name, value.or_else(|| std::env::var(name).or_else(|_| std::env::var(lower)).ok()).unwrap_or_default())
        });
        Self::at(app.config.engine_data().join("builds").join("git"), proxies.collect())
    }

    fn at(folder: PathBuf, proxies: Vec<(&'static str, String)>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for entry in fs::read_dir(&folder)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self(Arc::new(Inner { folder, proxies, turns: Mutex::default() })))
    }

    /// The commit that a reference stands for now.
    pub async fn pin<O: Outside>(
        &self,
        source: &pb::SourceOp,
        outside: &Arc<O>,
        step: &Step,
    ) -> Result<Pin, StepError> {
        let wish = Wish::read(source)?;
        let commit = if is_commit(&wish.reference) {
            wish.reference.clone()
        } else {
            let leave = self.leave(&wish, outside, step).await?;
            self.look_up(&wish, &leave).await?
        };
        if !commit.starts_with(&wish.checksum) {
            let expected = &wish.checksum;
            return Err(invalid(format!("expected checksum to match {expected}, got {commit}")));
        }
        let mut pinned = source.clone();
        pinned.attrs.insert(FULL_URL.into(), wish.url.clone());
        pinned.attrs.insert(COMMIT.into(), commit.clone());
        Ok(Pin { key: wish.key(&commit), source: pinned })
    }

    /// Its files, in a filesystem of their own.
    pub async fn fetch<O: Outside>(
        &self,
        pinned: &pb::SourceOp,
        trees: &Trees,
        outside: &Arc<O>,
        step: &Step,
    ) -> Result<Tree, StepError> {
        let wish = Wish::read(pinned)?;
        let commit = pinned.attrs.get(COMMIT).filter(|commit| is_commit(commit)).cloned();
        let commit = commit.ok_or_else(|| invalid(wish.what("not pinned:")))?;
        let what = wish.what("check out");
        let name = digest_of(&wish.url);
        let _turn = self.turn(&name).await;
        let leave = self.leave(&wish, outside, step).await?;
        let repository = self.repository(&wish, &name, &commit, &leave).await?;
        let draft = trees.draft(&trees.scratch()).await.map_err(failed(what.clone()))?;
        let root = draft.open().await.map_err(failed(what.clone()))?;
        // Not in the draft: its mount is nowhere, and git wants to know where it is.
        let aside = self.0.folder.join(format!(".out-{name}"));
        let _ = fs::remove_dir_all(&aside);
        DirBuilder::new().mode(0o700).create(&aside).map_err(failed(what.clone()))?;
        let aside = Aside(aside);
        self.check_out(&wish, &repository, &commit, &aside.0, &leave).await?;
        let text = what.clone();
        let moved = tokio::task::spawn_blocking(move || {
            let folder = subfolder(&aside.0, &wish.subdir).map_err(|cause| match cause {
                Errno::ENOENT => StepError::NotFound(format!("{text}: folder {:?}: not found", wish.subdir)),
                cause => StepError::Failed { what: format!("{text}: folder {:?}", wish.subdir), cause: cause.into() },
            })?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let root = open_within(&root, ".", flags, 0, Within::Root).map_err(failed(text.clone()))?;
            crate::volumes::copy::copy_tree(&folder, &root).map_err(failed(text))
        });
        moved.await.map_err(failed(what.clone()))??;
        draft.commit().await.map_err(failed(what))
    }

    async fn turn(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let found = turns.get(name).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(name.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// Secrets and the agent that git may use.
    async fn leave<O: Outside>(&self, wish: &Wish, outside: &Arc<O>, step: &Step) -> Result<Leave, StepError> {
        let random = crate::ids::random_bytes::<8>().map_err(failed(wish.what("prepare")))?;
        let folder = self.0.folder.join(format!(".with-{}", proto::digest::hex(&random)));
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed(wish.what("prepare")))?;
        let mut leave = Leave { env: Vec::new(), _agent: JoinSet::new(), folder };
        let mut set = |key: &str, value: String| leave.env.push((key.to_owned(), value));
        // By the environment: arguments can be read by everybody on this machine, files outlive those who die.
        if let Some(header) = self.authorization(wish, outside, step).await? {
            let origin = wish.url.split_once("://").map(|(scheme, rest)| {
                format!(
                    "{scheme}://{}/",
                    rest.split('/').next().unwrap_or_default().rsplit('@').next().unwrap_or_default()
                )
            });
            set("GIT_CONFIG_COUNT", "1".into());
            set("GIT_CONFIG_KEY_0", format!("http.{}.extraHeader", origin.unwrap_or_default()));
            set("GIT_CONFIG_VALUE_0", format!("Authorization: {header}"));
        }
        let hosts = leave.folder.join("known_hosts");
        let checking = if wish.known_hosts.is_empty() { "no" } else { "yes" };
        fs::write(&hosts, &wish.known_hosts).map_err(failed(wish.what("prepare")))?;
        let quoted = format!("'{}'", hosts.display().to_string().replace('\'', "'\\''"));
        let ssh = format!(
            "ssh -F /dev/null -o BatchMode=yes -o ConnectTimeout=30 -o StrictHostKeyChecking={checking} -o UserKnownHostsFile={quoted}"
        );
        leave.env.push(("GIT_SSH_COMMAND".into(), ssh));
        if let Some(id) = &wish.ssh
            && outside.has_agent(id, step).await?
        {
            let socket =
                serve_agent(&mut leave, id, outside, step).map_err(failed(wish.what("forward an agent to")))?;
            leave.env.push(("SSH_AUTH_SOCK".into(), socket));
        }
        Ok(leave)
    }

    async fn authorization<O: Outside>(
        &self,
        wish: &Wish,
        outside: &Arc<O>,
        step: &Step,
    ) -> Result<Option<String>, StepError> {
        if !wish.url.starts_with("http") {
            return Ok(None);
        }
        let host = wish.url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        let host = host.rsplit('@').next().unwrap_or_default();
        for (named, general) in [(&wish.header, "GIT_AUTH_HEADER"), (&wish.token, "GIT_AUTH_TOKEN")] {
            let name = named.as_deref().unwrap_or(general);
            for id in [format!("{name}.{host}"), name.to_owned()] {
                let Some(secret) = outside.secret(&id, step).await? else { continue };
                let text = String::from_utf8(secret).map_err(|_| invalid(format!("secret {id} is no text")))?;
                let text = text.trim_end().to_owned();
                if text.chars().any(char::is_control) {
                    return Err(invalid(format!("secret {id} is no header")));
                }
                let basic = || base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{text}"));
                let is_token = general == "GIT_AUTH_TOKEN";
                return Ok(Some(if is_token { format!("basic {}", basic()) } else { text }));
            }
        }
        Ok(None)
    }

    async fn look_up(&self, wish: &Wish, leave: &Leave) -> Result<String, StepError> {
        let mut wanted = vec!["ls-remote".to_owned(), "--".into(), wish.url.clone()];
        if wish.reference.is_empty() {
            wanted.push("HEAD".into());
        } else {
            wanted.extend([wish.reference.clone(), format!("{}^{{}}", wish.reference)]);
        }
        let answer = self.git(wish, &self.0.folder, &wanted, leave).await?;
        let refs: HashMap<&str, &str> =
            answer.lines().filter_map(|line| line.split_once('\t')).map(|(c, r)| (r, c)).collect();
        let reference = if wish.reference.is_empty() { "HEAD" } else { &wish.reference };
        let places = ["", "refs/tags/", "refs/heads/", "refs/"].map(|place| format!("{place}{reference}"));
        // The commit rather than the tag that has its own text.
        let found = places
            .iter()
            .find_map(|name| refs.get(format!("{name}^{{}}").as_str()).or_else(|| refs.get(name.as_str())));
        match found {
            Some(commit) if is_commit(commit) => Ok((*commit).to_owned()),
            _ => Err(StepError::NotFound(format!(
                "{}: repository does not contain ref {reference}",
                wish.what("look up")
            ))),
        }
    }

    /// The repository, with the commit in it.
    async fn repository(&self, wish: &Wish, name: &str, commit: &str, leave: &Leave) -> Result<PathBuf, StepError> {
        let folder = self.0.folder.join(name);
        if !folder.join("HEAD").exists() {
            let fresh = self.0.folder.join(format!(".new-{name}"));
            let _ = fs::remove_dir_all(&fresh);
            let template = "--template=".to_owned();
            let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
            let words = [
                "init".to_owned(),
                "--quiet".into(),
                "--bare".into(),
                template,
                format.into(),
                fresh.display().to_string(),
            ];
            self.git(wish, &self.0.folder, &words, leave).await?;
            fs::rename(&fresh, &folder).map_err(failed(wish.what("make")))?;
        }
        let has = [format!("{commit}^{{commit}}")];
        let has = ["cat-file".to_owned(), "-e".into()].into_iter().chain(has).collect::<Vec<_>>();
        let marker = folder.join("fetched").join(commit);
        if marker.exists() && self.git(wish, &folder, &has, leave).await.is_ok() {
            return Ok(folder);
        }
        // Left by one that was killed.
        for lock in ["shallow.lock", "FETCH_HEAD.lock", "config.lock"] {
            let _ = fs::remove_file(folder.join(lock));
        }
        let fetch = |what: &str, depth: bool| {
            let mut words = vec!["fetch".to_owned(), "--quiet".into(), "--no-tags".into(), "--force".into()];
            words.push("--no-recurse-submodules".into());
            if depth {
                words.push("--depth=1".into());
            }
            words.extend(["--".to_owned(), wish.url.clone(), what.to_owned()]);
            words
        };
        let by_commit = self.git(wish, &folder, &fetch(commit, true), leave).await;
        if let Err(error) = by_commit {
            // Servers may refuse to give what no name leads to: then by name, and with all that is below.
            let all = if is_commit(&wish.reference) { "+refs/*:refs/fetched/*" } else { &wish.reference };
            let by_name =
                self.git(wish, &folder, &fetch(if all.is_empty() { "HEAD" } else { all }, false), leave).await;
            if by_name.is_err() || self.git(wish, &folder, &has, leave).await.is_err() {
                return Err(error);
            }
        }
        let noted = fs::create_dir_all(folder.join("fetched")).and_then(|()| fs::write(&marker, ""));
        noted.map_err(failed(wish.what("fetch")))?;
        // Kept by a name, whatever is cleaned up there one day.
        let words = ["update-ref".to_owned(), format!("refs/berth/{commit}"), commit.to_owned()];
        self.git(wish, &folder, &words, leave).await?;
        Ok(folder)
    }

    async fn check_out(
        &self,
        wish: &Wish,
        repository: &Path,
        commit: &str,
        to: &Path,
        leave: &Leave,
    ) -> Result<(), StepError> {
        let text = |word: &str| word.to_owned();
        // A repository of its own beside the files: submodules and `.git` need one, and nothing of it refers to ours.
        let own = to.join(".git");
        let format = if commit.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        self.git(wish, to, &[text("init"), text("--quiet"), text("--template="), text(format), text(".")], leave)
            .await?;
        let from = format!("file://{}", repository.display());
        let fetch = ["fetch", "--quiet", "--no-tags", "--depth=1", "--no-recurse-submodules", "--"].map(text);
        let words: Vec<String> = fetch.into_iter().chain([from, format!("refs/berth/{commit}")]).collect();
        self.git_locally(wish, to, &words, leave).await?;
        self.git(
            wish,
            to,
            &[
                text("-c"),
                text("advice.detachedHead=false"),
                text("checkout"),
                text("--quiet"),
                text("--force"),
                text("--detach"),
                text(commit),
            ],
            leave,
        )
        .await?;
        let modules = fs::symlink_metadata(to.join(".gitmodules")).is_ok_and(|meta| meta.is_file());
        if modules && !wish.skip_submodules {
            self.git(wish, to, &[text("remote"), text("add"), text("origin"), text("--"), wish.url.clone()], leave)
                .await?;
            let update =
                ["submodule", "update", "--quiet", "--init", "--recursive", "--depth=1", "--checkout"].map(text);
            self.git(wish, to, &update, leave).await?;
        }
        if !wish.keep_dir {
            remove_git(to).map_err(failed(wish.what("check out")))?;
        } else {
            let _ = fs::remove_file(own.join("FETCH_HEAD"));
            if !modules || wish.skip_submodules {
                self.git(wish, to, &[text("remote"), text("add"), text("origin"), text("--"), wish.url.clone()], leave)
                    .await?;
            }
        }
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(to, open).map_err(failed(wish.what("check out")))
    }

    fn is_repository(&self, at: &Path) -> bool {
        let name = at.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        at.parent() == Some(self.0.folder.as_path()) && !name.starts_with('.')
    }

    async fn git(&self, wish: &Wish, at: &Path, words: &[String], leave: &Leave) -> Result<String, StepError> {
        self.call(wish, at, words, leave, false).await
    }

    /// The same from our own repositories.
    async fn git_locally(&self, wish: &Wish, at: &Path, words: &[String], leave: &Leave) -> Result<String, StepError> {
        self.call(wish, at, words, leave, true).await
    }

    async fn call(
        &self,
        wish: &Wish,
        at: &Path,
        words: &[String],
        leave: &Leave,
        local: bool,
    ) -> Result<String, StepError> {
        let verb =
            words.iter().find(|word| !word.starts_with('-') && !word.contains('=')).map_or("git", String::as_str);
        let what = format!("git {verb}: {}", shown(&wish.url));
        let mut command = Command::new("git");
        command.current_dir(at).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).process_group(0);
        for name in ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.0.proxies.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (*name, value)));
        // curl reads this one in lower case only.
        command.envs(
            self.0
                .proxies
                .iter()
                .filter(|(name, value)| *name == "HTTP_PROXY" && !value.is_empty())
                .map(|(_, v)| ("http_proxy", v)),
        );
        command
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("SSH_ASKPASS", "/bin/false")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .env("GIT_ALLOW_PROTOCOL", if local { "file" } else { "https:http:ssh:git" })
            .env("HOME", &leave.folder)
            .env("LC_ALL", "C");
        // Only what we have made is a repository, never what a checkout makes look like one.
        let above = at.parent().unwrap_or(at).display().to_string();
        command.env("GIT_CEILING_DIRECTORIES", format!("{}:{above}", self.0.folder.display()));
        if self.is_repository(at) {
            command.env("GIT_DIR", at);
        }
        command.envs(leave.env.iter().map(|(key, value)| (key, value)));
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.symlinks=true",
            "core.protectHFS=true",
            "core.protectNTFS=true",
            "credential.helper=",
            "gc.auto=0",
            "maintenance.auto=false",
            "safe.directory=*",
            "safe.bareRepository=explicit",
            "submodule.fetchJobs=1",
            "fetch.fsckObjects=false",
            "transfer.advertiseSID=false",
            "http.followRedirects=initial",
        ] {
            command.args(["-c", setting]);
        }
        command.args(words);
        let mut child = command.spawn().map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => {
                StepError::Unsupported(format!("{what}: git is not installed on this machine (package git)"))
            }
            _ => failed(what.clone())(cause),
        })?;
        let group = Group(child.id());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let read = async |stream: Option<&mut (dyn tokio::io::AsyncRead + Send + Unpin)>,
                              to: &mut Vec<u8>|
                   -> io::Result<()> {
                if let Some(stream) = stream {
                    stream.take(WORDS).read_to_end(to).await?;
                }
                Ok(())
            };
            let (mut stdout, mut stderr) = (stdout, stderr);
            let (a, b) = tokio::join!(
                read(stdout.as_mut().map(|s| s as &mut (dyn tokio::io::AsyncRead + Send + Unpin)), &mut out),
                read(stderr.as_mut().map(|s| s as &mut (dyn tokio::io::AsyncRead + Send + Unpin)), &mut err)
            );
            a.and(b)?;
            drop((stdout, stderr));
            child.wait().await
        };
        let status = match tokio::time::timeout(PATIENCE, work).await {
            Ok(status) => status.map_err(failed(what.clone()))?,
            Err(_) => return Err(failed(what)(format!("not done within {} s", PATIENCE.as_secs()))),
        };
        group.ended();
        if status.success() {
            return Ok(String::from_utf8_lossy(&out).into_owned());
        }
        let words = String::from_utf8_lossy(&err);
        let last: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).rev().take(3).collect();
        let last: Vec<String> = last.into_iter().rev().map(|line| line.replace(&wish.url, &shown(&wish.url))).collect();
        Err(failed(what)(format!("{status}: {}", last.join("; "))))
    }
}

/// Attribute of a pinned source.
const COMMIT: &str = "git.commit";

/// The processes of a call: they go with it.
struct Group(Option<u32>);

impl Group {
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// A folder that goes.
struct Aside(PathBuf);

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Addresses are no names of files (CVE-2026-33747).
fn digest_of(url: &str) -> String {
    let text = Digest::of(url.as_bytes()).to_string();
    text.split_once(':').map_or(text.clone(), |(_, hex)| hex.to_owned())
}

/// A folder of a checkout, by real folders alone (CVE-2026-33748).
fn subfolder(root: &Path, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(root, flags, nix::sys::stat::Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    open_within(&root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0, Within::Plain)
}

/// Removes what git keeps beside the files, of submodules too, which have files of that name.
fn remove_git(root: &Path) -> io::Result<()> {
    fs::remove_dir_all(root.join(".git"))?;
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if entry.file_name() == ".git" {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

fn serve_agent<O: Outside>(leave: &mut Leave, id: &str, outside: &Arc<O>, step: &Step) -> io::Result<String> {
    let path = leave.folder.join("agent.sock");
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = nix::fcntl::open(&leave.folder, flags, nix::sys::stat::Mode::empty())?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/agent.sock", folder.as_raw_fd()))?;
    let (outside, id, step) = (outside.clone(), id.to_owned(), step.clone());
    leave._agent.spawn(async move {
        let mut served = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (outside, id, step) = (outside.clone(), id.clone(), step.clone());
            served.spawn(async move { outside.forward(&id, stream, &step).await });
        }
    });
    Ok(path.display().to_string())
}

#[cfg(test)]
pub(crate) mod tests;
