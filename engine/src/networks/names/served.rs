//! A container that is served: its sockets, and how its questions are answered.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::timeout;

use super::doors::Doors;
use super::message::{self, Code, Question, Records, kind};
use super::outside::{self, Found, Outside};
use super::server::Server;
use super::upstream::{Asked, Servers};
use super::zone::{Version, Zone};

/// Questions of one container that are being looked up elsewhere: no container takes all of them.
const LOOKUPS_OF_ONE: usize = 256;
/// Those and the ones that wait until they may be. More are refused.
const IN_LINE_OF_ONE: usize = 1024;
/// How long they wait.
const IN_LINE: Duration = Duration::from_secs(4);
/// TCP clients of one container.
const CLIENTS_OF_ONE: usize = 64;
/// How long a TCP client may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest question by UDP.
const QUESTION: usize = 4096;
/// Questions that are answered in a row before others get their turn.
const IN_A_ROW: usize = 64;

/// A container that is served.
pub(super) struct Served {
    id: String,
    namespace: Doors,
    /// The name servers that it was given, if any, and what is known of them.
    own: RefCell<Option<(Rc<Servers>, Rc<Outside>)>>,
    lookups: Semaphore,
    line: Semaphore,
    tasks: RefCell<Vec<AbortHandle>>,
}

/// Whom to ask for what isn't known here.
struct Way<'a> {
    servers: Rc<Servers>,
    outside: Rc<Outside>,
    namespace: Option<&'a Doors>,
}

/// What can be said to a message at once.
enum Said {
    Answer(Vec<u8>),
    /// Nothing yet: it has to be looked up.
    Elsewhere(Question),
    /// Nothing at all.
    Silence,
}

impl Served {
    /// Answers at these sockets from now on.
    pub(super) fn start(server: &Rc<Server>, zone: &Zone, fds: [OwnedFd; 3]) -> io::Result<Rc<Self>> {
        let [udp, tcp, namespace] = fds;
        let udp = UdpSocket::from_std(udp.into())?;
        let tcp = TcpListener::from_std(tcp.into())?;
        let served = Rc::new(Self {
            id: zone.id.clone(),
            namespace: Doors::new(namespace),
            own: RefCell::default(),
            lookups: Semaphore::new(LOOKUPS_OF_ONE),
            line: Semaphore::new(IN_LINE_OF_ONE),
            tasks: RefCell::default(),
        });
        served.note(zone);
        // The tasks hold it weakly: it goes when it is taken off the list, and they with it.
        let tasks = [
            spawn_local(datagrams(server.clone(), Rc::downgrade(&served), udp)),
            spawn_local(streams(server.clone(), Rc::downgrade(&served), tcp)),
        ];
        served.tasks.borrow_mut().extend(tasks.iter().map(|task| task.abort_handle()));
        Ok(served)
    }

    /// Notes what has changed.
    pub(super) fn note(&self, zone: &Zone) {
        let servers = Servers::of(&zone.upstreams);
        let mut own = self.own.borrow_mut();
        match own.as_mut() {
            _ if servers.addresses.is_empty() => *own = None,
            Some((known, _)) if **known == servers => {}
            Some((known, _)) => *known = Rc::new(servers),
            None => *own = Some((Rc::new(servers), Rc::new(Outside::new(outside::OF_CONTAINER)))),
        }
    }

    /// Closes its sockets, and with them lets go of its namespace (once look-ups that are under way have ended).
    pub(super) fn stop(&self) {
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
    }

