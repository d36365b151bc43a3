//! The life of the daemon: check, assemble, mount, say so, wait, unmount.
//!
//! A start fails before anything is mounted, within 10 s, with a [`CommandError`].

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::{Builder, Handle};

use crate::app::command_error::CommandError;
use crate::app::config::{self, Config, NotParsed};
use crate::app::metrics;
use crate::base::text::on_one_line;
use crate::disk::{Disk, DiskCached, Origin};
use crate::fs::{BucketFs, FsConfig, Ownership, ReadConfig};
use crate::names::NamesConfig;
use crate::stats::{BucketCounts, Stats};
use crate::store::ObjectStore;
use crate::store::joined::{Branch, Joined};
use crate::store::metered::Metered;
use crate::store::retry::{RetryPolicy, Retrying};
use crate::store::s3::is_directory_bucket;
use crate::store::shared::{SharedCache, SharedCached, SharedOrigin};

mod background;
mod bucket;
mod checks;
mod descriptors;
mod disk_cache;
mod handed_over;
mod logging;
mod outlive;
mod served;
mod service;
mod shared_cache;
mod signals;

pub(crate) use bucket::open as open_bucket;
pub(crate) use checks::{Connections, connections, fuse_device};
pub(crate) use disk_cache::open_alone as open_disk;
use logging::Logs;
use outlive::keeper::Keeper;
use served::{BeforeThis, End, ServedMount};
pub(crate) use shared_cache::entries as open_entries;
use signals::Signals;

/// The exit code that means to mount(8) that the mount failed.
const MOUNT_FAILED: u8 = 32;

/// The whole program: from its arguments (its own name first) to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = service::look(&arguments) {
        return code;
    }
    let (outcome, is_helper) = match config::mount_call(&arguments) {
        None => (execute(&arguments, false), false),
        Some(Ok(call)) => (execute(&call.arguments, call.fake), true),
        Some(Err(sentence)) => (Err(CommandError::usage(sentence).into()), true),
    };
    let code = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Ended::Reported(code)) => code,
        Err(Ended::Error(error)) => {
            let name = if is_helper { "mount.fasts3" } else { "fasts3-mount" };
            eprintln!("{name}: {}", on_one_line(&error.sentence));
            error.exit.code()
        }
    };
    ExitCode::from(if is_helper { MOUNT_FAILED } else { code })
}

enum Ended {
    Error(CommandError),
    /// The process in the background has ended with this code, and has said why.
    Reported(u8),
}

impl From<CommandError> for Ended {
    fn from(error: CommandError) -> Self {
        Self::Error(error)
    }
}

/// With `fake`, the options are checked and nothing is done.
fn execute(arguments: &[OsString], fake: bool) -> Result<(), Ended> {
    let config = match config::parse(arguments.iter().cloned()) {
        Ok(config) => config,
        Err(NotParsed::Help(text)) => {
            use std::io::Write as _;
            // It fails when the reader of a pipe has ended, and then has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return Ok(());
        }
        Err(NotParsed::Wrong(sentence)) => return Err(CommandError::usage(sentence).into()),
    };
    if fake {
        return Ok(());
    }
    if config.daemon && !background::is_child() && !outlive::keeper::is_held() {
        return background::start(arguments, &config.mountpoint);
    }
    if outlive::holder::is_wanted(&config) {
        return outlive::holder::run(&config, arguments);
    }
    Ok(start(config)?)
}

fn start(mut config: Config) -> Result<(), CommandError> {
    let begun = Instant::now();
    let logs = logging::init(&config.log, config.daemon)
        .map_err(|cause| CommandError::failed(format!("logging cannot be started: {cause}")))?;
    for sentence in &config.unused {
        tracing::warn!("not used: {sentence}");
    }
    checks::no_core_files();
    let connections = checks::connections(config.cache.max_connections);
    if let Some(shortage) = &connections.shortage {
        tracing::warn!("fewer connections: {shortage}");
    }
    config.cache.max_connections = connections.allowed;
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(|error| {
        CommandError::failed(format!("the threads of the daemon cannot be started: {error}"))
    })?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(&config, &logs) => outcome,
            () = logs.sum_up() => unreachable!("it has no end"),
        }
    });
    logs.flush();
    if outcome == Ok(End::Leave) {
        // At once: a request whose task is dropped is answered with EIO, and the next daemon has to
        // answer it.
        std::process::exit(0);
    }
    if let Err(error) = &outcome {
        service::failed(&error.sentence, error.exit, begun);
    }
    // A thread that waits for the address of a host cannot be ended.
    runtime.shutdown_background();
    outcome.map(drop)
}

