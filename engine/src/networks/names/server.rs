//! The resolver: one small process per engine root. It holds the sockets of all containers on networks of users and answers
//! (`served`) from what engines have told it, and holds published ports (`held`); it goes on when they are gone, and ends by itself when
//! it serves nobody, holds nothing and no engine is there.
//!
//! One thread, but for entering namespaces (`doors`). Everything is bounded: questions that are looked up elsewhere, TCP clients, lengths and times.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{LocalSet, spawn_local};

use super::held::Held;
use super::host::Host;
use super::outside::{self, Outside};
use super::protocol::{Counters, LONGEST, PAGE, PORTS, Reply, Request, VERSION};
use super::served::Served;
use super::upstream::Means;
use super::zone::{Index, Zone};

/// Questions of all containers that are being looked up elsewhere.
const LOOKUPS: usize = 1024;
/// Threads that wait for those that enter namespaces.
const BESIDE: usize = 4;

/// All that it knows and does.
pub(super) struct Server {
    pub(super) index: RefCell<Index>,
    served: RefCell<HashMap<String, Rc<Served>>>,
    held: Held,
    engines: Cell<usize>,
    /// The host's name servers.
    pub(super) host: Host,
    /// What is known of them.
    pub(super) outside: Rc<Outside>,
    pub(super) means: Means,
    pub(super) lookups: Semaphore,
    counters: RefCell<Counters>,
    /// Told when it may be time to end.
    idle: Notify,
    quit: Cell<bool>,
}

/// Runs the resolver. `first` is the connection of the engine that has started it, `resolv_conf` names the host's servers.
pub(super) fn run(path: &Path, first: OwnedFd, resolv_conf: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BESIDE).build()?;
    let server = Rc::new(Server {
        index: RefCell::default(),
        served: RefCell::default(),
        held: Held::default(),
        engines: Cell::new(0),
        host: Host::new(resolv_conf.to_owned()),
        outside: Rc::new(Outside::new(outside::OF_HOST)),
        means: Means::open()?,
        lookups: Semaphore::new(LOOKUPS),
        counters: RefCell::default(),
        idle: Notify::new(),
        quit: Cell::new(false),
    });
    LocalSet::new().block_on(&runtime, async move {
        let listener = listen_at(path)?;
        server.meet(first)?;
        let accepting = spawn_local(accept_engines(server.clone(), listener));
        while !server.may_end() {
            server.idle.notified().await;
        }
        accepting.abort();
        // The path of a resolver that ends is nobody's; one that replaces it makes its own. Both before the connections are closed, by
        // which engines know that it has ended.
        let _ = std::fs::remove_file(path);
        server.held.let_all_go().await;
        Ok(())
    })
}

fn listen_at(path: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(16)?)?;
    watch(socket)
}

#[allow(deprecated, reason = "its successor is unsafe for what may change its descriptor; an OwnedFd doesn't")]
fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::try_new(socket).map_err(io::Error::from)
}

async fn accept_engines(server: Rc<Server>, listener: AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = listener.readable().await else { return };
        let accepted = ready.try_io(|listener| Ok(sys::fd::accept(listener.get_ref())?));
        match accepted {
            Ok(Ok(engine)) => drop(server.meet(engine)),
            // Out of descriptors, mostly.
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(_would_block) => {}
        }
    }
}

impl Server {
    fn may_end(&self) -> bool {
        self.quit.get() || (self.engines.get() == 0 && self.served.borrow().is_empty() && self.held.is_empty())
    }

    /// Changes what is counted.
    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.counters.borrow_mut());
    }

    /// Listens to an engine.
    fn meet(self: &Rc<Self>, engine: OwnedFd) -> io::Result<()> {
        let engine = watch(engine)?;
        self.engines.set(self.engines.get() + 1);
        let server = self.clone();
        spawn_local(async move {
            let ended = server.talk(&engine).await;
            if let Err(error) = ended {
                eprintln!("berth-engine resolver: talk with the engine: {error}");
            }
            server.engines.set(server.engines.get() - 1);
            server.idle.notify_one();
        });
        Ok(())
    }

    async fn talk(self: &Rc<Self>, engine: &AsyncFd<OwnedFd>) -> io::Result<()> {
        loop {
            let mut buffer = vec![0; LONGEST];
            let (length, fds) = loop {
                let mut ready = engine.readable().await?;
                let received = ready.try_io(|engine| Ok(sys::fd::recv_fds(engine.get_ref().as_fd(), &mut buffer)?));
                if let Ok(received) = received {
                    break received?;
                }
            };
            if length == 0 {
                return Ok(());
            }
            let (reply, fds) = match serde_json::from_slice(&buffer[..length]) {
                Ok(request) => self.obey(request, fds).await,
                Err(error) => {
                    (Reply { version: VERSION, error: Some(error.to_string()), ..Reply::default() }, Vec::new())
                }
            };
            let bytes = serde_json::to_vec(&reply)?;
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            sys::fd::send_fds(engine.get_ref().as_fd(), &bytes, &fds)?;
            if self.quit.get() {
                self.idle.notify_one();
            }
        }
    }

    async fn obey(self: &Rc<Self>, request: Request, fds: Vec<OwnedFd>) -> (Reply, Vec<OwnedFd>) {
        let mut reply = Reply { version: VERSION, ..Reply::default() };
        let mut along = Vec::new();
        let done = match request {
            Request::Hello(after) => {
                let mut serves = self.index.borrow().ids();
                serves.sort();
                serves.retain(|id| *id > after);
                serves.truncate(PAGE);
                reply.serves = serves;
                Ok(())
            }
            Request::Serve(zone) => self.serve(zone, fds),
            Request::Change(zone) => self.change(zone),
            Request::Hold(ports) => self.held.hold(&ports, fds).await,
            Request::LetGo(ports) => {
                self.held.let_go(&ports).await;
                Ok(())
            }
            Request::Held(after) => self.held.list(after, PORTS).map(|held| (reply.holds, along) = held),
            Request::Count => {
                reply.counters = *self.counters.borrow();
                Ok(())
            }
            Request::Forget(id) => {
                self.index.borrow_mut().remove(&id);
                if let Some(served) = self.served.borrow_mut().remove(&id) {
                    served.stop();
                }
                Ok(())
            }
            Request::Quit => {
                self.quit.set(true);
                Ok(())
            }
        };
        reply.error = done.err().map(|error| error.to_string());
        (reply, along)
    }

    fn serve(self: &Rc<Self>, zone: Zone, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Ok([udp, tcp, namespace]) = <[OwnedFd; 3]>::try_from(fds) else {
            return Err(io::Error::other("three descriptors should come along"));
        };
        let served = Served::start(self, &zone, [udp, tcp, namespace])?;
        if let Some(before) = self.served.borrow_mut().insert(zone.id.clone(), served) {
            before.stop();
        }
        self.index.borrow_mut().put(zone);
        Ok(())
    }

    fn change(&self, zone: Zone) -> io::Result<()> {
        match self.served.borrow().get(&zone.id) {
            Some(served) => served.note(&zone),
            None => return Err(io::Error::other(format!("container {} isn't served", zone.id))),
        }
        self.index.borrow_mut().put(zone);
        Ok(())
    }
}
