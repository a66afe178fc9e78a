//! What the service manager holds of this process, and when it gets more of it: a state machine.
//!
//! The machine begins with what the previous process has left, if anything, and asks the manager to
//! store what is missing: at once where there is a store for certain, otherwise when there is a
//! connection to preserve, so that a manager without a store is not asked in vain.  The manager does not
//! answer that it has stored a descriptor.  It does answer that it has read a message: it closes the
//! pipe that goes with `BARRIER=1` (sd_notify(3)).  Then it shows whether it has *stored* what it read:
//! without a store, or without room in it, the sending end of the descriptor queue hangs up.
//!
//! A rotation replaces the queue in the same way: all open connections go into a new one, it is
//! stored, the answer is awaited, and only then the old one is removed from the store.  As there may be
//! many connections, they go into the new queue in slices, one in a round of the loop.  What is preserved
//! in the meantime goes into both queues; if that was not possible, the new one is dropped.  So the old
//! queue has every preserved connection until the end, and there are two copies in flight for a while.
//! Only where there is no room in flight for two, the store is emptied and then filled anew.
//!
//! The machine has no effects of its own.  [`Preserver::on`] takes what has happened and returns what is
//! to be done ([`Effect`]), and what comes of that is the next input.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use super::fd_queue::BATCH;
use super::preserve_queue::{PreserveQueue, Waiting};
use super::recover::{fd_queue_name, state_file_name};
use super::store_state::{NO_ROOM, StoreEvent, StoreState, max_dead};
use crate::echo::time::{MonoTime, earliest};

/// Between two rounds in which connections are preserved: each message has as many as are there, and
/// the fewer messages a queue has the better.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(200);

/// Messages in one such round, each with at most [`BATCH`] connections.
const MESSAGES: usize = 8;

/// Connections that are preserved in one such round, at most.
pub(crate) const ROUND: usize = MESSAGES * BATCH;

/// Messages that a queue may have beyond twice as many as are needed, before a new queue replaces it.
/// To look at the n-th message of a queue takes a walk over those before it.
const SPARE_MESSAGES: usize = 256;

/// Descriptors that the manager has to store: the state file, and both ends of the queue.
pub(crate) const STORED: usize = 3;

/// How long the manager may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Before a manager that has not answered is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Before the next attempt after one has failed.
const RETRY: Duration = Duration::from_secs(1);

/// The longest wait before the next attempt after there was no room in flight.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why no connection is preserved after the store had to be emptied.
const IN_FLIGHT: &str = "there are too many descriptors in flight (LimitNOFILE= of the unit)";

/// Why a connection is not preserved for which the queue has no room.
const FULL: &str =
    "the descriptor queue is full, and a larger net.core.wmem_max makes room for more (sysctl(8))";

