//! Networks of pods by CNI: which one there is, and its plugins' work when a pod comes and goes.
//!
//! `config` finds the network, `capabilities` says what its plugins may know of the pod, `plugin` runs them, `result` reads what they
//! print. An [`Attachment`] is all that a DEL needs: it goes into the record of the sandbox, so that a pod leaves by the way it came
//! whatever has become of the configuration.

mod capabilities;
mod config;
mod error;
mod plugin;
mod result;
#[cfg(test)]
mod tests;
mod version;

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use proto::{kind::chain, runtime::v1 as cri};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sys::netns::{self, NetnsError};
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

pub(crate) use self::error::CniError;
use self::{
    capabilities::Capabilities,
    config::{Found, Plugin, Source},
    error::{PluginError, PodError},
    plugin::{Call, Programs, Verb},
    result::{AddResult, Interface},
    version::Version,
};
use crate::config::Config;

/// The interface of a pod.
const INTERFACE: &str = "eth0";
/// How long a plugin may take to say whether it is ready: a kubelet waits for the answer.
const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// How long its answer is good: kubelets ask every few seconds, and others beside them.
const STATUS_FRESH: Duration = Duration::from_secs(5);

/// A pod, as far as networks are concerned.
#[derive(Debug, Clone, Default)]
pub(super) struct Pod {
    /// Id of the sandbox.
    pub(super) id: String,
    /// Where its network namespace is pinned.
    pub(super) netns: PathBuf,
    /// Its name.
    pub(super) name: String,
    /// Its namespace in Kubernetes.
    pub(super) namespace: String,
    /// Its uid in Kubernetes.
    pub(super) uid: String,
    /// What is to be published.
    pub(super) port_mappings: Vec<cri::PortMapping>,
    /// Its annotations; two of them limit its bandwidth.
    pub(super) annotations: HashMap<String, String>,
    /// The cgroup that it is in.
    pub(super) cgroup_parent: String,
    /// Its resolver.
    pub(super) dns: Option<cri::DnsConfig>,
    /// Subnets of the node's pods, for networks that leave their choice to the runtime (UpdateRuntimeConfig).
    pub(super) ip_ranges: Vec<String>,
}

impl Pod {
    /// The pod of a sandbox.
    pub(super) fn new(id: &str, netns: PathBuf, config: &cri::PodSandboxConfig) -> Self {
        let metadata = config.metadata.clone().unwrap_or_default();
        Self {
            id: id.to_owned(),
            netns,
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            port_mappings: config.port_mappings.clone(),
            annotations: config.annotations.clone().into_iter().collect(),
            cgroup_parent: config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
            dns: config.dns_config.clone(),
            ip_ranges: Vec::new(),
        }
    }
}

/// How a pod is attached to its network: what its plugins were told at ADD, and what came of it. To be kept as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attachment {
    network: String,
    version: Version,
    plugins: Vec<Plugin>,
    arguments: String,
    capabilities: Capabilities,
    /// None as long as ADD hasn't come to its end.
    result: Option<Box<RawValue>>,
    addresses: Vec<IpAddr>,
    mac: Option<String>,
}

impl Attachment {
    /// What a pod is about to be attached by.
    fn begin(pod: &Pod, source: &Source, version: Version) -> Result<Self, PodError> {
        if !config::is_identifier(&pod.id) {
            return Err(PodError::Id(pod.id.clone()));
        }
        let plugins = source.network.plugins.clone();
        let mut capabilities = capabilities::of(pod)?;
        // Nobody else's business, and not to be kept.
        capabilities.retain(|name, _| plugins.iter().any(|plugin| plugin.wants(name)));
        Ok(Self {
            network: source.network.name.clone(),
            version,
            plugins,
            arguments: capabilities::arguments(pod)?,
            capabilities,
            result: None,
            addresses: Vec::new(),
            mac: None,
        })
    }

    /// The pod's addresses, in the order in which the network gave them; at least one.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The hardware address of its interface, if the network tells it.
    pub(super) fn mac(&self) -> Option<&str> {
        self.mac.as_deref()
    }

    /// The network's name.
    pub(super) fn network(&self) -> &str {
        &self.network
    }

