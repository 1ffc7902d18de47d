//! Drives the real shim: a run root of its own, a bundle with busybox in it, and a supervisor that only collects events.

#![allow(dead_code, reason = "every test program uses a part of it")]

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use proto::{
    berth::streams::v1::streams_client::StreamsClient,
    containerd::{
        events::TaskExit,
        runc::v1::Options,
        services::events::v1::{
            Envelope, ForwardRequest, PublishRequest, SubscribeRequest,
            events_server::{Events, EventsServer},
        },
        task::v3::{
            CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, ShutdownRequest,
            StartRequest, WaitRequest, WaitResponse, task_client::TaskClient,
        },
        types::Mount,
    },
    typeurl,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Server},
};

/// The namespace all containers of these tests live in.
pub const NAMESPACE: &str = "shim-test";

/// Waits until `what` gives something.
pub async fn eventually<T>(name: &str, mut what: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = what() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{name} did not come about in a minute");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The OCI runtime under test.
pub fn runtime() -> String {
    if let Ok(runtime) = std::env::var("RUNTIME") {
        return runtime;
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_berth-shim")).with_file_name("berth-runtime");
    let built = Command::new(&beside).arg("--version").output().is_ok_and(|output| !output.stdout.is_empty());
    if built { beside.display().to_string() } else { "runc".to_owned() }
}

type Told = Arc<Mutex<Vec<Envelope>>>;

struct Collector(Told);

#[tonic::async_trait]
impl Events for Collector {
    type SubscribeStream = ReceiverStream<Result<Envelope, Status>>;

    async fn publish(&self, _: tonic::Request<PublishRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("publish"))
    }

    async fn forward(&self, request: tonic::Request<ForwardRequest>) -> Result<Response<()>, Status> {
        let namespace = request.metadata().get("containerd-namespace").map(|value| value.as_bytes().to_vec());
        assert_eq!(namespace.as_deref(), Some(NAMESPACE.as_bytes()));
        let envelope = request.into_inner().envelope.expect("an envelope");
        self.0.lock().expect("lock").push(envelope);
        Ok(Response::new(()))
    }

    async fn subscribe(
        &self,
        _: tonic::Request<SubscribeRequest>,
    ) -> Result<Response<ReceiverStream<Result<Envelope, Status>>>, Status> {
        Err(Status::unimplemented("subscribe"))
    }
}

/// A run root; everything in it must be gone when a test is done.
pub struct Stage {
    pub folder: TempDir,
    pub told: Told,
    supervisor: Option<tokio::runtime::Runtime>,
}

impl Stage {
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("berth-shim-test-").tempdir().expect("folder");
        let bin = folder.path().join("image/bin");
        fs::create_dir_all(&bin).expect("image");
        for name in ["proc", "dev", "sys", "tmp"] {
            fs::create_dir(folder.path().join("image").join(name)).expect("image");
        }
        testing::executable(&bin.join("busybox"), fs::read("/bin/busybox").expect("busybox"));
        for name in
            ["sh", "cat", "echo", "sleep", "true", "stty", "head", "yes", "seq", "kill", "wc", "tty", "dd", "tr"]
        {
            std::os::unix::fs::symlink("busybox", bin.join(name)).expect("link");
        }
        let mut stage = Self { folder, told: Told::default(), supervisor: None };
        stage.supervisor_up();
        stage
    }

    pub fn address(&self) -> PathBuf {
        self.folder.path().join("supervisor.sock")
    }

    /// Begins to take events.
    pub fn supervisor_up(&mut self) {
        let _ = fs::remove_file(self.address());
        let listener = std::os::unix::net::UnixListener::bind(self.address()).expect("supervisor's socket");
        listener.set_nonblocking(true).expect("listener");
        let service = EventsServer::new(Collector(self.told.clone()));
        // A runtime of its own: with it go all connections.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).expect("listener");
            let incoming = UnixListenerStream::new(listener);
            Server::builder().add_service(service).serve_with_incoming(incoming).await.expect("serve events");
        });
        self.supervisor = Some(runtime);
    }

    /// Breaks off as a killed supervisor does; its socket stays as a dead file.
    pub fn supervisor_down(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            supervisor.shutdown_background();
        }
    }

    /// Topics told so far for one container, exits with their id and status.
    pub fn story(&self) -> Vec<String> {
        let told = self.told.lock().expect("lock");
        let line = |envelope: &Envelope| {
            assert_eq!(envelope.namespace, NAMESPACE);
            let event = envelope.event.as_ref().expect("event");
            let topic = envelope.topic.trim_start_matches("/tasks/");
            match typeurl::unpack::<TaskExit>(event) {
                Some(exit) => {
                    let exit = exit.expect("exit");
                    format!("exit {} {}", exit.id, exit.exit_status)
                }
                None => topic.to_owned(),
            }
        };
        told.iter().map(line).collect()
    }

    /// A bundle whose process is `args`; `change` may alter the spec.
    pub fn bundle(&self, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.folder.path().join("tasks").join(id);
        fs::create_dir_all(bundle.join("rootfs")).expect("bundle");
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin", "TERM=xterm"],
                "cwd": "/",
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "hostname": "test",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/{id}", self.folder.path().file_name().expect("name").to_string_lossy()),
                "resources": {"memory": {"limit": 268_435_456}, "pids": {"limit": 100}},
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            },
        });
        change(&mut spec);
        fs::write(bundle.join("config.json"), spec.to_string()).expect("config.json");
        bundle
    }

    /// The image, bound and then made read-only: two mounts, as a snapshotter might ask for.
    pub fn rootfs(&self) -> Vec<Mount> {
        let image = self.folder.path().join("image").display().to_string();
        vec![Mount {
            r#type: "bind".into(),
            source: image,
            target: String::new(),
            options: vec!["rbind".into(), "ro".into()],
        }]
    }

    /// The command line of an action.
    pub fn command(&self, id: &str, bundle: &Path, action: &str) -> Command {
        // SHIM: the same tests on another build, for measuring.
        let shim = std::env::var("SHIM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_berth-shim").to_owned());
        let mut command = Command::new(shim);
        command
            .args(["-namespace", NAMESPACE, "-address"])
            .arg(self.address())
            .args(["-publish-binary", "/bin/false", "-id", id, action])
            .current_dir(bundle)
            .stdin(Stdio::null());
        command
    }

    /// Runs an action of the shim.
    pub fn action(&self, id: &str, bundle: &Path, action: &str) -> Output {
        self.command(id, bundle, action).output().expect("berth-shim")
    }

    /// Starts a shim and connects to it.
    pub async fn shim(&self, id: &str, bundle: PathBuf) -> Shim {
        let output = self.action(id, &bundle, "start");
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("bootstrap JSON and nothing else");
        assert_eq!((&answer["version"], &answer["protocol"]), (&json!(3), &json!("grpc")));
        let socket = PathBuf::from(answer["address"].as_str().expect("address"));
        self.connect(id, bundle, socket).await
    }

    /// Connects to a shim that runs.
    pub async fn connect(&self, id: &str, bundle: PathBuf, socket: PathBuf) -> Shim {
        let channel = connect(socket.clone()).await;
        Shim {
            id: id.into(),
            bundle,
            socket,
            task: TaskClient::new(channel.clone()),
            streams: StreamsClient::new(channel),
        }
    }

    /// A shim with a container in state created.
    pub async fn container(&self, id: &str, args: &[&str]) -> Shim {
        let mut shim = self.shim(id, self.bundle(id, args, |_| ())).await;
        shim.create(self.create(id, &shim.bundle)).await.expect("create");
        shim
    }

    /// A request without stdio.
    pub fn create(&self, id: &str, bundle: &Path) -> CreateTaskRequest {
        let options = Options { binary_name: runtime(), ..Options::default() };
        CreateTaskRequest {
            id: id.into(),
            bundle: bundle.display().to_string(),
            rootfs: self.rootfs(),
            options: Some(typeurl::pack(&options)),
            ..CreateTaskRequest::default()
        }
    }

    /// A path for a file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new FIFO.
    pub fn fifo(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        path
    }

    /// Checks that nothing of this stage is left: processes, mounts, sockets, cgroups.
    pub async fn leaves_nothing(self) {
        let folder = self.folder.path().display().to_string();
        let name = self.folder.path().file_name().expect("name").to_string_lossy().into_owned();
        eventually("end of all processes", || processes_with(&folder).is_empty().then_some(())).await;
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains(&folder), "{mounts}");
        let sockets: Vec<_> = fs::read_dir(self.path("s")).map(|list| list.flatten().collect()).unwrap_or_default();
        assert!(sockets.is_empty(), "{sockets:?}");
        let states: Vec<_> =
            fs::read_dir(self.path("runtime").join(NAMESPACE)).map(|l| l.flatten().collect()).unwrap_or_default();
        assert!(states.is_empty(), "{states:?}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
            let parent = hierarchy.path().join(&name);
            let left: Vec<_> = fs::read_dir(&parent)
                .map(|l| l.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).collect())
                .unwrap_or_default();
            assert!(left.is_empty(), "{left:?}");
            // The parent is the test's own.
            let _ = fs::remove_dir(parent);
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.supervisor_down();
        // After a failed test: whatever has the name of this folder on its command line is of this stage.
        let folder = self.folder.path().display().to_string();
        for process in processes_with(&folder) {
            let pid = process.split(' ').next().and_then(|pid| pid.parse().ok()).expect("pid");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        let name = self.folder.path().file_name().expect("name").to_owned();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            for cgroup in fs::read_dir(hierarchy.path().join(&name)).into_iter().flatten().flatten() {
                let pids = fs::read_to_string(cgroup.path().join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                }
                let _ = fs::remove_dir(cgroup.path());
            }
            let _ = fs::remove_dir(hierarchy.path().join(&name));
        }
        for task in fs::read_dir(self.path("tasks")).into_iter().flatten().flatten() {
            let _ = nix::mount::umount2(&task.path().join("rootfs"), nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Processes whose command line has `text` in it.
pub fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("proc").flatten() {
        let mut line = Vec::new();
        let readable = fs::File::open(entry.path().join("cmdline")).and_then(|mut file| file.read_to_end(&mut line));
        if readable.is_ok() && entry.file_name() != *std::process::id().to_string() {
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(text) {
                found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
            }
        }
    }
    found
}

async fn connect(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://shim").connect_with_connector(connector).await.expect("connect to the shim")
}

/// A running shim.
pub struct Shim {
    pub id: String,
    pub bundle: PathBuf,
    pub socket: PathBuf,
    pub task: TaskClient<Channel>,
    pub streams: StreamsClient<Channel>,
}

impl Shim {
    pub async fn create(&mut self, request: CreateTaskRequest) -> Result<u32, Status> {
        Ok(self.task.create(request).await?.into_inner().pid)
    }

    pub async fn start(&mut self, exec: &str) -> Result<u32, Status> {
        let request = StartRequest { id: self.id.clone(), exec_id: exec.into() };
        Ok(self.task.start(request).await?.into_inner().pid)
    }

    pub async fn wait(&self, exec: &str) -> WaitResponse {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec.into() };
        let mut task = self.task.clone();
        let answer = tokio::time::timeout(Duration::from_secs(20), task.wait(request)).await;
        answer.expect("an end within 20 s").expect("wait").into_inner()
    }

    pub async fn kill(&mut self, exec: &str, signal: u32) -> Result<(), Status> {
        let request = KillRequest { id: self.id.clone(), exec_id: exec.into(), signal, all: false };
        self.task.kill(request).await.map(drop)
    }

    pub async fn delete(&mut self, exec: &str) -> Result<DeleteResponse, Status> {
        let request = DeleteRequest { id: self.id.clone(), exec_id: exec.into() };
        Ok(self.task.delete(request).await?.into_inner())
    }

    pub async fn exec(&mut self, exec: &str, args: &[&str], stdio: ExecProcessRequest) -> Result<u32, Status> {
        let process = json!({
            "terminal": stdio.terminal,
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
        });
        let spec = Some(typeurl::pack_json(typeurl::PROCESS, process.to_string().into_bytes()));
        self.task.exec(ExecProcessRequest { id: self.id.clone(), exec_id: exec.into(), spec, ..stdio }).await?;
        self.start(exec).await
    }

    /// Ends the container if need be, deletes it, and ends the shim.
    pub async fn finish(mut self) -> DeleteResponse {
        let _ = self.kill("", 9).await;
        self.wait("").await;
        let answer = self.delete("").await.expect("delete");
        self.shutdown().await;
        answer
    }

    pub async fn shutdown(&mut self) {
        let request = ShutdownRequest { id: self.id.clone(), now: false };
        self.task.shutdown(request).await.expect("shutdown");
    }
}

/// The `log` fields of a json-file log, by stream.
pub fn log_text(path: &Path, stream: &str) -> String {
    let text = fs::read_to_string(path).expect("log");
    let line = |line: &str| -> Value { serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) };
    text.lines()
        .map(line)
        .filter(|entry| entry["stream"] == stream)
        .map(|entry| entry["log"].as_str().expect("text").to_owned())
        .collect()
}
