//! A supervisor of its own for each test: real binaries, roots of its own, and a look at what is left at the end.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use proto::{
    berth::streams::v1::streams_client::StreamsClient,
    containerd::{
        runc::v1::Options,
        services::{
            containers::v1::{Container, CreateContainerRequest, container, containers_client::ContainersClient},
            events::v1::{SubscribeRequest, events_client::EventsClient},
            tasks::v1::{
                CreateTaskRequest, DeleteTaskRequest, GetRequest, KillRequest, StartRequest, WaitRequest, WaitResponse,
                tasks_client::TasksClient,
            },
            version::v1::version_client::VersionClient,
        },
        types::Mount,
        v1::types::{Process, Status as State},
    },
    typeurl,
};
use tokio::{net::UnixStream, sync::mpsc};
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::spec;

/// The namespace of the tests.
pub(crate) const NAMESPACE: &str = "tests";

/// A supervisor and its roots.
pub(crate) struct Stack {
    folder: tempfile::TempDir,
    supervisor: Option<Child>,
    channel: Option<Channel>,
    environment: Vec<(String, String)>,
}

/// A program of this build, or of where `BERTH_BIN` says.
pub(crate) fn program(name: &str) -> PathBuf {
    let ours = Path::new(env!("CARGO_BIN_EXE_berth-supervisor"));
    let at = ours.with_file_name(name);
    assert!(at.is_file(), "{} is missing: cargo build -p shim -p runtime first", at.display());
    at
}

/// The OCI runtime under test: `BERTH_TEST_RUNTIME`, else berth-runtime.
pub(crate) fn oci_runtime() -> String {
    std::env::var("BERTH_TEST_RUNTIME").unwrap_or_else(|_| program("berth-runtime").display().to_string())
}

