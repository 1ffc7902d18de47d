//! Networks on a real kernel. Each test has a host of its own: a network namespace in which `Networks` believes itself to
//! be on the machine, and a second one that is another computer on the same LAN. So nothing of the real machine is
//! touched, tests run side by side, and what a failing test leaves goes with the namespaces.

mod compare;
mod firewall;
mod ipv6;
mod lifecycle;
mod modes;
mod names;
mod parents;
mod ports;
mod restore;
mod traffic;
mod users;
mod watch;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

const BRIDGE: &str = "btst0";
/// The host's address on the LAN.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 231, 200, 1);
/// The other computer's.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 231, 200, 2);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A host with another one beside it.
struct Host {
    folder: tempfile::TempDir,
    lan: OwnedFd,
}

impl Host {
    fn run_root(&self) -> &Path {
        self.folder.path()
    }

    fn open(&self) -> Networks {
        self.open_with(Vec::new())
    }

    /// The same with networks of users on record.
    fn open_with(&self, definitions: Vec<Definition>) -> Networks {
        Networks::open(config(BRIDGE, "10.231.1.1/24"), self.run_root(), definitions).expect("open networks")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Pins are mounts on the real machine, and many a test ends without detaching.
        for pin in pins(self) {
            if let Err(error) = sys::netns::delete(&pin) {
                eprintln!("left over: {error}");
            }
        }
    }
}

fn config(name: &str, address: &str) -> BridgeConfig {
    BridgeConfig {
        name: name.to_owned(),
        address: Some(address.parse().expect("subnet")),
        address_v6: None,
        ranges: Vec::new(),
        icc: true,
        masquerade: true,
        mtu: 1500,
        ids: NetworkIds { bridge: "b".repeat(64), host: "c".repeat(64), none: "d".repeat(64) },
        bus: Vec::new(),
    }
}

/// Runs a test on a host of its own.
fn on_a_host(test: impl FnOnce(&Host) + Send) {
    let folder = tempfile::tempdir().expect("folder");
    let pins = tempfile::tempdir().expect("folder");
    let (host_pin, lan_pin) = (pins.path().join("host"), pins.path().join("lan"));
    let (lan, ()) = sys::netns::create(&lan_pin, || ip("link set lo up")).expect("LAN");
    let (host, ()) = sys::netns::create(&host_pin, || {
        ip("link set lo up");
        ip(&format!("link add eth9 type veth peer name eth9 netns {}", lan_pin.display()));
        ip(&format!("addr add {HOST}/24 dev eth9"));
        ip("link set eth9 up");
    })
    .expect("host");
    sys::netns::within(lan.as_fd(), || {
        ip(&format!("addr add {OTHER}/24 dev eth9"));
        ip("link set eth9 up");
    })
    .expect("LAN");
    // Both live as long as their descriptors from here on, also if the test panics.
    sys::netns::delete(&lan_pin).expect("unpin");
    sys::netns::delete(&host_pin).expect("unpin");
    let host_side = Host { folder, lan };
    sys::netns::within(host.as_fd(), || test(&host_side)).expect("enter the host");
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program in the namespace of the calling thread and returns its output.
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Some(value) => return value,
            None if Instant::now() > deadline => panic!("not in time: {what}"),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn namespace_of(endpoint: &Endpoint) -> OwnedFd {
    sys::netns::open(&endpoint.netns).expect("open").expect("pinned")
}

fn address_of(endpoint: &Endpoint) -> Ipv4Addr {
    v4(endpoint.address.as_ref().expect("address"))
}

fn v4(address: &endpoint::EndpointAddress) -> Ipv4Addr {
    match address.v4.expect("IPv4 address").ip {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(_) => panic!("of the other family"),
    }
}

fn publish(protocol: Protocol, host_ip: Option<Ipv4Addr>, host_port: u16, container_port: u16) -> PortRequest {
    let host_port = if host_port == 0 { HostPort::Ephemeral } else { HostPort::Exact(host_port) };
    PortRequest { protocol, container_port, host_ip: host_ip.map(Into::into), host_port }
}

/// What a container wants of the default network.
#[derive(Debug, Clone, Default)]
struct EndpointRequest {
    mac: Option<Mac>,
    ip: Option<Ipv4Addr>,
    ports: Vec<PortRequest>,
}

impl Networks {
    fn attach_bridge(&self, id: &str, request: &EndpointRequest) -> Result<Endpoint, NetworkError> {
        let network_id = self.network_id(NetworkKind::Bridge).to_owned();
        let member = MemberRequest {
            network_id,
            mac: request.mac,
            ips: request.ip.into_iter().map(Into::into).collect(),
            ..MemberRequest::default()
        };
        let (name, ports) = ("web".to_owned(), request.ports.clone());
        self.attach(id, &AttachRequest { name, ports, members: vec![member] })
    }
}

fn request(ports: &[PortRequest]) -> EndpointRequest {
    EndpointRequest { ports: ports.to_vec(), ..EndpointRequest::default() }
}

/// Serves TCP in a namespace: each client is told `name` and the address it was seen with.
fn serve_tcp(namespace: BorrowedFd<'_>, port: u16, name: &'static str) {
    let listener = sys::netns::within(namespace, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen"))
        .expect("enter");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let Ok(SocketAddr::V4(peer)) = client.peer_addr() else { return };
            let _ = write!(client, "{name} {}", peer.ip());
        }
    });
}

