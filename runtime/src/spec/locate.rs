//! Which field of a JSON text a parser was at when it gave up: serde_json knows line and column only.

/// The path of the value at a line and column (both from 1, the column in bytes), as in `linux.devices[2].major`. Empty for the
/// whole document.
pub(super) fn field_at(text: &[u8], line: usize, column: usize) -> String {
    let start: usize = text.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum();
    let end = start.saturating_add(column).min(text.len());
    let mut inside = Vec::new();
    let mut at = 0;
    while at < end {
        match text[at] {
            b'{' => inside.push(Level::Object { key: String::new(), expects_key: true }),
            b'[' => inside.push(Level::Array(0)),
            b'}' | b']' => drop(inside.pop()),
            b',' => match inside.last_mut() {
                Some(Level::Object { key, expects_key }) => {
                    key.clear();
                    *expects_key = true;
                }
                Some(Level::Array(index)) => *index += 1,
                None => {}
            },
            b'"' => {
                let length = string_length(&text[at + 1..end]);
                if let Some(Level::Object { key, expects_key: expects_key @ true }) = inside.last_mut() {
                    *key = String::from_utf8_lossy(&text[at + 1..at + 1 + length]).escape_debug().to_string();
                    *expects_key = false;
                }
                at += length + 1;
            }
            _ => {}
        }
        at += 1;
    }
    let mut path = String::new();
    for level in &inside {
        match level {
            Level::Object { key, .. } if key.is_empty() => {}
            Level::Object { key, .. } if path.is_empty() => path.push_str(key),
            Level::Object { key, .. } => path.extend([".", key]),
            Level::Array(index) => path.push_str(&format!("[{index}]")),
        }
    }
    path
}

/// Where a scan is inside of.
enum Level {
    Object { key: String, expects_key: bool },
    Array(usize),
}

/// The length of a string's content, up to its closing quote or the end.
fn string_length(text: &[u8]) -> usize {
    let mut at = 0;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at.min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    #[test]
    fn mistakes_are_found_where_they_are() {
        for (text, field) in [
            (r#"{"process":7}"#, "process"),
            (r#"{"process":{"user":{"uid":-1}}}"#, "process.user.uid"),
            (r#"{"process":{"user":{"uid":"0"},"args":[]}}"#, "process.user.uid"),
            ("{\"mounts\":[{},\n {\"options\": [\"a\",\n 7]}]}", "mounts[1].options[1]"),
            (r#"{"linux":{"devices":[{"path":"}]\"{"},{"major":1e99}]}}"#, "linux.devices[1].major"),
            (r#"{"linux":{"resources":{"pids":{"limit":{}}}}}"#, "linux.resources.pids.limit"),
            (r#"{"annotations":{"a":[]}}"#, "annotations.a"),
            (r#"{"hooks":{"prestart":{}}}"#, "hooks.prestart"),
        ] {
            let error = serde_json::from_str::<Spec>(text).expect_err(text);
            assert_eq!(field_at(text.as_bytes(), error.line(), error.column()), field, "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn looking_never_panics(text in "[{}\\[\\],:\"\\\\a\n]{0,40}", line in 0_usize..5, column in 0_usize..50) {
            field_at(text.as_bytes(), line, column);
        }
    }
}
