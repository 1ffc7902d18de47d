//! A node, and the calls of its kubelet: berth-supervisor, or Debian's containerd, on a host of its own (a network namespace with
//! another computer beside it).

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    eventually::patience,
    host::Host,
    images, leftovers,
    programs::{self, peer_or_skip},
    run,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::runtime::v1::{
    self as cri, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// The image that all containers are made of.
pub const IMAGE: &str = "docker.io/library/busybox:latest";
/// The shim of the handler `foreign`: Debian's.
pub const FOREIGN: &str = "/usr/bin/containerd-shim-runc-v2";
const PATIENCE: Duration = Duration::from_secs(60);

/// Who serves CRI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// berth-supervisor.
    Berth,
    /// Debian's containerd.
    Containerd,
}

impl Runtime {
    /// The one under test: Berth, or whom `CRI=containerd` names.
    pub fn under_test() -> Self {
        match std::env::var("CRI").as_deref() {
            Ok("containerd") => Self::Containerd,
            _ => Self::Berth,
        }
    }
}

/// A node; goes with everything on it.
#[derive(Debug)]
pub struct Node {
    /// Where it is.
    pub host: Host,
    runtime: Runtime,
    folder: tempfile::TempDir,
    supervisor: Option<Child>,
    channel: Option<Channel>,
    programs: PathBuf,
    /// Cgroups of pods, which a kubelet would have made and would remove.
    cgroups: Mutex<BTreeSet<String>>,
}

