//! `checkpoint`: freezes a container into files, from which `restore` makes it go on, here or elsewhere.

#![expect(clippy::disallowed_methods, reason = "folders of images are the caller's, on the host")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use super::{CommandError, Context};
use crate::args::{ArgsError, Flag, Order, Parsed, switch, value};
use crate::confine::cgroup::Cgroup;
use crate::criu::rpc::{Message, kind, opt};
use crate::criu::{self, Criu, outside};
use crate::plan::libc_flag::{NEWNET, NEWPID};
use crate::plan::{Options, Plan};
use crate::spec::load_json;
use crate::state::{ContainerId, State, Status};

/// Flags that `checkpoint` and `restore` share.
pub(super) const COMMON: &[Flag] = &[
    value(&["image-path"], "folder of the images (default ./checkpoint)"),
    value(&["work-path"], "folder of criu's log and other files (default: that of the images)"),
    switch(&["tcp-established"], "open TCP connections too"),
    switch(&["ext-unix-sk"], "unix sockets connected to outside too"),
    switch(&["shell-job"], "a process with a terminal of its caller's"),
    switch(&["file-locks"], "file locks too"),
    switch(&["lazy-pages"], "memory is fetched when it is needed"),
    switch(&["auto-dedup"], "memory images without duplicates"),
    value(&["manage-cgroups-mode"], "soft (default), full, strict or ignore"),
    value(&["empty-ns"], "network: the namespace without its interfaces"),
];

pub(super) const FLAGS: &[Flag] = &[
    value(&["parent-path"], "images of an earlier --pre-dump, relative to those of now"),
    switch(&["leave-running"], "do not end the container"),
    switch(&["tcp-skip-in-flight"], "leave out TCP connections that are not established yet"),
    switch(&["link-remap"], "keep deleted files by links"),
    value(&["status-fd"], "descriptor to write a NUL to when --lazy-pages is ready"),
    value(&["page-server"], "ADDRESS:PORT of a criu page-server for the memory"),
    switch(&["pre-dump"], "memory only, while the container runs on"),
];

/// The common flags, parsed.
pub(super) struct Args {
    images: PathBuf,
    work: Option<PathBuf>,
    opts: Message,
    pub(super) lazy_pages: bool,
}

/// The folders criu works in, open as long as it does.
pub(super) struct Folders {
    files: Vec<(OwnedFd, PathBuf)>,
    pub(super) images: PathBuf,
    pub(super) log: PathBuf,
}

impl Folders {
    /// Their descriptors, for criu.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.files.iter().map(|(file, _)| file.as_fd())
    }

    /// Opens them again under the same numbers: those of before belong to other mounts.
    pub(super) fn reopen(&self) -> Result<(), String> {
        for (file, path) in &self.files {
            nix::fcntl::open(path, FOLDER, Mode::empty())
                .and_then(|again| sys::fd::duplicate_onto(&again, file.as_raw_fd()))
                .map_err(|errno| format!("open folder {}: {errno}", path.display()))?;
        }
        Ok(())
    }
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

impl Args {
    pub(super) fn new(parsed: &Parsed) -> Result<Self, CommandError> {
        let mut opts = Message::default();
        for (name, field) in [
            ("tcp-established", opt::TCP_ESTABLISHED),
            ("ext-unix-sk", opt::EXT_UNIX_SK),
            ("shell-job", opt::SHELL_JOB),
            ("file-locks", opt::FILE_LOCKS),
            ("lazy-pages", opt::LAZY_PAGES),
            ("auto-dedup", opt::AUTO_DEDUP),
        ] {
            opts.flag(field, parsed.is_on(name));
        }
        let mode = match parsed.value("manage-cgroups-mode").unwrap_or_default() {
            "ignore" => 0,
            "soft" => 3,
            "full" => 4,
            "strict" => 5,
            "" => 6, // criu's default, which is soft
            other => {
                let allowed = "soft, full, strict, ignore";
                return Err(ArgsError::NotOneOf { name: "manage-cgroups-mode", value: other.into(), allowed }.into());
            }
        };
        opts.flag(opt::MANAGE_CGROUPS, true);
        opts.number(opt::MANAGE_CGROUPS_MODE, mode);
        if let Some(other) = parsed.all("empty-ns").find(|kind| *kind != "network") {
            return Err(ArgsError::NotOneOf { name: "empty-ns", value: other.into(), allowed: "network" }.into());
        }
        // Interfaces are made by whoever makes them for a new container: hooks, or the caller, who has the namespace.
        opts.number(opt::EMPTY_NS, NEWNET as i64);
        opts.flag(opt::NOTIFY_SCRIPTS, true);
        opts.flag(opt::ORPHAN_PTS_MASTER, true);
        opts.number(opt::LOG_LEVEL, 4);
        let here = || PathBuf::from("checkpoint");
        Ok(Self {
            images: parsed.path("image-path").unwrap_or_else(here),
            work: parsed.path("work-path"),
            opts,
            lazy_pages: parsed.is_on("lazy-pages"),
        })
    }