/// Serves UDP in a namespace, likewise.
fn serve_udp(namespace: BorrowedFd<'_>, port: u16, name: &'static str) {
    let socket =
        sys::netns::within(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).expect("bind")).expect("enter");
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// What a TCP server says; `None` when nobody answers.
fn ask_tcp(to: impl Into<SocketAddr>, patience: Duration) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&to.into(), patience).ok()?;
    stream.set_read_timeout(Some(patience)).expect("timeout");
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said)
}

/// What a UDP server says; `None` when nobody answers.
fn ask_udp(to: SocketAddrV4, patience: Duration) -> Option<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    socket.set_read_timeout(Some(patience)).expect("timeout");
    socket.send_to(b"?", to).ok()?;
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, SocketAddr::V4(to), "the answer comes from where the question went");
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn within<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    sys::netns::within(namespace.as_fd(), work).expect("enter")
}

/// Restores without damage. Not at once: a program that another test is just starting holds a copy of every descriptor, so
/// of every socket that occupies a port, until it is executed.
fn restored(networks: &Networks, records: &[(&str, &Endpoint)]) {
    eventually("restored without damage", || {
        networks.restore(records.iter().copied()).expect("restore").is_empty().then_some(())
    });
}

/// Waits until the kernel has removed what it removes in the background.
fn eventually_nothing(host: &Host) {
    eventually("no link and no pin is left", || (inventory(host) == (vec![], vec![])).then_some(()));
}

/// The links and pins that there are.
fn inventory(host: &Host) -> (Vec<String>, Vec<PathBuf>) {
    let mut links: Vec<String> = run("ip", "-o link show type veth")
        .lines()
        .filter_map(|line| line.split([':', '@']).nth(1).map(|name| name.trim().to_owned()))
        .filter(|name| name != "eth9")
        .collect();
    links.sort();
    (links, pins(host))
}

fn pins(host: &Host) -> Vec<PathBuf> {
    std::fs::read_dir(host.run_root().join("engine/netns"))
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default()
}

/// The elements of both maps, as nft shows them.
fn published(bridge: &str) -> Vec<String> {
    let listing = run("nft", &format!("list table inet berth_{bridge}"));
    let mut elements: Vec<String> = listing
        .split("elements = {")
        .skip(1)
        .flat_map(|rest| rest.split('}').next().unwrap_or_default().split(','))
        .map(|element| element.split_whitespace().collect::<Vec<_>>().join(" "))
        // Those of maps: sets have links.
        .filter(|element| element.contains(" : "))
        .collect();
    elements.sort();
    elements
}
