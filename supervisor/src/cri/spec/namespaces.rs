//! Namespaces: which of the pod's a container joins, which are its own, and the map of a pod's user namespace.
//!
//! ```text
//!            POD            CONTAINER   NODE              TARGET
//!  network   the pod's      refused     pod's is node's   refused
//!  ipc       the pod's      refused     pod's is node's   refused
//!  pid       the pod's      its own     pod's is node's   that of another container
//! ```
//! The pod's is the node's if the sandbox has the node's.

use std::path::Path;

use proto::runtime::v1::{self as cri, NamespaceMode};
use serde_json::{Value, json};

use super::{Input, SpecError, sandbox};

/// `linux.namespaces`.
pub(super) fn namespaces(
    input: &Input<'_>,
    context: &cri::LinuxContainerSecurityContext,
) -> Result<Vec<Value>, SpecError> {
    let wanted = context.namespace_options.clone().unwrap_or_default();
    let pod = sandbox::context(input.pod).namespace_options.unwrap_or_default();
    let pins = input.pins;
    let mut list = vec![json!({"type": "mount"})];
    let mut join = |kind: &str, path: &Path| list.push(json!({"type": kind, "path": path}));

    if let Some(users) = &wanted.userns_options {
        let own = pod.userns_options.as_ref().filter(|users| is_own(Some(users)));
        if own.is_some_and(|own| own != users) || (own.is_none() && is_own(Some(users))) {
            let why = "a container is in the user namespace of its sandbox, and in no other";
            return Err(SpecError::invalid(
                "userns_options.mode",
                mode("userns_options", users.mode)?.as_str_name(),
                why,
            ));
        }
    }
    if is_own(pod.userns_options.as_ref()) {
        join("user", pin(pins.user.as_deref(), "user")?);
    }
    let network = shared("network", wanted.network, pod.network)?;
    for (kind, path) in [("network", &pins.net), ("uts", &pins.uts)] {
        if network {
            join(kind, pin(path.as_deref(), kind)?);
        }
    }
    if shared("ipc", wanted.ipc, pod.ipc)? {
        join("ipc", pin(pins.ipc.as_deref(), "ipc")?);
    }
    let of_pod = mode("pid", pod.pid)?;
    match (mode("pid", wanted.pid)?, of_pod) {
        (NamespaceMode::Container, _) => list.push(json!({"type": "pid"})),
        (NamespaceMode::Pod | NamespaceMode::Node, NamespaceMode::Node) => {}
        (NamespaceMode::Pod, NamespaceMode::Pod) => join("pid", pin(pins.pid.as_deref(), "pid")?),
        (NamespaceMode::Pod, _) => {
            return Err(SpecError::invalid("namespace_options.pid", "POD", "the sandbox shares no pid namespace"));
        }
        (NamespaceMode::Target, _) => {
            let pid = input.target_pid.ok_or_else(|| SpecError::NoTarget(wanted.target_id.clone()))?;
            join("pid", Path::new(&format!("/proc/{pid}/ns/pid")));
        }
        (NamespaceMode::Node, _) => return Err(not_the_nodes("pid")),
    }
    // Hides what isn't the container's own below /sys/fs/cgroup.
    if input.host.kernel.unified && !context.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    Ok(list)
}

/// Whether one that can only be the pod's or the node's is the pod's own.
fn shared(kind: &str, wanted: i32, pod: i32) -> Result<bool, SpecError> {
    match (mode(kind, wanted)?, mode(kind, pod)?) {
        (NamespaceMode::Pod, NamespaceMode::Pod) => Ok(true),
        (NamespaceMode::Pod | NamespaceMode::Node, NamespaceMode::Node) => Ok(false),
        (NamespaceMode::Node, _) => Err(not_the_nodes(kind)),
        (other, _) => Err(SpecError::invalid(field(kind), other.as_str_name(), "only POD and NODE are possible")),
    }
}

