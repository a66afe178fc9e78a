//! What was measured, line by line, and whether the run as a whole is good.
//!
//! While it runs, standard error has a line of what is measured now, if it is a terminal.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The lines of a run.
#[derive(Debug)]
pub struct Report {
    began: Instant,
    progress: ProgressBar,
    section: String,
    met: usize,
    missed: Vec<String>,
    broken: usize,
}

impl Report {
    /// Of so many sections.
    pub fn new(sections: usize) -> Self {
        let style = "{spinner} {msg}  {pos} of {len} done  {elapsed}";
        let progress = ProgressBar::new(sections as u64)
            .with_style(ProgressStyle::with_template(style).unwrap());
        // Seldom, as it shares the processors with what is measured.
        progress.enable_steady_tick(Duration::from_secs(1));
        Self {
            began: Instant::now(),
            progress,
            section: String::new(),
            met: 0,
            missed: Vec::new(),
            broken: 0,
        }
    }

    pub fn section(&mut self, name: &str) {
        if !self.section.is_empty() {
            self.progress.inc(1);
        }
        name.clone_into(&mut self.section);
        self.progress.set_message(self.section.clone());
    }

    /// What is measured now, as a part of the section.
    pub fn doing(&self, part: &str) {
        self.progress
            .set_message(format!("{}: {part}", self.section));
    }

    /// A figure with a target.
    pub fn figure(&mut self, name: &str, measured: &str, target: &str, met: bool) {
        let verdict = if met { "met" } else { "MISSED" };
        self.line(name, measured, &format!("(target {target}: {verdict})"));
        if met {
            self.met += 1;
        } else {
            self.missed
                .push(format!("{}: {}", self.section, name.trim()));
        }
    }

    /// A figure with a bound: beyond it the run fails.
    pub fn bound(&mut self, name: &str, measured: &str, bound: &str, met: bool) {
        let verdict = if met { "met" } else { "EXCEEDED" };
        self.line(name, measured, &format!("(bound {bound}: {verdict})"));
        if met {
            self.met += 1;
        } else {
            self.broken += 1;
        }
    }

    /// A figure without one.
    pub fn fact(&mut self, name: &str, measured: &str) {
        self.line(name, measured, "");
    }

    /// Something to know.
    pub fn note(&mut self, text: &str) {
        self.progress.suspend(|| println!("# {text}"));
    }

    /// Bytes that are lost or wrong, or worse: the run fails.
    pub fn broken(&mut self, text: &str) {
        self.line("BROKEN", text, "");
        self.broken += 1;
    }

    /// `broken` if there is anything to report.
    pub fn check(&mut self, what: &str, outcome: Result<(), String>) {
        if let Err(text) = outcome {
            self.broken(&format!("{what}: {text}"));
        }
    }

    pub fn end(self) -> ExitCode {
        self.progress.finish_and_clear();
        println!(
            "# {} met, {} missed, {} broken, in {:.0} s",
            self.met,
            self.missed.len(),
            self.broken,
            self.began.elapsed().as_secs_f64()
        );
        for missed in &self.missed {
            println!("# missed: {missed}");
        }
        ExitCode::from(u8::from(self.broken > 0))
    }

    fn line(&self, name: &str, measured: &str, verdict: &str) {
        self.progress.suspend(|| {
            println!("{:<20} {name:<38} {measured}  {verdict}", self.section);
        });
    }
}

/// Milliseconds, with microseconds where they are significant.
pub fn ms(span: Duration) -> String {
    let ms = span.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.3} ms")
    } else {
        format!("{ms:.0} ms")
    }
}

/// The value below which so many hundredths of the others lie.
pub fn percentile(samples: &mut [Duration], hundredths: usize) -> Duration {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    samples
        .get((samples.len() * hundredths / 100).min(last))
        .copied()
        .unwrap_or_default()
}

/// The middle one.
pub fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|one, other| one.partial_cmp(other).unwrap());
    values[values.len() / 2]
}
