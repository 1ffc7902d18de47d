//! macvlan and ipvlan: containers that are neighbours of the host's on its LAN.

use super::users::{at, join};
use super::*;

fn on_the_lan(networks: &Networks, name: &str, driver: Driver, options: &[(&str, &str)]) -> Definition {
    let request = NetworkRequest {
        name: name.to_owned(),
        driver,
        options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        subnets: vec![SubnetRequest {
            subnet: "10.231.200.0/24".into(),
            range: "10.231.200.64/27".into(),
            gateway: OTHER.to_string(),
            ..SubnetRequest::default()
        }],
        ..NetworkRequest::default()
    };
    let definition = networks.reserve_network(request, &default_pools()).expect("reserve");
    networks.build_network(&definition.id).expect("build");
    definition
}

/// Whether the kernel has links of this kind; if not, says that a test is skipped.
fn has(kind: &str, more: &str) -> bool {
    let on = if kind == "dummy" { "" } else { "link eth9" };
    let make = format!("link add {on} name probe0 type {kind} {more}");
    let made = Command::new("ip").args(make.split_whitespace()).output().expect("ip");
    if made.status.success() {
        ip("link del probe0");
    } else {
        println!("skipped: this kernel has no links of kind {kind}");
    }
    made.status.success()
}

fn ask_from(endpoint: &Endpoint, to: Ipv4Addr, port: u16, patience: Duration) -> Option<String> {
    within(&namespace_of(endpoint), || ask_tcp(SocketAddrV4::new(to, port), patience))
}

#[test]
fn containers_are_on_the_lan_themselves() {
    for (driver, options) in [
        (Driver::Macvlan, &[("parent", "eth9")][..]),
        (Driver::Ipvlan, &[("parent", "eth9")]),
        (Driver::Ipvlan, &[("parent", "eth9"), ("ipvlan_mode", "l3s")]),
    ] {
        on_a_host(|host| {
            if !has(driver.name(), "") {
                return;
            }
            let networks = host.open();
            let lan = on_the_lan(&networks, "lan", driver, options);
            let l3 = options.len() > 1;
            let (a, b) = (join(&networks, "a", &[&lan], &[]), join(&networks, "b", &[&lan], &[]));
            serve_tcp(namespace_of(&a).as_fd(), 80, "a");
            serve_tcp(host.lan.as_fd(), 7000, "lan");
            if l3 {
                // Nobody answers questions for their addresses: others have to know the way.
                within(&host.lan, || ip(&format!("route add 10.231.200.64/27 via {HOST}")));
            }
            assert_eq!(at(&a, &lan).to_string(), "10.231.200.64");
            assert_eq!(ask_from(&b, at(&a, &lan), 80, PATIENCE).as_deref(), Some("a 10.231.200.65"), "{options:?}");
            // With its own address to the LAN, and from there.
            assert_eq!(ask_from(&a, OTHER, 7000, PATIENCE), Some(format!("lan {}", at(&a, &lan))), "{options:?}");
            let asked = within(&host.lan, || ask_tcp(SocketAddrV4::new(at(&a, &lan), 80), PATIENCE));
            assert_eq!(asked, Some(format!("a {OTHER}")), "{options:?}");
            let default = users::routes(&a);
            let expected = if l3 { "default dev eth0".to_owned() } else { format!("default via {OTHER} dev eth0") };
            assert!(default.contains(&expected), "{default}");
            // The next engine finds them as they are.
            drop(networks);
            let next =
                Networks::open(config(BRIDGE, "10.231.1.1/24"), host.run_root(), vec![lan.clone()]).expect("open");
            restored(&next, &[("a", &a), ("b", &b)]);
            assert!(matches!(next.forget_network(&lan.id), Err(NetworkError::Active { .. })));
            assert!(ask_from(&b, at(&a, &lan), 80, PATIENCE).is_some());
            next.detach("a", &a).expect("detach");
            next.detach("b", &b).expect("detach");
            let definition = next.forget_network(&lan.id).expect("forget");
            next.raze_network(&definition).expect("raze");
            assert!(run("ip", "-o link").contains("eth9"), "the host's own link stays");
        });
    }
}

