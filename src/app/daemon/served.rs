//! A mount that is served: how it is made, becomes usable, is announced, and ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;

use super::logging::Logs;
use super::outlive::keeper::Keeper;
use super::outlive::{self, TakenMount};
use super::signals::{SignalRequest, Signals};
use super::{Tiers, background, service, stack};
use crate::app::command_error::CommandError;
use crate::app::config::{self, Config, PassthroughWhen};
use crate::app::control::status::Settings;
use crate::app::control::{self, Socket};
use crate::app::exit::Exit;
use crate::app::metrics;
use crate::app::task::Task;
use crate::disk::{Disk, Origin};
use crate::fs::BucketFs;
use crate::fuse::{self, Existing, Expired, HandedOver, MountOptions, Mounted, Passthrough};
use crate::names::KeptNames;
use crate::stats::Stats;
use crate::store::ObjectStore;
use crate::store::s3::S3Store;
use crate::store::shared::{SharedCache, SharedOrigin};

/// After a lazy unmount, files that are still open are served for this time.
const DRAIN: Duration = Duration::from_secs(2);
/// A new mount answers at once; this is for a busy machine.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// SIGHUP: after this time other signals are taken again, although the kernel is still being told.
const LONGEST_TELLING: Duration = Duration::from_secs(10);

/// The disk cache may write for this long before the next daemon takes over.
const SETTLE: Duration = Duration::from_millis(500);

/// A mount that was there before this daemon.
pub(super) enum BeforeThis {
    HandedOver(HandedOver),
    Left(Box<TakenMount>),
}

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Unmount,
    /// For the next daemon.
    Leave,
}

pub(super) struct ServedMount<'a> {
    config: &'a Config,
    pub(super) fs: Arc<BucketFs>,
    disk: Option<Arc<Disk>>,
    shared: Option<Arc<SharedCache>>,
    mounted: Arc<Mounted>,
    options: MountOptions,
    endpoint: String,
    region: String,
    socket: Option<Socket>,
    unmount: Arc<Notify>,
    keeper: Keeper,
    /// The next daemon can take the mount over.
    is_kept: bool,
}

