//! Where a network is measured: a "host" with two "containers" on a bridge, and another host one cable away. Berth, dockerd and
//! commands by hand each have a host of their own, a network namespace, so that none pays for the firewall rules of another.
//!
//! ```text
//!   outside 198.18.0.2 ── veth ── 198.18.0.1 host (engine, firewall) ── bridge ── a
//!                                                                        └─────── b, published
//! ```

use crate::engines::Dockerd;
use integration_tests::{Stack, eventually, http::Api, images};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

/// The network that containers are on.
pub const NETWORK: &str = "bench";
/// Where iperf3 listens in `b`.
pub const IPERF: u16 = 5201;
/// Where whoever sends back what it gets listens in `b`, by TCP and UDP.
pub const ECHO: u16 = 7000;
/// Where connections are taken in `b`.
pub const ACCEPT: u16 = 7001;
/// The host as seen from outside.
const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// A named network namespace; goes with everything in it.
pub struct Netns {
    name: String,
    handle: OwnedFd,
}

impl Netns {
    /// Makes an empty one.
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("berth-bench-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}"));
        let handle = fs::File::open(format!("/run/netns/{name}")).expect("the namespace that was just made").into();
        let netns = Self { name, handle };
        let _inside = enter(netns.handle.as_fd());
        ip("link set lo up");
        netns
    }

    /// Its name, for ip(8).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A descriptor of it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

/// While it lives, this thread, and what it starts, is in another network namespace.
pub struct Entered {
    back: OwnedFd,
}

/// Enters a namespace.
pub fn enter(namespace: BorrowedFd<'_>) -> Entered {
    let back = fs::File::open("/proc/thread-self/ns/net").expect("our own namespace").into();
    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
    Entered { back }
}

impl Drop for Entered {
    fn drop(&mut self) {
        setns(self.back.as_fd(), CloneFlags::CLONE_NEWNET).expect("return from a network namespace");
    }
}

/// Runs ip(8).
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("run ip");
    assert!(status.success(), "ip {words}");
}

/// Runs ip(8) with several lines.
pub fn batch(lines: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("run ip");
    ip.stdin.take().expect("its input is a pipe").write_all(lines.as_bytes()).expect("tell ip");
    assert!(ip.wait().expect("wait for ip").success(), "ip: {lines:.200}");
}

/// Ends a program when dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

enum Inner {
    Berth(Box<Stack>),
    Docker(Dockerd),
    Hand(Netns, Netns),
}

/// One of those who are compared.
pub struct Place {
    /// Its column.
    pub name: &'static str,
    inner: Option<Inner>,
    outside: Netns,
    host: Netns,
}

/// Both containers of a place, and who listens there.
pub struct Ends {
    /// Where clients are.
    pub a: OwnedFd,
    /// The address of the other one, where servers are.
    pub address: Ipv4Addr,
    /// Sends back what it gets.
    pub echo: TcpListener,
    /// The same by UDP.
    pub echo_udp: UdpSocket,
    /// Takes connections.
    pub accept: TcpListener,
    _iperf: Option<Running>,
}

impl Place {
    fn new(name: &'static str, inner: impl FnOnce() -> Option<Inner>) -> Option<Self> {
        let (host, outside) = (Netns::new(), Netns::new());
        {
            let _inside = enter(host.fd());
            ip(&format!("link add out0 type veth peer name eth0 netns {}", outside.name()));
            ip(&format!("addr add {HOST}/24 dev out0"));
            ip("link set out0 up");
        }
        {
            let _inside = enter(outside.fd());
            ip("addr add 198.18.0.2/24 dev eth0");
            ip("link set eth0 up");
        }
        let inner = {
            let _inside = enter(host.fd());
            Some(inner()?)
        };
        Some(Self { name, inner, outside, host })
    }

    /// Berth.
    pub fn berth() -> Option<Self> {
        Self::new("berth", || Some(Inner::Berth(Box::new(Stack::with_busybox()))))
    }

