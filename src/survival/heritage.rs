//! A predecessor's connections, in their new places.
//!
//! As a rule the arena stays the same, and so does everything in it: what is owed is paid out of
//! the slot that the predecessor filled.  Only what stands in a scratch is moved, into a slot,
//! before anything is read over it.  Where the limits have changed, so that the arena has another
//! size, or where the old one is of no use, a new one takes its place.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::arena::Arena;
use super::lane::{Lane, Seat};
use super::layout::{Geometry, header, slot_at};
use super::parcel::Parcel;
use super::recovery::{Findings, Heir, Place, arena_name, parcel_name};
use crate::echo::backlog::{Backlog, Slot, length};
use crate::echo::tick::Tick;
use crate::system::cgroup::memory_kills;
use crate::system::memory::Region;
use crate::system::socket::end;

/// How long connections wait in the store while no start succeeds.  Their peers get no answer
/// meanwhile.
pub const UNSERVED: Duration = Duration::from_secs(60);

/// A connection of a predecessor, in its new place.
#[derive(Debug)]
pub struct Adopted {
    /// The socket and what is known of it.
    pub heir: Heir,
    /// What it is owed.
    pub backlog: Option<Backlog>,
    /// The lane of the loop that it goes on in.
    pub lane: usize,
    /// Where it is noted there.
    pub seat: Seat,
}

/// What this process begins with.
#[derive(Debug)]
pub struct Heritage {
    /// The arena.
    pub(super) arena: Arc<Arena>,
    /// Whether the manager has not got it yet.
    pub(super) fresh: bool,
    /// The one that it has, in that case.
    old: Option<Arc<Arena>>,
    /// The parcel, if one can be used on.
    pub(super) parcel: Option<Parcel>,
    /// Names in the store that are of no more use.
    pub(super) obsolete: BTreeSet<String>,
    /// Whether these hold connections that nobody has seen, and that would hang.
    pub(super) unseen: bool,
    /// The highest number in a name.
    pub(super) latest: u64,
    /// The connections that go on.
    pub adopted: Vec<Adopted>,
}

impl Heritage {
    /// Makes a beginning of what was found; returns it with the lanes of the loops.
    ///
    /// # Errors
    /// No memory can be mapped.
    pub fn settle(findings: &mut Findings, geometry: Geometry) -> io::Result<(Self, Vec<Lane>)> {
        let heirs = std::mem::take(&mut findings.heirs);
        let mut latest = findings.generation;
        let mut fresh = false;
        let mut left = None;
        let (arena, (lanes, adopted, homeless)) = match findings.arena.take() {
            Some((arena, payloads)) if findings.ruin.is_none() && arena.geometry() == geometry => {
                let settled = stay(&arena, payloads, heirs, findings.short);
                (arena, settled)
            }
            found => {
                fresh = true;
                latest += 1;
                let created = Arena::create(geometry, latest);
                let (arena, payloads) = created.inspect_err(|_| {
                    if let Some((old, _)) = &found {
                        findings.restore(old);
                    }
                })?;
                let arena = Arc::new(arena);
                if let Some(kills) = memory_kills() {
                    arena.set(header::MEMORY_KILLS, kills.saturating_add(1));
                }
                let lanes = (0..).zip(payloads);
                let lanes = lanes.map(|(index, payload)| Lane::new(arena.clone(), index, payload));
                let lanes = lanes.collect();
                let settled = match &found {
                    Some((old, payloads)) => move_in(old, payloads, lanes, heirs),
                    None => (lanes, Vec::new(), 0),
                };
                if let Some((old, _)) = found {
                    arena.note(&old.totals());
                    if findings.ruin.is_none() {
                        for word in [header::STARTS, header::SUSPECT, header::SUSPECTED] {
                            arena.set(word, old.get(word));
                        }
                    }
                    left = Some(old);
                }
                (arena, settled)
            }
        };
        if homeless > 0 {
            *findings
                .lost
                .entry("there is no memory for it")
                .or_default() += homeless;
        }
        if fresh {
            // A new parcel is asked for behind the new arena: when it is held, so is the arena.
            findings.parcel = None;
        }
        let parcel = findings.parcel.take().filter(Parcel::is_held);
        let mut obsolete = std::mem::take(&mut findings.names);
        obsolete.remove(&arena_name(arena.generation()));
        if let Some(parcel) = &parcel {
            obsolete.remove(&parcel_name(parcel.generation));
        }
        let heritage = Self {
            arena,
            fresh,
            old: left,
            parcel,
            obsolete,
            unseen: findings.unseen,
            latest,
            adopted,
        };
        Ok((heritage, lanes))
    }

    /// Everything may change from now on.
    pub fn take_over(&mut self) {
        self.arena.set(header::FAILING_SINCE, 0);
        if let Some(old) = self.old.take() {
            // Should a process find it again, nothing in it is what anybody is owed.
            old.disown();
        }
    }

