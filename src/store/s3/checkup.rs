//! Requests that only `doctor` makes: facts of the connection that the trait hides on purpose.

use ::http::header::DATE;
use aws_credential_types::Credentials;

use super::clock::{seconds_ahead, system_now};
use super::learnt::Quirk;
use super::request::RequestFields;
use super::response::About;
use super::{HEAD_BUCKET, Kind, S3Store, one_key, page};
use crate::store::StoreError;

impl S3Store {
    /// The SDK's name of the provider that gave the credentials; `None` when requests are unsigned.
    pub async fn credentials_from(&self) -> Option<String> {
        let credentials = self.making.account.as_ref()?.current().await.ok()?;
        Some(provider_of(&credentials))
    }

    pub fn is_path_style(&self) -> bool {
        self.path_style
    }

    /// From our clock to the store's `Date` header; negative if the store is behind.
    pub async fn seconds_ahead(&self) -> Result<i64, StoreError> {
        let response = self.send(&HEAD_BUCKET, None).await?;
        let now = system_now();
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| StoreError::nonsense("an answer without a date"))?;
        seconds_ahead(date, now).ok_or_else(|| StoreError::nonsense("a date that is none"))
    }

    /// Without this, keys with control characters cannot be listed.
    pub async fn encodes_keys(&self, prefix: &str) -> Result<bool, StoreError> {
        page::is_encoded(&self.page(&one_key(prefix)).await?)
    }

    /// A GET of a version that does not exist is refused, and one of the version that exists not.
    pub async fn honours_if_match(&self, key: &str) -> Result<bool, StoreError> {
        if self.learnt.has(Quirk::RefusesIfMatch) {
            return Ok(false);
        }
        let headers = &[("if-match", "\"doctor\""), ("range", "bytes=0-0")];
        let fields = RequestFields { kind: Kind::Get, key, headers, ..HEAD_BUCKET };
        match self.ask(About::Key, &fields).await {
            Ok(_) => Ok(false),
            Err(StoreError::Changed) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// The provider's name, which credentials have only in their debug output.
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
