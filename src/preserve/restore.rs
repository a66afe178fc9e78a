//! The connections that go on get their places in the state file of this process.
//!
//! As a rule this process goes on with the state file of the previous one, and every record and slot
//! stays where it is, so the connections can be examined one after the other while others are served
//! already; pending output is written from the slot that the previous process has filled.
//! Only owed bytes that stand in a scratch are moved: they are copied into a slot before the next read
//! overwrites them.  If the file has another size than the configuration asks for, or cannot be used,
//! or has a name of a version before the first release, a new file takes its place and the connections
//! are moved into it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::crash_guard::CrashHistory;
use super::fd_queue::FdQueue;
use super::layout::{Geometry, slot_at};
use super::partition::{Partition, RecordId};
use super::recover::{
    Found, Place, Recovered, RecoveredConnection, fd_queue_name, state_file_name,
};
use super::state_file::StateFile;
use crate::echo::buffers::{BufferStore, PendingOutput, Slot, length};
use crate::echo::time::MonoTime;
use crate::sys::cgroup::memory_kills;
use crate::sys::memory::Region;
use crate::sys::sockopt::end;

/// How long connections stay in the store while no start succeeds.  Meanwhile their peers get no
/// answer.
pub(crate) const UNSERVED: Duration = Duration::from_secs(60);

/// Why a connection is closed that has no record or slot.
const NO_MEMORY: &str = "there is no memory for it";

/// A connection of the previous process that goes on in this one.
#[derive(Debug)]
pub(crate) struct RestoredConnection {
    /// The socket, and what is known of it.
    pub connection: RecoveredConnection,
    /// What is owed to the peer.
    pub pending: Option<PendingOutput>,
    /// The partition of the worker that serves it.
    pub partition: usize,
    /// Its record there.
    pub record_id: RecordId,
}

impl RestoredConnection {
    /// Whether there is something to do for it as far as is known: bytes to be read or written, or an end.
    pub(crate) fn is_busy(&self) -> bool {
        let positions = &self.connection.positions;
        positions.input || positions.finished || self.pending.is_some()
    }
}

/// What this process begins with.
#[derive(Debug)]
pub(crate) struct Restored {
    /// The state file.
    pub(super) state_file: Arc<StateFile>,
    /// Whether the manager does not have the state file yet.
    pub(super) unstored: bool,
    /// The state file that the manager has in that case.
    old: Option<Arc<StateFile>>,
    /// The descriptor queue, if the one that was found can be used.
    pub(super) queue: Option<FdQueue>,
    /// Names in the store that are of no more use.
    pub(super) obsolete: BTreeSet<String>,
    /// Whether the queues under these names have connections that could not be opened.
    pub(super) unseen: bool,
    /// The highest generation in a name.
    pub(super) latest: u64,
    /// The indexes of the listeners' names that the connections use.
    pub(super) listeners: BTreeSet<u32>,
    /// The connections that have their places.
    pub placed: Vec<RestoredConnection>,
    /// The others, which get theirs one by one ([`restore_found`]).
    pub found: Vec<Found>,
}

/// The partitions of a state file, and the connections that have a place in them.
type Placed = (Vec<Partition>, Vec<RestoredConnection>);