    /// Debian's dockerd, if it is installed.
    pub fn dockerd() -> Option<Self> {
        Self::new("dockerd", || {
            let dockerd = Dockerd::start_with(&["--userland-proxy=true"])?;
            let api = Api::new(dockerd.socket());
            let archive = fs::read(images::busybox_archive(dockerd.folder())).ok()?;
            let kind = "Content-Type: application/x-tar\r\n";
            let loaded = api.open_bytes("POST", "/images/load?quiet=1", &archive, kind).ok()?.finish();
            (loaded.status == 200).then_some(Inner::Docker(dockerd))
        })
    }

    /// Links, a bridge and four rules, made with ip(8) and nft(8).
    pub fn by_hand() -> Option<Self> {
        Self::new("by hand", || {
            let (a, b) = (Netns::new(), Netns::new());
            ip("link add br0 type bridge");
            ip("addr add 198.19.0.1/24 dev br0");
            ip("link set br0 up");
            for (netns, number) in [(&a, 2), (&b, 3)] {
                ip(&format!("link add c{number} master br0 type veth peer name eth0 netns {}", netns.name()));
                ip(&format!("link set c{number} up"));
                let _inside = enter(netns.fd());
                ip(&format!("addr add 198.19.0.{number}/24 dev eth0"));
                ip("link set eth0 up");
                ip("route add default via 198.19.0.1");
            }
            fs::write("/proc/sys/net/ipv4/ip_forward", "1").ok()?;
            let rules = format!(
                "table ip hand {{
                    chain prerouting {{ type nat hook prerouting priority dstnat;
                        iifname != br0 tcp dport {{ {IPERF}, {ECHO}, {ACCEPT} }} dnat to 198.19.0.3
                        iifname != br0 udp dport {ECHO} dnat to 198.19.0.3
                    }}
                    chain postrouting {{ type nat hook postrouting priority srcnat;
                        ip saddr 198.19.0.0/24 oifname != br0 masquerade
                    }}
                }}"
            );
            let made = Command::new("nft").arg(rules).status().ok()?;
            made.success().then_some(Inner::Hand(a, b))
        })
    }

    /// The engine's API; nothing is asked where all was made by hand.
    pub fn api(&self) -> Option<Api> {
        match self.inner() {
            Inner::Berth(stack) => Some(stack.api()),
            Inner::Docker(dockerd) => Some(Api::new(dockerd.socket())),
            Inner::Hand(..) => None,
        }
    }

    /// The daemons, their resolvers and proxies.
    pub fn pids(&self) -> Vec<u32> {
        match self.inner() {
            Inner::Berth(stack) => naming(&stack.path().display().to_string(), &["berth-engine", "berth-supervisor"]),
            Inner::Docker(dockerd) => {
                let mut pids = dockerd.pids();
                // Proxies are the daemon's children, and name no folder.
                pids.extend(children(&pids));
                pids
            }
            Inner::Hand(..) => Vec::new(),
        }
    }

    fn inner(&self) -> &Inner {
        self.inner.as_ref().expect("taken away in drop only")
    }

    /// The bridge of the network, in the namespace of the host.
    pub fn bridge(&self) -> String {
        let Some(api) = self.api() else { return "br0".to_owned() };
        let network = api.get(&format!("/v1.41/networks/{NETWORK}")).json();
        format!("br-{}", &network["Id"].as_str().expect("an id")[..12])
    }

    /// One more link for `a`, with an address, and its removal.
    pub fn join_and_leave_by_hand(&self) -> bool {
        let Inner::Hand(a, _) = self.inner() else { return false };
        let link = format!("link add joined master br0 type veth peer name eth1 netns {}", a.name());
        {
            let _inside = enter(self.host());
            batch(&format!("{link}\nlink set joined up\n"));
        }
        {
            let _inside = enter(a.fd());
            batch("addr add 198.19.0.4/24 dev eth1\nlink set eth1 up\nlink del eth1\n");
        }
        true
    }

    /// The namespace of the other host.
    pub fn outside(&self) -> BorrowedFd<'_> {
        self.outside.fd()
    }

    /// The namespace of the host.
    pub fn host(&self) -> BorrowedFd<'_> {
        self.host.fd()
    }

    /// A published port, as seen from outside.
    pub fn published(port: u16) -> SocketAddr {
        (HOST, port).into()
    }

    /// Makes network and containers, and lets servers listen.
    pub fn ends(&self) -> Option<Ends> {
        let (a, b, address) = match self.inner() {
            Inner::Hand(a, b) => {
                (a.fd().try_clone_to_owned().ok()?, b.fd().try_clone_to_owned().ok()?, Ipv4Addr::new(198, 19, 0, 3))
            }
            _ => {
                let api = self.api()?;
                api.post("/networks/create", Some(&json!({ "Name": NETWORK }))).expect(201);
                let (a, b) = (container(&api, "client", &json!({})), container(&api, "server", &ports()));
                let address = b["NetworkSettings"]["Networks"][NETWORK]["IPAddress"].as_str()?.parse().ok()?;
                (namespace(&a)?, namespace(&b)?, address)
            }
        };
        let _inside = enter(b.as_fd());
        let any = Ipv4Addr::UNSPECIFIED;
        let echo = TcpListener::bind((any, ECHO)).ok()?;
        let (echo_udp, accept) = (UdpSocket::bind((any, ECHO)).ok()?, TcpListener::bind((any, ACCEPT)).ok()?);
        Some(Ends { address, echo, echo_udp, accept, _iperf: iperf_server(), a })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What an engine takes down is in its host's namespace.
        let _inside = enter(self.host.fd());
        self.inner = None;
    }
}

