//! Health checks: a probe run in the container at intervals, and what its results say. The rules are pure and Docker's;
//! one sleeping task for each container that runs and has a check drives them.
//!
//! ```text
//! starting ──success──▶ healthy ◀──success── unhealthy
//!     │                    │                     ▲
//!     └──── failures in a row, as many as `Retries` ──┘   (those within the start period don't count)
//! ```

use super::{
    Container,
    exec::{self, ExecConfig, ExecStart},
    frames::HEADER,
    record::Phase,
    stop,
    streams::ClientStream,
};
use crate::{
    api::{Config, config::Healthcheck},
    app::App,
    http::{ApiError, ApiResult},
    ids,
    time::Timestamp,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, net::UnixStream};
use tracing::{debug, info, warn};

/// Results that are kept.
const KEPT: usize = 5;
/// Output of a probe that is kept.
const OUTPUT: usize = 4096;
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;
/// Shorter times than this are refused.
const SHORTEST: i64 = 1_000_000;
/// A container with this label, set to `true`, is restarted when it becomes unhealthy.
pub const RESTART_LABEL: &str = "io.berth.restart-on-unhealthy";

/// What is known of a container's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// No success yet.
    Starting,
    /// The last probe, or one of those shortly before, was a success.
    Healthy,
    /// Too many failures in a row.
    Unhealthy,
}

impl Status {
    /// As in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Outcome {
    /// When it began.
    pub start: Timestamp,
    /// When it was over.
    pub end: Timestamp,
    /// 0 is a success; -1 stands for one that could not run, or not end.
    pub exit_code: i64,
    /// What it wrote.
    pub output: String,
}

/// `State.Health` of inspect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// What they say together.
    pub status: Status,
    /// Failures in a row.
    pub failing_streak: i64,
    /// The last results, oldest first.
    pub log: VecDeque<Outcome>,
}

impl Health {
    /// At the start of a container; earlier results stay in sight.
    pub fn begun(before: Option<Self>) -> Self {
        Self { status: Status::Starting, failing_streak: 0, log: before.map(|health| health.log).unwrap_or_default() }
    }

    /// Takes a result in; true if the status has changed.
    fn take(&mut self, outcome: Outcome, check: &Healthcheck, started: Timestamp) -> bool {
        let before = self.status;
        if outcome.exit_code == 0 {
            self.failing_streak = 0;
            self.status = Status::Healthy;
        } else {
            let in_start_period = self.status == Status::Starting
                && outcome.start.since(started) < time(check.start_period, Duration::ZERO);
            if !in_start_period {
                self.failing_streak += 1;
                if self.failing_streak >= if check.retries > 0 { check.retries } else { RETRIES } {
                    self.status = Status::Unhealthy;
                }
            }
        }
        if self.log.len() >= KEPT {
            self.log.pop_front();
        }
        self.log.push_back(outcome);
        self.status != before
    }
}

fn time(nanos: i64, default: Duration) -> Duration {
    u64::try_from(nanos).ok().filter(|n| *n > 0).map_or(default, Duration::from_nanos)
}

/// How long to wait between the end of one probe and the next.
fn pause(check: &Healthcheck, status: Status, since_start: Duration) -> Duration {
    let within = since_start < time(check.start_period, Duration::ZERO);
    match within && status == Status::Starting {
        true => time(check.start_interval, START_INTERVAL),
        false => time(check.interval, INTERVAL),
    }
}

/// What is run; `None` if there is nothing to be checked.
fn command(config: &Config) -> Option<Vec<String>> {
    let test = config.healthcheck.as_ref()?.test.as_slice();
    match test.split_first()? {
        (kind, words) if kind == "CMD" => Some(words.to_vec()),
        (kind, words) if kind == "CMD-SHELL" => {
            let shell = config.shell.clone().filter(|shell| !shell.is_empty());
            let mut line = shell.unwrap_or_else(|| vec!["/bin/sh".into(), "-c".into()]);
            line.extend(words.first().cloned());
            Some(line)
        }
        _ => None,
    }
    .filter(|line| line.first().is_some_and(|word| !word.is_empty()))
}

/// Whether a container's health is watched at all.
pub fn is_checked(config: &Config) -> bool {
    command(config).is_some()
}

