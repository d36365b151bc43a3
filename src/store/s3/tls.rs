//! TLS settings, whose certificates are trusted, and the wire as the SDK's providers of credentials
//! see it. The SDK's own client offers HTTP/2 to every TLS server, and panics on a bad certificate
//! file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpConnector as SmithyConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector,
    http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body_util::Full;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_native_certs::CertificateResult;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::HEAD_TIMEOUT;
use super::config::{Hedging, StoreConfig};
use crate::base::text::innermost;
use crate::stats::Stats;
use crate::store::wire::{CallError, Wire};

/// The response of a provider of credentials has some hundred bytes.
const LONGEST_BODY: u64 = 8 << 20;

pub(super) enum Trust<'a> {
    /// The system's, and those of this PEM file.
    Roots(Option<&'a Path>),
    Anybody,
}

/// A client with one pool of connections.
pub(super) fn wire(
    trust: &Trust<'_>,
    config: &StoreConfig,
    stats: &Arc<Stats>,
) -> Result<Arc<Wire>, String> {
    let hedging = config.hedging == Hedging::Auto;
    let proxies = config.proxies.clone();
    Ok(Arc::new(Wire::new(tls_config(trust)?, proxies, hedging, Arc::clone(stats))))
}

/// The same client for the SDK.
pub(super) fn client(wire: Arc<Wire>) -> SharedHttpClient {
    http_client_fn(move |settings, _components| {
        // Credential providers may set shorter limits.
        let own = settings.connect_timeout().zip(settings.read_timeout());
        let limit = own.map_or(HEAD_TIMEOUT, |(connect, read)| HEAD_TIMEOUT.min(connect + read));
        SharedHttpConnector::new(Connector { wire: Arc::clone(&wire), limit })
    })
}

#[derive(Clone, Debug)]
struct Connector {
    wire: Arc<Wire>,
    limit: Duration,
}

impl SmithyConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self { wire, limit } = self.clone();
        HttpConnectorFuture::new(async move {
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let (head, body) = request.into_parts();
            // The only requests with a body are small forms for credential providers.
            let body = body.bytes().map(Bytes::copy_from_slice);
            let body = body.ok_or_else(|| ConnectorError::user("a streamed request".into()))?;
            let response = wire
                .call(&::http::Request::from_parts(head, body), limit)
                .await
                .map_err(|error| match error {
                    CallError::Silent(_) => ConnectorError::timeout(Box::new(error)),
                    _ => ConnectorError::io(Box::new(error)),
                })?;
            let (head, body) = response.into_parts();
            let body = body.whole(LONGEST_BODY).await;
            let body = body.map_err(|error| ConnectorError::io(Box::new(error)))?;
            // The SDK logs a body that it knows to be bytes, and these are secrets.
            let body = SdkBody::from_body_1_x(Full::new(Bytes::from(body)));
            HttpResponse::try_from(::http::Response::from_parts(head, body)).map_err(|error| {
                ConnectorError::io(Box::new(CallError::NotHttp(innermost(&error))))
            })
        })
    }
}

fn tls_config(trust: &Trust<'_>) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::Roots(bundle) => Arc::new(Trusted::new(*bundle, provider)?),
        Trust::Anybody => Arc::new(Trusted::anybody(provider)),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(builder.with_no_client_auth())
}

/// A file of certificates that the operator has named must hold at least one.
pub fn check_bundle(path: &Path) -> Result<(), String> {
    let (certificates, broken) = read_bundle(path)?;
    match broken.first() {
        _ if !certificates.is_empty() => Ok(()),
        None => Err(format!("{} holds no PEM certificate", path.display())),
        Some(error) => Err(format!("{} is not a PEM file: {error}", path.display())),
    }
}

/// The certificates of a PEM file, and what is wrong with the others.
fn read_bundle(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Vec<String>), String> {
    let pem = std::fs::read(path)
        .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    let (mut certificates, mut broken) = (Vec::new(), Vec::new());
    // One by one, so that a certificate without its end does not take the next one with it.
    for section in String::from_utf8_lossy(&pem).split("-----BEGIN ").skip(1) {
        match CertificateDer::from_pem_slice(format!("-----BEGIN {section}").as_bytes()) {
            Ok(certificate) => certificates.push(certificate),
            // Keys and the like.
            Err(pem::Error::NoItemsFound) => {}
            Err(error) => broken.push(error.to_string()),
        }
    }
    Ok((certificates, broken))
}

/// Servers are trusted whose certificates are signed by an authority, as rustls has it, or are
/// there themselves, as OpenSSL has it: a server may have signed its own.
#[derive(Debug)]
struct Trusted {
    authorities: RootCertStore,
    /// Each certificate that was given, in DER.
    exactly: HashSet<Vec<u8>>,
    /// For `--no-verify-tls`. Signatures of the handshake are still checked, to detect broken
    /// peers.
    anybody: bool,
    provider: Arc<CryptoProvider>,
}

impl Trusted {
    fn anybody(provider: Arc<CryptoProvider>) -> Self {
        let (authorities, exactly) = (RootCertStore::empty(), HashSet::new());
        Self { authorities, exactly, anybody: true, provider }
    }

