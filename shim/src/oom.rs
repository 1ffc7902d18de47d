//! Notices that the kernel killed something in a container because memory ran out.
//!
//! The kernel says so by a descriptor (eventfd on version 1, inotify on version 2), but what counts is a counter in the
//! cgroup: it says whether something was killed, it is right also when the notice comes before the deed, as on version 1, and
//! it is read once more when the container's init has ended and its cgroup is about to go.
//!
//! systemd may have removed the cgroup of a container by then. The counter of the cgroup above holds what was counted in it, and with it
//! what was counted beside it: it speaks for the container only if the container's own has been noticed to change.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use crate::cgroup::{Cgroup, table, value};

/// Counts of version 2, which include those of all cgroups below.
const EVENTS: &str = "memory.events";
/// How long after a notice the container's cgroup may be found gone for the notice to have been that of its death.
const NOTICE: Duration = Duration::from_secs(3);
/// When the counter is looked at after a notice that it doesn't bear out yet.
const LOOKS: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(500)];

/// Kills counted in a cgroup.
#[derive(Debug)]
struct Counter {
    folder: PathBuf,
    file: &'static str,
    seen: Cell<u64>,
    /// Of the cgroup above, when the own one was last there; none on version 1.
    above: Cell<Option<u64>>,
    /// The last notice that the own one had changed.
    noticed: Cell<Option<Instant>>,
}

fn kills(folder: &Path, file: &str) -> Option<u64> {
    let counts = table(folder, file);
    // Version 2 counts the members of a group that was killed as a whole (memory.oom.group) under both names.
    counts
        .iter()
        .any(|(name, _)| name == "oom_kill")
        .then(|| value(&counts, "oom_kill").max(value(&counts, "oom_group_kill")))
}

impl Counter {
    /// Whether there were more since it was last asked.
    fn has_grown(&self) -> bool {
        let above = || self.folder.parent().filter(|_| self.file == EVENTS).and_then(|folder| kills(folder, EVENTS));
        if let Some(now) = kills(&self.folder, self.file) {
            self.above.set(above());
            return now > self.seen.replace(now.max(self.seen.get()));
        }
        // It is gone already.
        let noticed = self.noticed.take().is_some_and(|at| at.elapsed() < NOTICE);
        noticed && self.above.get().zip(above()).is_some_and(|(before, now)| now > before)
    }
}

/// The counter, and who is told.
struct Watched {
    counter: Counter,
    told: Box<dyn Fn()>,
    notices: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Reads the notices that are there.
    fn read(&self, notices: &OwnedFd) -> io::Result<usize> {
        // An eventfd gives 8 bytes, inotify records of 16: the second word says what happened (inotify(7)).
        let mut buffer = [0; 4096];
        let count = nix::unistd::read(notices, &mut buffer)?;
        let masks =
            buffer[..count].chunks_exact(16).map(|record| record[4..8].try_into().map_or(0, u32::from_ne_bytes));
        if masks.into_iter().any(|mask| mask & AddWatchFlags::IN_MODIFY.bits() != 0) {
            self.counter.noticed.set(Some(Instant::now()));
        }
        Ok(count)
    }

    fn look(&self) -> bool {
        let grown = self.counter.has_grown();
        if grown {
            (self.told)();
        }
        grown
    }
}

/// Watches until it is dropped.
pub(crate) struct OomWatch {
    watched: Rc<Watched>,
    task: AbortHandle,
}

impl Drop for OomWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn notifier(cgroup: &Cgroup, folder: &Path) -> io::Result<OwnedFd> {
    match cgroup {
        Cgroup::V2(_) => {
            let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
            inotify.add_watch(&folder.join(EVENTS), AddWatchFlags::IN_MODIFY)?;
            Ok(inotify.into())
        }
        Cgroup::V1(_) => {
            // cgroup-v1/memory.rst, 10: "<event_fd> <fd of memory.oom_control>" written to cgroup.event_control.
            let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            let control = File::open(folder.join("memory.oom_control"))?;
            let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
            fs::write(folder.join("cgroup.event_control"), line)?;
            Ok(event.into())
        }
    }
}

