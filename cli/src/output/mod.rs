//! What is printed: tables, templates, JSON, progress, sizes and times.

pub mod json;
pub mod listing;
pub mod progress;
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

/// Writes a line to standard error.
pub fn note(text: &str) {
    // Nobody is left to hear about a closed standard error.
    let _ = writeln!(io::stderr(), "{text}");
}