/// What has happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// Connections that have lived for `after` are to be preserved.  `store`: for how many descriptors
    /// the manager says it has room, if it does.
    Enable {
        after: Duration,
        store: Option<usize>,
    },
    /// The configuration wants no connection preserved.
    Decline,
    /// Nothing is to be left in the store.
    Dissolve,
    /// The process is about to end: the store is not emptied any more to be filled anew.
    Ending,
    /// The manager is to be asked now, if that was put off until there is a first connection.
    Ask,
    /// Time has passed.
    Time,
    /// All connections that wait are to be preserved now, whether they are due or not.
    PreserveAll,
    /// A message with descriptors was dropped, as too many are in flight (unix(7)).
    Exhausted,
    /// [`Effect::StoreFile`]: whether the message could be made.
    FileSent(bool),
    /// [`Effect::Rotate`], [`Effect::Fill`]: what was put into the new queue.
    Filled(io::Result<Filled>),
    /// [`Effect::Offer`]: whether the new queue could be sent to be stored.
    RotationSent(io::Result<()>),
    /// The manager has answered, or has not in time.  `held`: it has the new queue, as far as can be
    /// seen.
    RotationOver { answered: bool, held: bool },
    /// No answer is awaited any more.
    AbandonRotation,
    /// The manager has dropped the queue.
    HungUp,
    /// [`Effect::Append`]: so many connections are in the queue now.  `missed`: why they are not in the
    /// new queue as well, if there is one.
    Appended {
        count: usize,
        missed: Option<io::Error>,
    },
    /// [`Effect::Append`]: none of these is.  `held`: the manager has the queue still.
    NotAppended {
        batch: Vec<Waiting>,
        error: io::Error,
        held: bool,
    },
}

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send the state file to the manager; then [`Input::FileSent`].
    StoreFile,
    /// Remove a name from the store.
    Unstore(String),
    /// Make a queue of this generation beside the one in use, and put the first slice of the preserved
    /// connections into it that are open; then [`Input::Filled`].
    Rotate(u64),
    /// Put the next slice of them into the new queue; then [`Input::Filled`].
    Fill,
    /// Send the new queue to the manager, and ask for an answer; then [`Input::RotationSent`], and
    /// [`Input::RotationOver`] when the answer is there or its time is over ([`Preserver::answer_due`]).
    Offer,
    /// Use the new queue instead of the old one.
    Promote,
    /// Forget the new queue.
    DropRotation,
    /// Forget the queue.
    DropQueue,
    /// Put those of these connections that are open into the queue, and then into the new one, if there
    /// is one; then [`Input::Appended`] or [`Input::NotAppended`].
    Append(Vec<Waiting>),
    /// Something to log, and to act on.
    Log(StoreEvent),
}

/// What a process begins with.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The generation in the name of the state file.
    pub state_file: u64,
    /// Whether the manager does not have the state file yet.
    pub unstored: bool,
    /// Why there is no state file that could be stored.
    pub no_file: Option<String>,
    /// The queue that goes on.
    pub queue: Option<Queue>,
    /// Names in the store of which nothing is needed once a queue is stored.
    pub obsolete: BTreeSet<String>,
    /// Whether these hold connections that could not be opened.
    pub unseen: bool,
    /// The highest generation in a name.
    pub latest: u64,
    /// Connections that go on.
    pub preserved: usize,
    /// Descriptors that this process may have open, and as many in flight (unix(7)).
    pub descriptors: usize,
}

/// A queue, as the machine knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queue {
    pub generation: u64,
    /// Descriptors in it, those of connections that are over included.
    pub entries: usize,
    /// Messages in it, each with at most [`BATCH`] descriptors.
    pub messages: usize,
}

impl Queue {
    fn add(&mut self, entries: usize, messages: usize) {
        self.entries += entries;
        self.messages += messages;
    }
}

/// What a slice of a rotation has put into the new queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filled {
    pub entries: usize,
    pub messages: usize,
    /// Whether this was the last slice.
    pub whole: bool,
}

/// A queue that is to replace the one in use.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    queue: Queue,
    /// Until when the manager may answer; `None`: it was not asked, as the queue is not filled yet.
    until: Option<MonoTime>,
}

/// Decides what is preserved, where and when.
#[derive(Debug)]
pub(crate) struct Preserver {
    beginning: Beginning,
    store_state: StoreState,
    /// The state file was sent, and nothing has shown yet that it has arrived.
    unproved: bool,
    /// A message with descriptors was dropped since this was last looked at.
    exhausted: bool,
    current: Option<Queue>,
    rotation: Option<Rotation>,
    /// Connections that are to be preserved.
    waiting: PreserveQueue,
    /// How old a connection has to be.
    after: Duration,
    /// Messages that are left in this round, and whether age does not matter.
    round: (usize, bool),
    /// The next round does not come before that.
    next_round: Option<MonoTime>,
    /// The next rotation does not begin before that.
    rotate_after: Option<MonoTime>,
    /// When the manager is asked again.
    ask_again: Option<MonoTime>,
    /// The next wait while there is no room in flight.
    retry: Duration,
    /// There is no store for certain.
    no_store: bool,
    /// The process ends: what is stored is all that there is.
    ending: bool,
}

