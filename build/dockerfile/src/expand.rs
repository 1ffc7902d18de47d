//! Fills in variables, the way a shell would: `$name`, `${name}` and what may follow the name there, quotes, escapes. Values are
//! not read again, so that what a client gives for an ARG stays text.

mod glob;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use glob::Pattern;

/// What a word may grow to: two lines of `ENV a=$a$a` double it, and forty would fill the machine.
const LARGEST: usize = 1 << 20;
/// `${a:-${b:-…}}`
const DEEPEST: usize = 64;

/// Knows variables.
pub trait Env {
    /// The value of `name`, if it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

impl Env for HashMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// Names and values; the last one of a name counts.
impl Env for Vec<(String, String)> {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

impl Env for [(&str, &str)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// No variable is set.
impl Env for () {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// Why a word cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {message}")]
pub struct ExpandError {
    /// The word, cut where it is long.
    pub word: String,
    /// What is wrong with it, as BuildKit words it.
    pub message: String,
}

/// A word with its variables filled in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expanded {
    /// The word.
    pub text: String,
    /// Variables in it that are not set, each once, sorted; also those that have a default in it.
    pub unmatched: Vec<String>,
    /// Variables in it that are set, each once, sorted.
    pub used: Vec<String>,
}

/// How words are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lexer {
    /// The escape character.
    pub escape: char,
    /// Quotes stay in the text.
    pub raw_quotes: bool,
    /// Escape characters stay in the text.
    pub raw_escapes: bool,
    /// Quotes are letters like others.
    pub ignore_quotes: bool,
    /// A variable that is not set stays as it is written.
    pub keep_unset: bool,
}

impl Lexer {
    /// For words of instructions; `escape` is the Dockerfile's.
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// For here-documents: quotes mean nothing in them, and the escape character is always `\`.
    pub fn heredoc() -> Self {
        Self { ignore_quotes: true, ..Self::new('\\') }
    }

    /// For texts that people read: only what is set is filled in, all else stays as written.
    pub fn display(escape: char) -> Self {
        Self { raw_quotes: true, raw_escapes: true, keep_unset: true, ..Self::new(escape) }
    }

    /// Fills in `text`, which stays one word.
    pub fn word(&self, text: &str, env: &(impl Env + ?Sized)) -> Result<Expanded, ExpandError> {
        let lookup = |name: &str| env.get(name);
        let mut walk = Walk::new(self, text, &lookup);
        match walk.until(None, self.raw_escapes) {
            Ok((text, _)) => Ok(Expanded {
                text,
                unmatched: walk.unmatched.into_iter().collect(),
                used: walk.used.into_iter().collect(),
            }),
            Err(message) => Err(failure(text, message)),
        }
    }

