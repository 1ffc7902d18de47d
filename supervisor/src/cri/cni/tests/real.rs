//! Debian's plugins on a host of their own: a network namespace in which we believe ourselves to be on the machine, a second one that
//! is another computer on the same wire, and pods. What a failing test leaves goes with the namespaces.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Command,
    sync::mpsc,
    thread,
};

use serde_json::json;

use super::*;

const PLUGINS: &str = "/usr/lib/cni";
/// The host's addresses on the wire.
const HOST: [&str; 2] = ["198.51.100.1", "fd51::1"];
/// The other computer's.
const OTHER: [&str; 2] = ["198.51.100.2", "fd51::2"];

struct Host {
    folder: tempfile::TempDir,
    other: OwnedFd,
    cni: Cni,
}

/// A pod's sandbox.
struct Sandbox {
    pod: Pod,
    pin: Namespace,
}

impl Sandbox {
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = netns::open(&self.pin.0).expect("open").expect("pinned");
        netns::within(namespace.as_fd(), work).expect("enter")
    }
}

/// Runs a test on a host of its own.
fn on_a_host(test: impl FnOnce(&Host) + Send) {
    if !Path::new(PLUGINS).join("bridge").exists() {
        println!("skipped: needs the package containernetworking-plugins");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let (host_pin, other_pin) = (folder.path().join("host"), folder.path().join("other"));
    let addresses = |addresses: [&str; 2]| {
        ip("link set lo up");
        ip(&format!("addr add {}/24 dev eth9", addresses[0]));
        ip(&format!("addr add {}/64 dev eth9 nodad", addresses[1]));
        ip("link set eth9 up");
    };
    let (other, ()) = netns::create(&other_pin, || ()).expect("other");
    let (host, ()) = netns::create(&host_pin, || {
        ip(&format!("link add eth9 type veth peer name eth9 netns {}", other_pin.display()));
        addresses(HOST);
    })
    .expect("host");
    netns::within(other.as_fd(), || addresses(OTHER)).expect("other");
    // Both live as long as their descriptors from here on, also if the test panics.
    netns::delete(&other_pin).expect("unpin");
    netns::delete(&host_pin).expect("unpin");
    let programs = Programs { folders: vec!["/opt/cni/bin".into(), PLUGINS.into()], limit: Duration::from_secs(60) };
    let cni = Cni::over(folder.path().join("net.d"), programs);
    let stage = Host { folder, other, cni };
    // Threads are born where their parents are. This one has a stack for all of a test.
    let tested = netns::within(host.as_fd(), || {
        thread::scope(|scope| {
            let test = thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, || test(&stage));
            test.expect("thread").join()
        })
    });
    if let Err(panic) = tested.expect("enter the host") {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    output("ip", arguments);
}

/// Runs a program in the namespace of the calling thread.
fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().expect(program);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

impl Host {
    /// A bridge with addresses of both families, ports and bandwidth.
    fn configure(&self, version: &str) {
        let ipam = json!({
            "type": "host-local",
            "dataDir": self.folder.path().join("addresses"),
            "ranges": [[{ "subnet": "10.88.0.0/24" }], [{ "subnet": "fd88::/64" }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        });
        let list = json!({ "name": "pods", "cniVersion": version, "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ]});
        write(&self.folder.path().join("net.d/10-pods.conflist"), &list.to_string());
    }

    fn sandbox(&self, id: &str) -> Sandbox {
        let pin = Namespace::new(self.folder.path().join(id));
        Sandbox { pod: pod(id, &pin.0), pin }
    }

    fn on_the_other<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(self.other.as_fd(), work).expect("enter")
    }

    /// Addresses that are taken.
    fn taken(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path().join("addresses/pods")).expect("addresses");
        let names = entries.map(|entry| entry.expect("entry").file_name().into_string().expect("text"));
        let mut names: Vec<_> = names.filter(|name| !name.starts_with("last_reserved") && name != "lock").collect();
        names.sort();
        names
    }

    /// What of pods is in the host's namespace.
    fn traces(&self) -> Vec<String> {
        let links = output("ip", "-o link show");
        let links = links.lines().filter(|line| ["veth", "ifb", "bwp"].iter().any(|kind| line.contains(kind)));
        let links: Vec<_> = links.map(str::to_owned).collect();
        let mut rules = output("iptables-save", "");
        rules += &output("ip6tables-save", "");
        let of_pods = |line: &&str| ["CNI-DN-", "id: ", "10.88.0.", "fd88::"].iter().any(|word| line.contains(word));
        links.into_iter().chain(rules.lines().filter(of_pods).map(str::to_owned)).collect()
    }
}

/// Answers one caller, in the namespace of the calling thread, with the address that it comes from.
fn answer_one(at: &str) -> mpsc::Receiver<()> {
    let listener = TcpListener::bind(at).expect("listen");
    let (done, end) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, from) = listener.accept().expect("accept");
        stream.write_all(from.ip().to_canonical().to_string().as_bytes()).expect("answer");
        let _ = done.send(());
    });
    end
}

