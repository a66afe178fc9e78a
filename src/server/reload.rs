//! A new configuration for a server that goes on serving.

use super::Server;
use super::listener::State;
use crate::config::{Config, Options};
use crate::survival::standing::{Standing, kept};
use crate::system::events::Event;
use crate::system::lock::lock;
use crate::system::socket;

impl Server {
    /// Reads the configuration again.  A wrong one changes nothing.
    pub(super) fn reload(&mut self) {
        self.manager.reloading(self.now);
        self.spare = None;
        let loaded = self.origin.load();
        self.spare = super::spare();
        match loaded {
            Ok(new) => {
                // Against what is in effect, not against the last file.
                let mut restart = self.started.needs_restart(&new);
                restart.extend(self.config.cannot_undo(&new));
                restart.extend(self.left_as_set(&new));
                restart.sort();
                restart.dedup();
                // Where more is logged from now on, that is confirmed, too.
                self.log.set_level(self.log.level().max(new.log.level));
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

    /// Options of passed listeners that were set and are named no more: what the socket unit had
    /// said is known only to it, and the socket keeps them as long as the unit holds it.
    fn left_as_set(&self, new: &Config) -> Vec<String> {
        let mut keys = Vec::new();
        for listener in self.listeners.iter().filter(|listener| listener.passed) {
            let asked = new.options_of_passed(&listener.name);
            let kept = asked.clone().over(listener.options.clone());
            let left = asked.differ(&kept).into_iter();
            keys.extend(
                left.filter(|key| !Options::FIXED.contains(&key.as_str()))
                    .map(|key| format!("{key} of the passed socket {}", listener.name)),
            );
        }
        keys
    }

    fn adopt(&mut self, new: Config) {
        self.log.set_level(new.log.level);
        lock(&self.fold).set_rate(new.log.connection_rate);
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            worker.configure(&new);
        }
        self.keeper.set_delay(new.survival_delay);
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            let options = if listener.passed {
                new.options_of_passed(&listener.name)
            } else {
                let asked = new.options_for(&listener.name).clone();
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
        // Whose time came later than that of those behind, and now does not.
        let unkept = self.unkept_young();
        self.keeper.unpacked.replace(unkept);
        self.size_up();
        for listener in &mut self.listeners {
            listener.vacancy();
        }
    }

    /// Works out how many connections there may be.
    pub(super) fn size_up(&mut self) {
        let room = match self.keeper.standing() {
            Standing::Kept => kept(self.descriptors),
            _ => self.descriptors,
        };
        let room = room.min(self.keeper.seats());
        let most = self.config.connections(room);
        if most > self.descriptors {
            self.log.tell(Event::Clamped {
                asked: most,
                effective: self.descriptors,
            });
        }
        self.max_connections = most.min(self.descriptors).min(self.keeper.seats());
        self.per_source = self.config.per_source.most(self.max_connections);
    }
}
