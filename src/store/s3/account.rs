//! The AWS configuration as the AWS CLI reads it: profile, region, and the chain of providers of
//! credentials. Sends nothing to the store.

use std::borrow::Cow;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::os_shim_internal::{Env, Fs};

use super::config::{Keys, StoreConfig};
use super::credentials::{AHEAD, HELPER_LIMIT, LIMIT, Renewing};
use crate::base::text::innermost;
use crate::store::StoreError;

/// The profile that is used when none is named; it need not exist.
const DEFAULT_PROFILE: &str = "default";
/// Profiles that name each other as their source.
const LONGEST_CHAIN: usize = 8;

pub(super) struct AwsAccount {
    pub(super) sdk: SdkConfig,
    /// None when nothing names one.
    pub(super) region: Option<Region>,
    /// None when requests are not signed.
    pub(super) credentials: Option<Renewing>,
}

impl AwsAccount {
    /// `keys` stand in for the providers. `first_region` is where providers ask that need a region,
    /// if none is named.
    pub(super) async fn find(
        config: &StoreConfig,
        keys: Option<&Keys>,
        client: SharedHttpClient,
        first_region: &'static str,
    ) -> Result<Self, StoreError> {
        let profiles = profiles(config.profile.as_deref()).await?;
        let mut profile_region = ProfileFileRegionProvider::builder();
        if let Some(profile) = &config.profile {
            profile_region = profile_region.profile_name(profile);
        }
        let region = RegionProviderChain::first_try(config.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(profile_region.build())
            .region()
            .await;
        // Without a region, the loader would ask the metadata service, without a limit.
        let maker = ChainMaker {
            region: region.clone().unwrap_or(Region::from_static(first_region)),
            client,
            profile: config.profile.clone(),
            keys: keys.cloned(),
        };
        let sdk = maker.loader().no_credentials().load().await;
        let credentials = (!config.no_sign_request).then(|| {
            let limit = if has_helper(&profiles) { HELPER_LIMIT } else { LIMIT };
            Renewing::new(limit, AHEAD, move || {
                let maker = maker.clone();
                Box::pin(async move { maker.chain().await })
            })
        });
        Ok(Self { sdk, region, credentials })
    }
}

/// What each new chain of providers is made of.
#[derive(Clone)]
struct ChainMaker {
    region: Region,
    client: SharedHttpClient,
    /// Named by an option.
    profile: Option<String>,
    keys: Option<Keys>,
}

impl ChainMaker {
    fn loader(&self) -> ConfigLoader {
        let loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.client.clone())
            .region(self.region.clone());
        match &self.profile {
            Some(profile) => loader.profile_name(profile),
            None => loader,
        }
    }

    async fn chain(&self) -> Option<SharedCredentialsProvider> {
        if let Some(Keys { access_key_id: id, secret_access_key: secret }) = &self.keys {
            let keys = Credentials::new(id, secret, None, None, "given keys");
            return Some(SharedCredentialsProvider::new(keys));
        }
        let Some(profile) = &self.profile else {
            return self.loader().load().await.credentials_provider();
        };
        // The default chain begins with the environment, but who names a profile means it.
        let config = ProviderConfig::without_region()
            .with_region(Some(self.region.clone()))
            .with_http_client(self.client.clone());
        let of_profile = ProfileFileCredentialsProvider::builder();
        let of_profile = of_profile.configure(&config).profile_name(profile).build();
        let of_container = EcsCredentialsProvider::builder().configure(&config).build();
        let of_machine = ImdsCredentialsProvider::builder().configure(&config).build();
        let chain = CredentialsProviderChain::first_try("Profile", of_profile)
            .or_else("EcsContainer", of_container)
            .or_else("Ec2InstanceMetadata", of_machine);
        Some(SharedCredentialsProvider::new(chain))
    }
}

/// A profile that is named, by the option or by `AWS_PROFILE`, must exist; the SDK would continue
/// with other sources.
async fn profiles(named: Option<&str>) -> Result<ProfileSet, StoreError> {
    #[allow(clippy::default_trait_access)] // the type is of a crate that nothing else is used of
    let files = Default::default();
    let named = named.map(|name| Cow::Owned(name.to_owned()));
    let profiles = aws_config::profile::load(&Fs::real(), &Env::real(), &files, named)
        .await
        .map_err(|error| StoreError::NoCredentials(innermost(&error)))?;
    let name = profiles.selected_profile();
    if name == DEFAULT_PROFILE || profiles.get_profile(name).is_some() {
        return Ok(profiles);
    }
    Err(StoreError::NoCredentials(format!("the AWS configuration files have no profile {name:?}")))
}

/// Credentials come from a program, which may ask a person or a slow service.
fn has_helper(profiles: &ProfileSet) -> bool {
    let source = |name: &&str| profiles.get_profile(name)?.get("source_profile");
    let chain = std::iter::successors(Some(profiles.selected_profile()), source);
    chain.take(LONGEST_CHAIN).any(|name| {
        profiles.get_profile(name).is_some_and(|it| it.get("credential_process").is_some())
    })
}
