//! What is wrong with a Dockerfile, and where.

use std::fmt;

/// How many lines of an instruction are shown; here-documents can be long.
const LINES: usize = 40;

/// Lines of the source, from 1, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// The first one.
    pub first: usize,
    /// The last one.
    pub last: usize,
}

/// A complaint about a place in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What is wrong, as BuildKit words it where it has words for it.
    pub message: String,
    /// Where; nothing for the file as a whole.
    pub span: Option<Span>,
    /// Where the caret points: characters from the start of the first line of `span`, each line end counted as one.
    pub column: Option<usize>,
}

impl Error {
    /// One for the lines of `span`.
    pub fn new(message: impl Into<String>, span: Span) -> Self {
        Self { message: message.into(), span: Some(span), column: None }
    }

    /// Points at a column.
    pub fn at(self, column: usize) -> Self {
        Self { column: Some(column), ..self }
    }

    /// File, line, the lines themselves with their numbers, a caret, and what is wrong.
    pub fn show(&self, name: &str, source: &str) -> String {
        let Some(span) = self.span else { return format!("{name}: {}", self.message) };
        let lines = source.strip_prefix('\u{feff}').unwrap_or(source).lines();
        let shown = lines.enumerate().map(|(at, line)| (at + 1, line)).skip(span.first.saturating_sub(1));
        let mut text = format!("{name}:{}: {}\n", span.first, self.message);
        // A tab is one place wide here, so that the caret stands below what it points at.
        let mut left = self.column;
        for (number, line) in shown.take(span.last.saturating_sub(span.first).saturating_add(1).min(LINES)) {
            text += &format!("{number:4} | {}\n", line.replace('\t', " "));
            let length = line.chars().count();
            match left {
                Some(column) if column <= length => {
                    text += &format!("     | {}^\n", " ".repeat(column));
                    left = None;
                }
                _ => left = left.map(|column| column - length - 1),
            }
        }
        if span.last.saturating_sub(span.first) >= LINES {
            text += "     | …\n";
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.span {
            Some(span) => write!(f, "dockerfile parse error on line {}: {}", span.first, self.message),
            None => f.write_str(&self.message),
        }
    }
}
