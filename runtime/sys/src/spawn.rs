//! Starting another program with exactly the environment, streams and descriptors it is given.
//!
//! std's `Command` sorts and rewrites the environment, opens `/dev/null` by name (inside a container that is the image's file) and
//! lets descriptors through that are meant for somebody else.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

/// A program to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file.
    pub path: &'a CStr,
    /// All of its arguments, its own name first.
    pub args: &'a [CString],
    /// Its environment, as it is.
    pub env: &'a [CString],
    /// What becomes its stdin, stdout and stderr. It gets nothing else.
    pub stdio: [BorrowedFd<'a>; 3],
}

/// These functions return the error instead of setting it.
fn done(code: libc::c_int) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw(code)) }
}

struct Actions(MaybeUninit<libc::posix_spawn_file_actions_t>);

impl Actions {
    fn new(stdio: &[BorrowedFd<'_>; 3]) -> Result<Self, Errno> {
        let mut actions = Self(MaybeUninit::uninit());
        // SAFETY: the place is valid, and initialised by this very call.
        done(unsafe { libc::posix_spawn_file_actions_init(actions.0.as_mut_ptr()) })?;
        for (number, stream) in (0..).zip(stdio) {
            // SAFETY: initialised above; integers otherwise.
            done(unsafe {
                libc::posix_spawn_file_actions_adddup2(actions.0.as_mut_ptr(), stream.as_raw_fd(), number)
            })?;
        }
        // SAFETY: initialised above; an integer otherwise.
        done(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(actions.0.as_mut_ptr(), 3) })?;
        Ok(actions)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    /// A session of its own, no signal blocked, SIGPIPE as programs expect it.
    fn new() -> Result<Self, Errno> {
        let mut attributes = Self(MaybeUninit::uninit());
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        let mut pipe = MaybeUninit::<libc::sigset_t>::uninit();
        let flags = libc::POSIX_SPAWN_SETSID as libc::c_int
            | libc::POSIX_SPAWN_SETSIGMASK as libc::c_int
            | libc::POSIX_SPAWN_SETSIGDEF as libc::c_int;
        // SAFETY: every place is valid, and initialised by the first call that gets it.
        unsafe {
            done(libc::posix_spawnattr_init(attributes.0.as_mut_ptr()))?;
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigemptyset(pipe.as_mut_ptr());
            libc::sigaddset(pipe.as_mut_ptr(), libc::SIGPIPE);
            done(libc::posix_spawnattr_setsigmask(attributes.0.as_mut_ptr(), none.as_ptr()))?;
            done(libc::posix_spawnattr_setsigdefault(attributes.0.as_mut_ptr(), pipe.as_ptr()))?;
            done(libc::posix_spawnattr_setflags(attributes.0.as_mut_ptr(), flags as libc::c_short))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// Starts a program in a session of its own; what keeps it from starting is told at once.
pub fn spawn(program: &Program<'_>) -> Result<Pid, Errno> {
    let pointers = |list: &[CString]| {
        list.iter().map(|text| text.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect::<Vec<_>>()
    };
    let (args, env) = (pointers(program.args), pointers(program.env));
    let (actions, attributes) = (Actions::new(&program.stdio)?, Attributes::new()?);
    let mut pid = 0;
    // SAFETY: the arrays are null-terminated, their strings NUL-terminated, and all of it lives until the call returns; the
    // function writes to none of the strings.
    done(unsafe {
        libc::posix_spawn(
            &mut pid,
            program.path.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
        )
    })?;
    Ok(Pid::from_raw(pid))
}

/// Kills everything in the session of a process that [`spawn`] started, as far as it stayed in its process group.
pub fn kill_group(leader: Pid) -> Result<(), Errno> {
    crate::process::kill(Pid::from_raw(-leader.as_raw()), libc::SIGKILL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    #[test]
    fn environment_and_descriptors_are_exact() {
        let null = std::fs::File::open("/dev/null").expect("open");
        let output = nix::sys::memfd::memfd_create("out", nix::sys::memfd::MFdFlags::empty()).expect("memfd");
        let mut output = std::fs::File::from(output);
        let text = |text: &str| CString::new(text).expect("no NUL");
        let args = [text("sh"), text("-c"), text("tr '\\0' '\\n' < /proc/self/environ; ls /proc/self/fd | wc -l")];
        let env = [text("Z=1"), text("A=2"), text("PATH=/usr/bin:/bin"), text("A=3")];
        let stdio = [null.as_fd(), output.as_fd(), null.as_fd()];
        let pid = spawn(&Program { path: c"/bin/sh", args: &args, env: &env, stdio }).expect("starts");
        assert_eq!(crate::process::wait(pid).expect("wait").status(), 0);
        let missing = spawn(&Program { path: c"/no/such", args: &args, env: &env, stdio });
        assert_eq!(missing, Err(Errno::ENOENT));
        let mut found = String::new();
        output.rewind().and_then(|()| output.read_to_string(&mut found)).expect("read");
        // The shell's own child has the list's folder open; `tr` had its input from the shell, whose environment is ours.
        assert!(found.contains("Z=1\n") && found.ends_with("4\n"), "{found}");
    }
}
