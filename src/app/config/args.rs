//! The options as clap sees them: names, groups, defaults, environment variables, and how one value
//! is read. The texts here are those of `--help`.
#![allow(clippy::doc_markdown)] // backticks would be shown too

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{
    BoolishValueParser, NonEmptyStringValueParser, PossibleValue, RangedI64ValueParser,
};
use clap::{Args as Group, Parser, ValueEnum};

use super::{LogFormat, Outlive, endpoint_url};
use crate::store::s3::config::{Hedging, PathStyle};

const COMMANDS: &str = "\
Commands (to mount a bucket with one of these names, write s3://status):
  status MOUNTPOINT    show settings and totals
  top MOUNTPOINT       show current activity, live
  warm PATH...         read files and directories in advance
  record MOUNTPOINT    write down what a program uses first, for warm --profile
  drop MOUNTPOINT      forget cached names and bytes
  unmount MOUNTPOINT   end a mount
  cache WORD DIR       show, verify or clear what a --cache-dir holds
  doctor BUCKET        test the store and this machine, and report what is wrong or slow
Each has its own --help.";

/// Mounts an S3 bucket read-only, so that any program reads objects with plain open().
///
/// Each option can also be set by the environment variable shown in brackets; the command line
/// takes precedence. Sizes are written like 512MiB or 4GiB (K, M, G mean KiB, MiB, GiB; MB and GB
/// are decimal), durations like 500ms, 60s or 5m.
#[derive(Debug, Parser)]
#[command(name = "fasts3-mount", version = crate::VERSION, max_term_width = 100)]
#[command(after_help = COMMANDS)]
pub(crate) struct Args {
    /// Bucket to mount: bucket, bucket/prefix or s3://bucket/prefix/, or the ARN or alias of an
    /// access point instead of the bucket; or several, each in a directory:
    /// images=s3://a/train,labels=s3://b
    #[arg(value_name = "BUCKET")]
    pub(crate) buckets: Buckets,

    /// Existing directory to mount on; or /dev/fd/N, a mount that the calling process has made
    #[arg(value_name = "MOUNTPOINT")]
    pub(crate) mountpoint: PathBuf,

    #[command(flatten)]
    pub(crate) options: MountArgs,
}

/// The options of a mount, which are those of the doctor, too.
#[derive(Debug, Group)]
pub(crate) struct MountArgs {
    #[command(flatten)]
    pub(super) store: StoreArgs,
    #[command(flatten)]
    pub(super) cache: CacheArgs,
    #[command(flatten)]
    pub(super) disk: super::disk::DiskArgs,
    #[command(flatten)]
    pub(super) shared: super::shared::SharedArgs,
    #[command(flatten)]
    pub(super) names: NameArgs,
    #[command(flatten)]
    pub(super) permissions: PermissionArgs,
    #[command(flatten)]
    pub(super) monitoring: MonitoringArgs,
    #[command(flatten)]
    pub(super) log: LogConfig,
    #[command(flatten)]
    pub(super) process: ProcessArgs,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Store")]
pub(super) struct StoreArgs {
    /// Address of the store [default: from the AWS configuration, otherwise AWS]
    #[arg(long, value_name = "URL", env = "FASTS3_ENDPOINT_URL", value_parser = endpoint_url)]
    pub(super) endpoint_url: Option<String>,

    /// Region of the bucket [default: from the AWS configuration, corrected by the bucket's answer]
    #[arg(long, value_name = "REGION", env = "FASTS3_REGION",
          value_parser = NonEmptyStringValueParser::new())]
    pub(super) region: Option<String>,

    /// Profile of the AWS configuration files [default: AWS_PROFILE, or "default"]
    #[arg(long, value_name = "NAME", env = "FASTS3_PROFILE",
          value_parser = NonEmptyStringValueParser::new())]
    pub(super) profile: Option<String>,

    /// Send unsigned requests, for public buckets [default: false]
    #[arg(long, env = "FASTS3_NO_SIGN_REQUEST", value_parser = BoolishValueParser::new())]
    pub(super) no_sign_request: bool,

    /// Agree to pay for the requests to a requester-pays bucket [default: false]
    #[arg(long, env = "FASTS3_REQUESTER_PAYS", value_parser = BoolishValueParser::new())]
    pub(super) requester_pays: bool,

    /// Put the bucket into the path of URLs instead of the host name
    #[arg(long, value_name = "WHEN", env = "FASTS3_PATH_STYLE", default_value = "auto")]
    pub(super) path_style: PathStyle,

    /// PEM file of certificates to trust in addition to the system's [default: AWS_CA_BUNDLE]
    #[arg(long, value_name = "FILE", env = "FASTS3_CA_BUNDLE")]
    pub(super) ca_bundle: Option<PathBuf>,

    /// Accept any TLS certificate: others on the network can then read and alter the data [default:
    /// false]
    #[arg(long, env = "FASTS3_NO_VERIFY_TLS", value_parser = BoolishValueParser::new())]
    pub(super) no_verify_tls: bool,

    /// Send a request a second time if its answer is late, which adds at most 5 % of requests
    #[arg(long, value_name = "WHEN", env = "FASTS3_HEDGING", default_value = "auto")]
    pub(super) hedging: Hedging,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Cache and reading")]
