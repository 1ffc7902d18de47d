//! A load of questions for a name server, asked from inside a network namespace: how many it answers in a second, and how
//! many not at all. One thread, one socket, no more work per question than the server has.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Where a container's names are answered.
pub const RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);
/// The type of IPv4 addresses.
pub const A: u16 = 1;
/// The type of IPv6 addresses.
pub const AAAA: u16 = 28;

/// Most questions that can be in flight: an id holds the place and a part that changes with each question.
const PLACES: usize = 4096;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often is looked for what got lost.
const LOOK: Duration = Duration::from_millis(50);

/// What to ask, and how.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Whom.
    pub server: SocketAddr,
    /// These names, in turns.
    pub names: &'a [&'a str],
    /// The type of the records: [`A`], [`AAAA`].
    pub kind: u16,
    /// Questions that wait for an answer at any time; 1 asks one after the other. Some 250 answers fit into a socket.
    pub outstanding: usize,
    /// For so long.
    pub lasting: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Answers with records.
    pub answered: u64,
    /// Answers that say there are none, or that it failed.
    pub failed: u64,
    /// Questions without an answer in a second.
    pub lost: u64,
    /// From the first question to the last answer.
    pub took: Duration,
    /// Half of the answers took no longer.
    pub median: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
}

impl Figures {
    /// Good answers per second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// The network namespace of a process, such as a container's first.
pub fn namespace_of(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// Asks from inside a namespace. The calling thread stays where it is.
pub fn load_within(namespace: BorrowedFd<'_>, load: &Load<'_>) -> io::Result<Figures> {
    sys::netns::within(namespace, || run(load)).map_err(|error| error.cause)?
}

/// Asks from the namespace of the calling thread.
pub fn run(load: &Load<'_>) -> io::Result<Figures> {
    let places = load.outstanding.clamp(1, PLACES);
    let questions: Vec<Vec<u8>> = load.names.iter().map(|name| question(name, load.kind)).collect();
    if questions.is_empty() {
        return Err(io::Error::other("no names to ask for"));
    }
    let any = SocketAddr::new(if load.server.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
    let socket = UdpSocket::bind(any)?;
    // Connected: an answer from elsewhere isn't heard.
    socket.connect(load.server)?;
    socket.set_read_timeout(Some(LOOK))?;
    let begin = Instant::now();
    let mut asker = Asker { socket, questions, next: 0, sent: vec![(0, begin); places], message: Vec::new() };
    (0..places).try_for_each(|place| asker.ask(place))?;
    let (mut figures, mut times, mut looked) = (Figures::default(), Vec::new(), begin);
    let mut buffer = [0; 4096];
    loop {
        let received = asker.socket.recv(&mut buffer);
        let now = Instant::now();
        if now >= begin + load.lasting {
            break;
        }
        match received {
            Ok(length) => {
                if let Some((place, sent)) = asker.place(&buffer[..length]) {
                    let good = buffer[3] & 0xf == 0 && buffer[6..8] != [0, 0];
                    *(if good { &mut figures.answered } else { &mut figures.failed }) += 1;
                    figures.took = now - begin;
                    times.push(u32::try_from((now - sent).as_nanos()).unwrap_or(u32::MAX));
                    asker.ask(place)?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        if now >= looked + LOOK {
            looked = now;
            for place in 0..places {
                if now >= asker.sent[place].1 + PATIENCE {
                    figures.lost += 1;
                    asker.ask(place)?;
                }
            }
        }
    }
    times.sort_unstable();
    let at = |part: usize| Duration::from_nanos(times.get(times.len() * part / 100).copied().unwrap_or(0).into());
    (figures.median, figures.p99) = (at(50), at(99));
    Ok(figures)
}

struct Asker {
    socket: UdpSocket,
    questions: Vec<Vec<u8>>,
    next: usize,
    /// For each place the id of its question, and when that was asked.
    sent: Vec<(u16, Instant)>,
    message: Vec<u8>,
}

impl Asker {
    fn ask(&mut self, place: usize) -> io::Result<()> {
        let id = self.sent[place].0.wrapping_add(PLACES as u16) & !(PLACES as u16 - 1) | place as u16;
        self.sent[place] = (id, Instant::now());
        self.next = (self.next + 1) % self.questions.len();
        self.message.clone_from(&self.questions[self.next]);
        self.message[..2].copy_from_slice(&id.to_be_bytes());
        self.socket.send(&self.message).map(drop)
    }

    /// The place that an answer belongs to, and when it was asked for. None for one that comes too late.
    fn place(&self, answer: &[u8]) -> Option<(usize, Instant)> {
        let id = u16::from_be_bytes(answer.get(..2)?.try_into().ok()?);
        let place = usize::from(id) % PLACES;
        let (asked, sent) = self.sent.get(place)?;
        (answer.len() >= 12 && *asked == id).then_some((place, *sent))
    }
}

/// A message with one question, its id left open.
fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend([0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_failures_and_losses_are_told_apart() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let address = server.local_addr().expect("address");
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = server.recv_from(&mut buffer) {
                let reply = &mut buffer[..length];
                reply[2] |= 0x80;
                match reply[13] {
                    b'a' => reply[7] = 1,
                    b'b' => reply[3] = 2,
                    _ => continue,
                }
                let _ = server.send_to(reply, from);
            }
        });
        let ask = |names: &[&str], outstanding| {
            let lasting = Duration::from_millis(1500);
            run(&Load { server: address, names, kind: A, outstanding, lasting }).expect("load")
        };
        let good = ask(&["a"], 8);
        assert!(good.answered > 100 && good.failed == 0 && good.rate() > 0.0 && good.p99 >= good.median, "{good:?}");
        let bad = ask(&["b.x"], 1);
        assert!(bad.answered == 0 && bad.failed > 100, "{bad:?}");
        let none = ask(&["c"], 3);
        assert_eq!((none.answered, none.failed, none.lost), (0, 0, 3), "{none:?}");
    }
}
