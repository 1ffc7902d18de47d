//! Cuts the text of an instruction into words. Quotes and escapes stay in the words, since variables are filled in later and
//! only then do quotes go; but those around flags go here.

use serde_json::Value;

/// What blanks between words are, to instructions that know no quotes.
pub const BLANKS: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// Keyword, and what follows it.
pub fn keyword(text: &str) -> (&str, &str) {
    let text = text.trim();
    match text.split_once(BLANKS) {
        Some((keyword, rest)) => (keyword, rest.trim_start_matches(BLANKS)),
        None => (text, ""),
    }
}

/// Flags at the start of `text`, each without its quotes, and what follows them.
pub fn flags(text: &str) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text.trim();
    while rest.starts_with("--") {
        let (mut word, mut quote, mut quoted) = (String::new(), None, false);
        let mut letters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, letter)) = letters.next() {
            match (letter, quote) {
                (_, None) if letter.is_whitespace() => {
                    end = at;
                    break;
                }
                ('\'' | '"', None) => (quote, quoted) = (Some(letter), true),
                (_, Some(open)) if letter == open => quote = None,
                // Here it is always this one, whatever the escape directive says.
                ('\\', _) => word.extend(letters.next().map(|(_, next)| next)),
                _ => word.push(letter),
            }
        }
        rest = rest[end..].trim_start();
        if word == "--" {
            break;
        }
        if quoted || !word.is_empty() {
            flags.push(word);
        }
    }
    (flags, rest)
}

/// Words between blanks.
pub fn plain(text: &str) -> Vec<String> {
    text.split(BLANKS).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Words between spaces that are neither quoted nor escaped.
pub fn quoted(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut blank_ok) = (String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            if blank_ok || !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            blank_ok = false;
            continue;
        }
        match quote {
            None if matches!(letter, '\'' | '"') => (quote, blank_ok) = (Some(letter), true),
            Some(open) if letter == open => quote = None,
            _ if letter == escape && quote != Some('\'') => {
                // An escape character at the very end stands for nothing.
                let Some(next) = letters.next() else { break };
                word.push(letter);
                word.push(next);
                continue;
            }
            _ => {}
        }
        word.push(letter);
    }
    if blank_ok || !word.is_empty() {
        words.push(word);
    }
    words
}

/// A list in JSON; none if it is something else, which then is for a shell.
pub fn json(text: &str) -> Result<Option<Vec<String>>, String> {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(text) else { return Ok(None) };
    let strings = values.into_iter().map(|value| match value {
        Value::String(text) => Ok(text),
        _ => Err("when using JSON array syntax, arrays must be comprised of strings only".to_owned()),
    });
    strings.collect::<Result<_, _>>().map(Some)
}

/// One line of CSV (RFC 4180): commas part the fields, quotes keep them together, two quotes in those are one.
pub fn csv(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Err("EOF".into());
    }
    let mut fields = Vec::new();
    let mut letters = text.chars().peekable();
    loop {
        let mut field = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next() {
                    Some('"') if letters.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(letter) => field.push(letter),
                    None => return Err("extraneous or missing \" in quoted-field".into()),
                }
            }
            if letters.peek().is_some_and(|next| *next != ',') {
                return Err("extraneous or missing \" in quoted-field".into());
            }
        } else {
            while let Some(letter) = letters.next_if(|next| *next != ',') {
                if letter == '"' {
                    return Err("bare \" in non-quoted field".into());
                }
                field.push(letter);
            }
        }
        fields.push(field);
        if letters.next().is_none() {
            return Ok(fields);
        }
    }
}
