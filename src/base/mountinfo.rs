//! Pure: mounts, as the kernel lists them (`proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `major:minor`, by which a FUSE mount is known in every namespace and under every path.
    pub(crate) device: String,
    pub(crate) path: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
}

impl Mount {
    /// By its type (mount.fuse3(8) gives another one), or by its source, which no other program
    /// uses, when the kernel was told no type.
    pub(crate) fn is_ours(&self) -> bool {
        ["fuse.fasts3", "fuse.mount.fasts3"].contains(&self.kind.as_str())
            || (self.kind == "fuse" && self.source.starts_with("s3://"))
    }
}

/// All mounts, later ones above those before them.
pub(crate) fn mounts(mountinfo: &[u8]) -> impl DoubleEndedIterator<Item = Mount> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let text = |field| String::from_utf8_lossy(field).into_owned();
        let device = text(fields.nth(2)?);
        let path = PathBuf::from(OsString::from_vec(unescaped(fields.nth(1)?)));
        // Optional fields end with a lone hyphen; the type follows.
        fields.find(|field| *field == b"-")?;
        let (kind, source) = (text(fields.next()?), text(fields.next()?));
        Some(Mount { device, path, kind, source })
    })
}

/// The topmost mount on a path.
pub(crate) fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mount> {
    mounts(mountinfo).rfind(|mount| mount.path == path)
}

pub(crate) fn lists(mountinfo: &[u8], device: &str) -> bool {
    mounts(mountinfo).any(|mount| mount.device == device)
}

/// Space, tab, newline and backslash are written `\ooo`.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &[u8] = b"36 35 98:0 /root /mnt/a\\040b rw,noatime master:1 - fuse.other x rw\n\
        37 35 98:1 / /mnt/c rw - tmpfs tmpfs rw\n\
        38 35 0:40 / /mnt/e rw - autofs systemd-1 rw,direct\n\
        39 38 0:41 / /mnt/e rw - fuse.fasts3 s3://x/ rw\n";

    #[test]
    fn mounts_are_found_by_their_path_the_topmost_first() {
        let found =
            |path: &str| topmost(INFO, Path::new(path)).map(|mount| (mount.device, mount.kind));
        let is = |device: &str, kind: &str| Some((device.to_owned(), kind.to_owned()));
        assert_eq!(found("/mnt/a b"), is("98:0", "fuse.other"));
        assert_eq!(found("/mnt/c"), is("98:1", "tmpfs"));
        assert_eq!(found("/mnt/e"), is("0:41", "fuse.fasts3"));
        assert_eq!(found("/mnt"), None);
        assert_eq!(topmost(b"garbage", Path::new("/")), None);
    }

    #[test]
    fn a_device_is_found_whatever_its_path() {
        assert!(lists(INFO, "0:41"));
        assert!(!lists(INFO, "0:4"));
        assert!(!lists(INFO, "41:0"));
    }

    mod fuzz {
        use std::os::unix::ffi::OsStrExt as _;

        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        fn text() -> impl Strategy<Value = Vec<u8>> {
            let odd = prop::sample::select(b" \t\n\\-#0134".to_vec());
            prop::collection::vec(prop_oneof![odd, 1..=255_u8], 1..12)
        }

        /// As the kernel writes it (`mangle` in `fs/proc_namespace.c`).
        fn escaped(bytes: &[u8]) -> Vec<u8> {
            let write = |&byte: &u8| match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{byte:03o}").into_bytes(),
                byte => vec![byte],
            };
            bytes.iter().flat_map(write).collect()
        }

        /// A path of any bytes is found where it is mounted.
        #[test]
        fn any_path_is_read_as_the_kernel_writes_it() {
            let optional = fuzz::text("( (shared|master):[0-9]{1,2}| propagate_from:1){0,3}");
            fuzz::each(
                (prop::collection::vec((text(), optional), 1..4), any::<bool>()),
                |(all, cut)| {
                    let mut info = Vec::new();
                    for (number, (path, optional)) in all.iter().enumerate() {
                        info.extend(format!("3{number} 3 0:{number} / ").into_bytes());
                        info.extend(escaped(path));
                        info.extend(
                            format!(" ro{optional} - fuse.fasts3 s3://b/ ro\n").into_bytes(),
                        );
                    }
                    let last = &all.last().unwrap().0;
                    let path = Path::new(std::ffi::OsStr::from_bytes(last));
                    let found = topmost(&info, path).map(|mount| mount.device);
                    prop_assert_eq!(found, Some(format!("0:{}", all.len() - 1)));
                    prop_assert_eq!(mounts(&info).filter(Mount::is_ours).count(), all.len());
                    // A line that was cut off is no mount, or a shorter one; never a panic.
                    if cut {
                        let half = &info[..info.len() / 2];
                        prop_assert!(mounts(half).count() <= all.len());
                    }
                    Ok(())
                },
            );
        }

        #[test]
        fn any_bytes_are_no_more_mounts_than_lines() {
            let garbage = fuzz::text("([ -~]{0,20}( - )?[ -~]{0,8}\n?|\\\\[0-9]{0,4}){0,4}");
            let garbage = prop_oneof![
                garbage.prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..80)
            ];
            fuzz::each(garbage, |info| {
                let lines = info.split(|&byte| byte == b'\n').count();
                let found: Vec<_> = mounts(&info).collect();
                prop_assert!(found.len() <= lines);
                let told: usize = found.iter().map(|mount| mount.path.as_os_str().len()).sum();
                prop_assert!(told <= info.len());
                Ok(())
            });
        }
    }
}
