//! The machine against a manager that answers late, never, or untruly, with a store that is full,
//! absent or too small, and with crashes between any two effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

fn start() -> MonoTime {
    MonoTime::new(1 << 60)
}
const SECOND: Duration = Duration::from_secs(1);

/// Descriptors that a process may have open, and as many in flight.
const DESCRIPTORS: usize = 512;

/// Messages that a queue takes.
const QUEUE: usize = 6;

/// Connections in a slice of a rotation.
const SLICE: usize = 40;

/// Rounds that follow each other at once, as long as something is due.
const ROUNDS: usize = 3;

/// What a manager does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Answers,
    AnswersLate,
    NeverAnswers,
}

/// A queue, wherever its ends are.
#[derive(Clone, Debug, Default)]
struct Held {
    connections: BTreeSet<u64>,
    messages: usize,
}

/// The machine, the connections of its process, and a service manager.
#[derive(Debug)]
struct World {
    machine: Preserver,
    now: MonoTime,
    /// Open connections, and whether each has a record.
    open: BTreeMap<u64, bool>,
    next: u64,
    /// The queue that the process sends into, and the one that it has made anew.
    queue: Option<u64>,
    rotation: Option<u64>,
    /// Connections below this number are in the latter, or have not been preserved when the others were
    /// put into it.
    filled: u64,
    queues: BTreeMap<u64, Held>,
    /// What the manager stores: names, with how many descriptors of each.
    stored: BTreeMap<String, usize>,
    capacity: usize,
    /// Descriptors that may be in flight.
    room: usize,
    manner: Manner,
    answer: bool,
    exhausted: bool,
    /// The log says that connections may not be preserved, since the last time that all are.
    reported: bool,
    /// Effects that may still be performed before a crash.
    life: Option<usize>,
}

impl World {
    fn new(capacity: usize) -> Self {
        let machine = Preserver::new(Beginning {
            state_file: 1,
            unstored: true,
            latest: 1,
            descriptors: DESCRIPTORS,
            ..Beginning::default()
        });
        Self {
            machine,
            now: start(),
            open: BTreeMap::new(),
            next: 0,
            queue: None,
            rotation: None,
            filled: 0,
            queues: BTreeMap::new(),
            stored: BTreeMap::new(),
            capacity,
            room: DESCRIPTORS,
            manner: Manner::Answers,
            answer: false,
            exhausted: false,
            reported: true,
            life: None,
        }
    }

    /// The state file is not stored twice.
    fn store(&mut self, name: String) {
        let again = name == state_file_name(1) && self.stored.contains_key(&name);
        if !again && self.stored.values().sum::<usize>() < self.capacity {
            *self.stored.entry(name).or_default() += 1;
        }
    }

    fn unstore(&mut self, name: &str) {
        self.stored.remove(name);
        self.drop_unheld();
    }

    fn is_stored(&self, generation: u64) -> bool {
        self.stored.get(&fd_queue_name(generation)) == Some(&2)
    }

    /// What is neither stored nor in the process is gone, and with it its descriptors in flight.
    fn drop_unheld(&mut self) {
        let stored = |generation: &u64| self.stored.contains_key(&fd_queue_name(*generation));
        let own = [self.queue, self.rotation];
        let gone: Vec<u64> = self
            .queues
            .keys()
            .filter(|generation| !stored(generation) && !own.contains(&Some(**generation)))
            .copied()
            .collect();
        for generation in gone {
            self.queues.remove(&generation);
        }
    }

    fn in_flight(&self) -> usize {
        let queues = self.queues.values();
        queues.map(|queue| queue.connections.len()).sum()
    }

    fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut effects = Vec::new();
            if std::mem::take(&mut self.exhausted) {
                effects.extend(self.machine.on(Input::Exhausted, self.now));
            }
            effects.extend(self.machine.on(input, self.now));
            for effect in effects {
                match &mut self.life {
                    Some(0) => return,
                    Some(left) => *left -= 1,
                    None => {}
                }
                inputs.extend(self.perform(effect));
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::StoreFile => {
                self.store(state_file_name(1));
                return Some(Input::FileSent(true));
            }
            Effect::Unstore(name) => self.unstore(&name),
            Effect::Rotate(generation) => {
                self.queues.insert(generation, Held::default());
                self.rotation = Some(generation);
                self.filled = 0;
                return Some(Input::Filled(self.fill()));
            }
            Effect::Fill => return Some(Input::Filled(self.fill())),
            Effect::Offer => {
                let generation = self.rotation.expect("a queue to offer");
                self.store(fd_queue_name(generation));
                self.store(fd_queue_name(generation));
                self.answer = self.manner == Manner::Answers;
                return Some(Input::RotationSent(Ok(())));
            }
            Effect::Promote => {
                self.queue = self.rotation.take();
                self.drop_unheld();
            }
            Effect::DropRotation => {
                self.rotation = None;
                self.drop_unheld();
            }
            Effect::DropQueue => {
                self.queue = None;
                self.drop_unheld();
            }
            Effect::Append(batch) => return Some(self.append(batch)),
            Effect::Log(event) => self.log(&event),
        }
        None
    }

    /// Puts connections into a queue, all or none.
    fn put(&mut self, generation: u64, connections: &[u64]) -> io::Result<()> {
        let errno = if self.in_flight() + connections.len() > self.room {
            libc::ETOOMANYREFS
        } else if self.queues[&generation].messages == QUEUE {
            libc::EAGAIN
        } else {
            let queue = self.queues.get_mut(&generation).expect("it exists");
            queue.messages += usize::from(!connections.is_empty());
            queue.connections.extend(connections);
            return Ok(());
        };
        Err(io::Error::from_raw_os_error(errno))
    }

    /// The next slice of a rotation.
    fn fill(&mut self) -> io::Result<Filled> {
        let generation = self.rotation.expect("a queue to fill");
        let rest = self.open.range(self.filled..);
        let slice: Vec<(u64, bool)> = rest
            .map(|(number, record)| (*number, *record))
            .take(SLICE)
            .collect();
        let Some((last, _)) = slice.last() else {
            let (entries, messages, whole) = (0, 0, true);
            return Ok(Filled {
                entries,
                messages,
                whole,
            });
        };
        self.filled = last + 1;
        let preserved = slice.iter().filter(|(_, record)| *record);
        let preserved: Vec<u64> = preserved.map(|(number, _)| *number).collect();
        // As if they were in one message with those of the slices before, or no queue would be large
        // enough here.
        let messages = self.queues[&generation].messages;
        self.put(generation, &preserved)?;
        let queue = self.queues.get_mut(&generation).expect("it exists");
        queue.messages = messages.max(queue.connections.len().div_ceil(BATCH));
        Ok(Filled {
            entries: preserved.len(),
            messages: queue.messages - messages,
            whole: false,
        })
    }

    fn append(&mut self, mut batch: Vec<Waiting>) -> Input {
        batch.retain(|waiting| self.open.get(&waiting.number) == Some(&false));
        let generation = self.queue.expect("a queue to append to");
        let held = self.is_stored(generation);
        let numbers: Vec<u64> = batch.iter().map(|waiting| waiting.number).collect();
        if let Err(error) = self.put(generation, &numbers) {
            return Input::NotAppended { batch, error, held };
        }
        self.open
            .extend(numbers.iter().map(|number| (*number, true)));
        let rotation = self.rotation;
        let missed = rotation.and_then(|generation| self.put(generation, &numbers).err());
        let count = batch.len();
        Input::Appended { count, missed }
    }

    fn log(&mut self, event: &StoreEvent) {
        match event {
            StoreEvent::Preserving => {
                self.reported = false;
                let after = self.machine.after;
                let without = self.open.iter().filter(|(_, record)| !**record);
                let waiting = without.map(|(number, _)| Waiting {
                    due: start() + after,
                    worker: 0,
                    key: 0,
                    number: *number,
                });
                let waiting = waiting.collect();
                self.machine.waiting().replace(waiting);
            }
            StoreEvent::Refused { .. } | StoreEvent::NotRotated { all: true, .. } => {
                self.reported = true;
            }
            StoreEvent::NotRotated { .. } | StoreEvent::NotAppended { .. } => {}
        }
    }

    fn preserved(&self) -> impl Iterator<Item = u64> + '_ {
        let open = self.open.iter();
        open.filter(|(_, record)| **record)
            .map(|(number, _)| *number)
    }

    /// What the next process would find: the connections with a record in a queue that is stored.
    fn found(&self) -> BTreeSet<u64> {
        if !self.stored.contains_key(&state_file_name(1)) {
            return BTreeSet::new();
        }
        let stored = self.queues.iter();
        let stored = stored.filter(|(generation, _)| {
            let name = fd_queue_name(**generation);
            self.stored.contains_key(&name)
        });
        let all: BTreeSet<u64> = stored
            .flat_map(|(_, held)| held.connections.clone())
            .collect();
        all.into_iter()
            .filter(|number| self.open.get(number) == Some(&true))
            .collect()
    }

    /// A preserved connection is in the store, or it was logged that it may not be.
    fn check(&self) {
        let preserved: BTreeSet<u64> = self.preserved().collect();
        assert_eq!(self.machine.preserved(), preserved.len());
        assert!(
            self.reported || preserved == self.found(),
            "{preserved:?} are preserved, {:?} are found: {self:#?}",
            self.found()
        );
        assert!(self.stored.len() <= 3, "{:?}", self.stored);
    }

    /// The process crashes, and the next one goes on.
    fn crash(&mut self) {
        self.life = None;
        (self.queue, self.rotation) = (None, None);
        self.exhausted = false;
        self.drop_unheld();
        let found = self.found();
        self.open.retain(|number, _| found.contains(number));
        let file = self.stored.contains_key(&state_file_name(1));
        let generations = || self.queues.keys().copied();
        let whole = generations().rev().find(|generation| {
            self.is_stored(*generation) && found.is_subset(&self.queues[generation].connections)
        });
        self.queue = whole.filter(|_| file);
        let obsolete: BTreeSet<String> = generations()
            .filter(|generation| Some(*generation) != self.queue)
            .map(fd_queue_name)
            .collect();
        self.machine = Preserver::new(Beginning {
            state_file: 1,
            unstored: !file,
            no_file: None,
            queue: self.queue.map(|generation| Queue {
                generation,
                entries: self.queues[&generation].connections.len(),
                messages: self.queues[&generation].messages,
            }),
            obsolete,
            unseen: false,
            latest: generations().next_back().unwrap_or(1),
            preserved: found.len(),
            descriptors: DESCRIPTORS,
        });
        // Until the machine has said what is preserved.
        self.reported = true;
        self.enable();
    }

    fn enable(&mut self) {
        self.feed(Input::Enable {
            after: SECOND,
            store: None,
        });
    }

    fn open(&mut self) {
        self.next += 1;
        self.open.insert(self.next, false);
        self.machine.opened(0, 0, self.next, self.now);
    }

    fn close(&mut self, number: u64) {
        if self.open.remove(&number) == Some(true) {
            self.machine.closed();
        }
    }

    /// Some rounds of the loop, some time later.
    fn round(&mut self, later: Duration) {
        self.now += later;
        if self.machine.answer_due().is_some() && self.manner != Manner::NeverAnswers {
            self.answer = true;
        }
        if let Some(until) = self.machine.answer_due() {
            let answered = std::mem::take(&mut self.answer);
            if answered || until <= self.now {
                let held = self
                    .rotation
                    .is_some_and(|generation| self.is_stored(generation));
                self.feed(Input::RotationOver { answered, held });
            }
        }
        if self
            .queue
            .is_some_and(|generation| !self.is_stored(generation))
        {
            self.feed(Input::HungUp);
        }
        for _ in 0..ROUNDS {
            if self.machine.next_due().is_some_and(|due| due <= self.now) {
                self.feed(Input::Time);
            }
        }
    }

    /// As the server does it.
    fn hand_over(&mut self) {
        self.feed(Input::Ending);
        self.feed(Input::Ask);
        for _ in 0..4 {
            self.settle_rotation();
            if *self.machine.store_state() != StoreState::Preserving {
                return;
            }
            self.feed(Input::PreserveAll);
            if self.machine.waiting().is_empty() || self.machine.answer_due().is_none() {
                return;
            }
        }
    }

    fn settle_rotation(&mut self) {
        if self.machine.answer_due().is_some() {
            if self.manner == Manner::Answers {
                let rotation = self.rotation;
                let held = rotation.is_some_and(|generation| self.is_stored(generation));
                self.feed(Input::RotationOver {
                    answered: true,
                    held,
                });
            }
            self.feed(Input::AbandonRotation);
        }
    }

    fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.round(SECOND / 4);
        }
    }
}

