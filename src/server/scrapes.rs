//! The requests for metrics and health: a few short exchanges of HTTP (RFC 9112) beside the echo.
//!
//! An exchange is one request and one response, after which the connection ends.  It has little time
//! and little room, and there are few of them.  A client that never finishes does not keep others out:
//! with all places taken, the oldest exchange makes room for the next client.  Each client is given a
//! turn as soon as it is accepted, so that one which has sent its request already is answered, however
//! many others wait behind it.
//!
//! What is answered is decided elsewhere: [`Scrapes::next`] returns a request, and
//! [`Scrapes::answer`] takes the response to it.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use mio::{Interest, Registry};
use slab::Slab;

use super::listener::{BURST, Listener, SHORT};
use super::metrics::Form;
use super::stream::Stream;
use super::token::EventSource;
use crate::echo::stream::Duplex;
use crate::echo::time::{MonoTime, earliest};

/// The name of a passed socket for the metrics (`FileDescriptorName=`), and of their listener.
pub(crate) const METRICS: &str = "metrics";

/// Exchanges at a time.
const MOST: usize = 8;

/// The descriptors of the listeners and of the exchanges.
pub(crate) const DESCRIPTORS: usize = MOST + 2;

/// Bytes of a request, its body not included.
const LONGEST: usize = 8 * 1024;

/// Headers of a request.
const HEADERS: usize = 64;

/// How long an exchange may take.
const SPAN: Duration = Duration::from_secs(5);

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `/metrics`, in this form.
    Metrics(Form),
    /// `/healthz`.
    Health,
    /// Another path.
    Unknown,
    /// A method that only reads is allowed, and this is another.
    Method,
    /// More than [`LONGEST`] bytes, or more than [`HEADERS`] headers.
    TooLarge,
    /// This is no request of HTTP/1.
    Malformed,
}

/// A response: its status, the value of `Content-Type`, and its body.
#[derive(Debug)]
pub(crate) struct Response {
    pub status: &'static str,
    pub content_type: &'static str,
    pub body: String,
}

impl Response {
    /// A response of a few words.
    #[must_use]
    pub(crate) fn words(status: &'static str, words: &str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{words}\n"),
        }
    }
}

/// What an exchange does next.
#[derive(Debug)]
enum State {
    /// It reads the request, of which these bytes have come.
    Reading(Vec<u8>),
    /// It waits for its response; without a body for `HEAD`.
    Asked { body: bool },
    /// It writes what is left of the response.
    Writing(Vec<u8>),
    /// It discards input until the client has closed, as a close before would turn into a reset, which
    /// destroys what is on its way.
    Ending,
}

#[derive(Debug)]
struct Exchange {
    stream: Stream,
    state: State,
    /// When it is given up.
    until: MonoTime,
    /// Its place in the order of the beginnings.
    number: u64,
    /// There may be something to do.
    ready: bool,
}

/// What became of a turn of an exchange.
enum Turn {
    /// It waits for the client.
    Waits,
    /// It has a request.
    Asks(Request),
    /// It is over.
    Over,
}

/// The listeners for metrics, and the exchanges.
#[derive(Debug, Default)]
pub(crate) struct Scrapes {
    listeners: Vec<Listener>,
    exchanges: Slab<Exchange>,
    /// Clients may wait at a listener.
    announced: bool,
    /// When a listener is tried again after a failure.
    again: Option<MonoTime>,
    /// Clients accepted in this round.
    accepted: usize,
    /// The number of the latest exchange.
    number: u64,
}

