//! Names in networks of users, answered at 127.0.0.11 inside each container.
//!
//! ```text
//!   container's namespace                       host
//!   ┌───────────────────────────────┐           ┌─────────────────────────────────────────────┐
//!   │ program ──▶ 127.0.0.11:53     │           │ berth-engine ──(zones, sockets)──▶ resolver  │
//!   │     nftables: port 53 ─▶ P    │           │                                     │       │
//!   │ 127.0.0.11:P ═══ socket ══════╪═══════════╪═════════════════════════════════════┘       │
//!   └───────────────────────────────┘           │ the host's name servers ◀── what nobody has  │
//!                                               └─────────────────────────────────────────────┘
//! ```
//!
//! The sockets are opened inside of the container's namespace by the engine, which has it at hand when a container starts, and
//! passed to the resolver: a process of its own that needs to enter no namespace (but to ask a name server that
//! the container was given), and that outlives the engine.
//!
//! The same process holds the host ports that are published, because it is there when no engine is (`held`).
//!
//! # What is answered
//!
//! Names, aliases, short ids and host names of the containers on one's own networks, also as `name.network`: their IPv4
//! addresses (A), their IPv6 addresses (AAAA), and the way back (PTR). A name that several have takes turns, for each version of
//! its own. A name that is known and has nothing of the kind asked for gets an empty answer: no such question leaves the host.
//!
//! All else goes to the name servers of the host, or to those that the container was given (`upstream`), by UDP or TCP as it was
//! asked, and their answers come back as they are. An answer that is cut short makes its asker come back by TCP. From a container
//! whose networks are all internal nothing is passed on, whatever it is about (CVE-2024-29018).
//!
//! # What is kept
//!
//! Answers of name servers, for as long as their owners allow and five minutes at most, and half a minute at most that there is
//! nothing (`lifetime`, `cache`): one set for the host's servers, and one for each container that has servers of its own, as
//! these may answer otherwise. All is forgotten when the servers change. Who asks what another one is just asking waits for the same
//! answer (`outside`). A server that was silent is asked after the others for ten seconds.
//!
//! # When processes die
//!
//! The engine is the only one that knows who is called what; it tells each change. An engine that starts finds the resolver by
//! its socket in the run root, takes over the ports that it holds, and tells everything anew.
//!
//! | what happens | names |
//! |---|---|
//! | engine, supervisor or both are down | are answered as they were when the engine ended: no container is started, renamed or forgotten meanwhile |
//! | the resolver dies | fail for the moment that it takes the engine to notice ([`Names::died`]), start another one and tell it everything |
//! | an engine of another release starts | fail for a moment, if it and the resolver don't speak the same version: the resolver is replaced |
//! | engine *and* resolver are down | fail until the engine is started: nobody else knows them. Programs see that nobody listens, at once |
//!
//! What was kept of others' answers goes with the resolver.

mod cache;
mod doors;
mod held;
mod host;
mod lifetime;
mod message;
mod outside;
mod protocol;
mod served;
mod server;
mod sockets;
mod upstream;
mod zone;

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

pub use self::protocol::Counters;
use self::protocol::{LONGEST, PAGE, PORTS, Reply, Request, VERSION};
pub use self::sockets::RESOLVER;
pub use self::zone::{Zone, ZoneMember};
use super::error::NetworkError;
use super::ports::{HeldPort, PortKey};

/// The program's argument that makes it a resolver.
pub const ARGUMENT: &str = "resolver";
/// Where the host names its name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the resolver may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The engine's side.
#[derive(Debug)]
pub struct Names {
    socket: PathBuf,
    log: PathBuf,
    connection: Mutex<Option<Connection>>,
    died: Arc<Notify>,
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
}

impl Names {
    /// Knows where the resolver is to be found; doesn't look yet.
    pub(super) fn new(run_root: &Path) -> Self {
        let folder = run_root.join("engine");
        Self {
            socket: folder.join("names.sock"),
            log: folder.join("resolver.log"),
            connection: Mutex::new(None),
            died: Arc::new(Notify::new()),
        }
    }

    /// Serves a container from now on. Its names are known when this returns.
    pub(super) fn serve(&self, zone: &Zone, namespace: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let sockets = sockets::open(namespace)?;
        let fds = [sockets.udp.as_fd(), sockets.tcp.as_fd(), namespace];
        self.ask(&Request::Serve(zone.clone()), &fds, true).map(drop)
    }

