//! `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf` of a container: written beside its log, bind-mounted into it.

use crate::{http::ApiError, networks::names::RESOLVER};
use std::{fmt::Write as _, io, net::IpAddr, path::Path};

/// What the files say.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The container's host name.
    pub hostname: &'a str,
    /// Its domain.
    pub domainname: &'a str,
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// What `host-gateway` stands for.
    pub gateway: Option<IpAddr>,
    /// `name:address` entries.
    pub extra_hosts: &'a [String],
    /// Name servers asked for.
    pub dns: &'a [String],
    /// Search domains asked for.
    pub dns_search: &'a [String],
    /// Options asked for.
    pub dns_options: &'a [String],
    /// Whether it shares the host's network: then the host's files are the model.
    pub host_network: bool,
    /// Whether names are answered by the engine's resolver.
    pub names: bool,
}

/// Writes the three files into the container's folder.
pub fn write(folder: &Path, facts: &Facts<'_>) -> io::Result<()> {
    std::fs::write(folder.join("hostname"), format!("{}\n", facts.hostname))?;
    let base = if facts.host_network { std::fs::read_to_string("/etc/hosts").ok() } else { None };
    std::fs::write(folder.join("hosts"), hosts(facts, base.as_deref()))?;
    std::fs::write(folder.join("resolv.conf"), resolv_conf(facts, &of_host(facts.host_network)))
}

/// Where systemd-resolved tells which servers it asks itself.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What the host has in its resolv.conf. Where that names systemd-resolved alone, which listens on the host's loopback, what that one has.
fn of_host(host_network: bool) -> String {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if host_network || !is_resolved_alone(&text) {
        return text;
    }
    std::fs::read_to_string(RESOLVED).unwrap_or(text)
}

fn is_resolved_alone(text: &str) -> bool {
    let mut servers = text.lines().filter_map(|line| line.strip_prefix("nameserver")).map(str::trim).peekable();
    servers.peek().is_some() && servers.all(|server| server == "127.0.0.53")
}

/// Refuses what cannot stand in a line of these files (CVE-2022-4318 and its kind).
pub fn check(facts: &Facts<'_>) -> Result<(), ApiError> {
    let hostname = [facts.hostname, facts.domainname];
    for name in hostname.into_iter().filter(|name| !name.is_empty()) {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && !l.starts_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(ApiError::invalid(format!("invalid hostname format: {name}")));
        }
    }
    for entry in facts.extra_hosts {
        let parsed = extra_host(entry);
        let known = parsed.is_some_and(|(name, address)| {
            !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
                && (address == "host-gateway" || address.parse::<IpAddr>().is_ok())
        });
        if !known {
            return Err(ApiError::invalid(format!("bad format for add-host: {entry:?}")));
        }
    }
    for server in facts.dns {
        if server.parse::<IpAddr>().is_err() {
            return Err(ApiError::invalid(format!("invalid DNS server address: {server:?}")));
        }
    }
    for word in facts.dns_search.iter().chain(facts.dns_options) {
        if word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ApiError::invalid(format!("invalid DNS search domain or option: {word:?}")));
        }
    }
    Ok(())
}

/// `name:address`; the address may be an IPv6 one, in brackets or not.
fn extra_host(entry: &str) -> Option<(&str, &str)> {
    let (name, address) = entry.split_once([':', '='])?;
    Some((name, address.trim_matches(['[', ']'])))
}

fn hosts(facts: &Facts<'_>, base: Option<&str>) -> String {
    let mut text = match base {
        Some(base) => {
            let newline = if base.ends_with('\n') || base.is_empty() { "" } else { "\n" };
            format!("{base}{newline}")
        }
        None => "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                 ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
            .to_owned(),
    };
    // Writing to a String cannot fail.
    for (name, address) in facts.extra_hosts.iter().filter_map(|entry| extra_host(entry)) {
        match (address, facts.gateway) {
            ("host-gateway", Some(gateway)) => drop(writeln!(text, "{gateway}\t{name}")),
            ("host-gateway", None) => {}
            _ => drop(writeln!(text, "{address}\t{name}")),
        }
    }
    for address in facts.addresses {
        let _ = if facts.domainname.is_empty() {
            writeln!(text, "{address}\t{}", facts.hostname)
        } else {
            writeln!(text, "{address}\t{}.{} {}", facts.hostname, facts.domainname, facts.hostname)
        };
    }
    text
}

