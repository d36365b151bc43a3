//! Exit codes, those of `sysexits(3)`, each for one kind of failure. The man pages are generated
//! from this table, and tests compare docs/semantics.md and the unit file with it.

/// One row for each code: the number, the name in `sysexits(3)`, whether it is final, the meaning
/// for a mount that cannot start, and for a subcommand ("" where none uses the code).
macro_rules! exits {
    ($($exit:ident $code:literal $name:literal $is_final:literal $mount:literal $cmd:literal)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Exit {
            $($exit = $code,)*
        }

        pub const EXITS: &[ExitMeaning] = &[
            $(ExitMeaning {
                code: $code, name: $name, is_final: $is_final, mount: $mount, command: $cmd,
            },)*
        ];
    };
}

exits! {
    Usage 64 "EX_USAGE" true "an option is wrong" "an option is wrong"
    DataErr 65 "EX_DATAERR" true
        "the region is wrong and the bucket's answer does not correct it" ""
    NoInput 66 "EX_NOINPUT" true
        "no such bucket" "not a mount of ours (any more), no path to warm is in one, or no cache"
    NoHost 68 "EX_NOHOST" false "the endpoint cannot be reached" ""
    Unavailable 69 "EX_UNAVAILABLE" false
        "the store fails" "the daemon is gone, or does not answer in time"
    Software 70 "EX_SOFTWARE" false
        "a fault of the program or the machine" "the daemon refuses, or an unmount has not ended"
    OsErr 71 "EX_OSERR" false "/dev/fuse is missing, or mounting was refused" ""
    OsFile 72 "EX_OSFILE" true
        "the mountpoint is missing or not a directory, or a /dev/fd/N that is not a mount" ""
    CantCreat 73 "EX_CANTCREAT" false
        "the mountpoint is busy, --metrics-listen cannot listen, or --cache-dir is not safe" ""
    IoErr 74 "EX_IOERR" false
        "the mountpoint is a stale mount of another program; one of ours is removed"
        "some of the paths to warm could not be read, or bytes of a cache were wrong"
    TempFail 75 "EX_TEMPFAIL" false "the store throttles or does not answer in time" ""
    Protocol 76 "EX_PROTOCOL" false "the endpoint does not speak S3" ""
    NoPerm 77 "EX_NOPERM" true "access denied" "the mount or the cache belongs to another user"
    Config 78 "EX_CONFIG" false "no credentials" ""
}

pub struct ExitMeaning {
    pub code: u8,
    pub name: &'static str,
    /// Only a change of the settings helps: `RestartPreventExitStatus=` of the unit.
    pub is_final: bool,
    pub mount: &'static str,
    pub command: &'static str,
}

impl Exit {
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) fn is_final(self) -> bool {
        EXITS.iter().any(|exit| exit.code == self.code() && exit.is_final)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> String {
        std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    /// The rows of a table whose first column is a code of `sysexits(3)`.
    fn rows(text: &str) -> Vec<Vec<String>> {
        let cells = |row: &str| {
            let row = row.trim_matches(['|', ' ']).replace('`', "");
            row.split(" | ").map(str::to_owned).collect()
        };
        let rows = text.lines().filter(|line| line.starts_with("| 6") || line.starts_with("| 7"));
        rows.map(cells).collect()
    }

    #[test]
    fn the_document_lists_each_code_with_its_meaning() {
        let text = read("docs/semantics.md");
        let section = text.split("\n## Exit codes\n").nth(1).unwrap();
        let (mount, command) = section.split_once("`doctor` ends with").unwrap();
        let star = |exit: &ExitMeaning| if exit.is_final { "*" } else { "" };
        let want = EXITS.iter().map(|exit| {
            [format!("{}{}", exit.code, star(exit)), exit.name.to_owned(), exit.mount.to_owned()]
        });
        assert_eq!(rows(mount), want.collect::<Vec<_>>());
        let used = EXITS.iter().filter(|exit| !exit.command.is_empty());
        let want = used.map(|exit| [exit.code.to_string(), exit.command.to_owned()]);
        assert_eq!(rows(command), want.collect::<Vec<_>>());
    }

    #[test]
    fn the_unit_tries_again_where_that_can_help() {
        let unit = read("systemd/fasts3-mount@.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
        let in_vain = EXITS.iter().filter(|exit| exit.is_final);
        let want: Vec<_> = in_vain.map(|exit| exit.code.to_string()).collect();
        assert_eq!(line, Some(want.join(" ").as_str()));
    }
}
