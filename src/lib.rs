//! tcp-echo: the TCP echo service (RFC 862) as a systemd-native daemon.
//!
//! RFC 862 asks for little: whatever arrives is sent back, until the other side is done.  A
//! program that does this is judged by everything else: what it does when it cannot write, cannot
//! accept, is asked to stop, is flooded.  Each of these has one place here.  The library exists
//! so that tests and benches reach the core; nothing in it is promised to others.
//!
//! # Bird's eye
//!
//! One loop, one `mio::Poll`.  The kernel announces a socket; its token names a
//! [`server::source::Source`]; the *worker* gives the connection a *turn*; the turn reads into the
//! one *scratch* buffer and writes from it at once.  What the peer does not take becomes a
//! *backlog*, and nothing more is read until it is paid.  A second thread writes the log, because
//! a log may block and an echo may not.  With several workers each further one has a thread, a poll
//! and a scratch of its own ([`server::crew`]); everything else stays with the main loop.
//!
//! The scratch and the backlogs are in memory that outlives the process, and the service manager
//! holds the sockets: the next process goes on where this one ended, however it ended.  The
//! kernel's counters say where that was ([`survival`]).
//!
//! # Modules, in reading order, each importing only those above it
//!
//! | rank | module | what it is |
//! |---|---|---|
//! | 0 | [`cli`], [`config::units`], [`config::address`] | arguments and values as types; touch nothing |
//! | 1 | [`echo`] | the conversation, pure: [`echo::connection`], [`echo::shard`] |
//! | 2 | [`config`] | the settings: as written, then as meant |
//! | 3 | [`system`] | descriptors, options, manager, signals, kernel, log |
//! | 4 | [`survival`] | connections that outlive the process |
//! | 5 | [`server`] | the loop; mio lives here |
//! | 6 | [`commands`] | compose and report |
//!
//! `tests/it/layers.rs` holds this order.
//!
//! # Vocabulary
//!
//! A *connection* is one conversation with a *peer*, over a *stream*.  What was received and not
//! given back is *owed*; writing it is *paying*; it waits in the *backlog*.  What a connection
//! waits for is its *want*.  A *turn* moves what it can within a budget; a connection that could
//! go on *yields* and is *ready*.  A deadline is *due*, its entry in the timers is *armed*.
//! Connections have *seats* in a *shard*, which a *worker* serves in *rounds*: it polls, then gives
//! turns.  The workers beside that of the main loop are its *crew*.  To *leave* is to echo what is there, pay, and send our
//! FIN; then we *linger*.
//!
//! The *arena* is the memory that outlives the process; a *lane* is one loop's part of it, with a
//! scratch, slots for backlogs, and seats of its own, where it is noted what the kernel does not
//! remember.  The *parcel* is the socket in whose queue the descriptors of connections are in
//! flight.  To *pack* a connection is to give it a seat in the arena and to put it into the parcel;
//! from then on it is *kept*.  A process *hands over* when it packs whoever is left and ends; its
//! successor *adopts* what it finds.
//!
//! # Invariants
//!
//! - We read only when we owe nothing; so what is owed never exceeds one scratch.
//! - received = sent + owed, after every turn, until our FIN is out (asserted in
//!   [`echo::connection::Connection::check`]).
//! - Something is owed exactly when the want is `Write`.
//! - A connection with a deadline has one entry in the timers, never later than it
//!   ([`echo::shard::Shard::check`]).
//! - Whatever is skipped on purpose (budget, burst, limit, errno) stands in a list of ours: the
//!   kernel announces nothing twice.
//! - Before each read two marks say whose the scratch is and at which position of its stream the
//!   read begins; a slot is marked after its bytes are in it.  So what is owed at a crash is in a
//!   place that says so ([`survival::lane`]).
//! - A connection has a seat in the arena before it is in the parcel, and its seat is emptied before
//!   it is closed: whoever finds it in flight and no seat ends it.
//! - A connection that is kept is shut down before it is closed, as the parcel holds it too.
//! - Nothing is ever taken out of a parcel.  The old one is removed from the store only when the
//!   manager has the new one.
//! - Every queue has a bound: backlog (256 KiB), ready list (seats), burst (64), events (1024),
//!   deadlines in a round (256), log queue (1024), messages that wait for the manager (64), young
//!   connections (twice those that are open, and 65 536), those who are on the way to a worker (a
//!   burst) or over and not noted yet (as many as there may be), a message of the
//!   parcel (253 descriptors), a round of packing (8 messages).
//! - `echo` reads no clock, logs nothing, knows no address.  The clock is read once a round.
//! - A loop never blocks, but for reading the configuration on HUP, and for the rounds of the other
//!   loops when the main loop has to come into them: some milliseconds at most.
//! - An `Err` means that the process cannot go on.  What ends one connection is a
//!   [`echo::reason::Reason`], counted and told.
//! - Nothing that comes from the network, the log or the manager can cause a panic: `assert!`
//!   states what we ourselves must have done.
//!
//! # Where this differs from its design, and why
//!
//! - There is no phase for "the peer has finished, what is owed is still paid".  Since we read
//!   only when nothing is owed, the peer's end is read only after everything was paid: it ends
//!   the conversation in the same turn.
//! - Bytes thrown away after our FIN have no counter of their own: they are what `received`
//!   exceeds `sent` by while lingering.
//! - At a stop the first `WouldBlock` is not the end: our FIN waits until the peer was silent for
//!   50 ms, because its last words may be on their way, and would be thrown away behind the FIN.
//! - A deadline gives a last turn before it closes: what arrived while the process was held up
//!   (stopped, swapped, a slow machine) is not late, only we are.
//! - Leaving does not always wait for `WouldBlock`: a peer that never stops sending would keep us
//!   for as long as leaving may take.  Who is cut off by a limit, and who has not paused within
//!   400 ms of a stop, gets back what has arrived by then (`FIONREAD`).
//! - Lingering does not always end after 400 ms: while something is unacknowledged (`SIOCOUTQ`), a
//!   close would turn into a reset that destroys it.  Leaving and lingering together end with the
//!   stop time-out, per connection.
//! - At a stop the queue of a passed listener is left alone: our successor can serve those callers
//!   in full, whereas we would send a FIN to who has not spoken yet.
//! - An event gives no turn by itself: it puts the connection into the ready list, and a round is
//!   one pass over the list.  With turns at once, those who were announced again and again used up
//!   the round, and who stood in the list waited ten times as long.
//! - A small read costs at least 1 KiB of a turn's budget: urgent marks and passed descriptors can
//!   make every read end after one byte.
//! - Descriptors of our own (EMFILE) are looked for less and less often, down to once a second:
//!   only a close of ours can free one, and that tries at once.
//! - An event whose listener then has nobody to accept is followed by one further look after
//!   50 ms: a failed accept that claims "nobody" must not make it deaf.
//! - A connection is given up when it was in hand at three crashes in a row, not at two: an accident
//!   that kills at each start hits somebody, and twice the same one by chance.
//! - The manager is asked to keep connections at the start only where `FDSTORE=` tells of a store that
//!   is large enough, or
//!   a predecessor has left something.  Else it is asked when there is a connection to keep, so
//!   that a manager without a store is not troubled for nothing.
//! - A Unix stream ends after a crash: the kernel counts no bytes of it, and its own numbers would be
//!   a guess.  After a hand-over they are exact.
//! - Both ends of the parcel are stored under one name.  The reading direction of the sending end is
//!   shut down, which tells them apart.
//! - The scratch has 256 KiB, not 64: bulk costs half as much.  A read may be twice as long as what
//!   the last one gave away at once, and only while nothing waits to be sent, so what a stalled peer
//!   is owed stays at half of it.
//! - Deadlines do not become time-outs of the poll, which make the kernel set and cancel a timer for
//!   each message: one timer stays set to the earliest ([`server::alarm`]).
//! - Traffic alone does not make the round look after anything else: what is done by the clock is
//!   done when something has stirred, or its time has come.
//! - Several workers are not reached through a channel of orders but held still between two rounds,
//!   by a fair lock that a worker takes once a round.  What survival asks of them (packing, renewal,
//!   the hand-over) and what is counted is about all of them together, so with orders the main loop
//!   would have to wait for their answers, with a protocol for each question; with the lock those
//!   parts are the same code for one worker and for many.  Nothing is locked for a message.
//! - With N workers there are N loops, not N and one: the main loop serves too.  So one worker is the
//!   same code without a thread.
//! - Storing is not answered.  That there is no store, or no room in it, shows when the sending end
//!   hangs up after the barrier.

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "tcp-echo needs a 64-bit target: it maps memory for as many connections as there can be"
);

pub mod cli;
pub mod commands;
pub mod config;
pub mod echo;
pub mod server;
pub mod survival;
pub mod system;
