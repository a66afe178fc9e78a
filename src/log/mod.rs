//! The log: what is logged, how it looks, how often, and where it goes.
//!
//! In reading order: [`events`] (the table of events, and their values), `render` (the message and
//! the fields of each), `rate_limit` (sums instead of floods), `sink` (the queue, its thread, and
//! the forms of the output).

pub mod events;
pub(crate) mod rate_limit;
mod render;
pub(crate) mod sink;
