//! `update`: changes the limits of a container while it runs.

use std::io::Read;

use super::{CommandError, Context};
use crate::args::{ArgsError, Flag, Order, Parsed, value};
use crate::confine::cgroup::place::any_limit;
use crate::confine::rdt;
use crate::plan::PlanError;
use crate::plan::cgroup::check_resources;
use crate::plan::rdt::{RdtPlan, joined};
use crate::spec::{Resources, SpecError, load_json};
use crate::state::{ContainerId, State, Status};

pub(super) const FLAGS: &[Flag] = &[
    value(&["resources", "r"], "file with linux.resources as JSON, - for stdin"),
    value(&["blkio-weight"], "weight of block I/O"),
    value(&["cpu-period"], "CPU period, us"),
    value(&["cpu-quota"], "CPU time per period, us"),
    value(&["cpu-burst"], "CPU time that may be saved up, us"),
    value(&["cpu-share", "cpu-shares"], "share of CPU time"),
    value(&["cpu-rt-period"], "real-time period, us"),
    value(&["cpu-rt-runtime"], "real-time runtime, us"),
    value(&["cpuset-cpus"], "CPUs to use"),
    value(&["cpuset-mems"], "memory nodes to use"),
    value(&["cpu-idle"], "1 for idle scheduling"),
    value(&["memory"], "memory, bytes or with a unit such as 512m; -1 for no limit"),
    value(&["memory-reservation"], "memory kept when it is short"),
    value(&["memory-swap"], "memory and swap together"),
    value(&["pids-limit"], "number of processes"),
    value(&["kernel-memory"], "obsolete and ignored"),
    value(&["kernel-memory-tcp"], "obsolete and ignored"),
    value(&["l3-cache-schema"], "share of the L3 cache, as in L3:0=f;1=f"),
    value(&["mem-bw-schema"], "share of memory bandwidth, as in MB:0=50;1=50"),
];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("update", "the container's id")?)?;
    let resources = match parsed.value("resources").filter(|value| !value.is_empty()) {
        None => from_flags(&parsed)?,
        Some("-") => checked(from_stdin()?)?,
        Some(path) => checked(load_json(path.as_ref())?)?,
    };
    for flag in ["kernel-memory", "kernel-memory-tcp"] {
        if parsed.value(flag).is_some_and(|value| !value.is_empty()) {
            context.log.warn(&format!("--{flag} is obsolete and ignored"));
        }
    }
    let state = context.states.load(&id)?;
    if let Status::Stopped | Status::Creating = context.states.status(&state)? {
        return Err(CommandError::NotRunning);
    }
    let cgroup = state.cgroup()?;
    let cgroup = if any_limit(&resources) { cgroup.own()? } else { cgroup };
    cgroup.update(&resources, &mut |text| context.log.warn(&text))?;
    update_rdt(context, &parsed, state)?;
    Ok(0)
}

/// Changes shares of cache and memory bandwidth. A container that has no group gets one now.
fn update_rdt(context: &Context, parsed: &Parsed, mut state: State) -> Result<(), CommandError> {
    let text = |flag: &str| parsed.value(flag).unwrap_or_default();
    let lines = joined(text("l3-cache-schema"), text("mem-bw-schema"));
    if lines.is_empty() {
        return Ok(());
    }
    if let Some(group) = &state.rdt {
        return Ok(group.share(&lines)?);
    }
    let plan = RdtPlan { lines, ..RdtPlan::default() };
    let group = rdt::Group::locate(rdt::root()?, &plan, state.id.as_str())?;
    // First, so that `delete` knows of it whatever happens here.
    state.rdt = Some(group.clone());
    context.states.save(&state)?;
    group.make(&plan)?;
    let processes = state.cgroup()?.processes()?;
    Ok(group.add(processes.into_iter().map(|pid| pid.as_raw()))?)
}

