//! What is generated and checked in: the completions, regions of the manuals, and the notices of the
//! crates in packaging/debian/copyright.
//!
//! The manuals are written by hand, but for the regions between a `Generated` and an `End` comment.
//! Those say what is known elsewhere: the options (src/cli.rs), the keys of the configuration
//! (packaging/config.toml for their text and defaults, src/config/file.rs for the options of
//! sockets, the parser's own errors for the values), the messages (packaging/tcp-echo.catalog).
//! Nothing of it depends on the day or the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use clap_complete::Shell;
use tcp_echo::cli::Cli;
use tcp_echo::config::{Options, Origin};

use crate::catalog::entries;
use crate::daemon::Folder;

const REFRESH: &str = "TCP_ECHO_UPDATE=1 cargo test --test it generated";

const BEGIN: &str = ".\\\" Generated: ";
const END: &str = ".\\\" End";

const COPYRIGHT: &str = "packaging/debian/copyright";

/// Between these lines stand the notices of the crates.
const CRATES: &str = " The crates, of which each notice here is copied from its sources:\n";
const LIBRARY: &str = " The standard library of Rust, and what it brings along:\n";

/// What the manuals are dated until the changelog has a date for this version.
const UNRELEASED: &str = "2026-10-01";

#[test]
fn the_completions_are_fresh() {
    for (shell, name) in [
        (Shell::Bash, "tcp-echo.bash"),
        (Shell::Zsh, "_tcp-echo"),
        (Shell::Fish, "tcp-echo.fish"),
    ] {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "tcp-echo", &mut made);
        let made = repaired(&String::from_utf8(made).unwrap());
        fresh(&format!("packaging/completions/{name}"), &made);
    }
}

