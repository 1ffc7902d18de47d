//! Progress of pull, push, load and import: bars redrawn in place on a terminal, a line per change elsewhere.
//!
//! `board` is what is known of every layer, `frame` makes lines of it for a terminal of a given size, `screen` puts them where the
//! last ones were. A frame is one write, and there are at most fifteen of them a second.

mod board;
mod frame;
mod plain;
mod screen;

use crate::client::Reply;
use crate::exit::{Failure, Outcome};
use serde::Deserialize;
use std::{
    env,
    io::{self, IsTerminal, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// The least time from one frame to the next.
const FRAME: Duration = Duration::from_millis(67);
/// Rate and time left change even while nothing arrives.
const IDLE: Duration = Duration::from_secs(1);

/// One message of the stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Message {
    stream: String,
    status: String,
    id: String,
    progress_detail: Option<Detail>,
    error_detail: Option<ErrorDetail>,
    error: String,
    /// For programs.
    aux: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Detail {
    current: i64,
    total: i64,
    hidecounts: bool,
    units: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    message: String,
}

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error: for what is done on the way to something else.
    Stderr,
}

impl Sink {
    fn write(self, text: &[u8]) -> Outcome {
        let written = match self {
            Self::Stdout => io::stdout().write_all(text).and_then(|()| io::stdout().flush()),
            Self::Stderr => io::stderr().write_all(text),
        };
        written.map_err(|cause| Failure::io("print progress", cause))
    }

    /// Columns and rows, if lines can be redrawn there.
    fn size(self) -> Option<frame::Size> {
        let (terminal, size) = match self {
            Self::Stdout => (io::stdout().is_terminal(), size_of(io::stdout().as_fd())),
            Self::Stderr => (io::stderr().is_terminal(), size_of(io::stderr().as_fd())),
        };
        (terminal && env::var_os("TERM").is_none_or(|term| term != "dumb")).then_some(size)
    }
}

fn size_of(fd: BorrowedFd<'_>) -> frame::Size {
    let (columns, rows) = sys::pty::size(fd).map(|size| (size.columns, size.rows)).unwrap_or_default();
    let or = |n: u16, default| if n == 0 { default } else { usize::from(n) };
    frame::Size { columns: or(columns, 80), rows: or(rows, 24) }
}

/// Shows a stream of messages until it ends; an error inside it is the result.
pub async fn show(reply: Reply, sink: Sink) -> Outcome {
    match sink.size() {
        Some(size) => live(reply, sink, size).await,
        None => lines(reply, |text| sink.write(text)).await,
    }
}

/// Reads a stream of messages without showing it; an error inside it is the result.
pub async fn drain(reply: Reply) -> Outcome {
    lines(reply, |_| Ok(())).await
}

async fn lines(mut reply: Reply, write: impl Fn(&[u8]) -> Outcome) -> Outcome {
    let mut plain = plain::Plain::default();
    while let Some(message) = reply.object::<Message>().await? {
        message.error()?;
        let text = plain.text(&message);
        if !text.is_empty() {
            write(text.as_bytes())?;
        }
    }
    Ok(())
}

async fn live(mut reply: Reply, sink: Sink, size: frame::Size) -> Outcome {
    let mut resized =
        signal(SignalKind::window_change()).map_err(|cause| Failure::io("watch the size of the terminal", cause))?;
    let color = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut screen = screen::Screen::new(size, color);
    let begun = Instant::now();
    let (mut next, mut last) = (None, begun - FRAME);
    let outcome = loop {
        tokio::select! {
            message = reply.object::<Message>() => match message {
                Ok(Some(message)) => {
                    if let Err(failure) = message.error() {
                        break Err(failure);
                    }
                    if let Some(text) = screen.message(&message, begun.elapsed()) {
                        sink.write(text.as_bytes())?;
                    }
                    next = Some(last + FRAME);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            },
            () = tokio::time::sleep_until(next.unwrap_or(begun)), if next.is_some() => {
                last = Instant::now();
                let text = screen.draw(begun.elapsed());
                if !text.is_empty() {
                    sink.write(text.as_bytes())?;
                }
                next = screen.is_live().then(|| last + IDLE);
            }
            _ = resized.recv() => if let Some(size) = sink.size() {
                sink.write(screen.resize(size, begun.elapsed()).as_bytes())?;
            }
        }
    };
    sink.write(screen.finish(begun.elapsed()).as_bytes())?;
    outcome
}

impl Message {
    fn error(&self) -> Outcome {
        let detail = self.error_detail.as_ref().map(|error| error.message.as_str()).filter(|text| !text.is_empty());
        match detail.unwrap_or(&self.error) {
            "" if self.error_detail.is_none() => Ok(()),
            text => Err(Failure::Refused(text.to_owned())),
        }
    }

    /// For people, and about something that is under way.
    fn is_about(&self) -> Option<&str> {
        (!self.id.is_empty() && self.stream.is_empty()).then_some(self.id.as_str())
    }

    /// "id: status", or text of the engine as it is.
    fn line(&self) -> String {
        match (self.stream.as_str(), self.id.as_str()) {
            ("", "") => format!("{}\n", self.status),
            ("", id) => format!("{id}: {}\n", self.status),
            (text, _) => text.to_owned(),
        }
    }

    fn is_silent(&self) -> bool {
        self.stream.is_empty() && self.status.is_empty() && (self.id.is_empty() || self.aux.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn message(json: &str) -> Message {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn errors_inside_the_stream() {
        let of = |json| message(json).error().err().map(|error| error.to_string());
        assert_eq!(of(r#"{"status":"fine"}"#), None);
        assert_eq!(of(r#"{"errorDetail":{"code":1,"message":"long"},"error":"short"}"#).as_deref(), Some("long"));
        assert_eq!(of(r#"{"error":"short"}"#).as_deref(), Some("short"));
        assert!(message(r#"{"progressDetail":{},"aux":{"Tag":"x"}}"#).is_silent());
    }
}