#[test]
fn what_has_lived_long_enough_is_preserved_and_survives_a_crash() {
    let mut world = World::new(16);
    world.enable();
    (0..600).for_each(|_| world.open());
    world.room = 10_000;
    world.rounds(20);
    world.check();
    assert_eq!(world.found().len(), 600);
    world.crash();
    world.rounds(4);
    world.check();
    assert_eq!(world.open.len(), 600);
    assert_eq!(*world.machine.store_state(), StoreState::Preserving);
}

/// With another number of workers the next process has another state file, and no queue goes on.
#[test]
fn a_new_state_file_with_connections_of_another_process_is_stored_before_the_first_slice() {
    let mut machine = Preserver::new(Beginning {
        state_file: 3,
        unstored: true,
        obsolete: BTreeSet::from([state_file_name(1), fd_queue_name(2)]),
        latest: 3,
        preserved: 5,
        descriptors: DESCRIPTORS,
        ..Beginning::default()
    });
    let enable = Input::Enable {
        after: SECOND,
        store: None,
    };
    let effects = machine.on(enable, start());
    assert!(matches!(effects[..], [Effect::StoreFile]), "{effects:?}");
    let effects = machine.on(Input::FileSent(true), start());
    assert!(matches!(effects[..], [Effect::Rotate(4)]), "{effects:?}");
    // Once more, as only the queue shows that it is stored.
    let (entries, messages, whole) = (5, 1, true);
    let filled = Filled {
        entries,
        messages,
        whole,
    };
    let effects = machine.on(Input::Filled(Ok(filled)), start());
    assert!(matches!(effects[..], [Effect::StoreFile]), "{effects:?}");
    let effects = machine.on(Input::FileSent(true), start());
    assert!(matches!(effects[..], [Effect::Offer]), "{effects:?}");
}

