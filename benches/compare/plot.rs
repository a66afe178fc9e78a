//! The pictures of a run, as SVG.

use std::error::Error;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::rounds::Compared;
use crate::scale::Point;
use crate::scenarios::BARE;
use crate::tables;

const COLOURS: [RGBColor; 2] = [RGBColor(0x1f, 0x6f, 0xeb), RGBColor(0xe1, 0x6f, 0x24)];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

/// Draws a picture of a size in pixels.
fn picture(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Drawn,
) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}

fn text(horizontal: HPos) -> TextStyle<'static> {
    let centred = Pos::new(horizontal, VPos::Center);
    TextStyle::from(("sans-serif", 13).into_font()).pos(centred)
}

/// What is drawn of a comparison.
type Ratio = fn(&Compared) -> f64;

/// The ratios of server CPU and of rate, as bars on both sides of one.
pub fn ratios(all: &[Compared]) -> Result<String, Box<dyn Error>> {
    let all: Vec<_> = all.iter().filter(|one| one.sides[1].name == BARE).collect();
    let rows = all.len() as u32;
    let series: [(&str, Ratio); 2] = [
        ("server CPU, less is better", |one| {
            one.sides[0].ratios.processor
        }),
        ("rate, more is better", |one| one.sides[0].ratios.rate),
    ];
    let both = all.iter().flat_map(|one| series.map(|(_, of)| of(one)));
    let most = both.fold(1.5, f64::max);
    picture((820, 90 + 34 * rows), |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(
                "tcp-echo against a bare epoll loop (= 1.00)",
                ("sans-serif", 15),
            )
            .margin(10)
            .margin_right(50)
            .x_label_area_size(30)
            .y_label_area_size(280)
            .build_cartesian_2d(0.0..most, 0.0..f64::from(rows) + 1.0)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE)
            .x_label_formatter(&|ratio| format!("{ratio:.1}"))
            .draw()?;
        // From the top: the legend, then a row for each scenario.
        let middle = |row: usize| f64::from(rows) - row as f64 - 0.5;
        for (index, (name, of)) in series.into_iter().enumerate() {
            let colour = COLOURS[index];
            let below = |row| middle(row) - 0.38 * index as f64;
            let bars = all.iter().enumerate().map(|(row, one)| {
                let corners = [(0.0, below(row)), (of(one), below(row) + 0.34)];
                Rectangle::new(corners, colour.filled())
            });
            chart.draw_series(bars)?.label(name).legend(move |(x, y)| {
                Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled())
            });
            chart.draw_series(all.iter().enumerate().map(|(row, one)| {
                // The number keeps clear of the line.
                let end = match of(one) {
                    0.85..1.0 => 1.0,
                    ratio => ratio,
                };
                EmptyElement::at((end, below(row) + 0.17))
                    + Text::new(format!("{:.2}", of(one)), (5, 0), text(HPos::Left))
            }))?;
        }
        let one = [(1.0, 0.0), (1.0, f64::from(rows))];
        chart.draw_series(LineSeries::new(one, BLACK.stroke_width(2)))?;
        chart.draw_series(all.iter().enumerate().map(|(row, one)| {
            EmptyElement::at((0.0, middle(row)))
                + Text::new(one.scenario.clone(), (-8, 0), text(HPos::Right))
        }))?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(2)
            .label_font(("sans-serif", 13))
            .draw()?;
        Ok(())
    })
}