    /// Opens the folders, and begins the options with them.
    pub(super) fn open(self, make_images: bool, log: &str, plan: &Plan) -> Result<(Message, Folders), CommandError> {
        let Self { images, work, mut opts, .. } = self;
        let folder = |path: &Path, make: bool| {
            let failed = |cause| CommandError::Io { action: "open folder", path: path.to_owned(), cause };
            if make {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
            }
            nix::fcntl::open(path, FOLDER, Mode::empty()).map_err(|errno| failed(errno.into()))
        };
        let mut files = vec![(folder(&images, make_images)?, images.clone())];
        opts.number(opt::IMAGES_DIR_FD, i64::from(files[0].0.as_raw_fd()));
        if let Some(path) = &work {
            let file = folder(path, true)?;
            opts.number(opt::WORK_DIR_FD, i64::from(file.as_raw_fd()));
            files.push((file, path.clone()));
        }
        opts.text(opt::LOG_FILE, log);
        // A file of settings that override ours, where runc has it; the annotation names another one, or by being empty none.
        match plan.annotations.get("org.criu.config").map(String::as_str) {
            Some("") => {}
            Some(file) => opts.text(opt::CONFIG_FILE, file),
            None => opts.text(opt::CONFIG_FILE, "/etc/criu/runc.conf"),
        }
        let log = work.as_deref().unwrap_or(&images).join(log);
        Ok((opts, Folders { files, images, log }))
    }
}

pub(super) fn run(context: &Context, arguments: &[String]) -> Result<u8, CommandError> {
    let flags = [COMMON, FLAGS].concat();
    let parsed = Parsed::parse(&flags, Order::Mixed, arguments)?;
    let id = ContainerId::parse(parsed.one_word("checkpoint", "the container's id")?)?;
    let args = Args::new(&parsed)?;
    let state = context.states.load(&id)?;
    match context.states.status(&state)? {
        Status::Running | Status::Paused => {}
        status => return Err(CommandError::WrongStatus { verb: "checkpoint", status }),
    }
    let options = Options { systemd_cgroup: state.unit.is_some(), ..Options::default() };
    let plan = Plan::new(&load_json(&context.states.config(&id))?, &state.bundle, options)?;
    let pre_dump = parsed.is_on("pre-dump");
    criu::check_features(pre_dump, args.lazy_pages)?;
    check_version(&plan)?;
    let mut status_fd = status_fd(&parsed, args.lazy_pages)?;
    if status_fd.is_some() && criu::version()? < 31_500 {
        return Err(criu::CriuError::Missing { feature: "--status-fd", needs: "criu 3.15" }.into());
    }
    let (mut opts, folders) = args.open(true, "dump.log", &plan)?;
    dump_options(&mut opts, &parsed, &folders)?;
    let cgroup = state.cgroup()?;
    describe(&mut opts, &state, &plan, &cgroup, &folders, pre_dump)?;
    let kind = if pre_dump { kind::PRE_DUMP } else { kind::DUMP };
    let mut criu = Criu::start(&folders.descriptors().collect::<Vec<_>>(), || Ok(()))?;
    let response = criu.ask(&Message::request(kind, Some(&opts)), &mut |step| {
        context.log.debug(&format!("criu: {}", step.name));
        if let (Some(file), "status-ready") = (&status_fd, step.name.as_str()) {
            // Whoever waits there reads this or the end of the file.
            let _ = nix::unistd::write(file, b"\0");
            status_fd = None;
        }
        true
    })?;
    // Closes the connection, which ends a criu that waits for the next of several pre-dumps.
    drop(criu);
    criu::check(&response, "checkpoint the container", Some(&folders.log))?;
    if !pre_dump && !parsed.is_on("leave-running") {
        super::delete::remove(context, &state)?;
    }
    Ok(0)
}

