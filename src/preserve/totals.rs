//! The totals of the service, which go on over all its processes.
//!
//! The state file has two records of them, each with a check, and the older one is overwritten.  So
//! there is a valid record even if the process is killed while it writes one.

use super::layout::{TotalsRecord, check};
use super::state_file::StateFile;
use crate::echo::counters::Counters;
use crate::echo::end_reason::EndReason;
use crate::sys::memory::Word;

/// Words of a record of the totals that its check covers.
const CHECKED: usize = 6 + EndReason::ALL.len();

/// What the service has done so far, over all its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The highest number that a connection has had.
    pub number: u64,
    /// Connections refused because too many of their source network were open.
    pub refused: u64,
    /// What the workers count.
    pub counters: Counters,
}

impl TotalsRecord {
    /// The sequence number and the totals; `None`: the record is not valid.
    fn read(&self) -> Option<(u64, Totals)> {
        let sequence = self.sequence.get();
        let totals = Totals {
            number: self.number.get(),
            refused: self.refused.get(),
            counters: Counters {
                accepted: self.accepted.get(),
                received: self.received.get(),
                sent: self.sent.get(),
                closed: self.closed.each_ref().map(Word::get),
            },
        };
        let checked = check(&checked_words(sequence, &totals));
        (self.check.get() == checked).then_some((sequence, totals))
    }

    fn write(&self, sequence: u64, totals: &Totals) {
        let Counters {
            accepted,
            received,
            sent,
            closed,
        } = totals.counters;
        self.sequence.set(sequence);
        self.number.set(totals.number);
        self.refused.set(totals.refused);
        self.accepted.set(accepted);
        self.received.set(received);
        self.sent.set(sent);
        for (word, count) in self.closed.iter().zip(closed) {
            word.set(count);
        }
        self.check.set(check(&checked_words(sequence, totals)));
    }
}

/// What the check covers, in the order of the fields of [`TotalsRecord`].
fn checked_words(sequence: u64, totals: &Totals) -> [u64; CHECKED] {
    let Counters {
        accepted,
        received,
        sent,
        closed,
    } = totals.counters;
    let mut words = [0; CHECKED];
    let (first, last) = words.split_at_mut(6);
    first.copy_from_slice(&[
        sequence,
        totals.number,
        totals.refused,
        accepted,
        received,
        sent,
    ]);
    last.copy_from_slice(&closed);
    words
}

impl StateFile {
    /// The totals that were recorded last; zeros if none were.
    #[must_use]
    pub(crate) fn totals(&self) -> Totals {
        let records = self.header().totals.iter().filter_map(TotalsRecord::read);
        records
            .max_by_key(|(sequence, _)| *sequence)
            .map_or_else(Totals::default, |(_, totals)| totals)
    }

    /// Records the totals.
    pub(crate) fn record(&self, totals: &Totals) {
        let [first, second] = &self.header().totals;
        let sequence = |record: &TotalsRecord| record.read().map_or(0, |(sequence, _)| sequence);
        let (older, latest) = if sequence(second) < sequence(first) {
            (second, sequence(first))
        } else {
            (first, sequence(second))
        };
        older.write(latest.wrapping_add(1), totals);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::Geometry;
    use super::*;

    #[test]
    fn a_crash_while_totals_are_written_leaves_the_previous_ones() {
        let small = Geometry {
            partitions: 1,
            records: 1,
        };
        let (state_file, _payloads) = StateFile::create(small, 1).unwrap();
        assert_eq!(state_file.totals(), Totals::default());
        let totals = |number| Totals {
            number,
            refused: 2 * number,
            ..Totals::default()
        };
        for number in 1..7 {
            state_file.record(&totals(number));
            assert_eq!(state_file.totals(), totals(number));
            // The next record would overwrite the older one, and is half written.
            let older = &state_file.header().totals[usize::from(number % 2 == 1)];
            older.number.set(99);
            assert_eq!(state_file.totals(), totals(number));
        }
    }
}
