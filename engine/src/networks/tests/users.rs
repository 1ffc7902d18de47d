//! Networks of the user: several per container, apart from each other, changed while the container lives, and taken over by the
//! next engine.

use super::*;

const FRONT: Ipv4Addr = Ipv4Addr::new(10, 231, 10, 1);

pub(super) fn make(networks: &Networks, name: &str, change: impl FnOnce(&mut NetworkRequest)) -> Definition {
    let mut request = NetworkRequest { name: name.to_owned(), ..NetworkRequest::default() };
    change(&mut request);
    let pools = ["base=10.231.10.0/23,size=26".parse().expect("pool")];
    let definition = networks.reserve_network(request, &pools).expect("reserve");
    networks.build_network(&definition.id).expect("build");
    definition
}

pub(super) fn plain(networks: &Networks, name: &str) -> Definition {
    make(networks, name, |_| {})
}

pub(super) fn join(networks: &Networks, id: &str, on: &[&Definition], ports: &[PortRequest]) -> Endpoint {
    let member = |network: &&Definition| MemberRequest { network_id: network.id.clone(), ..MemberRequest::default() };
    let members = on.iter().map(member).collect();
    networks.attach(id, &AttachRequest { name: id.to_owned(), ports: ports.to_vec(), members }).expect("attach")
}

pub(super) fn at(endpoint: &Endpoint, network: &Definition) -> Ipv4Addr {
    v4(&endpoint.member(&network.id).expect("member").address)
}

pub(super) fn reaches(from: &Endpoint, to: impl Into<SocketAddr>, patience: Duration) -> bool {
    let to = to.into();
    within(&namespace_of(from), || ask_tcp(to, patience)).is_some()
}

pub(super) fn routes(endpoint: &Endpoint) -> String {
    within(&namespace_of(endpoint), || run("ip", "route"))
}

#[test]
fn networks_are_apart_and_a_container_may_be_on_several() {
    on_a_host(|host| {
        let networks = host.open();
        let (front, back) = (plain(&networks, "front"), plain(&networks, "back"));
        assert_eq!((front.subnets[0].address.address(), front.subnets[0].address.prefix()), (FRONT.into(), 26));
        assert_eq!(back.subnets[0].address.to_string(), "10.231.10.65/26");
        let web = join(&networks, "web", &[&front, &back], &[publish(Protocol::Tcp, None, 8080, 80)]);
        let (other, db) = (join(&networks, "other", &[&front], &[]), join(&networks, "db", &[&back], &[]));
        for (endpoint, name) in [(&web, "web"), (&other, "other"), (&db, "db")] {
            serve_tcp(namespace_of(endpoint).as_fd(), 80, name);
        }
        let links = within(&namespace_of(&web), || run("ip", "-o -4 addr show"));
        assert!(links.contains(&format!("eth0    inet {}/26", at(&web, &front))), "{links}");
        assert!(links.contains(&format!("eth1    inet {}/26", at(&web, &back))), "{links}");
        // back comes before front.
        assert!(
            routes(&web).starts_with(&format!("default via {} dev eth1", back.subnets[0].address.address())),
            "{}",
            routes(&web)
        );
        assert!(reaches(&other, SocketAddrV4::new(at(&web, &front), 80), PATIENCE));
        assert!(reaches(&db, SocketAddrV4::new(at(&web, &back), 80), PATIENCE));
        assert!(!reaches(&other, SocketAddrV4::new(at(&db, &back), 80), SILENCE), "another network");
        assert!(!reaches(&db, SocketAddrV4::new(at(&other, &front), 80), SILENCE), "another network");
        assert!(!reaches(&other, SocketAddrV4::new(at(&web, &back), 80), SILENCE), "by its address there");
        // By a published port it is reached from everywhere, and it reaches the world.
        assert_eq!(published(BRIDGE), [format!("tcp . 8080 : {} . 80", at(&web, &back))]);
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());
        assert!(reaches(&other, SocketAddrV4::new(HOST, 8080), PATIENCE));
        let outside = within(&host.lan, || TcpListener::bind((OTHER, 7777)).expect("listen"));
        std::thread::spawn(move || while outside.accept().is_ok_and(|(mut c, _)| c.write_all(b"x").is_ok()) {});
        assert!(reaches(&web, SocketAddrV4::new(OTHER, 7777), PATIENCE));
        assert!(reaches(&other, SocketAddrV4::new(OTHER, 7777), PATIENCE));

        for (id, endpoint) in [("web", &web), ("other", &other), ("db", &db)] {
            networks.detach(id, endpoint).expect("detach");
        }
        networks.reap(Duration::ZERO).expect("reap");
        for definition in [&front, &back] {
            networks.forget_network(&definition.id).expect("forget");
            networks.raze_network(definition).expect("raze");
        }
        assert!(!run("ip", "link").contains("br-"));
        assert!(!run("nft", "list ruleset").contains("br-"));
        assert!(networks.remove_if_unused().expect("remove"));
        assert_eq!(run("nft", "list ruleset"), "");
    });
}

