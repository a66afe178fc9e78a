//! `tcp-echo diff`: two summaries that `ping --json` wrote, side by side.

use std::path::Path;

use super::{Exit, complain, print};
use crate::client::ping::difference;
use crate::client::ping::summary::Summary;

/// Compares two files.
#[must_use]
pub(super) fn run(before: &Path, after: &Path) -> Exit {
    let (before, after) = match (read(before), read(after)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(why), _) | (_, Err(why)) => {
            complain(&why);
            return Exit::Usage;
        }
    };
    let table = difference::table(&before, &after);
    print(table.as_bytes(), "the comparison", Exit::Success)
}

/// The summary in a file, or the array of them for several targets.
fn read(path: &Path) -> Result<Vec<Summary>, String> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    let value: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| format!("{name} is no JSON, as ping --json writes it: {error}"))?;
    let values = match value {
        serde_json::Value::Array(values) => values,
        value => vec![value],
    };
    let summary = |value: serde_json::Value| {
        // Without these two it is something else, all of whose figures would be absent.
        let is_one = value.get("target").is_some() && value.get("class").is_some();
        is_one.then(|| serde_json::from_value(value).ok()).flatten()
    };
    values
        .into_iter()
        .map(summary)
        .collect::<Option<Vec<Summary>>>()
        .filter(|summaries| !summaries.is_empty())
        .ok_or_else(|| format!("{name} is no summary of ping --json"))
}
