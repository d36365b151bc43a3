//! Command-line arguments and environment variables, checked, become one [`Config`].
//!
//! clap checks the options of [`args`] one by one; [`parse`] compares them with each other and with
//! the machine.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory as _};

use crate::app::environment;
use crate::base::layout::{BLOCK_BYTES, Layout};
use crate::disk::DiskConfig;
use crate::fuse::{Access, MountOptions};
use crate::store::s3::config::{FirstCredentials, Proxies, SessionAccess};
use crate::store::s3::{StoreConfig, check_bundle};

pub(crate) mod args;
mod disk;
mod helper;
mod memory;
mod shared;

pub(crate) use args::LogConfig;
pub(crate) use disk::PassthroughWhen;
pub(crate) use helper::MountCall;
pub(crate) use shared::SharedConfig;

/// Everything that the daemon needs to know, valid by construction in [`parse`].
#[derive(Debug)]
pub struct Config {
    /// One, or several in directories of their own.
    pub(crate) buckets: Vec<args::BucketPrefix>,
    pub mountpoint: PathBuf,
    /// The N of a mountpoint `/dev/fd/N`: the calling process has mounted, and this is its
    /// descriptor of `/dev/fuse`.
    pub(crate) descriptor: Option<RawFd>,
    pub(crate) store: StoreConfig,
    pub(crate) memory_budget_bytes: u64,
    /// Chunk and part are multiples of the 128 KiB block, and a part is at most a chunk.
    pub(crate) cache: args::CacheArgs,
    /// The cache on a local disk.
    pub(crate) disk: Option<DiskConfig>,
    /// Set with the cache on a local disk.
    pub(crate) passthrough: Option<PassthroughWhen>,
    /// The cache that nodes share.
    pub(crate) shared: Option<SharedConfig>,
    pub(crate) names: args::NameArgs,
    pub(crate) permissions: args::PermissionArgs,
    pub(crate) access: Access,
    pub(crate) metrics_listen: Option<SocketAddr>,
    pub(crate) daemon: bool,
    pub(crate) outlive: Outlive,
    pub(crate) log: LogConfig,
    /// Sentences about variables for which another option is missing.
    pub(crate) unused: Vec<String>,
}

impl Config {
    /// By the whole budget: without the disk cache's share it would often be less than a power of
    /// two, and all requests of half the size.
    pub(crate) fn layout(&self) -> Layout {
        Layout::within(self.memory_budget_bytes, self.cache.chunk_bytes, self.cache.part_bytes)
    }

    /// `s3://bucket/prefix/`, or `directory=s3://bucket/prefix/,…`
    pub fn source(&self) -> String {
        let shown = |bucket: &args::BucketPrefix| match bucket.directory.strip_suffix('/') {
            Some(directory) => format!("{directory}={}", bucket.url()),
            None => bucket.url(),
        };
        self.buckets.iter().map(shown).collect::<Vec<_>>().join(",")
    }

    /// The one that a command is about that takes no other.
    pub(crate) fn first(&self) -> &args::BucketPrefix {
        &self.buckets[0]
    }

    /// The part of the memory budget that is for chunks: the rest is for what goes to or comes from
    /// the disk.
    pub(crate) fn chunks_budget_bytes(&self) -> u64 {
        self.memory_budget_bytes - self.disk.as_ref().map_or(0, |disk| disk.memory_bytes)
    }

    /// A mount on this path: that of a mount that was handed over is known late.
    pub fn mount_options(&self, mountpoint: PathBuf) -> MountOptions {
        MountOptions {
            mountpoint,
            source: self.source(),
            access: self.access,
            no_exec: self.permissions.no_exec,
            kernel_readahead_bytes: self.cache.kernel_readahead_bytes,
        }
    }
}

