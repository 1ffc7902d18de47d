//! Packets on all the paths that the head of `networks` draws.

use super::*;

const PORTS: [u16; 2] = [8080, 5353];

/// A container that serves TCP on 80 and UDP on 53, published on 8080 and 5353.
fn server(networks: &Networks, host_ip: Option<Ipv4Addr>) -> Endpoint {
    let ports = [publish(Protocol::Tcp, host_ip, PORTS[0], 80), publish(Protocol::Udp, host_ip, PORTS[1], 53)];
    let endpoint = networks.attach_bridge("server", &request(&ports)).expect("attach");
    let namespace = namespace_of(&endpoint);
    serve_tcp(namespace.as_fd(), 80, "tcp");
    serve_udp(namespace.as_fd(), 53, "udp");
    endpoint
}

fn at(ip: impl Into<Ipv4Addr>, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(ip.into(), port)
}

/// Asks both servers.
fn ask_both(ip: Ipv4Addr, patience: Duration) -> (Option<String>, Option<String>) {
    (ask_tcp(at(ip, PORTS[0]), patience), ask_udp(at(ip, PORTS[1]), patience))
}

fn both(seen_as: &str) -> (Option<String>, Option<String>) {
    (Some(format!("tcp {seen_as}")), Some(format!("udp {seen_as}")))
}

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 231, 1, 1);

/// Whether packets between ports of a bridge go through the firewall; on with the module br_netfilter, which dockerd
/// and Kubernetes load.
const BRIDGED_PACKETS: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

#[test]
fn published_ports_answer_from_everywhere() {
    on_a_host(|host| {
        if Path::new(BRIDGED_PACKETS).exists() {
            std::fs::write(BRIDGED_PACKETS, "1").expect("setting");
        }
        published_ports_answer(host);
    });
}

#[test]
fn published_ports_answer_without_br_netfilter_too() {
    on_a_host(|host| {
        if Path::new(BRIDGED_PACKETS).exists() {
            std::fs::write(BRIDGED_PACKETS, "0").expect("setting");
        }
        published_ports_answer(host);
    });
}

fn published_ports_answer(host: &Host) {
    let networks = host.open();
    let server = server(&networks, None);
    let client = networks.attach_bridge("client", &request(&[])).expect("attach");

    let from_lan = within(&host.lan, || ask_both(HOST, PATIENCE));
    assert_eq!(from_lan, both("10.231.200.2"), "other hosts are seen with their own address");
    assert_eq!(ask_both(HOST, PATIENCE), both("10.231.200.1"), "from this host by its LAN address");
    assert_eq!(ask_both(Ipv4Addr::LOCALHOST, PATIENCE), both("10.231.1.1"), "from this host by 127.0.0.1");
    assert_eq!(ask_both(GATEWAY, PATIENCE), both("10.231.1.1"), "from this host by the bridge's address");
    for through in [HOST, GATEWAY] {
        let hairpin = within(&namespace_of(&client), || ask_both(through, PATIENCE));
        assert_eq!(hairpin, both("10.231.1.1"), "from a neighbour by {through}");
        let own = within(&namespace_of(&server), || ask_both(through, PATIENCE));
        assert_eq!(own, both("10.231.1.1"), "from the container itself by {through}");
    }
    let ip = address_of(&server);
    let neighbour = within(&namespace_of(&client), || ask_tcp(at(ip, 80), PATIENCE));
    assert_eq!(neighbour, Some("tcp 10.231.1.3".to_owned()), "neighbours meet directly");
    assert_eq!(ask_tcp(at(ip, 80), PATIENCE), Some("tcp 10.231.1.1".to_owned()), "the host, too");

    networks.detach("server", &server).expect("detach");
    assert_eq!(ask_both(HOST, SILENCE), (None, None));
    assert_eq!(within(&host.lan, || ask_both(HOST, SILENCE)), (None, None));
}

#[test]
fn containers_reach_other_hosts_by_the_address_of_theirs() {
    on_a_host(|host| {
        let networks = host.open();
        let client = networks.attach_bridge("client", &request(&[])).expect("attach");
        serve_tcp(host.lan.as_fd(), 7000, "lan");
        serve_udp(host.lan.as_fd(), 7000, "lan");
        let (tcp, udp) =
            within(&namespace_of(&client), || (ask_tcp(at(OTHER, 7000), PATIENCE), ask_udp(at(OTHER, 7000), PATIENCE)));
        assert_eq!((tcp, udp), (Some("lan 10.231.200.1".to_owned()), Some("lan 10.231.200.1".to_owned())));
    });
}