/// What one input leads to.
type Effects = Vec<Effect>;

impl Preserver {
    /// A machine for what a process begins with.
    #[must_use]
    pub(crate) fn new(beginning: Beginning) -> Self {
        Self {
            current: beginning.queue,
            beginning,
            store_state: StoreState::Off,
            unproved: false,
            exhausted: false,
            rotation: None,
            waiting: PreserveQueue::default(),
            after: Duration::ZERO,
            round: (0, false),
            next_round: None,
            rotate_after: None,
            ask_again: None,
            retry: RETRY,
            no_store: false,
            ending: false,
        }
    }

    /// Takes what has happened; returns what is to be done.
    pub(crate) fn on(&mut self, input: Input, now: MonoTime) -> Effects {
        let mut effects = Effects::new();
        let to_do = &mut effects;
        match input {
            Input::Enable { after, store } => self.enable(after, store, now, to_do),
            Input::Decline => self.store_state = StoreState::Declined,
            Input::Dissolve => self.dissolve(to_do),
            Input::Ending => self.begin_to_end(to_do),
            Input::Ask if self.store_state == StoreState::Waiting => self.ask(now, to_do),
            Input::Ask => {}
            Input::Time => self.on_time(now, to_do),
            Input::PreserveAll => {
                self.round = (usize::MAX, true);
                self.append(now, to_do);
            }
            Input::Exhausted => self.exhausted = true,
            Input::FileSent(true) => {
                self.beginning.unstored = false;
                self.unproved = true;
                if self.rotation.is_some() {
                    self.offer(now, to_do);
                } else {
                    self.ask_for_queue(now, to_do);
                }
            }
            Input::FileSent(false) => {
                self.drop_rotation(to_do);
                let why = "there are not enough descriptors (LimitNOFILE=)";
                self.refuse(why.into(), true, to_do);
            }
            Input::Filled(filled) => self.filled(filled, now, to_do),
            Input::RotationSent(Ok(())) => {
                if let Some(rotation) = &mut self.rotation {
                    rotation.until = Some(now + ANSWER);
                }
            }
            Input::RotationSent(Err(error)) => {
                self.drop_rotation(to_do);
                self.rotation_failed(error, now, to_do);
            }
            Input::RotationOver { answered, held } => {
                self.rotation_over(answered, held, now, to_do);
            }
            Input::AbandonRotation => self.drop_rotation(to_do),
            Input::HungUp => self.hung_up(to_do),
            Input::Appended { count, missed } => self.appended(count, missed, now, to_do),
            Input::NotAppended { batch, error, held } => {
                self.not_appended(batch, error, held, now, to_do);
            }
        }
        effects
    }

    fn enable(
        &mut self,
        after: Duration,
        store: Option<usize>,
        now: MonoTime,
        to_do: &mut Effects,
    ) {
        let inherited = !self.beginning.unstored || !self.beginning.obsolete.is_empty();
        self.no_store = store == Some(0) && !inherited;
        self.store_state = StoreState::Waiting;
        self.after = after;
        match store {
            _ if inherited => self.ask(now, to_do),
            Some(STORED..) => self.ask(now, to_do),
            // It is not worth a try: the manager closes what it has no room for some time after its
            // answer, and until then it looks as if it were stored.
            Some(1..) => self.refuse(NO_ROOM.into(), true, to_do),
            Some(0) | None => {}
        }
    }