fn not_the_nodes(kind: &str) -> SpecError {
    SpecError::invalid(field(kind), "NODE", "the sandbox has a namespace of its own")
}

fn field(kind: &str) -> String {
    format!("namespace_options.{kind}")
}

/// A mode by its number; those to come are refused.
pub(super) fn mode(kind: &str, number: i32) -> Result<NamespaceMode, SpecError> {
    NamespaceMode::try_from(number).map_err(|_| SpecError::invalid(field(kind), number, "is not known"))
}

fn pin<'a>(path: Option<&'a Path>, kind: &str) -> Result<&'a Path, SpecError> {
    path.ok_or_else(|| SpecError::Missing(format!("the sandbox has no {kind} namespace")))
}

fn is_own(userns: Option<&cri::UserNamespace>) -> bool {
    userns.is_some_and(|userns| userns.mode == NamespaceMode::Pod as i32)
}

/// `uidMappings` and `gidMappings` of a pod with a user namespace of its own.
pub(in crate::cri) fn mappings(pod: &cri::PodSandboxConfig) -> Result<Vec<(&'static str, Value)>, SpecError> {
    let options = sandbox::context(pod).namespace_options.unwrap_or_default();
    let Some(userns) = &options.userns_options else { return Ok(Vec::new()) };
    check_user_namespace(userns)?;
    if !is_own(Some(userns)) {
        return Ok(Vec::new());
    }
    Ok(vec![("uidMappings", map("uids", &userns.uids)?), ("gidMappings", map("gids", &userns.gids)?)])
}

/// Refuses user namespaces that can't be made.
pub(super) fn check_user_namespace(userns: &cri::UserNamespace) -> Result<(), SpecError> {
    let maps = [("uids", &userns.uids), ("gids", &userns.gids)];
    match mode("userns_options", userns.mode)? {
        NamespaceMode::Node if maps.iter().all(|(_, map)| map.is_empty()) => Ok(()),
        NamespaceMode::Node => {
            Err(SpecError::invalid("userns_options.mode", "NODE", "can't be used with mappings: ids are the node's"))
        }
        NamespaceMode::Pod => maps
            .iter()
            .try_for_each(|(name, lines)| {
                let [line] = lines.as_slice() else {
                    let why = "exactly one mapping is needed";
                    return Err(SpecError::invalid(format!("userns_options.{name}"), lines.len(), why));
                };
                if line.container_id != 0 {
                    let why = "the mapping has to begin with id 0 of the container";
                    return Err(SpecError::invalid(format!("userns_options.{name}"), line.container_id, why));
                }
                map(name, lines).map(drop)
            })
            .and_then(|()| match (userns.uids.as_slice(), userns.gids.as_slice()) {
                ([uids], [gids]) if uids.length != gids.length => {
                    let value = format!("{} and {}", uids.length, gids.length);
                    Err(SpecError::invalid("userns_options", value, "users and groups have to be equally many"))
                }
                _ => Ok(()),
            }),
        other => Err(SpecError::invalid("userns_options.mode", other.as_str_name(), "only POD and NODE are possible")),
    }
}

/// Mappings in the words of the runtime specification; those that the kernel can't have are refused.
pub(super) fn map(name: &str, lines: &[cri::IdMapping]) -> Result<Value, SpecError> {
    let mut list = Vec::new();
    for line in lines {
        // The highest number is no id: it means "none" to the kernel.
        let fits = |first: u32| first.checked_add(line.length).is_some();
        if line.length == 0 || !fits(line.host_id) || !fits(line.container_id) {
            let value = format!("{} {} {}", line.container_id, line.host_id, line.length);
            return Err(SpecError::invalid(
                format!("mapping of {name}"),
                value,
                "is empty, or leaves the range of ids",
            ));
        }
        list.push(json!({"containerID": line.container_id, "hostID": line.host_id, "size": line.length}));
    }
    Ok(list.into())
}
