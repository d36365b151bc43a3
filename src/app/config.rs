//! Command-line arguments and environment variables, checked at the door, become one plain value.
//!
//! [`args`] holds the options as clap sees them; what needs more than one of them, or the machine,
//! is checked here by [`parse`].

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::CommandFactory as _;

use crate::base::layout::BLOCK_BYTES;
use crate::fuse::{Access, MountOptions};
use crate::store::s3::StoreConfig;

pub(crate) mod args;
mod helper;
mod memory;

pub(crate) use helper::MountCall;

/// Everything that the daemon needs to know, valid by construction in [`parse`].
#[derive(Clone, Debug)]
pub struct Config {
    pub bucket: String,
    /// Empty, or a key prefix that ends with `/`: the root of the mount.
    pub prefix: String,
    pub mountpoint: PathBuf,
    /// The mountpoint is `/dev/fd/N`, this N: the process that starts the program has mounted, and
    /// this is the descriptor of `/dev/fuse` by which the mount is served.
    pub descriptor: Option<RawFd>,
    pub store: StoreConfig,
    /// The bound on cached and in-flight object bytes.
    pub memory_budget_bytes: u64,
    /// A multiple of the 128 KiB block.
    pub chunk_bytes: u64,
    /// One range GET of a sequential stream: a multiple of the block, at most a chunk.
    pub part_bytes: u64,
    /// 0 keeps the kernel's default.
    pub kernel_readahead_bytes: u64,
    /// Requests in flight, at least 1.
    pub max_connections: usize,
    /// An operation without progress for this time fails; at least 1 s.
    pub io_timeout: Duration,
    /// The bound on listings.
    pub names_budget_bytes: u64,
    /// `None` is indefinite.
    pub metadata_ttl: Option<Duration>,
    pub negative_ttl: Duration,
    pub uid: u32,
    pub gid: u32,
    pub file_mode: u16,
    pub dir_mode: u16,
    pub access: Access,
    pub metrics_listen: Option<SocketAddr>,
    pub no_exec: bool,
    /// Continue in the background once mounted.
    pub daemon: bool,
    pub log: LogConfig,
}

impl Config {
    /// `s3://bucket/prefix/`
    pub fn source(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix)
    }

    /// A mount on this path: that of a mount that was handed over is known late.
    pub fn mount_options(&self, mountpoint: PathBuf) -> MountOptions {
        MountOptions {
            mountpoint,
            source: self.source(),
            access: self.access,
            no_exec: self.no_exec,
            kernel_readahead_bytes: self.kernel_readahead_bytes,
        }
    }
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub filter: String,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
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
    let args::Args { bucket, mountpoint, options } = parse_as(arguments)?;
    validate(bucket, &mountpoint, options).map_err(NotParsed::Wrong)
}

