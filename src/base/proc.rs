//! The files of `/proc` whose lines are `Name: value` (`proc(5)`).

pub(crate) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The value, in bytes, of a field that is in kB, which means KiB.
pub(crate) fn field_bytes(text: &str, name: &str) -> Option<u64> {
    let kib: u64 = field(text, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The memory of the machine in bytes: `MemTotal` of `proc_meminfo(5)`.
pub(crate) fn machine_memory_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

/// The resident memory of this process in bytes: `VmRSS` of `proc_pid_status(5)`.
pub(crate) fn resident_bytes() -> Option<u64> {
    field_bytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS")
}

/// The system counts address space as memory, whether it is used or not (`vm.overcommit_memory` of
/// `proc_sys_vm(5)`).
pub(crate) fn counts_address_space() -> bool {
    let never_overcommits = |mode: String| mode.trim() == "2";
    std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(never_overcommits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "MemTotalOther: 1 kB\nMemTotal:       16 kB\nState:\tD (disk sleep)\n";
        assert_eq!(field_bytes(text, "MemTotal"), Some(16 * 1024));
        assert_eq!(field(text, "State"), Some("D (disk sleep)"));
        assert_eq!(field_bytes(text, "State"), None);
        assert_eq!(field(text, "MemFree"), None);
    }

    #[test]
    fn this_process_takes_memory_of_this_machine() {
        let (resident, machine) = (resident_bytes().unwrap(), machine_memory_bytes().unwrap());
        assert!(0 < resident && resident < machine, "{resident} of {machine}");
    }
}
