//! JSON as docker prints it: four blanks per level for inspect, one line elsewhere.

use super::value::Value;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

/// Several lines, indented by four blanks.
pub fn pretty(value: &Value) -> String {
    indented(value, "    ")
}

/// Several lines.
pub fn indented(value: &Value, indent: &str) -> String {
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(indent.as_bytes());
    // Writing into memory can't fail, and every Value is valid JSON.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter));
    String::from_utf8(out).unwrap_or_default()
}

/// One line.
pub fn line(value: &Value) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// Escapes what HTML would take for markup, as Go's encoder does it for lists.
pub fn escape_html(json: &str) -> String {
    json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_gos() {
        let value: Value = serde_json::from_str(r#"[{"a":[],"b":{},"c":[1,{"d":"<&>"}]}]"#).unwrap();
        assert_eq!(
            pretty(&value),
            "[\n    {\n        \"a\": [],\n        \"b\": {},\n        \"c\": [\n            1,\n            {\n                \"d\": \"<&>\"\n            }\n        ]\n    }\n]"
        );
        assert_eq!(line(&value), r#"[{"a":[],"b":{},"c":[1,{"d":"<&>"}]}]"#);
    }
}