    fn way(&self, server: &Server) -> Way<'_> {
        match self.own.borrow().as_ref() {
            Some((servers, outside)) => {
                Way { servers: servers.clone(), outside: outside.clone(), namespace: Some(&self.namespace) }
            }
            None => {
                Way { servers: server.host.get().servers.clone(), outside: server.outside.clone(), namespace: None }
            }
        }
    }

    /// Answers what can be answered at once.
    fn say(&self, server: &Server, message: &[u8], by_udp: bool) -> Said {
        let question = match message::parse(message) {
            Ok(question) => question,
            Err(Some(code)) => {
                server.count(|counters| counters.failed += 1);
                return Said::Answer(message::refuse(message, code));
            }
            Err(None) => {
                server.count(|counters| counters.dropped += 1);
                return Said::Silence;
            }
        };
        if let Some(records) = self.records(server, &question) {
            let failed = records == Records::None(Code::ServerFailure);
            server.count(|counters| *(if failed { &mut counters.failed } else { &mut counters.answered }) += 1);
            return Said::Answer(message::answer(message, &question, &records, by_udp));
        }
        let way = self.way(server);
        let asked = Asked { message, question: &question, by_udp, namespace: way.namespace };
        match way.outside.kept(&way.servers, asked) {
            Some(reply) => {
                server.count(|counters| counters.cached += 1);
                Said::Answer(reply)
            }
            None => Said::Elsewhere(question),
        }
    }

    /// What is said from here; none for what is to be looked up elsewhere.
    fn records(&self, server: &Server, question: &Question) -> Option<Records> {
        let known = self.known(server, question);
        if known.is_some() {
            return known;
        }
        let index = server.index.borrow();
        // Also of what isn't about a name of a container, nor about a name at all, nothing leaves an internal network.
        let Some(zone) = index.zone(&self.id).filter(|zone| zone.forwards) else {
            return Some(Records::None(Code::ServerFailure));
        };
        let name = question.name.as_deref().filter(|_| matches!(question.kind, kind::A | kind::AAAA))?;
        // A name without a dot is completed by who asks, and asked for again.
        let incomplete = !name.is_empty() && !name.contains('.');
        let completes = incomplete && zone.completes.unwrap_or_else(|| server.host.get().completes);
        completes.then_some(Records::None(Code::NoError))
    }

    /// What is known of containers.
    fn known(&self, server: &Server, question: &Question) -> Option<Records> {
        let name = question.name.as_deref().filter(|_| question.is_internet)?;
        if let Some(ip) = message::reversed(name) {
            let found = server.index.borrow().name_of(&self.id, ip)?;
            return Some(if question.kind == kind::PTR { Records::Name(found) } else { Records::None(Code::NoError) });
        }
        let version = match question.kind {
            kind::A => Version::Four,
            kind::AAAA => Version::Six,
            _ => return server.index.borrow().knows(&self.id, name).then_some(Records::None(Code::NoError)),
        };
        let addresses = server.index.borrow_mut().addresses(&self.id, name, version)?;
        Some(if addresses.is_empty() { Records::None(Code::NoError) } else { Records::Addresses(addresses) })
    }

    /// Asks the servers that the container has, or the host's, when it is this question's turn.
    async fn ask(&self, server: &Server, message: &[u8], question: &Question, by_udp: bool) -> Found {
        let turn = async { (self.lookups.acquire().await, server.lookups.acquire().await) };
        let Ok((Ok(_one), Ok(_all))) = timeout(IN_LINE, turn).await else { return Found::Nothing };
        let way = self.way(server);
        let asked = Asked { message, question, by_udp, namespace: way.namespace };
        way.outside.ask(&way.servers, &server.means, asked).await
    }

    /// Answers what has to be looked up elsewhere.
    async fn look_up(&self, server: &Server, message: &[u8], question: &Question, by_udp: bool) -> Vec<u8> {
        let found = match self.line.try_acquire() {
            Ok(_place) => self.ask(server, message, question, by_udp).await,
            Err(_) => Found::Nothing,
        };
        let (reply, cached) = match found {
            Found::Asked(reply) => (reply, false),
            Found::Shared(reply) => (reply, true),
            Found::Nothing => {
                server.count(|counters| counters.failed += 1);
                return message::answer(message, question, &Records::None(Code::ServerFailure), by_udp);
            }
        };
        server.count(|counters| *(if cached { &mut counters.cached } else { &mut counters.forwarded }) += 1);
        reply
    }
}

/// Sends an answer. There may be no room for it: who asks too fast loses some.
fn send(server: &Server, socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if socket.try_send_to(reply, to).is_err() {
        server.count(|counters| counters.dropped += 1);
    }
}

async fn datagrams(server: Rc<Server>, served: Weak<Served>, socket: UdpSocket) {
    let socket = Rc::new(socket);
    let mut buffer = vec![0; QUESTION];
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        let Some(served) = served.upgrade() else { return };
        let mut in_a_row = 0;
        while in_a_row < IN_A_ROW {
            in_a_row += 1;
            // An error besides "nothing there" is about one answer that nobody took (ECONNREFUSED).
            let (length, from) = match socket.try_recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => continue,
            };
            match served.say(&server, &buffer[..length], true) {
                Said::Answer(reply) => send(&server, &socket, &reply, from),
                Said::Silence => {}
                Said::Elsewhere(question) => {
                    let (server, served, socket) = (server.clone(), served.clone(), socket.clone());
                    let message = buffer[..length].to_vec();
                    spawn_local(async move {
                        let reply = served.look_up(&server, &message, &question, true).await;
                        send(&server, &socket, &reply, from);
                    });
                }
            }
        }
        if in_a_row == IN_A_ROW {
            tokio::task::yield_now().await;
        }
    }
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
        if clients.len() < CLIENTS_OF_ONE {
            let (server, served) = (server.clone(), served.clone());
            clients.spawn_local(async move { drop(client(&server, &served, stream).await) });
        } else {
            // One client too many is turned away.
            server.count(|counters| counters.dropped += 1);
        }
    }
}

/// Answers a TCP client's questions, one after the other.
async fn client(server: &Server, served: &Weak<Served>, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let Ok(length) = timeout(SILENCE, stream.read_u16()).await else { return Ok(()) };
        let mut message = vec![0; usize::from(length?)];
        let Ok(read) = timeout(SILENCE, stream.read_exact(&mut message)).await else { return Ok(()) };
        read?;
        let Some(served) = served.upgrade() else { return Ok(()) };
        let reply = match served.say(server, &message, false) {
            Said::Answer(reply) => reply,
            Said::Silence => return Ok(()),
            Said::Elsewhere(question) => served.look_up(server, &message, &question, false).await,
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let answered = timeout(SILENCE, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await;
        let Ok(answered) = answered else { return Ok(()) };
        answered?;
    }
}
