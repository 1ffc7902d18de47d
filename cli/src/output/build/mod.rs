//! Progress of a build by BuildKit's protocol: what is known of every step (`model`), and four ways to show it.

pub mod live;
pub mod model;
pub mod plain;
pub mod raw;

use crate::exit::{Failure, Outcome};
use model::Build;
use proto::moby::buildkit::v1::StatusResponse;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::Duration;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A tree that is redrawn.
    Tty,
    /// Lines.
    Plain,
    /// One JSON object per message of the builder.
    RawJson,
    /// Not at all.
    Quiet,
}

impl Mode {
    /// The mode of that name; "auto" depends on the terminal.
    pub fn of(name: &str) -> Outcome<Self> {
        let terminal = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        match name {
            "" | "auto" if terminal => Ok(Self::Tty),
            "" | "auto" | "plain" => Ok(Self::Plain),
            "tty" if io::stderr().is_terminal() => Ok(Self::Tty),
            "tty" => Err(Failure::Refused("ERROR: failed to get console: standard error is not a terminal".to_owned())),
            "rawjson" => Ok(Self::RawJson),
            "quiet" | "none" => Ok(Self::Quiet),
            _ => Err(Failure::Refused(format!(
                "ERROR: invalid progress mode {name}: auto, plain, tty, rawjson or quiet"
            ))),
        }
    }
}

/// Shows a build on standard error.
#[derive(Debug)]
pub struct Progress {
    build: Build,
    view: View,
}

#[derive(Debug)]
enum View {
    Live(live::Screen),
    Plain(plain::Plain),
    Raw,
    None,
}

impl Progress {
    /// Shows nothing yet.
    pub fn new(mode: Mode) -> Self {
        let view = match mode {
            Mode::Tty => View::Live(live::Screen::new(size(), super::colours())),
            Mode::Plain => View::Plain(plain::Plain::default()),
            Mode::RawJson => View::Raw,
            Mode::Quiet => View::None,
        };
        Self { build: Build::default(), view }
    }

    /// What is known.
    pub fn build(&self) -> &Build {
        &self.build
    }

    /// Takes what the builder says; `now` is time since the epoch.
    pub fn update(&mut self, response: &StatusResponse, now: Duration) -> Outcome {
        let touched = self.build.update(response, now);
        match &mut self.view {
            View::Plain(plain) => write(&plain.update(&mut self.build, &touched, now)),
            View::Raw => write(&raw::line(response)),
            View::Live(_) | View::None => Ok(()),
        }
    }

    /// The next frame.
    pub fn draw(&mut self, now: Duration) -> Outcome {
        match &mut self.view {
            View::Live(screen) => write(&screen.draw(&self.build, now)),
            View::Plain(plain) => write(&plain.update(&mut self.build, &[], now)),
            View::Raw | View::None => Ok(()),
        }
    }

    /// The terminal has another size now.
    pub fn resize(&mut self, now: Duration) -> Outcome {
        match &mut self.view {
            View::Live(screen) => write(&screen.resize(size(), &self.build, now)),
            _ => Ok(()),
        }
    }

    /// What stays: the last frame, the last lines, and what failed steps have said.
    pub fn finish(&mut self, now: Duration) -> Outcome {
        let text = match &mut self.view {
            View::Live(screen) => screen.finish(&self.build, now) + &self.build.failures(),
            View::Plain(plain) => plain.finish(&mut self.build, now) + &self.build.failures(),
            View::Raw => return Ok(()),
            View::None => self.build.failures(),
        };
        write(&text)
    }
}

fn write(text: &str) -> Outcome {
    if text.is_empty() {
        return Ok(());
    }
    io::stderr().write_all(text.as_bytes()).map_err(|cause| Failure::io("print progress", cause))
}

fn size() -> live::Size {
    let (columns, rows) =
        sys::pty::size(io::stderr().as_fd()).map(|size| (size.columns, size.rows)).unwrap_or_default();
    let or = |n: u16, default| if n == 0 { default } else { usize::from(n) };
    live::Size { columns: or(columns, 80), rows: or(rows, 24) }
}

/// "1.53MB", as BuildKit shows sizes.
pub fn bytes(count: i64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
    let mut size = count as f64;
    let mut unit = 0;
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    while size.abs() >= 1000.0 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{size:.2}{}", UNITS[unit]) }
}
