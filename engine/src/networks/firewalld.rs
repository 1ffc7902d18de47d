//! firewalld, which rejects what passes between links that it wasn't told of: an accept in our table doesn't save a packet from its.
//! Where it runs in our network namespace it is told over D-Bus, in the way docker tells it:
//!
//! ```text
//! zone berth               target ACCEPT; each bridge is put in it, unless the host's owner has put it in another
//! policy berth-forwarding  from ANY to berth: ACCEPT. Our own chain then decides, by what is published
//! ```
//! Zone and policy are of its permanent configuration, for others can't be made, and are made once: it has to reload for that, 0.2 s.
//! That the bridges are in the zone is for as long as firewalld runs, as no bridge is for ever; whenever it makes its table anew
//! (start, reload), it is told again ([`super::watch`]).

use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use sys::dbus::{Message, PREAMBLE, Value, kind};
use tracing::{debug, info};

/// The zone of bridges, and the policy that lets packets into it.
const ZONE: &str = "berth";
const POLICY: &str = "berth-forwarding";
/// How long one conversation may take: while it starts or reloads, firewalld answers nobody.
const PATIENCE: Duration = Duration::from_secs(30);

const BROKER: Object = Object("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus");
const SERVICE: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const CONFIG_PATH: &str = "/org/fedoraproject/FirewallD1/config";
const FIREWALLD: Object<'_> = Object(SERVICE, PATH, SERVICE);
const ZONES: Object<'_> = Object(SERVICE, PATH, "org.fedoraproject.FirewallD1.zone");
const POLICIES: Object<'_> = Object(SERVICE, PATH, "org.fedoraproject.FirewallD1.policy");
const CONFIG: Object<'_> = Object(SERVICE, CONFIG_PATH, "org.fedoraproject.FirewallD1.config");

/// A destination, an object of it, and an interface of that.
#[derive(Debug, Clone, Copy)]
struct Object<'a>(&'a str, &'a str, &'a str);