impl Restored {
    /// Gets the state file and its partitions, one for each worker, ready for the connections that were
    /// found.  Where the state file goes on, those have their places already, and but for some they are
    /// examined as they go on ([`stay`]).  Otherwise all are examined and moved.
    ///
    /// # Errors
    /// Those of mmap(2): no state file can be made.
    pub(crate) fn new(
        recovered: &mut Recovered,
        geometry: Geometry,
    ) -> io::Result<(Self, Vec<Partition>)> {
        let mut latest = recovered.generation;
        let mut unstored = false;
        let mut old = None;
        let (state_file, (partitions, placed)) = match recovered.state_file.clone() {
            Some(state_file)
                if recovered.unusable.is_none()
                    && state_file.geometry() == geometry
                    && recovered
                        .names
                        .contains(&state_file_name(state_file.generation())) =>
            {
                let placed = stay(&state_file, recovered);
                (state_file, placed)
            }
            found => {
                unstored = true;
                latest += 1;
                let (state_file, partitions) = create(geometry, latest).inspect_err(|_| {
                    if let Some(found) = &found {
                        recovered.undo(found);
                    }
                })?;
                let placed = match found {
                    None => (partitions, Vec::new()),
                    Some(found) => {
                        let placed = move_all(&found, recovered, partitions);
                        state_file.record(&found.totals());
                        state_file.set_drained(found.is_drained());
                        if recovered.unusable.is_none() {
                            CrashHistory::read(&found).write(&state_file);
                        }
                        old = Some(found);
                        placed
                    }
                };
                (state_file, placed)
            }
        };
        // A new state file needs a new queue: that the manager holds the queue shows that it holds the
        // file as well, which was sent before it.
        let queue = recovered.fd_queue.take();
        let queue = queue.filter(|queue| !unstored && queue.is_held());
        let mut obsolete = std::mem::take(&mut recovered.names);
        obsolete.remove(&state_file_name(state_file.generation()));
        if let Some(queue) = &queue {
            obsolete.remove(&fd_queue_name(queue.generation));
        }
        let restored = Self {
            state_file,
            unstored,
            old,
            queue,
            obsolete,
            unseen: recovered.unseen,
            latest,
            listeners: std::mem::take(&mut recovered.listeners),
            placed,
            found: std::mem::take(&mut recovered.found),
        };
        Ok((restored, partitions))
    }

    /// The start has succeeded: from now on this process changes what the previous one has left.
    pub(crate) fn take_over(&mut self) {
        self.state_file.header().failing_since.set(0);
        if let Some(old) = self.old.take() {
            // A later process that finds the old file must not send stale bytes from it.
            old.clear_owners();
        }
    }

    /// The start has failed before any connection was served, which is not a crash.  The next process
    /// finds everything as this one did, but for connections that were examined and could not go on.  If
    /// no start has succeeded for [`UNSERVED`], all connections are closed; their number is returned, and
    /// the caller has to empty the store.
    pub(crate) fn start_failed(&mut self, recovered: &Recovered, now: MonoTime) -> Option<usize> {
        let state_file = self.old.as_ref().unwrap_or(&self.state_file);
        recovered.undo(state_file);
        let failing_since = &state_file.header().failing_since;
        let since = match failing_since.get() {
            0 => now,
            since => MonoTime::from_micros(since),
        };
        failing_since.set(since.as_micros());
        if now < since + UNSERVED {
            return None;
        }
        for placed in &self.placed {
            end(&placed.connection.socket, placed.pending.is_some());
        }
        for found in &self.found {
            recovered.close(found);
        }
        Some(self.preserved())
    }

    /// How many connections may go on.
    #[must_use]
    pub(crate) fn preserved(&self) -> usize {
        self.placed.len() + self.found.len()
    }
}

/// Makes a new state file; returns it with its partitions.
fn create(geometry: Geometry, generation: u64) -> io::Result<(Arc<StateFile>, Vec<Partition>)> {
    let (state_file, payloads) = StateFile::create(geometry, generation)?;
    let state_file = Arc::new(state_file);
    if let Some(kills) = memory_kills() {
        let memory_kills = &state_file.header().memory_kills;
        memory_kills.set(kills.saturating_add(1));
    }
    let partitions = (0..).zip(payloads);
    let partitions =
        partitions.map(|(index, payload)| Partition::new(state_file.clone(), index, payload));
    let partitions = partitions.collect();
    Ok((state_file, partitions))
}

/// Leaves the records and slots of the connections that were found where they are.  Those whose bytes may
/// stand in a scratch are restored at once, as the next read overwrites it; and where memory is short those
/// with slots, whose memory is given back before others need some.
fn stay(state_file: &Arc<StateFile>, recovered: &mut Recovered) -> Placed {
    let payloads = std::mem::take(&mut recovered.payloads);
    // For each partition, which of its records and slots are used.
    let mut used: Vec<[Vec<bool>; 2]> = (0..payloads.len())
        .map(|index| {
            let (records, slots) = state_file.used(index);
            [vec![false; records], vec![false; slots]]
        })
        .collect();
    for found in &recovered.found {
        let [records, slots] = &mut used[found.partition];
        records[found.record_id as usize] = true;
        if let Some(slot) = recovered.slots.get(&found.cookie) {
            slots[*slot as usize] = true;
        }
    }
    let mut partitions: Vec<Partition> = (0..)
        .zip(payloads.into_iter().zip(used))
        .map(|(index, (payload, [records, slots]))| {
            Partition::resumed(
                state_file.clone(),
                index,
                payload,
                recovered.short,
                |record| records[record as usize],
                |slot| slots[slot as usize],
            )
        })
        .collect();
    let (short, slots) = (recovered.short, &recovered.slots);
    let is_at_once = |found: &Found| {
        let scratch = &state_file.partition_head(found.partition).scratch;
        scratch.owner.get() == found.cookie || (short && slots.contains_key(&found.cookie))
    };
    let found = std::mem::take(&mut recovered.found).into_iter();
    let (at_once, later): (Vec<_>, Vec<_>) = found.partition(is_at_once);
    recovered.found = later;
    let mut placed = Vec::new();
    for found in at_once {
        let partition = &mut partitions[found.partition];
        placed.extend(restore_found(recovered, found, partition));
    }
    (partitions, placed)
}

