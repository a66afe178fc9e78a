//! The files that are installed agree with the program.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use tcp_echo::config::{Config, Origin};
use testkit::Folder;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

fn load(path: PathBuf) -> Config {
    let config = Origin {
        file: Some(path),
        ..Origin::default()
    }
    .load();
    Config {
        read: Vec::new(),
        ..config.unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The default configuration with its commented keys in force.
fn uncommented() -> String {
    let lines: Vec<String> = text("packaging/config.toml")
        .lines()
        .map(|line| {
            let Some(setting) = line.strip_prefix('#') else {
                return line.into();
            };
            if !setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') {
                return line.into();
            }
            setting.into()
        })
        .collect();
    lines.join("\n")
}

#[test]
fn the_default_configuration_says_what_is_built_in() {
    let shipped = load(file("packaging/config.toml"));
    let built_in = load("/dev/null".into());
    assert_eq!(shipped, built_in);
    // Without the comment signs nothing changes either: it shows the defaults, but for examples.
    let text = uncommented();
    let folder = Folder::new();
    let shown = load(folder.write("config.toml", &text));
    assert_eq!(
        (&shown.limits, &shown.log, shown.poll_timeout),
        (&built_in.limits, &built_in.log, None)
    );
    assert_eq!(
        (shown.max_connections, shown.allow_remote),
        (built_in.max_connections, false)
    );
    assert_eq!(
        (shown.preserve_connections, shown.preserve_after),
        (built_in.preserve_connections, built_in.preserve_after)
    );
    let named = tcp_echo::config::Options {
        v6only: None,
        congestion: None,
        mode: None,
        group: None,
        ..shown.socket.clone()
    };
    let usual = tcp_echo::config::Options::built_in();
    assert_eq!(named.differ(&usual), Vec::<String>::new());
}

#[test]
fn the_units_fit_the_program() {
    let service = text("systemd/tcp-echo.service");
    for line in [
        "Type=notify",
        "NotifyAccess=exec",
        "ExecReload=/usr/bin/tcp-echo check --config-only",
        "ExecReload=/usr/bin/tcp-echo reload",
        "RestartPreventExitStatus=2 69 77 78",
        "TimeoutStopSec=30s",
    ] {
        assert!(
            service.lines().any(|found| found == line),
            "tcp-echo.service lacks {line}"
        );
    }
    assert!(
        !service.contains("[Install]"),
        "the socket is enabled, not the service"
    );
    // The daemon must be done before systemd loses its patience.
    assert!(load("/dev/null".into()).limits.stop_timeout.as_secs() + 5 < 30);
    for unit in ["systemd/tcp-echo.socket", "systemd/tcp-echo-metrics.socket"] {
        let socket = text(unit);
        assert!(
            socket
                .lines()
                .filter(|line| line.starts_with("ListenStream="))
                .all(|line| { line.contains("127.0.0.1") || line.contains("[::1]") }),
            "{unit}"
        );
    }
    // Both are for one service, and the name tells it which is which.
    let metrics = settings("systemd/tcp-echo-metrics.socket");
    for line in ["FileDescriptorName=metrics", "Service=tcp-echo.service"] {
        assert!(metrics.iter().any(|found| found == line), "{line}");
    }
}

/// The settings of a unit, in order, without comments.
fn settings(name: &str) -> Vec<String> {
    text(name)
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_three_services_differ_where_they_must() {
    let service = settings("systemd/tcp-echo.service");
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line) && !line.starts_with("Description="))
            .cloned()
            .collect()
    };
    let standalone = settings("systemd/tcp-echo-standalone.service");
    assert_eq!(
        only(&standalone, &service),
        [
            "After=network.target",
            "ExecStart=/usr/bin/tcp-echo --listen localhost:7",
            "RestartSec=1s",
            "RestartPreventExitStatus=2 77 78",
            "RuntimeDirectory=tcp-echo",
            "UMask=0117",
            "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
            "PrivateUsers=no",
            "PrivateNetwork=no",
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
            "ProcSubset=all",
            "[Install]",
            "WantedBy=multi-user.target",
        ]
    );
    assert_eq!(
        only(&service, &standalone),
        [
            "Requires=tcp-echo.socket",
            "After=tcp-echo.socket",
            "ExecStart=/usr/bin/tcp-echo",
            "RestartSec=0",
            "RestartPreventExitStatus=2 69 77 78",
            "UMask=0777",
            "CapabilityBoundingSet=",
            "AmbientCapabilities=",
            "PrivateUsers=yes",
            "PrivateNetwork=yes",
            "RestrictAddressFamilies=AF_UNIX",
            "IPAddressDeny=any",
            "ProcSubset=pid",
        ]
    );
    let template = settings("systemd/examples/tcp-echo@.service");
    assert_eq!(
        only(&template, &service),
        ["Requires=tcp-echo@%i.socket", "After=tcp-echo@%i.socket",]
    );
    // A process for one connection has nothing to preserve, to reload or to start again.
    let accept = settings("systemd/examples/tcp-echo-accept@.service");
    assert_eq!(
        only(&accept, &service),
        [
            "CollectMode=inactive-or-failed",
            "ExecStart=-/usr/bin/tcp-echo",
            "Restart=no",
            "FileDescriptorStoreMax=0",
            "LimitNOFILE=256",
        ]
    );
}

#[test]
fn the_readme_and_the_changelog_keep_up() {
    let readme = text("README.md");
    let commands: Vec<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .take(2)
        .collect();
    assert_eq!(commands, ["cargo run --release", "cargo test"]);
    let command = tcp_echo::cli::Cli::command();
    for argument in command
        .get_arguments()
        .filter_map(|argument| argument.get_long())
    {
        assert!(
            ["help", "version"].contains(&argument) || readme.contains(&format!("--{argument}")),
            "--{argument}"
        );
    }
    for subcommand in command.get_subcommands() {
        assert!(
            readme.contains(&format!("tcp-echo {}", subcommand.get_name()))
                || subcommand.get_name() == "serve"
        );
    }
    assert!(text("CHANGELOG.md").contains(&format!("## {}", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn the_package_has_the_version_of_the_program() {
    let changelog = text("packaging/debian/changelog");
    let first = format!("tcp-echo ({}) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&first), "packaging/debian/changelog");
}
