//! `lxd-image-server init`: prepares a host.
//!
//! Each step looks whether it has been done already, and leaves what is there as it is; so the command
//! may be given again, and on a host that the Python tool prepared. Modes are what a web server under
//! another user needs: directories 0755, the private key 0600.

mod advice;
mod certificate;
mod names;
mod site;
mod text;

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::{Context as _, Result};
use simplestreams::check_stream_name;

use crate::cli::{Init, TreeArgs};
use crate::config::Config;
use crate::exit::Stop;
use crate::tree::Tree;
use crate::{out, update};

/// How long the first index waits for files that are being written; the next one has them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prepares, or says what it would do.
///
/// # Errors
///
/// The first step that fails; those before it stay done.
pub fn run(args: &Init, config: &Config) -> Result<()> {
    let steps = Steps { dry_run: args.dry_run };
    if args.certificate_only {
        return certificate::make(&steps, &args.ssl_dir, &args.san).map(drop);
    }
    let place = Place::new(args, config)?;
    for dir in [&place.images, &place.streams_dir] {
        steps.directory(dir)?;
    }
    let host = if args.skips_certificate() {
        let why = if args.nginx_skip { "TLS is not nginx's here" } else { "TLS ends at a proxy" };
        out::line(format_args!("no certificate: {why}"));
        certificate::first(&names::of_host(&args.san))
    } else {
        certificate::make(&steps, &args.ssl_dir, &args.san)?
    };
    let site = site::Site { args, root: &place.root, streams: &place.streams };
    let enabled = site.enable(&steps)?;
    let port = enabled.port;
    // Before the index, which may take long and fail: a site is never left linked and untested.
    enabled.reload(&steps)?;
    first_index(&steps, &place, config)?;
    advice::service(&place, config);
    advice::clients(args, &host, port);
    Ok(())
}

fn first_index(steps: &Steps, place: &Place, config: &Config) -> Result<()> {
    let dir = &place.streams_dir;
    if fs::exists(dir.join("images.json")).unwrap_or(false) {
        out::line(format_args!("the index is there already"));
        return Ok(());
    }
    steps.step(&format!("make the first index in {}", dir.display()), || {
        let tree = TreeArgs {
            img_dir: Some(place.images.clone()),
            streams_dir: Some(dir.clone()),
            threads: None,
        };
        let (snapshot, _) = update::make(&Tree::new(&tree, config)?, PATIENCE)?;
        update::report_problems(&snapshot);
        Ok(())
    })
}

/// Where images and index are.
struct Place {
    root: PathBuf,
    images: PathBuf,
    /// Where nginx looks for index files below the root, and so does whoever has no module.
    streams_dir: PathBuf,
    /// Names of the directories of images.
    streams: Vec<String>,
}

impl Place {
    /// What the option says, else where the configuration has the images.
    fn new(args: &Init, config: &Config) -> Result<Self> {
        let images = match &args.root_dir {
            Some(root) => absolute(root).context("--root-dir")?.join("images"),
            None => absolute(&config.img_dir).context("img_dir")?,
        };
        let (Some(root), Some(stream)) = (images.parent(), images.file_name()) else {
            return Err(Stop::usage("img_dir must have a parent"));
        };
        let stream = stream.to_string_lossy().into_owned();
        check_stream_name(&stream).map_err(|what| {
            Stop::usage(format!("the last part of img_dir \"{}\" {what}", images.display()))
        })?;
        let more = config.streams.iter().filter(|name| **name != stream).cloned();
        let streams = std::iter::once(stream.clone()).chain(more).collect();
        let root = root.to_owned();
        Ok(Self { streams_dir: root.join("streams/v1"), root, images, streams })
    }
}

/// Does things, or says that it would.
pub struct Steps {
    dry_run: bool,
}

impl Steps {
    /// Says `what` and does it.
    fn step(&self, what: &str, go: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.dry_run {
            out::line(format_args!("would {what}"));
            return Ok(());
        }
        out::line(format_args!("{what}"));
        go().with_context(|| format!("cannot {what}"))
    }

    fn directory(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.step(&format!("make directory {}", path.display()), || {
            Ok(DirBuilder::new().recursive(true).mode(0o755).create(path)?)
        })
    }
}

/// Writes a file that must not be there yet.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
