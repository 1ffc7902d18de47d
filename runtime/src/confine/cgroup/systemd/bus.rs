//! A connection to systemd: over a D-Bus broker, or over systemd's private socket, which speaks the same language with nobody in
//! between. Blocking, with one deadline for everything.
//!
//! Authentication is EXTERNAL without a name: the peer takes the user from the socket's credentials, which is right also in a user
//! namespace, where our own idea of our uid is another one.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use sys::dbus::{MAX_MESSAGE, Message, PREAMBLE, Value, kind};

/// Why systemd could not be asked, or what it answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// No socket answers.
    #[error("no systemd to ask for a cgroup: {tried}; {cure}")]
    Unreachable { tried: String, cure: &'static str },
    /// The connection broke.
    #[error("talk to systemd at {address}")]
    Io {
        address: String,
        #[source]
        cause: std::io::Error,
    },
    /// It is not D-Bus, or not what was asked.
    #[error("talk to systemd at {address}: {what}")]
    Protocol { address: String, what: &'static str },
    /// Too long.
    #[error("systemd at {address} did not answer within {} s", PATIENCE.as_secs())]
    Timeout { address: String },
    /// systemd says no.
    #[error("systemd refused {call}: {name}: {text}")]
    Refused { call: &'static str, name: String, text: String },
    /// A job that did not end well.
    #[error("systemd's job for {unit} ended as {result:?}")]
    Job { unit: String, result: String },
}

impl BusError {
    /// Whether systemd answered with this error, the last part of its name being enough.
    pub(crate) fn is(&self, error: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name.rsplit('.').next() == Some(error))
    }
}

/// How long systemd may take for all that one command asks of it.
const PATIENCE: Duration = Duration::from_secs(30);

const SYSTEMD: &str = "org.freedesktop.systemd1";
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
pub(super) const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const BROKER: &str = "org.freedesktop.DBus";

/// One socket to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `/path`, or `@name` for an abstract one.
    pub(super) socket: String,
    /// Whether a broker is in between.
    pub(super) brokered: bool,
}

/// The end of a job.
#[derive(Debug)]
struct Removed {
    job: String,
    unit: String,
    result: String,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    address: Address,
    serial: u32,
    deadline: Instant,
    /// Ends of jobs that nobody waited for yet.
    removed: VecDeque<Removed>,
}

impl Bus {
    /// Connects to the first of these that answers.
    pub(super) fn connect(addresses: &[Address], cure: &'static str) -> Result<Self, BusError> {
        let mut tried = Vec::new();
        for address in addresses {
            match open(&address.socket) {
                Ok(stream) => return Self::greet(stream, address.clone()),
                Err(error) => tried.push(format!("{}: {error}", address.socket)),
            }
        }
        Err(BusError::Unreachable { tried: tried.join(", "), cure })
    }

    fn greet(stream: UnixStream, address: Address) -> Result<Self, BusError> {
        let deadline = Instant::now() + PATIENCE;
        let mut bus = Self { stream, address, serial: 0, deadline, removed: VecDeque::new() };
        // Everything at once: the answers can only be these.
        bus.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        if bus.line()? != "DATA" {
            return Err(bus.protocol("it does not know this user"));
        }
        if !bus.line()?.starts_with("OK") {
            return Err(bus.protocol("it does not know this user"));
        }
        if bus.address.brokered {
            bus.call_on(BROKER, "/org/freedesktop/DBus", BROKER, "Hello", &[])?;
            let rule = "type='signal',sender='org.freedesktop.systemd1',interface='org.freedesktop.systemd1.Manager',\
                        member='JobRemoved',path='/org/freedesktop/systemd1'";
            bus.call_on(BROKER, "/org/freedesktop/DBus", BROKER, "AddMatch", &[Value::text(rule)])?;
        }
        Ok(bus)
    }

    /// Calls a method of the manager.
    pub(super) fn call(&mut self, member: &'static str, body: &[Value]) -> Result<Message, BusError> {
        self.call_on(SYSTEMD, MANAGER_PATH, MANAGER, member, body)
    }

    /// Calls a method that starts a job, and waits for the end of that.
    pub(super) fn run_job(&mut self, member: &'static str, body: &[Value]) -> Result<(), BusError> {
        let reply = self.call(member, body)?;
        let job = reply.reader().text().map(str::to_owned).filter(|_| reply.signature == "o");
        let job = job.ok_or_else(|| self.protocol("a job has no name"))?;
        loop {
            while let Some(removed) = self.removed.pop_front() {
                if removed.job == job {
                    return match removed.result.as_str() {
                        "done" => Ok(()),
                        _ => Err(BusError::Job { unit: removed.unit, result: removed.result }),
                    };
                }
            }
            let message = self.receive()?;
            self.note(&message);
        }
    }

