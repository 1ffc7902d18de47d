//! What differs, and whether it is meant.

use crate::{builder::Built, corpus::Case};
use serde_json::Value;
use std::collections::BTreeMap;

/// Differences of one case.
#[derive(Debug, Default)]
pub struct Found {
    pub meant: Vec<String>,
    pub unmeant: Vec<String>,
}

/// What isn't as the case says.
pub fn with_case(case: &Case, built: &Built) -> Vec<String> {
    match (built, &case.fails) {
        (Built::Failed(why), Some(words)) if why.to_lowercase().contains(&words.to_lowercase()) => Vec::new(),
        (Built::Failed(why), Some(words)) => vec![format!("failed without \"{words}\":\n{why}")],
        (Built::Failed(why), None) => vec![format!("failed:\n{why}")],
        (Built::Image { .. }, Some(words)) => vec![format!("built, but should fail with \"{words}\"")],
        (Built::Image { files, config }, None) => {
            case.expect.iter().filter_map(|line| unexpected(line, files, config)).collect()
        }
    }
}

fn unexpected(line: &str, files: &BTreeMap<String, String>, config: &Value) -> Option<String> {
    if let Some(path) = line.strip_prefix("no ") {
        return files.get(path).map(|there| format!("there is {there}"));
    }
    if let Some(variable) = line.strip_prefix("env ") {
        let all = config["config"]["Env"].as_array().cloned().unwrap_or_default();
        return (!all.iter().any(|one| one == variable)).then(|| format!("no {variable} in {all:?}"));
    }
    let path = line.split(' ').nth(3).unwrap();
    match files.get(path) {
        Some(there) if there.starts_with(line) => None,
        there => Some(format!("wanted {line}, there is {there:?}")),
    }
}

/// What isn't the same.
pub fn both(case: &Case, their: &Built, our: &Built) -> Found {
    let mut found = Found::default();
    let (Built::Image { files: a, config: x }, Built::Image { files: b, config: y }) = (their, our) else {
        return found;
    };
    let mut differences = Vec::new();
    for path in a.keys().chain(b.keys().filter(|path| !a.contains_key(*path))) {
        match (a.get(path), b.get(path)) {
            (Some(a), Some(b)) if a == b => {}
            (a, b) => differences.push(format!("file {path}: BuildKit {a:?}, Berth {b:?}")),
        }
    }
    let (mut x, mut y) = (x.clone(), y.clone());
    tidy(&mut x);
    tidy(&mut y);
    values("config", &x, &y, &mut differences);
    let reasons = reasons();
    for difference in differences {
        let whole = format!("{}: {difference}", case.name);
        match reasons.iter().find(|(pattern, _)| matches(pattern, &whole)) {
            Some((_, why)) => found.meant.push(format!("{difference} ({why})")),
            None => found.unmeant.push(difference),
        }
    }
    found
}

/// Patterns, and why what matches them differs.
fn reasons() -> Vec<(String, String)> {
    let text = include_str!("differences.tsv");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split_once('\t').expect("pattern, tab, reason")).map(|(a, b)| (a.into(), b.into())).collect()
}

/// Whether all of `text` is `pattern`, in which `*` is anything and `[[]` a bracket.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern = pattern.replace("[[]", "[");
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Leaves out what is of the moment or of the engine, and what is empty.
fn tidy(config: &mut Value) {
    let Some(config) = config.as_object_mut() else { return };
    for name in ["created", "container", "container_config", "docker_version", "id", "moby.buildkit.buildinfo.v1"] {
        config.remove(name);
    }
    if let Some(layers) = config.get_mut("rootfs") {
        *layers = layers["diff_ids"].as_array().map_or(0, Vec::len).into();
    }
    for entry in config.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        entry.as_object_mut().unwrap().remove("created");
        // The server of a case has another port each time.
        if let Some(words) = entry["created_by"].as_str() {
            let words: Vec<&str> = words.split("http://127.0.0.1:").collect();
            let rest = words.iter().skip(1).map(|rest| rest.trim_start_matches(|letter: char| letter.is_ascii_digit()));
            entry["created_by"] =
                Value::from(words[0].to_owned() + &rest.map(|rest| format!("SERVER{rest}")).collect::<String>());
        }
    }
    if let Some(config) = config.get_mut("config").and_then(Value::as_object_mut) {
        // 20.10 writes what has long been of no meaning.
        for name in [
            "Hostname",
            "Domainname",
            "AttachStdin",
            "AttachStdout",
            "AttachStderr",
            "Tty",
            "OpenStdin",
            "StdinOnce",
            "Image",
        ] {
            config.remove(name);
        }
        config.retain(|_, value| !matches!(value, Value::Null) && *value != "" && *value != serde_json::json!({}));
    }
}

fn values(at: &str, a: &Value, b: &Value, found: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let none = Value::Null;
                values(&format!("{at}.{key}"), a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none), found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                values(&format!("{at}[{index}]"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{at}: BuildKit {a}, Berth {b}")),
    }
}
