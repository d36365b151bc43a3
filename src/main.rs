//! The binary; everything is in [`fasts3_mount::commands`] and [`fasts3_mount::daemon`].

fn main() -> std::process::ExitCode {
    fasts3_mount::commands::main(std::env::args_os())
}
