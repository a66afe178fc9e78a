//! What the server tells of itself: to the manager in a line, to the log in events.

use super::Server;
use super::lifecycle::Life;
use super::listener::{Listener, State};
use super::stream::Stream;
use crate::system::events::{Endpoint, Event, Who};
use crate::system::socket::size;

/// Listeners of which the status tells the places.
const FEW: usize = 4;

impl Server {
    /// Tells the counters, to the log and to the manager.
    pub(super) fn report(&mut self) {
        let owed = self
            .shard
            .connections()
            .map(|(_, _, connection)| connection.owed())
            .sum();
        let counters = self.shard.counters();
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
    pub(super) fn places(&self) -> String {
        let places: Vec<String> = self
            .listeners
            .iter()
            .map(|listener| listener.local.to_string())
            .collect();
        places.join(" ")
    }

    /// One line for the manager.
    pub(super) fn status(&self) -> String {
        let counters = self.shard.counters();
        let (listeners, open) = (self.listeners.len(), counters.open());
        let places = if (1..=FEW).contains(&listeners) {
            format!("; on {}", self.places())
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

    /// Who has a connection, for an event.
    pub(super) fn who(&self, stream: &Stream) -> Who {
        Who {
            number: stream.number,
            peer: stream.peer(),
            local: stream.local().unwrap_or(Endpoint::Unix(None)),
            listener: self.names[stream.listener as usize].clone(),
        }
    }

    /// Tells a turn.
    pub(super) fn trace(&mut self, key: usize, received: u64, sent: u64) {
        let Some(connection) = self.shard.connection(key) else {
            return;
        };
        let owed = connection.owed();
        let number = self.shard.stream_mut(key).number;
        let most = self.config.log.payload_preview;
        let preview = (most > 0 && received > 0).then(|| {
            let read = self.shard.last_read();
            read[..read.len().min(most)].escape_ascii().to_string()
        });
        self.log.tell(Event::Turned {
            number,
            received,
            sent,
            owed,
            preview,
        });
    }
}
