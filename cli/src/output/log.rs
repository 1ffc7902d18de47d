//! What `--debug` and `--log-level` make berth tell on standard error.

use std::sync::atomic::{AtomicU8, Ordering};

/// How much is told; the numbers are logrus's.
static LEVEL: AtomicU8 = AtomicU8::new(4);
const DEBUG: u8 = 5;

/// Takes a level by its name.
pub fn set(name: &str) -> Result<(), ()> {
    let level = match name.to_ascii_lowercase().as_str() {
        "panic" => 0,
        "fatal" => 1,
        "error" => 2,
        "warn" | "warning" => 3,
        "info" => 4,
        "debug" => DEBUG,
        "trace" => 6,
        _ => return Err(()),
    };
    LEVEL.store(level, Ordering::Relaxed);
    Ok(())
}

/// `--debug`
pub fn debug_on() {
    LEVEL.store(DEBUG, Ordering::Relaxed);
}

/// Whether debug lines are wanted.
pub fn debug_is_on() -> bool {
    LEVEL.load(Ordering::Relaxed) >= DEBUG
}

/// A line for who asked for it.
pub fn debug(line: impl FnOnce() -> String) {
    if debug_is_on() {
        super::note(&format!("DEBU {}", line()));
    }
}
