//! A real server, asked over real connections.
#![cfg(feature = "serve")]

mod chat;
mod completions;
mod contract;
mod endpoints;
mod limits;
mod refused;

#[path = "../common"]
mod common {
    pub mod fixture;
    pub mod http;
    pub mod server;
}
