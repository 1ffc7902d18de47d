//! Which hosts are asked for the images of a registry, in which order, and how: from folders in the layout of containerd's
//! `hosts.toml` (`file`) and docker's `certs.d` (`certs`), read anew for each transfer.
//!
//! Each root folder has a folder per registry, `HOST`, `HOST:PORT` or `HOST_PORT_`, and maybe `_default` for all others. The
//! first folder found counts, in the order of the roots; every `_default` comes after all of them.

mod certs;
mod file;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use hyper::HeaderMap;
use proto::image_ref::is_local;

use super::{http::Target, tls::Trust};

/// The registry whose images have no host in their names.
const HUB: &str = "docker.io";
/// The folder for registries that have none of their own.
const DEFAULT: &str = "_default";

/// What is wrong with a configuration of hosts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostsError {
    /// A value of a file.
    #[error("registry hosts file {file}: {key}: {why}", file = .file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// A file or folder.
    #[error("registry hosts {at}: {why}", at = .at.display())]
    Folder {
        /// The file or folder.
        at: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The registry's own address.
    #[error("registry {domain}: {why}")]
    Domain {
        /// The registry.
        domain: String,
        /// What is wrong.
        why: String,
    },
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Content by its digest.
    pub(crate) pull: bool,
    /// What a tag stands for.
    pub(crate) resolve: bool,
    /// To take content.
    pub(crate) push: bool,
}

impl Capabilities {
    /// Everything.
    pub(crate) const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// One host, and how to speak to it.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// The root of its API: scheme, authority, and a path such as `/v2`.
    pub(crate) base: Target,
    /// The same in the other scheme, if that may be tried.
    pub(crate) other: Option<Target>,
    /// What it may be asked for.
    pub(crate) can: Capabilities,
    /// TLS.
    pub(crate) trust: Trust,
    /// Headers that each request to it carries.
    pub(crate) headers: HeaderMap,
    /// How long to wait for a connection.
    pub(crate) dial_timeout: Option<Duration>,
    /// It stands in for another registry, and is told which (`?ns=`).
    pub(crate) mirrored: Option<String>,
}

/// The hosts for the registry `domain`, in the order in which they are tried; the registry's own one is the last. `scheme` is
/// `http` or `https` for a registry that no file speaks of, or empty for the rule: http for this machine, else https.
pub(crate) fn of(domain: &str, roots: &[PathBuf], scheme: &str) -> Result<Vec<Host>, HostsError> {
    if !matches!(scheme, "" | "http" | "https") {
        let why = format!("scheme {scheme:?} is not http or https");
        return Err(HostsError::Domain { domain: domain.to_owned(), why });
    }
    for folder in folders(domain, roots) {
        let file = folder.join("hosts.toml");
        match std::fs::read_to_string(&file) {
            Ok(text) => return file::parse(&text, &file)?.hosts(domain, roots),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(HostsError::Folder { at: file, why: error.to_string() }),
        }
        let trust = certs::read(&folder)?;
        if !trust.is_default() {
            return Ok(vec![own(domain, scheme, Some(trust), &[])?]);
        }
    }
    Ok(vec![own(domain, scheme, None, roots)?])
}

/// The host that the name of a registry means by itself.
pub(crate) fn own_authority(domain: &str) -> String {
    // The one name that is not its own host.
    if domain == HUB { format!("registry-1.{domain}") } else { domain.to_owned() }
}

fn names(authority: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = authority.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(authority.to_owned());
    names
}

fn folders(domain: &str, roots: &[PathBuf]) -> Vec<PathBuf> {
    let names = names(domain);
    let named = roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name)));
    let default = roots.iter().map(|root| root.join(DEFAULT));
    named.chain(default).filter(|folder| folder.is_dir()).collect()
}

// Certificates that docker's layout has for a host, for those whose file says nothing about TLS.
fn certificates(authority: &str, roots: &[PathBuf]) -> Result<Trust, HostsError> {
    for folder in roots.iter().flat_map(|root| names(authority).into_iter().map(move |name| root.join(name))) {
        if folder.is_dir() && !folder.join("hosts.toml").exists() {
            let trust = certs::read(&folder)?;
            if !trust.is_default() {
                return Ok(trust);
            }
        }
    }
    Ok(Trust::default())
}

fn own(domain: &str, scheme: &str, trust: Option<Trust>, roots: &[PathBuf]) -> Result<Host, HostsError> {
    let authority = own_authority(domain);
    let trust = match trust {
        Some(trust) => trust,
        None => certificates(&authority, roots)?,
    };
    let target = |scheme: &str| {
        Target::parse(&format!("{scheme}://{authority}/v2"))
            .map_err(|why| HostsError::Domain { domain: domain.to_owned(), why })
    };
    let mut host = Host {
        base: target("https")?,
        other: None,
        can: Capabilities::ALL,
        trust,
        headers: HeaderMap::new(),
        dial_timeout: None,
        mirrored: None,
    };
    if scheme == "http" || (scheme.is_empty() && is_local(&authority) && host.trust.is_default()) {
        host.base = target("http")?;
        if scheme.is_empty() {
            // As docker treats this machine: what listens there may have TLS, with a certificate that nobody knows.
            host.other = Some(target("https")?);
            host.trust.skip_verify = true;
        }
    }
    Ok(host)
}

