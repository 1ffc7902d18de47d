//! The lines of JSON that tell a client how far a long operation is.

use bytes::Bytes;
use serde::Serialize;
use std::convert::Infallible;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};

/// How far one object is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Detail {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<i64>,
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
    // A bar drawn in text: clients that know no better (and docker-py's users) print it as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "errorDetail", skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<ErrorDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux: Option<serde_json::Value>,
}

/// The newer form of `error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorDetail {
    pub message: String,
}

impl Line {
    /// A status without object.
    pub fn status(text: impl Into<String>) -> Self {
        Self { status: Some(text.into()), ..Self::default() }
    }

    /// A status of an object.
    pub fn of(id: &str, text: &str) -> Self {
        Self {
            status: Some(text.to_owned()),
            id: Some(id.to_owned()),
            detail: Some(Detail::default()),
            ..Self::default()
        }
    }

    /// How far an object is; without total there is no bar.
    pub fn bar(id: &str, text: &str, current: i64, total: i64) -> Self {
        let detail = Detail { current: Some(current), total: (total > 0).then_some(total) };
        Self { detail: Some(detail), progress: Some(draw(current, total)), ..Self::of(id, text) }
    }

    /// Plain text.
    pub fn stream(text: impl Into<String>) -> Self {
        Self { stream: Some(text.into()), ..Self::default() }
    }

    /// The end of an operation that failed after its answer had begun.
    pub fn error(message: impl Into<String>) -> Self {
        let message = message.into();
        Self { error_detail: Some(ErrorDetail { message: message.clone() }), error: Some(message), ..Self::default() }
    }

    fn encode(&self) -> Bytes {
        // Only strings and numbers: this cannot fail.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.extend_from_slice(b"\r\n");
        line.into()
    }
}

fn draw(current: i64, total: i64) -> String {
    if total <= 0 {
        return format!("{:>8}", size(current));
    }
    let filled = (current.clamp(0, total) * 50 / total) as usize;
    let (done, left) =
        if filled < 50 { (format!("{}>", "=".repeat(filled)), 50 - filled) } else { ("=".repeat(50) + ">", 0) };
    format!("[{done}{}] {:>8}/{}", " ".repeat(left), size(current), size(total))
}

/// Bytes with four digits and a decimal unit, as docker prints sizes: `1.084MB`.
pub fn size(bytes: i64) -> String {
    let (mut value, mut unit) = (bytes as f64, 0);
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    // Four significant digits without trailing zeros, like Go's %.4g.
    let decimals = if value >= 1000.0 { 0 } else { 3 - (value.max(1.0).log10() as usize) };
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// Where an operation writes its lines.
#[derive(Debug, Clone)]
pub struct Lines(mpsc::Sender<Bytes>);

/// The client went away.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Lines {
    /// A writer, and the body that a client reads.
    pub fn new() -> (Self, impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(64);
        (Self(sender), ReceiverStream::new(receiver).map(Ok))
    }

    /// Writes a line; waits for a client that reads slowly.
    pub async fn write(&self, line: Line) -> Result<(), Gone> {
        self.0.send(line.encode()).await.map_err(|_| Gone)
    }

    /// Writes a line of another form.
    pub async fn write_value(&self, value: &serde_json::Value) -> Result<(), Gone> {
        self.0.send(format!("{value}\r\n").into()).await.map_err(|_| Gone)
    }

    /// Returns when the client has gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_dockers() {
        let cases = [
            (
                Line { id: Some("1".into()), ..Line::status("Pulling from team/app") },
                r#"{"status":"Pulling from team/app","id":"1"}"#,
            ),
            (
                Line::of("f2317bc9e853", "Pulling fs layer"),
                r#"{"status":"Pulling fs layer","progressDetail":{},"id":"f2317bc9e853"}"#,
            ),
            (
                Line::bar("108c50f09751", "Downloading", 151, 151),
                r#"{"status":"Downloading","progressDetail":{"current":151,"total":151},"progress":"[==================================================>]     151B/151B","id":"108c50f09751"}"#,
            ),
            (
                Line::bar("8463a052faa6", "Downloading", 69213, 6001729),
                r#"{"status":"Downloading","progressDetail":{"current":69213,"total":6001729},"progress":"[>                                                  ]  69.21kB/6.002MB","id":"8463a052faa6"}"#,
            ),
            (
                Line::bar("f2317bc9e853", "Downloading", 36445, 1084055),
                r#"{"status":"Downloading","progressDetail":{"current":36445,"total":1084055},"progress":"[=>                                                 ]  36.45kB/1.084MB","id":"f2317bc9e853"}"#,
            ),
            (Line::stream("Loaded image: app:one\n"), r#"{"stream":"Loaded image: app:one\n"}"#),
            (Line::error("no"), r#"{"errorDetail":{"message":"no"},"error":"no"}"#),
        ];
        for (line, expected) in cases {
            assert_eq!(line.encode(), format!("{expected}\r\n"));
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (32768, "32.77kB"),
            (1_046, "1.046kB"),
            (7_982_278, "7.982MB"),
            (100_000_000, "100MB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(size(bytes), expected);
        }
    }
}
