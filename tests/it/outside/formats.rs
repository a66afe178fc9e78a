//! Programs of others read the text: the parser of Prometheus' library for Python, and promtool(1).
//! And what is shipped for them fits it: alert rules and a dashboard.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use testkit::{ping, reset};

use super::{ask, metrics, observed};

/// The Python of Debian's packages, whatever other stands before it in the path.
const PYTHON: &str = "/usr/bin/python3";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name)
}

/// What a program says of a text on its standard input; it must be content.
#[track_caller]
fn reads(command: &mut Command, text: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complaint}\n{text}");
    said + &complaint
}

/// The same page in both forms, of a daemon that has had connections of several kinds.
fn pages() -> [String; 2] {
    let (daemon, address) = observed("workers = 2\n");
    let (open, over) = (daemon.connect(), daemon.connect());
    ping(&open, &[1; 5000]);
    ping(&over, &[2; 5000]);
    reset(over);
    let accept = "Accept: application/openmetrics-text; version=1.0.0";
    let newer = ask(
        address,
        &format!("GET /metrics HTTP/1.1\r\n{accept}\r\n\r\n"),
    );
    [newer.body, metrics(address).body]
}

#[test]
fn the_parser_of_openmetrics_takes_the_text() {
    if !testkit::has_module(PYTHON, "prometheus_client") {
        return;
    }
    let [newer, older] = pages();
    for (module, text) in [("openmetrics.parser", newer), ("parser", older)] {
        let script = format!(
            "import sys\n\
             from prometheus_client.{module} import text_string_to_metric_families as parse\n\
             for family in parse(sys.stdin.read()):\n\
             \x20   assert family.documentation, family\n\
             \x20   print(family.type, family.name, family.unit, len(family.samples))\n"
        );
        let said = reads(Command::new(PYTHON).args(["-c", &script]), &text);
        assert!(said.lines().count() >= 26, "{said}");
        for family in [
            "gauge tcp_echo_connections  2",
            "histogram tcp_echo_connection_duration_seconds",
            "counter tcp_echo_bytes",
        ] {
            assert!(said.contains(family), "{family}: {said}");
        }
    }
}

#[test]
fn promtool_has_no_objection_to_the_text() {
    if !testkit::has("promtool") {
        return;
    }
    let [_, older] = pages();
    let said = reads(Command::new("promtool").args(["check", "metrics"]), &older);
    assert_eq!(said, "");
}

#[test]
fn the_alert_rules_fire_when_they_should_and_only_then() {
    if !testkit::has("promtool") {
        return;
    }
    for arguments in [
        ["check", "rules", "tcp-echo.rules.yml"],
        ["test", "rules", "tcp-echo.rules.test.yml"],
    ] {
        let mut command = Command::new("promtool");
        command.args(arguments).current_dir(shipped("prometheus"));
        reads(&mut command, "");
    }
}

/// The words in a query that name a metric of ours.
fn named(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tcp_echo_") || word.starts_with("process_"))
}

/// The names of the samples in a text.
fn samples(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split(['{', ' ']).next().unwrap())
        .collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let [newer, older] = pages();
    let text = std::fs::read_to_string(shipped("grafana/tcp-echo.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!(panels.len(), 8);
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let queries = targets
        .map(|target| &target["expr"])
        .chain(variables.iter().map(|variable| &variable["query"]));
    let mut asked: BTreeSet<String> = queries
        .flat_map(|query| named(query.as_str().unwrap()))
        .map(str::to_owned)
        .collect();
    let rules = std::fs::read_to_string(shipped("prometheus/tcp-echo.rules.yml")).unwrap();
    let rules = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    asked.extend(rules.flat_map(named).map(str::to_owned));
    assert!(asked.len() > 15, "{asked:?}");
    for page in [&newer, &older] {
        let there = samples(page);
        for name in &asked {
            assert!(there.contains(&**name), "{name} is not in {there:?}");
        }
    }
    // A label that a query selects or shows has to be there as well.
    for label in [
        "reason=\"timed-out\"",
        "reason=\"not-restored\"",
        "state=\"refused\"",
    ] {
        assert!(newer.contains(label), "{label}");
    }
}

#[test]
fn the_documentation_lists_each_metric() {
    let [newer, _] = pages();
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let mut rows = Vec::new();
    for line in newer
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP "))
    {
        let (name, help) = line.split_once(' ').unwrap();
        let kind = format!("# TYPE {name} ");
        let kind = newer
            .lines()
            .find_map(|line| line.strip_prefix(&kind))
            .unwrap();
        rows.push(format!("| `{name}` | {kind} | {help} |"));
    }
    for row in &rows {
        assert!(
            docs.lines().any(|line| line == row),
            "docs/fleet.md lacks this row of:\n{}",
            rows.join("\n")
        );
    }
    let is_row = |line: &&str| {
        ["| `tcp_echo_", "| `process_"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let listed = docs.lines().filter(is_row).count();
    assert_eq!(listed, rows.len(), "docs/fleet.md has rows that are none");
}
