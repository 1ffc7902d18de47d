//! As much YAML as descriptions of devices are written in: block and flow lists and maps, plain and quoted scalars, comments.
//! Anchors, tags and block scalars are refused, not misread. The files are the administrator's; size and depth are bounded all
//! the same.

use serde_json::{Map, Number, Value};

const DEPTH: usize = 32;

/// Reads one document.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let bare = without_comment(line);
        let trimmed = bare.trim_end();
        if trimmed.trim().is_empty() || (at < 3 && trimmed == "---") {
            continue;
        }
        if trimmed == "---" || trimmed == "..." {
            break;
        }
        let indent = trimmed.len() - trimmed.trim_start_matches(' ').len();
        if trimmed[indent..].starts_with('\t') {
            return Err(format!("line {}: indented by a tab", at + 1));
        }
        lines.push(Line { number: at + 1, indent, text: trimmed[indent..].to_owned() });
    }
    let mut reader = Reader { lines, at: 0 };
    if reader.lines.is_empty() {
        return Ok(Value::Null);
    }
    let indent = reader.lines[0].indent;
    let value = reader.block(indent, 0)?;
    match reader.lines.get(reader.at) {
        Some(line) => Err(format!("line {}: not understood", line.number)),
        None => Ok(value),
    }
}

#[derive(Debug)]
struct Line {
    number: usize,
    indent: usize,
    text: String,
}

struct Reader {
    lines: Vec<Line>,
    at: usize,
}

impl Reader {
    fn block(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(format!("nested deeper than {DEPTH}"));
        }
        let Some(line) = self.lines.get(self.at) else { return Ok(Value::Null) };
        if line.text == "-" || line.text.starts_with("- ") {
            return self.list(indent, depth);
        }
        if key_of(&line.text).is_some() {
            return self.map(indent, depth);
        }
        let (number, text) = (line.number, line.text.clone());
        self.at += 1;
        scalar(&text).map_err(|why| format!("line {number}: {why}"))
    }

    fn list(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        while let Some(line) = self.lines.get_mut(self.at) {
            if line.indent != indent || !(line.text == "-" || line.text.starts_with("- ")) {
                break;
            }
            let rest = line.text[1..].trim_start().to_owned();
            if rest.is_empty() {
                self.at += 1;
                items.push(self.below(indent, depth)?);
            } else {
                // What follows the dash is a block of its own, as deep as it stands.
                line.indent += line.text.len() - rest.len();
                line.text = rest;
                let inner = line.indent;
                items.push(self.block(inner, depth + 1)?);
            }
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        while let Some(line) = self.lines.get(self.at) {
            if line.indent != indent || line.text.starts_with("- ") {
                break;
            }
            let number = line.number;
            let Some((key, rest)) = key_of(&line.text) else { return Err(format!("line {number}: not a key")) };
            self.at += 1;
            let value = if rest.is_empty() {
                // Lists may stand as far left as their key.
                match self.lines.get(self.at) {
                    Some(next) if next.indent == indent && (next.text == "-" || next.text.starts_with("- ")) => {
                        self.list(indent, depth + 1)?
                    }
                    _ => self.below(indent, depth)?,
                }
            } else {
                scalar(&rest).map_err(|why| format!("line {number}: {why}"))?
            };
            if map.insert(key.clone(), value).is_some() {
                return Err(format!("line {number}: {key:?} comes twice"));
            }
        }
        Ok(Value::Object(map))
    }

    fn below(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        match self.lines.get(self.at) {
            Some(next) if next.indent > indent => {
                let inner = next.indent;
                self.block(inner, depth + 1)
            }
            _ => Ok(Value::Null),
        }
    }
}

fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before == ' ' || before == '\t' => return &line[..at],
            (None, '"' | '\'') if matches!(before, ' ' | '[' | '{' | ',' | ':' | '-') => quote = Some(c),
            (Some(open), c) if c == open && before != '\\' => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

/// A key with what follows its colon on the line.
fn key_of(text: &str) -> Option<(String, String)> {
    if text.starts_with(['[', '{']) {
        return None;
    }
    let (key, rest) = if text.starts_with(['"', '\'']) {
        let (key, rest) = quoted(text).ok()?;
        (key, rest.trim_start().strip_prefix(':')?.to_owned())
    } else {
        let colon = text.find(": ").or_else(|| text.strip_suffix(':').map(str::len))?;
        (text[..colon].trim_end().to_owned(), text[colon + 1..].to_owned())
    };
    (rest.is_empty() || rest.starts_with(' ')).then(|| (key, rest.trim().to_owned()))
}

fn scalar(text: &str) -> Result<Value, String> {
    let (value, rest) = flow(text, 0)?;
    if rest.trim().is_empty() { Ok(value) } else { Err(format!("{rest:?} is too much")) }
}

