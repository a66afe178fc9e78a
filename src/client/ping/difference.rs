//! Two summaries side by side.

use super::summary::Summary;
use super::threshold::millis;

/// A table of what two summaries say, with the change in percent; their targets are those of `after`.
///
/// Summaries are paired by their targets where there are several, else by their order.
#[must_use]
pub fn table(before: &[Summary], after: &[Summary]) -> String {
    let mut text = String::new();
    for (number, after) in after.iter().enumerate() {
        let same = before.iter().find(|summary| summary.target == after.target);
        match same.or_else(|| before.get(number)) {
            Some(before) => text += &pair(before, after),
            None => text += &format!("{}: is in one of them only\n", after.target),
        }
    }
    text
}

fn pair(before: &Summary, after: &Summary) -> String {
    let mut rows = vec![
        [
            String::new(),
            before.target.clone(),
            after.target.clone(),
            "change".into(),
        ],
        [
            "class".into(),
            before.class.clone(),
            after.class.clone(),
            String::new(),
        ],
    ];
    let mut counts = |name: &str, before: u64, after: u64| {
        let change = match before == after {
            true => String::new(),
            false => format!("{:+}", i128::from(after) - i128::from(before)),
        };
        rows.push([name.into(), before.to_string(), after.to_string(), change]);
    };
    counts("sent", before.sent, after.sent);
    counts("missing", before.missing, after.missing);
    counts("late", before.late, after.late);
    counts("wrong", before.wrong, after.wrong);
    counts("reconnects", before.reconnects, after.reconnects);
    if let (Some(before), Some(after)) = (before.kernel.sent_again, after.kernel.sent_again) {
        counts("sent again", before, after);
    }
    let mut times = |name: String, before: Option<f64>, after: Option<f64>| {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".into(), millis);
        if before.is_some() || after.is_some() {
            let change = before.zip(after).filter(|(before, _)| *before > 0.0);
            let change = change.map_or_else(String::new, |(before, after)| {
                format!("{:+.1} %", (after / before - 1.0) * 100.0)
            });
            rows.push([name, shown(before), shown(after), change]);
        }
    };
    times("connect".into(), before.connect_us, after.connect_us);
    let families = |summary: &Summary| {
        [
            ("rtt", summary.rtt_us.named()),
            ("wait", summary.wait_us.named()),
            ("host", summary.kernel.host_us.named()),
        ]
    };
    for ((family, before), (_, after)) in families(before).into_iter().zip(families(after)) {
        for ((name, before), (_, after)) in before.into_iter().zip(after) {
            times(format!("{family} {name}"), before, after);
        }
    }
    let (old, new) = (&before.variation_us, &after.variation_us);
    times("variation".into(), old.smoothed, new.smoothed);
    aligned(&rows)
}

fn aligned(rows: &[[String; 4]]) -> String {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: [usize; 4] = std::array::from_fn(width);
    let mut text = String::new();
    for [name, before, after, change] in rows {
        let line = format!(
            "{name:<0$}  {before:>1$}  {after:>2$}  {change:>3$}",
            widths[0], widths[1], widths[2], widths[3]
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_said_in_percent_and_what_is_unknown_is_a_dash() {
        let mut before = Summary {
            target: "a:7".into(),
            sent: 100,
            ..Summary::default()
        };
        before.rtt_us.p50 = Some(100.0);
        let mut after = before.clone();
        after.missing = 2;
        after.rtt_us.p50 = Some(150.0);
        after.rtt_us.p99 = Some(2000.0);
        let text = table(&[before.clone()], &[after.clone()]);
        let row = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        assert_eq!(
            row("rtt p50").as_deref(),
            Some("rtt p50 100.0 us 150.0 us +50.0 %")
        );
        assert_eq!(row("rtt p99").as_deref(), Some("rtt p99 - 2.00 ms"));
        assert_eq!(row("missing").as_deref(), Some("missing 0 2 +2"));
        assert_eq!(row("wait"), None);
        let other = Summary {
            target: "b:7".into(),
            ..after.clone()
        };
        let text = table(&[other.clone(), before], &[after, other]);
        assert!(text.lines().any(|line| line.contains("+50.0 %")), "{text}");
    }
}
