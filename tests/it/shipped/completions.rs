//! The completions complete in the shells that are installed.
//!
//! That everything that is generated is fresh is a test of xtask.

use std::path::Path;
use std::process::Command;

use testkit::Folder;

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
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging/completions")
        .join(name)
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
    for (line, takes_files) in [
        ("tcp-echo check ", false),
        ("tcp-echo help ", false),
        ("tcp-echo reload ", false),
        ("tcp-echo diff ", true),
        ("tcp-echo diff Cargo.toml ", true),
    ] {
        if let Some(offered) = in_fish(line) {
            let file = |word: &String| Path::new(word.trim_end_matches('/')).exists();
            assert_eq!(offered.iter().any(file), takes_files, "{line}: {offered:?}");
        }
    }
    offered("zsh", &["-f", "-n", &script("_tcp-echo")]);
}