/// Refuses checks that make no sense.
pub fn check(check: &Healthcheck) -> Result<(), ApiError> {
    for (name, value) in [
        ("Interval", check.interval),
        ("Timeout", check.timeout),
        ("StartPeriod", check.start_period),
        ("StartInterval", check.start_interval),
    ] {
        if value != 0 && value < SHORTEST {
            return Err(ApiError::invalid(format!("{name} in Healthcheck cannot be less than 1ms")));
        }
    }
    if check.retries < 0 {
        return Err(ApiError::invalid("Retries in Healthcheck cannot be negative"));
    }
    match check.test.first().map(String::as_str) {
        None | Some("NONE" | "CMD" | "CMD-SHELL" | "") => Ok(()),
        Some(other) => Err(ApiError::invalid(format!(
            "Unknown healthcheck type '{other}' (expected 'CMD', 'CMD-SHELL' or 'NONE')"
        ))),
    }
}

/// A container's own check, filled up from the image's where it says nothing.
pub fn merge(own: &mut Option<Healthcheck>, image: Option<&Healthcheck>) {
    let Some(image) = image else { return };
    let Some(own) = own else {
        *own = Some(image.clone());
        return;
    };
    if own.test.is_empty() {
        own.test.clone_from(&image.test);
    }
    for (mine, theirs) in [
        (&mut own.interval, image.interval),
        (&mut own.timeout, image.timeout),
        (&mut own.start_period, image.start_period),
        (&mut own.start_interval, image.start_interval),
        (&mut own.retries, image.retries),
    ] {
        if *mine == 0 {
            *mine = theirs;
        }
    }
}

/// Watches a container from now on; to be called whenever it has begun to run: by a start, a thaw, or a new engine.
pub fn watch(app: &Arc<App>, container: &Arc<Container>) {
    let (watch, checked) = {
        let mut live = container.live();
        live.health_watch += 1;
        let state = &live.record.state;
        (live.health_watch, is_checked(&live.record.config) && state.phase == Phase::Running)
    };
    if checked {
        let (app, container) = (app.clone(), container.clone());
        tokio::spawn(async move { drive(&app, &container, watch).await });
    }
}

/// Forgets how an earlier run was.
pub fn begin(state: &mut super::record::State, config: &Config) {
    state.health = is_checked(config).then(|| Health::begun(state.health.take()));
}

/// Probes until the run is over, or somebody else has begun to watch.
async fn drive(app: &Arc<App>, container: &Arc<Container>, watch: u64) {
    let mut ends = container.ends.subscribe();
    ends.mark_unchanged();
    // A run that goes on below a new engine isn't probed sooner or later than it would have been.
    let mut last = {
        let live = container.live();
        let state = &live.record.state;
        let end = state.health.as_ref().and_then(|health| health.log.back()).map(|outcome| outcome.end);
        end.filter(|end| *end > state.started_at).unwrap_or(state.started_at)
    };
    loop {
        let delay = {
            let live = container.live();
            let state = &live.record.state;
            let (Some(check), Some(health)) = (&live.record.config.healthcheck, &state.health) else { return };
            pause(check, health.status, state.started_at.elapsed()).saturating_sub(last.elapsed())
        };
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = ends.changed() => return,
        }
        let goes_on = || {
            let live = container.live();
            live.health_watch == watch && live.record.state.phase == Phase::Running
        };
        if !goes_on() {
            return;
        }
        let outcome = tokio::select! {
            outcome = probe(app, container) => outcome,
            _ = ends.changed() => return,
        };
        last = outcome.end;
        if !goes_on() {
            return;
        }
        note(app, container, outcome);
    }
}

/// Keeps and tells a result.
fn note(app: &Arc<App>, container: &Arc<Container>, outcome: Outcome) {
    let (changed, status, restart) = {
        let mut live = container.live();
        let record = &mut live.record;
        let started = record.state.started_at;
        let (Some(check), Some(health)) = (&record.config.healthcheck, &mut record.state.health) else { return };
        let streak = health.failing_streak;
        let changed = health.take(outcome, check, started);
        let status = health.status;
        let restart = record.config.labels.get(RESTART_LABEL).is_some_and(|value| value == "true");
        // Results that say the same again aren't worth a write to disk.
        if changed || record.state.health.as_ref().is_some_and(|health| health.failing_streak != streak) {
            app.containers.store.put_soon(&live.record);
        }
        (changed, status, restart)
    };
    if !changed {
        return;
    }
    let id = ids::short(&container.id);
    info!(id, status = status.name(), "health");
    let action = format!("health_status: {}", status.name());
    app.events.publish("container", action, &container.id, container.attributes());
    if status == Status::Unhealthy && restart {
        let (app, container) = (app.clone(), container.clone());
        tokio::spawn(async move {
            info!(id = ids::short(&container.id), "restarted, since it is unhealthy and its label asks for that");
            if let Err(error) = stop::restart(&app, &container, stop::Options::default()).await {
                warn!(id = ids::short(&container.id), %error, "restart of an unhealthy container");
            }
        });
    }
}