/// Examines a connection whose record and slot are in `partition`.  `None`: it cannot go on, was closed,
/// and is counted in [`Recovered::lost`].
pub(crate) fn restore_found(
    recovered: &mut Recovered,
    found: Found,
    partition: &mut Partition,
) -> Option<RestoredConnection> {
    let (cookie, index, record_id) = (found.cookie, found.partition, found.record_id);
    let record_id = RecordId::new(record_id);
    let examined = recovered.examine(found);
    let in_slot = match examined.as_ref().and_then(|connection| connection.owed) {
        Some((count, Place::Slot(slot, ahead))) => pending_in_slot(slot, ahead, count),
        _ => None,
    };
    // What a slot has may have been written, or be of no use any more.
    let slot = recovered.slots.remove(&cookie);
    if let (Some(slot), None) = (slot, &in_slot) {
        partition.release(slot, recovered.short);
    }
    let Some(connection) = examined else {
        partition.remove_record(record_id?);
        return None;
    };
    let pending = in_slot.or_else(|| copy_to_slot(&connection, None, partition));
    place(recovered, connection, pending, index, partition, record_id)
}

/// Moves the connections into a new state file, in which every partition gets as many.
fn move_all(old: &StateFile, recovered: &mut Recovered, mut partitions: Vec<Partition>) -> Placed {
    let payloads = std::mem::take(&mut recovered.payloads);
    let new = partitions[0].state_file().clone();
    let count = partitions.len();
    let mut names = BTreeSet::new();
    let found = std::mem::take(&mut recovered.found).into_iter();
    let found: Vec<_> = found.filter_map(|found| recovered.examine(found)).collect();
    let mut placed = Vec::with_capacity(found.len());
    for (number, mut connection) in found.into_iter().enumerate() {
        let name = old.name(connection.record.listener);
        let listener = name.and_then(|name| new.put_name(&name, &names));
        names.extend(listener);
        connection.record.listener = listener.unwrap_or(u32::MAX);
        let index = number % count;
        let partition = &mut partitions[index];
        let record_id = partition.add_record(&connection.record);
        let pending = copy_to_slot(&connection, Some(&payloads), partition);
        placed.extend(place(
            recovered, connection, pending, index, partition, record_id,
        ));
    }
    recovered.listeners = names;
    (partitions, placed)
}

/// A connection in its place.  If it has no record, or no slot for what is owed, it is closed, and counted
/// in [`Recovered::lost`].
fn place(
    recovered: &mut Recovered,
    connection: RecoveredConnection,
    pending: Option<PendingOutput>,
    index: usize,
    partition: &mut Partition,
    record_id: Option<RecordId>,
) -> Option<RestoredConnection> {
    match record_id {
        Some(record_id) if pending.is_some() == connection.owed.is_some() => {
            Some(RestoredConnection {
                connection,
                pending,
                partition: index,
                record_id,
            })
        }
        _ => {
            if let Some(record_id) = record_id {
                partition.remove_record(record_id);
            }
            if let Some(pending) = pending {
                partition.free(pending.into_slot());
            }
            end(&connection.socket, connection.owed.is_some());
            *recovered.lost.entry(NO_MEMORY).or_default() += 1;
            None
        }
    }
}