impl Scrapes {
    /// Adds a listener.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub(crate) fn add(
        &mut self,
        mut listener: Listener,
        registry: &Registry,
    ) -> std::io::Result<()> {
        listener.register(registry, EventSource::Scraper.into())?;
        self.listeners.push(listener);
        // Clients may have waited before.
        self.announced = true;
        Ok(())
    }

    /// Whether there is a listener, so that something may ask for the metrics.
    #[must_use]
    pub(crate) fn is_on(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// Records that clients wait at a listener.
    pub(crate) fn announce(&mut self) {
        self.announced = true;
    }

    /// Records that an exchange can go on; there may be none under this key.
    pub(crate) fn ready(&mut self, key: usize) {
        if let Some(exchange) = self.exchanges.get_mut(key) {
            exchange.ready = true;
        }
    }

    /// Whether there is something to do at once.
    #[must_use]
    pub(crate) fn is_due(&self) -> bool {
        self.announced || self.exchanges.iter().any(|(_, exchange)| exchange.ready)
    }

    /// When the first exchange is given up, or a listener tried again.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<MonoTime> {
        let ends = self.exchanges.iter().map(|(_, exchange)| exchange.until);
        earliest([ends.min(), self.again])
    }

    /// Begins a round: gives up the exchanges whose time is over.
    pub(crate) fn begin(&mut self, registry: &Registry, now: MonoTime) {
        self.accepted = 0;
        if self.again.take_if(|again| *again <= now).is_some() {
            self.announced = true;
        }
        let late = |(_, exchange): &(usize, &Exchange)| exchange.until <= now;
        while let Some((key, _)) = self.exchanges.iter().find(late) {
            self.end(key, registry);
        }
    }

    /// The next request, and the key of its exchange; `None`: this round has no further one.
    pub(crate) fn next(&mut self, registry: &Registry, now: MonoTime) -> Option<(usize, Request)> {
        loop {
            let mut exchanges = self.exchanges.iter();
            let ready = exchanges.find(|(_, exchange)| exchange.ready);
            let ready = ready.map(|(key, _)| key);
            let key = ready.or_else(|| self.accept(registry, now))?;
            match self.exchanges[key].turn() {
                Turn::Waits => {}
                Turn::Asks(request) => return Some((key, request)),
                Turn::Over => self.end(key, registry),
            }
        }
    }

    /// Answers a request that [`Scrapes::next`] has returned.
    pub(crate) fn answer(&mut self, key: usize, response: &Response, registry: &Registry) {
        let Some(exchange) = self.exchanges.get_mut(key) else {
            return;
        };
        let Response {
            status,
            content_type,
            body,
        } = response;
        let allow = if status.starts_with("405") {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let length = body.len();
        let mut text = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
             {allow}Connection: close\r\n\r\n"
        );
        if matches!(exchange.state, State::Asked { body: true }) {
            text.push_str(body);
        }
        exchange.state = State::Writing(text.into_bytes());
        if matches!(exchange.turn(), Turn::Over) {
            self.end(key, registry);
        }
    }

    /// Accepts a client; returns the key of its exchange.
    fn accept(&mut self, registry: &Registry, now: MonoTime) -> Option<usize> {
        if !self.announced || self.accepted >= BURST {
            return None;
        }
        let mut failed = false;
        let mut accepted = None;
        for listener in &mut self.listeners {
            match listener.accept() {
                Ok(socket) => {
                    accepted = Some(socket);
                    break;
                }
                Err(error) => failed |= error.kind() != ErrorKind::WouldBlock,
            }
        }
        let Some(socket) = accepted else {
            self.announced = false;
            self.again = failed.then_some(now + SHORT);
            return None;
        };
        self.accepted += 1;
        self.number += 1;
        if self.exchanges.len() >= MOST {
            let oldest = self.exchanges.iter().min_by_key(|(_, one)| one.number);
            if let Some(key) = oldest.map(|(key, _)| key) {
                self.end(key, registry);
            }
        }
        let key = self.exchanges.insert(Exchange {
            stream: Stream::new(socket, self.number, 0, false),
            state: State::Reading(Vec::new()),
            until: now + SPAN,
            number: self.number,
            ready: true,
        });
        let token = EventSource::Scrape(key).into();
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        // Without events it has this turn, and ends with its time.
        let _ = registry.register(&mut self.exchanges[key].stream, token, interest);
        Some(key)
    }

    fn end(&mut self, key: usize, registry: &Registry) {
        let mut exchange = self.exchanges.remove(key);
        let _ = registry.deregister(&mut exchange.stream);
    }
}

impl Exchange {
    /// Does what can be done without waiting.
    fn turn(&mut self) -> Turn {
        self.ready = false;
        loop {
            let done = match &mut self.state {
                State::Reading(_) => self.read(),
                State::Asked { .. } => return Turn::Waits,
                State::Writing(rest) => match self.stream.write(rest) {
                    Ok(count) => {
                        rest.drain(..count);
                        if rest.is_empty() {
                            let _ = self.stream.finish_write();
                            self.state = State::Ending;
                        }
                        continue;
                    }
                    Err(error) => Err(error),
                },
                State::Ending => match self.stream.read(&mut [0; 4096]) {
                    Ok(0) => return Turn::Over,
                    Ok(_) => continue,
                    Err(error) => Err(error),
                },
            };
            match done {
                Ok(Some(request)) => return Turn::Asks(request),
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Waits,
                Err(_) => return Turn::Over,
            }
        }
    }

