//! What the shim says about itself: single lines on stderr, which leads to the supervisor (or nowhere).
//!
//! No logging crate: a line per trouble is all there is, and memory is counted here.

use std::io::Write as _;

/// Writes one line to stderr. Nobody may be listening, and that must not matter: errors are dropped.
pub(crate) fn report(line: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("berth-shim: {line}\n").as_bytes());
}

/// Reports a trouble that the shim lives with.
macro_rules! warn_line {
    ($($part:tt)*) => { $crate::report::report(format_args!($($part)*)) };
}
pub(crate) use warn_line;
