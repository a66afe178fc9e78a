//! One connection of a ping: what is under way on it, and what came back.
//!
//! A message is a piece of the stream (`client::pattern`), so that its echo is known by its
//! place: it is back when the last of its bytes is.

use std::collections::VecDeque;
use std::time::Duration;

use crate::client::pattern::{Checker, Stream, Wrong};
use crate::client::statistics::nanos;

/// A message whose echo is not back.
#[derive(Clone, Copy, Debug)]
struct Message {
    number: u64,
    /// Where it ends in the stream.
    end: u64,
    /// In nanoseconds, as its beginning.
    due: u64,
    begun: u64,
    /// When the kernel sent the last of it, by the wall clock.
    stamp: Option<Duration>,
}

/// An echo that is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// The number of its message in the schedule.
    pub number: u64,
    /// From when the message was sent, in nanoseconds, as all times here.
    pub(super) rtt: u64,
    /// From when the schedule wanted it sent.
    pub(super) wait: u64,
    /// From when the kernel sent it to when the kernel received its echo.
    pub(super) wire: Option<u64>,
    /// The round trip of the echo before it on this connection.
    pub(super) before: Option<u64>,
}

impl Echo {
    /// The round trip, from when its message was sent.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        Duration::from_nanos(self.rtt)
    }

    /// The round trip, from when the schedule wanted its message sent.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::from_nanos(self.wait)
    }

    /// From when the kernel sent it to when the kernel received its echo.
    #[must_use]
    pub fn wire(&self) -> Option<Duration> {
        self.wire.map(Duration::from_nanos)
    }
}

/// What is under way, and what came back.
#[derive(Debug)]
pub(super) struct Conversation {
    stream: Stream,
    checker: Checker,
    size: u64,
    /// Bytes of all messages that were begun.
    begun: u64,
    /// Bytes that the kernel took.
    written: u64,
    flight: VecDeque<Message>,
    /// The last round trip, in nanoseconds.
    last: Option<u64>,
}

impl Conversation {
    pub(super) fn new(stream: Stream, size: usize) -> Self {
        Self {
            stream,
            checker: Checker::new(stream),
            size: size as u64,
            begun: 0,
            written: 0,
            flight: VecDeque::new(),
            last: None,
        }
    }

    /// Messages under way.
    pub(super) fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// When the oldest message under way was begun.
    pub(super) fn oldest(&self) -> Option<(u64, Duration)> {
        self.flight
            .front()
            .map(|message| (message.number, Duration::from_nanos(message.begun)))
    }

    /// Whether an echo ever came.
    pub(super) fn has_talked(&self) -> bool {
        self.last.is_some()
    }

    /// Begins a message that was due at `due`.
    pub(super) fn begin(&mut self, number: u64, due: Duration, now: Duration) {
        self.begun += self.size;
        self.flight.push_back(Message {
            number,
            end: self.begun,
            due: nanos(due),
            begun: nanos(now),
            stamp: None,
        });
    }

    /// Whether the kernel took all messages that were begun.
    pub(super) fn is_written(&self) -> bool {
        self.written == self.begun
    }