fn ports() -> Value {
    let own = |port: u16| json!([{ "HostPort": port.to_string() }]);
    json!({
        format!("{IPERF}/tcp"): own(IPERF), format!("{ECHO}/tcp"): own(ECHO), format!("{ECHO}/udp"): own(ECHO),
        format!("{ACCEPT}/tcp"): own(ACCEPT),
    })
}

/// What goes into `ExposedPorts` with these bindings: dockerd 20.10 publishes nothing else.
pub fn exposed(bindings: &Value) -> Value {
    bindings.as_object().into_iter().flatten().map(|(port, _)| (port.clone(), json!({}))).collect()
}

/// Starts a container that sleeps on the network; gives what inspect says of it.
fn container(api: &Api, name: &str, ports: &Value) -> Value {
    let host = json!({ "NetworkMode": NETWORK, "PortBindings": ports });
    let body = json!({ "Image": "busybox", "Cmd": ["sleep", "100000"], "StopTimeout": 0, "HostConfig": host,
        "ExposedPorts": exposed(ports) });
    api.post(&format!("/v1.41/containers/create?name={name}"), Some(&body)).expect(201);
    api.post(&format!("/v1.41/containers/{name}/start"), None).expect(204);
    api.get(&format!("/v1.41/containers/{name}/json")).json()
}

fn namespace(inspect: &Value) -> Option<OwnedFd> {
    fs::File::open(format!("/proc/{}/ns/net", inspect["State"]["Pid"])).ok().map(OwnedFd::from)
}

// In the namespace of this thread.
fn iperf_server() -> Option<Running> {
    let mut command = Command::new("iperf3");
    command.args(["-4", "-s", "-p", &IPERF.to_string()]).stdin(Stdio::null()).stdout(Stdio::null());
    let server = Running(command.spawn().ok()?);
    // A connection would be taken for a client.
    let sockets = format!("/proc/{}/net/tcp", server.0.id());
    let listens = format!(":{IPERF:04X} 00000000:0000 0A");
    eventually("iperf3 listens", || fs::read_to_string(&sockets).ok()?.contains(&listens).then_some(()));
    Some(server)
}

/// Processes of these programs whose command line names a folder.
fn naming(folder: &str, programs: &[&str]) -> Vec<u32> {
    by_line(|line| {
        let program = line.split('\0').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        line.contains(folder) && programs.contains(&program)
    })
}

fn by_line(fits: impl Fn(&str) -> bool) -> Vec<u32> {
    processes().filter(|pid| fits(&text(*pid, "cmdline"))).collect()
}

fn children(parents: &[u32]) -> Vec<u32> {
    let parent = |pid: u32| {
        let stat = text(pid, "stat");
        // The name, field 2, ends with the last bracket; then come the state and the parent.
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let known = |pid: &u32| parents.contains(pid);
    processes().filter(|pid| !known(pid) && parent(*pid).is_some_and(|parent| known(&parent))).collect()
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn text(pid: u32, file: &str) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default()).into_owned()
}
