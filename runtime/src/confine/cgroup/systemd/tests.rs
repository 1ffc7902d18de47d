//! The driver against a systemd of our own in a thread: real sockets, real messages.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;

use nix::unistd::Pid;

use super::bus::{Address, Bus, BusError};
use super::*;
use sys::dbus::{Message, PREAMBLE, Value, kind};

/// What the server saw of a call: its name and the raw body.
type Seen = Vec<Message>;

struct Server {
    socket: std::path::PathBuf,
    thread: JoinHandle<Seen>,
    _dir: tempfile::TempDir,
}

fn read_message(stream: &mut UnixStream) -> Option<Message> {
    let mut preamble = [0; PREAMBLE];
    stream.read_exact(&mut preamble).ok()?;
    let mut bytes = preamble.to_vec();
    bytes.resize(PREAMBLE + Message::rest(&preamble).expect("a length"), 0);
    stream.read_exact(&mut bytes[PREAMBLE..]).expect("the rest");
    Some(Message::parse(&bytes).expect("a message"))
}

fn reply(to: &Message, body: &[Value]) -> Vec<u8> {
    Message { kind: kind::REPLY, serial: 99, reply_to: to.serial, ..Message::default() }.marshal(body)
}

fn refusal(to: &Message, name: &str) -> Vec<u8> {
    let error = format!("org.freedesktop.systemd1.{name}");
    Message { kind: kind::ERROR, serial: 99, reply_to: to.serial, error, ..Message::default() }
        .marshal(&[Value::text("because")])
}

fn job_removed(job: &str, result: &str) -> Vec<u8> {
    let signal = Message {
        kind: kind::SIGNAL,
        serial: 98,
        path: bus::MANAGER_PATH.into(),
        interface: bus::MANAGER.into(),
        member: "JobRemoved".into(),
        ..Message::default()
    };
    signal.marshal(&[Value::U32(1), Value::Path(job.into()), Value::text("x.scope"), Value::text(result)])
}

impl Server {
    /// Serves one connection; `answer` gives the bytes for each call, nothing to hang up.
    fn start(mut answer: impl FnMut(&Message) -> Vec<u8> + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("bus");
        let listener = UnixListener::bind(&socket).expect("bind");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut greeting = Vec::new();
            while !greeting.ends_with(b"BEGIN\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).expect("greeting");
                greeting.push(byte[0]);
            }
            assert!(greeting.starts_with(b"\0AUTH EXTERNAL\r\n"));
            stream.write_all(b"DATA\r\nOK 0123456789abcdef\r\n").expect("write");
            let mut seen = Vec::new();
            while let Some(message) = read_message(&mut stream) {
                let bytes = match message.member.as_str() {
                    "Hello" => reply(&message, &[Value::text(":1.5")]),
                    "AddMatch" => reply(&message, &[]),
                    _ => answer(&message),
                };
                seen.push(message);
                if bytes.is_empty() || stream.write_all(&bytes).is_err() {
                    break;
                }
            }
            seen
        });
        Self { socket, thread, _dir: dir }
    }

    fn connect(&self, brokered: bool) -> Bus {
        let socket = self.socket.to_str().expect("utf-8").to_owned();
        Bus::connect(&[Address { socket, brokered }], "").expect("connects")
    }

    fn seen(self, bus: Bus) -> Seen {
        drop(bus);
        self.thread.join().expect("server")
    }
}

const JOB: &str = "/org/freedesktop/systemd1/job/7";

fn unit() -> Unit {
    let name = names::parse("machine.slice:libpod:abc").expect("name");
    Unit::new(&name, "abc", false)
}

fn members(seen: &Seen) -> Vec<&str> {
    seen.iter().map(|message| message.member.as_str()).collect()
}

fn start_it(bus: &mut Bus, resources: &str) -> Result<(), BusError> {
    let resources: Resources = serde_json::from_str(resources).expect("resources");
    let wishes =
        Wishes { properties: vec![("CollectMode".into(), Value::text("inactive-or-failed"))], id: "abc".into() };
    start(bus, &unit(), Pid::from_raw(4711), &wishes, (&resources, &[]), true)
}

