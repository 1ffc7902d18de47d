//! What others do to a host's rules and links, and how ours live with it.

use super::*;

/// Runs `work` while somebody repairs what is changed; gives how often that was.
fn repaired_during(host: &Host, networks: &Networks, work: impl FnOnce()) -> usize {
    let stop = "link add stop0 type bridge";
    let (count, seen) = std::thread::scope(|scope| {
        let watch = Watch::open().expect("watch");
        // A bridge of its own that goes is the sign to end.
        let repairer = scope.spawn(move || {
            let mut count = 0;
            loop {
                watch.wait(networks).expect("wait");
                networks.repair().expect("repair");
                count += 1;
                if run("ip", "-o link").contains("stop0") {
                    return count;
                }
            }
        });
        work();
        ip(stop);
        run("nft", "flush ruleset");
        (repairer.join().expect("repairer"), true)
    });
    ip("link del stop0");
    assert!(seen && host.run_root().exists());
    count
}

#[test]
fn what_others_wipe_comes_back_by_itself() {
    on_a_host(|host| {
        let networks = host.open();
        let web = networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        let answers = || within(&host.lan, || ask_tcp(SocketAddrV4::new(HOST, 8080), SILENCE)).is_some();
        repaired_during(host, &networks, || {
            for what in ["flush ruleset", &format!("delete table inet berth_{BRIDGE}")] {
                run("nft", what);
                eventually(what, || answers().then_some(()));
            }
            run("nft", &format!("flush map inet berth_{BRIDGE} published_on_all_addresses"));
            eventually("the map", || answers().then_some(()));
            ip(&format!("link del {BRIDGE}"));
            eventually("the bridge", || answers().then_some(()));
            ip(&format!("addr flush dev {BRIDGE}"));
            eventually("its address", || run("ip", "-o addr").contains("10.231.1.1/24").then_some(()));
        });
    });
}

#[test]
fn nothing_is_repaired_for_what_is_ours_or_nobodys_business() {
    on_a_host(|host| {
        let networks = host.open();
        let count = repaired_during(host, &networks, || {
            run("nft", "add table ip others");
            run("nft", "delete table ip others");
            let web =
                networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
            networks.detach("web", &web).expect("detach");
            let net = users::plain(&networks, "net");
            let definition = networks.forget_network(&net.id).expect("forget");
            networks.raze_network(&definition).expect("raze");
        });
        assert_eq!(count, 1, "for the sign to end alone");
    });
}

/// A host whose iptables let nothing pass that they aren't told of, as with ufw.
pub(super) fn closed(more: &str) {
    run("nft", "add table ip filter");
    run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
    for rule in more.split(';').filter(|rule| !rule.trim().is_empty()) {
        run("nft", rule);
    }
}

