//! From the configuration to a store: endpoint, region, credentials, certificates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_config::imds::region::ImdsRegionProvider;
use aws_config::{Region, SdkConfig};
use aws_sdk_s3::config::endpoint::{DefaultResolver, Endpoint, Params, ResolveEndpoint as _};
use aws_types::service_config::ServiceConfigKey;

use super::account::AwsAccount;
use super::clock::Clock;
use super::config::{FirstCredentials, Keys, PathStyle, SessionAccess, StoreConfig};
use super::credentials::{self, Renewing};
use super::learnt::LearntQuirks;
use super::request::RequestTemplate;
use super::session::{Sessions, is_directory_bucket, region_of_zone};
use super::tls::{self, Trust};
use super::{S3Store, StoreError};
use crate::base::text::innermost;
use crate::stats::Stats;
use crate::store::wire::Wire;

/// The instance metadata service answers at once on EC2.
const IMDS_REGION_TIMEOUT: Duration = Duration::from_secs(1);
/// The first region to ask when none is configured; the answer corrects it.
const FIRST_REGION: &str = "us-east-1";

pub(super) async fn connect(
    bucket: &str,
    config: &StoreConfig,
    keys: Option<&Keys>,
    stats: &Arc<Stats>,
) -> Result<S3Store, StoreError> {
    // Credentials are never fetched from an unverified peer, whatever the option for the store.
    let roots = Trust::Roots(config.ca_bundle.as_deref());
    let verified = tls::wire(&roots, config, stats).map_err(StoreError::Unavailable)?;
    let wire = if config.no_verify_tls {
        tls::wire(&Trust::Anybody, config, stats).map_err(StoreError::Unavailable)?
    } else {
        Arc::clone(&verified)
    };
    let client = tls::client(verified);
    let AwsAccount { sdk, region, credentials } =
        AwsAccount::find(config, keys, client, FIRST_REGION).await?;
    let endpoint = config.endpoint_url.clone().or_else(|| configured_endpoint(&sdk));
    let named = region_of_arn(bucket).map(str::to_owned).or_else(|| region_of_zone(bucket));
    let region = match (named, region) {
        (Some(region), _) => region,
        (None, Some(region)) => region.to_string(),
        (None, None) => guess_region(endpoint.as_deref()).await,
    };
    if let Some(credentials) = &credentials
        && config.first_credentials == FirstCredentials::Now
    {
        check_credentials(credentials).await?;
    }
    let app = sdk.app_name().map(|name| format!(" app/{name}")).unwrap_or_default();
    let user_agent = format!("fasts3-mount/{}{app}", env!("CARGO_PKG_VERSION"));
    let payer = ("x-amz-request-payer".to_owned(), "requester".to_owned());
    // An access point has a host name of its own, and a bucket of a tenant is none.
    let path_style = !bucket.starts_with("arn:")
        && (bucket.contains(':') || path_style(config.path_style, endpoint.as_deref()));
    let mut rules = EndpointRules {
        bucket: bucket.to_owned(),
        url: endpoint.as_deref().map(with_slash),
        path_style,
        fips: sdk.use_fips(),
        dual_stack: sdk.use_dual_stack(),
    };
    rules.without_variants();
    let making = Making {
        rules,
        user_agent,
        headers: config.requester_pays.then_some(payer).into_iter().collect(),
        account: credentials,
        access: config.sessions,
    };
    let (template, credentials) = making.template(&region, &wire).await?;
    let (clock, learnt) = (Clock::default(), LearntQuirks::default());
    Ok(S3Store { wire, template, making, credentials, clock, region, endpoint, path_style, learnt })
}

/// What a template is made of, beside the region.
#[derive(Debug)]
pub(super) struct Making {
    pub(super) rules: EndpointRules,
    pub(super) user_agent: String,
    /// Sent and signed with every request; names in lower case.
    pub(super) headers: Vec<(String, String)>,
    /// None when requests are not signed.
    pub(super) account: Option<Renewing>,
    pub(super) access: SessionAccess,
}

impl Making {
    /// Also the credentials to sign with: those of sessions, where the bucket gives some.
    pub(super) async fn template(
        &self,
        region: &str,
        wire: &Arc<Wire>,
    ) -> Result<(RequestTemplate, Option<Renewing>), StoreError> {
        let plain = self.filled(region, false).await?;
        let account = self.account.clone();
        let Some(account) = account.filter(|_| is_directory_bucket(&self.rules.bucket)) else {
            return Ok((plain, self.account.clone()));
        };
        let sessions = Sessions::new(Arc::clone(wire), plain, account, self.access);
        Ok((self.filled(region, true).await?, Some(sessions.renewing())))
    }

    pub(super) async fn filled(
        &self,
        region: &str,
        in_session: bool,
    ) -> Result<RequestTemplate, StoreError> {
        let found = self.rules.resolve(region, in_session).await?;
        let (user_agent, headers) = (self.user_agent.clone(), self.headers.clone());
        RequestTemplate::new(&found, user_agent, headers, self.account.is_some())
    }
}

/// What the SDK's endpoint rules depend on, beside the region.
#[derive(Debug)]
pub(super) struct EndpointRules {
    /// A name, an alias, or an ARN.
    pub(super) bucket: String,
    pub(super) url: Option<String>,
    pub(super) path_style: bool,
    pub(super) fips: Option<bool>,
    pub(super) dual_stack: Option<bool>,
}

