//! Proxies by the variables `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in either case of letters (as Go's programs read
//! them, and so docker and containerd).

use std::net::IpAddr;

use base64::Engine;

/// Which proxy is asked for which host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<String>,
    https: Option<String>,
    direct: Vec<Direct>,
}

// The addresses may hold passwords.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set = (self.http.is_some(), self.https.is_some());
        f.debug_struct("Proxies").field("set", &set).field("direct", &self.direct).finish()
    }
}

/// One proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Whether it is spoken to through TLS.
    pub tls: bool,
    /// Its host, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The `Proxy-Authorization` header it gets.
    pub authorization: Option<String>,
}

// The password must not get into a log.
impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "proxy {}:{}", self.host, self.port)
    }
}

/// Where no proxy is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    All,
    Network(IpAddr, u8),
    Name { name: String, below_only: bool, port: Option<u16> },
}

impl Proxies {
    /// What the variables say, which `variable` looks up.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |name: &str| {
            let lower = name.to_lowercase();
            [name, &lower].into_iter().find_map(|name| variable(name).filter(|value| !value.trim().is_empty()))
        };
        let direct = either("NO_PROXY").unwrap_or_default();
        Self {
            http: either("HTTP_PROXY"),
            https: either("HTTPS_PROXY"),
            direct: direct.split([',', ' ']).filter_map(|entry| Direct::parse(entry.trim())).collect(),
        }
    }

    /// The proxy for a host (without brackets) and port; the error says what is wrong with its address.
    pub fn of(&self, tls: bool, host: &str, port: u16) -> Result<Option<Proxy>, String> {
        let Some(address) = (if tls { &self.https } else { &self.http }) else { return Ok(None) };
        let (name, host) = (if tls { "HTTPS_PROXY" } else { "HTTP_PROXY" }, host.trim_end_matches('.').to_lowercase());
        let ip = host.parse::<IpAddr>().ok();
        // This machine is never behind a proxy.
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return Ok(None);
        }
        if self.direct.iter().any(|direct| direct.covers(&host, ip, port)) {
            return Ok(None);
        }
        Proxy::parse(address).map(Some).map_err(|why| format!("{name}: {why}"))
    }
}

impl Direct {
    fn parse(entry: &str) -> Option<Self> {
        if entry.is_empty() {
            return None;
        }
        if entry == "*" {
            return Some(Self::All);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
            let most = if address.is_ipv4() { 32 } else { 128 };
            return (bits <= most).then_some(Self::Network(address, bits));
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let (name, port) = match entry.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (entry, None),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_lowercase();
        let below = name.strip_prefix("*.").or_else(|| name.strip_prefix('.'));
        let name = below.map_or_else(|| name.clone(), str::to_owned);
        Some(Self::Name { below_only: below.is_some(), name, port })
    }

    fn covers(&self, host: &str, ip: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, bits) => ip.is_some_and(|ip| is_within(ip, *network, *bits)),
            Self::Name { name, below_only, port: only } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                only.is_none_or(|only| only == port) && (below || (!below_only && host == name))
            }
        }
    }
}

fn is_within(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            u32::from(ip) & mask == u32::from(network) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            u128::from(ip) & mask == u128::from(network) & mask
        }
        _ => false,
    }
}

impl Proxy {
    fn parse(address: &str) -> Result<Self, String> {
        let (scheme, rest) = address.split_once("://").unwrap_or(("http", address));
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(format!("proxies of the kind {other:?} are not supported, only http and https")),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let wrong = || format!("{:?} is not the address of a proxy", format!("{scheme}://{host}"));
        let parsed: tonic::codegen::http::uri::Authority = host.parse().map_err(|_| wrong())?;
        let port = parsed.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(wrong());
        }
        let authorization = user.map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            let text = [&decode(user)[..], b":", &decode(password)].concat();
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        Ok(Self { tls, host, port, authorization })
    }
}

/// Percent-decodes; what isn't well encoded stays as it is.
pub fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut decoded, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.filter(|_| bytes[at] == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        Proxies::read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn who_goes_through_which() {
        let set = proxies(&[
            ("HTTP_PROXY", "http://plain:3128"),
            ("https_proxy", "me:se%40cret@secure.example"),
            (
                "NO_PROXY",
                "direct.example, .below.example,*.star.example,port.example:8443,10.0.0.0/8,fd00::/8,192.0.2.7",
            ),
        ]);
        for (tls, host, port, wanted) in [
            (false, "reg.example", 80, "plain:3128"),
            (true, "reg.example", 443, "secure.example:80"),
            (true, "localhost", 443, ""),
            (true, "127.3.2.1", 5000, ""),
            (true, "::1", 5000, ""),
            (true, "direct.example", 443, ""),
            (true, "Sub.Direct.Example.", 443, ""),
            (true, "indirect.example", 443, "secure.example:80"),
            (true, "below.example", 443, "secure.example:80"),
            (true, "x.below.example", 443, ""),
            (true, "x.star.example", 443, ""),
            (true, "port.example", 8443, ""),
            (true, "port.example", 443, "secure.example:80"),
            (true, "10.9.8.7", 443, ""),
            (true, "11.9.8.7", 443, "secure.example:80"),
            (true, "fd12::1", 443, ""),
            (false, "192.0.2.7", 5000, ""),
            (false, "192.0.2.8", 5000, "plain:3128"),
        ] {
            let found = set.of(tls, host, port).unwrap();
            let found = found.map(|p| format!("{}:{}", p.host, p.port)).unwrap_or_default();
            assert_eq!(found, wanted, "{host}:{port}");
        }
        let secure = set.of(true, "reg.example", 443).unwrap().unwrap();
        assert_eq!(secure.authorization.as_deref(), Some("Basic bWU6c2VAY3JldA=="));
        assert!(!format!("{secure:?}").contains("bWU"));
        assert_eq!(proxies(&[]).of(true, "x", 443), Ok(None));
        assert_eq!(proxies(&[("HTTPS_PROXY", "p:1"), ("no_proxy", "*")]).of(true, "x", 443), Ok(None));
    }

    #[test]
    fn bad_addresses_name_the_variable_and_no_password() {
        for (address, words) in [
            ("socks5://p:1", "HTTPS_PROXY: proxies of the kind \"socks5\""),
            ("http://user:secret@", "HTTPS_PROXY: \"http://\" is not"),
            ("http://a b", "is not the address"),
        ] {
            let error = proxies(&[("HTTPS_PROXY", address)]).of(true, "x", 443).unwrap_err();
            assert!(error.contains(words) && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(value in "[ -~]{0,30}", no in "[ -~é]{0,30}", host in "[ -~é]{0,20}") {
            let _ = proxies(&[("HTTP_PROXY", &value), ("NO_PROXY", &no)]).of(false, &host, 80);
        }
    }
}
