//! The totals of the service, which go on over all its processes.
//!
//! They are noted in turns in two places, each with a check: a crash may come while one of them is
//! written, and then the other is whole.

use super::arena::Arena;
use super::layout::{WORD, check, header};
use crate::echo::counters::Counters;
use crate::echo::reason::Reason;

/// Words of the totals: turn, number, refused, accepted, received, sent, then the ended ones.
const TOTALS: usize = 6 + Reason::KINDS.len();

/// What the service has done so far, over all its processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections so far, for their numbers.
    pub number: u64,
    /// Connections closed for their source's sake.
    pub refused: u64,
    /// The rest.
    pub counters: Counters,
}

impl Arena {
    /// The totals that were noted last; of two, one is always whole.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let latest = header::TOTALS
            .into_iter()
            .filter_map(|at| self.totals_at(at))
            .max_by_key(|words| words[0]);
        let Some([_, number, refused, accepted, received, sent, closed @ ..]) = latest else {
            return Totals::default();
        };
        Totals {
            number,
            refused,
            counters: Counters {
                accepted,
                received,
                sent,
                closed,
            },
        }
    }

    fn totals_at(&self, at: usize) -> Option<[u64; TOTALS]> {
        let words: [u64; TOTALS] = std::array::from_fn(|index| self.get(at + index * WORD));
        (self.get(at + TOTALS * WORD) == check(&words)).then_some(words)
    }

    /// Notes the totals.
    pub fn note(&self, totals: &Totals) {
        let turns = header::TOTALS.map(|at| self.totals_at(at).map_or(0, |words| words[0]));
        let oldest = usize::from(turns[1] < turns[0]);
        let Counters {
            accepted,
            received,
            sent,
            closed,
        } = totals.counters;
        let mut words = [0; TOTALS];
        let turn = turns[1 - oldest].wrapping_add(1);
        words[..6].copy_from_slice(&[
            turn,
            totals.number,
            totals.refused,
            accepted,
            received,
            sent,
        ]);
        words[6..].copy_from_slice(&closed);
        let at = header::TOTALS[oldest];
        for (index, word) in words.into_iter().enumerate() {
            self.set(at + index * WORD, word);
        }
        self.set(at + TOTALS * WORD, check(&words));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::layout::Geometry;
    use super::*;

    #[test]
    fn a_crash_while_they_are_noted_leaves_the_ones_before() {
        let small = Geometry { lanes: 1, seats: 1 };
        let (arena, _payloads) = Arena::create(small, 1).unwrap();
        assert_eq!(arena.totals(), Totals::default());
        let totals = |number| Totals {
            number,
            refused: 2 * number,
            ..Totals::default()
        };
        for number in 1..7 {
            arena.note(&totals(number));
            assert_eq!(arena.totals(), totals(number));
            // The next one would be written where the oldest is; half of it is.
            let place = header::TOTALS[usize::from(number % 2 == 1)];
            arena.set(place + WORD, 99);
            assert_eq!(arena.totals(), totals(number));
        }
    }
}
