//! `weir status --fleet`: who counts together with this node, and what they share.

use std::fmt::{self, Write as _};

use super::{
    look::{Look, Mood, clean, count},
    table::{Cell, Side, Table},
};
use crate::fleet::Survey;

/// Quotas that are shown; `-o json` has all of them.
const QUOTAS: usize = 40;

/// Whether the store answers, and knows this node.
pub(super) fn is_well(survey: &Survey) -> bool {
    survey.store == "up" && survey.problem.is_none()
}

pub(super) fn render(survey: &Survey, look: &Look) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut text, survey, look);
    text
}

fn write_all(text: &mut String, survey: &Survey, look: &Look) -> fmt::Result {
    let Survey { cluster, node, servers, members, .. } = survey;
    let mood = if survey.store == "up" { Mood::Good } else { Mood::Bad };
    let store = look.paint(mood, &clean(&survey.store));
    writeln!(text, "{}/{}, store {} is {store}", clean(cluster), clean(node), clean(servers))?;
    match &survey.problem {
        Some(problem) => {
            let problem = format!("nobody can say who belongs to the fleet: {}", clean(problem));
            writeln!(text, "{}", look.paint(Mood::Bad, &problem))?;
        }
        None => writeln!(text, "{}", count(members.len() as u64, "node", "nodes"))?,
    }
    let mut nodes =
        Table::new(&[("CLUSTER", Side::Left), ("NODE", Side::Left), ("VERSION", Side::Left)]);
    for member in members {
        let words = [&member.cluster, &member.node, &member.version];
        nodes.row(words.map(|word| word.as_str().into()));
    }
    let shown = survey.quotas.get(..QUOTAS).unwrap_or(&survey.quotas);
    for table in [nodes.render(look), quotas(shown).render(look)] {
        if !table.is_empty() {
            write!(text, "\n{table}")?;
        }
    }
    let more = survey.more + (survey.quotas.len() - shown.len()) as u64;
    if more > 0 {
        writeln!(
            text,
            "and {} of which this node was granted less",
            count(more, "quota", "quotas")
        )?;
    }
    Ok(())
}

fn quotas(quotas: &[crate::fleet::Spending]) -> Table {
    let mut table = Table::new(&[
        ("QUOTA", Side::Left),
        ("LIMIT", Side::Right),
        ("SPENDERS", Side::Right),
        ("SHARE HERE", Side::Right),
        ("GRANTED", Side::Right),
        ("UNSPENT", Side::Right),
        ("WITHOUT STORE", Side::Right),
    ]);
    for quota in quotas {
        let mood = if quota.assumed > 0 { Mood::Notable } else { Mood::Plain };
        table.row([
            quota.quota.as_str().into(),
            format!("{} per {} s", quota.limit, quota.window).into(),
            quota.spenders.to_string().into(),
            quota.share.to_string().into(),
            quota.granted.to_string().into(),
            quota.left.to_string().into(),
            Cell::new(quota.assumed.to_string(), mood),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::{super::look::tests::PLAIN, *};
    use crate::fleet::{Member, Spending};

    #[test]
    fn a_fleet_is_shown_with_what_this_node_has_of_it() {
        let member = |cluster: &str| Member {
            cluster: cluster.to_owned(),
            node: "node-1".to_owned(),
            version: "0.1.0".to_owned(),
        };
        let survey = Survey {
            cluster: "east".to_owned(),
            node: "node-1".to_owned(),
            servers: "redis://store:6379/0".to_owned(),
            store: "up".to_owned(),
            members: vec![member("east"), member("west")],
            quotas: vec![Spending {
                quota: "shop_user_ann".to_owned(),
                limit: 1000,
                window: 60,
                spenders: 2,
                share: 500,
                granted: 40,
                left: 5,
                assumed: 0,
            }],
            ..Survey::default()
        };
        let expected = "\
east/node-1, store redis://store:6379/0 is up
2 nodes

CLUSTER  NODE    VERSION
east     node-1  0.1.0
west     node-1  0.1.0

QUOTA                  LIMIT  SPENDERS  SHARE HERE  GRANTED  UNSPENT  WITHOUT STORE
shop_user_ann  1000 per 60 s         2         500       40        5              0
";
        assert_eq!(render(&survey, &PLAIN), expected);
        assert!(is_well(&survey));
        let down = Survey {
            store: "down".to_owned(),
            problem: Some("the store does not answer".to_owned()),
            ..Survey::default()
        };
        assert!(!is_well(&down));
        let said = render(&down, &PLAIN);
        assert!(
            said.contains("nobody can say who belongs to the fleet: the store does not"),
            "{said}"
        );
    }
}