/// A value that stands on one line. Inside of brackets a comma ends it.
fn flow(text: &str, depth: usize) -> Result<(Value, &str), String> {
    let text = text.trim_start();
    if depth > DEPTH {
        return Err(format!("nested deeper than {DEPTH}"));
    }
    match text.chars().next() {
        None => Ok((Value::Null, text)),
        Some('"' | '\'') => quoted(text).map(|(value, rest)| (Value::String(value), rest)),
        Some('[') => {
            let (mut items, mut rest) = (Vec::new(), text[1..].trim_start());
            loop {
                if let Some(after) = rest.strip_prefix(']') {
                    return Ok((Value::Array(items), after));
                }
                let (value, after) = flow(rest, depth + 1)?;
                items.push(value);
                rest = next(after, ']')?;
            }
        }
        Some('{') => {
            let (mut map, mut rest) = (Map::new(), text[1..].trim_start());
            loop {
                if let Some(after) = rest.strip_prefix('}') {
                    return Ok((Value::Object(map), after));
                }
                let (key, after) = if rest.starts_with(['"', '\'']) {
                    quoted(rest)?
                } else {
                    let end = rest.find(':').ok_or("a key without a value")?;
                    (rest[..end].trim().to_owned(), &rest[end..])
                };
                let after = after.trim_start().strip_prefix(':').ok_or("a key without a value")?;
                let (value, after) = flow(after, depth + 1)?;
                map.insert(key, value);
                rest = next(after, '}')?;
            }
        }
        Some(c @ ('&' | '*' | '!' | '|' | '>' | '@' | '`' | '%')) => Err(format!("{c:?} is not understood here")),
        Some(_) => {
            let end = if depth > 0 { text.find([',', ']', '}']).unwrap_or(text.len()) } else { text.len() };
            Ok((plain(text[..end].trim()), &text[end..]))
        }
    }
}

fn next(text: &str, close: char) -> Result<&str, String> {
    let text = text.trim_start();
    match text.strip_prefix(',') {
        Some(rest) => Ok(rest.trim_start()),
        None if text.starts_with(close) => Ok(text),
        None => Err(format!("{close:?} is missing")),
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    if let Some(octal) = digits.strip_prefix("0o").or_else(|| digits.strip_prefix('0').filter(|rest| !rest.is_empty()))
        && let Ok(number) = i64::from_str_radix(octal, 8)
    {
        return Value::Number(number.into());
    }
    if digits.bytes().all(|b| b.is_ascii_digit())
        && let Ok(number) = text.parse::<i64>()
    {
        return Value::Number(number.into());
    }
    let is_float = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && digits.matches('.').count() == 1;
    match text.parse::<f64>().ok().filter(|_| is_float).and_then(Number::from_f64) {
        Some(number) => Value::Number(number),
        None => Value::String(text.to_owned()),
    }
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    let quote = text.chars().next().ok_or("nothing")?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' if quote == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                chars.next();
                value.push('\'');
            }
            c if c == quote => return Ok((value, &text[at + c.len_utf8()..])),
            '\\' if quote == '"' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, c @ ('"' | '\\' | '/'))) => value.push(c),
                other => return Err(format!("escape {:?} is not understood", other.map(|(_, c)| c))),
            },
            c => value.push(c),
        }
    }
    Err("a quote is not closed".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_device_tools_write() {
        let text = r#"---
cdiVersion: 0.5.0   # of the format
kind: nvidia.com/gpu
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      major: 195
      permissions: "rw"
  name: "0"
- name: all
  containerEdits: {env: [A=b, 'C=d e'], deviceNodes: []}
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  - 'x: y'
  hooks:
    -
      hookName: createContainer
      args: ["tool", "--a", "b # c"]
      timeout: -1
  mounts: []
  none:
"#;
        let expected = json!({
            "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
            "devices": [
                {"containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0", "major": 195, "permissions": "rw"}]}, "name": "0"},
                {"name": "all", "containerEdits": {"env": ["A=b", "C=d e"], "deviceNodes": []}},
            ],
            "containerEdits": {
                "env": ["NVIDIA_VISIBLE_DEVICES=void", "x: y"],
                "hooks": [{"hookName": "createContainer", "args": ["tool", "--a", "b # c"], "timeout": -1}],
                "mounts": [], "none": null,
            },
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("fileMode: 0660").unwrap(), json!({"fileMode": 0o660}));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in
            ["a: &x b", "a: |\n  b", "a: [b", "a: \"b", "a: b\n  c: d", "\ta: b", "a: b\na: c", "a: {b", "a: !!str b"]
        {
            assert!(parse(bad).is_err(), "{bad:?}: {:?}", parse(bad));
        }
        assert!(parse(&"[".repeat(1000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text(text in "[-a: \\[\\]{},'\"#\n]{0,60}") {
            let _ = parse(&text);
        }
    }
}
