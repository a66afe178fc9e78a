//! Connections go on when the process ends: at a restart, at an upgrade, and after a crash.
//!
//! # What is preserved
//!
//! The next process goes on with every preserved connection where the previous process left it.  The
//! peer sees a pause, no FIN and no reset.  Every byte that it has sent comes back once and in order.
//!
//! # How
//!
//! A socket lives as long as a descriptor of it exists.  So the service manager has to store the
//! descriptors (`FDSTORE=1` of sd_notify(3)) for as long as there is no process.  It cannot store
//! thousands of them, because it compares each with every other.  Therefore it stores two things for
//! this service:
//!
//! - the *descriptor queue* ([`fd_queue`]), a socket in whose receive queue the descriptors of all
//!   preserved connections are in flight;
//! - the *state file* ([`state_file`]), a memory file with the bytes that were read and not yet
//!   written, and with a *record* of what the kernel does not remember of a connection: when it was
//!   accepted, its number, its listener.
//!
//! A socket has the same cookie (`SO_COOKIE` of socket(7)) in every process, by which its record is
//! found.
//!
//! # Why no byte is lost or sent twice, wherever the process is killed
//!
//! The kernel counts how many bytes were read from a socket and how many were written to it
//! ([`crate::sys::positions`]).  These numbers are right whatever the last instruction of the process
//! was.  So no log is needed, and no counter of the process that has ended is believed.  The bytes that
//! were read and not written are owed to the peer.  As a connection is read only while nothing is owed,
//! all of them come from a single read, and they are in one of two places:
//!
//! - in the *scratch* of the worker, if nothing was read after them.  Before each read the scratch is
//!   marked with the connection, and with the position in its stream at which the read begins
//!   ([`partition`]);
//! - in a *slot*, into which they were copied before the next read.  The slot is marked in the same
//!   way, after the copy.
//!
//! Whichever has the connection's mark, and contains the position up to which bytes were written, has
//! the owed bytes ([`recover`]).  These marks are the only stores in the data path.
//!
//! # When
//!
//! A connection is preserved when it has been open for a while, together with others in one message.
//! So connections that end sooner cost nothing ([`preserve_queue`], [`preserver`]).  At a planned end
//! (signal USR2, which the unit sends for a restart) the remaining connections are preserved as well,
//! and every record is made exact: the *hand-over*.  In everything else a restart and a crash are the
//! same to the next process.
//!
//! # When connections cannot be preserved
//!
//! Without a store, with a full store, or with too few descriptors, the service logs the reason and
//! serves; connections then end with the process.  If the state file cannot be used, the connections of
//! the previous process are closed.
//!
//! In reading order: [`test_faults`] (ways to break all this, for tests), [`layout`] (which bytes of
//! the state file mean what), [`state_file`], [`totals`] (the counters of the service in it),
//! [`partition`] (the part of it that one worker uses), [`fd_queue`], [`crash_guard`] (crashes just
//! after the start), [`recover`] (what the previous process has left), [`restore`] (its connections get
//! their places), [`store_state`] (whether connections are preserved), [`preserve_queue`] (the
//! connections that wait to be), [`preserver`] (what is stored, and when, as a state machine without
//! effects), [`store`] (the part that carries these decisions out).

pub(crate) mod crash_guard;
pub(crate) mod fd_queue;
pub(crate) mod layout;
pub(crate) mod partition;
pub(crate) mod preserve_queue;
pub(crate) mod preserver;
pub(crate) mod recover;
pub(crate) mod restore;
pub(crate) mod state_file;
pub(crate) mod store;
pub(crate) mod store_state;
pub(crate) mod test_faults;
pub(crate) mod totals;