/// Namespaces of others are left alone only by newer ones.
pub(super) fn check_version(plan: &Plan) -> Result<(), CommandError> {
    let needed = |flag: u64| match flag {
        NEWNET => Some(("a joined network namespace", 31_100, "criu 3.11")),
        NEWPID => Some(("a joined pid namespace", 31_500, "criu 3.15")),
        _ => None,
    };
    let mut wants = plan.namespaces.join.iter().filter_map(|join| needed(join.flag)).peekable();
    if wants.peek().is_none() {
        return Ok(());
    }
    let version = criu::version()?;
    match wants.find(|(_, least, _)| version < *least) {
        Some((feature, _, needs)) => Err(criu::CriuError::Missing { feature, needs }.into()),
        None => Ok(()),
    }
}

/// As runc has it, the descriptor is for lazy pages only.
fn status_fd(parsed: &Parsed, lazy_pages: bool) -> Result<Option<OwnedFd>, CommandError> {
    let Some(number) = parsed.number::<i32>("status-fd")?.filter(|number| *number >= 0) else { return Ok(None) };
    let bad = |why| CommandError::BadValue { flag: "status-fd", value: number.to_string(), why };
    let file = sys::fd::take_inherited(number).map_err(|_| bad("is not an open descriptor"))?;
    let mode = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL).unwrap_or(0);
    if OFlag::from_bits_truncate(mode) & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(bad("cannot be written to"));
    }
    Ok(Some(file).filter(|_| lazy_pages))
}

/// Options that only a dump has.
fn dump_options(opts: &mut Message, parsed: &Parsed, folders: &Folders) -> Result<(), CommandError> {
    for (name, field) in [
        ("leave-running", opt::LEAVE_RUNNING),
        ("tcp-skip-in-flight", opt::TCP_SKIP_IN_FLIGHT),
        ("link-remap", opt::LINK_REMAP),
    ] {
        opts.flag(field, parsed.is_on(name));
    }
    if let Some(text) = parsed.value("page-server").filter(|text| !text.is_empty()) {
        let bad = || CommandError::BadValue { flag: "page-server", value: text.into(), why: "is not ADDRESS:PORT" };
        let (address, port) = text.rsplit_once(':').filter(|(address, _)| !address.is_empty()).ok_or_else(bad)?;
        let mut server = Message::default();
        server.text(1, address.trim_start_matches('[').trim_end_matches(']'));
        server.number(2, i64::from(port.parse::<u16>().map_err(|_| bad())?));
        opts.message(opt::PAGE_SERVER, &server);
    }
    if let Some(parent) = parsed.value("parent-path").filter(|parent| !parent.is_empty()) {
        let bad = |why| CommandError::BadValue { flag: "parent-path", value: parent.into(), why };
        if Path::new(parent).is_absolute() {
            return Err(bad("is not relative to the images"));
        }
        if !folders.images.join(parent).is_dir() {
            return Err(bad("is not a folder beside the images"));
        }
        opts.text(opt::PARENT_IMG, parent);
        opts.flag(opt::TRACK_MEM, true);
    }
    Ok(())
}

/// What criu has to know about the container.
fn describe(
    opts: &mut Message,
    state: &State,
    plan: &Plan,
    cgroup: &Cgroup,
    folders: &Folders,
    pre_dump: bool,
) -> Result<(), CommandError> {
    let look = |what: &str| {
        let what = what.to_owned();
        move |cause| criu::CriuError::Look { what, cause }
    };
    opts.number(opt::PID, i64::from(state.pid));
    opts.text(opt::ROOT, &plan.rootfs.display().to_string());
    if let Some(path) = cgroup.freezer_path() {
        opts.text(opt::FREEZE_CGROUP, &path.display().to_string());
    }
    outside::dump_namespaces(opts, plan)?;
    if pre_dump {
        return Ok(());
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let path = format!("/proc/{}/root", state.pid);
    let root = nix::fcntl::open(path.as_str(), flags, Mode::empty()).map_err(look("the root"))?;
    if state.live_pid().is_none() {
        return Err(CommandError::NotRunning);
    }
    outside::dump_mounts(opts, plan, &state.bundle, cgroup, &root);
    let stdio = outside::stdio(state.pid);
    outside::dump_stdio(opts, &stdio);
    let file = folders.images.join(outside::DESCRIPTORS);
    let failed = |cause| CommandError::Io { action: "write", path: file.clone(), cause };
    let text = serde_json::to_vec(&stdio).map_err(|error| failed(error.into()))?;
    std::fs::write(&file, text).map_err(failed)
}
