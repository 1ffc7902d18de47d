//! IPv6 beside IPv4 and alone: the same ways for both.

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};

use super::users::{join, make, reaches, routes};
use super::*;

/// The host's address on the LAN, and the other computer's.
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd23, 1, 0, 0, 0, 0, 0, 1);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xfd23, 1, 0, 0, 0, 0, 0, 2);
/// The address of containers' bridge, and their network.
const BRIDGE_V6: &str = "fd23:7::1/64";

/// Gives host and LAN an IPv6 network between them.
fn with_ipv6(host: &Host) {
    ip(&format!("addr add {HOST_V6}/64 dev eth9 nodad"));
    within_lan(host, || ip(&format!("addr add {OTHER_V6}/64 dev eth9 nodad")));
}

fn within_lan<T: Send>(host: &Host, work: impl FnOnce() -> T + Send) -> T {
    within(&host.lan, work)
}

fn open(host: &Host) -> Networks {
    let wanted =
        BridgeConfig { address_v6: Some(BRIDGE_V6.parse().expect("subnet")), ..config(BRIDGE, "10.231.1.1/24") };
    Networks::open(wanted, host.run_root(), Vec::new()).expect("open")
}

fn six(ip: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddrV6::new(ip, port, 0, 0).into()
}

fn v6_of(address: &endpoint::EndpointAddress) -> Ipv6Addr {
    match address.v6.expect("IPv6 address").ip {
        IpAddr::V6(ip) => ip,
        IpAddr::V4(_) => panic!("of the other family"),
    }
}

fn own_v6(endpoint: &Endpoint) -> Ipv6Addr {
    v6_of(endpoint.address.as_ref().expect("address"))
}

/// Serves TCP of IPv6 alone: each client is told the address it was seen with.
fn serve_v6(namespace: BorrowedFd<'_>, port: u16) {
    let listener = sys::netns::within(namespace, || {
        // Not for IPv4, too, which another server may have.
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Inet6,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("socket");
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6V6Only, &true).expect("option");
        let address = nix::sys::socket::SockaddrStorage::from(six(Ipv6Addr::UNSPECIFIED, port));
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &address).expect("bind");
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(16).expect("backlog")).expect("listen");
        TcpListener::from(socket)
    })
    .expect("enter");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let Ok(peer) = client.peer_addr() else { return };
            let _ = write!(client, "{}", peer.ip());
        }
    });
}

