//! The rule set as the nft tool shows it, and the neighbours it has to live with.

use super::*;

/// What `nft list table` prints for a bridge with two published ports. Written by hand from the intent of each rule; the
/// tool decodes what we encoded.
const EXPECTED: &str = r#"
table inet berth_btst0 {
	map published_on_one_address {
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { udp . 127.0.0.1 . 5353 : 10.231.1.2 . 53 }
	}

	map published_on_all_addresses {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 8080 : 10.231.1.2 . 80 }
	}

	set routed {
		type inet_proto . ipv4_addr . inet_service
	}

	map published_on_one_address_v6 {
		type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service
	}

	map published_on_all_addresses_v6 {
		type inet_proto . inet_service : ipv6_addr . inet_service
	}

	set routed_v6 {
		type inet_proto . ipv6_addr . inet_service
	}

	set bridges {
		type ifname
		elements = { "btst0" }
	}

	set internal_bridges {
		type ifname
	}

	set passing_links {
		type ifname . ifname
		elements = { "btst0" . "btst0" }
	}

	chain published {
		dnat ip to meta l4proto . ip daddr . th dport map @published_on_one_address comment "published"
		meta nfproto ipv4 dnat ip to meta l4proto . th dport map @published_on_all_addresses comment "published"
		dnat ip6 to meta l4proto . ip6 daddr . th dport map @published_on_one_address_v6 comment "published"
		meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @published_on_all_addresses_v6 comment "published"
	}

	chain guard {
		type filter hook input priority raw; policy accept;
		ip daddr 127.0.0.0/8 iifname != "lo" ct status dnat accept comment "answers of published ports"
		ip daddr 127.0.0.0/8 iifname != "lo" drop comment "loopback is this host's own"
	}

	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 127.0.0.0/8 iifname != "lo" accept comment "loopback is this host's own"
		fib daddr type local goto published comment "published ports, from elsewhere"
	}

	chain output {
		type nat hook output priority -100; policy accept;
		ip6 daddr ::1 accept comment "no way from ::1 to a container"
		fib daddr type local goto published comment "published ports, from this host"
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept comment "known connections"
		jump user comment "what the host's owner wants"
		iifname . oifname @passing_links accept comment "within a network, or from a trusted link"
		oifname @bridges iifname != @internal_bridges ct status dnat accept comment "to published ports"
		oifname @bridges drop comment "to ports that are not published"
		iifname @internal_bridges drop comment "out of internal networks"
		iifname @bridges accept comment "from containers"
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 127.0.0.0/8 oifname @bridges ct status dnat masquerade comment "127.0.0.1 to a published port"
		ip saddr 10.231.1.0/24 oifname != "btst0" masquerade comment "containers to elsewhere"
		ip saddr 10.231.1.0/24 oifname "btst0" ct status dnat masquerade comment "containers to a published port on the same bridge"
	}

	chain user {
	}
}
"#;

#[test]
fn the_table_is_what_it_should_be() {
    on_a_host(|host| {
        let networks = host.open();
        let ports =
            [publish(Protocol::Tcp, None, 8080, 80), publish(Protocol::Udp, Some(Ipv4Addr::LOCALHOST), 5353, 53)];
        let endpoint = networks.attach_bridge("c1", &request(&ports)).expect("attach");
        assert_eq!(run("nft", "list ruleset").trim(), EXPECTED.trim());
        // Asserting it again, as the next engine does, changes nothing.
        let again = host.open();
        assert_eq!(run("nft", "list ruleset").trim(), EXPECTED.trim());
        drop(networks);
        restored(&again, &[("c1", &endpoint)]);
        assert_eq!(run("nft", "list ruleset").trim(), EXPECTED.trim());
    });
}

#[test]
fn settings_of_the_host_and_the_bridge() {
    on_a_host(|host| {
        let networks = host.open();
        for (setting, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/btst0/route_localnet", "1"),
            ("ipv4/conf/eth9/route_localnet", "0"),
            ("ipv6/conf/btst0/accept_ra", "0"),
            ("ipv6/conf/btst0/disable_ipv6", "1"),
        ] {
            let found = std::fs::read_to_string(format!("/proc/sys/net/{setting}")).expect(setting);
            assert_eq!(found.trim(), value, "{setting}");
        }
        let bridge = run("ip", "-o addr show btst0");
        assert!(bridge.contains("inet 10.231.1.1/24") && !bridge.contains("inet6"), "{bridge}");
        let mac = || run("cat", "/sys/class/net/btst0/address");
        let _ = mac; // sysfs shows the namespace it was mounted in; ask netlink instead
        let before = run("ip", "-br link show btst0");
        let _endpoint = networks.attach_bridge("c1", &request(&[])).expect("attach");
        let after = run("ip", "-br link show btst0");
        let address = |line: &str| line.split_whitespace().nth(2).map(str::to_owned);
        assert_eq!(address(&before), address(&after), "the bridge keeps its MAC when ports come");
        assert_eq!(address(&before).as_deref(), Some("02:42:0a:e7:01:01"));
    });
}

