//! Survival, broken on purpose: the stories of `survival` have to fail then, or they prove nothing.
//!
//! `cargo test --features test-faults --test it -- test_faults::`

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use crate::crowd::Crowd;
use crate::crowd::Kind::{Stalled, Streaming};
use crate::daemon::ping;
use crate::manager::Manager;

/// Kills while everybody streams; what went wrong, if anything.
fn story(control: Option<&str>, capacity: usize) -> Result<(), String> {
    let told = AssertUnwindSafe(|| {
        let mut manager = Manager::new();
        manager.capacity(capacity);
        manager.config("preserve-after = '0s'");
        if let Some(control) = control {
            manager.environment("TCP_ECHO_TEST_FAULT", control);
        }
        manager.start();
        let mut crowd = Crowd::new(manager.address(), &[(Streaming, 12), (Stalled, 4)]);
        crowd.meanwhile(|_| {
            if capacity > 0 {
                manager.keeps(16);
            }
            for round in 0..12 {
                ping(manager.connect(), b"hello");
                thread::sleep(Duration::from_millis(5 + round));
                manager.kill();
                manager.start();
            }
        });
        crowd.nobody_was_dropped();
        crowd.comes_back_exact();
    });
    catch_unwind(told).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.unwrap_or_else(|| "it failed".into())
    })
}

#[test]
fn unbroken_it_works() {
    assert_eq!(story(None, 16), Ok(()));
}

#[test]
fn without_the_kernels_counters_it_fails() {
    let why = story(Some("no-counters"), 16).unwrap_err();
    eprintln!("{why}");
}

#[test]
fn without_peeking_it_fails() {
    let why = story(Some("no-peek"), 16).unwrap_err();
    eprintln!("{why}");
}

#[test]
fn without_a_store_it_fails() {
    let why = story(None, 0).unwrap_err();
    eprintln!("{why}");
}