/// When the mount outlives its daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Outlive {
    /// With --daemon, under systemd, and as the first process of a container
    Auto,
    /// Also when started by hand in the foreground
    Always,
    /// The mount ends with its daemon
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The reason why there is no [`Config`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotParsed {
    /// `--help` or `--version`: a text for standard output, and a successful end.
    Help(String),
    /// One sentence that names the option and says what is wrong with it.
    Wrong(String),
}

/// A random fault of a mapped file fetches this much, so a larger value would only cost.
const MAX_KERNEL_READAHEAD_BYTES: u64 = 16 << 20;
/// Min 1 s: less would turn one lost packet into an error. Max 1 h: more is no different from no
/// timeout.
const IO_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);
/// Parts that must fit into the budget together: two being read and two ahead of them. With less, a
/// stream would wait for its own readahead.
const PARTS_IN_BUDGET: u64 = 4;
/// Below this only the smallest files would stay cached.
const MIN_BUDGET_BYTES: u64 = 16 << 20;
/// A chunk is also the readahead window of a stream; 1 GiB in flight is beyond any network card.
const MAX_CHUNK_BYTES: u64 = 1 << 30;

/// Reads the arguments (the program's name first) and the environment, and checks everything.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Config, NotParsed> {
    let (args::Args { buckets, mountpoint, options }, unused) = parse_as(arguments)?;
    let config = validate(buckets.0, &mountpoint, options).map_err(NotParsed::Wrong)?;
    Ok(Config { unused, ..config })
}

pub(crate) fn parse_as<Parsed: clap::Parser>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Parsed, Vec<String>), NotParsed> {
    let mut command = Parsed::command();
    let matches = command.try_get_matches_from_mut(arguments);
    let matches = matches.map_err(|error| not_parsed(&error))?;
    let unused = unused(&command, &matches).map_err(NotParsed::Wrong)?;
    let parsed = Parsed::from_arg_matches(&matches);
    let parsed = parsed.map_err(|error| not_parsed(&error.format(&mut command)))?;
    Ok((parsed, unused))
}

/// What says how a cache is used is a mistake where there is none, on the command line. The
/// environment may say it for all mounts: sentences that say so.
fn unused(command: &clap::Command, matches: &ArgMatches) -> Result<Vec<String>, String> {
    if let Some((name, inner)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        return unused(command, inner);
    }
    let source = |option: &Arg| matches.value_source(option.get_id().as_str());
    let all = || command.get_arguments().filter_map(|option| Some((option.get_long()?, option)));
    let mut unused = Vec::new();
    for (needed, start) in [("cache-dir", "cache-"), ("shared-cache", "shared-cache-")] {
        let is_used = all().any(|(name, option)| name == needed && source(option).is_some());
        for (name, option) in all().filter(|(name, _)| !is_used && name.starts_with(start)) {
            let sentence = format!("--{name} needs --{needed}");
            match source(option) {
                Some(ValueSource::CommandLine) => return Err(sentence),
                Some(ValueSource::EnvVariable) => unused.push(sentence),
                _ => {}
            }
        }
    }
    Ok(unused)
}

/// The request of mount(8), if the program was called by the name of its helper, `mount.fasts3`.
pub(crate) fn mount_call(arguments: &[OsString]) -> Option<Result<MountCall, String>> {
    helper::is_called(arguments.first()).then(|| helper::parse(arguments.iter().skip(1).cloned()))
}

/// The command line as clap knows it, from which man pages and completions are made.
pub fn command() -> clap::Command {
    args::Args::command()
}

/// The message of clap in one line: the text above its first empty line.
fn not_parsed(error: &clap::Error) -> NotParsed {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return NotParsed::Help(text);
    }
    let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
    let sentence = lines.collect::<Vec<_>>().join(" ");
    NotParsed::Wrong(sentence.strip_prefix("error: ").unwrap_or(&sentence).to_owned())
}

