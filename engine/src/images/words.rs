//! Words of Dockerfile instructions: blanks, quotes, backslashes and `$variables`, as the shell has them.

use super::changes::ChangeError;
use std::collections::BTreeMap;

/// Most changes and longest text; the request line bounds them already, this bounds what expansion can make of them.
const LIMIT: usize = 1 << 20;

/// Splits at blanks outside of quotes; quotes stay.
pub(super) fn split(command: &'static str, text: &str) -> Result<Vec<String>, ChangeError> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('\\', quote) if quote != Some('\'') => {
                word.push('\\');
                word.extend(chars.next());
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if quote.is_some() {
        return Err(ChangeError::Word { command, cause: "unterminated quote", text: text.to_owned() });
    }
    if !word.is_empty() {
        words.push(word);
    }
    Ok(words)
}

/// Takes quotes away and puts values in the place of `$name`, `${name}`, `${name:-default}` and `${name:+other}`.
pub(super) fn expand(command: &'static str, text: &str, env: &BTreeMap<String, String>) -> Result<String, ChangeError> {
    let failed = |cause| ChangeError::Word { command, cause, text: text.chars().take(200).collect() };
    let (mut out, mut quote) = (String::new(), None);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('\\', None) => out.extend(chars.next()),
            ('\\', Some('"')) => match chars.next() {
                Some(c @ ('"' | '$' | '\\')) => out.push(c),
                Some(c) => out.extend(['\\', c]),
                None => out.push('\\'),
            },
            ('$', quote) if quote != Some('\'') => {
                if chars.peek() == Some(&'{') {
                    chars.next();
                    let mut inner = String::new();
                    loop {
                        match chars.next() {
                            Some('}') => break,
                            Some(c) => inner.push(c),
                            None => return Err(failed("unterminated ${")),
                        }
                    }
                    out.push_str(&substitute(&inner, env).ok_or_else(|| failed("unsupported ${} form"))?);
                } else {
                    let mut name = String::new();
                    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                        name.push(c);
                    }
                    match name.is_empty() {
                        true => out.push('$'),
                        false => out.push_str(env.get(&name).map_or("", String::as_str)),
                    }
                }
            }
            (c, _) => out.push(c),
        }
        if out.len() > LIMIT {
            return Err(failed("value too long"));
        }
    }
    if quote.is_some() {
        return Err(failed("unterminated quote"));
    }
    Ok(out)
}

fn substitute(inner: &str, env: &BTreeMap<String, String>) -> Option<String> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let value = |name: &str| env.get(name).filter(|value| !value.is_empty());
    if let Some((name, default)) = inner.split_once(":-").filter(|(name, _)| is_name(name)) {
        return Some(value(name).cloned().unwrap_or_else(|| default.to_owned()));
    }
    if let Some((name, other)) = inner.split_once(":+").filter(|(name, _)| is_name(name)) {
        return Some(value(name).map(|_| other.to_owned()).unwrap_or_default());
    }
    is_name(inner).then(|| env.get(inner).cloned().unwrap_or_default())
}