/// What clap_complete 4.6.11 makes, with its mistakes repaired.
fn repaired(made: &str) -> String {
    let made = made
        // bash: a hyphen in the name of the program is spelt in two ways, so that nothing is
        // completed behind a command (clap issue 6421).
        .replace("tcp__subcmd__echo", "tcp__echo")
        // bash: `--log=d` is three words for it, of which `=` is one.
        .replace(
            "    prev=\"$3\"\n",
            "    prev=\"$3\"\n    if [[ ${cur} == \"=\" ]]; then\n        cur=\"\"\n    \
             elif [[ ${prev} == \"=\" ]]; then\n        prev=\"${COMP_WORDS[COMP_CWORD-2]}\"\n    fi\n",
        )
        // fish: files are offered wherever nothing else is; none of the commands takes one.
        .replacen(
            "\ncomplete -c tcp-echo",
            "\ncomplete -c tcp-echo -f\ncomplete -c tcp-echo",
            1,
        )
        // fish: an option that still lacks its value ends the search, so that the value is not
        // completed.
        .replace("    or return\n", "    or return 0\n");
    let lines: Vec<&str> = made.trim_end().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// What a shell offers for a line; `None`, and said, where there is no such shell.
fn offered(shell: &str, arguments: &[&str]) -> Option<String> {
    let home = Folder::new();
    let mut command = Command::new(shell);
    command.args(arguments).env("HOME", home.path(""));
    for name in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
        command.env_remove(name);
    }
    let Ok(output) = command.output() else {
        eprintln!("skipped: {shell} is not installed");
        return None;
    };
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(complaints.is_empty(), "{shell}: {complaints}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn script(name: &str) -> String {
    path(&format!("packaging/completions/{name}"))
        .display()
        .to_string()
}

/// The words that fish offers for a line.
fn in_fish(line: &str) -> Option<Vec<String>> {
    let ask = format!("source {}; complete -C'{line}'", script("tcp-echo.fish"));
    let offered = offered("fish", &["--no-config", "-c", &ask])?;
    let word = |line: &str| line.split('\t').next().unwrap().to_owned();
    Some(offered.lines().map(word).collect())
}

#[test]
fn the_completions_complete() {
    for (words, expected) in [
        (&["ch"][..], "check"),
        (&["--log", ""], "warn"),
        (&["check", "--conf"], "--config-only"),
        (&["check", "--log-format", "j"], "json"),
        (&["--log", "=", "d"], "debug"),
        (&["--log", "="], "warn"),
    ] {
        let (last, before) = words.split_last().unwrap();
        let ask = "source \"$1\"; shift; COMP_WORDS=(tcp-echo \"$@\"); COMP_CWORD=$#; \
                   _tcp__echo tcp-echo \"${*: -1}\" \"${COMP_WORDS[$# - 1]}\"; echo \"${COMPREPLY[@]}\"";
        let mut arguments = vec!["-c", ask, "bash"];
        let bash = script("tcp-echo.bash");
        arguments.push(&bash);
        arguments.extend(words);
        if let Some(offered) = offered("bash", &arguments) {
            assert!(
                offered.split_whitespace().any(|word| word == expected),
                "{words:?}: {offered}"
            );
        }
        // For fish, as for the daemon, `--log=d` is one word.
        let line = format!("tcp-echo {} {last}", before.join(" "));
        let line = line.replace(" =", "=").replace("= ", "=");
        if let Some(offered) = in_fish(&line) {
            let word = match line.contains('=') {
                true => format!("--log={expected}"),
                false => expected.to_owned(),
            };
            assert!(offered.contains(&word), "{line}: {offered:?}");
        }
    }
    // No command takes a file.
    for line in ["tcp-echo check ", "tcp-echo help ", "tcp-echo reload "] {
        if let Some(offered) = in_fish(line) {
            let file = |word: &String| Path::new(word.trim_end_matches('/')).exists();
            assert!(!offered.iter().any(file), "{line}: {offered:?}");
        }
    }
    offered("zsh", &["-f", "-n", &script("_tcp-echo")]);
}

#[test]
fn the_manuals_are_fresh() {
    for page in ["packaging/man/tcp-echo.8", "packaging/man/tcp-echo.toml.5"] {
        fresh(page, &refreshed(&text(page)));
    }
}

#[test]
fn the_copyright_of_the_package_is_fresh() {
    let kept = text(COPYRIGHT);
    let (head, rest) = kept.split_once(CRATES).unwrap();
    let (_, tail) = rest.split_once(LIBRARY).unwrap();
    let made = format!("{head}{CRATES}{}{LIBRARY}{tail}", notices());
    fresh(COPYRIGHT, &made);
}

/// The crates that are linked into the program, with their licences and the copyright notices of
/// their sources.
fn notices() -> String {
    let linked = cargo(&["tree", "-e", "normal,no-proc-macro", "--prefix", "none"]);
    let linked: std::collections::BTreeSet<(&str, &str)> = linked
        .lines()
        .filter_map(|line| line.split_once(" v"))
        .map(|(name, version)| (name, version.split(' ').next().unwrap()))
        .filter(|(name, _)| *name != env!("CARGO_PKG_NAME"))
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
fn copyrights(folder: &Path) -> std::collections::BTreeSet<String> {
    let mut notices = std::collections::BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().to_uppercase();
        let told = ["LICEN", "COPY", "NOTICE"]
            .iter()
            .any(|start| name.starts_with(start));
        if !told || !entry.file_type().unwrap().is_file() {
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

/// What cargo says of this package, without the network.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .args(["--locked", "--offline"])
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaints}");
    String::from_utf8(output.stdout).unwrap()
}

/// Compares a file with what it should be, or makes it so.
#[track_caller]
fn fresh(name: &str, made: &str) {
    if text(name) == made {
        return;
    }
    if std::env::var_os("TCP_ECHO_UPDATE").is_some() {
        fs::write(path(name), made).unwrap();
        return;
    }
    let kept = text(name);
    let differ = |(kept, made)| kept != made;
    let line = made.lines().zip(kept.lines()).position(differ);
    panic!(
        "{name} is stale from line {}; refresh it with: {REFRESH}",
        line.unwrap_or_else(|| made.lines().count().min(kept.lines().count())) + 1
    );
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A file of the repository; empty if it is not there yet.
fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_default()
}

/// A manual with its regions written anew.
fn refreshed(page: &str) -> String {
    let mut made = String::new();
    let mut inside = false;
    for line in page.lines() {
        inside &= line != END;
        if !inside {
            made.push_str(line);
            made.push('\n');
        }
        if let Some(region) = line.strip_prefix(BEGIN) {
            assert!(!inside, "{region} begins inside of another region");
            inside = true;
            made.push_str(&written(region));
        }
    }
    assert!(!inside, "a region has no end");
    made
}

fn written(region: &str) -> String {
    match region.split_once(' ').unwrap_or((region, "")) {
        ("title", page) => title(page),
        ("options", "") => options(),
        ("keys", table) => keys(table),
        ("messages", "") => messages(),
        _ => panic!("nobody writes the region {region}"),
    }
}

fn title(page: &str) -> String {
    let (name, section) = page.split_once(' ').unwrap();
    let version = env!("CARGO_PKG_VERSION");
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

/// The section of clap_mangen, in the manner of the rest of the page.
fn options() -> String {
    let mut made = Vec::new();
    clap_mangen::Man::new(Cli::command())
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

/// A table of the messages: what each is about, and its id.
fn messages() -> String {
    entries()
        .iter()
        .map(|entry| format!(".TP\n.B {}\n{}\n", entry.id, escaped(&entry.subject)))
        .collect()
}

/// Keys that stand together in packaging/config.toml, with the comment above them.  A table begins
/// with its own comment, without a key.
#[derive(Default)]
struct Group {
    table: String,
    text: String,
    keys: Vec<(String, String)>,
}

fn groups() -> Vec<Group> {
    let config = text("packaging/config.toml");
    let mut groups: Vec<Group> = Vec::new();
    let (mut table, mut comment, mut follows) = ("main".to_owned(), String::new(), false);
    for line in config.lines() {
        let shown = line.strip_prefix('#').unwrap_or(line);
        let setting = shown.split_once(" = ");
        if let Some(name) = shown.strip_prefix('[') {
            table = name.split(['.', ']']).next().unwrap().to_owned();
            groups.push(Group {
                table: table.clone(),
                text: std::mem::take(&mut comment),
                keys: Vec::new(),
            });
        } else if let (Some((key, value)), false) = (setting, shown.starts_with(' ')) {
            if !follows {
                groups.push(Group {
                    table: table.clone(),
                    text: std::mem::take(&mut comment),
                    keys: Vec::new(),
                });
            }
            let value = value.split("   ").next().unwrap();
            let keys = &mut groups.last_mut().unwrap().keys;
            keys.push((key.to_owned(), value.to_owned()));
            follows = true;
            continue;
        } else if line.is_empty() {
            comment.clear();
        } else {
            comment = comment + shown + "\n";
        }
        follows = false;
    }
    groups
}

/// The options of a socket in their order: key, and what the code says about it.
fn options_of_sockets() -> Vec<(String, String)> {
    let code = text("src/config/file.rs");
    let (_, code) = code.split_once("\noptions! {\n").unwrap();
    let (_, code) = code.split_once("    Options {\n").unwrap();
    let mut options = Vec::new();
    let mut doc = String::new();
    for line in code.lines().map(str::trim).take_while(|line| *line != "}") {
        match (line.strip_prefix("///"), line.split_once(':')) {
            (Some(text), _) => doc = doc + text + "\n",
            (_, Some((field, _))) => {
                options.push((field.replace('_', "-"), std::mem::take(&mut doc)));
            }
            _ => panic!("{line}"),
        }
    }
    options
}

/// The keys of a table as a list of paragraphs with tags.
fn keys(table: &str) -> String {
    let groups: Vec<Group> = groups().into_iter().filter(|g| g.table == table).collect();
    let mut made = String::new();
    for group in groups.iter().filter(|group| group.keys.is_empty()) {
        made += &prose(&group.text);
    }
    match table {
        "socket" => {
            for (key, doc) in options_of_sockets() {
                if key == "address" {
                    continue;
                }
                let group = groups
                    .iter()
                    .find(|group| group.keys.iter().any(|(k, _)| *k == key));
                let shown = group.and_then(|group| group.keys.iter().find(|(k, _)| *k == key));
                made += &tag("TP", &key, shown.map(|(_, value)| value.as_str()));
                // The code names the kernel's option, and speaks where the file is silent.
                let (option, doc) = match doc.trim().strip_prefix('`') {
                    Some(doc) => doc.split_once('`').unwrap(),
                    None => ("", doc.as_str()),
                };
                let comment = group
                    .filter(|group| group.keys[0].0 == key)
                    .map_or("", |group| group.text.trim());
                made += &match comment {
                    "" => prose(&capital(doc.trim_start_matches([',', ':', ' ']))),
                    comment => prose(comment),
                };
                if !option.is_empty() {
                    made += &format!("Sets \\fB{option}\\fR.\n");
                }
                made += &value_line("Value", table, &key);
                if Options::FIXED.contains(&key.as_str()) {
                    made += "A change needs a restart.\n";
                }
            }
        }
        // Its keys are examples of those above.
        "listener" => {}
        _ => {
            for group in groups.iter().filter(|group| !group.keys.is_empty()) {
                for (at, (key, value)) in group.keys.iter().enumerate() {
                    made += &tag(if at == 0 { "TP" } else { "TQ" }, key, Some(value));
                }
                made += &prose(&group.text);
                for (key, _) in &group.keys {
                    made += &match group.keys.len() {
                        1 => value_line("Value", table, key),
                        _ => value_line(&format!("Value of \\fB{}\\fR", hyphened(key)), table, key),
                    };
                }
            }
        }
    }
    made
}

fn tag(request: &str, key: &str, value: Option<&str>) -> String {
    let value = value.map_or_else(String::new, |value| format!(" = {}", escaped(value)));
    format!(".{request}\n\\fB{}\\fR{value}\n", hyphened(key))
}

fn value_line(what: &str, table: &str, key: &str) -> String {
    folded(&format!("{what}: {}.", escaped(&value_of(table, key)))) + "\n"
}

/// What a key takes, in the words of the error for something else.
fn value_of(table: &str, key: &str) -> String {
    let folder = Folder::new();
    let complaint = |value: &str| {
        let table = match table {
            "main" => String::new(),
            _ => format!("[{table}]\n"),
        };
        let file = folder.write("config.toml", &format!("{table}{key} = {value}\n"));
        let origin = Origin {
            file: Some(file),
            ..Origin::default()
        };
        let error = origin.load().unwrap_err().to_string();
        error.lines().last().unwrap().to_owned()
    };
    let error = complaint("'no value'");
    let (found, mut value) = error
        .rsplit_once("expected ")
        .map(|(found, value)| (found, value.replace('`', "\"")))
        .unwrap_or_else(|| panic!("{error}"));
    assert_ne!(value, "a whole number", "{key} has no range");
    value = value.replace("a boolean", "true or false");
    for word in ["off", "auto"] {
        if found.contains(&format!("(\"{word}\" ")) || found.contains(&format!("(or \"{word}\")")) {
            value += &format!(", or \"{word}\"");
        }
    }
    value
}

/// Running text: one sentence a line, keys in bold type.
fn prose(text: &str) -> String {
    let keys: Vec<String> = groups()
        .into_iter()
        .flat_map(|group| group.keys)
        .map(|(key, _)| key)
        .filter(|key| key.contains('-'))
        .collect();
    // A sentence ends with its line, or before two spaces.
    let text = text.replace(".\n", ".  ").replace('\n', " ");
    let mut made = String::new();
    for sentence in text.trim().split(".  ").filter(|text| !text.is_empty()) {
        let words: Vec<String> = sentence
            .split_whitespace()
            .map(|word| {
                let name = word.trim_matches([',', '.', ':', ';', '(', ')']);
                match keys.iter().any(|key| key == name) {
                    true => word.replacen(name, &format!("\\fB{}\\fR", hyphened(name)), 1),
                    false => escaped(word),
                }
            })
            .collect();
        let sentence = words.join(" ");
        let end = if sentence.ends_with('.') { "" } else { "." };
        made += &(folded(&(sentence + end)) + "\n");
    }
    made
}

/// A line of roff(7); one of text is broken into several of at most 80 characters.
fn folded(line: &str) -> String {
    if line.starts_with('.') || line.len() <= 80 {
        return line.trim_end().to_owned();
    }
    let mut made = String::new();
    let mut room = 80;
    for word in line.split_whitespace() {
        if made.is_empty() {
            made.push_str(word);
        } else if word.len() < room {
            made = made + " " + word;
            room -= 1;
        } else {
            made = made + "\n" + &escaped_start(word);
            room = 80;
        }
        room = room.saturating_sub(word.len());
    }
    made
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}

/// A name, in which a hyphen is a minus sign that can be copied.
fn hyphened(name: &str) -> String {
    name.replace('-', "\\-")
}

/// Text, of which nothing is a request of roff(7).
fn escaped(text: &str) -> String {
    escaped_start(&text.replace('\\', "\\e"))
}

fn escaped_start(text: &str) -> String {
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text.to_owned(),
    }
}
