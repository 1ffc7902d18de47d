//! The resolver: one small process per engine root. It holds the sockets of all containers on networks of users and answers
//! from what engines have told it; it goes on when they are gone, and ends by itself when it serves nobody and no engine is
//! there.
//!
//! One thread. Everything is bounded: questions that are looked up elsewhere, TCP clients, lengths and times.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::rc::{Rc, Weak};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet, LocalSet, spawn_local};
use tokio::time::timeout;

use super::message::{self, Code, Question, Records, kind};
use super::protocol::{LONGEST, PAGE, Reply, Request, VERSION};
use super::upstream::{self, HostServers};
use super::zone::{Index, Zone};

/// Questions of all containers that are being looked up elsewhere.
const LOOKUPS: usize = 1024;
/// Those of one container: no container takes all of them.
const LOOKUPS_OF_ONE: usize = 256;
/// TCP clients of one container.
const CLIENTS_OF_ONE: usize = 64;
/// How long a TCP client may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest question by UDP.
const QUESTION: usize = 4096;
/// Questions that are answered in a row before others get their turn.
const IN_A_ROW: usize = 64;

struct Server {
    index: RefCell<Index>,
    served: RefCell<HashMap<String, Rc<Served>>>,
    engines: RefCell<usize>,
    host: HostServers,
    lookups: Semaphore,
    /// Told when it may be time to end.
    idle: Notify,
    quit: RefCell<bool>,
}

/// A container that is served.
struct Served {
    id: String,
    namespace: OwnedFd,
    lookups: Semaphore,
    tasks: RefCell<Vec<AbortHandle>>,
}

impl Served {
    /// Closes its sockets, and with them lets go of its namespace (once look-ups that are under way have ended).
    fn stop(&self) {
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
    }
}

/// Runs the resolver. `first` is the connection of the engine that has started it.
pub(super) fn run(path: &Path, first: OwnedFd) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Rc::new(Server {
        index: RefCell::default(),
        served: RefCell::default(),
        engines: RefCell::new(0),
        host: HostServers::default(),
        lookups: Semaphore::new(LOOKUPS),
        idle: Notify::new(),
        quit: RefCell::new(false),
    });
    LocalSet::new().block_on(&runtime, async move {
        let listener = listen_at(path)?;
        server.meet(first)?;
        let accepting = spawn_local(accept_engines(server.clone(), listener));
        while !server.may_end() {
            server.idle.notified().await;
        }
        accepting.abort();
        Ok::<(), io::Error>(())
    })?;
    // The path of a resolver that ends is nobody's; one that replaces it makes its own.
    let _ = std::fs::remove_file(path);
    Ok(())
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
        *self.quit.borrow() || (*self.engines.borrow() == 0 && self.served.borrow().is_empty())
    }

    /// Listens to an engine.
    fn meet(self: &Rc<Self>, engine: OwnedFd) -> io::Result<()> {
        let engine = watch(engine)?;
        *self.engines.borrow_mut() += 1;
        let server = self.clone();
        spawn_local(async move {
            let ended = server.talk(&engine).await;
            if let Err(error) = ended {
                eprintln!("berth-engine resolver: talk with the engine: {error}");
            }
            *server.engines.borrow_mut() -= 1;
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
            let reply = match serde_json::from_slice(&buffer[..length]) {
                Ok(request) => self.obey(request, fds),
                Err(error) => Reply { version: VERSION, serves: Vec::new(), error: Some(error.to_string()) },
            };
            let bytes = serde_json::to_vec(&reply)?;
            sys::fd::send_fds(engine.get_ref().as_fd(), &bytes, &[])?;
            if *self.quit.borrow() {
                self.idle.notify_one();
            }
        }
    }

    fn obey(self: &Rc<Self>, request: Request, fds: Vec<OwnedFd>) -> Reply {
        let mut serves = Vec::new();
        let done = match request {
            Request::Hello(after) => {
                serves = self.index.borrow().ids();
                serves.sort();
                serves.retain(|id| *id > after);
                serves.truncate(PAGE);
                Ok(())
            }
            Request::Serve(zone) => self.serve(zone, fds),
            Request::Change(zone) if self.served.borrow().contains_key(&zone.id) => {
                self.index.borrow_mut().put(zone);
                Ok(())
            }
            Request::Change(zone) => Err(io::Error::other(format!("container {} isn't served", zone.id))),
            Request::Forget(id) => {
                self.index.borrow_mut().remove(&id);
                if let Some(served) = self.served.borrow_mut().remove(&id) {
                    served.stop();
                }
                Ok(())
            }
            Request::Quit => {
                *self.quit.borrow_mut() = true;
                Ok(())
            }
        };
        Reply { version: VERSION, serves, error: done.err().map(|error| error.to_string()) }
    }

    fn serve(self: &Rc<Self>, zone: Zone, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Ok([udp, tcp, namespace]) = <[OwnedFd; 3]>::try_from(fds) else {
            return Err(io::Error::other("three descriptors should come along"));
        };
        let udp = UdpSocket::from_std(udp.into())?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let served = Rc::new(Served {
            id: zone.id.clone(),
            namespace,
            lookups: Semaphore::new(LOOKUPS_OF_ONE),
            tasks: RefCell::default(),
        });
        // The tasks hold it weakly: it goes when it is taken off the list, and they with it.
        let tasks = [
            spawn_local(datagrams(self.clone(), Rc::downgrade(&served), udp)),
            spawn_local(streams(self.clone(), Rc::downgrade(&served), tcp)),
        ];
        served.tasks.borrow_mut().extend(tasks.iter().map(|task| task.abort_handle()));
        if let Some(before) = self.served.borrow_mut().insert(zone.id.clone(), served) {
            before.stop();
        }
        self.index.borrow_mut().put(zone);
        Ok(())
    }

    /// Answers what can be answered from here.
    fn answer_here(&self, id: &str, message: &[u8], by_udp: bool) -> Local {
        let question = match message::parse(message) {
            Ok(question) => question,
            Err(Some(code)) => return Local::Answer(message::refuse(message, code)),
            Err(None) => return Local::Silence,
        };
        let records = self.records(id, &question);
        match records {
            Some(records) => Local::Answer(message::answer(message, &question, &records, by_udp)),
            None => Local::Elsewhere(question),
        }
    }

    fn records(&self, id: &str, question: &Question) -> Option<Records> {
        let name = question.name.as_deref().filter(|_| question.is_internet)?;
        if let Some(ip) = message::reversed(name) {
            let known = self.index.borrow().name_of(id, ip);
            return known.filter(|_| question.kind == kind::PTR).map(Records::Name);
        }
        let found = self.index.borrow_mut().addresses(id, name);
        match found {
            Some(addresses) if question.kind == kind::A => Some(Records::Addresses(addresses)),
            Some(_) => Some(Records::None(Code::NoError)),
            None => {
                let index = self.index.borrow();
                let zone = index.zone(id)?;
                let completes = zone.completes && !name.contains('.') && matches!(question.kind, kind::A | kind::AAAA);
                match (zone.forwards, completes) {
                    (false, _) => Some(Records::None(Code::ServerFailure)),
                    (true, true) => Some(Records::None(Code::NoError)),
                    (true, false) => None,
                }
            }
        }
    }

    /// Asks the servers that the container has, or the host's.
    async fn look_up(&self, served: &Served, message: &[u8], question: &Question, by_udp: bool) -> Vec<u8> {
        let failed = || message::answer(message, question, &Records::None(Code::ServerFailure), by_udp);
        let (Ok(_one), Ok(_all)) = (served.lookups.try_acquire(), self.lookups.try_acquire()) else { return failed() };
        let own = self.index.borrow().zone(&served.id).map(|zone| zone.upstreams.clone()).unwrap_or_default();
        let (servers, namespace) = match own.is_empty() {
            true => (self.host.get(), None),
            false => (own, Some(&served.namespace)),
        };
        upstream::ask(&servers, namespace, message, question, by_udp).await.unwrap_or_else(failed)
    }
}