/// Parses the arguments. A variable without a value counts as not set, as in a systemd
/// `EnvironmentFile` with every line present; an option without a value is an error.
pub(crate) fn parse_as<Parsed: clap::Parser>(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Parsed, NotParsed> {
    let parsed = without_blanks(Parsed::command()).try_get_matches_from(arguments);
    parsed.and_then(|found| Parsed::from_arg_matches(&found)).map_err(|error| not_parsed(&error))
}

fn without_blanks(command: clap::Command) -> clap::Command {
    let is_blank = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let without = |arg: clap::Arg| {
        if arg.get_env().is_some_and(is_blank) {
            arg.env(clap::builder::Resettable::Reset)
        } else {
            arg
        }
    };
    command.mut_args(without).mut_subcommands(without_blanks)
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
    if !error.use_stderr() {
        return NotParsed::Help(error.render().to_string());
    }
    let text = error.render().to_string();
    let lines: Vec<&str> =
        text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let sentence = lines.join(" ");
    NotParsed::Wrong(sentence.strip_prefix("error: ").unwrap_or(&sentence).to_owned())
}

pub(crate) fn validate(
    bucket: args::BucketPrefix,
    mountpoint: &Path,
    options: args::MountArgs,
) -> Result<Config, String> {
    let args::MountArgs { store, cache, names, permissions, monitoring, log, process } = options;
    let budget_bytes = cache.memory_budget.unwrap_or_else(|| {
        // On a very small machine the default still has to hold what the other defaults need.
        memory::default_budget_bytes().max(cache.part_size.saturating_mul(PARTS_IN_BUDGET))
    });
    check_sizes(budget_bytes, cache.chunk_size, cache.part_size)?;
    if cache.kernel_readahead > MAX_KERNEL_READAHEAD_BYTES {
        return Err(format!(
            "--kernel-readahead must be at most {}, and is {}",
            size(MAX_KERNEL_READAHEAD_BYTES),
            size(cache.kernel_readahead),
        ));
    }
    if !IO_TIMEOUTS.contains(&cache.io_timeout) {
        return Err(format!(
            "--io-timeout must be between 1s and 1h, and is {}",
            humantime::format_duration(cache.io_timeout),
        ));
    }
    let access = match (permissions.allow_other, permissions.allow_root) {
        (true, _) => Access::Everyone,
        (false, true) => Access::OwnerAndRoot,
        (false, false) => Access::Owner,
    };
    let mountpoint = std::path::absolute(mountpoint)
        .map_err(|error| format!("the path of the mountpoint cannot be found: {error}"))?;
    let descriptor = descriptor(&mountpoint);
    // The access to a mount that was handed over was decided when it was made.
    if descriptor.is_none() {
        check_access(access)?;
    }
    Ok(Config {
        bucket: bucket.name,
        prefix: bucket.prefix,
        mountpoint,
        descriptor,
        store: store_config(store)?,
        memory_budget_bytes: budget_bytes,
        chunk_bytes: cache.chunk_size,
        part_bytes: cache.part_size,
        kernel_readahead_bytes: cache.kernel_readahead,
        max_connections: usize::from(cache.max_connections),
        io_timeout: cache.io_timeout,
        names_budget_bytes: names.names_budget,
        metadata_ttl: names.metadata_ttl.0,
        negative_ttl: names.negative_ttl,
        uid: permissions.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw()),
        gid: permissions.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw()),
        file_mode: permissions.file_mode,
        dir_mode: permissions.dir_mode,
        access,
        metrics_listen: monitoring.metrics_listen,
        no_exec: permissions.no_exec,
        daemon: process.daemon,
        log: LogConfig { filter: log.log_level.0, format: log.log_format },
    })
}

fn store_config(args: args::StoreArgs) -> Result<StoreConfig, String> {
    let named = if args.ca_bundle.is_some() { "--ca-bundle" } else { "AWS_CA_BUNDLE" };
    let variable = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty());
    let ca_bundle = args.ca_bundle.or(variable.map(PathBuf::from));
    if let Some(path) = &ca_bundle {
        check_ca_bundle(path, named)?;
    }
    Ok(StoreConfig {
        endpoint_url: args.endpoint_url,
        region: args.region,
        profile: args.profile,
        no_sign_request: args.no_sign_request,
        requester_pays: args.requester_pays,
        path_style: args.path_style,
        ca_bundle,
        no_verify_tls: args.no_verify_tls,
        hedging: args.hedging,
    })
}

fn check_ca_bundle(path: &Path, named: &str) -> Result<(), String> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject as _;

    let shown = path.display();
    let pem =
        std::fs::read(path).map_err(|error| format!("{named}: {shown} cannot be read: {error}"))?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(()),
        Ok(_) => Err(format!("{named}: {shown} holds no PEM certificate")),
        Err(error) => Err(format!("{named}: {shown} is not a PEM file: {error}")),
    }
}

