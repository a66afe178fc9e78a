//! Files that are written by hand, except for regions between two comments: `Generated: NAME` and
//! `End`.

/// How a kind of files writes a comment: what stands before and behind its text.
pub(crate) type Comment = (&'static str, &'static str);

/// A text with its regions written anew; `write` makes the lines of a region from its name.
pub(crate) fn refreshed(
    text: &str,
    (open, close): Comment,
    write: impl Fn(&str) -> String,
) -> String {
    let begin = format!("{open}Generated: ");
    let end = format!("{open}End{close}");
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
        let name = line
            .strip_prefix(&begin)
            .and_then(|rest| rest.strip_suffix(close));
        if let Some(name) = name {
            assert!(inside.is_none(), "{name} begins inside of another region");
            inside = Some(name);
            made.push_str(&write(name));
        }
    }
    assert!(inside.is_none(), "the region {inside:?} has no end");
    made
}