pub(crate) fn validate(
    buckets: Vec<args::BucketPrefix>,
    mountpoint: &Path,
    options: args::MountArgs,
) -> Result<Config, String> {
    let args::MountArgs {
        store,
        cache,
        disk,
        shared,
        names,
        permissions,
        monitoring,
        log,
        process,
    } = options;
    let memory_budget_bytes = cache.memory_budget.unwrap_or_else(|| {
        // On a very small machine the default still has to hold what the other defaults need.
        memory::default_budget_bytes().max(least_budget_bytes(&cache))
    });
    check_sizes(memory_budget_bytes, &cache)?;
    if !IO_TIMEOUTS.contains(&cache.io_timeout) {
        return Err(format!(
            "--io-timeout must be between 1s and 1h, and is {}",
            humantime::format_duration(cache.io_timeout),
        ));
    }
    let (access, sharing) = match (permissions.allow_other, permissions.allow_root) {
        (true, _) => (Access::Everyone, Some("--allow-other")),
        (false, true) => (Access::OwnerAndRoot, Some("--allow-root")),
        (false, false) => (Access::Owner, None),
    };
    let mountpoint = std::path::absolute(mountpoint)
        .map_err(|error| format!("the path of the mountpoint cannot be found: {error}"))?;
    let descriptor = descriptor(&mountpoint);
    let (disk, passthrough) = disk::config(disk, &mountpoint, memory_budget_bytes)?.unzip();
    // The access to a mount that was handed over was decided when it was made.
    if let Some(option) = sharing
        && descriptor.is_none()
        && !nix::unistd::geteuid().is_root()
        && !others_are_allowed()
    {
        return Err(format!(
            "{option} needs a line `user_allow_other` in /etc/fuse.conf, or to be run as root"
        ));
    }
    let store = store_config(store)?;
    let shared = shared::config(shared, (&buckets, &store), memory_budget_bytes)?;
    Ok(Config {
        buckets,
        mountpoint,
        descriptor,
        store,
        memory_budget_bytes,
        cache,
        disk,
        passthrough,
        shared,
        names,
        permissions,
        access,
        metrics_listen: monitoring.metrics_listen,
        daemon: process.daemon,
        outlive: process.outlive,
        log,
        unused: Vec::new(),
    })
}

fn store_config(args: args::StoreArgs) -> Result<StoreConfig, String> {
    environment::check(args.region.as_deref())?;
    let named = if args.ca_bundle.is_some() { "--ca-bundle" } else { "AWS_CA_BUNDLE" };
    let variable = std::env::var_os("AWS_CA_BUNDLE");
    let ca_bundle = args.ca_bundle.or(variable.map(PathBuf::from));
    if let Some(path) = &ca_bundle {
        check_bundle(path).map_err(|cause| format!("{named}: {cause}"))?;
    }
    Ok(StoreConfig {
        endpoint_url: args.endpoint_url,
        region: args.region,
        profile: args.profile,
        no_sign_request: args.no_sign_request,
        first_credentials: FirstCredentials::Now,
        requester_pays: args.requester_pays,
        path_style: args.path_style,
        ca_bundle,
        no_verify_tls: args.no_verify_tls,
        hedging: args.hedging,
        proxies: Proxies::of_environment()?,
        sessions: SessionAccess::Read,
    })
}

fn least_budget_bytes(cache: &args::CacheArgs) -> u64 {
    MIN_BUDGET_BYTES.max(cache.part_bytes.unwrap_or(0).saturating_mul(PARTS_IN_BUDGET))
}

fn check_sizes(budget_bytes: u64, cache: &args::CacheArgs) -> Result<(), String> {
    let (chunk_bytes, part_bytes) = (cache.chunk_bytes, cache.part_bytes);
    let sizes = [("--chunk-size", chunk_bytes), ("--part-size", part_bytes)];
    for (option, bytes) in sizes.iter().filter_map(|(option, bytes)| Some((option, (*bytes)?))) {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(format!("{option} must be a multiple of 128KiB, and is {bytes} bytes"));
        }
    }
    if let (Some(part_bytes), Some(chunk_bytes)) = (part_bytes, chunk_bytes)
        && part_bytes > chunk_bytes
    {
        return Err(format!(
            "--part-size ({}) must not be larger than --chunk-size ({})",
            size(part_bytes),
            size(chunk_bytes),
        ));
    }
    for (option, bytes, most) in [
        ("--chunk-size", chunk_bytes.unwrap_or(0), MAX_CHUNK_BYTES),
        ("--part-size", part_bytes.unwrap_or(0), MAX_CHUNK_BYTES),
        ("--kernel-readahead", cache.kernel_readahead_bytes, MAX_KERNEL_READAHEAD_BYTES),
    ] {
        if bytes > most {
            let (most, is) = (size(most), size(bytes));
            return Err(format!("{option} must be at most {most}, and is {is}"));
        }
    }
    // A chunk may be larger than the budget: only its blocks that hold or await bytes count.
    let least_bytes = least_budget_bytes(cache);
    if budget_bytes < least_bytes {
        return Err(format!(
            "--memory-budget must be at least {} ({PARTS_IN_BUDGET} times --part-size, and never \
             below {}), and is {}",
            size(least_bytes),
            size(MIN_BUDGET_BYTES),
            size(budget_bytes),
        ));
    }
    Ok(())
}

