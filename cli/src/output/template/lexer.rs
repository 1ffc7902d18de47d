//! Cuts a template into text and actions, and an action into tokens, with the complaints of Go's lexer.

use super::TemplateError;
use crate::output::value::Value;

/// A piece of a template.
#[derive(Debug, PartialEq)]
pub(super) enum Piece {
    /// Printed as it is.
    Text(String),
    /// What stands between the braces, and where they close.
    Action(Vec<Token>, usize),
}

/// A token and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    /// Byte offset in the template.
    pub(super) at: usize,
    /// No blank before it: `.A.B` is one operand, `.A .B` are two.
    pub(super) glued: bool,
    /// As it is written.
    pub(super) text: String,
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
    /// A number that no int can hold.
    Overflow,
    Pipe,
    Declare,
    Assign,
    Comma,
    Open,
    Close,
    /// A sign that has no meaning here.
    Sign(char),
}

/// Cuts a template.
pub(super) fn cut(template: &str) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim = false;
    while let Some(found) = template[at..].find("{{") {
        let open = at + found;
        let bad = |text: &str| TemplateError::parse(template, open, text);
        let body = &template[open + 2..];
        let trim_left = body.starts_with('-') && body[1..].starts_with([' ', '\t', '\r', '\n']);
        push_text(&mut pieces, &template[at..open], trim, trim_left);
        let start = open + 2 + usize::from(trim_left);
        // After a trimming dash there are blanks before the comment, without one there are none.
        let inner = if trim_left { template[start..].trim_start() } else { &template[start..] };
        if inner.starts_with("/*") {
            let from = template.len() - inner.len();
            let end = template[from..].find("*/").ok_or_else(|| bad("unclosed comment"))? + from + 2;
            let rest = &template[end..];
            let tail = rest.trim_start();
            (trim, at) = match (rest.strip_prefix("}}"), tail.strip_prefix("-}}")) {
                (Some(after), _) => (false, template.len() - after.len()),
                (_, Some(after)) if tail.len() < rest.len() => (true, template.len() - after.len()),
                _ => return Err(bad("comment ends before closing delimiter")),
            };
            continue;
        }
        let (tokens, trim_right, end) = action(template, start)?;
        pieces.push(Piece::Action(tokens, end));
        (trim, at) = (trim_right, end);
    }
    push_text(&mut pieces, &template[at..], trim, false);
    Ok(pieces)
}

fn push_text(pieces: &mut Vec<Piece>, mut text: &str, left: bool, right: bool) {
    const BLANKS: [char; 4] = [' ', '\t', '\r', '\n'];
    if left {
        text = text.trim_start_matches(BLANKS);
    }
    if right {
        text = text.trim_end_matches(BLANKS);
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
}

/// Reads tokens up to the closing braces; gives whether blanks after them are trimmed, and where they end.
fn action(template: &str, start: usize) -> Result<(Vec<Token>, bool, usize), TemplateError> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = start;
    let mut glued = true;
    let mut open = 0usize;
    loop {
        let rest = &template[at..];
        let bad = |text: &str| TemplateError::parse(template, at, text);
        let Some(first) = rest.chars().next() else { return Err(bad("unclosed action")) };
        let closing = if rest.starts_with("}}") {
            Some((false, at + 2))
        } else if first.is_whitespace() && rest.trim_start().starts_with("-}}") {
            Some((true, template.len() - rest.trim_start().len() + 3))
        } else {
            None
        };
        if let Some((trim, end)) = closing {
            return if open == 0 { Ok((tokens, trim, end)) } else { Err(bad("unclosed left paren")) };
        }
        if first.is_whitespace() {
            at += first.len_utf8();
            glued = false;
            continue;
        }
        let (kind, length) = token(rest).map_err(|text| bad(&text))?;
        match kind {
            Kind::Open => open += 1,
            Kind::Close if open == 0 => return Err(bad("unexpected right paren")),
            Kind::Close => open -= 1,
            _ => {}
        }
        tokens.push(Token { kind, at, glued, text: rest[..length].to_owned() });
        glued = true;
        at += length;
    }
}

fn token(rest: &str) -> Result<(Kind, usize), String> {
    let first = rest.chars().next().unwrap_or_default();
    let name = |from: usize| {
        let word = &rest[from..];
        &word[..word.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(word.len())]
    };
    // Where a name may end.
    let ended = |kind: Kind, length: usize| match rest[length..].chars().next() {
        Some(c) if !(c.is_whitespace() || ".,|:)(".contains(c) || rest[length..].starts_with("}}")) => {
            Err(format!("bad character U+{:04X} '{c}'", u32::from(c)))
        }
        _ => Ok((kind, length)),
    };
    match first {
        '.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(rest),
        '.' if name(1).is_empty() => Ok((Kind::Dot, 1)),
        '.' => ended(Kind::Field(name(1).to_owned()), 1 + name(1).len()),
        '$' => ended(Kind::Variable(format!("${}", name(1))), 1 + name(1).len()),
        '|' => Ok((Kind::Pipe, 1)),
        '(' => Ok((Kind::Open, 1)),
        ')' => Ok((Kind::Close, 1)),
        ',' => Ok((Kind::Comma, 1)),
        ':' if rest.starts_with(":=") => Ok((Kind::Declare, 2)),
        ':' => Err("expected :=".to_owned()),
        '=' => Ok((Kind::Assign, 1)),
        '"' => quoted(rest),
        '`' => {
            let end = rest[1..].find('`').ok_or("unterminated raw quoted string")?;
            Ok((Kind::Literal(rest[1..=end].into()), end + 2))
        }
        '\'' => character(rest),
        '-' | '+' | '0'..='9' => number(rest),
        c if c.is_alphabetic() || c == '_' => ended(Kind::Word(name(0).to_owned()), name(0).len()),
        c if c.is_ascii_graphic() => Ok((Kind::Sign(c), 1)),
        c => Err(format!("unrecognized character in action: U+{:04X} '{c}'", u32::from(c))),
    }
}

