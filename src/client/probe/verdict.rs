//! Verdicts, and what goes with them.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::client::outcome::Class;
use crate::client::pattern::Checker;
use crate::config::units::size;

/// What a case says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// No fault, and worth knowing.
    Note,
    /// A fault.
    Fail,
    /// Not tried.
    Skipped,
}

impl Verdict {
    /// Its word, as in JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
        }
    }
}

/// Numbers by name, each name with its unit; what was not measured is absent.
pub type Figures = Map<String, Value>;

/// A curve of the page: what its axes are, and its points.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// What is to be seen.
    pub title: &'static str,
    /// What the horizontal axis is, with its unit.
    pub across: &'static str,
    /// What the vertical axis is, with its unit.
    pub upward: &'static str,
    /// The curves, by name.
    pub curves: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// What a case found.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// What was seen.
    pub text: String,
    /// A cause that fits it, if one is known.
    pub cause: Option<&'static str>,
    /// Where it is written how it should be.
    pub standard: Option<&'static str>,
    /// The numbers.
    pub figures: Figures,
    /// What there is to be seen.
    pub plot: Option<Plot>,
}

impl Finding {
    fn new(verdict: Verdict, text: impl Into<String>) -> Self {
        Self {
            verdict,
            text: text.into(),
            cause: None,
            standard: None,
            figures: Figures::new(),
            plot: None,
        }
    }

    pub(crate) fn ok(text: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, text)
    }

    pub(crate) fn note(text: impl Into<String>) -> Self {
        Self::new(Verdict::Note, text)
    }

    pub(crate) fn fail(text: impl Into<String>) -> Self {
        Self::new(Verdict::Fail, text)
    }

    pub(crate) fn skipped(text: impl Into<String>) -> Self {
        Self::new(Verdict::Skipped, text)
    }

    /// With a cause that fits.
    pub(crate) fn because(self, cause: &'static str) -> Self {
        Self {
            cause: Some(cause),
            ..self
        }
    }

    /// With the place where it is written how it should be.
    pub(crate) fn see(self, standard: &'static str) -> Self {
        Self {
            standard: Some(standard),
            ..self
        }
    }

    /// With a number, if it is known.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Option<u64>>) -> Self {
        if let Some(value) = value.into() {
            self.figures.insert(name.into(), value.into());
        }
        self
    }

    /// With a time, in microseconds, if it is known; the name ends in `_us`.
    pub(crate) fn with_time(self, name: &str, time: impl Into<Option<Duration>>) -> Self {
        self.with(name, time.into().map(micros))
    }

    /// With a word, where a number would not say it.
    pub(crate) fn with_word(mut self, name: &str, word: &str) -> Self {
        self.figures.insert(name.into(), word.into());
        self
    }

    pub(crate) fn with_plot(self, plot: Plot) -> Self {
        Self {
            plot: Some(plot),
            ..self
        }
    }
}

/// Why a case came to no verdict of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotJudged {
    /// It needs a connection and gets none.
    NoConnection(Class),
    /// It cannot be tried.
    Skipped(&'static str),
    /// It fails before there is something to judge.
    Fail(&'static str),
}

/// What a case comes to.
pub(crate) type Judged = Result<Finding, NotJudged>;

impl From<NotJudged> for Finding {
    fn from(why: NotJudged) -> Self {
        match why {
            NotJudged::NoConnection(class) => Self::fail(format!(
                "no further connection ({}): {}",
                class.word(),
                class.meaning()
            )),
            NotJudged::Skipped(text) => Self::skipped(text),
            NotJudged::Fail(text) => Self::fail(text),
        }
    }
}

/// What is wrong with the bytes of a conversation, in words; `None` if each is in its place.
pub(crate) fn wrong(checker: &Checker) -> Option<String> {
    let first = checker.wrong().first()?;
    Some(match checker.count() {
        1 => first.to_string(),
        count => format!("{first}, and {} more", count - 1),
    })
}

/// A time as a person would write it, with three digits.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (value, unit) = match seconds {
        _ if seconds < 1e-3 => (seconds * 1e6, "us"),
        _ if seconds < 1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    match value {
        _ if value < 10.0 => format!("{value:.2} {unit}"),
        _ if value < 100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

/// A number of bytes: exact when it is small.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..=9999 => format!("{count} bytes"),
        _ => size(count),
    }
}

/// A time in microseconds, as the reports have it.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