pub(crate) struct CacheArgs {
    /// Limit of cached and in-flight object bytes [default: a quarter of the memory of the machine
    /// or its cgroup, at most 8GiB]
    #[arg(long, value_name = "SIZE", env = "FASTS3_MEMORY_BUDGET", value_parser = size)]
    pub(super) memory_budget: Option<u64>,

    /// Unit of the cache's memory [default: 4MiB, less if the memory budget is below 512MiB]
    #[arg(long = "chunk-size", value_name = "SIZE", env = "FASTS3_CHUNK_SIZE", value_parser = size)]
    pub(crate) chunk_bytes: Option<u64>,

    /// Size of one request of a sequential stream [default: 2MiB or 4MiB, as measured of the store]
    #[arg(long = "part-size", value_name = "SIZE", env = "FASTS3_PART_SIZE", value_parser = size)]
    pub(crate) part_bytes: Option<u64>,

    /// Readahead of the kernel, which only root can set; 0 keeps the kernel's default of 128KiB
    #[arg(long = "kernel-readahead", value_name = "SIZE", env = "FASTS3_KERNEL_READAHEAD",
          default_value = "1MiB", value_parser = size)]
    pub(crate) kernel_readahead_bytes: u64,

    /// Fail an operation after this long without progress; until then it is retried
    #[arg(long, value_name = "DURATION", env = "FASTS3_IO_TIMEOUT", default_value = "30s",
          value_parser = duration)]
    pub(crate) io_timeout: Duration,

    /// Largest number of requests in flight
    #[arg(long, value_name = "NUMBER", env = "FASTS3_MAX_CONNECTIONS", default_value = "128",
          value_parser = RangedI64ValueParser::<usize>::new().range(1..=4096))]
    pub(crate) max_connections: usize,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Names")]
pub(crate) struct NameArgs {
    /// Lifetime of cached names and attributes: a duration, or indefinite
    // clap takes a plain `Option` for an option that may be absent.
    #[arg(long, value_name = "DURATION", env = "FASTS3_METADATA_TTL", default_value = "60s",
          value_parser = ttl)]
    pub(crate) metadata_ttl: std::option::Option<Duration>,

    /// Lifetime of the cached answer that a name does not exist
    #[arg(long, value_name = "DURATION", env = "FASTS3_NEGATIVE_TTL", default_value = "5s",
          value_parser = duration)]
    pub(crate) negative_ttl: Duration,

    /// Limit of memory for listings, about 70 bytes a name; the least recently used are dropped
    /// first
    #[arg(long = "names-budget", value_name = "SIZE", env = "FASTS3_NAMES_BUDGET",
          default_value = "1GiB", value_parser = size)]
    pub(crate) budget_bytes: u64,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Permissions")]
