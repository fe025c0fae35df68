//! Tests of the core as programs use it: real directories, real time, real threads.

mod common;
mod example;
mod kinds;
mod limits;
mod live;
mod once;
mod protocol;
mod random;
mod roots;
mod state;
