//! Published ports and the programs of the host.

use std::net::{IpAddr, Ipv6Addr};

use super::*;
use crate::networks::ports::PortError;

#[test]
fn a_port_of_a_process_is_refused_with_the_kernels_words() {
    on_a_host(|host| {
        let networks = host.open();
        let _listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).expect("listen");
        let error =
            networks.attach_bridge("c1", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("taken");
        assert_eq!(
            proto::kind::chain(&error),
            "driver failed programming external connectivity on endpoint web: \
             listen tcp4 0.0.0.0:8080: bind: address already in use"
        );
        eventually_nothing(host);
    });
}

#[test]
fn processes_do_not_get_a_published_port() {
    on_a_host(|host| {
        let networks = host.open();
        let ports = [publish(Protocol::Tcp, None, 8080, 80), publish(Protocol::Udp, None, 8080, 80)];
        let endpoint = networks.attach_bridge("c1", &request(&ports)).expect("attach");
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_err());
        assert!(TcpListener::bind((HOST, 8080)).is_err());
        assert!(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_err());
        networks.detach("c1", &endpoint).expect("detach");
        // Not at once: a program that another test is just starting holds all descriptors until it is executed.
        eventually("free again", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).ok());
    });
}

#[test]
fn the_same_port_on_different_addresses() {
    on_a_host(|host| {
        let networks = host.open();
        let first =
            networks.attach_bridge("c1", &request(&[publish(Protocol::Tcp, Some(HOST), 8080, 80)])).expect("attach");
        let second = networks
            .attach_bridge("c2", &request(&[publish(Protocol::Tcp, Some(Ipv4Addr::LOCALHOST), 8080, 80)]))
            .expect("another address");
        serve_tcp(namespace_of(&first).as_fd(), 80, "first");
        serve_tcp(namespace_of(&second).as_fd(), 80, "second");
        let ask = |ip| ask_tcp(SocketAddrV4::new(ip, 8080), PATIENCE).expect("answer");
        assert!(ask(HOST).starts_with("first"));
        assert!(ask(Ipv4Addr::LOCALHOST).starts_with("second"));
        let error =
            networks.attach_bridge("c3", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("overlaps");
        assert!(matches!(error, NetworkError::Port { cause: PortError::Allocated { .. }, .. }), "{error}");
    });
}

#[test]
fn thousands_of_ports_are_one_transaction() {
    on_a_host(|host| {
        let networks = host.open();
        let ports: Vec<_> = (20_000..22_500).map(|port| publish(Protocol::Udp, None, port, port)).collect();
        if !may_open_many() {
            return;
        }
        let start = Instant::now();
        let endpoint = networks.attach_bridge("c1", &request(&ports)).expect("attach");
        println!("2500 ports published in {:?}", start.elapsed());
        assert_eq!(published(BRIDGE).len(), ports.len());
        serve_udp(namespace_of(&endpoint).as_fd(), 22_499, "last");
        assert!(ask_udp(SocketAddrV4::new(HOST, 22_499), PATIENCE).is_some());
        networks.detach("c1", &endpoint).expect("detach");
        assert_eq!(published(BRIDGE).len(), 0);
    });
}

fn localhost_v6(port: u16) -> SocketAddr {
    (Ipv6Addr::LOCALHOST, port).into()
}

/// Ports take sockets: one, one beside it, and a copy of each; the usual limit of a shell is 1024 (daemons raise it).
fn may_open_many() -> bool {
    use nix::sys::resource::{Resource::RLIMIT_NOFILE, getrlimit, setrlimit};
    let (_, hard) = getrlimit(RLIMIT_NOFILE).expect("limit");
    if hard < 8192 {
        println!("skipped: at most {hard} descriptors");
        return false;
    }
    setrlimit(RLIMIT_NOFILE, hard, hard).expect("limit");
    true
}

/// Starts a resolver that outlives the engine which starts it.
fn with_resolver(host: &Host) -> Networks {
    let networks = host.open();
    networks.names().start_in_this_process(&host.run_root().join("resolv.conf"));
    networks
}

/// Whether a program of the host gets a port.
fn is_free(port: u16) -> Option<()> {
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok();
    (tcp && udp).then_some(())
}

#[test]
fn ports_stay_taken_while_no_engine_is_there() {
    on_a_host(|host| {
        if !may_open_many() {
            return;
        }
        let first = with_resolver(host);
        let both = |port| [publish(Protocol::Tcp, None, port, 80), publish(Protocol::Udp, None, port, 80)];
        // More than go into one message.
        let many = (20_000..20_300).map(|port| publish(Protocol::Tcp, None, port, port));
        let ports: Vec<PortRequest> = both(8080).into_iter().chain(many).collect();
        let kept = first.attach_bridge("kept", &request(&ports)).expect("attach");
        first.attach_bridge("unknown", &request(&both(8081))).expect("attach");
        drop(first);
        for port in [8080, 8081, 20_000, 20_299] {
            assert!(TcpListener::bind((HOST, port)).is_err(), "{port} is taken");
        }
        assert!(UdpSocket::bind((HOST, 8080)).is_err());

        let second = host.open();
        let damages = second.restore([("kept", &kept)]).expect("restore");
        assert!(damages.is_empty(), "{damages:?}");
        eventually("what is on no record is given back", || is_free(8081));
        assert!(TcpListener::bind((HOST, 8080)).is_err() && TcpListener::bind((HOST, 20_299)).is_err());
        assert!(second.attach_bridge("other", &request(&both(8080))).is_err());
        // The resolver dies, and another one is told.
        second.names().end();
        second.names().start_in_this_process(&host.run_root().join("resolv.conf"));
        second.hold_ports("kept", &kept);
        drop(second);
        assert!(TcpListener::bind((HOST, 8080)).is_err() && TcpListener::bind((HOST, 20_299)).is_err());

        let third = host.open();
        third.restore([("kept", &kept)]).expect("restore");
        third.detach("kept", &kept).expect("detach");
        eventually("given back", || is_free(8080).and(is_free(20_299)));
        third.names().end();
    });
}

#[test]
fn localhost_leads_to_a_container_without_ipv6_too() {
    on_a_host(|host| {
        let first = with_resolver(host);
        let ports = [publish(Protocol::Tcp, None, 8080, 80), publish(Protocol::Tcp, Some(HOST), 8081, 80)];
        // A program of the host's that was there before stays.
        let before = TcpListener::bind(localhost_v6(8082)).expect("listen");
        let third = publish(Protocol::Tcp, None, 8082, 80);
        let web = first.attach_bridge("web", &request(&[ports.as_slice(), &[third]].concat())).expect("attach");
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        let ask = || ask_tcp(localhost_v6(8080), PATIENCE);
        assert_eq!(ask().as_deref(), Some("web 10.231.1.1"));
        assert!(ask_tcp(localhost_v6(8081), SILENCE).is_none(), "published on one address");
        drop(TcpStream::connect(localhost_v6(8082)).expect("connect"));
        before.set_nonblocking(true).expect("option");
        eventually("the host's own program is asked", || before.accept().ok());

        drop(first);
        assert_eq!(ask().as_deref(), Some("web 10.231.1.1"), "no engine is there");
        let second = host.open();
        second.restore([("web", &web)]).expect("restore");
        second.hold_ports("web", &web);
        assert_eq!(ask().as_deref(), Some("web 10.231.1.1"));
        // The resolver dies, too: from what is published it is made again.
        second.names().end();
        drop(second);
        eventually("its sockets are closed", || ask().is_none().then_some(()));
        let third = with_resolver(host);
        third.restore([("web", &web)]).expect("restore");
        third.hold_ports("web", &web);
        assert_eq!(ask().as_deref(), Some("web 10.231.1.1"));
        third.detach("web", &web).expect("detach");
        assert!(ask().is_none());
        third.names().end();
    });
}

#[test]
fn what_cannot_be_led_from_localhost_is_refused() {
    on_a_host(|host| {
        let wanted = BridgeConfig {
            address_v6: Some("fd23:7::1/64".parse().expect("subnet")),
            ..config(BRIDGE, "10.231.1.1/24")
        };
        let networks = Networks::open(wanted, host.run_root(), Vec::new()).expect("open");
        networks.names().start_in_this_process(&host.run_root().join("resolv.conf"));
        let on_localhost = |protocol| PortRequest {
            host_ip: Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            ..publish(protocol, None, 8080, 80)
        };
        let error = networks.attach_bridge("web", &request(&[on_localhost(Protocol::Udp)])).expect_err("no way");
        assert!(proto::kind::chain(&error).contains("only TCP is carried on; publish it on 127.0.0.1"), "{error:?}");
        let web = networks.attach_bridge("web", &request(&[on_localhost(Protocol::Tcp)])).expect("attach");
        assert!(ask_tcp(localhost_v6(8080), PATIENCE).is_none(), "nobody listens in the container");
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        networks.detach("web", &web).expect("detach");
        networks.names().end();
    });
}
