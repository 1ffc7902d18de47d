//! Headers that every request carries: those of config.json, or those of DOCKER_CUSTOM_HEADERS.

use super::{file::ConfigFile, variable};
use crate::options::mounts::csv;

/// DOCKER_CUSTOM_HEADERS that can't be sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// Not a line of comma-separated values.
    #[error(
        "failed to parse custom headers from DOCKER_CUSTOM_HEADERS environment variable: value must be formatted as comma-separated key=value pairs"
    )]
    List,
    /// One of them is not "name=value".
    #[error("failed to set custom headers from DOCKER_CUSTOM_HEADERS environment variable: {0}")]
    Pair(String),
}

/// Names and values, as they are sent. berth's own names win over those of config.json.
pub fn all(file: &ConfigFile) -> Result<Vec<(String, String)>, HeadersError> {
    let configured = file.map("HttpHeaders").into_iter();
    let mut headers: Vec<_> = configured.filter(|(name, _)| !name.eq_ignore_ascii_case("user-agent")).collect();
    if let Some(text) = variable("DOCKER_CUSTOM_HEADERS") {
        // The variable stands in the place of the file.
        headers = parse(&text)?;
    }
    Ok(headers)
}

fn parse(text: &str) -> Result<Vec<(String, String)>, HeadersError> {
    let fields = csv(text).map_err(|_| HeadersError::List)?;
    let mut headers = Vec::new();
    for field in fields {
        let bad = |why: &str| HeadersError::Pair(format!("{why}: '{field}'"));
        let (name, value) = field.split_once('=').ok_or_else(|| bad("missing \"=\" in key=value pair"))?;
        let name = name.trim();
        if name.is_empty() {
            return Err(bad("value contains a key=value pair with an empty key"));
        }
        if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_err()
            || hyper::header::HeaderValue::from_str(value).is_err()
        {
            return Err(bad("not a name and value that HTTP can carry"));
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs() {
        let of = |text| parse(text);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(of("A=b"), Ok(vec![pair("A", "b")]));
        assert_eq!(of("A=b=c,\"X-Y=1,2\",C="), Ok(vec![pair("A", "b=c"), pair("X-Y", "1,2"), pair("C", "")]));
        for (text, part) in [
            ("a", "missing \"=\" in key=value pair: 'a'"),
            ("=x", "with an empty key: '=x'"),
            ("a b=x", "not a name and value"),
            ("a=b,\"c=d", "comma-separated key=value pairs"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
