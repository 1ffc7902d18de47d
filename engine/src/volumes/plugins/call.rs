//! One call to a plugin: a POST of JSON on a connection of its own. Nothing that a plugin does, or leaves undone, takes more than
//! the time and the memory that are set here.

use super::discover::Endpoint;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// What an answer may have: a list of some ten thousand volumes.
const MOST: usize = 8 << 20;
/// A plugin that is being started anew is waited for that long.
const COMING: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(100);
/// What docker asks for; plugins tell the versions of the protocol apart by it.
const ACCEPT: &str = "application/vnd.docker.plugins.v1.2+json";
const CONTENT: &str = "application/vnd.docker.plugins.v1.1+json";

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("connect to {0}")]
    Connect(Endpoint, #[source] io::Error),
    #[error("{method}: {endpoint} did not answer within {seconds} seconds")]
    Late { method: &'static str, endpoint: Endpoint, seconds: u64 },
    #[error("{method}: {endpoint}")]
    Http {
        method: &'static str,
        endpoint: Endpoint,
        #[source]
        cause: hyper::Error,
    },
    #[error("{method}: {endpoint} answered nonsense: {why}")]
    Nonsense { method: &'static str, endpoint: Endpoint, why: String },
    /// What the plugin itself says.
    #[error("{method}: {text}")]
    Refused { method: &'static str, text: String },
}

/// How patient a call is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For all of it.
    pub limit: Duration,
    /// Whether a plugin that isn't there yet is waited for.
    pub wait: bool,
}

/// Calls `method` and reads the result.
pub async fn call<T: DeserializeOwned>(
    endpoint: &Endpoint,
    method: &'static str,
    body: &Value,
    patience: Patience,
) -> Result<T, CallError> {
    let late = |_| CallError::Late { method, endpoint: endpoint.clone(), seconds: patience.limit.as_secs() };
    let work = async {
        let (status, bytes) = match endpoint {
            Endpoint::Unix(path) => {
                let stream = connect(endpoint, patience, || UnixStream::connect(path)).await?;
                exchange(stream, endpoint, method, "plugin", body).await?
            }
            Endpoint::Tcp(address) => {
                let stream = connect(endpoint, patience, || TcpStream::connect(address)).await?;
                exchange(stream, endpoint, method, address, body).await?
            }
        };
        understand(endpoint, method, status, &bytes)
    };
    tokio::time::timeout(patience.limit, work).await.map_err(late)?
}

async fn connect<S, F: Future<Output = io::Result<S>>>(
    endpoint: &Endpoint,
    patience: Patience,
    mut connect: impl FnMut() -> F,
) -> Result<S, CallError> {
    let begun = tokio::time::Instant::now();
    loop {
        match connect().await {
            Ok(stream) => return Ok(stream),
            Err(error) if !patience.wait || begun.elapsed() > COMING => {
                return Err(CallError::Connect(endpoint.clone(), error));
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    endpoint: &Endpoint,
    method: &'static str,
    host: &str,
    body: &Value,
) -> Result<(StatusCode, Bytes), CallError> {
    let failed = |cause| CallError::Http { method, endpoint: endpoint.clone(), cause };
    let nonsense = |why: String| CallError::Nonsense { method, endpoint: endpoint.clone(), why };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let request = Request::post(format!("/{method}"))
        .header(header::HOST, host)
        .header(header::ACCEPT, ACCEPT)
        .header(header::CONTENT_TYPE, CONTENT)
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| nonsense(error.to_string()))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST).collect().await;
        let bytes = body.map_err(|error| nonsense(error.to_string()))?.to_bytes();
        Ok((status, bytes))
    };
    // Both in this task: whoever gives the call up closes the connection.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            // All that was sent is read by now.
            Ok(()) => answer.await,
            Err(error) => Err(failed(error)),
        },
    }
}

fn understand<T: DeserializeOwned>(
    endpoint: &Endpoint,
    method: &'static str,
    status: StatusCode,
    bytes: &[u8],
) -> Result<T, CallError> {
    let nonsense = |why: String| CallError::Nonsense { method, endpoint: endpoint.clone(), why };
    let value = serde_json::from_slice::<Value>(bytes);
    let said = value.as_ref().ok().and_then(|value| value.get("Err")?.as_str()).filter(|text| !text.is_empty());
    if let Some(text) = said {
        return Err(CallError::Refused { method, text: text.to_owned() });
    }
    if !status.is_success() {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).trim().to_owned();
        let text = if text.is_empty() { status.to_string() } else { text };
        return Err(CallError::Refused { method, text });
    }
    // Calls without a result may be answered by nothing at all.
    let value = if bytes.trim_ascii().is_empty() {
        Value::Object(serde_json::Map::new())
    } else {
        value.map_err(|e| nonsense(e.to_string()))?
    };
    serde_json::from_value(value).map_err(|error| nonsense(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_mean() {
        let endpoint = Endpoint::Tcp("h:1".into());
        let understood = |status: u16, text: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            understand::<Value>(&endpoint, "VolumeDriver.Get", status, text.as_bytes()).map_err(|e| e.to_string())
        };
        assert_eq!(understood(200, r#"{"Err":""}"#).unwrap()["Err"], "");
        assert!(understood(200, "").unwrap().is_object());
        for (status, text, words) in [
            (200, r#"{"Err":"no such volume"}"#, "VolumeDriver.Get: no such volume"),
            (500, r#"{"Err":"broken"}"#, "VolumeDriver.Get: broken"),
            (404, "page not found\n", "VolumeDriver.Get: page not found"),
            (500, "", "VolumeDriver.Get: 500 Internal Server Error"),
            (200, "<html>", "VolumeDriver.Get: tcp://h:1 answered nonsense: expected value"),
        ] {
            let error = understood(status, text).unwrap_err();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
