//! What `tcp-echo check` has found: as text for a reader, and as an object for a machine.
//!
//! Both are made by the same calls, so neither says what the other does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, complain};
use crate::config::address::Address;
use crate::system::bind::Failure;
use crate::system::events::printable;
use crate::system::report::Row;

/// What was found, for a reader and for a machine.
#[derive(Default)]
pub(super) struct Report {
    pub(super) text: String,
    pub(super) found: Found,
    pub(super) exit: Exit,
    /// The addresses and the paths so far, for those that are given twice.
    pub(super) seen: Vec<SocketAddr>,
    pub(super) paths: Vec<PathBuf>,
}

/// What `--json` prints; tcp-echo(8) explains it.
#[derive(Default, Serialize)]
pub(super) struct Found {
    pub(super) exit: u8,
    pub(super) wrong: Vec<String>,
    pub(super) files: Vec<String>,
    pub(super) listeners: Vec<Tried>,
    pub(super) limits: BTreeMap<&'static str, String>,
    pub(super) loops: BTreeMap<&'static str, String>,
    pub(super) kernel: BTreeMap<&'static str, Option<u64>>,
    pub(super) cases: Vec<String>,
}

/// A listener.
#[derive(Default, Serialize)]
pub(super) struct Tried {
    pub(super) name: String,
    /// Absent: it is only for a passed socket.
    pub(super) address: Option<String>,
    pub(super) notes: Vec<String>,
    pub(super) wrong: Vec<String>,
    pub(super) options: Vec<Row>,
}

impl Report {
    pub(super) fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// The report as it is printed.
    pub(super) fn written(&mut self, config_only: bool, json: bool) -> Vec<u8> {
        if !json {
            let text = if config_only { "" } else { &self.text };
            return printable(text).as_bytes().to_vec();
        }
        self.found.exit = self.exit as u8;
        let mut bytes = serde_json::to_vec_pretty(&self.found).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The heading of a listener.
    pub(super) fn begin(&mut self, name: &str, address: Option<&Address>) {
        self.line(address.map_or_else(
            || format!("  {name}: only on a passed socket (FileDescriptorName={name})"),
            |address| format!("  {name}: {address}"),
        ));
        self.found.listeners.push(Tried {
            name: printable(name).into(),
            address: address.map(|address| printable(&address.to_string()).into()),
            ..Tried::default()
        });
    }

    /// A line about the listener that has begun.
    pub(super) fn note(&mut self, text: &str) {
        self.line(format!("    {text}"));
        if let Some(listener) = self.found.listeners.last_mut() {
            listener.notes.push(printable(text).into());
        }
    }

    pub(super) fn limit(&mut self, name: &'static str, value: String) {
        self.line(format!("  {name:<28}{value}"));
        self.found.limits.insert(name, value);
    }

    pub(super) fn of_loops(&mut self, name: &'static str, value: String) {
        self.line(format!("  {name:<28}{value}"));
        self.found.loops.insert(name, value);
    }

    pub(super) fn case(&mut self, text: String) {
        self.line(format!("  {text}"));
        self.found.cases.push(text);
    }

    pub(super) fn rows(&mut self, rows: &[Row]) {
        if let Some(listener) = self.found.listeners.last_mut() {
            listener.options.extend_from_slice(rows);
        }
        self.line(format!("    {:<20}{:<12}{:<12}", "option", "asked", "effective").trim_end());
        for Row {
            option,
            asked,
            effective,
            note,
        } in rows
        {
            let asked = if asked.is_empty() { "-" } else { asked };
            self.line(format!("    {option:<20}{asked:<12}{effective:<12}{note}").trim_end());
        }
    }

    pub(super) fn unless(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.wrong(&failure.to_string(), Exit::of(&failure.error));
        }
    }

    /// Something that the daemon would complain about too.
    pub(super) fn wrong(&mut self, text: &str, exit: Exit) {
        // What is told already (one name, two addresses) is not told twice.
        if !self.text.contains(text) {
            complain(text);
        }
        self.line(format!("    wrong: {text}"));
        let text: String = printable(text).into();
        if let Some(listener) = self.found.listeners.last_mut() {
            listener.wrong.push(text.clone());
        }
        self.found.wrong.push(text);
        self.exit = exit;
    }
}
