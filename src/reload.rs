//! `lxd-image-server reload`.

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::config::Config;
use crate::exit::{Exit, Stop};
use crate::lock::PidFile;

/// Sends SIGHUP to the watch that holds the pid file.
///
/// # Errors
///
/// [`Exit::NotRunning`] if none does, a failure if it cannot be told.
pub fn run(config: &Config) -> Result<()> {
    let path = config.pid_file.display();
    let Some(pid) = PidFile::holder(&config.pid_file)? else {
        return Err(Stop::with(
            Exit::NotRunning,
            format!("no watch is running: nobody holds the pid file \"{path}\""),
        ));
    };
    let target = Pid::from_raw(pid).with_context(|| format!("no pid in \"{path}\""))?;
    kill_process(target, Signal::HUP)
        .with_context(|| format!("cannot signal process {pid}: only its user may, and root"))?;
    log::info!("told process {pid} to read its configuration again");
    Ok(())
}
