//! Signatures of requests (AWS Signature Version 4). No I/O; one lock.
//!
//! `aws-sigv4` signs any request, in twice the time of the rest of a small GET. This signs the
//! requests that are sent thousands of times a second, and derives the signing key once a day.

use std::sync::Arc;
use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::sign::v4::{calculate_signature, generate_signing_key};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of an empty body.
pub(super) const NO_BODY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// A body that the signature is not about.
pub(super) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";
const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Region and service are by the endpoint rules. A directory bucket has other values here.
#[derive(Debug)]
pub(super) struct Signer {
    region: String,
    /// `s3`, `s3express`
    service: String,
    /// The header that carries a session token.
    pub(super) token_header: &'static str,
    key: Mutex<Option<Arc<SigningKey>>>,
}

/// Four hashes that are the same all day.
struct SigningKey {
    day: String,
    secret: String,
    key: Vec<u8>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.day).finish()
    }
}

impl Signer {
    pub(super) fn new(region: String, service: String, token_header: &'static str) -> Self {
        Self { region, service, token_header, key: Mutex::default() }
    }

    /// The value of `Authorization`. `headers` are in lower case and ascend by name; one of them is
    /// `date`, the time as [`amz_date`] writes it, and another `payload`: [`NO_BODY`] or
    /// [`UNSIGNED`].
    pub(super) fn authorization(
        &self,
        (method, path, query): (&str, &str, &str),
        payload: &str,
        headers: &[(&str, &str)],
        (time, date): (SystemTime, &str),
        credentials: &Credentials,
    ) -> String {
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let mut request = String::with_capacity(1024);
        request.extend([method, "\n", path, "\n", query, "\n"]);
        for (name, value) in headers {
            request.extend([name, ":", value, "\n"]);
        }
        request.extend(["\n", &names, "\n", payload]);

        let Self { region, service, .. } = self;
        let day = &date[..8];
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let hash = hex(&Sha256::digest(request));
        let to_sign = format!("{ALGORITHM}\n{date}\n{scope}\n{hash}");
        let key = self.key(day, time, credentials.secret_access_key());
        let signature = calculate_signature(&key.key, to_sign.as_bytes());
        let id = credentials.access_key_id();
        format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
    }

    fn key(&self, day: &str, time: SystemTime, secret: &str) -> Arc<SigningKey> {
        let mut kept = self.key.lock();
        if let Some(key) = kept.as_ref().filter(|key| key.day == day && key.secret == secret) {
            return Arc::clone(key);
        }
        let key = generate_signing_key(secret, time, &self.region, &self.service);
        let (day, secret, key) = (day.to_owned(), secret.to_owned(), key.as_ref().to_vec());
        Arc::clone(kept.insert(Arc::new(SigningKey { day, secret, key })))
    }
}

pub(super) fn amz_date(time: SystemTime) -> String {
    let date = DateTime::from_secs(DateTime::from(time).secs());
    let text = date.fmt(Format::DateTime).expect("a year of four digits");
    text.replace(['-', ':'], "")
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