impl OomWatch {
    /// Begins to watch; `told` is called for every time that something was killed. `None` where the memory of the
    /// container isn't counted.
    pub(crate) fn begin(cgroup: &Cgroup, told: impl Fn() + 'static) -> Option<Self> {
        let folder = cgroup.folder("memory")?.to_owned();
        let file = if matches!(cgroup, Cgroup::V2(_)) { EVENTS } else { "memory.oom_control" };
        let counter = Counter { folder, file, seen: Cell::new(0), above: Cell::new(None), noticed: Cell::new(None) };
        counter.has_grown();
        let fd = notifier(cgroup, &counter.folder).ok()?;
        let notices = crate::io::watch(fd, Interest::READABLE).ok()?;
        let watched = Rc::new(Watched { counter, told: Box::new(told), notices });
        let noticed = watched.clone();
        let task = tokio::task::spawn_local(async move {
            loop {
                let read = noticed.notices.async_io(Interest::READABLE, |fd| noticed.read(fd)).await;
                if !matches!(read, Ok(1..)) {
                    break;
                }
                let mut looks = LOOKS.iter();
                while !noticed.look()
                    && let Some(pause) = looks.next()
                {
                    // Also readable when the cgroup goes away, or for other counts.
                    tokio::time::sleep(*pause).await;
                }
            }
        });
        Some(Self { watched, task: task.abort_handle() })
    }

    /// Asks the counter itself: a death by the kernel's hand may be seen before its notification.
    pub(crate) fn look(&self) {
        if self.watched.counter.file == EVENTS {
            // Nothing there is fine.
            let _ = self.watched.read(self.watched.notices.get_ref());
        }
        self.watched.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same watch on a folder that looks like a cgroup of version 2.
    #[test]
    fn version_2_counts_kills_of_processes_and_groups() {
        let folder = tempfile::tempdir().expect("folder");
        let write = |text: &str| fs::write(folder.path().join("memory.events"), text).expect("write");
        write("low 0\nhigh 0\nmax 3\noom 1\noom_kill 1\noom_group_kill 0\n");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let told = Rc::new(Cell::new(0));
            let count = told.clone();
            let tell = move || count.set(count.get() + 1);
            let watch = OomWatch::begin(&Cgroup::V2(folder.path().into()), tell).expect("watch");
            let reaches = |wanted: u32| {
                let told = told.clone();
                async move {
                    let until = tokio::time::Instant::now() + Duration::from_secs(5);
                    while told.get() != wanted {
                        assert!(tokio::time::Instant::now() < until, "told {} times, not {wanted}", told.get());
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            };
            // What was counted before isn't news, and another count is none.
            write("low 0\nhigh 5\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n");
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(told.get(), 0);
            write("low 0\nhigh 5\nmax 4\noom 2\noom_kill 2\noom_group_kill 0\n");
            reaches(1).await;
            write("low 0\nhigh 5\nmax 4\noom 2\noom_kill 2\noom_group_kill 3\n");
            reaches(2).await;
            // Asked directly, before any notice: told once, and the notice that follows says nothing new.
            write("low 0\nhigh 5\nmax 4\noom 3\noom_kill 9\noom_group_kill 3\n");
            watch.look();
            assert_eq!(told.get(), 3);
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(told.get(), 3);
            // Without the cgroup, and without one above, there is nothing to count.
            fs::remove_file(folder.path().join("memory.events")).expect("remove");
            watch.look();
            assert_eq!(told.get(), 3);
        });
    }

    #[test]
    fn a_cgroup_that_is_gone_is_spoken_for_by_the_one_above() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        for (noticed, wanted) in [(true, 1), (false, 0)] {
            let above = tempfile::tempdir().expect("folder");
            let own = above.path().join("own");
            fs::create_dir(&own).expect("folder");
            let write = |folder: &Path, kills: u32| {
                fs::write(folder.join(EVENTS), format!("max {kills}\noom_kill {kills}\n")).expect("write");
            };
            write(above.path(), 4);
            write(&own, 0);
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let told = Rc::new(Cell::new(0));
                let count = told.clone();
                let watch =
                    OomWatch::begin(&Cgroup::V2(own.clone()), move || count.set(count.get() + 1)).expect("watch");
                if noticed {
                    write(&own, 0);
                }
                // Something below was killed: this one, or another.
                write(above.path(), 5);
                fs::remove_file(own.join(EVENTS)).expect("remove");
                watch.look();
                watch.look();
                assert_eq!(told.get(), wanted);
            });
        }
    }
}