#[test]
fn a_manager_without_room_is_reported_and_leaves_nothing() {
    for capacity in 0..3 {
        let mut world = World::new(capacity);
        world.enable();
        assert!(world.stored.is_empty(), "asked for nothing");
        world.open();
        world.rounds(20);
        world.check();
        let state = world.machine.store_state();
        assert!(matches!(state, StoreState::Refused(_)), "{state:?}");
        assert_eq!(world.machine.preserved(), 0);
    }
}

#[test]
fn a_manager_that_never_answers_is_asked_again_after_a_minute() {
    let mut world = World::new(16);
    world.manner = Manner::NeverAnswers;
    world.enable();
    world.open();
    world.rounds(40);
    assert!(matches!(
        world.machine.store_state(),
        StoreState::Refused(_)
    ));
    world.manner = Manner::Answers;
    world.rounds(4 * 70);
    world.check();
    assert_eq!(*world.machine.store_state(), StoreState::Preserving);
    assert_eq!(world.found().len(), 1);
}

#[test]
fn a_full_queue_is_followed_by_a_new_one() {
    let mut world = World::new(16);
    world.enable();
    for _ in 0..3 * QUEUE {
        world.open();
        world.rounds(8);
        world.check();
    }
    assert_eq!(world.found().len(), 3 * QUEUE);
    assert_eq!(world.stored.len(), 2, "{:?}", world.stored);
}

