//! Lists of words as metadata of a call. What a header can't carry travels like a form's fields, and `KEY-encoded` says so.

use super::SessionError;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};

/// Adds `values` under `key`.
pub(super) fn put(metadata: &mut MetadataMap, key: &str, values: &[String]) -> Result<(), SessionError> {
    let bad = |_| SessionError::Invalid(format!("{key}: not a name for metadata"));
    let name = MetadataKey::from_bytes(key.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let encoded = !values.iter().all(|value| is_plain(value));
    for value in values {
        let text = if encoded { escape(value) } else { value.clone() };
        let value = MetadataValue::try_from(text).map_err(|e| bad(e.to_string()))?;
        metadata.append(name.clone(), value);
    }
    if encoded {
        let name = MetadataKey::from_bytes(format!("{key}-encoded").as_bytes()).map_err(|e| bad(e.to_string()))?;
        metadata.insert(name, MetadataValue::from_static("1"));
    }
    Ok(())
}

// Blanks at the ends get lost on the way.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|b| (0x20..0x7f).contains(&b)) && value.trim() == value
}

/// As Go's url.QueryEscape has it.
fn escape(value: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(value.len() + 8);
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b' ' => out.push('+'),
            // Writing to a String can't fail.
            _ => drop(write!(out, "%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_headers_cannot_carry() {
        let cases: &[(&[&str], &[&str], bool)] = &[
            (&["a b", "100%"], &["a b", "100%"], false),
            (&["a b", "süß%"], &["a+b", "s%C3%BC%C3%9F%25"], true),
            (&["x\ny"], &["x%0Ay"], true),
            (&[" x"], &["+x"], true),
        ];
        for (values, sent, encoded) in cases {
            let mut metadata = MetadataMap::new();
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            put(&mut metadata, "followpaths", &values).unwrap();
            let got: Vec<&str> = metadata.get_all("followpaths").iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!((&got[..], metadata.contains_key("followpaths-encoded")), (*sent, *encoded), "{values:?}");
        }
    }
}
