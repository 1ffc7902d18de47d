//! Reads one filter. Texts come from clients: length and patterns are bounded, and nothing here can panic.

use regex_lite::Regex;

use super::{FilterError, Selector, Test};

/// Far above any real filter.
const LIMIT: usize = 4096;

/// Reads `text`; an empty one has no selectors, and accepts everything.
pub(super) fn filter(text: &str) -> Result<Vec<Selector>, FilterError> {
    Parser { text, at: 0 }.filter()
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, why: &'static str) -> Result<T, FilterError> {
        Err(FilterError { filter: self.text.chars().take(200).collect(), why, at: self.at })
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes a character if it is next, blanks before it or not.
    fn takes(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        let there = self.rest().starts_with(wanted);
        self.at += if there { wanted.len_utf8() } else { 0 };
        there
    }

    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.text.len() > LIMIT {
            return self.fail("longer than 4096 bytes");
        }
        let mut selectors = Vec::new();
        self.skip_blanks();
        while !self.rest().is_empty() {
            selectors.push(self.selector()?);
            self.skip_blanks();
            if self.rest().is_empty() {
                break;
            }
            if !self.takes(',') {
                return self.fail("expected ','");
            }
            self.skip_blanks();
            if self.rest().is_empty() {
                return self.fail("expected a selector");
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.takes('.') {
            path.push(self.field()?);
        }
        let Some(operator) = self.operator()? else { return Ok(Selector { path, test: Test::Present }) };
        self.skip_blanks();
        let start = self.at;
        let value = self.value(operator == "~=")?;
        let test = match operator {
            "==" => Test::Equal(value),
            "!=" => Test::Differs(value),
            _ => match Regex::new(&value) {
                Ok(pattern) => Test::Matches(pattern),
                Err(_) => {
                    self.at = start;
                    return self.fail("not a regular expression");
                }
            },
        };
        Ok(Selector { path, test })
    }

    fn operator(&mut self) -> Result<Option<&'a str>, FilterError> {
        self.skip_blanks();
        if !self.rest().starts_with(['=', '!', '~']) {
            return Ok(None);
        }
        match self.rest().get(..2) {
            Some(operator @ ("==" | "!=" | "~=")) => {
                self.at += 2;
                Ok(Some(operator))
            }
            _ => self.fail("expected an operator, one of ==, != and ~="),
        }
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_blanks();
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.rest().find(|c: char| !word(c)).unwrap_or(self.rest().len());
        if length == 0 {
            return self.fail("expected a field");
        }
        let field = self.rest()[..length].to_owned();
        self.at += length;
        Ok(field)
    }

    // | and / quote patterns only, as in containerd: `topic==/tasks/exit` is a plain value. A pattern that only begins with
    // a slash (`topic~=/tasks/.*`) is one too.
    fn value(&mut self, pattern: bool) -> Result<String, FilterError> {
        let start = self.at;
        match self.rest().chars().next() {
            Some('"') => return self.quoted('"'),
            Some(quote @ ('|' | '/')) if pattern => {
                if let Ok(value) = self.quoted(quote)
                    && self.rest().chars().next().is_none_or(|c| c == ',' || c.is_whitespace())
                {
                    return Ok(value);
                }
                self.at = start;
            }
            _ => {}
        }
        let length = self.rest().find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest().len());
        if length == 0 {
            return self.fail("expected a value (an empty one is \"\")");
        }
        let value = self.rest()[..length].to_owned();
        self.at += length;
        Ok(value)
    }

    // The quote is next. In patterns (| and /) only the quote is escaped: other backslashes belong to the expression.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let mut value = String::new();
        let mut rest = &self.rest()[1..];
        loop {
            let Some(c) = rest.chars().next() else { return self.fail("quote is not closed") };
            rest = &rest[c.len_utf8()..];
            if c == quote {
                self.at = self.text.len() - rest.len();
                return Ok(value);
            }
            if c != '\\' {
                value.push(c);
            } else if let Some(after) = rest.strip_prefix(quote) {
                value.push(quote);
                rest = after;
            } else if quote != '"' {
                value.push('\\');
                if let Some(next) = rest.chars().next() {
                    value.push(next);
                    rest = &rest[next.len_utf8()..];
                }
            } else {
                match escape(rest) {
                    Some((c, after)) => {
                        value.push(c);
                        rest = after;
                    }
                    None => return self.fail("unknown escape in quotes"),
                }
            }
        }
    }
}

/// What a backslash and the text behind it stand for in a Go string. Bytes (`\xff`, `\377`) are taken as the characters
/// of that number: values here are text.
fn escape(text: &str) -> Option<(char, &str)> {
    let kind = text.chars().next()?;
    let plain = match kind {
        'a' => '\u{7}',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        '\\' | '\'' | '"' => kind,
        'x' => return number(&text[1..], 2, 16),
        'u' => return number(&text[1..], 4, 16),
        'U' => return number(&text[1..], 8, 16),
        '0'..='3' => return number(text, 3, 8),
        _ => return None,
    };
    Some((plain, &text[kind.len_utf8()..]))
}

fn number(text: &str, length: usize, radix: u32) -> Option<(char, &str)> {
    let digits = text.get(..length).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
    Some((char::from_u32(u32::from_str_radix(digits, radix).ok()?)?, &text[length..]))
}
