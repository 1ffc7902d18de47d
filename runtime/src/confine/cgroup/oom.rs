//! Says when the kernel has killed for want of memory: by eventfd on v1, by watching `memory.events` on cgroup2.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use sys::Errno;

use super::{Cgroup, CgroupError, Hierarchy, files, stats::Files};

/// A watch on one cgroup.
#[derive(Debug)]
pub(crate) struct OomWatch<'a> {
    hierarchy: &'a Hierarchy,
    path: &'a str,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Legacy(EventFd),
    /// The watch, and how often it had happened.
    Unified(Inotify, u64),
}

const EVENTS: &str = "memory.events";
const CONTROL: &str = "cgroup.event_control";

impl Cgroup {
    /// Begins to watch; `None` without a memory controller.
    pub(crate) fn watch_oom(&self) -> Result<Option<OomWatch<'_>>, CgroupError> {
        let path = self.path.as_str();
        if let Some(hierarchy) = self.legacy.iter().find(|hierarchy| hierarchy.controls("memory")) {
            return Ok(Some(OomWatch { hierarchy, path, source: legacy(hierarchy, path)? }));
        }
        let Some(hierarchy) = self.unified.as_ref().filter(|_| self.is_unified()) else { return Ok(None) };
        let file = hierarchy.mount_point().join(path).join(EVENTS);
        let failed = |cause| CgroupError::Read { file: file.display().to_string(), cause };
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        match watch.add_watch(&file, AddWatchFlags::IN_MODIFY) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(failed)?,
        };
        let count = count(hierarchy, path)?;
        Ok(Some(OomWatch { hierarchy, path, source: Source::Unified(watch, count) }))
    }
}

fn legacy(hierarchy: &Hierarchy, path: &str) -> Result<Source, CgroupError> {
    let file = format!("{path}/memory.oom_control");
    let failed = |cause| CgroupError::Read { file: file.clone(), cause };
    let control =
        openat(&hierarchy.dir, file.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(failed)?;
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(failed)?;
    files::write(hierarchy, path, CONTROL, &format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd()))?;
    Ok(Source::Legacy(event))
}

fn count(hierarchy: &Hierarchy, path: &str) -> Result<u64, CgroupError> {
    Ok(Files { hierarchy, path }.keyed(EVENTS)?.get("oom_kill").copied().unwrap_or(0))
}

impl OomWatch<'_> {
    /// Becomes readable when there is something to ask for.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Legacy(event) => event.as_fd(),
            Source::Unified(watch, _) => watch.as_fd(),
        }
    }

    /// Whether it has happened since the last question.
    pub(crate) fn happened(&mut self) -> Result<bool, CgroupError> {
        match &mut self.source {
            Source::Legacy(event) => {
                // The end of the cgroup is signalled in the same way.
                let alive = || {
                    nix::sys::stat::fstatat(
                        &self.hierarchy.dir,
                        &*format!("{}/{CONTROL}", self.path),
                        nix::fcntl::AtFlags::empty(),
                    )
                    .is_ok()
                };
                Ok(event.read().is_ok() && alive())
            }
            Source::Unified(watch, before) => {
                // What the events say does not matter, only that they are gone from the queue.
                while watch.read_events().is_ok() {}
                let now = match count(self.hierarchy, self.path) {
                    Err(CgroupError::Read { cause: Errno::ENODEV, .. }) => return Ok(false),
                    other => other?,
                };
                let happened = now > *before;
                *before = now;
                Ok(happened)
            }
        }
    }
}