#[test]
fn two_stacks_and_the_rules_of_others_do_not_meet() {
    on_a_host(|host| {
        run("nft", "add table ip nat");
        run("nft", "add chain ip nat PREROUTING { type nat hook prerouting priority -100 ; }");
        run("nft", "add rule ip nat PREROUTING tcp dport 1 dnat to 192.0.2.1");
        let foreign = run("nft", "list table ip nat");
        let one = host.open();
        let other_root = tempfile::tempdir().expect("folder");
        let two = Networks::open(config("btst1", "10.231.2.1/24"), other_root.path(), Vec::new()).expect("open");
        let of_one = one.attach_bridge("same", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        let of_two = two.attach_bridge("same", &request(&[publish(Protocol::Tcp, None, 8081, 80)])).expect("attach");
        serve_tcp(namespace_of(&of_one).as_fd(), 80, "one");
        serve_tcp(namespace_of(&of_two).as_fd(), 80, "two");
        let ask = |port| ask_tcp(SocketAddrV4::new(HOST, port), PATIENCE);
        assert!(ask(8080).expect("one").starts_with("one"));
        assert!(ask(8081).expect("two").starts_with("two"));
        // Across: by a published port yes, straight no.
        let inside = namespace_of(&of_one);
        assert!(within(&inside, || ask(8081)).expect("two").starts_with("two"));
        let straight = SocketAddrV4::new(address_of(&of_two), 80);
        assert_eq!(within(&inside, || ask_tcp(straight, SILENCE)), None);
        // A port of the other stack is a port of another process.
        let error = two.attach_bridge("x", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("taken");
        assert!(proto::kind::chain(&error).ends_with("address already in use"), "{error}");
        // Restarting and ending one leaves the other alone.
        drop(one);
        let one = host.open();
        restored(&one, &[("same", &of_one)]);
        one.detach("same", &of_one).expect("detach");
        one.destroy().expect("destroy");
        assert!(ask(8081).is_some());
        two.detach("same", &of_two).expect("detach");
        two.destroy().expect("destroy");
        assert_eq!(run("nft", "list ruleset"), foreign);
    });
}

#[test]
fn a_subnet_the_host_reaches_already_is_refused() {
    on_a_host(|host| {
        let overlapping =
            Networks::open(config(BRIDGE, "10.231.0.1/16"), host.run_root(), Vec::new()).expect_err("overlaps");
        assert_eq!(
            overlapping.to_string(),
            "subnet 10.231.0.0/16 of bridge btst0 overlaps 10.231.200.0/24, which this host reaches by eth9; \
             choose another subnet (--subnet of a network, --bip of the default bridge)"
        );
        let not_a_bridge =
            Networks::open(config("eth9", "10.231.1.1/24"), host.run_root(), Vec::new()).expect_err("veth");
        assert!(matches!(not_a_bridge, NetworkError::NotABridge { .. }), "{not_a_bridge}");
        assert!(!run("ip", "link").contains(BRIDGE));
        assert_eq!(run("nft", "list ruleset"), "");
    });
}

#[test]
fn a_subnet_is_chosen_and_kept_and_can_be_changed() {
    on_a_host(|host| {
        ip("route add 172.17.0.0/16 dev eth9");
        let chosen =
            |networks: &Networks| networks.describe()[0].subnets.first().map(|subnet| subnet.to_network().to_string());
        let free = BridgeConfig { address: None, ..config(BRIDGE, "10.231.1.1/24") };
        let first = Networks::open(free.clone(), host.run_root(), Vec::new()).expect("open");
        assert_eq!(chosen(&first).as_deref(), Some("172.18.0.0/16"));
        ip("route del 172.17.0.0/16");
        let second = Networks::open(free, host.run_root(), Vec::new()).expect("open");
        assert_eq!(chosen(&second).as_deref(), Some("172.18.0.0/16"), "kept");
        let third = host.open();
        assert_eq!(chosen(&third).as_deref(), Some("10.231.1.0/24"), "changed");
        let addresses = run("ip", "-o -4 addr show btst0");
        assert!(addresses.contains("10.231.1.1/24") && !addresses.contains("172.18"), "{addresses}");
        let names: Vec<_> = third.describe().into_iter().map(|network| (network.name, network.driver)).collect();
        assert_eq!(
            names,
            [("bridge", "bridge"), ("host", "host"), ("none", "null")].map(|(name, driver)| (name.to_owned(), driver))
        );
    });
}
