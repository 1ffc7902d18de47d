//! The last stretch of a process on its way into a container, the same for `create`, `run` and `exec`: limits, labels, user,
//! capabilities, seccomp, execve.
//!
//! Order: what needs root first, then the working directory, then the user, then everything that narrows. Seccomp comes last,
//! after the wait for `start`, so that the filter sees hardly more than the execve. Loading it takes CAP_SYS_ADMIN unless no_new_privs
//! is set: in that case alone that one capability is kept until then.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::resource::Resource;
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, fchdir, fchown};
use sys::Errno;
use sys::creds;
use sys::executable::{self, LookupError};
use sys::path::{Within, open_within};
use sys::process::Image;
use sys::pty::{Pty, Size};

use super::handshake::{Channel, Kind};
use super::hooks::HookError;
use crate::confine::caps::SYS_ADMIN;
use crate::confine::labels::{self, LabelError};
use crate::confine::limits;
use crate::confine::seccomp::Filter;
use crate::plan::process::{LimitStep, ProcessPlan};
use crate::rootfs::RootfsError;

/// Why the child could not become the container's process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChildError {
    /// A step that is about nothing in particular.
    #[error("{0}")]
    Step(&'static str, #[source] Errno),
    /// Joining a namespace.
    #[error("join namespace {path}")]
    Join {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// A sysctl.
    #[error("set sysctl {key} to {value:?}")]
    Sysctl {
        key: String,
        value: String,
        #[source]
        cause: Errno,
    },
    /// A resource limit.
    #[error("set {resource}")]
    Limit {
        resource: String,
        #[source]
        cause: Errno,
    },
    /// A security label.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The working directory.
    #[error("chdir to cwd ({cwd:?}) set in config.json failed")]
    Cwd {
        cwd: String,
        #[source]
        cause: Errno,
    },
    /// The working directory is one of the host (CVE-2024-21626).
    #[error("cwd {0:?} is outside of the container's root")]
    CwdOutside(String),
    /// The program.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The program is there and does not run.
    #[error("exec {path}")]
    Exec {
        path: PathBuf,
        #[source]
        cause: Errno,
    },
    /// The file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// Turns an errno into the failure of a step.
pub(super) fn step(stage: &'static str) -> impl FnOnce(Errno) -> ChildError {
    move |cause| ChildError::Step(stage, cause)
}

/// A process about to be what its plan says.
pub(crate) struct Entrant<'a> {
    pub(crate) process: &'a ProcessPlan,
    pub(crate) seccomp: Option<&'a Filter>,
    /// The host's procfs.
    pub(crate) proc: &'a OwnedFd,
    pub(crate) channel: &'a Channel,
}

/// Found and checked; only what must come last is left.
pub(crate) struct Settled {
    program: PathBuf,
    env: Vec<CString>,
}

impl Entrant<'_> {
    fn warn(&self, text: &str) {
        // If the parent is gone, so is its log.
        let _ = self.channel.send(Kind::Warning, text);
    }

    // A limit on descriptors that is below what this process itself holds until execve comes last (`few`); it is lowered
    // then, which needs no privilege. All others come first, while the privilege to raise them is there.
    fn limit(&self, wanted: impl Fn(bool) -> bool) -> Result<(), ChildError> {
        const OWN_DESCRIPTORS: u64 = 1024;
        let few = |limit: &LimitStep| limit.resource == Resource::RLIMIT_NOFILE && limit.hard < OWN_DESCRIPTORS;
        for limit in self.process.limits.iter().filter(|limit| wanted(few(limit))) {
            let resource = format!("{:?}", limit.resource);
            match limits::set(limit) {
                Ok(None) => {}
                Ok(Some(hard)) => self.warn(&format!(
                    "process.rlimits {resource}: a hard limit of {} needs CAP_SYS_RESOURCE; {hard} is the most",
                    limit.hard
                )),
                Err(cause) => return Err(ChildError::Limit { resource, cause }),
            }
        }
        Ok(())
    }

    /// Does all that comes before the wait for `start`. Of the descriptors only `keep` and the channel stay open.
    pub(crate) fn settle(&self, keep: &[BorrowedFd<'_>]) -> Result<Settled, ChildError> {
        let process = self.process;
        self.limit(|few| !few)?;
        if let Some(scheduling) = process.scheduling {
            sys::task::set_scheduling(scheduling).map_err(step("set process.scheduler"))?;
        }
        if let Some((class, level)) = process.io_priority {
            sys::task::set_io_priority(class, level).map_err(step("set process.ioPriority"))?;
        }
        if let Some(memory) = &process.memory {
            sys::task::set_memory_policy(memory.mode, &memory.nodes).map_err(step("set linux.memoryPolicy"))?;
        }
        if let Some(personality) = process.personality {
            sys::task::set_personality(personality).map_err(step("set linux.personality"))?;
        }
        labels::apply(self.proc, process)?;
        umask(Mode::from_bits_truncate(process.umask.unwrap_or(0o022)));
        self.own_stdio()?;
        let entered = self.enter_cwd();
        if process.no_new_privs {
            creds::set_no_new_privs().map_err(step("set no_new_privs"))?;
        }
        self.change_user()?;
        // A directory only its owner may enter (on NFS not even root) is entered as the user.
        if entered.is_err() {
            self.enter_cwd()?;
        }
        let env = self.environment();
        // From here on names are looked up that the image chose, through magic links too.
        let keep = [keep, &[self.channel.as_fd()]].concat();
        sys::inherited::close_before_execve(&keep).map_err(step("close own descriptors"))?;
        let program = executable::find(&process.args[0], &env)?;
        Ok(Settled { program, env })
    }

    fn needs_admin_for_seccomp(&self) -> bool {
        self.seccomp.is_some() && !self.process.no_new_privs
    }

    fn change_user(&self) -> Result<(), ChildError> {
        let process = self.process;
        process.caps.drop_bounding().map_err(step("narrow the bounding set"))?;
        creds::set_keep_caps(true).map_err(step("keep capabilities"))?;
        match creds::set_groups(&process.groups) {
            // In a user namespace whose owner may not change groups there are none to lose either.
            Err(Errno::EPERM) if process.groups.is_empty() => {}
            Err(Errno::EPERM) => {
                let what = "set process.user.additionalGids: not allowed in this user namespace (setgroups is denied)";
                return Err(ChildError::Step(what, Errno::EPERM));
            }
            done => done.map_err(step("set supplementary groups"))?,
        }
        creds::set_gid(process.gid).map_err(step("set group id"))?;
        creds::set_uid(process.uid).map_err(step("set user id"))?;
        // Changing ids resets it to what fs.suid_dumpable says.
        sys::process::set_dumpable(false).map_err(step("become undumpable"))?;
        let extra = if self.needs_admin_for_seccomp() { SYS_ADMIN } else { 0 };
        process.caps.apply(extra).map_err(step("set capabilities"))?;
        creds::set_keep_caps(false).map_err(step("keep capabilities"))?;
        process.caps.raise_ambient().map_err(step("raise ambient capabilities"))
    }

    /// Does what comes last. Comes back only with the reason why not.
    pub(crate) fn execute(&self, settled: Settled) -> Result<Infallible, ChildError> {
        self.limit(|few| few)?;
        let failed = |cause| ChildError::Exec { path: settled.program.clone(), cause };
        let image = Image::new(&settled.program, &self.process.args, &settled.env).map_err(failed)?;
        // From here on a filter is in force that may allow no more than the execve: nothing takes memory, nothing is closed.
        if let Some(filter) = self.seccomp {
            let listener = sys::seccomp::load(&filter.program, filter.flags).map_err(step("load seccomp filter"))?;
            if let Some(listener) = listener {
                let sent = self.channel.send_bare(Kind::Listener, listener.as_fd());
                sent.map_err(step("hand over the seccomp listener"))?;
                // Closed by execve: here, close(2) might be a call that waits for the agent.
                std::mem::forget(listener);
            }
        }
        // What is permitted after an execve comes from the bounding, inheritable and ambient sets. Only where CAP_SYS_ADMIN is
        // in one of these is there a way to keep it, if the execve is an unsafe one (traced, say): then it goes now.
        let caps = &self.process.caps;
        if self.needs_admin_for_seccomp() && (caps.bounding | caps.inheritable) & SYS_ADMIN != 0 {
            caps.apply(0).map_err(step("set capabilities"))?;
        }
        Err(failed(image.execute()))
    }

    /// The process may reopen its own stdio by name, so it has to own it; the null device stays root's.
    fn own_stdio(&self) -> Result<(), ChildError> {
        let uid = Uid::from_raw(self.process.uid);
        for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
            let Ok(found) = fstat(stream) else { continue }; // closed
            let is_device = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
            if found.st_uid == uid.as_raw() || (is_device && found.st_rdev == nix::sys::stat::makedev(1, 3)) {
                continue;
            }
            match fchown(stream, Some(uid), None::<Gid>) {
                // Of another user namespace, on a read-only file system, or a kind of file without owner.
                Ok(()) | Err(Errno::EINVAL | Errno::EPERM | Errno::EROFS | Errno::ENOSYS) => {}
                Err(cause) => return Err(ChildError::Step("change the owner of stdio", cause)),
            }
        }
        Ok(())
    }

    /// Enters the working directory, not through /proc/self/fd and its like: one of our descriptors could lead to the host
    /// (CVE-2024-21626).
    #[expect(clippy::disallowed_methods, reason = "the root itself, to look up everything else below it")]
    fn enter_cwd(&self) -> Result<(), ChildError> {
        let cwd = &self.process.cwd;
        let failed = |cause| ChildError::Cwd { cwd: cwd.clone(), cause };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open("/", flags, Mode::empty()).map_err(failed)?;
        let at = open_within(&root, Path::new(cwd), flags, 0, Within::Root).map_err(failed)?;
        fchdir(at).map_err(failed)?;
        match sys::path::kernel_cwd() {
            Ok(path) if path.starts_with(b"/") => Ok(()),
            _ => Err(ChildError::CwdOutside(cwd.clone())),
        }
    }

    fn environment(&self) -> Vec<CString> {
        let mut env = self.process.env.clone();
        let has = |name: &[u8]| self.process.env.iter().any(|entry| entry.to_bytes().starts_with(name));
        if !has(b"HOME=") {
            let home = home_of(self.proc, self.process.uid).unwrap_or_else(|| "/".into());
            env.extend(CString::new(format!("HOME={home}")));
        }
        env
    }
}

