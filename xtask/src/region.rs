//! Files that are written by hand, except for regions between two comments: `Generated: NAME` and
//! `End`.

/// A text with its regions written anew; `comment` begins a comment in it, and `write` makes the
/// lines of a region from its name.
pub(crate) fn refreshed(text: &str, comment: &str, write: impl Fn(&str) -> String) -> String {
    let begin = format!("{comment}Generated: ");
    let end = format!("{comment}End");
    let mut made = String::new();
    let mut inside = None;
    for line in text.lines() {
        if line == end {
            inside = None;
        }
        if inside.is_none() {
            made.push_str(line);
            made.push('\n');
        }
        if let Some(name) = line.strip_prefix(&begin) {
            assert!(inside.is_none(), "{name} begins inside of another region");
            inside = Some(name);
            made.push_str(&write(name));
        }
    }
    assert!(inside.is_none(), "the region {inside:?} has no end");
    made
}