/// Waits until something is so; says what, if it never is.
pub(crate) async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Stack {
    /// Roots with a busybox image folder, and a supervisor on them.
    pub(crate) async fn new() -> Self {
        program("berth-shim");
        let folder = tempfile::Builder::new().prefix("tasks-").tempdir_in("/tmp").expect("folder");
        let bin = folder.path().join("image/bin");
        fs::create_dir_all(&bin).expect("image");
        for place in ["proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir(folder.path().join("image").join(place)).expect("place");
        }
        testing::executable(&bin.join("busybox"), fs::read("/usr/bin/busybox").expect("busybox (static) is needed"));
        for applet in ["sh", "sleep", "true", "echo", "cat", "kill"] {
            symlink("busybox", bin.join(applet)).expect("link");
        }
        // Networks of this machine are nobody's business here.
        let config = format!("[cri]\ncni-conf-dir = {:?}\n", folder.path().join("net.d"));
        fs::write(folder.path().join("supervisor.toml"), config).expect("configuration");
        let mut stack = Self { folder, supervisor: None, channel: None, environment: Vec::new() };
        stack.start().await;
        stack
    }

    /// The temporary folder with everything in it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The run root.
    pub(crate) fn run(&self) -> PathBuf {
        self.folder().join("r")
    }

    /// A supervisor's command line on these roots.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-supervisor"));
        command.arg("--data-root").arg(self.folder().join("d")).arg("--run-root").arg(self.run());
        command.arg("--config").arg(self.folder().join("supervisor.toml"));
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Starts a supervisor and waits until it answers.
    pub(crate) async fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder().join("log")).expect("log");
        let child = self.command().stdin(Stdio::null()).stderr(log).spawn().expect("run the supervisor");
        self.supervisor = Some(child);
        let socket = self.run().join("supervisor.sock");
        let began = Instant::now();
        let endpoint = Endpoint::from_static("http://supervisor");
        self.channel = loop {
            let socket = socket.clone();
            let connector = tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
            });
            // An answer, not just a connection: a child of the one killed before, not yet at its exec, holds the old socket open.
            let error = match endpoint.connect_with_connector(connector).await {
                Ok(channel) => match VersionClient::new(channel.clone()).version(()).await {
                    Ok(_) => break Some(channel),
                    Err(status) => status.to_string(),
                },
                Err(error) => error.to_string(),
            };
            assert!(began.elapsed() < Duration::from_secs(60), "{error}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
    }

    /// Replaces the supervisor by one with these variables in its environment, which its shims inherit.
    pub(crate) async fn restart_with(&mut self, environment: &[(&str, &str)]) {
        self.kill();
        self.environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.start().await;
    }

    /// Kills the supervisor outright.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }

    /// Asks the supervisor to end, and waits for it.
    pub(crate) fn terminate(&mut self) -> std::process::ExitStatus {
        let mut child = self.supervisor.take().expect("a supervisor");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        child.wait().expect("wait")
    }

    /// The supervisor's pid.
    pub(crate) fn pid(&self) -> u32 {
        self.supervisor.as_ref().expect("a supervisor").id()
    }

    /// What the supervisors have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }

    /// The way to the supervisor.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone().expect("a supervisor")
    }

    /// A client of the tasks service.
    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel())
    }

    /// A client of the containers service.
    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel())
    }

    /// A client of the streams service.
    pub(crate) fn streams(&self) -> StreamsClient<Channel> {
        StreamsClient::new(self.channel())
    }

    /// Keeps a container record whose process is `sh -c SCRIPT`.
    pub(crate) async fn record(&self, id: &str, script: &str) {
        self.record_with(id, script, "io.containerd.berth.v1").await.expect("record");
    }

    /// Keeps a container record with a runtime of the caller's choice.
    pub(crate) async fn record_with(&self, id: &str, script: &str, runtime: &str) -> Result<(), Status> {
        self.record_on(id, script, runtime, &oci_runtime()).await
    }

    /// The same with an OCI runtime of the caller's choice.
    pub(crate) async fn record_on(&self, id: &str, script: &str, runtime: &str, oci: &str) -> Result<(), Status> {
        let options = typeurl::pack(&Options { binary_name: oci.into(), ..Default::default() });
        let container = Container {
            id: id.into(),
            runtime: Some(container::Runtime { name: runtime.into(), options: Some(options) }),
            spec: Some(typeurl::pack_json(typeurl::SPEC, spec::container(&self.cgroup(), id, script))),
            ..Default::default()
        };
        self.containers().create(request(CreateContainerRequest { container: Some(container) })).await.map(drop)
    }

    /// What Create is asked for a container on the busybox image, with output into a file.
    pub(crate) fn create_request(&self, id: &str) -> CreateTaskRequest {
        let source = self.folder().join("image").display().to_string();
        let options = vec!["rbind".into(), "rw".into()];
        let output = format!("file://{}", self.folder().join(format!("{id}.out")).display());
        CreateTaskRequest {
            container_id: id.into(),
            rootfs: vec![Mount { r#type: "bind".into(), source, target: String::new(), options }],
            stdout: output.clone(),
            stderr: output,
            ..Default::default()
        }
    }

    /// What a container has printed.
    pub(crate) fn output(&self, id: &str) -> String {
        fs::read_to_string(self.folder().join(format!("{id}.out"))).unwrap_or_default()
    }

    /// Record, create, start; answers the pid.
    pub(crate) async fn run_task(&self, id: &str, script: &str) -> u32 {
        self.record(id, script).await;
        self.create(id).await;
        self.start_task(id).await
    }

    /// Creates a task; answers the pid.
    pub(crate) async fn create(&self, id: &str) -> u32 {
        let created = self.tasks().create(request(self.create_request(id))).await;
        created.unwrap_or_else(|status| panic!("create {id}: {status}\n{}", self.log())).into_inner().pid
    }

    /// Starts a task; answers the pid.
    pub(crate) async fn start_task(&self, id: &str) -> u32 {
        let message = StartRequest { container_id: id.into(), exec_id: String::new() };
        let started = self.tasks().start(request(message)).await;
        started.unwrap_or_else(|status| panic!("start {id}: {status}\n{}", self.log())).into_inner().pid
    }

    /// A task's init process.
    pub(crate) async fn get(&self, id: &str) -> Result<Process, Status> {
        let message = GetRequest { container_id: id.into(), exec_id: String::new() };
        Ok(self.tasks().get(request(message)).await?.into_inner().process.expect("process"))
    }

    /// Sends a signal to a task.
    pub(crate) async fn signal(&self, id: &str, signal: u32) -> Result<(), Status> {
        let message = KillRequest { container_id: id.into(), exec_id: String::new(), signal, all: false };
        self.tasks().kill(request(message)).await.map(drop)
    }

    /// Waits for a task's end.
    pub(crate) async fn wait(&self, id: &str) -> WaitResponse {
        let message = WaitRequest { container_id: id.into(), exec_id: String::new() };
        let ended = tokio::time::timeout(Duration::from_secs(10), self.tasks().wait(request(message))).await;
        ended.unwrap_or_else(|_| panic!("wait {id} hangs\n{}", self.log())).expect("wait").into_inner()
    }

    /// Deletes a task; answers its exit code.
    pub(crate) async fn delete(&self, id: &str) -> Result<u32, Status> {
        let message = DeleteTaskRequest { container_id: id.into() };
        Ok(self.tasks().delete(request(message)).await?.into_inner().exit_status)
    }

    /// Kills, waits for, and deletes a task.
    pub(crate) async fn finish(&self, id: &str) {
        self.signal(id, 9).await.expect("kill");
        self.wait(id).await;
        self.delete(id).await.expect("delete");
    }

    /// Every event from now on, as topic and envelope.
    pub(crate) async fn events(&self, filters: &[&str]) -> Events {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let events = EventsClient::new(self.channel()).subscribe(request(SubscribeRequest { filters })).await;
        Events::new(events.expect("subscribe").into_inner())
    }

    /// Pids of the shims of these roots.
    pub(crate) fn shims(&self) -> Vec<u32> {
        processes(|line| line.contains("berth-shim") && line.contains(&*self.folder().to_string_lossy()))
    }

    /// Fails if anything is left of any task.
    pub(crate) async fn nothing_left(&self) {
        let tasks = self.run().join("supervisor/tasks").join(NAMESPACE);
        let entries = |at: &Path| fs::read_dir(at).map(|all| all.flatten().count()).unwrap_or(0);
        eventually(&format!("no shim left\n{}", self.log()), || self.shims().is_empty()).await;
        eventually("no bundle left", || entries(&tasks) == 0).await;
        let sockets = || -> Vec<_> { fs::read_dir(self.run().join("s")).into_iter().flatten().flatten().collect() };
        eventually(&format!("no shim socket left of {:?}", sockets()), || sockets().is_empty()).await;
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let ours = self.folder().display().to_string();
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(&ours)).collect();
        assert!(left.is_empty(), "mounts left: {left:#?}");
        let image = format!("{ours}/");
        let left = processes(|line| line.contains(&image) && !line.contains("berth-supervisor --data-root"));
        assert!(left.is_empty(), "processes left: {left:?}");
        let full = || self.cgroups().into_iter().filter(|group| entries_of_folders(group) > 0).collect::<Vec<_>>();
        eventually(&format!("no cgroup left in any of {:?}\n{}", full(), self.log()), || full().is_empty()).await;
    }

    /// How many processes are in a container's cgroup of one hierarchy.
    pub(crate) fn processes_in(&self, controller: &str, id: &str) -> usize {
        let at = Path::new("/sys/fs/cgroup").join(controller).join(self.cgroup()).join(id).join("cgroup.procs");
        fs::read_to_string(at).map(|pids| pids.lines().count()).unwrap_or(0)
    }

    /// The cgroup that holds the containers' ones.
    pub(crate) fn cgroup(&self) -> String {
        format!("berth-{}", self.folder().file_name().expect("name").to_string_lossy())
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let all = fs::read_dir(top).expect("cgroups").flatten().map(|entry| entry.path()).chain([top.to_owned()]);
        all.filter(|at| !at.is_symlink()).map(|at| at.join(self.cgroup())).filter(|at| at.is_dir()).collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("supervisor's log:\n{}", self.log());
        }
        self.kill();
        // What a failed test leaves: only processes and mounts below this stack's own folder and cgroup.
        for pid in self.shims() {
            end(pid);
        }
        for group in self.cgroups() {
            let children = fs::read_dir(&group).into_iter().flatten().flatten().map(|entry| entry.path());
            for child in children.filter(|at| at.is_dir()) {
                let pids = fs::read_to_string(child.join("cgroup.procs")).unwrap_or_default();
                pids.lines().filter_map(|pid| pid.parse().ok()).for_each(end);
                let began = Instant::now();
                while fs::remove_dir(&child).is_err() && child.exists() && began.elapsed() < Duration::from_secs(2) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            // Runtimes remove the cgroup they made, and leave its parent.
            let _ = fs::remove_dir(group);
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let ours = format!("{}/", self.folder().display());
        for at in mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| at.starts_with(&ours)) {
            let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn end(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
}

/// Events as they come.
pub(crate) struct Events(mpsc::UnboundedReceiver<(String, prost_types::Any)>);

impl Events {
    fn new(mut stream: Streaming<proto::containerd::services::events::v1::Envelope>) -> Self {
        let (send, events) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(envelope)) = stream.message().await {
                if send.send((envelope.topic, envelope.event.expect("content"))).is_err() {
                    break;
                }
            }
        });
        Self(events)
    }

    /// The next event.
    pub(crate) async fn next(&mut self) -> (String, prost_types::Any) {
        let next = tokio::time::timeout(Duration::from_secs(10), self.0.recv()).await;
        next.expect("an event within 10 s").expect("stream goes on")
    }

    /// What has come by now and was not taken.
    pub(crate) fn so_far(&mut self) -> Vec<(String, prost_types::Any)> {
        std::iter::from_fn(|| self.0.try_recv().ok()).collect()
    }

    /// Whether the stream ends, now that whatever came was taken.
    pub(crate) async fn ended(&mut self) -> bool {
        let all = async { while self.0.recv().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(5), all).await.is_ok()
    }

    /// The topics of the next `count` events.
    pub(crate) async fn topics(&mut self, count: usize) -> Vec<String> {
        let mut topics = Vec::new();
        for _ in 0..count {
            topics.push(self.next().await.0);
        }
        topics
    }
}

/// A message with the tests' namespace.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", NAMESPACE.parse().expect("metadata"));
    request
}

/// Whether a state is the one expected; for messages that name both.
pub(crate) fn assert_state(process: &Process, state: State) {
    assert_eq!(process.status(), state, "{process:?}");
}

/// Whether a process exists and is no zombie.
pub(crate) fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        lives(*pid) && wanted(&String::from_utf8_lossy(&line).replace('\0', " "))
    })
    .collect()
}

fn entries_of_folders(at: &Path) -> usize {
    fs::read_dir(at).map(|all| all.flatten().filter(|entry| entry.path().is_dir()).count()).unwrap_or(0)
}
