//! Tells systemd how a service is (sd_notify(3)): one datagram to the socket that it names.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The variable that names the socket.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// Sends `state`, such as `READY=1`; nothing if no service manager asked for it.
pub fn notify(state: &str) {
    let Some(name) = env::var_os(SOCKET).filter(|name| !name.is_empty()) else {
        return;
    };
    let send = || -> io::Result<()> {
        let address = match name.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&name)?,
        };
        UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
        Ok(())
    };
    if let Err(err) = send() {
        log::warn!("cannot notify the service manager ({err})");
    }
}

/// The configuration is being read again; `READY=1` ends that.
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// Says that this process lives, as often as systemd's `WatchdogSec=` asks for.
pub struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As the environment says; what it says may be meant for another process.
    pub fn from_env() -> Self {
        let number = |name| env::var(name).ok()?.parse::<u64>().ok();
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let time = number("WATCHDOG_USEC").filter(|time| ours && *time > 0);
        // Half of the time, as sd_watchdog_enabled(3) recommends.
        Self { every: time.map(|time| Duration::from_micros(time / 2)), next: Instant::now() }
    }

    /// To be called often.
    pub fn tick(&mut self) {
        if let Some(every) = self.every
            && Instant::now() >= self.next
        {
            self.next = Instant::now() + every;
            notify("WATCHDOG=1");
        }
    }
}
