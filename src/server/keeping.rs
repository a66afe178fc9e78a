//! Connections that outlive this process: taken in at the start, packed meanwhile, left to the
//! successor in the end.  What is decided is decided in [`crate::survival`]; here it meets the
//! shard, the poll and the log.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use mio::Interest;
use mio::net::{TcpStream, UnixStream};
use mio::unix::SourceFd;
use socket2::{Domain, SockRef};

use super::Server;
use super::lifecycle::Life;
use super::source::Source;
use super::stream::{Socket, Stream};
use super::worker::Worker;
use crate::echo::connection::{Connection, Start};
use crate::echo::counters::Counters;
use crate::echo::shard::Shard;
use crate::echo::tick::Tick;
use crate::survival::arena::Record;
use crate::survival::heritage::Adopted;
use crate::survival::keeper::{MESSAGES, STORED, is_exhausted};
use crate::survival::lane::Lane;
use crate::survival::recovery::Findings;
use crate::survival::standing::{DECLINED, News, Standing};
use crate::survival::totals::Totals;
use crate::survival::unpacked::Young;
use crate::system::events::Event;
use crate::system::rate::Flood;
use crate::system::rights::Apart;

/// Connections that wait to be packed, beyond twice those that are open, before the list is made
/// anew without the dead.
const YOUNG: usize = 65_536;

/// Descriptors for which the service manager has room (systemd.exec(5)); `None`: it does not say,
/// and has to be tried.  systemd says so since version 254, and nothing where there is no room at
/// all: then `MEMORY_PRESSURE_WATCH` (of the same version) shows that it would.
fn store_size() -> Option<usize> {
    match std::env::var("FDSTORE") {
        Ok(size) => size.parse().ok(),
        Err(_) => std::env::var_os("MEMORY_PRESSURE_WATCH").map(|_| 0),
    }
}

/// What became of a message of the parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packed {
    /// There was nobody to pack.
    Nobody,
    /// They are in it, or there was no seat for them.
    Some,
    /// It failed, and they are to be tried again.
    Failed,
}

impl Server {
    /// Takes in what a predecessor has left, when every listener is there.
    pub fn inherit(&mut self, findings: &Findings, adopted: Vec<Adopted>) {
        let totals = self.keeper.arena().totals();
        self.refused = totals.refused;
        let mut counters = totals.counters;
        let before = adopted.len();
        counters.take_over(before as u64);
        // Conversations that were passed are counted already.
        let passed = self.own.shard.counters();
        self.own.shard.resume([counters, passed].into_iter().sum());
        let (mut owing, mut owed) = (0, 0);
        // In a row of crashes the same ones would always be the last to get a turn.
        let mut adopted = adopted;
        let first = usize::try_from(self.now.as_micros()).unwrap_or(0);
        let middle = first.checked_rem(adopted.len()).unwrap_or(0);
        adopted.rotate_left(middle);
        for adopted in adopted {
            if let Some(backlog) = &adopted.backlog {
                owing += 1;
                owed += backlog.len() as u64;
            }
            self.go_on(adopted);
        }
        if let Some(ruin) = &findings.ruin {
            let (why, count) = (ruin.to_string(), findings.lost.values().sum());
            self.log.tell(Event::GivenUp { why, count });
        }
        if findings.before > 0 {
            let mut lost: Vec<_> = findings.lost.clone().into_iter().collect();
            lost.sort_unstable();
            self.log.tell(Event::Adopted {
                adopted: before,
                before: findings.before,
                owing,
                owed,
                planned: findings.planned,
                crashes: findings.crashes,
                lost,
            });
        }
        for index in 0..self.listeners.len() {
            let name = self.listeners[index].name.clone();
            let noted = self.keeper.listener(&name);
            self.noted.push(noted);
        }
        // A predecessor that knew no better has kept them.
        for worker in self.crew.hold(&mut self.own).iter_mut() {
            worker.leave(Stream::is_doubtful, self.now);
        }
        if !self.config.survival {
            self.keeper.decline();
            if before > 0 {
                let why = DECLINED.into();
                let count = before;
                self.log.tell(Event::GivenUp { why, count });
            }
            for worker in self.crew.hold(&mut self.own).iter_mut() {
                worker.leave(|stream| stream.seat.is_some(), self.now);
            }
        }
    }

