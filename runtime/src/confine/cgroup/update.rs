//! Changing limits while a container runs: what is left out keeps its value, and what fails leaves everything as it was.
//!
//! What is in effect is asked of the kernel and not remembered: somebody else may have changed it since (systemd, an agent).

use sys::Errno;

use super::files::{read, write};
use super::{Cgroup, CgroupError, Hierarchy, unified};
use crate::spec::Resources;

/// Files that limits are in, and the field of `linux.resources` each is about.
const FIELDS: &[(&str, &str)] = &[
    ("memory.limit_in_bytes", "memory.limit"),
    ("memory.max", "memory.limit"),
    ("memory.memsw.limit_in_bytes", "memory.swap"),
    ("memory.swap.max", "memory.swap"),
    ("memory.soft_limit_in_bytes", "memory.reservation"),
    ("memory.low", "memory.reservation"),
    ("memory.oom_control", "memory.disableOOMKiller"),
    ("memory.swappiness", "memory.swappiness"),
    ("cpu.shares", "cpu.shares"),
    ("cpu.weight", "cpu.shares"),
    ("cpu.cfs_period_us", "cpu.period"),
    ("cpu.cfs_quota_us", "cpu.quota"),
    ("cpu.max", "cpu.quota"),
    ("cpu.cfs_burst_us", "cpu.burst"),
    ("cpu.max.burst", "cpu.burst"),
    ("cpu.rt_period_us", "cpu.realtimePeriod"),
    ("cpu.rt_runtime_us", "cpu.realtimeRuntime"),
    ("cpu.idle", "cpu.idle"),
    ("cpuset.cpus", "cpu.cpus"),
    ("cpuset.mems", "cpu.mems"),
    ("pids.max", "pids.limit"),
    ("blkio.weight", "blockIO.weight"),
    ("blkio.bfq.weight", "blockIO.weight"),
    ("io.weight", "blockIO.weight"),
    ("io.bfq.weight", "blockIO.weight"),
    ("blkio.throttle.read_bps_device", "blockIO.throttleReadBpsDevice"),
    ("blkio.throttle.write_bps_device", "blockIO.throttleWriteBpsDevice"),
    ("blkio.throttle.read_iops_device", "blockIO.throttleReadIOPSDevice"),
    ("blkio.throttle.write_iops_device", "blockIO.throttleWriteIOPSDevice"),
    ("io.max", "blockIO"),
    ("net_cls.classid", "network.classID"),
];

impl Cgroup {
    /// Changes the limits of a cgroup that exists; devices are left as they are.
    pub(crate) fn update(&self, resources: &Resources, warn: &mut dyn FnMut(String)) -> Result<(), CgroupError> {
        let resources = self.complete(resources)?;
        super::check::memory_in_use(self, &resources)?;
        let before = self.snapshot(&resources);
        let done = match (self.is_unified(), &self.unified) {
            (true, Some(hierarchy)) => unified::limit(hierarchy, &self.path, &resources, warn),
            _ => self.limit_legacy(&resources, warn),
        };
        // systemd writes the same values once more when it sees fit, so it learns only of those that the kernel took.
        let told = |()| match self.unit() {
            Some(unit) => unit.update(&resources, self.is_unified()).map_err(CgroupError::from),
            None => Ok(()),
        };
        let Err(error) = done.and_then(told) else { return Ok(()) };
        for file in self.put_back(&before) {
            warn(format!("{file} could not be set back to what it was"));
        }
        Err(self.explain(error))
    }

