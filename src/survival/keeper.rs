//! What the manager holds of ours, and when it gets more of it.
//!
//! The keeper begins with what a predecessor has left ([`super::heritage`]), if anything, and asks the manager to store
//! what is missing: at once if there is a store for certain, else when there is something to
//! keep, so that a manager without a store is not troubled for nothing.  Storing is not answered; what was read by the manager is, as it closes the
//! pipe that goes with `BARRIER=1` (sd_notify(3)).  Whether it has *kept* what it read shows then:
//! where there is no store, or no room in it, the sending end of the parcel hangs up.  The answer
//! comes through the poll, like everything else.
//!
//! A new parcel replaces the old one in the same way: all that live go into it, it is stored,
//! the barrier is awaited, and only then is the old one removed from the store.  Until then nobody
//! is packed, or the new one would not have them.  So there are two copies in flight for a moment, and never none.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};

use super::arena::Arena;
use super::caution::Caution;
use super::heritage::Heritage;
use super::parcel::{BATCH, Parcel};
use super::recovery::{arena_name, parcel_name};
use super::renewal::Renewal;
use super::standing::{NO_ROOM, News, Standing, dead};
use super::unpacked::{Unpacked, Young};
use crate::echo::tick::{Tick, earliest};
use crate::system::notify::Manager;

/// Between two rounds of packing: fewer messages, of which a parcel takes a few hundred only.
const PACKING: Duration = Duration::from_millis(200);

/// Messages packed in one such round.
pub const MESSAGES: usize = 8;

/// Descriptors that the manager has to keep: the arena, and both ends of the parcel.
pub const STORED: usize = 3;

/// How long the manager may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Before a manager that has not answered is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Before the next attempt after one has failed.
const AGAIN: Duration = Duration::from_secs(1);

/// The longest wait before the next attempt after there was no room in flight.
const LONG: Duration = Duration::from_secs(60);

/// Why nothing is kept after the store had to be emptied.
const IN_FLIGHT: &str = "there are too many descriptors in flight (LimitNOFILE= of the unit)";

/// Keeps connections for a successor.
#[derive(Debug)]
pub struct Keeper {
    arena: Arc<Arena>,
    /// The arena is not in the store yet.
    fresh: bool,
    /// It was sent there, and nothing has shown yet that it has arrived.
    unproved: bool,
    standing: Standing,
    current: Option<Parcel>,
    renewal: Option<Renewal>,
    /// Names in the store of which nothing is needed once a parcel is.
    obsolete: BTreeSet<String>,
    /// They hold connections that nobody has seen.
    unseen: bool,
    latest: u64,
    /// Connections in the parcel that live.
    kept: usize,
    /// Connections that are not packed yet.
    pub unpacked: Unpacked,
    delay: Duration,
    /// The next round of packing does not come before that.
    next: Option<Tick>,
    /// Nor the next attempt to renew the parcel before that.
    renew_after: Option<Tick>,
    /// Names of listeners in use.
    listeners: BTreeSet<u32>,
    /// The first round, until it is past.
    caution: Option<Arc<Caution>>,
    /// When to ask again after there was no answer.
    ask_again: Option<Tick>,
    /// The next wait while there is no room in flight.
    backoff: Duration,
    /// Descriptors that may be open, and as many in flight (unix(7)).
    descriptors: usize,
    /// There is no store for certain.
    no_store: bool,
}

impl Keeper {
    /// A keeper of an arena, with what a predecessor has left.
    #[must_use]
    pub fn new(heritage: &mut Heritage, descriptors: usize) -> Self {
        let caution = Caution::new(heritage.arena.clone());
        Self {
            arena: heritage.arena.clone(),
            fresh: heritage.fresh,
            unproved: false,
            standing: Standing::Off,
            current: heritage.parcel.take(),
            renewal: None,
            obsolete: std::mem::take(&mut heritage.obsolete),
            unseen: heritage.unseen,
            latest: heritage.latest,
            kept: heritage.adopted.len(),
            unpacked: Unpacked::default(),
            delay: Duration::ZERO,
            next: None,
            renew_after: None,
            listeners: heritage
                .adopted
                .iter()
                .map(|adopted| adopted.heir.record.listener)
                .collect(),
            caution: Some(Arc::new(caution)),
            ask_again: None,
            backoff: AGAIN,
            descriptors,
            no_store: false,
        }
    }

    /// Keeps connections that have lived for `delay`, in a store for `size` descriptors, if that is
    /// known.
    pub fn enable(&mut self, delay: Duration, size: Option<usize>) {
        self.no_store = size == Some(0) && !self.has_inherited();
        self.standing = Standing::Waiting;
        self.delay = delay;
    }

