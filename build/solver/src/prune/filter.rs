//! Filters over what the cache holds, in containerd's words: `type==regular,shared`, `id~=^ab`, `description!=x`.

use proto::moby::buildkit::v1::UsageRecord;
use std::time::Duration;

/// Conditions that hold together.
#[derive(Debug, Clone, Default)]
pub struct Filter(Vec<Condition>);

#[derive(Debug, Clone)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Field {
    Id,
    Parents,
    Description,
    Type,
    InUse,
    Mutable,
    Immutable,
    Shared,
    Private,
}

#[derive(Debug, Clone)]
enum Test {
    Is(bool),
    Equals(String),
    Differs(String),
    Matches(regex_lite::Regex),
}

/// Why a filter is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// No such field.
    #[error("filter {text:?}: unknown field {field:?}")]
    Field {
        /// The filter.
        text: String,
        /// What it asks for.
        field: String,
    },
    /// No such value.
    #[error("filter {text:?}: invalid value {value:?}")]
    Value {
        /// The filter.
        text: String,
        /// What it compares with.
        value: String,
    },
    /// More than anybody needs.
    #[error("filter of {0} bytes is too long")]
    Long(usize),
}

const FIELDS: [(&str, Field); 11] = [
    ("id", Field::Id),
    ("parent", Field::Parents),
    ("parents", Field::Parents),
    ("description", Field::Description),
    ("type", Field::Type),
    ("inuse", Field::InUse),
    ("in-use", Field::InUse),
    ("mutable", Field::Mutable),
    ("immutable", Field::Immutable),
    ("shared", Field::Shared),
    ("private", Field::Private),
];
const LONGEST: usize = 4096;

/// All filters, and how long something must have been unused, if one of them says so.
pub(super) fn parse_all(texts: &[String]) -> Result<(Vec<Filter>, Option<Duration>), FilterError> {
    let mut filters = Vec::new();
    let mut until = None;
    for text in texts {
        if text.len() > LONGEST {
            return Err(FilterError::Long(text.len()));
        }
        let mut filter = Filter::default();
        for part in split(text).into_iter().filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("until" | "unused-for", value)) => {
                    let value = value.trim_start_matches('=');
                    let wrong = || FilterError::Value { text: text.clone(), value: value.to_owned() };
                    until = Some(duration(value).ok_or_else(wrong)?);
                }
                _ => filter.0.push(condition(text, &part)?),
            }
        }
        if !filter.0.is_empty() {
            filters.push(filter);
        }
    }
    Ok((filters, until))
}

/// Whether any takes it; none takes everything.
pub(super) fn matches(filters: &[Filter], usage: &UsageRecord) -> bool {
    filters.is_empty() || filters.iter().any(|filter| filter.0.iter().all(|condition| condition.holds(usage)))
}

impl Condition {
    fn holds(&self, usage: &UsageRecord) -> bool {
        let (text, present) = match self.field {
            Field::Id => (usage.id.clone(), !usage.id.is_empty()),
            Field::Parents => (usage.parents.join(";"), !usage.parents.is_empty()),
            Field::Description => (usage.description.clone(), !usage.description.is_empty()),
            Field::Type => (usage.record_type.clone(), !usage.record_type.is_empty()),
            Field::InUse => (String::new(), usage.in_use),
            Field::Mutable => (String::new(), usage.mutable),
            Field::Immutable => (String::new(), !usage.mutable),
            Field::Shared => (String::new(), usage.shared),
            Field::Private => (String::new(), !usage.shared),
        };
        match &self.test {
            Test::Is(wanted) => present == *wanted,
            Test::Equals(value) if self.field == Field::Parents => usage.parents.contains(value),
            Test::Equals(value) => present && text == *value,
            Test::Differs(value) => text != *value,
            Test::Matches(pattern) => present && pattern.is_match(&text),
        }
    }
}

fn condition(text: &str, part: &str) -> Result<Condition, FilterError> {
    let end = part.find(['=', '!', '~']).unwrap_or(part.len());
    let (name, rest) = part.split_at(end);
    let named = FIELDS.iter().find(|(known, _)| *known == name.trim());
    let unknown = || FilterError::Field { text: text.to_owned(), field: name.to_owned() };
    let (_, field) = *named.ok_or_else(unknown)?;
    let (operator, value) = match rest {
        "" => return Ok(Condition { field, test: Test::Is(true) }),
        rest if rest.starts_with("!=") => ("!=", &rest[2..]),
        rest if rest.starts_with("~=") => ("~=", &rest[2..]),
        rest if rest.starts_with("==") => ("==", &rest[2..]),
        rest if rest.starts_with('=') => ("==", &rest[1..]),
        _ => return Err(FilterError::Value { text: text.to_owned(), value: rest.to_owned() }),
    };
    let value = value.trim().trim_matches(|c| c == '"' || c == '/');
    let wrong = || FilterError::Value { text: text.to_owned(), value: value.to_owned() };
    let is_flag = !matches!(field, Field::Id | Field::Parents | Field::Description | Field::Type);
    let test = match operator {
        // containerd compares the empty text here, so that no value ever matches; users mean what they write.
        _ if is_flag => {
            let value = match value {
                "1" | "true" => true,
                "0" | "false" => false,
                _ => return Err(wrong()),
            };
            Test::Is(value == (operator != "!="))
        }
        "!=" => Test::Differs(value.to_owned()),
        "~=" => Test::Matches(regex_lite::Regex::new(value).map_err(|_| wrong())?),
        _ => Test::Equals(value.to_owned()),
    };
    Ok(Condition { field, test })
}

/// At commas that aren't quoted.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for char in text.chars() {
        quoted ^= char == '"';
        match parts.last_mut() {
            Some(part) if char != ',' || quoted => part.push(char),
            _ => parts.push(String::new()),
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).collect()
}

/// As Go writes it: `24h`, `1h30m`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(total).ok() }
}
