//! Why a pod isn't attached to its network, or not detached from it.

use std::{fmt, io, net::AddrParseError, path::PathBuf, time::Duration};

use proto::kind::ErrorKind;
use serde::Deserialize;
use sys::Errno;

use super::{plugin::Verb, version::Version};
use crate::failure::Failure;

/// A pod could not be attached to its network, or not be detached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    /// There is no configuration, or none that is sound.
    #[error("there is no network for pods: {0}")]
    NoNetwork(String),
    /// What is wanted for the pod can't be.
    #[error("network of pod {pod}")]
    Pod {
        /// Id of the sandbox.
        pod: String,
        /// What is wrong.
        #[source]
        cause: PodError,
    },
    /// Nothing is pinned where the network namespace should be.
    #[error("network of pod {pod}: {at} is no network namespace")]
    NoNamespace {
        /// Id of the sandbox.
        pod: String,
        /// Where it should be.
        at: PathBuf,
    },
    /// The loopback interface doesn't come up.
    #[error("network of pod {pod}: set loopback up in {at}")]
    Loopback {
        /// Id of the sandbox.
        pod: String,
        /// The network namespace.
        at: PathBuf,
        /// Why.
        #[source]
        cause: Errno,
    },
    /// A plugin can't be called at all.
    #[error("network {network}: plugin {plugin}")]
    Program {
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// Why.
        #[source]
        cause: PluginError,
    },
    /// There is no version that the configuration allows and all plugins speak.
    #[error("network {network} allows cniVersion {}: not all of its plugins speak one of them", .versions.join(", "))]
    NoVersion {
        /// The network.
        network: String,
        /// What the configuration allows.
        versions: Vec<&'static str>,
    },
    /// A plugin didn't do its part.
    #[error("network {network}: plugin {plugin} {verb}")]
    Plugin {
        /// The network.
        network: String,
        /// The plugin.
        plugin: String,
        /// What it was to do.
        verb: Verb,
        /// What happened.
        #[source]
        cause: PluginError,
    },
    /// All plugins were content, and yet there is no address.
    #[error("network {network}: its plugins gave pod {pod} no address at eth0")]
    NoAddress {
        /// The network.
        network: String,
        /// Id of the sandbox.
        pod: String,
    },
    /// A bug.
    #[error("network of pods: a bug, the request was abandoned")]
    Panic,
}

/// What of a pod's description can't be passed on to plugins.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    /// In CNI_ARGS it would end this argument and begin another.
    #[error("{what} {value:?} holds a character that CNI_ARGS can't carry")]
    Argument {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// It becomes a file's name in the hands of plugins.
    #[error("id {0:?} is none that plugins take")]
    Id(String),
    /// A port that no host or pod has.
    #[error("{what} {port} is no port")]
    Port {
        /// Which.
        what: &'static str,
        /// Its number.
        port: i32,
    },
    /// A protocol that isn't known.
    #[error("port {port}: protocol {protocol} is not known")]
    Protocol {
        /// The container's port.
        port: i32,
        /// The protocol's number.
        protocol: i32,
    },
    /// Not an address.
    #[error("port {port}: host address {address:?}")]
    HostAddress {
        /// The container's port.
        port: i32,
        /// What was given.
        address: String,
        /// Why it is none.
        #[source]
        cause: AddrParseError,
    },
    /// Not an amount of bits per second, or one beyond reason.
    #[error("annotation {annotation}: {value:?} is no rate of at least 1k and at most 1P bits per second")]
    Rate {
        /// The annotation.
        annotation: &'static str,
        /// Its value.
        value: String,
    },
}

