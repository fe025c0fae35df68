//! A module for nginx that serves a live simplestreams index of a directory of images.
//!
//! # The flow
//!
//! *Configuration* ([`directives`], [`conf`]). Directives are read into a [`conf::LocConf`] per level;
//! merging them downwards registers an index for every location that serves one, equal ones once.
//! Nothing is touched on disk, so `nginx -t` stays without effect. If there is any index, the state
//! directory becomes one of nginx's own paths, with a manager: nginx creates it, gives it to the
//! workers' user, and starts its cache manager process.
//!
//! *Building* ([`runtime`]). In that process, and nowhere else, the core's `Builder` scans, hashes,
//! watches and publishes snapshot files. It has threads of its own; nginx's call only starts them.
//!
//! *Following* ([`runtime`]). In every worker the core's `Follower` notices new snapshots and swaps
//! them into the cell that the locations' configuration holds.
//!
//! *Answering* ([`handler`]). A request takes the current snapshot out of its location's cell and
//! gives nginx the bytes. No locks, no copies, no files.
//!
//! *Telling* ([`stats`], [`status`], [`variables`]). Where a location has `simplestreams_status`,
//! requests are counted in memory that all processes share, and workers and builder say there twice
//! a second how they are; the location's handler gathers that.
//!
//! *Leaving*. A worker stops following as soon as it is told to go, joins its threads before nginx
//! unmaps the module, and the library stays mapped all the same.
//!
//! # The edges
//!
//! Every function that nginx calls is named `ngx_http_simplestreams_…`, stands in [`module`] beside
//! the tables that name it, and runs behind a [`barrier`] that panics do not pass. nginx's
//! structures are touched in [`ffi`] only. The core speaks through the `log` crate; [`error_log`]
//! hands that on to nginx.
#![deny(unsafe_code)]

mod allocator;
mod barrier;
mod conf;
mod directives;
mod error_log;
mod ffi;
mod handler;
mod module;
mod runtime;
mod stats;
mod status;
mod threads;
mod variables;
