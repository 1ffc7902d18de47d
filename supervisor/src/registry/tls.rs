//! TLS towards registries: whose certificates are trusted, and what we show of ourselves.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use proto::tls;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// What a configuration says about a host's TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// Files of further CA certificates.
    pub(crate) ca: Vec<PathBuf>,
    /// Our certificates and their keys.
    pub(crate) client: Vec<Pair>,
    /// Whoever answers is believed.
    pub(crate) skip_verify: bool,
}

/// A certificate and its key, which may be in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    /// File of the certificate chain.
    pub(crate) certificate: PathBuf,
    /// File of the key.
    pub(crate) key: PathBuf,
}

impl Trust {
    /// Whether nothing is said.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The system's CA certificates, read when they are first needed.
#[derive(Debug, Default)]
pub(crate) struct SystemRoots(OnceLock<Result<Arc<RootCertStore>, String>>);

impl SystemRoots {
    fn get(&self) -> Result<Arc<RootCertStore>, String> {
        self.0.get_or_init(|| tls::system_roots().map(Arc::new).map_err(|error| error.to_string())).clone()
    }
}

fn said(file: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", file.display())
}

/// The settings for connections; with `identity`, we show the client certificates.
pub(super) fn config(trust: &Trust, system: &SystemRoots, identity: bool) -> Result<ClientConfig, String> {
    let roots = if trust.skip_verify {
        None
    } else {
        let mut roots = system.get();
        if !trust.ca.is_empty() {
            // Without a bundle of the system, these alone count.
            let mut store = roots.map_or_else(|_| RootCertStore::empty(), |roots| roots.as_ref().clone());
            for file in &trust.ca {
                let certificates = CertificateDer::pem_file_iter(file).map_err(|error| said(file, error))?;
                let certificates: Result<Vec<_>, _> = certificates.collect();
                let (added, _) = store.add_parsable_certificates(certificates.map_err(|error| said(file, error))?);
                if added == 0 {
                    return Err(said(file, "no usable certificate in it"));
                }
            }
            roots = Ok(store.into());
        }
        Some(roots?)
    };
    let builder = tls::client(roots).map_err(|error| error.to_string())?;
    let Some(pair) = trust.client.first().filter(|_| identity) else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&pair.certificate)
        .map_err(|error| said(&pair.certificate, error))?
        .map(|certificate| certificate.map_err(|error| said(&pair.certificate, error)))
        .collect();
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| said(&pair.key, error))?;
    let own = tls::identity(chain?, key).map_err(|error| said(&pair.key, error))?;
    Ok(builder.with_client_cert_resolver(Arc::new(own)))
}

/// A failed handshake in words that people look for, with the cure. `host` is host and port.
pub(super) fn explain(error: &Error, host: &str) -> String {
    let x509 = "tls: failed to verify certificate: x509";
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => format!(
            "{x509}: certificate signed by unknown authority: put its CA's certificate into /etc/docker/certs.d/{host}/ca.crt"
        ),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("{x509}: certificate has expired")
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            format!("{x509}: certificate is not yet valid: is this machine's clock right?")
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }) => {
            let mut text = format!("{x509}: certificate is not valid for {}", expected.to_str());
            if !presented.is_empty() {
                let _ = write!(text, ", only for {}", presented.join(", "));
            }
            text
        }
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            format!("{x509}: certificate is not valid for {host}")
        }
        Error::InvalidCertificate(other) => format!("{x509}: {other}"),
        // TLS has a word of its own for that only since 1.3, and Go's servers didn't use it for years.
        Error::AlertReceived(alert @ (AlertDescription::CertificateRequired | AlertDescription::BadCertificate)) => {
            format!(
                "tls: the server wants a certificate and key of ours: put them as client.cert and client.key into \
             /etc/docker/certs.d/{host} ({alert:?})"
            )
        }
        Error::AlertReceived(alert) => format!("tls: the server refuses the handshake: {alert:?}"),
        other => format!("tls: {other}"),
    }
}
