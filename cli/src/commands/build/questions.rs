//! What a Dockerfile is asked instead of being built: `--check`, `--call=outline`, `--call=targets`.
//!
//! The answer is metadata of a result, which only a frontend gets to see: so the client is the frontend of an empty build, and has
//! the Dockerfile's frontend answer.

use super::failure::words;
use super::solve::{CAPS, Grpc};
use super::specs::{Attrs, Question};
use crate::exit::{Failure, Outcome};
use crate::output;
use proto::moby::buildkit::v1::frontend::{self, PingRequest, ReturnRequest};
use proto::moby::buildkit::v1::{SolveRequest, SolveResponse};
use serde_json::Value;
use std::collections::HashMap;
use tokio::task::JoinHandle;
use tonic::{Request, Status};

/// Names the build that a call of a frontend belongs to.
const BUILD: &str = "buildkit-controlapi-buildid";

/// What is asked of a builder, and who asks.
pub struct Asked {
    /// The build.
    pub build: String,
    /// The session that has the files.
    pub session: String,
    /// Attributes of the frontend.
    pub attrs: Attrs,
}

/// Asks, and gives what the frontend says.
pub async fn ask(grpc: &Grpc, question: &Question, asked: Asked) -> Result<HashMap<String, Vec<u8>>, Status> {
    let mut opt: HashMap<String, String> = asked.attrs.into_iter().collect();
    opt.insert("requestid".to_owned(), format!("frontend.{}", question.name));
    let caps = opt.entry(CAPS.to_owned()).or_default();
    let more = "moby.buildkit.frontend.subrequests+forward";
    *caps = if caps.is_empty() { more.to_owned() } else { format!("{caps},{more}") };
    let empty =
        SolveRequest { r#ref: asked.build.clone(), session: asked.session, internal: true, ..SolveRequest::default() };
    let mut control = grpc.control();
    let build: JoinHandle<Result<SolveResponse, Status>> =
        tokio::spawn(async move { control.solve(empty).await.map(tonic::Response::into_inner) });
    let answer = answer(grpc, &asked.build, opt).await;
    let metadata = match answer {
        Ok(metadata) => metadata,
        Err(status) => {
            // Nobody returns to a build whose frontend has failed: its end is not to be waited for.
            build.abort();
            return Err(status);
        }
    };
    match build.await {
        Ok(ended) => ended.map(|_| metadata),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

async fn answer(grpc: &Grpc, build: &str, opt: HashMap<String, String>) -> Result<HashMap<String, Vec<u8>>, Status> {
    let mut bridge = grpc.bridge();
    bridge.ping(about(build, PingRequest::default())?).await?;
    let request = frontend::SolveRequest {
        frontend: "dockerfile.v0".to_owned(),
        frontend_opt: opt,
        allow_result_return: true,
        allow_result_array_ref: true,
        ..frontend::SolveRequest::default()
    };
    let solved = bridge.solve(about(build, request)?).await;
    let back = match &solved {
        Ok(_) => ReturnRequest { result: Some(frontend::Result::default()), error: None },
        Err(status) => {
            let error = proto::google::rpc::Status {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: Vec::new(),
            };
            ReturnRequest { result: None, error: Some(error) }
        }
    };
    bridge.r#return(about(build, back)?).await?;
    Ok(solved?.into_inner().result.unwrap_or_default().metadata)
}

fn about<T>(build: &str, message: T) -> Result<Request<T>, Status> {
    let mut request = Request::new(message);
    let value = build.parse().map_err(|_| Status::internal("the name of the build is no header"))?;
    request.metadata_mut().insert(BUILD, value);
    Ok(request)
}

/// Prints an answer; what a check has found is a failure, as in docker.
pub fn print(question: &Question, metadata: &HashMap<String, Vec<u8>>) -> Outcome {
    let (text, code) = text(question, metadata);
    output::print(&text)?;
    if code == 0 { Ok(()) } else { Err(Failure::Exit(code)) }
}

fn text(question: &Question, metadata: &HashMap<String, Vec<u8>>) -> (String, u8) {
    let of = |key: &str| metadata.get(key).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
    let json: Option<Value> = serde_json::from_str(&of("result.json")).ok();
    let code = of("result.statuscode").trim().parse().unwrap_or(0);
    if question.json {
        let text = json.and_then(|json| serde_json::to_string_pretty(&json).ok()).unwrap_or_else(|| of("result.json"));
        return (format!("{text}\n"), code);
    }
    let mut text = of("result.txt");
    let mut code = code;
    if question.name == "lint" {
        let found = json.as_ref().and_then(|json| json["warnings"].as_array()).map_or(0, Vec::len);
        let fails = json.as_ref().is_some_and(|json| !json["buildError"].is_null());
        let head = match found {
            0 => "Check complete, no warnings found.\n".to_owned(),
            1 => "Check complete, 1 warning has been found!\n".to_owned(),
            n => format!("Check complete, {n} warnings have been found!\n"),
        };
        // A Dockerfile that can't be read has been checked up to that place only.
        text = if fails { text } else { head + &text };
        code = code.max(u8::from(found > 0 || fails));
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    (text, code)
}

/// A failed question, in docker's words.
pub fn failed(question: &Question, status: &Status) -> Failure {
    let text = words(status);
    if text.contains("unsupported request") || text.contains("unknown request") {
        let name = &question.name;
        return Failure::Refused(format!("ERROR: the builder doesn't answer frontend.{name}: {text}"));
    }
    Failure::Refused(format!("ERROR: failed to build: failed to solve: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, json: bool, metadata: &[(&str, &str)]) -> (String, u8) {
        let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())).collect();
        text(&Question { name: name.into(), json }, &metadata)
    }

    #[test]
    fn answers() {
        assert_eq!(
            said("lint", false, &[("result.json", r#"{"warnings":[]}"#)]),
            ("Check complete, no warnings found.\n".into(), 0)
        );
        let one = [("result.json", r#"{"warnings":[{"ruleName":"X"}]}"#), ("result.txt", "\nWARNING: X")];
        assert_eq!(said("lint", false, &one), ("Check complete, 1 warning has been found!\n\nWARNING: X\n".into(), 1));
        let broken = [("result.json", r#"{"buildError":{}}"#), ("result.txt", "Dockerfile:1\n")];
        assert_eq!(said("lint", false, &broken), ("Dockerfile:1\n".into(), 1));
        assert_eq!(said("outline", false, &[("result.txt", "TARGET: a")]), ("TARGET: a\n".into(), 0));
        assert_eq!(said("targets", true, &[("result.json", r#"{"a":1}"#)]), ("{\n  \"a\": 1\n}\n".into(), 0));
        assert_eq!(said("lint", true, &[("result.json", "{}"), ("result.statuscode", "1")]).1, 1);
    }
}