/// Processor time of each server as a multiple of the bare loop's: a panel for each scenario.
pub fn peers(all: &[Compared]) -> Result<String, Box<dyn Error>> {
    let all: Vec<_> = all.iter().filter(|one| one.sides.len() > 2).collect();
    let mut names = tables::servers(&all);
    names.retain(|name| name != BARE);
    let rows = names.len() as f64;
    let ratios = || {
        all.iter()
            .flat_map(|one| &one.sides)
            .map(|side| side.ratios.processor)
    };
    // Room for the number beside the last point.
    let most = 3.0 * ratios().fold(1.5, f64::max);
    let least = 0.8 * ratios().fold(1.0, f64::min);
    let lines = all.len().div_ceil(2);
    let height = (lines * (70 + 18 * names.len()) + 30) as u32;
    picture((860, height), |area| {
        let caption = "server CPU for the same load, a bare epoll loop = 1 (less is better)";
        let area = area.titled(caption, ("sans-serif", 17))?;
        for (one, panel) in all.iter().zip(area.split_evenly((lines, 2))) {
            let mut chart = ChartBuilder::on(&panel)
                .caption(&one.scenario, ("sans-serif", 14))
                .margin(8)
                .x_label_area_size(22)
                .y_label_area_size(170)
                .build_cartesian_2d((least..most).log_scale(), 0.0..rows)?;
            chart
                .configure_mesh()
                .disable_y_mesh()
                .disable_y_axis()
                .light_line_style(WHITE)
                .x_labels(4)
                .x_label_formatter(&|ratio| format!("{ratio}"))
                .draw()?;
            chart.draw_series(LineSeries::new(
                [(1.0, 0.0), (1.0, rows)],
                BLACK.stroke_width(1),
            ))?;
            for (row, name) in names.iter().enumerate() {
                let middle = rows - row as f64 - 0.5;
                let colour = COLOURS[usize::from(!name.starts_with("tcp-echo"))];
                let at = |x, text_, place, side| {
                    EmptyElement::at((x, middle)) + Text::new(text_, (place, 0), text(side))
                };
                chart.draw_series([at(least, name.clone(), -8, HPos::Right)])?;
                let Some(side) = tables::side(one, name) else {
                    chart.draw_series([at(1.0, "failed".into(), 8, HPos::Left)])?;
                    continue;
                };
                let ratio = side.ratios.processor;
                chart.draw_series([Circle::new((ratio, middle), 4, colour.filled())])?;
                chart.draw_series([at(ratio, tables::times(ratio), 8, HPos::Left)])?;
            }
        }
        Ok(())
    })
}

/// The points of each server.
pub type Lines = [(String, Vec<Point>)];

/// What is drawn of a point.
type Of = fn(&Point) -> f64;

/// Memory and processor time over the number of connections.
pub fn scale(lines: &Lines) -> Result<String, Box<dyn Error>> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let widest = points().map(|point| point.count).max().unwrap_or(1).max(2) as f64;
    let highest = |of: Of| points().map(of).fold(1e-3, f64::max) * 1.1;
    let processor: Of = |point| point.processor;
    // Of one connection it is a page or none.
    let memory: Of = |point| (point.memory * point.count as f64 / 1024.0).max(0.0);
    picture((840, 320), |area| {
        let (left, right) = area.split_horizontally(420);
        let chart = panel(&left, "server CPU for each message, us")
            .build_cartesian_2d((1.0..widest).log_scale(), 0.0..highest(processor))?;
        draw(chart, lines, processor)?;
        let chart = panel(&right, "memory in user space for all, KiB")
            .build_cartesian_2d(0.0..widest, 0.0..highest(memory))?;
        draw(chart, lines, memory)
    })
}

fn panel<'a, 'b>(area: &'a Area<'b>, title: &str) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .margin_right(25)
        .x_label_area_size(40)
        .y_label_area_size(50);
    builder
}

fn draw<'a, 'b: 'a, X>(
    mut chart: ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, RangedCoordf64>>,
    lines: &Lines,
    of: Of,
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("connections")
        .x_labels(5)
        .x_label_formatter(&|count| format!("{count:.0}"))
        .y_label_formatter(&|value| format!("{value:.1}").trim_end_matches(".0").to_owned())
        .draw()?;
    for ((name, points), colour) in lines.iter().zip(COLOURS) {
        let places = points.iter().map(|point| (point.count as f64, of(point)));
        let line = LineSeries::new(places, colour.stroke_width(2)).point_size(3);
        chart
            .draw_series(line)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .margin(8)
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}