/// fusermount3 lets ordinary users share their mounts.
pub(crate) fn others_are_allowed() -> bool {
    std::fs::read_to_string("/etc/fuse.conf").is_ok_and(|conf| user_allow_other(&conf))
}

fn user_allow_other(fuse_conf: &str) -> bool {
    fuse_conf.lines().any(|line| line.trim() == "user_allow_other")
}

/// The N of `/dev/fd/N`, which no file system can be mounted on; it has the same meaning in
/// libfuse.
pub(crate) fn descriptor(mountpoint: &Path) -> Option<RawFd> {
    let digits = mountpoint.strip_prefix("/dev/fd").ok()?.to_str()?;
    // `parse` would take a sign, too.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn endpoint_url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("a URL begins with http:// or https://".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("credentials do not belong in the URL".to_owned());
    }
    if uri.query().is_some() {
        return Err("an endpoint has no query".to_owned());
    }
    Ok(text.to_owned())
}

/// A size in the largest binary unit of which it is a multiple.
pub(crate) fn size(bytes: u64) -> String {
    [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|&(unit, _)| bytes >= unit && bytes.is_multiple_of(unit))
        .map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<Config, NotParsed> {
        let all = ["fasts3-mount", "bucket", "/mnt"].into_iter().chain(arguments.iter().copied());
        parse(all.map(OsString::from))
    }

    fn wrong(arguments: &[&str]) -> String {
        match config(arguments) {
            Err(NotParsed::Wrong(sentence)) => sentence,
            other => panic!("{arguments:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_mountpoint_may_be_a_descriptor() {
        for (path, want) in [
            ("/dev/fd/3", Some(3)),
            ("/dev/fd/120", Some(120)),
            ("/dev/fd", None),
            ("/dev/fd/", None),
            ("/dev/fd/3/x", None),
            ("/dev/fd/+3", None),
            ("/dev/fd/x", None),
            ("/dev/fd/99999999999", None),
            ("/mnt/dev/fd/3", None),
        ] {
            assert_eq!(descriptor(Path::new(path)), want, "{path}");
        }
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = config(&[]).unwrap();
        assert_eq!((config.cache.chunk_bytes, config.cache.part_bytes), (None, None));
        assert_eq!(config.cache.max_connections, 128);
        assert_eq!(config.cache.io_timeout, Duration::from_secs(30));
        assert_eq!(config.names.metadata_ttl, Some(Duration::from_mins(1)));
        assert_eq!(config.names.budget_bytes, 1 << 30);
        assert_eq!(config.names.negative_ttl, Duration::from_secs(5));
        assert_eq!((config.permissions.file_mode, config.permissions.dir_mode), (0o444, 0o555));
        assert_eq!(config.access, Access::Owner);
        assert_eq!(config.permissions.uid, nix::unistd::getuid().as_raw());
        assert!(config.memory_budget_bytes <= 8 << 30);
    }

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        let config = config(&[
            "--memory-budget=4GiB",
            "--chunk-size=64M",
            "--part-size=1MiB",
            "--metadata-ttl=indefinite",
            "--names-budget=2GiB",
            "--negative-ttl=2m",
        ])
        .unwrap();
        assert_eq!(config.memory_budget_bytes, 4 << 30);
        assert_eq!(config.cache.chunk_bytes, Some(64 << 20));
        assert_eq!(config.cache.part_bytes, Some(1 << 20));
        assert_eq!(config.names.metadata_ttl, None);
        assert_eq!(config.names.budget_bytes, 2 << 30);
        assert_eq!(config.names.negative_ttl, Duration::from_mins(2));
    }

    #[test]
    fn a_shared_cache_in_what_is_mounted_is_refused() {
        for (mounted, cache, is_refused) in [
            ("s3://bbb", "s3://bbb", true),
            ("s3://bbb", "s3://bbb/cache", true),
            ("s3://bbb/data", "s3://bbb/data/cache", true),
            ("a=s3://aaa,b=s3://bbb/data", "s3://bbb/data", true),
            ("s3://bbb/data", "s3://bbb/cache", false),
            ("s3://bbb/data", "s3://bbb", false),
            ("s3://bbb", "s3://ccc", false),
        ] {
            let option = format!("--shared-cache={cache}");
            let of = |more: &[&str]| {
                let all = ["fasts3-mount", mounted, "/mnt", &option].into_iter();
                parse(all.chain(more.iter().copied()).map(OsString::from))
            };
            match of(&[]) {
                Ok(_) => assert!(!is_refused, "{mounted} {cache}"),
                Err(NotParsed::Wrong(sentence)) => {
                    assert!(is_refused && sentence.contains("--shared-cache"), "{sentence}");
                }
                Err(other) => panic!("{other:?}"),
            }
            // In another store there may be a bucket of the same name.
            assert!(of(&["--shared-cache-endpoint-url=http://127.0.0.1:9"]).is_ok());
        }
    }

    #[test]
    fn relations_are_checked_and_the_sentence_names_the_option() {
        for (arguments, says) in [
            (
                &["--part-size=2MiB", "--chunk-size=1MiB"][..],
                "--part-size (2MiB) must not be larger",
            ),
            (&["--part-size=2GiB"], "--part-size must be at most 1GiB"),
            (&["--part-size=100KiB"], "--part-size must be a multiple of 128KiB"),
            (&["--chunk-size=100KiB"], "--chunk-size must be a multiple of 128KiB"),
            (&["--chunk-size=2GiB"], "--chunk-size must be at most 1GiB"),
            (
                &["--memory-budget=16MiB", "--part-size=8MiB"],
                "--memory-budget must be at least 32MiB",
            ),
            (&["--memory-budget=1MiB", "--part-size=128KiB"], "at least 16MiB"),
            (&["--file-mode=1644"], "--file-mode"),
            (&["--io-timeout=200ms"], "--io-timeout must be between 1s and 1h, and is 200ms"),
            (&["--dir-mode=9"], "--dir-mode"),
            (&["--allow-other", "--allow-root"], "--allow-other"),
            (&["--metrics-listen=nowhere"], "--metrics-listen"),
        ] {
            let sentence = wrong(arguments);
            assert!(sentence.contains(says), "{arguments:?}: {sentence}");
            assert!(!sentence.contains('\n'), "{sentence}");
        }
    }

    #[test]
    fn a_chunk_may_be_larger_than_the_budget() {
        let config = config(&["--memory-budget=32MiB", "--chunk-size=128MiB"]).unwrap();
        assert_eq!(config.memory_budget_bytes, 32 << 20);
    }

    #[test]
    fn a_disk_cache_does_not_make_requests_smaller() {
        let budget = "--memory-budget=256MiB";
        let [without, with] =
            [&[budget][..], &[budget, "--cache-dir=/tmp"]].map(|options| config(options).unwrap());
        assert!(with.chunks_budget_bytes() < without.chunks_budget_bytes());
        assert_eq!(with.layout().part_bytes, 2 << 20);
        assert_eq!(with.layout(), without.layout());
    }

    #[test]
    fn only_a_whole_line_of_fuse_conf_allows_others() {
        assert!(user_allow_other("mount_max = 10\n  user_allow_other \n"));
        assert!(!user_allow_other("# user_allow_other\n"));
    }
}