    /// Asks the manager to store what it does not have.
    fn ask(&mut self, now: MonoTime, to_do: &mut Effects) {
        if self.beginning.unseen {
            // Connections that could not be opened would stay open unserved.  When their queue is
            // gone, there is room in flight as well.
            self.unstore_obsolete(to_do);
            self.store_state = StoreState::Refused(IN_FLIGHT.into());
            self.ask_again = Some(now + RETRY);
            return;
        }
        self.ask_again = None;
        if self.no_store {
            return self.refuse(NO_ROOM.into(), false, to_do);
        }
        self.exhausted = false;
        self.unproved = false;
        // Only a queue shows that the manager stores anything, and a queue is worth nothing without the
        // state file.  systemd ignores what it stores already.
        self.beginning.unstored |= self.current.is_none();
        if let Some(why) = &self.beginning.no_file {
            let why = format!("there is no memory file: {why}");
            return self.refuse(why, true, to_do);
        }
        // What is owed to connections of another process moves into this file with the first turn, so the
        // next process has to find it from now on.
        let inherited = self.current.is_some() || self.beginning.preserved > 0;
        if self.beginning.unstored && inherited {
            to_do.push(Effect::StoreFile);
        } else {
            self.ask_for_queue(now, to_do);
        }
    }

    /// Goes on to ask.  Where there is a queue, the state file is stored, or on its way.  Otherwise it is
    /// sent together with the new queue (once more, perhaps), which shows whether the manager has stored
    /// them.
    fn ask_for_queue(&mut self, now: MonoTime, to_do: &mut Effects) {
        if self.beginning.preserved == 0 {
            self.unstore_obsolete(to_do);
        }
        if self.current.is_some() {
            self.store_state = StoreState::Preserving;
            self.unstore_obsolete(to_do);
            to_do.push(Effect::Log(StoreEvent::Preserving));
            return;
        }
        self.store_state = StoreState::Asking;
        self.rotate(now, to_do);
    }

    fn on_time(&mut self, now: MonoTime, to_do: &mut Effects) {
        let passed = |due: Option<MonoTime>| due.is_some_and(|due| due <= now);
        if self.is_filling() {
            to_do.push(Effect::Fill);
        }
        match &self.store_state {
            StoreState::Waiting if passed(self.waiting.next_due()) => self.ask(now, to_do),
            StoreState::Refused(_) if passed(self.ask_again) => self.ask(now, to_do),
            StoreState::Preserving => {
                let may_rotate =
                    self.rotation.is_none() && self.rotate_after.is_none_or(|after| after <= now);
                if may_rotate && self.is_worn() {
                    self.rotate(now, to_do);
                } else if self.next_round.is_none_or(|next| next <= now)
                    && passed(self.waiting.next_due())
                {
                    self.round = (MESSAGES, false);
                    self.append(now, to_do);
                }
            }
            _ => {}
        }
    }

    /// The process is about to end.  A queue that is not filled yet is given up for the one in use, or
    /// filled at once where there is no other.
    fn begin_to_end(&mut self, to_do: &mut Effects) {
        self.ending = true;
        if self.is_filling() {
            if self.current.is_some() {
                self.drop_rotation(to_do);
            } else {
                to_do.push(Effect::Fill);
            }
        }
    }

    /// Begins to replace the queue by one that has only the open connections.
    fn rotate(&mut self, now: MonoTime, to_do: &mut Effects) {
        self.rotate_after = Some(now + RETRY);
        let generation = self.beginning.latest + 1;
        self.beginning.latest = generation;
        let (entries, messages) = (0, 0);
        let queue = Queue {
            generation,
            entries,
            messages,
        };
        let until = None;
        self.rotation = Some(Rotation { queue, until });
        to_do.push(Effect::Rotate(generation));
    }

    /// Goes on with a rotation after a slice of it.
    fn filled(&mut self, filled: io::Result<Filled>, now: MonoTime, to_do: &mut Effects) {
        match (filled, &mut self.rotation) {
            (Ok(filled), Some(rotation)) => {
                rotation.queue.add(filled.entries, filled.messages);
                if filled.whole && self.current.is_none() {
                    to_do.push(Effect::StoreFile);
                } else if filled.whole {
                    self.offer(now, to_do);
                } else if self.ending {
                    to_do.push(Effect::Fill);
                }
            }
            (Err(error), Some(_)) => {
                self.drop_rotation(to_do);
                self.rotation_failed(error, now, to_do);
            }
            (_, None) => {}
        }
    }

