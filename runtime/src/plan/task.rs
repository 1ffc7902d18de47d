//! How a process is scheduled and where its memory comes from: scheduler, I/O priority, processors, memory policy, personality.

use sys::task::Scheduling;

use super::PlanError;
use super::numbers::mask;
use crate::spec::{ExecCpuAffinity, IoPriority, MemoryPolicy, Personality, Scheduler};

/// Names and numbers of a kernel constant; `features` lists the names.
type Words = &'static [(&'static str, u32)];

const POLICIES: Words = &[
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_ISO", 4),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

const FLAGS: Words = &[
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// Modes of `linux.memoryPolicy`.
pub(crate) const MEMORY_MODES: Words = &[
    ("MPOL_DEFAULT", 0),
    ("MPOL_PREFERRED", 1),
    ("MPOL_BIND", 2),
    ("MPOL_INTERLEAVE", 3),
    ("MPOL_LOCAL", 4),
    ("MPOL_PREFERRED_MANY", 5),
    ("MPOL_WEIGHTED_INTERLEAVE", 6),
];

const NUMA_BALANCING: u32 = 1 << 13;
const RELATIVE_NODES: u32 = 1 << 14;
const STATIC_NODES: u32 = 1 << 15;

/// Flags of `linux.memoryPolicy`.
pub(crate) const MEMORY_FLAGS: Words = &[
    ("MPOL_F_NUMA_BALANCING", NUMA_BALANCING),
    ("MPOL_F_RELATIVE_NODES", RELATIVE_NODES),
    ("MPOL_F_STATIC_NODES", STATIC_NODES),
];

/// What is asked of the kernel with set_mempolicy(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryStep {
    pub(crate) mode: i32,
    pub(crate) nodes: Vec<u64>,
}

/// Processors of a process that `exec` starts: before it is in the container's cgroup, and after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AffinityPlan {
    pub(crate) initial: Option<Vec<u64>>,
    pub(crate) last: Option<Vec<u64>>,
}

fn find(words: Words, field: &str, word: &str) -> Result<u32, PlanError> {
    let found = words.iter().find(|(name, _)| *name == word);
    found.map(|(_, number)| *number).ok_or_else(|| PlanError::unknown(field, word))
}

fn all(words: Words, field: &str, list: &[String]) -> Result<u32, PlanError> {
    list.iter().try_fold(0, |flags, word| Ok(flags | find(words, field, word)?))
}

/// `process.scheduler`, with the combinations refused that mean nothing.
pub(super) fn scheduling(scheduler: &Scheduler) -> Result<Scheduling, PlanError> {
    if scheduler.policy.is_empty() {
        return Err(PlanError::Missing { field: "process.scheduler.policy" });
    }
    let policy = find(POLICIES, "process.scheduler.policy", &scheduler.policy)?;
    let flags = u64::from(all(FLAGS, "process.scheduler.flags", &scheduler.flags)?);
    let (real_time, deadline) = (matches!(policy, 1 | 2), policy == 6);
    if !(-20..=19).contains(&scheduler.nice) {
        let nice = scheduler.nice.to_string();
        return Err(PlanError::invalid("process.scheduler.nice", nice, "is not within -20 to 19"));
    }
    let priority = scheduler.priority;
    let wrong = |why| Err(PlanError::invalid("process.scheduler.priority", priority.to_string(), why));
    match priority {
        ..0 => return wrong("is negative"),
        1.. if !real_time => return wrong("is for SCHED_FIFO and SCHED_RR only"),
        0 | 100.. if real_time => return wrong("is not within 1 to 99"),
        _ => {}
    }
    for (field, value) in [
        ("process.scheduler.runtime", scheduler.runtime),
        ("process.scheduler.deadline", scheduler.deadline),
        ("process.scheduler.period", scheduler.period),
    ] {
        if value != 0 && !deadline {
            return Err(PlanError::invalid(field, value.to_string(), "is for SCHED_DEADLINE only"));
        }
    }
    if deadline && (scheduler.runtime == 0 || scheduler.deadline == 0) {
        let field = "process.scheduler";
        return Err(PlanError::invalid(field, "SCHED_DEADLINE", "needs a runtime and a deadline in ns"));
    }
    Ok(Scheduling {
        policy,
        flags,
        nice: scheduler.nice,
        priority: priority.unsigned_abs(),
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
        ..Scheduling::default()
    })
}

