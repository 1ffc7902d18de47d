//! Action `start`: leaves a shim running in the background and says where it listens.
//!
//! The socket listens before the fork, so that whoever reads the address can connect at once, and the caller waits for
//! nothing else. The child needs no second program: it goes on where the parent stops.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::{
        fd::AsFd,
        unix::{
            fs::DirBuilderExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use nix::{
    fcntl::{Flock, FlockArg, OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
};
use proto::{
    digest::Digest,
    id::{ContainerId, IdError, NamespaceName},
};
use sys::process::Fork;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::LocalSet,
};

use crate::{
    args::Args,
    bootstrap::{Parent, address_line},
    connections, desk,
    events::Events,
    group,
    reaper::Reaper,
    report::warn_line,
    server::Desk,
};

/// Why no shim could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A flag that must be there isn't.
    #[error("flag -{0} is missing")]
    Missing(&'static str),
    /// The container's or the namespace's name is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// An address that is no path.
    #[error("address {0:?} is not the absolute path of a socket")]
    Address(String),
    /// The address couldn't be left in the bundle for the parent's next start.
    #[error("write {ADDRESS_FILE} in the bundle")]
    Leave(#[source] io::Error),
    /// The bundle's folder isn't there.
    #[error("find the bundle")]
    Bundle(#[source] io::Error),
    /// The kernel can't do what the parent asks for.
    #[error("give the shim a scheduling group of its own (SCHED_CORE)")]
    SchedCore(#[source] io::Error),
    /// What the parent says couldn't be read.
    #[error("read stdin")]
    Stdin(#[source] io::Error),
    /// The socket couldn't be made.
    #[error("listen on {socket}")]
    Listen {
        /// Its path.
        socket: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// No second process.
    #[error("fork")]
    Fork(#[source] io::Error),
    /// Nobody reads the answer.
    #[error("print the address")]
    Print(#[source] io::Error),
    /// The async runtime wouldn't start.
    #[error("start serving")]
    Serve(#[source] io::Error),
}

/// containerd's name for the file with a shim's address.
const ADDRESS_FILE: &str = "address";

/// Where things lie that follow from the command line and the bundle.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Places {
    /// The shim's own.
    pub(crate) socket: PathBuf,
    /// State of OCI runtimes, a folder per namespace.
    pub(crate) runtime_root: PathBuf,
}

impl Places {
    /// Works them out; the socket lies in `socket_dir` if the parent chose one.
    pub(crate) fn of(args: &Args, bundle: &Path, socket_dir: Option<&Path>) -> Result<Self, StartError> {
        for (name, value) in [("namespace", &args.namespace), ("address", &args.address), ("id", &args.id)] {
            if value.is_empty() {
                return Err(StartError::Missing(name));
            }
        }
        NamespaceName::new(args.namespace.as_str())?;
        ContainerId::new(args.id.as_str())?;
        let address = PathBuf::from(args.address.strip_prefix("unix://").unwrap_or(&args.address));
        let folder = address.parent().filter(|_| address.is_absolute());
        let folder = folder.ok_or_else(|| StartError::Address(args.address.clone()))?;
        // Hashed, because a socket's path has 107 bytes at most.
        let key = format!("{}/{}/{}", address.display(), args.namespace, group::name(bundle, &args.id));
        let name = &Digest::of(key.as_bytes()).hex()[..32];
        let socket = match args.socket.as_str() {
            "" => socket_dir.map_or_else(|| folder.join("s"), Path::to_owned).join(name),
            path => path.strip_prefix("unix://").unwrap_or(path).into(),
        };
        Ok(Self { runtime_root: folder.join("runtime"), socket })
    }

    /// The socket as it was left in the bundle, or else as it is worked out.
    pub(crate) fn find_socket(self, bundle: &Path) -> PathBuf {
        let left = fs::read_to_string(bundle.join(ADDRESS_FILE)).unwrap_or_default();
        let left = left.trim().strip_prefix("unix://").map(PathBuf::from).filter(|socket| socket.is_absolute());
        left.unwrap_or(self.socket)
    }
}

/// Makes the socket. `None`: a shim lives there already.
pub(crate) fn listen(socket: &Path) -> io::Result<Option<UnixListener>> {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
    // Between bind and listen a socket looks like one that was left: another `start` of the group must not look then.
    let lock = Flock::lock(fs::File::open(folder)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let bind = || -> io::Result<Option<UnixListener>> {
        // A socket has its mode from birth; a parent's folder may be open to others.
        let mask = nix::sys::stat::umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(socket);
        nix::sys::stat::umask(mask);
        listener.map(Some)
    };
    match bind() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other,
    }
    let found = match UnixStream::connect(socket) {
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            // Left by a shim that was killed.
            fs::remove_file(socket)?;
            bind()
        }
        // One that was about to end has ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => bind(),
        Err(error) => Err(error),
    };
    drop(lock);
    found
}

/// Most that is read from stdin.
const STDIN_LIMIT: usize = 4 << 20;

/// How many milliseconds stdin may stay open without a byte. Parents write before they start to wait; who leaves it open and says nothing
/// has nothing to say.
const STDIN_PAUSE: u16 = 2000;

/// What the parent writes to stdin; nothing where people sit.
pub(crate) fn read_stdin() -> Result<Vec<u8>, StartError> {
    let system = |errno: nix::Error| StartError::Stdin(errno.into());
    let stdin = io::stdin();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while !stdin.is_terminal() && bytes.len() < STDIN_LIMIT {
        let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(STDIN_PAUSE)).map_err(system)? == 0 {
            break;
        }
        match nix::unistd::read(&stdin, &mut chunk).map_err(system)? {
            0 => break,
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
    Ok(bytes)
}

/// Leaves the address where the parent looks for it. The name appears with its whole content.
fn leave_address(bundle: &Path, socket: &Path) -> io::Result<()> {
    let new = bundle.join(".address");
    fs::write(&new, address_line(socket))?;
    fs::rename(new, bundle.join(ADDRESS_FILE))
}

/// Starts a shim, or finds the one of its group; comes back in the parent when it listens, in the child when it has ended.
pub(crate) fn start(args: &Args) -> Result<(), StartError> {
    let bundle = std::env::current_dir().map_err(StartError::Bundle)?;
    let parent = Parent::read(args, |name| std::env::var(name).ok(), &read_stdin()?);
    let places = Places::of(args, &bundle, parent.socket_dir.as_deref())?;
    let listen_failed = |cause| StartError::Listen { socket: places.socket.clone(), cause };
    if parent.wants_address_file() {
        leave_address(&bundle, &places.socket).map_err(StartError::Leave)?;
    }
    let listener = listen(&places.socket).map_err(listen_failed)?;
    if let Some(listener) = listener {
        // containerd's option sched_core: no CPU core is shared with other pods at the same time. The shim inherits it.
        if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty())
            && let Err(errno) = sys::process::set_own_sched_core()
        {
            let _ = fs::remove_file(&places.socket);
            return Err(StartError::SchedCore(errno.into()));
        }
        proto::fault!("shim.start.listening");
        if sys::process::fork_detached().map_err(|errno| StartError::Fork(errno.into()))? == Fork::Child {
            return serve(args, &parent, &places, &bundle, listener);
        }
        // The child listens on.
        drop(listener);
    }
    proto::fault!("shim.start.forked");
    let mut stdout = io::stdout();
    stdout.write_all(&parent.answer(&places.socket)).and_then(|()| stdout.flush()).map_err(StartError::Print)
}

/// stderr leads to the supervisor's log, where there is one (containerd's FIFO `log`); stdin and stdout nowhere.
pub(crate) fn redirect_stdio(bundle: &Path) -> Result<(), nix::Error> {
    sys::process::null_stdio(true, true, true)?;
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    if let Ok(log) = open(&bundle.join("log"), flags, Mode::empty()) {
        sys::fd::duplicate_onto(&log, 2)?;
    }
    Ok(())
}

/// The kernel should take the supervisor before a shim, but a shim before what isn't a container at all; as containerd.
pub(crate) fn adjust_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score @ ..=999) = score {
        // Refused only by odd confinement; then it stays as it is.
        let _ = fs::write(FILE, (score + 1).to_string());
    }
}

fn serve(
    args: &Args,
    parent: &Parent,
    places: &Places,
    bundle: &Path,
    listener: UnixListener,
) -> Result<(), StartError> {
    let system = |errno: nix::Error| StartError::Serve(errno.into());
    proto::fault!("shim.start.detached");
    redirect_stdio(bundle).map_err(system)?;
    // What the supervisor forgot to close must not live as long as we do.
    sys::inherited::close_all_but(listener.as_fd()).map_err(system)?;
    sys::memory::keep_heap_small();
    sys::process::set_child_subreaper(true).map_err(system)?;
    adjust_oom_score();
    listener.set_nonblocking(true).map_err(StartError::Serve)?;
    // Few things happen at once in a shim: a small table for them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(64)
        .build()
        .map_err(StartError::Serve)?;
    let served = LocalSet::new().block_on(&runtime, run(args, parent, places, listener));
    // An orderly end has removed the socket already, and a later shim of the same name may have made its own meanwhile.
    if served.is_err() {
        let _ = fs::remove_file(&places.socket);
    }
    served.map_err(StartError::Serve)
}

/// How long a shim that ends may take to tell its last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

async fn run(args: &Args, parent: &Parent, places: &Places, listener: UnixListener) -> io::Result<()> {
    // Handlers, not SIG_IGN: that would be inherited by the runtimes. They stay when the streams are dropped.
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        drop(signal(kind)?);
    }
    let children = signal(SignalKind::child())?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let reaper = Rc::new(Reaper::default());
    let events = Rc::new(Events::new(parent.event_sink(), &args.namespace));
    tokio::task::spawn_local(reaper.clone().run(children));
    tokio::task::spawn_local(events.clone().run());
    let (desk, requests) = mpsc::unbounded_channel();
    let shim = Rc::new(desk::Shim {
        namespace: args.namespace.clone(),
        socket: places.socket.clone(),
        runtime_root: places.runtime_root.clone(),
        reaper,
        events: events.clone(),
        desk,
        consoles: Cell::new(0),
        callers: Rc::default(),
        cgroup: RefCell::new(None),
    });
    let (end, ending) = watch::channel(false);
    let server = tokio::task::spawn_local(connections::serve(
        listener,
        Desk::new(shim.desk.clone()),
        shim.callers.clone(),
        ending,
    ));
    if parent.debug {
        warn_line!("container {} of namespace {} on {}", args.id, args.namespace, places.socket.display());
    }
    proto::fault!("shim.start.serving");
    desk::run(shim, requests).await;
    proto::fault!("shim.shutdown.accepted");
    // Gone before the answer, so that a caller that looks finds nothing left.
    let _ = fs::remove_file(&places.socket);
    proto::fault!("shim.shutdown.socket_removed");
    // Before the connections end: whoever sees the last one go may read what is left from the journal.
    events.flush(LAST_EVENTS).await;
    let _ = end.send(true);
    let _ = server.await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn args(namespace: &str, address: &str, id: &str) -> Args {
        Args { namespace: namespace.into(), address: address.into(), id: id.into(), ..Args::default() }
    }

    #[test]
    fn places_follow_from_the_flags() {
        let folder = tempfile::tempdir().expect("folder");
        let of = |args: &Args| Places::of(args, folder.path(), None);
        let places = of(&args("berth", "/run/x/supervisor.sock", "web")).expect("places");
        assert_eq!(places.runtime_root, Path::new("/run/x/runtime"));
        assert_eq!(places.socket.parent(), Some(Path::new("/run/x/s")));
        let name = places.socket.file_name().expect("name").to_str().expect("text");
        let digest = Digest::of(b"/run/x/supervisor.sock/berth/web").hex();
        assert_eq!(name, &digest[..32]);
        assert_eq!(of(&args("berth", "unix:///run/x/supervisor.sock", "web")).expect("places"), places);
        let chosen = Places::of(&args("berth", "/run/x/supervisor.sock", "web"), folder.path(), Some(Path::new("/y")));
        assert_eq!(chosen.expect("places").socket, Path::new("/y").join(&digest[..32]));
        let mut elsewhere = args("berth", "/run/x/supervisor.sock", "web");
        elsewhere.socket = "unix:///tmp/s.sock".into();
        assert_eq!(of(&elsewhere).expect("places").socket, Path::new("/tmp/s.sock"));
        fs::write(folder.path().join("config.json"), r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"web"}}"#)
            .expect("config.json");
        let other = of(&args("berth", "/run/x/supervisor.sock", "other")).expect("places");
        assert_eq!(other, places, "one pod, one shim");
        leave_address(folder.path(), Path::new("/y/z")).expect("leave");
        assert_eq!(other.find_socket(folder.path()), Path::new("/y/z"));
        for bad in [
            args("", "/a/b", "c"),
            args("n", "", "c"),
            args("n", "/a/b", ""),
            args("n", "a/b", "c"),
            args("n", "/a/b", "../c"),
        ] {
            assert!(of(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_socket_left_over_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("s/x");
        let first = listen(&socket).expect("listen").expect("new");
        assert_eq!(fs::metadata(&socket).expect("socket").permissions().mode() & 0o777, 0o600);
        assert!(listen(&socket).expect("listen").is_none());
        drop(first);
        assert!(listen(&socket).expect("listen").is_some());
    }
}