fn resolv_conf(facts: &Facts<'_>, of_host: &str) -> String {
    let nothing_asked = facts.dns.is_empty() && facts.dns_search.is_empty() && facts.dns_options.is_empty();
    if facts.host_network && nothing_asked {
        return of_host.to_owned();
    }
    let words = |key: &str| {
        of_host
            .lines()
            .rfind(|line| line.split_whitespace().next() == Some(key))
            .map_or_else(Vec::new, |line| line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>())
    };
    // The servers asked for are known to the resolver, which asks them.
    let mut servers = if facts.names { vec![RESOLVER.to_string()] } else { facts.dns.to_vec() };
    if servers.is_empty() {
        let listed = of_host.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()).flatten()
        });
        // A resolver on the host's loopback is out of reach from another network namespace.
        let reachable = |server: &&str| {
            facts.host_network
                || !server.split('%').next().unwrap_or("").parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        servers = listed.filter(reachable).map(str::to_owned).collect();
        if servers.is_empty() {
            servers = vec!["8.8.8.8".to_owned(), "8.8.4.4".to_owned()];
        }
    }
    let search = if facts.dns_search.is_empty() { words("search") } else { facts.dns_search.to_vec() };
    let mut options = if facts.dns_options.is_empty() { words("options") } else { facts.dns_options.to_vec() };
    // Names of containers have no dots.
    if facts.names && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts<'a>() -> Facts<'a> {
        Facts {
            hostname: "web",
            domainname: "",
            addresses: const { &[IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2))] },
            gateway: Some([10, 0, 0, 1].into()),
            extra_hosts: &[],
            dns: &[],
            dns_search: &[],
            dns_options: &[],
            host_network: false,
            names: false,
        }
    }

    #[test]
    fn resolved_is_known_by_its_address() {
        for (text, alone) in [
            ("# x\nnameserver 127.0.0.53\noptions edns0\n", true),
            ("nameserver 127.0.0.53\nnameserver 10.0.0.1\n", false),
            ("nameserver 10.0.0.1\n", false),
            ("search a\n", false),
        ] {
            assert_eq!(is_resolved_alone(text), alone, "{text}");
        }
    }

    #[test]
    fn hosts_file() {
        let extra = ["gw:host-gateway".to_owned(), "db:10.1.1.1".to_owned(), "six:[fe80::1]".to_owned()];
        let text = hosts(&Facts { extra_hosts: &extra, domainname: "lan", ..facts() }, None);
        let tail: Vec<_> = text.lines().skip(6).collect();
        assert_eq!(tail, ["10.0.0.1\tgw", "10.1.1.1\tdb", "fe80::1\tsix", "10.0.0.2\tweb.lan web"]);
    }

    #[test]
    fn resolver() {
        let of_host = "# x\nnameserver 127.0.0.53\nnameserver 10.9.9.9\nsearch a b\noptions ndots:2\n";
        assert_eq!(resolv_conf(&facts(), of_host), "nameserver 10.9.9.9\nsearch a b\noptions ndots:2\n");
        assert_eq!(resolv_conf(&facts(), "nameserver 127.0.0.53\n"), "nameserver 8.8.8.8\nnameserver 8.8.4.4\n");
        assert_eq!(resolv_conf(&Facts { host_network: true, ..facts() }, of_host), of_host);
        let named = resolv_conf(&Facts { names: true, ..facts() }, of_host);
        assert_eq!(named, "nameserver 127.0.0.11\nsearch a b\noptions ndots:2\n");
        let plain = resolv_conf(&Facts { names: true, ..facts() }, "nameserver 10.0.0.1\n");
        assert_eq!(plain, "nameserver 127.0.0.11\noptions ndots:0\n");
        let dns = ["1.2.3.4".to_owned()];
        assert!(resolv_conf(&Facts { dns: &dns, ..facts() }, of_host).starts_with("nameserver 1.2.3.4\nsearch"));
    }

    #[test]
    fn refuses_what_breaks_a_line() {
        let bad = ["a\nb".to_owned()];
        assert!(check(&Facts { dns_search: &bad, ..facts() }).is_err());
        assert!(check(&Facts { extra_hosts: &["x:1.2.3.4\n".to_owned()], ..facts() }).is_err());
        assert!(check(&Facts { extra_hosts: &["x".to_owned()], ..facts() }).is_err());
        assert!(check(&Facts { dns: &["x".to_owned()], ..facts() }).is_err());
        for hostname in ["a\nb", "-a", "a..b", "a b", &"x".repeat(64)] {
            assert!(check(&Facts { hostname, ..facts() }).is_err(), "{hostname}");
        }
        assert!(check(&facts()).is_ok());
    }
}
