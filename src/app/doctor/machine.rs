//! The machine: kernel, FUSE, privileges, limits.

use super::diagnosis::Diagnosis;
use crate::app::command_error::CommandError;
use crate::app::config::{self, Config};
use crate::app::daemon::{self, Connections};
use crate::app::exit::Exit;

pub(super) fn look(config: &Config, connections: &Connections, report: &mut Diagnosis) {
    let kernel = kernel();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // FUSE_NO_OPENDIR_SUPPORT came with 5.1; max_pages, for requests of 1 MiB, with 4.20.
    if version(&kernel) >= (5, 1) {
        report.ok("kernel", format!("Linux {kernel}, {cores} cores"));
    } else {
        let what = format!("Linux {kernel} is old: before 5.1 every opendir wakes the daemon");
        report.slow("kernel", what);
    }
    match daemon::fuse_device() {
        Ok(()) => {
            let limit = read("/proc/sys/fs/fuse/max_pages_limit");
            let limit = limit.map_or(String::new(), |pages| {
                format!("; a request may have {pages} pages (fs.fuse.max_pages_limit)")
            });
            report.ok("FUSE", format!("/dev/fuse opens{limit}"));
        }
        Err(error) => report.fail("FUSE", &error),
    }
    // FUSE_NOTIFY_RESEND.
    if version(&kernel) >= (6, 9) {
        report.ok("restarts", "the mount can outlive its daemon (--outlive)");
    } else {
        let what = format!("the mount ends with its daemon: Linux {kernel} is older than 6.9");
        report.ok("restarts", what);
    }
    privileges(config, report);
    let budget = config::size(config.memory_budget_bytes);
    report.ok("memory", format!("the budget is {budget} (--memory-budget)"));
    match &connections.shortage {
        None => report.ok("files", format!("{} files may be open", connections.open_files)),
        Some(shortage) => report.slow("files", format!("fewer connections: {shortage}")),
    }
}

pub(super) fn kernel() -> String {
    read("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned())
}

fn privileges(config: &Config, report: &mut Diagnosis) {
    if nix::unistd::geteuid().is_root() {
        let kib = config.cache.kernel_readahead_bytes / 1024;
        let what = format!("root: the kernel's readahead will be raised to {kib} KiB");
        return report.ok("rights", what);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_helper = std::env::split_paths(&path)
        .chain(["/bin".into(), "/usr/bin".into()])
        .any(|folder| folder.join("fusermount3").is_file());
    if !has_helper {
        let what = "an ordinary user cannot mount without fusermount3; install the package fuse3";
        return report.fail("rights", &CommandError::new(Exit::OsErr, what));
    }
    report.slow(
        "rights",
        "not root: the kernel's readahead stays at 128 KiB, so large files cost more CPU; mount as \
         root, or let root set it after mounting (the log shows the command)",
    );
    if !config::others_are_allowed() {
        report.ok(
            "sharing",
            "other users cannot be let in (--allow-other): no user_allow_other in /etc/fuse.conf",
        );
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// `6.1.0-13-amd64` is 6.1.
pub(super) fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_has_a_version() {
        for (release, want) in
            [("6.1.0-13-amd64", (6, 1)), ("4.19.0", (4, 19)), ("6.18", (6, 18)), ("odd", (0, 0))]
        {
            assert_eq!(version(release), want, "{release}");
        }
    }
}
