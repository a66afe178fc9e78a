//! The notices of the crates in packaging/debian/copyright.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Generated, path, text};

const NAME: &str = "packaging/debian/copyright";

/// Between these lines stand the notices of the crates.
const CRATES: &str = " The crates, of which each notice here is copied from its sources:\n";
const LIBRARY: &str = " The standard library of Rust, and what it brings along:\n";

pub(crate) fn file() -> Generated {
    let kept = text(NAME);
    let (head, rest) = kept.split_once(CRATES).unwrap();
    let (_, tail) = rest.split_once(LIBRARY).unwrap();
    let made = format!("{head}{CRATES}{}{LIBRARY}{tail}", notices());
    (NAME.into(), made)
}

/// The crates that are linked into the program, with their licences and the copyright notices of
/// their sources.
fn notices() -> String {
    let linked = cargo(&[
        "tree",
        "-p",
        "tcp-echo",
        "-e",
        "normal,no-proc-macro",
        "--prefix",
        "none",
    ]);
    let linked: BTreeSet<(&str, &str)> = linked
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, version)| (name, version.split(' ').next().unwrap()))
        .filter(|(name, _)| *name != "tcp-echo")
        .collect();
    assert!(linked.len() > 20, "{linked:?}");
    let target = "x86_64-unknown-linux-gnu";
    let all = cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--filter-platform",
        target,
    ]);
    let all: serde_json::Value = serde_json::from_str(&all).unwrap();
    let mut made = String::new();
    for (name, version) in linked {
        let is_it =
            |known: &&serde_json::Value| known["name"] == name && known["version"] == version;
        let known = all["packages"].as_array().unwrap().iter().find(is_it);
        let known =
            known.unwrap_or_else(|| panic!("cargo metadata does not know {name} {version}"));
        let licence = known["license"].as_str().unwrap();
        made += &format!(" .\n {name} {version}, {licence}:\n");
        let folder = Path::new(known["manifest_path"].as_str().unwrap())
            .parent()
            .unwrap();
        let mut found = copyrights(folder);
        if found.is_empty() {
            let authors = known["authors"].as_array().unwrap().iter();
            let authors: Vec<&str> = authors.filter_map(|author| author.as_str()).collect();
            found.insert(match authors.is_empty() {
                true => format!("Copyright: the contributors of {name}"),
                false => format!("Copyright: {}", authors.join(", ")),
            });
        }
        for notice in found {
            made += &format!("  {notice}\n");
        }
    }
    made + " .\n"
}

/// The copyright notices in the licence files of a crate; not those that a licence shows as examples.
fn copyrights(folder: &Path) -> BTreeSet<String> {
    let mut notices = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let has_notices = ["LICEN", "COPY", "NOTICE"]
            .iter()
            .any(|start| name.starts_with(start));
        if !has_notices || !entry.file_type().unwrap().is_file() {
            continue;
        }
        let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
        for line in text.lines().map(str::trim) {
            let notice = line.starts_with("Copyright ") || line.starts_with("Copyrights in ");
            let example = ["yyyy", "notice", "license", "owner"].iter();
            if notice && !example.clone().any(|word| line.contains(word)) {
                notices.insert(line.replace('`', ""));
            }
        }
    }
    notices
}

/// Runs cargo without the network.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(path(""))
        .args(arguments)
        .args(["--locked", "--offline"])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    String::from_utf8(output.stdout).unwrap()
}