pub(crate) struct PermissionArgs {
    /// Owner of all files [default: the calling user]
    #[arg(long, value_name = "ID", env = "FASTS3_UID", hide_default_value = true,
          default_value_t = nix::unistd::getuid().as_raw())]
    pub(crate) uid: u32,

    /// Group of all files [default: the calling user's]
    #[arg(long, value_name = "ID", env = "FASTS3_GID", hide_default_value = true,
          default_value_t = nix::unistd::getgid().as_raw())]
    pub(crate) gid: u32,

    /// Permission bits of files, octal; bits to write are for copies, the mount stays read-only
    #[arg(long, value_name = "MODE", env = "FASTS3_FILE_MODE", default_value = "0444",
          value_parser = mode)]
    pub(crate) file_mode: u16,

    /// Permission bits of directories, octal
    #[arg(long, value_name = "MODE", env = "FASTS3_DIR_MODE", default_value = "0555",
          value_parser = mode)]
    pub(crate) dir_mode: u16,

    /// Let all users of the machine use the mount [default: false]
    #[arg(long, env = "FASTS3_ALLOW_OTHER", value_parser = BoolishValueParser::new(),
          conflicts_with = "allow_root")]
    pub(super) allow_other: bool,

    /// Let root use the mount in addition to the calling user [default: false]
    #[arg(long, env = "FASTS3_ALLOW_ROOT", value_parser = BoolishValueParser::new())]
    pub(super) allow_root: bool,

    /// Forbid executing programs in the mount [default: false]
    #[arg(long, env = "FASTS3_NO_EXEC", value_parser = BoolishValueParser::new())]
    pub(in crate::app) no_exec: bool,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Monitoring")]
pub(super) struct MonitoringArgs {
    /// Serve Prometheus metrics at /metrics on this port of the loopback, or on this address and
    /// port [default: not served]
    #[arg(long, value_name = "ADDRESS", env = "FASTS3_METRICS_LISTEN",
          value_parser = listen_address)]
    pub(super) metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogConfig {
    /// Level: error, warn, info, debug or trace; or directives like fasts3_mount=debug,hyper=info
    #[arg(long = "log-level", value_name = "LEVEL", env = "FASTS3_LOG_LEVEL",
          default_value = "info", value_parser = log_filter)]
    pub(crate) filter: String,

    /// Format of log lines
    #[arg(
        long = "log-format",
        value_name = "FORMAT",
        env = "FASTS3_LOG_FORMAT",
        default_value = "text"
    )]
    pub(crate) format: LogFormat,
}

#[derive(Debug, Group)]
#[command(next_help_heading = "Process")]
pub(super) struct ProcessArgs {
    /// Return when the mount is usable, and continue in the background [default: false]
    #[arg(long, env = "FASTS3_DAEMON", value_parser = BoolishValueParser::new())]
    pub(super) daemon: bool,

    /// Start the daemon again when it dies, and let programs wait meanwhile, instead of ending the
    /// mount
    #[arg(long, value_name = "WHEN", env = "FASTS3_OUTLIVE", default_value = "auto")]
    pub(super) outlive: Outlive,
}

/// One bucket that is the root of the mount, or several in directories of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets(pub(super) Vec<BucketPrefix>);

impl FromStr for Buckets {
    type Err = String;

    /// In one word, because a bucket is one word wherever it is written: in units, in fstab.
    fn from_str(text: &str) -> Result<Self, String> {
        /// The name of a directory, if the text begins with one. No bucket has a `=`, and the one
        /// of a prefix is behind a slash.
        fn named(text: &str) -> Option<(&str, &str)> {
            text.split_once('=').filter(|(name, _)| !name.contains('/'))
        }

        if named(text).is_none() {
            return Ok(Self(vec![text.parse()?]));
        }
        let mut parts: Vec<String> = Vec::new();
        for part in text.split(',') {
            match parts.last_mut() {
                // A comma of a prefix.
                Some(last) if named(part).is_none() => *last = format!("{last},{part}"),
                _ => parts.push(part.to_owned()),
            }
        }
        let mut buckets: Vec<BucketPrefix> = Vec::new();
        for part in &parts {
            let (name, bucket) =
                named(part).ok_or_else(|| format!("{part:?} needs a directory: NAME={part}"))?;
            let directory = root_prefix(name)?;
            if directory.is_empty() || buckets.iter().any(|other| other.directory == directory) {
                return Err(format!("each bucket needs a directory of its own, not {name:?}"));
            }
            buckets.push(BucketPrefix { directory, ..bucket.parse()? });
        }
        Ok(Self(buckets))
    }
}

/// A bucket, and the prefix below which its keys are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketPrefix {
    /// Its place in the root of the mount: empty, or a name and a `/`.
    pub(crate) directory: String,
    pub(crate) name: String,
    /// Empty, or ends with `/`.
    pub(crate) prefix: String,
}

