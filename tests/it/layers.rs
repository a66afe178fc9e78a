//! Which module may use which: the order of the modules, which no compiler enforces in one crate.
//!
//! A module uses modules of lower rank ([`rank`]), and files of its own folder that stand before
//! it in the reading order which the folder's `mod.rs` gives.  mio lives in the server; the echo
//! knows no clock, no socket and no log; nothing prints; unsafe code is expected, with a reason,
//! in `sys` and nowhere else; each file opens with an essay and has one idea.
//!
//! The test reads the sources as text: their code without comments and without their own tests.

use std::collections::BTreeMap;
use std::path::Path;

/// The rank of a module: modules of higher rank may use it.
fn rank(module: &str) -> usize {
    match module.split("::").next().unwrap() {
        _ if ["config::units", "config::address"].contains(&module) => 0,
        "cli" => 0,
        "echo" | "proxy_header" => 1,
        "config" => 2,
        "sys" => 3,
        "log" => 4,
        "preserve" => 5,
        // Side by side: neither uses the other.
        "server" | "client" => 6,
        "commands" => 7,
        // They compose the others, and no module uses them.
        "main" | "lib" => 8,
        other => panic!("src/{other} has no rank yet"),
    }
}

/// The order within rank 0, which has no folder of its own.
const LOWEST: [&str; 3] = ["config::units", "config::address", "cli"];

/// A file of `src`.
struct Source {
    text: String,
    /// Without comments and tests.
    code: String,
}

/// Every file but those of tests alone, by the path of its module: `echo::connections`, and `echo` for
/// its `mod.rs`.
type Sources = BTreeMap<String, Source>;

fn sources() -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Sources::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // Tests may use everything.
            if path.ends_with("tests.rs") {
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let module = module.to_str().unwrap().replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let code = code(&text);
            found.insert(module, Source { text, code });
        }
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The code of a file: without comments, and without the tests at its end.
fn code(text: &str) -> String {
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| line.split(" // ").next().unwrap().to_owned() + "\n")
        .collect()
}

/// Every path in the code that begins with `start` (such as `crate::`), without it; groups are
/// taken apart.
fn paths(code: &str, start: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(start) {
        let before = code[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            tree(&code[at + start.len()..], "", &mut found);
        }
    }
    found
}

/// Reads one tree of a `use`; returns what follows it.
fn tree<'a>(text: &'a str, prefix: &str, found: &mut Vec<String>) -> &'a str {
    let mut rest = text.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        rest = group;
        loop {
            rest = tree(rest, prefix, found).trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            if let Some(end) = rest.strip_prefix('}') {
                return end;
            }
            assert!(!rest.is_empty(), "a group that does not end: {text}");
        }
    }
    let word = |text: &str| {
        text.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*')
            .unwrap_or(text.len())
    };
    let (name, after) = rest.split_at(word(rest));
    let path = format!("{prefix}{name}");
    match after.strip_prefix("::") {
        Some(more) if !more.starts_with('<') => tree(more, &format!("{path}::"), found),
        _ => {
            found.push(path);
            match after.strip_prefix(" as ") {
                Some(alias) => &alias[word(alias)..],
                None => after,
            }
        }
    }
}

/// The module that a path leads into.
fn module_of<'a>(path: &'a str, sources: &Sources) -> &'a str {
    let mut module = path;
    while !sources.contains_key(module) {
        module = module
            .rsplit_once("::")
            .map_or("lib", |(shorter, _)| shorter);
    }
    module
}

/// The modules that a file names.
fn uses(module: &str, sources: &Sources) -> Vec<String> {
    let code = &sources[module].code;
    let mut named = paths(code, "crate::");
    named.extend(paths(code, "tcp_echo::"));
    for path in paths(code, "super::") {
        let mut parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
        let mut path = path.as_str();
        while let Some(rest) = path.strip_prefix("super::") {
            parent = parent.rsplit_once("::").map_or("", |(parent, _)| parent);
            path = rest;
        }
        named.push(format!("{parent}::{path}").trim_matches(':').to_owned());
    }
    let mut modules: Vec<_> = named
        .iter()
        .map(|path| module_of(path, sources).to_owned())
        .filter(|used| used != module)
        .collect();
    modules.sort();
    modules.dedup();
    modules
}

