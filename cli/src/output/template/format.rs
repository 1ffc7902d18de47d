//! Go's printf over values of JSON.

use super::funcs::{kind, print};
use crate::output::value::Value;
use std::fmt::Write as _;

/// Wide enough for any terminal, and no way to fill the memory.
const WIDEST: usize = 4096;

/// One verb with what stands before it.
#[derive(Debug, Default)]
struct Verb {
    plus: bool,
    minus: bool,
    sharp: bool,
    blank: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Formats as Go's fmt.Sprintf.
pub(super) fn sprintf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut next = 0;
    let mut reordered = false;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = chars.next_if(|c| "-+# 0".contains(*c)) {
            match flag {
                '-' => verb.minus = true,
                '+' => verb.plus = true,
                '#' => verb.sharp = true,
                ' ' => verb.blank = true,
                _ => verb.zero = true,
            }
        }
        let sound = index(&mut chars, &mut next, &mut reordered)
            && number(&mut chars, args, &mut next, &mut out, &mut verb, true)
            && {
                if chars.next_if_eq(&'.').is_some() {
                    verb.precision = Some(0);
                    index(&mut chars, &mut next, &mut reordered)
                        && number(&mut chars, args, &mut next, &mut out, &mut verb, false)
                } else {
                    true
                }
            }
            && index(&mut chars, &mut next, &mut reordered);
        let Some(letter) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if letter == '%' {
            out.push('%');
            continue;
        }
        if !sound {
            let _ = write!(out, "%!{letter}(BADINDEX)");
            continue;
        }
        let Some(value) = args.get(next) else {
            let _ = write!(out, "%!{letter}({})", if reordered { "BADINDEX" } else { "MISSING" });
            continue;
        };
        next += 1;
        out.push_str(&verb.apply(letter, value));
    }
    if !reordered && next < args.len() {
        let rest: Vec<String> = args[next..]
            .iter()
            .map(|v| if *v == Value::Null { "<nil>".to_owned() } else { format!("{}={}", kind(v), print(v)) })
            .collect();
        let _ = write!(out, "%!(EXTRA {})", rest.join(", "));
    }
    out
}

type Chars<'f> = std::iter::Peekable<std::str::Chars<'f>>;

/// `[n]`: the argument that is next. False: there is something else in the brackets.
fn index(chars: &mut Chars<'_>, next: &mut usize, reordered: &mut bool) -> bool {
    if chars.next_if_eq(&'[').is_none() {
        return true;
    }
    *reordered = true;
    let mut digits = String::new();
    for c in chars.by_ref() {
        if c == ']' {
            break;
        }
        digits.push(c);
    }
    match digits.parse::<usize>() {
        Ok(at @ 1..=1000) => {
            *next = at - 1;
            true
        }
        _ => false,
    }
}

/// Width or precision: digits, or `*` for an argument.
fn number(
    chars: &mut Chars<'_>,
    args: &[Value],
    next: &mut usize,
    out: &mut String,
    verb: &mut Verb,
    width: bool,
) -> bool {
    let value = if chars.next_if_eq(&'*').is_some() {
        let given = args.get(*next).and_then(Value::as_i64);
        *next += 1;
        match given {
            Some(given) => {
                verb.minus |= width && given < 0;
                Some(usize::try_from(given.unsigned_abs()).unwrap_or(WIDEST))
            }
            None => {
                out.push_str(if width { "%!(BADWIDTH)" } else { "%!(BADPREC)" });
                None
            }
        }
    } else {
        let mut digits = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if digits.is_empty() { None } else { Some(digits.parse().unwrap_or(WIDEST)) }
    };
    if let Some(value) = value {
        *(if width { &mut verb.width } else { &mut verb.precision }) = Some(value.min(WIDEST));
    }
    true
}