impl FromStr for BucketPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("s3://").unwrap_or(text);
        if path.starts_with("arn:") {
            let (name, prefix) = access_point(path)?;
            let (directory, prefix) = (String::new(), root_prefix(prefix)?);
            return Ok(Self { directory, name: name.to_owned(), prefix });
        }
        let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
        // Ceph has tenants, each with its own buckets: `tenant:bucket`.
        let (tenant, bucket) = name.split_once(':').unwrap_or(("", name));
        // The general rules for bucket names, and the letters that old buckets of us-east-1 and
        // other S3-compatible stores allow: the store decides.
        // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
        let bytes = bucket.as_bytes();
        let ends_well = [bytes.first(), bytes.last()]
            .into_iter()
            .all(|byte| byte.is_some_and(u8::is_ascii_alphanumeric));
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
        let is_tenant = tenant.len() <= 63 && tenant.as_bytes().iter().all(allowed);
        if !(3..=63).contains(&bytes.len())
            || !ends_well
            || !bytes.iter().all(allowed)
            || !is_tenant
        {
            return Err(format!(
                "{name:?} is not a bucket name: 3 to 63 letters, digits, dots and hyphens, \
                 beginning and ending with a letter or digit"
            ));
        }
        Ok(Self { directory: String::new(), name: name.to_owned(), prefix: root_prefix(prefix)? })
    }
}

impl BucketPrefix {
    /// `s3://bucket/prefix/`
    pub(crate) fn url(&self) -> String {
        format!("s3://{}/{}", self.name, self.prefix)
    }
}

/// An access point's ARN, `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, and the prefix behind
/// it. The resource is `accesspoint/NAME`, or on an outpost `outpost/ID/accesspoint/NAME`, also
/// with colons. The endpoint rules of the SDK check the rest.
fn access_point(path: &str) -> Result<(&str, &str), String> {
    let odd = || format!("{path:?} is not the ARN of an access point");
    let parts: Vec<&str> = path.splitn(6, ':').collect();
    let [_, _, service, region, account, resource] = parts[..] else { return Err(odd()) };
    if region.is_empty() {
        return Err("multi-region access points are not supported: give one of a region".into());
    }
    let words = match service {
        "s3" | "s3-object-lambda" => 2,
        "s3-outposts" => 4,
        _ => return Err(odd()),
    };
    let ends = resource.match_indices(['/', ':']).map(|(at, _)| at).nth(words - 1);
    let (resource, prefix) = ends.map_or((resource, ""), |at| resource.split_at(at));
    let is_word = |word: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
        !word.is_empty() && word.bytes().all(allowed)
    };
    let found: Vec<&str> = resource.split(['/', ':']).collect();
    let is_point = found.len() == words
        && found[words - 2] == "accesspoint"
        && (prefix.is_empty() || prefix.starts_with('/'));
    if !is_point || ![account, region].iter().chain(&found).all(|word| is_word(word)) {
        return Err(odd());
    }
    Ok((&path[..path.len() - prefix.len()], prefix.strip_prefix('/').unwrap_or(prefix)))
}

/// The prefix must be a valid path itself: otherwise no key below it could be shown.
fn root_prefix(prefix: &str) -> Result<String, String> {
    if prefix.is_empty() {
        return Ok(String::new());
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    for component in prefix.split('/') {
        if matches!(component, "" | "." | "..") || component.contains('\0') {
            return Err(format!("the prefix {prefix:?} is not a path: it contains {component:?}"));
        }
        if component.len() > 255 {
            return Err("a component of the prefix is longer than 255 bytes".to_owned());
        }
    }
    if prefix.len() >= 1024 {
        return Err("the prefix is longer than a key may be, 1024 bytes".to_owned());
    }
    Ok(format!("{prefix}/"))
}

/// `512M` is 512 MiB, as for dd, systemd and mount; for bytesize a bare letter is decimal.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let binary = match text.chars().last() {
        Some('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T') => format!("{text}iB"),
        _ => text.to_owned(),
    };
    binary
        .parse::<bytesize::ByteSize>()
        .map(|size| size.as_u64())
        .map_err(|_| "a size is written like 512MiB or 4GiB".to_owned())
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "a duration is written with its unit, like 500ms, 60s or 5m".to_owned())
}