/// The folder of a module in a folder.
fn folder(module: &str) -> Option<&str> {
    module.split_once("::").map(|(folder, _)| folder)
}

/// The files of a folder, in the order that its `mod.rs` gives.
fn reading_order(folder: &str, sources: &Sources) -> Vec<String> {
    let essay: String = sources[folder]
        .text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .map(|line| format!("{}\n", line.trim()))
        .collect();
    let Some((_, order)) = essay.split_once("In reading order:") else {
        return Vec::new();
    };
    let paragraph = order.split("\n\n").next().unwrap();
    let words = paragraph.split('`').skip(1).step_by(2);
    words
        .map(|name| format!("{folder}::{name}"))
        .filter(|module| sources.contains_key(module))
        .collect()
}

/// Why a module may not use another, if it may not.
fn objection(module: &str, used: &str, sources: &Sources) -> Option<String> {
    let place = |order: &[String], module: &str| order.iter().position(|name| name == module);
    let before = |order: &[String], why: &str| match (place(order, used), place(order, module)) {
        (Some(used), Some(user)) if used < user => None,
        (Some(_), Some(_)) => Some(why.to_owned()),
        _ => Some(format!("{why}, or does not name both")),
    };
    match (rank(module), rank(used)) {
        (0, 0) => before(&LOWEST.map(str::to_owned), "the order of rank 0 says no"),
        (user, used) if used < user => None,
        (user, lower) if user == lower => {
            let Some(folder) = folder(module).or(folder(used)) else {
                return Some("they stand side by side".into());
            };
            // What a `mod.rs` says is for its whole folder, and it uses all of that.
            let inside = |module: &str, folder: &str| {
                let rest = module.strip_prefix(folder);
                rest.is_some_and(|rest| rest.starts_with("::"))
            };
            if inside(module, used) || inside(used, module) {
                return None;
            }
            before(
                &reading_order(folder, sources),
                &format!("\"In reading order\" in src/{folder}/mod.rs says no"),
            )
        }
        (user, used) => Some(format!("rank {user} uses rank {used}")),
    }
}

