//! The environment variables, made tidy before anything reads them.
//!
//! A value from a Kubernetes secret, or from a file with CRLF, ends with the end of a line; a
//! variable without a value counts as not set, as in an `EnvironmentFile` with every line present.
//! The AWS SDK reads the environment in many places and takes it as it is, and that of a running
//! process cannot be changed safely. So the program executes itself, once, with a tidy one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::app::command_error::CommandError;

/// The beginnings of the names of variables that are read here, by the SDK, or for TLS.
const STARTS: [&str; 3] = ["FASTS3_", "AWS_", "SSL_CERT_"];
/// The end of the others, in either case.
const PROXY: &str = "_PROXY";

/// Returns if the environment is tidy, or when the program cannot be executed anew. `arguments` are
/// its own, its name first.
pub(crate) fn tidy(arguments: &[OsString]) -> Result<(), CommandError> {
    let mut untidy = std::env::vars_os().filter_map(|(name, value)| {
        let tidied = value.as_bytes().trim_ascii();
        let is_tidy = !is_read(&name) || !tidied.is_empty() && tidied.len() == value.len();
        (!is_tidy).then(|| (name, OsStr::from_bytes(tidied).to_owned()))
    });
    let Some(first) = untidy.next() else { return Ok(()) };
    let failed = |error| CommandError::failed(format!("the program cannot be executed: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    for (name, value) in std::iter::once(first).chain(untidy) {
        if value.is_empty() {
            command.env_remove(name)
        } else {
            command.env(name, value)
        };
    }
    Err(failed(command.exec()))
}

fn is_read(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let end = name.len().saturating_sub(PROXY.len());
    STARTS.iter().any(|start| name.starts_with(start.as_bytes()))
        || name[end..].eq_ignore_ascii_case(PROXY.as_bytes())
}

type Allows = fn(&u8) -> bool;

/// What no request can carry is refused by the name of its variable or option, and never shown.
pub(crate) fn check(region: Option<&str>) -> Result<(), String> {
    let is_visible: Allows = |byte| byte.is_ascii_graphic();
    let in_region: Allows = |byte| byte.is_ascii_alphanumeric() || *byte == b'-';
    // A secret key is not sent: some stores allow letters outside of ASCII in theirs.
    let in_secret: Allows = |byte| !byte.is_ascii_control();
    let variables = [
        ("AWS_ACCESS_KEY_ID", is_visible),
        ("AWS_SECRET_ACCESS_KEY", in_secret),
        ("AWS_SESSION_TOKEN", is_visible),
        ("AWS_REGION", in_region),
        ("AWS_DEFAULT_REGION", in_region),
    ];
    let wrong = variables.into_iter().find(|(name, allows)| {
        let value = std::env::var_os(name).unwrap_or_default();
        !value.as_bytes().iter().all(allows) || value.to_str().is_none()
    });
    let wrong = wrong.map(|(name, _)| format!("the variable {name}"));
    let is_wrong = region.is_some_and(|region| !region.as_bytes().iter().all(in_region));
    match wrong.or_else(|| is_wrong.then(|| "--region".to_owned())) {
        None => Ok(()),
        Some(named) => Err(format!(
            "{named} holds a character that cannot be sent, such as a space or the end of a line \
             in its middle; check where it is set"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_that_are_read_here_are_tidied() {
        for (name, is) in [
            ("AWS_REGION", true),
            ("FASTS3_UID", true),
            ("SSL_CERT_FILE", true),
            ("https_proxy", true),
            ("NO_PROXY", true),
            ("PS1", false),
            ("PROXY", false),
            ("", false),
        ] {
            assert_eq!(is_read(OsStr::new(name)), is, "{name}");
        }
    }
}
