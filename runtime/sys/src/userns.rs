//! User namespaces made by a process that has threads, which the kernel lets neither make nor enter one (unshare(2), setns(2)).
//!
//! A child makes them, and its maps are written from outside while it waits. It shares our memory, as with vfork(2), so that it costs
//! nothing to copy; the thread that cloned it therefore waits as long as it lives, and another one does the rest.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::{Pid, pipe2};

use crate::ns;
use crate::raw::check;

/// One range of ids: `length` of them, from `inside` on in the namespace and from `outside` on in ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first id in the namespace.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many there are.
    pub length: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    /// Those of users.
    pub uids: Vec<Range>,
    /// Those of groups.
    pub gids: Vec<Range>,
}

impl Maps {
    /// Ids as snapshots and mounts have them, `INSIDE:OUTSIDE:LENGTH` with commas between several. `None` if that isn't what they are.
    pub fn parse(uids: &str, gids: &str) -> Option<Self> {
        let range = |text: &str| {
            let numbers: Vec<u32> = text.split(':').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            let [inside, outside, length] = numbers[..] else { return None };
            Some(Range { inside, outside, length })
        };
        let all = |text: &str| text.split(',').map(range).collect::<Option<Vec<_>>>();
        Some(Self { uids: all(uids)?, gids: all(gids)? })
    }

    /// What the ids of `user` and `group` are outside.
    pub fn outside(&self, user: u32, group: u32) -> Option<(u32, u32)> {
        let find = |ranges: &[Range], id: u32| {
            ranges.iter().find_map(|range| {
                let offset = id.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
                range.outside.checked_add(offset)
            })
        };
        Some((find(&self.uids, user)?, find(&self.gids, group)?))
    }
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().map(|one| format!("{} {} {}\n", one.inside, one.outside, one.length)).collect()
}

/// What the child is told.
struct Start {
    /// Namespaces to make once it has its ids.
    namespaces: u64,
    /// Where it waits.
    wait: RawFd,
    /// The other end, which it must not keep open.
    other: RawFd,
    /// Where it says how it fared.
    tell: RawFd,
}

const STACK: usize = 64 << 10;

