//! From the configuration to a client: endpoint, region, credentials, certificates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    IdentityCache, ProvideCredentials as _, RequestChecksumCalculation, ResponseChecksumValidation,
};
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::service_config::ServiceConfigKey;

use super::Keys;
use super::errors::credentials_failure;
use super::http::{self, Trust};
use super::renewal::Renewing;
use crate::app::config::{Hedging, PathStyle, StoreConfig};
use crate::stats::Stats;
use crate::store::StoreError;
use crate::store::wire::Wire;

/// The instance metadata service answers at once, or this is not an EC2 instance.
const IMDS_REGION_TIMEOUT: Duration = Duration::from_secs(1);
/// A listing or a HEAD, its body included: no page takes so long that is still coming.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// Where a bucket is asked for when nobody has said where it is; the answer corrects it.
const FIRST_REGION: &str = "us-east-1";

/// A client, and what it was made of.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) client: Client,
    /// What the client sends its requests through.
    pub(super) wire: Arc<Wire>,
    /// What signed requests are signed with.
    pub(super) credentials: Option<Renewing>,
    pub(super) region: String,
    /// Where requests go, for people.
    pub(super) endpoint: String,
    /// Buckets stand in the path of URLs.
    pub(super) path_style: bool,
}

/// Finds endpoint, region and credentials, and makes a client of them; sends nothing to the store.
pub(super) async fn connect(
    config: &StoreConfig,
    region: Option<&str>,
    keys: Option<&Keys>,
    stats: &Arc<Stats>,
) -> Result<Connected, StoreError> {
    let wrong = |cause: String| StoreError::Unavailable(cause);
    let roots = Trust::Roots(config.ca_bundle.as_deref());
    // Credentials are never fetched from an unverified peer, whatever is said of the store.
    let hedging = config.hedging == Hedging::Auto;
    let verified = http::wire(&roots, hedging, stats).map_err(wrong)?;
    let to_store = if config.no_verify_tls {
        http::wire(&Trust::Anybody, hedging, stats).map_err(wrong)?
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
        // Something must be set, or the loader asks the metadata service for as long as it likes.
        let region = told.clone().unwrap_or(Region::from_static(FIRST_REGION));
        let (profile, keys) = (config.profile.clone(), keys.cloned());
        let unsigned = config.no_sign_request;
        move || {
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(http::client(Arc::clone(&verified)))
                .region(region.clone());
            if let Some(profile) = &profile {
                loader = loader.profile_name(profile);
            }
            if unsigned {
                loader.no_credentials()
            } else if let Some(Keys { access_key_id, secret_access_key }) = &keys {
                loader.credentials_provider(Credentials::new(
                    access_key_id,
                    secret_access_key,
                    None,
                    None,
                    "given keys",
                ))
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

    let path_style = path_style(config.path_style, endpoint.as_deref());
    let mut builder = aws_sdk_s3::config::Builder::from(&sdk)
        .http_client(http::client(Arc::clone(&to_store)))
        .region(region.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build())
        // Silence is watched where bodies are received.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // A SHA-256 that the store sends would cost 1 s/GB to check.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .force_path_style(path_style);
    if let Some(url) = &endpoint {
        builder = builder.endpoint_url(with_slash(url));
    }
    builder = match &credentials {
        // They keep what there is to keep.
        Some(credentials) => builder
            .credentials_provider(credentials.clone())
            .identity_cache(IdentityCache::no_cache()),
        None => builder.allow_no_auth(),
    };
    let region = region.to_string();
    let endpoint = endpoint.unwrap_or_else(|| format!("AWS, {region}"));
    let client = Client::from_conf(builder.build());
    Ok(Connected { client, wire: to_store, credentials, region, endpoint, path_style })
}

/// A profile that was asked for by name must exist; the SDK would go on to whatever else it finds.
async fn check_profile(name: &str) -> Result<(), StoreError> {
    #[allow(clippy::default_trait_access)] // the type is of a crate that nothing else is used of
    let files = Default::default();
    let profiles = aws_config::profile::load(&Fs::real(), &Env::real(), &files, None)
        .await
        .map_err(|error| StoreError::NoCredentials(http::innermost(&error)))?;
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

/// Nobody has told a region: other makers' stores do not care, and on AWS the instance's own is the
/// best guess.
async fn guess_region(endpoint: Option<&str>) -> Region {
    let fallback = Region::from_static(FIRST_REGION);
    if endpoint.is_some_and(is_custom) {
        return fallback;
    }
    let imds = ImdsRegionProvider::builder().build();
    tokio::time::timeout(IMDS_REGION_TIMEOUT, imds.region())
        .await
        .ok()
        .flatten()
        .unwrap_or(fallback)
}

async fn check_credentials(credentials: &Renewing) -> Result<(), StoreError> {
    match credentials.provide_credentials().await {
        Ok(_credentials) => Ok(()),
        Err(CredentialsError::ProviderTimedOut(_)) => {
            Err(StoreError::NoCredentials("no provider answered in time".to_owned()))
        }
        // At the start it does not matter whether they may come later.
        Err(error) => match credentials_failure(&error) {
            StoreError::TimedOut(cause) | StoreError::Unavailable(cause) => {
                Err(StoreError::NoCredentials(cause))
            }
            other => Err(other),
        },
    }
}

fn path_style(style: PathStyle, endpoint: Option<&str>) -> bool {
    match style {
        PathStyle::Always => true,
        PathStyle::Never => false,
        PathStyle::Auto => endpoint.is_some_and(is_custom),
    }
}

/// Whether an endpoint is an address or a host outside AWS, where names of buckets are seldom names
/// of hosts.
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