    /// The start has failed before a connection was served: the next one finds everything as this one
    /// did, but for the connections that had no place.  That was no crash.  When no start has succeeded
    /// for [`UNSERVED`], the connections are ended, and their number is returned: what is in the store
    /// is to be removed then.
    pub fn start_failed(&mut self, findings: &Findings, now: Tick) -> Option<usize> {
        let arena = self.old.as_ref().unwrap_or(&self.arena);
        findings.restore(arena);
        let since = match arena.get(header::FAILING_SINCE) {
            0 => now,
            since => Tick::from_micros(since),
        };
        arena.set(header::FAILING_SINCE, since.as_micros());
        if now < since + UNSERVED {
            return None;
        }
        for Adopted { heir, backlog, .. } in &self.adopted {
            end(&heir.socket, backlog.is_some());
        }
        Some(self.adopted.len())
    }
}

/// The lanes, who has a place in them, and how many have none.
type Settled = (Vec<Lane>, Vec<Adopted>, usize);

/// Everybody stays where they are; what stands in a scratch gets a slot.
fn stay(arena: &Arc<Arena>, payloads: Vec<Region>, heirs: Vec<Heir>, short: bool) -> Settled {
    let seats: BTreeSet<(usize, u32)> = heirs.iter().map(|heir| (heir.lane, heir.seat)).collect();
    let slots: BTreeSet<(usize, u32)> = heirs
        .iter()
        .filter_map(|heir| match heir.owed {
            Some((_, Place::Slot(slot, _))) => Some((heir.lane, u32::try_from(slot).ok()?)),
            _ => None,
        })
        .collect();
    let lanes = (0..).zip(payloads).map(|(index, payload)| {
        Lane::resumed(
            arena.clone(),
            index,
            payload,
            short,
            |seat| seats.contains(&(index, seat)),
            |slot| slots.contains(&(index, slot)),
        )
    });
    let mut lanes: Vec<Lane> = lanes.collect();
    let mut homeless = 0;
    let adopted = heirs.into_iter().filter_map(|heir| {
        let (lane, seat) = (heir.lane, Seat::new(heir.seat)?);
        let backlog = match heir.owed {
            None => None,
            Some((count, Place::Slot(slot, ahead))) => {
                let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
                let slot = Slot {
                    index: number(slot),
                    length: length(&(0..ahead + count))?,
                };
                Some(Backlog::new(slot, number(ahead)))
            }
            Some(_) => match lift(&heir, None, &mut lanes[lane]) {
                Some(backlog) => Some(backlog),
                None => {
                    homeless += 1;
                    lanes[lane].stand(seat);
                    end(&heir.socket, heir.owed.is_some());
                    return None;
                }
            },
        };
        Some(Adopted {
            heir,
            backlog,
            lane,
            seat,
        })
    });
    let adopted = adopted.collect();
    (lanes, adopted, homeless)
}

/// Everybody moves into a new arena, where the lanes share them evenly.
fn move_in(old: &Arena, payloads: &[Region], mut lanes: Vec<Lane>, heirs: Vec<Heir>) -> Settled {
    let new = lanes[0].arena().clone();
    let before = heirs.len();
    let mut names = BTreeSet::new();
    let mut turn = (0..lanes.len()).cycle();
    let adopted: Vec<Adopted> = heirs
        .into_iter()
        .filter_map(|mut heir| {
            let name = old.name(heir.record.listener);
            let index = name.and_then(|name| new.put_name(&name, &names));
            names.extend(index);
            let record = &mut heir.record;
            record.listener = index.unwrap_or(u32::MAX);
            let number = turn.next()?;
            let lane = &mut lanes[number];
            let seat = lane.sit(record);
            let backlog = heir.owed.and_then(|_| lift(&heir, Some(payloads), lane));
            match seat {
                Some(seat) if backlog.is_some() == heir.owed.is_some() => Some(Adopted {
                    heir,
                    backlog,
                    lane: number,
                    seat,
                }),
                _ => {
                    seat.into_iter().for_each(|seat| lane.stand(seat));
                    end(&heir.socket, heir.owed.is_some());
                    None
                }
            }
        })
        .collect();
    let homeless = before - adopted.len();
    (lanes, adopted, homeless)
}

/// Copies what a connection is owed into a slot, from the payload of the lane itself or from those
/// of another arena.
fn lift(heir: &Heir, others: Option<&[Region]>, lane: &mut Lane) -> Option<Backlog> {
    let (count, place) = heir.owed?;
    let at = match place {
        Place::Slot(slot, ahead) => slot_at(slot) + ahead,
        Place::Scratch(ahead) => ahead,
    };
    let other = match others {
        Some(others) => Some(others.get(heir.lane)?),
        None => None,
    };
    let slot = lane.put(
        heir.record.cookie,
        at..at + count,
        other,
        heir.positions.sent,
    )?;
    Some(Backlog::new(slot, 0))
}
