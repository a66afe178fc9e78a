//! The catalog explains every message, with fields that the message has.
//!
//! Which messages there are, and with which fields, is read from src/system/events.rs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::daemon::{Folder, Plan, has, listener, ping};

/// What the catalog says about one message.
#[derive(Debug)]
pub struct Entry {
    pub id: String,
    pub subject: String,
    headers: BTreeMap<String, String>,
    body: String,
}

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The catalog, in its order.
pub fn entries() -> Vec<Entry> {
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

/// The arguments of the call that `text` begins with.
fn arguments(text: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return &text[..at];
                }
            }
            _ => {}
        }
    }
    panic!("a call without an end: {text}")
}

/// The messages of the program: the fields of each, by id.
pub fn messages() -> BTreeMap<String, BTreeSet<String>> {
    let source = text("src/system/events.rs");
    let source = source.split("#[cfg(test)]").next().unwrap();
    let ids: BTreeMap<&str, &str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(super) const "))
        .filter_map(|line| line.strip_suffix("\";")?.split_once(": &str = \""))
        .collect();
    let mut messages = BTreeMap::new();
    let mut told = BTreeSet::new();
    // The last one is a call whose level depends on what happened.
    for level in [
        "error!(", "warn!(", "info!(", "debug!(", "trace!(", "$level!(",
    ] {
        for (at, _) in source.match_indices(level) {
            let call = arguments(&source[at..]);
            // `"echo.name" = value`, `errno = value` and `errno` alone; the message comes last.
            let fields: BTreeSet<String> = call
                .split(['\n', ','])
                .map(|part| part.split('=').next().unwrap())
                .map(|part| part.trim_start_matches(level).trim().trim_matches('"'))
                .filter(|name| name.starts_with("echo.") || *name == "errno")
                .map(|name| name.replace('.', "_").to_uppercase())
                .collect();
            let names: Vec<&str> = match call.split_once("id::") {
                Some((_, rest)) => vec![rest.split(',').next().unwrap()],
                // It is handed the id, by every call of the function that it stands in.
                None => source
                    .match_indices("tell_counters(\"")
                    .map(|(at, _)| arguments(&source[at..]).split_once("id::").unwrap().1)
                    .map(str::trim_end)
                    .collect(),
            };
            for name in names {
                let id = ids
                    .get(name)
                    .unwrap_or_else(|| panic!("{name:?} in {call}"));
                told.insert(name);
                messages
                    .entry((*id).to_owned())
                    .or_insert_with(BTreeSet::new)
                    .extend(fields.clone());
            }
        }
    }
    let known: BTreeSet<&str> = ids.keys().copied().collect();
    assert_eq!(told, known, "this test cannot read src/system/events.rs");
    messages
}

#[test]
fn every_message_has_one_entry_and_no_entry_is_left_over() {
    let messages = messages();
    let mut explained = BTreeSet::new();
    for Entry { id, subject, .. } in entries() {
        assert!(
            messages.contains_key(&id),
            "no message has the id of {subject:?}: {id}"
        );
        assert!(explained.insert(id), "{subject:?} shares its id");
    }
    for id in messages.keys() {
        assert!(
            explained.contains(id),
            "packaging/tcp-echo.catalog has no entry for {id}"
        );
    }
}

#[test]
fn an_entry_says_what_happened_and_what_to_do() {
    let mut subjects = BTreeSet::new();
    for entry in entries() {
        assert!(!entry.body.is_empty(), "{entry:?}");
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
    for reason in tcp_echo::echo::reason::Reason::KINDS {
        let entry = entries()
            .into_iter()
            .find(|e| e.subject == "A connection ended")
            .unwrap();
        let row = |line: &str| line.trim_start().starts_with(&format!("{reason} "));
        assert!(entry.body.lines().any(row), "no word about {reason}");
    }
}

#[test]
fn an_entry_uses_fields_that_its_message_has() {
    let messages = messages();
    for entry in entries() {
        for field in entry.fields() {
            assert!(
                messages
                    .get(&entry.id)
                    .is_none_or(|told| told.contains(field)),
                "{}: there is no {field}",
                entry.subject
            );
        }
    }
}

/// Many fields are told only sometimes; an entry needs those that always are.
#[test]
fn an_entry_uses_fields_that_are_told() {
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
        daemon.logged("7cc00e0f218a49398192dbfc1f40e617");
        daemon.stop();
        for line in daemon.log().lines() {
            let told: Value = serde_json::from_str(line).unwrap();
            let entry = entries.iter().find(|entry| told["message_id"] == entry.id);
            let entry = entry.unwrap_or_else(|| panic!("no entry for {line}"));
            for field in entry.fields() {
                let name = match field.split_once('_') {
                    Some((prefix, rest)) => format!("{prefix}.{rest}").to_lowercase(),
                    None => field.to_lowercase(),
                };
                assert!(told.get(&name).is_some(), "{field} is missing: {line}");
            }
            seen.insert(entry.subject.clone());
        }
    }
    // What is left needs a broken kernel, manager or log, or callers from elsewhere.
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
