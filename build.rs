//! Makes the manual pages and the completions of shells from the command line's definition.
//!
//! They go to `man/` and `completions/` below `$LXD_IMAGE_SERVER_ASSETS`, for packages, or else
//! below cargo's output directory of this package.

use std::path::PathBuf;
use std::{env, fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;

#[allow(dead_code, reason = "the program uses the fields, here only their names count")]
#[path = "src/cli.rs"]
mod cli;

const ASSETS: &str = "LXD_IMAGE_SERVER_ASSETS";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli.rs");
    println!("cargo::rerun-if-env-changed={ASSETS}");
    let assets = env::var_os(ASSETS).or_else(|| env::var_os("OUT_DIR")).map(PathBuf::from);
    let assets = assets.ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    let (man, completions) = (assets.join("man"), assets.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(cli::Cli::command(), man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(
            shell,
            &mut cli::Cli::command(),
            "lxd-image-server",
            &completions,
        )?;
    }
    Ok(())
}
