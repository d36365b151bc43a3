//! The command line of `mount.fasts3`, as mount(8) calls it, turned into that of the program.
//!
//! `mount.fasts3 SPEC DIR [-sfnv] [-N namespace] [-o options] [-t type]` (mount(8), "External
//! helpers"). `-o name=value` is the option `--name=value`, with underscores or hyphens.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use clap::CommandFactory as _;

use super::args::{Args, mode};

/// mount(8) finds the helper by this name.
pub(crate) const NAME: &str = "mount.fasts3";

/// Options that fstab and mount(8) have for every file system. They are for mount(8) itself, or
/// hold in any case: read-only, without set-user-ID bits, devices and access times.
const STANDARD: &str = "_netdev async atime auto default_permissions defaults dev diratime dirsync \
    exec fail group iversion lazytime loud mand noatime noauto nodev nodiratime nofail noiversion \
    nolazytime nomand norelatime nostrictatime nosuid nosymfollow nouser owner relatime ro rw \
    silent strictatime suid symfollow sync user users quiet nogroup noowner";

/// The same of FUSE and of other file systems for buckets.
const FOREIGN: &str = "async_read auto_cache auto_unmount big_writes fsname hard_remove iam_role \
    implicit_dirs intr kernel_cache large_read max_read max_readahead max_write nonempty read_only \
    readdir_ino subtype sync_read use_ino";

/// Flags of other file systems for buckets, and what they are here.
const SAME: &[(&str, &str)] = &[
    ("anonymous", "no-sign-request"),
    ("force_path_style", "path-style=always"),
    ("no_check_certificate", "no-verify-tls"),
    ("noexec", "no-exec"),
    ("public_bucket", "no-sign-request"),
    ("use_path_request_style", "path-style=always"),
];

/// The request of mount(8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountCall {
    /// The program's own arguments, its name first.
    pub(crate) arguments: Vec<OsString>,
    /// `-f`: everything but the mount itself.
    pub(crate) fake: bool,
}

pub(crate) fn is_called(program: Option<&OsString>) -> bool {
    program.is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(NAME)))
}

/// Reads the helper's arguments, without its name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<MountCall, String> {
    let mut arguments = arguments.into_iter();
    let mut places = Vec::new();
    let mut given = Vec::new();
    let (mut fake, mut sloppy) = (false, false);
    while let Some(argument) = arguments.next() {
        let Some(flags) = argument.as_bytes().strip_prefix(b"-").filter(|flags| !flags.is_empty())
        else {
            places.push(argument);
            continue;
        };
        for (at, flag) in flags.iter().enumerate() {
            // The value of a flag is the rest of its argument, or else the next argument.
            let mut value = || match &flags[at + 1..] {
                [] => arguments.next().map(OsString::into_vec),
                rest => Some(rest.to_vec()),
            };
            match flag {
                b's' => sloppy = true,
                b'f' => fake = true,
                b'n' | b'v' | b'r' | b'w' => continue,
                b'o' => given.push(value().ok_or("-o needs options")?),
                b't' => drop(value()),
                b'N' => return Err("-N is not supported: call mount through nsenter(1)".into()),
                other => return Err(format!("there is no flag -{}", char::from(*other))),
            }
            if matches!(flag, b'o' | b't') {
                break;
            }
        }
    }
    let [bucket, mountpoint] = places.try_into().map_err(|places: Vec<_>| {
        format!("{NAME} takes a bucket and a directory, and was given {} arguments", places.len())
    })?;
    let mut options = Options::default();
    for option in given.iter().flat_map(|given| split(given)) {
        options.add(&option, sloppy)?;
    }
    let bucket = options.below(bucket);
    let mut all = vec![OsString::from("fasts3-mount"), OsString::from("--daemon")];
    all.extend(options.into_long());
    all.extend([OsString::from("--"), bucket, mountpoint]);
    Ok(MountCall { arguments: all, fake })
}

