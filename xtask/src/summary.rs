//! Counts tests from what runners print, and puts together the closing line. Pure: text in,
//! numbers out.
//!
//! A test that finds it cannot run says so and returns, which every runner takes for a pass. Such
//! a test also appends a line `name: reason` to the file named by `WEIR_SKIP_FILE`; what stands
//! there is taken from the passed and counted as skipped.

use std::{collections::BTreeMap, fmt};

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Left out by the runner because the test says so (`#[ignore]`), or by a filter: nextest
    /// does not tell them apart.
    pub(crate) left_out: usize,
}

/// Whose output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runner {
    /// `cargo nextest run` sums up once, at its end. What it shows of failed tests before that may
    /// look like any runner's result.
    Nextest,
    /// `cargo test` sums up after each test binary and each crate's doc tests.
    Cargo,
}

impl Counts {
    /// Takes a line of a runner's output into account.
    pub(crate) fn read(&mut self, runner: Runner, line: &str) {
        let plain = without_colours(line);
        match runner {
            Runner::Nextest => *self = nextest(plain.trim()).unwrap_or(*self),
            Runner::Cargo => {
                if let Some(counts) = libtest(plain.trim_end()) {
                    self.add(counts);
                }
            }
        }
    }

    /// Adds another run's.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.left_out += other.left_out;
    }
}

/// nextest's last line: `Summary [   1.2s] 5 tests run: 3 passed (1 slow), 1 failed, 1 timed out,
/// 2 skipped`.
fn nextest(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("Summary [")?;
    let (_, figures) = rest.split_once(':')?;
    let mut counts = Counts::default();
    // What is in brackets says how those before it passed, and is no further test.
    for part in without_brackets(figures).split(',') {
        let Some((number, what)) = part.trim().split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        match what.trim() {
            "passed" => counts.passed += number,
            "skipped" => counts.left_out += number,
            _ => counts.failed += number,
        }
    }
    Some(counts)
}

/// The line that each test binary, and each crate's doc tests, end with under `cargo test`.
fn libtest(line: &str) -> Option<Counts> {
    let rest = line.strip_prefix("test result: ")?;
    let (_, figures) = rest.split_once(". ")?;
    let mut counts = Counts::default();
    for part in figures.split(';') {
        let Some((number, what)) = part.trim().split_once(' ') else {
            continue;
        };
        let Ok(number) = number.parse::<usize>() else {
            continue;
        };
        match what {
            "passed" => counts.passed += number,
            "failed" => counts.failed += number,
            "ignored" | "filtered out" => counts.left_out += number,
            _ => {}
        }
    }
    Some(counts)
}

fn without_brackets(text: &str) -> String {
    let mut depth = 0_usize;
    text.chars()
        .filter(|c| match c {
            '(' => {
                depth += 1;
                false
            }
            ')' => {
                depth = depth.saturating_sub(1);
                false
            }
            _ => depth == 0,
        })
        .collect()
}

/// Takes out `ESC [ … letter`, which is all that runners colour with.
fn without_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        out.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |at| at + 1);
        rest = after.get(end..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Reads the skip file: each test once, with its reason.
pub(crate) fn skips(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let (name, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
            (name.trim().to_owned(), reason.trim().to_owned())
        })
        .collect()
}

/// What a whole run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Total {
    /// Puts the runner's counts and the tests' own words together. When tests were selected, those
    /// left out were not asked for, and so were not skipped.
    pub(crate) fn of(counts: Counts, skipped_themselves: usize, selected: bool) -> Self {
        let skipped_themselves = skipped_themselves.min(counts.passed);
        let left_out = if selected { 0 } else { counts.left_out };
        Self {
            passed: counts.passed - skipped_themselves,
            failed: counts.failed,
            skipped: left_out + skipped_themselves,
        }
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(runner: Runner, text: &str) -> Counts {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.read(runner, line));
        counts
    }

    #[test]
    fn nextests_summary_is_read_with_and_without_colours() {
        let plain = "     Summary [   0.005s] 3 tests run: 2 passed, 1 failed, 4 skipped";
        let colours = "\x1b[31;1m     Summary\x1b[0m [   0.005s] \x1b[1m3\x1b[0m tests run: \
                       \x1b[1m2\x1b[0m \x1b[32;1mpassed\x1b[0m, \x1b[1m1\x1b[0m \
                       \x1b[31;1mfailed\x1b[0m, \x1b[1m4\x1b[0m \x1b[33;1mskipped\x1b[0m";
        let expected = Counts { passed: 2, failed: 1, left_out: 4 };
        assert_eq!(read(Runner::Nextest, plain), expected);
        assert_eq!(read(Runner::Nextest, colours), expected);
    }

    #[test]
    fn slow_flaky_and_leaky_tests_passed_and_timed_out_ones_failed() {
        let line = "Summary [ 61.2s] 9/9 tests run: 6 passed (2 slow, 1 flaky), 1 failed, \
                    1 exec failed, 1 timed out, 0 skipped";
        let counts = read(Runner::Nextest, line);
        assert_eq!(counts, Counts { passed: 6, failed: 3, left_out: 0 });
    }

    #[test]
    fn what_a_failed_test_printed_is_no_result_of_nextest() {
        let text = "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; \
                    4 filtered out; finished in 0.27s\n    Summary [ 1s] 9 tests run: 9 passed\n     \
                    Summary [   0.5s] 2 tests run: 1 passed, 1 failed, 0 skipped\n";
        let counts = read(Runner::Nextest, text);
        assert_eq!(counts, Counts { passed: 1, failed: 1, left_out: 0 });
    }

    #[test]
    fn every_result_of_cargo_test_is_added() {
        let text = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; \
                    finished in 0.00s\nnoise\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered \
                    out; finished in 0.00s\n";
        let counts = read(Runner::Cargo, text);
        assert_eq!(counts, Counts { passed: 4, failed: 2, left_out: 3 });
    }

    #[test]
    fn other_lines_count_for_nothing() {
        for runner in [Runner::Nextest, Runner::Cargo] {
            let counts = read(runner, "test x ... ok\nrunning 3 tests\nSummary\n");
            assert_eq!(counts, Counts::default());
        }
    }

    #[test]
    fn each_skipping_test_counts_once_with_its_reason() {
        let skips = skips("a::b: no CAP_BPF\nc: no tun\na::b: no CAP_BPF\n\nd\n");
        assert_eq!(skips.len(), 3);
        assert_eq!(skips["a::b"], "no CAP_BPF");
        assert_eq!(skips["d"], "no reason given");
    }

    #[test]
    fn a_test_that_skips_itself_is_not_counted_as_passed() {
        let counts = Counts { passed: 10, failed: 1, left_out: 2 };
        let total = Total::of(counts, 3, false);
        assert_eq!(total.to_string(), "7 passed, 1 failed, 5 skipped");
        assert_eq!(Total::of(counts, 3, true).to_string(), "7 passed, 1 failed, 3 skipped");
    }
}