/// `process.ioPriority` as class and level.
pub(super) fn io_priority(priority: &IoPriority) -> Result<(u8, u8), PlanError> {
    let class = match priority.class.as_str() {
        "" => return Err(PlanError::Missing { field: "process.ioPriority.class" }),
        "IOPRIO_CLASS_RT" => 1,
        "IOPRIO_CLASS_BE" => 2,
        "IOPRIO_CLASS_IDLE" => 3,
        word => return Err(PlanError::unknown("process.ioPriority.class", word)),
    };
    let level = u8::try_from(priority.priority).ok().filter(|level| *level <= 7);
    let level = level.ok_or_else(|| {
        PlanError::invalid("process.ioPriority.priority", priority.priority.to_string(), "is not within 0 to 7")
    })?;
    Ok((class, level))
}

/// `process.execCPUAffinity`
pub(super) fn affinity(affinity: &ExecCpuAffinity) -> Result<AffinityPlan, PlanError> {
    let read = |field: &str, list: &str| {
        let bad = || PlanError::invalid(field, list, "is not a list of processors like 0-3,8");
        if list.is_empty() { Ok(None) } else { mask(list).map(Some).ok_or_else(bad) }
    };
    Ok(AffinityPlan {
        initial: read("process.execCPUAffinity.initial", &affinity.initial)?,
        last: read("process.execCPUAffinity.final", &affinity.last)?,
    })
}

/// `linux.memoryPolicy`
pub(crate) fn memory(policy: &MemoryPolicy) -> Result<MemoryStep, PlanError> {
    let field = "linux.memoryPolicy.mode";
    if policy.mode.is_empty() {
        return Err(PlanError::Missing { field });
    }
    let mode = find(MEMORY_MODES, field, &policy.mode)?;
    let flags = all(MEMORY_FLAGS, "linux.memoryPolicy.flags", &policy.flags)?;
    let field = "linux.memoryPolicy.nodes";
    let nodes = match policy.nodes.as_str() {
        "" => Vec::new(),
        list => {
            mask(list).ok_or_else(|| PlanError::invalid(field, list, "is not a list of memory nodes like 0-1,3"))?
        }
    };
    match (policy.mode.as_str(), nodes.is_empty()) {
        ("MPOL_DEFAULT" | "MPOL_LOCAL", false) => {
            return Err(PlanError::invalid(field, &policy.nodes, "must be empty with MPOL_DEFAULT and MPOL_LOCAL"));
        }
        ("MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED", _) | (_, false) => {}
        (_, true) => return Err(PlanError::Missing { field }),
    }
    let field = "linux.memoryPolicy.flags";
    let wrong = |why| Err(PlanError::invalid(field, policy.flags.join(","), why));
    if flags & (RELATIVE_NODES | STATIC_NODES) == RELATIVE_NODES | STATIC_NODES {
        return wrong("exclude each other");
    }
    if flags & (RELATIVE_NODES | STATIC_NODES) != 0 && nodes.is_empty() {
        return wrong("are about nodes, and there are none");
    }
    if flags & NUMA_BALANCING != 0 && !matches!(policy.mode.as_str(), "MPOL_BIND" | "MPOL_PREFERRED_MANY") {
        return wrong("are for MPOL_BIND and MPOL_PREFERRED_MANY only");
    }
    Ok(MemoryStep { mode: (mode | flags) as i32, nodes })
}

