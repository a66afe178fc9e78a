//! Text for manual pages, roff(7) with the macros of man(7).

/// A name in bold type; its hyphens are minus signs, which can be copied.
pub(crate) fn bold(name: &str) -> String {
    format!("\\fB{}\\fR", hyphened(name))
}

/// A name, of which each hyphen is a minus sign that can be copied.
pub(crate) fn hyphened(name: &str) -> String {
    name.replace('-', "\\-")
}

/// Running text: one sentence a line, broken where it is longer than 80 characters.  What stands
/// between backquotes is in bold type, and so is each of `names`.  A sentence begins behind two
/// spaces.
pub(crate) fn prose(text: &str, names: &[&str]) -> String {
    let mut made = String::new();
    for sentence in text.split(".  ") {
        let end = if sentence.ends_with('.') { "" } else { "." };
        let words = sentence.split_whitespace().map(|word| {
            let name = word.trim_matches([',', '.', ':', ';', '(', ')']);
            match (
                name.strip_prefix('`')
                    .and_then(|name| name.strip_suffix('`')),
                name,
            ) {
                (Some(quoted), _) => word.replacen(name, &bold(quoted), 1),
                (None, name) if names.contains(&name) => word.replacen(name, &bold(name), 1),
                _ => escaped(word),
            }
        });
        made += &folded(&(words.collect::<Vec<_>>().join(" ") + end));
        made.push('\n');
    }
    made
}

/// A sentence of the words that begin in lower case.
pub(crate) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + letters.as_str()
}

/// A line; one of text that is longer than 80 characters becomes several.
pub(crate) fn folded(line: &str) -> String {
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

/// Text, of which nothing is a request.
pub(crate) fn escaped(text: &str) -> String {
    escaped_start(&text.replace('\\', "\\e"))
}

fn escaped_start(text: &str) -> String {
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text.to_owned(),
    }
}
