//! What `weir top` shows, from two looks at an agent. Pure: no terminal, no socket, no clock.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    app::view::{
        BreakerStatus, LimitStatus, Recent, RecentSecond, RecentWorkload, Refusal, Status,
        WorkloadStatus,
    },
    rls::view::Offender,
};

/// Two looks nearer than this say nothing about a rate.
const NEAREST_SECONDS: f64 = 0.05;

/// What an agent answered at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Snapshot {
    pub(super) status: Status,
    pub(super) recent: Recent,
    /// Descriptors of requests, where rate limit requests are answered.
    pub(super) refused_most: Vec<Offender>,
}

/// Everything that is shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Screen {
    /// When it was seen, seconds since 1970.
    pub(super) time: f64,
    pub(super) version: String,
    pub(super) ready: bool,
    pub(super) uptime_seconds: f64,
    pub(super) problems: usize,
    pub(super) live_sources: u64,
    pub(super) live_handshakes: u64,
    /// In the node file's order.
    pub(super) workloads: Vec<WorkloadRow>,
    /// The busiest first.
    pub(super) limits: Vec<LimitRow>,
    /// The newest first.
    pub(super) refusals: Vec<Refusal>,
    /// Descriptors of rate limit requests, the most refused first.
    pub(super) refused_most: Vec<Offender>,
}

/// One workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct WorkloadRow {
    pub(super) name: String,
    pub(super) condition: String,
    pub(super) detail: Option<String>,
    pub(super) attached: Option<String>,
    pub(super) paused_seconds: Option<f64>,
    pub(super) admitted_per_second: f64,
    pub(super) refused_per_second: f64,
    /// The last minute, newest last.
    pub(super) seconds: Vec<RecentSecond>,
}

/// One limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct LimitRow {
    pub(super) workload: String,
    pub(super) limit: String,
    pub(super) value: String,
    /// Tokens that are left, of rates.
    pub(super) tokens: Option<u64>,
    /// Connections that are open, of limits on them.
    pub(super) connections: Option<u64>,
    /// Where a breaker is.
    pub(super) breaker: Option<BreakerStatus>,
    pub(super) offered_per_second: f64,
    /// What was offered, of what the rate allows; absent where every source has a rate of its own.
    pub(super) used: Option<f64>,
    /// Absent at the first look, like the next.
    pub(super) refused_per_second: Option<f64>,
    /// Refused had it not been in shadow.
    pub(super) shadowed_per_second: Option<f64>,
}

impl Screen {
    /// What to show at a time. Rates are between the two looks; without an earlier one, they are
    /// the agent's own last second.
    pub(super) fn of(before: Option<&Snapshot>, now: &Snapshot, time: f64) -> Self {
        let before = before
            .map(|before| (before, now.recent.time - before.recent.time))
            .filter(|(_, elapsed)| *elapsed >= NEAREST_SECONDS);
        let recent: BTreeMap<&str, &RecentWorkload> =
            now.recent.workloads.iter().map(|recent| (recent.name.as_str(), recent)).collect();
        let Status { version, ready, uptime_seconds, problems, workloads, .. } = &now.status;
        let mut limits: Vec<_> =
            workloads.iter().flat_map(|workload| limit_rows(before, workload)).collect();
        // What refuses, then what is nearest to refusing; ties stay in the file's order.
        limits.sort_by(|a, b| {
            let key = |row: &LimitRow| {
                let refused = [row.refused_per_second, row.shadowed_per_second];
                (
                    refused.into_iter().flatten().sum::<f64>(),
                    row.used.unwrap_or_default(),
                    row.offered_per_second,
                )
            };
            let (a, b) = (key(a), key(b));
            b.0.total_cmp(&a.0).then(b.1.total_cmp(&a.1)).then(b.2.total_cmp(&a.2))
        });
        Self {
            time,
            version: version.clone(),
            ready: *ready,
            uptime_seconds: *uptime_seconds,
            problems: problems.len(),
            live_sources: now.status.live_sources,
            live_handshakes: now.status.live_handshakes,
            workloads: workloads
                .iter()
                .map(|workload| {
                    workload_row(before, workload, recent.get(workload.name.as_str()).copied())
                })
                .collect(),
            limits,
            refusals: now.recent.refusals.clone(),
            refused_most: now.refused_most.clone(),
        }
    }

