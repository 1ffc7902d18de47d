//! An engine that is gone and one that comes after it.

use super::*;
use crate::networks::restore::Damage;

fn one_of_each(networks: &Networks) -> [(String, Endpoint); 2] {
    let web = networks.attach_bridge("web", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect("attach");
    serve_tcp(namespace_of(&web).as_fd(), 80, "web");
    [("web".to_owned(), web), ("lone".to_owned(), networks.attach_none("lone").expect("attach"))]
}

fn restore(networks: &Networks, records: &[(String, Endpoint)]) -> Vec<Damage> {
    networks.restore(records.iter().map(|(id, endpoint)| (id.as_str(), endpoint))).expect("restore")
}

fn undamaged(networks: &Networks, records: &[(String, Endpoint)]) {
    let borrowed: Vec<_> = records.iter().map(|(id, endpoint)| (id.as_str(), endpoint)).collect();
    restored(networks, &borrowed);
}

fn ask() -> Option<String> {
    ask_tcp(SocketAddrV4::new(HOST, 8080), PATIENCE)
}

#[test]
fn traffic_flows_on_without_an_engine_and_the_next_one_takes_over() {
    on_a_host(|host| {
        let first = host.open();
        let records = one_of_each(&first);
        drop(first);
        assert!(ask().is_some(), "no engine");
        let second = host.open();
        assert!(ask().is_some(), "between open and restore");
        undamaged(&second, &records);
        assert!(ask().is_some(), "restored");
        assert!(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).is_err(), "the port is held again");
        let next = second.attach_bridge("next", &request(&[])).expect("attach");
        assert_ne!(address_of(&next), address_of(&records[0].1), "the address is reserved again");
        let error =
            second.attach_bridge("x", &request(&[publish(Protocol::Tcp, None, 8080, 80)])).expect_err("reserved");
        assert!(error.kind() == proto::kind::ErrorKind::Internal);
        second.detach("next", &next).expect("detach");
        for (id, endpoint) in &records {
            second.detach(id, endpoint).expect("detach");
        }
        // The server of this test holds the namespace.
        second.reap(Duration::ZERO).expect("reap");
        assert_eq!(published(BRIDGE).len(), 0);
        eventually_nothing(host);
    });
}

#[test]
fn what_belongs_to_no_record_is_removed() {
    on_a_host(|host| {
        let first = host.open();
        let mut records = one_of_each(&first).to_vec();
        let dead =
            first.attach_bridge("dead", &request(&[publish(Protocol::Tcp, Some(HOST), 9090, 80)])).expect("attach");
        // Died between creating a link and labelling it.
        ip("link add veth0123456789a type veth peer name other");
        ip("link set veth0123456789a master btst0");
        // Somebody else's: on the bridge, and named by somebody else.
        ip("link add guest type veth peer name guest-peer");
        ip("link set guest master btst0");
        std::fs::write(host.run_root().join("engine/netns/half"), "").expect("half a pin");
        drop(first);
        let second = host.open();
        undamaged(&second, &records);
        let (links, pins) = inventory(host);
        let kept = records[0].1.address.clone().expect("address").host_link;
        let mut expected = vec!["guest".to_owned(), "guest-peer".to_owned(), kept];
        expected.sort();
        assert_eq!(links, expected);
        assert_eq!(pins.len(), 2);
        assert_eq!(published(BRIDGE), ["tcp . 8080 : 10.231.1.2 . 80"]);
        assert!(ask().is_some());

        // A record whose link is gone, with the namespace it led to, is reported and reserves nothing.
        records.push(("dead".to_owned(), dead.clone()));
        let third = host.open();
        drop(second);
        let damages =
            eventually("only one is damaged", || Some(restore(&third, &records)).filter(|damages| damages.len() == 1));
        assert!(matches!((damages[0].id.as_str(), &damages[0].error), ("dead", NetworkError::LinkGone(_))));
        third.detach("dead", &dead).expect("detaching it is fine");
    });
}

#[test]
fn a_port_taken_meanwhile_is_reported_and_still_served() {
    on_a_host(|host| {
        let first = host.open();
        let records = one_of_each(&first);
        drop(first);
        // Not at once: a program that another test is just starting holds all descriptors until it is executed.
        let _thief = eventually("free without an engine", || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).ok());
        let second = host.open();
        let damages = restore(&second, &records);
        assert_eq!(damages.len(), 1);
        assert!(proto::kind::chain(&damages[0].error).ends_with("bind: address already in use"));
        assert!(ask().expect("answer").starts_with("web"), "the container still has the traffic");
        second.detach("web", &records[0].1).expect("detach");
    });
}

#[test]
fn a_wiped_rule_set_and_a_deleted_bridge_come_back() {
    on_a_host(|host| {
        let networks = host.open();
        let [(_, web), _] = one_of_each(&networks);
        run("nft", "flush ruleset");
        assert_eq!(ask_tcp(SocketAddrV4::new(HOST, 8080), SILENCE), None);
        assert!(!networks.repair().expect("repair"), "the bridge was there");
        assert!(ask().is_some());

        // Publishing one more port notices by itself.
        run("nft", "flush ruleset");
        let more = networks.attach_bridge("more", &request(&[publish(Protocol::Tcp, None, 9090, 80)])).expect("attach");
        assert_eq!(published(BRIDGE).len(), 2);
        assert!(ask().is_some());
        run("nft", "flush ruleset");
        networks.detach("more", &more).expect("detaching doesn't mind");
        networks.repair().expect("repair");

        ip("link del btst0");
        let again = networks.attach_bridge("again", &request(&[])).expect("attach");
        assert!(ask().is_some(), "the others are back on the new bridge");
        networks.detach("again", &again).expect("detach");
        networks.detach("web", &web).expect("detach");
    });
}

#[test]
fn an_older_form_of_the_table_is_replaced() {
    on_a_host(|host| {
        run("nft", "add table ip berth_btst0");
        run("nft", "add map ip berth_btst0 published_on_all_addresses { type inet_service : ipv4_addr ; }");
        run("nft", "add chain ip berth_btst0 guard { type filter hook input priority 7 ; }");
        let networks = host.open();
        let [(_, web), _] = one_of_each(&networks);
        assert!(ask().is_some());
        networks.detach("web", &web).expect("detach");
    });
}
