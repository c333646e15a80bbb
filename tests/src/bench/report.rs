//! What a run prints: one table for people, and the same as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use super::estimate::Estimate;

/// What a figure is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

/// How a figure stands to its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// All of the interval keeps it.
    Met,
    /// None of the interval keeps it.
    NotMet,
    /// The interval straddles it: this run cannot tell.
    NotResolved,
}

impl Target {
    fn outcome(self, figure: &Estimate) -> Outcome {
        let (all, none) = match self {
            Self::AtMost(bound) => (figure.high <= bound, figure.low > bound),
            Self::AtLeast(bound) => (figure.low >= bound, figure.high < bound),
        };
        match (all, none) {
            (true, _) => Outcome::Met,
            (_, true) => Outcome::NotMet,
            _ => Outcome::NotResolved,
        }
    }
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotResolved => "not resolved",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// The bench it belongs to.
    pub(crate) bench: &'static str,
    /// What was measured.
    pub(crate) name: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The value.
    #[serde(flatten)]
    pub(crate) estimate: Estimate,
    /// What it is held against.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
    /// How it stands to that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<Outcome>,
}

/// Everything a run has to say.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Where it ran.
    pub(crate) machine: String,
    /// Whether it was a short run.
    pub(crate) quick: bool,
    /// How long it took.
    pub(crate) seconds: f64,
    /// The lines, in order.
    pub(crate) figures: Vec<Figure>,
    /// What must be known to read them.
    pub(crate) notes: Vec<String>,
}

impl Report {
    /// Adds a line; nothing where there is nothing to say.
    pub(crate) fn add(
        &mut self,
        bench: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        estimate: impl Into<Option<Estimate>>,
    ) {
        self.push(bench, name.into(), unit, estimate.into(), None);
    }

    /// Adds a line with its target.
    pub(crate) fn hold(
        &mut self,
        bench: &'static str,
        name: impl Into<String>,
        unit: &'static str,
        estimate: impl Into<Option<Estimate>>,
        target: Target,
    ) {
        self.push(bench, name.into(), unit, estimate.into(), Some(target));
    }

    /// Adds a remark, once.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn push(
        &mut self,
        bench: &'static str,
        name: String,
        unit: &'static str,
        estimate: Option<Estimate>,
        target: Option<Target>,
    ) {
        let Some(estimate) = estimate else {
            self.notes.push(format!("{bench}: {name}: nothing was measured"));
            return;
        };
        let outcome = target.map(|target| target.outcome(&estimate));
        let figure = Figure { bench, name, unit, estimate, target, outcome };
        // A whole run takes long: what is known is said at once, and kept where the run is cut short.
        let [name, unit, value, interval, target, outcome] = figure.row();
        eprintln!(
            "{}",
            [&name, &value, &unit, &interval, &target, &outcome]
                .map(|cell| cell.as_str())
                .join(" ")
                .trim_end()
        );
        self.figures.push(figure);
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut rows =
            vec![["figure", "", "median", "95 % interval", "target", ""].map(str::to_owned)];
        let mut bench = "";
        for figure in &self.figures {
            if figure.bench != bench {
                bench = figure.bench;
                rows.push([bench, "", "", "", "", ""].map(str::to_owned));
            }
            rows.push(figure.row());
        }
        let kind = if self.quick { ", a short run: too few rounds to judge by" } else { "" };
        let mut text = format!("{}, {:.0} s{kind}\n\n", self.machine, self.seconds);
        text += &columns(&rows);
        for note in &self.notes {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

impl Figure {
    fn row(&self) -> [String; 6] {
        let Estimate { value, low, high, .. } = self.estimate;
        let digits = digits(value.abs().max(high.abs()));
        let show = |value: f64| format!("{value:.digits$}");
        let interval =
            if low == high { String::new() } else { format!("{} .. {}", show(low), show(high)) };
        let target = self.target.map(|target| match target {
            Target::AtMost(bound) => format!("<= {bound}"),
            Target::AtLeast(bound) => format!(">= {bound}"),
        });
        [
            format!("  {}", self.name),
            self.unit.to_owned(),
            show(value),
            interval,
            target.unwrap_or_default(),
            self.outcome.map(Outcome::name).unwrap_or_default().to_owned(),
        ]
    }
}

/// Three significant digits, but all of those before the point.
fn digits(value: f64) -> usize {
    match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    }
}

/// Names to the left, numbers to the right.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = match column {
                2..=4 => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:<width$}  "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(low: f64, high: f64) -> Estimate {
        Estimate { value: (low + high) / 2.0, low, high, samples: 9 }
    }

    #[test]
    fn a_bound_within_the_interval_is_not_resolved() {
        let at_most = |low, high| Target::AtMost(1.2).outcome(&estimate(low, high));
        let at_least = |low, high| Target::AtLeast(1.2).outcome(&estimate(low, high));
        assert_eq!(at_most(1.0, 1.2), Outcome::Met);
        assert_eq!(at_most(1.1, 1.3), Outcome::NotResolved);
        assert_eq!(at_most(1.21, 1.3), Outcome::NotMet);
        assert_eq!(at_least(1.2, 1.3), Outcome::Met);
        assert_eq!(at_least(1.1, 1.3), Outcome::NotResolved);
        assert_eq!(at_least(1.0, 1.19), Outcome::NotMet);
    }

    #[test]
    fn the_table_shows_every_figure_below_its_bench() {
        let mut report = Report::default();
        report.add("flood", "drop, bare XDP", "M/s", estimate(1.5, 1.7));
        report.hold(
            "flood",
            "drop, XDP against bare",
            "x",
            estimate(0.8, 0.82),
            Target::AtLeast(0.7),
        );
        report.note("said once");
        report.note("said once");
        let table = report.table();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "figure                         median   95 % interval  target",
                "flood",
                "  drop, bare XDP          M/s    1.60    1.50 .. 1.70",
                "  drop, XDP against bare  x     0.810  0.800 .. 0.820  >= 0.7  met",
                "note: said once",
            ]
        );
    }

    #[test]
    fn the_json_says_what_the_table_says() {
        let mut report = Report::default();
        report.hold("paths", "admit", "ns", estimate(90.0, 110.0), Target::AtMost(120.0));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json["figures"][0],
            serde_json::json!({
                "bench": "paths", "name": "admit", "unit": "ns",
                "value": 100.0, "low": 90.0, "high": 110.0, "samples": 9,
                "target": {"at-most": 120.0}, "outcome": "met",
            })
        );
    }
}