    /// The system's certificates, and those of this file.
    fn new(bundle: Option<&Path>, provider: Arc<CryptoProvider>) -> Result<Self, String> {
        let (authorities, exactly) = (RootCertStore::empty(), HashSet::new());
        let mut trusted = Self { authorities, exactly, anybody: false, provider };
        let [file, folder] = ["SSL_CERT_FILE", "SSL_CERT_DIR"].map(std::env::var_os);
        let file = file.map(PathBuf::from);
        let native = if file.is_some() && folder.is_none() {
            CertificateResult::default()
        } else {
            rustls_native_certs::load_native_certs()
        };
        let mut broken: Vec<String> = native.errors.iter().map(ToString::to_string).collect();
        let mut all = native.certs;
        // The variable replaces the system's, the option adds to them.
        for path in file.as_deref().into_iter().chain(bundle) {
            let (certificates, others) = read_bundle(path)?;
            all.extend(certificates);
            broken.extend(others.iter().map(|error| format!("{}: {error}", path.display())));
        }
        broken.extend(all.into_iter().filter_map(|certificate| trusted.add(certificate).err()));
        for cause in broken {
            tracing::warn!("a certificate is left out: {cause}");
        }
        Ok(trusted)
    }

    fn add(&mut self, certificate: CertificateDer<'static>) -> Result<(), String> {
        // An authority would be refused as the certificate of a server.
        let is_server = match self.by_itself(&certificate, UnixTime::now()) {
            Ok(()) => true,
            Err(error) => error == CertificateError::UnknownIssuer.into(),
        };
        self.exactly.insert(certificate.to_vec());
        if !is_server {
            self.authorities.add(certificate).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Checks a certificate as that of a server that it has signed itself.
    fn by_itself(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
        let mut itself = RootCertStore::empty();
        itself.add(certificate.clone().into_owned())?;
        self.by_authority(&ParsedCertificate::try_from(certificate)?, &itself, &[], now)
    }

    fn by_authority(
        &self,
        certificate: &ParsedCertificate<'_>,
        authorities: &RootCertStore,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            certificate,
            authorities,
            between,
            now,
            algorithms,
        )
    }
}

impl ServerCertVerifier for Trusted {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.anybody {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if self.exactly.contains(&**end_entity) {
            match self.by_itself(end_entity, now) {
                // It is signed by another, or says that it is an authority, as those made by
                // `openssl req -x509` do. What remains are its time and its purpose.
                Ok(())
                | Err(Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::Other(_),
                )) => {}
                Err(error) => return Err(error),
            }
        } else {
            self.by_authority(&certificate, &self.authorities, intermediates, now)?;
        }
        verify_server_name(&certificate, server_name)?;
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    /// A certificate for `localhost`, signed by itself or by an issuer; and what signs with it.
    fn made(
        is_ca: bool,
        by: Option<&Issuer<'_, KeyPair>>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        // Each has a name of its own, or it would be taken for its issuer.
        let name = format!("{:?}", &key.public_key_raw()[..8]);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = match by {
            Some(issuer) => params.signed_by(&key, issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        (certificate.der().clone(), Issuer::new(params, key))
    }

    /// What a server with `presented` is told by a client that trusts `given`.
    fn told(given: &CertificateDer<'static>, presented: &CertificateDer<'_>, name: &str) -> String {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (authorities, exactly) = (RootCertStore::empty(), HashSet::new());
        let mut trusted = Trusted { authorities, exactly, anybody: false, provider };
        trusted.add(given.clone()).unwrap();
        let name = ServerName::try_from(name).unwrap();
        let verified = trusted.verify_server_cert(presented, &[], &name, &[], UnixTime::now());
        verified.map_or_else(|error| error.to_string(), |_| "trusted".to_owned())
    }

    #[test]
    fn a_certificate_that_is_given_is_trusted_as_it_is_and_signs_for_others_only_as_an_authority() {
        let (authority, signer) = made(true, None, |_| ());
        let (server, _) = made(false, Some(&signer), |_| ());
        assert_eq!(told(&authority, &server, "localhost"), "trusted");
        // As made by `openssl req -x509`.
        assert_eq!(told(&authority, &authority, "localhost"), "trusted");
        // Without its authority.
        assert_eq!(told(&server, &server, "localhost"), "trusted");
        let (own, no_authority) = made(false, None, |_| ());
        assert_eq!(told(&own, &own, "localhost"), "trusted");
        let (signed_by_it, _) = made(false, Some(&no_authority), |_| ());
        for (given, presented) in [(&own, &signed_by_it), (&own, &server), (&server, &own)] {
            let told = told(given, presented, "localhost");
            assert!(told.contains("UnknownIssuer"), "{told}");
        }
    }

    #[test]
    fn a_certificate_that_is_given_is_good_for_its_names_and_its_time() {
        for is_ca in [true, false] {
            let (own, _) = made(is_ca, None, |_| ());
            let wrong_name = told(&own, &own, "example.com");
            assert!(wrong_name.contains("not valid for name"), "{wrong_name}");
            let (old, _) = made(is_ca, None, |params| {
                params.not_before = rcgen::date_time_ymd(2001, 1, 1);
                params.not_after = rcgen::date_time_ymd(2002, 1, 1);
            });
            let late = told(&old, &old, "localhost");
            assert!(late.contains("expired"), "{late}");
        }
    }

    #[test]
    fn a_broken_certificate_does_not_take_the_next_one_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bundle.pem");
        let good = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (pem, key) = (good.cert.pem(), good.signing_key.serialize_pem());
        let text = format!("# a comment\n{}\n{key}{pem}{}", &pem[..100], pem.replace("MII", "!!!"));
        std::fs::write(&path, text).unwrap();
        let (certificates, broken) = read_bundle(&path).unwrap();
        assert_eq!((certificates.as_slice(), broken.len()), (&[good.cert.der().clone()][..], 2));
        assert_eq!(check_bundle(&path), Ok(()));
        std::fs::write(&path, key).unwrap();
        assert!(check_bundle(&path).unwrap_err().contains("holds no PEM certificate"));
        std::fs::write(&path, &pem[..100]).unwrap();
        assert!(check_bundle(&path).unwrap_err().contains("is not a PEM file"));
        assert!(check_bundle(&folder.path().join("none")).unwrap_err().contains("cannot be read"));
    }
}