impl<'a> ServedMount<'a> {
    /// Assembles the layers and mounts, or takes the mount that is there.
    pub(super) fn mount(
        config: &'a Config,
        stores: Vec<S3Store>,
        (disk, shared): (Option<Arc<Disk>>, Option<Arc<SharedCache>>),
        stats: Arc<Stats>,
        before: Option<BeforeThis>,
        keeper: Keeper,
    ) -> Result<Self, CommandError> {
        let seen_at = match &before {
            Some(BeforeThis::HandedOver(mount)) => mount.mountpoint.clone(),
            Some(BeforeThis::Left(taken)) => Some(taken.mount.mountpoint.clone()),
            None => None,
        };
        let options = config.mount_options(seen_at.unwrap_or_else(|| config.mountpoint.clone()));
        let endpoint = stores.first().map(S3Store::endpoint).unwrap_or_default();
        let regions: Vec<String> = stores.iter().map(|store| store.region().to_owned()).collect();
        let distinct: BTreeSet<_> = regions.iter().map(String::as_str).collect();
        let region = distinct.into_iter().collect::<Vec<_>>().join(",");
        let places = config.buckets.iter().zip(&stores);
        let places: Vec<_> =
            places.map(|(bucket, store)| (store.endpoint(), &*bucket.name)).collect();
        let origins = places.iter().map(|(endpoint, bucket)| Origin::new(endpoint, bucket));
        let disk_layer = disk.clone().map(|disk| (disk, origins.collect()));
        let origins = places.iter().map(|(endpoint, bucket)| SharedOrigin::new(endpoint, bucket));
        let shared_layer = shared.clone().map(|shared| (shared, origins.collect()));
        let tiers = Tiers { disk: disk_layer, shared: shared_layer };
        let stores = stores.into_iter().map(|store| Arc::new(store) as Arc<dyn ObjectStore>);
        let fs = stack(stores.collect(), &tiers, config, stats).map_err(|error| {
            CommandError::failed(format!(
                "no address space for the cache ({error}): raise `ulimit -v`, LimitAS= of a unit \
                 or vm.overcommit_ratio, or lower --memory-budget"
            ))
        })?;
        let mut table = None;
        let existing = match before {
            Some(BeforeThis::HandedOver(mount)) => Some(Existing::HandedOver(mount)),
            Some(BeforeThis::Left(taken)) => {
                let TakenMount { mount, kept, table: left, .. } = *taken;
                let shown = mount.mountpoint.display();
                tracing::info!(
                    "taking over the mount on {shown}: {} names are known",
                    kept.known()
                );
                fs.keep(kept);
                table = Some(left);
                Some(Existing::TakenOver(mount))
            }
            None => {
                if keeper.is_there() {
                    table = new_table(&fs);
                }
                None
            }
        };
        let is_taken = matches!(existing, Some(Existing::TakenOver(_)));
        let passthrough = passthrough(config, disk.as_deref(), is_taken)?;
        let mounted =
            fuse::mount(&fs, &options, passthrough.as_ref(), existing, &Handle::current())
                .map_err(|error| refused(&options.mountpoint, &error))?;
        let is_kept = is_taken
            || table.is_some_and(|table| outlive::keep(config, &keeper, &mounted, &table, regions));
        if is_kept {
            keeper.watch();
        }
        let without = |error: &String| {
            tracing::warn!("no control socket, so `status` and the like will not work: {error}");
        };
        // The path of a mount can be looked at when it is served.
        let socket = Socket::open(&options.mountpoint).inspect_err(without).ok();
        let (mounted, unmount) = (Arc::new(mounted), Arc::new(Notify::new()));
        let served = Self {
            config,
            fs,
            disk,
            shared,
            mounted,
            options,
            endpoint,
            region,
            socket,
            unmount,
            keeper,
            is_kept,
        };
        Ok(served)
    }

    /// Returns when the mount has answered the kernel: the path at which it may be asked again. A
    /// mount that was handed over may be at no path here, or closed to this user.
    pub(super) async fn usable(&self) -> Result<Option<PathBuf>, CommandError> {
        let mountpoint = &self.options.mountpoint;
        if config::descriptor(mountpoint).is_some() {
            return Ok(None);
        }
        let may_be_closed = self.mounted.handed_over();
        let failure = tokio::select! {
            answer = service::answers(mountpoint) => match answer {
                Ok(()) => return Ok(Some(mountpoint.clone())),
                Err(error) if may_be_closed && error.kind() == ErrorKind::PermissionDenied => {
                    return Ok(None);
                }
                Err(error) => error.to_string(),
            },
            () = self.mounted.ended() => "it was unmounted".to_owned(),
            () = tokio::time::sleep(FIRST_ANSWER) => {
                format!("silence for {} s", FIRST_ANSWER.as_secs())
            }
        };
        let shown = mountpoint.display();
        let sentence =
            format!("the mount on {shown} does not answer: {failure}; check dmesg, and try again");
        Err(CommandError::new(Exit::OsErr, sentence))
    }

    /// Says what is mounted, and serves metrics and the control socket until the result is dropped.
    pub(super) fn serve(&mut self, port: Option<TcpListener>) -> impl Sized + use<> {
        let Self { config, fs, options, endpoint, region, .. } = self;
        let layout = config.layout();
        let mut settings = Settings::new(config, options, &layout, endpoint, region);
        tracing::info!(
            endpoint,
            region,
            memory_budget = config::size(config.memory_budget_bytes),
            chunk_size = config::size(layout.chunk_bytes),
            part_size = config::size(layout.part_bytes),
            max_connections = config.cache.max_connections,
            metadata_ttl = ttl(config),
            version = crate::VERSION,
            "mounted {} on {}",
            options.source,
            options.mountpoint.display(),
        );
        let metrics = port.map(|port| {
            let address = port.local_addr().ok().map(|address| address.to_string());
            let shown = address.as_deref().unwrap_or_default();
            tracing::info!("metrics are at http://{shown}/metrics");
            settings.metrics = address;
            let exporter =
                metrics::Exporter::new(fs.clone(), self.disk.clone(), config, &options.mountpoint);
            Task::spawn(metrics::serve(port, exporter))
        });
        let control = self.socket.take().map(|socket| {
            tracing::debug!("the control socket is {}", socket.path().display());
            let (fs, disk, mounted) = (self.fs.clone(), self.disk.clone(), self.mounted.clone());
            let unmount = self.unmount.clone();
            let (file, serving) =
                socket.serve(control::Target { fs, disk, mounted, settings, unmount });
            (file, Task::spawn(serving))
        });
        (metrics, control)
    }