#[test]
fn an_internal_network_leads_nowhere_and_containers_can_be_kept_apart() {
    on_a_host(|host| {
        let networks = host.open();
        let inner = make(&networks, "inner", |request| request.internal = true);
        let apart = make(&networks, "apart", |request| {
            request.options = [("com.docker.network.bridge.enable_icc".to_owned(), "false".to_owned())].into();
        });
        let a = join(&networks, "a", &[&inner], &[publish(Protocol::Tcp, None, 8080, 80)]);
        let b = join(&networks, "b", &[&inner], &[]);
        let outside = within(&host.lan, || TcpListener::bind((OTHER, 7777)).expect("listen"));
        std::thread::spawn(move || while outside.accept().is_ok_and(|(mut c, _)| c.write_all(b"x").is_ok()) {});
        serve_tcp(namespace_of(&a).as_fd(), 80, "a");
        assert!(a.ports.is_empty() && published(BRIDGE).is_empty(), "nothing is published");
        assert!(!routes(&a).contains("default"), "{}", routes(&a));
        assert!(reaches(&b, SocketAddrV4::new(at(&a, &inner), 80), PATIENCE));
        within(&namespace_of(&b), || ip(&format!("route add default via {}", inner.subnets[0].address.address())));
        assert!(!reaches(&b, SocketAddrV4::new(OTHER, 7777), SILENCE), "not even by a route of its own");

        let (c, d) = (join(&networks, "c", &[&apart], &[]), join(&networks, "d", &[&apart], &[]));
        serve_tcp(namespace_of(&c).as_fd(), 80, "c");
        assert!(!reaches(&d, SocketAddrV4::new(at(&c, &apart), 80), SILENCE), "kept apart");
        assert!(reaches(&d, SocketAddrV4::new(OTHER, 7777), PATIENCE));
        for (id, endpoint) in [("a", &a), ("b", &b), ("c", &c), ("d", &d)] {
            networks.detach(id, endpoint).expect("detach");
        }
    });
}

#[test]
fn joined_and_left_while_it_lives() {
    on_a_host(|host| {
        let networks = host.open();
        let (front, back) = (plain(&networks, "front"), plain(&networks, "back"));
        let first = join(&networks, "web", &[&front], &[publish(Protocol::Tcp, None, 8080, 80)]);
        let namespace = namespace_of(&first);
        serve_tcp(namespace.as_fd(), 80, "web");
        let db = join(&networks, "db", &[&back], &[]);
        let wanted = MemberRequest { network_id: back.id.clone(), ..MemberRequest::default() };
        let both = networks.plan_join("web", "web", &first, &wanted, &[]).expect("plan");
        assert!(both.unsettled && networks.plan_join("x", "x", &first, &wanted, &[]).is_ok());
        networks.rearrange("web", "web", &first, &both, namespace.as_fd()).expect("join");
        assert!(reaches(&db, SocketAddrV4::new(at(&both, &back), 80), PATIENCE));
        // back is the way out now, also for ports.
        assert_eq!(published(BRIDGE), [format!("tcp . 8080 : {} . 80", at(&both, &back))]);
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());

        let second = networks.plan_leave(&both, &front.id);
        networks.rearrange("web", "web", &both, &second, namespace.as_fd()).expect("leave");
        assert_eq!(second.members().len(), 1);
        let links = within(&namespace, || run("ip", "-br link"));
        assert!(!links.contains("eth0") && links.contains("eth1"), "{links}");
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());

        let none = networks.plan_leave(&second, &back.id);
        networks.rearrange("web", "web", &second, &none, namespace.as_fd()).expect("leave");
        assert!(none.ports.is_empty() && published(BRIDGE).is_empty());
        assert_eq!(within(&namespace, || run("ip", "route")), "");
        let wanted = MemberRequest { network_id: front.id.clone(), ..MemberRequest::default() };
        let ports = [publish(Protocol::Tcp, None, 8080, 80)];
        let again = eventually("the port is free", || networks.plan_join("web", "web", &none, &wanted, &ports).ok());
        networks.rearrange("web", "web", &none, &again, namespace.as_fd()).expect("join");
        assert_eq!((again.members()[0].interface.as_str(), again.ports.len()), ("eth0", 1));
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());
        networks.detach("web", &again).expect("detach");
        networks.detach("db", &db).expect("detach");
    });
}