    /// Reads a part of the request; returns the request when it is complete.
    fn read(&mut self) -> std::io::Result<Option<Request>> {
        let State::Reading(bytes) = &mut self.state else {
            return Ok(None);
        };
        let mut part = [0; 1024];
        let count = self.stream.read(&mut part)?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&part[..count]);
        let Some((request, body)) = parsed(bytes) else {
            return Ok(None);
        };
        self.state = State::Asked { body };
        Ok(Some(request))
    }
}

/// The request in these bytes, and whether its response has a body; `None`: there is more to come.
fn parsed(bytes: &[u8]) -> Option<(Request, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) if bytes.len() <= LONGEST => return None,
        Ok(httparse::Status::Complete(length)) if length <= LONGEST => {}
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Some((Request::TooLarge, true)),
        Err(_) => return Some((Request::Malformed, true)),
    }
    let method = request.method.unwrap_or_default();
    let path = request.path.unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let known = match path {
        "/metrics" => Request::Metrics(form(request.headers)),
        "/healthz" => Request::Health,
        _ => Request::Unknown,
    };
    match (method, known) {
        (_, Request::Unknown) | ("GET" | "HEAD", _) => Some((known, method != "HEAD")),
        _ => Some((Request::Method, true)),
    }
}

/// The form that the client understands: the older one, unless it names the newer one.
fn form(headers: &[httparse::Header]) -> Form {
    let accepts = |header: &httparse::Header| {
        let value = header.value.to_ascii_lowercase();
        let word = b"application/openmetrics-text";
        header.name.eq_ignore_ascii_case("accept")
            && value.windows(word.len()).any(|part| part == word)
    };
    if headers.iter().any(accepts) {
        Form::OpenMetrics
    } else {
        Form::Plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<(Request, bool)> {
        parsed(text.as_bytes())
    }

    #[test]
    fn each_request_is_what_its_path_and_its_method_say() {
        let plain = Request::Metrics(Form::Plain);
        let open = Request::Metrics(Form::OpenMetrics);
        for (text, request, body) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", plain, true),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", plain, true),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", plain, false),
            (
                "GET /metrics HTTP/1.1\r\nAccept: text/plain\r\n\r\n",
                plain,
                true,
            ),
            (
                "GET /metrics HTTP/1.1\r\nHost: a\r\naccept: Application/OpenMetrics-Text; \
                 version=1.0.0;q=0.5,text/plain;q=0.1\r\n\r\n",
                open,
                true,
            ),
            ("GET /healthz HTTP/1.1\r\n\r\n", Request::Health, true),
            ("POST /metrics HTTP/1.1\r\n\r\n", Request::Method, true),
            ("GET / HTTP/1.1\r\n\r\n", Request::Unknown, true),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", Request::Unknown, true),
            ("HEAD /x HTTP/1.1\r\n\r\n", Request::Unknown, false),
            ("hello\r\n\r\n", Request::Malformed, true),
            ("GET /metrics HTTP/2.0\r\n\r\n", Request::Malformed, true),
            ("\u{16}\u{3}\u{1}", Request::Malformed, true),
        ] {
            assert_eq!(asked(text), Some((request, body)), "{text}");
        }
    }

    #[test]
    fn a_request_is_complete_with_its_last_byte_and_has_a_limit() {
        let text = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(asked(&text[..end]), None, "{end}");
        }
        assert!(asked(text).is_some());
        let long = |length: usize| format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(length));
        assert_eq!(asked(&long(LONGEST - 100)), None);
        assert_eq!(asked(&long(LONGEST)), Some((Request::TooLarge, true)));
        assert_eq!(
            asked(&(long(LONGEST) + "\r\n\r\n")),
            Some((Request::TooLarge, true))
        );
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS + 1));
        assert_eq!(asked(&many), Some((Request::TooLarge, true)));
    }
}
