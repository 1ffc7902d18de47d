//! Attaching and detaching, and what each leaves.

use super::*;

#[test]
fn an_endpoint_is_complete_and_leaves_nothing() {
    on_a_host(|host| {
        let networks = host.open();
        let endpoint =
            networks.attach_bridge("c1", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        let address = endpoint.address.clone().expect("address");
        let own = address.v4.expect("IPv4");
        assert_eq!((own.ip, own.prefix), ([10, 231, 1, 2].into(), 24));
        assert_eq!((own.gateway, address.v6), (Some([10, 231, 1, 1].into()), None));
        assert_eq!(address.mac.to_string(), "02:42:0a:e7:01:02");
        assert_eq!((endpoint.endpoint_id.len(), endpoint.network_id.as_str()), (64, "b".repeat(64).as_str()));
        assert_eq!(published(BRIDGE), ["tcp . 8080 : 10.231.1.2 . 80"]);

        let (eth0, lo, routes, inet6) = within(&namespace_of(&endpoint), || {
            (
                run("ip", "-o addr show eth0"),
                run("ip", "-o addr show lo"),
                run("ip", "route"),
                run("ip", "-6 addr show eth0"),
            )
        });
        assert!(eth0.contains("inet 10.231.1.2/24 brd 10.231.1.255 scope global eth0"), "{eth0}");
        assert!(lo.contains("127.0.0.1/8") && lo.contains("::1/128"), "{lo}");
        assert!(routes.starts_with("default via 10.231.1.1 dev eth0"), "{routes}");
        assert_eq!(inet6, "", "no IPv6 address, not even a link-local one");
        let link = run("ip", &format!("-d link show {}", address.host_link));
        assert!(link.contains("master btst0") && link.contains("alias berth btst0 c1"), "{link}");
        assert_eq!(run("ip", &format!("-6 addr show {}", address.host_link)), "");

        assert!(!networks.remove_if_unused().expect("remove"), "it is used");
        assert_eq!(published(BRIDGE).len(), 1);
        networks.detach("c1", &endpoint).expect("detach");
        eventually_nothing(host);
        assert_eq!(published(BRIDGE), [""; 0]);
        networks.detach("c1", &endpoint).expect("detaching twice is fine");
        let lone = networks.attach_none("c2").expect("attach");
        assert!(!networks.remove_if_unused().expect("remove"), "a namespace is left");
        networks.detach("c2", &lone).expect("detach");
        assert!(networks.remove_if_unused().expect("remove"));
        assert_eq!(run("nft", "list ruleset"), "");
        assert!(!run("ip", "link").contains(BRIDGE));
        networks.destroy().expect("twice is fine");
    });
}

#[test]
fn a_record_survives_json() {
    on_a_host(|host| {
        let networks = host.open();
        let endpoint =
            networks.attach_bridge("c1", &request(&[publish(Protocol::Udp, Some(HOST), 0, 53)])).expect("attach");
        let text = serde_json::to_string(&endpoint).expect("encode");
        assert_eq!(serde_json::from_str::<Endpoint>(&text).expect("decode"), endpoint);
    });
}

#[test]
fn a_container_is_started_again_at_once() {
    on_a_host(|host| {
        let networks = host.open();
        let wanted = request(&[publish(Protocol::Tcp, None, 8080, 80)]);
        for _ in 0..5 {
            // Not at once when a program is just being started beside us: see `restored`.
            let endpoint = eventually("the port is free", || networks.attach_bridge("c1", &wanted).ok());
            serve_tcp(namespace_of(&endpoint).as_fd(), 80, "c1");
            assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());
            networks.detach("c1", &endpoint).expect("detach");
        }
    });
}

#[test]
fn none_has_lo_alone() {
    on_a_host(|host| {
        let networks = host.open();
        let endpoint = networks.attach_none("c1").expect("attach");
        let links = within(&namespace_of(&endpoint), || run("ip", "-br link"));
        assert!(links.lines().all(|line| !line.starts_with("eth")), "{links}");
        assert!(links.starts_with("lo ") && links.contains("LOOPBACK,UP"), "{links}");
        networks.detach("c1", &endpoint).expect("detach");
        eventually_nothing(host);
    });
}