/// `linux.personality`: what personality(2) takes. The specification has names for flags to come, which are left out.
pub(crate) fn personality(personality: &Personality, warnings: &mut Vec<String>) -> Result<u64, PlanError> {
    if !personality.flags.is_empty() {
        let flags = personality.flags.join(",");
        warnings.push(format!("linux.personality.flags: {flags} are unknown and ignored"));
    }
    match personality.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        "" => Err(PlanError::Missing { field: "linux.personality.domain" }),
        word => Err(PlanError::unknown("linux.personality.domain", word)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn schedule(value: Value) -> Result<Scheduling, String> {
        scheduling(&from_value(value).expect("a scheduler")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_policy_and_flag_has_its_number() {
        for (policy, number) in POLICIES {
            let mut value =
                json!({"policy": policy, "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]});
            match number {
                1 | 2 => value["priority"] = 7.into(),
                6 => (value["runtime"], value["deadline"], value["period"]) = (1.into(), 2.into(), 3.into()),
                _ => {}
            }
            let found = schedule(value).expect(policy);
            assert_eq!((found.policy, found.flags, found.nice), (*number, 5, 5), "{policy}");
        }
    }

    #[test]
    fn schedulers_that_mean_nothing_are_refused() {
        for (value, words) in [
            (json!({}), "process.scheduler.policy is missing"),
            (json!({"policy": "SCHED_MOON"}), "process.scheduler.policy: \"SCHED_MOON\" is unknown"),
            (json!({"policy": "SCHED_OTHER", "flags": ["X"]}), "process.scheduler.flags: \"X\" is unknown"),
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice: \"20\" is not within -20 to 19"),
            (json!({"policy": "SCHED_OTHER", "priority": 1}), "is for SCHED_FIFO and SCHED_RR only"),
            (json!({"policy": "SCHED_FIFO", "priority": 0}), "is not within 1 to 99"),
            (json!({"policy": "SCHED_RR", "priority": -1}), "is negative"),
            (
                json!({"policy": "SCHED_RR", "priority": 1, "runtime": 5}),
                "process.scheduler.runtime: \"5\" is for SCHED_DEADLINE only",
            ),
            (json!({"policy": "SCHED_DEADLINE", "runtime": 5}), "needs a runtime and a deadline"),
        ] {
            let error = schedule(value.clone()).expect_err(words);
            assert!(error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn memory_policies() {
        let plan = |value: Value| memory(&from_value(value).expect("a policy")).map_err(|error| error.to_string());
        for (value, mode, nodes) in [
            (json!({"mode": "MPOL_DEFAULT"}), 0, vec![]),
            (json!({"mode": "MPOL_LOCAL", "nodes": ""}), 4, vec![]),
            (json!({"mode": "MPOL_PREFERRED"}), 1, vec![]),
            (json!({"mode": "MPOL_BIND", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]}), 0x8002, vec![3]),
            (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}), 0x2002, vec![1]),
            (json!({"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0,2"}), 6, vec![5]),
        ] {
            assert_eq!(plan(value.clone()), Ok(MemoryStep { mode, nodes }), "{value}");
        }
        for (value, words) in [
            (json!({}), "linux.memoryPolicy.mode is missing"),
            (json!({"mode": "MPOL_MOON"}), "linux.memoryPolicy.mode: \"MPOL_MOON\" is unknown"),
            (json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy.nodes is missing"),
            (json!({"mode": "MPOL_BIND", "nodes": "x"}), "is not a list of memory nodes"),
            (json!({"mode": "MPOL_LOCAL", "nodes": "0"}), "must be empty"),
            (json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["X"]}), "linux.memoryPolicy.flags: \"X\" is unknown"),
            (
                json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
                "exclude each other",
            ),
            (json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}), "are for MPOL_BIND"),
        ] {
            let error = plan(value.clone()).expect_err(words);
            assert!(error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn personalities_and_processors() {
        let plan = |domain: &str, warnings: &mut Vec<String>| {
            personality(&from_value(json!({"domain": domain, "flags": ["X"]})).expect("a personality"), warnings)
        };
        let mut warnings = Vec::new();
        assert_eq!(plan("LINUX", &mut warnings).expect("ok"), 0);
        assert_eq!(plan("LINUX32", &mut warnings).expect("ok"), 8);
        assert_eq!(warnings.len(), 2);
        assert!(plan("BSD", &mut warnings).is_err() && plan("", &mut warnings).is_err());
        let read = |value: Value| affinity(&from_value(value).expect("an affinity"));
        let found = read(json!({"initial": "0-1", "final": "1024"})).expect("ok");
        assert_eq!((found.initial, found.last.map(|mask| mask.len())), (Some(vec![3]), Some(17)));
        let error = read(json!({"final": "1-0"})).expect_err("error").to_string();
        assert!(error.contains("process.execCPUAffinity.final"), "{error}");
    }
}