    /// Whether connections are to be kept for a successor.
    #[must_use]
    pub(crate) fn preserves(&self) -> bool {
        self.config.survival && self.manager.is_there()
    }

    /// Begins to keep connections for a successor.
    pub(super) fn begin_to_keep(&mut self) {
        if !self.preserves() {
            self.keeper.dissolve(&mut self.manager, self.now);
            if self.manager.is_there() {
                let (why, grave) = (DECLINED.into(), false);
                self.log.tell(Event::Unkept { why, grave });
            }
            return;
        }
        let size = store_size();
        self.keeper.enable(self.config.survival_delay, size);
        if self.keeper.has_inherited() || size.is_some_and(|size| size >= STORED) {
            self.ask();
        } else if size.is_some_and(|size| size > 0) {
            let news = self.keeper.decline_store();
            self.hear(news);
        }
    }

    /// Asks the manager to keep what we give it.
    pub(super) fn ask(&mut self) {
        let loops = self.crew.hold(&mut self.own);
        let living = loops.iter().flat_map(kept);
        let news = self.keeper.begin(living, &mut self.manager, self.now);
        drop(loops);
        self.hear(news);
        self.listen_for_answer();
    }

    /// Takes in one connection.
    fn go_on(&mut self, adopted: Adopted) {
        let Adopted {
            heir,
            backlog,
            lane,
            seat,
        } = adopted;
        let record = heir.record;
        // What the totals had not noted yet may be in use.
        self.number = self.number.max(record.number);
        let domain = SockRef::from(&heir.socket).domain().ok();
        let socket = if domain == Some(Domain::UNIX) {
            Socket::Unix(Apart::stream(UnixStream::from_std(heir.socket.into())))
        } else {
            let socket = std::net::TcpStream::from(heir.socket);
            // Gone already: the first read will say how.
            let nobody = (std::net::Ipv4Addr::UNSPECIFIED, 0);
            let peer = socket.peer_addr().unwrap_or(nobody.into());
            Socket::Tcp(TcpStream::from_std(socket), peer)
        };
        let name = self.keeper.arena().name(record.listener);
        let name = name.unwrap_or_else(|| "unknown".into());
        let known = self.own.names.iter().position(|known| *known == name);
        let listener = known.unwrap_or_else(|| self.know(&name));
        let quickack = self.config.options_for(&name).quickack == Some(true);
        let listener = u32::try_from(listener).unwrap_or(u32::MAX);
        let mut stream = Stream::new(socket, record.number, listener, quickack);
        stream.shared = true;
        stream.seat = Some(seat);
        let moved = if backlog.is_some() {
            self.now
        } else {
            self.now - heir.positions.quiet
        };
        let start = Start {
            owner: record.cookie,
            received: heir.positions.received,
            sent: heir.positions.sent,
            backlog,
            began: Tick::from_micros(record.began),
            moved,
            finished: heir.positions.finished,
        };
        self.occupy(lane, &stream);
        self.crew.with(lane, &mut self.own, |worker| {
            worker.adopt(stream, start, self.now);
        });
    }

    /// Packs whose time has come, renews the parcel, and hears what the manager says.
    pub(super) fn keep(&mut self) {
        let news = self.keeper.expire(&mut self.manager, self.now);
        self.hear(news);
        if std::mem::take(&mut self.answered) {
            let news = self.keeper.look();
            self.hear(news);
        }
        self.watch_parcel();
        self.pass_caution();
        if self.life != Life::Serving {
            return;
        }
        // A parcel that takes nothing must not make the list of those who wait for it grow.
        if self.keeper.unpacked.len() > 2 * self.open() + YOUNG {
            let unkept = self.unkept_young();
            self.keeper.unpacked.replace(unkept);
        }
        if self.keeper.is_to_ask(self.now) {
            self.ask();
        }
        if self.keeper.is_to_renew(self.now) {
            self.renew();
        }
        if !self.keeper.is_to_pack(self.now) {
            return;
        }
        for _ in 0..MESSAGES {
            match self.pack(false) {
                Packed::Nobody => break,
                Packed::Some => {}
                Packed::Failed => return,
            }
        }
        self.keeper.packed(self.now);
    }