    /// Fills in `text` and splits it at spaces that are not quoted; spaces of values split too. Empty words vanish.
    pub fn words(&self, text: &str, env: &(impl Env + ?Sized)) -> Result<Vec<String>, ExpandError> {
        let lookup = |name: &str| env.get(name);
        let mut walk = Walk::new(self, text, &lookup);
        match walk.until(None, self.raw_escapes) {
            Ok((_, words)) => Ok(words),
            Err(message) => Err(failure(text, message)),
        }
    }
}

fn failure(word: &str, message: String) -> ExpandError {
    const SHOWN: usize = 200;
    let shown = word.chars().count() <= SHOWN;
    let word = if shown { word.to_owned() } else { word.chars().take(SHOWN).chain("…".chars()).collect() };
    ExpandError { word, message }
}

/// Words as they come into being.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    open: String,
}

impl Words {
    /// A letter that splits if it is a space.
    fn letter(&mut self, letter: char) {
        if !letter.is_whitespace() {
            self.open.push(letter);
        } else if !self.open.is_empty() {
            self.done.push(std::mem::take(&mut self.open));
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done
    }
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<&'a str>;

struct Walk<'a> {
    lexer: &'a Lexer,
    letters: std::iter::Peekable<std::str::Chars<'a>>,
    lookup: Lookup<'a>,
    depth: usize,
    used: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

impl<'a> Walk<'a> {
    fn new(lexer: &'a Lexer, text: &'a str, lookup: Lookup<'a>) -> Self {
        let (used, unmatched) = Default::default();
        Self { lexer, letters: text.chars().peekable(), lookup, depth: 0, used, unmatched }
    }

    /// Up to `stop`, which is swallowed, or the end.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>), String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(format!("substitutions are nested deeper than {DEEPEST}"));
        }
        let (mut text, mut words) = (String::new(), Words::default());
        loop {
            let Some(letter) = self.letters.next() else {
                match stop {
                    None => break,
                    Some(stop) => {
                        return Err(format!("unexpected end of statement while looking for matching {stop}"));
                    }
                }
            };
            match letter {
                _ if stop == Some(letter) => break,
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|letter| words.letter(letter));
                    text += &value;
                }
                '\'' if !self.lexer.ignore_quotes => {
                    let quoted = self.single()?;
                    words.open += &quoted;
                    text += &quoted;
                }
                '"' if !self.lexer.ignore_quotes => {
                    let quoted = self.double(raw_escapes)?;
                    words.open += &quoted;
                    text += &quoted;
                }
                // Blanks may stand between << and its word: `<< EOF` is one word.
                '<' if !self.lexer.ignore_quotes => {
                    let mut mark = String::from(letter);
                    if let Some(second) = self.letters.next_if_eq(&'<') {
                        mark.push(second);
                        while let Some(blank) = self.letters.next_if(|next| matches!(next, ' ' | '\t' | '\r')) {
                            mark.push(blank);
                        }
                    }
                    words.open += &mark;
                    text += &mark;
                }
                _ if letter == self.lexer.escape => {
                    for letter in raw_escapes.then_some(letter).into_iter().chain(self.letters.next()) {
                        words.open.push(letter);
                        text.push(letter);
                    }
                }
                _ => {
                    words.letter(letter);
                    text.push(letter);
                }
            }
            bounded(&text)?;
        }
        self.depth -= 1;
        Ok((text, words.finish()))
    }

    /// After `'`: nothing means anything but the next one.
    fn single(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let quote = self.lexer.raw_quotes.then_some('\'');
        text.extend(quote);
        loop {
            match self.letters.next() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => break,
                Some(letter) => text.push(letter),
            }
        }
        text.extend(quote);
        Ok(text)
    }

    /// After `"`: variables, and escapes of what means something here.
    fn double(&mut self, raw_escapes: bool) -> Result<String, String> {
        let mut text = String::new();
        let quote = self.lexer.raw_quotes.then_some('"');
        text.extend(quote);
        loop {
            match self.letters.next() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => break,
                Some('$') => text += &self.dollar()?,
                Some(letter) if letter == self.lexer.escape => {
                    let next = self.letters.next_if(|next| matches!(next, '"' | '$') || *next == self.lexer.escape);
                    if raw_escapes {
                        text.push(letter);
                    }
                    match next {
                        Some(next) => text.push(next),
                        None if self.letters.peek().is_some() => text.push(letter),
                        None => {}
                    }
                }
                Some(letter) => text.push(letter),
            }
            bounded(&text)?;
        }
        text.extend(quote);
        Ok(text)
    }

    /// After `$`.
    fn dollar(&mut self) -> Result<String, String> {
        if self.letters.next_if_eq(&'{').is_some() {
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".into());
        }
        match self.get(&name) {
            Some(value) => Ok(value.into()),
            None if self.lexer.keep_unset => Ok(format!("${name}")),
            None => Ok(String::new()),
        }
    }

    /// After `${`.
    fn braces(&mut self) -> Result<String, String> {
        match self.letters.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        let Some(mut sign) = self.letters.next() else { return Err("syntax error: missing '}'".into()) };
        let mut written = sign.to_string();
        match sign {
            '}' => {
                return Ok(match self.get(&name) {
                    Some(value) => value.into(),
                    None if self.lexer.keep_unset => format!("${{{name}}}"),
                    None => String::new(),
                });
            }
            '/' => return self.replace(&name),
            ':' => {
                let Some(next) = self.letters.next() else { return Err("syntax error: missing '}'".into()) };
                sign = next;
                written.push(next);
            }
            _ => {}
        }
        if !matches!(sign, '+' | '-' | '?' | '#' | '%') {
            return Err(format!("unsupported modifier ({written}) in substitution"));
        }
        let mut word = self.part('}', matches!(sign, '#' | '%'), "syntax error: missing '}'")?;
        let value = self.get(&name);
        if value.is_none() && self.lexer.keep_unset {
            return Ok(format!("${{{name}{written}{word}}}"));
        }
        let counts_as_unset = value.is_none_or(|value| value.is_empty() && written.starts_with(':'));
        match sign {
            '-' if counts_as_unset => Ok(word),
            '-' => Ok(value.unwrap_or_default().into()),
            '+' if counts_as_unset => Ok(String::new()),
            '+' => Ok(word),
            '?' if counts_as_unset => {
                if word.is_empty() {
                    word = format!("is not allowed to be {}", if value.is_none() { "unset" } else { "empty" });
                }
                Err(format!("{name}: {word}"))
            }
            '?' => Ok(value.unwrap_or_default().into()),
            // `#` and `%` take away the shortest match, `##` and `%%` the longest.
            _ => {
                let (longest, word) = match word.strip_prefix(sign) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                let value = value.unwrap_or_default();
                let trimmed = Pattern::new(word).and_then(|pattern| match sign {
                    '#' => pattern.without_prefix(value, longest),
                    _ => pattern.without_suffix(value, longest),
                });
                trimmed.map_err(|why| format!("invalid pattern ({word}) in substitution: {why}"))
            }
        }
    }

    /// After `${name/`.
    fn replace(&mut self, name: &str) -> Result<String, String> {
        let all = self.letters.next_if_eq(&'/').is_some();
        let pattern = self.part('/', true, "syntax error: missing '/' in ${}")?;
        let by = self.part('}', true, "syntax error: missing '}'")?;
        let value = match self.get(name) {
            None if self.lexer.keep_unset => return Ok(format!("${{{name}/{pattern}/{by}}}")),
            value => value.unwrap_or_default(),
        };
        let replaced = Pattern::new(&pattern).and_then(|found| found.replace(value, &by, all, LARGEST));
        replaced.map_err(|why| format!("invalid pattern ({pattern}) in substitution: {why}"))
    }

    /// A word inside of `${…}`.
    fn part(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String, String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((text, _)) => Ok(text),
            Err(_) if self.letters.peek().is_none() && self.depth <= DEEPEST => Err(missing.into()),
            Err(message) => Err(message),
        }
    }

    /// Letters, digits, underscores; or digits; or one of the shell's own names.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.letters.peek() {
            Some(first) if first.is_numeric() => {
                while let Some(digit) = self.letters.next_if(|next| next.is_numeric()) {
                    name.push(digit);
                }
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => name.extend(self.letters.next()),
            _ => {
                while let Some(letter) = self.letters.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    name.push(letter);
                }
            }
        }
        name
    }

    fn get(&mut self, name: &str) -> Option<&'a str> {
        let value = (self.lookup)(name);
        match value {
            Some(_) => self.used.insert(name.into()),
            None => self.unmatched.insert(name.into()),
        };
        value
    }
}

fn bounded(text: &str) -> Result<(), String> {
    match text.len() {
        0..=LARGEST => Ok(()),
        _ => Err(format!("the word is larger than {LARGEST} bytes")),
    }
}
