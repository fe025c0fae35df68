//! The nginx site: made if there is none, linked, tested, loaded.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

use super::{Steps, certificate, write_new};
use crate::cli::Init;
use crate::mirror::is_installed;
use crate::out;
use simplestreams::printable;

/// The port of the Python tool's site.
pub const PORT_TLS: u16 = 8443;

/// Behind a proxy that does TLS.
const PORT_PLAIN: u16 = 8080;

/// The name of the Python tool's site.
const NAME: &str = "simplestreams.conf";

/// Where Debian's nginx lists the module when it is installed and enabled.
const ENABLED_MODULE: &str = "modules-enabled/50-mod-http-simplestreams.conf";

/// What the site is made from.
pub struct Site<'a> {
    pub args: &'a Init,
    pub root: &'a Path,
}

/// A site that is linked, and not loaded yet.
pub struct Enabled<'a> {
    args: &'a Init,
    /// The link, if it was made now.
    link: Option<PathBuf>,
}

impl<'a> Site<'a> {
    /// Makes the site and its link, where they are missing.
    ///
    /// # Errors
    ///
    /// When its port is taken, or a file cannot be written.
    pub fn enable(&self, steps: &Steps) -> Result<Enabled<'a>> {
        let dir = &self.args.nginx_dir;
        if !is_installed("nginx") || !dir.is_dir() {
            out::line(format_args!("nginx is not installed (package nginx): no site is made"));
            return Ok(Enabled { args: self.args, link: None });
        }
        let available = dir.join("sites-available").join(NAME);
        let link = dir.join("sites-enabled").join(NAME);
        // The Python tool, installed without its package, left a link to a site that is not there.
        let dangling = fs::symlink_metadata(&link).is_ok() && !link.exists();
        if dangling && fs::read_link(&link).is_ok_and(|target| target != available) {
            bail!("{} leads nowhere; remove it, and give the command again", link.display());
        }
        if link.exists() {
            out::line(format_args!("the nginx site {} is there already", link.display()));
            return Ok(Enabled { args: self.args, link: None });
        }
        if !available.exists() {
            self.check_port()?;
            self.check_paths()?;
            let what = format!("write nginx site {}", available.display());
            steps.step(&what, || {
                make_parent(&available)?;
                Ok(write_new(&available, &self.text(), 0o644)?)
            })?;
        }
        if !dangling {
            let what = format!("link {} to {}", link.display(), available.display());
            steps.step(&what, || {
                make_parent(&link)?;
                Ok(symlink(&available, &link)?)
            })?;
        }
        if steps.dry_run {
            out::line("would test nginx's configuration, and reload nginx");
        }
        Ok(Enabled { args: self.args, link: (!steps.dry_run).then_some(link) })
    }

    fn port(&self) -> u16 {
        let default = if self.args.ssl_skip { PORT_PLAIN } else { PORT_TLS };
        self.args.port.unwrap_or(default)
    }

    /// nginx would only find out when it is reloaded, and say so in its log alone.
    fn check_port(&self) -> Result<()> {
        let port = self.port();
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

    fn text(&self) -> String {
        let (port, root) = (self.port(), self.root.display());
        let tls = match self.args.ssl_skip {
            true => String::new(),
            false => format!(
                "    ssl_certificate \"{}\";\n    ssl_certificate_key \"{}\";\n    # lxc and incus speak \
                 TLS 1.3 alone.\n    ssl_protocols TLSv1.2 TLSv1.3;\n",
                self.args.ssl_dir.join(certificate::CERTIFICATE).display(),
                self.args.ssl_dir.join(certificate::KEY).display(),
            ),
        };
        // nginx does not start with an address of a kind that the kernel does not have.
        let v6 = match Path::new("/proc/net/if_inet6").exists() {
            true => {
                format!("    listen [::]:{port}{};\n", if self.args.ssl_skip { "" } else { " ssl" })
            }
            false => String::new(),
        };
        let ssl = if self.args.ssl_skip { "" } else { " ssl" };
        // The index: from the module where nginx has it, from the files that "watch" writes elsewhere.
        let index = match self.args.nginx_dir.join(ENABLED_MODULE).exists() {
            true => "        simplestreams on;\n",
            false => {
                "        index index.json;\n        types { application/json json; }\n        \
                 gzip_static on;\n        gzip_vary on;\n        \
                 add_header Access-Control-Allow-Origin *;\n"
            }
        };
        format!(
            "# Written by lxd-image-server init, and yours from now on.\n\
             server {{\n    listen {port}{ssl};\n{v6}{tls}    \
             root \"{root}\";\n    autoindex off;\n    \
             # Whoever may upload could publish any file that nginx can read, by a symbolic link.\n    \
             disable_symlinks if_not_owner from=$document_root;\n\n    location /streams/v1/ {{\n{index}        \
             location ~ /\\. {{\n            return 404;\n        }}\n    }}\n\n    \
             # The clients undo a Content-Encoding before they check the hash.\n    \
             location /images/ {{\n        types {{ }}\n        \
             default_type application/octet-stream;\n        gzip off;\n        sendfile on;\n        \
             tcp_nopush on;\n        location ~ /\\. {{\n            return 404;\n        }}\n    }}\n\n    \
             location / {{\n        return 404;\n    }}\n}}\n"
        )
    }
}

impl Enabled<'_> {
    /// Tests nginx's configuration and loads it, if the site is new and nginx runs.
    ///
    /// # Errors
    ///
    /// What nginx says; a link that was made now is taken away again, so that nginx can go on.
    pub fn reload(self, steps: &Steps) -> Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        steps.step("test nginx's configuration", || {
            let output = self.nginx(&["-t"])?;
            if !output.status.success() {
                fs::remove_file(link).context("cannot take the link away again")?;
                bail!("nginx refuses the new site, which is unlinked again: {}", words(&output));
            }
            Ok(())
        })?;
        let output = self.nginx(&["-s", "reload"])?;
        match output.status.success() {
            true => out::line(format_args!("reload nginx")),
            // It is not running, then: its configuration was fine a moment ago.
            false => {
                out::line(format_args!("nginx was not reloaded ({}); start it", words(&output)))
            }
        }
        Ok(())
    }

    fn nginx(&self, options: &[&str]) -> Result<Output> {
        let conf = self.args.nginx_dir.join("nginx.conf");
        let output = Command::new("nginx").arg("-c").arg(conf).args(options).output();
        output.context("cannot run nginx")
    }
}

fn words(output: &Output) -> String {
    printable(String::from_utf8_lossy(&output.stderr).trim())
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}
