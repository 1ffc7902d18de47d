//! Progress as lines, as BuildKit writes them: one step has the word at a time, the others wait until it has ended, is silent
//! while they are not, or has had its time.

use super::model::{Build, Item, Step};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

/// A step that is under way keeps the word so long, if others have something to say.
const TURN: Duration = Duration::from_secs(5);
/// A bar that moves by less than this part, in less than this time, is no news.
const STEP: f64 = 0.05;
const PAUSE: Duration = Duration::from_secs(5);

/// Who has the word.
#[derive(Debug, Default)]
pub struct Plain {
    current: Option<usize>,
    since: Duration,
    begun: bool,
    /// How far items were when they were last shown.
    last: HashMap<(usize, String), (i64, Duration)>,
    /// Steps that have something to say.
    waiting: Vec<usize>,
}

impl Plain {
    /// The text for what has changed in these steps.
    pub fn update(&mut self, build: &mut Build, touched: &[usize], now: Duration) -> String {
        for at in touched {
            if build.steps()[*at].started.is_some() && !self.waiting.contains(at) {
                self.waiting.push(*at);
            }
        }
        let mut text = String::new();
        // The one that has the word says what it has to say, and its end.
        if let Some(current) = self.current.filter(|current| self.waiting.contains(current)) {
            self.say(build, current, now, &mut text);
        }
        let mut done: Vec<usize> = self.waiting.clone();
        done.retain(|at| build.steps()[*at].completed.is_some());
        done.sort_by_key(|at| build.steps()[*at].completed);
        for at in done {
            self.say(build, at, now, &mut text);
        }
        let spoke_long = now.saturating_sub(self.since) >= TURN;
        if (self.current.is_none() || spoke_long)
            && let Some(next) = self.waiting.first().copied()
        {
            self.say(build, next, now, &mut text);
        }
        text
    }

    /// All that is left to be said.
    pub fn finish(&mut self, build: &mut Build, now: Duration) -> String {
        let mut text = String::new();
        for at in 0..build.steps().len() {
            build.step(at).flush();
            let step = &build.steps()[at];
            if step.started.is_some() && !step.fresh.is_empty() && !self.waiting.contains(&at) {
                self.waiting.push(at);
            }
        }
        for at in std::mem::take(&mut self.waiting) {
            self.say(build, at, now, &mut text);
        }
        text
    }

    fn say(&mut self, build: &mut Build, at: usize, now: Duration, text: &mut String) {
        self.waiting.retain(|waiting| *waiting != at);
        let number = build.number(at);
        if self.current != Some(at) {
            if let Some(before) = self.current {
                let _ = writeln!(text, "#{} ...", build.number(before));
            }
            if self.begun {
                text.push('\n');
            }
            self.begun = true;
            self.since = now;
            let _ = writeln!(text, "#{number} {}", build.steps()[at].name);
        }
        self.current = Some(at);
        let step = build.step(at);
        for item in step.items.iter_mut().filter(|item| item.fresh) {
            item.fresh = false;
            let key = (at, item.id.clone());
            if item.completed.is_none() && self.last.get(&key).is_some_and(|last| is_no_news(item, *last)) {
                continue;
            }
            self.last.insert(key, (item.current, item.at));
            let _ = writeln!(text, "#{number} {}", line_of(item));
        }
        for line in step.fresh.drain(..) {
            let _ = writeln!(text, "#{number} {line}");
        }
        if let Some(end) = end_of(step) {
            let _ = writeln!(text, "#{number} {end}");
            self.current = None;
        }
    }
}

fn is_no_news(item: &Item, (current, at): (i64, Duration)) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a part in a hundred")]
    let part = if item.total > 0 { (item.current - current) as f64 / item.total as f64 } else { 0.0 };
    part < STEP && item.at.saturating_sub(at) < PAUSE
}

fn line_of(item: &Item) -> String {
    let mut text = item.id.clone();
    let amount = item.amount();
    if !amount.is_empty() {
        let _ = write!(text, " {amount}");
    }
    if let Some(started) = item.started {
        let seconds = item.completed.unwrap_or(item.at).saturating_sub(started).as_secs_f64();
        if seconds > 0.01 {
            let _ = write!(text, " {seconds:.1}s");
        }
    }
    if item.completed.is_some() {
        text.push_str(" done");
    }
    text
}

