//! The life of the daemon: check, assemble, mount, say so, wait, unmount.
//!
//! What can fail at the start fails before anything is mounted, within 10 s, with one sentence and
//! an exit code ([`StartError`]).

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::{Builder, Handle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use crate::app::config::{self, Config, MountCall, NoConfig};
use crate::app::control::status::Settings;
use crate::app::control::{self, Socket};
use crate::app::metrics;
use crate::app::task::Task;
use crate::base::layout::Layout;
use crate::fs::{BucketFs, FsConfig, Ownership, ReadConfig};
use crate::fuse::{self, Expired, HandedOver};
use crate::names::NamesConfig;
use crate::stats::Stats;
use crate::store::ObjectStore;
use crate::store::measured::Measured;
use crate::store::retry::{RetryPolicy, Retrying};

mod background;
mod bucket;
mod checks;
mod error;
mod given;
mod logging;
mod service;

pub(crate) use bucket::open as open_bucket;
pub(crate) use checks::{Connections, connections, fuse_device};
pub use error::StartError;
use logging::Logs;

/// How long files that are still open are served after a lazy unmount.
const DRAIN: Duration = Duration::from_secs(2);

/// A mount that has just been made answers at once, then it is usable; this is for a machine that is
/// busy with something else.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// The kernel is told of names for so long before other signals have their turn.
const LONGEST_TELLING: Duration = Duration::from_secs(10);

/// What mount(8) takes for "the mount has failed".
const MOUNT_FAILED: u8 = 32;

/// The whole program: from its arguments (its own name first) to its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let (outcome, helper) = match config::mount_call(&arguments) {
        None => (execute(&arguments), false),
        Some(Ok(call)) => (mount_for(&call), true),
        Some(Err(sentence)) => (Err(Ended::Error(StartError::Usage(sentence))), true),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ended::Told(_)) if helper => ExitCode::from(MOUNT_FAILED),
        Err(Ended::Told(code)) => ExitCode::from(code),
        Err(Ended::Error(error)) => {
            let name = if helper { "mount.fasts3" } else { "fasts3-mount" };
            eprintln!("{name}: {}", error::one_line(&error.to_string()));
            if helper { ExitCode::from(MOUNT_FAILED) } else { error.exit_code() }
        }
    }
}

/// How the program ends when it does not end well.
enum Ended {
    /// Of this process, which has to say so.
    Error(StartError),
    /// Of the process in the background, which has said so: its exit code.
    Told(u8),
}

fn execute(arguments: &[OsString]) -> Result<(), Ended> {
    match config::parse(arguments.iter().cloned()) {
        Ok(config) if config.daemon && !background::is_child() => background::start(arguments),
        Ok(config) => start(&config).map_err(Ended::Error),
        Err(NoConfig::Shown(text)) => {
            use std::io::Write as _;
            // Whoever closed the pipe has read enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            Ok(())
        }
        Err(NoConfig::Wrong(sentence)) => Err(Ended::Error(StartError::Usage(sentence))),
    }
}

/// What mount(8) asked for.
fn mount_for(call: &MountCall) -> Result<(), Ended> {
    if call.fake {
        return match config::parse(call.arguments.iter().cloned()) {
            Ok(_) | Err(NoConfig::Shown(_)) => Ok(()),
            Err(NoConfig::Wrong(sentence)) => Err(Ended::Error(StartError::Usage(sentence))),
        };
    }
    execute(&call.arguments)
}

fn start(config: &Config) -> Result<(), StartError> {
    let stage = if config.daemon { logging::Stage::Background } else { logging::Stage::Foreground };
    let logs = logging::init(&config.log, stage)
        .map_err(|cause| StartError::Internal(format!("logging cannot be started: {cause}")))?;
    checks::no_core_files();
    let connections = checks::connections(config.max_connections);
    if let Some(shortage) = &connections.shortage {
        tracing::warn!("fewer connections: {shortage}");
    }
    let config = &Config { max_connections: connections.allowed, ..config.clone() };
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(|error| {
        StartError::Internal(format!("the threads of the daemon cannot be started: {error}"))
    })?;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = run(config, &logs) => outcome,
            () = logs.sum_up() => unreachable!("it goes on for ever"),
        }
    });
    logs.flush();
    if let Err(error) = &outcome {
        service::failed(&error.to_string());
    }
    // A look-up of a host name may hang in a thread that nothing can end.
    runtime.shutdown_background();
    outcome
}

