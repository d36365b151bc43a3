//! What the next daemon must know of a mount before it takes it over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use crate::app::config::{Config, PassthroughWhen};
use crate::fuse::Agreement;
use crate::names::{DESCRIPTION_BYTES, FORMAT};

/// The beginning of the file. The version of the format, a length and a checksum follow, and JSON.
const MAGIC: &[u8; 16] = b"fasts3-mount\0\0\0\n";
const HEAD: usize = 32;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::app::daemon) struct Description {
    /// Options on which what the kernel was told depends, and their values.
    settings: Vec<(String, String)>,
    /// Without symbolic links.
    pub(super) mountpoint: String,
    /// `major:minor`.
    pub(super) device_number: String,
    pub(super) agreement: Agreement,
    /// Of the buckets, as they were found out.
    pub(in crate::app::daemon) regions: Vec<String>,
}

impl Description {
    pub(super) fn new(
        config: &Config,
        mountpoint: &str,
        device_number: &str,
        agreement: Agreement,
        regions: Vec<String>,
    ) -> Self {
        let (mountpoint, device_number) = (mountpoint.to_owned(), device_number.to_owned());
        Self { settings: settings(config), mountpoint, device_number, agreement, regions }
    }

    pub(super) fn read(table: &OwnedFd) -> Result<Self, String> {
        let file = File::from(table.as_fd().try_clone_to_owned().map_err(|e| e.to_string())?);
        let mut bytes = vec![0; usize::try_from(DESCRIPTION_BYTES).expect("12 KiB")];
        file.read_exact_at(&mut bytes, 0).map_err(|_| "its table cannot be read".to_owned())?;
        let (head, text) = bytes.split_at(HEAD);
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
        if head[..16] != MAGIC[..] {
            return Err("it was left by another program".to_owned());
        }
        if word(16) != FORMAT {
            return Err(format!("its table has the format {}, and not {FORMAT}", word(16)));
        }
        let text = text.get(..word(20) as usize).filter(|text| sum(text) == word(24));
        let read = text.and_then(|text| serde_json::from_slice(text).ok());
        read.ok_or_else(|| "its table is damaged: the description is wrong".to_owned())
    }

    pub(super) fn write(&self, file: &File) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let mut bytes = vec![0; HEAD];
        bytes[..16].copy_from_slice(MAGIC);
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        for (at, word) in [(16, FORMAT), (20, length), (24, sum(&text))] {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes.extend(text);
        if bytes.len() as u64 > DESCRIPTION_BYTES {
            return Err(io::Error::other("its settings are too long"));
        }
        file.write_all_at(&bytes, 0)
    }

    /// A sentence about the first option that has changed.
    pub(super) fn difference(&self, config: &Config) -> Option<String> {
        let now = settings(config);
        if now.len() != self.settings.len() {
            return Some("it was made with other options".to_owned());
        }
        let changed = self.settings.iter().zip(&now).find(|(before, now)| before != now);
        changed.map(|((name, before), (_, now))| format!("{name} was {before}, and is {now}"))
    }
}

fn settings(config: &Config) -> Vec<(String, String)> {
    let permissions = &config.permissions;
    // The kernel agrees to it at the mount only; `auto` does without.
    let passthrough =
        if config.passthrough == Some(PassthroughWhen::On) { "on" } else { "auto or off" };
    let endpoint = config.store.endpoint_url.as_deref().unwrap_or("that of the AWS configuration");
    [
        ("the bucket", config.source()),
        ("--endpoint-url", endpoint.to_owned()),
        ("the mountpoint", config.mountpoint.display().to_string()),
        ("the access of other users", format!("{:?}", config.access)),
        ("--no-exec", permissions.no_exec.to_string()),
        ("--uid", permissions.uid.to_string()),
        ("--gid", permissions.gid.to_string()),
        ("--file-mode", format!("{:o}", permissions.file_mode)),
        ("--dir-mode", format!("{:o}", permissions.dir_mode)),
        ("--passthrough", passthrough.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn sum(bytes: &[u8]) -> u32 {
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(sum).expect("32 bits")
}
