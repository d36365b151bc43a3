//! Sessions of directory buckets (S3 Express One Zone): the credentials that such a bucket gives
//! for five minutes, with which all other requests to it are signed.
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateSession.html>

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use tokio::time::{Instant, timeout};

use super::clock::Clock;
use super::config::SessionAccess;
use super::credentials::{HELPER_LIMIT, LIMIT, Renewing};
use super::request::{RequestFields, RequestTemplate};
use super::response::{self, About, Refusal};
use super::xml::Document;
use super::{HEAD_BUCKET, Kind, LONGEST_REFUSAL, times};
use crate::store::StoreError;
use crate::store::wire::Wire;

/// A new session is asked for this long before the old one ends.
const AHEAD: Duration = Duration::from_mins(1);

/// Without this header, a session may write.
pub(super) const READ_ONLY: [(&str, &str); 1] = [("x-amz-create-session-mode", "ReadOnly")];

/// `NAME--ZONE--x-s3`:
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/directory-bucket-naming-rules.html>
pub fn is_directory_bucket(bucket: &str) -> bool {
    zone(bucket).is_some()
}

fn zone(bucket: &str) -> Option<&str> {
    Some(bucket.strip_suffix("--x-s3")?.rsplit_once("--")?.1)
}

/// A directory bucket is asked in its own zone, and those of other regions have no address. A zone
/// says which region it is in: `use1-az4`, `apne1-az1`.
pub(super) fn region_of_zone(bucket: &str) -> Option<String> {
    let region = zone(bucket)?.split('-').next()?;
    let (continent, rest) = region.split_at_checked(2)?;
    let (side, number) = rest.split_at_checked(rest.len().checked_sub(1)?)?;
    let side = match side {
        "n" => "north",
        "e" => "east",
        "s" => "south",
        "w" => "west",
        "c" => "central",
        "ne" => "northeast",
        "nw" => "northwest",
        "se" => "southeast",
        "sw" => "southwest",
        _ => return None,
    };
    Some(format!("{continent}-{side}-{number}"))
}

/// Asks a directory bucket for sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    wire: Arc<Wire>,
    /// Signs with the credentials of the account.
    template: RequestTemplate,
    account: Renewing,
    clock: Clock,
    /// Those that may write are denied, or not needed.
    reads_only: AtomicBool,
}

impl Sessions {
    pub(super) fn new(
        wire: Arc<Wire>,
        template: RequestTemplate,
        account: Renewing,
        access: SessionAccess,
    ) -> Self {
        let (clock, reads_only) =
            (Clock::default(), AtomicBool::new(access == SessionAccess::Read));
        Self { wire, template, account, clock, reads_only }
    }

    /// The credentials of the newest session.
    pub(super) fn renewing(self) -> Renewing {
        let sessions = SharedCredentialsProvider::new(self);
        // The account's credentials may take their time first.
        Renewing::new(HELPER_LIMIT + 2 * LIMIT, AHEAD, move || {
            let sessions = sessions.clone();
            Box::pin(async move { Some(sessions) })
        })
    }

    async fn begin(&self) -> provider::Result {
        let mut signed_anew = false;
        loop {
            let begun = Instant::now();
            let keys = self.account.current().await?;
            match self.ask(&keys).await {
                Err(StoreError::SignatureRefused(_)) if !signed_anew => {
                    signed_anew = true;
                    self.account.refused(begun);
                }
                // A policy may allow to read only (`s3express:SessionMode`).
                Err(StoreError::Denied(_)) if !self.reads_only.swap(true, Ordering::Relaxed) => {}
                session => return session.map_err(CredentialsError::unhandled),
            }
        }
    }

