//! The manual pages explain everything that the program has.
//!
//! Keys, signals, exit statuses, the environment, reasons and messages are generated (xtask); these
//! tests are about what is written by hand.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use tcp_echo::cli::Cli;
use tcp_echo::log::events::EVENTS;

pub const PAGES: [&str; 4] = [
    "packaging/man/tcp-echo.8",
    "packaging/man/tcp-echo.toml.5",
    "packaging/man/tcp-echo-ping.1",
    "packaging/man/tcp-echo-probe.1",
];

/// The page of a command, if it has one of its own.
fn page_of(command: &str) -> Option<&'static str> {
    let end = format!("tcp-echo-{command}.1");
    PAGES.into_iter().find(|page| page.ends_with(&end))
}

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

/// The text under a heading (`.SH` or `.SS`), to the next one of its kind or above.
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
        let own = page_of(name).map(self::page);
        for argument in subcommand.get_arguments() {
            let (explained, name) = match (argument.get_long(), &own) {
                (Some(name), Some(own)) => (under(own, ".SH OPTIONS"), format!("--{name}")),
                (Some(name), None) => (commands, format!("--{name}")),
                (None, own) => {
                    let name = argument.get_value_names().unwrap()[0].to_string();
                    let own = own.as_deref().unwrap_or(&page);
                    (
                        under(own, ".SH SYNOPSIS"),
                        name.split('[').next().unwrap().to_owned(),
                    )
                }
            };
            assert!(
                words(explained).contains(name.as_str()),
                "no page has {name}"
            );
            if own.is_none() {
                assert!(synopsis.contains(name.as_str()), "SYNOPSIS lacks {name}");
            }
        }
    }
}

#[test]
fn every_field_is_explained_and_no_other() {
    let page = page(PAGES[0]);
    let mut explained = tags(under(&page, ".SS Fields"));
    explained.remove(".BR");
    let fields = EVENTS.into_iter().flat_map(|kind| kind.fields);
    let fields = fields.map(|field| field.replace('.', "_").to_uppercase());
    same(&explained, &fields.collect());
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