fn end_of(step: &Step) -> Option<String> {
    let end = step.completed?;
    Some(match step.error.as_str() {
        "" if step.cached => "CACHED".to_owned(),
        "" => format!("DONE {:.1}s", step.seconds(end)),
        _ if step.is_canceled() => "CANCELED".to_owned(),
        error => format!("ERROR: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{ended, log, said, started, status};
    use super::*;

    fn all(stream: &[(u64, proto::moby::buildkit::v1::StatusResponse)]) -> String {
        let (mut build, mut plain, mut text) = (Build::default(), Plain::default(), String::new());
        for (at, response) in stream {
            let now = Duration::from_secs(*at);
            let touched = build.update(response, now);
            text.push_str(&plain.update(&mut build, &touched, now));
        }
        text + &plain.finish(&mut build, Duration::from_secs(99))
    }

    #[test]
    fn steps_one_after_another() {
        let text = all(&[
            (1, started("a", "[internal] load build definition from Dockerfile", 1.0)),
            (1, status("a", "transferring dockerfile:", 31, 0, Some(1.02))),
            (1, ended("a", "[internal] load build definition from Dockerfile", 1.0, 1.04, false, "")),
            (2, ended("b", "[1/2] FROM busybox", 2.0, 2.0, true, "")),
            (3, started("c", "[2/2] RUN echo", 3.0)),
            (3, log("c", "one\ntw", 3.123)),
            (3, log("c", "o\nrest", 13.5)),
            (4, ended("c", "[2/2] RUN echo", 3.0, 14.26, false, "")),
        ]);
        assert_eq!(
            text,
            "#1 [internal] load build definition from Dockerfile\n#1 transferring dockerfile: 31B 0.0s done\n#1 DONE 0.0s\n\n\
             #2 [1/2] FROM busybox\n#2 CACHED\n\n#3 [2/2] RUN echo\n#3 0.123 one\n#3 0.123 two\n#3 10.50 rest\n#3 DONE 11.3s\n"
        );
    }

    #[test]
    fn one_speaks_at_a_time() {
        let text = all(&[
            (1, started("a", "A", 1.0)),
            (1, started("b", "B", 1.0)),
            (2, log("b", "from b\n", 2.0)),
            (2, log("a", "from a\n", 2.0)),
            (7, log("b", "still b\n", 7.0)),
            (8, ended("a", "A", 1.0, 8.0, false, "")),
            (9, ended("b", "B", 1.0, 9.0, false, "process \"false\" did not complete successfully: exit code: 1")),
        ]);
        assert_eq!(
            text,
            "#1 A\n#1 1.000 from a\n#1 ...\n\n#2 B\n#2 1.000 from b\n#2 6.000 still b\n#2 ...\n\n#1 A\n#1 DONE 7.0s\n\n#2 B\n\
             #2 ERROR: process \"false\" did not complete successfully: exit code: 1\n"
        );
    }

    #[test]
    fn bars_are_shown_now_and_then() {
        let mut stream = vec![(1, started("a", "FROM", 1.0))];
        for n in 0..100 {
            stream.push((1, status("a", "sha256:abc", n * 10_000, 1_000_000, None)));
        }
        stream.push((1, status("a", "sha256:abc", 1_000_000, 1_000_000, Some(2.0))));
        stream.push((2, ended("a", "FROM", 1.0, 2.0, false, "context canceled")));
        let text = all(&stream);
        assert!(text.starts_with("#1 FROM\n#1 sha256:abc 0B / 1.00MB\n#1 sha256:abc 50.00kB / 1.00MB\n"), "{text}");
        assert!(text.ends_with("#1 sha256:abc 1.00MB / 1.00MB 1.0s done\n#1 CANCELED\n"), "{text}");
        assert_eq!(text.lines().count(), 1 + 20 + 2, "{text}");
    }

    #[test]
    fn what_a_failed_step_has_said_last() {
        let mut build = Build::default();
        build.update(&started("a", "RUN x", 1.0), Duration::from_secs(1));
        for n in 0..20 {
            build.update(&log("a", &format!("line {n}\n"), 1.5), Duration::from_secs(1));
        }
        build.update(&ended("a", "RUN x", 1.0, 2.0, false, "no"), Duration::from_secs(2));
        let text = build.failures();
        assert!(
            text.starts_with("------\n > RUN x:\n0.500 line 10\n") && text.ends_with("line 19\n------\n"),
            "{text}"
        );
        assert_eq!(said(&build), 20);
    }
}
