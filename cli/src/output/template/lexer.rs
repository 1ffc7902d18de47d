//! Cuts a template into text and actions, and an action into tokens.

use super::TemplateError;
use crate::output::value::Value;

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// Printed as it is.
    Text(String),
    /// What stands between the braces.
    Action(Vec<Token>),
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Byte offset in the template.
    pub(super) at: usize,
    /// No blank before it: `.A.B` is one operand, `.A .B` are two.
    pub(super) glued: bool,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// "." alone.
    Dot,
    /// ".Name"
    Field(String),
    /// "$name", also "$".
    Variable(String),
    /// A word: function, keyword, true, false, nil.
    Word(String),
    /// A string, number or character.
    Literal(Value),
    Pipe,
    Declare,
    Assign,
    Comma,
    Open,
    Close,
}

fn bad(text: impl Into<String>) -> TemplateError {
    TemplateError::Parse(text.into())
}

/// Cuts a template.
pub(super) fn cut(template: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim = false;
    while let Some(found) = template[at..].find("{{") {
        let open = at + found;
        let body = &template[open + 2..];
        let trim_left = body.starts_with("- ") || body.starts_with("-\n") || body.starts_with("-\t");
        push_text(&mut pieces, &template[at..open], trim, trim_left);
        let start = open + 2 + usize::from(trim_left);
        let inner = template[start..].trim_start();
        if inner.starts_with("/*") {
            let from = template.len() - inner.len();
            let end = template[from..].find("*/").ok_or_else(|| bad("unclosed comment"))? + from + 2;
            let rest = &template[end..];
            let tail = rest.trim_start();
            (trim, at) = match (tail.strip_prefix("}}"), tail.strip_prefix("-}}")) {
                (Some(after), _) => (false, template.len() - after.len()),
                (_, Some(after)) if tail.len() < rest.len() => (true, template.len() - after.len()),
                _ => return Err(bad("comment ends before closing delimiter")),
            };
            continue;
        }
        let (tokens, trim_right, end) = action(template, start)?;
        pieces.push(Piece::Action(tokens));
        (trim, at) = (trim_right, end);
    }
    push_text(&mut pieces, &template[at..], trim, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, mut text: &str, left: bool, right: bool) {
    if left {
        text = text.trim_start();
    }
    if right {
        text = text.trim_end();
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Reads tokens up to the closing braces; gives whether blanks after them are trimmed, and where they end.
fn action(template: &str, start: usize) -> Result<(Vec<Token>, bool, usize), TemplateError> {
    let mut tokens = Vec::new();
    let mut at = start;
    let mut glued = true;
    loop {
        let rest = &template[at..];
        let mut chars = rest.chars();
        let Some(first) = chars.next() else { return Err(bad("unclosed action")) };
        if rest.starts_with("}}") {
            return Ok((tokens, false, at + 2));
        }
        if first.is_whitespace() {
            if rest.trim_start().starts_with("-}}") {
                return Ok((tokens, true, template.len() - rest.trim_start().len() + 3));
            }
            at += first.len_utf8();
            glued = false;
            continue;
        }
        let name = |from: usize| {
            let word = &rest[from..];
            &word[..word.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(word.len())]
        };
        let (kind, length) = match first {
            '.' if chars.next().is_some_and(|c| c.is_ascii_digit()) => number(rest)?,
            '.' if name(1).is_empty() => (Kind::Dot, 1),
            '.' => (Kind::Field(name(1).to_owned()), 1 + name(1).len()),
            '$' => (Kind::Variable(format!("${}", name(1))), 1 + name(1).len()),
            '|' => (Kind::Pipe, 1),
            '(' => (Kind::Open, 1),
            ')' => (Kind::Close, 1),
            ',' => (Kind::Comma, 1),
            ':' if rest.starts_with(":=") => (Kind::Declare, 2),
            '=' => (Kind::Assign, 1),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or_else(|| bad("unterminated raw quoted string"))?;
                (Kind::Literal(rest[1..=end].into()), end + 2)
            }
            '\'' => character(rest)?,
            '-' | '+' | '0'..='9' => number(rest)?,
            c if c.is_alphabetic() || c == '_' => (Kind::Word(name(0).to_owned()), name(0).len()),
            c => return Err(bad(format!("unexpected {c:?} in command"))),
        };
        tokens.push(Token { kind, at, glued });
        glued = true;
        at += length;
    }
}

fn number(rest: &str) -> Result<(Kind, usize), TemplateError> {
    let end = rest
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_') || (*i == 0 && matches!(c, '-' | '+'))))
        .map_or(rest.len(), |(i, _)| i);
    let text = &rest[..end];
    let digits = text.trim_start_matches('+').replace('_', "");
    let hex = digits.strip_prefix("0x").and_then(|d| i64::from_str_radix(d, 16).ok());
    let value = hex.or_else(|| digits.parse::<i64>().ok()).map(Value::from).or_else(|| {
        let float = digits.parse::<f64>().ok().filter(|_| digits.bytes().any(|b| b.is_ascii_digit()))?;
        serde_json::Number::from_f64(float).map(Value::Number)
    });
    value.map(|value| (Kind::Literal(value), end)).ok_or_else(|| bad(format!("bad number syntax: {text:?}")))
}

fn quoted(rest: &str) -> Result<(Kind, usize), TemplateError> {
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1);
    let open = || bad("unterminated quoted string");
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((Kind::Literal(out.into()), at + 1)),
            '\n' => return Err(open()),
            '\\' => out.push(escaped(&mut chars).ok_or_else(open)?),
            c => out.push(c),
        }
    }
    Err(open())
}

fn character(rest: &str) -> Result<(Kind, usize), TemplateError> {
    let open = || bad("unterminated character constant");
    let mut chars = rest.char_indices().skip(1);
    let c = match chars.next() {
        Some((_, '\\')) => escaped(&mut chars).ok_or_else(open)?,
        Some((_, c)) if c != '\'' && c != '\n' => c,
        _ => return Err(open()),
    };
    match chars.next() {
        Some((at, '\'')) => Ok((Kind::Literal(i64::from(u32::from(c)).into()), at + 1)),
        _ => Err(open()),
    }
}

fn escaped(chars: &mut impl Iterator<Item = (usize, char)>) -> Option<char> {
    let (_, letter) = chars.next()?;
    let digits = match letter {
        'n' => return Some('\n'),
        't' => return Some('\t'),
        'r' => return Some('\r'),
        '\\' | '"' | '\'' => return Some(letter),
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => return None,
    };
    let text: String = chars.take(digits).map(|(_, c)| c).collect();
    u32::from_str_radix(&text, 16).ok().and_then(char::from_u32)
}
