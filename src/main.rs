//! `lxd-image-server`: makes the index of a directory tree of images, keeps it up to date, and pushes
//! images to mirrors. The command lines, configuration files and defaults are those of the Python
//! tool of this name.
//!
//! ```text
//! options, configuration ──▶ tree ──▶ simplestreams::Index ──▶ snapshots ──┬─▶ streams: index files
//!                                                                          └─▶ mirror: rsync over ssh
//! ```
//!
//! `init` prepares a host, `update` makes one snapshot, `watch` follows them until told to stop;
//! `reload`, `mirrors` and `config` ask and tell. What makes a snapshot is the core's, what serves it
//! is a web server's, and what carries files to mirrors is rsync's.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod exit;
mod init;
mod listing;
mod lock;
mod logging;
mod mirror;
mod mirrors;
mod notify;
mod out;
mod progress;
mod rehash;
mod reload;
mod replace;
mod streams;
mod tree;
mod update;
mod watch;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use log::LevelFilter;

use cli::{Cli, Command, LogFormat};
use config::{Config, Sources};
use exit::{Exit, Stop};
use logging::{Format, LogSettings, Target};

/// Indexing makes and drops a few small pieces of memory for each file. glibc asks the kernel for them
/// page by page where a thread is not the first one; this takes a sixth of the time less.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli).and_then(|()| out::finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            let code = exit::code_of(&err);
            // With `--strict`, the report has said everything.
            if code != Exit::Problems {
                log::error!("{err:#}");
            }
            ExitCode::from(code as u8)
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let plain =
        LogSettings { sinks: vec![(Target::Stderr, LevelFilter::Info)], format: Format::Text };
    // Until the configuration is read, and while it is wrong.
    log_as(cli, &plain)?;
    let sources = cli.config.clone().map_or(Sources::Usual, Sources::Only);
    // Before they are read: what changes meanwhile is seen by the watch.
    let stamp = sources.stamp();
    let config = load(cli, &sources)?;
    match &cli.command {
        Command::Init(args) => init::run(args, &config),
        Command::Update(args) => update::run(args, &config),
        Command::Watch(args) => watch::run(cli, args, &sources, stamp, config),
        Command::Reload => reload::run(&config),
        Command::Mirrors(args) => mirrors::run(args, &config),
        Command::Config => {
            config::print(&config);
            Ok(())
        }
    }
}

/// Reads the configuration and puts what it says of the log in force.
///
/// # Errors
///
/// What is wrong with a file, or with a log file given as an option.
pub fn load(cli: &Cli, sources: &Sources) -> Result<Config> {
    let config = sources.load().map_err(|refusal| Stop::usage(refusal.to_string()))?;
    log_as(cli, &config.log)?;
    config.notes.iter().for_each(|note| log::warn!("{note}"));
    Ok(config)
}

/// Logs as configured, except for what the command line says otherwise.
///
/// Where the configuration sends the log to is about the watch. Somebody typed the others, and looks at the
/// terminal; and few may write to the watch's file.
///
/// # Errors
///
/// When the file that the command line names cannot be opened. A configured one is replaced by
/// standard error: the Python tool's default is a file that only its service may write.
fn log_as(cli: &Cli, settings: &LogSettings) -> Result<()> {
    let mut settings = settings.clone();
    let target = match &cli.log_file {
        Some(target) => Some(Target::parse(target)),
        None if matches!(cli.command, Command::Watch(_)) => None,
        None => Some(Target::Stderr),
    };
    if let Some(target) = target {
        let level = settings.sinks.iter().map(|(_, level)| *level).max();
        settings.sinks = vec![(target, level.unwrap_or(LevelFilter::Info))];
    }
    if cli.verbose {
        settings.sinks.iter_mut().for_each(|(_, level)| *level = LevelFilter::Debug);
    }
    match cli.log_format {
        Some(LogFormat::Json) => settings.format = Format::Json,
        Some(LogFormat::Text) => settings.format = Format::Text,
        None => {}
    }
    for (path, err) in logging::apply(&settings) {
        if cli.log_file.is_some() {
            return Err(err).context(format!("cannot log to \"{}\"", path.display()));
        }
        log::warn!("cannot log to \"{}\" ({err}), using standard error", path.display());
    }
    Ok(())
}