/// The `count` owed bytes that a slot has behind its first `ahead` bytes.
fn pending_in_slot(slot: usize, ahead: usize, count: usize) -> Option<PendingOutput> {
    let slot = Slot {
        index: u32::try_from(slot).ok()?,
        length: length(&(0..ahead + count))?,
    };
    Some(PendingOutput::new(slot, u32::try_from(ahead).ok()?))
}

/// Copies the bytes that are owed to a connection into a slot of `partition`: from the payload of that
/// partition itself, or from the `payloads` of another state file.  `None`: there are none, or there is
/// no slot.
fn copy_to_slot(
    connection: &RecoveredConnection,
    payloads: Option<&[Region]>,
    partition: &mut Partition,
) -> Option<PendingOutput> {
    let (count, place) = connection.owed?;
    let at = match place {
        Place::Slot(slot, ahead) => slot_at(slot) + ahead,
        Place::Scratch(ahead) => ahead,
    };
    let payload = match payloads {
        Some(payloads) => Some(payloads.get(connection.partition)?),
        None => None,
    };
    let slot = partition.put(
        connection.record.cookie,
        at..at + count,
        payload,
        connection.positions.sent,
    )?;
    Some(PendingOutput::new(slot, 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::state_file::{Before, Record};
    use super::*;

    const SMALL: Geometry = Geometry {
        partitions: 1,
        records: 4,
    };

    /// What is owed to each connection: the bytes of its stream from position 3 on.
    const OWED: &[u8] = b"34567";

    /// Two connections as recovery finds them after a hand-over, with the state file stored under `name`,
    /// and their peers.  Bytes are owed to both, to the first from a slot and to the second from the
    /// scratch.
    fn recovered(name: &str) -> (Recovered, Vec<UnixStream>) {
        let (state_file, mut payloads) = StateFile::create(SMALL, 1).unwrap();
        let state_file = Arc::new(state_file);
        let listener = state_file.put_name("one", &BTreeSet::new()).unwrap();
        let mut partition = Partition::new(state_file, 0, payloads.remove(0));
        let mut recovered = Recovered::default();
        recovered.generation = 1;
        let mut peers = Vec::new();
        for (cookie, is_in_slot) in [(70, true), (71, false)] {
            let (socket, peer) = UnixStream::pair().unwrap();
            peers.push(peer);
            let record = Record {
                cookie,
                began: 1,
                number: 2,
                listener,
                before: Before::Nothing,
                received: 8,
                sent: 3,
            };
            let record_id = partition.add_record(&record).unwrap().index();
            partition.begin_read(cookie, 0);
            partition.scratch()[..8].copy_from_slice(b"01234567");
            if is_in_slot {
                let _ = partition.keep(cookie, 0..8, 0).unwrap();
            }
            recovered.found.push(Found {
                socket: socket.into(),
                cookie,
                partition: 0,
                record_id,
                is_busy: true,
            });
        }
        recovered.planned = true;
        recovered.slots.insert(70, 0);
        let file = partition.state_file().file().unwrap();
        let (state_file, payloads) = StateFile::open(file.try_clone_to_owned().unwrap()).unwrap();
        recovered.state_file = Some(Arc::new(state_file));
        recovered.payloads = payloads;
        recovered.names.insert(name.into());
        (recovered, peers)
    }

    /// What is owed to each connection, as bytes.
    fn owed(restored: &Restored, partitions: &[Partition]) -> Vec<Vec<u8>> {
        let placed = restored.placed.iter();
        placed
            .map(|restored| {
                let pending = restored.pending.as_ref().unwrap();
                pending.bytes(&partitions[restored.partition]).to_vec()
            })
            .collect()
    }

    #[test]
    fn a_state_file_of_the_right_size_goes_on() {
        let (mut recovered, _peers) = recovered(&state_file_name(1));
        let (mut restored, mut partitions) = Restored::new(&mut recovered, SMALL).unwrap();
        assert_eq!(restored.state_file.generation(), 1);
        assert!(!restored.unstored && restored.obsolete.is_empty());
        assert_eq!((restored.placed.len(), restored.found.len()), (1, 1));
        // The next read overwrites the scratch.
        partitions[0].scratch().fill(0);
        let found = restored.found.remove(0);
        let found = restore_found(&mut recovered, found, &mut partitions[0]);
        restored.placed.extend(found);
        assert_eq!(owed(&restored, &partitions), [OWED, OWED]);
        assert!(recovered.lost.is_empty());
    }

    #[test]
    fn a_connection_that_cannot_go_on_leaves_its_record_and_its_slot_free() {
        let (mut recovered, mut peers) = recovered(&state_file_name(1));
        let (mut restored, mut partitions) = Restored::new(&mut recovered, SMALL).unwrap();
        // Its bytes are nowhere.
        restored.state_file.mark(0, 0).begin.set(0);
        let found = restored.found.remove(0);
        let (cookie, record_id) = (found.cookie, found.record_id);
        let partition = &mut partitions[0];
        assert!(restore_found(&mut recovered, found, partition).is_none());
        assert_eq!(recovered.lost.values().sum::<usize>(), 1);
        assert_eq!(peers[0].read(&mut [0]).unwrap(), 0);
        assert_eq!(restored.state_file.mark(0, 0).owner.get(), 0);
        let record = restored.placed[0].connection.record;
        let record = Record { cookie, ..record };
        let added = partition.add_record(&record).unwrap();
        assert_eq!(added.index(), record_id);
        let slot = partition.put(cookie, 0..1, None, 0).unwrap();
        assert_eq!(slot.index, 0);
    }

    #[test]
    fn connections_move_from_a_file_of_another_size_or_a_former_name() {
        let larger = Geometry {
            partitions: 2,
            records: 2,
        };
        for (name, geometry) in [
            (state_file_name(1).as_str(), larger),
            ("survival-arena-1", SMALL),
        ] {
            let (mut recovered, _peers) = recovered(name);
            let (mut restored, partitions) = Restored::new(&mut recovered, geometry).unwrap();
            let state_file = restored.state_file.clone();
            assert_eq!(
                (state_file.generation(), state_file.geometry()),
                (2, geometry)
            );
            assert!(restored.unstored && restored.queue.is_none());
            assert_eq!(restored.obsolete, BTreeSet::from([name.to_owned()]));
            assert_eq!(owed(&restored, &partitions), [OWED, OWED]);
            for restored in &restored.placed {
                let index = restored.record_id.index() as usize;
                let found = state_file.read_record(restored.partition, index).unwrap();
                assert_eq!(found, restored.connection.record);
                assert_eq!(state_file.name(found.listener).as_deref(), Some("one"));
            }
            let last = &restored.placed[1];
            assert_eq!(last.partition, geometry.partitions - 1);
            // The bytes in the old file belong to no connection any more.
            let old = restored.old.clone().unwrap();
            assert_eq!(old.mark(0, 0).find(70, 3, 5), Some(3));
            restored.take_over();
            assert_eq!(old.mark(0, 0).find(70, 3, 5), None);
            assert!(recovered.lost.is_empty());
        }
    }

    #[test]
    fn a_connection_without_a_place_is_closed_and_counted() {
        let (mut recovered, mut peers) = recovered(&state_file_name(1));
        let smaller = Geometry {
            partitions: 1,
            records: 1,
        };
        let (restored, partitions) = Restored::new(&mut recovered, smaller).unwrap();
        assert_eq!(owed(&restored, &partitions), [OWED]);
        assert_eq!(recovered.lost[NO_MEMORY], 1);
        assert_eq!(peers[1].read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn connections_are_closed_when_no_start_succeeds_for_a_minute() {
        let (mut recovered, mut peers) = recovered(&state_file_name(1));
        let (mut restored, _partitions) = Restored::new(&mut recovered, SMALL).unwrap();
        let start = MonoTime::new(1 << 60);
        for seconds in [0, 30, 59] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(restored.start_failed(&recovered, now), None);
            // The next process finds the hand-over again.
            assert!(restored.state_file.take_over());
        }
        peers[0].set_nonblocking(true).unwrap();
        let error = peers[0].read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let now = start + UNSERVED;
        assert_eq!(restored.start_failed(&recovered, now), Some(2));
        assert_eq!(peers[0].read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_start_that_succeeds_begins_the_minute_anew() {
        let (mut recovered, _peers) = recovered(&state_file_name(1));
        let (mut restored, _partitions) = Restored::new(&mut recovered, SMALL).unwrap();
        let start = MonoTime::new(1 << 60);
        assert_eq!(restored.start_failed(&recovered, start), None);
        restored.take_over();
        assert_eq!(restored.start_failed(&recovered, start + UNSERVED), None);
    }
}
