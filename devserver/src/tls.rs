//! A certificate made for one run, and the TLS acceptor that uses it. It has signed itself and says
//! that it is an authority, like those that people make with `openssl req -x509`.

use std::io;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::TlsAcceptor;

/// The acceptor of sessions, and the certificate in PEM.
pub(crate) fn make() -> io::Result<(TlsAcceptor, String)> {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(names).map_err(io::Error::other)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signer = KeyPair::generate().map_err(io::Error::other)?;
    let made = params.self_signed(&signer).map_err(io::Error::other)?;
    let key = PrivatePkcs8KeyDer::from(signer.serialize_der());
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], key.into())
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), made.pem()))
}
