//! Alerts and the dashboard ask for metrics, labels and values that exist: `docs/metrics.md` lists
//! them, and the agent's own tests hold it to what is exposed.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::{
    label::{MatchOp, Matcher},
    parser::{self, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};
use serde_json::Value;

use crate::files::{documents, text};

/// What a page of metrics promises.
struct Page {
    /// Labels by metric.
    metrics: BTreeMap<String, BTreeSet<String>>,
    /// Words that are values of `condition`, `reason`, `verdict`.
    values: BTreeMap<&'static str, BTreeSet<String>>,
}

fn ticked(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the first table below a heading.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, below) = page.split_once(&format!("\n{heading}\n")).expect(heading);
    let table = below.lines().skip_while(|line| !line.starts_with('|'));
    let table = table.take_while(|line| line.starts_with('|')).skip(2);
    table.map(|line| line.split('|').map(str::trim).skip(1).collect()).collect()
}

impl Page {
    fn read() -> Self {
        let page = text("docs/metrics.md");
        // Those of the rate limit service have their own page.
        let requests = text("docs/rls.md");
        let first = |heading| {
            rows(&page, heading).iter().flat_map(|row| ticked(row[0])).collect::<BTreeSet<_>>()
        };
        let metrics = rows(&page, "## Metrics");
        let metrics = metrics
            .iter()
            .map(|row| (ticked(row[0]).into_iter().next().expect("a name"), ticked(row[2])));
        let mut metrics: BTreeMap<_, _> = metrics.collect();
        let of_requests = rows(&requests, "## Metrics").into_iter().flat_map(|row| {
            let labels = ticked(row[1]);
            ticked(row[0]).into_iter().map(move |name| (name, labels.clone()))
        });
        metrics.extend(of_requests.filter(|(name, _)| name.starts_with("weir_")));
        // Prometheus's own.
        metrics.insert("up".to_owned(), BTreeSet::from(["job".to_owned()]));
        let values = BTreeMap::from([
            ("condition", first("### Conditions")),
            ("verdict", first("### Verdicts")),
            ("reason", first("## Reasons")),
        ]);
        Self { metrics, values }
    }

    fn check(&self, what: &str, query: &str) {
        // What the dashboard's variables stand for.
        let query = query
            .replace("$__rate_interval", "5m")
            .replace("$instance", ".*")
            .replace("$workload", ".*");
        let parsed =
            parser::parse(&query).unwrap_or_else(|error| panic!("{what}: {error}: {query}"));
        let mut selectors = Selectors::default();
        walk_expr(&mut selectors, &parsed).unwrap();
        assert!(!selectors.0.is_empty(), "{what}: {query}");
        for selector in selectors.0 {
            let name = selector.name.expect("a metric's name");
            let labels =
                self.metrics.get(&name).unwrap_or_else(|| panic!("{what}: no metric {name}"));
            for matcher in selector.matchers.matchers {
                let label = matcher.name.as_str();
                // Of the scrape, not of the agent.
                let is_scraped = ["instance", "job", "node"].contains(&label);
                assert!(is_scraped || labels.contains(label), "{what}: {name} has no {label}");
                self.check_value(what, &matcher);
            }
        }
    }

    fn check_value(&self, what: &str, Matcher { op, name, value }: &Matcher) {
        let Some(known) = self.values.get(name.as_str()) else { return };
        let words: Vec<&str> = match op {
            MatchOp::Equal | MatchOp::NotEqual => vec![value],
            MatchOp::Re(_) | MatchOp::NotRe(_) => value.split('|').collect(),
        };
        for word in words {
            assert!(known.contains(word), "{what}: {name} is never {word}");
        }
    }
}

#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = ();

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, ()> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(matrix) => self.0.push(matrix.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

#[test]
fn alerts_ask_for_what_is_exposed() {
    let page = Page::read();
    let file = documents(&text("deploy/helm/weir/files/alerts.yaml"));
    let mut names = BTreeSet::new();
    for rule in file[0]["groups"][0]["rules"].as_array().unwrap() {
        let name = rule["alert"].as_str().unwrap();
        assert!(names.insert(name), "{name} is there twice");
        page.check(name, rule["expr"].as_str().unwrap());
        let summary = rule["annotations"]["summary"].as_str().unwrap();
        assert!(summary.ends_with('.'), "{name}: {summary}");
    }
    assert!(names.len() >= 8, "{names:?}");
}

#[test]
fn the_dashboard_asks_for_what_is_exposed() {
    let page = Page::read();
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/weir.json")).unwrap();
    let mut ids = BTreeSet::new();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its number is taken");
        for target in panel["targets"].as_array().into_iter().flatten() {
            page.check(title, target["expr"].as_str().unwrap());
            queries += 1;
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inner = query.strip_prefix("label_values(").unwrap().rsplit_once(", ").unwrap().0;
            page.check("a variable", inner);
            queries += 1;
        }
    }
    assert!(queries > 15, "{queries}");
}

/// What the checks are worth.
#[test]
fn wrong_queries_are_found() {
    for wrong in [
        "weir_limit_refused",
        "rate(weir_limit_refused_total[5m]",
        "weir_ready{workload=\"web\"}",
        "weir_workload_condition{condition=\"open\"}",
        "weir_decisions_total{reason=~\"admitted|rejected\"}",
    ] {
        let checked = std::panic::catch_unwind(|| Page::read().check("a test", wrong));
        assert!(checked.is_err(), "{wrong}");
    }
}