#[test]
fn iptables_with_the_policy_drop_let_our_bridges_through_but_for_what_they_deny() {
    on_a_host(|host| {
        closed("add rule ip filter FORWARD tcp dport 81 drop");
        let before = run("nft", "list table ip filter");
        let networks = host.open();
        let ports = [publish(Protocol::Tcp, None, 8080, 80), publish(Protocol::Tcp, None, 8081, 81)];
        let web = networks.attach_bridge("web", &request(&ports)).expect("attach");
        for port in [80, 81] {
            serve_tcp(namespace_of(&web).as_fd(), port, "web");
        }
        let ask = |port, patience| within(&host.lan, || ask_tcp(SocketAddrV4::new(HOST, port), patience));
        assert!(ask(8080, PATIENCE).is_some(), "only the policy is against it");
        assert_eq!(ask(8081, SILENCE), None, "a rule of theirs is against it");
        serve_tcp(host.lan.as_fd(), 7000, "lan");
        let out = within(&namespace_of(&web), || ask_tcp(SocketAddrV4::new(OTHER, 7000), PATIENCE));
        assert!(out.is_some(), "and out");
        if let Ok(listed) = Command::new("iptables-nft").args(["-S", "FORWARD"]).output() {
            let (said, errors) = (String::from_utf8_lossy(&listed.stdout), String::from_utf8_lossy(&listed.stderr));
            let rule = format!("-A FORWARD -o {BRIDGE} -m comment --comment \"berth_{BRIDGE} to {BRIDGE}\" -j ACCEPT");
            assert!(said.contains(&rule), "iptables understands them: {said} {errors}");
        } else {
            println!("skipped: what iptables makes of the rules, it is not installed");
        }
        // Once more changes nothing.
        let with = run("nft", "list table ip filter");
        networks.repair().expect("repair");
        let without_counters = |text: &str| {
            let words = text.split_whitespace().filter(|word| word.parse::<u64>().is_err());
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(without_counters(&run("nft", "list table ip filter")), without_counters(&with));
        networks.detach("web", &web).expect("detach");
        networks.destroy().expect("destroy");
        assert_eq!(run("nft", "list table ip filter"), before, "nothing stays");
    });
}

#[test]
fn a_policy_that_becomes_drop_later_is_seen() {
    on_a_host(|host| {
        let networks = host.open();
        let web = networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        let answers = || within(&host.lan, || ask_tcp(SocketAddrV4::new(HOST, 8080), SILENCE)).is_some();
        repaired_during(host, &networks, || {
            closed("");
            eventually("let through", || answers().then_some(()));
            run("nft", "chain ip filter FORWARD { policy accept ; }");
            let none = || !run("nft", "list table ip filter").contains("berth");
            eventually("rules that nobody needs go", || none().then_some(()));
        });
    });
}

#[test]
fn rules_before_dockers_are_asked_before_ours() {
    on_a_host(|host| {
        closed("add chain ip filter DOCKER-USER; add rule ip filter DOCKER-USER tcp dport 80 drop");
        let networks = host.open();
        let web = networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
        serve_tcp(namespace_of(&web).as_fd(), 80, "web");
        let ask = |patience| within(&host.lan, || ask_tcp(SocketAddrV4::new(HOST, 8080), patience));
        assert_eq!(ask(SILENCE), None);
        run("nft", "flush chain ip filter DOCKER-USER");
        assert!(ask(PATIENCE).is_some());
        let rules = run("nft", "list chain ip filter FORWARD");
        let jump = rules.find("jump DOCKER-USER").expect("jump");
        assert!(jump < rules.find("accept comment").expect("ours"), "{rules}");
    });
}

#[test]
fn a_firewall_that_keeps_ports_closed_is_named() {
    on_a_host(|host| {
        let networks = host.open();
        let closed_by = || networks.closed_by().expect("look");
        assert_eq!(closed_by(), None);
        closed(""); // dockerd does that, too
        assert_eq!(closed_by(), None);
        run("nft", "add table inet mine");
        run("nft", "add chain inet mine in { type filter hook input priority 0 ; policy drop ; }");
        assert_eq!(closed_by().as_deref(), Some("chain in of table mine"));
        run("nft", "chain inet mine in { policy accept ; }");
        assert_eq!(closed_by(), None);
        run("nft", "add chain ip filter ufw-before-input");
        assert_eq!(closed_by(), None, "ufw is disabled");
        run("nft", "add chain ip filter INPUT { type filter hook input priority 0 ; policy drop ; }");
        assert_eq!(closed_by().as_deref(), Some("ufw"));
        run("nft", "add table inet firewalld");
        assert_eq!(closed_by().as_deref(), Some("firewalld"));
    });
}

#[test]
fn firewalld_that_starts_is_noticed_and_one_that_can_not_be_asked_stops_nothing() {
    on_a_host(|host| {
        let networks = host.open();
        let (watch, seen) = (Watch::open().expect("watch"), std::sync::mpsc::channel());
        std::thread::scope(|scope| {
            scope.spawn(|| seen.0.send(watch.wait(&networks)));
            run("nft", "add table inet firewalld");
            let noticed = seen.1.recv_timeout(PATIENCE);
            if noticed.is_err() {
                // So that the watcher ends, and with it the scope.
                run("nft", &format!("delete table inet berth_{BRIDGE}"));
            }
            noticed.expect("noticed").expect("wait");
        });
        networks.repair().expect("repair without a bus");
        let web = networks.attach_bridge("web", &request(&[])).expect("attach");
        let attached = Attached { id: "web".to_owned(), name: "web".to_owned(), endpoint: web.clone() };
        let told = networks.differences(&[attached]).expect("compare");
        assert_eq!(
            told,
            ["firewalld isn't told of bridges: reach the system's message bus: its address names no socket"]
        );
        networks.detach("web", &web).expect("detach");
        networks.destroy().expect("destroy without a bus");
    });
}