    /// Sends the new queue to the manager.
    fn offer(&mut self, now: MonoTime, to_do: &mut Effects) {
        // A message that was dropped before had the state file in it, or is of no more use.
        if std::mem::take(&mut self.exhausted) && self.unproved {
            self.drop_rotation(to_do);
            let error = io::Error::from_raw_os_error(libc::ETOOMANYREFS);
            return self.rotation_failed(error, now, to_do);
        }
        to_do.push(Effect::Offer);
    }

    fn rotation_failed(&mut self, error: io::Error, now: MonoTime, to_do: &mut Effects) {
        let exhausted = error.raw_os_error() == Some(libc::ETOOMANYREFS);
        match self.store_state {
            StoreState::Asking if exhausted => self.start_over(now, to_do),
            StoreState::Asking => {
                let why = format!("a descriptor queue cannot be made: {error}");
                self.refuse(why, true, to_do);
            }
            _ => self.not_rotated(error, exhausted, now, to_do),
        }
    }

    /// The old queue stays; if there is no room in flight, what it has is not preserved either.
    fn not_rotated(
        &mut self,
        error: io::Error,
        exhausted: bool,
        now: MonoTime,
        to_do: &mut Effects,
    ) {
        // At a hand-over the store is not emptied: it cannot be filled again.
        let all = exhausted && !self.ending;
        to_do.push(Effect::Log(StoreEvent::NotRotated { error, all }));
        if all {
            self.start_over(now, to_do);
        }
    }

    fn rotation_over(&mut self, answered: bool, held: bool, now: MonoTime, to_do: &mut Effects) {
        let Some(Rotation { queue, .. }) = self.rotation else {
            return;
        };
        // A barrier that was dropped looks as if it were answered.
        let exhausted = std::mem::take(&mut self.exhausted);
        if answered && !exhausted && held {
            self.rotation = None;
            self.retry = RETRY;
            self.unproved = false;
            let old = self.current.replace(queue);
            let old = old.map(|old| fd_queue_name(old.generation));
            self.beginning.obsolete.extend(old);
            to_do.push(Effect::Promote);
            self.unstore_obsolete(to_do);
            let before = std::mem::replace(&mut self.store_state, StoreState::Preserving);
            if before != StoreState::Preserving {
                to_do.push(Effect::Log(StoreEvent::Preserving));
            }
            return;
        }
        // The manager may have stored it after all, and would hold connections that are long over.
        self.drop_rotation(to_do);
        if exhausted {
            let error = io::Error::from_raw_os_error(libc::ETOOMANYREFS);
            return self.rotation_failed(error, now, to_do);
        }
        let why = if answered {
            NO_ROOM
        } else {
            "the service manager does not answer (BARRIER=1)"
        };
        if self.store_state == StoreState::Asking {
            self.ask_again = (!answered).then_some(now + ASK_AGAIN);
            let grave = !answered || self.beginning.preserved > 0;
            self.refuse(why.into(), grave, to_do);
        } else {
            self.rotate_after = Some(now + ANSWER);
            self.not_rotated(io::Error::other(why), false, now, to_do);
        }
    }

    fn drop_rotation(&mut self, to_do: &mut Effects) {
        if let Some(Rotation { queue, until }) = self.rotation.take() {
            to_do.push(Effect::DropRotation);
            if until.is_some() {
                to_do.push(Effect::Unstore(fd_queue_name(queue.generation)));
            }
        }
    }

    fn hung_up(&mut self, to_do: &mut Effects) {
        if self.store_state == StoreState::Preserving {
            self.current = None;
            to_do.push(Effect::DropQueue);
            if self.is_filling() {
                // The state file is not stored any more either.
                self.drop_rotation(to_do);
            }
            self.refuse(NO_ROOM.into(), true, to_do);
        }
    }