/// What came of calling a plugin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// A name that would lead elsewhere.
    #[error("{0:?} can't be the name of a plugin")]
    Name(String),
    /// There is no such program.
    #[error("there is no such program in {}", list(.0))]
    Missing(Vec<PathBuf>),
    /// It doesn't run.
    #[error("run {at}")]
    Start {
        /// The program.
        at: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// It didn't end, and was killed with all it had started.
    #[error("did not end within {} and was killed", crate::config::Period(*.0))]
    Slow(Duration),
    /// It printed without end, and was killed.
    #[error("printed more than {0} bytes and was killed")]
    Flood(usize),
    /// A signal ended it.
    #[error("was ended by signal {signal}{}", said(.words))]
    Signal {
        /// Its number.
        signal: i32,
        /// What it said on its error stream.
        words: String,
    },
    /// It failed, and its words are no error of CNI's.
    #[error("failed with exit code {code}{}", said(.words))]
    Failed {
        /// Its exit code.
        code: i32,
        /// What it said.
        words: String,
    },
    /// It says what is wrong.
    #[error("{0}")]
    Refused(Refusal),
    /// It succeeded and said nothing that can be understood.
    #[error("printed no result: {why}{}", said(.words))]
    Result {
        /// What is wrong with it.
        why: String,
        /// What it said.
        words: String,
    },
}

/// An error as plugins print it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Refusal {
    /// Below 100: one of the specification's.
    #[serde(default)]
    pub(super) code: u32,
    /// In short.
    #[serde(default)]
    pub(super) msg: String,
    /// At length, if there is more to say.
    #[serde(default)]
    pub(super) details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

fn list(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(" or ")
}

fn said(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; it said {words:?}") }
}

impl Failure for CniError {
    // Never NotFound: to a kubelet that stops a pod it means that there is no such pod any more.
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNetwork(_) | Self::NoVersion { .. } | Self::NoNamespace { .. } => ErrorKind::FailedPrecondition,
            Self::Pod { .. } => ErrorKind::InvalidArgument,
            Self::Loopback { .. } | Self::NoAddress { .. } | Self::Panic => ErrorKind::Internal,
            Self::Program { cause, .. } | Self::Plugin { cause, .. } => cause.kind(),
        }
    }
}

impl PluginError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) | Self::Missing(_) => ErrorKind::FailedPrecondition,
            Self::Slow(_) => ErrorKind::DeadlineExceeded,
            Self::Refused(refusal) => match refusal.code {
                // Version, field, configuration: somebody has to change it.
                1 | 2 | 7 => ErrorKind::FailedPrecondition,
                // "Try again later", "not available", "not available, and pods have limited connectivity".
                11 | 50 | 51 => ErrorKind::Unavailable,
                _ => ErrorKind::Internal,
            },
            Self::Start { .. } | Self::Flood(_) | Self::Signal { .. } | Self::Failed { .. } | Self::Result { .. } => {
                ErrorKind::Internal
            }
        }
    }
}

impl CniError {
    /// There is no version for all plugins.
    pub(super) fn no_version(network: &str, versions: &[Version]) -> Self {
        Self::NoVersion {
            network: network.to_owned(),
            versions: versions.iter().map(|version| version.name()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::kind::chain;

    fn refused(code: u32) -> CniError {
        let refusal = Refusal { code, msg: "no".into(), details: "at all".into() };
        let (network, plugin) = ("net".to_owned(), "bridge".to_owned());
        CniError::Plugin { network, plugin, verb: Verb::Add, cause: PluginError::Refused(refusal) }
    }

    #[test]
    fn an_error_names_network_plugin_command_and_cause() {
        assert_eq!(chain(&refused(11)), "network net: plugin bridge ADD: no (code 11): at all");
        let missing = PluginError::Missing(vec!["/a".into(), "/b".into()]);
        assert_eq!(chain(&missing), "there is no such program in /a or /b");
        assert_eq!(PluginError::Slow(Duration::from_secs(120)).to_string(), "did not end within 2m and was killed");
    }

    #[test]
    fn kinds_of_refusals() {
        for (code, kind) in [
            (1, ErrorKind::FailedPrecondition),
            (7, ErrorKind::FailedPrecondition),
            (11, ErrorKind::Unavailable),
            (50, ErrorKind::Unavailable),
            (4, ErrorKind::Internal),
            (999, ErrorKind::Internal),
        ] {
            assert_eq!(refused(code).kind(), kind, "{code}");
        }
    }
}
