//! What is recorded of sandboxes and containers, and under which names.
//!
//! A container of CRI has two records: what it is to the kubelet (here), and what containerd's services show of it
//! (`containers::CONTAINERS`: specification, snapshot). Both, and the name, come and go in one transaction.

use proto::runtime::v1 as cri;

use super::{NAMESPACE, relays::Wanted};
use crate::store::{Proto, StoreError, Table, WriteTx};

/// Sandboxes by id.
pub(crate) const SANDBOXES: Table<Sandbox, Proto> = Table::new("cri-sandboxes");
/// Containers by id.
pub(crate) const CONTAINERS: Table<Container, Proto> = Table::new("cri-containers");
/// Ids by the names of sandboxes and containers.
pub(crate) const NAMES: Table<String> = Table::new("cri-names");
/// What the kubelet has said of this node.
pub(crate) const NODE: Table<String> = Table::new("cri-node");

/// How far a sandbox has come; see the module's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Phase {
    /// Its making has begun.
    Making = 0,
    /// Containers can be made in it.
    Ready = 1,
    /// Its end has begun.
    Stopping = 2,
    /// Nothing of it is in the kernel any more.
    NotReady = 3,
}

/// A sandbox.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Sandbox {
    /// How far it has come.
    #[prost(enumeration = "Phase", tag = "1")]
    pub(super) phase: i32,
    /// Nanoseconds since the epoch, as all times here.
    #[prost(int64, tag = "2")]
    pub(super) created_at: i64,
    /// What was asked for.
    #[prost(message, required, tag = "3")]
    pub(super) request: cri::RunPodSandboxRequest,
    /// What CNI gave, as JSON (`cni::Attachment`); empty without a network of its own.
    #[prost(string, tag = "4")]
    pub(super) attachment: String,
    /// What the kubelet has said since of the pod's own use, and of the sum over its containers (UpdatePodSandboxResources). The request
    /// stays as it was: it is what a repeated call is compared with.
    #[prost(message, optional, tag = "5")]
    pub(super) overhead: Option<cri::LinuxContainerResources>,
    /// That sum.
    #[prost(message, optional, tag = "6")]
    pub(super) resources: Option<cri::LinuxContainerResources>,
}

/// How a container ended.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct End {
    /// When.
    #[prost(int64, tag = "1")]
    pub(super) at: i64,
    /// Its code; 128 if it couldn't be started, 255 if nobody knows.
    #[prost(int32, tag = "2")]
    pub(super) code: i32,
    /// One word that kubelets know.
    #[prost(string, tag = "3")]
    pub(super) reason: String,
    /// A sentence, where there is one.
    #[prost(string, tag = "4")]
    pub(super) message: String,
}

/// A container.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Container {
    /// Its sandbox's id.
    #[prost(string, tag = "1")]
    pub(super) sandbox: String,
    /// What was asked for.
    #[prost(message, required, tag = "2")]
    pub(super) config: cri::ContainerConfig,
    /// The image's id.
    #[prost(string, tag = "3")]
    pub(super) image_id: String,
    /// When it was recorded.
    #[prost(int64, tag = "4")]
    pub(super) created_at: i64,
    /// When its start began; 0 before that.
    #[prost(int64, tag = "5")]
    pub(super) started_at: i64,
    /// Its end.
    #[prost(message, optional, tag = "6")]
    pub(super) end: Option<End>,
    /// Who its first process is.
    #[prost(message, optional, tag = "8")]
    pub(super) user: Option<cri::LinuxContainerUser>,
    /// The signal that asks it to end.
    #[prost(uint32, tag = "9")]
    pub(super) stop_signal: u32,
    /// Where its output goes; empty for nowhere.
    #[prost(string, tag = "10")]
    pub(super) log: String,
}

impl Phase {
    /// As operators read it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::NotReady => "not ready",
        }
    }
}

impl Sandbox {
    /// What it is to be.
    pub(super) fn config(&self) -> &cri::PodSandboxConfig {
        static NONE: std::sync::LazyLock<cri::PodSandboxConfig> = std::sync::LazyLock::new(Default::default);
        self.request.config.as_ref().unwrap_or(&NONE)
    }

    /// As CRI says it.
    pub(super) fn state(&self) -> cri::PodSandboxState {
        match self.phase() {
            Phase::Ready => cri::PodSandboxState::SandboxReady,
            _ => cri::PodSandboxState::SandboxNotready,
        }
    }

    /// The namespaces that its containers share.
    pub(super) fn namespaces(&self) -> cri::NamespaceOption {
        let linux = self.config().linux.as_ref();
        let context = linux.and_then(|linux| linux.security_context.as_ref());
        context.and_then(|context| context.namespace_options.clone()).unwrap_or_default()
    }