/// Waits until something is so; says what, if it never is.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE * patience(), "not within {} s: {what}", began.elapsed().as_secs());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Node {
    /// A node without a network for pods, with the runtime under test.
    pub async fn new() -> Self {
        Self::with(Runtime::under_test(), programs::bin_dir()).await
    }

    /// A node of Berth's with the programs of a folder.
    pub async fn with_programs(programs: PathBuf) -> Self {
        Self::with(Runtime::Berth, programs).await
    }

    /// A node of Berth's; `None` where another runtime is under test, which differs in what `differs` says.
    pub async fn of_berth(differs: &str) -> Option<Self> {
        if Runtime::under_test() != Runtime::Berth {
            eprintln!("skipped: {differs}");
            return None;
        }
        Some(Self::new().await)
    }

    /// A node of Debian's containerd; `None` where it isn't installed.
    pub async fn of_containerd() -> Option<Self> {
        peer_or_skip("containerd")?;
        Some(Self::with(Runtime::Containerd, programs::bin_dir()).await)
    }

    async fn with(runtime: Runtime, programs: PathBuf) -> Self {
        let folder = tempfile::Builder::new().prefix("berth-cri-").tempdir().unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        let mut node = Self {
            host: Host::new(),
            runtime,
            folder,
            supervisor: None,
            channel: None,
            programs,
            cgroups: Mutex::default(),
        };
        node.start(&[]).await;
        let archive = images::busybox_archive(node.path());
        node.ctr(&["image", "import", archive.to_str().unwrap()]);
        if runtime == Runtime::Containerd {
            // What its sandboxes are made of.
            let config = serde_json::json!({ "Cmd": ["/bin/sleep", "1000000"] });
            let pause = images::docker_archive("pause", &images::busybox_rootfs(), config);
            fs::write(node.path().join("pause.tar"), pause).unwrap();
            node.ctr(&["image", "import", node.path().join("pause.tar").to_str().unwrap()]);
        }
        node
    }

    /// Runs ctr(8) in CRI's namespace; gives what it prints.
    pub fn ctr(&self, args: &[&str]) -> String {
        run("ctr", [&["-a", self.socket().to_str().unwrap(), "-n", "k8s.io"], args].concat()).success().stdout()
    }

    /// A node whose pods get addresses from Debian's bridge plugin; `None` where the plugins aren't installed.
    pub async fn with_network() -> Option<Self> {
        if !Path::new("/usr/lib/cni/bridge").exists() {
            eprintln!("skipped: containernetworking-plugins is not installed");
            return None;
        }
        let node = Self::new().await;
        node.configure(&bridge(node.path()));
        node.await_network().await;
        Some(node)
    }

    /// Waits until pods can be given a network.
    pub async fn await_network(&self) {
        eventually("the network is ready", async || {
            let status = self.kubelet().status(cri::StatusRequest::default()).await.unwrap().into_inner().status?;
            status.conditions.iter().all(|condition| condition.status).then_some(())
        })
        .await;
    }

    /// Gives pods a network.
    pub fn configure(&self, list: &str) {
        fs::write(self.path().join("net.d/10-pods.conflist"), list).unwrap();
    }

    /// Everything that it has.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where CRI is served.
    pub fn socket(&self) -> PathBuf {
        self.path().join(match self.runtime {
            Runtime::Berth => "r/supervisor.sock",
            Runtime::Containerd => "r/containerd.sock",
        })
    }

    /// The processes of the runtime: the daemon, its shims, and what pods have besides their containers.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.supervisor.as_ref().map_or(0, Child::id)];
        pids.extend(leftovers::processes_of(self.path(), "shim"));
        if self.runtime == Runtime::Containerd {
            let sandboxes = self.ctr(&["task", "ls"]);
            let pauses = self.ctr(&["container", "ls", "-q", "labels.\"io.cri-containerd.kind\"==sandbox"]);
            let pid = |line: &str| line.split_whitespace().nth(1)?.parse::<u32>().ok();
            let is_pause = |line: &&str| pauses.lines().any(|id| line.starts_with(id));
            pids.extend(sandboxes.lines().filter(is_pause).filter_map(pid));
        }
        pids
    }

    /// What the runtime has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("log")).unwrap_or_default()
    }

    /// A command on the node's host.
    pub fn host_command(&self, program: &str) -> Command {
        self.host.command(program)
    }

    fn command(&self) -> Command {
        let at = |name: &str| self.path().join(name);
        let (networks, plugins) = (at("net.d"), at("cni"));
        match self.runtime {
            Runtime::Berth => {
                let config = format!(
                    "[cri]\ncni-conf-dir = {networks:?}\ncni-bin-dirs = [\"/usr/lib/cni\", {plugins:?}]\ncdi-spec-dirs = [{cdi:?}]\n\
                     [cri.handlers]\npeer = \"/usr/sbin/runc\"\nmissing = \"/no/such/runtime\"\nforeign = \"io.containerd.foreign.v2\"\n\
                     [runtimes]\n\"io.containerd.foreign.v2\" = \"{FOREIGN}\"\n{more}",
                    cdi = at("cdi"),
                    more = fs::read_to_string(at("more.toml")).unwrap_or_default()
                );
                fs::write(at("supervisor.toml"), config).unwrap();
                let mut command = self.host.command(self.programs.join("berth-supervisor"));
                command.arg("--config").arg(at("supervisor.toml"));
                command.arg("--data-root").arg(at("d")).arg("--run-root").arg(at("r"));
                command
            }
            Runtime::Containerd => {
                let config = format!(
                    "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n\
                     [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"docker.io/library/pause:latest\"\n\
                     disable_tcp_service = false\nrestrict_oom_score_adj = true\n\
                     [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = {networks:?}\nbin_dir = \"/usr/lib/cni\"\n\
                     [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
                    at("d"),
                    at("r"),
                    self.socket(),
                    at("r/ttrpc.sock"),
                    at("opt"),
                );
                fs::write(at("containerd.toml"), config).unwrap();
                let mut command = self.host.command("containerd");
                command.arg("--config").arg(at("containerd.toml"));
                command
            }
        }
    }

    /// Starts the runtime with these variables and waits until it answers.
    pub async fn start(&mut self, environment: &[(&str, &str)]) {
        let log = fs::File::options().create(true).append(true).open(self.path().join("log")).unwrap();
        let mut command = self.command();
        command.envs(environment.iter().copied());
        let out = log.try_clone().unwrap();
        self.supervisor = Some(command.stdin(Stdio::null()).stdout(out).stderr(log).spawn().unwrap());
        let connected = eventually("the supervisor answers", async || {
            let channel = self.connect().await?;
            let mut kubelet = RuntimeServiceClient::new(channel.clone());
            kubelet.version(cri::VersionRequest::default()).await.ok().map(|_| channel)
        });
        self.channel = Some(connected.await);
    }

    /// Starts the runtime anew with more in its configuration.
    pub async fn configure_more(&mut self, more: &str) {
        fs::write(self.path().join("more.toml"), more).unwrap();
        self.kill();
        self.start(&[]).await;
    }

    async fn connect(&self) -> Option<Channel> {
        let socket = self.socket();
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        Endpoint::from_static("http://supervisor").connect_with_connector(connector).await.ok()
    }

    /// A connection beside the kubelet's.
    pub async fn new_channel(&self) -> Channel {
        self.connect().await.expect("the supervisor listens")
    }

    /// Kills the supervisor.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Waits for a supervisor that dies by itself.
    pub fn died(&mut self) -> bool {
        self.supervisor.as_mut().is_none_or(|child| child.try_wait().unwrap().is_some())
    }

    /// The connection to it, which is made again by itself when it breaks.
    pub fn channel(&self) -> Channel {
        self.channel.clone().unwrap()
    }

    /// The calls of RuntimeService.
    pub fn kubelet(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone().unwrap())
    }

    /// The calls of ImageService.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone().unwrap())
    }

    /// RunPodSandbox; the pod's id.
    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        self.run_pod_by("", config).await
    }

    /// The same under a handler of RuntimeClass.
    pub async fn run_pod_by(&self, handler: &str, config: &cri::PodSandboxConfig) -> Result<String, Status> {
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        self.cgroups.lock().unwrap().insert(parent);
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        Ok(self.kubelet().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.kubelet().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.kubelet().remove_pod_sandbox(request).await.map(drop)
    }

    /// PodSandboxStatus.
    pub async fn pod(&self, id: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        Ok(self.kubelet().pod_sandbox_status(request).await?.into_inner().status.unwrap())
    }

    /// ListPodSandbox.
    pub async fn pods(&self) -> Vec<cri::PodSandbox> {
        let answer = self.kubelet().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await;
        answer.unwrap().into_inner().items
    }

    /// CreateContainer; the container's id.
    pub async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        of: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(of.clone()),
        };
        Ok(self.kubelet().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.kubelet().start_container(request).await.map(drop)
    }

    /// StopContainer.
    pub async fn stop_container(&self, id: &str, timeout: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        self.kubelet().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove_container(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.kubelet().remove_container(request).await.map(drop)
    }

    /// ContainerStatus.
    pub async fn container(&self, id: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        Ok(self.kubelet().container_status(request).await?.into_inner().status.unwrap())
    }

    /// ListContainers.
    pub async fn containers(&self) -> Vec<cri::Container> {
        let answer = self.kubelet().list_containers(cri::ListContainersRequest::default()).await;
        answer.unwrap().into_inner().containers
    }

    /// Waits for the end of a container.
    pub async fn ended(&self, id: &str) -> cri::ContainerStatus {
        eventually("the container ends", async || {
            let status = self.container(id).await.unwrap();
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// ExecSync.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<cri::ExecSyncResponse, Status> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 20 };
        Ok(self.kubelet().exec_sync(request).await?.into_inner())
    }

    /// A pod with one container that sleeps: their ids.
    pub async fn sleeper(&self, pod: &cri::PodSandboxConfig) -> (String, String) {
        let id = self.run_pod(pod).await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        let container = self.create(&id, &container("sleeper", "exec sleep 1000"), pod).await;
        let container = container.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        self.start_container(&container).await.unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        (id, container)
    }

    /// What CRI and containerd's services have on record.
    pub async fn assert_empty(&self) {
        assert_eq!((self.pods().await, self.containers().await), (vec![], vec![]));
        assert_eq!(self.ctr(&["container", "ls", "-q"]) + &self.ctr(&["task", "ls", "-q"]), "");
        eventually("folders of sandboxes are gone", async || {
            fs::read_dir(self.path().join("r/supervisor/sandboxes"))
                .map_or(Some(()), |mut all| all.next().is_none().then_some(()))
        })
        .await;
    }
}

impl Node {
    /// What a test has left that didn't come to its end.
    fn clear(&self) {
        for shim in leftovers::processes_of(self.path(), "shim") {
            run("pkill", ["-KILL", "-P", &shim.to_string()]);
            kill(Pid::from_raw(shim as i32), Signal::SIGKILL).ok();
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| Path::new(at).starts_with(self.path()));
        for at in ours {
            nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
}

impl Node {
    fn remove_cgroups(&self) {
        for parent in self.cgroups.lock().unwrap().iter().filter(|parent| !parent.is_empty()) {
            if parent.ends_with(".slice") {
                run("systemctl", ["stop", parent]);
                continue;
            }
            let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
            for folder in
                hierarchies.chain(["/sys/fs/cgroup".into()]).map(|root| root.join(parent.trim_start_matches('/')))
            {
                // What a machine that is switched off would not have had any more.
                let below = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
                below.filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
                fs::remove_dir(folder).ok();
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Shims are told to leave behind the answer to who removes the last container. One that was not told waits for 10 s.
        let left = Instant::now() + Duration::from_secs(5);
        while !std::thread::panicking()
            && Instant::now() < left
            && !leftovers::processes_of(self.path(), "shim").is_empty()
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(child) = &mut self.supervisor {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
            child.wait().ok();
        }
        let panics = std::thread::panicking();
        if panics {
            eprintln!("{}", self.log());
            self.clear();
        }
        self.remove_cgroups();
        if panics {
            return;
        }
        let left = leftovers::of_stack(self.path(), None);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// Debian's bridge, with addresses of both families, ports of the host, and limits.
pub fn bridge(folder: &Path) -> String {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": folder.join("ipam"),
                    "ranges": [[{ "subnet": "10.99.0.0/24" }], [{ "subnet": "fd00:99::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
    .to_string()
}

/// Whether systemd owns the cgroups, so that they are named in its way.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The cgroup of a pod, as a kubelet would say it.
pub fn cgroup_parent(name: &str) -> String {
    match has_systemd() {
        true => format!("berthtest{}_{name}.slice", std::process::id()),
        false => format!("/berth-test-cri-{}-{name}", std::process::id()),
    }
}

/// A pod on the node's network.
pub fn pod(name: &str) -> cri::PodSandboxConfig {
    let mut pod = networked(name);
    // As kubelets do: it has the node's.
    pod.hostname.clear();
    let namespaces = cri::NamespaceOption {
        network: cri::NamespaceMode::Node.into(),
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    };
    pod.linux.as_mut().unwrap().security_context =
        Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() });
    pod
}

/// A pod with a network of its own.
pub fn networked(name: &str) -> cri::PodSandboxConfig {
    let namespaces = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    let context = cri::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-{name}"),
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        labels: [("pod".to_owned(), name.to_owned())].into(),
        annotations: [("note".to_owned(), "kept as it is".to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: cgroup_parent(name),
            security_context: Some(context),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A container that runs a shell script.
pub fn container(name: &str, script: &str) -> cri::ContainerConfig {
    let namespaces = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    let context = cri::LinuxContainerSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: vec!["sh".into(), "-c".into()],
        args: vec![script.into()],
        labels: [("container".to_owned(), name.to_owned())].into(),
        linux: Some(cri::LinuxContainerConfig { resources: None, security_context: Some(context) }),
        ..Default::default()
    }
}