    /// The workloads in an order.
    pub(super) fn sorted(&self, sort: Sort) -> Vec<&WorkloadRow> {
        let mut rows: Vec<_> = self.workloads.iter().collect();
        match sort {
            Sort::File => {}
            Sort::Refused => {
                rows.sort_by(|a, b| b.refused_per_second.total_cmp(&a.refused_per_second));
            }
            Sort::Admitted => {
                rows.sort_by(|a, b| b.admitted_per_second.total_cmp(&a.admitted_per_second));
            }
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    }
}

/// In which order workloads stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// As in the node file.
    #[default]
    File,
    Refused,
    Admitted,
    Name,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::File => Self::Refused,
            Self::Refused => Self::Admitted,
            Self::Admitted => Self::Name,
            Self::Name => Self::File,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Refused => "refused",
            Self::Admitted => "admitted",
            Self::Name => "name",
        }
    }
}

/// An earlier look, and how many seconds ago it was.
type Before<'a> = Option<(&'a Snapshot, f64)>;

fn workload_row(
    before: Before<'_>,
    workload: &WorkloadStatus,
    recent: Option<&RecentWorkload>,
) -> WorkloadRow {
    let WorkloadStatus { name, condition, detail, attached, paused_seconds, .. } = workload;
    let was = before.and_then(|(before, elapsed)| {
        let found = before.recent.workloads.iter().find(|was| was.name == *name);
        found.map(|was| (was, elapsed))
    });
    let (admitted_per_second, refused_per_second) = match (recent, was) {
        (Some(is), Some((was, elapsed))) => (
            per_second(is.admitted, was.admitted, elapsed),
            per_second(is.refused, was.refused, elapsed),
        ),
        (Some(is), None) => is
            .seconds
            .last()
            .map_or((0.0, 0.0), |second| (f64::from(second.admitted), f64::from(second.refused))),
        (None, _) => (0.0, 0.0),
    };
    WorkloadRow {
        name: name.clone(),
        condition: condition.clone(),
        detail: detail.clone(),
        attached: attached.clone(),
        paused_seconds: *paused_seconds,
        admitted_per_second,
        refused_per_second,
        seconds: recent.map(|recent| recent.seconds.clone()).unwrap_or_default(),
    }
}

fn limit_rows<'a>(
    before: Before<'a>,
    workload: &'a WorkloadStatus,
) -> impl Iterator<Item = LimitRow> + 'a {
    let was = before.and_then(|(before, elapsed)| {
        let found = before.status.workloads.iter().find(|was| was.name == workload.name);
        found.map(|was| (was, elapsed))
    });
    workload.limits.iter().map(move |limit| {
        let was = was.and_then(|(was, elapsed)| {
            let found = was.limits.iter().find(|was| was.limit == limit.limit);
            found.map(|was| (was, elapsed))
        });
        let rate = |count: fn(&LimitStatus) -> u64| {
            was.map(|(was, elapsed)| per_second(count(limit), count(was), elapsed))
        };
        // Sources have a bucket each: together they may use more than one bucket's rate.
        let is_shared = limit.tokens.is_some() && limit.rate_per_second > 0.0;
        LimitRow {
            workload: workload.name.clone(),
            limit: limit.limit.clone(),
            value: limit.value.clone(),
            tokens: limit.tokens,
            connections: limit.connections,
            breaker: limit.breaker.clone(),
            offered_per_second: limit.offered_per_second,
            used: is_shared.then(|| limit.offered_per_second / limit.rate_per_second),
            refused_per_second: rate(|limit| limit.refused),
            shadowed_per_second: rate(|limit| limit.shadowed),
        }
    })
}

/// A counter that started anew has nothing to tell.
fn per_second(is: u64, was: u64, elapsed: f64) -> f64 {
    is.saturating_sub(was) as f64 / elapsed
}

