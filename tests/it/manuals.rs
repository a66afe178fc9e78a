//! The manuals explain all that there is.
//!
//! What there is comes from the program: from its types where they can be asked, else from its
//! source.  That the text is right is a matter for readers.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use tcp_echo::cli::Cli;
use tcp_echo::config::Origin;
use tcp_echo::echo::reason::Reason;

use crate::catalog;
use crate::daemon::Folder;

const PAGES: [&str; 2] = ["packaging/man/tcp-echo.8", "packaging/man/tcp-echo.toml.5"];

fn text(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// A page without hyphens that are escaped, and without changes of type within a line.
fn page(name: &str) -> String {
    let mut page = text(name).replace("\\-", "-");
    for change in ["\\fB", "\\fI", "\\fR", "\\%"] {
        page = page.replace(change, "");
    }
    page
}

/// What stands under a heading (`.SH` or `.SS`), to the next one of its kind or above.
#[track_caller]
fn under<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = format!("\n{heading}\n");
    let (_, rest) = page
        .split_once(&start)
        .unwrap_or_else(|| panic!("there is no {heading}"));
    let end = match heading.starts_with(".SS") {
        true => rest
            .find("\n.SS ")
            .into_iter()
            .chain(rest.find("\n.SH "))
            .min(),
        false => rest.find("\n.SH "),
    };
    &rest[..end.unwrap_or(rest.len())]
}

/// The words that a text explains: those in the tags of its paragraphs.
fn tags(text: &str) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    let mut tag = false;
    for line in text.lines() {
        if tag {
            let words = line
                .split([' ', ',', '"', '='])
                .filter(|word| !word.is_empty());
            tags.extend(words.map(str::to_owned));
        }
        tag = line == ".TP" || line == ".TQ";
    }
    tags
}

/// The words of a text, options with their hyphens.
fn words(text: &str) -> BTreeSet<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.split(|c| !part(c)).collect()
}

#[track_caller]
fn same(explained: &BTreeSet<String>, known: &BTreeSet<String>) {
    let missing: Vec<_> = known.difference(explained).collect();
    assert!(missing.is_empty(), "not explained: {missing:?}");
    let left_over: Vec<_> = explained.difference(known).collect();
    assert!(
        left_over.is_empty(),
        "explained, but not there: {left_over:?}"
    );
}

#[test]
fn every_key_is_explained_in_its_table() {
    let page = page(PAGES[1]);
    let folder = Folder::new();
    for (table, heading) in [
        ("", ".SS Before the first table"),
        ("[limits]", ".SS [limits]"),
        ("[log]", ".SS [log]"),
        ("[socket]", ".SS [socket]"),
        ("[listener.x]", ".SS [listener.NAME]"),
    ] {
        let file = folder.write("config.toml", &format!("{table}\nno-such-key = 1"));
        let origin = Origin {
            file: Some(file),
            ..Origin::default()
        };
        let error = origin.load().unwrap_err().to_string();
        let (_, known) = error.split_once("expected one of ").unwrap();
        let mut explained = tags(under(&page, heading));
        if table == "[listener.x]" {
            // Every option of a socket may stand there too.
            explained.extend(tags(under(&page, ".SS [socket]")));
        }
        for key in known.split('`').skip(1).step_by(2) {
            let elsewhere = match table {
                // Tables have headings.
                "" => ["limits", "log", "socket", "listener"].contains(&key),
                "[socket]" => key == "address",
                _ => false,
            };
            assert!(elsewhere || explained.contains(key), "{table} lacks {key}");
        }
    }
}

#[test]
fn every_command_and_option_is_explained() {
    let page = page(PAGES[0]);
    let synopsis = words(under(&page, ".SH SYNOPSIS"));
    let (commands, options) = (under(&page, ".SH COMMANDS"), under(&page, ".SH OPTIONS"));
    let command = Cli::command();
    for argument in command.get_arguments() {
        let name = format!("--{}", argument.get_long().unwrap());
        assert!(tags(options).contains(&name), "OPTIONS lacks {name}");
        assert!(
            synopsis.contains(name.as_str()) || name == "--help",
            "SYNOPSIS lacks {name}"
        );
        let names = argument.get_value_names().unwrap_or_default();
        for value in names
            .iter()
            .filter(|_| argument.get_action().takes_values())
        {
            assert!(synopsis.contains(value.as_str()), "SYNOPSIS lacks {value}");
        }
    }
    for subcommand in command.get_subcommands() {
        let name = subcommand.get_name();
        assert!(tags(commands).contains(name), "COMMANDS lacks {name}");
        assert!(synopsis.contains(name), "SYNOPSIS lacks {name}");
        for argument in subcommand.get_arguments() {
            let name = format!("--{}", argument.get_long().unwrap());
            assert!(
                words(commands).contains(name.as_str()),
                "COMMANDS lacks {name}"
            );
            assert!(synopsis.contains(name.as_str()), "SYNOPSIS lacks {name}");
        }
    }
}

