//! Which namespaces are made, which are joined, and the id maps and clocks that go with them.

use std::path::PathBuf;

use super::libc_flag::*;
use super::process::ProcessPlan;
use super::{PATH_MAX, PlanError};
use crate::spec::{IdMapping, Linux};

/// A namespace of somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    /// Its `CLONE_NEW*` flag.
    pub(crate) flag: u64,
    pub(crate) path: PathBuf,
}

/// What happens with each kind of namespace; those not mentioned stay the runtime's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamespacePlan {
    /// Flags of the ones to make.
    pub(crate) new: u64,
    pub(crate) join: Vec<Join>,
    pub(crate) uid_mappings: Vec<IdMapping>,
    pub(crate) gid_mappings: Vec<IdMapping>,
    /// Lines for timens_offsets.
    pub(crate) time_offsets: Vec<String>,
}

/// The flag of a namespace kind by its name in config.json.
pub(crate) fn flag_of(kind: &str) -> Option<u64> {
    Some(match kind {
        "pid" => NEWPID,
        "network" => NEWNET,
        "mount" => NEWNS,
        "ipc" => NEWIPC,
        "uts" => NEWUTS,
        "user" => NEWUSER,
        "cgroup" => NEWCGROUP,
        "time" => NEWTIME,
        _ => return None,
    })
}

fn has_nul(path: &std::path::Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

impl NamespacePlan {
    pub(super) fn new(linux: &Linux) -> Result<Self, PlanError> {
        let field = "linux.namespaces";
        let mut plan = Self::default();
        for namespace in &linux.namespaces {
            let flag = flag_of(&namespace.kind).ok_or_else(|| PlanError::unknown(field, &namespace.kind))?;
            if plan.is_private(flag) {
                return Err(PlanError::invalid(field, &namespace.kind, "is there twice"));
            }
            if namespace.path.as_os_str().is_empty() {
                plan.new |= flag;
            } else if namespace.path.as_os_str().len() >= PATH_MAX || has_nul(&namespace.path) {
                let shown: String = namespace.path.to_string_lossy().chars().take(64).collect();
                return Err(PlanError::invalid(field, shown, "is a path that is too long, or has a NUL in it"));
            } else if namespace.path.is_absolute() {
                plan.join.push(Join { flag, path: namespace.path.clone() });
            } else {
                return Err(PlanError::invalid(field, namespace.path.to_string_lossy(), "is not an absolute path"));
            }
        }
        if !plan.is_private(NEWNS) {
            return Err(PlanError::NeedsNamespace { field: field.into(), namespace: "mount" });
        }
        let maps = [("linux.uidMappings", &linux.uid_mappings), ("linux.gidMappings", &linux.gid_mappings)];
        for (field, map) in maps {
            if !map.is_empty() && !plan.is_private(NEWUSER) {
                return Err(PlanError::NeedsNamespace { field: field.into(), namespace: "user" });
            }
            if plan.new & NEWUSER != 0 && map.is_empty() {
                return Err(PlanError::Missing { field });
            }
            super::id_maps::check(field, map)?;
        }
        // Maps of a namespace that is joined were written by whoever made it.
        if plan.new & NEWUSER != 0 {
            plan.uid_mappings.clone_from(&linux.uid_mappings);
            plan.gid_mappings.clone_from(&linux.gid_mappings);
        }
        for (clock, offset) in &linux.time_offsets {
            if plan.new & NEWTIME == 0 {
                return Err(PlanError::NeedsNamespace { field: "linux.timeOffsets".into(), namespace: "time" });
            }
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(PlanError::unknown("linux.timeOffsets", clock));
            }
            if offset.nanosecs >= 1_000_000_000 {
                let why = "is not within a second";
                return Err(PlanError::invalid("linux.timeOffsets", offset.nanosecs.to_string(), why));
            }
            plan.time_offsets.push(format!("{clock} {} {}\n", offset.secs, offset.nanosecs));
        }
        Ok(plan)
    }

    /// True when the kind is made or joined, and so not the runtime's own.
    pub(crate) fn is_private(&self, flag: u64) -> bool {
        self.new & flag != 0 || self.join.iter().any(|join| join.flag == flag)
    }

    /// The ids of the process have to be there in a user namespace that is made for it.
    pub(super) fn check_ids(&self, process: &ProcessPlan) -> Result<(), PlanError> {
        if self.new & NEWUSER == 0 {
            return Ok(());
        }
        let uid = ("process.user.uid", process.uid, &self.uid_mappings, "is not in linux.uidMappings");
        let gid = |field, id| (field, id, &self.gid_mappings, "is not in linux.gidMappings");
        let groups = process.groups.iter().map(|id| gid("process.user.additionalGids", *id));
        for (field, id, map, why) in [uid, gid("process.user.gid", process.gid)].into_iter().chain(groups) {
            if super::id_maps::outside(map, id).is_none() {
                return Err(PlanError::invalid(field, id.to_string(), why));
            }
        }
        Ok(())
    }

    /// Those that the child makes for itself, while its parent makes the cgroups on another processor: a network namespace alone
    /// takes a good part of a millisecond. What is left for the clone changes only what comes after it.
    pub(crate) fn made_by_child(&self) -> u64 {
        self.new & (NEWNS | NEWNET | NEWIPC | NEWUTS)
    }

    /// True when something of the child's namespaces has to be written from outside.
    pub(crate) fn needs_parent(&self) -> bool {
        self.new & NEWUSER != 0 || !self.time_offsets.is_empty()
    }

    /// True when the container's ids are those of another user namespace.
    pub(crate) fn in_user_namespace(&self) -> bool {
        self.is_private(NEWUSER)
    }
}

/// An id map as the kernel wants it written.
pub(crate) fn map_lines(map: &[IdMapping]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Result<NamespacePlan, PlanError> {
        NamespacePlan::new(&serde_json::from_str::<Linux>(text).expect("parses"))
    }

    #[test]
    fn new_and_joined_are_told_apart() {
        let plan = plan(r#"{"namespaces":[{"type":"mount"},{"type":"network","path":"/run/n"}]}"#).expect("plan");
        assert_eq!(plan.new, NEWNS);
        assert_eq!(plan.join, [Join { flag: NEWNET, path: "/run/n".into() }]);
        assert!(plan.is_private(NEWNET) && !plan.is_private(NEWPID));
    }

    #[test]
    fn refusals() {
        for text in [
            r#"{"namespaces":[{"type":"mount"},{"type":"mount"}]}"#,
            r#"{"namespaces":[{"type":"mount","path":"x"}]}"#,
            r#"{"namespaces":[{"type":"mount"},{"type":"user"}]}"#,
            r#"{"namespaces":[{"type":"mount"}],"uidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
            r#"{"namespaces":[{"type":"mount"},{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":4294967295,"size":9}],"gidMappings":[{"containerID":0,"hostID":1,"size":1}]}"#,
            r#"{"namespaces":[{"type":"mount"}],"timeOffsets":{"monotonic":{"secs":1}}}"#,
            r#"{"namespaces":[{"type":"mount"},{"type":"time"}],"timeOffsets":{"realtime":{"secs":1}}}"#,
        ] {
            assert!(plan(text).is_err(), "{text}");
        }
    }
}
