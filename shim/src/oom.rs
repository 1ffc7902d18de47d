//! Notices that the kernel killed something in a container because memory ran out.
//!
//! The kernel says so by a descriptor (eventfd on version 1, inotify on version 2), but what counts is a counter in the
//! cgroup: it says whether something was killed, it is right also when the notice comes before the deed, as on version 1, and
//! it is read once more when the container's init has ended and its cgroup is about to go.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{io::Interest, task::AbortHandle};

use crate::cgroup::{Cgroup, table, value};

/// When the counter is looked at after a notice that it doesn't bear out yet.
const LOOKS: [Duration; 3] = [Duration::from_millis(5), Duration::from_millis(50), Duration::from_millis(500)];

/// Kills counted in a cgroup.
#[derive(Debug)]
struct Counter {
    folder: PathBuf,
    file: &'static str,
    seen: Cell<u64>,
}

impl Counter {
    /// Whether there were more since it was last asked.
    fn has_grown(&self) -> bool {
        let counts = table(&self.folder, self.file);
        // Version 2 counts the members of a group that was killed as a whole (memory.oom.group) under both names.
        let now = value(&counts, "oom_kill").max(value(&counts, "oom_group_kill"));
        now > self.seen.replace(now.max(self.seen.get()))
    }
}

/// The counter, and who is told.
struct Watched {
    counter: Counter,
    told: Box<dyn Fn()>,
}

impl Watched {
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
            inotify.add_watch(&folder.join("memory.events"), AddWatchFlags::IN_MODIFY)?;
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
        let file = if matches!(cgroup, Cgroup::V2(_)) { "memory.events" } else { "memory.oom_control" };
        let counter = Counter { folder, file, seen: Cell::new(0) };
        counter.has_grown();
        let fd = notifier(cgroup, &counter.folder).ok()?;
        let fd = crate::io::watch(fd, Interest::READABLE).ok()?;
        let watched = Rc::new(Watched { counter, told: Box::new(told) });
        let noticed = watched.clone();
        let task = tokio::task::spawn_local(async move {
            // An eventfd gives 8 bytes, inotify records that only say what is known already.
            let mut scratch = [0; 4096];
            loop {
                let read = fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut scratch)?)).await;
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
            // Without the cgroup there is nothing to count.
            fs::remove_file(folder.path().join("memory.events")).expect("remove");
            watch.look();
            assert_eq!(told.get(), 3);
        });
    }
}
