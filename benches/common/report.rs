//! What was measured, line by line, and whether the run as a whole is good.

use std::process::ExitCode;
use std::time::Duration;

/// The lines of a run.
#[derive(Debug, Default)]
pub struct Report {
    section: String,
    met: usize,
    missed: Vec<String>,
    broken: usize,
}

impl Report {
    pub fn section(&mut self, name: &str) {
        name.clone_into(&mut self.section);
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
        println!("# {text}");
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

    pub fn end(self, took: Duration) -> ExitCode {
        println!(
            "# {} met, {} missed, {} broken, in {:.0} s",
            self.met,
            self.missed.len(),
            self.broken,
            took.as_secs_f64()
        );
        for missed in &self.missed {
            println!("# missed: {missed}");
        }
        ExitCode::from(u8::from(self.broken > 0))
    }

    fn line(&self, name: &str, measured: &str, verdict: &str) {
        println!("{:<20} {name:<38} {measured}  {verdict}", self.section);
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
