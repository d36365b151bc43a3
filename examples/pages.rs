//! Writes what a package holds besides the program: man pages and shell completions, made of what
//! clap knows of the command line, so that they cannot disagree with it.
//!
//! ```text
//! cargo run --release --example pages -- target/package
//! ```

use std::error::Error;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

/// What clap does not know. See man-pages(7) for the order of sections.
const MORE: &str = include_str!("../packaging/fasts3-mount.1.in");

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("give the folder to write to")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let mut command = fasts3_mount::config::command();
    clap_mangen::generate_to(command.clone(), folder)?;
    write_main_page(command.clone(), folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "fasts3-mount", folder)?;
    }
    Ok(())
}

fn write_main_page(command: clap::Command, folder: &Path) -> Result<(), Box<dyn Error>> {
    let version = command.get_version().unwrap_or_default().to_owned();
    let page =
        Man::new(command).manual("System Administration").source(format!("fasts3-mount {version}"));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.write_all(MORE.as_bytes())?;
    fs::write(folder.join("fasts3-mount.1"), text)?;
    Ok(())
}
