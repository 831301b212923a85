//! TLS 1.2 and 1.3, with a certificate from files.

use std::{path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use crate::ServeError;

/// Reads certificate chain and key.
///
/// # Errors
/// [`ServeError::Request`] that names the flag and the file.
pub(super) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, ServeError> {
    let refuse = |flag, file: &Path, reason: &dyn std::fmt::Display| {
        ServeError::request(flag, format!("{}: {reason}", file.display()))
    };
    let (cert_flag, key_flag) = ("--tls-cert", "--tls-key");
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect)
        .map_err(|e| refuse(cert_flag, cert, &e))?;
    if chain.is_empty() {
        return Err(refuse(cert_flag, cert, &"holds no certificate in PEM"));
    }
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| refuse(key_flag, key, &e))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| refuse(cert_flag, cert, &e))?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|e| refuse(key_flag, key, &e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