impl EndpointRules {
    /// Only AWS has variants of its endpoints, and the rules refuse them of others.
    fn without_variants(&mut self) {
        if self.url.is_none() {
            return;
        }
        for (variant, asked) in [("FIPS", &mut self.fips), ("dual-stack", &mut self.dual_stack)] {
            if std::mem::take(asked) == Some(true) {
                tracing::info!(
                    "{variant} endpoints are those of AWS: not used with --endpoint-url"
                );
            }
        }
    }

    async fn resolve(&self, region: &str, in_session: bool) -> Result<Endpoint, StoreError> {
        let none = |cause: &dyn std::fmt::Display| {
            StoreError::nonsense(format!("no request could be made: {cause}"))
        };
        let params = Params::builder()
            .bucket(&self.bucket)
            .region(region)
            .set_endpoint(self.url.clone())
            .force_path_style(self.path_style)
            .set_use_fips(self.fips)
            .set_use_dual_stack(self.dual_stack)
            // An ARN says where it is.
            .use_arn_region(true)
            // A request for a session is signed with the account's credentials.
            .disable_s3_express_session_auth(!in_session)
            .build()
            .map_err(|error| none(&error))?;
        let found = DefaultResolver::new().resolve_endpoint(&params).await;
        found.map_err(|error| none(&innermost(&*error)))
    }
}

/// `arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME`; multi-region access points have none.
fn region_of_arn(bucket: &str) -> Option<&str> {
    bucket.strip_prefix("arn:")?.split(':').nth(2).filter(|region| !region.is_empty())
}

/// `AWS_ENDPOINT_URL_S3`, the `s3` service section of the profile, `AWS_ENDPOINT_URL`, the profile:
/// the order of the AWS SDKs' reference guide.
fn configured_endpoint(sdk: &SdkConfig) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id("S3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .expect("all three fields are set");
    sdk.service_config()
        .and_then(|service| service.load_config(key))
        .or_else(|| sdk.endpoint_url().map(str::to_owned))
        .filter(|url| !url.is_empty())
}

/// The SDK writes the bucket's name right behind the path of an endpoint that has one.
fn with_slash(url: &str) -> String {
    let uri: Option<::http::Uri> = url.parse().ok();
    let needs_one = uri.is_some_and(|uri| !uri.path().ends_with('/') && uri.query().is_none());
    if needs_one { format!("{url}/") } else { url.to_owned() }
}

/// Stores other than AWS ignore the region; on AWS the instance's own is the best guess.
async fn guess_region(endpoint: Option<&str>) -> String {
    let imds = ImdsRegionProvider::builder().build();
    let found = if endpoint.is_some_and(is_custom) {
        None
    } else {
        tokio::time::timeout(IMDS_REGION_TIMEOUT, imds.region()).await.ok().flatten()
    };
    found.as_ref().map_or(FIRST_REGION, Region::as_ref).to_owned()
}

async fn check_credentials(credentials: &Renewing) -> Result<(), StoreError> {
    let Err(error) = credentials.current().await else { return Ok(()) };
    // At the start, nothing waits for credentials that may come later.
    Err(match credentials::failure(&error) {
        StoreError::TimedOut(_) => {
            StoreError::NoCredentials("no provider answered in time".to_owned())
        }
        StoreError::Unavailable(cause) => StoreError::NoCredentials(cause),
        other => other,
    })
}

fn path_style(style: PathStyle, endpoint: Option<&str>) -> bool {
    match style {
        PathStyle::Always => true,
        PathStyle::Never => false,
        PathStyle::Auto => endpoint.is_some_and(is_custom),
    }
}

/// An address or a host outside AWS, where bucket names are seldom host names.
fn is_custom(endpoint: &str) -> bool {
    let uri: Option<::http::Uri> = endpoint.parse().ok();
    let Some(host) = uri.as_ref().and_then(::http::Uri::host) else { return true };
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let aws = ["amazonaws.com", "amazonaws.com.cn", "api.aws"]
        .iter()
        .any(|domain| bare == *domain || bare.ends_with(&format!(".{domain}")));
    bare.parse::<IpAddr>().is_ok() || !aws
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_an_endpoint_ends_with_a_slash() {
        for (url, want) in [
            ("http://h:1/a/b", "http://h:1/a/b/"),
            ("http://h:1/a/b/", "http://h:1/a/b/"),
            ("http://h:1", "http://h:1"),
            ("http://h:1/", "http://h:1/"),
        ] {
            assert_eq!(with_slash(url), want);
        }
    }

    #[test]
    fn only_aws_has_buckets_in_host_names() {
        for (endpoint, custom) in [
            ("https://s3.eu-west-1.amazonaws.com", false),
            ("https://bucket.vpce-1.s3.us-east-1.vpce.amazonaws.com", false),
            ("https://s3.cn-north-1.amazonaws.com.cn", false),
            ("http://127.0.0.1:9000", true),
            ("http://[::1]:9000", true),
            ("https://minio.example.com", true),
            ("https://amazonaws.com.example.org", true),
            ("http://localhost", true),
        ] {
            assert_eq!(is_custom(endpoint), custom, "{endpoint}");
        }
        assert!(!path_style(PathStyle::Auto, None));
        assert!(path_style(PathStyle::Always, None));
        assert!(!path_style(PathStyle::Never, Some("http://127.0.0.1")));
    }
}
