//! Reaps every child: runtimes, container processes, and orphans that fall to the shim as their subreaper.
//!
//! A detached container process may die before the runtime has told its pid. While such an operation runs, it holds the
//! reaper ([`Reaper::hold`]): exits that nobody waits for are kept by pid and handed over to whoever claims them. Without
//! a hold they belong to strangers and are forgotten, so that a pid used again can't inherit an old exit.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    rc::Rc,
    time::SystemTime,
};

use nix::unistd::Pid;
use tokio::{signal::unix::Signal, sync::oneshot};

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Exit code, or 128 and the signal.
    pub(crate) status: u32,
    /// When it was reaped.
    pub(crate) at: SystemTime,
}

#[derive(Debug, Default)]
struct Table {
    awaited: HashMap<i32, oneshot::Sender<Exit>>,
    early: HashMap<i32, Exit>,
    holds: usize,
}

impl Table {
    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(waiter) = self.awaited.remove(&pid) {
            // A waiter that gave up needs no answer.
            let _ = waiter.send(exit);
        } else if self.holds > 0 {
            self.early.insert(pid, exit);
        }
    }

    fn claim(&mut self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        match self.early.remove(&pid) {
            Some(exit) => drop(sender.send(exit)),
            None => drop(self.awaited.insert(pid, sender)),
        }
        receiver
    }
}

/// The one place that waits for children.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: RefCell<Table>,
}

/// Keeps unclaimed exits while it lives.
#[derive(Debug)]
pub(crate) struct Hold(Rc<Reaper>);

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.0.table.borrow_mut();
        table.holds -= 1;
        if table.holds == 0 {
            table.early = HashMap::new();
        }
    }
}

impl Reaper {
    /// Begins to keep exits that nobody waits for yet.
    pub(crate) fn hold(self: &Rc<Self>) -> Hold {
        self.table.borrow_mut().holds += 1;
        Hold(self.clone())
    }

    /// Asks for the exit of a child: one that was spawned just now, or one that appeared under a hold.
    pub(crate) fn claim(&self, pid: u32) -> oneshot::Receiver<Exit> {
        self.table.borrow_mut().claim(pid.cast_signed())
    }

    /// Reaps on every SIGCHLD, for ever.
    pub(crate) async fn run(self: Rc<Self>, mut signals: Signal) {
        while signals.recv().await.is_some() {
            self.reap();
        }
    }

    fn reap(&self) {
        // Signals coalesce: one may stand for many children.
        while let Ok(Some((pid, exit))) = sys::process::reap_any() {
            let exit = Exit { status: exit.status().unsigned_abs(), at: SystemTime::now() };
            self.table.borrow_mut().ended(pid.as_raw(), exit);
        }
    }

    /// Kills children that nobody waits for: what a runtime left when it died half-way.
    ///
    /// Orphans of a container without a pid namespace of its own look the same, but are in that container's cgroup, and those of
    /// another operation are about to be claimed: where there may be either, nothing is killed, and what is left is the
    /// forced deletion's to find.
    pub(crate) fn kill_strays(&self) {
        let table = self.table.borrow();
        if table.holds > 1 {
            return;
        }
        let own = std::process::id();
        let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).unwrap_or_default();
        let cgroup = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let known: HashSet<i32> = table.awaited.keys().copied().collect();
        let spared: HashSet<String> = known.iter().map(|pid| cgroup(*pid)).collect();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()) {
            if !known.contains(&pid) && !spared.contains(&cgroup(pid)) {
                // It is our child and not reaped, so the number still means it.
                let _ = sys::process::kill(Pid::from_raw(pid), nix::libc::SIGKILL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit { status, at: SystemTime::UNIX_EPOCH }
    }

    #[test]
    fn early_exits_are_kept_only_under_a_hold() {
        let reaper = Rc::new(Reaper::default());
        reaper.table.borrow_mut().ended(7, exit(1));
        assert!(reaper.claim(7).try_recv().is_err(), "a stranger's exit isn't ours");
        let hold = reaper.hold();
        reaper.table.borrow_mut().ended(8, exit(2));
        assert_eq!(reaper.claim(8).try_recv(), Ok(exit(2)));
        reaper.table.borrow_mut().ended(9, exit(3));
        drop(hold);
        assert!(reaper.claim(9).try_recv().is_err(), "the hold is over");
    }

    #[test]
    fn a_claim_before_the_exit_is_answered() {
        let reaper = Rc::new(Reaper::default());
        let mut claim = reaper.claim(7);
        assert!(claim.try_recv().is_err());
        reaper.table.borrow_mut().ended(7, exit(5));
        assert_eq!(claim.try_recv(), Ok(exit(5)));
    }
}