/// What one file says: mirrors in order, and the registry itself.
#[derive(Debug)]
struct Layout {
    file: PathBuf,
    hosts: Vec<Entry>,
    server: Entry,
}

/// One host of a file.
#[derive(Debug)]
struct Entry {
    // None: the registry by its name.
    address: Option<Target>,
    can: Capabilities,
    trust: Trust,
    headers: HeaderMap,
    dial_timeout: Option<Duration>,
}

impl Layout {
    fn hosts(self, domain: &str, roots: &[PathBuf]) -> Result<Vec<Host>, HostsError> {
        let Self { file, hosts, server } = self;
        hosts.into_iter().chain([server]).map(|entry| entry.host(domain, roots, &file)).collect()
    }
}

impl Entry {
    fn host(self, domain: &str, roots: &[PathBuf], file: &Path) -> Result<Host, HostsError> {
        let Self { address, can, trust, headers, dial_timeout } = self;
        let Some(base) = address else {
            let host = own(domain, "", (!trust.is_default()).then_some(trust), roots)?;
            return Ok(Host { can, headers, dial_timeout, ..host.with_fallback() });
        };
        let trust = if trust.is_default() { certificates(&base.authority(), roots)? } else { trust };
        let authority = base.authority();
        let mirrored = (authority != domain && authority != own_authority(domain)).then(|| domain.to_owned());
        tracing::debug!(host = %base, file = %file.display(), "host from a hosts file");
        Ok(Host { base, other: None, can, trust, headers, dial_timeout, mirrored }.with_fallback())
    }
}

impl Host {
    // Who doesn't insist on certificates doesn't insist on TLS either (docker's insecure registries).
    fn with_fallback(mut self) -> Self {
        if self.other.is_none() && self.trust.skip_verify && self.base.is_https() {
            self.other = self.base.with_scheme("http");
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn shown(domain: &str, dir: &tempfile::TempDir, roots: &[&str]) -> Vec<String> {
        let roots: Vec<_> = roots.iter().map(|root| dir.path().join(root)).collect();
        let hosts = of(domain, &roots, "").unwrap();
        let one = |host: &Host| {
            let letters = [(host.can.pull, 'p'), (host.can.resolve, 'r'), (host.can.push, 'w')];
            let can: String = letters.iter().filter(|(can, _)| *can).map(|(_, letter)| *letter).collect();
            let mut text = format!("{} {can}", host.base);
            if let Some(other) = &host.other {
                text.push_str(&format!(" or {other}"));
            }
            if host.trust.skip_verify {
                text.push_str(" unverified");
            }
            for file in &host.trust.ca {
                text.push_str(&format!(" ca={}", file.file_name().unwrap().to_string_lossy()));
            }
            if let Some(domain) = &host.mirrored {
                text.push_str(&format!(" for {domain}"));
            }
            text
        };
        hosts.iter().map(one).collect()
    }

    #[test]
    fn without_files_the_name_counts() {
        let dir = tree(&[]);
        for (domain, wanted) in [
            ("docker.io", "https://registry-1.docker.io/v2 prw"),
            ("reg.example:5000", "https://reg.example:5000/v2 prw"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2 prw or https://127.0.0.1:5000/v2 unverified"),
        ] {
            assert_eq!(shown(domain, &dir, &["none"]), [wanted]);
        }
        let plain = of("reg.example", &[], "http").unwrap();
        assert_eq!((plain[0].base.to_string().as_str(), plain[0].other.is_none()), ("http://reg.example/v2", true));
        assert!(of("reg.example", &[], "ftp").is_err());
    }

    #[test]
    fn the_first_folder_counts_and_default_comes_last() {
        let dir = tree(&[
            ("a/_default/hosts.toml", "[host.'https://all.example']"),
            (
                "b/docker.io/hosts.toml",
                "[host.'https://second.example']\ncapabilities = ['pull']\n[host.'http://first.example:80/x']",
            ),
            ("b/reg.example_5000_/hosts.toml", "server = 'https://else.example'"),
            ("b/self.example:5000/ca.crt", ""),
            ("b/second.example/own.crt", ""),
            ("c/docker.io/hosts.toml", "server = 'https://never.example'"),
            ("c/empty.example/README", ""),
            ("c/soft.example/hosts.toml", "skip_verify = true"),
        ]);
        let roots = ["a", "b", "c"];
        assert_eq!(
            shown("docker.io", &dir, &roots),
            [
                "https://second.example/v2 p ca=own.crt for docker.io",
                "http://first.example:80/x/v2 prw for docker.io",
                "https://registry-1.docker.io/v2 prw"
            ]
        );
        assert_eq!(shown("reg.example:5000", &dir, &roots), ["https://else.example/v2 prw for reg.example:5000"]);
        assert_eq!(shown("self.example:5000", &dir, &roots), ["https://self.example:5000/v2 prw ca=ca.crt"]);
        for (domain, own) in
            [("other.example", "https://other.example/v2 prw"), ("empty.example", "https://empty.example/v2 prw")]
        {
            let mirror = format!("https://all.example/v2 prw for {domain}");
            assert_eq!(shown(domain, &dir, &roots), [mirror, own.to_owned()]);
        }
        assert_eq!(
            shown("soft.example", &dir, &["c"]),
            ["https://soft.example/v2 prw or http://soft.example/v2 unverified"]
        );
    }
}
