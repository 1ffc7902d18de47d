//! `update`: changes the limits of a container while it runs.

use std::io::Read;

use super::{CommandError, Context};
use crate::args::{ArgsError, Flag, Order, Parsed, value};
use crate::confine::cgroup::Cgroup;
use crate::spec::{Resources, SpecError, load_json};
use crate::state::{ContainerId, Status};

const FLAGS: &[Flag] = &[
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
    value(&["memory"], "memory, bytes"),
    value(&["memory-reservation"], "memory kept when it is short, bytes"),
    value(&["memory-swap"], "memory and swap, bytes"),
    value(&["pids-limit"], "number of processes"),
    value(&["kernel-memory"], "obsolete and ignored"),
    value(&["kernel-memory-tcp"], "obsolete and ignored"),
    value(&["l3-cache-schema"], "not supported yet"),
    value(&["mem-bw-schema"], "not supported yet"),
];

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("update", "the container's id")?)?;
    for flag in ["l3-cache-schema", "mem-bw-schema"] {
        if parsed.value(flag).is_some() {
            return Err(CommandError::UnsupportedFlag(flag));
        }
    }
    let resources = match parsed.value("resources") {
        None => from_flags(&parsed)?,
        Some("-") => from_stdin()?,
        Some(path) => load_json(path.as_ref())?,
    };
    let state = context.states.load(&id)?;
    match context.states.status(&state)? {
        Status::Created | Status::Running | Status::Paused => {}
        status => return Err(CommandError::WrongStatus { verb: "update", status }),
    }
    Cgroup::locate(&state.cgroup)?.update(&resources, &mut |text| context.log.warn(&text))?;
    Ok(0)
}

fn from_stdin() -> Result<Resources, CommandError> {
    const MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX).read_to_end(&mut bytes);
    read.map_err(|cause| CommandError::Io { action: "read", path: "stdin".into(), cause })?;
    serde_json::from_slice(&bytes).map_err(|cause| SpecError::Parse { path: "stdin".into(), cause }.into())
}

fn from_flags(parsed: &Parsed) -> Result<Resources, ArgsError> {
    let mut resources = Resources::default();
    let text = |name: &str| parsed.value(name).unwrap_or_default().to_owned();
    resources.block_io.weight = parsed.number("blkio-weight")?;
    let cpu = &mut resources.cpu;
    cpu.period = parsed.number("cpu-period")?;
    cpu.quota = parsed.number("cpu-quota")?;
    cpu.burst = parsed.number("cpu-burst")?;
    cpu.shares = parsed.number("cpu-share")?;
    cpu.realtime_period = parsed.number("cpu-rt-period")?;
    cpu.realtime_runtime = parsed.number("cpu-rt-runtime")?;
    cpu.idle = parsed.number("cpu-idle")?;
    (cpu.cpus, cpu.mems) = (text("cpuset-cpus"), text("cpuset-mems"));
    let memory = &mut resources.memory;
    memory.limit = parsed.number("memory")?;
    memory.reservation = parsed.number("memory-reservation")?;
    memory.swap = parsed.number("memory-swap")?;
    resources.pids.limit = parsed.number("pids-limit")?;
    Ok(resources)
}
