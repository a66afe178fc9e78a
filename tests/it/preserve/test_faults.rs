//! Preservation, broken on purpose: the tests of `restart` have to fail then, or they prove nothing.
//!
//! `cargo test --features test-faults --test it -- test_faults::`

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use testkit::crowd::ClientMix;
use testkit::crowd::Kind::{Stalled, Streaming};
use testkit::manager::Manager;
use testkit::ping;

/// Kills daemons while all clients stream; returns what went wrong, if anything.
fn story(control: Option<&str>, capacity: usize) -> Result<(), String> {
    let told = AssertUnwindSafe(|| {
        let mut manager = Manager::new();
        manager.capacity(capacity);
        manager.config("preserve-after = '0s'");
        if let Some(control) = control {
            manager.environment("TCP_ECHO_TEST_FAULT", control);
        }
        manager.start();
        let mut mix = ClientMix::new(manager.address(), &[(Streaming, 12), (Stalled, 4)]);
        mix.meanwhile(|_| {
            if capacity > 0 {
                manager.preserves(16);
            }
            for round in 0..12 {
                ping(manager.connect(), b"hello");
                thread::sleep(Duration::from_millis(5 + round));
                manager.kill();
                manager.start();
            }
        });
        mix.none_was_dropped();
        mix.gets_exact_bytes();
    });
    catch_unwind(told).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.unwrap_or_else(|| "it failed".into())
    })
}

#[test]
fn unbroken_preservation_works() {
    assert_eq!(story(None, 16), Ok(()));
}

#[test]
fn without_the_counters_of_the_kernel_preservation_fails() {
    let why = story(Some("no-counters"), 16).unwrap_err();
    eprintln!("{why}");
}

#[test]
fn without_peeking_preservation_fails() {
    let why = story(Some("no-peek"), 16).unwrap_err();
    eprintln!("{why}");
}

#[test]
fn without_a_store_preservation_fails() {
    let why = story(None, 0).unwrap_err();
    eprintln!("{why}");
}
