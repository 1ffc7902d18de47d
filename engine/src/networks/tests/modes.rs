//! How networks are joined to the world: translated, routed, unprotected, isolated; and who may come in besides.

use super::users::{at, join, make};
use super::*;

fn with(networks: &Networks, name: &str, internal: bool, options: &[(&str, &str)]) -> Definition {
    make(networks, name, |request| {
        request.internal = internal;
        request.options =
            options.iter().map(|(key, value)| (format!("com.docker.network.{key}"), (*value).to_owned())).collect();
    })
}

fn serve(endpoint: &Endpoint, name: &'static str) {
    serve_tcp(namespace_of(endpoint).as_fd(), 80, name);
    serve_tcp(namespace_of(endpoint).as_fd(), 81, name);
}

/// What the other computer hears straight from a container's address.
fn straight(host: &Host, to: Ipv4Addr, port: u16, patience: Duration) -> Option<String> {
    within(&host.lan, || ask_tcp(SocketAddrV4::new(to, port), patience))
}

#[test]
fn routed_networks_are_reached_by_their_own_addresses() {
    on_a_host(|host| {
        let networks = host.open();
        let routed = with(&networks, "routed", false, &[("bridge.gateway_mode_ipv4", "routed")]);
        let web = join(&networks, "web", &[&routed], &[publish(Protocol::Tcp, None, 8080, 80)]);
        serve(&web, "web");
        let own = at(&web, &routed);
        within(&host.lan, || ip(&format!("route add 10.231.10.0/26 via {HOST}")));
        assert_eq!(straight(host, own, 80, PATIENCE).as_deref(), Some("web 10.231.200.2"));
        assert_eq!(straight(host, own, 81, SILENCE), None, "not published");
        assert_eq!(straight(host, HOST, 8080, SILENCE), None, "nothing is translated");
        assert!(within(&host.lan, || run("busybox", &format!("ping -c 1 -W 2 {own}"))).contains("1 packets received"));
        // It leaves with its own address, too.
        serve_tcp(host.lan.as_fd(), 7000, "lan");
        let seen = within(&namespace_of(&web), || ask_tcp(SocketAddrV4::new(OTHER, 7000), PATIENCE));
        assert_eq!(seen, Some(format!("lan {own}")));
        networks.detach("web", &web).expect("detach");
        assert_eq!(run("nft", &format!("list set inet berth_{BRIDGE} routed")).matches("tcp").count(), 0);
    });
}

#[test]
fn unprotected_networks_are_open_to_those_who_have_a_route_but_not_to_other_networks() {
    on_a_host(|host| {
        let networks = host.open();
        let open = with(&networks, "open", false, &[("bridge.gateway_mode_ipv4", "nat-unprotected")]);
        let web = join(&networks, "web", &[&open], &[]);
        serve(&web, "web");
        within(&host.lan, || ip(&format!("route add 10.231.10.0/26 via {HOST}")));
        assert!(straight(host, at(&web, &open), 81, PATIENCE).is_some());
        let stranger = networks.attach_bridge("stranger", &request(&[])).expect("attach");
        let to = SocketAddrV4::new(at(&web, &open), 80);
        assert_eq!(within(&namespace_of(&stranger), || ask_tcp(to, SILENCE)), None);
    });
}

#[test]
fn trusted_links_come_in_and_others_do_not() {
    on_a_host(|host| {
        let networks = host.open();
        let trusting = with(&networks, "trusting", false, &[("bridge.trusted_host_interfaces", "eth9")]);
        let wary = users::plain(&networks, "wary");
        let (a, b) = (join(&networks, "a", &[&trusting], &[]), join(&networks, "b", &[&wary], &[]));
        serve(&a, "a");
        serve(&b, "b");
        within(&host.lan, || ip(&format!("route add 10.231.10.0/23 via {HOST}")));
        assert!(straight(host, at(&a, &trusting), 80, PATIENCE).is_some());
        assert_eq!(straight(host, at(&b, &wary), 80, SILENCE), None);
    });
}

#[test]
fn an_isolated_bridge_has_no_address_and_one_without_a_gateway_none_of_ipv4() {
    on_a_host(|host| {
        let networks = host.open();
        let isolated = with(&networks, "isolated", true, &[("bridge.gateway_mode_ipv4", "isolated")]);
        assert_eq!(run("ip", &format!("-4 -o addr show {}", isolated.bridge)), "");
        let (a, b) = (join(&networks, "a", &[&isolated], &[]), join(&networks, "b", &[&isolated], &[]));
        serve(&a, "a");
        let to = SocketAddrV4::new(at(&a, &isolated), 80);
        assert!(within(&namespace_of(&b), || ask_tcp(to, PATIENCE)).is_some(), "each other");
        assert!(!users::routes(&a).contains("default"));
        let open = NetworkRequest {
            name: "no".into(),
            options: [("com.docker.network.bridge.gateway_mode_ipv4".into(), "isolated".into())].into(),
            ..NetworkRequest::default()
        };
        let error = networks.reserve_network(open, &default_pools()).expect_err("not internal");
        assert!(error.to_string().contains("internal networks only"), "{error}");
        let silent = with(&networks, "silent", false, &[("bridge.inhibit_ipv4", "true")]);
        assert_eq!(run("ip", &format!("-4 -o addr show {}", silent.bridge)), "");
    });
}

