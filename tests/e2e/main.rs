//! End to end: a real nginx, and real clients.

mod clients;
mod command;
mod compat;
mod daemons;
mod directives;
mod faults;
mod harness;
mod live;
mod mirrors;
mod reload;
mod serving;