#[track_caller]
fn nothing(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn no_arrow_points_upward() {
    let sources = sources();
    let mut arrows = 0;
    let mut complaints = Vec::new();
    for module in sources.keys() {
        for used in uses(module, &sources) {
            arrows += 1;
            if let Some(why) = objection(module, &used, &sources) {
                complaints.push(format!("{module} uses {used}: {why}"));
            }
        }
    }
    nothing(&complaints);
    assert!(arrows > 40, "only {arrows} arrows were found");
}

#[test]
fn an_arrow_is_seen_however_it_is_written() {
    let code = code(
        "use crate::{a::{b as c, d::E}, f::*};\n\
         // crate::comment\n\
         fn g() { crate::h::i::<J>(); } // crate::trailing\n\
         use not_crate::k;\n\
         #[cfg(test)]\n\
         mod tests { use crate::test; }\n",
    );
    assert_eq!(paths(&code, "crate::"), ["a::b", "a::d::E", "f::*", "h::i"]);
    let sources = sources();
    for (module, used, allowed) in [
        ("echo::connections", "config", false),
        ("echo::connections", "echo::connection", true),
        ("echo::connection", "echo::connections", false),
        ("echo::buffers", "echo", true),
        ("config::units", "config", false),
        ("config", "echo::connections", true),
        ("sys::kernel", "server::listener", false),
        ("server", "commands::serve", false),
        ("server::listener", "client::target", false),
        ("client::target", "server::listener", false),
        ("client::target", "config::address", true),
        ("commands::serve", "server", true),
        ("cli", "config::address", true),
        ("config::address", "cli", false),
    ] {
        let objection = objection(module, used, &sources);
        assert_eq!(
            objection.is_none(),
            allowed,
            "{module} {used}: {objection:?}"
        );
    }
}

#[test]
fn only_the_server_uses_mio() {
    for (module, source) in &sources() {
        let named = paths(&source.code, "mio::");
        // The command makes the poll.
        let allowed = rank(module) == 6
            || (module == "commands::serve" && named.iter().all(|name| name == "Poll"));
        assert!(named.is_empty() || allowed, "{module} uses mio: {named:?}");
    }
}

#[test]
fn the_echo_knows_no_clock_no_socket_and_no_log() {
    for (module, source) in &sources() {
        if module.split("::").next() != Some("echo") {
            continue;
        }
        for word in [
            "Instant::now",
            "SystemTime",
            "std::net",
            "std::os",
            "std::fs",
            "libc",
            "rustix",
            "socket2",
            "tracing",
        ] {
            assert!(!source.code.contains(word), "{module} mentions {word}");
        }
        for name in paths(&source.code, "use ") {
            let root = name.split("::").next().unwrap();
            let known = ["std", "slab", "super", "crate"].contains(&root);
            assert!(known, "{module} uses {name}");
        }
    }
}

#[test]
fn what_decides_in_the_client_knows_no_clock_and_no_socket() {
    let mut seen = 0;
    for (module, source) in &sources() {
        let is_pure = [
            "client::pattern",
            "client::statistics",
            "client::probe::html",
            "client::probe::report",
            "client::probe::verdict",
            "client::probe::watch",
        ]
        .contains(&module.as_str())
            || (module.starts_with("client::ping::") && module != "client::ping::driver");
        if !is_pure {
            continue;
        }
        seen += 1;
        for word in [
            "Instant::now",
            "SystemTime",
            "std::net",
            "std::os",
            "std::fs",
            "mio::",
            "rustix",
            "socket2",
        ] {
            assert!(!source.code.contains(word), "{module} mentions {word}");
        }
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn nothing_prints() {
    // They panic when standard output or standard error is gone.
    for (module, source) in &sources() {
        for word in ["print!", "println!", "eprint!", "eprintln!", "dbg!"] {
            assert!(!source.code.contains(word), "{module} has {word}");
        }
    }
}

#[test]
fn unsafe_code_is_expected_with_a_reason_and_in_system_alone() {
    for (module, source) in &sources() {
        let words = ["unsafe {", "unsafe impl", "unsafe trait"];
        let count: usize = words
            .map(|word| source.code.matches(word).count())
            .iter()
            .sum();
        for word in ["unsafe fn", "unsafe extern"] {
            assert!(!source.code.contains(word), "{module} has {word}");
        }
        assert!(
            !source.code.contains("allow(unsafe_code"),
            "{module} allows it"
        );
        let expected = source.code.matches("#[expect(unsafe_code, reason = \"");
        let expected =
            expected.count() + source.code.matches("#[expect(\n    unsafe_code,").count();
        assert!(count == 0 || rank(module) == 3, "{module} is unsafe");
        assert_eq!(expected, count, "{module}: one reason for each");
    }
}

#[test]
fn a_file_opens_with_its_idea_and_has_one() {
    let mut complaints = Vec::new();
    for (module, source) in &sources() {
        if !source.text.starts_with("//! ") {
            complaints.push(format!("{module} does not say what it is"));
        }
        // `code` takes the rest of a file for its tests.
        let tests = source.text.split_once("\n#[cfg(test)]\n");
        let inside = tests.filter(|(_, rest)| !rest.trim_end().ends_with("mod tests;"));
        if let Some((_, rest)) = inside {
            let first = rest.lines().find(|line| !line.starts_with('#'));
            let inside = rest.lines().skip_while(|line| !line.ends_with(" {"));
            let ends = inside.take_while(|line| *line != "}").count();
            let whole = rest.trim_end().ends_with("\n}")
                && rest.lines().filter(|line| *line == "}").count() == 1;
            if !first.is_some_and(|line| line.ends_with("mod tests {")) || !whole || ends == 0 {
                complaints.push(format!("{module}: its tests are not at its end"));
            }
        }
    }
    nothing(&complaints);
}
