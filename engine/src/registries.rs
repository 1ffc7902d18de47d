//! Docker's own keys for registries (`insecure-registries`, `registry-mirrors`) in the form that transfers read: a hosts.toml
//! for each registry that they say something about, in a folder below the run root, written before it is needed.

use serde_json::{Map, Value, json};
use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Where Docker Hub's images are served.
const HUB: &str = "https://registry-1.docker.io";

/// What the configuration says about registries, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    /// `host` or `host:port`, as the names of images have them.
    insecure: Vec<String>,
    networks: Vec<Network>,
    mirrors: Vec<String>,
}

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistriesError {
    #[error("insecure registry {0:?} is neither HOST, HOST:PORT nor a network like 10.0.0.0/8")]
    Insecure(String),
    #[error("registry mirror {0:?} is not a URL like https://HOST:PORT")]
    Mirror(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }

    fn contains(self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, true),
            IpAddr::V6(v6) => (v6.to_bits(), false),
        };
        let ((own, own_v4), (other, other_v4)) = (bits(self.address), bits(address.to_canonical()));
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
        own_v4 == other_v4 && own & mask == other & mask
    }
}

impl Registries {
    /// Reads the values of both keys.
    pub fn parse(insecure: &[String], mirrors: &[String]) -> Result<Self, RegistriesError> {
        let mut registries = Self::default();
        for text in insecure {
            let bare = text.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
            if let Some(network) = Network::parse(bare) {
                registries.networks.push(network);
            } else if is_host(bare) {
                registries.insecure.push(bare.to_ascii_lowercase());
            } else {
                return Err(RegistriesError::Insecure(text.clone()));
            }
        }
        for text in mirrors {
            let bare = text.trim_end_matches('/');
            let host = bare.strip_prefix("https://").or_else(|| bare.strip_prefix("http://"));
            if !host.is_some_and(is_host) {
                return Err(RegistriesError::Mirror(text.clone()));
            }
            if !registries.mirrors.iter().any(|known| known == bare) {
                registries.mirrors.push(bare.to_owned());
            }
        }
        Ok(registries)
    }

    /// The folder for a transfer with this registry; empty if nothing is said about that.
    pub async fn host_dir(&self, root: &Path, domain: &str) -> io::Result<String> {
        let text = match domain {
            "docker.io" if !self.mirrors.is_empty() => mirrored(&self.mirrors),
            "docker.io" => return Ok(String::new()),
            _ if self.is_insecure(domain).await => unchecked(domain),
            _ => return Ok(String::new()),
        };
        let root = root.to_owned();
        let domain = domain.to_owned();
        let written = tokio::task::spawn_blocking(move || write(&root, &domain, &text)).await;
        Ok(written.map_err(io::Error::other)??.display().to_string())
    }

    async fn is_insecure(&self, domain: &str) -> bool {
        if self.insecure.iter().any(|known| known.eq_ignore_ascii_case(domain)) {
            return true;
        }
        if self.networks.is_empty() {
            return false;
        }
        let host = host_of(domain);
        let within = |address: IpAddr| self.networks.iter().any(|network| network.contains(address));
        match host.parse::<IpAddr>() {
            Ok(address) => within(address),
            // As docker: one address of several is enough.
            Err(_) => tokio::net::lookup_host((host, 443)).await.is_ok_and(|mut all| all.any(|a| within(a.ip()))),
        }
    }

    /// `RegistryConfig` of `GET /info`.
    pub fn info(&self) -> Value {
        let mut indexes = Map::new();
        indexes.insert(
            "docker.io".into(),
            json!({"Name": "docker.io", "Mirrors": self.mirrors, "Secure": true, "Official": true}),
        );
        for host in &self.insecure {
            indexes.insert(host.clone(), json!({"Name": host, "Mirrors": [], "Secure": false, "Official": false}));
        }
        let networks = self.networks.iter().map(|network| format!("{}/{}", network.address, network.prefix));
        let networks: Vec<String> = networks.chain(["::1/128".into(), "127.0.0.0/8".into()]).collect();
        json!({
            "IndexConfigs": indexes,
            "InsecureRegistryCIDRs": networks,
            "Mirrors": Some(&self.mirrors).filter(|mirrors| !mirrors.is_empty()),
        })
    }
}

fn host_of(domain: &str) -> &str {
    match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => domain.split(':').next().unwrap_or(domain),
    }
}

// What the name of an image may begin with; nothing that would leave its place in a TOML string or a path.
fn is_host(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
}

fn mirrored(mirrors: &[String]) -> String {
    let one = |url: &String| format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    format!("server = \"{HUB}\"\n{}", mirrors.iter().map(one).collect::<String>())
}

// Its certificate isn't checked; who speaks no TLS at all is spoken to in plain HTTP.
fn unchecked(domain: &str) -> String {
    format!(
        "server = \"https://{domain}\"\n[host.\"https://{domain}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n  skip_verify = true\n"
    )
}

fn write(root: &Path, domain: &str, text: &str) -> io::Result<PathBuf> {
    let folder = root.join("hosts");
    let own = folder.join(domain);
    let file = own.join("hosts.toml");
    if std::fs::read(&file).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(folder);
    }
    std::fs::create_dir_all(&own)?;
    // Readers see the old or the new one, whole.
    let new = own.join(".hosts.toml.new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, &file)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn values() {
        let parse = |insecure: &[&str], mirrors: &[&str]| Registries::parse(&texts(insecure), &texts(mirrors));
        let good = parse(&["Reg.example:5000", "http://plain/", "10.0.0.0/8", "fd00::/8"], &["https://m:1/"]).unwrap();
        assert_eq!(good.insecure, ["reg.example:5000", "plain"]);
        assert_eq!((good.networks.len(), good.mirrors), (2, texts(&["https://m:1"])));
        for bad in ["10.0.0.0/33", "a/b", "", "x\"y", "../up"] {
            assert_eq!(parse(&[bad], &[]), Err(RegistriesError::Insecure(bad.into())));
        }
        for bad in ["m.example", "ftp://m", "https://m/path", "https://u@m", ""] {
            assert_eq!(parse(&[], &[bad]), Err(RegistriesError::Mirror(bad.into())));
        }
    }

    #[tokio::test]
    async fn folders() {
        let registries = Registries::parse(&texts(&["reg.example", "10.0.0.0/8"]), &texts(&["http://m:1"])).unwrap();
        let root = tempfile::tempdir().unwrap();
        let of = async |name: &str| {
            let domain = name.split('/').next().unwrap_or_default();
            let folder = registries.host_dir(root.path(), domain).await.unwrap();
            match folder.is_empty() {
                true => String::new(),
                false => std::fs::read_to_string(Path::new(&folder).join(domain).join("hosts.toml")).unwrap(),
            }
        };
        assert!(of("reg.example/a").await.contains("skip_verify = true"));
        assert!(of("10.1.2.3:5000/a").await.contains("https://10.1.2.3:5000"));
        assert!(of("docker.io/library/a").await.contains("[host.\"http://m:1\"]"));
        for other in ["reg.example:5000/a", "11.1.2.3/a"] {
            assert_eq!(of(other).await, "", "{other}");
        }
    }

    #[test]
    fn networks() {
        let within = |network: &str, address: &str| Network::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(within("10.0.0.0/8", "10.255.0.1") && !within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("0.0.0.0/0", "1.2.3.4") && !within("0.0.0.0/0", "::1"));
        assert!(within("fd00::/8", "fd12::1") && within("127.0.0.0/8", "::ffff:127.0.0.1"));
    }
}
