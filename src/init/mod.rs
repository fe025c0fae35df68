//! `lxd-image-server init`: prepares a host.
//!
//! Each step looks whether it has been done already, and leaves what is there as it is; so the command
//! may be given again, and on a host that the Python tool prepared. Modes are what a web server under
//! another user needs: directories 0755, the private key 0600.

mod certificate;
mod site;

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, absolute};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cli::{Init, TreeArgs};
use crate::config::Config;
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
        return make_certificate(&steps, args, &certificate::names(&args.san));
    }
    let root = absolute(&args.root_dir).context("--root-dir")?;
    let (images, streams) = (root.join("images"), root.join("streams/v1"));
    for dir in [&images, &streams] {
        steps.directory(dir)?;
    }
    let names = certificate::names(&args.san);
    if args.ssl_skip {
        out::line(format_args!("no certificate: TLS ends at a proxy"));
    } else {
        make_certificate(&steps, args, &names)?;
    }
    let site = site::Site { args, root: &root };
    let enabled = site.enable(&steps)?;
    if fs::exists(streams.join("images.json")).unwrap_or(false) {
        out::line(format_args!("the index is there already"));
    } else {
        steps.step(&format!("make the first index in {}", streams.display()), || {
            let tree = TreeArgs {
                img_dir: Some(images),
                streams_dir: Some(streams.clone()),
                threads: None,
            };
            let snapshot = update::make(&Tree::new(&tree, config)?, PATIENCE)?;
            update::report_problems(&snapshot);
            Ok(())
        })?;
    }
    enabled.reload(&steps)?;
    say_how_to_add(args, &names);
    Ok(())
}

fn make_certificate(steps: &Steps, args: &Init, names: &[String]) -> Result<()> {
    steps.directory(&args.ssl_dir)?;
    certificate::make(steps, &args.ssl_dir, names)
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

fn say_how_to_add(args: &Init, names: &[String]) {
    let host = names.first().map_or("localhost", String::as_str);
    let port = args.port.unwrap_or(site::PORT_TLS);
    out::line(format_args!("\nAdd this server to a client, under a name such as \"mine\":\n"));
    let url = match args.ssl_skip {
        true => "https://YOUR-PROXY".to_owned(),
        false => format!("https://{host}:{port}"),
    };
    for client in ["lxc", "incus"] {
        if !args.ssl_skip {
            out::line(format_args!("    mkdir -p ~/.config/{client}/servercerts"));
            let certificate = args.ssl_dir.join(certificate::CERTIFICATE);
            out::line(format_args!(
                "    cp {} ~/.config/{client}/servercerts/mine.crt",
                certificate.display()
            ));
        }
        out::line(format_args!(
            "    {client} remote add mine {url} --protocol=simplestreams --public\n"
        ));
    }
}
