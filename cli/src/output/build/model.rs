//! What is known of a build: its steps, what they move and what they say. Pure: it is fed with what a builder sends.

use super::bytes;
use prost_types::Timestamp;
use proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

/// Lines that are kept of a step, for when it fails.
const KEPT: usize = 10;
/// Longest line that is put together; a step that never ends one gets it ended.
const LONGEST: usize = 64 << 10;

/// A build.
#[derive(Debug, Default)]
pub struct Build {
    steps: Vec<Step>,
    index: HashMap<String, usize>,
    /// Steps that were shown, in this order.
    shown: Vec<usize>,
    /// The clock here, less the builder's.
    skew: Option<i128>,
    /// When it began, by the clock here.
    begun: Option<Duration>,
    warnings: Vec<VertexWarning>,
}

/// One step; several that belong together are one.
#[derive(Debug, Default)]
pub struct Step {
    /// What it does.
    pub name: String,
    /// Its number, once it was shown.
    pub number: Option<usize>,
    /// When it began and ended, by the clock here.
    pub started: Option<Duration>,
    /// When it ended.
    pub completed: Option<Duration>,
    /// Its result was there already.
    pub cached: bool,
    /// Why it failed.
    pub error: String,
    /// What it moves, in the order of their beginning.
    pub items: Vec<Item>,
    /// Lines that nobody has taken yet, with the seconds since its beginning before them.
    pub fresh: Vec<String>,
    /// The last lines.
    pub tail: VecDeque<String>,
    /// What it warns of.
    pub warnings: Vec<String>,
    /// A line that has no end yet.
    partial: Vec<u8>,
    partial_at: Option<Duration>,
    /// Of several that are one.
    members: BTreeMap<String, Vertex>,
}

/// Something that a step moves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Item {
    /// Its name.
    pub id: String,
    /// How far it is.
    pub current: i64,
    /// How far it goes; 0: nobody knows.
    pub total: i64,
    /// When it began.
    pub started: Option<Duration>,
    /// When it ended.
    pub completed: Option<Duration>,
    /// When this was said.
    pub at: Duration,
    /// Nobody has taken this yet.
    pub fresh: bool,
}

impl Item {
    /// "1.53MB / 3.00MB"
    pub fn amount(&self) -> String {
        match (self.current, self.total) {
            (current, total) if total != 0 => format!("{} / {}", bytes(current), bytes(total)),
            (0, _) => String::new(),
            (current, _) => bytes(current),
        }
    }
}

impl Step {
    /// Under way.
    pub fn is_running(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    /// Given up because something else failed, or because the user said so.
    pub fn is_canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    /// Seconds since its beginning, or until its end.
    pub fn seconds(&self, now: Duration) -> f64 {
        let begun = self.started.unwrap_or(now);
        self.completed.unwrap_or(now).saturating_sub(begun).as_secs_f64()
    }

    fn say(&mut self, line: &[u8], at: Duration) {
        let since = at.saturating_sub(self.started.unwrap_or(at)).as_secs_f64();
        let decimals = match since {
            ..10.0 => 3,
            ..100.0 => 2,
            _ => 1,
        };
        let line = format!("{since:.decimals$} {}", String::from_utf8_lossy(line.trim_ascii_end()));
        if self.tail.len() == KEPT {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        self.fresh.push(line);
    }

    /// Ends a line that has no end.
    pub fn flush(&mut self) {
        if let Some(at) = self.partial_at.take() {
            let line = std::mem::take(&mut self.partial);
            self.say(&line, at);
        }
    }

    fn log(&mut self, data: &[u8], at: Duration) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.partial_at.get_or_insert(at);
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.partial.extend_from_slice(end);
                    self.flush();
                }
                None => self.partial.extend_from_slice(piece),
            }
            if self.partial.len() > LONGEST {
                self.flush();
            }
        }
    }

    /// One step out of several that belong together.
    fn gather(&mut self) {
        let members = self.members.values();
        let ends: Option<Vec<_>> =
            members.clone().filter(|m| m.started.is_some()).map(|member| member.completed.as_ref()).collect();
        self.cached = members.clone().all(|member| member.cached);
        self.error =
            members.clone().map(|member| member.error.clone()).find(|error| !error.is_empty()).unwrap_or_default();
        if ends.is_none() {
            self.completed = None;
        }
    }
}

/// A time since the epoch.
fn nanos(time: &Timestamp) -> i128 {
    i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
}

