//! A client for registries (OCI distribution-spec 1.1, docker registry API v2): what pulls, pushes and questions ask for.
//!
//! `hosts` says which hosts are asked, `connect` and `tls` reach them, through proxies (`proto::proxy`), `http` sends requests, `auth` logs in and
//! follows redirects, `retry` tries again; `fetch`, `resolve`, `upload`,
//! `tags`, `search` and `login` are what is asked. Credentials go
//! to the registry's own host and to the token service it names, and to nobody else (CVE-2020-15157).

mod auth;
mod challenge;
mod connect;
mod credentials;
mod error;
mod fetch;
mod hosts;
mod http;
mod login;
mod resolve;
mod retry;
mod search;
mod tags;
mod tls;
mod upload;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hyper::{
    HeaderMap, StatusCode,
    header::{self, HeaderValue},
};
use proto::{containerd::types::transfer::RegistryResolver, image_ref::ImageRef};

use self::{
    auth::Session,
    hosts::{Capabilities, Host},
    http::Target,
    tls::SystemRoots,
};
pub(crate) use self::{
    credentials::{Anonymous, Credential, Credentials, Known},
    error::RegistryError,
    hosts::own_authority,
    login::log_in,
    search::{Wish, search},
    upload::Outcome,
};
pub(crate) use proto::proxy::Proxies;

/// How the network is reached, for all transfers.
#[derive(Debug)]
pub(crate) struct Network {
    proxies: Proxies,
    /// How long a connection may be silent.
    silence: Duration,
    roots: SystemRoots,
}

impl Network {
    // What a proxy wants to hear with requests that it passes on itself.
    fn authorization(&self, target: &Target) -> Result<Option<HeaderValue>, String> {
        if target.is_https() {
            return Ok(None);
        }
        let (host, port) = target.host_and_port();
        let proxy = self.proxies.of(false, host, port)?;
        Ok(proxy.and_then(|proxy| proxy.authorization).and_then(|text| {
            let mut value = HeaderValue::try_from(text).ok()?;
            value.set_sensitive(true);
            Some(value)
        }))
    }
}

/// What the supervisor knows about registries, whichever one is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registries {
    roots: Vec<PathBuf>,
    proxies: Proxies,
    silence: Duration,
}

/// How one transfer wants a registry to be reached.
pub(crate) struct Access {
    /// A folder of hosts before the supervisor's own.
    pub(crate) host_dir: String,
    /// `http` or `https` for a registry that no file speaks of.
    pub(crate) scheme: String,
    /// The client's own headers.
    pub(crate) headers: HashMap<String, String>,
    /// Who is asked for credentials.
    pub(crate) credentials: Arc<dyn Credentials>,
}

impl Access {
    /// What a transfer's client asks for.
    pub(crate) fn of(resolver: &RegistryResolver, credentials: Arc<dyn Credentials>) -> Self {
        Self {
            host_dir: resolver.host_dir.clone(),
            scheme: resolver.default_scheme.clone(),
            headers: resolver.headers.clone(),
            credentials,
        }
    }
}

impl Registries {
    /// Folders of hosts in the order in which they count, proxies, and how long a connection may be silent.
    pub(crate) fn new(roots: Vec<PathBuf>, proxies: Proxies, silence: Duration) -> Self {
        Self { roots, proxies, silence }
    }

    /// Finds out how the registry of `image` is reached; nobody is asked yet.
    pub(crate) fn open(&self, image: &ImageRef, access: &Access) -> Result<Registry, RegistryError> {
        let upstreams = self.upstreams(image.domain(), access, false)?;
        Ok(Registry { image: image.clone(), upstreams })
    }

    fn upstreams(&self, domain: &str, access: &Access, offline: bool) -> Result<Vec<Upstream>, RegistryError> {
        let mut roots = self.roots.clone();
        if !access.host_dir.is_empty() {
            roots.insert(0, PathBuf::from(&access.host_dir));
        }
        let headers =
            http::headers(&access.headers).map_err(|why| RegistryError::Protocol { host: domain.to_owned(), why })?;
        // The certificates of the system are read once, not for every mirror.
        let network =
            Arc::new(Network { proxies: self.proxies.clone(), silence: self.silence, roots: SystemRoots::default() });
        let upstream = |host: Host| {
            // A stand-in gets no secrets that are meant for the registry.
            let mut all = if host.mirrored.is_none() { headers.clone() } else { HeaderMap::new() };
            for (name, value) in &host.headers {
                all.append(name.clone(), value.clone());
            }
            let session = Session::new(&host, all, access.credentials.clone(), network.clone(), offline);
            Upstream { session, can: host.can, mirrored: host.mirrored, given_up: OnceLock::new() }
        };
        Ok(hosts::of(domain, &roots, &access.scheme)?.into_iter().map(upstream).collect())
    }
}

