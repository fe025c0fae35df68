//! The nginx site: made if there is none, linked, tested, loaded.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

use super::text::{Text, port_of};
use super::{Steps, write_new};
use crate::cli::Init;
use crate::mirror::is_installed;
use crate::out;
use crate::rehash::ENABLED_MODULE;
use simplestreams::printable;

/// The port of the Python tool's site.
const PORT_TLS: u16 = 8443;

/// Behind a proxy that does TLS.
const PORT_PLAIN: u16 = 8080;

/// The name of the Python tool's site.
const NAME: &str = "simplestreams.conf";

/// What the site is made from.
pub struct Site<'a> {
    pub args: &'a Init,
    pub root: &'a Path,
    /// Names of the directories of images.
    pub streams: &'a [String],
}

/// A site that is linked, and not loaded yet.
pub struct Enabled<'a> {
    args: &'a Init,
    /// The port that it listens on.
    pub port: u16,
    /// What was made now: the link, and the site if there was none.
    made: Vec<PathBuf>,
}

impl<'a> Site<'a> {
    /// Makes the site and its link, where they are missing.
    ///
    /// # Errors
    ///
    /// When nginx refuses its configuration already, the port is taken, or a file cannot be written.
    pub fn enable(&self, steps: &Steps) -> Result<Enabled<'a>> {
        let enabled = |port, made| Ok(Enabled { args: self.args, port, made });
        if let Some(reason) = self.is_out_of_place() {
            out::line(format_args!("{reason}: no nginx site is made"));
            return enabled(self.wanted_port(), Vec::new());
        }
        let dir = &self.args.nginx_dir;
        let available = dir.join("sites-available").join(NAME);
        let link = dir.join("sites-enabled").join(NAME);
        // The Python tool, installed without its package, left a link to a site that is not there.
        let dangling = fs::symlink_metadata(&link).is_ok() && !link.exists();
        if dangling && fs::read_link(&link).is_ok_and(|target| target != available) {
            bail!("{} leads nowhere; remove it, and give the command again", link.display());
        }
        if link.exists() {
            out::line(format_args!("the nginx site {} is there already", link.display()));
            return enabled(self.port_of(&link), Vec::new());
        }
        // nginx refuses a link that leads nowhere, too, and that one is about to be put right.
        if !dangling && !steps.dry_run {
            self.check_before()?;
        }
        let mut made = Vec::new();
        let port = if available.exists() {
            out::line(format_args!("the nginx site {} is there already", available.display()));
            self.port_of(&available)
        } else {
            self.write(steps, &available)?;
            made.push(available.clone());
            self.wanted_port()
        };
        if !dangling {
            let what = format!("link {} to {}", link.display(), available.display());
            steps.step(&what, || {
                make_parent(&link)?;
                Ok(symlink(&available, &link)?)
            })?;
        }
        made.push(link);
        if steps.dry_run {
            out::line("would test nginx's configuration, and reload nginx");
            made.clear();
        }
        enabled(port, made)
    }

    /// Why no site can be made, if that is so.
    fn is_out_of_place(&self) -> Option<String> {
        let dir = &self.args.nginx_dir;
        if self.args.nginx_skip {
            Some("nginx is left alone".to_owned())
        } else if !is_installed("nginx") {
            Some("nginx is not installed (package nginx)".to_owned())
        } else if !dir.is_dir() {
            Some(format!("there is no directory {} (--nginx-dir)", dir.display()))
        } else {
            None
        }
    }

    fn write(&self, steps: &Steps, available: &Path) -> Result<()> {
        self.check_port()?;
        self.check_paths()?;
        let text = Text {
            port: self.wanted_port(),
            root: self.root,
            tls: (!self.args.ssl_skip).then_some(self.args.ssl_dir.as_path()),
            v6: Path::new("/proc/net/if_inet6").exists(),
            module: self.args.nginx_dir.join(ENABLED_MODULE).exists(),
            streams: self.streams,
        };
        steps.step(&format!("write nginx site {}", available.display()), || {
            make_parent(available)?;
            Ok(write_new(available, &text.to_string(), 0o644)?)
        })
    }

    /// The port of a new site.
    fn wanted_port(&self) -> u16 {
        let default = if self.args.ssl_skip { PORT_PLAIN } else { PORT_TLS };
        self.args.port.unwrap_or(default)
    }

    /// The port of a site that is there, with a warning if another one was asked for.
    fn port_of(&self, site: &Path) -> u16 {
        let port = fs::read_to_string(site).ok().and_then(|text| port_of(&text));
        if let Some(asked) = self.args.port.filter(|asked| port != Some(*asked)) {
            let (site, listens) =
                (site.display(), port.map_or(String::new(), |p| format!(" on port {p}")));
            log::warn!(
                "--port {asked} has no effect: the nginx site {site} is there already{listens}; change it \
                 there, or remove the site and its link in sites-enabled first"
            );
        }
        port.unwrap_or(self.wanted_port())
    }

    /// What nginx refuses without the new site is not the new site's fault.
    fn check_before(&self) -> Result<()> {
        let output = nginx(self.args, &["-t"])?;
        if !output.status.success() {
            bail!(
                "nginx refused its configuration before anything was changed: {}; put that right, and give \
                 the command again",
                words(&output)
            );
        }
        Ok(())
    }

    /// nginx would only find out when it is reloaded, and say so in its log alone.
    fn check_port(&self) -> Result<()> {
        let port = self.wanted_port();
        for address in ["0.0.0.0", "::"] {
            // One after the other, for the second is both. Other errors are nginx's to report.
            let bound = TcpListener::bind((address, port));
            if bound.is_err_and(|err| err.kind() == io::ErrorKind::AddrInUse) {
                bail!("port {port} is in use; choose another one with --port");
            }
        }
        Ok(())
    }

    /// Within quotes, these would end them or name a variable.
    fn check_paths(&self) -> Result<()> {
        for path in [self.root, &self.args.ssl_dir] {
            let text = path.to_str();
            if text.is_none_or(|t| t.contains(|c: char| c.is_control() || "\"\\$".contains(c))) {
                bail!(
                    "nginx's configuration cannot hold the path \"{}\"; choose one without quotes, \
                     backslashes, dollar signs and control characters",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

impl Enabled<'_> {
    /// Tests nginx's configuration and loads it, if the site is new and nginx runs.
    ///
    /// # Errors
    ///
    /// What nginx says; what was made now is taken away again, so that nginx can go on and the command can
    /// be given again.
    pub fn reload(self, steps: &Steps) -> Result<()> {
        if self.made.is_empty() {
            return Ok(());
        }
        steps.step("test nginx's configuration", || {
            let output = nginx(self.args, &["-t"])?;
            if !output.status.success() {
                for path in self.made.iter().rev() {
                    let what = || format!("cannot take {} away again", path.display());
                    fs::remove_file(path).with_context(what)?;
                }
                let made: Vec<String> =
                    self.made.iter().map(|path| path.display().to_string()).collect();
                bail!(
                    "nginx refuses the new site: {}; removed again: {}",
                    words(&output),
                    made.join(", ")
                );
            }
            Ok(())
        })?;
        let output = nginx(self.args, &["-s", "reload"])?;
        match output.status.success() {
            true => out::line(format_args!("reload nginx")),
            // It is not running, then: its configuration was fine a moment ago.
            false => {
                out::line(format_args!("nginx was not reloaded ({}); start it", words(&output)))
            }
        }
        Ok(())
    }
}

fn nginx(args: &Init, options: &[&str]) -> Result<Output> {
    let conf = args.nginx_dir.join("nginx.conf");
    let output = Command::new("nginx").arg("-c").arg(conf).args(options).output();
    output.context("cannot run nginx")
}

fn words(output: &Output) -> String {
    printable(String::from_utf8_lossy(&output.stderr).trim())
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}
