//! What the kubelet is told about this node: whether it is ready, which handlers there are, what they can do.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use proto::{
    containerd::{runc::v1::Options, services::containers::v1::container},
    kind::{ErrorKind, chain},
    runtime::v1 as cri,
    typeurl,
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::{
    config::{Config, Handler},
    failure::Failure,
    store::Stores,
    tasks::{InfoError, Tasks},
};

/// A name that no handler has.
#[derive(Debug, thiserror::Error)]
#[error("runtime handler {name:?} is not known: there is {known} (cri.handlers in the supervisor's configuration)")]
pub(crate) struct UnknownHandler {
    name: String,
    known: String,
}

impl Failure for UnknownHandler {
    fn kind(&self) -> ErrorKind {
        ErrorKind::InvalidArgument
    }
}

/// What of a runtime's features (runtime-spec, `features`) CRI wants to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
    linux: LinuxFeatures,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LinuxFeatures {
    namespaces: Vec<String>,
    mount_extensions: MountExtensions,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct MountExtensions {
    idmap: Extension,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Extension {
    enabled: bool,
}

impl Features {
    fn is_recursive_read_only(&self) -> bool {
        self.mount_options.iter().any(|option| option == "rro")
    }

    fn has_user_namespaces(&self) -> bool {
        self.linux.namespaces.iter().any(|kind| kind == "user") && self.linux.mount_extensions.idmap.enabled
    }
}

/// This node, as far as it stays what it is while we run.
pub(crate) struct Node {
    tasks: Arc<Tasks>,
    driver: cri::CgroupDriver,
    info: serde_json::Value,
    // Where files of pods are that are to have other owners.
    folders: [PathBuf; 2],
    // Why kernel or file systems have no such mounts.
    id_maps: OnceLock<Result<(), String>>,
    // With the features of each, once its shim has answered.
    handlers: Vec<(Handler, OnceCell<Features>)>,
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
        let handlers = config.handlers.iter().map(|handler| (handler.clone(), OnceCell::new())).collect();
        let folders = [config.run_root.clone(), config.data_root.clone()];
        Self { tasks, driver, info, folders, id_maps: OnceLock::new(), handlers }
    }

    /// Refuses handlers that aren't there.
    pub(super) fn check_handler(&self, name: &str) -> Result<(), UnknownHandler> {
        if self.handlers.iter().any(|(handler, _)| handler.name == name) {
            return Ok(());
        }
        let known: Vec<_> = self.handlers.iter().skip(1).map(|(handler, _)| handler.name.as_str()).collect();
        Err(UnknownHandler { name: name.to_owned(), known: known.join(", ") })
    }

    /// A handler; the default one for a name that isn't known any more.
    fn handler(&self, name: &str) -> &(Handler, OnceCell<Features>) {
        self.handlers.iter().find(|(handler, _)| handler.name == name).unwrap_or(&self.handlers[0])
    }

    /// The runtime of a handler, as containerd's records say it.
    pub(super) fn runtime(&self, handler: &str) -> container::Runtime {
        let (handler, _) = self.handler(handler);
        container::Runtime { name: handler.runtime.clone(), options: self.options(handler) }
    }

    /// Which cgroup paths the kubelet is to use.
    pub(super) fn cgroup_driver(&self) -> cri::CgroupDriver {
        self.driver
    }

    /// What the shim of a handler is told: the runtime's program, and that systemd makes the cgroups.
    fn options(&self, handler: &Handler) -> Option<prost_types::Any> {
        let binary_name = handler.program.as_ref().map(|program| program.display().to_string()).unwrap_or_default();
        let options =
            Options { binary_name, systemd_cgroup: self.driver == cri::CgroupDriver::Systemd, ..Default::default() };
        // Shims for other things than runc and its kind have options of their own, and some refuse these.
        (options != Options::default() && self.tasks.takes_runc_options(&handler.runtime))
            .then(|| typeurl::pack(&options))
    }

    async fn features<'a>(&self, (handler, known): &'a (Handler, OnceCell<Features>)) -> Result<&'a Features, String> {
        // One whose shim was missing may have it by now.
        let ask = || async {
            if let Some(program) = handler.program.as_ref().filter(|program| !program.is_file()) {
                return Err(format!("{} is not there", program.display()));
            }
            match self.tasks.runtime_info(&handler.runtime, self.options(handler)).await {
                Ok(info) => Ok(info.features.map(|any| features(&any)).unwrap_or_default()),
                // Shims from before containerd 2 can't be asked; they are there all the same.
                Err(InfoError::Silent { .. }) if !self.tasks.is_own_runtime(&handler.runtime) => {
                    Ok(Features::default())
                }
                Err(error) => Err(chain(&error).to_string()),
            }
        };
        known.get_or_try_init(ask).await
    }

    /// Whether a handler's runtime can make mounts read-only with all below them.
    pub(super) async fn is_recursive_read_only(&self, handler: &str) -> bool {
        self.features(self.handler(handler)).await.is_ok_and(Features::is_recursive_read_only)
    }

    /// Why pods under a handler can't have users of their own, if they can't.
    pub(super) async fn user_namespaces(&self, handler: &str) -> Result<(), String> {
        let features = self.features(self.handler(handler)).await?;
        if !features.has_user_namespaces() {
            return Err(
                "its runtime doesn't know user namespaces with id-mapped mounts, or its shim doesn't tell".into()
            );
        }
        self.id_maps()
    }

    // Tried and not asked for: it depends on the kernel, its settings, and on file systems.
    fn id_maps(&self) -> Result<(), String> {
        let tried = self.id_maps.get_or_init(|| {
            let maps = sys::userns::Maps::parse("0:1:1", "0:1:1").ok_or("no ids")?;
            for folder in &self.folders {
                sys::idmap::folder(folder, sys::mount::Reach::One, &maps).map_err(|errno| {
                    let at = folder.display();
                    format!("{at} can't be mounted with other owners ({errno}); tmpfs needs Linux 6.3 for it")
                })?;
            }
            Ok(())
        });
        tried.clone()
    }

    /// Conditions, handlers and features; with more about this node, if it is to be verbose. `network` is why there is none.
    pub(super) async fn status(&self, verbose: bool, network: Result<(), String>) -> cri::StatusResponse {
        let mut handlers = Vec::new();
        let mut ready = condition("RuntimeReady", None);
        for (index, handler) in self.handlers.iter().enumerate() {
            let features = match self.features(handler).await {
                Ok(features) => features,
                Err(why) => {
                    if index == 0 {
                        ready = condition("RuntimeReady", Some(("ShimMissing", why)));
                    }
                    continue;
                }
            };
            handlers.push(cri::RuntimeHandler {
                name: handler.0.name.clone(),
                features: Some(cri::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: features.is_recursive_read_only(),
                    user_namespaces: features.has_user_namespaces() && self.id_maps().is_ok(),
                }),
            });
        }
        let network = condition("NetworkReady", network.err().map(|why| ("NetworkPluginNotReady", why)));
        let info = if verbose { HashMap::from([("config".to_owned(), self.info.to_string())]) } else { HashMap::new() };
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![ready, network] }),
            info,
            runtime_handlers: handlers,
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                mount_options: true,
                ..Default::default()
            }),
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
    use super::*;

    #[test]
    fn features_of_runtimes() {
        let any = |json: &str| typeurl::pack_json("x/Features", json.as_bytes().to_vec());
        let wanted = Features { mount_options: vec!["ro".into(), "rro".into()], ..Default::default() };
        assert_eq!(features(&any(r#"{"ociVersionMin":"1.0.0","mountOptions":["ro","rro"]}"#)), wanted);
        assert_eq!(features(&any("{}")), Features::default());
        assert_eq!(features(&any("no json")), Features::default());
        let linux = |namespaces: &str, idmap: bool| {
            let text = format!(
                r#"{{"linux":{{"namespaces":["{namespaces}"],"mountExtensions":{{"idmap":{{"enabled":{idmap}}}}}}}}}"#
            );
            features(&any(&text)).has_user_namespaces()
        };
        assert!(linux("user", true) && !linux("user", false) && !linux("pid", true));
        assert!(!features(&any(r#"{"linux":{"namespaces":["user"]}}"#)).has_user_namespaces());
    }

    #[test]
    fn conditions() {
        let holds = condition("RuntimeReady", None);
        assert!(holds.status && holds.reason.is_empty());
        let broken = condition("NetworkReady", Some(("Reason", "why".into())));
        assert_eq!((broken.status, &*broken.reason, &*broken.message), (false, "Reason", "why"));
    }
}
