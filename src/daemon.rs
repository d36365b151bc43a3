//! The life of the daemon: check, assemble, mount, say so, wait, unmount.
//!
//! What can fail at the start fails before anything is mounted, within 10 s, with one sentence and
//! an exit code ([`StartError`]).

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::config::{self, Config, NoConfig};
use crate::control::status::Settings;
use crate::control::{self, Socket};
use crate::fs::{BucketFs, ReadConfig};
use crate::fuse;
use crate::metrics;
use crate::namespace::NamespaceConfig;
use crate::stats::Stats;
use crate::store::ObjectStore;
use crate::store::measured::Measured;
use crate::store::retry::{RetryPolicy, Retrying};
use crate::store::s3::S3Store;

mod bucket;
mod checks;
mod error;
mod logging;

pub(crate) use bucket::open as open_bucket;
pub(crate) use checks::fuse_device;
pub use error::StartError;

/// How long files that are still open are served after a lazy unmount.
const DRAIN: Duration = Duration::from_secs(2);

/// The whole program: from its arguments (its own name first) to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match config::parse(arguments) {
        Ok(config) => start(&config),
        Err(NoConfig::Shown(text)) => {
            use std::io::Write as _;
            // Whoever closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(NoConfig::Wrong(sentence)) => Err(StartError::Usage(sentence)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fasts3-mount: {error}");
            error.exit_code()
        }
    }
}

fn start(config: &Config) -> Result<(), StartError> {
    logging::init(&config.log)
        .map_err(|cause| StartError::Internal(format!("logging cannot be started: {cause}")))?;
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(|error| {
        StartError::Internal(format!("the threads of the daemon cannot be started: {error}"))
    })?;
    let outcome = runtime.block_on(run(config));
    // A look-up of a host name may hang in a thread that nothing can end.
    runtime.shutdown_background();
    outcome
}

/// Mounts, and returns when the mount has ended.
pub async fn run(config: &Config) -> Result<(), StartError> {
    checks::fuse_device()?;
    checks::mountpoint(&config.mountpoint)?;
    if config.store.no_verify_tls {
        tracing::warn!(
            "--no-verify-tls: the store's certificate is NOT checked, so anybody on the way can \
             read and alter the data"
        );
    }
    let port = match config.metrics_listen {
        Some(address) => Some(metrics::listen(address).await.map_err(StartError::Busy)?),
        None => None,
    };
    let store = bucket::open(config).await?;
    let (endpoint, region) = (store.endpoint().to_owned(), store.region().to_owned());

    // From here on a signal must find somebody who unmounts.
    let mut signals = Signals::new()
        .map_err(|error| StartError::Internal(format!("signals cannot be received: {error}")))?;
    let reading = ReadConfig::new(config);
    let fs = stack(store, config, reading).map_err(|error| {
        StartError::Internal(format!("address space for the cache cannot be reserved: {error}"))
    })?;
    let socket = Socket::open(&config.mountpoint)
        .inspect_err(|error| {
            tracing::warn!("no control socket, so `status` and the like will not work: {error}");
        })
        .ok();
    let mounted = fuse::mount(fs.clone(), config, Handle::current())
        .map_err(|error| StartError::NoFuse(refused(config, &error)))?;
    let mounted = Arc::new(mounted);
    tracing::info!(
        endpoint,
        region,
        memory_budget = config::size(config.memory_budget_bytes),
        chunk_size = config::size(reading.layout.chunk_bytes),
        part_size = config::size(reading.layout.part_bytes),
        max_connections = config.max_connections,
        metadata_ttl = ?config.metadata_ttl,
        "mounted s3://{}/{} on {}",
        config.bucket,
        config.prefix,
        config.mountpoint.display(),
    );

    let mut settings = Settings::new(config, &reading, &endpoint, &region);
    let _metrics = port.map(|port| {
        let address = port.local_addr().ok().map(|address| address.to_string());
        tracing::info!("metrics are at http://{}/metrics", address.as_deref().unwrap_or_default());
        settings.metrics = address;
        Task::spawn(metrics::serve(port, metrics::Source::new(fs.clone(), config)))
    });
    let asked_to_unmount = Arc::new(Notify::new());
    let _control = socket.map(|socket| {
        tracing::debug!("the control socket is {}", socket.path().display());
        let (fs, mounted) = (fs.clone(), mounted.clone());
        let unmount = asked_to_unmount.clone();
        let (file, serving) = socket.serve(control::Target { fs, mounted, settings, unmount });
        (file, Task::spawn(serving))
    });

    tokio::select! {
        () = asked_to_unmount.notified() => {
            tracing::info!("the control socket: unmounting");
        }
        name = signals.next() => tracing::info!("{name}: unmounting"),
        () = mounted.ended() => tracing::info!("unmounted from outside"),
    }
    unmount(mounted, config).await?;
    let stats = fs.stats();
    tracing::info!(
        reads = stats.reads.get(),
        bytes_served = stats.bytes_served.get(),
        gets = stats.gets.get(),
        bytes_fetched = stats.bytes_fetched.get(),
        evictions = stats.evictions.get(),
        siblings_ahead = stats.siblings_ahead.get(),
        siblings_used = stats.siblings_used.get(),
        siblings_wasted = stats.siblings_wasted.get(),
        "unmounted {}",
        config.mountpoint.display(),
    );
    Ok(())
}