/// Mounts, and returns when the mount has ended.
async fn run(config: &Config, logs: &Logs) -> Result<(), StartError> {
    let source = format!("s3://{}/{}", config.bucket, config.prefix);
    let still_starting = service::starting(format!("asking for {source}"));
    let (config, handed_over) = placed(config)?;
    let config = &config;
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
    let stats = Arc::new(Stats::default());
    let store = bucket::open(config, &stats).await?;
    let (endpoint, region) = (store.endpoint().to_owned(), store.region().to_owned());

    // From here on a signal must find somebody who unmounts.
    let mut signals = Signals::new()
        .map_err(|error| StartError::Internal(format!("signals cannot be received: {error}")))?;
    let fs = stack(Arc::new(store), config, stats.clone()).map_err(|error| {
        StartError::Internal(format!("address space for the cache cannot be reserved: {error}"))
    })?;
    let socket = Socket::open(&config.mountpoint)
        .inspect_err(|error| {
            tracing::warn!("no control socket, so `status` and the like will not work: {error}");
        })
        .ok();
    let mounted = fuse::mount(&fs, &config.mount_options(), handed_over, &Handle::current())
        .map_err(|error| StartError::NoFuse(refused(config, &error)))?;
    let mounted = Arc::new(mounted);
    let asked = usable(&mounted, config).await?;
    drop(still_starting);
    let layout = layout(config);
    let mut settings = Settings::new(config, &layout, &endpoint, &region);
    tracing::info!(
        endpoint,
        region,
        memory_budget = config::size(config.memory_budget_bytes),
        chunk_size = config::size(layout.chunk_bytes),
        part_size = config::size(layout.largest_part_bytes),
        max_connections = config.max_connections,
        metadata_ttl = ttl(config),
        version = crate::VERSION,
        "mounted {source} on {}",
        config.mountpoint.display(),
    );
    let _metrics = port.map(|port| {
        let address = port.local_addr().ok().map(|address| address.to_string());
        tracing::info!("metrics are at http://{}/metrics", address.as_deref().unwrap_or_default());
        settings.metrics = address;
        Task::spawn(metrics::serve(port, metrics::Exporter::new(fs.clone(), config)))
    });
    let asked_to_unmount = Arc::new(Notify::new());
    let _control = socket.map(|socket| {
        tracing::debug!("the control socket is {}", socket.path().display());
        let (fs, mounted) = (fs.clone(), mounted.clone());
        let unmount = asked_to_unmount.clone();
        let (file, serving) = socket.serve(control::Target { fs, mounted, settings, unmount });
        (file, Task::spawn(serving))
    });
    let seen = seen_by_the_host(&mounted, config);
    if background::is_child() {
        background::leave()?;
    }
    service::ready(&format!("mounted {source} on {}{seen}", config.mountpoint.display()));
    let rates = service::telling(fs.clone());
    let watchdog = service::watched(asked);

    loop {
        tokio::select! {
            () = asked_to_unmount.notified() => break tracing::info!("the control socket: unmounting"),
            asked = signals.next() => match asked {
                Asked::End(name) => break tracing::info!("{name}: unmounting"),
                Asked::DropNames => drop_names(&fs, &mounted).await,
                Asked::Louder => logs.louder(),
                Asked::AsGiven => logs.as_given(),
            },
            () = mounted.ended() => break tracing::info!("unmounted from outside"),
        }
    }
    service::stopping();
    drop((rates, watchdog));
    unmount(mounted, config).await?;
    stats.snapshot().log_unmounted(&config.mountpoint);
    Ok(())
}

/// The configuration with the place where the mount is: one that can be mounted on, or the one that
/// has been mounted by who started this.
fn placed(config: &Config) -> Result<(Config, Option<HandedOver>), StartError> {
    let handed_over = config.descriptor.map(given::take).transpose()?;
    if handed_over.is_none() {
        checks::fuse_device()?;
        checks::mountpoint(&config.mountpoint)?;
    }
    let seen_at = handed_over.as_ref().and_then(|mount| mount.mountpoint.clone());
    let mountpoint = seen_at.unwrap_or_else(|| config.mountpoint.clone());
    Ok((Config { mountpoint, ..config.clone() }, handed_over))
}

fn ttl(config: &Config) -> String {
    let shown = |ttl| humantime::format_duration(ttl).to_string();
    config.metadata_ttl.map_or_else(|| "indefinite".to_owned(), shown)
}

/// Returns when the mount has answered the kernel: where it may be asked again. A mount that others
/// have made has been answered for already, and may be out of sight or closed to this user.
async fn usable(mounted: &fuse::Mounted, config: &Config) -> Result<Option<PathBuf>, StartError> {
    if config::descriptor(&config.mountpoint).is_some() {
        return Ok(None);
    }
    let failure = tokio::select! {
        answer = service::answers(&config.mountpoint) => match answer {
            Ok(()) => return Ok(Some(config.mountpoint.clone())),
            Err(error) if mounted.handed_over() && error.kind() == ErrorKind::PermissionDenied => {
                return Ok(None);
            }
            Err(error) => error.to_string(),
        },
        () = mounted.ended() => "it was unmounted".to_owned(),
        () = tokio::time::sleep(FIRST_ANSWER) => "silence".to_owned(),
    };
    Err(StartError::NoFuse(format!(
        "the mount on {} does not answer: {failure}; check dmesg, and try again",
        config.mountpoint.display()
    )))
}

