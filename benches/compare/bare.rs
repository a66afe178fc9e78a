//! The server to compare with: a bare loop, in a process of its own.
//!
//! One thread, one level-triggered epoll, one buffer of 64 KiB for all; an event is a receive and
//! a send.  No check, no limit, no clock, no count, no signal, no log: whatever a daemon does
//! beyond, it does on top of this.  Its sockets block, so that a send takes everything; a client
//! that does not read would stop the others, which here all do.
//!
//! rustix makes the system calls without libc in between: no program in C is closer to the kernel.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};
use socket2::{Domain, Socket, Type};

/// Serves on a port of its own, which it prints first, until it is killed.
pub fn serve() -> io::Result<()> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_tcp_nodelay(true)?;
    listener.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(4096)?;
    let address = listener.local_addr()?.as_socket().unwrap();
    println!("{address}");

    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    let number = u64::try_from(listener.as_raw_fd()).unwrap();
    epoll::add(&poll, &listener, EventData::new_u64(number), EventFlags::IN)?;
    // By the number of the descriptor.
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    let mut events: Vec<Event> = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in &events {
            let data = event.data;
            if data.u64() == number {
                let Ok(connection) = accept_with(&listener, SocketFlags::CLOEXEC) else {
                    continue;
                };
                let at = usize::try_from(connection.as_raw_fd()).unwrap();
                epoll::add(
                    &poll,
                    &connection,
                    EventData::new_u64(at as u64),
                    EventFlags::IN,
                )?;
                if at >= connections.len() {
                    connections.resize_with(at + 1, || None);
                }
                connections[at] = Some(connection);
                continue;
            }
            let at = usize::try_from(data.u64()).unwrap();
            let Some(connection) = &connections[at] else {
                continue;
            };
            let count =
                recv(connection, &mut buffer[..], RecvFlags::empty()).map_or(0, |(_, count)| count);
            if count == 0 || send(connection, &buffer[..count], SendFlags::NOSIGNAL).is_err() {
                connections[at] = None;
            }
        }
    }
}
