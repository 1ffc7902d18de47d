//! What is said to differ from what has to be.

use super::*;

/// The differences with one container attached.
fn differences(networks: &Networks, endpoint: &Endpoint) -> Vec<String> {
    let attached = Attached { id: "web".to_owned(), name: "web".to_owned(), endpoint: endpoint.clone() };
    networks.differences(&[attached]).expect("compare")
}

#[test]
fn each_difference_is_named_and_repaired() {
    on_a_host(|host| {
        let networks = host.open();
        let net = users::plain(&networks, "net");
        let ports = [
            publish(Protocol::Tcp, None, 8080, 80),
            publish(Protocol::Udp, Some(HOST), 5353, 53),
            publish(Protocol::Tcp, None, 9090, 90),
        ];
        let web = networks.attach_bridge("web", &request(&ports)).expect("attach");
        assert_eq!(differences(&networks, &web), [] as [String; 0]);
        let address = web.address.as_ref().and_then(|address| address.v4.as_ref()).expect("address").ip;
        let table = format!("inet berth_{BRIDGE}");
        let link = web.address.as_ref().expect("address").host_link.clone();
        let all = "published_on_all_addresses";
        for (program, change, expected) in [
            ("nft", format!("delete table {table}"), format!("firewall table {table} is missing")),
            (
                "nft",
                format!("flush chain {table} forward"),
                format!("rule \"known connections\" is missing from chain forward of table {table}"),
            ),
            (
                "nft",
                format!("insert rule {table} forward tcp dport 1 drop"),
                format!("rule \"\" doesn't belong into chain forward of table {table}"),
            ),
            (
                "nft",
                format!("delete element {table} {all} {{ tcp . 8080 }}"),
                format!("port 8080/tcp to {address}:80 is missing from {all} of table {table}"),
            ),
            (
                "nft",
                format!("delete element {table} published_on_one_address {{ udp . {HOST} . 5353 }}"),
                format!(
                    "port {HOST} 5353/udp to {address}:53 is missing from published_on_one_address of table {table}"
                ),
            ),
            (
                "nft",
                format!("add element {table} {all} {{ tcp . 22 : {address} . 22 }}"),
                format!("port 22/tcp to {address}:22 doesn't belong into {all} of table {table}"),
            ),
            (
                "nft",
                format!("delete element {table} bridges {{ {} }}", net.bridge),
                format!("link {} is missing from bridges of table {table}", net.bridge),
            ),
            ("ip", format!("link del {}", net.bridge), format!("link {} of network net is missing", net.bridge)),
            (
                "ip",
                format!("addr flush dev {BRIDGE}"),
                format!("bridge {BRIDGE} of network bridge lacks its address 10.231.1.1/24"),
            ),
        ] {
            run(program, &change);
            let found = differences(&networks, &web);
            assert!(found.contains(&expected), "{change}: {found:#?}");
            networks.repair().expect("repair");
            assert_eq!(differences(&networks, &web), [] as [String; 0], "after {change}");
        }
        ip(&format!("link set {link} nomaster"));
        assert_eq!(differences(&networks, &web), [format!("link {link} of container web isn't on bridge {BRIDGE}")]);
        ip(&format!("link del {link}"));
        assert_eq!(differences(&networks, &web), [format!("link {link} of container web is missing")]);
    });
}

#[test]
fn what_others_may_do_is_no_difference_and_what_they_close_is() {
    on_a_host(|host| {
        let networks = host.open();
        let web = networks.attach_bridge("web", &request(&[])).expect("attach");
        run("nft", &format!("add rule inet berth_{BRIDGE} user tcp dport 80 drop"));
        run("nft", "add table ip others");
        assert_eq!(differences(&networks, &web), [] as [String; 0]);
        watch::closed("");
        let found = differences(&networks, &web);
        for direction in ["from", "to"] {
            let rule = format!("berth_{BRIDGE} {direction} {BRIDGE}");
            assert!(
                found.contains(&format!("rule \"{rule}\" is missing from chain FORWARD of table ip filter")),
                "{found:#?}"
            );
        }
        assert_eq!(found.len(), 2);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("forwarding");
        let found = differences(&networks, &web);
        assert!(found.contains(&"/proc/sys/net/ipv4/ip_forward is \"0\", not 1".to_owned()), "{found:#?}");
        assert!(!found.is_empty() && networks.is_anything_there().expect("look"));
        networks.detach("web", &web).expect("detach");
        networks.destroy().expect("destroy");
        assert!(!networks.is_anything_there().expect("look"));
    });
}