#[test]
fn the_next_engine_takes_over_and_finishes_what_was_begun() {
    on_a_host(|host| {
        let first = host.open();
        let (front, back) = (plain(&first, "front"), plain(&first, "back"));
        let web = join(&first, "web", &[&front], &[publish(Protocol::Tcp, None, 8080, 80)]);
        let namespace = namespace_of(&web);
        serve_tcp(namespace.as_fd(), 80, "web");
        // It dies when the change is on record, and nothing is made.
        let wanted = MemberRequest { network_id: back.id.clone(), ..MemberRequest::default() };
        let both = first.plan_join("web", "web", &web, &wanted, &[]).expect("plan");
        // A network that came off the record, and whose bridge is still there.
        let orphan = plain(&first, "orphan");
        drop(first);
        let second = host.open_with(vec![front.clone(), back.clone()]);
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some(), "before it is restored");
        restored(&second, &[("web", &both)]);
        assert!(!run("ip", "link").contains(&orphan.bridge), "the orphan is gone");
        second.settle("web", "web", &both, &namespace).expect("settle");
        let db = join(&second, "db", &[&back], &[]);
        assert_ne!(at(&db, &back), at(&both, &back), "the address is reserved");
        assert!(reaches(&db, SocketAddrV4::new(at(&both, &back), 80), PATIENCE));
        assert!(ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE).is_some());
        second.settle("web", "web", &both, &namespace).expect("twice is fine");

        // A deleted bridge comes back with its links, each where it belongs.
        ip(&format!("link del {}", back.bridge));
        assert!(second.repair().expect("repair"));
        assert!(reaches(&db, SocketAddrV4::new(at(&both, &back), 80), PATIENCE));
        // A half-made link: without its address.
        within(&namespace, || ip(&format!("addr flush dev {}", both.member(&back.id).expect("member").interface)));
        second.settle("web", "web", &both, &namespace).expect("settle");
        assert!(reaches(&db, SocketAddrV4::new(at(&both, &back), 80), PATIENCE));
        second.detach("web", &both).expect("detach");
        second.detach("db", &db).expect("detach");
        drop(namespace);
        second.reap(Duration::ZERO).expect("reap");
        eventually_nothing(host);
    });
}

#[test]
fn what_is_refused_names_the_other_party() {
    on_a_host(|host| {
        let networks = host.open();
        let first = make(&networks, "first", |request| {
            request.subnets = vec![SubnetRequest { subnet: "10.50.0.0/16".into(), ..SubnetRequest::default() }];
        });
        let refused = |change: &dyn Fn(&mut NetworkRequest)| {
            let mut request = NetworkRequest { name: "second".into(), ..NetworkRequest::default() };
            change(&mut request);
            proto::kind::chain(
                &networks
                    .reserve_network(request, &["base=10.231.200.0/24,size=24".parse().expect("pool")])
                    .expect_err("refused"),
            )
        };
        let subnet = |text: &str| vec![SubnetRequest { subnet: text.to_owned(), ..SubnetRequest::default() }];
        assert_eq!(refused(&|request| request.name = "first".into()), "network with name first already exists");
        assert_eq!(refused(&|request| request.name = "host".into()), "host is a pre-defined network");
        assert_eq!(
            refused(&|request| request.subnets = subnet("10.50.7.0/24")),
            "Pool overlaps with other one on this address space: 10.50.7.0/24 shares addresses with 10.50.0.0/16 of network first"
        );
        assert!(
            refused(&|request| request.subnets = subnet("10.231.1.0/24")).ends_with("10.231.1.0/24 of network bridge")
        );
        let name = |bridge: &str| [("com.docker.network.bridge.name".to_owned(), bridge.to_owned())].into();
        assert!(refused(&|request| request.options = name(&first.bridge)).contains("belongs to network first"));
        assert!(refused(&|request| request.options = name("eth9")).contains("eth9 exists and is a veth"));
        assert!(refused(&|_| {}).starts_with("all predefined address pools have been fully subnetted"), "the LAN's");
        // Asked for by name, the host's own LAN is refused with the link that leads there.
        let request =
            NetworkRequest { name: "lan".into(), subnets: subnet("10.231.200.0/24"), ..NetworkRequest::default() };
        let lan = networks.reserve_network(request, &[]).expect("reserve");
        let error = networks.build_network(&lan.id).expect_err("the host's");
        assert!(error.to_string().contains("by eth9"), "{error}");
        networks.forget_network(&lan.id).expect("forget");

        let user = join(&networks, "c", &[&first], &[]);
        let error = networks.forget_network(&first.id).expect_err("used");
        assert!(error.to_string().ends_with("has active endpoints"), "{error}");
        for (text, found) in
            [(first.id.as_str(), true), ("first", true), (&first.id[..5], true), ("", false), ("x", false)]
        {
            assert_eq!(networks.find_network(text).is_ok(), found, "{text}");
        }
        networks.detach("c", &user).expect("detach");
        networks.forget_network(&first.id).expect("forget");
        networks.raze_network(&first).expect("raze");
    });
}

#[test]
fn a_bridge_that_was_there_stays() {
    on_a_host(|host| {
        ip("link add mine type bridge");
        let networks = host.open();
        let adopted = make(&networks, "adopted", |request| {
            request.options = [("com.docker.network.bridge.name".to_owned(), "mine".to_owned())].into();
        });
        let endpoint = join(&networks, "c", &[&adopted], &[]);
        networks.detach("c", &endpoint).expect("detach");
        networks.reap(Duration::ZERO).expect("reap");
        networks.forget_network(&adopted.id).expect("forget");
        networks.raze_network(&adopted).expect("raze");
        assert!(run("ip", "link").contains("mine"));
    });
}
