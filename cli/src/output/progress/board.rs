//! What is known of every layer that is under way, and of all of them together.

use super::Message;
use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

/// The rate is that of this time.
const WINDOW: Duration = Duration::from_secs(5);

/// Layers in the order in which they were first named.
#[derive(Debug, Default)]
pub struct Board {
    lines: Vec<Line>,
    index: HashMap<String, usize>,
    /// Bytes moved at points in time, the oldest first.
    samples: VecDeque<(Duration, i64)>,
    begun: Option<Duration>,
}

/// One layer.
#[derive(Debug, Default)]
pub struct Line {
    /// Its short id.
    pub id: String,
    /// What is being done with it.
    pub status: String,
    /// How far that is.
    pub current: i64,
    /// How far it goes; 0: nobody knows.
    pub total: i64,
    /// What is counted, when it isn't bytes.
    pub units: String,
    /// The numbers are not worth showing.
    pub hidden: bool,
    /// Nothing more is to be done with it.
    pub done: bool,
    /// Bytes that have come or gone over the network, or out of the archive.
    moved: i64,
    size: i64,
}

/// All layers together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Total {
    /// Bytes moved.
    pub moved: i64,
    /// Bytes in all, once every size is known.
    pub size: Option<i64>,
    /// Bytes per second.
    pub rate: Option<f64>,
    /// Time since the first message.
    pub spent: Duration,
}

impl Board {
    /// Takes a message about `id`.
    pub fn update(&mut self, id: &str, message: &Message, at: Duration) {
        self.begun.get_or_insert(at);
        let last = self.lines.len();
        let place = *self.index.entry(id.to_owned()).or_insert(last);
        if place == last {
            self.lines.push(Line { id: clean(id), ..Line::default() });
        }
        let line = &mut self.lines[place];
        let detail = message.progress_detail.clone().unwrap_or_default();
        line.status = clean(&message.status);
        (line.current, line.total) = (detail.current.max(0), detail.total.max(0));
        (line.units, line.hidden) = (clean(&detail.units), detail.hidecounts);
        match line.status.as_str() {
            "Downloading" | "Pushing" | "Loading layer" if line.units.is_empty() => {
                line.moved = line.current;
                line.size = line.size.max(line.total).max(line.current);
            }
            "Verifying Checksum" | "Download complete" | "Extracting" | "Pull complete" | "Pushed" => {
                line.moved = line.size;
            }
            _ => {}
        }
        line.done = match line.status.as_str() {
            "Pull complete" | "Already exists" | "Pushed" | "Layer already exists" => true,
            "Loading layer" => line.total > 0 && line.current >= line.total,
            status => status.starts_with("Mounted from"),
        };
        if line.done && line.status == "Loading layer" {
            "Loaded".clone_into(&mut line.status);
        }
    }

    /// Whether this id is on it.
    pub fn knows(&self, id: &str) -> bool {
        self.index.contains_key(id)
    }

    /// All layers.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Notes how far everything is, for the rate.
    pub fn sample(&mut self, at: Duration) {
        let moved = self.lines.iter().fold(0i64, |sum, line| sum.saturating_add(line.moved));
        self.samples.push_back((at, moved));
        // One that is older than the window stays, so that the window is always full.
        while self.samples.len() > 2 && self.samples[1].0 + WINDOW < at {
            self.samples.pop_front();
        }
    }

    /// All layers together, once there are bytes to count.
    pub fn total(&self, at: Duration) -> Option<Total> {
        let (moved, size) = self
            .lines
            .iter()
            .fold((0i64, 0i64), |(m, s), line| (m.saturating_add(line.moved), s.saturating_add(line.size)));
        let spent = at.saturating_sub(self.begun.unwrap_or(at));
        let rate = self.samples.front().and_then(|(then, before)| {
            let seconds = at.checked_sub(*then)?.as_secs_f64();
            #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
            (seconds >= 0.5 && moved > *before).then(|| (moved - before) as f64 / seconds)
        });
        let known = self.lines.iter().all(|line| line.done || line.size > 0);
        (size > 0).then_some(Total { moved, size: known.then_some(size), rate, spent })
    }
}

/// Text of an engine or a registry must not steer the terminal.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::message, *};

    fn feed(board: &mut Board, id: &str, status: &str, current: i64, total: i64) {
        let json =
            format!(r#"{{"status":"{status}","id":"{id}","progressDetail":{{"current":{current},"total":{total}}}}}"#);
        board.update(id, &message(&json), Duration::ZERO);
    }

    #[test]
    fn bytes_are_counted_once() {
        let mut board = Board::default();
        feed(&mut board, "a", "Pulling fs layer", 0, 0);
        assert_eq!(board.total(Duration::ZERO), None);
        feed(&mut board, "a", "Downloading", 40, 100);
        feed(&mut board, "b", "Downloading", 10, 50);
        feed(&mut board, "c", "Already exists", 0, 0);
        board.sample(Duration::ZERO);
        feed(&mut board, "a", "Download complete", 0, 0);
        // The uncompressed bytes of unpacking are others.
        feed(&mut board, "a", "Extracting", 3, 300);
        let total = board.total(Duration::from_secs(2)).unwrap();
        assert_eq!((total.moved, total.size, total.rate), (110, Some(150), Some(30.0)));
        assert_eq!(board.lines().iter().filter(|line| line.done).count(), 1);
        // One that has not begun may be of any size.
        feed(&mut board, "d", "Waiting", 0, 0);
        assert_eq!(board.total(Duration::ZERO).unwrap().size, None);
    }

    #[test]
    fn a_retry_has_no_rate() {
        let mut board = Board::default();
        feed(&mut board, "a", "Downloading", 40, 100);
        board.sample(Duration::ZERO);
        feed(&mut board, "a", "Downloading", 0, 100);
        assert_eq!(board.total(Duration::from_secs(2)).unwrap().rate, None);
    }

    #[test]
    fn the_terminal_is_not_steered() {
        assert_eq!(clean("a\x1b[2Jb\nc\u{9b}d"), "a[2Jbcd");
    }
}
