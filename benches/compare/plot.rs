//! Plots, drawn by hand: a few bars and lines need no library.

use std::fmt::Write;

use crate::rounds::Compared;
use crate::scale::Point;

const INK: &str = "#24292f";
const FAINT: &str = "#d0d7de";
const COLOURS: [&str; 2] = ["#1f6feb", "#e16f24"];

/// The ratios of server CPU and of rate, as bars on both sides of one.
pub fn ratios(all: &[Compared]) -> String {
    const LEFT: f64 = 190.0;
    const WIDE: f64 = 430.0;
    let against_bare: Vec<_> = all.iter().filter(|one| one.sides[1].0 == "bare").collect();
    let height = 74.0 + 34.0 * against_bare.len() as f64;
    let mut svg = open(LEFT + WIDE + 70.0, height);
    text(
        &mut svg,
        12.0,
        22.0,
        "start",
        "tcp-echo against a bare epoll loop (= 1.00)",
    );
    for (index, name) in ["server CPU, less is better", "rate, more is better"]
        .iter()
        .enumerate()
    {
        let x = LEFT + 220.0 * index as f64;
        bar(&mut svg, x, 36.0, 10.0, 10.0, COLOURS[index]);
        text(&mut svg, x + 15.0, 45.0, "start", name);
    }
    let both = against_bare
        .iter()
        .flat_map(|one| [one.ratios.processor, one.ratios.rate]);
    let most = both.fold(1.5, f64::max);
    let x = |ratio: f64| LEFT + ratio / most * WIDE;
    line(&mut svg, &[(x(1.0), 54.0), (x(1.0), height - 12.0)], INK);
    for (row, one) in against_bare.iter().enumerate() {
        let y = 58.0 + 34.0 * row as f64;
        text(&mut svg, LEFT - 8.0, y + 17.0, "end", one.scenario);
        for (index, ratio) in [one.ratios.processor, one.ratios.rate]
            .into_iter()
            .enumerate()
        {
            let y = y + 13.0 * index as f64;
            bar(&mut svg, LEFT, y, x(ratio) - LEFT, 11.0, COLOURS[index]);
            // The number keeps clear of the line.
            let end = match x(1.0) - x(ratio) {
                0.0..35.0 => x(1.0),
                _ => x(ratio),
            };
            text(
                &mut svg,
                end + 5.0,
                y + 9.5,
                "start",
                &format!("{ratio:.2}"),
            );
        }
    }
    svg + "</svg>\n"
}

/// What is drawn of a point.
type Of = fn(&Point) -> f64;

/// Memory and processor time over the number of connections.
pub fn scale(lines: &[(&'static str, Vec<Point>)]) -> String {
    const SIZE: (f64, f64) = (340.0, 190.0);
    let mut svg = open(2.0 * SIZE.0 + 160.0, SIZE.1 + 100.0);
    let panels: [(&str, Of); 2] = [
        ("server CPU for each message, us", |point| point.processor),
        // Of one connection it is a page or none.
        ("memory in user space for all, KiB", |point| {
            point.memory * point.count as f64 / 1024.0
        }),
    ];
    for (panel, (title, of)) in panels.into_iter().enumerate() {
        let left = 55.0 + panel as f64 * (SIZE.0 + 75.0);
        let bottom = 50.0 + SIZE.1;
        let points = lines.iter().flat_map(|(_, points)| points);
        let most = round_up(points.clone().map(of).fold(0.0, f64::max));
        let widest = points.map(|point| point.count).max().unwrap_or(1) as f64;
        let place = |point: &Point| {
            let x = if panel == 0 {
                (point.count as f64).ln() / widest.ln().max(1e-9)
            } else {
                point.count as f64 / widest
            };
            (
                left + x * SIZE.0,
                bottom - of(point).max(0.0) / most * SIZE.1,
            )
        };
        text(&mut svg, left, 22.0, "start", title);
        line(
            &mut svg,
            &[(left, 40.0), (left, bottom), (left + SIZE.0, bottom)],
            INK,
        );
        for step in 0..=4 {
            let value = most * f64::from(step) / 4.0;
            let y = bottom - SIZE.1 * f64::from(step) / 4.0;
            line(&mut svg, &[(left - 4.0, y), (left, y)], INK);
            let digits = usize::from(most < 100.0);
            text(
                &mut svg,
                left - 6.0,
                y + 4.0,
                "end",
                &format!("{value:.digits$}"),
            );
        }
        for (index, (name, points)) in lines.iter().enumerate() {
            let places: Vec<_> = points.iter().map(place).collect();
            line(&mut svg, &places, COLOURS[index]);
            for (x, y) in &places {
                let _ = writeln!(
                    svg,
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{}"/>"#,
                    COLOURS[index]
                );
            }
            let x = left + 12.0 + 90.0 * index as f64;
            bar(&mut svg, x, bottom + 28.0, 10.0, 10.0, COLOURS[index]);
            text(&mut svg, x + 15.0, bottom + 37.0, "start", name);
        }
        let counts = if panel == 0 {
            [1, 10, 100, 1000, 10_000]
        } else {
            [0, 5000, 10_000, 15_000, 19_000]
        };
        for count in counts {
            let x = if panel == 0 {
                f64::from(count).ln() / widest.ln().max(1e-9)
            } else {
                f64::from(count) / widest
            };
            let x = left + x * SIZE.0;
            line(&mut svg, &[(x, bottom), (x, bottom + 4.0)], INK);
            text(&mut svg, x, bottom + 17.0, "middle", &count.to_string());
        }
        text(&mut svg, left + SIZE.0, bottom + 37.0, "end", "connections");
    }
    svg + "</svg>\n"
}

/// The next number that can be divided by four without an odd rest.
fn round_up(value: f64) -> f64 {
    let unit = 10_f64.powf(value.max(1e-3).log10().floor());
    let steps = [1.2, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0];
    let step = steps.into_iter().find(|step| step * unit >= value);
    step.unwrap_or(12.0) * unit
}

fn open(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\" stroke=\"{FAINT}\"/>\n"
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{INK}">{words}</text>"#
    );
}

fn bar(svg: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    let _ = writeln!(
        svg,
        r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
    );
}

fn line(svg: &mut String, points: &[(f64, f64)], colour: &str) {
    let points: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = writeln!(
        svg,
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="1.5"/>"#,
        points.join(" ")
    );
}
