//! The arena is not believed: whatever it holds, a successor starts, and clients either go on
//! exactly or are let go.
//!
//! Between two daemons its words are changed one at a time, it is replaced by another or taken
//! away.  What is in it of the peers' bytes is not changed: nobody could tell.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::thread;

use socket2::{Domain, Socket, Type};

use tcp_echo::log::events::id;

use crate::crowd::{Crowd, Kind, Kind::*};
use crate::daemon::{Dice, ping};
use crate::manager::{Manager, memory_file};

/// A message id that the tests look for; what it stands for is the catalog's business.
const PREDECESSOR_DROPPED: &str = id("PREDECESSOR_DROPPED");

/// Where the version of the layout stands in the arena.
const VERSION: u64 = 8;

/// Bytes of a word and of a page.
const WORD: u64 = 8;
const PAGE: usize = 4096;

/// More words of a page than this are not zero where it holds what peers sent.
const PAYLOAD: usize = 400;

/// Words of the first page that are all tried: what the arena is, and what it counts.
const HEADER: u64 = 24;

/// Of the other words, as many as this of each page by chance, for each kind of damage.
const SAMPLES: usize = 8;

/// Services at a time: most of the time they wait.
const SERVICES: usize = 4;

/// Those who are easily told to be right, and those who are owed something.
const SOME: [(Kind, usize); 3] = [(Idle, 3), (Finished, 2), (Stalled, 2)];

/// Those who notice that they were let go.
const WAITING: [(Kind, usize); 2] = [(Idle, 3), (Stalled, 2)];

fn count(kinds: &[(Kind, usize)]) -> usize {
    kinds.iter().map(|(_, count)| count).sum()
}