/// Makes a user namespace with these ids, and in it, so that they are its own, the namespaces of `namespaces` (`CLONE_NEW*` flags).
/// `found` is called with the process that is in them, and that ends afterwards.
pub fn make<T>(maps: &Maps, namespaces: u64, found: impl FnOnce(Pid) -> Result<T, Errno>) -> Result<T, Errno> {
    let (wait, go) = pipe2(OFlag::O_CLOEXEC)?;
    let (hear, tell) = pipe2(OFlag::O_CLOEXEC)?;
    let start = Start { namespaces, wait: wait.as_raw_fd(), other: go.as_raw_fd(), tell: tell.as_raw_fd() };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("userns".to_owned()).stack_size(128 << 10);
        let thread = thread.spawn_scoped(scope, move || {
            let child = clone(&start);
            // Both of the child's: without it nobody else would end a read of theirs.
            drop((wait, tell));
            child.and_then(crate::process::wait)
        });
        let thread = thread.map_err(|error| of_io(&error))?;
        let done = attend(fs::File::from(hear), go, maps, found);
        match thread.join() {
            Ok(Err(not_cloned)) => Err(not_cloned),
            Ok(Ok(_)) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A user namespace for the sake of its ids: for mounts (`mount::set_id_mapping`).
pub fn of_ids(maps: &Maps) -> Result<OwnedFd, Errno> {
    make(maps, 0, |pid| {
        fs::File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from).map_err(|error| of_io(&error))
    })
}

fn of_io(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Our part; the child goes on at a byte, and ends when `go` is closed.
fn attend<T>(
    mut hear: fs::File,
    go: OwnedFd,
    maps: &Maps,
    found: impl FnOnce(Pid) -> Result<T, Errno>,
) -> Result<T, Errno> {
    let mut number = || {
        let mut bytes = [0; 4];
        hear.read_exact(&mut bytes).map(|()| i32::from_ne_bytes(bytes)).map_err(|error| of_io(&error))
    };
    let pid = number()?;
    for (file, ranges) in [("uid_map", &maps.uids), ("gid_map", &maps.gids)] {
        fs::write(format!("/proc/{pid}/{file}"), lines(ranges)).map_err(|error| of_io(&error))?;
    }
    let mut go = fs::File::from(go);
    go.write_all(&[1]).map_err(|error| of_io(&error))?;
    match number()? {
        0 => found(Pid::from_raw(pid)),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Comes back when the child has ended.
fn clone(start: &Start) -> Result<Pid, Errno> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    // A handler of ours would run in the child, in our memory.
    let former = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_NEWUSER | libc::SIGCHLD;
    // SAFETY: the stack is the child's alone, aligned to 16, and its top is one past the end of the vector; `start` and the stack
    // live until the child has ended, for that is when CLONE_VFORK lets this thread go on.
    let cloned = check(libc::c_long::from(unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast();
        libc::clone(live, top, flags, std::ptr::from_ref(start).cast_mut().cast())
    }));
    let restored = former.thread_set_mask();
    let pid = Pid::from_raw(cloned? as libc::pid_t);
    restored.map(|()| pid)
}

/// The child: system calls alone. Whatever fails ends it, and with it the pipe that it tells by.
extern "C" fn live(argument: *mut libc::c_void) -> libc::c_int {
    // SAFETY: the parent's `Start`, which lives as long as this; calls take integers, or pointers to locals of the length given.
    // `errno` is that of the thread that waits for us.
    unsafe {
        let start = &*argument.cast::<Start>();
        let tell = |number: i32| libc::write(start.tell, (&raw const number).cast(), size_of::<i32>()) == 4;
        let mut byte = 0_u8;
        let mut told = || libc::read(start.wait, (&raw mut byte).cast(), 1) == 1;
        libc::close(start.other);
        if !tell(libc::getpid()) || !told() {
            return 1;
        }
        let made = match start.namespaces {
            0 => Ok(()),
            flags => ns::unshare(flags),
        };
        tell(made.err().map_or(0, |errno| errno as i32));
        told();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_words() {
        let range = |inside, outside, length| Range { inside, outside, length };
        let maps = Maps::parse("0:1000:10,10:5000:5", "0:7:2").expect("maps");
        assert_eq!(maps.uids, [range(0, 1000, 10), range(10, 5000, 5)]);
        assert_eq!((maps.outside(12, 1), maps.outside(15, 0), maps.outside(0, 2)), (Some((5002, 8)), None, None));
        for bad in ["", "0", "0:1", "0:1:2:3", "0:1:x", "0:1:-1", "0:1:2,", "0:1:4294967296"] {
            assert_eq!(Maps::parse(bad, "0:1:2"), None, "{bad:?}");
        }
    }

    #[test]
    fn namespaces_belong_to_the_one_of_users() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let maps = Maps::parse("0:100000:65536", "0:200000:65536").expect("maps");
        let flags = (libc::CLONE_NEWNET | libc::CLONE_NEWUTS) as u64;
        let (uids, gids, owner, lo) = make(&maps, flags, |pid| {
            let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).map_err(|error| of_io(&error));
            let link = |name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).map_err(|error| of_io(&error));
            let own = fs::read_link("/proc/self/ns/net").map_err(|error| of_io(&error))?;
            Ok((read("uid_map")?, read("gid_map")?, link("net")? != own, read("net/dev")?))
        })
        .expect("namespaces");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((words(&uids), words(&gids)), (words("0 100000 65536"), words("0 200000 65536")));
        assert!(owner && lo.contains("lo:"), "{lo}");
        assert_eq!(ns::kind(of_ids(&maps).expect("for its ids")), Ok(libc::CLONE_NEWUSER as u64));
        // What the kernel doesn't take ends it, and nothing stays.
        let twice = Maps::parse("0:1:5,3:9:2", "0:1:1").expect("maps");
        assert_eq!(make(&twice, 0, |_| Ok(())), Err(Errno::EINVAL));
        assert_eq!(make(&maps, libc::CLONE_FILES as u64, |_| Ok(())), Err(Errno::EINVAL));
        assert_eq!(make(&maps, 0, |_| Err::<(), _>(Errno::EBUSY)), Err(Errno::EBUSY));
    }
}
