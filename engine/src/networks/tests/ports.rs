//! Published ports and the programs of the host.

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
        // A socket each; the usual limit of a shell is 1024 (daemons raise it).
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("limit");
        if hard < 4096 {
            println!("skipped: at most {hard} descriptors");
            return;
        }
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
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