#[test]
fn a_queue_of_many_small_messages_is_followed_by_a_new_one_before_it_is_full() {
    let mut machine = Preserver::new(Beginning {
        state_file: 1,
        latest: 2,
        queue: Some(Queue {
            generation: 2,
            entries: 1200,
            messages: SPARE_MESSAGES + 9,
        }),
        preserved: 1200,
        descriptors: 1 << 20,
        ..Beginning::default()
    });
    let enabled = machine.on(
        Input::Enable {
            after: SECOND,
            store: Some(16),
        },
        start(),
    );
    assert!(matches!(enabled[..], [Effect::Log(StoreEvent::Preserving)]));
    assert_eq!(machine.next_due(), None, "five messages are needed");
    let count = 1;
    let missed = None;
    machine.on(Input::Appended { count, missed }, start());
    let effects = machine.on(Input::Time, start());
    assert!(matches!(effects[..], [Effect::Rotate(3)]), "{effects:?}");
}

#[test]
fn a_full_queue_without_waste_stays_and_the_log_says_what_makes_room() {
    let mut machine = Preserver::new(Beginning {
        state_file: 1,
        latest: 2,
        queue: Some(Queue {
            generation: 2,
            entries: 4 * BATCH,
            messages: 4,
        }),
        preserved: 4 * BATCH,
        descriptors: 1 << 20,
        ..Beginning::default()
    });
    let after = SECOND;
    machine.on(Input::Enable { after, store: None }, start());
    let mut attempts = 0;
    for seconds in 0..100 {
        let now = start() + SECOND * seconds;
        machine.opened(0, 0, 1, start());
        for effect in machine.on(Input::Time, now) {
            let Effect::Append(batch) = effect else {
                panic!("{effect:?}");
            };
            attempts += 1;
            let refused = Input::NotAppended {
                batch,
                error: io::ErrorKind::WouldBlock.into(),
                held: true,
            };
            let effects = machine.on(refused, now);
            let [Effect::Log(StoreEvent::NotAppended { error, .. })] = &effects[..] else {
                panic!("{effects:?}");
            };
            assert!(error.to_string().contains("net.core.wmem_max"), "{error}");
        }
    }
    // After one second, two, four, and so on up to a minute.
    assert_eq!(attempts, 7);
}

#[test]
fn without_room_in_flight_the_store_is_emptied_and_filled_anew() {
    let mut world = World::new(16);
    world.room = 30;
    world.enable();
    (0..20).for_each(|_| world.open());
    world.rounds(8);
    assert_eq!(world.found().len(), 20);
    // A second copy does not fit: the queue is full of messages, and has to be replaced.
    for _ in 0..QUEUE {
        world.open();
        world.rounds(8);
        world.check();
    }
    world.rounds(400);
    world.check();
    assert_eq!(*world.machine.store_state(), StoreState::Preserving);
    assert_eq!(world.found().len(), world.open.len());
}

#[test]
fn a_queue_that_the_manager_drops_is_noticed() {
    let mut world = World::new(16);
    world.enable();
    world.open();
    world.rounds(8);
    assert_eq!(world.found().len(), 1);
    world.stored.clear();
    world.round(SECOND / 4);
    world.check();
    assert!(matches!(
        world.machine.store_state(),
        StoreState::Refused(_)
    ));
}

#[test]
fn dissolving_leaves_nothing_wherever_it_comes() {
    for rounds in 0..12 {
        let mut world = World::new(16);
        world.enable();
        (0..3).for_each(|_| world.open());
        world.rounds(rounds);
        world.feed(Input::Dissolve);
        assert!(
            world.stored.is_empty(),
            "after {rounds}: {:?}",
            world.stored
        );
        assert_eq!(world.machine.generation(), None);
    }
}

