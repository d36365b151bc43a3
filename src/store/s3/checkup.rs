//! What only `doctor` asks of a store, beyond what every store is asked for: facts of the connection
//! that the seam hides on purpose.

use std::time::SystemTime;

use ::http::header::DATE;
use aws_credential_types::Credentials;

use super::clock::seconds_ahead;
use super::request::RequestFields;
use super::response::About;
use super::{HEAD_BUCKET, Kind, S3Store, one_key, page};
use crate::store::StoreError;

impl S3Store {
    /// The provider that gave the credentials, as the SDK calls it; `None` when requests are unsigned.
    pub async fn credentials_from(&self) -> Option<String> {
        let credentials = self.credentials.as_ref()?.current().await.ok()?;
        Some(provider_of(&credentials))
    }

    /// Whether the bucket's name stands in the path of URLs, not in the host name.
    pub fn is_path_style(&self) -> bool {
        self.path_style
    }

    /// How far the store's clock is before ours, in seconds; negative if it is behind. To the second,
    /// which is what a `Date` header tells.
    pub async fn seconds_ahead(&self) -> Result<i64, StoreError> {
        let response = self.send(&HEAD_BUCKET).await?;
        let now = SystemTime::now();
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| StoreError::nonsense("an answer without a date"))?;
        seconds_ahead(date, now).ok_or_else(|| StoreError::nonsense("a date that is none"))
    }

    /// Whether the store writes keys of listings in the encoding that is asked for. If not, keys with
    /// control characters cannot be listed.
    pub async fn encodes_keys(&self, prefix: &str) -> Result<bool, StoreError> {
        page::is_encoded(&self.page(&one_key(prefix)).await?)
    }

    /// Whether a GET of another version of an object than the one that is there is refused.
    pub async fn honours_if_match(&self, key: &str) -> Result<bool, StoreError> {
        let headers = &[("if-match", "\"doctor\""), ("range", "bytes=0-0")];
        let fields = RequestFields { kind: Kind::Get, key, query: "", headers };
        match self.ask(About::Key, &fields).await {
            Ok(_) => Ok(false),
            Err(StoreError::Changed) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The provider's name, which credentials tell in no other way than by how they show themselves.
fn provider_of(credentials: &Credentials) -> String {
    let shown = format!("{credentials:?}");
    let name = shown.split_once("provider_name: \"").and_then(|(_, rest)| rest.split_once('"'));
    name.map_or("an unknown provider", |(name, _)| name).to_owned()
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
