//! A process of a container: what it runs, as whom, with which limits. `create` and `exec` both make one.

use std::ffi::CString;

use nix::sys::resource::Resource;
use sys::pty::Size;
use sys::task::Scheduling;

use super::PlanError;
use super::task::{self, AffinityPlan, MemoryStep};
use crate::confine::caps::CapPlan;
use crate::spec::{Linux, Process};

/// A resource limit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LimitStep {
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Everything about a process to be.
#[derive(Debug)]
pub(crate) struct ProcessPlan {
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) umask: Option<u32>,
    pub(crate) caps: CapPlan,
    pub(crate) limits: Vec<LimitStep>,
    pub(crate) no_new_privs: bool,
    /// Some when the process gets a terminal; the size may be unset.
    pub(crate) terminal: Option<Option<Size>>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) scheduling: Option<Scheduling>,
    /// Class and level.
    pub(crate) io_priority: Option<(u8, u8)>,
    pub(crate) apparmor_profile: Option<String>,
    pub(crate) selinux_label: Option<String>,
    /// For processes that `exec` starts.
    pub(crate) affinity: AffinityPlan,
    pub(crate) memory: Option<MemoryStep>,
    pub(crate) personality: Option<u64>,
}

/// The one id that the kernel takes for "leave as it is".
const NO_ID: u32 = u32::MAX;

