//! TLS as a client: whose certificate is believed, and what we show of ourselves. The command line and the supervisor go by the
//! same rules, the one towards engines, the other towards registries.

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WantsClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use std::{env, path::PathBuf, sync::Arc};

/// Where distributions keep the certificates they trust.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why the system's CA certificates can't be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RootsError {
    /// There is no bundle.
    #[error("no CA certificates are installed (package ca-certificates)")]
    NotInstalled,
    /// The bundle is no use.
    #[error("{file}: {cause}")]
    Bundle {
        /// The file.
        file: String,
        /// What is wrong.
        cause: String,
    },
}

/// The system's CA certificates: those of `SSL_CERT_FILE`, which OpenSSL, Go and curl go by, else of the distribution.
pub fn system_roots() -> Result<RootCertStore, RootsError> {
    let chosen = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let bundle = chosen.into_iter().chain(BUNDLES.map(PathBuf::from)).find(|path| path.exists());
    let bundle = bundle.ok_or(RootsError::NotInstalled)?;
    let unusable = |cause: String| RootsError::Bundle { file: bundle.display().to_string(), cause };
    let found = CertificateDer::pem_file_iter(&bundle).map_err(|error| unusable(error.to_string()))?;
    let mut store = RootCertStore::empty();
    // Single certificates that rustls can't use are left out, as everywhere.
    let (added, _) = store.add_parsable_certificates(found.filter_map(Result::ok));
    if added > 0 { Ok(store) } else { Err(unusable("no usable CA certificate in it".to_owned())) }
}

/// Settings for connections that trust `roots`; without any, whoever answers is believed.
pub fn client(roots: Option<Arc<RootCertStore>>) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?.dangerous();
    let known = match roots {
        None => None,
        Some(roots) => {
            let chains = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
            Some(Known { chains: chains.map_err(|error| Error::General(error.to_string()))?, roots })
        }
    };
    Ok(builder.with_custom_certificate_verifier(Arc::new(Verifier { provider, known })))
}

/// What we show of ourselves: a chain, our own certificate first, and its key.
///
/// Not by `with_client_auth_cert`, which wants to read the certificate: those of version 1, which openssl makes unless told
/// otherwise, are the server's to judge.
pub fn identity(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<SingleCertAndKey, Error> {
    let key = rustls::crypto::ring::default_provider().key_provider.load_private_key(key)?;
    Ok(SingleCertAndKey::from(CertifiedKey::new(chain, key)))
}

/// Trusts chains to the CAs, and a server that shows the certificate of one of them: most people's self-signed one is marked
/// as a CA's, which is no server's certificate by the book (RFC 5280), but is to every other client.
#[derive(Debug)]
struct Known {
    chains: Arc<WebPkiServerVerifier>,
    roots: Arc<RootCertStore>,
}

/// Believes whom it knows; whoever answers, if it knows nobody: still encrypted, and whoever asked for that knows why.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    known: Option<Known>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Known { chains, roots }) = &self.known else { return Ok(ServerCertVerified::assertion()) };
        match chains.verify_server_cert(shown, intermediates, name, ocsp, now) {
            Err(Error::InvalidCertificate(CertificateError::Other(why)))
                if format!("{why:?}").contains("CaUsedAsEndEntity") => {}
            other => return other,
        }
        let parsed = ParsedCertificate::try_from(shown)?;
        let key = parsed.subject_public_key_info();
        // The anchor's has no outer frame. That the server has the key is proved by the handshake.
        if !roots.roots.iter().any(|root| key.ends_with(&root.subject_public_key_info)) {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        // Its dates have been checked by then; its name has not.
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
