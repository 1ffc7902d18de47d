//! What is wrong with a Dockerfile, and where.

use std::fmt;

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
    /// Column of `span.first` that the caret points at, in characters from 0.
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
        let mut text = format!("{name}:{}: {}\n", span.first, self.message);
        for number in span.first..=span.last {
            let line = source.lines().nth(number.saturating_sub(1)).unwrap_or_default();
            text += &format!("{number:4} | {line}\n");
            if number == span.first
                && let Some(column) = self.column
            {
                text += &format!("     | {}^\n", " ".repeat(column));
            }
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