    /// Tells what has changed about a container that is served.
    pub fn change(&self, zone: &Zone) -> Result<(), NetworkError> {
        self.ask(&Request::Change(zone.clone()), &[], true).map(drop)
    }

    /// A container is gone. A resolver that isn't there has nothing to forget.
    pub fn forget(&self, id: &str) {
        if let Err(error) = self.ask(&Request::Forget(id.to_owned()), &[], false) {
            debug!(id, error = %proto::kind::chain(&error), "resolver not told");
        }
    }

    /// Whom a resolver that is there serves; nobody when there is none.
    pub fn served(&self) -> HashSet<String> {
        let mut all = HashSet::new();
        let mut after = String::new();
        while let Ok(Some(reply)) = self.ask(&Request::Hello(after.clone()), &[], false) {
            let last = reply.serves.len() < PAGE;
            after = reply.serves.last().cloned().unwrap_or_default();
            all.extend(reply.serves);
            if last {
                break;
            }
        }
        all
    }

    /// Gives the resolver the sockets that occupy host ports: they stay taken while no engine is there. Ports that it holds already lead
    /// where they lead now.
    pub(super) fn hold(&self, ports: &[(HeldPort, OwnedFd)]) -> Result<(), NetworkError> {
        for some in ports.chunks(PORTS) {
            let (held, fds): (Vec<_>, Vec<_>) = some.iter().map(|(port, socket)| (*port, socket.as_fd())).unzip();
            self.ask(&Request::Hold(held), &fds, true)?;
        }
        Ok(())
    }

    /// Makes the resolver let host ports go. One that isn't there holds none.
    pub(super) fn let_go(&self, ports: &[PortKey]) {
        for some in ports.chunks(PORTS) {
            if let Err(error) = self.ask(&Request::LetGo(some.to_vec()), &[], false) {
                warn!(error = %proto::kind::chain(&error), "host ports stay taken until the next start of the engine");
            }
        }
    }

    /// The ports that a resolver holds that is there, and their sockets.
    pub(super) fn held(&self) -> Vec<(HeldPort, OwnedFd)> {
        let mut all: Vec<(HeldPort, OwnedFd)> = Vec::new();
        loop {
            let after = all.last().map(|(port, _)| port.key);
            let Ok(Some((reply, sockets))) = self.ask_for_fds(&Request::Held(after), &[], false) else { return all };
            let last = reply.holds.len() < PORTS;
            all.extend(reply.holds.into_iter().zip(sockets));
            if last {
                return all;
            }
        }
    }

    /// What the resolver that is there has done; none when there is none.
    pub fn counters(&self) -> Option<Counters> {
        self.ask(&Request::Count, &[], false).ok().flatten().map(|reply| reply.counters)
    }

    /// Ends the resolver, if there is one, and waits until it has ended.
    pub(super) fn end(&self) {
        let mut connection = self.lock();
        let Some(open) = connection.take().or_else(|| self.connect().ok()) else { return };
        if open.exchange(&Request::Quit, &[]).is_ok() {
            // It closes the connection when it ends.
            let _ = wait_until_closed(&open.socket, Some(PATIENCE));
        }
        let _ = std::fs::remove_file(&self.log);
    }

    /// A resolver that is no process: for tests.
    #[cfg(test)]
    pub(super) fn start_in_this_process(&self, resolv_conf: &Path) {
        let (ours, theirs) = sys::fd::message_pair().expect("pair");
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("flags");
        let (path, resolv_conf) = (self.socket.clone(), resolv_conf.to_owned());
        std::thread::spawn(move || server::run(&path, theirs, &resolv_conf).expect("resolver"));
        *self.lock() = Some(Connection::new(ours).expect("connection"));
    }