/// One of the hosts that stand for a registry.
struct Upstream {
    session: Session,
    can: Capabilities,
    // For which registry it stands in.
    mirrored: Option<String>,
    // Why it isn't asked any more in this transfer.
    given_up: OnceLock<String>,
}

impl Upstream {
    // Mirrors for several registries are told which one is meant, as containerd does.
    fn target(&self, base: &Target, path: &str) -> Target {
        let target = base.join(path);
        match &self.mirrored {
            Some(domain) => target.with_query(&[("ns", domain)]).unwrap_or(target),
            None => target,
        }
    }
}

/// One repository in one registry, for the time of one transfer.
pub(crate) struct Registry {
    image: ImageRef,
    // In the order of trials; the registry's own host is the last.
    upstreams: Vec<Upstream>,
}

impl Registry {
    /// Host and port of the registry itself.
    pub(crate) fn host(&self) -> String {
        self.upstreams.last().map(|upstream| upstream.session.host()).unwrap_or_default()
    }

    /// The label that says where a blob can be had again, by the registry's name without port, as containerd writes it.
    pub(crate) fn source_label(&self) -> String {
        let domain = self.image.domain();
        let name =
            if domain.ends_with(']') { domain } else { domain.rsplit_once(':').map_or(domain, |(name, _)| name) };
        format!("containerd.io/distribution.source.{name}")
    }

    /// The repository's path.
    pub(crate) fn path(&self) -> &str {
        self.image.path()
    }

    fn pull_scope(&self) -> String {
        format!("repository:{}:pull", self.image.path())
    }

    // Those that may be asked, but for those that did not answer before, as long as another one is left.
    fn capable(
        &self,
        action: &'static str,
        can: impl Fn(Capabilities) -> bool,
    ) -> Result<(Vec<&Upstream>, Trials), RegistryError> {
        let mut all: Vec<_> = self.upstreams.iter().filter(|upstream| can(upstream.can)).collect();
        let mut trials = Trials::default();
        while all.len() > 1
            && let Some(at) = all[..all.len() - 1].iter().position(|upstream| upstream.given_up.get().is_some())
        {
            let upstream = all.remove(at);
            trials
                .before
                .push((upstream.session.base().to_string(), upstream.given_up.get().cloned().unwrap_or_default()));
        }
        if all.is_empty() {
            return Err(RegistryError::Incapable { domain: self.image.domain().to_owned(), action });
        }
        Ok((all, trials))
    }

    fn refusal(
        &self,
        action: &'static str,
        host: String,
        status: StatusCode,
        headers: &HeaderMap,
        what: String,
        detail: String,
    ) -> RegistryError {
        let image = self.image.familiar_repository();
        match status {
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { action, image, detail },
            StatusCode::FORBIDDEN => RegistryError::Forbidden { action, image, detail },
            status => retry::refusal(host, status, headers, what, detail),
        }
    }

    // Refusals of the token service name the image, too.
    fn name(&self, action: &'static str, error: RegistryError) -> RegistryError {
        match error {
            RegistryError::Unauthorized { detail, .. } => {
                RegistryError::Unauthorized { action, image: self.image.familiar_repository(), detail }
            }
            other => other,
        }
    }

    fn shown(&self, reference: &str) -> String {
        let separator = if reference.contains(':') { '@' } else { ':' };
        format!("{}{separator}{reference}", self.image.familiar_repository())
    }
}

/// What hosts said that could not give what was wanted, until one can.
#[derive(Default)]
struct Trials {
    before: Vec<(String, String)>,
}

impl Trials {
    // Goes on to the next host, or ends with what all of them said.
    fn failed(&mut self, upstream: &Upstream, is_last: bool, error: RegistryError) -> Result<(), RegistryError> {
        if error.is_local() {
            return Err(error);
        }
        let said = proto::kind::chain(&error);
        if is_last {
            return Err(match self.before.is_empty() {
                true => error,
                false => RegistryError::Everywhere { last: Box::new(error), before: self.text() },
            });
        }
        let host = upstream.session.base().to_string();
        tracing::info!(host, error = said, "host passed over for the next one");
        if matches!(error, RegistryError::Unreachable { .. }) {
            let _ = upstream.given_up.set(said.clone());
        }
        self.before.push((host, said));
        Ok(())
    }

    fn text(&self) -> String {
        self.before.iter().map(|(host, said)| format!("{host}: {said}")).collect::<Vec<_>>().join("; ")
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
