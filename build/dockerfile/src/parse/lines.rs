//! From lines to the text of instructions: comments, parser directives, continuations, and the here-documents that follow.

use crate::{Error, error::Span, instruction::Directives, instruction::Heredoc, lint};

/// What BuildKit reads of a Dockerfile.
const LARGEST: usize = 16 << 20;
/// What BuildKit reads of a line.
const LONGEST: usize = 65535;

/// The text of an instruction, continuations joined, as written but for its comments.
pub struct Line {
    pub text: String,
    pub span: Span,
    pub comment: Vec<String>,
    /// Whether lines of it are empty.
    pub gaps: bool,
}

pub struct Reader<'a> {
    lines: Vec<&'a str>,
    /// Lines that have been read.
    read: usize,
    pub directives: Directives,
    /// Lines that hold directives; they are no comments.
    directive_lines: usize,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a str) -> Result<Self, Error> {
        if source.len() > LARGEST {
            let message = "Dockerfile exceeds maximum allowed size".into();
            return Err(Error { message, span: None, column: None });
        }
        let source = source.strip_prefix('\u{feff}').unwrap_or(source);
        let lines: Vec<_> = source.split_inclusive('\n').collect();
        if let Some(at) = lines.iter().position(|line| line.strip_suffix('\n').unwrap_or(line).len() > LONGEST) {
            let span = Span { first: at + 1, last: at + 1 };
            return Err(Error::new(format!("dockerfile line greater than max allowed size of {LONGEST}"), span).at(0));
        }
        let mut reader = Self { lines, read: 0, directives: Directives::default(), directive_lines: 0 };
        reader.read_directives()?;
        Ok(reader)
    }

    /// The lines of `span`, without their ends.
    pub fn source(&self, span: Span) -> impl Iterator<Item = &'a str> {
        self.lines[span.first - 1..span.last.min(self.lines.len())].iter().map(|line| end(line))
    }

    fn read_directives(&mut self) -> Result<(), Error> {
        let mut seen = Vec::new();
        // A Dockerfile may be a program: directives come after its interpreter then, all but `escape`.
        let program = usize::from(self.lines.first().is_some_and(|line| line.starts_with("#!")));
        for (at, line) in self.lines.iter().enumerate().skip(program) {
            let Some((name, value)) = directive(end(line).trim_start()) else { break };
            let span = Span { first: at + 1, last: at + 1 };
            if seen.contains(&name) && program > 0 {
                break;
            }
            if seen.contains(&name) {
                return Err(Error::new(format!("only one {name} parser directive can be used"), span).at(0));
            }
            // Of these, BuildKit takes the first word.
            let word = value.split(' ').next().unwrap_or_default();
            match name.as_str() {
                "syntax" => self.directives.syntax = Some(word.into()),
                "check" => {
                    self.directives.check = lint::parse_check(word).map_err(|why| {
                        Error::new(format!("failed to parse check options: {why}"), span).at(column(line, word))
                    })?;
                }
                _ if program > 0 => {}
                _ => {
                    self.directives.escape = match value {
                        "\\" => '\\',
                        "`" => '`',
                        _ => {
                            let message = format!("invalid escape token '{value}' does not match ` or \\");
                            return Err(Error::new(message, span).at(column(line, value)));
                        }
                    }
                }
            }
            seen.push(name);
            self.directive_lines = at + 1;
        }
        Ok(())
    }

    /// The next instruction.
    pub fn line(&mut self) -> Option<Line> {
        let mut comment = Vec::new();
        while let Some(line) = self.next() {
            let line = line.trim_start();
            if let Some(said) = line.strip_prefix('#') {
                match said.trim() {
                    // An empty one, like an empty line, parts a comment from what it is not about.
                    "" => comment.clear(),
                    _ if self.read <= self.directive_lines => {}
                    said => comment.push(said.into()),
                }
                continue;
            }
            let (text, mut more) = self.continued(line);
            if text.is_empty() && !more {
                comment.clear();
                continue;
            }
            let first = self.read;
            let (mut text, mut gaps) = (text.to_owned(), false);
            while more {
                let Some(line) = self.next() else { break };
                match line.trim_start() {
                    "" => gaps = true,
                    said if said.starts_with('#') => {}
                    _ => {
                        let part;
                        (part, more) = self.continued(line);
                        text += part;
                    }
                }
            }
            return Some(Line { text, span: Span { first, last: self.read }, comment, gaps });
        }
        None
    }

    /// What follows the instruction that was read last, for `heredoc`. False if its end is missing.
    pub fn heredoc(&mut self, heredoc: &mut Heredoc) -> bool {
        while let Some(raw) = self.lines.get(self.read) {
            self.read += 1;
            let line = end(raw);
            if heredoc.name == if heredoc.chomp { line.trim_start_matches('\t') } else { line } {
                return true;
            }
            heredoc.content += raw;
        }
        false
    }

    /// The number of the line that was read last.
    pub fn last(&self) -> usize {
        self.read
    }

    fn next(&mut self) -> Option<&'a str> {
        let line = self.lines.get(self.read)?;
        self.read += 1;
        Some(end(line))
    }

    /// A line without the escape character that continues it, and whether there is one. Two of them are none.
    fn continued<'b>(&self, line: &'b str) -> (&'b str, bool) {
        let escape = self.directives.escape;
        match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
            Some(rest) if !rest.ends_with(escape) => (rest, true),
            _ => (line, false),
        }
    }
}

/// Where `word` stands in a line, in characters.
fn column(line: &str, word: &str) -> usize {
    line.find(word).map_or(0, |at| line[..at].chars().count())
}

fn end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// `# name = value`, of the names that there are; in lower case.
fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.strip_prefix('#')?.trim_start().split_once('=')?;
    let (name, value) = (name.trim_end().to_ascii_lowercase(), value.trim());
    (matches!(name.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((name, value))
}