    /// The first round is over when everybody who was adopted has had a turn.
    fn pass_caution(&mut self) {
        if self.keeper.caution().is_none() {
            return;
        }
        let mut loops = self.crew.hold(&mut self.own);
        if loops.iter().all(Worker::has_tried_all) {
            for worker in loops.iter_mut() {
                worker.caution = None;
            }
            self.keeper.settle();
        }
    }

    /// Nobody has to be woken for those who are over before their time comes.
    pub(super) fn forget_young(&mut self) {
        if self.keeper.unpacked.is_empty() {
            return;
        }
        let loops = self.crew.hold(&mut self.own);
        let over = |young: &Young| is_over(&loops.get(young.lane).shard, young);
        self.keeper.unpacked.forget(over);
    }

    /// Packs one message, of those whose time has come, or of `all`.
    pub(super) fn pack(&mut self, all: bool) -> Packed {
        let mut loops = self.crew.hold(&mut self.own);
        let over = |young: &Young| is_over(&loops.get(young.lane).shard, young);
        let mut batch = self.keeper.unpacked.batch(self.now, all, over);
        if batch.is_empty() {
            return Packed::Nobody;
        }
        let alive = batch.len();
        batch.retain(|young| {
            let shard = &mut loops.get_mut(young.lane).shard;
            let listener = shard.stream(young.key).and_then(|stream| {
                let index = usize::try_from(stream.listener).ok()?;
                self.noted.get(index).copied()
            });
            seat(shard, young, listener.unwrap_or(u32::MAX))
        });
        let seatless = alive - batch.len();
        if seatless > 0 {
            drop(loops);
            let error = std::io::Error::from_raw_os_error(libc::ENOMEM);
            let count = seatless;
            self.flood(Flood::NotPreserved, Event::PackFailed { count, error });
            loops = self.crew.hold(&mut self.own);
        }
        if batch.is_empty() {
            return Packed::Some;
        }
        let descriptors: Vec<BorrowedFd<'_>> = batch
            .iter()
            .filter_map(|young| loops.get(young.lane).shard.stream(young.key))
            .map(AsFd::as_fd)
            .collect();
        let Err(error) = self.keeper.pack(&descriptors) else {
            return Packed::Some;
        };
        for young in &batch {
            unseat(&mut loops.get_mut(young.lane).shard, young.key);
        }
        drop(loops);
        let count = batch.len();
        self.keeper.put_back(batch, self.now);
        let news = self.keeper.look();
        if news.is_some() {
            self.hear(news);
            return Packed::Failed;
        }
        // A full queue has too many messages in it, and a new one will have fewer.
        if error.kind() == std::io::ErrorKind::WouldBlock {
            self.renew();
        } else {
            self.flood(Flood::NotPreserved, Event::PackFailed { count, error });
        }
        Packed::Failed
    }

    fn renew(&mut self) {
        let loops = self.crew.hold(&mut self.own);
        let living = loops.iter().flat_map(kept);
        let renewed = self.keeper.renew(living, &mut self.manager, self.now);
        drop(loops);
        match renewed {
            Ok(()) => self.listen_for_answer(),
            Err(error) => self.hear(Some(News::NotRenewed(error))),
        }
    }

    fn listen_for_answer(&mut self) {
        let Some(answer) = self.keeper.answer().map(|answer| answer.as_raw_fd()) else {
            return;
        };
        // Failing, it is looked at when the time for an answer is over.
        self.listen_to(answer);
    }

    /// Hears the manager through a descriptor whose other end it has.
    fn listen_to(&self, descriptor: RawFd) {
        let _ = self.poll.registry().register(
            &mut SourceFd(&descriptor),
            Source::Answer.into(),
            Interest::READABLE,
        );
    }

    /// The sending end hangs up when the manager has dropped the other.
    fn watch_parcel(&mut self) {
        let Some((generation, sender)) = self.keeper.sender() else {
            return;
        };
        if self.watched == Some(generation) {
            return;
        }
        let sender = sender.as_raw_fd();
        self.watched = Some(generation);
        // Failing, it is noticed when something is packed, or handed over.
        self.listen_to(sender);
    }

