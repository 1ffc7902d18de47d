//! Functions of templates: Go's own and docker's.

use crate::output::{json, value::Value};
use std::{cmp::Ordering, fmt::Write as _};

const NAMES: &[&str] = &[
    "and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "slice", "print", "printf", "println",
    "json", "join", "split", "title", "lower", "upper", "pad", "truncate", "table",
];

/// There is such a function.
pub(super) fn known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Calls a function; `and` and `or` are the evaluator's business.
pub(super) fn call(name: &str, args: &[Value]) -> Result<Value, String> {
    match (name, args) {
        ("not", [value]) => Ok((!truth(value)).into()),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => {
            for other in rest {
                if equal(first, other)? {
                    return Ok(true.into());
                }
            }
            Ok(false.into())
        }
        ("ne", [a, b]) => Ok((!equal(a, b)?).into()),
        ("lt", [a, b]) => Ok((order(a, b)? == Ordering::Less).into()),
        ("le", [a, b]) => Ok((order(a, b)? != Ordering::Greater).into()),
        ("gt", [a, b]) => Ok((order(a, b)? == Ordering::Greater).into()),
        ("ge", [a, b]) => Ok((order(a, b)? != Ordering::Less).into()),
        ("len", [value]) => match value {
            Value::String(text) => Ok(count(text.len())),
            Value::Array(items) => Ok(count(items.len())),
            Value::Object(fields) => Ok(count(fields.len())),
            Value::Null => Ok(count(0)),
            other => Err(format!("len of type {}", kind(other))),
        },
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| index(&value, key)),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds),
        ("print", args) => Ok(sprint(args).into()),
        ("println", args) => Ok(format!("{}\n", args.iter().map(print).collect::<Vec<_>>().join(" ")).into()),
        ("printf", [Value::String(format), rest @ ..]) => Ok(sprintf(format, rest).into()),
        ("json", [value]) => Ok(json::line(value).into()),
        ("join", [Value::Array(items), Value::String(between)]) => {
            Ok(items.iter().map(print).collect::<Vec<_>>().join(between).into())
        }
        ("join", [Value::Null, Value::String(_)]) => Ok("".into()),
        ("split", [Value::String(text), Value::String(between)]) if between.is_empty() => {
            Ok(Value::Array(text.chars().map(|c| Value::from(c.to_string())).collect()))
        }
        ("split", [Value::String(text), Value::String(between)]) => {
            Ok(Value::Array(text.split(between.as_str()).map(Value::from).collect()))
        }
        ("title", [Value::String(text)]) => Ok(title(text).into()),
        ("lower", [Value::String(text)]) => Ok(text.to_lowercase().into()),
        ("upper", [Value::String(text)]) => Ok(text.to_uppercase().into()),
        ("pad", [Value::String(text), before, after]) => {
            let blanks =
                |n: &Value| " ".repeat(n.as_i64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0).min(1000));
            let padded =
                if text.is_empty() { String::new() } else { format!("{}{text}{}", blanks(before), blanks(after)) };
            Ok(padded.into())
        }
        ("truncate", [Value::String(text), length]) => {
            let length = length.as_i64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
            Ok(text.chars().take(length).collect::<String>().into())
        }
        _ => Err(format!("wrong number or type of arguments: {} given", args.len())),
    }
}

fn count(length: usize) -> Value {
    Value::from(i64::try_from(length).unwrap_or(i64::MAX))
}

/// Whether `if` takes it for true.
pub(super) fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Go's name for the type.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

/// The value as Go prints it.
pub(super) fn print(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(print).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let mut shown: Vec<_> = fields.iter().map(|(key, value)| (key, print(value))).collect();
            shown.sort();
            let pairs: Vec<_> = shown.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
            format!("map[{}]", pairs.join(" "))
        }
    }
}

/// A blank only between neighbours that are both no text.
fn sprint(args: &[Value]) -> String {
    let mut out = String::new();
    for (at, value) in args.iter().enumerate() {
        let text = |v: &Value| matches!(v, Value::String(_));
        if at > 0 && !text(value) && !text(&args[at - 1]) {
            out.push(' ');
        }
        out.push_str(&print(value));
    }
    out
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_)) => {
            Ok(order(a, b)? == Ordering::Equal)
        }
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Null, other) | (other, Value::Null) => Ok(*other == Value::Null),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn order(a: &Value, b: &Value) -> Result<Ordering, String> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => Ok(a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)),
        },
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => Err("incompatible types for comparison".to_owned()),
    }
}