#[test]
fn every_signal_is_explained() {
    let source = text("src/system/signals.rs");
    let page = page(PAGES[0]);
    let signals = under(&page, ".SH SIGNALS");
    let known: BTreeSet<&str> = words(&source)
        .into_iter()
        .filter(|word| is_signal(word))
        .collect();
    assert!(known.len() > 4, "{known:?}");
    for signal in known {
        assert!(words(signals).contains(signal), "SIGNALS lacks {signal}");
    }
}

fn is_signal(word: &str) -> bool {
    word.len() > 5
        && word.starts_with("SIG")
        && word
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
}

#[test]
fn every_exit_status_is_explained_and_no_other() {
    let source = text("src/commands/mod.rs");
    let (_, statuses) = source.split_once("pub enum Exit {").unwrap();
    let known: BTreeSet<String> = statuses
        .lines()
        .take_while(|line| *line != "}")
        .filter_map(|line| line.split_once(" = ")?.1.strip_suffix(','))
        .map(str::to_owned)
        .collect();
    let page = page(PAGES[0]);
    let mut explained = tags(under(&page, ".SH EXIT STATUS"));
    explained.remove(".B");
    same(&explained, &known);
}

#[test]
fn every_reason_is_explained_and_no_other() {
    let page = page(PAGES[0]);
    let mut explained = tags(under(&page, ".SS Reasons"));
    explained.remove(".B");
    same(&explained, &Reason::KINDS.map(str::to_owned).into());
}

#[test]
fn every_variable_of_the_environment_is_explained() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    // These are read by crates.
    for name in [
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ] {
        known.insert(name.into());
    }
    for file in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        // Not in a build that anybody uses.
        if file.ends_with("survival/controls.rs") {
            continue;
        }
        let source = std::fs::read_to_string(file).unwrap();
        let source = source.split("#[cfg(test)]").next().unwrap();
        for call in ["env::var(\"", "env::var_os(\"", " env = \""] {
            for rest in source.split(call).skip(1) {
                known.insert(rest.split('"').next().unwrap().to_owned());
            }
        }
    }
    assert!(known.len() > 8, "{known:?}");
    let page = page(PAGES[0]);
    let explained = tags(under(&page, ".SH ENVIRONMENT"));
    for name in known {
        assert!(explained.contains(&name), "ENVIRONMENT lacks {name}");
    }
}

fn sources(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(sources(&path)),
            false => files.push(path),
        }
    }
    files
}

#[test]
fn every_field_is_explained_and_no_other() {
    let page = page(PAGES[0]);
    let mut explained = tags(under(&page, ".SS Fields"));
    explained.remove(".BR");
    let told: BTreeSet<String> = catalog::messages().into_values().flatten().collect();
    same(&explained, &told);
}

#[test]
fn the_manual_says_what_else_an_operator_must_know() {
    let page = page(PAGES[0]);
    for heading in [
        "DESCRIPTION",
        "FILES",
        "LOGGING",
        "EXAMPLES",
        "STANDARDS",
        "SEE ALSO",
    ] {
        under(&page, &format!(".SH {heading}"));
    }
    // The drop-in, as in the README.
    let readme = text("README.md");
    let (_, drop_in) = readme.split_once("```ini\n").unwrap();
    let (drop_in, _) = drop_in.split_once("```").unwrap();
    assert!(under(&page, ".SH SECURITY").contains(drop_in), "{drop_in}");
    assert!(under(&page, ".SH SECURITY").contains("systemctl restart tcp-echo.socket"));
    let way_back =
        "systemctl reset-failed tcp-echo.service tcp-echo.socket; systemctl start tcp-echo.socket";
    assert!(under(&page, ".SH EXIT STATUS").contains(way_back));
}

#[test]
fn the_manuals_render_without_warnings() {
    for name in PAGES {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let groff = Command::new("groff")
            .args(["-t", "-man", "-Tutf8", "-ww", "-z"])
            .arg(&file)
            .output();
        let Ok(output) = groff else {
            eprintln!("skipped: groff is not installed");
            return;
        };
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && complaints.is_empty(),
            "{complaints}"
        );
        let odd = text(name)
            .lines()
            .any(|line| line.ends_with(' ') || !line.is_ascii());
        assert!(!odd, "{name}");
    }
}
