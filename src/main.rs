//! The binary; everything is in [`fasts3_mount::app::commands`] and [`fasts3_mount::app::daemon`].

fn main() -> std::process::ExitCode {
    fasts3_mount::app::commands::main(std::env::args_os())
}