/// The same that config.json is checked for: names in it become names of files.
fn checked(resources: Resources) -> Result<Resources, CommandError> {
    match check_resources(&resources) {
        Ok(()) => Ok(resources),
        Err(PlanError::Invalid { field, value, why }) => {
            Err(CommandError::BadValue { flag: "resources", value: format!("{field}: {value}"), why })
        }
        Err(other) => Err(other.into()),
    }
}

fn from_stdin() -> Result<Resources, CommandError> {
    const MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX).read_to_end(&mut bytes);
    read.map_err(|cause| CommandError::Io { action: "read", path: "stdin".into(), cause })?;
    serde_json::from_slice(&bytes).map_err(|cause| SpecError::Parse { path: "stdin".into(), cause }.into())
}

/// Empty values are as good as none: callers pass flags that they have nothing for.
fn from_flags(parsed: &Parsed) -> Result<Resources, CommandError> {
    let mut resources = Resources::default();
    let text = |name: &str| parsed.value(name).unwrap_or_default().to_owned();
    fn number<T: std::str::FromStr>(parsed: &Parsed, name: &'static str) -> Result<Option<T>, ArgsError> {
        match parsed.value(name) {
            None | Some("") => Ok(None),
            Some(_) => parsed.number(name),
        }
    }
    resources.block_io.weight = number(parsed, "blkio-weight")?;
    let cpu = &mut resources.cpu;
    cpu.period = number(parsed, "cpu-period")?;
    cpu.quota = number(parsed, "cpu-quota")?;
    cpu.burst = number(parsed, "cpu-burst")?;
    cpu.shares = number(parsed, "cpu-share")?;
    cpu.realtime_period = number(parsed, "cpu-rt-period")?;
    cpu.realtime_runtime = number(parsed, "cpu-rt-runtime")?;
    cpu.idle = number(parsed, "cpu-idle")?;
    (cpu.cpus, cpu.mems) = (text("cpuset-cpus"), text("cpuset-mems"));
    let memory = &mut resources.memory;
    for (name, field) in [
        ("memory", &mut memory.limit),
        ("memory-reservation", &mut memory.reservation),
        ("memory-swap", &mut memory.swap),
    ] {
        let Some(text) = parsed.value(name).filter(|text| !text.is_empty()) else { continue };
        let why = "is neither a number of bytes such as 512M or 1.5g, nor -1";
        *field = Some(size(text).ok_or(CommandError::BadValue { flag: name, value: text.to_owned(), why })?);
    }
    resources.pids.limit = number(parsed, "pids-limit")?;
    Ok(resources)
}

/// A number of bytes with a unit of 1024s, as docker and runc write it: `512m`, `1.5GiB`, `100 kb`; `-1` is no limit.
fn size(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        other => {
            let letter = other.trim_end_matches('b').trim_end_matches('i');
            let spelled = [letter.to_owned(), format!("{letter}b"), format!("{letter}i"), format!("{letter}ib")];
            let power = ["k", "m", "g", "t", "p"].iter().position(|known| *known == letter)?;
            spelled.contains(&unit).then_some(power as i32 + 1)?
        }
    };
    if let Ok(whole) = number.parse::<i64>() {
        return whole.checked_mul(1 << (10 * power));
    }
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let bytes = number.parse::<f64>().ok()? * 1024_f64.powi(power);
    (bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_docker() {
        for (text, bytes) in [
            ("0", 0),
            ("-1", -1),
            ("4096", 4096),
            ("32b", 32),
            ("1k", 1024),
            ("1KB", 1024),
            ("1KiB", 1024),
            ("2 m", 2 << 20),
            ("1.5g", 3 << 29),
            ("1T", 1 << 40),
            ("1p", 1 << 50),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "-2", "1x", "1kk", "1bb", "1 k", "1.2.3", ".5m", "9999999p", "1e3", "inf", "nan"] {
            assert_eq!(size(text).is_some(), text == "1 k", "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn sizes_never_panic(text in ".{0,20}") {
            let _ = size(&text);
        }
    }
}
