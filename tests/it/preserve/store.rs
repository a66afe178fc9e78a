//! The fixture's manager does what systemd does: it stores, refuses, removes, answers and passes on.
//!
//! Most tests here need no daemon: the messages come from a client of the test.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use tcp_echo::log::events::id;
use testkit::manager::{Manager, memory_file};
use testkit::{SOON, eventually, ping};

/// Message ids that the tests look for; what they stand for is the catalog's business.
const CLOSED: &str = id("CLOSED");
const STOPPED: &str = id("STOPPED");

/// Sends a message from a client that is not a daemon.
fn notify(manager: &Manager, message: &str, descriptors: &[BorrowedFd<'_>]) {
    let socket = UnixDatagram::unbound().unwrap();
    let address = SocketAddrUnix::new(manager.path("notify")).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    sendmsg_addr(
        &socket,
        &address,
        &[IoSlice::new(message.as_bytes())],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
}

/// Sends a barrier; returns whether it is answered in time.
fn barrier(manager: &Manager, within: Duration) -> bool {
    let (reader, writer) = UnixStream::pair().unwrap();
    notify(manager, "BARRIER=1", &[writer.as_fd()]);
    drop(writer);
    let mut ask = [PollFd::new(&reader, PollFlags::empty())];
    let within = Timespec::try_from(within).unwrap();
    poll(&mut ask, Some(&within)).unwrap() == 1
}

#[test]
fn the_manager_stores_by_name_while_there_is_room_and_removes_by_name() {
    let manager = Manager::new();
    manager.capacity(3);
    let files: Vec<File> = (1..=4).map(memory_file).collect();
    let [a, b, c, d] = &files[..] else {
        unreachable!()
    };
    notify(
        &manager,
        "FDSTORE=1\nFDNAME=preserve-state-1\nFDPOLL=0",
        &[a.as_fd()],
    );
    let two = [b.as_fd(), c.as_fd()];
    notify(
        &manager,
        "FDSTORE=1\nFDNAME=preserve-queue-1\nFDPOLL=0",
        &two,
    );
    notify(
        &manager,
        "FDSTORE=1\nFDNAME=preserve-queue-2\nFDPOLL=0",
        &[d.as_fd()],
    );
    assert!(barrier(&manager, SOON));
    assert_eq!(manager.one_of_each(), "preserve-queue-1");
    assert_eq!((manager.stored("preserve-"), manager.peak()), (3, 3));
    assert_eq!(manager.state_file().metadata().unwrap().len(), 1);
    notify(&manager, "FDSTOREREMOVE=1\nFDNAME=preserve-queue-1", &[]);
    notify(&manager, "STATUS=still here", &[]);
    assert_eq!(manager.notified("STATUS="), "STATUS=still here");
    assert_eq!(manager.names(), ["preserve-state-1"]);
    assert_eq!(manager.messages().len(), 5);
    assert_eq!(manager.drop_all("preserve-").unwrap(), "preserve-state-1");
    assert!(manager.names().is_empty());
}

#[test]
fn a_refused_descriptor_is_closed_and_a_polled_one_is_removed_when_its_other_end_closes() {
    let manager = Manager::new();
    let hung_up = |end: &OwnedFd| {
        let mut ask = [PollFd::new(end, PollFlags::empty())];
        poll(&mut ask, Some(&Timespec::default())).unwrap() == 1
    };
    let pair = || UnixStream::pair().unwrap();
    let message = "FDSTORE=1\nFDNAME=a";
    let (ours, theirs) = pair();
    notify(&manager, message, &[theirs.as_fd()]);
    drop(theirs);
    assert!(barrier(&manager, SOON));
    let ours = OwnedFd::from(ours);
    assert!(!hung_up(&ours));
    manager.capacity(1);
    let (refused, theirs) = pair();
    notify(&manager, message, &[theirs.as_fd()]);
    drop(theirs);
    assert!(barrier(&manager, SOON));
    let refused = refused.into();
    eventually(SOON, "it is not closed", || hung_up(&refused).then_some(()));
    assert_eq!(manager.names(), ["a"]);
    drop(ours);
    // A process that another test has just started may have it until it executes its program.
    eventually(SOON, "it is stored for ever", || {
        manager.names().is_empty().then_some(())
    });
}

#[test]
fn a_manager_can_hold_its_answers_back() {
    let manager = Manager::new();
    manager.answers(false);
    assert!(!barrier(&manager, Duration::from_millis(100)));
    manager.answers(true);
    assert!(barrier(&manager, SOON));
    assert_eq!(manager.barriers(), 2);
}

#[test]
fn many_descriptors_are_passed_by_name_and_daemons_follow_each_other() {
    let mut manager = Manager::new().unix_listener("local");
    for number in 0..30 {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        manager = manager.listener(&format!("more-{number}"), socket);
    }
    manager.config("");
    for _ in 0..2 {
        manager.start();
        assert_eq!(manager.daemon().listen.len(), 32);
        ping(manager.connect(), b"hello");
        let local = UnixStream::connect(manager.path("local")).unwrap();
        ping(&local, b"hello");
        drop(local);
        assert_eq!(manager.event(CLOSED)["echo.received"], 5);
        manager.status_has("echoed");
        manager.kill();
    }
    manager.start();
    manager.stop();
    manager.past_event(STOPPED);
}

#[test]
fn a_daemon_that_listens_for_itself_has_the_same_port_again() {
    let mut manager = Manager::without_listeners(0);
    manager.config("");
    manager.start();
    let address = manager.address();
    for _ in 0..2 {
        ping(manager.connect(), b"hello");
        manager.kill();
        manager.start();
        assert_eq!(manager.address(), address);
    }
}
