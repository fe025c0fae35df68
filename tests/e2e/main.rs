//! End to end: a real nginx, and real clients.

mod clients;
mod command;
mod compat;
mod daemons;
mod deltas;
mod directives;
mod edge;
mod encodings;
mod faults;
mod harness;
mod housekeeping;
mod kinds;
mod live;
mod mirrors;
mod packaged;
mod reload;
mod sendfile;
mod serving;
mod status;
