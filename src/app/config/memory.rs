//! The memory that this process may use: that of the machine, or the limit of its cgroup.

use std::path::Path;

use crate::base::proc;

/// Most of the machine belongs to the training script; beyond 8 GiB the page cache serves a second
/// epoch better than a second copy of the bytes here.
const MOST_BYTES: u64 = 8 << 30;
/// Assumed when neither is known.
const UNKNOWN_BYTES: u64 = 1 << 30;

/// A quarter of the memory of the machine or the cgroup, at most 8 GiB, in whole MiB.
pub(super) fn default_budget_bytes() -> u64 {
    let machine = proc::machine_memory_bytes();
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| cgroup_limit(&text, Path::new("/sys/fs/cgroup")));
    let available = machine.into_iter().chain(cgroup).min().unwrap_or(4 * UNKNOWN_BYTES);
    (available / 4).clamp(super::MIN_BUDGET_BYTES, MOST_BYTES) >> 20 << 20
}

/// The smallest limit of the memory cgroup of this process and those above it, version 2 or 1.
///
/// In a container without a cgroup namespace the path is the host's and the files lie at the root
/// of what is mounted here; so folders that do not exist are skipped.
fn cgroup_limit(proc_self_cgroup: &str, root: &Path) -> Option<u64> {
    let mut least: Option<u64> = None;
    for line in proc_self_cgroup.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        for folder in Path::new(path.trim_start_matches('/')).ancestors() {
            // "max" is not a number, and version 1 writes a number above the memory of any machine:
            // neither has an effect on the minimum.
            let limit = std::fs::read_to_string(root.join(folder).join(file))
                .ok()
                .and_then(|text| text.trim().parse().ok());
            least = least.into_iter().chain(limit).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_cgroup_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let limit = |cgroup: &str| cgroup_limit(cgroup, root.path());
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/b/memory.max", "max\n");
        assert_eq!(limit("0::/a/b\n"), None);
        write("a/memory.max", "1000\n");
        assert_eq!(limit("0::/a/b\n"), Some(1000));
        write("a/b/memory.max", "2000\n");
        assert_eq!(limit("0::/a/b\n"), Some(1000));
        write("memory/memory.limit_in_bytes", "500\n");
        assert_eq!(limit("3:cpu:/x\n2:memory:/docker/1\n0::/a/b\n"), Some(500));
        assert_eq!(limit("3:cpu,memory:/docker/1\n"), Some(500));
        assert_eq!(limit("nonsense"), None);
    }

    #[test]
    fn the_default_is_a_sane_number_here() {
        let bytes = default_budget_bytes();
        assert!((super::super::MIN_BUDGET_BYTES..=MOST_BYTES).contains(&bytes), "{bytes}");
    }
}
