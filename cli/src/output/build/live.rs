//! Progress as a tree that is redrawn in place: a head with the time and the count of steps, a line for each step, and below those
//! that run what they move and what they have said last.
//!
//! A frame is one write of lines that are cleared behind their text, so nothing flickers; the same frame again is not written.

use super::model::{Build, Step};
use std::fmt::Write as _;
use std::time::Duration;

/// Columns and rows of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

/// Lines of what a running step has said.
const SAID: usize = 4;

/// What a line is about, for its color.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Head,
    Running,
    Done,
    Failed,
    Canceled,
    Said,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    kind: Kind,
    text: String,
}

/// The lines above the cursor that are redrawn.
#[derive(Debug)]
pub struct Screen {
    size: Size,
    color: bool,
    drawn: Vec<Line>,
}

impl Screen {
    /// Nothing is drawn yet.
    pub fn new(size: Size, color: bool) -> Self {
        Self { size, color, drawn: Vec::new() }
    }

    /// The next frame, empty if it would be the same again.
    pub fn draw(&mut self, build: &Build, now: Duration) -> String {
        let lines = frame(build, self.size, now, false);
        if lines == self.drawn { String::new() } else { self.paint(lines) }
    }

    /// The last frame, with all steps; it stays.
    pub fn finish(&mut self, build: &Build, now: Duration) -> String {
        let text = self.paint(frame(build, self.size, now, true));
        self.drawn.clear();
        text
    }

    /// Draws again on a terminal that has another size now.
    pub fn resize(&mut self, size: Size, build: &Build, now: Duration) -> String {
        self.size = size;
        // What was drawn has been wrapped anew, and is cleared as a whole.
        let mut text = self.up();
        text.push_str("\x1b[J");
        self.drawn.clear();
        text + &self.draw(build, now)
    }

    fn paint(&mut self, lines: Vec<Line>) -> String {
        let mut text = self.up();
        for line in &lines {
            let color = match line.kind {
                Kind::Done => "\x1b[34m",
                Kind::Failed => "\x1b[31m",
                Kind::Canceled => "\x1b[33m",
                Kind::Said => "\x1b[2m",
                Kind::Head | Kind::Running => "",
            };
            let _ = match color {
                color if self.color && !color.is_empty() => writeln!(text, "{color}{}\x1b[0m\x1b[K", line.text),
                _ => writeln!(text, "{}\x1b[K", line.text),
            };
        }
        if lines.len() < self.drawn.len() {
            text.push_str("\x1b[J");
        }
        self.drawn = lines;
        text
    }

    /// To the first of the lines drawn, as they lie on a terminal of the present width.
    fn up(&self) -> String {
        let columns = self.size.columns.max(1);
        let rows: usize = self.drawn.iter().map(|line| line.text.chars().count().div_ceil(columns).max(1)).sum();
        if rows == 0 { String::new() } else { format!("\x1b[{rows}A\r") }
    }
}

/// The lines for a terminal of this size; `all` of them at the end, when they may scroll away.
fn frame(build: &Build, size: Size, now: Duration, all: bool) -> Vec<Line> {
    let known = build.steps().len();
    let done = build.steps().iter().filter(|step| step.completed.is_some()).count();
    let spent = now.saturating_sub(build.begun().unwrap_or(now)).as_secs_f64();
    let end = if all && done == known && known > 0 { " FINISHED" } else { "" };
    let head = format!("[+] Building {spent:.1}s ({done}/{known}){end}");
    // One column stays free: a full line would put the cursor where terminals disagree.
    let width = size.columns.saturating_sub(1).max(20);
    let mut lines = vec![Line { kind: Kind::Head, text: cut(&head, width) }];
    let steps: Vec<&Step> = build.begun_steps().collect();
    let room = if all { usize::MAX } else { size.rows.saturating_sub(2).max(1) };
    // Those that run come first when there isn't room for all, then the last ones that have ended.
    let running = steps.iter().filter(|step| step.is_running()).count();
    let mut ended_room = room.saturating_sub(running);
    let mut said_room = room.saturating_sub(running.max(steps.len()));
    let mut skipped = steps.len().saturating_sub(running).saturating_sub(ended_room);
    for step in steps {
        if !step.is_running() {
            if skipped > 0 {
                skipped -= 1;
                continue;
            }
            if ended_room == 0 {
                continue;
            }
            ended_room -= 1;
        }
        if lines.len() > room {
            break;
        }
        lines.push(line_of(step, width, now));
        for text in details(step, all) {
            if all || said_room > 0 {
                said_room = said_room.saturating_sub(1);
                lines.push(Line { kind: Kind::Said, text: cut(&text, width) });
            }
        }
    }
    lines
}

fn line_of(step: &Step, width: usize, now: Duration) -> Line {
    let (kind, mark) = match step {
        step if step.is_running() => (Kind::Running, ""),
        step if step.error.is_empty() && step.cached => (Kind::Done, "CACHED "),
        step if step.error.is_empty() => (Kind::Done, ""),
        step if step.is_canceled() => (Kind::Canceled, "CANCELED "),
        _ => (Kind::Failed, "ERROR "),
    };
    let timer = format!("{:.1}s", step.seconds(now));
    let room = width.saturating_sub(timer.chars().count() + 1);
    let name = cut(&format!(" => {mark}{}", clean(&step.name)), room);
    Line { kind, text: format!("{name:<room$} {timer}") }
}

