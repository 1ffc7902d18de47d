//! Notices that the kernel killed something in a container because memory ran out.

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::sys::{
    eventfd::{EfdFlags, EventFd},
    inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::{io::Interest, task::AbortHandle};

use crate::cgroup::{Cgroup, table, value};

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
        let now = value(&table(&self.folder, self.file), "oom_kill");
        now > self.seen.replace(now.max(self.seen.get()))
    }
}

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct OomWatch {
    counter: Rc<Counter>,
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
        let counter = Rc::new(Counter { folder, file, seen: Cell::new(0) });
        counter.has_grown();
        let fd = notifier(cgroup, &counter.folder).ok()?;
        let fd = crate::io::watch(fd, Interest::READABLE).ok()?;
        let watched = counter.clone();
        let task = tokio::task::spawn_local(async move {
            // An eventfd gives 8 bytes, inotify records that only say what is known already.
            let mut scratch = [0; 4096];
            loop {
                let read = fd.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, &mut scratch)?)).await;
                if !matches!(read, Ok(1..)) {
                    break;
                }
                // Also readable when the cgroup goes away.
                if watched.has_grown() {
                    told();
                }
            }
        });
        Some(Self { counter, task: task.abort_handle() })
    }

    /// Asks the counter itself: a death by the kernel's hand may be seen before its notification.
    pub(crate) fn has_grown(&self) -> bool {
        self.counter.has_grown()
    }
}