    /// Adds what a partial update leaves out, where the kernel wants both.
    fn complete(&self, resources: &Resources) -> Result<Resources, CgroupError> {
        let mut resources = resources.clone();
        let memory = &mut resources.memory;
        // v1 would not let memory grow beyond memory plus swap, so asking for one without a limit has always meant both (runc).
        if memory.limit == Some(-1) && memory.swap.is_none() {
            memory.swap = Some(-1);
        }
        if let (Some(hierarchy), true) = (&self.unified, self.is_unified()) {
            let text = |file: &str| read(hierarchy, &self.path, file).map(|text| text.trim().to_owned());
            complete_unified(&mut resources, &text)?;
        }
        let memory = &resources.memory;
        if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit, memory.swap)
            && swap < limit
        {
            let why = format!("{swap} for memory and swap is less than the {limit} for memory alone; change both");
            return Err(CgroupError::Refused { field: "linux.resources.memory.swap", why });
        }
        Ok(resources)
    }

    fn snapshot(&self, resources: &Resources) -> Vec<Saved<'_>> {
        let huge = resources.hugepage_limits.iter().flat_map(|limit| {
            ["limit_in_bytes", "rsvd.limit_in_bytes", "max", "rsvd.max"]
                .map(|end| format!("hugetlb.{}.{end}", limit.page_size))
        });
        let rdma = (!resources.rdma.is_empty()).then(|| "rdma.max".to_owned());
        let names = FIELDS.iter().map(|(file, _)| (*file).to_owned()).chain(huge).chain(rdma);
        let names: Vec<String> = names.chain(resources.unified.keys().cloned()).collect();
        let mut saved = Vec::new();
        for hierarchy in self.legacy.iter().chain(&self.unified) {
            let has = |file: &&String| {
                hierarchy.controls(file.split('.').next().unwrap_or(file))
                    || hierarchy.controls("")
                    || hierarchy.controls("unified")
            };
            for file in names.iter().filter(has) {
                if let Ok(text) = read(hierarchy, &self.path, file) {
                    saved.push(Saved { hierarchy, file: file.clone(), text });
                }
            }
        }
        saved
    }

    /// Writes back what has changed; some limits bound others, so as long as one succeeds the rest is tried again. Gives the files
    /// that stay changed.
    fn put_back(&self, before: &[Saved<'_>]) -> Vec<String> {
        let differs =
            |saved: &&Saved<'_>| read(saved.hierarchy, &self.path, &saved.file).is_ok_and(|now| now != saved.text);
        let mut left: Vec<&Saved<'_>> = before.iter().filter(differs).collect();
        loop {
            let count = left.len();
            left.retain(|saved| {
                let now = read(saved.hierarchy, &self.path, &saved.file).unwrap_or_default();
                let lines = lines_back(&saved.file, &saved.text, &now);
                !lines.iter().all(|line| write(saved.hierarchy, &self.path, &saved.file, line).is_ok())
            });
            if left.is_empty() || left.len() == count {
                return left.iter().map(|saved| saved.file.clone()).collect();
            }
        }
    }

    /// Says which field it was, and for the failure that users meet most, why.
    fn explain(&self, error: CgroupError) -> CgroupError {
        let CgroupError::Write { file, cause, .. } = &error else { return error };
        let name = file.rsplit_once('/').map_or(file.as_str(), |(_, name)| name);
        let Some((_, field)) = FIELDS.iter().find(|(known, _)| *known == name) else { return error };
        let mut field = format!("linux.resources.{field}");
        if name.starts_with("memory.") && matches!(cause, Errno::EBUSY) {
            let memory = self.legacy.iter().find(|hierarchy| hierarchy.controls("memory"));
            let usage = memory.and_then(|memory| read(memory, &self.path, "memory.usage_in_bytes").ok());
            field.push_str(&format!(" (in use: {})", usage.unwrap_or_default().trim()));
        }
        CgroupError::Update { field, cause: Box::new(error) }
    }
}

/// A file as it was.
struct Saved<'a> {
    hierarchy: &'a Hierarchy,
    file: String,
    text: String,
}

/// What to write so that a file that says `now` says `before` again.
fn lines_back(file: &str, before: &str, now: &str) -> Vec<String> {
    if file == "memory.oom_control" {
        let line = before.lines().find_map(|line| line.strip_prefix("oom_kill_disable "));
        return line.map(str::to_owned).into_iter().collect();
    }
    let by_device = file == "io.max" || file.starts_with("blkio.throttle.") || file == "rdma.max";
    if !by_device {
        // An empty value cannot be written with an empty write.
        return vec![format!("{}\n", before.trim_end())];
    }
    let device = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let none = match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "rdma.max" => "hca_handle=max hca_object=max",
        _ => "0",
    };
    let gone = now.lines().map(device).filter(|name| !before.lines().any(|line| device(line) == *name));
    gone.map(|name| format!("{name} {none}")).chain(before.lines().map(str::to_owned)).collect()
}

