//! A damaged state file: whatever it holds, the next process starts, and connections either go on
//! exactly or are closed.
//!
//! Between two daemons its words are changed one at a time, or it is replaced by another or removed.
//! The bytes of peers in it are not changed, as no process could detect that.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::thread;

use socket2::{Domain, Socket, Type};
use tcp_echo::log::events::id;
use testkit::crowd::{ClientMix, Kind, Kind::*};
use testkit::manager::{Manager, memory_file};
use testkit::{Dice, ping};

/// A message id that the tests look for; what it stands for is the catalog's business.
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");

/// The offset of the layout's version in the state file, in bytes.
const VERSION: u64 = 8;

/// Bytes of a word and of a page.
const WORD: u64 = 8;
const PAGE: usize = 4096;

/// A page with more words than this that are not zero holds bytes of peers.
const PAYLOAD: usize = 400;

/// The words of the first page that are all tried: those of the header.
const HEADER: u64 = 24;

/// The words of each other page that are tried, chosen at random, for each kind of damage.
const SAMPLES: usize = 8;

/// The services that run at a time, as each waits most of the time.
const SERVICES: usize = 4;

/// Clients that are easily checked, and clients that are owed something.
const SOME: [(Kind, usize); 3] = [(Idle, 3), (Finished, 2), (Stalled, 2)];

/// Clients that see the end when they are closed.
const WAITING: [(Kind, usize); 2] = [(Idle, 3), (Stalled, 2)];

fn count(kinds: &[(Kind, usize)]) -> usize {
    kinds.iter().map(|(_, count)| count).sum()
}

