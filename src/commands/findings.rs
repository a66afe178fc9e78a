//! What `tcp-echo check` has found: as text for a reader, and as an object for a program.
//!
//! Both are made by the same calls, so each has everything that the other has.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::{Exit, complain};
use crate::config::address::Address;
use crate::config::keys::Key;
use crate::sys::bind::Failure;
use crate::sys::endpoint::printable;
use crate::sys::option_report::Row;

/// What was found, for a reader and for a program.
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
    pub(super) settings: BTreeMap<String, Setting>,
    pub(super) kernel: BTreeMap<&'static str, Option<u64>>,
    pub(super) cases: Vec<String>,
}

/// A key of the daemon.
#[derive(Serialize)]
pub(super) struct Setting {
    value: String,
    note: String,
}

/// A listener.
#[derive(Default, Serialize)]
pub(super) struct Tried {
    pub(super) name: String,
    /// Absent where the listener is only for a passed socket.
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

    pub(super) fn setting(&mut self, key: &Key, value: String, note: String) {
        self.line(format!("  {:<28}{value:<10}{note}", key.name).trim_end());
        self.found
            .settings
            .insert(key.full_name(), Setting { value, note });
    }

    pub(super) fn case(&mut self, text: String) {
        self.line(format!("  {text}"));
        self.found.cases.push(text);
    }

    pub(super) fn rows(&mut self, rows: &[Row]) {
        if rows.is_empty() {
            return;
        }
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
            let effective = if effective.is_empty() { "-" } else { effective };
            self.line(format!("    {option:<20}{asked:<12}{effective:<12}{note}").trim_end());
        }
    }

    pub(super) fn unless(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.wrong(&failure.to_string(), Exit::of(&failure.error));
        }
    }

    /// A defect that the daemon would report too.
    pub(super) fn wrong(&mut self, text: &str, exit: Exit) {
        // A defect that two addresses of one name have is reported once.
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
