//! The completions for bash, zsh and fish.

use clap_complete::Shell;
use tcp_echo::commands;

use crate::Generated;

pub(crate) fn files() -> Vec<Generated> {
    let files = [
        (Shell::Bash, "tcp-echo.bash"),
        (Shell::Zsh, "_tcp-echo"),
        (Shell::Fish, "tcp-echo.fish"),
    ];
    let make = |(shell, name)| {
        let mut made = Vec::new();
        clap_complete::generate(shell, &mut commands::command(), "tcp-echo", &mut made);
        let made = repaired(&String::from_utf8(made).unwrap());
        (format!("packaging/completions/{name}"), made)
    };
    files.into_iter().map(make).collect()
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
        // fish: files are offered wherever nothing else is; only `diff` takes some.
        .replacen(
            "\ncomplete -c tcp-echo",
            "\ncomplete -c tcp-echo -f\ncomplete -c tcp-echo -n \"__fish_tcp_echo_using_subcommand \
             diff\" -F\ncomplete -c tcp-echo",
            1,
        )
        // fish: an option that still lacks its value ends the search, so that the value is not
        // completed.
        .replace("    or return\n", "    or return 0\n");
    let lines: Vec<&str> = made.trim_end().lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}
