//! TLS settings, and the wire as the SDK's providers of credentials see it. The SDK's own client
//! offers HTTP/2 to every TLS server, and panics on a bad certificate file.

use std::path::Path;
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
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::pem::PemObject as _;
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
    Ok(match trust {
        Trust::Roots(bundle) => builder.with_root_certificates(roots(*bundle)?),
        Trust::Anybody => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAnybody(provider)))
        }
    }
    .with_no_client_auth())
}

fn roots(bundle: Option<&Path>) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::debug!("system certificates: {error}");
    }
    // Single certificates that rustls cannot parse are no reason to trust none.
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = bundle {
        let shown = path.display();
        let file = CertificateDer::pem_file_iter(path)
            .map_err(|error| format!("certificates of {shown}: {error}"))?;
        for certificate in file {
            certificate
                .map_err(|error| error.to_string())
                .and_then(|der| roots.add(der).map_err(|error| error.to_string()))
                .map_err(|error| format!("certificates of {shown}: {error}"))?;
        }
    }
    Ok(roots)
}

/// For `--no-verify-tls`. Signatures of the handshake are still checked, to detect broken peers.
#[derive(Debug)]
struct AcceptAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