impl ProcessPlan {
    /// Checks a process. What can be left out without harm goes to `warnings`.
    pub(crate) fn new(process: &Process, warnings: &mut Vec<String>) -> Result<Self, PlanError> {
        if process.args.is_empty() {
            return Err(PlanError::Missing { field: "process.args" });
        }
        if process.args[0].is_empty() {
            return Err(PlanError::invalid("process.args[0]", "", "is empty"));
        }
        if !process.cwd.starts_with('/') || process.cwd.contains('\0') {
            return Err(PlanError::invalid("process.cwd", process.cwd.as_str(), "is not an absolute path"));
        }
        let user = &process.user;
        for (field, id) in [("process.user.uid", user.uid), ("process.user.gid", user.gid)]
            .into_iter()
            .chain(user.additional_gids.iter().map(|gid| ("process.user.additionalGids", *gid)))
        {
            if id == NO_ID {
                return Err(PlanError::invalid(field, id.to_string(), "is not a valid id"));
            }
        }
        if let Some(umask) = user.umask.filter(|umask| *umask > 0o777) {
            return Err(PlanError::invalid("process.user.umask", format!("{umask:o}"), "has bits beyond 777"));
        }
        if let Some(score) = process.oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            return Err(PlanError::invalid("process.oomScoreAdj", score.to_string(), "is not within -1000 to 1000"));
        }
        let limits = process
            .rlimits
            .iter()
            .map(|limit| {
                let resource =
                    resource(&limit.kind).ok_or_else(|| PlanError::unknown("process.rlimits", &limit.kind))?;
                if limit.soft > limit.hard {
                    return Err(PlanError::invalid(
                        "process.rlimits",
                        &limit.kind,
                        "has a soft limit above its hard limit",
                    ));
                }
                Ok(LimitStep { resource, soft: limit.soft, hard: limit.hard })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let terminal = process.terminal.then(|| {
            let side = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
            process.console_size.map(|size| Size { rows: side(size.height), columns: side(size.width) })
        });
        let word = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Ok(Self {
            args: strings("process.args", &process.args)?,
            env: environment(&process.env)?,
            cwd: process.cwd.clone(),
            uid: user.uid,
            gid: user.gid,
            groups: user.additional_gids.clone(),
            umask: user.umask,
            caps: CapPlan::new(process.capabilities.as_ref(), warnings),
            limits,
            no_new_privs: process.no_new_privileges,
            terminal,
            oom_score_adj: process.oom_score_adj,
            scheduling: process.scheduler.as_ref().map(task::scheduling).transpose()?,
            io_priority: process.io_priority.as_ref().map(task::io_priority).transpose()?,
            apparmor_profile: word(&process.apparmor_profile),
            selinux_label: word(&process.selinux_label),
            affinity: process.exec_cpu_affinity.as_ref().map(task::affinity).transpose()?.unwrap_or_default(),
            memory: None,
            personality: None,
        })
    }

    /// Adds what holds for every process of the container.
    pub(crate) fn add_common(&mut self, linux: &Linux, warnings: &mut Vec<String>) -> Result<(), PlanError> {
        self.memory = linux.memory_policy.as_ref().map(task::memory).transpose()?;
        self.personality = linux.personality.as_ref().map(|given| task::personality(given, warnings)).transpose()?;
        Ok(())
    }
}

fn strings(field: &'static str, list: &[String]) -> Result<Vec<CString>, PlanError> {
    let convert = |text: &String| {
        CString::new(text.as_str()).map_err(|_| PlanError::invalid(field, text.as_str(), "contains a NUL"))
    };
    list.iter().map(convert).collect()
}

/// Of several values for a variable the last one counts; getenv(3) would find the first.
fn environment(list: &[String]) -> Result<Vec<CString>, PlanError> {
    let name = |entry: &String| entry.split('=').next().map(str::to_owned);
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> = list.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    kept.reverse();
    strings("process.env", &kept)
}

fn resource(word: &str) -> Option<Resource> {
    Some(match word {
        "RLIMIT_AS" => Resource::RLIMIT_AS,
        "RLIMIT_CORE" => Resource::RLIMIT_CORE,
        "RLIMIT_CPU" => Resource::RLIMIT_CPU,
        "RLIMIT_DATA" => Resource::RLIMIT_DATA,
        "RLIMIT_FSIZE" => Resource::RLIMIT_FSIZE,
        "RLIMIT_LOCKS" => Resource::RLIMIT_LOCKS,
        "RLIMIT_MEMLOCK" => Resource::RLIMIT_MEMLOCK,
        "RLIMIT_MSGQUEUE" => Resource::RLIMIT_MSGQUEUE,
        "RLIMIT_NICE" => Resource::RLIMIT_NICE,
        "RLIMIT_NOFILE" => Resource::RLIMIT_NOFILE,
        "RLIMIT_NPROC" => Resource::RLIMIT_NPROC,
        "RLIMIT_RSS" => Resource::RLIMIT_RSS,
        "RLIMIT_RTPRIO" => Resource::RLIMIT_RTPRIO,
        "RLIMIT_RTTIME" => Resource::RLIMIT_RTTIME,
        "RLIMIT_SIGPENDING" => Resource::RLIMIT_SIGPENDING,
        "RLIMIT_STACK" => Resource::RLIMIT_STACK,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let list = ["A=1", "B=2", "A=3", "C"].map(String::from);
        let kept: Vec<_> =
            environment(&list).expect("ok").iter().map(|text| text.to_string_lossy().into_owned()).collect();
        assert_eq!(kept, ["B=2", "A=3", "C"]);
    }

    #[test]
    fn refusals_name_the_field() {
        for (text, field) in [
            (r#"{"args":["a\u0000"],"cwd":"/"}"#, "process.args"),
            (r#"{"args":["a"],"cwd":"/","user":{"uid":4294967295}}"#, "process.user.uid"),
            (r#"{"args":["a"],"cwd":"/","rlimits":[{"type":"RLIMIT_X","soft":1,"hard":1}]}"#, "process.rlimits"),
            (r#"{"args":["a"],"cwd":"/","rlimits":[{"type":"RLIMIT_AS","soft":2,"hard":1}]}"#, "process.rlimits"),
            (r#"{"args":["a"],"cwd":"/","oomScoreAdj":2000}"#, "process.oomScoreAdj"),
            (
                r#"{"args":["a"],"cwd":"/","ioPriority":{"class":"IOPRIO_CLASS_BE","priority":9}}"#,
                "process.ioPriority.priority",
            ),
        ] {
            let process: Process = serde_json::from_str(text).expect("parses");
            let error = ProcessPlan::new(&process, &mut Vec::new()).expect_err(text).to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