    /// A property of the manager that is text.
    pub(super) fn property(&mut self, name: &str) -> Result<String, BusError> {
        let body = [Value::text(MANAGER), Value::text(name)];
        let reply = self.call_on(SYSTEMD, MANAGER_PATH, "org.freedesktop.DBus.Properties", "Get", &body)?;
        let mut reader = reply.reader();
        let text = match (reply.signature.as_str(), reader.signature()) {
            ("v", Some("s")) => reader.text(),
            _ => None,
        };
        text.map(str::to_owned).ok_or_else(|| self.protocol("a property is not text"))
    }

    fn call_on(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        member: &'static str,
        body: &[Value],
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let destination = if self.address.brokered { destination } else { "" };
        let call = Message {
            kind: kind::CALL,
            serial: self.serial,
            path: path.into(),
            interface: interface.into(),
            member: member.into(),
            destination: destination.into(),
            ..Message::default()
        };
        self.send(&call.marshal(body))?;
        loop {
            let message = self.receive()?;
            match message.kind {
                kind::REPLY if message.reply_to == self.serial => return Ok(message),
                kind::ERROR if message.reply_to == self.serial => {
                    let text = if message.signature.starts_with('s') { message.reader().text() } else { None };
                    let text = text.unwrap_or_default().to_owned();
                    return Err(BusError::Refused { call: member, name: message.error, text });
                }
                _ => self.note(&message),
            }
        }
    }

    fn note(&mut self, message: &Message) {
        const MAX_KEPT: usize = 1000;
        let awaited = message.kind == kind::SIGNAL
            && message.member == "JobRemoved"
            && message.interface == MANAGER
            && message.signature == "uoss";
        let mut reader = message.reader();
        if awaited
            && let (Some(_), Some(job), Some(unit), Some(result)) =
                (reader.u32(), reader.text(), reader.text(), reader.text())
        {
            // Others' jobs end too; ours is among the latest.
            if self.removed.len() == MAX_KEPT {
                self.removed.pop_front();
            }
            self.removed.push_back(Removed { job: job.into(), unit: unit.into(), result: result.into() });
        }
    }

    fn protocol(&self, what: &'static str) -> BusError {
        BusError::Protocol { address: self.address.socket.clone(), what }
    }

    fn io(&self, cause: std::io::Error) -> BusError {
        let address = self.address.socket.clone();
        match cause.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => BusError::Timeout { address },
            _ => BusError::Io { address, cause },
        }
    }

    /// What is left of the time.
    fn left(&self) -> Result<Option<Duration>, BusError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(BusError::Timeout { address: self.address.socket.clone() });
        }
        Ok(Some(left))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        let left = self.left()?;
        let sent = self.stream.set_write_timeout(left).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|cause| self.io(cause))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), BusError> {
        let mut at = 0;
        while at < buffer.len() {
            let left = self.left()?;
            let read = self.stream.set_read_timeout(left).and_then(|()| self.stream.read(&mut buffer[at..]));
            match read {
                Ok(0) => return Err(self.io(ErrorKind::UnexpectedEof.into())),
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(())
    }

    /// A line of the authentication. Byte by byte: what follows the last line is a message already.
    fn line(&mut self) -> Result<String, BusError> {
        const MAX_LINE: usize = 256;
        let mut line = Vec::new();
        while line.len() < MAX_LINE {
            let mut byte = [0];
            self.fill(&mut byte)?;
            line.push(byte[0]);
            if let Some(text) = line.strip_suffix(b"\r\n") {
                return Ok(String::from_utf8_lossy(text).into_owned());
            }
        }
        Err(self.protocol("a line of its authentication does not end"))
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut preamble = [0; PREAMBLE];
        self.fill(&mut preamble)?;
        let rest = Message::rest(&preamble).ok_or_else(|| self.protocol("it sent no message, or too long a one"))?;
        debug_assert!(rest <= MAX_MESSAGE);
        let mut bytes = preamble.to_vec();
        bytes.resize(PREAMBLE + rest, 0);
        self.fill(&mut bytes[PREAMBLE..])?;
        Message::parse(&bytes).ok_or_else(|| self.protocol("it sent a message that cannot be read"))
    }
}

fn open(socket: &str) -> std::io::Result<UnixStream> {
    match socket.strip_prefix('@') {
        Some(name) => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?),
        None => UnixStream::connect(Path::new(socket)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_bus_is_named() {
        let address = |socket: &str| Address { socket: socket.into(), brokered: true };
        let error = Bus::connect(&[address("/no/such/bus"), address("/no/other")], "do this").expect_err("nobody");
        let text = error.to_string();
        assert!(text.contains("/no/such/bus") && text.contains("/no/other") && text.contains("do this"), "{text}");
    }
}
