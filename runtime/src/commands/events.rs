//! `events`: one JSON object per line about what a container uses and that it ran out of memory, until it ends.

use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use sys::Errno;

use super::{CommandError, Context};
use crate::args::{Flag, Order, Parsed, switch, value};
use crate::confine::cgroup::Cgroup;
use crate::confine::cgroup::stats::Stats;
use crate::state::{ContainerId, State, Status};

pub(super) const FLAGS: &[Flag] = &[
    value(&["interval"], "time between two statistics (default 5s)"),
    switch(&["stats"], "print statistics once, and end"),
];

#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a ContainerId,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let parsed = Parsed::parse(FLAGS, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("events", "the container's id")?)?;
    let interval = parsed.value("interval").unwrap_or("5s");
    let bad = |why| CommandError::BadValue { flag: "interval", value: interval.to_owned(), why };
    let interval = duration(interval).ok_or_else(|| bad("is no duration such as 500ms, 5s or 1m30s"))?;
    if interval.is_zero() {
        return Err(bad("is not greater than 0"));
    }
    let state = context.states.load(&id)?;
    if let Status::Stopped | Status::Creating = context.states.status(&state)? {
        return Err(CommandError::NotRunning);
    }
    let cgroup = state.cgroup()?.own()?;
    if parsed.is_on("stats") {
        tell(&Event { kind: "stats", id: &id, data: Some(stats(&state, &cgroup)?) })?;
        return Ok(0);
    }
    watch(context, &state, &cgroup, interval)
}

fn stats(state: &State, cgroup: &Cgroup) -> Result<Stats, CommandError> {
    let mut stats = cgroup.stats()?;
    if let Some(group) = &state.rdt {
        stats.intel_rdt = group.stats()?;
    }
    Ok(stats)
}

fn watch(context: &Context, state: &State, cgroup: &Cgroup, interval: Duration) -> Result<u8, CommandError> {
    let system = |errno| CommandError::System("watch the container", errno);
    let pid = state.live_pid().ok_or(CommandError::NotRunning)?;
    let process = sys::process::pidfd_open(pid).map_err(system)?;
    if state.live_pid().is_none() {
        return Err(CommandError::NotRunning);
    }
    let mut oom = cgroup.watch_oom()?;
    if oom.is_none() {
        context.log.warn("events: without the memory controller nobody says when memory runs out");
    }
    let mut next = Instant::now() + interval;
    loop {
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        fds.extend(oom.as_ref().map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        let left = next.saturating_duration_since(Instant::now());
        // Rounded up, lest the last millisecond be spent asking.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system(errno)),
        }
        let ended = fds[0].revents().is_some_and(|events| !events.is_empty());
        if let Some(watch) = &mut oom
            && watch.happened()?
            && !tell(&Event { kind: "oom", id: &state.id, data: None })?
        {
            return Ok(0);
        }
        if ended {
            return Ok(0);
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            match stats(state, cgroup) {
                Ok(data) => {
                    if !tell(&Event { kind: "stats", id: &state.id, data: Some(data) })? {
                        return Ok(0);
                    }
                }
                // As runc: one failure is no reason to stop watching.
                Err(error) => context.log.warn(&crate::launch::handshake::chain(&error)),
            }
        }
    }
}

/// Prints a line at once; false when nobody reads any more.
fn tell(event: &Event<'_>) -> Result<bool, CommandError> {
    let failed = |cause| CommandError::Io { action: "print", path: "event".into(), cause };
    let mut line = serde_json::to_vec(event).map_err(|error| failed(error.into()))?;
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&line).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => other.map(|()| true).map_err(failed),
    }
}

/// A duration as Go writes it: `1h2m3.5s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &after[..unit])?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = &after[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        for (text, milliseconds) in [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for text in ["", "5", "s", "-5s", "5x", "1..5s", "99999999999999999999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn durations_never_panic(text in ".{0,20}") {
            let _ = duration(&text);
        }
    }
}
