//! What a probe found, as one page that needs nothing else: to be sent to those that run the network.
//!
//! It is light or dark as its reader's screen is, has no script, and loads nothing.

use plotters::prelude::*;

use super::report::escaped;
use super::verdict::{Finding, Plot, Verdict};
use super::{Case, Report};

/// The size of a picture, in pixels.
const SIZE: (u32, u32) = (880, 300);

/// The colours of curves, which can be seen on light and on dark.
const CURVES: [RGBColor; 2] = [RGBColor(0x2f, 0x7d, 0xd6), RGBColor(0xd9, 0x6a, 0x1c)];

/// What the axes are drawn in, which becomes the colour of the text around them.
const AXES: RGBColor = BLACK;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--ink:#1b1f24;--faint:#667;--line:#d5d9df;\
--ok:#1a7f37;--note:#9a6700;--fail:#cf222e}\
@media(prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e3e7ec;--faint:#98a2b0;\
--line:#333b46;--ok:#3fb950;--note:#d29922;--fail:#f85149}}\
body{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:62rem;\
margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}.faint{color:var(--faint)}\
table{border-collapse:collapse;width:100%;margin:1.2rem 0}\
td,th{text-align:left;vertical-align:top;padding:.45rem .6rem;border-top:1px solid var(--line)}\
td:first-child{white-space:nowrap;font-family:ui-monospace,monospace}\
.ok{color:var(--ok)}.note{color:var(--note)}.fail{color:var(--fail)}.skipped{color:var(--faint)}\
td.ok,td.note,td.fail,td.skipped{font-weight:600}\
dl{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;margin:.2rem 0;font-size:.85rem;\
color:var(--faint)}dl div{display:flex;gap:.4rem}dd{margin:0;color:var(--ink)}\
figure{margin:1.5rem 0}figcaption{font-weight:600}svg{max-width:100%;height:auto}\
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .3em 0 1em}";

impl Report {
    /// All of it, as a page.
    #[must_use]
    pub fn html(&self, target: &str, strict: bool) -> String {
        let target = escaped(target);
        let rows: String = self
            .findings
            .iter()
            .map(|(case, finding)| row(case, finding))
            .collect();
        let plots = self.findings.iter().filter_map(|(case, finding)| {
            let plot = finding.plot.as_ref()?;
            Some(figure(case, plot))
        });
        let verdict = match self.faults(strict) {
            0 => "ok",
            _ => "fail",
        };
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>tcp-echo probe {target}</title><style>{STYLE}</style></head>\n<body>\n\
             <h1>tcp-echo probe {target}</h1>\n<p class=\"faint\">{}, seed {:x}</p>\n\
             <p class=\"{verdict}\">{}</p>\n\
             <table><thead><tr><th>case</th><th>verdict</th><th>what was seen</th></tr></thead>\n\
             <tbody>\n{rows}</tbody></table>\n{}</body></html>\n",
            escaped(&self.place.to_string()),
            self.seed,
            escaped(&self.summary()),
            plots.collect::<String>(),
        )
    }
}

fn row(case: &Case, finding: &Finding) -> String {
    let word = finding.verdict.word();
    let mut seen = format!("<p>{}</p>", escaped(&finding.text));
    if let Some(cause) = finding.cause {
        seen += &format!("<p><b>{}</b></p>", escaped(cause));
    }
    let mut notes = vec![escaped(case.about)];
    if let (Some(standard), true) = (finding.standard, finding.verdict != Verdict::Ok) {
        notes.push(escaped(standard));
    }
    seen += &format!("<p class=\"faint\">{}</p>", notes.join("; "));
    if !finding.figures.is_empty() {
        let figure = |(name, value): (&String, &serde_json::Value)| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!(
                "<div><dt>{}</dt><dd>{}</dd></div>",
                escaped(name),
                escaped(&value)
            )
        };
        let figures: String = finding.figures.iter().map(figure).collect();
        seen += &format!("<dl>{figures}</dl>");
    }
    format!(
        "<tr><td>{}</td><td class=\"{word}\">{word}</td><td>{seen}</td></tr>\n",
        case.id
    )
}

