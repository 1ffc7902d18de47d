//! What a builder says when a build fails: the place in the Dockerfile, and the cause.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::Message;
use proto::pb;
use serde_json::Value;
use std::fmt::Write as _;
use tonic::{Code, Status};

/// The detail of an error that names lines of a file.
const SOURCE: &str = "errdefs.Source";

/// The words of a failed call, as docker has them: without its code where that says nothing.
pub fn words(status: &Status) -> String {
    match status.code() {
        Code::Ok | Code::Unknown => status.message().to_owned(),
        code => format!("{code:?}: {}", status.message()),
    }
}

/// Excerpts of the files that an error is about.
pub fn excerpts(status: &Status) -> String {
    let Ok(decoded) = proto::google::rpc::Status::decode(status.details()) else { return String::new() };
    let urls = || decoded.details.iter().map(|detail| detail.type_url.as_str()).collect::<Vec<_>>().join(", ");
    crate::output::log::debug(|| format!("details of the error: {}", urls()));
    let is_source = |url: &str| url.rsplit('/').next().is_some_and(|name| name.trim_end_matches("+json") == SOURCE);
    let sources = decoded.details.iter().filter(|detail| is_source(&detail.type_url));
    // The innermost is the last one, and is shown first.
    sources.rev().filter_map(|detail| source(&detail.value)).map(|source| source.excerpt()).collect()
}

/// Lines of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Source {
    filename: String,
    text: String,
    /// First and last lines, counted from 1.
    ranges: Vec<(usize, usize)>,
}

/// errdefs.Source, which travels as protobuf.
#[derive(Clone, PartialEq, prost::Message)]
struct SourceMessage {
    #[prost(message, optional, tag = "1")]
    info: Option<pb::SourceInfo>,
    #[prost(message, repeated, tag = "2")]
    ranges: Vec<pb::Range>,
}

/// BuildKit writes details as JSON, whatever they are.
fn source(value: &[u8]) -> Option<Source> {
    if let Ok(json) = serde_json::from_slice::<Value>(value) {
        let data = STANDARD.decode(json["info"]["data"].as_str()?).ok()?;
        let line =
            |position: &Value| position["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        let ranges = json["ranges"].as_array().cloned().unwrap_or_default();
        return Some(Source {
            filename: json["info"]["filename"].as_str().unwrap_or_default().to_owned(),
            text: String::from_utf8_lossy(&data).into_owned(),
            ranges: ranges.iter().map(|range| (line(&range["start"]), line(&range["end"]))).collect(),
        });
    }
    let message = SourceMessage::decode(value).ok()?;
    Some(Source::of(&message.info?, &message.ranges))
}

impl Source {
    /// As messages of the builder name it.
    pub fn of(info: &pb::SourceInfo, ranges: &[pb::Range]) -> Self {
        let line = |at: Option<&pb::Position>| at.and_then(|at| usize::try_from(at.line).ok()).unwrap_or(0);
        Self {
            filename: info.filename.clone(),
            text: String::from_utf8_lossy(&info.data).into_owned(),
            ranges: ranges.iter().map(|range| (line(range.start.as_ref()), line(range.end.as_ref()))).collect(),
        }
    }

    /// The lines that are meant with a mark, and some around them.
    pub fn excerpt(&self) -> String {
        let lines: Vec<&str> = self.text.split('\n').collect();
        let ranges: Vec<(usize, usize)> = self.ranges.iter().map(|(from, to)| (*from, *to.max(from))).collect();
        let (Some(first), Some(last)) =
            (ranges.iter().map(|range| range.0).min(), ranges.iter().map(|range| range.1).max())
        else {
            return String::new();
        };
        if first == 0 || first > lines.len() {
            return String::new();
        }
        let last = last.min(lines.len());
        let (mut from, mut to) = (first, last);
        let wanted = if first == last { 4 } else { 2 };
        let mut around = 0;
        while around < wanted {
            if from > 1 {
                from -= 1;
                around += 1;
            }
            if to < lines.len() {
                to += 1;
                around += 1;
            }
            around += 1;
        }
        let mut text = format!("{}:{first}\n--------------------\n", self.filename);
        for number in from..=to {
            let mark = if ranges.iter().any(|(a, b)| (*a..=*b).contains(&number)) { ">>>" } else { "   " };
            let _ = writeln!(text, " {number:>3} | {mark} {}", lines[number - 1]);
        }
        text.push_str("--------------------\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn failed(url: &str, value: Vec<u8>) -> Status {
        let details = vec![
            Any { type_url: "github.com/moby/buildkit/errdefs.Vertex+json".into(), value: b"{}".to_vec() },
            Any { type_url: url.into(), value },
        ];
        let status = proto::google::rpc::Status { code: 2, message: "m".into(), details };
        Status::with_details(Code::Unknown, "process \"false\" did not complete", status.encode_to_vec().into())
    }

    const WANT: &str = "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     \n   3 | >>> RUN false\n   4 |     CMD x\n   5 |     \n--------------------\n";

    #[test]
    fn the_place_in_the_file() {
        let text = "FROM a\n\nRUN false\nCMD x\n";
        let json = format!(
            r#"{{"info":{{"filename":"Dockerfile","data":"{}"}},"ranges":[{{"start":{{"line":3}},"end":{{"line":3}}}}]}}"#,
            STANDARD.encode(text)
        );
        let status = failed("github.com/moby/buildkit/errdefs.Source+json", json.into_bytes());
        assert_eq!(excerpts(&status), WANT);
        assert_eq!(words(&status), "process \"false\" did not complete");
        let position = |line| Some(pb::Position { line, character: 0 });
        let message = SourceMessage {
            info: Some(pb::SourceInfo {
                filename: "Dockerfile".into(),
                data: text.into(),
                ..pb::SourceInfo::default()
            }),
            ranges: vec![pb::Range { start: position(3), end: position(3) }],
        };
        assert_eq!(excerpts(&failed("errdefs.Source", message.encode_to_vec())), WANT);
        assert_eq!(excerpts(&failed("other", message.encode_to_vec())), "");
        assert_eq!(excerpts(&Status::unknown("x")), "");
        assert_eq!(words(&Status::cancelled("context canceled")), "Cancelled: context canceled");
    }

    #[test]
    fn lines_that_are_not_there() {
        let of = |ranges: &[(usize, usize)]| {
            Source { filename: "D".into(), text: "a\nb\nc".into(), ranges: ranges.to_vec() }.excerpt()
        };
        assert_eq!((of(&[]), of(&[(0, 0)]), of(&[(9, 9)])), (String::new(), String::new(), String::new()));
        assert_eq!(of(&[(2, 9)]).matches(">>>").count(), 2);
        assert_eq!(
            of(&[(1, 0)]),
            "D:1\n--------------------\n   1 | >>> a\n   2 |     b\n   3 |     c\n--------------------\n"
        );
    }
}
