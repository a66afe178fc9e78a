//! The server as it is seen from outside: what is answered to a request for metrics or health.
//!
//! A request costs the echo little.  What the workers count is read between two of their rounds, once
//! for each page and without a look at their connections; everything else is known here.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Server;
use super::listener::{Listener, State};
use super::measured::{DURATION_BOUNDS, Measured, RTT_BOUNDS};
use super::metrics::{Form, Page, family};
use super::scrapes::{Request, Response};
use crate::echo::counters::Counters;
use crate::preserve::store_state::StoreState;
use crate::sys::sockopt::accept_queue;

/// What all workers have counted, at one moment.
struct Count {
    counters: Counters,
    /// Of which belong to connections that are over.
    ended: Counters,
    measured: Measured,
    /// The longest round of each worker since the last page.
    longest: Vec<Duration>,
}

impl Server {
    /// Adds a listener for metrics, and logs it.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn add_metrics(&mut self, listener: Listener) -> std::io::Result<()> {
        self.introduce(&listener, Vec::new());
        self.pool.measure();
        self.scrapes.add(listener, self.pool.registry())
    }

    /// Answers the requests that have come.
    pub(super) fn serve_scrapes(&mut self) {
        self.scrapes.begin(self.pool.registry(), self.now);
        while let Some((key, request)) = self.scrapes.next(self.pool.registry(), self.now) {
            let response = self.response(request);
            self.scrapes.answer(key, &response, self.pool.registry());
        }
    }

    fn response(&mut self, request: Request) -> Response {
        match request {
            Request::Metrics(form) => Response {
                status: "200 OK",
                content_type: form.content_type(),
                body: self.page(form),
            },
            Request::Health if self.acceptor.health.is_ready(self.life) => {
                Response::words("200 OK", "ok")
            }
            Request::Health => Response::words(
                "503 Service Unavailable",
                self.acceptor.health.line(self.life).trim_end(),
            ),
            Request::Unknown => Response::words("404 Not Found", "there are /metrics and /healthz"),
            Request::Method => Response::words("405 Method Not Allowed", "there are GET and HEAD"),
            Request::TooLarge => Response::words(
                "431 Request Header Fields Too Large",
                "a request has 8 KiB and 64 headers at most",
            ),
            Request::Malformed => Response::words("400 Bad Request", "this is no HTTP/1"),
        }
    }

    /// Reads what the workers have counted, between two of their rounds.
    fn count(&mut self) -> Count {
        let mut count = Count {
            counters: Counters::default(),
            ended: Counters::default(),
            measured: Measured::default(),
            longest: Vec::new(),
        };
        for worker in self.pool.pause_all().iter_mut() {
            let sum = |one, other| [one, other].into_iter().sum();
            count.counters = sum(count.counters, worker.connections.counters());
            count.ended = sum(count.ended, worker.connections.snapshot());
            if let Some(measured) = &mut worker.measured {
                count.measured.add(measured);
                count.longest.push(std::mem::take(&mut measured.longest));
            }
        }
        count
    }

    /// The text of the metrics, in the order of their table.
    fn page(&mut self, form: Form) -> String {
        let Count {
            counters,
            ended,
            measured,
            longest,
        } = self.count();
        let mut page = Page::new(form);
        page.family(const { family("tcp_echo_build") })
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        let mut samples = page.family(const { family("tcp_echo_connections") });
        for (worker, open) in self.pool.load().iter().enumerate() {
            samples.sample(&[("worker", &worker.to_string())], open);
        }
        page.single(
            const { family("tcp_echo_connections_limit") },
            self.acceptor.max_connections,
        );
        page.single(
            const { family("tcp_echo_connections_accepted") },
            counters.accepted,
        );
        page.single(
            const { family("tcp_echo_connections_refused") },
            self.acceptor.refused,
        );
        let mut samples = page.family(const { family("tcp_echo_connections_ended") });
        for (reason, count) in counters.by_reason() {
            samples.sample(&[("reason", reason)], count);
        }
        let mut samples = page.family(const { family("tcp_echo_bytes") });
        samples.sample(&[("direction", "received")], counters.received);
        samples.sample(&[("direction", "sent")], counters.sent);
        // Of the open connections alone, so that what was discarded of others does not count.
        let received = counters.received - ended.received;
        let owed = received.saturating_sub(counters.sent - ended.sent);
        page.single(const { family("tcp_echo_owed_bytes") }, owed);
        self.listeners(&mut page);
        page.family(const { family("tcp_echo_connection_rtt_min_seconds") })
            .histogram(&RTT_BOUNDS, &measured.rtt);
        page.family(const { family("tcp_echo_connection_duration_seconds") })
            .histogram(&DURATION_BOUNDS, &measured.duration);
        page.single(
            const { family("tcp_echo_segments_sent") },
            measured.segments,
        );
        page.single(
            const { family("tcp_echo_segments_retransmitted") },
            measured.again,
        );
        self.preservation(&mut page);
        page.single(
            const { family("tcp_echo_log_events_dropped") },
            self.reporter.log.lost(),
        );
        let mut samples = page.family(const { family("tcp_echo_round_longest_seconds") });
        for (worker, longest) in longest.iter().enumerate() {
            samples.sample(&[("worker", &worker.to_string())], longest.as_secs_f64());
        }
        page.single(
            const { family("tcp_echo_draining") },
            u8::from(!self.acceptor.health.is_ready(self.life)),
        );
        page.single(
            const { family("process_start_time_seconds") },
            self.reporter.tally.started.as_secs_f64(),
        );
        page.single(const { family("process_cpu_seconds") }, processor_time());
        page.single(
            const { family("process_resident_memory_bytes") },
            resident_memory(),
        );
        page.finish()
    }

    fn listeners(&self, page: &mut Page) {
        let listeners = &self.acceptor.listeners;
        let queues: Vec<_> = listeners
            .iter()
            .filter_map(|listener| {
                Some((
                    label(listener, listeners),
                    accept_queue(&listener.socket()?)?,
                ))
            })
            .collect();
        let mut samples = page.family(const { family("tcp_echo_listeners") });
        let count =
            |states: fn(State) -> bool| listeners.iter().filter(|one| states(one.state)).count();
        for (state, count) in [
            (
                "accepting",
                count(|state| matches!(state, State::Armed | State::Ready)),
            ),
            (
                "paused",
                count(|state| matches!(state, State::Full | State::Short(_))),
            ),
            ("closed", count(|state| state == State::Closed)),
        ] {
            samples.sample(&[("state", state)], count);
        }
        let mut samples = page.family(const { family("tcp_echo_accept_queue") });
        for (listener, queue) in &queues {
            samples.sample(&[("listener", listener)], queue.depth);
        }
        let mut samples = page.family(const { family("tcp_echo_accept_queue_limit") });
        for (listener, queue) in &queues {
            samples.sample(&[("listener", listener)], queue.limit);
        }
        let mut samples = page.family(const { family("tcp_echo_accept_queue_drops") });
        for (listener, queue) in &queues {
            if let Some(drops) = queue.drops {
                samples.sample(&[("listener", listener)], drops);
            }
        }
    }

    fn preservation(&self, page: &mut Page) {
        let state = match self.preserver.store_state() {
            StoreState::Off | StoreState::Declined => "off",
            StoreState::Waiting | StoreState::Asking => "waiting",
            StoreState::Preserving => "preserving",
            StoreState::Refused(_) => "refused",
        };
        let mut samples = page.family(const { family("tcp_echo_preservation") });
        for possible in ["off", "waiting", "preserving", "refused"] {
            samples.sample(&[("state", possible)], u8::from(state == possible));
        }
        page.single(
            const { family("tcp_echo_connections_preserved") },
            self.preserver.preserved(),
        );
        page.single(
            const { family("tcp_echo_connections_restored") },
            self.reporter.tally.restored,
        );
        page.single(
            const { family("tcp_echo_preservation_failures") },
            self.reporter.tally.not_preserved,
        );
    }
}

/// The label of a listener: its name, and its address where another one has the same name.
fn label(listener: &Listener, all: &[Listener]) -> String {
    let alike = all.iter().filter(|other| other.name == listener.name);
    match alike.count() {
        1 => listener.name.clone(),
        _ => format!("{} {}", listener.name, listener.local),
    }
}

/// Processor time of this process in seconds (`CLOCK_PROCESS_CPUTIME_ID`, clock_gettime(2)).
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident memory of this process in bytes (proc_pid_statm(5)); 0 if it cannot be read.
fn resident_memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm");
    let pages = pages
        .ok()
        .and_then(|text| text.split(' ').nth(1)?.parse().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