#[test]
fn links_come_and_go_while_a_container_lives() {
    on_a_host(|host| {
        let networks = host.open();
        let lan = on_the_lan(&networks, "lan", Driver::Macvlan, &[("parent", "eth9"), ("macvlan_mode", "private")]);
        let endpoint = networks.attach_bridge("c", &request(&[])).expect("attach");
        let namespace = namespace_of(&endpoint);
        let wanted = MemberRequest { network_id: lan.id.clone(), ..MemberRequest::default() };
        let both = networks.plan_join("c", "c", &endpoint, &wanted, &[]).expect("plan");
        networks.rearrange("c", "c", &endpoint, &both, namespace.as_fd()).expect("join");
        let links = || within(&namespace, || run("ip", "-o link show type macvlan")).lines().count();
        assert_eq!(links(), 1);
        let left = networks.plan_leave(&both, &lan.id);
        networks.rearrange("c", "c", &both, &left, namespace.as_fd()).expect("leave");
        assert_eq!(links(), 0);
        networks.forget_network(&lan.id).expect("its address was given back");
    });
}

#[test]
fn vlans_are_made_and_removed() {
    on_a_host(|host| {
        if !has("vlan", "id 50") {
            return;
        }
        let networks = host.open();
        let tagged = on_the_lan(&networks, "tagged", Driver::Macvlan, &[("parent", "eth9.50")]);
        assert!(run("ip", "-d -o link show eth9.50").contains("vlan protocol 802.1Q id 50"));
        let definition = networks.forget_network(&tagged.id).expect("forget");
        networks.raze_network(&definition).expect("raze");
        assert!(!run("ip", "-o link").contains("eth9.50"));
    });
}

#[test]
fn links_to_nowhere_are_made_and_removed() {
    on_a_host(|host| {
        if !has("dummy", "") {
            return;
        }
        let networks = host.open();
        let request = NetworkRequest { name: "alone".into(), driver: Driver::Macvlan, ..NetworkRequest::default() };
        let alone = networks.reserve_network(request, &default_pools()).expect("reserve");
        networks.build_network(&alone.id).expect("build");
        assert!(alone.internal && run("ip", &format!("-d -o link show {}", alone.bridge)).contains("dummy"));
        let (a, b) = (join(&networks, "a", &[&alone], &[]), join(&networks, "b", &[&alone], &[]));
        serve_tcp(namespace_of(&a).as_fd(), 80, "a");
        assert!(ask_from(&b, at(&a, &alone), 80, PATIENCE).is_some(), "each other");
        assert!(!users::routes(&a).contains("default"));
        for (id, endpoint) in [("a", &a), ("b", &b)] {
            networks.detach(id, endpoint).expect("detach");
        }
        let definition = networks.forget_network(&alone.id).expect("forget");
        networks.raze_network(&definition).expect("raze");
        assert!(!run("ip", "-o link").contains(&format!("{}:", alone.bridge)), "{}", alone.bridge);
    });
}

#[test]
fn what_cannot_be_is_refused() {
    on_a_host(|host| {
        let networks = host.open();
        on_the_lan(&networks, "lan", Driver::Macvlan, &[("parent", "eth9")]);
        let refused = |driver, parent: &str, subnet: &str| {
            let request = NetworkRequest {
                name: "x".into(),
                driver,
                options: [("parent".to_owned(), parent.to_owned())].into(),
                subnets: vec![SubnetRequest { subnet: subnet.into(), ..SubnetRequest::default() }],
                ..NetworkRequest::default()
            };
            networks.reserve_network(request, &default_pools()).expect_err("refused").to_string()
        };
        assert_eq!(
            refused(Driver::Ipvlan, "eth9", "10.9.0.0/24"),
            "network lan is already using parent interface eth9"
        );
        assert!(refused(Driver::Macvlan, "eth77", "10.9.0.0/24").contains("\"eth77\": this host has no such link"));
        assert!(refused(Driver::Macvlan, "eth77.5", "10.9.0.0/24").contains("no such link"));
        assert!(refused(Driver::Macvlan, "eth9.5", "10.231.200.0/25").contains("of network lan"));
    });
}
