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
/// The same of the words that ask a mount, and of the one that tries a store.
const MORE_OF_WORDS: &str = include_str!("../packaging/words.1.in");
const MORE_OF_DOCTOR: &str = include_str!("../packaging/doctor.1.in");

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("give the folder to write to")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let mut whole = fasts3_mount::commands::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut whole, "fasts3-mount", folder)?;
    }
    // The synopsis of a mount has no place for a word.
    let mount = fasts3_mount::config::command();
    write_page(Man::new(mount), Some(&Man::new(whole.clone())), MORE, folder)?;
    whole.build();
    for word in whole.get_subcommands() {
        let more = if word.get_name() == "doctor" { MORE_OF_DOCTOR } else { MORE_OF_WORDS };
        write_page(Man::new(word.clone()), None, more, folder)?;
    }
    Ok(())
}

/// A page, with the words of another if it is to name them.
fn write_page(
    page: Man,
    words: Option<&Man>,
    more: &str,
    folder: &Path,
) -> Result<(), Box<dyn Error>> {
    let source = format!("fasts3-mount {}", fasts3_mount::VERSION);
    let page = page.manual("System Administration").source(source);
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if let Some(words) = words {
        words.render_subcommands_section(&mut text)?;
    }
    text.write_all(more.as_bytes())?;
    fs::write(folder.join(page.get_filename()), text)?;
    Ok(())
}
