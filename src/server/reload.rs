//! A new configuration for a server that goes on serving (SIGHUP, `systemctl reload`).
//!
//! A configuration that cannot be read, or is not valid, changes nothing.  A valid one is applied as a
//! whole, except for the keys that only a restart can change; these are logged by name.

use std::fs::File;

use super::Server;
use crate::config::keys::is_fixed;
use crate::config::{Config, Origin};
use crate::log::events::Event;
use crate::preserve::store_state::{StoreState, max_preserved};
use crate::sys::kernel::Kernel;
use crate::sys::lock::lock;

/// The configuration, and what it is read from.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The configuration in effect.
    pub config: Config,
    /// The most connections for which RLIMIT_NOFILE leaves descriptors.
    pub descriptors: usize,
    /// The settings of the kernel, as they were at the start.
    pub kernel: Kernel,
    /// Whether the last reload failed.
    pub stale: bool,
    /// The configuration of the start, of which the keys that need a restart stay in effect.
    started: Config,
    /// The file and the arguments that a reload reads again.
    origin: Origin,
    /// A descriptor that a reload frees, so that it can read the file when all others are in use.
    spare: Option<File>,
}

impl Settings {
    /// The settings of the start.
    #[must_use]
    pub(crate) fn new(config: Config, origin: Origin, descriptors: usize, kernel: Kernel) -> Self {
        Self {
            started: config.clone(),
            config,
            descriptors,
            kernel,
            stale: false,
            origin,
            spare: spare(),
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

impl Server {
    /// Reads the configuration again, and applies it if it is valid.
    pub(super) fn reload(&mut self) {
        self.manager.reloading(self.now);
        self.settings.spare = None;
        let loaded = self.settings.origin.load();
        self.settings.spare = spare();
        match loaded {
            Ok(new) => {
                // Compared with the keys in effect, which the last file need not have had.
                let mut restart = self.settings.started.needs_restart(&new);
                restart.extend(self.settings.config.cannot_undo(&new));
                restart.extend(self.left_as_set(&new));
                restart.sort();
                restart.dedup();
                // At the more verbose of the two levels, so that a change to `info` is confirmed.
                let log = &mut self.reporter.log;
                log.set_level(log.level().max(new.log.level));
                log.emit(Event::Reloaded {
                    read: new.read.clone(),
                    restart,
                });
                self.apply(new);
                self.settings.stale = false;
            }
            Err(error) => {
                self.reporter.emit(Event::ReloadFailed(error.to_string()));
                self.settings.stale = true;
            }
        }
        let status = self.status();
        self.manager.reloaded(&status, self.now);
    }

    /// The options of passed listeners that were set and that the new configuration does not name.
    /// They stay as they are: what the socket unit had set before is not known here, and the socket
    /// lasts as long as the unit holds it.
    fn left_as_set(&self, new: &Config) -> Vec<String> {
        let mut keys = Vec::new();
        let listeners = self.acceptor.listeners.iter();
        for listener in listeners.filter(|listener| listener.passed) {
            let asked = new.options_of_passed(&listener.name);
            let in_effect = asked.clone().over(listener.options.clone());
            let stale = asked.differ(&in_effect).into_iter();
            keys.extend(
                stale
                    .filter(|key| !is_fixed(key))
                    .map(|key| format!("{key} of the passed socket {}", listener.name)),
            );
        }
        keys
    }

    /// Puts a new configuration into effect.
    fn apply(&mut self, new: Config) {
        self.reporter.log.set_level(new.log.level);
        lock(&self.reporter.close_summary).set_rate(new.log.connection_rate);
        self.pool.reconfigure(&new);
        self.preserver.set_after(new.preserve_after);
        for (listener, refused) in self.acceptor.reconfigure(&new) {
            self.reporter.emit(Event::Option { listener, refused });
        }
        let after = self.settings.config.preserve_after;
        self.settings.config = new;
        if after != self.settings.config.preserve_after {
            // That changes the order of the connections that wait for it.
            self.list_waiting();
        }
        self.update_limits();
        self.acceptor.on_room();
    }

    /// Works out the limits on connections, which depend on the configuration, on RLIMIT_NOFILE, and on
    /// whether connections are preserved.
    pub(super) fn update_limits(&mut self) {
        let Settings {
            config,
            descriptors,
            ..
        } = &self.settings;
        let room = match self.preserver.store_state() {
            StoreState::Preserving => max_preserved(*descriptors),
            _ => *descriptors,
        };
        let room = room.min(self.store.records());
        let most = config.connections(room);
        if most > *descriptors {
            self.reporter.emit(Event::Clamped {
                asked: most,
                effective: *descriptors,
            });
        }
        let most = most.min(*descriptors).min(self.store.records());
        self.acceptor.max_connections = most;
        self.acceptor.per_source = config.per_source.most(most);
    }
}
