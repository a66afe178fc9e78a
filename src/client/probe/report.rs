//! What a probe found, as text, as JSON and as JUnit's XML.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::verdict::{Finding, Verdict, bytes, micros, span};
use super::{Case, Report};

/// The colours of a terminal (ECMA-48), or none.
fn coloured(verdict: Verdict, word: &str, colour: bool) -> String {
    let code = match verdict {
        _ if !colour => return word.into(),
        Verdict::Ok => 32,
        Verdict::Note => 33,
        Verdict::Fail => 31,
        Verdict::Skipped => 2,
    };
    format!("\x1b[{code}m{word}\x1b[0m")
}

/// A case and its verdict as lines; a fault catches the eye.
#[must_use]
pub fn line(case: &Case, finding: &Finding, colour: bool) -> String {
    let word = match finding.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Fail => "FAIL",
        Verdict::Skipped => "-",
    };
    let word = coloured(finding.verdict, &format!("{word:<4}"), colour);
    let mut line = format!("{:<18} {word}  {}", case.id, finding.text);
    if let (Some(standard), true) = (finding.standard, finding.verdict != Verdict::Ok) {
        // Writing to a string does not fail.
        let _ = write!(line, "   {standard}");
    }
    if let Some(cause) = finding.cause {
        let _ = write!(line, "\n{:<18}       {cause}", "");
    }
    line
}

/// How many of a kind.
fn count(number: usize, one: &str, many: &str) -> String {
    match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {many}"),
    }
}

impl Report {
    fn of(&self, verdict: Verdict) -> usize {
        let is = |(_, finding): &&(&Case, Finding)| finding.verdict == verdict;
        self.findings.iter().filter(is).count()
    }

    /// How many faults there are; `strict`: notes are faults.
    #[must_use]
    pub fn faults(&self, strict: bool) -> usize {
        self.of(Verdict::Fail)
            + match strict {
                true => self.of(Verdict::Note),
                false => 0,
            }
    }

    /// The last line.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut parts = vec![
            count(self.of(Verdict::Fail), "fault", "faults"),
            format!("{} fine", self.of(Verdict::Ok)),
            count(self.of(Verdict::Note), "note", "notes"),
        ];
        if self.of(Verdict::Skipped) > 0 {
            parts.push(format!("{} skipped", self.of(Verdict::Skipped)));
        }
        format!(
            "{}. {} in {}",
            parts.join(", "),
            bytes(self.bytes),
            span(self.span)
        )
    }

    /// All of it, for programs.
    #[must_use]
    pub fn json(&self, target: &str, strict: bool) -> Value {
        let case = |(case, finding): &(&Case, Finding)| {
            let mut object = json!({
                "id": case.id,
                "verdict": finding.verdict.word(),
                "text": finding.text,
                "figures": finding.figures,
            });
            // What is not known is absent.
            if let Some(cause) = finding.cause {
                object["cause"] = cause.into();
            }
            if let Some(standard) = finding.standard {
                object["standard"] = standard.into();
            }
            object
        };
        json!({
            "target": target,
            "address": self.place.to_string(),
            "seed": format!("{:x}", self.seed),
            "cases": self.findings.iter().map(case).collect::<Vec<_>>(),
            "faults": self.faults(strict),
            "bytes": self.bytes,
            "duration_us": micros(self.span),
        })
    }

    /// All of it, as continuous integration reads it: a test suite of JUnit.
    #[must_use]
    pub fn junit(&self, target: &str, strict: bool) -> String {
        let mut made = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite \
             name=\"tcp-echo probe {}\" tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{:.3}\">\n",
            escaped(target),
            self.findings.len(),
            self.faults(strict),
            self.of(Verdict::Skipped),
            self.span.as_secs_f64(),
        );
        for (case, finding) in &self.findings {
            let open = format!(
                "<testcase classname=\"{}\" name=\"{}\"",
                case.group(),
                case.id
            );
            let text = escaped(&match finding.cause {
                Some(cause) => format!("{}\n{cause}", finding.text),
                None => finding.text.clone(),
            });
            let inside = match finding.verdict {
                Verdict::Skipped => format!("<skipped message=\"{text}\"/>"),
                Verdict::Fail => format!("<failure message=\"{text}\"/>"),
                Verdict::Note if strict => format!("<failure message=\"{text}\"/>"),
                Verdict::Note | Verdict::Ok => format!("<system-out>{text}</system-out>"),
            };
            made += &format!("{open}>{inside}</testcase>\n");
        }
        made + "</testsuite>\n</testsuites>\n"
    }
}

/// Text as XML and HTML have it.
pub(super) fn escaped(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => made += "&amp;",
            '<' => made += "&lt;",
            '>' => made += "&gt;",
            '"' => made += "&quot;",
            '\n' => made += "&#10;",
            // XML has no other control characters.
            _ if character.is_control() => made.push(' '),
            _ => made.push(character),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::probe::CASES;
    use crate::client::target::Place;

    fn report() -> Report {
        let findings = [
            Finding::ok("fine").with("bytes", 7),
            Finding::note("worth <knowing>"),
            Finding::fail("0 of 9 came").because("a & b").see("RFC 862"),
            Finding::skipped("not here"),
        ];
        Report {
            place: Place::Unix("/run/echo.sock".into()),
            seed: 0x5eed,
            findings: CASES.iter().zip(findings).collect(),
            bytes: 3 << 20,
            span: Duration::from_millis(1500),
        }
    }

    #[test]
    fn the_text_shows_faults_and_their_causes() {
        let report = report();
        let lines: Vec<_> = report
            .findings
            .iter()
            .map(|(case, finding)| line(case, finding, false))
            .collect();
        assert_eq!(lines[0], "connect/addresses  ok    fine");
        assert_eq!(
            lines[2],
            "bytes/small        FAIL  0 of 9 came   RFC 862\n                         a & b"
        );
        let (case, finding) = &report.findings[2];
        assert!(line(case, finding, true).contains("\x1b[31mFAIL\x1b[0m"));
        assert_eq!(
            report.summary(),
            "1 fault, 1 fine, 1 note, 1 skipped. 3 MiB in 1.50 s"
        );
    }

    #[test]
    fn json_has_each_case_and_nothing_that_is_not_known() {
        let json = report().json("host:7", false);
        assert_eq!(json["target"], "host:7");
        assert_eq!(json["faults"], 1);
        assert_eq!(report().json("host:7", true)["faults"], 2);
        let verdicts: Vec<_> = json["cases"].as_array().into_iter().flatten().collect();
        assert_eq!(verdicts.len(), 4);
        assert_eq!(verdicts[0]["figures"]["bytes"], 7);
        assert_eq!(verdicts[0].get("cause"), None);
        assert_eq!(verdicts[2]["verdict"], "fail");
        assert_eq!(verdicts[2]["cause"], "a & b");
    }

    #[test]
    fn junit_counts_and_escapes() {
        let made = report().junit("a<b", false);
        assert!(
            made.contains(
                "name=\"tcp-echo probe a&lt;b\" tests=\"4\" failures=\"1\" skipped=\"1\""
            )
        );
        assert!(
            made.contains("<failure message=\"0 of 9 came&#10;a &amp; b\"/>"),
            "{made}"
        );
        assert!(made.contains("<system-out>worth &lt;knowing&gt;</system-out>"));
        assert!(
            report()
                .junit("a", true)
                .contains("<failure message=\"worth")
        );
        assert_eq!(
            made.matches("<testcase ").count(),
            made.matches("</testcase>").count()
        );
    }
}