fn check_sizes(budget_bytes: u64, chunk_bytes: u64, part_bytes: u64) -> Result<(), String> {
    for (option, bytes) in [("--chunk-size", chunk_bytes), ("--part-size", part_bytes)] {
        if bytes == 0 || !bytes.is_multiple_of(BLOCK_BYTES) {
            return Err(format!("{option} must be a multiple of 128KiB, and is {bytes} bytes"));
        }
    }
    if part_bytes > chunk_bytes {
        return Err(format!(
            "--part-size ({}) must not be larger than --chunk-size ({})",
            size(part_bytes),
            size(chunk_bytes),
        ));
    }
    if chunk_bytes > MAX_CHUNK_BYTES {
        return Err(format!(
            "--chunk-size must be at most {}, and is {}",
            size(MAX_CHUNK_BYTES),
            size(chunk_bytes),
        ));
    }
    // A chunk may be larger than the budget: only its blocks that hold or await bytes count.
    let least_bytes = MIN_BUDGET_BYTES.max(part_bytes.saturating_mul(PARTS_IN_BUDGET));
    if budget_bytes < least_bytes {
        return Err(format!(
            "--memory-budget must be at least {} ({PARTS_IN_BUDGET} parts of --part-size {}, and \
             never below {}), and is {}",
            size(least_bytes),
            size(part_bytes),
            size(MIN_BUDGET_BYTES),
            size(budget_bytes),
        ));
    }
    Ok(())
}

/// fusermount3 lets an ordinary user share a mount only if /etc/fuse.conf allows it.
fn check_access(access: Access) -> Result<(), String> {
    let option = match access {
        Access::Owner => return Ok(()),
        Access::OwnerAndRoot => "--allow-root",
        Access::Everyone => "--allow-other",
    };
    if nix::unistd::geteuid().is_root() || others_are_allowed() {
        return Ok(());
    }
    Err(format!("{option} needs a line `user_allow_other` in /etc/fuse.conf, or to be run as root"))
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
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
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
        assert_eq!(config.chunk_bytes, 128 << 20);
        assert_eq!(config.part_bytes, 8 << 20);
        assert_eq!(config.max_connections, 128);
        assert_eq!(config.io_timeout, Duration::from_secs(30));
        assert_eq!(config.metadata_ttl, Some(Duration::from_mins(1)));
        assert_eq!(config.names_budget_bytes, 1 << 30);
        assert_eq!(config.negative_ttl, Duration::from_secs(5));
        assert_eq!((config.file_mode, config.dir_mode), (0o444, 0o555));
        assert_eq!(config.access, Access::Owner);
        assert_eq!(config.uid, nix::unistd::getuid().as_raw());
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
        assert_eq!(config.chunk_bytes, 64 << 20);
        assert_eq!(config.part_bytes, 1 << 20);
        assert_eq!(config.metadata_ttl, None);
        assert_eq!(config.names_budget_bytes, 2 << 30);
        assert_eq!(config.negative_ttl, Duration::from_mins(2));
    }

    #[test]
    fn relations_are_checked_and_the_sentence_names_the_option() {
        for (arguments, says) in [
            (&["--part-size=256MiB"][..], "--part-size (256MiB) must not be larger"),
            (&["--part-size=100KiB"], "--part-size must be a multiple of 128KiB"),
            (&["--chunk-size=100KiB"], "--chunk-size must be a multiple of 128KiB"),
            (&["--chunk-size=2GiB"], "--chunk-size must be at most 1GiB"),
            (&["--memory-budget=16MiB"], "--memory-budget must be at least 32MiB"),
            (&["--memory-budget=1MiB", "--part-size=128KiB"], "at least 16MiB"),
            (&["--file-mode=0644"], "--file-mode"),
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
    fn only_a_whole_line_of_fuse_conf_allows_others() {
        assert!(user_allow_other("mount_max = 10\n  user_allow_other \n"));
        assert!(!user_allow_other("# user_allow_other\n"));
    }
}
