//! End to end: a real nginx, and real clients.

mod clients;
mod daemons;
mod directives;
mod faults;
mod harness;
mod live;
mod reload;
mod serving;