/// Unmounts, and lets readers that are under way have their answers for a moment.
async fn unmount(mounted: Arc<fuse::Mounted>, config: &Config) -> Result<(), StartError> {
    let unmounting = mounted.clone();
    // Unmounting waits for the kernel, which may be waiting for a reply from this runtime.
    let unmounted = tokio::task::spawn_blocking(move || unmounting.unmount()).await;
    let failure = match unmounted {
        Ok(Ok(())) => {
            // After a lazy unmount the session ends with the last open file, if ever.
            let _ = tokio::time::timeout(DRAIN, mounted.ended()).await;
            return Ok(());
        }
        Ok(Err(error)) => error.to_string(),
        Err(panicked) => panicked.to_string(),
    };
    Err(StartError::Internal(format!(
        "{} cannot be unmounted: {failure}; free it with `umount -l`",
        config.mountpoint.display()
    )))
}

/// Something that runs beside the mount; it ends when this is dropped.
struct Task(tokio::task::AbortHandle);

impl Task {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Pages of one listing in flight at once. At 40 ms a page 16 list 400,000 names in 1.5 s; with 32
/// it would be 1.1 s for half again as many requests in vain (simulated: `namespace/split`).
const PAGES_AT_ONCE: usize = 16;

/// The layers between the kernel's requests and the network, outermost last: one request, how long
/// it takes, its retries, the file system on them.
fn stack(store: S3Store, config: &Config, reading: ReadConfig) -> std::io::Result<Arc<BucketFs>> {
    let stats = Arc::new(Stats::default());
    let store: Arc<dyn ObjectStore> = Arc::new(Measured::new(Arc::new(store), stats.clone()));
    let policy = RetryPolicy { max_connections: config.max_connections, ..RetryPolicy::default() };
    let store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(store, policy));
    let names = NamespaceConfig {
        root_prefix: config.prefix.clone(),
        metadata_ttl: config.metadata_ttl,
        negative_ttl: config.negative_ttl,
        mounted_at: SystemTime::now(),
        listings_bytes: usize::try_from(config.names_budget_bytes).unwrap_or(usize::MAX),
        page_keys: 1000,
        pages_at_once: PAGES_AT_ONCE.min(config.max_connections),
    };
    BucketFs::new(store, config, names, reading, Handle::current(), stats)
}

fn refused(config: &Config, error: &std::io::Error) -> String {
    let shown = config.mountpoint.display();
    // Whom the kernel refuses, fusermount3 is asked for: this is the error of not finding it.
    if error.kind() == std::io::ErrorKind::NotFound {
        return format!(
            "mounting on {shown} was refused: this process may not mount, and fusermount3 is not \
             installed; install the package fuse3, or in a container start it with `--cap-add \
             SYS_ADMIN --device /dev/fuse`"
        );
    }
    let remedy = if nix::unistd::geteuid().is_root() {
        "in a container, start it with `--cap-add SYS_ADMIN --device /dev/fuse`"
    } else {
        "an ordinary user needs fusermount3, of the package fuse3, and a mountpoint of their own"
    };
    format!("mounting on {shown} was refused: {error}; {remedy}")
}

/// The signals that mean "end": from a terminal, from systemd, and from a terminal that is gone.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
