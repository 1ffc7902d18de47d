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
pub(crate) struct Hold {
    reaper: Rc<Reaper>,
    since: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut table = self.reaper.table.borrow_mut();
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
        Hold { reaper: self.clone(), since: ticks_since_boot() }
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
}

impl Hold {
    /// Kills what a runtime left when it died half-way: children that nobody waits for and that are younger than this hold.
    /// `init` is that of the container in question, if it has a pid namespace of its own.
    ///
    /// Orphans of a container without one look the same, but are in its cgroup: the cgroups of those we wait for are spared,
    /// except init's. Nothing is killed while another operation runs, whose process may have come to be and not been claimed
    /// yet; what is left then is the forced deletion's to find.
    pub(crate) fn kill_strays(&self, init: Option<u32>) {
        let table = self.reaper.table.borrow();
        if table.holds > 1 {
            return;
        }
        let cgroup = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let mine = init.map(|pid| cgroup(pid.cast_signed()));
        let mut spared: HashSet<String> = table.awaited.keys().map(|pid| cgroup(*pid)).collect();
        if let Some(mine) = mine {
            spared.remove(&mine);
        }
        for pid in children(std::process::id()) {
            let young = started_at(pid).is_some_and(|at| at >= self.since);
            if young && !table.awaited.contains_key(&pid) && !spared.contains(&cgroup(pid)) {
                // It is our child and not reaped, so the number still means it.
                let _ = sys::process::kill(Pid::from_raw(pid), nix::libc::SIGKILL);
            }
        }
    }
}

/// Kills a child that hangs, with everything it has started. As long as the shim, their subreaper, has not reaped them the
/// numbers mean what they meant.
pub(crate) fn kill_tree(pid: u32) {
    let mut all = vec![pid.cast_signed()];
    let mut next = 0;
    while let Some(parent) = all.get(next) {
        all.extend(children(parent.unsigned_abs()));
        next += 1;
    }
    for pid in all {
        let _ = sys::process::kill(Pid::from_raw(pid), nix::libc::SIGKILL);
    }
}

fn children(pid: u32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Start of a process in ticks since boot (proc_pid_stat(5), field 22).
fn started_at(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, brackets too.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The same clock, now, rounded down.
fn ticks_since_boot() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_whitespace().next().unwrap_or_default();
    // Hundredths of a second, which are ticks on every architecture Linux runs containers on.
    seconds.replace('.', "").parse().unwrap_or(u64::MAX)
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

    /// In a process of its own: other tests have children too.
    #[test]
    fn strays() {
        let mut command = std::process::Command::new(std::env::current_exe().expect("exe"));
        command.args(["--exact", "--ignored", "reaper::tests::the_young_and_unclaimed_are_killed"]);
        let output = command.output().expect("run");
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    #[ignore = "kills children of its process; run by the test above"]
    fn the_young_and_unclaimed_are_killed() {
        let reaper = Rc::new(Reaper::default());
        let mut old = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        std::thread::sleep(std::time::Duration::from_millis(30)); // the clock has ticks of 10 ms
        let hold = reaper.hold();
        let mut tree = std::process::Command::new("sh").args(["-c", "sleep 100 & wait"]).spawn().expect("sh");
        let mut claimed = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        let _exit = reaper.claim(claimed.id());
        while children(tree.id()).is_empty() {
            std::thread::yield_now();
        }
        let grandchild = children(tree.id())[0];
        let other = reaper.hold();
        hold.kill_strays(Some(claimed.id()));
        assert!(tree.try_wait().expect("wait").is_none(), "another operation runs");
        drop(other);
        kill_tree(tree.id());
        assert!(!tree.wait().expect("wait").success());
        let ended = || {
            started_at(grandchild).is_none_or(|_| {
                std::fs::read_to_string(format!("/proc/{grandchild}/stat")).is_ok_and(|stat| stat.contains(") Z"))
            })
        };
        while !ended() {
            std::thread::yield_now();
        }
        let mut stray = std::process::Command::new("sleep").arg("100").spawn().expect("sleep");
        hold.kill_strays(Some(claimed.id()));
        assert!(!stray.wait().expect("wait").success());
        assert!(old.try_wait().expect("wait").is_none() && claimed.try_wait().expect("wait").is_none());
        for child in [&mut old, &mut claimed] {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
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
