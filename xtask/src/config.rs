//! packaging/config.toml: every key with its help and its default, as a comment.

use tcp_echo::config::keys::{Effect, KEYS, Key, Value};

use crate::Generated;

const HEAD: &str = "\
Configuration of tcp-echo, the TCP echo service.

Every key is shown with its default, or with an example where its text says what holds without it; \
a line without its \"#\" changes it.  Further files in /etc/tcp-echo/config.toml.d/*.toml are laid \
over this one key by key, in the order of their names.  To see what it all means: tcp-echo check.  \
To bring it into effect: systemctl reload tcp-echo.

Spans of time have a unit (\"90s\", \"5min\", \"500ms\"), sizes may have one (\"64KiB\", 65536).  A key \
belongs to the table above it, so a setting that is added at the end of this file is one of [socket].";

const SOCKET: &str = "\
Options of sockets.  The defaults below are those of listeners that tcp-echo opens itself; a socket \
that the service manager passes keeps what its unit says, except for what is named here and for \
notsent-lowat, for which a socket unit has no setting.";

const LISTENER: &str = "\
Listeners.  The name is logged with each connection; a socket that the service manager passes under \
this name (FileDescriptorName=) takes the options of the table and replaces its address.  Every key \
of [socket] may stand here too.  Without any listener that echoes, and without a passed one, tcp-echo \
listens on 127.0.0.1:9999 and [::1]:9999.";

const EXAMPLES: &str = "\
#
#[listener.public]
#address = \"*:9999\"            # any address, IPv4 and IPv6, one socket
#
#[listener.health]
#address = \"127.0.0.1:9108\"     # one line about the health of the service, for balancers
#
#[listener.local]
#address = \"unix:/run/tcp-echo/echo.sock\"
";

pub(crate) fn file() -> Generated {
    let mut made = String::new();
    for paragraph in HEAD.split("\n\n") {
        if !made.is_empty() {
            made += "#\n";
        }
        made += &comment(paragraph);
    }
    let mut table = "";
    for key in KEYS.iter().filter(|key| key.table != "listener") {
        made.push('\n');
        if key.table != table {
            table = key.table;
            if table == "socket" {
                made += &comment(SOCKET);
            }
            made += &format!("[{table}]\n");
        }
        made += &comment(&help(key));
        let (Value::Default(value) | Value::Example(value)) = key.value;
        made += &format!("#{} = {value}\n", key.name);
    }
    made.push('\n');
    made += &comment(LISTENER);
    made += EXAMPLES;
    ("packaging/config.toml".into(), made)
}

/// The help of a key, and what it takes where that is not plain from the default.
fn help(key: &Key) -> String {
    let takes = (key.takes)();
    let mut help = key.help.to_owned();
    if takes != "true or false" {
        help += &format!("  Value: {takes}.");
    }
    if key.effect == Effect::AtRestart {
        help += "  A change needs a restart.";
    }
    help
}

/// Text as lines of a comment, of at most 98 characters.
fn comment(text: &str) -> String {
    let mut made = String::new();
    let mut line = "#".to_owned();
    for (at, word) in text.split(' ').enumerate() {
        let fits = line.len() + 1 + word.len() <= 98;
        if at > 0 && !fits {
            made += &format!("{}\n", line.trim_end());
            line = "#".into();
            if word.is_empty() {
                continue;
            }
        }
        line.push(' ');
        line += word;
    }
    made + line.trim_end() + "\n"
}
