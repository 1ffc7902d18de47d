//! Reads a Dockerfile.

mod flags;
mod heredoc;
mod kinds;
mod lines;
mod mount;
mod values;
mod words;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod peer;
#[cfg(test)]
mod tests;

pub use heredoc::heredoc;

use crate::{
    Dockerfile, Error,
    error::Span,
    instruction::{Directives, Instruction, Kind, Stage},
};
use kinds::{Parts, Said};
use lines::Reader;

/// What is wrong with an instruction, and which word of it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub message: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Word(String),
    End,
}

impl Fault {
    /// One that a word is to blame for.
    fn at(message: String, word: &str) -> Self {
        Self { message, place: Place::Word(word.into()) }
    }

    /// Something is missing.
    fn end(message: String) -> Self {
        Self { message, place: Place::End }
    }

    fn located(self, reader: &Reader, span: Span) -> Error {
        let lines: Vec<&str> = reader.source(span).collect();
        // Columns count from the start of the first line, and through all of them.
        let text = lines.join("\n");
        let start = text.len() - text.trim_start().len();
        let at = match &self.place {
            Place::Word(word) => text.find(word.as_str()).unwrap_or(start),
            Place::End => lines[0].trim_end().len().max(start),
        };
        Error::new(self.message, span).at(text[..at].chars().count())
    }
}

/// Reads `source`. Fails with the first thing that is wrong.
pub fn parse(source: &[u8]) -> Result<Dockerfile, Error> {
    let whole = |message: &str| Error { message: message.into(), span: None, column: None };
    if source.is_empty() {
        return Err(whole("the Dockerfile cannot be empty"));
    }
    let source = String::from_utf8_lossy(source);
    let mut file = Dockerfile::default();
    file.directives = each(&source, |said, gap| {
        file.empty_continuations.extend(gap);
        match (said, file.stages.last_mut()) {
            (Read::Stage(stage), _) => file.stages.push(*stage),
            (Read::Instruction(instruction), Some(stage)) => stage.instructions.push(*instruction),
            (Read::Instruction(instruction), None) if matches!(instruction.kind, Kind::Arg(_)) => {
                file.globals.push(*instruction);
            }
            (Read::Instruction(instruction), None) => {
                return Err(Fault::at("no build stage in current context".into(), &instruction.keyword));
            }
        }
        Ok(())
    })?;
    if file.stages.is_empty() {
        let empty = file.globals.is_empty();
        return Err(whole(if empty { "file with no instructions" } else { "dockerfile contains no stages to build" }));
    }
    Ok(file)
}

/// Reads what an image has to say to those who build on it, on behalf of the FROM at `span`.
pub fn trigger(text: &str, span: Span) -> Result<Instruction, Error> {
    let mut found = Vec::new();
    let failed = |error: Error| Error::new(format!("ONBUILD trigger {text:?}: {}", error.message), span).at(0);
    each(text, |said, _| {
        found.push(said);
        Ok(())
    })
    .map_err(failed)?;
    match (found.pop(), found.is_empty()) {
        (Some(Read::Instruction(instruction)), true) => match instruction.kind {
            Kind::Onbuild(_) | Kind::Maintainer(_) => {
                let message = format!("{} isn't allowed as an ONBUILD trigger", instruction.keyword);
                Err(failed(Error::new(message, span)))
            }
            _ => Ok(Instruction { span, ..*instruction }),
        },
        (Some(Read::Stage(_)), true) => Err(failed(Error::new("FROM isn't allowed as an ONBUILD trigger", span))),
        _ => Err(failed(Error::new("onbuild trigger should be a single expression", span))),
    }
}

enum Read {
    Stage(Box<Stage>),
    Instruction(Box<Instruction>),
}

/// Hands out one instruction after the other, with the place where an empty line goes through it.
fn each(source: &str, mut take: impl FnMut(Read, Option<Span>) -> Result<(), Fault>) -> Result<Directives, Error> {
    let mut reader = Reader::new(source)?;
    while let Some(line) = reader.line() {
        let mut span = line.span;
        let gap = line.gaps.then_some(Span { first: span.last, last: span.last });
        let heredocs = heredoc::announced(&line.text);
        let mut heredocs = heredocs.map_err(|error| Fault::at(error.to_string(), "<<").located(&reader, span))?;
        for heredoc in &mut heredocs {
            if !reader.heredoc(heredoc) {
                return Err(Fault::at("unterminated heredoc".into(), "<<").located(&reader, span));
            }
        }
        let opening = span;
        span.last = reader.last();
        let (keyword, rest) = words::keyword(&line.text);
        let (flags, args) = words::flags(rest);
        let escape = reader.directives.escape;
        let parts = Parts { keyword, flags, args, text: &line.text, heredocs, comment: &line.comment, escape };
        let read = parts.read().map(|said| match said {
            Said::Stage(stage) => Read::Stage(Box::new(Stage { span, ..*stage })),
            Said::Kind(kind) => {
                let (keyword, text) = (keyword.to_owned(), line.text.trim().to_owned());
                Read::Instruction(Box::new(Instruction { kind, keyword, text, span, comment: line.comment.clone() }))
            }
        });
        read.and_then(|read| take(read, gap)).map_err(|fault| fault.located(&reader, opening))?;
    }
    Ok(reader.directives)
}
