//! Progress of pull, load and import: bars redrawn in place on a terminal, plain lines elsewhere.

use super::units;
use crate::client::Reply;
use crate::exit::{Failure, Outcome};
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

/// One message of the stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Message {
    stream: String,
    status: String,
    id: String,
    progress_detail: Option<Detail>,
    error_detail: Option<ErrorDetail>,
    error: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    current: i64,
    total: i64,
    start: i64,
    hidecounts: bool,
    units: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    message: String,
}

/// Prints a stream of messages to `out` until it ends; an error inside it is the result.
pub async fn show(mut reply: Reply, out: &mut impl Write, width: Option<u16>) -> Outcome {
    let mut screen = Screen { width, lines: HashMap::new() };
    while let Some(message) = reply.object::<Message>().await? {
        if !message.error.is_empty() || message.error_detail.is_some() {
            let detail = message.error_detail.map(|e| e.message).filter(|m| !m.is_empty());
            return Err(Failure::Refused(detail.unwrap_or(message.error)));
        }
        screen.message(&message, out).map_err(|cause| Failure::io("print progress", cause))?;
    }
    Ok(())
}

/// Reads a stream of messages without printing it; an error inside it is the result.
pub async fn drain(reply: Reply) -> Outcome {
    show(reply, &mut io::sink(), None).await
}

/// Lines by id, and how wide the terminal is, if there is one.
struct Screen {
    width: Option<u16>,
    lines: HashMap<String, usize>,
}

impl Screen {
    fn message(&mut self, message: &Message, out: &mut impl Write) -> io::Result<()> {
        let bar =
            message.progress_detail.as_ref().map(|d| bar(d, self.width.unwrap_or(200), now())).unwrap_or_default();
        let Some(_) = self.width else {
            // A bar that can't be redrawn is noise.
            if bar.is_empty() {
                self.plain(message, out)?;
            }
            return out.flush();
        };
        if message.id.is_empty() || message.progress_detail.is_none() && !self.lines.contains_key(&message.id) {
            if message.id.is_empty() {
                // Lines with an id that come later belong to another group, below this line.
                self.lines.clear();
            }
            self.plain(message, out)?;
            return out.flush();
        }
        let last = self.lines.len();
        let line = *self.lines.entry(message.id.clone()).or_insert(last);
        if line == last {
            out.write_all(b"\n")?;
        }
        let up = self.lines.len() - line;
        let pad = if bar.is_empty() { "" } else { " " };
        write!(out, "\x1b[{up}A\x1b[2K\r{}: {}{pad}{bar}\r\x1b[{up}B", message.id, message.status)?;
        out.flush()
    }

    fn plain(&self, message: &Message, out: &mut impl Write) -> io::Result<()> {
        if !message.stream.is_empty() {
            return out.write_all(message.stream.as_bytes());
        }
        let id = if message.id.is_empty() { String::new() } else { format!("{}: ", message.id) };
        writeln!(out, "{id}{}", message.status)
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// "[=====>     ]  1.2MB/3.4MB 5s", as far as it fits.
fn bar(detail: &Detail, width: u16, now: i64) -> String {
    if detail.current <= 0 && detail.total <= 0 {
        return String::new();
    }
    let number = |n: i64| match detail.units.as_str() {
        "" => units::size(n, 4),
        unit => format!("{n} {unit}"),
    };
    if detail.total <= 0 {
        return if detail.units.is_empty() { format!("{:>8}", number(detail.current)) } else { number(detail.current) };
    }
    let mut text = String::new();
    if width > 110 {
        let half = usize::try_from(detail.current.clamp(0, detail.total) * 50 / detail.total).unwrap_or(0);
        let blanks = 50 - half;
        text = format!("[{}>{}] ", "=".repeat(half), " ".repeat(blanks));
    }
    if detail.hidecounts {
        return text;
    }
    if detail.current > detail.total {
        // The total was a guess.
        return format!("{text}{:>8}", number(detail.current));
    }
    text.push_str(&match detail.units.as_str() {
        "" => format!("{:>8}/{}", number(detail.current), number(detail.total)),
        unit => format!("{}/{} {unit}", detail.current, detail.total),
    });
    if width > 50 && detail.current > 0 && detail.start > 0 && detail.current < detail.total {
        let spent = now.saturating_sub(detail.start).max(0);
        let left = spent.saturating_mul(detail.total - detail.current) / detail.current;
        text.push_str(&format!(" {left}s"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(current: i64, total: i64) -> Detail {
        Detail { current, total, ..Detail::default() }
    }

    #[test]
    fn bars() {
        let full = bar(&detail(50, 100), 120, 0);
        assert_eq!(full, format!("[{}>{}]      50B/100B", "=".repeat(25), " ".repeat(25)));
        assert_eq!(bar(&detail(50, 100), 80, 0), "     50B/100B");
        assert_eq!(bar(&detail(5_000_000, 0), 80, 0), "     5MB");
        assert_eq!(bar(&detail(0, 0), 80, 0), "");
        assert_eq!(bar(&Detail { start: 10, ..detail(50, 200) }, 80, 20), "     50B/200B 30s");
        assert_eq!(bar(&Detail { units: "items".into(), ..detail(1, 2) }, 80, 0), "1/2 items");
    }

    fn shown(width: Option<u16>, messages: &[&str]) -> String {
        let mut screen = Screen { width, lines: HashMap::new() };
        let mut out = Vec::new();
        for text in messages {
            screen.message(&serde_json::from_str(text).unwrap(), &mut out).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    const PULL: [&str; 6] = [
        r#"{"status":"Pulling from library/x","id":"latest"}"#,
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"aaa"}"#,
        r#"{"status":"Pulling fs layer","progressDetail":{},"id":"bbb"}"#,
        r#"{"status":"Downloading","progressDetail":{"current":5,"total":10},"id":"aaa"}"#,
        r#"{"status":"Pull complete","progressDetail":{},"id":"aaa"}"#,
        r#"{"status":"Status: Downloaded newer image for x:latest"}"#,
    ];

    #[test]
    fn without_a_terminal_there_are_lines() {
        assert_eq!(
            shown(None, &PULL),
            "latest: Pulling from library/x\naaa: Pulling fs layer\nbbb: Pulling fs layer\naaa: Pull complete\nStatus: Downloaded newer image for x:latest\n"
        );
        assert_eq!(shown(None, &[r#"{"stream":"Loaded image: x:y\n"}"#]), "Loaded image: x:y\n");
    }

    #[test]
    fn with_a_terminal_lines_are_redrawn() {
        let text = shown(Some(80), &PULL);
        assert!(
            text.starts_with("latest: Pulling from library/x\n\n\x1b[1A\x1b[2K\raaa: Pulling fs layer\r\x1b[1B"),
            "{text:?}"
        );
        assert!(text.contains("\x1b[2A\x1b[2K\raaa: Downloading       5B/10B\r\x1b[2B"), "{text:?}");
        assert!(
            text.ends_with("\rStatus: Downloaded newer image for x:latest\n")
                || text.ends_with("\x1b[2BStatus: Downloaded newer image for x:latest\n"),
            "{text:?}"
        );
    }
}