impl Verb {
    fn apply(&self, letter: char, value: &Value) -> String {
        match (letter, value) {
            ('T', value) => self.padded(kind(value).to_owned(), false),
            ('v', Value::Array(_) | Value::Object(_)) if !self.sharp => self.padded(print(value), false),
            (_, Value::Array(items)) => {
                let items: Vec<String> = items.iter().map(|item| self.apply(letter, item)).collect();
                format!("[{}]", items.join(" "))
            }
            (_, Value::Object(fields)) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                let pairs: Vec<String> = fields
                    .iter()
                    .map(|(key, value)| {
                        format!("{}:{}", self.apply(letter, &Value::from(key.as_str())), self.apply(letter, value))
                    })
                    .collect();
                format!("map[{}]", pairs.join(" "))
            }
            ('v', Value::Null) => self.padded("<nil>".to_owned(), false),
            (_, Value::Null) => format!("%!{letter}(<nil>)"),
            ('v' | 't', Value::Bool(on)) => self.padded(on.to_string(), false),
            (_, Value::String(text)) => self.text(letter, text),
            (_, Value::Number(number)) => match number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)) {
                Some(whole) => self.whole(letter, whole),
                None => self.float(letter, number.as_f64().unwrap_or(0.0)),
            },
            (_, value) => bad(letter, value),
        }
    }

    fn text(&self, letter: char, text: &str) -> String {
        let cut = || match self.precision {
            Some(length) => text.chars().take(length).collect(),
            None => text.to_owned(),
        };
        match letter {
            'v' if self.sharp => self.padded(quote(text, false), false),
            'v' | 's' => self.padded(cut(), false),
            'q' if self.sharp && !text.contains('`') && !text.chars().any(|c| c.is_control() && c != '\t') => {
                self.padded(format!("`{}`", cut()), false)
            }
            'q' => self.padded(quote(&cut(), self.plus), false),
            'x' | 'X' => {
                let bytes = text.bytes().take(self.precision.unwrap_or(usize::MAX));
                let pairs: Vec<String> = bytes
                    .map(|byte| if letter == 'x' { format!("{byte:02x}") } else { format!("{byte:02X}") })
                    .collect();
                self.padded(pairs.join(if self.blank { " " } else { "" }), false)
            }
            _ => bad(letter, &Value::from(text)),
        }
    }

    fn whole(&self, letter: char, value: i128) -> String {
        let magnitude = value.unsigned_abs();
        let (prefix, digits) = match letter {
            'd' | 'v' => ("", magnitude.to_string()),
            'b' => (if self.sharp { "0b" } else { "" }, format!("{magnitude:b}")),
            'o' => (if self.sharp { "0" } else { "" }, format!("{magnitude:o}")),
            'O' => ("0o", format!("{magnitude:o}")),
            'x' => (if self.sharp { "0x" } else { "" }, format!("{magnitude:x}")),
            'X' => (if self.sharp { "0X" } else { "" }, format!("{magnitude:X}")),
            'c' | 'q' => {
                let c = u32::try_from(value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
                let text = match (letter, c) {
                    ('c', c) => c.to_string(),
                    (_, '\'') => "'\\''".to_owned(),
                    (_, '"') => "'\"'".to_owned(),
                    (_, c) => format!("'{}'", quote(&c.to_string(), self.plus).trim_matches('"')),
                };
                return self.padded(text, false);
            }
            'U' => {
                let shown = u32::try_from(value).ok().and_then(char::from_u32).filter(|_| self.sharp);
                let shown = shown.map(|c| format!(" '{c}'")).unwrap_or_default();
                return self.padded(format!("U+{magnitude:04X}{shown}"), false);
            }
            _ => return bad(letter, &i64::try_from(value).map_or(Value::Null, Value::from)),
        };
        let digits = match self.precision {
            Some(least) => format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len()))),
            None => digits,
        };
        self.padded(format!("{}{prefix}{digits}", self.sign(value < 0)), self.precision.is_none())
    }

    fn float(&self, letter: char, value: f64) -> String {
        let precision = self.precision.map(|p| p.min(100));
        let digits = match letter {
            'f' | 'F' => format!("{:.*}", precision.unwrap_or(6), value.abs()),
            'e' | 'E' => exponent(value.abs(), Some(precision.unwrap_or(6))),
            'g' | 'G' | 'v' => shortest(value.abs(), precision),
            _ => return bad(letter, &serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)),
        };
        let digits = if letter.is_ascii_uppercase() { digits.to_uppercase() } else { digits };
        self.padded(format!("{}{digits}", self.sign(value < 0.0)), true)
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.blank) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn padded(&self, text: String, number: bool) -> String {
        let missing = self.width.unwrap_or(0).saturating_sub(text.chars().count());
        if missing == 0 {
            text
        } else if self.minus {
            format!("{text}{}", " ".repeat(missing))
        } else if self.zero && number {
            let signs = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
            format!("{}{}{}", &text[..signs], "0".repeat(missing), &text[signs..])
        } else {
            format!("{}{text}", " ".repeat(missing))
        }
    }
}

fn bad(letter: char, value: &Value) -> String {
    format!("%!{letter}({}={})", kind(value), print(value))
}

/// A float as Go prints it: with an exponent below 1e-4, and from 1e6 or the digits asked for on.
pub(super) fn shortest(value: f64, precision: Option<usize>) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN".to_owned() } else { format!("{}Inf", if value < 0.0 { "-" } else { "+" }) };
    }
    let scientific = match precision {
        Some(digits) => format!("{:.*e}", digits.max(1) - 1, value),
        None => format!("{value:e}"),
    };
    let power: i32 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let limit = precision.map_or(6, |digits| i32::try_from(digits.max(1)).unwrap_or(21));
    if power < -4 || power >= limit {
        let digits = scientific.split_once('e').map_or(scientific.as_str(), |(digits, _)| digits);
        let digits = if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e{}{:02}", if power < 0 { "-" } else { "+" }, power.abs());
    }
    match precision {
        None => value.to_string(),
        Some(digits) => {
            let decimals = usize::try_from(i32::try_from(digits.max(1)).unwrap_or(1) - 1 - power).unwrap_or(0);
            let text = format!("{value:.decimals$}");
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
    }
}

fn exponent(value: f64, precision: Option<usize>) -> String {
    let text = match precision {
        Some(digits) => format!("{value:.digits$e}"),
        None => format!("{value:e}"),
    };
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if power < 0 { "-" } else { "+" }, power.abs())
}

/// strconv.Quote
pub(super) fn quote(text: &str, ascii: bool) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if u32::from(c) < 0x80 && c.is_control() => _ = write!(out, "\\x{:02x}", u32::from(c)),
            c if c.is_control() || (ascii && !c.is_ascii()) => {
                let code = u32::from(c);
                let _ = if code < 0x10000 { write!(out, "\\u{code:04x}") } else { write!(out, "\\U{code:08x}") };
            }
            c => out.push(c),
        }
    }
    out + "\""
}
