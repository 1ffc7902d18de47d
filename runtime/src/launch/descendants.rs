//! All that a hook has started, for when it takes too long: a process group holds only those that stay in it.
//!
//! While the hook runs its orphans become our children, wherever they have gone. When the hook and its group are killed, the rest
//! comes to us, and goes the same way; whatever those leave comes next.

#![expect(clippy::disallowed_methods, reason = "the host's procfs, before the container is entered")]

use std::path::Path;

use nix::unistd::Pid;
use sys::process::{is_child_subreaper, is_single_threaded, kill, set_child_subreaper, wait};

/// Adopts orphans until it is dropped.
pub(super) struct Adopter {
    /// Children that are not the hook's.
    others: Vec<Pid>,
    was_on: bool,
}

impl Adopter {
    /// Begins. `None` where our children cannot be told from those of others: the hook's group has to do then.
    pub(super) fn new() -> Option<Self> {
        // Another thread's children are ours too.
        if !is_single_threaded() {
            return None;
        }
        let (others, was_on) = (children()?, is_child_subreaper().ok()?);
        set_child_subreaper(true).ok()?;
        Some(Self { others, was_on })
    }

    /// Kills whatever has come since.
    pub(super) fn end(&self) {
        // Not for ever, should something fork faster than it is killed.
        const ROUNDS: u32 = 1000;
        for _ in 0..ROUNDS {
            let mut new = children().unwrap_or_default();
            new.retain(|pid| !self.others.contains(pid));
            if new.is_empty() {
                return;
            }
            for pid in new {
                // A child that was not waited for keeps its pid: nobody else can be hit.
                let _ = kill(pid, nix::libc::SIGKILL);
                let _ = wait(pid);
            }
        }
    }
}

impl Drop for Adopter {
    fn drop(&mut self) {
        // What switched it on can switch it off.
        let _ = set_child_subreaper(self.was_on);
    }
}

/// The children of this process, which has one thread. `None` where procfs shows another pid namespace than ours.
fn children() -> Option<Vec<Pid>> {
    let own = std::process::id().to_string();
    if std::fs::read_link("/proc/self").ok()? != Path::new(&own) {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).ok()?;
    Some(text.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
}
