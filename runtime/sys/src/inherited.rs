//! Descriptors a process was started with and doesn't want.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;

use crate::raw::check;

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<(), Errno> {
    if first > last {
        return Ok(());
    }
    // SAFETY: integers only. That nothing else uses these descriptors is what the caller of `close_all_but` states.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// Closes every descriptor above stderr except `keep` (close_range(2), Linux 5.9).
///
/// For a freshly forked child, before it opens anything of its own: a Rust value that owned one of the closed
/// descriptors would be left with a dead number.
pub fn close_all_but(keep: BorrowedFd<'_>) -> Result<(), Errno> {
    let keep = keep.as_raw_fd().unsigned_abs();
    close_range(3, keep.saturating_sub(1))?;
    close_range(keep + 1, libc::c_uint::MAX)
}

/// Closes every descriptor above stderr that execve would close, except `keep`: now rather than then.
///
/// execve looks its program up before it closes anything, so `/proc/self/fd/7/../../bin/sh`, as program or as interpreter, would
/// lead out of the root through a directory of ours (CVE-2024-21626). Those that are to be inherited come right after stderr.
///
/// For a process about to become another program, which drops none of its values any more.
pub fn close_before_execve(keep: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    // SAFETY: F_GETFD takes no argument; a number that is not open is EBADF.
    let is_inherited = |number: RawFd| unsafe { libc::fcntl(number, libc::F_GETFD) } == 0;
    let mut next = (3..).find(|number| !is_inherited(*number)).unwrap_or(3).unsigned_abs();
    let mut kept: Vec<libc::c_uint> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    for number in kept {
        close_range(next, number.saturating_sub(1))?;
        next = next.max(number + 1);
    }
    close_range(next, libc::c_uint::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::process::{exit_now, wait};

    #[test]
    fn only_inherited_and_kept_descriptors_stay() {
        // In a process of its own: the other tests' descriptors would go too. Several threads are about, so a plain fork it is.
        let file = || std::fs::File::open("/").expect("open");
        // SAFETY: the child only opens, closes, asks and exits.
        let pid = match unsafe { libc::fork() } {
            0 => {
                let failed = close_range(3, libc::c_uint::MAX).is_err();
                let (first, second, third, fourth) = (file(), file(), file(), file());
                let numbers = [&first, &second, &third, &fourth].map(AsRawFd::as_raw_fd);
                let failed = failed || numbers != [3, 4, 5, 6] || crate::fd::set_cloexec(3, false).is_err();
                let failed = failed || close_before_execve(&[third.as_fd()]).is_err();
                // SAFETY: asks only.
                let open = numbers.map(|number| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0);
                exit_now(i32::from(failed || open != [true, false, true, false]))
            }
            pid => nix::unistd::Pid::from_raw(pid),
        };
        assert_eq!(wait(pid).expect("wait").status(), 0);
    }
}