/// Mounts, and returns when the mount has ended.
async fn run(config: &Config, logs: &Logs) -> Result<End, CommandError> {
    let still_starting = service::starting(format!("asking for {}", config.source()));
    let handed_over = config.descriptor.map(handed_over::take).transpose()?;
    let (keeper, left) = Keeper::find(config).map_err(|error| {
        CommandError::failed(format!("the mount that was left cannot be taken over: {error}"))
    })?;
    let taken = left.and_then(|left| outlive::take(config, &keeper, left));
    if handed_over.is_none() && taken.is_none() {
        checks::fuse_device()?;
        checks::mountpoint(&config.mountpoint)?;
    }
    if config.store.no_verify_tls {
        tracing::warn!(
            "--no-verify-tls: the store's certificate is NOT checked: others on the network can \
             read and alter the data"
        );
    }
    let port = match config.metrics_listen {
        Some(address) => needed(metrics::listen(address).await.map(Some), taken.is_some())?,
        None => None,
    };
    let stats = Arc::new(Stats::default());
    let stores = match &taken {
        Some(taken) => bucket::reconnect_all(config, &taken.description.regions, &stats).await?,
        None => bucket::open_all(config, &stats).await?,
    };
    let disk = needed(disk_cache::open(config, &stats).await, taken.is_some())?;
    let shared = shared_cache::open(config.shared.as_ref(), &stats).await;
    // From here on a signal must lead to an unmount.
    let mut signals = Signals::new()
        .map_err(|error| CommandError::failed(format!("signals cannot be received: {error}")))?;
    let existing = match (handed_over, taken) {
        (Some(handed_over), _) => Some(BeforeThis::HandedOver(handed_over)),
        (None, taken) => taken.map(|taken| BeforeThis::Left(Box::new(taken))),
    };
    let claimed = match existing {
        Some(_) => None,
        None => Some(checks::claim(&config.mountpoint).await?),
    };
    let mut mount = ServedMount::mount(config, stores, (disk, shared), stats, existing, keeper)?;
    drop(claimed);
    let asked = mount.usable().await?;
    drop(still_starting);
    let _servers = mount.serve(port);
    mount.ready()?;
    let reports = (service::telling(mount.fs.clone()), service::watched(asked));
    let end = mount.until_the_end(&mut signals, logs).await;
    service::stopping();
    drop(reports);
    match end {
        End::Unmount => mount.unmount().await?,
        End::Leave => mount.leave().await,
    }
    Ok(end)
}

/// What a mount does without if it was taken over: programs wait for a daemon, and not for this.
fn needed<T>(
    opened: Result<Option<T>, CommandError>,
    is_taken: bool,
) -> Result<Option<T>, CommandError> {
    match opened {
        Err(error) if is_taken => {
            tracing::warn!("the mount goes on without what it had: {}", error.sentence);
            Ok(None)
        }
        outcome => outcome,
    }
}

/// Pages of one listing in flight at once. At 40 ms a page, 16 list 400,000 names in 1.5 s; 32
/// would take 1.1 s and half again as many requests in vain (simulated: `names/asking/plan`).
const PAGES_AT_ONCE: usize = 16;

/// The caches between the memory and the stores, and for each store what they call it.
#[derive(Default)]
pub struct Tiers {
    disk: Option<(Arc<Disk>, Vec<Origin>)>,
    shared: Option<(Arc<SharedCache>, Vec<SharedOrigin>)>,
}

/// Stacks the layers between the kernel's requests and stores that try once, one for each bucket:
/// measuring each request, retrying it, the cache that nodes share, the disk, joining several
/// stores, the file system. Their tasks run on the current runtime.
pub fn stack(
    stores: Vec<Arc<dyn ObjectStore>>,
    tiers: &Tiers,
    config: &Config,
    stats: Arc<Stats>,
) -> std::io::Result<Arc<BucketFs>> {
    let policy = RetryPolicy {
        max_connections: config.cache.max_connections,
        deadline: config.cache.io_timeout,
        ..RetryPolicy::default()
    };
    let branches = config.buckets.iter().zip(stores).enumerate().map(|(at, (bucket, store))| {
        let store: Arc<dyn ObjectStore> = Arc::new(Metered::new(store, stats.clone()));
        let mut store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(store, policy, stats.clone()));
        if let Some((shared, origins)) = &tiers.shared
            && let Some(origin) = origins.get(at)
        {
            store = Arc::new(SharedCached::new(store, origin.clone(), shared.clone()));
        }
        if let Some((disk, origins)) = &tiers.disk
            && let Some(origin) = origins.get(at)
        {
            store = Arc::new(DiskCached::new(store, origin.clone(), disk.clone()));
        }
        let (directory, prefix) = (bucket.directory.clone(), bucket.prefix.clone());
        let source = bucket.url();
        let counts = BucketCounts { directory: directory.clone(), source, ..Default::default() };
        Branch { directory, prefix, store, counts: Arc::new(counts) }
    });
    let mut branches: Vec<_> = branches.collect();
    let is_root = |branch: &mut Branch| branch.directory.is_empty();
    let (store, root_prefix) = if let Some(Branch { store, prefix, .. }) = branches.pop_if(is_root)
    {
        (store, prefix)
    } else {
        // Set once: a mount is stacked once.
        let _ = stats.buckets.set(branches.iter().map(|branch| branch.counts.clone()).collect());
        let joined: Arc<dyn ObjectStore> = Arc::new(Joined::new(branches));
        (joined, String::new())
    };
    let names = NamesConfig {
        root_prefix,
        metadata_ttl: config.names.metadata_ttl,
        negative_ttl: config.names.negative_ttl,
        listings_bytes: usize::try_from(config.names.budget_bytes).unwrap_or(usize::MAX),
        page_keys: 1000,
        pages_at_once: PAGES_AT_ONCE.min(config.cache.max_connections),
        is_unordered: config.buckets.iter().any(|bucket| is_directory_bucket(&bucket.name)),
    };
    let ownership = Ownership {
        uid: config.permissions.uid,
        gid: config.permissions.gid,
        file_mode: config.permissions.file_mode,
        dir_mode: config.permissions.dir_mode,
    };
    let reading = ReadConfig {
        layout: config.layout(),
        memory_budget_bytes: config.chunks_budget_bytes(),
        max_connections: config.cache.max_connections,
        keeps_small: config.disk.is_none(),
        unit_bytes: tiers.shared.as_ref().map_or(0, |_| SharedCache::UNIT_BYTES),
    };
    let config = FsConfig { ownership, names, reading };
    BucketFs::new(store, config, Handle::current(), stats)
}
