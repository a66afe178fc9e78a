//! The catalog explains every message, with fields that the message has.
//!
//! That every event has one entry, in the frame of its row, is a test of xtask, which writes that
//! frame; these are about the texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;
use tcp_echo::log::events::{EVENTS, id};
use testkit::{Folder, Plan, has, listener, ping};

/// What the catalog says about one message.
#[derive(Debug)]
struct Entry {
    id: String,
    subject: String,
    headers: BTreeMap<String, String>,
    body: String,
}

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The catalog, in its order.
fn entries() -> Vec<Entry> {
    let catalog: String = text("packaging/tcp-echo.catalog")
        .split_inclusive('\n')
        .filter(|line| !line.starts_with('#'))
        .collect();
    let mut entries = Vec::new();
    for entry in catalog.split("\n-- ").skip(1) {
        let (head, body) = entry.split_once("\n\n").expect(entry);
        let mut lines = head.lines();
        let id = lines.next().unwrap().to_owned();
        let headers: BTreeMap<String, String> = lines
            .map(|line| line.split_once(": ").expect(line))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        entries.push(Entry {
            id,
            subject: headers["Subject"].clone(),
            headers,
            body: body.trim_end().to_owned(),
        });
    }
    entries
}

impl Entry {
    /// The names between two `@`.
    fn fields(&self) -> BTreeSet<&str> {
        let all = self.body.split('@').skip(1).step_by(2).collect();
        assert!(self.body.matches('@').count() % 2 == 0, "{self:?}");
        all
    }
}

#[test]
fn an_entry_says_what_happened_and_what_to_do() {
    let mut subjects = BTreeSet::new();
    for entry in entries() {
        assert!(!entry.body.is_empty(), "{entry:?}");
        let skeleton = entry.body.contains("TODO") || entry.subject.contains("TODO");
        assert!(!skeleton, "to be written: {entry:?}");
        assert!(subjects.insert(entry.subject.clone()), "{entry:?}");
        let names: Vec<&str> = entry.headers.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["Defined-By", "Documentation", "Subject"],
            "{entry:?}"
        );
        assert_eq!(entry.headers["Defined-By"], "tcp-echo");
        assert_eq!(entry.headers["Documentation"], "man:tcp-echo(8)");
        assert!(
            entry.body.lines().all(|line| line.len() <= 100),
            "{entry:?}"
        );
    }
    let way_back =
        "systemctl reset-failed tcp-echo.service tcp-echo.socket; systemctl start tcp-echo.socket";
    let failed = entries()
        .into_iter()
        .find(|e| e.body.contains(way_back))
        .unwrap();
    assert_eq!(failed.subject, "The TCP echo service cannot start");
}

#[test]
fn an_entry_uses_fields_that_its_message_has() {
    let entries = entries();
    assert_eq!(entries.len(), EVENTS.len());
    for (entry, kind) in entries.iter().zip(EVENTS) {
        assert_eq!(entry.id, kind.id);
        let fields = kind.fields.iter().map(|field| field.replace('.', "_"));
        let fields: Vec<String> = fields.map(|field| field.to_uppercase()).collect();
        for field in entry.fields() {
            let known = fields.iter().any(|known| known == field);
            assert!(known, "{}: there is no {field}", entry.subject);
        }
    }
}

/// Some fields are left out where they do not apply; an entry needs those that always apply.
#[test]
fn an_entry_uses_fields_that_are_logged() {
    let entries = entries();
    let mut seen = BTreeSet::new();
    for config in [
        "[limits]\nmax-connections = 1\n[log]\nconnection-rate = 0\n[listener.unused]\n",
        "[limits]\nmax-connections = 1000000\n[listener.open]\naddress = '0.0.0.0:0'\n",
    ] {
        let mut daemon = Plan::bare()
            .config(config)
            .argument("--log=trace")
            .argument("--log-format=json")
            .pass(vec![listener().into()], "passed")
            .start();
        let (first, second) = (daemon.connect(), daemon.connect());
        ping(&first, b"first");
        drop(first);
        ping(&second, b"second");
        daemon.reload(config);
        daemon.reload("wrong");
        daemon.signal(Signal::USR1);
        daemon.logged(id("COUNTERS"));
        daemon.stop();
        for line in daemon.log().lines() {
            let logged: Value = serde_json::from_str(line).unwrap();
            let entry = entries
                .iter()
                .find(|entry| logged["message_id"] == entry.id);
            let entry = entry.unwrap_or_else(|| panic!("no entry for {line}"));
            for field in entry.fields() {
                let name = match field.split_once('_') {
                    Some((prefix, rest)) => format!("{prefix}.{rest}").to_lowercase(),
                    None => field.to_lowercase(),
                };
                assert!(logged.get(&name).is_some(), "{field} is missing: {line}");
            }
            seen.insert(entry.subject.clone());
        }
    }
    // The other events need a broken kernel, manager or log, or clients on other hosts.
    assert!(seen.len() >= 16, "{seen:?}");
}

#[test]
fn journalctl_takes_the_catalog() {
    if !has("journalctl") {
        return;
    }
    let root = Folder::new();
    let name = "usr/lib/systemd/catalog/tcp-echo.catalog";
    root.write(name, &text("packaging/tcp-echo.catalog"));
    std::fs::create_dir_all(root.path("var/lib/systemd/catalog")).unwrap();
    let journalctl = |what: &str| {
        let root = format!("--root={}", root.path("").display());
        let output = Command::new("journalctl")
            .args([what, &root])
            .output()
            .unwrap();
        let complaints = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && complaints.is_empty(),
            "{what}: {complaints}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    journalctl("--update-catalog");
    let list = journalctl("--list-catalog");
    assert_eq!(list.lines().count(), entries().len(), "{list}");
    for entry in entries() {
        let line = format!("{} tcp-echo: {}", entry.id, entry.subject);
        assert!(list.lines().any(|listed| listed == line), "{list}");
    }
}
