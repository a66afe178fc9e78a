//! What the server tells of itself: to the manager in a line, to the log in events.

use super::Server;
use super::lifecycle::Life;
use super::listener::{Listener, State};
use crate::echo::counters::Counters;
use crate::system::events::Event;
use crate::system::socket::size;

/// Listeners of which the status tells the places.
const FEW: usize = 4;

impl Server {
    /// Tells the counters, to the log and to the manager.
    pub(super) fn report(&mut self) {
        let loops = self.crew.hold(&mut self.own);
        let connections = loops.iter().flat_map(|worker| worker.shard.connections());
        let owed = connections
            .map(|(_, _, connection)| connection.owed())
            .sum();
        drop(loops);
        let counters = self.counters();
        let queues = self.listeners.iter().filter_map(Listener::queue).collect();
        let refused = self.refused;
        let status = format!(
            "{}; accepted {}, refused {refused}, received {}, sent {}, owed {}",
            self.status(),
            counters.accepted,
            size(counters.received),
            size(counters.sent),
            size(owed)
        );
        self.log.tell(Event::Counters {
            counters,
            refused,
            owed,
            queues,
        });
        self.manager.report(&status, self.now);
    }

    /// Where the listeners are, with the real ports.
    pub(super) fn whereabouts(&self) -> String {
        let places: Vec<String> = self
            .listeners
            .iter()
            .map(|listener| listener.local.to_string())
            .collect();
        places.join(" ")
    }

    /// One line for the manager.
    pub(super) fn status(&mut self) -> String {
        let counters = self.counters();
        let (listeners, open) = (self.listeners.len(), counters.open());
        let places = if (1..=FEW).contains(&listeners) {
            format!("; on {}", self.whereabouts())
        } else {
            String::new()
        };
        format!(
            "{}{listeners} listener{}, {open} connection{}, {} echoed{}{places}{}",
            match self.life {
                Life::Serving => "",
                Life::HandingOver { .. } => "handing over: ",
                Life::Leaving { .. } | Life::Over => "stopping: ",
            },
            if listeners == 1 { "" } else { "s" },
            if open == 1 { "" } else { "s" },
            size(counters.sent),
            if self.stale {
                "; the last reload failed, the old configuration is in effect"
            } else if self
                .listeners
                .iter()
                .any(|listener| listener.state == State::Full)
            {
                "; full, callers wait"
            } else {
                ""
            },
            match self.life {
                // They end.
                Life::Leaving { .. } => String::new(),
                _ => self.keeper.standing().status(self.keeper.kept()),
            }
        )
    }

    /// The totals over all loops.
    pub(super) fn counters(&mut self) -> Counters {
        let loops = self.crew.hold(&mut self.own);
        loops.iter().map(|worker| worker.shard.counters()).sum()
    }
}