    /// Preserves the next message of this round.
    fn append(&mut self, now: MonoTime, to_do: &mut Effects) {
        let (messages, all) = self.round;
        let batch = if messages > 0 && self.current.is_some() {
            self.waiting.take(now, all, BATCH)
        } else {
            Vec::new()
        };
        if batch.is_empty() {
            self.round = (0, false);
            self.next_round = Some(now + BETWEEN_ROUNDS);
            return;
        }
        self.round.0 = messages - 1;
        to_do.push(Effect::Append(batch));
    }

    fn appended(
        &mut self,
        count: usize,
        missed: Option<io::Error>,
        now: MonoTime,
        to_do: &mut Effects,
    ) {
        self.beginning.preserved += count;
        self.retry = RETRY;
        let rotation = self.rotation.as_mut().map(|rotation| &mut rotation.queue);
        for queue in self.current.iter_mut().chain(rotation) {
            queue.add(count, count.div_ceil(BATCH));
        }
        if let Some(error) = missed {
            self.drop_rotation(to_do);
            self.rotate_after = Some(now + ANSWER);
            self.not_rotated(error, false, now, to_do);
        }
        self.append(now, to_do);
    }

    fn not_appended(
        &mut self,
        batch: Vec<Waiting>,
        error: io::Error,
        held: bool,
        now: MonoTime,
        to_do: &mut Effects,
    ) {
        let count = batch.len();
        self.waiting.put_back(batch);
        self.round = (0, false);
        self.next_round = Some(now + RETRY);
        if !held {
            self.hung_up(to_do);
        } else if self.rotation.is_some() {
            // It makes room, or its end shows why it does not.
        } else if error.kind() == io::ErrorKind::WouldBlock && self.is_wasteful(count) {
            self.rotate(now, to_do);
        } else {
            self.next_round = Some(now + self.retry);
            self.retry = (self.retry * 2).min(LONGEST_RETRY);
            let error = if error.kind() == io::ErrorKind::WouldBlock {
                io::Error::new(error.kind(), FULL)
            } else {
                error
            };
            to_do.push(Effect::Log(StoreEvent::NotAppended { count, error }));
        }
    }

    /// Empties the store, as there is no room in flight for a second copy of the open connections; to
    /// remove a name needs no room.  What was preserved is stored anew when the manager has let it go; until then it
    /// ends with this process.
    fn start_over(&mut self, now: MonoTime, to_do: &mut Effects) {
        if let Some(queue) = self.current.take() {
            to_do.push(Effect::DropQueue);
            let name = fd_queue_name(queue.generation);
            self.beginning.obsolete.insert(name);
        }
        // There may have been no room for the state file either, and a queue is worth nothing without
        // it.
        if std::mem::take(&mut self.unproved) {
            let name = state_file_name(self.beginning.state_file);
            self.beginning.obsolete.insert(name);
            self.beginning.unstored = true;
        }
        self.unstore_obsolete(to_do);
        // It takes a while until the descriptors in a queue that is dropped are closed.
        self.ask_again = Some(now + self.retry);
        self.retry = (self.retry * 2).min(LONGEST_RETRY);
        self.refuse(IN_FLIGHT.into(), true, to_do);
    }

    fn dissolve(&mut self, to_do: &mut Effects) {
        if self.store_state != StoreState::Declined {
            self.store_state = StoreState::Off;
        }
        self.waiting.replace(Vec::new());
        self.drop_rotation(to_do);
        if let Some(queue) = self.current.take() {
            to_do.push(Effect::DropQueue);
            let name = fd_queue_name(queue.generation);
            self.beginning.obsolete.insert(name);
        }
        if !std::mem::replace(&mut self.beginning.unstored, true) {
            let name = state_file_name(self.beginning.state_file);
            self.beginning.obsolete.insert(name);
        }
        self.unproved = false;
        self.unstore_obsolete(to_do);
    }

