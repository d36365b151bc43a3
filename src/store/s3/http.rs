//! The HTTP client under the SDK: hyper's, with our own TLS settings.
//!
//! The SDK's own client offers HTTP/2 to every TLS server, which would put all parts of a stream on
//! one connection and behind one window; it cannot skip certificate checks; and it panics on a bad
//! certificate file. This one speaks HTTP/1.1 only and says where a request failed
//! ([`CallError`]), so that "unreachable" and "not HTTP" can be told apart.

use std::error::Error;
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
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// A TCP connection that takes longer is tried again rather than waited for: a lost SYN costs 1 s
/// and the next 2 more.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// From the request to the head of its response, connecting included. AWS advises to retry rather
/// than wait when the first byte takes seconds.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// S3 closes connections that were idle for some time (5 to 20 s are seen); a request sent into
/// such a close fails and costs a retry.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Whose certificates are believed.
pub(super) enum Trust<'a> {
    /// The system's, and those of this PEM file.
    Roots(Option<&'a Path>),
    /// Anybody's.
    Anybody,
}

/// Where a request failed before there was a response.
#[derive(Debug)]
pub(super) enum CallError {
    /// No connection: no address, refused, no TLS session.
    Unreachable(String),
    /// The connection broke before the response's head.
    Broken(String),
    /// What came back is not HTTP.
    NotHttp(String),
    /// Nothing came back within this time.
    Silent(Duration),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(cause) => write!(f, "cannot connect: {cause}"),
            Self::Broken(cause) => write!(f, "the connection broke: {cause}"),
            Self::NotHttp(cause) => write!(f, "the answer is not HTTP: {cause}"),
            Self::Silent(limit) => write!(f, "no response within {} s", limit.as_secs_f32()),
        }
    }
}

impl Error for CallError {}

/// An HTTP client with one connection pool; as many connections are kept as were ever needed at
/// once, which the permits of the retrying layer bound.
pub(super) fn client(trust: &Trust<'_>) -> Result<SharedHttpClient, String> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let mut tls = tls_config(trust)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(HttpsConnector::from((tcp, tls)));
    Ok(http_client_fn(move |settings, _components| {
        // The credential providers set shorter limits of their own: the instance metadata service
        // answers in milliseconds or does not exist.
        let own = settings.connect_timeout().zip(settings.read_timeout());
        let limit = own.map_or(HEAD_TIMEOUT, |(connect, read)| HEAD_TIMEOUT.min(connect + read));
        SharedHttpConnector::new(Connector { client: client.clone(), limit })
    }))
}

/// The SDK's view of the client.
#[derive(Clone, Debug)]
struct Connector {
    client: Client<HttpsConnector<HttpConnector>, SdkBody>,
    limit: Duration,
}

impl SmithyConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let Self { client, limit } = self.clone();
        HttpConnectorFuture::new(async move {
            let request =
                request.try_into_http1x().map_err(|error| ConnectorError::user(error.into()))?;
            let response = tokio::time::timeout(limit, client.request(request))
                .await
                .map_err(|_elapsed| ConnectorError::timeout(Box::new(CallError::Silent(limit))))?
                .map_err(|error| ConnectorError::io(Box::new(classify(&error))))?;
            HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::user(error.into()))
        })
    }
}

fn classify(error: &hyper_util::client::legacy::Error) -> CallError {
    let cause = innermost(error);
    if causes(error).any(<dyn Error>::is::<rustls::Error>) {
        return CallError::Unreachable(format!("TLS: {cause}"));
    }
    if error.is_connect() {
        return CallError::Unreachable(cause);
    }
    let hyper = error.source().and_then(|source| source.downcast_ref::<hyper::Error>());
    if hyper.is_some_and(hyper::Error::is_parse) {
        CallError::NotHttp(cause)
    } else {
        CallError::Broken(cause)
    }
}

/// An error and what caused it, one after the other.
pub(super) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An io::Error hides the error it wraps: its `source` is that error's source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// The deepest cause an error knows of; what stands above it are layers of "something failed".
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
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

/// For `--no-verify-tls`: any certificate will do. Signatures of the handshake are still checked,
/// which costs nothing and catches broken peers.
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