#[test]
fn at_a_hand_over_without_room_in_flight_the_old_queue_stays() {
    let mut world = World::new(16);
    world.enable();
    (0..20).for_each(|_| world.open());
    world.rounds(8);
    let numbers: Vec<u64> = world.open.keys().copied().collect();
    assert_eq!(world.found().len(), 20);
    // The queue has to be replaced, and the messages about the new one are dropped.
    for _ in 0..80 {
        world.open();
    }
    world.rounds(8);
    let some: Vec<u64> = world.open.keys().skip(20).copied().collect();
    some.into_iter().for_each(|number| world.close(number));
    world.manner = Manner::AnswersLate;
    world.round(SECOND);
    assert!(world.machine.answer_due().is_some(), "no rotation");
    world.exhausted = true;
    world.manner = Manner::Answers;
    world.hand_over();
    world.check();
    assert_eq!(world.found(), numbers.into_iter().collect());
}

/// A step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Open(u8),
    Close(u8),
    Rounds(u8),
    Wait(u16),
    Manner(Manner),
    Room(u16),
    DropAll,
    /// A hand-over: what is stored is all that there is, and then the process ends.
    HandOver,
    /// The process crashes after so many more effects, or at the end of the next rounds.
    Crash(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_u8).prop_map(Step::Open),
        4 => (1..40_u8).prop_map(Step::Close),
        8 => (1..8_u8).prop_map(Step::Rounds),
        1 => (1..200_u16).prop_map(Step::Wait),
        2 => prop_oneof![
            3 => Just(Manner::Answers),
            1 => Just(Manner::AnswersLate),
            1 => Just(Manner::NeverAnswers)
        ].prop_map(Step::Manner),
        1 => (10..1000_u16).prop_map(Step::Room),
        1 => Just(Step::DropAll),
        1 => Just(Step::HandOver),
        3 => (0..12_u8).prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_a_preserved_connection_is_in_the_store_or_it_is_reported(
        capacity in prop_oneof![Just(16_usize), 0..6_usize],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(capacity);
        world.enable();
        for step in steps {
            match step {
                Step::Open(count) => (0..count).for_each(|_| world.open()),
                Step::Close(count) => {
                    let some: Vec<u64> = world.open.keys().take(count.into()).copied().collect();
                    some.into_iter().for_each(|number| world.close(number));
                }
                Step::Rounds(count) => world.rounds(count.into()),
                Step::Wait(seconds) => world.round(SECOND * u32::from(seconds)),
                Step::Manner(manner) => world.manner = manner,
                Step::Room(room) => world.room = room.into(),
                Step::DropAll => {
                    world.stored.clear();
                    world.drop_unheld();
                    // The sending end hangs up at once.
                    world.round(Duration::ZERO);
                }
                Step::HandOver => {
                    let before = world.found();
                    let reported = world.reported;
                    world.hand_over();
                    let after = world.found();
                    if !reported && !world.reported {
                        let lost: Vec<_> = before.difference(&after).collect();
                        prop_assert!(lost.is_empty(), "{lost:?} were in the store: {world:#?}");
                    }
                    world.check();
                    world.crash();
                }
                Step::Crash(effects) => {
                    let before = world.found();
                    let reported = world.reported;
                    world.life = Some(effects.into());
                    world.rounds(3);
                    let after = world.found();
                    // Wherever it comes: what was in the store is there, or was reported.
                    if !reported && !world.reported {
                        let lost: Vec<_> = before.difference(&after).collect();
                        prop_assert!(lost.is_empty(), "{lost:?} were in the store: {world:#?}");
                    }
                    world.crash();
                }
            }
            world.check();
        }
        // With a manager that does what it should, all are preserved in the end.
        world.manner = Manner::Answers;
        world.capacity = 16;
        world.room = 100_000;
        world.open();
        world.rounds(600);
        world.check();
        if *world.machine.store_state() == StoreState::Preserving {
            prop_assert_eq!(world.found().len(), world.open.len());
        }
    }
}