fn figure(case: &Case, plot: &Plot) -> String {
    let keys = plot.curves.iter().zip(CURVES.iter().cycle());
    let keys: String = keys
        .map(|((name, _), colour)| {
            format!(
                "<span class=\"key\" style=\"background:{}\"></span>{name}",
                hex(*colour)
            )
        })
        .collect();
    format!(
        "<figure id=\"{}\"><figcaption>{}: {}</figcaption><p class=\"faint\">{}, by {}{keys}</p>\n\
         {}</figure>\n",
        case.id.replace('/', "-"),
        case.id,
        plot.title,
        plot.upward,
        plot.across,
        drawn(plot)
    )
}

fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// The picture of a plot, in the colour of the text around it.
fn drawn(plot: &Plot) -> String {
    let mut text = String::new();
    // A string takes everything, so that nothing can fail but a plot without a range, which is what
    // it is: empty.
    let _ = draw(plot, &mut text);
    text.replace(&hex(AXES), "currentColor")
}

fn draw(plot: &Plot, text: &mut String) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    let points = || plot.curves.iter().flat_map(|(_, points)| points);
    let most = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (right, top) = (most(|point| point.0) * 1.02, most(|point| point.1) * 1.05);
    let mut chart = ChartBuilder::on(&area)
        .margin(8)
        .x_label_area_size(28)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 12).into_font().color(&AXES))
        .axis_style(AXES)
        .bold_line_style(AXES.mix(0.15))
        .draw()?;
    for ((_, points), colour) in plot.curves.iter().zip(CURVES.iter().cycle()) {
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        // As long as they can be told apart.
        if points.len() <= 100 {
            let dots = points
                .iter()
                .map(|point| Circle::new(*point, 3, colour.filled()));
            chart.draw_series(dots)?;
        }
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::probe::CASES;
    use crate::client::target::Place;

    #[test]
    fn a_page_has_each_verdict_and_picture_and_loads_nothing() {
        let plot = Plot {
            title: "curves",
            across: "seconds",
            upward: "ms",
            curves: vec![
                ("one", vec![(0.0, 1.0), (1.0, 7.0)]),
                ("two", vec![(0.5, 3.0)]),
            ],
        };
        let findings = [
            Finding::ok("a < b").with("bytes", 7),
            Finding::fail("0 of 9 came")
                .because("a cause")
                .with_plot(plot),
        ];
        let report = Report {
            place: Place::Unix("/run/<echo>".into()),
            seed: 0x5eed,
            findings: CASES.iter().zip(findings).collect(),
            bytes: 1,
            span: Duration::from_secs(1),
        };
        let page = report.html("host&co", false);
        assert!(
            page.contains("<h1>tcp-echo probe host&amp;co</h1>"),
            "{page}"
        );
        assert!(
            page.contains("/run/&lt;echo&gt;") && page.contains("a &lt; b"),
            "{page}"
        );
        assert!(page.contains("<td class=\"fail\">fail</td>"), "{page}");
        assert!(page.contains("<dt>bytes</dt><dd>7</dd>"), "{page}");
        assert_eq!(page.matches("<svg").count(), 1);
        assert!(
            page.contains("stroke=\"#2F7DD6\"") && page.contains("#D96A1C"),
            "{page}"
        );
        assert!(
            page.contains("currentColor") && !page.contains("#000000"),
            "{page}"
        );
        for foreign in ["src=", "href=", "url(", "<script"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("<tr>").count(), page.matches("</tr>").count());
    }

    #[test]
    fn a_plot_of_nothing_is_empty() {
        let plot = Plot {
            title: "nothing",
            across: "seconds",
            upward: "ms",
            curves: vec![("none", Vec::new())],
        };
        assert!(drawn(&plot).starts_with("<svg"), "{}", drawn(&plot));
    }
}
