//! What clients send: query arguments (with Docker's idea of booleans), filters in both encodings, JSON bodies.

use super::error::{ApiError, ApiResult};
use axum::{body::Body, http::header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};

/// Largest JSON body that is read.
const BODY_LIMIT: usize = 8 << 20;

/// Decoded query arguments in their order.
#[derive(Debug, Default, Clone)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`.
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or("").split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(key), percent_decode(value))
                })
                .collect(),
        )
    }

    /// First value of the key; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.raw(key).filter(|value| !value.is_empty())
    }

    /// First value of the key, possibly empty.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// All values of a repeated key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, value)| value.as_str())
    }

    /// Docker's booleans: empty, `0`, `no`, `false`, `none` are false, all else is true.
    pub fn flag(&self, key: &str) -> bool {
        self.raw(key).is_some_and(truthy)
    }

    /// As `flag`, with a value for an absent key.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        self.raw(key).map_or(default, truthy)
    }

    /// A number, or 400 that names the key.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> ApiResult<Option<T>> {
        self.get(key)
            .map(|text| text.parse().map_err(|_| ApiError::invalid(format!("invalid value {text:?} for {key}"))))
            .transpose()
    }

    /// The `filters` argument, limited to the keys this resource knows.
    pub fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        Filters::parse(self.get("filters").unwrap_or(""), known)
    }
}

fn truthy(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// Decodes `%41` and `+`; what is malformed stays as it is.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let pair = tail.get(..2).and_then(|p| std::str::from_utf8(p).ok());
        match (byte, pair.and_then(|p| u8::from_str_radix(p, 16).ok())) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some(value)) => {
                bytes.push(value);
                rest = &tail[2..];
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Filters of a list: values of one key are alternatives, keys must all match.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    /// Reads `{"k":{"v":true}}` or `{"k":["v"]}`.
    pub fn parse(text: &str, known: &[&str]) -> ApiResult<Self> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let value: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(text).map_err(|e| ApiError::invalid(format!("invalid filter: {e}")))?;
        let mut filters = BTreeMap::new();
        for (key, values) in value {
            if !known.contains(&key.as_str()) {
                return Err(ApiError::invalid(format!("invalid filter '{key}'")));
            }
            let bad = || ApiError::invalid(format!("invalid filter '{key}': neither a list nor a map of booleans"));
            let set: BTreeSet<String> = match values {
                serde_json::Value::Array(list) => {
                    list.into_iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(bad)).collect::<Result<_, _>>()?
                }
                serde_json::Value::Object(map) => {
                    map.into_iter().filter(|(_, on)| on.as_bool() != Some(false)).map(|(k, _)| k).collect()
                }
                serde_json::Value::Null => BTreeSet::new(),
                _ => return Err(bad()),
            };
            if !set.is_empty() {
                filters.insert(key, set);
            }
        }
        Ok(Self(filters))
    }

    /// Values of a key; none when it was not given.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        self.0.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Whether the key was given.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// True if the key was not given or one of its values passes.
    pub fn any(&self, key: &str, passes: impl FnMut(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).any(passes)
    }

    /// `label` (all must match, `k` or `k=v`) and `label!` (none may match).
    pub fn labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let matches = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        };
        self.values("label").all(matches) && !self.values("label!").any(matches)
    }

    /// The one boolean value of a key (`true`, `1`, `false`, `0`).
    pub fn boolean(&self, key: &str) -> ApiResult<Option<bool>> {
        let mut result = None;
        for value in self.values(key) {
            let on = match value.to_ascii_lowercase().as_str() {
                "true" | "1" => true,
                "false" | "0" => false,
                _ => return Err(ApiError::invalid(format!("invalid filter '{key}=[{value}]'"))),
            };
            if result.is_some_and(|before| before != on) {
                return Err(ApiError::invalid(format!("invalid filter '{key}': both true and false")));
            }
            result = Some(on);
        }
        Ok(result)
    }
}

/// Reads a JSON body. An empty body counts as `{}`; trailing data, another content type and oversize are refused.
pub async fn json_body<T: DeserializeOwned>(headers: &axum::http::HeaderMap, body: Body) -> ApiResult<T> {
    let bytes = Limited::new(body, BODY_LIMIT).collect().await.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            ApiError::invalid(format!("request body is larger than {BODY_LIMIT} bytes"))
        } else {
            ApiError::invalid(format!("read request body: {error}"))
        }
    })?;
    let bytes = bytes.to_bytes();
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return serde_json::from_str("{}").map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")));
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let mime = content_type.split(';').next().unwrap_or("").trim();
    if !mime.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::invalid(format!(
            "unsupported Content-Type header ({content_type}): must be 'application/json'"
        )));
    }
    serde_json::from_slice(&bytes).map_err(|e| ApiError::invalid(format!("invalid JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn booleans() {
        let q = Query::parse(Some("a=1&b=0&c=True&d=none&e&f=No&g=x"));
        let on: Vec<_> = "abcdefgh".chars().filter(|c| q.flag(&c.to_string())).collect();
        assert_eq!(on, ['a', 'c', 'g']);
        assert!(q.flag_or("h", true));
    }

    #[test]
    fn both_encodings_of_filters() {
        let known = ["label", "name"];
        let a = Filters::parse(r#"{"label":{"a=b":true,"c":false},"name":[]}"#, &known).unwrap();
        let b = Filters::parse(r#"{"label":["a=b"]}"#, &known).unwrap();
        assert_eq!(a, b);
        assert_eq!(Filters::parse(r#"{"x":["y"]}"#, &known).unwrap_err().message, "invalid filter 'x'");
        for bad in ["[]", "{", r#"{"label":3}"#, r#"{"label":[3]}"#] {
            assert!(Filters::parse(bad, &known).is_err(), "{bad}");
        }
    }

    #[test]
    fn label_filters() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let cases =
            [(r#"["a"]"#, true), (r#"["a=1"]"#, true), (r#"["a=2"]"#, false), (r#"["a=1","b"]"#, false), ("[]", true)];
        for (values, expected) in cases {
            let filters = Filters::parse(&format!(r#"{{"label":{values}}}"#), &["label"]).unwrap();
            assert_eq!(filters.labels(&labels), expected, "{values}");
        }
        let not = Filters::parse(r#"{"label!":["a"]}"#, &["label!"]).unwrap();
        assert!(!not.labels(&labels));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(text in ".{0,60}") {
            let query = Query::parse(Some(&text));
            let _ = query.filters(&["label"]);
            let _ = Filters::parse(&text, &["label"]);
        }
    }
}
