//! Which tree is indexed, and where its index files go: from options and configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context as _, Result};
use simplestreams::{Settings, check_stream_name};

use crate::cli::TreeArgs;
use crate::config::Config;
use crate::exit::Stop;

/// A tree and where its index goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// What the core indexes: the parent of the directory of images, with that as its first stream.
    pub settings: Settings,
    /// The directory of the index files.
    pub streams_dir: PathBuf,
    /// Threads that hash, if somebody said how many.
    pub threads: Option<std::num::NonZeroUsize>,
}

impl Tree {
    /// Options go before the configuration. Both directories must exist, as they had to for the
    /// Python tool: an index of a directory that is merely not mounted would list nothing.
    ///
    /// # Errors
    ///
    /// A directory is missing, cannot be read, or has a name that no stream may have.
    pub fn new(args: &TreeArgs, config: &Config) -> Result<Self> {
        let img_dir = args.img_dir.as_deref().unwrap_or(&config.img_dir);
        let streams_dir = args.streams_dir.as_deref().unwrap_or(&config.streams_dir);
        let img_dir = existing("img_dir", img_dir)?;
        let streams_dir = existing("streams_dir", streams_dir)?;
        let (Some(root), Some(stream)) = (img_dir.parent(), img_dir.file_name()) else {
            let img_dir = img_dir.display();
            return Err(Stop::usage(format!("img_dir \"{img_dir}\" must have a parent")));
        };
        let stream = stream.to_string_lossy().into_owned();
        check_stream_name(&stream).map_err(|what| {
            let img_dir = img_dir.display();
            Stop::usage(format!("the last part of img_dir \"{img_dir}\" {what}"))
        })?;
        let mut streams = vec![stream];
        for name in &config.streams {
            if !streams.contains(name) {
                streams.push(name.clone());
            }
        }
        let settings = Settings {
            streams,
            aliases: config.aliases,
            settle: config.settle,
            rescan: config.rescan,
            ..Settings::new(root)
        };
        let threads = args.threads.or(config.threads);
        Ok(Self { settings, streams_dir, threads })
    }

    /// The directory of images, which is the first stream's.
    pub fn img_dir(&self) -> PathBuf {
        self.settings.root.join(self.settings.streams.first().map_or("", String::as_str))
    }

    /// Names of the streams.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.settings.streams.iter().map(String::as_str)
    }

    /// The list of products `name` as it is among the index files, whoever wrote it; empty if it cannot
    /// be read.
    pub fn written(&self, name: &str) -> Vec<u8> {
        let path = self.streams_dir.join(name);
        // Reading anything else may take for ever.
        if path.is_file() { fs::read(path).unwrap_or_default() } else { Vec::new() }
    }
}

/// The absolute path of a directory that is there. A symbolic link stays one, for the name of the
/// stream is the link's, unless it leaves its parent, where the core would not follow it.
fn existing(option: &str, path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let path = absolute(path).with_context(|| format!("{option} \"{shown}\""))?;
    let refuse = |err: &io::Error| match err.kind() {
        io::ErrorKind::NotFound => {
            format!(
                "{option} \"{shown}\" does not exist; mount it, or make it (\"lxd-image-server init\" \
                 does)"
            )
        }
        _ => format!("cannot look into {option} \"{shown}\" ({err})"),
    };
    fs::read_dir(&path).map_err(|err| Stop::usage(refuse(&err)))?;
    let real = path.canonicalize().map_err(|err| Stop::usage(refuse(&err)))?;
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    match parent {
        Some(parent) if real.starts_with(&parent) && path.file_name().is_some() => Ok(path),
        _ => Ok(real),
    }
}
