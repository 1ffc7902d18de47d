//! Functions of templates: Go's own and docker's.

use super::format::{shortest, sprintf};
use crate::output::{json, value::Value};
use std::cmp::Ordering;

/// What a function's argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    Any,
    Text,
    Texts,
    Whole,
}

/// A function: its name, what its arguments must be, and whether the last one may be repeated or left out.
struct Function {
    name: &'static str,
    wants: &'static [Want],
    variadic: bool,
}

const fn function(name: &'static str, wants: &'static [Want], variadic: bool) -> Function {
    Function { name, wants, variadic }
}

use Want::{Any, Text, Texts, Whole};

const FUNCTIONS: &[Function] = &[
    function("and", &[Any, Any], true),
    function("call", &[Any, Any], true),
    function("eq", &[Any, Any], true),
    function("ge", &[Any, Any], false),
    function("gt", &[Any, Any], false),
    function("html", &[Any], true),
    function("index", &[Any, Any], true),
    function("join", &[Texts, Text], false),
    function("js", &[Any], true),
    function("json", &[Any], false),
    function("le", &[Any, Any], false),
    function("len", &[Any], false),
    function("lower", &[Text], false),
    function("lt", &[Any, Any], false),
    function("ne", &[Any, Any], false),
    function("not", &[Any], false),
    function("or", &[Any, Any], true),
    function("pad", &[Text, Whole, Whole], false),
    function("print", &[Any], true),
    function("printf", &[Text, Any], true),
    function("println", &[Any], true),
    function("slice", &[Any, Any], true),
    function("split", &[Text, Text], false),
    function("title", &[Text], false),
    function("truncate", &[Text, Whole], false),
    function("upper", &[Text], false),
    function("urlquery", &[Any], true),
];

fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// There is such a function.
pub(super) fn known(name: &str) -> bool {
    find(name).is_some()
}

/// What is wrong with the number of arguments, if anything.
pub(super) fn arity(name: &str, count: usize) -> Option<String> {
    let function = find(name)?;
    let least = function.wants.len() - usize::from(function.variadic);
    if function.variadic && count < least {
        return Some(format!("wrong number of args for {name}: want at least {least} got {count}"));
    }
    (!function.variadic && count != least).then(|| format!("wrong number of args for {name}: want {least} got {count}"))
}

/// What is wrong with the type of an argument, if anything; `literal` is how it is written, if it is.
pub(super) fn mismatch(name: &str, at: usize, value: &Value, literal: Option<&str>) -> Option<String> {
    let function = find(name)?;
    let want = function.wants.get(at).or(function.wants.last()).copied()?;
    let (fits, wanted) = match want {
        Any => return None,
        Text => (matches!(value, Value::String(_)), "string"),
        Whole => (value.as_i64().is_some(), "integer"),
        Texts => (matches!(value, Value::Array(_) | Value::Null), "[]string"),
    };
    match (fits, literal) {
        (true, _) => None,
        (_, Some(text)) if want == Texts => Some(format!("can't handle {text} for arg of type []string")),
        (_, Some(text)) => Some(format!("expected {wanted}; found {text}")),
        _ if *value == Value::Null => Some(format!("invalid value; expected {wanted}")),
        _ => {
            let wanted = if want == Whole { "int" } else { wanted };
            Some(format!("wrong type for value; expected {wanted}; got {}", kind(value)))
        }
    }
}

/// Calls a function; `and` and `or` are the evaluator's business.
pub(super) fn call(name: &str, args: &[Value]) -> Result<Value, String> {
    match (name, args) {
        ("not", [value]) => Ok((!truth(value)).into()),
        ("eq", [_]) => Err("missing argument for comparison".to_owned()),
        ("eq", [first, rest @ ..]) => {
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
            Value::Null => Err("len of nil pointer".to_owned()),
            other => Err(format!("len of type {}", kind(other))),
        },
        ("index", [value, keys @ ..]) => keys.iter().try_fold(value.clone(), |value, key| index(&value, key)),
        ("slice", [value, bounds @ ..]) => slice(value, bounds),
        ("print", args) => Ok(sprint(args).into()),
        ("println", args) => Ok(format!("{}\n", args.iter().map(print).collect::<Vec<_>>().join(" ")).into()),
        ("printf", [Value::String(format), rest @ ..]) => Ok(sprintf(format, rest).into()),
        ("html", args) => Ok(escaped(args, html).into()),
        ("js", args) => Ok(escaped(args, js).into()),
        ("urlquery", args) => Ok(escaped(args, urlquery).into()),
        ("call", [Value::Null, ..]) => Err("call of nil".to_owned()),
        ("call", [value, ..]) => Err(format!("non-function {} of type {}", print(value), kind(value))),
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
        ("upper", [Value::String(text)]) => {
            // Letter by letter, as Go does it: no letter becomes two.
            let upper = |c: char| {
                let mut all = c.to_uppercase();
                match (all.next(), all.next()) {
                    (Some(one), None) => one,
                    _ => c,
                }
            };
            Ok(text.chars().map(upper).collect::<String>().into())
        }
        ("pad", [Value::String(text), before, after]) => {
            let blanks =
                |n: &Value| " ".repeat(n.as_i64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0).min(1000));
            let padded =
                if text.is_empty() { String::new() } else { format!("{}{text}{}", blanks(before), blanks(after)) };
            Ok(padded.into())
        }
        ("truncate", [Value::String(text), length]) => match length.as_i64().map(usize::try_from) {
            Some(Ok(length)) => Ok(text.chars().take(length).collect::<String>().into()),
            _ => Err(format!("runtime error: slice bounds out of range [:{}]", print(length))),
        },
        _ => Err(format!("wrong number or type of arguments: {} given", args.len())),
    }
}