#[test]
fn a_failed_attachment_is_undone() {
    on_a_host(|host| {
        let networks = host.open();
        let taken = networks.attach_bridge("c1", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        let before = inventory(host);
        // The second one fails, so that the first has to be given back.
        let ports = [publish(Protocol::Tcp, None, 8081, 80), publish(Protocol::Tcp, None, 8080, 80)];
        let error = networks.attach_bridge("c2", &request(&ports)).expect_err("8080 is taken");
        assert_eq!(
            proto::kind::chain(&error),
            "driver failed programming external connectivity on endpoint web: \
             Bind for 0.0.0.0:8080 failed: port is already allocated"
        );
        assert_eq!(inventory(host), before);
        assert_eq!(published(BRIDGE), ["tcp . 8080 : 10.231.1.2 . 80"]);

        // Address and port of the failed one are free again.
        let mut again = request(&[publish(Protocol::Tcp, None, 8081, 80)]);
        again.ip = Some(Ipv4Addr::new(10, 231, 1, 3));
        let second = networks.attach_bridge("c2", &again).expect("attach");

        // The same id twice: refused, and the one that is there isn't harmed.
        networks.attach_bridge("c2", &request(&[])).expect_err("has a namespace");
        assert!(sys::netns::is_pinned(&second.netns));
        assert_eq!(published(BRIDGE).len(), 2);
        drop(taken);
    });
}

#[test]
fn a_link_that_cannot_be_made_is_undone() {
    on_a_host(|host| {
        let networks = host.open();
        let mut own = request(&[]);
        own.mac = Some("02:42:00:00:00:01".parse().expect("mac"));
        let endpoint = networks.attach_bridge("c1", &own).expect("a MAC of one's own");
        let link = within(&namespace_of(&endpoint), || run("ip", "-br link show eth0"));
        assert!(link.contains("02:42:00:00:00:01"), "{link}");
        let before = inventory(host);
        // Something that isn't a bridge has taken its place, and repairing it is refused.
        // Older kernels rename links only while they are down.
        ip("link set btst0 down");
        ip("link set btst0 name away");
        ip("link add btst0 type veth peer name other");
        let id = networks.network_id(NetworkKind::Bridge).to_owned();
        locked(&networks.leases).networks.get_mut(&id).expect("bridge").index = 9999;
        let error =
            networks.attach_bridge("c2", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("no bridge");
        assert!(proto::kind::chain(&error).starts_with("connect web to bridge btst0: create veth "), "{error}");
        ip("link del btst0");
        assert_eq!(published(BRIDGE).len(), 0);
        eventually("the namespace is gone", || (inventory(host) == before).then_some(()));
        let full = Networks::open(
            BridgeConfig { mtu: 70_000, ..config("btst1", "10.231.2.1/24") },
            host.run_root(),
            Vec::new(),
        );
        let error = full.expect_err("no such MTU");
        assert!(proto::kind::chain(&error).starts_with("set up bridge btst1: create bridge btst1: "), "{error}");
        assert!(!run("ip", "link").contains("btst1"));
    });
}

#[test]
fn addresses_of_requests_are_checked() {
    on_a_host(|host| {
        let networks = host.open();
        let with = |ip: [u8; 4]| EndpointRequest { ip: Some(ip.into()), ..request(&[]) };
        networks.attach_bridge("c1", &with([10, 231, 1, 77])).expect("free");
        for wrong in [[10, 231, 1, 77], [10, 231, 1, 1], [10, 231, 1, 0], [10, 9, 9, 9]] {
            networks.attach_bridge("c2", &with(wrong)).expect_err("taken or not ours");
        }
        for wrong in ["", "..", ".x", "a/b"] {
            assert!(matches!(networks.attach_bridge(wrong, &request(&[])), Err(NetworkError::Id(_))), "{wrong}");
        }
        assert_eq!(inventory(host).1.len(), 1);
    });
}

#[test]
fn many_at_once_from_many_threads() {
    on_a_host(|host| {
        let networks = host.open();
        let endpoints: Vec<Endpoint> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|thread| {
                    let networks = &networks;
                    scope.spawn(move || {
                        let attach = |turn| {
                            let ports = [publish(Protocol::Tcp, None, 0, 80)];
                            networks.attach_bridge(&format!("c{thread}-{turn}"), &request(&ports)).expect("attach")
                        };
                        (0..5).map(attach).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("thread")).collect()
        });
        let addresses: std::collections::HashSet<_> = endpoints.iter().map(address_of).collect();
        let ports: std::collections::HashSet<_> =
            endpoints.iter().map(|endpoint| endpoint.ports[0].host_port).collect();
        assert_eq!((addresses.len(), ports.len(), published(BRIDGE).len()), (20, 20, 20));
        for endpoint in &endpoints {
            let id = endpoint.netns.file_name().and_then(|name| name.to_str()).expect("id");
            networks.detach(id, endpoint).expect("detach");
        }
        assert_eq!(published(BRIDGE).len(), 0);
        eventually_nothing(host);
    });
}

#[test]
fn a_container_that_is_gone_is_cut_off_even_if_its_namespace_is_held() {
    on_a_host(|host| {
        let networks = host.open();
        let endpoint = networks.attach_bridge("c1", &request(&[])).expect("attach");
        let held = namespace_of(&endpoint);
        serve_tcp(held.as_fd(), 80, "held");
        let straight = SocketAddrV4::new(address_of(&endpoint), 80);
        assert!(ask_tcp(straight, PATIENCE).is_some());
        networks.detach("c1", &endpoint).expect("detach");
        assert_eq!(ask_tcp(straight, SILENCE), None);
        assert_eq!(inventory(host).0.len(), 1, "the kernel can't delete it");
        // Somebody else may have the address at once.
        let heir = EndpointRequest { ip: Some(address_of(&endpoint)), ..request(&[]) };
        let heir = networks.attach_bridge("c2", &heir).expect("attach");
        serve_tcp(namespace_of(&heir).as_fd(), 80, "heir");
        assert!(ask_tcp(straight, PATIENCE).expect("answer").starts_with("heir"));
        networks.reap(Duration::ZERO).expect("reap");
        assert_eq!(inventory(host).0, [heir.address.clone().expect("address").host_link]);
    });
}

/// Not a test of a bound (machines differ): run with --nocapture to see the figures.
#[test]
fn what_it_costs() {
    const TURNS: usize = 30;
    on_a_host(|host| {
        let networks = host.open();
        let ports = [publish(Protocol::Tcp, None, 0, 80)];
        let mut costs: [(&str, Vec<Duration>); 4] =
            ["attach", "first connection", "detach", "attach and detach in a row"].map(|what| (what, Vec::new()));
        for turn in 0..TURNS {
            let id = format!("c{turn}");
            let start = Instant::now();
            let endpoint = networks.attach_bridge(&id, &request(&ports)).expect("attach");
            costs[0].1.push(start.elapsed());
            serve_tcp(namespace_of(&endpoint).as_fd(), 80, "it");
            let start = Instant::now();
            assert!(ask_tcp(SocketAddrV4::new(HOST, endpoint.ports[0].host_port), PATIENCE).is_some());
            costs[1].1.push(start.elapsed());
            let start = Instant::now();
            networks.detach(&id, &endpoint).expect("detach");
            costs[2].1.push(start.elapsed());
        }
        for turn in 0..TURNS {
            let id = format!("d{turn}");
            let start = Instant::now();
            let endpoint = networks.attach_bridge(&id, &request(&ports)).expect("attach");
            networks.detach(&id, &endpoint).expect("detach");
            costs[3].1.push(start.elapsed());
        }
        for (what, mut times) in costs {
            times.sort();
            println!("{what}: median {:?}, best {:?}, worst {:?}", times[TURNS / 2], times[0], times[TURNS - 1]);
        }
    });
}