/// Splits at the commas outside of double quotes, and removes the quotes.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut quoted = false;
    for &byte in options {
        match (byte, parts.last_mut()) {
            (b'"', _) => quoted = !quoted,
            (b',', _) if !quoted => parts.push(Vec::new()),
            (byte, Some(part)) => part.push(byte),
            (_, None) => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// What mount options ask for.
#[derive(Debug, Default)]
struct Options {
    /// The program's options.
    long: Vec<OsString>,
    /// Permission bits that files and directories do not have: `umask=`, `fmask=`, `dmask=`.
    file_mask: Option<u16>,
    dir_mask: Option<u16>,
    /// `prefix=`, below the bucket.
    prefix: Option<OsString>,
}

impl Options {
    fn add(&mut self, option: &[u8], sloppy: bool) -> Result<(), String> {
        let option = option.strip_prefix(b"--").unwrap_or(option);
        let name_ends = option.iter().position(|&byte| byte == b'=').unwrap_or(option.len());
        let given = String::from_utf8_lossy(&option[..name_ends]);
        let name = given.replace('-', "_");
        let value = option.get(name_ends + 1..).unwrap_or_default();
        if name == "remount" {
            return Err("a mount cannot be changed (remount): unmount it and mount it again".into());
        }
        let for_others = ["x-", "X-", "comment", "helper", "uhelper"];
        if [STANDARD, FOREIGN].iter().any(|known| known.split(' ').any(|known| known == name))
            || for_others.iter().any(|start| given.starts_with(start))
        {
            return Ok(());
        }
        if let Some((_, flag)) = SAME.iter().find(|(known, _)| *known == name) {
            // Some write them with a value, such as `public_bucket=1`.
            if !matches!(value, b"0" | b"false" | b"no") {
                self.long.push(format!("--{flag}").into());
            }
            return Ok(());
        }
        let long = match name.as_str() {
            "umask" | "fmask" | "dmask" => return self.mask(&name, value),
            "prefix" => {
                self.prefix = Some(OsString::from_vec(value.to_vec()));
                return Ok(());
            }
            "url" => "endpoint-url".to_owned(),
            // An address to some, and to others the region.
            "endpoint" if value.windows(3).any(|part| part == b"://") => "endpoint-url".to_owned(),
            "endpoint" => "region".to_owned(),
            _ => name.replace('_', "-"),
        };
        let is_known = Args::command()
            .get_arguments()
            .any(|argument| argument.get_long() == Some(&long) && long != "daemon");
        if is_known {
            let mut bytes = format!("--{long}").into_bytes();
            bytes.extend_from_slice(&option[name_ends..]);
            self.long.push(OsString::from_vec(bytes));
        } else if !sloppy {
            return Err(format!("there is no mount option {given}; see `fasts3-mount --help`"));
        }
        Ok(())
    }

    fn mask(&mut self, name: &str, value: &[u8]) -> Result<(), String> {
        let mask = std::str::from_utf8(value).map_err(|_| String::new()).and_then(mode);
        let mask = mask.map_err(|_| format!("{name}= takes octal digits, 000 to 777"))?;
        if name != "dmask" {
            self.file_mask = Some(mask);
        }
        if name != "fmask" {
            self.dir_mask = Some(mask);
        }
        Ok(())
    }

    /// The part of a bucket that is asked for.
    fn below(&self, bucket: OsString) -> OsString {
        let Some(prefix) = &self.prefix else { return bucket };
        let mut path = bucket.into_vec();
        path.extend_from_slice(if path.ends_with(b"/") { b"" } else { b"/" });
        path.extend_from_slice(prefix.as_bytes());
        OsString::from_vec(path)
    }

    /// The program's options; a mode that is given wins over a mask.
    fn into_long(mut self) -> Vec<OsString> {
        for (mask, all, option) in
            [(self.file_mask, 0o666, "--file-mode="), (self.dir_mask, 0o777, "--dir-mode=")]
        {
            let is_given = |long: &OsString| long.as_bytes().starts_with(option.as_bytes());
            if let Some(mask) = mask
                && !self.long.iter().any(is_given)
            {
                self.long.push(format!("{option}{:04o}", all & !mask).into());
            }
        }
        self.long
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &[&str]) -> Result<MountCall, String> {
        parse(line.iter().map(OsString::from))
    }

    fn options(line: &[&str]) -> Vec<String> {
        let call = call(line).unwrap();
        let text = call.arguments.into_iter().map(|word| word.into_string().unwrap());
        text.skip(2).take_while(|word| word != "--").collect()
    }

    #[test]
    fn the_helper_is_known_by_its_name() {
        for (name, is) in [
            ("/sbin/mount.fasts3", true),
            ("mount.fasts3", true),
            ("/usr/bin/fasts3-mount", false),
            ("/mount.fasts3/x", false),
        ] {
            assert_eq!(is_called(Some(&OsString::from(name))), is, "{name}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn a_line_of_fstab_becomes_options() {
        let call = call(&[
            "s3://data/a b",
            "/mnt/my data",
            "-o",
            "rw,_netdev,nofail,x-systemd.automount,endpoint_url=http://a:1/x?,allow-other",
        ])
        .unwrap();
        let want = [
            "fasts3-mount",
            "--daemon",
            "--endpoint-url=http://a:1/x?",
            "--allow-other",
            "--",
            "s3://data/a b",
            "/mnt/my data",
        ];
        assert_eq!(call.arguments, want.map(OsString::from));
        assert!(!call.fake);
    }

    #[test]
    fn flags_are_taken_apart_and_ignored() {
        assert!(call(&["-nvf", "b", "/m", "-t", "fasts3"]).unwrap().fake);
        assert_eq!(
            options(&["b", "/m", "-nouid=3,gid=4", "-o", "noexec"]),
            ["--uid=3", "--gid=4", "--no-exec"]
        );
        assert_eq!(
            options(&["b", "/m", "-tfasts3", "-v", "-s", "-o", "frobnicate,uid=1"]),
            ["--uid=1"]
        );
    }

    #[test]
    fn lines_of_other_file_systems_are_understood() {
        for (line, wants) in [
            // s3fs
            (
                "_netdev,allow_other,use_path_request_style,url=http://m:9000,umask=0022,nonempty",
                &[
                    "--allow-other",
                    "--path-style=always",
                    "--endpoint-url=http://m:9000",
                    "--file-mode=0644",
                    "--dir-mode=0755",
                ][..],
            ),
            ("public_bucket=1,endpoint=eu-west-1", &["--no-sign-request", "--region=eu-west-1"]),
            ("public_bucket=0,no_check_certificate", &["--no-verify-tls"]),
            // Mountpoint
            (
                "rw,read-only,allow-other,force-path-style,no-sign-request",
                &["--allow-other", "--path-style=always", "--no-sign-request"],
            ),
            // goofys
            (
                "--file-mode=0666,--dir-mode=0777,endpoint=https://s3.example.com",
                &["--file-mode=0666", "--dir-mode=0777", "--endpoint-url=https://s3.example.com"],
            ),
            // vfat, CIFS, gcsfuse
            ("fmask=0133,dmask=0022", &["--file-mode=0644", "--dir-mode=0755"]),
            (
                "umask=077,file_mode=0640,dmask=027,implicit_dirs",
                &["--file-mode=0640", "--dir-mode=0750"],
            ),
        ] {
            assert_eq!(options(&["b", "/m", "-o", line]), wants, "{line}");
        }
        for bucket in ["s3://b", "s3://b/"] {
            let call = call(&[bucket, "/m", "-o", "prefix=a/b/,region=us-east-1"]).unwrap();
            assert_eq!(call.arguments[4..], ["s3://b/a/b/", "/m"].map(OsString::from));
        }
    }

    #[test]
    fn quotes_hold_commas_together() {
        assert_eq!(
            options(&["b", "/m", "-o", "profile=\"a,b\",,uid=1"]),
            ["--profile=a,b", "--uid=1"]
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, says) in [
            (&["b"][..], "was given 1 argument"),
            (&["b", "/m", "/n"], "was given 3"),
            (&["b", "/m", "-o"], "-o needs"),
            (&["b", "/m", "-x"], "no flag -x"),
            (&["b", "/m", "-N", "/proc/1/ns/mnt"], "nsenter"),
            (&["b", "/m", "-o", "frobnicate=1"], "no mount option frobnicate"),
            (&["b", "/m", "-o", "daemon"], "no mount option daemon"),
            (&["b", "/m", "-o", "remount,ro"], "mount it again"),
            (&["b", "/m", "-o", "umask=1000"], "umask= takes octal digits"),
            (&["b", "/m", "-o", "dmask"], "dmask= takes octal digits"),
        ] {
            let sentence = call(line).unwrap_err();
            assert!(sentence.contains(says), "{line:?}: {sentence}");
        }
    }

    mod fuzz {
        use proptest::prelude::*;

        use super::*;
        use crate::testing::fuzz;

        /// Whatever mount(8) is given: it is refused, or every option is one of the program's, and
        /// the bucket and the directory stay what they are.
        #[test]
        fn any_options_are_the_programs_own_or_refused() {
            let option = fuzz::text(
                "(uid|gid|rw|nofail|x-[a-z]{2}|endpoint.url|noexec|allow_other|io_timeout|daemon|\
                 remount|\\PC{0,5})(=[ -~]{0,8})?",
            );
            let options = prop::collection::vec(option, 0..4).prop_map(|all| all.join(","));
            let flags = fuzz::text("-[nvfsrw]{0,3}o?|-t|\\PC{0,4}|-[a-zA-Z]{1,2}");
            fuzz::each((prop::collection::vec(flags, 0..3), options), |(flags, options)| {
                let mut line: Vec<_> = flags.iter().map(String::as_str).collect();
                line.extend(["-o", &options, "s3://bucket", "/m"]);
                let Ok(call) = call(&line) else { return Ok(()) };
                let words: Vec<_> =
                    call.arguments.iter().filter_map(|word| word.to_str()).collect();
                prop_assert_eq!(&words[..2], ["fasts3-mount", "--daemon"]);
                let (given, places) = words[2..].split_at(words.len() - 5);
                prop_assert!(given.iter().all(|word| word.starts_with("--") && word.len() > 2));
                prop_assert_eq!(places[0], "--");
                prop_assert!(places[1..].iter().all(|place| line.contains(place)));
                Ok(())
            });
        }
    }
}