/// Every word that is not zero, or stands beside one, up to the first page that holds what peers
/// sent.
fn words(arena: &File) -> Vec<u64> {
    let mut found = Vec::new();
    let mut bytes = [0; PAGE];
    for page in data_pages(arena) {
        arena.read_exact_at(&mut bytes, page).unwrap();
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

fn read_word(arena: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    arena.read_exact_at(&mut bytes, at).unwrap();
    u64::from_ne_bytes(bytes)
}

fn write_word(arena: &File, at: u64, word: u64) {
    arena.write_all_at(&word.to_ne_bytes(), at).unwrap();
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

/// Off by one, or a little more: still a number that could be.
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
    let mut crowd = Crowd::new(manager.address(), &SOME);
    manager.keeps(count(&SOME));
    // What is noted at the end of a daemon is there too.
    manager.restart();
    let chosen = choose(&words(&manager.arena()), &mut dice);
    assert!(!chosen.is_empty(), "the arena is empty");
    for (round, at) in chosen.iter().skip(service).step_by(SERVICES).enumerate() {
        // The one that is killed knows nothing of it; the one that hands over writes before it.
        if round % 2 == 0 {
            manager.kill();
        } else {
            manager.hand_over();
        }
        let arena = manager.arena();
        let word = read_word(&arena, *at);
        let damaged = damage(word, &mut dice);
        eprintln!("word at {at}: {word:#x} becomes {damaged:#x}");
        write_word(&arena, *at, damaged);
        manager.start();
        ping(manager.connect(), b"a new one");
        crowd.is_dealt_honestly();
        // The next ones are owed something again.
        drop(crowd);
        crowd = Crowd::new(manager.address(), &SOME);
        manager.says(&format!(" {} connections, ", count(&SOME)));
        manager.keeps(count(&SOME));
    }
    crowd.comes_back_exact();
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

/// A service whose connections are kept and whose daemon is gone.
fn orphans(planned: bool) -> (Manager, Crowd) {
    let mut manager = Manager::new();
    manager.start();
    let crowd = Crowd::new(manager.address(), &WAITING);
    manager.keeps(count(&WAITING));
    if planned {
        manager.hand_over();
    } else {
        manager.kill();
    }
    (manager, crowd)
}

/// Everybody was let go, it was told, and from now on connections survive again.
#[track_caller]
fn begins_again(manager: &mut Manager, mut crowd: Crowd) -> String {
    manager.start();
    let told = manager.event(PREDECESSOR_DROPPED);
    assert_eq!(told["level"], "WARN", "{told}");
    assert_eq!(crowd.is_dealt_honestly(), count(&WAITING));
    survives(manager);
    told["echo.reason"].as_str().unwrap().to_owned()
}

#[track_caller]
fn survives(manager: &mut Manager) {
    let client = manager.connect();
    ping(&client, b"a new one");
    manager.says("1 connection, ");
    manager.keeps(1);
    manager.one_of_each();
    manager.kill();
    manager.start();
    ping(&client, b"still here");
}

#[test]
fn an_arena_of_another_version_is_told_and_everybody_let_go() {
    for planned in [true, false] {
        let (mut manager, crowd) = orphans(planned);
        let arena = manager.arena();
        let version = read_word(&arena, VERSION);
        assert!((1..1000).contains(&version), "{version} is no version");
        write_word(&arena, VERSION, version + 1);
        begins_again(&mut manager, crowd);
    }
}

#[test]
fn an_arena_that_is_shorter_or_longer_than_it_says_is_told_and_everybody_let_go() {
    for length in [0, 1, 8, 4095, 4096, 1 << 20, u64::MAX] {
        let (mut manager, crowd) = orphans(length % 2 == 0);
        let arena = manager.arena();
        let whole = arena.metadata().unwrap().len();
        // The last one is a page too long.
        let length = if length == u64::MAX {
            whole + PAGE as u64
        } else {
            length
        };
        let other = memory_file(length);
        let mut bytes = vec![0; PAGE];
        for page in data_pages(&arena) {
            if page + PAGE as u64 <= length {
                arena.read_exact_at(&mut bytes, page).unwrap();
                other.write_all_at(&bytes, page).unwrap();
            }
        }
        let name = manager.drop_all("preserve-state-").unwrap();
        manager.put(&name, other);
        begins_again(&mut manager, crowd);
    }
}

#[test]
fn without_an_arena_everybody_is_let_go() {
    for planned in [true, false] {
        let (mut manager, crowd) = orphans(planned);
        manager.drop_all("preserve-state-");
        begins_again(&mut manager, crowd);
    }
}

#[test]
fn without_a_parcel_there_is_nobody_and_the_service_goes_on() {
    for planned in [true, false] {
        let (mut manager, mut crowd) = orphans(planned);
        manager.drop_all("preserve-queue-");
        manager.start();
        // The manager had the last copies.
        assert_eq!(crowd.is_dealt_honestly(), count(&WAITING));
        survives(&mut manager);
    }
}

#[test]
fn an_arena_of_zeros_is_refused() {
    let (mut manager, crowd) = orphans(false);
    let other = memory_file(manager.arena().metadata().unwrap().len());
    let name = manager.drop_all("preserve-state-").unwrap();
    manager.put(&name, other);
    begins_again(&mut manager, crowd);
}

#[test]
fn the_arena_of_another_service_is_not_taken_for_ones_own() {
    let (mut manager, mut crowd) = orphans(false);
    let (other, mut stranger) = orphans(false);
    let name = manager.drop_all("preserve-state-").unwrap();
    manager.put(&name, other.arena());
    // It is a good one, only of other connections: who is owed something cannot be kept.
    manager.start();
    ping(manager.connect(), b"a new one");
    let dropped = crowd.is_dealt_honestly();
    assert!(dropped >= 2, "{dropped} were dropped");
    drop(other);
    stranger.is_dealt_honestly();
}

#[test]
fn a_parcel_whose_queue_holds_something_else_harms_nobody() {
    let (mut manager, mut crowd) = orphans(false);
    // Both ends of it under one name, and garbage in between.
    let (near, far) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    far.send(b"what is this?").unwrap();
    far.send(&[0; 64]).unwrap();
    far.shutdown(Shutdown::Read).unwrap();
    manager.put("preserve-queue-9", near);
    manager.put("preserve-queue-9", far);
    manager.start();
    crowd.goes_on();
    manager.one_of_each();
    manager.kill();
    manager.start();
    crowd.goes_on();
    crowd.comes_back_exact();
}
