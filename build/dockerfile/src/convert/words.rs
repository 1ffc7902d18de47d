//! Words of instructions, names of steps, and how much they come to.

use super::{
    path, platform,
    stages::{Converter, Step},
    vars::Vars,
};
use crate::{
    Error,
    error::Span,
    expand::{Env, Lexer},
};
use proto::pb;

/// Bytes that variables, commands and what stages hand down may come to, all in all: 2 MB of Dockerfile can say so that a
/// thousand stages have ten thousand variables each.
const LARGEST: usize = if cfg!(test) { 24 << 20 } else { 256 << 20 };
/// Of these, what is looked through for hints.
const HINTS: usize = 64 << 20;

impl Converter<'_> {
    /// Notes that something of this size was made.
    pub(super) fn count(&mut self, size: usize, span: Span) -> Result<(), Error> {
        self.size = self.size.saturating_add(size);
        match self.size > LARGEST {
            true => {
                Err(Error::new("the Dockerfile comes to too much: variables, commands and stages, all in all", span))
            }
            false => Ok(()),
        }
    }

    /// Fills in the variables of a word.
    pub(super) fn expand(&mut self, word: &str, env: &impl Env, span: Span) -> Result<String, Error> {
        let expanded = self.lexer.word(word, env).map_err(|error| Error::new(error.to_string(), span))?;
        self.count(expanded.text.len(), span)?;
        Ok(expanded.text)
    }

    /// A word of an instruction with its variables filled in.
    pub(super) fn word(&mut self, at: usize, word: &str, step: &Step) -> Result<String, Error> {
        let expanded = self.lexer.word(word, &self.stages[at].env);
        let expanded = expanded.map_err(|error| step.error(error.to_string()))?;
        self.count(expanded.text.len(), step.span())?;
        self.undefined(at, step, &expanded.unmatched);
        Ok(expanded.text)
    }

    /// Words of an instruction.
    pub(super) fn words(&mut self, at: usize, words: &[String], step: &Step) -> Result<Vec<String>, Error> {
        words.iter().map(|word| self.word(at, word, step)).collect()
    }

    /// Tells of variables that were not set.
    pub(super) fn undefined(&mut self, at: usize, step: &Step, unmatched: &[String]) {
        if unmatched.is_empty() {
            return;
        }
        let stage = &self.stages[at];
        self.hints = self.hints.saturating_add(stage.env.size() + 60 * stage.args.len());
        if self.hints > HINTS {
            return;
        }
        let declared = stage.args.iter().map(|(name, _)| name.clone()).collect();
        let known = stage.env.names();
        self.linter.undefined_vars(&step.instruction, unmatched, &declared, known);
    }

    /// Tells of a path that the client leaves out of its context.
    pub(super) fn tell_ignored(&mut self, step: &Step, path: &str) {
        let path = path::clean(path);
        if path != "/" && !path::is_pattern(&path) && (self.ignored)(path.trim_start_matches('/')) {
            self.linter.ignored_file(&step.instruction, path.trim_start_matches('/'));
        }
    }

    /// Adds a line to the history of the stage's image.
    pub(super) fn record(&mut self, at: usize, what: String, layer: bool) {
        self.stages[at].image.record(what, layer, self.epoch);
    }

    /// Time stamp of files: nanoseconds, -1 for now.
    pub(super) fn file_time(&self) -> i64 {
        self.epoch.map_or(-1, |seconds| seconds.saturating_mul(1_000_000_000))
    }

    /// The stage's platform, which is known when its instructions are gone through.
    pub(super) fn platform(&self, at: usize) -> pb::Platform {
        self.stages[at].platform.clone().unwrap_or_else(|| self.options.platform.clone())
    }

    /// An instruction as its step is called: keyword in capitals, variables filled in as far as `lexer` does.
    pub(super) fn shown(&mut self, text: &str, lexer: &Lexer, env: &impl Env, span: Span) -> Result<String, Error> {
        let text = lexer.word(text, env).map_or_else(|_| text.to_owned(), |expanded| expanded.text);
        self.count(2 * text.len(), span)?;
        Ok(match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        })
    }

    /// `[build 2/5] RUN make`, counting it.
    pub(super) fn next_name(&mut self, at: usize, text: &str, env: &Vars, trigger: bool) -> String {
        self.stages[at].shown += 1;
        self.name(at, text, env, trigger)
    }

    /// The same, of the step that was counted last.
    pub(super) fn name(&self, at: usize, text: &str, env: &Vars, trigger: bool) -> String {
        let stage = &self.stages[at];
        if stage.total == 0 {
            return text.into();
        }
        let mut name = String::from("[");
        if self.options.multi_platform {
            let platform = self.platform(at);
            name += &format!("{}{} ", platform::format(&platform), platform::crossing(&platform, env));
        }
        if !stage.label.is_empty() {
            name += &format!("{} ", stage.label);
        }
        let width = stage.total.ilog10() as usize + 1;
        name += &format!("{:width$}/{}] ", stage.shown, stage.total);
        if trigger {
            name += "ONBUILD ";
        }
        name + text
    }
}