    /// Whether a predecessor has left something in the store.
    #[must_use]
    pub fn has_inherited(&self) -> bool {
        !self.fresh || !self.obsolete.is_empty()
    }

    /// Begins to keep; `living`: those that were adopted.
    pub fn begin<'a>(
        &mut self,
        living: impl Iterator<Item = BorrowedFd<'a>>,
        manager: &mut Manager,
        now: Tick,
    ) -> Option<News> {
        if self.unseen {
            // They would hang, and what they take up in flight is free when they are gone.
            self.forget_obsolete(manager, now);
            self.standing = Standing::Refused(IN_FLIGHT.into());
            self.ask_again = Some(now + AGAIN);
            return None;
        }
        self.ask_again = None;
        if self.no_store {
            return self.refuse(NO_ROOM.into(), false);
        }
        if manager.was_exhausted() && std::mem::take(&mut self.unproved) {
            self.fresh = true;
        }
        let Some(file) = self.arena.file() else {
            let why = format!("there is no memory file: {}", self.arena.no_file());
            return self.refuse(why, true);
        };
        if self.fresh {
            if !manager.store(&arena_name(self.arena.generation()), &[file], now) {
                return self.refuse(
                    "there are not enough descriptors (LimitNOFILE=)".into(),
                    true,
                );
            }
            self.fresh = false;
            self.unproved = true;
        }
        if self.kept == 0 {
            self.forget_obsolete(manager, now);
        }
        if self.current.is_some() {
            self.standing = Standing::Kept;
            self.forget_obsolete(manager, now);
            return Some(News::Kept);
        }
        self.standing = Standing::Asking;
        match self.renew(living, manager, now) {
            Ok(()) => None,
            Err(error) if is_exhausted(&error) => self.start_over(manager, now),
            Err(error) => self.refuse(format!("a parcel cannot be made: {error}"), true),
        }
    }

    /// Empties the store, as there is no room in flight for a second copy of what lives: to remove
    /// needs none.  What was kept is put there anew when the manager has let it go; until then it
    /// ends with this process.
    pub fn start_over(&mut self, manager: &mut Manager, now: Tick) -> Option<News> {
        let current = self.current.take();
        self.obsolete
            .extend(current.map(|parcel| parcel_name(parcel.generation)));
        // Nor may there have been room for the arena, and a parcel is worth nothing without.
        if std::mem::take(&mut self.unproved) {
            self.obsolete.insert(arena_name(self.arena.generation()));
            self.fresh = true;
        }
        self.forget_obsolete(manager, now);
        // A queue that is dropped takes its time to be empty.
        self.ask_again = Some(now + self.backoff);
        self.backoff = (self.backoff * 2).min(LONG);
        self.refuse(IN_FLIGHT.into(), true)
    }

    /// Keeps nothing, as the configuration says.
    pub fn decline(&mut self) {
        self.standing = Standing::Declined;
    }

    /// Keeps nothing, as the manager says beforehand that it has too little room.  That is better than
    /// to try: what has no room is closed some time after the answer, and until then it looks as if
    /// it were kept.
    pub fn decline_store(&mut self) -> Option<News> {
        self.refuse(NO_ROOM.into(), true)
    }

    /// Leaves nothing in the store.
    pub fn dissolve(&mut self, manager: &mut Manager, now: Tick) {
        if self.standing != Standing::Declined {
            self.standing = Standing::Off;
        }
        self.unpacked.replace(Vec::new());
        let parcels = self
            .current
            .iter()
            .chain(self.renewal.as_ref().map(|renewal| &renewal.parcel));
        self.obsolete
            .extend(parcels.map(|parcel| parcel_name(parcel.generation)));
        if !self.fresh {
            self.obsolete.insert(arena_name(self.arena.generation()));
            self.fresh = true;
        }
        self.unproved = false;
        self.current = None;
        self.renewal = None;
        self.forget_obsolete(manager, now);
    }

    /// Whether connections are kept.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// How many connections have a place, for what they are owed too.
    #[must_use]
    pub fn seats(&self) -> usize {
        let geometry = self.arena.geometry();
        geometry.lanes * geometry.seats
    }

    /// How many connections are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// How long a connection has to live before it is packed.
    pub fn set_delay(&mut self, delay: Duration) {
        self.delay = delay;
    }

    /// Puts down the name of a listener.
    pub fn listener(&mut self, name: &str) -> u32 {
        let index = self.arena.put_name(name, &self.listeners);
        self.listeners.extend(index);
        index.unwrap_or(u32::MAX)
    }

    /// The arena, for what concerns the whole of it.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// A connection has come in.
    pub fn arrived(&mut self, lane: usize, key: usize, number: u64, now: Tick) {
        if matches!(self.standing, Standing::Waiting | Standing::Kept) {
            let due = now + self.delay;
            self.unpacked.add(Young {
                due,
                lane,
                key,
                number,
            });
        }
    }

    /// A connection that was kept is over.
    pub fn gone(&mut self) {
        self.kept -= 1;
    }

    /// What every turn has to be taken under, as long as the first full round is not over.
    #[must_use]
    pub fn caution(&self) -> Option<&Arc<Caution>> {
        self.caution.as_ref()
    }

    /// The first full round is over, and with it the crashes of the past are forgotten.
    pub fn settle(&mut self) {
        if let Some(caution) = self.caution.take() {
            caution.forget();
        }
    }

    /// When one of the `is_to_` questions has another answer, as long as we serve.
    #[must_use]
    pub fn next_due(&self) -> Option<Tick> {
        match (&self.standing, &self.renewal) {
            (Standing::Off | Standing::Declined | Standing::Asking, None) => None,
            (Standing::Waiting, _) => self.unpacked.next_due(),
            (Standing::Refused(_), None) => self.ask_again,
            // The answer may never come.
            (_, Some(renewal)) => Some(renewal.until),
            (Standing::Kept, None) => {
                let young = self.unpacked.next_due();
                let pack = young.map(|due| self.next.map_or(due, |next| due.max(next)));
                let renew = self.is_worn().then_some(self.renew_after);
                let renew = renew.map(|after| after.unwrap_or(Tick::new(0)));
                earliest([pack, renew])
            }
        }
    }

    /// Whether the manager is to be asked.
    #[must_use]
    pub fn is_to_ask(&self, now: Tick) -> bool {
        let due = match self.standing {
            Standing::Waiting => self.unpacked.next_due(),
            Standing::Refused(_) => self.ask_again,
            _ => None,
        };
        due.is_some_and(|due| due <= now)
    }

    /// Whether the parcel is to be renewed.
    #[must_use]
    pub fn is_to_renew(&self, now: Tick) -> bool {
        self.is_resting() && self.is_worn() && self.renew_after.is_none_or(|after| after <= now)
    }

    /// Whether somebody is to be packed.
    #[must_use]
    pub fn is_to_pack(&self, now: Tick) -> bool {
        let young = self.unpacked.next_due();
        self.is_resting()
            && self.next.is_none_or(|next| next <= now)
            && young.is_some_and(|due| due <= now)
    }

    fn is_resting(&self) -> bool {
        self.standing == Standing::Kept && self.renewal.is_none()
    }

    /// Whether a good part of the parcel is dead.
    fn is_worn(&self) -> bool {
        let entries = self.current.as_ref().map_or(0, |parcel| parcel.entries);
        entries.saturating_sub(self.kept) >= dead(self.descriptors, entries)
    }

    /// Packs one message.
    ///
    /// # Errors
    /// Those of [`Parcel::append`].
    pub fn pack(&mut self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let parcel = self.current.as_mut();
        let parcel = parcel.ok_or(io::ErrorKind::NotConnected)?;
        parcel.append(descriptors)?;
        self.kept += descriptors.len();
        Ok(())
    }

    /// Those could not be packed: they are tried again, after a while.
    pub fn put_back(&mut self, batch: Vec<Young>, now: Tick) {
        self.unpacked.put_back(batch);
        self.next = Some(now + AGAIN);
    }

    /// A round of packing is over.
    pub fn packed(&mut self, now: Tick) {
        self.next = Some(now + PACKING);
    }

    /// Begins to replace the parcel by one that has the living only.
    ///
    /// # Errors
    /// It cannot be made; the old one stays.
    pub fn renew<'a>(
        &mut self,
        living: impl Iterator<Item = BorrowedFd<'a>>,
        manager: &mut Manager,
        now: Tick,
    ) -> io::Result<()> {
        assert!(self.renewal.is_none(), "a parcel is being renewed");
        // What was dropped before is the arena, or of no more use.
        if manager.was_exhausted() && self.unproved {
            return Err(io::Error::from_raw_os_error(libc::ETOOMANYREFS));
        }
        self.renew_after = Some(now + AGAIN);
        let generation = self.latest + 1;
        let (mut parcel, queue) = Parcel::new(generation)?;
        let mut batch = Vec::with_capacity(BATCH);
        for descriptor in living {
            batch.push(descriptor);
            if batch.len() == BATCH {
                parcel.append(&batch)?;
                batch.clear();
            }
        }
        if !batch.is_empty() {
            parcel.append(&batch)?;
        }
        let (answer, question) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        self.latest = generation;
        // One after the other, as a message has no order: if there is room for one only, it is not
        // the queue, and that shows.
        for end in [parcel.as_fd(), queue.as_fd()] {
            manager.store(&parcel_name(generation), &[end], now);
        }
        manager.barrier(question, now);
        self.renewal = Some(Renewal {
            parcel,
            answer,
            until: now + ANSWER,
        });
        Ok(())
    }

    /// What to poll for the manager's answer.
    #[must_use]
    pub fn answer(&self) -> Option<BorrowedFd<'_>> {
        self.renewal.as_ref().map(|renewal| renewal.answer.as_fd())
    }

    /// Waits for the manager's answer, for at most `span`: only at the end, when nothing else is
    /// left to do.
    pub fn wait(&mut self, span: Duration) {
        if let Some(renewal) = &self.renewal {
            renewal.is_answered(span);
        }
    }

    /// Gives a parcel up that the manager has not answered for.
    pub fn abandon_renewal(&mut self, manager: &mut Manager, now: Tick) {
        if let Some(renewal) = self.renewal.take() {
            manager.unstore(&parcel_name(renewal.parcel.generation), now);
        }
    }

    /// Notices that the manager has dropped what it kept: at once where there was no room, as it
    /// closes what it cannot keep some time after it has answered.
    pub fn look(&mut self) -> Option<News> {
        let lost = self.standing == Standing::Kept && !self.is_held();
        lost.then(|| {
            self.current = None;
            self.refuse(NO_ROOM.into(), true)
        })
        .flatten()
    }

    /// What to poll for that, with the number of the parcel.
    #[must_use]
    pub fn sender(&self) -> Option<(u64, BorrowedFd<'_>)> {
        self.current
            .as_ref()
            .map(|parcel| (parcel.generation, parcel.as_fd()))
    }

    /// The number of the parcel in use.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.current.as_ref().map(|parcel| parcel.generation)
    }

    /// Whether the manager holds what is kept, as far as can be seen.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.standing == Standing::Kept && self.current.as_ref().is_some_and(Parcel::is_held)
    }

    /// Looks whether the manager has answered, or has not in time.
    pub fn expire(&mut self, manager: &mut Manager, now: Tick) -> Option<News> {
        let renewal = self.renewal.as_ref()?;
        let answered = renewal.is_answered(Duration::ZERO);
        if !answered && now < renewal.until {
            return None;
        }
        let renewal = self.renewal.take()?;
        // A question that was dropped looks as if it were answered.
        let exhausted = manager.was_exhausted();
        if answered && !exhausted && renewal.parcel.is_held() {
            self.backoff = AGAIN;
            self.unproved = false;
            let old = self.current.replace(renewal.parcel);
            self.obsolete
                .extend(old.map(|old| parcel_name(old.generation)));
            self.forget_obsolete(manager, now);
            let before = std::mem::replace(&mut self.standing, Standing::Kept);
            return (before != Standing::Kept).then_some(News::Kept);
        }
        // It may have got there after all, and would hold connections that are long over.
        manager.unstore(&parcel_name(renewal.parcel.generation), now);
        if exhausted {
            return match self.standing {
                Standing::Asking => self.start_over(manager, now),
                _ => {
                    let error = io::Error::from_raw_os_error(libc::ETOOMANYREFS);
                    Some(News::NotRenewed(error))
                }
            };
        }
        let why = if answered {
            NO_ROOM
        } else {
            "the service manager does not answer (BARRIER=1)"
        };
        if self.standing == Standing::Asking {
            self.ask_again = (!answered).then_some(now + ASK_AGAIN);
            let grave = !answered || self.kept > 0;
            return self.refuse(why.into(), grave);
        }
        self.renew_after = Some(now + ANSWER);
        Some(News::NotRenewed(io::Error::other(why)))
    }

    fn refuse(&mut self, why: String, grave: bool) -> Option<News> {
        self.unpacked.replace(Vec::new());
        self.standing = Standing::Refused(why.clone());
        Some(News::Refused { why, grave })
    }

    fn forget_obsolete(&mut self, manager: &mut Manager, now: Tick) {
        self.unseen = false;
        for name in std::mem::take(&mut self.obsolete) {
            manager.unstore(&name, now);
        }
    }
}

/// Whether there is no room in flight.
pub(crate) fn is_exhausted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ETOOMANYREFS)
}
