//! The command line. `build.rs` includes this file too, to make the manual pages and completions, so
//! nothing in it may refer to the rest of the program.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage or configuration, or a directory that must exist does not
  3  done, but there are problems (of images; of mirrors), and --strict was given
  4  another lxd-image-server holds the lock of the same index
  5  no watch is running";

const FILES: &str = "\
Configuration is read from these files, each overriding the ones before:
  /etc/lxd-image-server/config.toml
  /etc/lxd-image-server/conf.d/*
  ~/.config/lxd-image-server/config.toml
  ~/.config/lxd-image-server/conf.d/*
  the file named by the environment variable LXD_IMAGE_SERVER_CONFIG
With --config, that file alone is read. Options override both.";

/// Image server for LXD and Incus: makes the simplestreams index of a directory tree of images, keeps
/// it up to date, and pushes images to mirrors.
#[derive(Debug, Parser)]
#[command(name = "lxd-image-server", version, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{FILES}\n\n{EXIT_CODES}"))]
pub struct Cli {
    /// Log debug messages too
    #[arg(long, short, global = true)]
    pub verbose: bool,

    /// Where to log [default: for watch, what the configuration says; else standard error]
    #[arg(long, global = true, alias = "log_file", value_name = "FILE|STDOUT|STDERR")]
    pub log_file: Option<String>,

    /// How to log: lines for people (and for journald), or one JSON object per line
    #[arg(long, global = true, alias = "log_format", value_enum)]
    pub log_format: Option<LogFormat>,

    /// Read this configuration file, and no other
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Prepare a host: directories, certificate, nginx site, first index
    ///
    /// What is there already is left as it is, so the command may be given again.
    Init(Init),
    /// Make the index from scratch, with every hash computed anew
    Update(Update),
    /// Keep the index up to date, and push to the mirrors, until told to stop
    ///
    /// SIGHUP reads the configuration again and reopens log files; SIGTERM and SIGINT stop.
    Watch(Watch),
    /// Make the running watch read its configuration again
    ///
    /// It also does so by itself when a configuration file changes.
    Reload,
    /// Show how far each mirror is
    Mirrors(Mirrors),
    /// Print the configuration, and where each value comes from
    Config,
}

/// Which tree, and where its index goes.
#[derive(Args, Clone, Debug, Default)]
pub struct TreeArgs {
    /// The directory of images [default: /var/www/simplestreams/images]
    #[arg(long, alias = "img_dir", value_name = "DIR")]
    pub img_dir: Option<PathBuf>,

    /// The directory of the index files [default: /var/www/simplestreams/streams/v1]
    #[arg(long, alias = "streams_dir", value_name = "DIR")]
    pub streams_dir: Option<PathBuf>,

    /// How many threads hash [default: as many as there are processors; for watch, half of them]
    #[arg(long, value_name = "NUMBER")]
    pub threads: Option<std::num::NonZeroUsize>,
}

#[derive(Args, Debug)]
pub struct Init {
    /// The directory that is to hold images and index [default: the one that holds the configured img_dir,
    /// else /var/www/simplestreams]
    #[arg(long, alias = "root_dir", value_name = "DIR")]
    pub root_dir: Option<PathBuf>,

    /// Where the certificate and its key are, or will be: nginx.crt and nginx.key
    #[arg(long, alias = "ssl_dir", value_name = "DIR", default_value = "/etc/nginx/ssl")]
    pub ssl_dir: PathBuf,

    /// No certificate: TLS ends at a proxy in front of this host
    #[arg(long, alias = "ssl_skip")]
    pub ssl_skip: bool,

    /// No nginx site, and no certificate: another web server serves the directory
    #[arg(long, alias = "nginx_skip")]
    pub nginx_skip: bool,

    /// A name or address for a new certificate, beside those of this host; may be repeated
    #[arg(long, value_name = "NAME|ADDRESS", value_parser = host)]
    pub san: Vec<String>,

    /// Make the certificate and nothing else
    #[arg(long, alias = "certificate_only", conflicts_with_all = ["ssl_skip", "nginx_skip"])]
    pub certificate_only: bool,

    /// The port that a new nginx site listens on [default: 8443, or 8080 with --ssl-skip]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,

    /// The directory of nginx.conf, sites-available and sites-enabled
    #[arg(long, alias = "nginx_dir", value_name = "DIR", default_value = "/etc/nginx")]
    pub nginx_dir: PathBuf,

    /// Say what would be done, and do nothing
    #[arg(long, short = 'n', alias = "dry_run")]
    pub dry_run: bool,
}

impl Init {
    /// Whether somebody else does TLS.
    pub fn skips_certificate(&self) -> bool {
        self.ssl_skip || self.nginx_skip
    }
}

#[derive(Args, Debug)]
pub struct Update {
    #[command(flatten)]
    pub tree: TreeArgs,

    /// Exit with 3 if anything in the tree is wrong
    #[arg(long)]
    pub strict: bool,

    /// Where nginx's module keeps its state (simplestreams_state_path); if it serves this tree, it is
    /// made to hash everything anew, too [default: /var/lib/nginx/simplestreams]
    #[arg(long, alias = "state_dir", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Do not wait until nginx's module has done so
    #[arg(long, alias = "no_wait")]
    pub no_wait: bool,

    /// How long to wait for files that are being written before the index is made without them
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub patience: std::time::Duration,
}

#[derive(Args, Debug)]
pub struct Watch {
    #[command(flatten)]
    pub tree: TreeArgs,

    /// Where the process id goes [default: /var/run/lxd-image-server/pidfile]
    #[arg(long, alias = "pid_file", value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Does nothing: the Python tool had it, and configuration files that are not there are watched anyhow
    #[arg(long, alias = "skip_watch_config_non_existent", hide = true)]
    pub skip_watch_config_non_existent: bool,
}

#[derive(Args, Debug)]
pub struct Mirrors {
    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Exit with 3 if a mirror was never reached, or fails and is behind, or if no watch is running for them
    #[arg(long)]
    pub strict: bool,
}

/// A time such as `90s`, `5m` or `1h 30m`.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    humantime::parse_duration(text).map_err(|err| format!("{err}; write a time such as 90s or 5m"))
}

/// A name of a host as certificates have it, or an address.
fn host(text: &str) -> Result<String, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(address.to_string());
    }
    let is_label = |label: &str| {
        let plain = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_');
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let mut labels = text.strip_prefix("*.").unwrap_or(text).split('.');
    // What ends in a number is an address, which this is not.
    let last = text.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|c| c.is_ascii_digit());
    match labels.all(is_label) && !number && text.len() <= 253 {
        true => Ok(text.to_owned()),
        false => Err("neither a host name such as images.example.org nor an IP address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses() {
        for good in [
            "images",
            "images.example.org",
            "*.example.org",
            "xn--bcher-kva.example",
            "192.0.2.1",
            "::1",
        ] {
            assert_eq!(host(good).as_deref(), Ok(good));
        }
        assert_eq!(host("2001:DB8:0::1").unwrap(), "2001:db8::1");
        let long = ["a"; 128].join(".");
        for bad in [
            "",
            ".",
            "bad name!",
            "300.1.1.1",
            "1.2.3",
            "-a",
            "a-",
            "a..b",
            "a.",
            "*",
            "a.*",
            "a:1",
            "[::1]",
            "b\u{fc}cher",
            &long,
        ] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