async fn probe(app: &Arc<App>, container: &Arc<Container>) -> Outcome {
    let start = Timestamp::now();
    let (command, limit) = {
        let live = container.live();
        let config = &live.record.config;
        (
            command(config).unwrap_or_default(),
            time(config.healthcheck.as_ref().map_or(0, |check| check.timeout), TIMEOUT),
        )
    };
    let done = |exit_code, output| Outcome { start, end: Timestamp::now(), exit_code, output };
    let mut written = Vec::new();
    let mut running = None;
    let ended = tokio::time::timeout(limit, run(app, container, command, &mut written, &mut running)).await;
    match ended {
        Ok(Ok(code)) => done(code, text(&written)),
        Ok(Err(error)) => {
            debug!(id = ids::short(&container.id), %error, "probe");
            done(-1, error.message)
        }
        Err(_) => {
            if let Some(exec) = running {
                exec::kill(app, &exec, nix::sys::signal::Signal::SIGKILL as u32).await;
            }
            let so_far = text(&written);
            let colon = if so_far.is_empty() { "" } else { ": " };
            done(-1, format!("Health check exceeded timeout ({}){colon}{so_far}", span(limit)))
        }
    }
}

/// Runs the probe; what it writes is there even if it is given up.
async fn run(
    app: &Arc<App>,
    container: &Arc<Container>,
    cmd: Vec<String>,
    written: &mut Vec<u8>,
    running: &mut Option<Arc<exec::Exec>>,
) -> ApiResult<i64> {
    let config = ExecConfig { cmd, attach_stdout: true, attach_stderr: true, ..ExecConfig::default() };
    let id = exec::create(app, container, config)?;
    let exec = app.containers.exec(&id)?;
    let claim = exec::claim(app, &exec)?;
    let (ours, theirs) = UnixStream::pair().map_err(|e| ApiError::unexpected(&e))?;
    *running = Some(exec.clone());
    let process = exec::start(app, claim, ExecStart::default()).await?;
    let serving = tokio::spawn(process.serve(app.clone(), ClientStream { stream: theirs, early: Bytes::new() }));
    read_frames(ours, written).await;
    let _ = serving.await;
    Ok(exec.state().exit_code.unwrap_or(-1))
}

/// Payloads of the frames until the end, as far as they are kept.
async fn read_frames(mut stream: UnixStream, written: &mut Vec<u8>) {
    let mut head = [0; HEADER];
    let mut rest = vec![0; 8 << 10];
    while stream.read_exact(&mut head).await.is_ok() {
        let mut left = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        while left > 0 {
            let most = left.min(rest.len());
            let Ok(read @ 1..) = stream.read(&mut rest[..most]).await else { return };
            left -= read;
            // One more than is kept, so that it shows that there was more.
            let room = (OUTPUT + 1).saturating_sub(written.len()).min(read);
            written.extend_from_slice(&rest[..room]);
        }
    }
}

fn text(written: &[u8]) -> String {
    let kept = &written[..written.len().min(OUTPUT)];
    let mut text = String::from_utf8_lossy(kept).into_owned();
    if written.len() > OUTPUT {
        text.push_str("...");
    }
    text
}