/// The offsets of every word that is not zero, and of the word behind it, up to the first page that
/// holds bytes of peers.
fn words(state_file: &File) -> Vec<u64> {
    let mut found = Vec::new();
    let mut bytes = [0; PAGE];
    for page in data_pages(state_file) {
        state_file.read_exact_at(&mut bytes, page).unwrap();
        let used: Vec<u64> = (0..PAGE as u64)
            .step_by(8)
            .filter(|at| {
                let at = usize::try_from(*at).unwrap();
                bytes[at..at + 8] != [0; 8]
            })
            .collect();
        if used.len() > PAYLOAD {
            break;
        }
        for at in used {
            found.push(page + at);
            if at + WORD < PAGE as u64 {
                found.push(page + at + WORD);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The pages of a sparse file that were ever written.
fn data_pages(file: &File) -> Vec<u64> {
    let mut pages = Vec::new();
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        pages.extend((data..hole).step_by(PAGE));
        at = hole;
    }
    pages
}

fn read_word(state_file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    state_file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_ne_bytes(bytes)
}

fn write_word(state_file: &File, at: u64, word: u64) {
    state_file.write_all_at(&word.to_ne_bytes(), at).unwrap();
}

/// How a word is damaged.
type Damage = fn(u64, &mut Dice) -> u64;

fn flip(word: u64, dice: &mut Dice) -> u64 {
    word ^ 1 << (dice.up_to(64) - 1)
}

fn zero(_: u64, _: &mut Dice) -> u64 {
    0
}

fn fill(_: u64, _: &mut Dice) -> u64 {
    u64::MAX
}

/// Off by one or a little more, so that the number is still plausible.
fn shift(word: u64, dice: &mut Dice) -> u64 {
    word.wrapping_add(dice.up_to(70_000) as u64)
}

/// Damages words one at a time, each while there is no daemon; several services at a time.
fn try_words(choose: fn(&[u64], &mut Dice) -> Vec<u64>, damage: Damage, seed: u64) {
    thread::scope(|scope| {
        for service in 0..SERVICES {
            scope.spawn(move || try_some_words(choose, damage, seed, service));
        }
    });
}

fn try_some_words(
    choose: fn(&[u64], &mut Dice) -> Vec<u64>,
    damage: Damage,
    seed: u64,
    service: usize,
) {
    let mut dice = Dice::new(seed);
    let mut manager = Manager::new();
    manager.start();
    let mut mix = ClientMix::new(manager.address(), &SOME);
    manager.preserves(count(&SOME));
    // What is recorded at the end of a daemon is in it, too.
    manager.restart();
    let chosen = choose(&words(&manager.state_file()), &mut dice);
    assert!(!chosen.is_empty(), "the state file is empty");
    for (round, at) in chosen.iter().skip(service).step_by(SERVICES).enumerate() {
        // After a kill the next daemon cannot know of it; a hand-over writes before the damage.
        if round % 2 == 0 {
            manager.kill();
        } else {
            manager.hand_over();
        }
        let state_file = manager.state_file();
        let word = read_word(&state_file, *at);
        let damaged = damage(word, &mut dice);
        eprintln!("word at {at}: {word:#x} becomes {damaged:#x}");
        write_word(&state_file, *at, damaged);
        manager.start();
        ping(manager.connect(), b"a new one");
        mix.gets_no_wrong_byte();
        // The next ones are owed something again.
        drop(mix);
        mix = ClientMix::new(manager.address(), &SOME);
        manager.status_has(&format!(" {} connections, ", count(&SOME)));
        manager.preserves(count(&SOME));
    }
    mix.gets_exact_bytes();
}

/// The first words, every one of them.
fn header(_: &[u64], _: &mut Dice) -> Vec<u64> {
    (0..HEADER).map(|word| word * WORD).collect()
}

/// Some of the others.
fn sample(words: &[u64], dice: &mut Dice) -> Vec<u64> {
    let mut others: Vec<u64> = words
        .iter()
        .copied()
        .filter(|at| *at >= HEADER * WORD)
        .collect();
    for last in (1..others.len()).rev() {
        others.swap(last, dice.up_to(last + 1) - 1);
    }
    let mut taken = BTreeMap::new();
    others.retain(|at| {
        let taken: &mut usize = taken.entry(at / PAGE as u64).or_default();
        *taken += 1;
        *taken <= SAMPLES
    });
    others
}

#[test]
fn no_flipped_bit_of_the_header_makes_wrong_bytes() {
    try_words(header, flip, 1);
}

#[test]
fn no_word_of_ones_in_the_header_makes_wrong_bytes() {
    try_words(header, fill, 2);
}

#[test]
fn no_zero_in_the_header_makes_wrong_bytes() {
    try_words(header, zero, 3);
}

#[test]
fn no_flipped_bit_elsewhere_makes_wrong_bytes() {
    try_words(sample, flip, 4);
}

#[test]
fn no_word_of_ones_elsewhere_makes_wrong_bytes() {
    try_words(sample, fill, 5);
}

#[test]
fn no_zero_elsewhere_makes_wrong_bytes() {
    try_words(sample, zero, 6);
}

#[test]
fn no_number_that_is_a_little_off_makes_wrong_bytes() {
    try_words(sample, shift, 7);
}

/// A service without a daemon, with preserved connections.
fn orphans(planned: bool) -> (Manager, ClientMix) {
    let mut manager = Manager::new();
    manager.start();
    let mix = ClientMix::new(manager.address(), &WAITING);
    manager.preserves(count(&WAITING));
    if planned {
        manager.hand_over();
    } else {
        manager.kill();
    }
    (manager, mix)
}

/// Asserts that every connection was closed, that this was logged, and that new ones are preserved.
#[track_caller]
fn begins_again(manager: &mut Manager, mut mix: ClientMix) -> String {
    manager.start();
    let told = manager.event(PREDECESSOR_DROPPED);
    assert_eq!(told["level"], "WARN", "{told}");
    assert_eq!(mix.gets_no_wrong_byte(), count(&WAITING));
    survives(manager);
    told["echo.reason"].as_str().unwrap().to_owned()
}

#[track_caller]
fn survives(manager: &mut Manager) {
    let client = manager.connect();
    ping(&client, b"a new one");
    manager.status_has("1 connection, ");
    manager.preserves(1);
    manager.one_of_each();
    manager.kill();
    manager.start();
    ping(&client, b"still here");
}

#[test]
fn a_state_file_of_another_version_is_reported_and_every_connection_closed() {
    for planned in [true, false] {
        let (mut manager, mix) = orphans(planned);
        let state_file = manager.state_file();
        let version = read_word(&state_file, VERSION);
        assert!((1..1000).contains(&version), "{version} is no version");
        write_word(&state_file, VERSION, version + 1);
        begins_again(&mut manager, mix);
    }
}

#[test]
fn a_state_file_of_a_wrong_length_is_reported_and_every_connection_closed() {
    for length in [0, 1, 8, 4095, 4096, 1 << 20, u64::MAX] {
        let (mut manager, mix) = orphans(length % 2 == 0);
        let state_file = manager.state_file();
        let whole = state_file.metadata().unwrap().len();
        // The last one is a page too long.
        let length = if length == u64::MAX {
            whole + PAGE as u64
        } else {
            length
        };
        let other = memory_file(length);
        let mut bytes = vec![0; PAGE];
        for page in data_pages(&state_file) {
            if page + PAGE as u64 <= length {
                state_file.read_exact_at(&mut bytes, page).unwrap();
                other.write_all_at(&bytes, page).unwrap();
            }
        }
        let name = manager.drop_all("preserve-state-").unwrap();
        manager.store(&name, other);
        begins_again(&mut manager, mix);
    }
}

#[test]
fn without_a_state_file_every_connection_is_closed() {
    for planned in [true, false] {
        let (mut manager, mix) = orphans(planned);
        manager.drop_all("preserve-state-");
        begins_again(&mut manager, mix);
    }
}

#[test]
fn without_a_descriptor_queue_there_are_no_connections_and_the_service_starts() {
    for planned in [true, false] {
        let (mut manager, mut mix) = orphans(planned);
        manager.drop_all("preserve-queue-");
        manager.start();
        // The manager held the last descriptors.
        assert_eq!(mix.gets_no_wrong_byte(), count(&WAITING));
        survives(&mut manager);
    }
}

#[test]
fn a_state_file_of_zeros_is_refused() {
    let (mut manager, mix) = orphans(false);
    let other = memory_file(manager.state_file().metadata().unwrap().len());
    let name = manager.drop_all("preserve-state-").unwrap();
    manager.store(&name, other);
    begins_again(&mut manager, mix);
}

#[test]
fn the_state_file_of_another_service_is_refused() {
    let (mut manager, mut mix) = orphans(false);
    let (other, mut stranger) = orphans(false);
    let name = manager.drop_all("preserve-state-").unwrap();
    manager.store(&name, other.state_file());
    // It is valid, but has other connections: those that are owed bytes cannot be restored.
    manager.start();
    ping(manager.connect(), b"a new one");
    let dropped = mix.gets_no_wrong_byte();
    assert!(dropped >= 2, "{dropped} were dropped");
    drop(other);
    stranger.gets_no_wrong_byte();
}

#[test]
fn a_descriptor_queue_with_foreign_descriptors_harms_no_connection() {
    let (mut manager, mut mix) = orphans(false);
    // Both ends of it under one name, and foreign descriptors in between.
    let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    far.send(b"what is this?").unwrap();
    far.send(&[0; 64]).unwrap();
    far.shutdown(Shutdown::Read).unwrap();
    manager.store("preserve-queue-9", near);
    manager.store("preserve-queue-9", far);
    manager.start();
    mix.echoes_on();
    manager.one_of_each();
    manager.kill();
    manager.start();
    mix.echoes_on();
    mix.gets_exact_bytes();
}
