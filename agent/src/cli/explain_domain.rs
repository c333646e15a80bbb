//! `weir explain --domain DOMAIN`: the rules of a domain, and whom they refuse.

use std::fmt::{self, Write as _};

use super::{
    explain::table,
    look::{Look, Mood, clean, count},
    table::{Cell, Side, Table},
};
use crate::{
    quota::{Explained, Spent},
    rls::view::{Domain, Offender},
};

/// Rules that are shown; `-o json` has all of them.
const RULES: usize = 40;
/// Descriptors that are shown.
const REFUSED: usize = 20;

pub(super) fn render(domain: &Domain, look: &Look) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, domain, look);
    text
}

fn write_all(text: &mut String, domain: &Domain, look: &Look) -> fmt::Result {
    let name = look.paint(Mood::Title, &clean(&domain.name));
    writeln!(text, "{name}: {}", count(domain.rules.len() as u64, "rule", "rules"))?;
    let (rules, more) = rules(&domain.rules);
    table(text, look, "RULES (hits since the agent started)", rules)?;
    if more > 0 {
        writeln!(text, "  and {} that were used less: -o json", count(more, "rule", "rules"))?;
    }
    let worst = domain.refused.get(..REFUSED).unwrap_or(&domain.refused);
    table(text, look, "REFUSED MOST (in the last 10 minutes)", refused(worst, false, look))?;
    let mut denied = Table::new(&[("CALLER", Side::Left), ("REQUESTS", Side::Right)]);
    for row in &domain.denied {
        denied.row([row.caller.as_str().into(), row.count.to_string().into()]);
    }
    table(text, look, "MAY NOT ASK", denied)
}

/// Those that refuse most first, then the busiest; and how many are left out.
fn rules(rules: &[Explained]) -> (Table, u64) {
    let of = |rule: &Explained, name: &str| rule.counts.get(name).copied().unwrap_or_default();
    let mut sorted: Vec<_> = rules.iter().collect();
    sorted.sort_by_key(|rule| std::cmp::Reverse((of(rule, "over_limit"), of(rule, "total_hits"))));
    let more = sorted.len().saturating_sub(RULES) as u64;
    sorted.truncate(RULES);
    let mut table = Table::new(&[
        ("DESCRIPTOR", Side::Left),
        ("LIMIT", Side::Left),
        ("NOW", Side::Left),
        ("HITS", Side::Right),
        ("OVER", Side::Right),
        ("WRITTEN AT", Side::Left),
    ]);
    for rule in sorted {
        let over = of(rule, "over_limit");
        let mood = if over > 0 { Mood::Bad } else { Mood::Plain };
        table.row([
            rule.descriptor.as_str().into(),
            limit(rule).into(),
            now(&rule.spent).into(),
            of(rule, "total_hits").to_string().into(),
            Cell::new(over.to_string(), mood),
            rule.place.as_str().into(),
        ]);
    }
    (table, more)
}

fn limit(rule: &Explained) -> String {
    let mut text = match &*rule.limits {
        [] => "unlimited".to_owned(),
        limits => limits.join("; "),
    };
    if rule.scope != "node" {
        text.push_str(&format!(", for each {}", rule.scope));
    }
    if rule.shadow {
        text.push_str(", shadow");
    }
    text
}

fn now(spent: &[Spent]) -> String {
    let one = |spent: &Spent| format!("{} of {} spent", spent.hits, spent.limit);
    match spent {
        [] => "-".to_owned(),
        spent => spent.iter().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// Refused descriptors, of one domain or of all.
pub(super) fn refused(rows: &[Offender], with_domain: bool, look: &Look) -> Table {
    let mut columns = vec![
        ("REFUSED", Side::Right),
        ("DESCRIPTOR", Side::Left),
        ("LAST CALLER", Side::Left),
        ("AGO", Side::Right),
    ];
    if with_domain {
        columns.insert(1, ("DOMAIN", Side::Left));
    }
    let mut table = Table::new(&columns);
    for row in rows {
        let mut cells = vec![
            Cell::new(refusals(row), Mood::Bad),
            row.descriptor.as_str().into(),
            row.caller.as_str().into(),
            look.ago(row.last).into(),
        ];
        if with_domain {
            cells.insert(1, row.domain.as_str().into());
        }
        table.push(cells);
    }
    table
}

/// How often; where some of it may be others', what it is at least and at most.
pub(super) fn refusals(row: &Offender) -> String {
    match row.error {
        0 => row.refused.to_string(),
        error => format!("{}-{}", row.refused.saturating_sub(error), row.refused),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};
    use crate::rls::view::Denied;

    #[test]
    fn a_domain_is_told_with_its_worst_rule_first() {
        let rule = |descriptor: &str, over: u64, spent: Vec<Spent>| Explained {
            descriptor: descriptor.to_owned(),
            limits: vec!["10 per 60s".to_owned()],
            scope: "node".to_owned(),
            place: "shop.yaml:3:5".to_owned(),
            counts: [("total_hits".to_owned(), 30), ("over_limit".to_owned(), over)].into(),
            spent,
            ..Explained::default()
        };
        let spent = Spent { hits: 12, limit: 10, reset_seconds: 5 };
        let offender = Offender {
            descriptor: "user=mallory".to_owned(),
            caller: "shop/web".to_owned(),
            refused: 20,
            error: 3,
            last: PLAIN.now - 7.0,
            ..Offender::default()
        };
        let denied = Denied { caller: "10.0.0.9".to_owned(), count: 4, ..Denied::default() };
        let domain = Domain {
            name: "shop".to_owned(),
            rules: vec![rule("user=*", 0, Vec::new()), rule("path=/a", 2, vec![spent])],
            refused: vec![offender],
            denied: vec![denied],
        };
        let expected = "\
shop: 2 rules

RULES (hits since the agent started)
DESCRIPTOR  LIMIT       NOW             HITS  OVER  WRITTEN AT
path=/a     10 per 60s  12 of 10 spent    30     2  shop.yaml:3:5
user=*      10 per 60s  -                 30     0  shop.yaml:3:5

REFUSED MOST (in the last 10 minutes)
REFUSED  DESCRIPTOR    LAST CALLER  AGO
  17-20  user=mallory  shop/web      7s

MAY NOT ASK
CALLER    REQUESTS
10.0.0.9         4
";
        assert_eq!(render(&domain, &PLAIN), expected);
    }
}
