//! What is installed, read as an administrator reads it.
//!
//! - `files`: units, configuration and package
//! - `check`: what the configuration means
//! - `recipe`: the shipped recipe, read back from real sockets
//! - `manuals`: the manuals explain all that there is
//! - `completions`: they complete, in the shells that are installed
//! - `catalog`: what `journalctl -x` says about each message

mod catalog;
mod check;
mod completions;
mod files;
mod manuals;
mod recipe;