    fn failed<'a>(&'a self, plugin: &'a Plugin, verb: Verb) -> impl FnOnce(PluginError) -> CniError + use<'a> {
        move |cause| CniError::Plugin { network: self.network.clone(), plugin: plugin.kind.clone(), verb, cause }
    }
}

/// The last answer about whether the plugins of a network are ready.
struct Answer {
    at: Instant,
    source: Arc<Source>,
    ready: Result<(), String>,
}

/// What was found in the folder of networks when somebody last looked.
#[derive(Default)]
struct Known {
    source: Option<Arc<Source>>,
    problems: Vec<String>,
}

type Turn = tokio::sync::Mutex<()>;

/// The network of pods.
pub(crate) struct Cni {
    folder: PathBuf,
    programs: Programs,
    known: Mutex<Known>,
    answer: tokio::sync::Mutex<Option<Answer>>,
    turns: Mutex<HashMap<String, Weak<Turn>>>,
}

impl Cni {
    /// The network that the configuration leads to.
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let programs = Programs { folders: config.cni.bin_dirs.clone(), limit: config.cni.plugin_limit };
        Arc::new(Self::over(config.cni.conf_dir.clone(), programs))
    }

    fn over(folder: PathBuf, programs: Programs) -> Self {
        Self { folder, programs, known: Mutex::default(), answer: Default::default(), turns: Mutex::default() }
    }

    /// Why pods can't be given a network, if they can't: no configuration, no program for a plugin of it, or a plugin that says so
    /// (STATUS, from cniVersion 1.1.0).
    pub(super) async fn ready(&self) -> Result<(), String> {
        let said = |error: CniError| chain(&error);
        let source = self.source().await.map_err(said)?;
        self.find_all(&source).map_err(said)?;
        let version = self.agree(&source).await.map_err(said)?;
        if version < Version::V1_1_0 {
            return Ok(());
        }
        // Those who ask meanwhile wait for the same answer.
        let mut answer = self.answer.lock().await;
        let good = |answer: &&Answer| Arc::ptr_eq(&answer.source, &source) && answer.at.elapsed() < STATUS_FRESH;
        if let Some(answer) = answer.as_ref().filter(good) {
            return answer.ready.clone();
        }
        let ready = self.ask_all(&source, version).await.map_err(said);
        *answer = Some(Answer { at: Instant::now(), source, ready: ready.clone() });
        ready
    }

    async fn ask_all(&self, source: &Source, version: Version) -> Result<(), CniError> {
        for plugin in &source.network.plugins {
            let input = plugin.input(&source.network.name, version, &Capabilities::new(), None);
            self.ask(source, plugin, Verb::Status, &input.unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Calls a plugin that isn't to do anything for a pod.
    async fn ask(&self, source: &Source, plugin: &Plugin, verb: Verb, input: &[u8]) -> Result<Vec<u8>, CniError> {
        // Plugins of old want to see something in all of them, whatever they are asked.
        let dummy = if verb == Verb::Version { "dummy" } else { "" };
        let call = Call { verb, plugin: &plugin.kind, pod: dummy, netns: dummy, arguments: "", input };
        let answer = self.programs.call_within(&call, STATUS_LIMIT.min(self.programs.limit)).await;
        answer.map_err(failed(source, plugin, verb))
    }

    /// Attaches a pod to the network: loopback first, then each plugin in its turn. If it fails, all plugins have undone what they
    /// did, as far as they could. Dropped on the way, it leaves what was done until then to a DEL.
    pub(super) async fn add(&self, pod: &Pod) -> Result<Attachment, CniError> {
        let source = self.source().await?;
        self.find_all(&source)?;
        let version = self.agree(&source).await?;
        let refused = |cause| CniError::Pod { pod: pod.id.clone(), cause };
        let mut attachment = Attachment::begin(pod, &source, version).map_err(refused)?;
        let _turn = self.turn(&pod.id).await;
        loopback_up(pod).await?;
        match self.add_all(pod, &attachment).await {
            Ok((result, Interface { addresses, mac })) => {
                (attachment.result, attachment.addresses, attachment.mac) = (Some(result), addresses, mac);
                Ok(attachment)
            }
            Err(error) => {
                // Also by those that were not called: what they find is theirs to know.
                if let Err(undo) = self.del_all(pod, &attachment).await {
                    warn!(id = pod.id, error = chain(&undo), "network of a pod that failed is not removed entirely");
                }
                Err(error)
            }
        }
    }

    async fn add_all(&self, pod: &Pod, attachment: &Attachment) -> Result<(Box<RawValue>, Interface), CniError> {
        let netns = pod.netns.to_string_lossy();
        let mut last: Option<(Box<RawValue>, Interface)> = None;
        for plugin in &attachment.plugins {
            let previous = last.as_ref().map(|(result, _)| &**result);
            let output = self.run(pod, &netns, attachment, plugin, Verb::Add, previous).await?;
            let read = AddResult::read(&output, attachment.version).and_then(|result| {
                let interface = result.interface(attachment.version)?;
                Ok((result.raw().map_err(|error| error.to_string())?, interface))
            });
            let no_result = |why| PluginError::Result { why, words: plugin::excerpt(&output, 200) };
            last = Some(read.map_err(no_result).map_err(attachment.failed(plugin, Verb::Add))?);
        }
        let no_address = || CniError::NoAddress { network: attachment.network.clone(), pod: pod.id.clone() };
        last.filter(|(_, interface)| !interface.addresses.is_empty()).ok_or_else(no_address)
    }

    /// Detaches a pod: by its attachment, or, where an ADD has left none, by the configuration of now. Fine any number of times.
    /// A plugin that fails doesn't keep the others from their part; its failure is the answer.
    pub(super) async fn del(&self, pod: &Pod, attachment: Option<&Attachment>) -> Result<(), CniError> {
        let guessed;
        let attachment = match attachment {
            Some(attachment) => attachment,
            None => {
                let source = match self.source().await {
                    Ok(source) => source,
                    // A pod must be able to go; and who would know what there is to remove?
                    Err(error) => {
                        warn!(id = pod.id, error = chain(&error), "nothing to remove a pod's network by");
                        return Ok(());
                    }
                };
                let version = self.agree(&source).await.unwrap_or(source.network.versions[0]);
                // What plugins can't be told of was never added.
                let Ok(begun) = Attachment::begin(pod, &source, version) else { return Ok(()) };
                guessed = begun;
                &guessed
            }
        };
        let _turn = self.turn(&pod.id).await;
        self.del_all(pod, attachment).await
    }

    async fn del_all(&self, pod: &Pod, attachment: &Attachment) -> Result<(), CniError> {
        // After a reboot there is no namespace: plugins then free what isn't in it.
        let netns = if netns::is_pinned(&pod.netns) { pod.netns.to_string_lossy() } else { "".into() };
        // Older plugins weren't to be given it (CNI 0.4.0).
        let result = attachment.result.as_deref().filter(|_| attachment.version >= Version::V0_4_0);
        let mut first = Ok(());
        for plugin in attachment.plugins.iter().rev() {
            let done = self.run(pod, &netns, attachment, plugin, Verb::Del, result).await;
            match (&first, done) {
                (_, Ok(_)) => {}
                (Ok(()), Err(error)) => first = Err(error),
                (Err(_), Err(error)) => warn!(id = pod.id, error = chain(&error), "and another plugin failed"),
            }
        }
        first
    }

    async fn run(
        &self,
        pod: &Pod,
        netns: &str,
        attachment: &Attachment,
        plugin: &Plugin,
        verb: Verb,
        previous: Option<&RawValue>,
    ) -> Result<Vec<u8>, CniError> {
        let Attachment { network, version, arguments, capabilities, .. } = attachment;
        // All of it is JSON already, so that this can't fail.
        let input = plugin.input(network, *version, capabilities, previous).unwrap_or_default();
        let call = Call { verb, plugin: &plugin.kind, pod: &pod.id, netns, arguments, input: &input };
        self.programs.call(&call).await.map_err(attachment.failed(plugin, verb))
    }

    /// The network that the folder holds now.
    async fn source(&self) -> Result<Arc<Source>, CniError> {
        let folder = self.folder.clone();
        let found = tokio::task::spawn_blocking(move || config::find(&folder)).await;
        let Found { source, problems } = found.map_err(|_| CniError::Panic)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for problem in problems.iter().filter(|problem| !known.problems.contains(problem)) {
            warn!(problem, "network configuration is passed over");
        }
        known.problems = problems;
        known.source = match (source, known.source.take()) {
            (Some(new), Some(old)) if new.same(&old) => Some(old),
            (Some(new), _) => {
                info!(network = new.network.name, file = %new.at.display(), "network of pods");
                Some(Arc::new(new))
            }
            (None, old) => {
                if old.is_some() {
                    info!("network of pods is gone");
                }
                None
            }
        };
        let none = || match &known.problems[..] {
            [] => format!("{} holds no .conflist, .conf or .json", self.folder.display()),
            problems => problems.join("; "),
        };
        known.source.clone().ok_or_else(|| CniError::NoNetwork(none()))
    }

    /// Refuses networks of which a program is missing.
    fn find_all(&self, source: &Source) -> Result<(), CniError> {
        for plugin in &source.network.plugins {
            if let Err(cause) = self.programs.find(&plugin.kind) {
                let (network, plugin) = (source.network.name.clone(), plugin.kind.clone());
                return Err(CniError::Program { network, plugin, cause });
            }
        }
        Ok(())
    }

    /// The newest version that the configuration allows and all plugins speak. They are asked only if there is a choice.
    async fn agree(&self, source: &Source) -> Result<Version, CniError> {
        let network = &source.network;
        if let [only] = network.versions[..] {
            return Ok(only);
        }
        let ask = || async {
            let mut common = network.versions.clone();
            for plugin in &network.plugins {
                let spoken = self.versions_of(source, plugin).await?;
                common.retain(|version| spoken.contains(version));
            }
            common.first().copied().ok_or_else(|| CniError::no_version(&network.name, &network.versions))
        };
        source.agreed.get_or_try_init(ask).await.copied()
    }

    async fn versions_of(&self, source: &Source, plugin: &Plugin) -> Result<Vec<Version>, CniError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spoken {
            supported_versions: Vec<String>,
        }
        let input = format!(r#"{{"cniVersion":"{}"}}"#, Version::NEWEST);
        let output = match self.ask(source, plugin, Verb::Version, input.as_bytes()).await {
            Ok(output) => output,
            // It doesn't even know the question.
            Err(CniError::Plugin { cause: PluginError::Refused(_), .. }) => return Ok(vec![Version::V0_1_0]),
            Err(error) => return Err(error),
        };
        let spoken: Spoken = serde_json::from_slice(&output).map_err(|error| {
            let cause = PluginError::Result { why: error.to_string(), words: plugin::excerpt(&output, 200) };
            failed(source, plugin, Verb::Version)(cause)
        })?;
        Ok(spoken.supported_versions.iter().filter_map(|name| Version::of(name)).collect())
    }

    /// Waits until nobody else works on this pod's network.
    async fn turn(&self, pod: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            turns.get(pod).and_then(Weak::upgrade).unwrap_or_else(|| {
                let turn = Arc::new(Turn::default());
                turns.insert(pod.to_owned(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}

fn failed<'a>(source: &'a Source, plugin: &'a Plugin, verb: Verb) -> impl FnOnce(PluginError) -> CniError + use<'a> {
    move |cause| CniError::Plugin { network: source.network.name.clone(), plugin: plugin.kind.clone(), verb, cause }
}

/// Sets loopback up in the pod. No plugin is needed for that.
async fn loopback_up(pod: &Pod) -> Result<(), CniError> {
    let (id, at) = (pod.id.clone(), pod.netns.clone());
    let work = move || {
        let failed = |cause| CniError::Loopback { pod: id.clone(), at: at.clone(), cause };
        let of = |error: NetnsError| failed(error.cause);
        let namespace = netns::open(&at).map_err(of)?;
        let namespace = namespace.ok_or_else(|| CniError::NoNamespace { pod: id.clone(), at: at.clone() })?;
        netns::within(namespace.as_fd(), netns::loopback_up).map_err(of)?.map_err(failed)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(CniError::Panic))
}
