//! `load`

use super::{App, require};
use crate::args::image::LoadArgs;
use crate::client::{Call, call::Body};
use crate::exit::{Failure, Outcome};
use crate::output::progress;
use crate::terminal;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much of an archive is read at once.
const CHUNK: usize = 256 * 1024;

/// Runs `load`.
pub async fn run(app: &App, args: &LoadArgs) -> Outcome {
    let body = match &args.input {
        Some(path) => file(path).await?,
        None if terminal::stdin_is_terminal() => {
            return Err(Failure::Refused("requested load from stdin, but stdin is empty".to_owned()));
        }
        None => streamed(tokio::io::stdin()),
    };
    let client = app.client().await?;
    require(&client, "--platform", !args.platform.is_empty(), 48)?;
    let quiet = args.quiet || !terminal::stdout_is_terminal();
    let mut call = Call::post("/images/load").query("quiet", if quiet { "1" } else { "0" });
    for platform in &args.platform {
        call = call.query("platform", platform_json(platform).to_string());
    }
    let reply = client.send(call.header("content-type", "application/x-tar").body(body)).await?;
    progress::show(reply, progress::Sink::Stdout).await
}

/// A file as the body of a request.
pub async fn file(path: &str) -> Outcome<Body> {
    let fault = |cause| {
        Failure::from(crate::options::OptionError::File { path: path.to_owned(), cause: crate::options::Plain(cause) })
    };
    let file = tokio::fs::File::open(path).await.map_err(fault)?;
    if file.metadata().await.map_err(fault)?.is_dir() {
        return Err(fault(io::ErrorKind::IsADirectory.into()));
    }
    Ok(streamed(file))
}

/// Anything that can be read, as the body of a request.
pub fn streamed(reader: impl AsyncRead + Send + Sync + Unpin + 'static) -> Body {
    let frames = stream::try_unfold(reader, |mut reader| async move {
        let mut buffer = vec![0; CHUNK];
        let count = reader.read(&mut buffer).await?;
        buffer.truncate(count);
        Ok::<_, io::Error>((count > 0).then(|| (Frame::data(Bytes::from(buffer)), reader)))
    });
    BodyExt::boxed(StreamBody::new(frames))
}

/// "linux/arm64/v8" as the API has it.
pub fn platform_json(text: &str) -> serde_json::Value {
    let mut parts = text.split('/');
    let mut platform = json!({ "os": parts.next().unwrap_or_default() });
    for (name, value) in ["architecture", "variant"].iter().zip(parts) {
        platform[*name] = json!(value);
    }
    platform
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms() {
        let want = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
        assert_eq!(platform_json("linux/arm64/v8"), want);
        assert_eq!(platform_json("linux/amd64"), json!({"os": "linux", "architecture": "amd64"}));
    }
}
