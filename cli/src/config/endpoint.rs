//! From flags, variables or a context to an engine that can be talked with.

use super::{host_variable, variable};
use crate::args::Globals;
use crate::client::host::HostError;
use crate::client::tls::{self, Material, Pem, TlsError};
use crate::client::{Endpoint, Host};
use crate::context::{Context, ContextError};
use crate::options::Plain;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why there is no way to an engine.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Its address.
    #[error(transparent)]
    Host(#[from] HostError),
    /// More than one.
    #[error("Specify only one -H")]
    Hosts,
    /// Its context.
    #[error(transparent)]
    Context(ContextError),
    /// Certificates and keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// One of their files.
    #[error("open {}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why it can't be read.
        cause: Plain,
    },
    /// TLS where there is none.
    #[error("TLS is for tcp:// only, not for {0}: leave out --tls, --tlsverify, DOCKER_TLS and DOCKER_TLS_VERIFY")]
    NoTls(Host),
}

/// The engine's address by flag or variable.
pub fn address(globals: &Globals) -> Option<String> {
    globals.host.first().cloned().or_else(host_variable)
}

/// The engine of the default context.
pub fn of_flags(globals: &Globals, dir: Option<&Path>) -> Result<Endpoint, EndpointError> {
    if globals.host.len() > 1 {
        return Err(EndpointError::Hosts);
    }
    let host = address(globals).map_or_else(|| Ok(Host::default()), |text| text.parse())?;
    // A flag that is given decides, also when it says no; a variable counts when it is not empty, whatever it says.
    let verify = globals.tlsverify.unwrap_or_else(|| variable("DOCKER_TLS_VERIFY").is_some());
    let wanted = verify || globals.tls.unwrap_or_else(|| variable("DOCKER_TLS").is_some());
    if !wanted {
        return endpoint(host, None);
    }
    let folder = variable("DOCKER_CERT_PATH").map(PathBuf::from).or_else(|| dir.map(Path::to_owned));
    let read = |given: Option<&str>, name: &str, needed: bool| {
        let default = || folder.as_ref().map(|folder| folder.join(name));
        let Some(path) = given.filter(|path| !path.is_empty()).map(PathBuf::from).or_else(default) else {
            return Ok(None);
        };
        match fs::read(&path) {
            Ok(data) => Ok(Some(Pem { name: path.display().to_string(), data })),
            // Files nobody named need not be there: not every engine asks for a certificate.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && given.is_none() && !needed => Ok(None),
            Err(cause) => Err(EndpointError::File { path, cause: Plain(cause) }),
        }
    };
    let material = Material {
        ca: read(globals.tlscacert.as_deref(), "ca.pem", verify)?,
        certificate: read(globals.tlscert.as_deref(), "cert.pem", false)?,
        key: read(globals.tlskey.as_deref(), "key.pem", false)?,
        skip_verify: !verify,
    };
    endpoint(host, Some(material))
}

/// The engine of a stored context.
pub fn of_context(context: &Context) -> Result<Endpoint, EndpointError> {
    let host = if context.host().is_empty() { Host::default() } else { context.host().parse()? };
    let pem = |name: &str| {
        context
            .tls_file(name)
            .map(|data| Pem { name: format!("{name} of context {:?}", context.name), data: data.to_vec() })
    };
    let material = Material {
        ca: pem("ca.pem"),
        certificate: pem("cert.pem"),
        key: pem("key.pem"),
        skip_verify: context.skip_tls_verify(),
    };
    // Such a context says nothing about TLS, unless there is something of it.
    let any = !context.tls.is_empty() || material.skip_verify;
    let tcp = matches!(host, Host::Tcp(_));
    endpoint(host, (any && tcp).then_some(material))
}

fn endpoint(host: Host, material: Option<Material>) -> Result<Endpoint, EndpointError> {
    let https = material.is_some();
    let host = host.with_port(https);
    if https && !matches!(host, Host::Tcp(_)) {
        return Err(EndpointError::NoTls(host));
    }
    let tls = material.as_ref().map(tls::config).transpose()?;
    Ok(Endpoint { host, tls, headers: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts() {
        let of = |host: &str, skip: bool| {
            let mut context = Context::new("ab");
            context.point_to(host, skip);
            of_context(&context).map(|endpoint| (endpoint.host.to_string(), endpoint.tls.is_some()))
        };
        assert_eq!(of("", false).unwrap(), ("unix:///run/berth/engine.sock".to_owned(), false));
        assert_eq!(of("tcp://a", false).unwrap(), ("tcp://a:2375".to_owned(), false));
        assert_eq!(of("tcp://a", true).unwrap(), ("tcp://a:2376".to_owned(), true));
        assert_eq!(of("ssh://a", true).unwrap(), ("ssh://a".to_owned(), false));
        assert!(of("fd://", false).is_err());
    }

    #[test]
    fn flags() {
        let globals = |host: &[&str], tls: Option<bool>, verify: Option<bool>| Globals {
            host: host.iter().map(ToString::to_string).collect(),
            tls,
            tlsverify: verify,
            ..Globals::default()
        };
        let empty = tempfile::tempdir().unwrap();
        let of = |globals: Globals| {
            of_flags(&globals, Some(empty.path()))
                .map(|e| (e.host.to_string(), e.tls.is_some()))
                .map_err(|e| e.to_string())
        };
        assert_eq!(of(globals(&["tcp://a"], Some(false), Some(false))).unwrap(), ("tcp://a:2375".to_owned(), false));
        assert_eq!(of(globals(&["tcp://a"], Some(true), Some(false))).unwrap(), ("tcp://a:2376".to_owned(), true));
        assert!(of(globals(&["tcp://a"], None, Some(true))).unwrap_err().contains("ca.pem: no such file"));
        assert!(of(globals(&["unix:///x"], Some(true), Some(false))).unwrap_err().contains("for tcp:// only"));
        assert_eq!(of(globals(&["a:1", "b:1"], None, None)).unwrap_err(), "Specify only one -H");
        fs::write(empty.path().join("key.pem"), "x").unwrap();
        assert!(of(globals(&["tcp://a"], Some(true), Some(false))).unwrap_err().contains("needs its key"));
    }
}
