//! A new configuration for a server that goes on serving.

use super::Server;
use super::listener::State;
use crate::config::{Config, Options};
use crate::system::events::Event;
use crate::system::socket;

impl Server {
    /// Reads the configuration again.  A wrong one changes nothing.
    pub(super) fn reload(&mut self) {
        self.manager.reloading(self.now);
        match self.origin.load() {
            Ok(new) => {
                // Against what is in effect, not against the last file.
                let mut restart = self.started.needs_restart(&new);
                restart.extend(self.config.cannot_undo(&new));
                self.log.tell(Event::Reloaded {
                    read: new.read.clone(),
                    restart,
                });
                self.adopt(new);
                self.stale = false;
            }
            Err(error) => {
                self.log.tell(Event::ReloadFailed(error.to_string()));
                self.stale = true;
            }
        }
        let status = self.status();
        self.manager.reloaded(&status, self.now);
    }

    fn adopt(&mut self, new: Config) {
        self.log.set_level(new.log.level);
        self.fold.set_rate(new.log.connection_rate);
        self.shard.set_limits(new.limits.clone());
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            let asked = new.options_for(&listener.name).clone();
            let options = if listener.passed {
                asked
            } else {
                asked.over(Options::built_in())
            };
            if options == listener.options {
                continue;
            }
            listener.options = options;
            // Handshakes that completed before have the old ones.
            listener.fresh = true;
            if listener.state == State::Armed {
                listener.state = State::Ready;
            }
            if let Some(refused) = listener
                .socket()
                .map(|socket| socket::apply(&socket, &listener.options))
            {
                for refused in refused {
                    let listener = self.listeners[index].name.clone();
                    self.log.tell(Event::Option { listener, refused });
                }
            }
        }
        self.config = new;
        self.size_up();
        for listener in &mut self.listeners {
            listener.vacancy();
        }
    }

    /// Works out how many connections there may be.
    pub(super) fn size_up(&mut self) {
        let most = self.config.connections(self.descriptors);
        if most > self.descriptors {
            self.log.tell(Event::Clamped {
                asked: most,
                effective: self.descriptors,
            });
        }
        self.max_connections = most.min(self.descriptors);
        self.per_source = self.config.per_source.most(self.max_connections);
    }
}