    fn refuse(&mut self, why: String, grave: bool, to_do: &mut Effects) {
        self.waiting.replace(Vec::new());
        self.store_state = StoreState::Refused(why.clone());
        to_do.push(Effect::Log(StoreEvent::Refused { why, grave }));
    }

    fn unstore_obsolete(&mut self, to_do: &mut Effects) {
        self.beginning.unseen = false;
        let names = std::mem::take(&mut self.beginning.obsolete);
        to_do.extend(names.into_iter().map(Effect::Unstore));
    }

    /// Whether too many descriptors in the queue are those of connections that are over, or too many
    /// messages in it have few descriptors.
    fn is_worn(&self) -> bool {
        let preserved = self.beginning.preserved;
        self.current.is_some_and(|queue| {
            let dead = queue.entries.saturating_sub(preserved);
            dead >= max_dead(self.beginning.descriptors, queue.entries)
                || queue.messages >= SPARE_MESSAGES + 2 * preserved.div_ceil(BATCH)
        })
    }

    /// Whether a new queue would have fewer messages with `more` connections than this one has.
    fn is_wasteful(&self, more: usize) -> bool {
        let needed = (self.beginning.preserved + more).div_ceil(BATCH);
        self.current.is_some_and(|queue| queue.messages > needed)
    }

    /// Whether there is a new queue that does not have all preserved connections yet.
    fn is_filling(&self) -> bool {
        self.rotation
            .is_some_and(|rotation| rotation.until.is_none())
    }

    /// Whether connections are preserved.
    #[must_use]
    pub(crate) fn store_state(&self) -> &StoreState {
        &self.store_state
    }

    /// How many connections are preserved.
    #[must_use]
    pub(crate) fn preserved(&self) -> usize {
        self.beginning.preserved
    }

    /// A preserved connection is over.
    pub(crate) fn closed(&mut self) {
        self.beginning.preserved -= 1;
    }

    /// A connection that may be preserved is open.
    pub(crate) fn opened(&mut self, worker: usize, key: usize, number: u64, now: MonoTime) {
        if matches!(
            self.store_state,
            StoreState::Waiting | StoreState::Preserving
        ) {
            self.waiting.add(Waiting {
                due: now + self.after,
                worker,
                key,
                number,
            });
        }
    }

    /// How old a connection has to be before it is preserved.
    pub(crate) fn set_after(&mut self, after: Duration) {
        self.after = after;
    }

    /// The connections that are to be preserved.
    #[must_use]
    pub(crate) fn waiting(&mut self) -> &mut PreserveQueue {
        &mut self.waiting
    }

    /// The generation of the queue in use.
    #[must_use]
    pub(crate) fn generation(&self) -> Option<u64> {
        self.current.map(|queue| queue.generation)
    }

    /// Until when the manager may answer, if an answer is awaited.
    #[must_use]
    pub(crate) fn answer_due(&self) -> Option<MonoTime> {
        self.rotation.and_then(|rotation| rotation.until)
    }

    /// When [`Input::Time`] or [`Input::RotationOver`] has something to do, as long as the process
    /// serves.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        if self.is_filling() {
            return Some(MonoTime::FIRST);
        }
        // The answer may never come.
        let until = self.answer_due();
        match &self.store_state {
            StoreState::Preserving => {
                let waiting = self.waiting.next_due();
                let preserve = waiting.map(|due| self.next_round.map_or(due, |next| due.max(next)));
                let rotate = || {
                    self.is_worn()
                        .then(|| self.rotate_after.unwrap_or(MonoTime::FIRST))
                };
                earliest([preserve, until.or_else(rotate)])
            }
            _ if until.is_some() => until,
            StoreState::Off | StoreState::Declined | StoreState::Asking => None,
            StoreState::Waiting => self.waiting.next_due(),
            StoreState::Refused(_) => self.ask_again,
        }
    }
}

#[cfg(test)]
mod tests;
