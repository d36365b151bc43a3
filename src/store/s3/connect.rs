//! From the configuration to a store: endpoint, region, credentials, certificates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Endpoint, Params, ResolveEndpoint as _};
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::service_config::ServiceConfigKey;

use super::clock::Clock;
use super::config::{Hedging, Keys, PathStyle, StoreConfig};
use super::credentials::{self, Renewing};
use super::learnt::LearntQuirks;
use super::request::RequestTemplate;
use super::tls::{self, Trust};
use super::{S3Store, StoreError};
use crate::base::text::innermost;
use crate::stats::Stats;

/// The instance metadata service answers at once on EC2.
const IMDS_REGION_TIMEOUT: Duration = Duration::from_secs(1);
/// The first region to ask when none is configured; the answer corrects it.
const FIRST_REGION: &str = "us-east-1";

pub(super) async fn connect(
    bucket: &str,
    config: &StoreConfig,
    region: Option<&str>,
    keys: Option<&Keys>,
    stats: &Arc<Stats>,
) -> Result<S3Store, StoreError> {
    let roots = Trust::Roots(config.ca_bundle.as_deref());
    // Credentials are never fetched from an unverified peer, whatever the option for the store.
    let hedging = config.hedging == Hedging::Auto;
    let verified = tls::wire(&roots, hedging, stats).map_err(StoreError::Unavailable)?;
    let to_store = if config.no_verify_tls {
        tls::wire(&Trust::Anybody, hedging, stats).map_err(StoreError::Unavailable)?
    } else {
        Arc::clone(&verified)
    };

    let profile = config.profile.as_deref();
    if let Some(name) = profile {
        check_profile(name).await?;
    }
    let mut profile_region = ProfileFileRegionProvider::builder();
    if let Some(profile) = profile {
        profile_region = profile_region.profile_name(profile);
    }
    let told = RegionProviderChain::first_try(region.map(|name| Region::new(name.to_owned())))
        .or_else(config.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(profile_region.build())
        .region()
        .await;

    let loader = {
        // Without a region, the loader would ask the metadata service, without a limit.
        let region = told.clone().unwrap_or(Region::from_static(FIRST_REGION));
        let profile = config.profile.clone();
        let keys = keys.map(|Keys { access_key_id: id, secret_access_key: secret }| {
            Credentials::new(id, secret, None, None, "given keys")
        });
        let unsigned = config.no_sign_request;
        move || {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(tls::client(Arc::clone(&verified)))
                .region(region.clone());
            if let Some(profile) = &profile {
                loader = loader.profile_name(profile);
            }
            if unsigned {
                loader.no_credentials()
            } else if let Some(keys) = keys.clone() {
                loader.credentials_provider(keys)
            } else {
                loader
            }
        }
    };
    let sdk = loader().load().await;
    let credentials = (!config.no_sign_request).then(|| {
        Renewing::new(move || {
            let loader = loader();
            Box::pin(async move { loader.load().await.credentials_provider() })
        })
    });

    let endpoint = config.endpoint_url.clone().or_else(|| configured_endpoint(&sdk));
    let region = match told {
        Some(region) => region,
        None => guess_region(endpoint.as_deref()).await,
    };
    if let Some(credentials) = &credentials {
        check_credentials(credentials).await?;
    }

    // A bucket of a tenant is no host name.
    let path_style = bucket.contains(':') || path_style(config.path_style, endpoint.as_deref());
    let rules = EndpointRules {
        region: region.to_string(),
        url: endpoint.as_deref().map(with_slash),
        path_style,
        fips: sdk.use_fips(),
        dual_stack: sdk.use_dual_stack(),
    };
    let app = sdk.app_name().map(|name| format!(" app/{name}")).unwrap_or_default();
    let user_agent = format!("fasts3-mount/{}{app}", env!("CARGO_PKG_VERSION"));
    let payer = ("x-amz-request-payer".to_owned(), "requester".to_owned());
    let headers = config.requester_pays.then_some(payer).into_iter().collect();
    let found = rules.resolve(bucket).await?;
    let template = RequestTemplate::new(&found, user_agent, headers, credentials.is_some())?;
    let region = region.to_string();
    let endpoint = endpoint.unwrap_or_else(|| format!("AWS, {region}"));
    let (wire, clock) = (to_store, Clock::default());
    let learnt = LearntQuirks::default();
    Ok(S3Store { wire, template, credentials, clock, region, endpoint, path_style, learnt })
}

/// What the SDK's endpoint rules depend on, beside the bucket.
pub(super) struct EndpointRules {
    pub(super) region: String,
    pub(super) url: Option<String>,
    pub(super) path_style: bool,
    pub(super) fips: Option<bool>,
    pub(super) dual_stack: Option<bool>,
}

impl EndpointRules {
    pub(super) async fn resolve(self, bucket: &str) -> Result<Endpoint, StoreError> {
        let none = |cause: &dyn std::fmt::Display| {
            StoreError::nonsense(format!("no request could be made: {cause}"))
        };
        let params = Params::builder()
            .bucket(bucket)
            .region(self.region)
            .set_endpoint(self.url)
            .force_path_style(self.path_style)
            .set_use_fips(self.fips)
            .set_use_dual_stack(self.dual_stack)
            // Requests are signed with the credentials themselves, not with those of a session.
            .disable_s3_express_session_auth(true)
            .build()
            .map_err(|error| none(&error))?;
        let found = DefaultResolver::new().resolve_endpoint(&params).await;
        found.map_err(|error| none(&innermost(&*error)))
    }
}

/// A profile that is named must exist; the SDK would continue with other sources.
async fn check_profile(name: &str) -> Result<(), StoreError> {
    #[allow(clippy::default_trait_access)] // the type is of a crate that nothing else is used of
    let files = Default::default();
    let profiles = aws_config::profile::load(&Fs::real(), &Env::real(), &files, None)
        .await
        .map_err(|error| StoreError::NoCredentials(innermost(&error)))?;
    if profiles.get_profile(name).is_some() {
        return Ok(());
    }
    Err(StoreError::NoCredentials(format!("the AWS configuration files have no profile {name:?}")))
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
async fn guess_region(endpoint: Option<&str>) -> Region {
    let fallback = Region::from_static(FIRST_REGION);
    if endpoint.is_some_and(is_custom) {
        return fallback;
    }
    let imds = ImdsRegionProvider::builder().build();
    let found = tokio::time::timeout(IMDS_REGION_TIMEOUT, imds.region()).await;
    found.ok().flatten().unwrap_or(fallback)
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