fn call(to: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(10)).expect("connect");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    answer
}

fn at(address: impl ToString, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_string().parse().expect("address"), port)
}

#[test]
fn pods_reach_each_other_and_the_world_and_leave_nothing() {
    on_a_host(|host| {
        host.configure("1.0.0");
        assert_eq!(run(host.cni.ready()), Ok(()));
        let (mut one, two) = (host.sandbox("one"), host.sandbox("two"));
        let mapping =
            |protocol, host_port| cri::PortMapping { protocol, container_port: 80, host_port, host_ip: String::new() };
        one.pod.port_mappings = vec![mapping(0, 8080), mapping(1, 5353)];
        one.pod.annotations = [("kubernetes.io/ingress-bandwidth", "100M"), ("kubernetes.io/egress-bandwidth", "200M")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let attached = run(async { tokio::join!(host.cni.add(&one.pod), host.cni.add(&two.pod)) });
        let (first, second) = (attached.0.expect("ADD"), attached.1.expect("ADD"));
        for attachment in [&first, &second] {
            let [IpAddr::V4(v4), IpAddr::V6(v6)] = attachment.addresses() else { panic!("{attachment:?}") };
            assert!(v4.to_string().starts_with("10.88.0.") && v6.to_string().starts_with("fd88::"));
        }
        let link = one.inside(|| output("ip", "-o link show eth0"));
        assert!(link.contains(first.mac().expect("mac")), "{link}");
        assert_eq!(host.taken().len(), 4, "{:?}", host.taken());
        let limits = output("tc", "qdisc show");
        assert!(limits.contains("rate 100Mbit") && limits.contains("rate 200Mbit"), "{limits}");

        for (at_first, own) in first.addresses().iter().zip(second.addresses()) {
            let _end = one.inside(|| answer_one("[::]:81"));
            assert_eq!(two.inside(|| call(at(at_first, 81))), own.to_string(), "pod to pod, by their own addresses");
        }
        for (other, host_address) in OTHER.iter().zip(HOST) {
            let _end = host.on_the_other(|| answer_one("[::]:82"));
            assert_eq!(two.inside(|| call(at(other, 82))), host_address, "the world sees the host");
        }
        for address in HOST {
            let _end = one.inside(|| answer_one("[::]:80"));
            let caller = host.on_the_other(|| call(at(address, 8080)));
            assert!(OTHER.contains(&&*caller), "the pod sees who calls: {caller}");
        }

        let kept: Attachment = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
        write(&host.folder.path().join("net.d/10-pods.conflist"), "{}");
        run(host.cni.del(&one.pod, Some(&kept))).expect("DEL");
        assert_eq!(host.taken().len(), 2, "{:?}", host.taken());
        run(host.cni.del(&one.pod, Some(&kept))).expect("DEL once more");
        run(host.cni.del(&two.pod, Some(&second))).expect("DEL");
        assert_eq!(host.taken(), [] as [String; 0]);
        assert!(one.inside(|| output("ip", "-o link show")).lines().all(|line| line.contains(" lo:")));
        assert_eq!(host.traces(), [] as [String; 0]);
    });
}

/// What was in the namespace is gone, and so are rules, once the machine has started anew; addresses are on the disk.
#[test]
fn after_a_reboot_addresses_are_freed() {
    on_a_host(|host| {
        host.configure("1.0.0");
        let sandbox = host.sandbox("one");
        let attachment = run(host.cni.add(&sandbox.pod)).expect("ADD");
        assert_eq!(host.taken().len(), 2);
        netns::delete(&sandbox.pin.0).expect("unpin");
        run(host.cni.del(&sandbox.pod, Some(&attachment))).expect("DEL");
        assert_eq!(host.taken(), [] as [String; 0]);
    });
}

#[test]
fn configurations_of_all_ages_work() {
    on_a_host(|host| {
        for (at, version) in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"].into_iter().enumerate() {
            // Lists are younger.
            let single = version < "0.3.0";
            let ipam = json!({ "type": "host-local", "subnet": "10.88.0.0/24", "dataDir": host.folder.path().join("addresses") });
            let bridge = json!({
                "name": "pods", "cniVersion": version, "type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam,
            });
            let list = json!({ "name": "pods", "cniVersion": version, "plugins": [
                bridge, { "type": "portmap", "capabilities": { "portMappings": true } },
            ]});
            let folder = host.folder.path().join("net.d");
            let _ = fs::remove_dir_all(&folder);
            match single {
                true => write(&folder.join("1.conf"), &bridge.to_string()),
                false => write(&folder.join("1.conflist"), &list.to_string()),
            }
            let mut sandbox = host.sandbox(&format!("p{at}"));
            sandbox.pod.port_mappings =
                vec![cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
            let attachment =
                run(host.cni.add(&sandbox.pod)).unwrap_or_else(|error| panic!("{version}: {}", chain(&error)));
            let address = attachment.addresses()[0];
            let inside = sandbox.inside(|| output("ip", "-o -4 addr show eth0"));
            assert!(inside.contains(&address.to_string()), "{version}: {address} {inside}");
            run(host.cni.del(&sandbox.pod, Some(&attachment)))
                .unwrap_or_else(|error| panic!("{version}: {}", chain(&error)));
            assert_eq!(host.taken(), [] as [String; 0], "{version}");
        }
    });
}

#[test]
fn a_version_that_plugins_do_not_speak_is_an_error_unless_there_is_another() {
    on_a_host(|host| {
        host.configure("1.1.0");
        let ready = run(host.cni.ready()).expect_err("not ready");
        assert!(ready.starts_with("network pods: plugin bridge STATUS: "), "{ready}");
        let sandbox = host.sandbox("one");
        let error = chain(&run(host.cni.add(&sandbox.pod)).expect_err("ADD"));
        assert!(error.starts_with("network pods: plugin bridge ADD: incompatible CNI versions (code 1): "), "{error}");
        let file = host.folder.path().join("net.d/10-pods.conflist");
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        list["cniVersions"] = json!(["0.4.0", "1.0.0", "1.1.0"]);
        write(&file, &list.to_string());
        assert_eq!(run(host.cni.ready()), Ok(()));
        let attachment = run(host.cni.add(&sandbox.pod)).expect("ADD");
        assert_eq!(attachment.version, Version::V1_0_0);
        run(host.cni.del(&sandbox.pod, Some(&attachment))).expect("DEL");
    });
}

#[test]
fn a_plugin_that_fails_last_leaves_nothing_of_the_others() {
    on_a_host(|host| {
        host.configure("1.0.0");
        let mut sandbox = host.sandbox("one");
        let file = host.folder.path().join("net.d/10-pods.conflist");
        let mut list: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        list["plugins"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "tuning", "sysctl": { "net.ipv4.nonsense": "1" } }));
        write(&file, &list.to_string());
        sandbox.pod.port_mappings =
            vec![cri::PortMapping { container_port: 80, host_port: 8080, ..Default::default() }];
        let error = chain(&run(host.cni.add(&sandbox.pod)).expect_err("ADD"));
        assert!(error.starts_with("network pods: plugin tuning ADD: "), "{error}");
        assert_eq!((host.taken(), host.traces()), (vec![], vec![]));
    });
}