/// Why firewalld wasn't told.
#[derive(Debug, thiserror::Error)]
pub enum FirewalldError {
    /// No bus answers.
    #[error("reach the system's message bus: {0}")]
    Unreachable(String),
    /// The connection broke, or the answer took too long.
    #[error("ask firewalld to {call}")]
    Io {
        /// The method.
        call: &'static str,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The answer isn't one.
    #[error("ask firewalld to {call}: the answer can't be read")]
    Unreadable {
        /// The method.
        call: &'static str,
    },
    /// It says no.
    #[error("ask firewalld to {call}: {name}: {text}")]
    Refused {
        /// The method.
        call: &'static str,
        /// The error's name on the bus.
        name: String,
        /// Its code and its words.
        text: String,
    },
}

impl FirewalldError {
    /// Firewalld's code, or the last word of the bus' own.
    fn code(&self) -> &str {
        match self {
            Self::Refused { name, text, .. } if name.starts_with(SERVICE) => text.split(':').next().unwrap_or_default(),
            Self::Refused { name, .. } => name.rsplit('.').next().unwrap_or_default(),
            _ => "",
        }
    }
}

/// `Ok` also for these refusals: somebody was faster.
fn tolerating(result: Result<Message, FirewalldError>, codes: &[&str]) -> Result<(), FirewalldError> {
    match result {
        Err(error) if codes.contains(&error.code()) => Ok(()),
        result => result.map(drop),
    }
}

/// Puts bridges into the zone, and makes that where it isn't there. Does nothing where firewalld isn't on the bus.
pub(super) fn join(sockets: &[String], bridges: &[String]) -> Result<(), FirewalldError> {
    let Some(mut bus) = Bus::to_firewalld(sockets)? else { return Ok(()) };
    bus.ensure_zone()?;
    for bridge in bridges {
        let zone = bus.zone_of(bridge)?;
        if zone.is_empty() {
            let added = bus.call(ZONES, "addInterface", &[Value::text(ZONE), Value::text(bridge)]);
            tolerating(added, &["ZONE_ALREADY_SET", "ALREADY_ENABLED", "ZONE_CONFLICT"])?;
            info!(bridge, zone = ZONE, "bridge is in a zone of firewalld");
        } else if zone != ZONE {
            debug!(bridge, zone, "bridge is in another zone of firewalld, and stays there");
        }
    }
    Ok(())
}

/// Takes bridges out of the zone.
pub(super) fn leave(sockets: &[String], bridges: &[String]) -> Result<(), FirewalldError> {
    let Some(mut bus) = Bus::to_firewalld(sockets)? else { return Ok(()) };
    bus.leave(bridges)
}

/// Bridges that are in no zone, and so can't be passed.
pub(super) fn missing(sockets: &[String], bridges: &[String]) -> Result<Vec<String>, FirewalldError> {
    let Some(mut bus) = Bus::to_firewalld(sockets)? else { return Ok(Vec::new()) };
    let mut missing = Vec::new();
    for bridge in bridges {
        if bus.zone_of(bridge)?.is_empty() {
            missing.push(bridge.clone());
        }
    }
    Ok(missing)
}

/// Takes bridges out of the zone; when none is left in it, zone and policy go from firewalld's configuration. It forgets them when it next
/// reloads, which is left to the host's owner: what is set for the time being only would be lost. Returns whether they went.
pub(super) fn remove(sockets: &[String], bridges: &[String]) -> Result<bool, FirewalldError> {
    let Some(mut bus) = Bus::to_firewalld(sockets)? else { return Ok(false) };
    bus.leave(bridges)?;
    let others = match bus.list(ZONES, "getInterfaces", &[Value::text(ZONE)]) {
        Err(error) if error.code() == "INVALID_ZONE" => Vec::new(),
        others => others?,
    };
    if !others.is_empty() {
        return Ok(false);
    }
    let mut removed = false;
    for (find, name, interface) in [
        ("getPolicyByName", POLICY, "org.fedoraproject.FirewallD1.config.policy"),
        ("getZoneByName", ZONE, "org.fedoraproject.FirewallD1.config.zone"),
    ] {
        let found = match bus.call(CONFIG, find, &[Value::text(name)]) {
            Err(error) if matches!(error.code(), "INVALID_POLICY" | "INVALID_ZONE") => continue,
            found => found?,
        };
        let path = found.reader().text().map(str::to_owned).ok_or(FirewalldError::Unreadable { call: find })?;
        bus.call(Object(SERVICE, &path, interface), "remove", &[])?;
        removed = true;
    }
    Ok(removed)
}

/// A connection to the system's bus.
#[derive(Debug)]
struct Bus {
    stream: UnixStream,
    serial: u32,
    deadline: Instant,
}

impl Bus {
    /// Connects to the first socket that answers; none where firewalld isn't on the bus.
    fn to_firewalld(sockets: &[String]) -> Result<Option<Self>, FirewalldError> {
        let mut tried = Vec::new();
        for socket in sockets {
            let stream = match socket.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name).and_then(|at| UnixStream::connect_addr(&at)),
                None => UnixStream::connect(socket),
            };
            match stream {
                Ok(stream) => {
                    let mut bus = Self { stream, serial: 0, deadline: Instant::now() + PATIENCE };
                    bus.greet()?;
                    let owned = bus.call(BROKER, "NameHasOwner", &[Value::text(SERVICE)])?;
                    return Ok((owned.reader().u32() == Some(1)).then_some(bus));
                }
                Err(error) => tried.push(format!("{socket}: {error}")),
            }
        }
        let tried = if tried.is_empty() { "its address names no socket".to_owned() } else { tried.join(", ") };
        Err(FirewalldError::Unreachable(tried))
    }

    /// EXTERNAL without a name: the peer takes the user from the socket.
    fn greet(&mut self) -> Result<(), FirewalldError> {
        const CALL: &str = "say hello";
        self.send(CALL, b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        for expected in ["DATA", "OK"] {
            if !self.line(CALL)?.starts_with(expected) {
                return Err(FirewalldError::Unreadable { call: CALL });
            }
        }
        self.call(BROKER, "Hello", &[]).map(drop)
    }

    fn ensure_zone(&mut self) -> Result<(), FirewalldError> {
        let text = |text: &str| Value::Variant(Box::new(Value::text(text)));
        let list = |text: &str| Value::Variant(Box::new(Value::Array("s".to_owned(), vec![Value::text(text)])));
        let settings = |more: Vec<(&str, Value)>| {
            let about = "of berth-engine, which removes it with `berth-engine cleanup`";
            let all = [("version", text("1.0")), ("description", text(about)), ("target", text("ACCEPT"))];
            let entry = |(name, value)| Value::Struct(vec![Value::text(name), value]);
            Value::Array("{sv}".to_owned(), all.into_iter().chain(more).map(entry).collect())
        };
        let has_zone = self.list(ZONES, "getZones", &[])?.iter().any(|zone| zone == ZONE);
        let has_policy = self.list(POLICIES, "getPolicies", &[])?.iter().any(|policy| policy == POLICY);
        if !has_zone {
            let added = self.call(CONFIG, "addZone2", &[Value::text(ZONE), settings(Vec::new())]);
            tolerating(added, &["NAME_CONFLICT"])?;
        }
        if !has_policy {
            let ends = vec![("ingress_zones", list("ANY")), ("egress_zones", list(ZONE))];
            let added = self.call(CONFIG, "addPolicy", &[Value::text(POLICY), settings(ends)]);
            tolerating(added, &["NAME_CONFLICT"])?;
        }
        if !(has_zone && has_policy) {
            self.call(FIREWALLD, "reload", &[])?;
            info!(zone = ZONE, policy = POLICY, "firewalld has a zone for bridges");
        }
        Ok(())
    }

    fn leave(&mut self, bridges: &[String]) -> Result<(), FirewalldError> {
        for bridge in bridges {
            if self.zone_of(bridge)? == ZONE {
                let removed = self.call(ZONES, "removeInterface", &[Value::text(ZONE), Value::text(bridge)]);
                tolerating(removed, &["UNKNOWN_INTERFACE", "NOT_ENABLED"])?;
            }
        }
        Ok(())
    }

    /// The zone of a link; empty where it is in none.
    fn zone_of(&mut self, link: &str) -> Result<String, FirewalldError> {
        const CALL: &str = "getZoneOfInterface";
        let answer = self.call(ZONES, CALL, &[Value::text(link)])?;
        answer.reader().text().map(str::to_owned).ok_or(FirewalldError::Unreadable { call: CALL })
    }

    fn list(&mut self, of: Object<'_>, call: &'static str, body: &[Value]) -> Result<Vec<String>, FirewalldError> {
        let answer = self.call(of, call, body)?;
        let texts = answer.reader().texts().filter(|_| answer.signature == "as");
        let texts = texts.ok_or(FirewalldError::Unreadable { call })?;
        Ok(texts.into_iter().map(str::to_owned).collect())
    }

    fn call(&mut self, of: Object<'_>, call: &'static str, body: &[Value]) -> Result<Message, FirewalldError> {
        self.serial += 1;
        let message = Message {
            kind: kind::CALL,
            serial: self.serial,
            destination: of.0.to_owned(),
            path: of.1.to_owned(),
            interface: of.2.to_owned(),
            member: call.to_owned(),
            ..Message::default()
        };
        self.send(call, &message.marshal(body))?;
        loop {
            let message = self.receive(call)?;
            match message.kind {
                kind::REPLY if message.reply_to == self.serial => return Ok(message),
                kind::ERROR if message.reply_to == self.serial => {
                    let text = if message.signature.starts_with('s') { message.reader().text() } else { None };
                    let text = text.unwrap_or_default().to_owned();
                    return Err(FirewalldError::Refused { call, name: message.error, text });
                }
                // The broker tells every client its name.
                _ => {}
            }
        }
    }

    fn left(&self) -> std::io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }

    fn send(&mut self, call: &'static str, bytes: &[u8]) -> Result<(), FirewalldError> {
        let left = self.left();
        let sent =
            left.and_then(|left| self.stream.set_write_timeout(left)).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|cause| FirewalldError::Io { call, cause })
    }

    fn fill(&mut self, call: &'static str, buffer: &mut [u8]) -> Result<(), FirewalldError> {
        let left = self.left();
        let read =
            left.and_then(|left| self.stream.set_read_timeout(left)).and_then(|()| self.stream.read_exact(buffer));
        read.map_err(|cause| FirewalldError::Io { call, cause })
    }

    /// A line of the greeting. Byte by byte: what follows the last line is a message already.
    fn line(&mut self, call: &'static str) -> Result<String, FirewalldError> {
        const LONGEST: usize = 256;
        let mut line = Vec::new();
        while line.len() < LONGEST {
            let mut byte = [0];
            self.fill(call, &mut byte)?;
            line.push(byte[0]);
            if let Some(text) = line.strip_suffix(b"\r\n") {
                return Ok(String::from_utf8_lossy(text).into_owned());
            }
        }
        Err(FirewalldError::Unreadable { call })
    }

    fn receive(&mut self, call: &'static str) -> Result<Message, FirewalldError> {
        let mut preamble = [0; PREAMBLE];
        self.fill(call, &mut preamble)?;
        let rest = Message::rest(&preamble).ok_or(FirewalldError::Unreadable { call })?;
        let mut bytes = preamble.to_vec();
        bytes.resize(PREAMBLE + rest, 0);
        self.fill(call, &mut bytes[PREAMBLE..])?;
        Message::parse(&bytes).ok_or(FirewalldError::Unreadable { call })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_known_by_their_code() {
        let refused = |name: &str, text: &str| {
            let (name, text) = (name.to_owned(), text.to_owned());
            Err(FirewalldError::Refused { call: "addInterface", name, text })
        };
        let own = "org.fedoraproject.FirewallD1.Exception";
        let codes = ["ZONE_ALREADY_SET", "UnknownMethod"];
        assert!(tolerating(refused(own, "ZONE_ALREADY_SET: 'br0' already bound to 'berth'"), &codes).is_ok());
        assert!(tolerating(refused("org.freedesktop.DBus.Error.UnknownMethod", "no"), &codes).is_ok());
        let other = tolerating(refused(own, "INVALID_ZONE: berth"), &codes).expect_err("not tolerated");
        assert_eq!(
            other.to_string(),
            "ask firewalld to addInterface: org.fedoraproject.FirewallD1.Exception: INVALID_ZONE: berth"
        );
    }

    #[test]
    fn an_absent_bus_is_named() {
        let error = join(&["/no/such/bus".to_owned()], &[]).expect_err("nobody");
        assert!(error.to_string().contains("/no/such/bus"), "{error}");
    }
}
