//! A real server, asked over real connections.
#![cfg(feature = "serve")]

mod chat;
mod completions;
mod contract;
mod endpoints;
mod limits;
#[cfg(all(unix, feature = "cli"))]
mod process;
mod refused;
mod tools;

#[path = "../common"]
mod common {
    pub mod fixture;
    pub mod http;
    pub mod server;
}