    /// Tells that the mount is usable; the process may be in the background afterwards.
    pub(super) fn ready(&self) -> Result<(), CommandError> {
        let hidden = self.is_hidden_from_the_host();
        if background::is_child() {
            background::leave()?;
        } else if self.config.daemon {
            background::detach()?;
        }
        self.keeper.ready();
        let (source, shown) = (&self.options.source, self.options.mountpoint.display());
        let hidden = if hidden { ", but not for the host" } else { "" };
        service::ready(&format!("mounted {source} on {shown}{hidden}"));
        Ok(())
    }

    fn is_hidden_from_the_host(&self) -> bool {
        // Where that cannot be known there is no warning.
        if self.mounted.device_number().and_then(service::host_sees) != Some(false) {
            return false;
        }
        tracing::warn!(
            "the mount on {} is in a mount namespace that process 1 does not see: only processes \
             started from here can use it; a unit must not have PrivateTmp=, PrivateMounts=, \
             ProtectSystem= or ProtectHome=, and a container needs shared mount propagation",
            self.options.mountpoint.display()
        );
        true
    }

    /// Answers signals, until one of them, the control socket or the kernel ends the mount.
    pub(super) async fn until_the_end(&self, signals: &mut Signals, logs: &Logs) -> End {
        loop {
            tokio::select! {
                () = self.unmount.notified() => {
                    tracing::info!("the control socket: unmounting");
                    return End::Unmount;
                }
                request = signals.next() => match request {
                    SignalRequest::Leave if self.is_kept => {
                        tracing::info!("SIGQUIT: the mount stays for the next daemon");
                        return End::Leave;
                    }
                    request @ (SignalRequest::End(_) | SignalRequest::Leave) => {
                        tracing::info!("{}: unmounting", request.name());
                        return End::Unmount;
                    }
                    SignalRequest::DropNames => self.drop_names().await,
                    SignalRequest::LogMore => logs.louder(),
                    SignalRequest::LogAsConfigured => logs.as_given(),
                },
                () = self.mounted.ended() => {
                    tracing::info!("unmounted from outside");
                    return End::Unmount;
                }
            }
        }
    }

    async fn drop_names(&self) {
        let (fs, mounted) = (self.fs.clone(), self.mounted.clone());
        let telling = spawn_blocking(move || mounted.expire_names(&fs.drop_names(), || fs.known()));
        // The kernel may be waiting for a lookup that waits for the store; other signals must not.
        let Ok(told) = tokio::time::timeout(LONGEST_TELLING, telling).await else {
            return tracing::warn!(
                "SIGHUP: dropped all cached names; the kernel is still being told"
            );
        };
        match told {
            Ok(Expired::AtOnce) => tracing::info!("SIGHUP: dropped all cached names"),
            Ok(Expired::OneByOne { names, all }) => tracing::info!(
                names,
                all,
                "SIGHUP: dropped all cached names; the kernel was told of each file separately, as \
                 is necessary before Linux 6.16"
            ),
            Err(panicked) => tracing::error!("SIGHUP: {panicked}"),
        }
    }

    /// Ends without unmounting. Until the process ends, requests are answered; what is not then, is
    /// sent to the next daemon.
    pub(super) async fn leave(self) {
        self.mounted.leave();
        if let Some(disk) = &self.disk {
            disk.settle(SETTLE).await;
        }
    }

