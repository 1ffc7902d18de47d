//! What is looked at before a limit changes (`memory.checkBeforeUpdate`), and why a limit could not be set.

use sys::Errno;

use super::files::read;
use super::{Cgroup, CgroupError, Hierarchy};
use crate::spec::Resources;

/// Refuses a limit below what is in use, if config.json wants that: without, the kernel takes back what it can and kills.
pub(super) fn memory_in_use(cgroup: &Cgroup, resources: &Resources) -> Result<(), CgroupError> {
    let memory = &resources.memory;
    if memory.check_before_update != Some(true) {
        return Ok(());
    }
    let legacy = cgroup.legacy.iter().find(|hierarchy| hierarchy.controls("memory"));
    let (hierarchy, alone, both) = match (legacy, &cgroup.unified) {
        (Some(found), _) => (found, "memory.usage_in_bytes", "memory.memsw.usage_in_bytes"),
        (None, Some(found)) => (found, "memory.current", "memory.current"),
        (None, None) => return Ok(()),
    };
    let fields =
        [("linux.resources.memory.limit", memory.limit, alone), ("linux.resources.memory.swap", memory.swap, both)];
    for (field, limit, file) in fields {
        let Some(limit) = limit.filter(|limit| *limit > 0) else { continue };
        let usage = match read(hierarchy, &cgroup.path, file) {
            Err(CgroupError::Read { cause: Errno::ENOENT, .. }) => continue,
            text => text?.trim().parse().unwrap_or(0),
        };
        if limit < usage {
            let why = format!("{limit} is less than the {usage} in use, and checkBeforeUpdate is set");
            return Err(CgroupError::Refused { field, why });
        }
    }
    Ok(())
}

/// A file of cgroup2 that is not there: mostly because its controller was not handed down.
pub(super) fn explain(hierarchy: &Hierarchy, path: &str, error: CgroupError) -> CgroupError {
    let CgroupError::Write { file, cause: Errno::ENOENT, .. } = &error else { return error };
    let name = file.rsplit_once('/').map_or(file.as_str(), |(_, name)| name);
    let controller = name.split('.').next().unwrap_or_default();
    let has = read(hierarchy, path, "cgroup.controllers").unwrap_or_default();
    if controller == "cgroup" || has.split_whitespace().any(|one| one == controller) {
        return error;
    }
    CgroupError::NotHandedDown {
        file: name.to_owned(),
        controller: controller.to_owned(),
        path: hierarchy.mount_point().join(path),
    }
}
