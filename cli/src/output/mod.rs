//! What is printed: tables, templates, JSON, progress, sizes and times.

pub mod build;
pub mod json;
pub mod listing;
pub mod log;
pub mod order;
pub mod progress;
pub mod similar;
pub mod table;
pub mod template;
pub mod time;
pub mod units;
pub mod value;

use crate::exit::{Failure, Outcome};
use std::io::{self, Write};

/// Writes to standard output.
pub fn print(text: &str) -> Outcome {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|cause| Failure::io("write /dev/stdout", cause))
}

/// Writes a line to standard output.
pub fn print_line(text: &str) -> Outcome {
    print(&format!("{text}\n"))
}

/// Colours are not unwanted (NO_COLOR).
pub fn colours() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes a line to standard error.
pub fn note(text: &str) {
    // Nobody is left to hear about a closed standard error.
    let _ = writeln!(io::stderr(), "{text}");
}