#[test]
fn a_scope_is_started_and_waited_for() {
    for brokered in [true, false] {
        let server = Server::start(|call| match call.member.as_str() {
            // Another's end comes first, ours before the reply as well as after it.
            "StartTransientUnit" => {
                [job_removed("/other", "failed"), reply(call, &[Value::Path(JOB.into())]), job_removed(JOB, "done")]
                    .concat()
            }
            "Get" => reply(call, &[Value::Variant(Box::new(Value::text("252.1")))]),
            other => panic!("{other}"),
        });
        let mut bus = server.connect(brokered);
        start_it(&mut bus, r#"{"memory":{"limit":4096},"cpu":{"cpus":"1"}}"#).expect("started");
        let seen = server.seen(bus);
        let expected = ["Hello", "AddMatch", "Get", "StartTransientUnit"];
        assert_eq!(members(&seen), expected[if brokered { 0 } else { 2 }..]);
        let call = seen.last().expect("a call");
        assert_eq!(call.signature, "ssa(sv)a(sa(sv))");
        assert_eq!(call.destination.is_empty(), !brokered);
        let mut reader = call.reader();
        assert_eq!((reader.text(), reader.text()), (Some("libpod-abc.scope"), Some("replace")));
        for word in
            ["Slice", "machine.slice", "Delegate", "PIDs", "MemoryMax", "AllowedCPUs", "CollectMode", "DevicePolicy"]
        {
            assert!(call.body.windows(word.len()).any(|part| part == word.as_bytes()), "{word}");
        }
    }
}

#[test]
fn an_end_that_overtakes_the_reply_is_kept() {
    let server = Server::start(|call| [job_removed(JOB, "done"), reply(call, &[Value::Path(JOB.into())])].concat());
    let mut bus = server.connect(false);
    start_it(&mut bus, "{}").expect("started");
}

#[test]
fn a_failed_unit_of_that_name_is_forgotten_first() {
    let mut failed = true;
    let server = Server::start(move |call| match call.member.as_str() {
        "StartTransientUnit" if failed => {
            failed = false;
            refusal(call, "UnitExists")
        }
        "StartTransientUnit" => [reply(call, &[Value::Path(JOB.into())]), job_removed(JOB, "done")].concat(),
        "ResetFailedUnit" => reply(call, &[]),
        other => panic!("{other}"),
    });
    let mut bus = server.connect(false);
    start_it(&mut bus, "{}").expect("started");
    assert_eq!(members(&server.seen(bus)), ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);
}

#[test]
fn what_systemd_says_is_told() {
    let server = Server::start(|call| refusal(call, "InvalidArgs"));
    let error = start_it(&mut server.connect(false), "{}").expect_err("refused").to_string();
    assert_eq!(error, "systemd refused StartTransientUnit: org.freedesktop.systemd1.InvalidArgs: because");
    let server = Server::start(|call| [reply(call, &[Value::Path(JOB.into())]), job_removed(JOB, "failed")].concat());
    let error = start_it(&mut server.connect(false), "{}").expect_err("failed").to_string();
    assert_eq!(error, "systemd's job for x.scope ended as \"failed\"");
    let server = Server::start(|_| Vec::new());
    let error = start_it(&mut server.connect(false), "{}").expect_err("hung up");
    assert!(matches!(error, BusError::Io { .. }), "{error}");
    let server = Server::start(|_| b"HTTP/1.1 400 Bad Request\r\n".to_vec());
    let error = start_it(&mut server.connect(false), "{}").expect_err("not D-Bus");
    assert!(matches!(error, BusError::Protocol { .. }), "{error}");
}

#[test]
fn stopping_is_done_once() {
    let server = Server::start(|call| match call.member.as_str() {
        "StopUnit" => [reply(call, &[Value::Path(JOB.into())]), job_removed(JOB, "done")].concat(),
        _ => refusal(call, "NoSuchUnit"),
    });
    let mut bus = server.connect(false);
    stop(&mut bus, &unit()).expect("stopped");
    assert_eq!(members(&server.seen(bus)), ["StopUnit", "ResetFailedUnit"]);
    let server = Server::start(|call| refusal(call, "NoSuchUnit"));
    stop(&mut server.connect(false), &unit()).expect("gone already");
}

#[test]
fn a_stranger_is_told_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("bus");
    let listener = UnixListener::bind(&socket).expect("bind");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut greeting = [0; 16];
        stream.read_exact(&mut greeting).expect("greeting");
        stream.write_all(b"REJECTED EXTERNAL\r\n").expect("write");
        // Gone only when the other side is.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let address = Address { socket: socket.to_str().expect("utf-8").into(), brokered: true };
    let error = Bus::connect(&[address], "").expect_err("rejected").to_string();
    assert!(error.contains("does not know this user"), "{error}");
    thread.join().expect("server");
}

#[test]
fn units_have_their_place() {
    assert_eq!(unit().path_below(""), "machine.slice/libpod-abc.scope");
    let own = Unit::new(&UnitName::default(), "web", true);
    let base = "/user.slice/user-1000.slice/user@1000.service";
    assert_eq!(own.path_below(base), format!("{}/user.slice/berth-web.scope", &base[1..]));
    assert_eq!(Unit::new(&UnitName::default(), "web", false).path_below("/"), "system.slice/berth-web.scope");
}

#[test]
fn sockets_are_tried_in_order() {
    let shown = |addresses: Vec<Address>| addresses.into_iter().map(|a| (a.socket, a.brokered)).collect::<Vec<_>>();
    assert_eq!(
        shown(user_addresses("unix:path=/s/bus", "/run/user/7")),
        [("/s/bus".into(), true), ("/run/user/7/bus".into(), true), ("/run/user/7/systemd/private".into(), false)]
    );
    assert_eq!(
        shown(system_addresses("")),
        [("/run/dbus/system_bus_socket".into(), true), ("/run/systemd/private".into(), false)]
    );
}