/// What the escaping functions take: everything printed one after the other.
fn escaped(args: &[Value], escape: fn(char, &mut String)) -> String {
    let text = match args {
        [Value::String(text)] => text.clone(),
        args => {
            let shown = |v: &Value| if *v == Value::Null { "<no value>".into() } else { v.clone() };
            sprint(&args.iter().map(shown).collect::<Vec<_>>())
        }
    };
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| escape(c, &mut out));
    out
}

fn html(c: char, out: &mut String) {
    match c {
        '\0' => out.push('\u{fffd}'),
        '"' => out.push_str("&#34;"),
        '\'' => out.push_str("&#39;"),
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        c => out.push(c),
    }
}

fn js(c: char, out: &mut String) {
    match c {
        '\\' | '\'' | '"' => out.extend(['\\', c]),
        '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", u32::from(c))),
        c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
        c => out.push(c),
    }
}

fn urlquery(c: char, out: &mut String) {
    match c {
        ' ' => out.push('+'),
        c if c.is_ascii_alphanumeric() || "-_.~".contains(c) => out.push(c),
        c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push_str(&format!("%{byte:02X}"))),
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
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) if float < 0.0 => format!("-{}", shortest(-float, None)),
            Some(float) => shortest(float, None),
            None => number.to_string(),
        },
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

/// What can be compared: Go looks at the kind of type before the value.
#[derive(PartialEq, Eq)]
enum Sort {
    Bool,
    Whole,
    Float,
    Text,
    Nil,
    Other,
}

fn sort(value: &Value) -> Sort {
    match value {
        Value::Bool(_) => Sort::Bool,
        Value::Number(number) if number.is_f64() => Sort::Float,
        Value::Number(_) => Sort::Whole,
        Value::String(_) => Sort::Text,
        Value::Null => Sort::Nil,
        Value::Array(_) | Value::Object(_) => Sort::Other,
    }
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (sort(a), sort(b)) {
        (Sort::Nil, other) | (other, Sort::Nil) => Ok(other == Sort::Nil),
        (Sort::Other, Sort::Other) => {
            Err("non-comparable type".to_owned()).map_err(|text: String| format!("{text} {}: {}", print(a), kind(a)))
        }
        (one, other) if one != other || one == Sort::Other => Err("incompatible types for comparison".to_owned()),
        (Sort::Bool, _) => Ok(a == b),
        _ => Ok(order(a, b)? == Ordering::Equal),
    }
}

fn order(a: &Value, b: &Value) -> Result<Ordering, String> {
    match (a, b) {
        _ if sort(a) != sort(b) => Err("incompatible types for comparison".to_owned()),
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => Ok(a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)),
        },
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        _ => Err("invalid type for comparison".to_owned()),
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
        // A byte, as Go sees texts.
        (Value::String(text), Value::Number(at)) => at
            .as_i64()
            .and_then(|at| usize::try_from(at).ok())
            .and_then(|at| text.as_bytes().get(at))
            .map(|byte| i64::from(*byte).into())
            .ok_or_else(|| format!("index out of range: {at}")),
        (Value::Null, Value::String(_)) => Ok("".into()),
        (Value::Null, Value::Number(at)) => Err(format!("index out of range: {at}")),
        (Value::Object(_), key) => Err(format!("value has type {}; should be string", kind(key))),
        (Value::Array(_), key) => Err(format!("cannot index slice/array with type {}", kind(key))),
        (other, _) => Err(format!("can't index item of type {}", kind(other))),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        Value::Null => return Err("slice of untyped nil".to_owned()),
        other => return Err(format!("can't slice item of type {}", kind(other))),
    };
    if bounds.len() > 3 {
        return Err(format!("too many slice indexes: {}", bounds.len()));
    }
    if bounds.len() == 3 && matches!(value, Value::String(_)) {
        return Err("cannot 3-index slice a string".to_owned());
    }
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(value) if value.as_i64().is_none() => Err(format!("cannot index slice/array with type {}", kind(value))),
        Some(value) => value
            .as_i64()
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n <= length)
            .ok_or_else(|| format!("index out of range: {}", print(value))),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    if bound(2, length)? < to {
        return Err(format!("invalid slice index: {to} > {}", print(&bounds[2])));
    }
    match value {
        // A cut inside of a letter gives Go a broken one.
        Value::String(text) => Ok(String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned().into()),
        other => Ok(Value::Array(other.items()[from..to].to_vec())),
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
