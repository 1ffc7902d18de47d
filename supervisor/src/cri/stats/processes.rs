//! What processes have open, and may. The kernel counts it for each process alone, so that every one is looked at.

use std::fs;

use nix::{
    dir::Dir,
    fcntl::{OFlag, open, readlinkat},
    sys::stat::Mode,
};

/// From here on nobody looks which of the files are sockets: a server with a million of them would hold up the answer for all others.
const TOO_MANY: u64 = 50_000;

/// Open files of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) files: u64,
    /// How many of them are sockets, unless there are too many to look.
    pub(super) sockets: Option<u64>,
}

/// What these processes have open; `None` if none of them is there.
pub(super) fn open_files(processes: &[u32]) -> Option<Open> {
    let mut all = None;
    for pid in processes {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let Ok(at) = open(&*format!("/proc/{pid}/fd"), flags, Mode::empty()) else { continue };
        let Ok(mut folder) = Dir::openat(&at, ".", flags, Mode::empty()) else { continue };
        let all = all.get_or_insert(Open { files: 0, sockets: Some(0) });
        for entry in folder.iter().flatten() {
            let name = entry.file_name();
            if name.to_bytes().starts_with(b".") {
                continue;
            }
            all.files += 1;
            if all.files > TOO_MANY {
                all.sockets = None;
            }
            if let Some(sockets) = &mut all.sockets {
                let target = readlinkat(&at, name);
                *sockets += u64::from(target.is_ok_and(|target| target.as_encoded_bytes().starts_with(b"socket:")));
            }
        }
    }
    all
}

/// How many files a process may open; `None` if there is no limit, or no such process.
pub(super) fn open_files_limit(pid: u32) -> Option<u64> {
    limit(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `Max open files            1024                 4096                 files` (proc_pid_limits(5)): the first is the soft one.
fn limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_sockets_are_counted() {
        let own = std::process::id();
        let before = open_files(&[own]).unwrap();
        let sockets: Vec<_> = (0..8).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let now = open_files(&[own, u32::MAX]).unwrap();
        // Other tests of this process open and close theirs.
        assert!(now.files > sockets.len() as u64 && now.sockets.unwrap() >= sockets.len() as u64, "{before:?} {now:?}");
        assert!(now.files >= now.sockets.unwrap());
        assert_eq!(open_files(&[u32::MAX]), None);
    }

    #[test]
    fn limits() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             513                  514                  processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(limit(text), Some(1024));
        assert_eq!(limit("Max open files            unlimited            unlimited            files\n"), None);
        assert!(open_files_limit(std::process::id()).is_some());
        assert_eq!(open_files_limit(u32::MAX), None);
    }
}