#[test]
fn a_dual_stack_network_goes_all_ways_in_both_families() {
    on_a_host(|host| {
        with_ipv6(host);
        let networks = open(host);
        networks.names().start_in_this_process(&host.run_root().join("resolv.conf"));
        let ports = [publish(Protocol::Tcp, None, 8080, 80), publish(Protocol::Udp, None, 5353, 53)];
        let web = networks.attach_bridge("web", &request(&ports)).expect("attach");
        let other = networks.attach_bridge("other", &request(&[])).expect("attach");
        assert_eq!(own_v6(&web).to_string(), "fd23:7::2");
        let bound: Vec<String> = web.ports.iter().map(|port| format!("{}/{}", port.host_ip, port.host_port)).collect();
        assert_eq!(bound, ["0.0.0.0/8080", "::/8080", "0.0.0.0/5353", "::/5353"]);
        serve_v6(namespace_of(&web).as_fd(), 80);
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        serve_v6(host.lan.as_fd(), 7000);

        // In: from the LAN with its own address, from this host, from a container on the same bridge, from itself.
        let ask = |port| ask_tcp(six(HOST_V6, port), PATIENCE);
        assert_eq!(within_lan(host, || ask(8080)).as_deref(), Some("fd23:1::2"));
        assert_eq!(ask(8080).as_deref(), Some("fd23:1::1"), "the host by its own address");
        let inside = namespace_of(&other);
        assert_eq!(within(&inside, || ask(8080)).as_deref(), Some("fd23:7::1"), "hairpin");
        assert_eq!(within(&namespace_of(&web), || ask(8080)).as_deref(), Some("fd23:7::1"), "hairpin to itself");
        assert_eq!(ask_tcp(six(Ipv6Addr::LOCALHOST, 8080), PATIENCE).as_deref(), Some("fd23:7::1"), "by localhost");
        // Containers talk with each other, and leave with the host's address.
        assert_eq!(
            within(&inside, || ask_tcp(six(own_v6(&web), 80), PATIENCE)).as_deref(),
            Some(&*own_v6(&other).to_string())
        );
        assert_eq!(within(&inside, || ask_tcp(six(OTHER_V6, 7000), PATIENCE)).as_deref(), Some("fd23:1::1"));
        // What isn't published isn't reached, even by those who have a route.
        within_lan(host, || ip(&format!("-6 route add fd23:7::/64 via {HOST_V6}")));
        assert_eq!(within_lan(host, || ask_tcp(six(own_v6(&web), 80), SILENCE)), None);
        // Port by port: somebody else's in one family is nobody's in either.
        let error =
            networks.attach_bridge("x", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("taken");
        assert!(proto::kind::chain(&error).contains("port is already allocated"), "{error}");

        networks.detach("web", &web).expect("detach");
        networks.detach("other", &other).expect("detach");
        assert_eq!(published(BRIDGE), Vec::<String>::new());
        assert!(TcpStream::connect_timeout(&six(HOST_V6, 8080), SILENCE).is_err());
        networks.reap(Duration::ZERO).expect("reap");
        eventually_nothing(host);
    });
}

#[test]
fn the_next_engine_takes_both_families_over() {
    on_a_host(|host| {
        with_ipv6(host);
        let first = open(host);
        let ports = [publish(Protocol::Tcp, None, 8080, 80)];
        let web = first.attach_bridge("web", &request(&ports)).expect("attach");
        serve_v6(namespace_of(&web).as_fd(), 80);
        drop(first);
        assert_eq!(within_lan(host, || ask_tcp(six(HOST_V6, 8080), PATIENCE)).as_deref(), Some("fd23:1::2"));
        let second = open(host);
        restored(&second, &[("web", &web)]);
        run("nft", "flush ruleset");
        second.repair().expect("repair");
        assert_eq!(within_lan(host, || ask_tcp(six(HOST_V6, 8080), PATIENCE)).as_deref(), Some("fd23:1::2"));
        let next = second.attach_bridge("next", &request(&[])).expect("attach");
        assert_ne!(own_v6(&next), own_v6(&web), "its address is still taken");
        second.detach("next", &next).expect("detach");
        second.detach("web", &web).expect("detach");
        second.reap(Duration::ZERO).expect("reap");
        eventually_nothing(host);
    });
}

#[test]
fn a_network_of_ipv6_alone() {
    on_a_host(|host| {
        with_ipv6(host);
        let networks = host.open();
        let only = make(&networks, "only", |request| {
            request.enable_ipv4 = Some(false);
            request.enable_ipv6 = Some(true);
        });
        assert_eq!(only.subnets.len(), 1);
        assert!(only.subnets[0].address.to_string().starts_with("fdbb:bbbb:bbbb:"), "the engine's own prefix");
        let (a, b) = (
            join(&networks, "a", &[&only], &[publish(Protocol::Tcp, None, 8080, 80)]),
            join(&networks, "b", &[&only], &[]),
        );
        let inside = within(&namespace_of(&a), || run("ip", "-o addr show dev eth0"));
        assert!(!inside.contains("inet "), "{inside}");
        assert_eq!(a.ports.len(), 1, "of IPv6 alone: {:?}", a.ports);
        serve_v6(namespace_of(&a).as_fd(), 80);
        let ip_of = |endpoint: &Endpoint| v6_of(&endpoint.member(&only.id).expect("member").address);
        assert_eq!(
            within(&namespace_of(&b), || ask_tcp(six(ip_of(&a), 80), PATIENCE)).as_deref(),
            Some(&*ip_of(&b).to_string())
        );
        assert_eq!(within_lan(host, || ask_tcp(six(HOST_V6, 8080), PATIENCE)).as_deref(), Some("fd23:1::2"));
        let refused = networks.attach(
            "c",
            &AttachRequest {
                name: "c".into(),
                ports: vec![publish(Protocol::Tcp, Some(HOST), 8081, 80)],
                members: vec![MemberRequest { network_id: only.id.clone(), ..MemberRequest::default() }],
            },
        );
        let text = proto::kind::chain(&refused.expect_err("of the other family"));
        assert!(text.contains("the container has no IPv4 address"), "{text}");
    });
}

#[test]
fn links_of_networks_without_ipv6_have_none_and_believe_no_router() {
    on_a_host(|host| {
        with_ipv6(host);
        let networks = open(host);
        let plain = users::plain(&networks, "plain");
        let on_both = networks
            .attach(
                "both",
                &AttachRequest {
                    name: "both".into(),
                    ports: Vec::new(),
                    members: vec![
                        MemberRequest {
                            network_id: networks.network_id(NetworkKind::Bridge).to_owned(),
                            ..MemberRequest::default()
                        },
                        MemberRequest { network_id: plain.id.clone(), ..MemberRequest::default() },
                    ],
                },
            )
            .expect("attach");
        let addresses =
            |link: &str| within(&namespace_of(&on_both), || run("ip", &format!("-6 -o addr show dev {link}")));
        assert!(addresses("eth0").contains("fd23:7::2/64"), "{}", addresses("eth0"));
        assert_eq!(addresses("eth1"), "");
        let setting = |endpoint: &Endpoint, name: &str| {
            let path = format!("/proc/sys/net/ipv6/conf/{name}");
            within(&namespace_of(endpoint), || std::fs::read_to_string(&path).expect("setting").trim().to_owned())
        };
        assert_eq!(setting(&on_both, "eth0/accept_ra"), "0");
        assert_eq!(
            (setting(&on_both, "eth0/disable_ipv6"), setting(&on_both, "eth1/disable_ipv6")),
            ("0".into(), "1".into())
        );
        assert!(routes(&on_both).contains("default via 10.231.1.1"), "bridge comes before plain");
        let default = within(&namespace_of(&on_both), || run("ip", "-6 route show default"));
        assert!(default.contains("via fd23:7::1 dev eth0"), "{default}");
        // Joined while it lives.
        let lone = join(&networks, "lone", &[&plain], &[]);
        let namespace = namespace_of(&lone);
        let wanted = MemberRequest {
            network_id: networks.network_id(NetworkKind::Bridge).to_owned(),
            ..MemberRequest::default()
        };
        let plan = networks.plan_join("lone", "lone", &lone, &wanted, &[]).expect("plan");
        networks.rearrange("lone", "lone", &lone, &plan, namespace.as_fd()).expect("join");
        assert_eq!(within(&namespace, || run("ip", "-6 -o addr show dev eth0")), "");
        serve_v6(namespace_of(&on_both).as_fd(), 81);
        assert!(reaches(&lone, six(own_v6(&on_both), 81), PATIENCE));
    });
}

#[test]
fn a_host_that_forwards_still_listens_to_routers() {
    on_a_host(|host| {
        std::fs::write("/proc/sys/net/ipv6/conf/eth9/accept_ra", "1").expect("setting");
        let setting = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}")).expect("setting");
            text.trim().to_owned()
        };
        let without = host.open();
        assert_eq!((setting("all/forwarding"), setting("eth9/accept_ra")), ("0".into(), "1".into()), "nobody asked");
        drop(without);
        let _with = open(host);
        assert_eq!((setting("all/forwarding"), setting("eth9/accept_ra")), ("1".into(), "2".into()));
        assert_eq!((setting("btst0/accept_ra"), setting("btst0/disable_ipv6")), ("0".into(), "0".into()));
    });
}

#[test]
fn each_family_has_its_pools_in_the_order_given() {
    on_a_host(|host| {
        let networks = host.open();
        let pools = ["base=fd23:a::/64,size=64", "base=fd23:b::/64,size=64", "base=10.231.64.0/24,size=24"]
            .map(|text| text.parse().expect("pool"));
        let subnets = |name: &str| {
            let request = NetworkRequest { name: name.into(), enable_ipv6: Some(true), ..NetworkRequest::default() };
            let made = networks.reserve_network(request, &pools);
            made.map(|made| made.subnets.iter().map(|pooled| pooled.address.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(subnets("a").expect("free"), ["10.231.64.1/24", "fd23:a::1/64"]);
        assert!(matches!(subnets("b"), Err(NetworkError::PoolsExhausted)), "of IPv4");
    });
}
