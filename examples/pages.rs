//! Writes man pages and shell completions, made from clap's definition of the command line, so that
//! they cannot disagree with it.
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
use fasts3_mount::app::exit::{EXITS, ExitMeaning};

/// The sections that clap does not know. See man-pages(7) for the order of sections.
const MORE: &str = include_str!("../packaging/fasts3-mount.1.in");
/// The same of the subcommands.
const MORE_OF_SUBCOMMANDS: &str = include_str!("../packaging/subcommands.1.in");
const MORE_OF_DOCTOR: &str = include_str!("../packaging/doctor.1.in");
const EXIT_CODES: &str = "@EXIT_CODES@\n";

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("give the folder to write to")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let mut whole = fasts3_mount::app::commands::command();
    fs::write(folder.join("_fasts3-mount"), zsh()?)?;
    for shell in [Shell::Bash, Shell::Fish] {
        clap_complete::generate_to(shell, &mut whole, "fasts3-mount", folder)?;
    }
    // clap_complete 4.6 takes the hyphen in the program's name for the beginning of a subcommand,
    // in one of the two places where the shell must find the same word.
    let bash = folder.join("fasts3-mount.bash");
    let text = fs::read_to_string(&bash)?;
    fs::write(&bash, text.replace("fasts3__subcmd__mount", "fasts3__mount"))?;
    // The synopsis of a mount has no place for a subcommand.
    let mount = fasts3_mount::app::config::command();
    let more = MORE.replace(EXIT_CODES, &exit_codes(|exit| exit.mount));
    write_page(Man::new(mount), Some(&Man::new(whole.clone())), &more, folder)?;
    whole.build();
    let more = MORE_OF_SUBCOMMANDS.replace(EXIT_CODES, &exit_codes(|exit| exit.command));
    for subcommand in whole.get_subcommands() {
        let more = if subcommand.get_name() == "doctor" { MORE_OF_DOCTOR } else { &more };
        write_page(Man::new(subcommand.clone()), None, more, folder)?;
    }
    Ok(())
}

/// A line for each code that has a meaning.
fn exit_codes(meaning: impl Fn(&ExitMeaning) -> &'static str) -> String {
    let rows = EXITS.iter().map(|exit| (exit.code, meaning(exit))).filter(|row| !row.1.is_empty());
    let lines: Vec<_> =
        rows.map(|(code, text)| format!("{code}  {}\n", text.replace('-', "\\-"))).collect();
    lines.concat()
}

/// For zsh, where a word would be completed behind a bucket and a mountpoint if it were one
/// command: so it is two, of which the first argument says which.
fn zsh() -> Result<String, Box<dyn Error>> {
    let generate = |mut command: clap::Command, name: &str| {
        let mut text = Vec::new();
        clap_complete::generate(Shell::Zsh, &mut command, name, &mut text);
        String::from_utf8(text)
    };
    let mount = generate(fasts3_mount::app::config::command(), "fasts3-mount")?;
    let whole = fasts3_mount::app::commands::command();
    let words: Vec<_> = whole.get_subcommands().cloned().collect();
    let names: Vec<_> = words.iter().map(clap::Command::get_name).collect();
    let first = format!(
        "_fasts3-mount() {{
    if (( CURRENT == 2 )); then
        _fasts3-mount-word_commands
    elif [[ $words[2] == ({}) ]]; then
        _fasts3-mount-word \"$@\"
        return
    fi
",
        names.join("|")
    );
    let words = clap::Command::new("fasts3-mount-word").subcommands(words);
    let words = generate(words.disable_help_subcommand(true), "fasts3-mount-word")?;
    // Without the line that names the command to complete.
    let (_, words) = words.split_once('\n').ok_or("no first line")?;
    let (words, _) = words.split_once("\nif [ ").ok_or("no last lines")?;
    let (head, mount) = mount.split_once("_fasts3-mount() {\n").ok_or("no function")?;
    Ok(format!("{head}{words}\n{first}{mount}"))
}

/// A page, with the subcommands of another if it is to list them.
fn write_page(
    page: Man,
    subcommands: Option<&Man>,
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
    if let Some(subcommands) = subcommands {
        subcommands.render_subcommands_section(&mut text)?;
    }
    text.write_all(more.as_bytes())?;
    fs::write(folder.join(page.get_filename()), text)?;
    Ok(())
}