    async fn ask(&self, keys: &Credentials) -> Result<Credentials, StoreError> {
        let reads_only = self.reads_only.load(Ordering::Relaxed);
        let headers: &[_] = if reads_only { &READ_ONLY } else { &[] };
        let fields = RequestFields { kind: Kind::Get, query: "session", headers, ..HEAD_BUCKET };
        let message = self.template.fill(&fields, None, self.clock.now(), Some(keys))?;
        let response = self.wire.send(&message, LIMIT).await;
        let (head, body) = response.map_err(|call| response::no_response(&call))?.into_parts();
        let late = |_elapsed| StoreError::TimedOut("no end of a session's answer".to_owned());
        let body = timeout(LIMIT, body.whole(LONGEST_REFUSAL)).await.map_err(late)?;
        if head.status.is_success() {
            return session(&body?);
        }
        let refusal = Refusal::new(head.status.as_u16(), &head.headers, &body.unwrap_or_default());
        if let Some(date) = &refusal.date {
            self.clock.correct(date);
        }
        Err(refusal.meaning(About::Bucket))
    }
}

impl ProvideCredentials for Sessions {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.begin())
    }
}

/// `CreateSessionResult`.
fn session(xml: &[u8]) -> Result<Credentials, StoreError> {
    let [mut id, mut secret, mut token, mut expiry] = [const { None::<String> }; 4];
    let mut document = Document::new(xml);
    document.child()?;
    while let Some(element) = document.child()? {
        if element.local_name().as_ref() != b"Credentials" {
            document.skip()?;
            continue;
        }
        while let Some(element) = document.child()? {
            let value = match element.local_name().as_ref() {
                b"AccessKeyId" => &mut id,
                b"SecretAccessKey" => &mut secret,
                b"SessionToken" => &mut token,
                b"Expiration" => &mut expiry,
                _ => {
                    document.skip()?;
                    continue;
                }
            };
            *value = document.text()?.map(str::to_owned);
        }
    }
    let expiry = expiry.as_deref().and_then(times::read);
    match (id, secret, token, expiry) {
        (Some(id), Some(secret), Some(token), Some(expiry)) => {
            Ok(Credentials::new(id, secret, Some(token), Some(expiry), "S3ExpressSession"))
        }
        _ => Err(StoreError::nonsense("a session without keys, token or expiry")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_directory_bucket_tells_its_region() {
        for (bucket, is_one, region) in [
            ("data--use1-az4--x-s3", true, Some("us-east-1")),
            ("a--b--apne1-az1--x-s3", true, Some("ap-northeast-1")),
            ("data--euc1-az1--x-s3", true, Some("eu-central-1")),
            ("data--usw2-lax1-az1--x-s3", true, Some("us-west-2")),
            ("data--usge1-az1--x-s3", true, None),
            ("data--ä--x-s3", true, None),
            ("data----x-s3", true, None),
            ("data--x-s3", false, None),
            ("data--use1-az4", false, None),
            ("data", false, None),
        ] {
            assert_eq!(is_directory_bucket(bucket), is_one, "{bucket}");
            assert_eq!(region_of_zone(bucket).as_deref(), region, "{bucket}");
        }
    }

    #[test]
    fn an_answer_without_one_of_four_texts_is_no_session() {
        let whole = "<CreateSessionResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                     <Other><SessionToken>no</SessionToken></Other><Credentials>\
                     <SessionToken>t+/=</SessionToken><SecretAccessKey>s</SecretAccessKey>\
                     <New/><AccessKeyId>i</AccessKeyId>\
                     <Expiration>2026-01-01T00:00:00Z</Expiration></Credentials>\
                     </CreateSessionResult>";
        let keys = session(whole.as_bytes()).unwrap();
        assert_eq!((keys.access_key_id(), keys.secret_access_key()), ("i", "s"));
        assert_eq!(keys.session_token(), Some("t+/="));
        let expiry = keys.expiry().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(expiry.as_secs(), 1_767_225_600);
        for name in ["AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"] {
            let less =
                whole.replace(&format!("<{name}>"), "<X>").replace(&format!("</{name}>"), "</X>");
            assert!(session(less.as_bytes()).is_err(), "{name}");
        }
        for odd in ["", "session", "<a>", "<CreateSessionResult/>"] {
            assert!(session(odd.as_bytes()).is_err(), "{odd}");
        }
    }
}