    /// The pod's own use, and the sum over its containers, as the kubelet has said last.
    pub(super) fn resources(&self) -> (Option<&cri::LinuxContainerResources>, Option<&cri::LinuxContainerResources>) {
        let linux = self.config().linux.as_ref();
        let overhead = self.overhead.as_ref().or_else(|| linux?.overhead.as_ref());
        let resources = self.resources.as_ref().or_else(|| linux?.resources.as_ref());
        (overhead, resources)
    }

    /// The ids of its user namespace, if it has one of its own: those of users and of groups, in containerd's words.
    pub(super) fn ids(&self) -> Option<(String, String)> {
        let users = self.namespaces().userns_options?;
        let own = users.mode == cri::NamespaceMode::Pod as i32;
        own.then(|| (words_of_ids(&users.uids), words_of_ids(&users.gids)))
    }

    /// The name under which it is unique.
    pub(super) fn name(&self) -> String {
        let meta = self.config().metadata.clone().unwrap_or_default();
        pod_name(&meta)
    }
}

impl Container {
    /// As CRI says it.
    pub(super) fn state(&self) -> cri::ContainerState {
        match (&self.end, self.started_at) {
            (Some(_), _) => cri::ContainerState::ContainerExited,
            (None, 0) => cri::ContainerState::ContainerCreated,
            (None, _) => cri::ContainerState::ContainerRunning,
        }
    }

    /// Where its stdio is to lead.
    pub(super) fn stdio(&self) -> Wanted {
        Wanted { stdin: self.config.stdin, terminal: self.config.tty, log: self.log.clone() }
    }

    /// The name under which it is unique.
    pub(super) fn name(&self) -> String {
        let meta = self.config.metadata.clone().unwrap_or_default();
        container_name(&self.sandbox, &meta)
    }
}

/// Ids as snapshots have them on their labels.
pub(super) fn words_of_ids(ids: &[cri::IdMapping]) -> String {
    let word = |one: &cri::IdMapping| format!("{}:{}:{}", one.container_id, one.host_id, one.length);
    ids.iter().map(word).collect::<Vec<_>>().join(",")
}

// Parts may hold any character: as JSON nothing runs together.
fn key(parts: &[&str], attempt: u32) -> String {
    serde_json::json!([parts, attempt]).to_string()
}

/// The name of a sandbox as a key of [`NAMES`].
pub(super) fn pod_name(meta: &cri::PodSandboxMetadata) -> String {
    key(&["pod", &meta.namespace, &meta.name, &meta.uid], meta.attempt)
}

/// The name of a container as a key of [`NAMES`].
pub(super) fn container_name(sandbox: &str, meta: &cri::ContainerMetadata) -> String {
    key(&["container", sandbox, &meta.name], meta.attempt)
}

/// Takes a name; `Err` within says who has it.
pub(super) fn take_name(tx: &WriteTx, name: &str, id: &str) -> Result<Result<(), String>, StoreError> {
    match NAMES.get(tx, NAMESPACE, name)? {
        Some(other) if other != id => Ok(Err(other)),
        _ => NAMES.put(tx, NAMESPACE, name, &id.to_owned()).map(Ok),
    }
}

/// Gives a name back, if it is still `id`'s.
pub(super) fn drop_name(tx: &WriteTx, name: &str, id: &str) -> Result<(), StoreError> {
    if NAMES.get(tx, NAMESPACE, name)?.is_some_and(|who| who == id) {
        NAMES.remove(tx, NAMESPACE, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_run_together() {
        let meta = |namespace: &str, name: &str| cri::PodSandboxMetadata {
            namespace: namespace.into(),
            name: name.into(),
            uid: "u".into(),
            attempt: 0,
        };
        assert_ne!(pod_name(&meta("a/b", "c")), pod_name(&meta("a", "b/c")));
        assert_ne!(pod_name(&meta("a\",\"b", "c")), pod_name(&meta("a", "b\",\"c")));
    }

    #[test]
    fn states() {
        let mut container = Container::default();
        assert_eq!(container.state(), cri::ContainerState::ContainerCreated);
        container.started_at = 1;
        assert_eq!(container.state(), cri::ContainerState::ContainerRunning);
        container.end = Some(End::default());
        assert_eq!(container.state(), cri::ContainerState::ContainerExited);
        let mut sandbox = Sandbox::default();
        for phase in [Phase::Making, Phase::Stopping, Phase::NotReady] {
            sandbox.set_phase(phase);
            assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxNotready);
        }
        sandbox.set_phase(Phase::Ready);
        assert_eq!(sandbox.state(), cri::PodSandboxState::SandboxReady);
    }
}