#[test]
fn the_source_address_can_be_chosen() {
    on_a_host(|host| {
        ip("addr add 10.231.200.9/24 dev eth9");
        let networks = host.open();
        let chosen = with(&networks, "chosen", false, &[("host_ipv4", "10.231.200.9")]);
        let client = join(&networks, "client", &[&chosen], &[]);
        serve_tcp(host.lan.as_fd(), 7000, "lan");
        let seen = within(&namespace_of(&client), || ask_tcp(SocketAddrV4::new(OTHER, 7000), PATIENCE));
        assert_eq!(seen.as_deref(), Some("lan 10.231.200.9"));
    });
}

#[test]
fn rules_of_the_hosts_owner_are_asked_first_and_stay() {
    on_a_host(|host| {
        let networks = host.open();
        let web = networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        serve(&web, "web");
        run("nft", &format!("add rule inet berth_{BRIDGE} user iifname eth9 ip saddr {OTHER} drop"));
        assert_eq!(straight(host, HOST, 8080, SILENCE), None, "the owner doesn't want it");
        drop(networks);
        let next = host.open();
        restored(&next, &[("web", &web)]);
        users::plain(&next, "another");
        assert!(run("nft", &format!("list chain inet berth_{BRIDGE} user")).contains("drop"), "it stays");
        run("nft", &format!("flush chain inet berth_{BRIDGE} user"));
        assert!(straight(host, HOST, 8080, PATIENCE).is_some());
    });
}

#[test]
fn links_are_called_and_set_as_asked() {
    on_a_host(|host| {
        let networks = host.open();
        let named = with(&networks, "named", false, &[("container_iface_prefix", "net")]);
        let member = |interface: Option<&str>| MemberRequest {
            network_id: named.id.clone(),
            interface: interface.map(str::to_owned),
            link: LinkOptions {
                sysctls: [("net/ipv4/conf/IFNAME/log_martians".to_owned(), "1".to_owned())].into(),
                ..LinkOptions::default()
            },
            ..MemberRequest::default()
        };
        for (id, interface, expected) in [("a", None, "net0"), ("b", Some("wan"), "wan")] {
            let wanted = AttachRequest { name: id.into(), ports: Vec::new(), members: vec![member(interface)] };
            let endpoint = networks.attach(id, &wanted).expect("attach");
            assert_eq!(endpoint.interface, expected);
            let path = format!("/proc/sys/net/ipv4/conf/{expected}/log_martians");
            let set = within(&namespace_of(&endpoint), || std::fs::read_to_string(&path).expect("setting"));
            assert_eq!(set.trim(), "1");
            assert!(users::routes(&endpoint).contains(&format!("dev {expected}")));
        }
    });
}

/// Bytes per second that come through a connection, over half a second.
fn throughput(from: &Endpoint, to: SocketAddrV4, server: &Endpoint) -> f64 {
    let listener =
        within(&namespace_of(server), || TcpListener::bind((Ipv4Addr::UNSPECIFIED, to.port())).expect("listen"));
    let sender = std::thread::spawn(move || {
        let Ok((mut client, _)) = listener.accept() else { return };
        let block = [0; 16 * 1024];
        while client.write_all(&block).is_ok() {}
    });
    let received = within(&namespace_of(from), || {
        let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE).expect("connect");
        let mut buffer = [0; 64 * 1024];
        let (mut total, start) = (0, Instant::now());
        while start.elapsed() < Duration::from_millis(500) {
            total += stream.read(&mut buffer).expect("read");
        }
        total as f64 / start.elapsed().as_secs_f64()
    });
    sender.join().expect("sender");
    received
}

#[test]
fn what_goes_through_a_link_is_limited() {
    on_a_host(|host| {
        let networks = host.open();
        let limited = |ingress, egress| MemberRequest {
            network_id: networks.network_id(NetworkKind::Bridge).to_owned(),
            link: LinkOptions { ingress, egress, ..LinkOptions::default() },
            ..MemberRequest::default()
        };
        let attach = |id: &str, member| {
            let wanted = AttachRequest { name: id.into(), ports: Vec::new(), members: vec![member] };
            networks.attach(id, &wanted).expect("attach")
        };
        let free = attach("free", limited(None, None));
        let receives = attach("receives", limited(Some(2_000_000), None));
        let sends = attach("sends", limited(None, Some(2_000_000)));
        let at = |endpoint: &Endpoint, port| SocketAddrV4::new(address_of(endpoint), port);
        // A burst goes at once.
        let most = 2_000_000.0 * 1.5;
        let (got, sent) = (throughput(&receives, at(&free, 90), &free), throughput(&free, at(&sends, 91), &sends));
        assert!(got < most && sent < most, "{got} {sent}");
        let unlimited = throughput(&free, at(&receives, 92), &receives);
        assert!(unlimited > 3.0 * most, "the other way it isn't: {unlimited}");
    });
}