/// A port alone is one of the loopback: metrics are not meant for the network.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        "a port, or an address and a port like 127.0.0.1:9105, 0.0.0.0:9105 or [::]:9105".into()
    })
}

/// A duration; `None` is indefinite.
fn ttl(text: &str) -> Result<Option<Duration>, String> {
    if text == "indefinite" {
        return Ok(None);
    }
    duration(text).map(Some).map_err(|error| format!("{error}, or is `indefinite`"))
}

pub(super) fn mode(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = u16::from_str_radix(digits, 8).ok().filter(|&mode| mode <= 0o777);
    mode.ok_or_else(|| "permission bits are written in octal, 0000 to 0777".to_owned())
}

/// Valid directives of `EnvFilter`.
fn log_filter(text: &str) -> Result<String, String> {
    let filter = match text.to_ascii_lowercase().as_str() {
        // The debug lines of libraries show every request and would hide those of this program.
        // aws_config warns of each provider of credentials that is absent.
        level @ ("warn" | "info" | "debug" | "trace") => {
            format!("warn,aws_config=error,fasts3_mount={level}")
        }
        "error" => "error".to_owned(),
        _ => text.to_owned(),
    };
    // EnvFilter takes an unknown word for the name of a target, and would log nothing. It panics on
    // some texts that are not ASCII (tracing-subscriber 0.3.23).
    let is_known = filter.contains('=') || filter == "error" || filter == "off";
    if is_known && filter.is_ascii() && tracing_subscriber::EnvFilter::try_new(&filter).is_ok() {
        Ok(filter)
    } else {
        Err("neither a level nor a list of target=level".to_owned())
    }
}