/// A time the way Go prints one: `1m30s`, `2s`, `500ms`.
fn span(time: Duration) -> String {
    let nanos = time.as_nanos();
    let decimal = |whole: u128, part: u128, digits: usize| {
        let fraction = format!("{part:0digits$}");
        match fraction.trim_end_matches('0') {
            "" => whole.to_string(),
            fraction => format!("{whole}.{fraction}"),
        }
    };
    match nanos {
        0..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanos / 1_000, nanos % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(nanos / 1_000_000, nanos % 1_000_000, 6)),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = decimal(seconds % 60, nanos % 1_000_000_000, 9);
            match (hours, minutes) {
                (0, 0) => format!("{rest}s"),
                (0, minutes) => format!("{minutes}m{rest}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(exit_code: i64, at: i64) -> Outcome {
        let at = Timestamp::from_parts(1_000_000 + at, 0);
        Outcome { start: at, end: at, exit_code, output: String::new() }
    }

    #[test]
    fn status_follows_results() {
        let check = Healthcheck { retries: 2, start_period: 10_000_000_000, ..Healthcheck::default() };
        let started = Timestamp::from_parts(1_000_000, 0);
        let mut health = Health::begun(None);
        // Result, seconds after the start; status and streak then.
        for (code, at, status, streak) in [
            (1, 1, Status::Starting, 0),
            (1, 9, Status::Starting, 0),
            (1, 11, Status::Starting, 1),
            (0, 12, Status::Healthy, 0),
            (-1, 13, Status::Healthy, 1),
            (0, 14, Status::Healthy, 0),
            (1, 15, Status::Healthy, 1),
            (1, 16, Status::Unhealthy, 2),
            (1, 17, Status::Unhealthy, 3),
            (0, 18, Status::Healthy, 0),
        ] {
            let before = health.status;
            assert_eq!(health.take(outcome(code, at), &check, started), before != status, "{code} at {at}");
            assert_eq!((health.status, health.failing_streak), (status, streak), "{code} at {at}");
        }
        assert_eq!(health.log.len(), KEPT);
        assert_eq!(health.log.back().unwrap().exit_code, 0);
        let again = Health::begun(Some(health));
        assert_eq!((again.status, again.failing_streak, again.log.len()), (Status::Starting, 0, KEPT));
    }

    #[test]
    fn a_success_ends_the_start_period() {
        let check = Healthcheck { retries: 1, start_period: 60_000_000_000, ..Healthcheck::default() };
        let started = Timestamp::from_parts(1_000_000, 0);
        let mut health = Health::begun(None);
        health.take(outcome(0, 1), &check, started);
        health.take(outcome(1, 2), &check, started);
        assert_eq!(health.status, Status::Unhealthy);
    }

    #[test]
    fn commands_and_times() {
        let config = |test: &[&str], shell: Option<&[&str]>| Config {
            healthcheck: Some(Healthcheck {
                test: test.iter().map(|s| (*s).to_owned()).collect(),
                ..Healthcheck::default()
            }),
            shell: shell.map(|words| words.iter().map(|s| (*s).to_owned()).collect()),
            ..Config::default()
        };
        for (test, shell, expected) in [
            (&["NONE"][..], None, None),
            (&[], None, None),
            (&["CMD"], None, None),
            (&["CMD", "a", "b"], None, Some("a b")),
            (&["CMD-SHELL", "a | b"], None, Some("/bin/sh -c a | b")),
            (&["CMD-SHELL", "a"], Some(&["/bin/ash", "-ec"][..]), Some("/bin/ash -ec a")),
        ] {
            assert_eq!(command(&config(test, shell)).map(|words| words.join(" ")).as_deref(), expected, "{test:?}");
        }
        let check = Healthcheck { start_period: 20_000_000_000, ..Healthcheck::default() };
        let second = Duration::from_secs(1);
        assert_eq!(pause(&check, Status::Starting, second), START_INTERVAL);
        assert_eq!(pause(&check, Status::Healthy, second), INTERVAL);
        assert_eq!(pause(&check, Status::Starting, second * 30), INTERVAL);
        for (millis, text) in [(2000, "2s"), (500, "500ms"), (1500, "1.5s"), (90_000, "1m30s"), (3_600_000, "1h0m0s")] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn what_the_image_says_fills_up() {
        let image =
            Healthcheck { test: vec!["CMD".into(), "x".into()], interval: 5, retries: 7, ..Healthcheck::default() };
        let mut own = None;
        merge(&mut own, Some(&image));
        assert_eq!(own.as_ref(), Some(&image));
        let mut own = Some(Healthcheck { interval: 9_000_000, ..Healthcheck::default() });
        merge(&mut own, Some(&image));
        assert_eq!(own, Some(Healthcheck { interval: 9_000_000, ..image }));
        assert!(super::check(&Healthcheck { interval: 5, ..Healthcheck::default() }).is_err());
        assert!(super::check(&Healthcheck { retries: -1, ..Healthcheck::default() }).is_err());
        assert!(super::check(&Healthcheck { test: vec!["RUN".into()], ..Healthcheck::default() }).is_err());
    }

    #[test]
    fn output_is_cut() {
        assert_eq!(text(b"short"), "short");
        let cut = text(&[b'x'; OUTPUT + 1]);
        assert_eq!(cut.len(), OUTPUT + 3);
        assert!(cut.ends_with("x..."));
    }
}
