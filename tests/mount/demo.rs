//! The demo of the README, with small files: its program is server, daemon and reader in one.

use std::path::Path;
use std::process::Command;

use crate::common::{can_mount, skipped_but_not_in_ci};

#[test]
fn the_demo_reads_every_byte_and_leaves_nothing_mounted() {
    if !can_mount() {
        return;
    }
    // `cargo test` makes examples too; not where one test is named.
    let program = Path::new(env!("CARGO_BIN_EXE_fasts3-mount")).with_file_name("examples/demo");
    if !program.exists() && !skipped_but_not_in_ci("the example `demo` was not built") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program).arg("--size=8").arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{said}{errors}");
    assert!(said.contains("Every byte was right."), "{said}");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()), "{mounts}");
}
