//! What the kubelet is told about this node: whether it is ready, which handlers there are, what they can do.

use std::{collections::HashMap, path::Path, sync::Arc};

use proto::{
    kind::{ErrorKind, chain},
    runtime::v1 as cri,
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{config::Config, failure::Failure, store::Stores, tasks::Tasks};

/// The handlers of RuntimeClass, and the runtimes that they mean. The first is for pods without one.
const HANDLERS: [(&str, &str); 2] = [("", "io.containerd.berth.v1"), ("runc", "io.containerd.runc.v2")];

/// A name that no handler has.
#[derive(Debug, thiserror::Error)]
#[error("runtime handler {0:?} is not known: there is only \"runc\"")]
pub(crate) struct UnknownHandler(String);

impl Failure for UnknownHandler {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// Refuses handlers that aren't there.
pub(super) fn check_handler(name: &str) -> Result<(), UnknownHandler> {
    let known = HANDLERS.iter().any(|(handler, _)| *handler == name);
    if known { Ok(()) } else { Err(UnknownHandler(name.to_owned())) }
}

/// The runtime that a handler means; the default's, if it isn't known any more.
pub(super) fn runtime_of(handler: &str) -> &'static str {
    let found = HANDLERS.iter().find(|(name, _)| *name == handler);
    found.unwrap_or(&HANDLERS[0]).1
}

/// What of a runtime's features (runtime-spec, `features`) CRI wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
}

impl Features {
    fn is_recursive_read_only(&self) -> bool {
        self.mount_options.iter().any(|option| option == "rro")
    }
}

/// This node, as far as it stays what it is while we run.
pub(crate) struct Node {
    tasks: Arc<Tasks>,
    driver: cri::CgroupDriver,
    info: serde_json::Value,
    // Of each handler, once its shim has answered.
    features: [OnceCell<Features>; HANDLERS.len()],
}

impl Node {
    /// The node of this configuration.
    pub(crate) fn new(config: &Config, stores: &Stores, tasks: Arc<Tasks>) -> Self {
        // As sd_booted(3) finds out whether systemd owns the cgroups. The kubelet asks once, so this never changes while we run.
        let driver = match Path::new("/run/systemd/system").is_dir() {
            true => cri::CgroupDriver::Systemd,
            false => cri::CgroupDriver::Cgroupfs,
        };
        let snapshotter = stores.snapshots.default_name();
        let info = json!({
            "dataRoot": config.data_root,
            "runRoot": config.run_root,
            "socket": config.socket,
            "snapshotter": snapshotter,
            "cgroupDriver": driver.as_str_name().to_lowercase(),
        });
        Self { tasks, driver, info, features: Default::default() }
    }

    /// Which cgroup paths the kubelet is to use.
    pub(super) fn cgroup_driver(&self) -> cri::CgroupDriver {
        self.driver
    }

    async fn features(&self, handler: usize) -> Result<&Features, String> {
        // One whose shim was missing may have it by now.
        let ask = || async {
            let info =
                self.tasks.runtime_info(HANDLERS[handler].1, None).await.map_err(|error| chain(&error).to_string())?;
            Ok(info.features.map(|any| features(&any)).unwrap_or_default())
        };
        self.features[handler].get_or_try_init(ask).await
    }

    /// Whether a handler's runtime can make mounts read-only with all below them.
    pub(super) async fn is_recursive_read_only(&self, handler: &str) -> bool {
        let index = HANDLERS.iter().position(|(name, _)| *name == handler).unwrap_or(0);
        self.features(index).await.is_ok_and(Features::is_recursive_read_only)
    }

    /// Conditions, handlers and features; with more about this node, if it is to be verbose. `network` is why there is none.
    pub(super) async fn status(&self, verbose: bool, network: Result<(), String>) -> cri::StatusResponse {
        let mut handlers = Vec::new();
        let mut ready = condition("RuntimeReady", None);
        for (index, (name, _)) in HANDLERS.iter().enumerate() {
            let features = match self.features(index).await {
                Ok(features) => features,
                Err(why) => {
                    if index == 0 {
                        ready = condition("RuntimeReady", Some(("ShimMissing", why)));
                    }
                    continue;
                }
            };
            handlers.push(cri::RuntimeHandler {
                name: (*name).to_owned(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: features.is_recursive_read_only(),
                    user_namespaces: false,
                }),
            });
        }
        let network = condition("NetworkReady", network.err().map(|why| ("NetworkPluginNotReady", why)));
        let info = if verbose { HashMap::from([("config".to_owned(), self.info.to_string())]) } else { HashMap::new() };
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![ready, network] }),
            info,
            runtime_handlers: handlers,
            features: Some(cri::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
        }
    }
}

fn features(any: &prost_types::Any) -> Features {
    // A runtime that says it in other words has none that we know of.
    serde_json::from_slice(&any.value).unwrap_or_default()
}

/// A condition that holds, unless there is a reason and a sentence why it doesn't.
fn condition(kind: &str, broken: Option<(&str, String)>) -> cri::RuntimeCondition {
    let status = broken.is_none();
    let (reason, message) = broken.unwrap_or_default();
    cri::RuntimeCondition { r#type: kind.to_owned(), status, reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use proto::typeurl;

    use super::*;

    #[test]
    fn handlers_are_known_by_name() {
        assert!(check_handler("").is_ok() && check_handler("runc").is_ok());
        let error = check_handler("kata").unwrap_err();
        assert_eq!(error.to_string(), "runtime handler \"kata\" is not known: there is only \"runc\"");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn features_of_runtimes() {
        let any = |json: &str| typeurl::pack_json("x/Features", json.as_bytes().to_vec());
        let wanted = Features { mount_options: vec!["ro".into(), "rro".into()] };
        assert_eq!(features(&any(r#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"]}"#)), wanted);
        assert_eq!(features(&any("{}")), Features::default());
        assert_eq!(features(&any("no json")), Features::default());
    }

    #[test]
    fn conditions() {
        let holds = condition("RuntimeReady", None);
        assert!(holds.status && holds.reason.is_empty());
        let broken = condition("NetworkReady", Some(("Reason", "why".into())));
        assert_eq!((broken.status, &*broken.reason, &*broken.message), (false, "Reason", "why"));
    }
}