/// cgroup2 keeps quota and period in one file, and swap apart from memory.
fn complete_unified(
    resources: &mut Resources,
    text: &dyn Fn(&str) -> Result<String, CgroupError>,
) -> Result<(), CgroupError> {
    let cpu = &mut resources.cpu;
    let (has_quota, has_period) =
        (cpu.quota.is_some_and(|quota| quota != 0), cpu.period.is_some_and(|period| period != 0));
    if has_quota != has_period {
        let current = text("cpu.max")?;
        let (quota, period) = current.split_once(' ').unwrap_or((&current, "100000"));
        if has_quota {
            cpu.period = period.parse().ok();
        } else {
            cpu.quota = Some(quota.parse().unwrap_or(-1));
        }
    }
    let memory = &mut resources.memory;
    let (limit, swap) = (memory.limit.filter(|limit| *limit != 0), memory.swap.filter(|swap| *swap != 0));
    if limit.is_none() && swap.is_none() {
        return Ok(());
    }
    match (limit, swap) {
        (None, Some(1..)) => memory.limit = text("memory.max")?.parse().ok(),
        (Some(1..), None) => {
            let old = |file: &str| text(file).ok().and_then(|text| text.parse::<i64>().ok());
            // Memory and swap together stay what they were.
            if let (Some(limit), Some(swap)) = (old("memory.max"), old("memory.swap.max")) {
                memory.swap = Some(limit.saturating_add(swap));
            }
        }
        _ => {}
    }
    if memory.check_before_update == Some(true) {
        let used: i64 = text("memory.current")?.parse().unwrap_or(0);
        if let Some(limit) = memory.limit.filter(|limit| (1..used).contains(limit)) {
            let why = format!("{limit} is less than the {used} in use, and checkBeforeUpdate is set");
            return Err(CgroupError::Refused { field: "linux.resources.memory.limit", why });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(json: serde_json::Value, files: &[(&str, &str)]) -> Result<Resources, CgroupError> {
        let mut resources: Resources = serde_json::from_value(json).expect("resources");
        let text = |file: &str| {
            let found = files.iter().find(|(name, _)| *name == file).map(|(_, text)| (*text).to_owned());
            found.ok_or(CgroupError::Read { file: file.to_owned(), cause: Errno::ENOENT })
        };
        complete_unified(&mut resources, &text).map(|()| resources)
    }

    #[test]
    fn the_other_half_is_kept() {
        let cpu = |json, text| completed(json, &[("cpu.max", text)]).expect("complete").cpu;
        let found = cpu(serde_json::json!({"cpu": {"quota": 5000}}), "max 20000");
        assert_eq!((found.quota, found.period), (Some(5000), Some(20_000)));
        let found = cpu(serde_json::json!({"cpu": {"period": 50_000}}), "7000 100000");
        assert_eq!((found.quota, found.period), (Some(7000), Some(50_000)));
        let found = cpu(serde_json::json!({"cpu": {"period": 50_000}}), "max 100000");
        assert_eq!((found.quota, found.period), (Some(-1), Some(50_000)));
    }

    #[test]
    fn swap_needs_to_know_memory() {
        let files = [("memory.max", "100"), ("memory.swap.max", "50"), ("memory.current", "80")];
        let memory = |json| completed(json, &files).map(|resources| resources.memory);
        let found = memory(serde_json::json!({"memory": {"swap": 300}})).expect("complete");
        assert_eq!((found.limit, found.swap), (Some(100), Some(300)));
        let found = memory(serde_json::json!({"memory": {"limit": 120}})).expect("complete");
        assert_eq!((found.limit, found.swap), (Some(120), Some(150)));
        let error =
            memory(serde_json::json!({"memory": {"limit": 79, "checkBeforeUpdate": true}})).expect_err("refused");
        assert!(error.to_string().contains("memory.limit: 79 is less than the 80 in use"), "{error}");
    }

    #[test]
    fn devices_go_back_one_by_one() {
        let found = lines_back("blkio.throttle.read_bps_device", "8:0 100\n", "8:0 200\n8:16 5\n");
        assert_eq!(found, ["8:16 0", "8:0 100"]);
        let found = lines_back("io.max", "", "8:16 rbps=1 wbps=max riops=max wiops=max\n");
        assert_eq!(found, ["8:16 rbps=max wbps=max riops=max wiops=max"]);
        assert_eq!(lines_back("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", ""), ["0"]);
        assert_eq!(lines_back("cpuset.cpus", "\n", "0\n"), ["\n"]);
    }
}
