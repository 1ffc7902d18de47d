//! What differs from run to run is replaced by words, so that the rest can be compared.

use regex_lite::Regex;
use serde_json::{Value, json};
use std::path::Path;

/// Replaces ids, times, addresses and the engine's own folder.
#[derive(Debug)]
pub struct Mask {
    folder: String,
    rules: Vec<(Regex, &'static str)>,
}

// Numbers that are sizes, moments or process ids.
const COUNTED: [&str; 16] = [
    "Created",
    "Pid",
    "ProcessID",
    "time",
    "timeNano",
    "Size",
    "SizeRw",
    "SizeRootFs",
    "VirtualSize",
    "SharedSize",
    "LayersSize",
    "SpaceReclaimed",
    "execDuration",
    "size",
    "mtime",
    "Fd",
];

impl Mask {
    /// The masks of one engine.
    pub fn new(folder: &Path) -> Self {
        let rules = [
            (r"[0-9a-f]{64}", "ID"),
            (r"\b[0-9a-f]{12}\b", "ID12"),
            (r"\b(?:2[0-9]{3})-[0-9]{2}-[0-9]{2}T[0-9:]{8}(?:\.[0-9]+)?(?:Z|[+-][0-9:]{5})", "TIME"),
            (r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
            (r"\b10\.(?:23[0-9])\.[0-9]+\.[0-9]+\b", "IP"),
            (r"\b172\.(?:1[6-9]|2[0-9]|3[01])\.[0-9]+\.[0-9]+\b", "IP"),
            (
                r"^(Up|Exited \([0-9]+\)|Restarting \([0-9]+\)) (?:Less than a second|About a minute|[0-9]+ seconds?)",
                "$1 TIME",
            ),
            (r"\b(?:bd[0-9]+|bt[0-9]+)\b", "BRIDGE"),
        ];
        let rules = rules.into_iter().map(|(rule, word)| (Regex::new(rule).expect("rule"), word)).collect();
        Self { folder: folder.display().to_string(), rules }
    }

    /// A text, masked.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.replace(&self.folder, "ROOT");
        for (rule, word) in &self.rules {
            text = rule.replace_all(&text, *word).into_owned();
        }
        text
    }

    /// A value, masked; sets that come as lists in no order are sorted.
    pub fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => json!(self.text(&text)),
            Value::Array(items) => {
                let mut items: Vec<Value> = items.into_iter().map(|item| self.value(item)).collect();
                let sets = ["Destination", "Driver", "Path", "RepoTags", "PrivatePort"];
                if items.iter().all(|item| sets.iter().any(|key| item.get(key).is_some())) {
                    items.sort_by_cached_key(|item| {
                        let keys = ["Destination", "Name", "Path", "RepoTags", "PrivatePort", "IP"];
                        keys.map(|key| item.get(key).map(ToString::to_string)).concat_all()
                    });
                }
                json!(items)
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(key, value)| {
                    let value = match value {
                        Value::Number(number) if COUNTED.contains(&key.as_str()) && number.as_f64() != Some(0.0) => {
                            json!("NUMBER")
                        }
                        Value::String(text) if key == "HostPort" && text.parse::<u32>().is_ok_and(|p| p >= 32000) => {
                            json!("PORT")
                        }
                        Value::String(_) if key == "execDuration" => json!("NUMBER"),
                        Value::Number(port) if key == "PublicPort" && port.as_u64().is_some_and(|p| p >= 32000) => {
                            json!("PORT")
                        }
                        value => self.value(value),
                    };
                    (self.text(&key), value)
                });
                Value::Object(fields.collect())
            }
            other => other,
        }
    }
}

trait Concat {
    fn concat_all(self) -> String;
}

impl<const N: usize> Concat for [Option<String>; N] {
    fn concat_all(self) -> String {
        self.into_iter().map(|part| part.unwrap_or_default() + "\n").collect()
    }
}