impl ValueEnum for PathStyle {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Always, Self::Never]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => ("auto", "If the endpoint is an IP address or a host outside AWS"),
            Self::Always => ("always", "https://host/bucket/key"),
            Self::Never => ("never", "https://bucket.host/key"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl ValueEnum for Hedging {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Auto, Self::Never]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Auto => ("auto", "After a time that is learnt from earlier answers"),
            Self::Never => ("never", "Not at all"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_written_in_three_ways_and_an_access_point_as_an_arn() {
        const POINT: &str = "arn:aws:s3:eu-west-1:1:accesspoint/x";
        const OUTPOST: &str = "arn:aws:s3-outposts:eu-west-1:1:outpost/op-1/accesspoint/x";
        let long = "b".repeat(64);
        for (text, want) in [
            ("data", Some(("data", ""))),
            ("data/", Some(("data", ""))),
            ("data/a/b", Some(("data", "a/b/"))),
            ("s3://data/a/b/", Some(("data", "a/b/"))),
            ("s3://data", Some(("data", ""))),
            ("s3://my.data-1/ä ö", Some(("my.data-1", "ä ö/"))),
            ("tenant_1:data/a", Some(("tenant_1:data", "a/"))),
            ("te nant:data", None),
            ("tenant:", None),
            ("a:b:data", None),
            ("", None),
            ("s3://", None),
            ("/data", None),
            ("ab", None),
            (long.as_str(), None),
            ("-data", None),
            ("da ta", None),
            ("data//", None),
            ("data/a//b", None),
            ("data/../b", None),
            ("data/.", None),
            (POINT, Some((POINT, ""))),
            ("s3://arn:aws:s3:eu-west-1:1:accesspoint/x/a/b", Some((POINT, "a/b/"))),
            (
                "arn:aws:s3:eu-west-1:1:accesspoint:x",
                Some(("arn:aws:s3:eu-west-1:1:accesspoint:x", "")),
            ),
            (OUTPOST, Some((OUTPOST, ""))),
            (
                "arn:aws:s3-outposts:eu-west-1:1:outpost/op-1/accesspoint/x/a/",
                Some((OUTPOST, "a/")),
            ),
            ("arn:aws:s3::1:accesspoint/x.mrap", None),
            ("arn:aws:s3:eu-west-1:1:accesspoint", None),
            ("arn:aws:s3:eu-west-1:1:accesspoint/", None),
            ("arn:aws:s3:eu-west-1:1:accesspoint/x//", None),
            ("arn:aws:s3:eu-west-1:1:accesspoint/x@y", None),
            ("arn:aws:s3:eu-west-1:1:accesspoint/x:y", None),
            ("arn:aws:s3:::bucket/key", None),
            ("arn:aws:iam:eu-west-1:1:accesspoint/x", None),
            ("data--use1-az4--x-s3/a", Some(("data--use1-az4--x-s3", "a/"))),
        ] {
            let parsed = text.parse::<BucketPrefix>();
            let shown = parsed.as_ref().ok().map(|b| (b.name.as_str(), b.prefix.as_str()));
            assert_eq!(shown, want, "{text}: {parsed:?}");
        }
    }

    #[test]
    fn several_buckets_are_one_word_with_a_directory_for_each() {
        for (text, want) in [
            ("data/date=1,x", Some(vec!["", "s3://data/date=1,x/"])),
            ("a=s3://data/p,b=data", Some(vec!["a/", "s3://data/p/", "b/", "s3://data/"])),
            ("a=data/x=1,y,b=data", Some(vec!["a/", "s3://data/x=1,y/", "b/", "s3://data/"])),
            ("a=data", Some(vec!["a/", "s3://data/"])),
            ("a=data,a=more", None),
            ("a=data,b=", None),
            ("=data", None),
            ("..=data", None),
            ("data,a=more", None),
        ] {
            let parsed = text.parse::<Buckets>();
            let shown = parsed.as_ref().ok().map(|buckets| {
                let parts = buckets.0.iter().map(|one| [one.directory.clone(), one.url()]);
                parts.flatten().collect::<Vec<_>>()
            });
            assert_eq!(
                shown,
                want.map(|want| want.into_iter().map(str::to_owned).collect()),
                "{text}: {parsed:?}"
            );
        }
    }

    #[test]
    fn sizes_mean_what_they_say() {
        for (text, want) in [
            ("128KiB", Some(128 << 10)),
            ("8MiB", Some(8 << 20)),
            ("4 GiB", Some(4 << 30)),
            ("512M", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("10MB", Some(10_000_000)),
            ("1.5GiB", Some(3 << 29)),
            ("4096", Some(4096)),
            ("0", Some(0)),
            ("", None),
            ("-1", None),
            ("lots", None),
            ("3x", None),
        ] {
            assert_eq!(size(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn endpoints_are_http_urls() {
        for (url, good) in [
            ("http://127.0.0.1:9000", true),
            ("https://s3.example.com/", true),
            ("localhost:9000", false),
            ("ftp://x", false),
            ("http://user:pass@x", false),
            ("https://x/?a=b", false),
            ("http://", false),
            ("", false),
        ] {
            assert_eq!(endpoint_url(url).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn a_port_alone_is_one_of_the_loopback() {
        for (text, want) in [
            ("9105", Some("127.0.0.1:9105")),
            (":9105", Some("127.0.0.1:9105")),
            ("0.0.0.0:9105", Some("0.0.0.0:9105")),
            ("[::1]:0", Some("[::1]:0")),
            ("localhost:9105", None),
            ("70000", None),
            ("10.0.0.1", None),
        ] {
            let address = listen_address(text).ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn levels_and_directives_are_told_apart() {
        for (text, want) in [
            ("info", Some("warn,aws_config=error,fasts3_mount=info")),
            ("DEBUG", Some("warn,aws_config=error,fasts3_mount=debug")),
            ("error", Some("error")),
            ("hyper=info,fasts3_mount=trace", Some("hyper=info,fasts3_mount=trace")),
            ("loud", None),
            ("fasts3_mount=loud", None),
            (" 𞀉=:", None),
        ] {
            assert_eq!(log_filter(text).ok().as_deref(), want);
        }
    }

    mod fuzz {
        use clap::CommandFactory as _;
        use proptest::prelude::*;

        use super::*;
        use crate::app::config::NotParsed;
        use crate::testing::fuzz;

        /// No text makes a parser of options panic, and what is taken means what it says.
        #[test]
        fn any_text_is_an_option_or_refused() {
            let text = fuzz::text(
                "\\PC{0,40}|[0-9.]{0,20} ?[kKmMgGtTiB]{0,3}|[a-z/.:-]{0,30}|\
                 https?://[a-z@:/?.]{0,12}|arn:aws:s3:[a-z]?:1:[a-z]{0,2}accesspoint[/:a-z]{0,9}|\\[?[0-9.:]{0,20}\\]?:?[0-9]{0,6}",
            );
            fuzz::each(text, |text| {
                if let Ok(bucket) = text.parse::<BucketPrefix>() {
                    let is_arn = bucket.name.starts_with("arn:");
                    let name = bucket.name.rsplit(':').next().unwrap_or_default();
                    prop_assert!(is_arn || (3..=63).contains(&name.len()));
                    prop_assert!(bucket.prefix.is_empty() || bucket.prefix.ends_with('/'));
                    let path = format!("/{}", bucket.prefix);
                    prop_assert!(!path.contains("//"), "{}", path);
                    // Written as a URL it is the same.
                    let url = format!("s3://{}/{}", bucket.name, bucket.prefix);
                    prop_assert_eq!(url.parse::<BucketPrefix>(), Ok(bucket));
                }
                if let Ok(mode) = mode(&text) {
                    prop_assert_eq!(mode & !0o777, 0);
                    prop_assert_eq!(super::mode(&format!("{mode:o}")), Ok(mode));
                }
                if let Ok(address) = listen_address(&text) {
                    prop_assert_eq!(listen_address(&address.to_string()), Ok(address));
                }
                if let Ok(url) = endpoint_url(&text) {
                    let place = url.split_once("//").map_or("", |(_, rest)| rest);
                    let authority = place.split(['/', '?', '#']).next().unwrap_or_default();
                    prop_assert!(!authority.contains('@') && !authority.is_empty());
                    prop_assert!(!url.contains('?') || url.contains('#'), "{}", url);
                }
                let _ = (ttl(&text), log_filter(&text));
                Ok(())
            });
        }

        #[test]
        fn sizes_and_durations_are_what_they_are_written_as() {
            let unit =
                prop::sample::select(vec![("", 0), ("K", 10), ("MiB", 20), ("g", 30), ("TiB", 40)]);
            fuzz::each((0_u64..1 << 20, unit, 0_u64..1 << 40), |(count, (unit, shift), nanos)| {
                prop_assert_eq!(size(&format!("{count}{unit}")), Ok(count << shift));
                prop_assert_eq!(size(&format!(" {count} {unit}")), Ok(count << shift));
                let wanted = Duration::from_nanos(nanos);
                let written = humantime::format_duration(wanted).to_string();
                prop_assert_eq!(duration(&written), Ok(wanted), "{}", written);
                prop_assert_eq!(ttl(&written), Ok(Some(wanted)));
                Ok(())
            });
        }

        /// Whatever else stands on the command line: it is refused in a sentence, or the bucket and
        /// the mountpoint are those that were given, and the bounds hold.
        #[test]
        fn any_command_line_is_understood_or_refused_in_a_sentence() {
            let mut names: Vec<String> = Args::command()
                .get_arguments()
                .filter_map(|argument| argument.get_long())
                .filter(|&name| name != "version" && name != "help")
                .map(|name| format!("--{name}"))
                .collect();
            names.extend(["--none".to_owned(), "-x".to_owned()]);
            let value = fuzz::text(
                "[0-9]{1,4}(s|ms|MiB|GiB|K)?|auto|never|always|0[0-7]{3}|indefinite|\\PC{0,8}|\
                 https?://[a-z.:/@?]{0,12}",
            );
            let word = (prop::sample::select(names), prop::option::of(value));
            fuzz::each(prop::collection::vec(word, 0..4), |words| {
                let mut line = vec!["fasts3-mount".to_owned()];
                for (name, value) in words {
                    line.push(value.map_or(name.clone(), |value| format!("{name}={value}")));
                }
                line.extend(["--", "s3://bucket/a", "/m"].map(str::to_owned));
                match crate::app::config::parse(line.iter().map(Into::into)) {
                    Ok(config) => {
                        prop_assert_eq!(config.source(), "s3://bucket/a/");
                        prop_assert_eq!(&config.mountpoint, std::path::Path::new("/m"));
                        prop_assert!(config.layout().chunk_bytes <= config.memory_budget_bytes);
                    }
                    Err(refused) => {
                        let NotParsed::Wrong(sentence) = refused else {
                            return Err(TestCaseError::fail("nobody asked for help"));
                        };
                        prop_assert!(!sentence.is_empty() && sentence.len() < 1000, "{}", sentence);
                    }
                }
                Ok(())
            });
        }
    }
}
