//! placeholder
pub mod cli;
pub mod commands;
pub mod config;
pub mod echo;
pub mod server;
pub mod system;
