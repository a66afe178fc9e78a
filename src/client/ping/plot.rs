//! The picture of a session: its distribution, and its round trips over time.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::report;
use super::summary::Summary;
use super::tally::Tally;
use crate::client::statistics::Percentile;

/// The size of the picture, in pixels.
const SIZE: (u32, u32) = (960, 720);

/// Points of the distribution.
const POINTS: u32 = 200;

const BLUE_LINE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const RED_LINE: RGBColor = RGBColor(0xc2, 0x3b, 0x22);

type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Draws it as SVG.
#[must_use]
pub fn svg(summary: &Summary, tally: &Tally) -> String {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        // A string takes everything, so that nothing can fail but a plot without a range, which is
        // what it is: empty.
        let _ = draw(&area, summary, tally);
        let _ = area.present();
    }
    text
}

fn draw(area: &DrawingArea<SVGBackend<'_>, Shift>, summary: &Summary, tally: &Tally) -> Drawn {
    area.fill(&WHITE)?;
    let title = format!(
        "{} ({}): {} sent, {} back, {} missing, {} wrong",
        summary.target,
        summary.class,
        summary.sent,
        summary.received,
        summary.missing,
        summary.wrong
    );
    let area = area.titled(&title, ("sans-serif", 20))?;
    if tally.rtt.is_empty() {
        return Ok(());
    }
    let (above, below) = area.split_vertically(340);
    distribution(&above, tally)?;
    timeline(&below, tally)
}

fn millis(span: std::time::Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// Room above and below what is drawn on a logarithmic axis.
fn range(tally: &Tally) -> (f64, f64) {
    let min = millis(tally.rtt.min().unwrap_or_default()).max(1e-6);
    let max = millis(tally.rtt.max().unwrap_or_default()).max(min);
    (min / 1.2, max * 1.2)
}

/// A time on an axis, which is logarithmic.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the axis wants it so")]
fn label(millis: &f64) -> String {
    report::time(std::time::Duration::from_secs_f64(millis.max(0.0) / 1e3))
}

/// Round trips by percentile; the axis is that of the nines, so that each of them has as much room.
fn distribution(area: &DrawingArea<SVGBackend<'_>, Shift>, tally: &Tally) -> Drawn {
    #[expect(clippy::cast_precision_loss, reason = "a picture is not exact")]
    let nines = (tally.rtt.len() as f64).log10().clamp(1.0, 6.0);
    let (low, high) = range(tally);
    let mut chart = ChartBuilder::on(area)
        .caption("round trips by percentile", ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..nines, (low..high).log_scale())?;
    let percentile = |nines: &f64| {
        let percent = 100.0 - 100.0 / 10_f64.powf(*nines);
        format!("p{percent:.3}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("percentile")
        .x_labels(7)
        .x_label_formatter(&percentile)
        .y_label_formatter(&label)
        .draw()?;
    let points = (0..=POINTS).map(|point| {
        let nines = nines * f64::from(point) / f64::from(POINTS);
        let share = 1.0 - 1.0 / 10_f64.powf(nines);
        (nines, millis(tally.rtt.at(share)).max(low))
    });
    chart.draw_series(LineSeries::new(points, BLUE_LINE.stroke_width(2)))?;
    // What the sample carries is marked.
    let marks = Percentile::ALL.iter().filter_map(|percentile| {
        let value = tally.rtt.percentile(*percentile)?;
        let at = -(1.0 - percentile.share).log10();
        Some(Circle::new(
            (at.min(nines), millis(value)),
            4,
            BLUE_LINE.filled(),
        ))
    });
    chart.draw_series(marks)?;
    Ok(())
}

/// Round trips over time: from the shortest to the longest of each moment, and their mean.
fn timeline(area: &DrawingArea<SVGBackend<'_>, Shift>, tally: &Tally) -> Drawn {
    let (low, high) = range(tally);
    let end = tally
        .timeline
        .moments()
        .last()
        .map_or(1.0, |(at, _)| at.as_secs_f64() * 1.02);
    let mut chart = ChartBuilder::on(area)
        .caption(
            "round trips over time (shortest, mean, longest; red: echoes missing)",
            ("sans-serif", 15),
        )
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("seconds")
        .y_label_formatter(&label)
        .draw()?;
    let back = || {
        tally
            .timeline
            .moments()
            .filter(|(_, moment)| moment.count > 0)
    };
    let spans = back().map(|(at, moment)| {
        let at = at.as_secs_f64();
        let ends = vec![(at, millis(moment.min())), (at, millis(moment.max()))];
        PathElement::new(ends, BLUE_LINE.mix(0.35).stroke_width(2))
    });
    chart.draw_series(spans)?;
    let means = back().map(|(at, moment)| {
        let mean = millis(moment.mean());
        Circle::new((at.as_secs_f64(), mean.max(low)), 2, BLUE_LINE.filled())
    });
    chart.draw_series(means)?;
    let missing = tally
        .timeline
        .moments()
        .filter(|(_, moment)| moment.missing > 0);
    let lines = missing.map(|(at, _)| {
        let at = at.as_secs_f64();
        PathElement::new(vec![(at, low), (at, high)], RED_LINE.stroke_width(1))
    });
    chart.draw_series(lines)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::ping::Pace;
    use crate::client::statistics::nanos;

    #[test]
    fn what_was_measured_is_drawn_and_nothing_is_drawn_of_nothing() {
        let mut tally = Tally::new(Duration::ZERO, Pace::Every(Duration::ZERO), Duration::MAX);
        let empty = svg(&Summary::default(), &tally);
        assert!(
            empty.starts_with("<svg") && empty.ends_with("</svg>\n"),
            "{empty}"
        );
        assert!(!empty.contains("percentile"));
        for at in 0..1000 {
            let rtt = Duration::from_micros(100 + at * at % 997);
            tally.rtt.record(rtt);
            tally.timeline.echo(at * 1_000_000, nanos(rtt));
        }
        tally.timeline.missing(500_000_000, 1);
        let drawn = svg(&Summary::default(), &tally);
        assert!(drawn.contains("round trips by percentile"));
        assert!(drawn.contains("p99.9") && drawn.contains("us"), "{drawn}");
        let red = drawn.matches("#C23B22").count();
        assert_eq!(red, 1);
        // As many means as there are moments, and the marks of p50 to p99.
        assert_eq!(
            drawn.matches("<circle").count(),
            tally.timeline.moments().count() + 4
        );
    }
}
