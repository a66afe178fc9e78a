//! Every byte comes back, in order, whatever the client does.

use crate::daemon::{Daemon, finish, pattern, ping};

#[test]
fn a_message_comes_back_and_so_does_the_rest_after_half_close() {
    let mut daemon = Daemon::start();
    let mut client = daemon.connect();
    ping(&client, b"hello");
    ping(&client, &pattern(1, 300_000));
    assert!(finish(&mut client).is_empty());
    assert!(daemon.stop().success());
}