#[test]
fn ports_published_on_loopback_stay_on_this_host() {
    on_a_host(|host| {
        let networks = host.open();
        let server = server(&networks, Some(Ipv4Addr::LOCALHOST));
        let client = networks.attach_bridge("client", &request(&[])).expect("attach");
        assert_eq!(ask_both(Ipv4Addr::LOCALHOST, PATIENCE), both("10.231.1.1"));
        assert_eq!(ask_both(HOST, SILENCE), (None, None));
        assert_eq!(within(&host.lan, || ask_both(HOST, SILENCE)), (None, None));
        assert_eq!(within(&namespace_of(&client), || ask_both(HOST, SILENCE)), (None, None));
        // Another host that takes 127.0.0.1 for an address beyond us.
        within(&host.lan, || {
            std::fs::write("/proc/sys/net/ipv4/conf/eth9/route_localnet", "1").expect("route_localnet");
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!("route add 127.0.0.0/8 via {HOST} src {OTHER}"));
        });
        assert_eq!(within(&host.lan, || ask_both(Ipv4Addr::LOCALHOST, SILENCE)), (None, None));
        // It isn't only that the kernel drops it: ours do, whatever else is set on this host.
        std::fs::write("/proc/sys/net/ipv4/conf/eth9/route_localnet", "1").expect("route_localnet");
        assert_eq!(within(&host.lan, || ask_both(Ipv4Addr::LOCALHOST, SILENCE)), (None, None));
        run("nft", "flush chain inet berth_btst0 prerouting");
        run("nft", "add rule inet berth_btst0 prerouting fib daddr type local goto published");
        let unguarded = within(&host.lan, || ask_tcp(at(Ipv4Addr::LOCALHOST, PORTS[0]), PATIENCE));
        assert_eq!(unguarded, Some("tcp 10.231.200.2".to_owned()), "this test would see it without the rule");
        drop(server);
    });
}

#[test]
fn containers_do_not_reach_loopback_services_of_the_host() {
    on_a_host(|host| {
        let networks = host.open();
        let client = networks.attach_bridge("client", &request(&[])).expect("attach");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 7001)).expect("listen");
        std::thread::spawn(move || drop(listener.accept()));
        let inside = namespace_of(&client);
        let ask = || within(&inside, || ask_tcp(at(Ipv4Addr::LOCALHOST, 7001), SILENCE));
        within(&inside, || {
            std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("route_localnet");
            ip("addr del 127.0.0.1/8 dev lo");
            ip(&format!("route add 127.0.0.0/8 via {GATEWAY} src {}", address_of(&client)));
        });
        assert_eq!(ask(), None);
        run("nft", "flush chain inet berth_btst0 guard");
        assert_eq!(ask(), Some(String::new()), "this test would see it without the guard");
    });
}

#[test]
fn unpublished_ports_are_not_routed_to() {
    on_a_host(|host| {
        let networks = host.open();
        let server = server(&networks, None);
        let direct = at(address_of(&server), 80);
        within(&host.lan, || ip(&format!("route add 10.231.1.0/24 via {HOST}")));
        assert_eq!(within(&host.lan, || ask_tcp(direct, SILENCE)), None);
        run("nft", "flush chain inet berth_btst0 forward");
        assert!(within(&host.lan, || ask_tcp(direct, PATIENCE)).is_some(), "this test would see it without the rule");
    });
}

#[test]
fn traffic_through_the_host_is_not_taken_for_its_own() {
    on_a_host(|host| {
        let networks = host.open();
        let _server = server(&networks, None);
        // The other computer asks port 8080 of a third one, by way of this host: that isn't our published port.
        let (third, ()) = {
            let pins = tempfile::tempdir().expect("folder");
            let pin = pins.path().join("third");
            let made = sys::netns::create(&pin, || ip("link set lo up")).expect("third");
            ip(&format!("link add eth8 type veth peer name eth8 netns {}", pin.display()));
            sys::netns::delete(&pin).expect("unpin");
            made
        };
        ip("addr add 10.231.201.1/24 dev eth8");
        ip("link set eth8 up");
        within(&third, || {
            ip("addr add 10.231.201.2/24 dev eth8");
            ip("link set eth8 up");
            ip("route add default via 10.231.201.1");
        });
        within(&host.lan, || ip(&format!("route add default via {HOST}")));
        serve_tcp(third.as_fd(), PORTS[0], "third");
        let answer = within(&host.lan, || ask_tcp(at([10, 231, 201, 2], PORTS[0]), PATIENCE));
        assert_eq!(answer, Some("third 10.231.200.2".to_owned()));
        // A container asks it, too: masqueraded, but not turned back.
        let client = networks.attach_bridge("client", &request(&[])).expect("attach");
        let answer = within(&namespace_of(&client), || ask_tcp(at([10, 231, 201, 2], PORTS[0]), PATIENCE));
        assert_eq!(answer, Some("third 10.231.201.1".to_owned()));
    });
}

#[test]
fn udp_flows_follow_the_container_that_has_the_port() {
    on_a_host(|host| {
        let networks = host.open();
        let client = within(&host.lan, || UdpSocket::bind((OTHER, 0)).expect("bind"));
        client.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        // One socket, hence one flow for the kernel, that never falls silent.
        let ask = || {
            let _ = client.send_to(b"?", (HOST, PORTS[1]));
            let mut buffer = [0; 64];
            let (length, _) = client.recv_from(&mut buffer).ok()?;
            Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
        };
        assert_eq!(ask(), None, "nobody there yet");
        for name in ["first", "second"] {
            let ports = [publish(Protocol::Udp, None, PORTS[1], 53)];
            let endpoint = networks.attach_bridge(name, &request(&ports)).expect("attach");
            serve_udp(namespace_of(&endpoint).as_fd(), 53, name);
            assert_eq!(eventually(name, ask), format!("{name} {OTHER}"));
            networks.detach(name, &endpoint).expect("detach");
            // Answers to questions that were given up too early.
            while client.recv_from(&mut [0; 64]).is_ok() {}
            assert_eq!(ask(), None, "nobody there any more");
        }
    });
}