fn index(value: &Value, key: &Value) -> Result<Value, String> {
    match (value, key) {
        (Value::Object(fields), Value::String(key)) => {
            let found = fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
            // The zero value of the map's elements: maps of texts give an empty text.
            let texts = fields.iter().all(|(_, value)| matches!(value, Value::String(_)));
            Ok(found.unwrap_or_else(|| if texts { "".into() } else { Value::Null }))
        }
        (Value::Array(items), Value::Number(at)) => at
            .as_i64()
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| items.get(at).cloned())
            .ok_or_else(|| format!("index out of range: {at}")),
        (Value::Null, Value::String(_)) => Ok("".into()),
        (Value::Null, Value::Number(at)) => Err(format!("index out of range: {at}")),
        (other, key) => Err(format!("can't index item of type {} with {}", kind(other), kind(key))),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => return Err(format!("can't slice item of type {}", kind(other))),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(value) => value
            .as_i64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n <= length)
            .ok_or_else(|| format!("index out of range: {}", print(value))),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    let range = || "invalid slice index".to_owned();
    match value {
        Value::String(text) => text.get(from..to).map(Value::from).ok_or_else(range),
        other => other.items().get(from..to).map(|items| Value::Array(items.to_vec())).ok_or_else(range),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut start = true;
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase())
        } else {
            out.push(c)
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

/// Go's printf, for the verbs that make sense of JSON.
fn sprintf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut args = args.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = chars.next_if(|c| "-+# 0".contains(*c)) {
            flags.push(flag);
        }
        let number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            // Wide enough for any terminal, and no way to fill the memory.
            digits.parse::<usize>().ok().map(|n| n.min(4096))
        };
        let width = number(&mut chars).unwrap_or(0);
        let precision = chars.next_if_eq(&'.').map(|_| number(&mut chars).unwrap_or(0));
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = args.next() else {
            let _ = write!(out, "%!{verb}(MISSING)");
            continue;
        };
        let text = verb_text(verb, value, precision, flags.contains('+'));
        let missing = width.saturating_sub(text.chars().count());
        match (flags.contains('-'), flags.contains('0') && matches!(value, Value::Number(_))) {
            (true, _) => out.push_str(&format!("{text}{}", " ".repeat(missing))),
            (false, true) => {
                let (sign, digits) = if text.starts_with(['-', '+']) { text.split_at(1) } else { ("", text.as_str()) };
                out.push_str(&format!("{sign}{}{digits}", "0".repeat(missing)));
            }
            (false, false) => out.push_str(&format!("{}{text}", " ".repeat(missing))),
        }
    }
    let rest: Vec<String> = args.map(|v| format!("{}={}", kind(v), print(v))).collect();
    if !rest.is_empty() {
        let _ = write!(out, "%!(EXTRA {})", rest.join(", "));
    }
    out
}

fn verb_text(verb: char, value: &Value, precision: Option<usize>, plus: bool) -> String {
    let cut = |text: String| match precision {
        Some(length) => text.chars().take(length).collect(),
        None => text,
    };
    match (verb, value) {
        ('v', value) => print(value),
        ('s', Value::String(text)) => cut(text.clone()),
        ('s', Value::Array(_) | Value::Object(_)) => print(value),
        ('q', Value::String(text)) => format!("{:?}", cut(text.clone())),
        ('t', Value::Bool(value)) => value.to_string(),
        ('x' | 'X', Value::String(text)) => {
            let lower = text.bytes().fold(String::new(), |out, b| format!("{out}{b:02x}"));
            if verb == 'X' { lower.to_uppercase() } else { lower }
        }
        ('d' | 'x' | 'X' | 'o' | 'b' | 'c', Value::Number(number)) if number.is_i64() || number.is_u64() => {
            let value = number.as_i64().map_or_else(|| i128::from(number.as_u64().unwrap_or(0)), i128::from);
            match verb {
                'd' if plus && value >= 0 => format!("+{value}"),
                'x' => format!("{value:x}"),
                'X' => format!("{value:X}"),
                'o' => format!("{value:o}"),
                'b' => format!("{value:b}"),
                'c' => u32::try_from(value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string(),
                _ => value.to_string(),
            }
        }
        ('f' | 'F', Value::Number(number)) if number.is_f64() => {
            format!("{:.*}", precision.unwrap_or(6).min(100), number.as_f64().unwrap_or(0.0))
        }
        ('e' | 'g', Value::Number(number)) if number.is_f64() => number.to_string(),
        (verb, value) => format!("%!{verb}({}={})", kind(value), print(value)),
    }
}
