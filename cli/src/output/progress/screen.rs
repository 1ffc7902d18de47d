//! Frames on the terminal: each is put over the last one with one write, and nothing is written when nothing has changed.

use super::{
    Message,
    board::{self, Board},
    frame::{self, Size},
};
use std::{fmt::Write as _, time::Duration};

/// The lines under the cursor that are redrawn, and what is to be seen in them.
#[derive(Debug)]
pub struct Screen {
    board: Board,
    size: Size,
    color: bool,
    /// The lines as they stand.
    drawn: Vec<String>,
}

impl Screen {
    /// Nothing is drawn yet.
    pub fn new(size: Size, color: bool) -> Self {
        Self { board: Board::default(), size, color, drawn: Vec::new() }
    }

    /// Takes a message. What must be written at once comes back: text that stays.
    pub fn message(&mut self, message: &Message, at: Duration) -> Option<String> {
        if message.is_silent() {
            return None;
        }
        match message.is_about() {
            Some(id) if message.progress_detail.is_some() || self.board.knows(id) => {
                self.board.update(id, message, at);
                None
            }
            _ => {
                // Lines with an id that come later belong to another group, below this text.
                let mut text = self.finish(at);
                text.push_str(&message.line().split('\n').map(board::clean).collect::<Vec<_>>().join("\n"));
                Some(text)
            }
        }
    }

    /// There are lines that change.
    pub fn is_live(&self) -> bool {
        !self.board.lines().is_empty()
    }

    /// The next frame, empty if it would be the same again.
    pub fn draw(&mut self, at: Duration) -> String {
        self.board.sample(at);
        let lines = frame::render(&self.board, self.size, at, false);
        if lines == self.drawn { String::new() } else { self.paint(lines) }
    }

    /// The last frame, which stays.
    pub fn finish(&mut self, at: Duration) -> String {
        if !self.is_live() {
            return String::new();
        }
        let lines = frame::render(&self.board, self.size, at, true);
        let text = self.paint(lines);
        (self.board, self.drawn) = (Board::default(), Vec::new());
        text
    }

    /// Draws again on a terminal that has another size now.
    pub fn resize(&mut self, size: Size, at: Duration) -> String {
        self.size = size;
        // What was drawn has been wrapped anew: it takes more lines, and is cleared as a whole.
        let mut text = self.up();
        text.push_str("\x1b[J");
        self.drawn.clear();
        text + &self.draw(at)
    }

    fn paint(&mut self, lines: Vec<String>) -> String {
        let mut text = self.up();
        for line in &lines {
            // Cleared behind the text and not before it: nothing flickers.
            let _ = writeln!(text, "{}\x1b[K", if self.color { colored(line) } else { line.clone() });
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
        let rows: usize = self.drawn.iter().map(|line| line.chars().count().div_ceil(columns).max(1)).sum();
        if rows == 0 { String::new() } else { format!("\x1b[{rows}A\r") }
    }
}

/// The full part of a bar in color.
fn colored(line: &str) -> String {
    match (line.find("[="), line.rfind('>').or_else(|| line.rfind("=]").map(|at| at + 1))) {
        (Some(from), Some(to)) if from + 1 < to => {
            format!("{}\x1b[36m{}\x1b[0m{}", &line[..=from], &line[from + 1..to], &line[to..])
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::message, *};

    const WIDE: Size = Size { columns: 80, rows: 24 };

    fn layer(screen: &mut Screen, id: &str, status: &str, current: i64) {
        let json =
            format!(r#"{{"status":"{status}","id":"{id}","progressDetail":{{"current":{current},"total":10}}}}"#);
        assert_eq!(screen.message(&message(&json), Duration::ZERO), None);
    }

    #[test]
    fn frames_replace_one_another() {
        let mut screen = Screen::new(WIDE, false);
        let head = screen.message(&message(r#"{"status":"Pulling from x","id":"latest"}"#), Duration::ZERO);
        assert_eq!(head.as_deref(), Some("latest: Pulling from x\n"));
        layer(&mut screen, "a", "Waiting", 0);
        layer(&mut screen, "b", "Waiting", 0);
        let first = screen.draw(Duration::ZERO);
        assert_eq!(first.matches('\n').count(), 2);
        assert!(first.starts_with("a: Waiting") && first.contains("\x1b[K\nb: Waiting"), "{first:?}");
        assert_eq!(screen.draw(Duration::ZERO), "", "the same again is not written");
        layer(&mut screen, "a", "Pull complete", 0);
        let second = screen.draw(Duration::ZERO);
        assert!(second.starts_with("\x1b[2A\ra: Pull complete\x1b[K\nb: "), "{second:?}");
        let tail = screen.message(&message(r#"{"status":"Status: done"}"#), Duration::ZERO).unwrap();
        assert!(tail.starts_with("\x1b[2A\r") && tail.ends_with("\x1b[K\nStatus: done\n"), "{tail:?}");
        assert_eq!(screen.finish(Duration::ZERO), "");
        layer(&mut screen, "a", "Waiting", 0);
        assert!(screen.draw(Duration::ZERO).starts_with("a: "), "another group starts below");
    }

    #[test]
    fn fewer_lines_leave_nothing_behind() {
        let mut screen = Screen::new(Size { columns: 80, rows: 8 }, false);
        for n in 0..7 {
            layer(&mut screen, &n.to_string(), "Waiting", 0);
        }
        assert_eq!(screen.draw(Duration::ZERO).matches('\n').count(), 7);
        for n in 0..8 {
            layer(&mut screen, &n.to_string(), "Pull complete", 0);
        }
        let text = screen.draw(Duration::ZERO);
        assert_eq!(text, "\x1b[7A\r8 of 8 layers complete\x1b[K\n\x1b[J");
    }

    #[test]
    fn another_size() {
        let mut screen = Screen::new(WIDE, false);
        layer(&mut screen, "0123456789ab", "Downloading", 5);
        let wide = screen.draw(Duration::ZERO);
        let wrapped = wide.lines().map(|l| l.trim_end_matches("\x1b[K").len().div_ceil(30)).sum::<usize>();
        let text = screen.resize(Size { columns: 30, rows: 24 }, Duration::ZERO);
        // The line of eighty takes three of thirty, now that it is wrapped.
        assert!(text.starts_with(&format!("\x1b[{wrapped}A\r\x1b[J0123456789ab: Downloading")), "{text:?}");
        assert!(wrapped > 2);
    }

    #[test]
    fn color_is_for_bars_and_takes_no_room() {
        let mut screen = Screen::new(WIDE, true);
        layer(&mut screen, "a", "Downloading", 5);
        let text = screen.draw(Duration::ZERO);
        assert!(text.contains("[\x1b[36m=====") && text.contains("\x1b[0m>"), "{text:?}");
        let mut plain = Screen::new(WIDE, false);
        layer(&mut plain, "a", "Downloading", 5);
        assert_eq!(text.replace("\x1b[36m", "").replace("\x1b[0m", ""), plain.draw(Duration::ZERO));
        assert_eq!(colored("a: [==]"), "a: [\x1b[36m==\x1b[0m]");
    }
}