    pub(super) fn hear(&mut self, news: Option<News>) {
        match news {
            None => {}
            Some(News::Kept) => {
                self.size_up();
                let unkept = self.unkept_young();
                self.keeper.unpacked.replace(unkept);
                self.log.tell(Event::Kept {
                    max_connections: self.max_connections,
                    per_source: self.per_source,
                });
            }
            Some(News::Refused { why, grave }) => {
                self.log.tell(Event::Unkept { why, grave });
                self.size_up();
                for listener in &mut self.listeners {
                    listener.vacancy();
                }
                // There is nobody to hand over to: it is a stop.
                if let (true, Life::HandingOver { until }) = (self.handing_over, self.life) {
                    self.handing_over = false;
                    self.life = Life::Leaving { until };
                    self.leave_all();
                }
            }
            Some(News::NotRenewed(error)) => {
                // At a hand-over what is kept is all that there is.
                let empty = is_exhausted(&error) && self.life == Life::Serving;
                let loops = self.crew.hold(&mut self.own);
                let unkept: usize = loops.iter().map(|worker| worker.unkept().count()).sum();
                drop(loops);
                let count = if empty {
                    unkept + self.keeper.kept()
                } else {
                    unkept
                };
                self.flood(Flood::NotPreserved, Event::PackFailed { count, error });
                if empty {
                    let news = self.keeper.start_over(&mut self.manager, self.now);
                    self.hear(news);
                }
            }
        }
    }

    /// Notes the totals for a successor, if there will be one.
    pub(super) fn note_totals(&self) {
        if *self.keeper.standing() != Standing::Kept {
            return;
        }
        let crew = self.crew.counters().map(|(_, noted)| noted);
        let own = std::iter::once(self.own.shard.noted());
        self.note(own.chain(crew).sum());
    }

    pub(super) fn note(&self, counters: Counters) {
        self.keeper.arena().note(&Totals {
            number: self.number,
            refused: self.refused,
            counters,
        });
    }

    /// Those that can be packed and are not.
    pub(super) fn unkept_young(&mut self) -> Vec<Young> {
        let delay = self.config.survival_delay;
        let loops = self.crew.hold(&mut self.own);
        let young = loops.iter().enumerate().flat_map(|(lane, worker)| {
            let connections = worker.shard.connections();
            let own = connections.filter(|(_, stream, _)| stream.can_be_kept());
            own.map(move |(key, stream, connection)| Young {
                due: connection.began() + delay,
                lane,
                key,
                number: stream.number,
            })
        });
        young.collect()
    }
}

/// Whether a connection that is to be packed is no more; its seat may have changed hands.
pub(super) fn is_over(shard: &Shard<Stream, Lane>, young: &Young) -> bool {
    shard
        .stream(young.key)
        .is_none_or(|stream| stream.number != young.number)
}

/// The descriptors of those that are kept.
fn kept(worker: &Worker) -> impl Iterator<Item = BorrowedFd<'_>> {
    worker
        .shard
        .connections()
        .filter(|(_, stream, _)| stream.seat.is_some() && !stream.is_doubtful())
        .map(|(_, stream, _)| stream.as_fd())
}

/// Notes a connection in the arena, before its descriptor is in flight; false if that cannot be.
fn seat(shard: &mut Shard<Stream, Lane>, young: &Young, listener: u32) -> bool {
    let (Some(stream), Some(connection)) = (shard.stream(young.key), shard.connection(young.key))
    else {
        return false;
    };
    let Ok(cookie) = SockRef::from(stream).cookie() else {
        return false;
    };
    let mut record = record(connection, stream, listener);
    record.cookie = cookie;
    let Some(seat) = shard.store_mut().sit(&record) else {
        return false;
    };
    shard.own(young.key, cookie);
    let stream = shard.stream_mut(young.key);
    stream.seat = Some(seat);
    stream.shared = true;
    true
}

/// Takes that back.
fn unseat(shard: &mut Shard<Stream, Lane>, key: usize) {
    shard.own(key, 0);
    let stream = shard.stream_mut(key);
    stream.shared = false;
    if let Some(seat) = stream.seat.take() {
        shard.store_mut().stand(seat);
    }
}

pub(super) fn record(connection: &Connection, stream: &Stream, listener: u32) -> Record {
    Record {
        cookie: connection.owner(),
        began: connection.began().as_micros(),
        number: stream.number,
        listener,
        received: connection.received(),
        sent: connection.sent(),
    }
}
