//! TLS of the TCP sockets: our certificate, and whose clients' certificates are believed. The files are read again at a reload;
//! connections that are open keep what they began with.

use crate::config::Tls;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};
use tokio_rustls::TlsAcceptor;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {what} {path}: {cause}")]
    Read { what: &'static str, path: PathBuf, cause: String },
    #[error("{path} holds no {what}")]
    Empty { what: &'static str, path: PathBuf },
    #[error("certificate {cert} with key {key}")]
    Pair {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        cause: rustls::Error,
    },
    #[error("certificates of clients' signers {path}: {cause}")]
    Authorities { path: PathBuf, cause: String },
}

/// What new connections are met with.
#[derive(Debug)]
pub struct Certificates {
    current: RwLock<Arc<ServerConfig>>,
}

impl Certificates {
    /// Reads the files.
    pub fn read(tls: &Tls) -> Result<Self, TlsError> {
        Ok(Self { current: RwLock::new(Arc::new(configuration(tls)?)) })
    }

    /// Reads them again; what can't be read changes nothing.
    pub fn reload(&self, tls: &Tls) -> Result<(), TlsError> {
        let new = Arc::new(configuration(tls)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// For one connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn configuration(tls: &Tls) -> Result<ServerConfig, TlsError> {
    let chain = certificates("certificate", &tls.cert)?;
    let read = |cause: rustls::pki_types::pem::Error| TlsError::Read {
        what: "key",
        path: tls.key.clone(),
        cause: cause.to_string(),
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(read)?;
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let pair = |cause| TlsError::Pair { cert: tls.cert.clone(), key: tls.key.clone(), cause };
    let builder = versions.map_err(pair)?;
    let builder = if tls.verify {
        let authorities = |cause: String| TlsError::Authorities { path: tls.ca.clone(), cause };
        let mut roots = RootCertStore::empty();
        for certificate in certificates("certificate", &tls.ca)? {
            roots.add(certificate).map_err(|cause| authorities(cause.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.map_err(|cause| authorities(cause.to_string()))?)
    } else {
        builder.with_no_client_auth()
    };
    let mut configuration = builder.with_single_cert(chain, key).map_err(pair)?;
    // Hijacked streams are HTTP/1.1's.
    configuration.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(configuration)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |cause: String| TlsError::Read { what, path: path.to_owned(), cause };
    let found = CertificateDer::pem_file_iter(path).map_err(|cause| read(cause.to_string()))?;
    let all = found.collect::<Result<Vec<_>, _>>().map_err(|cause| read(cause.to_string()))?;
    if all.is_empty() { Err(TlsError::Empty { what, path: path.to_owned() }) } else { Ok(all) }
}