/// A number as Go writes them: any base, underscores, exponents.
fn number(rest: &str) -> Result<(Kind, usize), String> {
    let bytes = rest.as_bytes();
    let mut end = usize::from(matches!(bytes[0], b'+' | b'-'));
    let run = |mut at: usize, digits: &dyn Fn(u8) -> bool| {
        while bytes.get(at).is_some_and(|b| digits(*b) || *b == b'_') {
            at += 1;
        }
        at
    };
    let prefix = |at: usize| bytes.get(at + 1).map(u8::to_ascii_lowercase).filter(|_| bytes.get(at) == Some(&b'0'));
    let decimal = |b: u8| b.is_ascii_digit();
    let based = match prefix(end) {
        Some(b'x') => Some(16),
        Some(b'o') => Some(8),
        Some(b'b') => Some(2),
        _ => None,
    };
    end = match based {
        Some(base) => run(end + 2, &|b| char::from(b).is_digit(base)),
        None => run(end, &decimal),
    };
    if based.is_none() {
        if bytes.get(end) == Some(&b'.') {
            end = run(end + 1, &decimal);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            end += 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            end = run(end, &decimal);
        }
    }
    if let Some(next) = rest[end..].chars().next()
        && (next.is_alphanumeric() || next == '_')
    {
        return Err(format!("bad number syntax: {:?}", &rest[..end + next.len_utf8()]));
    }
    let text = &rest[..end];
    value_of(text).map(|kind| (kind, end)).ok_or_else(|| format!("illegal number syntax: {text:?}"))
}

fn value_of(text: &str) -> Option<Kind> {
    let digits = text.replace('_', "");
    let (negative, plain) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.trim_start_matches('+')),
    };
    let lower = plain.to_ascii_lowercase();
    let (base, body) = if let Some(body) = lower.strip_prefix("0x") {
        (16, body)
    } else if let Some(body) = lower.strip_prefix("0b") {
        (2, body)
    } else if let Some(body) = lower.strip_prefix("0o") {
        (8, body)
    } else if lower.len() > 1 && lower.starts_with('0') && lower.bytes().all(|b| b.is_ascii_digit()) {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if let Ok(value) = i128::from_str_radix(body, base) {
        let value = if negative { -value } else { value };
        return Some(i64::try_from(value).map_or(Kind::Overflow, |value| Kind::Literal(value.into())));
    }
    if base != 10 || !lower.bytes().any(|b| b.is_ascii_digit()) {
        return None;
    }
    let float = digits.trim_start_matches('+').parse::<f64>().ok()?;
    serde_json::Number::from_f64(float).map(|number| Kind::Literal(Value::Number(number)))
}

fn quoted(rest: &str) -> Result<(Kind, usize), String> {
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1);
    let open = || "unterminated quoted string".to_owned();
    let mut sound = true;
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if sound => return Ok((Kind::Literal(out.into()), at + 1)),
            '"' => return Err("invalid syntax".to_owned()),
            '\n' => return Err(open()),
            '\\' => match escaped(&mut chars, '"')? {
                Some(c) => out.push(c),
                None => sound = false,
            },
            c => out.push(c),
        }
    }
    Err(open())
}

fn character(rest: &str) -> Result<(Kind, usize), String> {
    let open = || "unterminated character constant".to_owned();
    let mut chars = rest.char_indices().skip(1);
    let mut value = None;
    let mut many = false;
    while let Some((at, c)) = chars.next() {
        let one = match c {
            '\'' => {
                let text = &rest[..=at];
                let value = value.filter(|_| !many).ok_or_else(|| format!("malformed character constant: {text}"))?;
                return Ok((Kind::Literal(i64::from(u32::from(value)).into()), at + 1));
            }
            '\n' => return Err(open()),
            '\\' => escaped(&mut chars, '\'')?,
            c => Some(c),
        };
        many |= value.is_some() || one.is_none();
        value = one.or(value);
    }
    Err(open())
}

/// What a backslash makes of what follows it; none: nothing that is allowed.
fn escaped(chars: &mut impl Iterator<Item = (usize, char)>, quote: char) -> Result<Option<char>, String> {
    let Some((_, letter)) = chars.next() else { return Err("unterminated quoted string".to_owned()) };
    let (digits, base) = match letter {
        'n' => return Ok(Some('\n')),
        't' => return Ok(Some('\t')),
        'r' => return Ok(Some('\r')),
        'a' => return Ok(Some('\u{7}')),
        'b' => return Ok(Some('\u{8}')),
        'f' => return Ok(Some('\u{c}')),
        'v' => return Ok(Some('\u{b}')),
        '\\' => return Ok(Some('\\')),
        c if c == quote => return Ok(Some(c)),
        'x' => (2, 16),
        'u' => (4, 16),
        'U' => (8, 16),
        '0'..='7' => (2, 8),
        _ => return Ok(None),
    };
    let mut text: String = if base == 8 { letter.to_string() } else { String::new() };
    text.extend(chars.take(digits).map(|(_, c)| c));
    Ok(u32::from_str_radix(&text, base).ok().and_then(char::from_u32))
}
