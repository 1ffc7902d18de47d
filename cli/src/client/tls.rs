//! TLS towards an engine: whose certificate is believed, and what we show of ourselves.

use proto::tls::{self, RootsError};
use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::sync::Arc;

/// A PEM file that has been read, and what it is called in errors.
#[derive(Clone, Default)]
pub struct Pem {
    /// Its path.
    pub name: String,
    /// What is in it.
    pub data: Vec<u8>,
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may be a key.
        f.debug_struct("Pem").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What TLS goes by.
#[derive(Debug, Clone, Default)]
pub struct Material {
    /// The only CA that is trusted; without it, those of the system are.
    pub ca: Option<Pem>,
    /// Our certificate.
    pub certificate: Option<Pem>,
    /// Its key.
    pub key: Option<Pem>,
    /// Whoever answers is believed.
    pub skip_verify: bool,
}

/// Why there is no TLS with this material.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TlsError {
    /// A file that doesn't hold what it should.
    #[error("{name}: {cause}")]
    File {
        /// The file.
        name: String,
        /// What is wrong.
        cause: String,
    },
    /// One without the other.
    #[error("a client certificate needs its key, and a key its certificate: give both --tlscert and --tlskey")]
    Half,
    /// No CA.
    #[error("no CA certificates are installed (package ca-certificates), and no --tlscacert is given")]
    NoRoots,
    /// rustls
    #[error("{0}")]
    Setup(String),
}

fn file(pem: &Pem, cause: impl std::fmt::Display) -> TlsError {
    TlsError::File { name: pem.name.clone(), cause: cause.to_string() }
}

/// The settings for connections.
pub fn config(material: &Material) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = if material.skip_verify { None } else { Some(Arc::new(roots(material.ca.as_ref())?)) };
    let builder = tls::client(roots).map_err(|error| TlsError::Setup(error.to_string()))?;
    let (certificate, key) = match (&material.certificate, &material.key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => return Ok(Arc::new(builder.with_no_client_auth())),
        _ => return Err(TlsError::Half),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate.data).collect();
    let chain = chain.map_err(|error| file(certificate, error))?;
    if chain.is_empty() {
        return Err(file(certificate, "no certificate in it"));
    }
    let der = PrivateKeyDer::from_pem_slice(&key.data).map_err(|error| file(key, format!("no usable key: {error}")))?;
    let own = tls::identity(chain, der).map_err(|error| file(key, error))?;
    Ok(Arc::new(builder.with_client_cert_resolver(Arc::new(own))))
}

fn roots(ca: Option<&Pem>) -> Result<RootCertStore, TlsError> {
    let Some(ca) = ca else {
        return tls::system_roots().map_err(|error| match error {
            RootsError::NotInstalled => TlsError::NoRoots,
            RootsError::Bundle { file, cause } => TlsError::File { name: file, cause },
        });
    };
    let mut store = RootCertStore::empty();
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&ca.data).collect();
    let (added, _) = store.add_parsable_certificates(certificates.map_err(|error| file(ca, error))?);
    if added > 0 { Ok(store) } else { Err(file(ca, "no usable CA certificate in it")) }
}

/// A failed handshake in words that people look for, with the cure.
pub fn explain(error: &std::io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    let x509 = "tls: failed to verify certificate: x509";
    Some(match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            format!("{x509}: certificate signed by unknown authority: give the engine's CA by --tlscacert")
        }
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("{x509}: certificate has expired")
        }
        Error::InvalidCertificate(cause @ CertificateError::NotValidForNameContext { .. }) => {
            format!("{x509}: {cause}")
        }
        Error::InvalidCertificate(CertificateError::NotValidForName) => {
            format!("{x509}: certificate is not valid for this host")
        }
        Error::InvalidMessage(_) => {
            "the engine does not speak TLS there: leave out --tls and --tlsverify, or use its TLS port (usually 2376)"
                .to_owned()
        }
        Error::AlertReceived(alert) => {
            format!("remote error: tls: {alert:?}: the engine wants another client certificate (--tlscert, --tlskey)")
        }
        other => other.to_string(),
    })
}
