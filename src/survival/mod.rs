//! Survival: conversations outlive the process that has them.
//!
//! # What survives
//!
//! A restart, an upgrade of the package, a crash: the next process goes on with every
//! conversation where the last one left it.  The peer sees a pause, no FIN, no reset, and every
//! byte comes back once and in order.
//!
//! # How
//!
//! A socket lives as long as somebody holds its descriptor, so the service manager has to hold
//! them (`FDSTORE=1` of sd_notify(3)).  It cannot hold thousands: it compares each with every
//! other.  So it holds two things of ours:
//!
//! - the [`parcel`], a socket in whose queue the descriptors of all connections are in flight;
//! - the [`arena`], a memory file with the scratch and the backlogs in it, and with what the
//!   kernel does not remember of a connection: when it began, its number, its listener.
//!
//! A connection has the same `SO_COOKIE` (socket(7)) in every process; that ties the two together.
//!
//! # Why no byte is lost or doubled, wherever the process is killed
//!
//! The kernel knows how many bytes were read from a socket and how many were written to it
//! ([`crate::system::positions`]).  Those are facts, whatever instruction was the last: we need no
//! log, and trust no counter of the dead.  Bytes that were read and not written are owed.  We read
//! only when we owe nothing, so they all come from one read, and they are in one of two places:
//!
//! - in the scratch, if nothing was read after them: the [`lane`] says before each read whose it
//!   is and at which position of its stream the read begins;
//! - in a slot of their own, into which they were copied before the next read; it is marked only
//!   after the copy.
//!
//! Whichever is marked with the connection's cookie and covers what is owed has the bytes
//! ([`recovery`]).  Those marks are the only stores in the data path.
//!
//! # When
//!
//! A connection is *packed* once it has lived for a while, with others in one message, so that
//! those that live shorter cost nothing ([`keeper`]).  At a planned end (USR2, which the unit sends
//! for a restart) the rest are packed, and the positions noted.  A restart and a crash are one path
//! otherwise.
//!
//! # What it does when it cannot
//!
//! Without a store, with a full one, with too few descriptors, it says so, serves, and lets
//! connections end with the process.  With an arena that it cannot read, it ends the old
//! connections.  It never hangs, and never guesses a byte.
//!
//! In reading order: [`controls`] (for tests), [`layout`] (what stands where), [`arena`] (the memory), [`totals`], [`lane`] (one loop's part
//! of it), [`parcel`], [`recovery`] (what a successor finds), [`heritage`] (where that goes), [`standing`],
//! [`unpacked`], [`caution`], `renewal` and [`keeper`] (what is kept, and when).

pub mod arena;
pub mod caution;
pub mod controls;
pub mod heritage;
pub mod keeper;
pub mod lane;
pub mod layout;
pub mod parcel;
pub mod recovery;
mod renewal;
pub mod standing;
pub mod totals;
pub mod unpacked;
