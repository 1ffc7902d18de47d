//! The criu of this machine. The tests of shim and supervisor read this file too.

use std::process::{Command, Stdio};

/// Whether criu is there and works on this kernel; Debian 12's does on Debian 12's. Says so where a test is skipped for it.
pub(crate) fn works() -> bool {
    let Ok(output) = Command::new("criu").arg("check").stdin(Stdio::null()).output() else {
        println!("skipped: criu is not installed");
        return false;
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        println!("skipped: criu check: {}", said.lines().next().unwrap_or_default());
    }
    output.status.success()
}