/// What a step moves and says: of those that run the last of it, of others nothing but what is said for good.
fn details(step: &Step, all: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if step.is_running() || all {
        for item in step.items.iter().filter(|item| all || item.completed.is_none()) {
            lines.push(format!(" => => {} {}", clean(&item.id), item.amount()).trim_end().to_owned());
        }
    }
    lines.extend(step.warnings.iter().map(|text| format!(" => => WARN: {}", clean(text))));
    if step.is_running() {
        let skip = step.tail.len().saturating_sub(SAID);
        lines.extend(step.tail.iter().skip(skip).map(|line| format!(" => => # {}", clean(said(line)))));
    }
    lines
}

/// A line without the seconds before it.
fn said(line: &str) -> &str {
    line.split_once(' ').map_or(line, |(_, text)| text)
}

fn cut(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// Text of a step must not steer the terminal: sequences of escape are left out as a whole, and of what was written over by a
/// carriage return only the last counts.
fn clean(text: &str) -> String {
    let text = text.trim_end_matches('\r');
    let text = text.rsplit('\r').next().unwrap_or(text);
    let (mut out, mut chars) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '\x1b' => match chars.next() {
                Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
                Some(']') => while chars.next().is_some_and(|c| c != '\x07' && c != '\x1b') {},
                _ => {}
            },
            '\t' => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{ended, log, started, status};
    use super::*;

    const SIZE: Size = Size { columns: 40, rows: 10 };

    fn texts(build: &Build, size: Size, now: u64, all: bool) -> Vec<String> {
        frame(build, size, Duration::from_secs(now), all).into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_tree() {
        let mut build = Build::default();
        let now = Duration::from_secs(1);
        build.update(&ended("a", "[1/3] FROM busybox", 1.0, 1.5, true, ""), now);
        build.update(&started("b", "[2/3] RUN a long command that does not fit here", 1.5), now);
        build.update(&log("b", "one\n\x1b[31mtwo\x1b[0m\nx\rthree\n", 1.6), now);
        build.update(&status("b", "extracting", 10, 2000, None), now);
        assert_eq!(
            texts(&build, SIZE, 3, false),
            [
                "[+] Building 2.0s (1/2)",
                " => CACHED [1/3] FROM busybox      0.5s",
                " => [2/3] RUN a long command that  1.5s",
                " => => extracting 10B / 2.00kB",
                " => => # one",
                " => => # two",
                " => => # three",
            ]
        );
        build.update(&ended("b", "[2/3] RUN x", 1.5, 4.0, false, "failed"), now);
        let last = texts(&build, SIZE, 4, true);
        assert_eq!(last[0], "[+] Building 3.0s (2/2) FINISHED");
        assert_eq!(last[2], " => ERROR [2/3] RUN x              2.5s");
        assert!(last.iter().all(|line| line.chars().count() < 40));
    }

    #[test]
    fn more_than_the_terminal_holds() {
        let mut build = Build::default();
        for n in 0..30 {
            let digest = n.to_string();
            build.update(&ended(&digest, &format!("step {n}"), 1.0, 2.0, false, ""), Duration::from_secs(2));
        }
        build.update(&started("last", "running", 2.0), Duration::from_secs(2));
        for n in 0..9 {
            build.update(&log("last", &format!("line {n}\n"), 2.0), Duration::from_secs(2));
        }
        let lines = texts(&build, SIZE, 3, false);
        assert!(lines.len() < SIZE.rows, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("running")) && lines.iter().any(|line| line.contains("step 29")));
        assert!(!lines.iter().any(|line| line.contains("step 0 ")));
        assert_eq!(texts(&build, SIZE, 3, true).iter().filter(|line| line.contains("step ")).count(), 30);
        // Nothing but steps that run.
        let mut many = Build::default();
        for n in 0..30 {
            many.update(&started(&n.to_string(), "r", 1.0), Duration::from_secs(1));
        }
        assert!(texts(&many, SIZE, 2, false).len() < SIZE.rows);
        assert!(!texts(&many, Size { columns: 1, rows: 1 }, 2, false).is_empty());
    }

    #[test]
    fn frames_replace_one_another() {
        let (mut build, mut screen) = (Build::default(), Screen::new(SIZE, false));
        let now = Duration::from_secs(1);
        build.update(&started("a", "A", 1.0), now);
        let first = screen.draw(&build, now);
        assert_eq!(first, "[+] Building 0.0s (0/1)\x1b[K\n => A                              0.0s\x1b[K\n");
        assert_eq!(screen.draw(&build, now), "", "the same again is not written");
        build.update(&ended("a", "A", 1.0, 1.0, false, ""), now);
        let text = screen.finish(&build, now);
        assert!(text.starts_with("\x1b[2A\r[+] Building 0.0s (1/1) FINISHED\x1b[K\n"), "{text:?}");
        let mut colored = Screen::new(SIZE, true);
        assert!(colored.draw(&build, now).contains("\x1b[34m => A"));
        let text = colored.resize(Size { columns: 20, rows: 10 }, &build, now);
        assert!(text.starts_with("\x1b[4A\r\x1b[J[+] Building"), "{text:?}");
    }

    #[test]
    fn the_terminal_is_not_steered() {
        for (text, want) in
            [("a\x1b[2Jb\u{9b}", "ab"), ("\x1b]0;title\x07x", "x"), ("10%\r20%\r", "20%"), ("a\tb\x1b", "a b")]
        {
            assert_eq!(clean(text), want, "{text:?}");
        }
    }
}