    /// Waits until a resolver has died that served somebody.
    pub async fn died(&self) {
        self.died.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the resolver that is there, or where `needed` starts one; once more when it has just died.
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>], needed: bool) -> Result<Option<Reply>, NetworkError> {
        Ok(self.ask_for_fds(request, fds, needed)?.map(|(reply, _)| reply))
    }

    fn ask_for_fds(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        needed: bool,
    ) -> Result<Option<(Reply, Vec<OwnedFd>)>, NetworkError> {
        let mut connection = self.lock();
        let mut attempt = 0;
        loop {
            attempt += 1;
            if connection.is_none() {
                match self.connect() {
                    Ok(open) => *connection = Some(open),
                    Err(_) if needed => *connection = Some(self.start()?),
                    Err(_) => return Ok(None),
                }
            }
            let Some(open) = connection.as_ref() else { return Ok(None) };
            match open.exchange(request, fds) {
                Ok(answer) => {
                    let refused = answer.0.error.as_ref().map(|text| io::Error::other(text.clone()));
                    return match refused {
                        Some(cause) => Err(NetworkError::Names { what: request.task(), cause }),
                        None => Ok(Some(answer)),
                    };
                }
                Err(cause) => {
                    *connection = None;
                    // What is too long stays so.
                    if attempt > 1 || cause.raw_os_error() == Some(nix::libc::EMSGSIZE) {
                        return Err(NetworkError::Names { what: "talk with it", cause });
                    }
                }
            }
        }
    }

    /// Connects to a resolver that another engine has started.
    fn connect(&self) -> io::Result<Connection> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.socket)?)?;
        let open = Connection::new(socket)?;
        let version = open.exchange(&Request::Hello(String::new()), &[])?.0.version;
        if version != VERSION {
            info!(version, "resolver of another release is replaced");
            open.exchange(&Request::Quit, &[])?;
            wait_until_closed(&open.socket, Some(PATIENCE))?;
            return Err(io::Error::other("another version"));
        }
        self.watch(&open)?;
        Ok(open)
    }

    fn start(&self) -> Result<Connection, NetworkError> {
        let failed = |cause| NetworkError::Names { what: "start it", cause };
        let (ours, theirs) = sys::fd::message_pair().map_err(|errno| failed(errno.into()))?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log).map_err(failed)?;
        let program = crate::launch::beside_us("berth-engine");
        let mut command = Command::new(program);
        command
            .arg(ARGUMENT)
            .arg(&self.socket)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .current_dir("/");
        let mut child = sys::session::in_new_session(&mut command).spawn().map_err(failed)?;
        // Closes our copy of its end.
        drop(command);
        info!(pid = child.id(), "resolver of names started");
        // Reaps it should it end while we live; an orphan of ours is init's.
        std::thread::spawn(move || child.wait());
        let open = Connection::new(ours).map_err(failed)?;
        self.watch(&open).map_err(failed)?;
        Ok(open)
    }

    /// Notices the end of a resolver. A thread that sleeps costs less than a descriptor among the runtime's.
    fn watch(&self, open: &Connection) -> io::Result<()> {
        let socket = open.socket.try_clone()?;
        let died = self.died.clone();
        let watch = move || {
            if let Err(error) = wait_until_closed(&socket, None) {
                warn!(%error, "resolver can't be watched");
            }
            died.notify_one();
        };
        std::thread::Builder::new().name("names".into()).stack_size(64 * 1024).spawn(watch).map(drop)
    }
}

impl Connection {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let patience = TimeVal::seconds(PATIENCE.as_secs().cast_signed());
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        Ok(Self { socket })
    }

    fn exchange(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let bytes = serde_json::to_vec(request)?;
        if bytes.len() > LONGEST {
            return Err(io::Error::from_raw_os_error(nix::libc::EMSGSIZE));
        }
        sys::fd::send_fds(&self.socket, &bytes, fds)?;
        let mut buffer = vec![0; LONGEST];
        let (length, fds) = sys::fd::recv_fds(&self.socket, &mut buffer)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((serde_json::from_slice(&buffer[..length])?, fds))
    }
}

/// Waits until the other end is closed.
fn wait_until_closed(socket: &OwnedFd, patience: Option<Duration>) -> io::Result<()> {
    let timeout = match patience {
        Some(patience) => PollTimeout::try_from(patience).map_err(io::Error::other)?,
        None => PollTimeout::NONE,
    };
    // A hang-up is told unasked.
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut fds, timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map(drop).map_err(io::Error::from),
        }
    }
}

/// What the program does when its first argument is [`ARGUMENT`]: it serves on the socket that its second argument names, and
/// on its standard input, which is the connection of the engine that has started it.
pub fn main(path: &Path) -> io::Result<()> {
    let first = io::stdin().as_fd().try_clone_to_owned()?;
    sys::process::null_stdio(true, false, false)?;
    nix::fcntl::fcntl(&first, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    let _ = sys::process::set_name("berth-resolver");
    // Three descriptors for each container, one for each question that is passed on: the usual 1,024 are few.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
    server::run(path, first, RESOLV_CONF.as_ref())
}