/// Bars for the last of some values, the newest at the right, in at most `width` characters. A
/// character stands for the highest of the values that it covers; where nothing is known, blanks.
pub(super) fn bars(values: &[u32], highest: u32, width: usize) -> String {
    const BARS: [char; 7] = ['▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let each = values.len().max(1).div_ceil(width.max(1));
    let bar = |group: &[u32]| {
        let value = group.iter().copied().max().unwrap_or_default();
        if value == 0 {
            return '▁';
        }
        let step = u64::from(value) * BARS.len() as u64 / u64::from(highest.max(value)).max(1);
        let index = usize::try_from(step).unwrap_or_default().min(BARS.len() - 1);
        BARS.get(index).copied().unwrap_or('█')
    };
    let groups: Vec<_> = values.rchunks(each).take(width).map(bar).collect();
    groups.into_iter().rev().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::admin::testing;

    /// The status and the last minute of the tests' agent.
    pub(in super::super) fn snapshot() -> Snapshot {
        Snapshot { status: testing::status(), recent: testing::recent(), ..Snapshot::default() }
    }

    /// The same, two seconds and some connections later.
    pub(in super::super) fn later() -> Snapshot {
        let mut later = snapshot();
        later.recent.time += 2.0;
        let web = &mut later.recent.workloads[0];
        (web.admitted, web.refused) = (web.admitted + 80, web.refused + 41);
        later.recent.workloads[2].admitted += 14;
        let limits = &mut later.status.workloads[0].limits;
        limits[0].refused += 30;
        limits[1].shadowed += 10;
        later
    }

    #[test]
    fn rates_are_between_two_looks() {
        let screen = Screen::of(Some(&snapshot()), &later(), 43_200.0);
        let rates: Vec<_> = screen
            .workloads
            .iter()
            .map(|row| (row.name.as_str(), row.admitted_per_second, row.refused_per_second))
            .collect();
        assert_eq!(rates, [("web", 40.0, 20.5), ("mysql", 0.0, 0.0), ("batch", 7.0, 0.0)]);
        let busiest = &screen.limits[0];
        assert_eq!(
            (busiest.limit.as_str(), busiest.refused_per_second),
            ("connections.80", Some(15.0))
        );
        assert!((busiest.used.unwrap() - 8.124).abs() < 1e-9);
        assert_eq!(screen.limits[1].shadowed_per_second, Some(5.0));
        let source = screen.limits.iter().find(|row| row.limit == "connections-per-source");
        assert_eq!(source.unwrap().used, None, "its sources have a bucket each");
    }

    #[test]
    fn the_first_look_has_the_agents_last_second() {
        for before in [None, Some(&snapshot())] {
            let screen = Screen::of(before, &snapshot(), 43_200.0);
            let web = &screen.workloads[0];
            assert_eq!((web.admitted_per_second, web.refused_per_second), (40.0, 20.0));
            assert_eq!(web.seconds.len(), 60);
            assert_eq!(screen.limits[0].refused_per_second, None);
        }
    }

    #[test]
    fn counters_that_start_anew_are_no_rate() {
        let mut before = later();
        before.recent.workloads.truncate(1);
        before.recent.time -= 5.0;
        let screen = Screen::of(Some(&before), &snapshot(), 43_200.0);
        assert_eq!(screen.workloads[0].admitted_per_second, 0.0);
        assert_eq!(screen.workloads[2].admitted_per_second, 7.0, "it is new");
        assert!(screen.limits.iter().all(|row| row.refused_per_second == Some(0.0)));
    }

    #[test]
    fn workloads_stand_in_the_order_that_is_wanted() {
        let screen = Screen::of(Some(&snapshot()), &later(), 43_200.0);
        let names =
            |sort| -> Vec<_> { screen.sorted(sort).iter().map(|row| row.name.as_str()).collect() };
        assert_eq!(names(Sort::File), ["web", "mysql", "batch"]);
        assert_eq!(names(Sort::Refused), ["web", "mysql", "batch"]);
        assert_eq!(names(Sort::Admitted), ["web", "batch", "mysql"]);
        assert_eq!(names(Sort::Name), ["batch", "mysql", "web"]);
        let mut sort = Sort::default();
        for _ in 0..4 {
            sort = sort.next();
        }
        assert_eq!(sort, Sort::File);
    }

    #[test]
    fn bars_have_the_newest_at_the_right() {
        assert_eq!(bars(&[0, 1, 4, 7], 7, 10), "▁▃▆█");
        assert_eq!(bars(&[9, 0, 0, 0, 7], 9, 2), "█▇");
        assert_eq!(bars(&[], 7, 10), "");
        assert_eq!(bars(&[3], 0, 0), "");
        assert_eq!(bars(&[u32::MAX; 3], u32::MAX, 3), "███");
    }
}
