//! Commands in real containers: a supervisor of its own with the shim and the runtime, an engine without its sockets in this
//! process, a root with busybox. With `BERTH_RUN_ON_CONTAINERD` set, a containerd is in the supervisor's place.

use super::*;
use crate::{
    app,
    config::{Args, Config},
    containers::start,
    supervisor::Client,
};
use clap::Parser as _;
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    sys::{signal::Signal, stat::Mode},
    unistd::Pid,
};
use proto::{
    containerd::services::{containers::v1::ListContainersRequest, tasks::v1::ListTasksRequest},
    moby::buildkit::v1::{VertexLog, VertexStatus, VertexWarning},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
};

static NUMBER: AtomicU8 = AtomicU8::new(0);

/// Clients that have some secrets, and an agent that answers in capitals.
#[derive(Default)]
struct Fake {
    secrets: BTreeMap<String, Vec<u8>>,
}

impl Outside for Fake {
    async fn secret(&self, id: &str, _: &Step) -> Result<Option<Vec<u8>>, StepError> {
        Ok(self.secrets.get(id).cloned())
    }

    async fn has_agent(&self, id: &str, _: &Step) -> Result<bool, StepError> {
        Ok(id == "default")
    }

    async fn forward(&self, _: &str, mut stream: UnixStream, _: &Step) {
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            let answer = buffer[..count].to_ascii_uppercase();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }

    async fn content(&self, of: &Tree, _: &Step) -> Result<Digest, StepError> {
        Ok(Digest::of(of.snapshot_key().unwrap_or_default().as_bytes()))
    }
}

/// Keeps what commands say.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<VertexLog>>);

impl solver::worker::Progress for Told {
    fn log(&self, log: VertexLog) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(log);
    }
    fn status(&self, _: VertexStatus) {}
    fn warn(&self, _: VertexWarning) {}
}

struct Bench {
    folder: tempfile::TempDir,
    supervisor: Child,
    app: Arc<App>,
    runner: Runner<Fake>,
    trees: Trees,
    root: Tree,
    told: Arc<Told>,
}

fn program(name: &str) -> Option<PathBuf> {
    let chosen = std::env::var_os("BERTH_BIN_DIR").map(PathBuf::from);
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned()));
    chosen.into_iter().chain(beside).map(|folder| folder.join(name)).find(|path| path.exists())
}

fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists())
}

const APPLETS: [&str; 30] = [
    "sh", "cat", "echo", "sleep", "id", "true", "false", "ls", "mv", "rm", "ln", "mkdir", "ip", "stat", "touch", "env",
    "pwd", "grep", "test", "chmod", "nc", "kill", "hostname", "mount", "find", "seq", "ps", "mknod", "head", "tail",
];

impl Bench {
    async fn new() -> Option<Self> {
        Self::with(&[]).await
    }