/// Warns of a mount that only this process sees; what is to be told of it elsewhere.
fn seen_by_the_host(mounted: &fuse::Mounted, config: &Config) -> &'static str {
    // Not known is not worth a word.
    if mounted.device_number().and_then(service::host_sees) != Some(false) {
        return "";
    }
    tracing::warn!(
        "the mount on {} is in a mount namespace that process 1 does not see: only processes \
         started from here can use it; a unit must not have PrivateTmp=, PrivateMounts=, \
         ProtectSystem= or ProtectHome=, and a container needs shared mount propagation",
        config.mountpoint.display()
    );
    ", but not for the host"
}

/// Has every name asked for anew, by us and by the kernel.
async fn drop_names(fs: &Arc<BucketFs>, mounted: &Arc<fuse::Mounted>) {
    let (fs, mounted) = (fs.clone(), mounted.clone());
    let telling = spawn_blocking(move || mounted.expire_names(&fs.drop_names(), || fs.known()));
    // The kernel may be waiting for a lookup that waits for the store; other signals must not.
    let Ok(told) = tokio::time::timeout(LONGEST_TELLING, telling).await else {
        return tracing::warn!(
            "SIGHUP: all names are asked for anew; the kernel is still being told"
        );
    };
    match told {
        Ok(Expired::AtOnce) => tracing::info!("SIGHUP: all names are asked for anew"),
        Ok(Expired::OneByOne { names, all }) => tracing::info!(
            names,
            all,
            "SIGHUP: all names are asked for anew; the kernel was told of each file by itself, as \
             before Linux 6.16 it must be"
        ),
        Err(panicked) => tracing::error!("SIGHUP: {panicked}"),
    }
}

/// Unmounts, and lets readers that are under way have their answers for a moment.
async fn unmount(mounted: Arc<fuse::Mounted>, config: &Config) -> Result<(), StartError> {
    if mounted.handed_over() {
        if !mounted.has_ended() {
            tracing::info!("the mount stays, dead, until whoever has made it unmounts it");
        }
        return Ok(());
    }
    let unmounting = mounted.clone();
    // Unmounting waits for the kernel, which may be waiting for a reply from this runtime.
    let unmounted = spawn_blocking(move || unmounting.unmount()).await;
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

/// Pages of one listing in flight at once. At 40 ms a page 16 list 400,000 names in 1.5 s; with 32
/// it would be 1.1 s for half again as many requests in vain (simulated: `namespace/split`).
const PAGES_AT_ONCE: usize = 16;

/// Stacks the layers between the kernel's requests and a store that tries once: measuring each
/// request, retrying it, the file system. Their tasks run on the current runtime.
pub fn stack(
    store: Arc<dyn ObjectStore>,
    config: &Config,
    stats: Arc<Stats>,
) -> std::io::Result<Arc<BucketFs>> {
    let store: Arc<dyn ObjectStore> = Arc::new(Measured::new(store, stats.clone()));
    let policy = RetryPolicy {
        max_connections: config.max_connections,
        deadline: config.io_timeout,
        ..RetryPolicy::default()
    };
    let store: Arc<dyn ObjectStore> = Arc::new(Retrying::new(store, policy, stats.clone()));
    let names = NamesConfig {
        root_prefix: config.prefix.clone(),
        metadata_ttl: config.metadata_ttl,
        negative_ttl: config.negative_ttl,
        mounted_at: SystemTime::now(),
        listings_bytes: usize::try_from(config.names_budget_bytes).unwrap_or(usize::MAX),
        page_keys: 1000,
        pages_at_once: PAGES_AT_ONCE.min(config.max_connections),
    };
    let ownership = Ownership {
        uid: config.uid,
        gid: config.gid,
        file_mode: config.file_mode,
        dir_mode: config.dir_mode,
    };
    let reading = ReadConfig {
        layout: layout(config),
        memory_budget_bytes: config.memory_budget_bytes,
        max_connections: config.max_connections,
    };
    let config = FsConfig { ownership, names, reading };
    BucketFs::new(store, config, Handle::current(), stats)
}

fn layout(config: &Config) -> Layout {
    Layout::within(config.memory_budget_bytes, config.chunk_bytes, config.part_bytes)
}

fn refused(config: &Config, error: &std::io::Error) -> String {
    let shown = config.mountpoint.display();
    // Whom the kernel refuses, fusermount3 is asked for: this is the error of not finding it.
    if error.kind() == ErrorKind::NotFound {
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

/// What a signal asks for.
enum Asked {
    /// From a terminal, or from systemd.
    End(&'static str),
    /// SIGHUP, as daemons take it: to look again.
    DropNames,
    /// SIGUSR1: more in the log.
    Louder,
    /// SIGUSR2: the log as it was asked for at the start.
    AsGiven,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    first: Signal,
    second: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            first: signal(SignalKind::user_defined1())?,
            second: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::End("SIGINT"),
            _ = self.terminate.recv() => Asked::End("SIGTERM"),
            _ = self.hangup.recv() => Asked::DropNames,
            _ = self.first.recv() => Asked::Louder,
            _ = self.second.recv() => Asked::AsGiven,
        }
    }
}
