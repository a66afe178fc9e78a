//! The message catalog, and the ids of events for tests/systemd.
//!
//! Of the catalog the subjects and the texts are written by hand.  Their frame follows from the table
//! of events: the order, the names, the ids, the headers.  An event without an entry gets a skeleton,
//! which a test of the catalog refuses until it is filled in.

use tcp_echo::echo::end_reason::EndReason;
use tcp_echo::log::events::{EVENTS, Kind};

use crate::region::refreshed;
use crate::{Generated, text};

const NAME: &str = "packaging/tcp-echo.catalog";

/// An entry of the catalog.
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) subject: String,
    body: String,
}

pub(crate) fn file() -> Generated {
    let catalog = text(NAME);
    let (head, _) = catalog.split_once("\n\n").unwrap();
    let mut made = format!("{head}\n");
    for Entry {
        kind,
        subject,
        body,
    } in entries()
    {
        made += &format!(
            "\n# {}\n-- {}\nSubject: {subject}\nDefined-By: tcp-echo\nDocumentation: \
             man:tcp-echo(8)\n\n{body}\n",
            kind.name, kind.id
        );
    }
    let made = refreshed(&made, "# ", |region| match region {
        "reasons" => reasons(),
        _ => panic!("{NAME}: there is no region {region}"),
    });
    (NAME.into(), made)
}

/// An entry for each event.
pub(crate) fn entries() -> Vec<Entry> {
    let catalog = text(NAME);
    let entry = |kind: Kind| {
        let start = format!("\n-- {}\nSubject: ", kind.id);
        let Some((_, rest)) = catalog.split_once(&start) else {
            return skeleton(kind);
        };
        let (subject, rest) = rest.split_once('\n').unwrap();
        let (_, rest) = rest.split_once("\n\n").unwrap();
        // The name of the next entry stands before its id.
        let end = rest
            .find("\n-- ")
            .map_or(rest.len(), |at| rest[..at].rfind("\n# ").unwrap());
        Entry {
            kind,
            subject: subject.into(),
            body: rest[..end].trim_end().into(),
        }
    };
    EVENTS.into_iter().map(entry).collect()
}

fn skeleton(kind: Kind) -> Entry {
    let fields = kind
        .fields
        .iter()
        .map(|field| field.replace('.', "_").to_uppercase());
    let fields: Vec<String> = fields.map(|field| format!("@{field}@")).collect();
    Entry {
        kind,
        subject: format!("TODO: what {} means, in a few words", kind.name),
        body: format!("TODO: what happened, and what to do.  {}", fields.join(" ")),
    }
}

/// The reasons as a table of the catalog, in lines of at most 80 characters.
fn reasons() -> String {
    let mut made = String::new();
    for row in EndReason::ALL {
        let mut line = format!("    {:<15}", row.word);
        for word in row.text.replace('`', "").split(' ') {
            if line.len() + 1 + word.len() > 79 {
                made += &format!("{}\n", line.trim_end());
                line = " ".repeat(19);
            }
            line += word;
            line.push(' ');
        }
        made += &format!("{}\n", line.trim_end());
    }
    made
}

pub(crate) fn ids() -> Generated {
    let mut made = "\"\"\"The ids of the events (cargo xtask generate).\"\"\"\n\n".to_owned();
    for kind in EVENTS {
        made += &format!("{} = \"{}\"\n", kind.name, kind.id);
    }
    ("tests/systemd/event_ids.py".into(), made)
}