impl Build {
    /// Takes what a builder says. Gives the steps that it is about.
    pub fn update(&mut self, response: &StatusResponse, now: Duration) -> Vec<usize> {
        let mut touched = Vec::new();
        for vertex in &response.vertexes {
            touched.extend(self.vertex(vertex, now));
        }
        for status in &response.statuses {
            touched.extend(self.status(status));
        }
        for log in &response.logs {
            touched.extend(self.log(log));
        }
        for warning in &response.warnings {
            // No news of the step itself: lines have them at the end.
            if let Some(step) = self.index.get(&warning.vertex) {
                self.steps[*step].warnings.push(String::from_utf8_lossy(&warning.short).into_owned());
            }
            self.warnings.push(warning.clone());
        }
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// All steps, in the order in which they were heard of.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// A step.
    pub fn step(&mut self, at: usize) -> &mut Step {
        &mut self.steps[at]
    }

    /// Steps that have begun, in this order.
    pub fn begun_steps(&self) -> impl Iterator<Item = &Step> {
        self.shown.iter().map(|at| &self.steps[*at])
    }

    /// When the first step began.
    pub fn begun(&self) -> Option<Duration> {
        self.begun
    }

    /// What the Dockerfile is warned of.
    pub fn warnings(&self) -> &[VertexWarning] {
        &self.warnings
    }

    /// Gives a step its number, if it has none.
    pub fn number(&mut self, at: usize) -> usize {
        let next = self.steps.iter().filter(|step| step.number.is_some()).count() + 1;
        *self.steps[at].number.get_or_insert(next)
    }

    /// What failed steps have said last.
    pub fn failures(&self) -> String {
        let mut text = String::new();
        for step in self.begun_steps().filter(|step| !step.error.is_empty() && !step.is_canceled()) {
            let _ = writeln!(text, "------\n > {}:", step.name);
            step.tail.iter().for_each(|line| _ = writeln!(text, "{line}"));
            text.push_str("------\n");
        }
        text
    }

    /// A time of the builder by the clock here.
    fn here(&self, time: &Timestamp) -> Duration {
        let nanos = nanos(time) + self.skew.unwrap_or_default();
        Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
    }

    fn vertex(&mut self, vertex: &Vertex, now: Duration) -> Option<usize> {
        if let (None, Some(started)) = (self.skew, &vertex.started) {
            let now = i128::try_from(now.as_nanos()).unwrap_or_default();
            // Only a clock that differs by much is another clock.
            let skew = now - nanos(started);
            self.skew = Some(if skew.abs() > 2_000_000_000 { skew } else { 0 });
        }
        let (key, name) = match &vertex.progress_group {
            Some(group) => (group.id.as_str(), group.name.as_str()),
            None => (vertex.digest.as_str(), vertex.name.as_str()),
        };
        let next = self.steps.len();
        let at = *self.index.entry(key.to_owned()).or_insert(next);
        if at == next {
            self.steps.push(Step::default());
        }
        self.index.insert(vertex.digest.clone(), at);
        let started = vertex.started.as_ref().map(|time| self.here(time));
        let completed = vertex.completed.as_ref().map(|time| self.here(time));
        let step = &mut self.steps[at];
        let before = (step.name.clone(), step.started, step.completed, step.cached, step.error.clone());
        name.clone_into(&mut step.name);
        let first = step.started.is_none() && started.is_some();
        match &vertex.progress_group {
            Some(_) => {
                step.started = step.started.into_iter().chain(started).min();
                step.completed = step.completed.into_iter().chain(completed).max();
                step.members.insert(vertex.digest.clone(), vertex.clone());
                step.gather();
            }
            // What is said again without a beginning takes nothing back.
            None if step.started.is_some() && started.is_none() => return None,
            None => {
                (step.started, step.completed) = (started, completed);
                step.cached = vertex.cached;
                step.error.clone_from(&vertex.error);
            }
        }
        if step.completed.is_some() {
            step.flush();
        }
        if first {
            self.shown.push(at);
            self.begun = self.begun.into_iter().chain(started).min();
        }
        let step = &self.steps[at];
        let after = (step.name.clone(), step.started, step.completed, step.cached, step.error.clone());
        (step.started.is_some() && before != after).then_some(at)
    }

    fn status(&mut self, status: &VertexStatus) -> Option<usize> {
        let at = *self.index.get(&status.vertex)?;
        let item = Item {
            id: status.id.clone(),
            current: status.current,
            total: status.total,
            started: status.started.as_ref().map(|time| self.here(time)),
            completed: status.completed.as_ref().map(|time| self.here(time)),
            at: status.timestamp.as_ref().map(|time| self.here(time)).unwrap_or_default(),
            fresh: true,
        };
        let items = &mut self.steps[at].items;
        match items.iter_mut().find(|known| known.id == item.id) {
            Some(known) => *known = item,
            None => items.push(item),
        }
        Some(at)
    }

    fn log(&mut self, log: &VertexLog) -> Option<usize> {
        let at = *self.index.get(&log.vertex)?;
        let time = log.timestamp.as_ref().map(|time| self.here(time)).unwrap_or_default();
        self.steps[at].log(&log.msg, time);
        Some(at)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use proto::pb::ProgressGroup;

    fn time(seconds: f64) -> Option<Timestamp> {
        #[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
        let nanos = (seconds * 1e9).round() as i64;
        Some(Timestamp {
            seconds: nanos / 1_000_000_000,
            nanos: i32::try_from(nanos % 1_000_000_000).unwrap_or_default(),
        })
    }

    pub fn started(digest: &str, name: &str, at: f64) -> StatusResponse {
        let vertex = Vertex { digest: digest.into(), name: name.into(), started: time(at), ..Vertex::default() };
        StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() }
    }

    pub fn ended(digest: &str, name: &str, from: f64, to: f64, cached: bool, error: &str) -> StatusResponse {
        let mut response = started(digest, name, from);
        let vertex = &mut response.vertexes[0];
        (vertex.completed, vertex.cached, vertex.error) = (time(to), cached, error.into());
        response
    }

    pub fn status(digest: &str, id: &str, current: i64, total: i64, completed: Option<f64>) -> StatusResponse {
        let status = VertexStatus {
            id: id.into(),
            vertex: digest.into(),
            current,
            total,
            timestamp: time(1.0),
            started: time(1.0),
            completed: completed.and_then(time),
            ..VertexStatus::default()
        };
        StatusResponse { statuses: vec![status], ..StatusResponse::default() }
    }

    pub fn log(digest: &str, text: &str, at: f64) -> StatusResponse {
        let log = VertexLog { vertex: digest.into(), timestamp: time(at), stream: 1, msg: text.into() };
        StatusResponse { logs: vec![log], ..StatusResponse::default() }
    }

    pub fn said(build: &Build) -> usize {
        build.steps().iter().map(|step| step.fresh.len()).sum()
    }

    #[test]
    fn steps_of_a_group_are_one() {
        let mut build = Build::default();
        let group = ProgressGroup { id: "g".into(), name: "[auth]".into(), weak: false };
        for (digest, from, to, cached) in [("a", 1.0, Some(2.0), true), ("b", 1.5, None, false)] {
            let mut response = started(digest, "inner", from);
            response.vertexes[0].progress_group = Some(group.clone());
            (response.vertexes[0].completed, response.vertexes[0].cached) = (to.and_then(time), cached);
            build.update(&response, Duration::from_secs(2));
        }
        let [step] = build.steps() else { panic!("{build:?}") };
        assert!(step.name == "[auth]" && step.is_running() && !step.cached);
        let mut end = ended("b", "inner", 1.5, 3.0, false, "");
        end.vertexes[0].progress_group = Some(group);
        build.update(&end, Duration::from_secs(3));
        let step = &build.steps()[0];
        assert_eq!((step.is_running(), step.seconds(Duration::from_secs(9))), (false, 2.0));
        assert_eq!(build.begun_steps().count(), 1);
    }

    #[test]
    fn what_is_not_known_is_no_step() {
        let mut build = Build::default();
        assert!(build.update(&log("x", "?", 1.0), Duration::ZERO).is_empty());
        assert!(build.update(&status("x", "?", 1, 1, None), Duration::ZERO).is_empty());
        let waiting = StatusResponse {
            vertexes: vec![Vertex { digest: "a".into(), name: "A".into(), ..Vertex::default() }],
            ..StatusResponse::default()
        };
        assert!(build.update(&waiting, Duration::ZERO).is_empty() && build.begun_steps().count() == 0);
        build.update(&ended("a", "A", 1.0, 2.0, false, ""), Duration::from_secs(2));
        assert!(build.update(&waiting, Duration::ZERO).is_empty(), "said again without a beginning");
        assert!(build.steps()[0].completed.is_some());
    }

    #[test]
    fn another_clock() {
        let mut build = Build::default();
        build.update(&started("a", "A", 1000.0), Duration::from_secs(5000));
        assert_eq!(build.steps()[0].seconds(Duration::from_secs(5003)), 3.0);
        assert_eq!(build.begun(), Some(Duration::from_secs(5000)));
    }
}
