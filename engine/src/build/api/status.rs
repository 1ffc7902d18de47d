//! Errors of builds as gRPC carries them: with the details that BuildKit's clients know, a JSON text each.

use crate::build::error::BuildError;
use base64::Engine as _;
use prost::Message;
use proto::{google::rpc, kind::ErrorKind, pb};
use serde_json::{Value, json};
use tonic::{Code, Status};

const SOURCE: &str = "github.com/moby/buildkit/errdefs.Source+json";
const VERTEX: &str = "github.com/moby/buildkit/errdefs.Vertex+json";

/// The status of an error.
pub fn of(error: &BuildError) -> Status {
    let code = match error.kind {
        // What BuildKit's own errors are; clients show any other code to the user.
        ErrorKind::Internal => Code::Unknown,
        kind => kind.to_grpc(),
    };
    let details = details(error);
    if details.is_empty() {
        return Status::new(code, error.message.clone());
    }
    let whole = rpc::Status { code: code as i32, message: error.message.clone(), details };
    Status::with_details(code, error.message.clone(), whole.encode_to_vec().into())
}

impl From<BuildError> for Status {
    fn from(error: BuildError) -> Self {
        of(&error)
    }
}

fn details(error: &BuildError) -> Vec<prost_types::Any> {
    let any =
        |url: &str, value: &Value| prost_types::Any { type_url: url.to_owned(), value: value.to_string().into_bytes() };
    let mut details = Vec::new();
    if let Some(digest) = &error.vertex {
        details.push(any(VERTEX, &json!({"digest": digest})));
    }
    for place in &error.places {
        let info = &place.info;
        let shown = json!({
            "filename": info.filename, "language": info.language,
            "data": base64::engine::general_purpose::STANDARD.encode(&info.data),
        });
        let ranges: Vec<Value> = place.ranges.iter().map(range).collect();
        details.push(any(SOURCE, &json!({"info": shown, "ranges": ranges})));
    }
    details
}

// As Go leaves out what is zero.
fn range(range: &pb::Range) -> Value {
    let position = |position: &Option<pb::Position>| {
        let at = position.unwrap_or_default();
        let mut value = json!({});
        if at.line != 0 {
            value["line"] = json!(at.line);
        }
        if at.character != 0 {
            value["character"] = json!(at.character);
        }
        value
    };
    json!({"start": position(&range.start), "end": position(&range.end)})
}

/// What a client's frontend says went wrong.
pub fn told(status: rpc::Status) -> BuildError {
    let kind = ErrorKind::from_grpc(Code::from_i32(status.code));
    let mut error = BuildError::new(kind, status.message);
    for detail in status.details {
        let Ok(value) = serde_json::from_slice::<Value>(&detail.value) else { continue };
        match detail.type_url.as_str() {
            VERTEX => error.vertex = value["digest"].as_str().map(str::to_owned),
            SOURCE => error.places.extend(place(&value)),
            _ => {}
        }
    }
    error
}

fn place(value: &Value) -> Option<crate::build::error::Place> {
    let info = &value["info"];
    let text = |key: &str| info[key].as_str().unwrap_or_default().to_owned();
    let data = base64::engine::general_purpose::STANDARD.decode(text("data")).ok()?;
    let number = |value: &Value| value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or_default();
    let position =
        |value: &Value| Some(pb::Position { line: number(&value["line"]), character: number(&value["character"]) });
    let ranges = value["ranges"].as_array()?;
    Some(crate::build::error::Place {
        info: pb::SourceInfo { filename: text("filename"), language: text("language"), data, definition: None }.into(),
        ranges: ranges
            .iter()
            .map(|range| pb::Range { start: position(&range["start"]), end: position(&range["end"]) })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::error::lines;

    #[test]
    fn there_and_back() {
        let info = pb::SourceInfo { filename: "Dockerfile".into(), data: b"FROM x\n".into(), ..Default::default() };
        let mut error = BuildError::invalid("no").at(info.into(), vec![lines(1, 1)]);
        error.vertex = Some("sha256:1".into());
        let status = of(&error);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no"));
        let whole = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(whole.details.len(), 2);
        assert_eq!(whole.details[0].value, br#"{"digest":"sha256:1"}"#);
        let back = told(whole);
        assert_eq!((back.vertex, back.places), (error.vertex, error.places));
        assert!(of(&BuildError::invalid("no")).details().is_empty());
    }
}
