//! Index files on their way to a mirror.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::streams;

/// A directory laid out as below the mirror's root. Dropping it removes it.
pub struct Staging(PathBuf);

impl Staging {
    /// Writes `files` as `streams/v1/NAME` into a directory of the mirror `name`.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn new(data_dir: &Path, name: &str, files: &[(String, Vec<u8>)]) -> Result<Self> {
        let staging = Self(data_dir.join("mirrors").join(format!("{name}.staging")));
        let dir = staging.0.join("streams/v1");
        fs::create_dir_all(&dir)?;
        let files: Vec<_> = files.iter().map(|(name, bytes)| (name.clone(), &bytes[..])).collect();
        streams::write_files(&dir, &files)?;
        Ok(staging)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("cannot remove \"{}\" ({err})", self.0.display());
            }
            _ => {}
        }
    }
}