    async fn with(secrets: &[(&str, &str)]) -> Option<Self> {
        if std::env::var_os("BERTH_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_env("BERTH_LOG");
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        }
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: containers need root");
            return None;
        }
        let foreign = std::env::var_os("BERTH_RUN_ON_CONTAINERD").is_some();
        let program = if foreign { Some("/usr/bin/containerd".into()) } else { program("berth-supervisor") };
        let Some(program) = program else {
            eprintln!("skipped: berth-supervisor is not built");
            return None;
        };
        let busybox = busybox()?;
        // Engines look beside themselves.
        if let (Some(shim), Ok(exe)) = (self::program("berth-shim"), std::env::current_exe()) {
            let _ = symlink(shim, exe.with_file_name("berth-shim"));
        }
        let folder = tempfile::Builder::new().prefix("berth-run-").tempdir().unwrap();
        let (data, run) = (folder.path().join("D"), folder.path().join("R"));
        let socket = run.join("supervisor.sock");
        let log = fs::File::create(folder.path().join("supervisor.log")).unwrap();
        let mut command = Command::new(program);
        if foreign {
            fs::create_dir_all(&run).unwrap();
            let config = folder.path().join("containerd.toml");
            let text = format!(
                "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {socket:?}\n",
                folder.path().join("C"),
                run.join("containerd"),
            );
            fs::write(&config, text).unwrap();
            command.arg("--config").arg(config);
        } else {
            command.args(["--data-root", data.to_str().unwrap(), "--run-root", run.to_str().unwrap()]);
        }
        let supervisor = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let config = folder.path().join("engine.toml");
        fs::write(&config, "").unwrap();
        let args = Args::parse_from([
            "berth-engine",
            "--data-root",
            data.to_str().unwrap(),
            "--run-root",
            run.to_str().unwrap(),
            "--bridge",
            &format!("bru{}x{number}", id % 10_000),
            "--bip",
            &format!("10.{}.{number}.1/24", 100 + id % 100),
            "--config",
            config.to_str().unwrap(),
        ]);
        let config = Config::load(args).unwrap();
        for path in [config.engine_data(), config.engine_run()] {
            fs::create_dir_all(path).unwrap();
        }
        let client = Client::new(&socket).with_storage_driver(None).await.unwrap();
        let app = app::open(config, client).unwrap();
        let trees = Trees::open(&app.supervisor).await.unwrap();
        let draft = trees.draft(&trees.scratch()).await.unwrap();
        let fd = draft.open().await.unwrap();
        fill(&fd, &busybox);
        drop(fd);
        let root = draft.commit().await.unwrap();
        let caches = open_caches(&app.config.engine_data()).unwrap();
        let secrets = secrets.iter().map(|(id, text)| ((*id).to_owned(), text.as_bytes().to_vec())).collect();
        let runner = Runner::new(app.clone(), trees.clone(), caches, Arc::new(Fake { secrets }));
        Some(Self { folder, supervisor, app, runner, trees, root, told: Arc::default() })
    }

    fn step(&self, entitlements: &[&str]) -> (watch::Sender<bool>, Step) {
        let (sender, cancelled) = watch::channel(false);
        let step = Step {
            digest: "sha256:1".into(),
            name: "RUN".into(),
            sessions: Vec::new(),
            entitlements: entitlements.iter().map(|&word| word.to_owned()).collect(),
            progress: self.told.clone(),
            cancelled,
        };
        (sender, step)
    }

    /// Runs a script on the root; its results.
    async fn sh(&self, script: &str, change: impl FnOnce(&mut pb::ExecOp)) -> Result<Vec<Option<Tree>>, StepError> {
        self.on(vec![Some(self.root.clone())], script, change, &[]).await
    }

    async fn on(
        &self,
        inputs: Vec<Option<Tree>>,
        script: &str,
        change: impl FnOnce(&mut pb::ExecOp),
        entitlements: &[&str],
    ) -> Result<Vec<Option<Tree>>, StepError> {
        let mut op = script_op(script);
        change(&mut op);
        let (_sender, step) = self.step(entitlements);
        self.told.0.lock().unwrap().clear();
        self.runner.run(&op, inputs, &step).await
    }

    fn said(&self, stream: i64) -> String {
        let told = self.told.0.lock().unwrap();
        let bytes: Vec<u8> = told.iter().filter(|log| log.stream == stream).flat_map(|log| log.msg.clone()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// A filesystem with these files.
    async fn tree(&self, files: &[(&str, &str)]) -> Tree {
        let draft = self.trees.draft(&self.trees.scratch()).await.unwrap();
        let fd = draft.open().await.unwrap();
        let at = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        for (name, text) in files {
            let path = at.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(to) => symlink(to, path).unwrap(),
                None => fs::write(path, text).unwrap(),
            }
        }
        drop(fd);
        draft.commit().await.unwrap()
    }

    /// Files that hold a word.
    fn traces(&self, word: &str) -> String {
        let mut grep = Command::new("grep");
        // No pipe and no socket is waited for.
        let found = grep.args(["-rlaF", "-D", "skip", word]).arg(self.folder.path()).output().unwrap();
        String::from_utf8_lossy(&found.stdout).into_owned()
    }

    /// What is left of runs.
    async fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        let containers = self.app.supervisor.containers().list(ListContainersRequest::default()).await.unwrap();
        left.extend(containers.into_inner().containers.into_iter().map(|c| format!("container {}", c.id)));
        let tasks = self.app.supervisor.tasks().list(ListTasksRequest::default()).await.unwrap();
        left.extend(tasks.into_inner().tasks.into_iter().map(|task| format!("task {}", task.id)));
        for folder in ["builds", "netns"] {
            let folder = self.app.config.engine_run().join(folder);
            left.extend(fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path().display().to_string()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours = self.app.config.engine_run().join("builds").display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&ours)).map(str::to_owned));
        left
    }

    async fn nothing_is_left(&self) {
        assert_eq!(self.leftovers().await, Vec::<String>::new());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.app.networks.remove_if_unused();
        let _ = nix::sys::signal::kill(Pid::from_raw(self.supervisor.id().cast_signed()), Signal::SIGTERM);
        let _ = self.supervisor.wait();
        let run = self.folder.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&run)) {
            eprintln!("left mounted: {at}");
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

fn fill(root: &OwnedFd, busybox: &Path) {
    let at = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
    for folder in ["bin", "etc", "tmp", "proc", "dev", "sys", "sbin"] {
        fs::create_dir(at.join(folder)).unwrap();
    }
    fs::copy(busybox, at.join("bin/busybox")).unwrap();
    fs::set_permissions(at.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
    for name in APPLETS {
        symlink("busybox", at.join("bin").join(name)).unwrap();
    }
    fs::write(at.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n").unwrap();
    fs::write(at.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:1002:app\n").unwrap();
}

fn script_op(script: &str) -> pb::ExecOp {
    let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    pb::ExecOp {
        meta: Some(pb::Meta { args, cwd: "/".into(), remove_mount_stubs_recursive: true, ..pb::Meta::default() }),
        mounts: vec![pb::Mount { dest: "/".into(), ..pb::Mount::default() }],
        ..pb::ExecOp::default()
    }
}

fn meta(op: &mut pb::ExecOp) -> &mut pb::Meta {
    op.meta.as_mut().unwrap()
}

fn mount(kind: pb::MountType, dest: &str) -> pb::Mount {
    pb::Mount { dest: dest.into(), input: -1, output: -1, mount_type: kind as i32, ..pb::Mount::default() }
}

fn cache(id: &str, dest: &str, selector: &str) -> pb::Mount {
    let cache_opt = Some(pb::CacheOpt { id: id.into(), sharing: 0 });
    pb::Mount { cache_opt, selector: selector.into(), ..mount(pb::MountType::Cache, dest) }
}

async fn read(tree: &Tree, path: &str) -> Option<String> {
    let root = tree.open().await.unwrap();
    let file =
        sys::path::open_within(&root, path, OFlag::O_RDONLY, Mode::empty().bits(), sys::path::Within::Root).ok()?;
    let mut text = String::new();
    fs::File::from(file).read_to_string(&mut text).ok()?;
    Some(text)
}

async fn names(tree: &Tree, path: &str) -> Vec<String> {
    let root = tree.open().await.unwrap();
    let at = PathBuf::from(format!("/proc/self/fd/{}/{path}", root.as_raw_fd()));
    let mut names: Vec<String> =
        fs::read_dir(at).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_writes_and_says() {
    let Some(bench) = Bench::new().await else { return };
    let script = "echo out; echo err >&2; echo -n half; pwd > /made; id >> /made; env | grep -v SHLVL >> /made";
    let results = bench.sh(script, |op| {
        let meta = meta(op);
        (meta.cwd, meta.user) = ("/srv/deep".into(), "app".into());
        meta.env = vec!["A=b".into()];
        // So that it may write there.
        meta.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        meta.user = "0:app".into();
    });
    let results = results.await.unwrap();
    assert_eq!((bench.said(1).as_str(), bench.said(2).as_str()), ("out\nhalf", "err\n"));
    let tree = results.into_iter().next().flatten().unwrap();
    let made = read(&tree, "made").await.unwrap();
    assert!(made.starts_with("/srv/deep\nuid=0(root) gid=1001(app) groups=1001(app)"), "{made}");
    assert!(made.contains("A=b") && made.contains("PATH=/usr/local/sbin") && made.contains("HOME=/root"), "{made}");
    // Nothing of what was only there to be mounted on.
    assert_eq!(names(&tree, "etc").await, ["group", "passwd"]);
    assert_eq!(names(&tree, "").await, ["bin", "dev", "etc", "made", "proc", "sbin", "srv", "sys", "tmp"]);
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_which_command_and_how() {
    let Some(bench) = Bench::new().await else { return };
    let error = bench.sh("echo \"x\"; exit 7", |_| {}).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        r#"process "/bin/sh -c echo \"x\"; exit 7" did not complete successfully: exit code: 7"#
    );
    bench.sh("exit 7", |op| meta(op).valid_exit_codes = vec![7]).await.unwrap();
    let missing = bench.sh("", |op| meta(op).args = vec!["/nowhere".into()]).await.err().unwrap();
    let text = proto::kind::chain(&missing).to_string();
    assert!(text.contains("/nowhere") && text.to_lowercase().contains("no such file"), "{text}");
    let nobody = bench.sh("true", |op| meta(op).user = "nobody-here".into()).await.err().unwrap();
    assert!(proto::kind::chain(&nobody).to_string().contains("unable to find user nobody-here"));
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_can_be_mounted() {
    let Some(bench) = Bench::with(&[("token", "s3cret"), ("word", "known")]).await else { return };
    let files = bench.tree(&[("dir/file", "hello"), ("run.sh", "#!/bin/sh\necho ran"), ("link", "-> /dir")]).await;
    let script = "set -e; cat /ro/dir/file; sh /one; touch /ro/x 2>/dev/null && exit 9
        echo changed > /rw/dir/file; echo kept > /out/new; echo gone > /t/x
        cat /c/old 2>/dev/null || true; echo warm > /c/old
        cat /secrets/token; stat -c ' %a %u %g' /secrets/token; echo $TOKEN
        test ! -e /optional; mount | grep -c ' /t ' ; cat /viaLink/file; cat /based/file";
    let op = |op: &mut pb::ExecOp| {
        let bind = |dest: &str, input| pb::Mount { input, ..mount(pb::MountType::Bind, dest) };
        op.mounts.extend([
            pb::Mount { readonly: true, ..bind("/ro", 1) },
            pb::Mount { readonly: true, selector: "/run.sh".into(), ..bind("/one", 1) },
            pb::Mount { readonly: true, selector: "link".into(), ..bind("/viaLink", 1) },
            bind("/rw", 1),
            pb::Mount { output: 1, ..bind("/out", 1) },
            pb::Mount { tmpfs_opt: Some(pb::TmpfsOpt { size: 1 << 20 }), ..mount(pb::MountType::Tmpfs, "/t") },
            cache("warm", "/c", ""),
            pb::Mount { input: 1, ..cache("based", "/based", "dir") },
        ]);
        let secret = |id: &str, dest: &str, optional| {
            let opt = pb::SecretOpt { id: id.into(), uid: 5, gid: 6, mode: 0o440, optional };
            pb::Mount { secret_opt: Some(opt), ..mount(pb::MountType::Secret, dest) }
        };
        op.mounts.extend([secret("token", "/secrets/token", false), secret("none", "/optional", true)]);
        op.secretenv.push(pb::SecretEnv { id: "word".into(), name: "TOKEN".into(), optional: false });
    };
    let inputs = || vec![Some(bench.root.clone()), Some(files.clone())];
    for told in ["", "warm\n"] {
        let results = bench.on(inputs(), script, op, &[]).await;
        let refused = results.as_ref().err().map(|error| proto::kind::chain(error));
        assert!(refused.is_none(), "{refused:?}\n{}{}", bench.said(1), bench.said(2));
        assert_eq!(bench.said(1), format!("helloran\n{told}s3cret 440 5 6\nknown\n1\nhellohello"), "{}", bench.said(2));
        let results = results.unwrap();
        let (root, out) = (results[0].clone().unwrap(), results[1].clone().unwrap());
        assert_eq!(read(&out, "new").await.as_deref(), Some("kept\n"));
        assert_eq!(read(&out, "dir/file").await.as_deref(), Some("hello"));
        assert_eq!(names(&root, "").await, ["bin", "dev", "etc", "proc", "sbin", "sys", "tmp"]);
    }
    assert_eq!(read(&files, "dir/file").await.as_deref(), Some("hello"));
    assert!(bench.runner.caches.list().iter().all(|record| !record.in_use && record.size > 0));
    let missing = bench
        .sh("true", |op| {
            let opt = pb::SecretOpt { id: "lost".into(), ..pb::SecretOpt::default() };
            op.mounts.push(pb::Mount { secret_opt: Some(opt), ..mount(pb::MountType::Secret, "/x") });
        })
        .await;
    assert_eq!(missing.err().unwrap().to_string(), "secret lost: not found");
    bench.nothing_is_left().await;
    // Nowhere on disk.
    assert_eq!(bench.traces("s3cret"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_of_secrets_are_the_commands_alone() {
    let long = "many words, ".repeat(10_000);
    let Some(bench) = Bench::with(&[("word", "deeply-hidden"), ("long", &long), ("path", "/bin")]).await else {
        return;
    };
    let secret = |id: &str, name: &str| pb::SecretEnv { id: id.into(), name: name.into(), optional: false };
    let command = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|&word| word.to_owned()).collect();
        let secrets = vec![secret("word", "WORD"), secret("long", "LONG"), secret("word", "TWICE")];
        move |op: &mut pb::ExecOp| {
            op.secretenv = secrets;
            let meta = meta(op);
            (meta.args, meta.user, meta.cwd) = (args, "app".into(), "/tmp".into());
            meta.env = vec!["A=b".into(), "TWICE=no".into()];
        }
    };
    // As without them, apart from the variables.
    let status = "pwd; id; cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline; umask; ls -A /; ulimit -n
        grep -E '^(Cap|NoNew|Seccomp:|Sig(Blk|Ign|Cgt)|Uid|Gid|Groups)' /proc/self/status";
    let args = ["sh", "-c", status];
    bench.sh("", command(&args)).await.unwrap();
    let with = bench.said(1);
    let without = |op: &mut pb::ExecOp| {
        command(&args)(op);
        op.secretenv.clear();
    };
    bench.sh("", without).await.unwrap();
    assert_eq!(with, bench.said(1));
    // While it runs nothing has them but itself.
    let traces = "test $LONG_IS = ${#LONG} && echo $WORD $TWICE $A; echo up; sleep 1; echo over";
    let long_is = format!("LONG_IS={}", long.len());
    let running = bench.sh("", |op| {
        command(&["sh", "-c", traces])(op);
        meta(op).env.push(long_is);
    });
    let looking = async {
        let begun = Instant::now();
        while !bench.said(1).ends_with("up\n") {
            assert!(begun.elapsed() < Duration::from_secs(20), "it doesn't start: {}{}", bench.said(1), bench.said(2));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.traces("deeply-hidden")
    };
    let (done, found) = tokio::join!(running, looking);
    let tree = done.unwrap().remove(0).unwrap();
    assert_eq!((found.as_str(), bench.said(1).as_str()), ("", "deeply-hidden deeply-hidden b\nup\nover\n"));
    assert_eq!(names(&tree, "dev").await, Vec::<String>::new());
    // What can't be run says so in the words of the runtime.
    for (name, code, text) in [
        ("nowhere", 127, "exec: \"nowhere\": executable file not found in $PATH\n"),
        ("/no/where", 127, "exec: \"/no/where\": stat /no/where: no such file or directory\n"),
        ("/etc", 126, "exec: \"/etc\": is a directory: permission denied\n"),
        ("/etc/passwd", 126, "exec: \"/etc/passwd\": permission denied\n"),
    ] {
        let error = bench.sh("", command(&[name])).await.err().unwrap().to_string();
        assert!(error.ends_with(&format!("exit code: {code}")), "{error}");
        assert_eq!(bench.said(2), text);
    }
    // One of them says where programs are.
    let path = |op: &mut pb::ExecOp| {
        command(&["true"])(op);
        op.secretenv.push(secret("path", "PATH"));
        meta(op).env.push("PATH=/nowhere".into());
    };
    bench.sh("", path).await.unwrap();
    for name in ["", "A=B"] {
        let refused = bench.sh("true", |op| op.secretenv.push(secret("word", name))).await.err().unwrap();
        assert!(matches!(refused, StepError::Invalid(_)), "{refused}");
    }
    bench.nothing_is_left().await;
    assert_eq!(bench.traces("deeply-hidden"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_answers_through_its_socket() {
    let Some(bench) = Bench::new().await else { return };
    let script = "stat -c '%F %a %u' $SSH_AUTH_SOCK; echo hello | nc local:$SSH_AUTH_SOCK || true";
    let ssh = |op: &mut pb::ExecOp| {
        let ssh_opt = Some(pb::SshOpt { id: "default".into(), uid: 3, mode: 0o600, ..pb::SshOpt::default() });
        op.mounts.push(pb::Mount { ssh_opt, ..mount(pb::MountType::Ssh, "/run/buildkit/ssh_agent.0") });
    };
    let tree = bench.sh(script, ssh).await.unwrap().remove(0).unwrap();
    assert!(bench.said(1).starts_with("socket 600 3\n"), "{}{}", bench.said(1), bench.said(2));
    assert!(!names(&tree, "").await.contains(&"run".to_owned()));
    let lost = bench.sh("true", |op| {
        ssh(op);
        op.mounts[1].ssh_opt.as_mut().unwrap().id = "other".into();
    });
    assert!(lost.await.err().unwrap().to_string().contains("no SSH key \"other\" forwarded"));
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_inputs_and_caches_lead_nowhere_else() {
    let Some(bench) = Bench::new().await else { return };
    let canary = bench.folder.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "of the host").unwrap();
    let to_host = format!("-> {}", canary.display());
    let up = "-> ../../../../../../../../../../etc";
    let files = bench.tree(&[("abs", &to_host), ("up", up), ("etc/inside", "x")]).await;
    let bind = |selector: &str| {
        let selector = selector.to_owned();
        move |op: &mut pb::ExecOp| {
            op.mounts.push(pb::Mount { input: 1, selector, readonly: true, ..mount(pb::MountType::Bind, "/m") });
        }
    };
    let inputs = || vec![Some(bench.root.clone()), Some(files.clone())];
    let lost = bench.on(inputs(), "ls /m", bind("abs"), &[]).await.err().unwrap();
    assert!(matches!(lost, StepError::NotFound(_)), "{lost}");
    for inside in ["up", "../../../etc", "/etc"] {
        bench.on(inputs(), "ls /m", bind(inside), &[]).await.unwrap();
        assert_eq!(bench.said(1), "inside\n", "{inside}");
    }
    // Two steps with one cache: the first puts a link where the second one looks.
    let to_host = format!("ln -s {} /c/sub", canary.display());
    bench.sh(&to_host, |op| op.mounts.push(cache("evil", "/c", ""))).await.unwrap();
    let lost = bench.sh("ls /c; touch /c/pwned", |op| op.mounts.push(cache("evil", "/c", "sub"))).await.err().unwrap();
    assert!(matches!(lost, StepError::NotFound(_)), "{lost}");
    // The folder above a mount point becomes a link to the host's.
    let script = format!("mv /a /moved && mkdir -p /a && rm -r /a && ln -s {} /a", canary.display());
    fs::create_dir(canary.join("b")).unwrap();
    let done = bench.sh(&script, |op| op.mounts.push(mount(pb::MountType::Tmpfs, "/a/b"))).await;
    done.unwrap();
    assert!(canary.join("b").exists());
    assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "of the host");
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_nobody_wants_any_more_is_gone_at_once() {
    let Some(bench) = Bench::new().await else { return };
    let started = async |bench: &Bench| {
        let begun = Instant::now();
        while bench.said(1) != "up\n" {
            assert!(begun.elapsed() < Duration::from_secs(20), "it doesn't start");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let op = {
        let mut op = script_op("trap '' TERM; echo up; sleep 1000");
        op.mounts.push(cache("c", "/c", ""));
        op
    };
    // Told.
    let (sender, step) = bench.step(&[]);
    let (runner, inputs, copy) = (bench.runner.clone(), vec![Some(bench.root.clone())], op.clone());
    let running = tokio::spawn(async move { runner.run(&copy, inputs, &step).await });
    started(&bench).await;
    let begun = Instant::now();
    sender.send_replace(true);
    assert!(matches!(running.await.unwrap().err(), Some(StepError::Cancelled)));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    bench.nothing_is_left().await;
    // Dropped.
    bench.told.0.lock().unwrap().clear();
    let (_sender, step) = bench.step(&[]);
    let (runner, inputs) = (bench.runner.clone(), vec![Some(bench.root.clone())]);
    let running = tokio::spawn(async move { runner.run(&op, inputs, &step).await });
    started(&bench).await;
    running.abort();
    let begun = Instant::now();
    while !bench.leftovers().await.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", bench.leftovers().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!bench.runner.caches.list()[0].in_use);
}

#[tokio::test(flavor = "multi_thread")]
async fn confined_as_containers_unless_allowed() {
    let Some(bench) = Bench::new().await else { return };
    let script = "grep -E '^(CapEff|Seccomp|NoNewPrivs):' /proc/self/status; ls /sys/class/net; hostname; cat /etc/hosts; \
        test -w /proc/sys/kernel/hostname && echo writable; true";
    bench
        .sh(script, |op| meta(op).extra_hosts = vec![pb::HostIp { host: "db".into(), ip: "10.9.8.7".into() }])
        .await
        .unwrap();
    let said = bench.said(1);
    assert!(said.contains("CapEff:\t00000000a80425fb") && said.contains("Seccomp:\t2"), "{said}");
    assert!(said.contains("eth0") && said.contains("buildkitsandbox") && said.contains("10.9.8.7\tdb"), "{said}");
    bench.sh("ls /sys/class/net", |op| op.network = pb::NetMode::None as i32).await.unwrap();
    assert!(!bench.said(1).contains("eth0") && bench.said(1).contains("lo"), "{}", bench.said(1));
    let insecure = |op: &mut pb::ExecOp| op.security = pb::SecurityMode::Insecure as i32;
    let denied = bench.sh("true", insecure).await.err().unwrap();
    assert!(matches!(denied, StepError::Denied(_)));
    let inputs = || vec![Some(bench.root.clone())];
    bench.on(inputs(), script, insecure, &["security.insecure"]).await.unwrap();
    assert!(bench.said(1).contains("Seccomp:\t0"), "{}", bench.said(1));
    let host = |op: &mut pb::ExecOp| op.network = pb::NetMode::Host as i32;
    bench.on(inputs(), "ls /sys/class/net", host, &["network.host"]).await.unwrap();
    let bridge = &bench.app.config.bridge.name;
    assert!(bench.said(1).contains(bridge.as_str()), "{}", bench.said(1));
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_engine_that_was_killed_left_is_swept_up() {
    let Some(bench) = Bench::new().await else { return };
    let mut op = script_op("sleep 1000");
    op.mounts.push(pb::Mount { input: 0, ..mount(pb::MountType::Bind, "/m") });
    let (_sender, step) = bench.step(&[]);
    let plan = Plan::new(&op, 1, &[]).unwrap();
    let mut container = Container::new(&bench.app).unwrap();
    let mut sources = Sources::default();
    let (_wanted, unwanted) = oneshot::channel();
    let inputs = [Some(bench.root.clone())];
    let going = bench.runner.go(&plan, &inputs, &step, unwanted, &mut container, &mut sources);
    assert!(tokio::time::timeout(Duration::from_secs(3), going).await.is_err(), "it sleeps");
    // Still mounted, as if killed before the runtime had it.
    let at = container.folder.join("m7");
    fs::create_dir(&at).unwrap();
    nix::mount::mount(Some("tmpfs"), &at, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>).unwrap();
    let (id, endpoint) = (container.id.clone(), container.endpoint.take());
    std::mem::forget(container);
    std::mem::forget(sources);
    assert!(!bench.leftovers().await.is_empty());
    sweep(&bench.app).await;
    // The next engine's networks do this.
    start::detach_network(&bench.app, &id, endpoint.unwrap()).await;
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_and_one_after_the_other() {
    let Some(bench) = Bench::new().await else { return };
    let mut tree = bench.root.clone();
    let begun = Instant::now();
    let steps = 30;
    for _ in 0..steps {
        let results = bench.on(vec![Some(tree.clone())], "", |op| meta(op).args = vec!["/bin/true".into()], &[]).await;
        tree = results.unwrap().remove(0).unwrap();
    }
    let each = begun.elapsed() / steps;
    let mut out = std::io::stderr();
    writeln!(out, "a step: {each:?}").unwrap();
    // Other tests run beside this one: the figure is for people, the limit for what is broken.
    assert!(each < Duration::from_millis(500), "{each:?}");
    let at_once = (0..8).map(|number| {
        let (runner, (sender, step), root) = (bench.runner.clone(), bench.step(&[]), bench.root.clone());
        tokio::spawn(async move {
            let _sender = sender;
            let mut op = script_op(&format!("echo {number} > /c/{number}; echo {number} > /number"));
            op.mounts.push(cache("shared", "/c", ""));
            let tree = runner.run(&op, vec![Some(root)], &step).await.unwrap().remove(0).unwrap();
            assert_eq!(read(&tree, "number").await, Some(format!("{number}\n")));
        })
    });
    for task in at_once.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    bench.sh("ls /c", |op| op.mounts.push(cache("shared", "/c", ""))).await.unwrap();
    assert_eq!(bench.said(1).lines().count(), 8);
    // Alone, at two places of one command; and two that want the same ones, in different order.
    let locked = |id: &str, dest: &str| {
        let cache_opt = Some(pb::CacheOpt { id: id.into(), sharing: pb::CacheSharingOpt::Locked as i32 });
        pb::Mount { cache_opt, ..cache(id, dest, "") }
    };
    let at_once = [["a", "b", "a"], ["b", "a", "b"], ["a", "b", "a"], ["b", "a", "b"]].map(|ids| {
        let mut op = script_op("ls /1 /2 /3 > /dev/null");
        op.mounts.extend(ids.iter().zip(["/1", "/2", "/3"]).map(|(id, dest)| locked(id, dest)));
        let (runner, (sender, step), root) = (bench.runner.clone(), bench.step(&[]), bench.root.clone());
        tokio::spawn(async move {
            let _sender = sender;
            runner.run(&op, vec![Some(root)], &step).await.unwrap();
        })
    });
    for task in at_once {
        tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
    }
    bench.sh("ls /c", |op| op.mounts.push(cache("shared", "/c", ""))).await.unwrap();
    assert_eq!(bench.said(1).lines().count(), 8);
    bench.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_become_filesystems() {
    use crate::build::worker::sources::{
        git::{Git, tests::Served},
        http::Http,
        testing::{Clients, step},
    };
    let Some(bench) = Bench::new().await else { return };
    let clients = Arc::new(Clients::default());
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/name.txt", server.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let mut stream = server.accept().unwrap().0;
        let mut head = [0; 4096];
        let _ = stream.read(&mut head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    });
    let http = Http::open(&bench.app).unwrap();
    let source = pb::SourceOp { identifier: url, ..pb::SourceOp::default() };
    let pinned = http.pin(&source, clients.as_ref(), &step()).await.unwrap();
    let tree = http.fetch(&pinned.source, &bench.trees, clients.as_ref(), &step()).await.unwrap();
    assert_eq!(read(&tree, "name.txt").await.as_deref(), Some("hello"));
    serving.join().unwrap();
    let Some(served) = Served::new() else { return };
    let main = served.main();
    fs::create_dir_all(main.join("sub/folder")).unwrap();
    fs::write(main.join("sub/folder/file"), "x").unwrap();
    symlink("sub", main.join("link")).unwrap();
    served.commit("main");
    let git = Git::open(&bench.app).unwrap();
    for (fragment, path) in [("main", "sub/folder/file"), ("main:sub", "folder/file"), (":sub/folder", "file")] {
        let pinned = git.pin(&served.source(fragment, &[]), &clients, &step()).await.unwrap();
        let tree = git.fetch(&pinned.source, &bench.trees, &clients, &step()).await.unwrap();
        assert_eq!(read(&tree, path).await.as_deref(), Some("x"), "{fragment}");
        assert!(read(&tree, ".git/HEAD").await.is_none());
    }
    for fragment in ["main:link/folder", "main:nowhere"] {
        let pinned = git.pin(&served.source(fragment, &[]), &clients, &step()).await.unwrap();
        assert!(git.fetch(&pinned.source, &bench.trees, &clients, &step()).await.is_err(), "{fragment}");
    }
    let left = fs::read_dir(bench.app.config.engine_data().join("builds/git")).unwrap().flatten();
    assert_eq!(left.filter(|entry| entry.file_name().to_string_lossy().starts_with('.')).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_runs_out_of_memory_says_so() {
    let Some(bench) = Bench::new().await else { return };
    let script = "set -e; for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; do
        if test -e $f; then echo 16777216 > $f; fi; done
        head -c 200000000 /dev/zero | tail -n 1";
    let insecure = |op: &mut pb::ExecOp| op.security = pb::SecurityMode::Insecure as i32;
    let inputs = vec![Some(bench.root.clone())];
    let error = bench.on(inputs, script, insecure, &["security.insecure"]).await.err().unwrap();
    let text = proto::kind::chain(&error);
    assert!(text.ends_with("did not complete successfully: cannot allocate memory"), "{text}\n{}", bench.said(2));
    bench.nothing_is_left().await;
}