    /// The next bytes to write, at most to the end of a message; empty when nothing is to be written.
    pub(super) fn piece<'a>(&self, buffer: &'a mut [u8]) -> &'a [u8] {
        let rest = match self.begun - self.written {
            // The last message, without a division.
            rest if rest <= self.size => rest,
            rest => rest - (rest - 1) / self.size * self.size,
        };
        let most = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let piece = &mut buffer[..most];
        self.stream.fill(self.written, piece);
        piece
    }

    /// The kernel took so many bytes.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
    }

    /// Bytes that came back, right or wrong.
    pub(super) fn received(&self) -> u64 {
        self.checker.received()
    }

    /// The kernel sent the byte at this offset, modulo 2^32, at this time of the wall clock.
    pub(super) fn stamped(&mut self, offset: u32, time: Duration) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the kernel's number is so short"
        )]
        let last = |message: &Message| (message.end - 1) as u32;
        let message = self
            .flight
            .iter_mut()
            .rev()
            .find(|message| last(message) == offset);
        if let Some(message) = message {
            message.stamp = Some(time);
        }
    }

    /// Checks what came; whether all of it is right.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.checker.feed(bytes, self.written)
    }

    /// The next echo that is back as a whole, now in nanoseconds; `stamp` is when the last of it
    /// arrived, by the wall clock.
    pub(super) fn echo(&mut self, now: u64, stamp: Option<Duration>) -> Option<Echo> {
        let message = *self.flight.front()?;
        if message.end > self.checker.received() {
            return None;
        }
        self.flight.pop_front();
        let rtt = now.saturating_sub(message.begun);
        // The wall clock may be set between the two.
        let wire = stamp
            .and_then(|back| back.checked_sub(message.stamp?))
            .map(nanos)
            .filter(|wire| *wire <= rtt);
        Some(Echo {
            number: message.number,
            rtt,
            wait: now.saturating_sub(message.due),
            wire,
            before: self.last.replace(rtt),
        })
    }

    /// No more bytes come: what was wrong, and at how many places.
    pub(super) fn finish(&mut self) -> (&[Wrong], u64) {
        self.checker.finish();
        (self.checker.wrong(), self.checker.count())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn written(conversation: &mut Conversation, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let piece = conversation.piece(&mut buffer[..most]);
            if piece.is_empty() {
                return all;
            }
            all.extend(piece);
            let count = piece.len();
            conversation.wrote(count);
        }
    }

    #[test]
    fn an_echo_is_back_with_its_last_byte() {
        let mut conversation = Conversation::new(Stream::new(1, 0), 10);
        conversation.begin(0, MS, MS * 2);
        conversation.begin(1, MS * 11, MS * 11);
        let sent = written(&mut conversation, 7);
        assert_eq!(sent.len(), 20);
        assert!(conversation.feed(&sent[..9]));
        assert_eq!(conversation.echo(nanos(MS * 3), None), None);
        assert!(!conversation.has_talked());
        assert!(conversation.feed(&sent[9..]));
        let first = conversation.echo(nanos(MS * 20), None).unwrap();
        assert_eq!(
            (first.number, first.rtt(), first.wait()),
            (0, MS * 18, MS * 19)
        );
        let second = conversation.echo(nanos(MS * 20), None).unwrap();
        assert_eq!((second.number, second.rtt()), (1, MS * 9));
        assert_eq!(second.before, Some(18_000_000));
        assert_eq!(conversation.echo(nanos(MS * 20), None), None);
        assert_eq!(conversation.in_flight(), 0);
    }

    #[test]
    fn the_kernel_s_times_belong_to_the_message_with_that_last_byte() {
        let mut conversation = Conversation::new(Stream::new(1, 0), 10);
        for number in 0..3 {
            conversation.begin(number, MS, MS);
        }
        let sent = written(&mut conversation, 100);
        let day = Duration::from_secs(86_400);
        conversation.stamped(9, day);
        conversation.stamped(19, day + MS);
        conversation.stamped(25, day + MS);
        assert!(conversation.feed(&sent));
        let mut wire = || {
            conversation
                .echo(nanos(MS * 10), Some(day + MS * 5))
                .unwrap()
                .wire()
        };
        assert_eq!((wire(), wire(), wire()), (Some(MS * 5), Some(MS * 4), None));
    }

    #[test]
    fn a_clock_that_was_set_says_nothing() {
        let day = Duration::from_secs(86_400);
        for back in [day - MS, day + MS * 100] {
            let mut conversation = Conversation::new(Stream::new(1, 0), 10);
            conversation.begin(0, MS, MS);
            let sent = written(&mut conversation, 100);
            conversation.stamped(9, day);
            conversation.feed(&sent);
            assert_eq!(
                conversation.echo(nanos(MS * 10), Some(back)).unwrap().wire,
                None
            );
        }
    }

    #[test]
    fn wrong_bytes_and_bytes_before_their_time_are_seen() {
        let mut conversation = Conversation::new(Stream::new(1, 0), 16);
        assert!(!conversation.feed(b"SSH-2.0-OpenSSH_9.6\r\n"));
        assert!(conversation.finish().1 > 0);
        let mut conversation = Conversation::new(Stream::new(1, 0), 32);
        conversation.begin(0, MS, MS);
        let mut sent = written(&mut conversation, 100);
        sent[8] ^= 1;
        assert!(!conversation.feed(&sent));
        let (wrong, count) = conversation.finish();
        assert_eq!(count, 1);
        assert!(wrong[0].to_string().contains("at 8"), "{wrong:?}");
    }
}
