//! What two engines said of one case, and which differences are meant.

use crate::run::{Record, Said};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, fs, path::Path};

/// One place where Berth says something else.
#[derive(Debug, Clone)]
pub struct Difference {
    /// `case | step | place`.
    pub place: String,
    /// dockerd's and ours.
    pub what: String,
}

impl Difference {
    /// One that has no second engine to compare with.
    pub fn plain(case: &str, what: &str) -> Self {
        Self { place: format!("{case} | alone | "), what: what.to_owned() }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Differences between two runs of the same case.
pub fn runs(dockerd: &Said, berth: &Said) -> Vec<Difference> {
    let mut found = Vec::new();
    let ours: BTreeMap<&str, &Record> = berth.records.iter().map(|r| (r.step.as_str(), r)).collect();
    for record in &dockerd.records {
        let place = format!("{} | {} | ", dockerd.case, record.step);
        match ours.get(record.step.as_str()) {
            // Where the status differs, all the rest does too.
            Some(our) if record.said.get("status") != our.said.get("status") && record.said.get("status").is_some() => {
                let status = |record: &Record| record.said["status"].clone();
                let what = format!("dockerd {}, berth {} {}", status(record), status(our), our.text.trim());
                found.push(Difference { place: place + ".status", what });
            }
            Some(our) => values(&place, &record.said, &our.said, &mut found),
            None => found.push(Difference { place, what: "the step was not reached".into() }),
        }
    }
    found
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 200 { text.chars().take(200).chain("…".chars()).collect() } else { text }
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

fn values(place: &str, theirs: &Value, ours: &Value, found: &mut Vec<Difference>) {
    let mut add = |place: String, what: String| found.push(Difference { place, what });
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, their) in theirs {
                match ours.get(key) {
                    Some(our) => values(&format!("{place}.{key}"), their, our, found),
                    None => found.push(Difference {
                        place: format!("{place}.{key}"),
                        what: format!("missing; dockerd has {}", short(their)),
                    }),
                }
            }
            for (key, our) in ours.iter().filter(|(key, _)| !theirs.contains_key(*key)) {
                found.push(Difference { place: format!("{place}.{key}"), what: format!("extra: {}", short(our)) });
            }
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            for (index, (their, our)) in theirs.iter().zip(ours).enumerate() {
                values(&format!("{place}[{index}]"), their, our, found);
            }
        }
        _ if theirs == ours => {}
        _ if kind(theirs) != kind(ours) => {
            add(place.to_owned(), format!("type: dockerd {}, berth {}", short(theirs), short(ours)));
        }
        _ => add(place.to_owned(), format!("dockerd {}, berth {}", short(theirs), short(ours))),
    }
}

/// The differences that are meant, or known and open.
pub struct Reasons(Vec<(String, String)>);

impl Reasons {
    /// Reads `differences.tsv`: a pattern with `*` for `case | step | place: what`, a tab, the reason.
    pub fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/differences.tsv");
        let text = fs::read_to_string(&path).expect("differences.tsv");
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (pattern, reason) = line.split_once('\t').expect("pattern, tab, reason");
                    assert!(reason.trim().len() > 10, "{pattern}: a reason is a sentence");
                    (pattern.to_owned(), reason.trim().to_owned())
                })
                .collect(),
        )
    }

    /// Prints how often each reason applies, and gives what has none.
    pub fn judge(&self, found: &[Difference], whole: bool) -> Vec<(String, String)> {
        let mut uses = vec![0; self.0.len()];
        let mut left = Vec::new();
        for difference in found {
            match self.0.iter().position(|(pattern, _)| glob(pattern, &difference.to_string())) {
                Some(index) => uses[index] += 1,
                None => {
                    let case = difference.place.split(" | ").next().unwrap_or_default();
                    left.push((case.to_owned(), difference.to_string()));
                }
            }
        }
        // What fails comes alone, so that it stands in a log that is cut.
        if !left.is_empty() {
            return left;
        }
        println!("differences from dockerd 20.10 that have a reason:");
        for ((pattern, reason), uses) in self.0.iter().zip(&uses) {
            if *uses > 0 {
                println!("{uses:5}  {pattern}: {reason}");
            } else if whole {
                println!("   no  {pattern}: this difference is no more; the line can go");
            }
        }
        left
    }
}

/// `*` stands for any text.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[test]
fn patterns_match() {
    let cases = [
        ("a*", "abc", true),
        ("*c", "abc", true),
        ("a*c", "abc", true),
        ("a*b*c", "axxbxxc", true),
        ("abc", "abcd", false),
        ("a*bc", "abc", true),
        ("ab*bc", "abc", false),
        ("*", "", true),
    ];
    for (pattern, text, expected) in cases {
        assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
    }
}

#[test]
fn differences_are_seen() {
    let theirs = serde_json::json!({"a": null, "b": [], "c": {"d": 1}, "e": "x", "f": 1});
    let ours = serde_json::json!({"a": [], "b": [1], "c": {"d": "1"}, "f": 1, "g": 2});
    let mut found = Vec::new();
    values("", &theirs, &ours, &mut found);
    let places: Vec<String> = found.into_iter().map(|difference| difference.place).collect();
    assert_eq!(places, [".a", ".b", ".c.d", ".e", ".g"]);
}
