//! A pod on a node of its own, in which containers run to their end and tell what they see.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use integration_tests::kubelet::{Node, Runtime, container, eventually, pod};
use proto::runtime::v1 as cri;
use tonic::Status;

/// A node with a pod that is ready, and its log folder.
pub struct Scene {
    pub node: Node,
    pub config: cri::PodSandboxConfig,
    pub pod: String,
    count: AtomicU32,
}

/// Whether it is Berth that is under test: containerd 1.6 differs in details.
pub fn is_berth() -> bool {
    Runtime::under_test() == Runtime::Berth
}

/// A container that runs a script.
pub fn script(text: &str) -> cri::ContainerConfig {
    container("", text)
}

/// The same with something of its security context changed.
pub fn secured(text: &str, change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> cri::ContainerConfig {
    let mut wanted = script(text);
    change(wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    wanted
}

/// What a script prints of its own `/proc/self/status`.
pub fn status_line(name: &str) -> String {
    format!("grep ^{name}: /proc/self/status | tr -s '\\t' ' ' | cut -d' ' -f2- ")
}

impl Scene {
    /// A pod on the node's network.
    pub async fn new(name: &str) -> Self {
        Self::of(Node::new().await, pod(name)).await
    }

    /// The same on a node of Berth's; `None` where another runtime is under test.
    pub async fn of_berth(name: &str, differs: &str) -> Option<Self> {
        Some(Self::of(Node::of_berth(differs).await?, pod(name)).await)
    }

    /// The same with something of the sandbox's security context changed.
    pub async fn secured(name: &str, change: impl FnOnce(&mut cri::LinuxSandboxSecurityContext)) -> Self {
        let mut config = pod(name);
        change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        Self::of(Node::new().await, config).await
    }

    /// A pod of this configuration.
    pub async fn of(node: Node, mut config: cri::PodSandboxConfig) -> Self {
        config.log_directory = node.path().join("logs").display().to_string();
        let pod = node.run_pod(&config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
        Self { node, config, pod, count: AtomicU32::new(0) }
    }

    /// Creates a container under a name that none had.
    pub async fn create(&self, wanted: &cri::ContainerConfig) -> Result<String, Status> {
        let name = format!("c{}", self.count.fetch_add(1, Ordering::Relaxed));
        let mut wanted = wanted.clone();
        wanted.log_path = format!("{name}.log");
        wanted.metadata = Some(cri::ContainerMetadata { name, attempt: 0 });
        self.node.create(&self.pod, &wanted, &self.config).await
    }

    /// Creates and starts a container.
    pub async fn try_start(&self, wanted: &cri::ContainerConfig) -> Result<String, Status> {
        let id = self.create(wanted).await?;
        self.node.start_container(&id).await.map(|()| id)
    }

    /// The same of one that can be started.
    pub async fn start(&self, wanted: &cri::ContainerConfig) -> String {
        self.try_start(wanted).await.unwrap_or_else(|error| panic!("{error}\n{}", self.node.log()))
    }

    /// Where a container's lines go.
    pub async fn log_of(&self, id: &str) -> PathBuf {
        let name = self.node.container(id).await.unwrap().metadata.unwrap().name;
        self.node.path().join("logs").join(format!("{name}.log"))
    }

    /// Runs a container to its end; what it has written, and its code.
    pub async fn run(&self, wanted: &cri::ContainerConfig) -> (String, i32) {
        let id = self.start(wanted).await;
        let code = self.node.ended(&id).await.exit_code;
        (said(&fs::read_to_string(self.log_of(&id).await).unwrap_or_default()), code)
    }

    /// What a script says, words separated by single spaces.
    pub async fn ask(&self, wanted: &cri::ContainerConfig) -> String {
        let (text, _) = self.run(wanted).await;
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Why a container can't be had.
    pub async fn refused(&self, wanted: &cri::ContainerConfig) -> Status {
        match self.try_start(wanted).await {
            Err(error) => error,
            Ok(id) => panic!("{id} was started: {wanted:?}"),
        }
    }

    /// What a command in a container says.
    pub async fn exec(&self, id: &str, script: &str) -> String {
        let done = self.node.exec(id, &["sh", "-c", script]).await.unwrap();
        String::from_utf8([done.stdout, done.stderr].concat()).unwrap().trim_end().to_owned()
    }

    /// Waits for a command in a container to say something.
    pub async fn hears(&self, id: &str, script: &str, wanted: &str) {
        let what = format!("{script:?} says {wanted:?}");
        eventually(&what, async || (self.exec(id, script).await == wanted).then_some(())).await;
    }

    /// Removes the pod; nothing is left.
    pub async fn end(self) {
        self.node.stop_pod(&self.pod).await.unwrap();
        self.node.remove_pod(&self.pod).await.unwrap();
        self.node.assert_empty().await;
    }
}

/// What was written, out of a log's lines.
pub fn said(log: &str) -> String {
    let mut text = String::new();
    for line in log.lines() {
        let mut words = line.splitn(4, ' ');
        let (_time, _stream, tag) = (words.next(), words.next(), words.next());
        text.push_str(words.next().unwrap_or_default());
        if tag == Some("F") {
            text.push('\n');
        }
    }
    text
}
