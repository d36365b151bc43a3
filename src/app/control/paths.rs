//! Pure, but for a look at folders: where the control sockets are, and their names.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The sockets of root's mounts.
const SYSTEM: &str = "/run/fasts3-mount";
/// Those of a user's mounts, below the runtime directory.
const OF_USER: &str = "fasts3-mount";

pub(crate) fn own_directory(
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, String> {
    if let Some(folder) = of_service(&variable) {
        return Ok(folder);
    }
    if nix::unistd::geteuid().is_root() {
        return Ok(SYSTEM.into());
    }
    of_user(&variable).ok_or_else(|| "XDG_RUNTIME_DIR is not set".to_owned())
}

pub(crate) fn directories(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = of_service(&variable).into_iter().collect();
    folders.push(SYSTEM.into());
    folders.extend(of_user(&variable));
    if nix::unistd::geteuid().is_root() {
        let users = std::fs::read_dir("/run/user").into_iter().flatten().flatten();
        folders.extend(users.map(|user| user.path().join(OF_USER)));
    }
    // A service may have a folder of its own below: RuntimeDirectory=fasts3-mount/%i.
    let below = |folder: &PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path())
    };
    let instances: Vec<_> = folders.iter().flat_map(below).collect();
    folders.extend(instances);
    folders
}

/// The first of systemd's `RuntimeDirectory=`.
fn of_service(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let all = variable("RUNTIME_DIRECTORY")?;
    let first = all.as_bytes().split(|&byte| byte == b':').next()?;
    (!first.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(first)))
}

fn of_user(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = variable("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty())?;
    Some(Path::new(&folder).join(OF_USER))
}

/// The name of the socket of a mountpoint, whose path has no symbolic links: readable, and short
/// for any path, because the path of a socket has at most 107 bytes.
pub(crate) fn socket_name(path: &Path) -> String {
    let last = path.file_name().unwrap_or_default().to_string_lossy();
    let letter = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let mut name: String = last.chars().take(24).map(letter).collect();
    name.push('-');
    for byte in &Sha256::digest(path.as_os_str().as_bytes())[..8] {
        let _ = write!(name, "{byte:02x}");
    }
    name.push_str(".sock");
    name
}

/// A socket of that name is one of ours.
pub(crate) fn is_socket_name(name: &str) -> bool {
    let hash = name.strip_suffix(".sock").and_then(|name| Some(name.rsplit_once('-')?.1));
    hash.is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let owned: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), OsString::from(v))).collect();
        move |name| owned.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    }

    #[test]
    fn the_service_manager_says_where_the_socket_is() {
        let own = |pairs: &[(&str, &str)]| own_directory(environment(pairs));
        let service = ("RUNTIME_DIRECTORY", "/run/a:/run/b");
        assert_eq!(own(&[service]), Ok("/run/a".into()));
        let user = ("XDG_RUNTIME_DIR", "/run/user/1000");
        let want = if nix::unistd::geteuid().is_root() {
            SYSTEM.into()
        } else {
            PathBuf::from("/run/user/1000/fasts3-mount")
        };
        assert_eq!(own(&[("RUNTIME_DIRECTORY", ""), user]), Ok(want));
        let all = directories(environment(&[service, user]));
        for folder in ["/run/a", SYSTEM, "/run/user/1000/fasts3-mount"] {
            assert!(all.contains(&folder.into()), "{folder}");
        }
    }

    #[test]
    fn every_mountpoint_has_a_socket_name_of_its_own_that_is_short() {
        let name = |path: &str| socket_name(&Path::new("/mnt").join(path));
        let (one, two) = (name("a/data"), name("b/data"));
        assert_ne!(one, two);
        assert!(one.starts_with("data-") && one.contains(".sock"), "{one}");
        let odd = name(&format!("ä\n {}", "x".repeat(200)));
        assert!(odd.len() < 50 && odd.is_ascii() && !odd.contains('\n'), "{odd}");
        assert!(is_socket_name(&one) && is_socket_name(&odd));
        for other in ["data.sock", "data-0123.sock", &format!("{one}x"), ""] {
            assert!(!is_socket_name(other), "{other}");
        }
    }
}
