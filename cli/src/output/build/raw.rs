//! Progress for programs: one line of JSON for each message of the builder, with BuildKit's names.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp as Moment;
use prost_types::Timestamp;
use proto::moby::buildkit::v1::StatusResponse;
use proto::pb;
use serde_json::{Map, Value, json};

/// The line.
pub fn line(response: &StatusResponse) -> String {
    let vertexes = response.vertexes.iter().map(|vertex| {
        object([
            ("digest", json!(vertex.digest)),
            ("inputs", json!(vertex.inputs)),
            ("name", json!(vertex.name)),
            ("started", time(&vertex.started)),
            ("completed", time(&vertex.completed)),
            ("cached", json!(vertex.cached)),
            ("error", json!(vertex.error)),
            ("progressGroup", group(&vertex.progress_group)),
        ])
    });
    let statuses = response.statuses.iter().map(|status| {
        let mut value = object([
            ("id", json!(status.id)),
            ("vertex", json!(status.vertex)),
            ("name", json!(status.name)),
            ("total", json!(status.total)),
            ("timestamp", time(&status.timestamp)),
            ("started", time(&status.started)),
            ("completed", time(&status.completed)),
        ]);
        // There even when it is nothing.
        value["current"] = json!(status.current);
        value
    });
    let logs = response.logs.iter().map(|log| {
        object([
            ("vertex", json!(log.vertex)),
            ("stream", json!(log.stream)),
            ("data", json!(STANDARD.encode(&log.msg))),
            ("timestamp", time(&log.timestamp)),
        ])
    });
    let warnings = response.warnings.iter().map(|warning| {
        let detail: Vec<String> = warning.detail.iter().map(|line| STANDARD.encode(line)).collect();
        object([
            ("vertex", json!(warning.vertex)),
            ("level", json!(warning.level)),
            ("short", json!(STANDARD.encode(&warning.short))),
            ("detail", json!(detail)),
            ("url", json!(warning.url)),
            ("sourceInfo", warning.info.as_ref().map_or(Value::Null, source)),
            ("range", Value::Array(warning.ranges.iter().map(range).collect())),
        ])
    });
    let line = object([
        ("vertexes", Value::Array(vertexes.collect())),
        ("statuses", Value::Array(statuses.collect())),
        ("logs", Value::Array(logs.collect())),
        ("warnings", Value::Array(warnings.collect())),
    ]);
    format!("{line}\n")
}

/// An object without what is empty.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        _ => false,
    };
    let fields = fields.into_iter().filter(|(_, value)| !is_empty(value));
    Value::Object(fields.map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
}

fn time(time: &Option<Timestamp>) -> Value {
    let moment = time.as_ref().and_then(|time| Moment::new(time.seconds, time.nanos).ok());
    moment.map_or(Value::Null, |moment| json!(moment.to_string()))
}

fn group(group: &Option<pb::ProgressGroup>) -> Value {
    group.as_ref().map_or(Value::Null, |group| {
        object([("id", json!(group.id)), ("name", json!(group.name)), ("weak", json!(group.weak))])
    })
}

fn source(info: &pb::SourceInfo) -> Value {
    object([
        ("filename", json!(info.filename)),
        ("data", json!(STANDARD.encode(&info.data))),
        ("language", json!(info.language)),
    ])
}

fn range(range: &pb::Range) -> Value {
    let position = |at: &Option<pb::Position>| {
        at.as_ref().map_or(Value::Null, |at| object([("line", json!(at.line)), ("character", json!(at.character))]))
    };
    object([("start", position(&range.start)), ("end", position(&range.end))])
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{ended, log, status};
    use super::*;

    #[test]
    fn lines() {
        assert_eq!(
            line(&ended("sha256:a", "A", 1.0, 2.5, true, "")),
            "{\"vertexes\":[{\"cached\":true,\"completed\":\"1970-01-01T00:00:02.5Z\",\"digest\":\"sha256:a\",\"name\":\"A\",\"started\":\"1970-01-01T00:00:01Z\"}]}\n"
        );
        assert_eq!(
            line(&log("sha256:a", "hi\n", 1.0)),
            "{\"logs\":[{\"data\":\"aGkK\",\"stream\":1,\"timestamp\":\"1970-01-01T00:00:01Z\",\"vertex\":\"sha256:a\"}]}\n"
        );
        assert!(line(&status("sha256:a", "x", 0, 0, None)).contains("\"current\":0"));
    }
}
