//! What only `doctor` asks of a store, beyond what every store is asked for: facts of the connection
//! that the seam hides on purpose.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::types::EncodingType;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use parking_lot::Mutex;

use super::errors::{About, failure};
use super::{S3Store, protocol};
use crate::store::StoreError;

impl S3Store {
    /// The provider that gave the credentials, as the SDK calls it; `None` when requests are unsigned.
    pub async fn credentials_from(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?.provide_credentials().await.ok()?;
        Some(provider_of(&credentials))
    }

    /// Whether the bucket's name stands in the path of URLs, not in the host name.
    pub fn is_path_style(&self) -> bool {
        self.path_style
    }

    /// How far the store's clock is before ours, in seconds; negative if it is behind. To the second,
    /// which is what a `Date` header tells.
    pub async fn seconds_ahead(&self) -> Result<i64, StoreError> {
        let seen = DateSeen::default();
        let sent = self.direct.client.head_bucket().bucket(&self.direct.bucket).customize();
        let outcome = sent.interceptor(seen.clone()).send().await;
        let date = seen.0.lock().take();
        let (date, now) = match (date, outcome) {
            (Some(date), _) => date,
            (None, Err(error)) => return Err(failure(About::Bucket, &error)),
            (None, Ok(_)) => return Err(protocol("an answer without a date")),
        };
        let date = DateTime::from_str(&date, Format::HttpDate)
            .map_err(|error| protocol(format!("a date that is none: {error}")))?;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Ok(date.secs() - i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
    }

    /// Whether the store writes keys of listings in the encoding that is asked for. If not, keys with
    /// control characters cannot be listed.
    pub async fn encodes_keys(&self, prefix: &str) -> Result<bool, StoreError> {
        let output = self
            .direct
            .client
            .list_objects_v2()
            .bucket(&self.direct.bucket)
            .prefix(prefix)
            .max_keys(1)
            .encoding_type(EncodingType::Url)
            .set_request_payer(self.direct.payer.clone())
            .send()
            .await
            .map_err(|error| failure(About::Bucket, &error))?;
        Ok(output.encoding_type == Some(EncodingType::Url))
    }

    /// Whether a GET of another version of an object than the one that is there is refused.
    pub async fn honours_if_match(&self, key: &str) -> Result<bool, StoreError> {
        let get = self.direct.get_by_sdk(key).if_match("\"doctor\"").range("bytes=0-0");
        match get.send().await {
            Ok(_) => Ok(false),
            Err(error) => match failure(About::Key, &error) {
                StoreError::Changed => Ok(true),
                error => Err(error),
            },
        }
    }
}

/// The provider's name, which credentials tell in no other way than by how they show themselves.
fn provider_of(credentials: &Credentials) -> String {
    let shown = format!("{credentials:?}");
    let name = shown.split_once("provider_name: \"").and_then(|(_, rest)| rest.split_once('"'));
    name.map_or("an unknown provider", |(name, _)| name).to_owned()
}

/// Takes the `Date` of a response down, and when it came.
#[derive(Clone, Debug, Default)]
struct DateSeen(Arc<Mutex<Option<(String, SystemTime)>>>);

impl Intercept for DateSeen {
    fn name(&self) -> &'static str {
        "DateSeen"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").map(str::to_owned);
        *self.0.lock() = date.map(|date| (date, SystemTime::now()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_tell_who_gave_them() {
        let credentials = Credentials::new("id", "secret", None, None, "EnvironmentVariable");
        assert_eq!(provider_of(&credentials), "EnvironmentVariable");
    }
}
