//! The generated regions of the manual pages, of every page in packaging/man.
//!
//! | region | what it lists |
//! |---|---|
//! | `title NAME SECTION` | the first line, with the date of the changelog |
//! | `options`, `options COMMAND` | the options of the program, or of a command |
//! | `keys TABLE` | the keys of a table of the configuration, `main` for those before the first |
//! | `signals`, `exit statuses`, `environment` | as their names say |
//! | `reasons` | why connections end |
//! | `cases` | what `tcp-echo probe` tries |
//! | `messages` | the ids of the messages, with their subjects in the catalog |

use tcp_echo::client::probe::CASES;
use tcp_echo::commands::{self, Exit};
use tcp_echo::config::keys::{Effect, KEYS, Value};
use tcp_echo::echo::end_reason::EndReason;
use tcp_echo::sys::environment::ENVIRONMENT;
use tcp_echo::sys::signals::SIGNALS;

use crate::region::refreshed;
use crate::roff::{bold, escaped, folded, hyphened, prose, sentence};
use crate::{Generated, catalog, path, text};

const FOLDER: &str = "packaging/man";

/// The date of the pages until the changelog has one for this version.
const UNRELEASED: &str = "2026-10-01";

pub(crate) fn files() -> Vec<Generated> {
    let entries = std::fs::read_dir(path(FOLDER)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut pages: Vec<String> = names.map(|name| format!("{FOLDER}/{name}")).collect();
    pages.sort();
    let refreshed = |page: String| {
        let made = refreshed(&text(&page), ".\\\" ", |region| written(&page, region));
        (page, made)
    };
    pages.into_iter().map(refreshed).collect()
}

fn written(page: &str, region: &str) -> String {
    let (name, rest) = region.split_once(' ').unwrap_or((region, ""));
    match (name, rest) {
        ("title", page) => title(page),
        ("options", command) => options(command),
        ("cases", "") => cases(),
        ("keys", "main") => keys(""),
        ("keys", table) => keys(table),
        ("signals", "") => signals(),
        ("exit", "statuses") => exits(),
        ("environment", "") => environment(),
        ("reasons", "") => reasons(),
        ("messages", "") => messages(),
        _ => panic!("{page}: there is no region {region}"),
    }
}

fn title(page: &str) -> String {
    let (name, section) = page.split_once(' ').unwrap();
    let command = commands::command();
    let version = command.get_version().unwrap();
    let changelog = text("CHANGELOG.md");
    let heading = format!("## {version} (");
    let date = changelog
        .lines()
        .find_map(|line| line.strip_prefix(&heading)?.strip_suffix(')'))
        .filter(|date| date.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(UNRELEASED);
    format!(
        ".TH {} {section} {date} \"tcp\\-echo {version}\"\n",
        hyphened(&name.to_uppercase())
    )
}

/// What the probe tries, case by case.
fn cases() -> String {
    let mut made = String::new();
    for case in CASES {
        made += &format!(".TP\n.B {}\n{}\n", hyphened(case.id), escaped(case.about));
    }
    made
}

/// The section of clap_mangen, in the manner of the rest of the page.
fn options(command: &str) -> String {
    let mut all = commands::command();
    all.build();
    let of = match command {
        "" => all,
        name => all.find_subcommand(name).unwrap().clone(),
    };
    // The page is about these options; a heading of their own is for the help of other commands.
    let of = of.mut_args(|argument| argument.help_heading(None::<&str>));
    let mut made = Vec::new();
    clap_mangen::Man::new(of)
        .render_options_section(&mut made)
        .unwrap();
    let made = String::from_utf8(made).unwrap();
    // Before the heading stands a macro for the quotation mark.
    let (_, made) = made.split_once(".SH OPTIONS").unwrap();
    let made = made
        .replace("\\*(Aq", "\\(aq")
        .replace(".br\n\n.br\n", ".sp\n")
        .replace("\\fI<", "\\fI")
        .replace(">\\fR", "\\fR");
    let lines: Vec<String> = made.lines().map(folded).collect();
    format!(".SH OPTIONS{}\n", lines.join("\n"))
}

fn keys(table: &str) -> String {
    let compound = KEYS
        .iter()
        .map(|key| key.name)
        .filter(|name| name.contains('-'));
    let names: Vec<&str> = compound.collect();
    let mut made = String::new();
    for key in KEYS.iter().filter(|key| key.table == table) {
        let (Value::Default(value) | Value::Example(value)) = key.value;
        made += &format!(".TP\n{} = {}\n", bold(key.name), escaped(value));
        made += &prose(key.help, &names);
        if !key.option.is_empty() {
            made += &format!("Sets {}.\n", bold(key.option));
        }
        made += &prose(&format!("Value: {}.", (key.takes)()), &[]);
        if key.effect == Effect::AtRestart {
            made += "A change needs a restart.\n";
        }
    }
    assert!(!made.is_empty(), "there is no table {table}");
    made
}

/// Paragraphs of which each has several tags.
fn tagged(names: &[&str], text: &str) -> String {
    let mut made = String::new();
    for (at, name) in names.iter().enumerate() {
        let request = if at == 0 { "TP" } else { "TQ" };
        made += &format!(".{request}\n.B {}\n", hyphened(name));
    }
    made + &prose(&sentence(text), &[])
}

fn signals() -> String {
    let together = SIGNALS.chunk_by(|one, other| one.request == other.request);
    let paragraph = |signals: &[tcp_echo::sys::signals::Signal]| {
        let names: Vec<&str> = signals.iter().map(|signal| signal.name).collect();
        tagged(&names, signals[0].effect)
    };
    together.map(paragraph).collect()
}

fn exits() -> String {
    let paragraph = |(exit, text): (Exit, &str)| tagged(&[&(exit as u8).to_string()], text);
    Exit::ALL.into_iter().map(paragraph).collect()
}

fn environment() -> String {
    let paragraph = |(names, text): &(&[&str], &str)| tagged(names, text);
    ENVIRONMENT.iter().map(paragraph).collect()
}

fn reasons() -> String {
    EndReason::ALL
        .iter()
        .map(|row| tagged(&[row.word], row.text))
        .collect()
}

fn messages() -> String {
    catalog::entries()
        .iter()
        .map(|entry| format!(".TP\n.B {}\n{}\n", entry.kind.id, escaped(&entry.subject)))
        .collect()
}