enum Local {
    Answer(Vec<u8>),
    Elsewhere(Question),
    Silence,
}

async fn datagrams(server: Rc<Server>, served: Weak<Served>, socket: UdpSocket) {
    let socket = Rc::new(socket);
    let mut buffer = vec![0; QUESTION];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        for _ in 0..IN_A_ROW {
            // An error besides "nothing there" is about one answer that nobody took (ECONNREFUSED).
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => continue,
            };
            let Some(served) = served.upgrade() else { return };
            match server.answer_here(&served.id, &buffer[..length], true) {
                Local::Answer(reply) => drop(socket.try_send_to(&reply, from)),
                Local::Silence => {}
                Local::Elsewhere(question) => {
                    let (server, socket, message) = (server.clone(), socket.clone(), buffer[..length].to_vec());
                    spawn_local(pass_on(server, served, socket, from, message, question));
                }
            }
        }
        tokio::task::yield_now().await;
    }
}

async fn pass_on(
    server: Rc<Server>,
    served: Rc<Served>,
    socket: Rc<UdpSocket>,
    from: SocketAddr,
    message: Vec<u8>,
    question: Question,
) {
    let reply = server.look_up(&served, &message, &question, true).await;
    let _ = socket.try_send_to(&reply, from);
}

async fn streams(server: Rc<Server>, served: Weak<Served>, listener: TcpListener) {
    // Dropped with this task, and they with it.
    let mut clients = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while clients.try_join_next().is_some() {}
        // One client too many is turned away.
        if clients.len() < CLIENTS_OF_ONE {
            let (server, served) = (server.clone(), served.clone());
            clients.spawn_local(async move { drop(client(&server, &served, stream).await) });
        }
    }
}

/// Answers a TCP client's questions, one after the other.
async fn client(server: &Server, served: &Weak<Served>, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(SILENCE, stream.read_u16()).await else { return Ok(()) };
        let mut message = vec![0; usize::from(length?)];
        let Ok(read) = timeout(SILENCE, stream.read_exact(&mut message)).await else { return Ok(()) };
        read?;
        let Some(served) = served.upgrade() else { return Ok(()) };
        let reply = match server.answer_here(&served.id, &message, false) {
            Local::Answer(reply) => reply,
            Local::Silence => return Ok(()),
            Local::Elsewhere(question) => server.look_up(&served, &message, &question, false).await,
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let answered = timeout(SILENCE, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await;
        let Ok(answered) = answered else { return Ok(()) };
        answered?;
    }
}