    /// Unmounts, and gives readers that are waiting some time for their answers.
    pub(super) async fn unmount(self) -> Result<(), CommandError> {
        let shown = self.options.mountpoint.display();
        if self.mounted.handed_over() {
            if !self.mounted.has_ended() {
                tracing::info!(
                    "the mount stays: it answers ENOTCONN until its own process unmounts it"
                );
            }
        } else {
            let unmounting = self.mounted.clone();
            // Unmounting waits for the kernel, which may be waiting for a reply from this runtime.
            let unmounted = spawn_blocking(move || unmounting.unmount()).await;
            let failed = |failure: &dyn std::fmt::Display| {
                CommandError::failed(format!(
                    "{shown} cannot be unmounted: {failure}; free it with `umount -l`"
                ))
            };
            unmounted.map_err(|panicked| failed(&panicked))?.map_err(|error| failed(&error))?;
            self.keeper.forget();
            // After a lazy unmount the session ends with the last open file, if ever.
            let _ = tokio::time::timeout(DRAIN, self.mounted.ended()).await;
        }
        if let Some(disk) = &self.disk {
            disk.settle(DRAIN).await;
        }
        if let Some(shared) = &self.shared {
            shared.settle(DRAIN).await;
        }
        self.fs.stats.snapshot().log_unmounted(&self.options.mountpoint);
        Ok(())
    }
}

/// None if the kernel is to read nothing by itself.
fn passthrough(
    config: &Config,
    disk: Option<&Disk>,
    is_taken: bool,
) -> Result<Option<Passthrough>, CommandError> {
    let always = match config.passthrough {
        None | Some(PassthroughWhen::Off) => return Ok(None),
        Some(PassthroughWhen::Auto) => false,
        Some(PassthroughWhen::On) => true,
    };
    if is_taken {
        return Ok(Some(Passthrough { sample: None, always }));
    }
    match disk.and_then(Disk::sample) {
        Some(sample) => Ok(Some(Passthrough { sample: Some(sample), always })),
        None if always => Err(no_passthrough("--cache-dir is not used now")),
        None => Ok(None),
    }
}

fn no_passthrough(cause: &str) -> CommandError {
    let sentence = format!("--passthrough=on: {cause}; mount with --passthrough=auto");
    CommandError::new(Exit::OsErr, sentence)
}

/// Where the names that the kernel knows are kept, for a mount that is new.
fn new_table(fs: &BucketFs) -> Option<File> {
    let made = outlive::table().and_then(|table| {
        fs.keep(KeptNames::new(table.try_clone()?)?);
        Ok(table)
    });
    made.inspect_err(|error| tracing::warn!("the mount will end with this daemon: {error}")).ok()
}

fn ttl(config: &Config) -> String {
    let shown = |ttl| humantime::format_duration(ttl).to_string();
    config.names.metadata_ttl.map_or_else(|| "indefinite".to_owned(), shown)
}

fn refused(mountpoint: &Path, error: &std::io::Error) -> CommandError {
    let shown = mountpoint.display();
    let mut cause = error.to_string();
    if error.kind() == ErrorKind::Unsupported {
        return no_passthrough(&cause);
    }
    let remedy = if error.kind() == ErrorKind::NotFound {
        // Where the kernel refuses, fusermount3 is tried: this is the error of not finding it.
        "this process may not mount, and fusermount3 is not installed".clone_into(&mut cause);
        "install the package fuse3, or in a container start it with `--cap-add SYS_ADMIN --device \
         /dev/fuse`"
    } else if nix::unistd::geteuid().is_root() {
        "in a container, start it with `--cap-add SYS_ADMIN --device /dev/fuse`"
    } else {
        "an ordinary user needs fusermount3, of the package fuse3, and a mountpoint of their own"
    };
    CommandError::new(Exit::OsErr, format!("mounting on {shown} was refused: {cause}; {remedy}"))
}