/// The home directory in the container's passwd file: a regular file of a bounded size inside the root, read as text. What the
/// image has in its place, say a device or a FIFO, is looked at but never opened.
#[expect(clippy::disallowed_methods, reason = "the root itself, to look up everything else below it")]
fn home_of(proc: &OwnedFd, uid: u32) -> Option<String> {
    use std::io::Read;
    const MAX: u64 = 1 << 20;
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let found = open_within(&root, "etc/passwd", OFlag::O_PATH, 0, Within::Root).ok()?;
    if SFlag::from_bits_truncate(fstat(&found).ok()?.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return None;
    }
    let again = format!("self/fd/{}", found.as_raw_fd());
    let file = nix::fcntl::openat(proc, again.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(MAX).read_to_end(&mut bytes).ok()?;
    home_in(&String::from_utf8_lossy(&bytes), uid)
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, _, _, home, ..] = fields.as_slice() else { return None };
        (id.parse() == Ok(uid) && home.starts_with('/') && !home.contains('\0')).then(|| (*home).to_owned())
    })
}

/// Opens a terminal of the container's devpts, makes it ours and stdio. The root is the container's.
pub(crate) fn open_terminal(root: &OwnedFd, size: Option<Size>) -> Result<Pty, ChildError> {
    let devpts =
        crate::rootfs::resolve::open(root, Path::new("/dev/pts")).map_err(step("open /dev/pts for the terminal"))?;
    if sys::path::filesystem_magic(&devpts) != Ok(sys::path::DEVPTS_MAGIC) {
        return Err(ChildError::Step("open a terminal: /dev/pts is not devpts", Errno::ENODEV));
    }
    let pty = sys::pty::open_pty_at(&devpts).map_err(step("open a terminal"))?;
    if let Some(size) = size {
        sys::pty::set_size(&pty.master, size).map_err(step("set the size of the terminal"))?;
    }
    for number in 0..3 {
        sys::fd::duplicate_onto(&pty.peer, number).map_err(step("make the terminal stdio"))?;
    }
    sys::pty::make_controlling(&pty.peer).map_err(step("make the terminal controlling"))?;
    Ok(pty)
}

/// Hands the master to whoever asked for it: the console socket, or else our parent, with Ready.
pub(crate) fn report_ready(
    channel: &Channel,
    console: Option<&OwnedFd>,
    master: Option<OwnedFd>,
) -> Result<(), ChildError> {
    let Some(master) = master else {
        return channel.send(Kind::Ready, "").map_err(step("report to the parent"));
    };
    match console {
        Some(socket) => {
            sys::fd::send_fds(socket, b"/dev/ptmx", &[master.as_fd()])
                .map_err(step("send the terminal to the console socket"))?;
            channel.send(Kind::Ready, "").map_err(step("report to the parent"))
        }
        None => channel.send_with(Kind::Ready, "", &[master.as_fd()]).map_err(step("report to the parent")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\n1000:x:0:0::/evil:/bin/sh\nme:x:1000:1000::/home/me:\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/me"));
        assert_eq!(home_in(passwd, 7), None);
    }
}
