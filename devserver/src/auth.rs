//! Access: requests signed with the one key may do everything, others may read public buckets.

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};

use crate::service::Service;
use crate::sessions::SESSION_HEADER;
use crate::{ACCESS_KEY, SECRET_KEY};

#[async_trait::async_trait]
impl S3Auth for Service {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == ACCESS_KEY {
            return Ok(SecretKey::from(SECRET_KEY));
        }
        Err(s3_error!(
            InvalidAccessKeyId,
            "The AWS Access Key Id you provided does not exist in our records."
        ))
    }
}

#[async_trait::async_trait]
impl S3Access for Service {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let denied = || s3_error!(AccessDenied, "Access Denied");
        let Some(name) = context.s3_path().get_bucket_name() else {
            return context.credentials().map(|_| ()).ok_or_else(denied);
        };
        let public = self.bucket(name)?.read().public;
        let reads = matches!(context.method().as_str(), "GET" | "HEAD");
        let in_session = context.headers().contains_key(SESSION_HEADER);
        let allowed = context.credentials().is_some() || in_session || (public && reads);
        if allowed { Ok(()) } else { Err(denied()) }
    }
}
