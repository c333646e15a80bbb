//! Rules, and the way from one table to another.

use proptest::prelude::*;
use weir_common::{breaker, gcra::Params, layout, verdict::Reason};

use super::*;
use crate::{
    compile::{Change, diff},
    policy::{
        Administrator, Entry, Layers, Origin, Place, Ports, RESETS, Sourced, effective, parse_cidr,
    },
    quota,
};

/// What holds for a workload that says this, with these peers exempt.
fn policy(rows: &[(&str, &str)], exempt: &[&str]) -> Effective {
    let entry = |(key, value): &(&str, &str)| {
        Entry::read(key, Place::BuiltIn, value, &Place::BuiltIn, true)
    };
    let entries: Vec<_> = rows.iter().map(entry).collect();
    let exempt = exempt
        .iter()
        .map(|peer| Sourced { value: parse_cidr(peer).unwrap(), origin: Origin::BUILT_IN });
    let service = |name: &str, hosts: &[u8]| {
        let endpoints = hosts.iter().map(|host| Cidr::host([192, 0, 2, *host].into()));
        (ServiceName::parse(name).unwrap(), endpoints.collect())
    };
    let services = [service("db", &[1, 2, 3, 4]), service("web", &[8, 9])].into();
    let exempt = exempt.collect();
    let administrator = Administrator { exempt, services, ..Administrator::default() };
    let subject = crate::policy::Subject {
        name: "web",
        namespace: None,
        labels: &BTreeMap::new(),
        ports: &Ports::new(),
    };
    let layers = Layers { administrator: &administrator, namespace: &[], workload: &entries };
    effective(&subject, &layers, None).effective
}

fn subject<'a>(identity: &'a str, effective: &'a Effective) -> Subject<'a> {
    Subject { identity, name: identity, effective, probes: None, resets: RESETS }
}

fn table(effective: &Effective) -> WorkloadTable {
    let compiled = compile([subject("web", effective)], &NodeFacts::default(), None);
    assert_eq!(compiled.misfits, []);
    assert!(compiled.tables.missing_cells().is_empty());
    compiled.tables.workloads["web"].clone()
}

#[test]
fn it_judges_where_it_has_rules_and_both_ways_where_both_tell_of_them() {
    let judges = |rows: &[(&str, &str)]| table(&policy(rows, &[])).judges();
    assert_eq!(judges(&[]), [false, false]);
    assert_eq!(judges(&[("connections.80", "10/s")]), [true, false]);
    assert_eq!(judges(&[("outbound-connections", "10/s")]), [false, true]);
    assert_eq!(judges(&[("max-connections", "10")]), [true, true]);
    assert_eq!(judges(&[("egress-bandwidth", "1Mbit/s")]), [true, true]);
}

fn shown(block: &Block) -> Vec<String> {
    let flags = |rule: &Rule| match (rule.shadow, rule.drop) {
        (false, false) => "",
        (true, false) => " ~",
        (false, true) => " drop",
        (true, true) => " ~ drop",
    };
    block.rules.iter().map(|rule| format!("{}{}", rule.line, flags(rule))).collect()
}

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

#[test]
fn without_limits_there_are_no_rules() {
    let table = table(&policy(&[("on-limit.80", "drop")], &["10.0.0.0/8"]));
    assert_eq!(table.ingress, Blocks::default());
    assert_eq!(table.egress, Blocks::default());
    assert_eq!(table.cells.keys().collect::<Vec<_>>(), [&table.resets]);
}

#[test]
fn a_port_has_its_own_lines_and_those_for_all() {
    let table = table(&policy(
        &[
            ("connections", "100/s"),
            ("connections-per-source", "10/s"),
            ("connections.80", "50/s shadow"),
            ("connections-per-source.80", "5/s"),
            ("connections.81", "7/s"),
            ("outbound-connections.443", "9/s"),
        ],
        &["10.0.0.0/8"],
    ));
    assert_eq!(
        shown(&table.ingress.any),
        ["exempt 10.0.0.0/8", "connections-per-source", "connections"]
    );
    assert_eq!(
        shown(&table.ingress.ports[&port(80)]),
        [
            "exempt 10.0.0.0/8",
            "connections-per-source.80",
            "connections-per-source",
            "connections.80 ~",
            "connections",
        ]
    );
    assert_eq!(
        shown(&table.ingress.ports[&port(81)]),
        ["exempt 10.0.0.0/8", "connections-per-source", "connections.81", "connections"]
    );
    assert_eq!(table.ingress.ports.len(), 2);
    assert_eq!(table.egress.any, Block::default());
    assert_eq!(
        shown(&table.egress.ports[&port(443)]),
        ["exempt 10.0.0.0/8", "outbound-connections.443"]
    );
    // One cell for each line, however many blocks it stands in, and one for resets.
    assert_eq!(table.cells.len(), 7);
}

#[test]
fn narrow_destinations_come_before_wide_ones() {
    let table = table(&policy(
        &[(
            "outbound-connections",
            "1/s; 2/s to=10.0.0.0/8; 3/s to=10.1.2.3; 4/s to=2001:db8::/32",
        )],
        &[],
    ));
    assert_eq!(
        shown(&table.egress.any),
        [
            "outbound-connections to=10.1.2.3",
            "outbound-connections to=2001:db8::/32",
            "outbound-connections to=10.0.0.0/8",
            "outbound-connections",
        ]
    );
    assert_eq!(table.egress.any.rules[0].peer, parse_cidr("10.1.2.3").ok());
    assert_eq!(table.egress.any.rules[3].peer, None);
}

#[test]
fn a_port_that_is_only_refused_otherwise_has_a_block_of_its_own() {
    let table = table(&policy(
        &[("connections", "1/s"), ("on-limit.80", "drop"), ("on-limit.81", "reset")],
        &[],
    ));
    assert_eq!(shown(&table.ingress.any), ["connections"]);
    assert_eq!(shown(&table.ingress.ports[&port(80)]), ["connections drop"]);
    assert_eq!(table.ingress.ports.len(), 1, "port 81 is as any other");
}

#[test]
fn probes_from_the_node_spend_from_their_own_bucket_at_their_ports() {
    let effective = policy(&[("connections", "1/s"), ("connections.80", "1/s")], &["192.0.2.0/24"]);
    let probes = Probes { from: None, ports: vec![port(8080)], bucket: Probes::BUCKET };
    let facts = NodeFacts {
        addresses: ["127.0.0.1", "10.0.0.1", "fe80::1", "2001:db8::1", "::1", "10.0.0.1"]
            .map(|address| address.parse().unwrap())
            .to_vec(),
        ..NodeFacts::default()
    };
    let with = Subject { probes: Some(&probes), ..subject("web", &effective) };
    let compiled = compile([with], &facts, None);
    let table = &compiled.tables.workloads["web"];
    assert_eq!(shown(&table.ingress.any), ["exempt 192.0.2.0/24", "connections"]);
    assert_eq!(
        shown(&table.ingress.ports[&port(8080)]),
        ["exempt 192.0.2.0/24", "probes", "probes", "connections"]
    );
    assert_eq!(
        shown(&table.ingress.ports[&port(80)]),
        ["exempt 192.0.2.0/24", "connections.80", "connections"]
    );
    let from = Some(vec![parse_cidr("10.9.0.0/16").unwrap()]);
    let probes = Probes { from, ..probes };
    let with = Subject { probes: Some(&probes), ..subject("web", &effective) };
    let compiled = compile([with], &facts, None);
    let rules = &compiled.tables.workloads["web"].ingress.ports[&port(8080)].rules;
    assert_eq!(rules[1].peer, parse_cidr("10.9.0.0/16").ok());
    assert_eq!(rules.len(), 3);
}

#[test]
fn a_rate_that_changes_keeps_the_cell() {
    let cells = |value| {
        let table = table(&policy(&[("connections", value)], &[]));
        table.cells.into_iter().filter(|(_, cell)| cell.line.limit().is_some()).collect::<Vec<_>>()
    };
    let (slow, fast) = (cells("1/s"), cells("2/s shadow"));
    assert_eq!(slow[0].0, fast[0].0);
    assert_ne!(slow[0].1.params, fast[0].1.params);
}

#[test]
fn too_many_rules_name_the_lines_and_keep_the_last_table() {
    let list = |count: u8| {
        let entries: Vec<_> = (0..count).map(|net| format!("1/s to=10.{net}.0.0/16")).collect();
        entries.join("; ")
    };
    let fits = policy(&[("outbound-connections", &list(15))], &[]);
    let before = compile([subject("web", &fits)], &NodeFacts::default(), None);
    assert_eq!(before.misfits, []);

    let too_many = policy(&[("outbound-connections", &list(17))], &[]);
    let after = compile([subject("web", &too_many)], &NodeFacts::default(), Some(&before.tables));
    assert_eq!(after.tables, before.tables);
    let told = after.misfits[0].to_string();
    assert!(
        told.starts_with("workload web: 17 outbound rules for any port, at most 15 fit: "),
        "{told}"
    );
    assert!(told.ends_with("; the last policy that fitted stays"), "{told}");

    let first = compile([subject("web", &too_many)], &NodeFacts::default(), None);
    assert_eq!(first.tables.workloads["web"].egress.any.rules.len(), 15);
    let told = first.misfits[0].to_string();
    assert!(told.ends_with("not enforced: outbound-connections to=10.15.0.0/16, outbound-connections to=10.16.0.0/16"), "{told}");
}

#[test]
fn blocks_are_encoded_with_the_parameters_of_their_cells() {
    let table = table(&policy(
        &[
            ("connections-per-source", "20/s burst=40 group=/24,/56"),
            ("connections", "1/s refill=step shadow"),
            ("on-limit", "drop"),
        ],
        &["10.0.0.0/8"],
    ));
    let order: Vec<_> = table.cells.keys().copied().collect();
    let index = |identity| order.iter().position(|cell| *cell == identity).map(|at| at as u32 + 1);
    let block = table.ingress.any.encode(&table, index).unwrap();
    assert_eq!(block.count, 3);
    let [exempt, source, limit] = [block.rules[0], block.rules[1], block.rules[2]];
    assert_eq!((exempt.kind, exempt.cell, exempt.cost), (1, 0, 0));
    assert_eq!((source.kind, source.group_v4, source.group_v6), (3, 24, 56));
    assert_eq!((source.cost, source.burst), (50_000_000 / 64, 40 * 50_000_000 / 64));
    assert_eq!(
        (limit.cost, limit.burst, limit.step),
        (256_000_000_000, 256_000_000_000, 256_000_000_000)
    );
    assert_eq!((source.flags, limit.flags), (2, 3));
    assert!(source.cell > 0 && limit.cell > 0 && source.cell != limit.cell);
    assert!(table.ingress.any.encode(&table, |_| None).is_none());
}

#[test]
fn breakers_come_first_then_loads_then_the_rest_inner_limits_before_outer() {
    let effective = policy(
        &[
            ("connections", "100/s"),
            ("connections-per-source", "10/s"),
            ("max-connections", "1000"),
            ("max-handshakes", "200"),
            ("max-connections.80", "500"),
            ("max-connections-per-source", "9"),
            ("max-connections-per-source.80", "8"),
            ("breaker", "errors=5"),
            ("breaker.80", "errors=3"),
            ("outbound-breaker", "errors=5; errors=4 to=10.0.0.1"),
        ],
        &["192.0.2.1"],
    );
    let probes = Probes { from: None, ports: vec![port(80)], bucket: Probes::BUCKET };
    let facts = NodeFacts { addresses: vec!["10.0.0.1".parse().unwrap()], ..NodeFacts::default() };
    let with = Subject { probes: Some(&probes), ..subject("web", &effective) };
    let compiled = compile([with], &facts, None);
    assert_eq!(compiled.misfits, []);
    let table = &compiled.tables.workloads["web"];
    assert_eq!(
        shown(&table.ingress.ports[&port(80)]),
        [
            "exempt 192.0.2.1",
            "probes",
            "breaker.80",
            "breaker",
            "max-connections.80",
            "max-connections and max-handshakes",
            "max-connections-per-source.80",
            "connections-per-source",
            "max-connections-per-source",
            "connections",
        ]
    );
    assert_eq!(
        shown(&table.egress.any),
        ["exempt 192.0.2.1", "outbound-breaker to=10.0.0.1", "outbound-breaker"]
    );
    assert!(table.is_tracked() && table.ingress.any.is_tracked() && table.egress.any.is_tracked());
}

#[test]
fn connections_and_handshakes_of_one_port_share_a_cell() {
    let loads = |rows: &[(&str, &str)]| {
        let table = table(&policy(rows, &[]));
        let rules = table.ingress.any.rules.iter().map(|rule| {
            let identity = rule.kind.cell().unwrap();
            let Params { cost, burst, .. } = table.cells[&identity].params;
            (identity, cost, burst, rule.shadow)
        });
        rules.collect::<Vec<_>>()
    };
    let both = loads(&[("max-connections", "500"), ("max-handshakes", "100")]);
    let [(cell, 500, 100, false)] = both[..] else { panic!("{both:?}") };
    // What is not limited stands at its most, and one line or the other, it is the same cell.
    assert_eq!(loads(&[("max-connections", "7")]), [(cell, 7, MAX_HANDSHAKES, false)]);
    assert_eq!(loads(&[("max-handshakes", "7 shadow")]), [(cell, MAX_CONNECTIONS, 7, true)]);
    // In shadow alone they are two rules.
    let apart = loads(&[("max-connections", "500 shadow"), ("max-handshakes", "100")]);
    assert_eq!(apart[0], (cell, MAX_CONNECTIONS, 100, false));
    assert_eq!((apart[1].1, apart[1].2, apart[1].3), (500, MAX_HANDSHAKES, true));
    assert_ne!(apart[1].0, cell);
}

#[test]
fn changed_numbers_keep_the_cells_and_set_the_blocks_again() {
    let tables = |load: &str, breaker: &str| {
        let effective = policy(
            &[
                ("max-connections", load),
                ("max-connections-per-source", load),
                ("breaker", breaker),
            ],
            &[],
        );
        compile([subject("web", &effective)], &NodeFacts::default(), None).tables
    };
    let (before, after) = (tables("5", "errors=5"), tables("6", "errors=6 shadow"));
    let keys =
        |tables: &Tables| -> Vec<_> { tables.workloads["web"].cells.keys().copied().collect() };
    assert_eq!(keys(&before), keys(&after));
    let changes = diff(&before, &after);
    let set = |change: &Change| matches!(change, Change::SetCell { .. });
    assert_eq!(changes.iter().filter(|change| set(change)).count(), 3);
    assert!(matches!(changes.last(), Some(Change::SetBlock { .. })));
}

#[test]
fn more_than_a_connection_can_be_counted_by_do_not_fit() {
    // A connection to one host meets the breakers of its networks, and none of other hosts.
    let networks = ["10.0.0.1", "10.0.0.0/8", "10.0.0.0/24", "192.0.2.1"];
    let list = networks.map(|to| format!("errors=5 to={to}"));
    let effective = policy(&[("outbound-breaker.443", &list.join("; "))], &[]);
    let compiled = compile([subject("web", &effective)], &NodeFacts::default(), None);
    assert_eq!(
        compiled.misfits[0].to_string(),
        "workload web: 3 outbound breakers for port 443, at most 2 fit: outbound-breaker.443 \
         to=10.0.0.1, outbound-breaker.443 to=10.0.0.0/24, outbound-breaker.443 to=10.0.0.0/8; not \
         enforced: outbound-breaker.443 to=10.0.0.0/8"
    );
    let table = &compiled.tables.workloads["web"];
    assert_eq!(table.egress.ports[&port(443)].rules.len(), 3);
    assert!(compiled.tables.missing_cells().is_empty());

    let fits = policy(&[("outbound-breaker.443", &list[..2].join("; "))], &[]);
    let before = compile([subject("web", &fits)], &NodeFacts::default(), None);
    let kept = compile([subject("web", &effective)], &NodeFacts::default(), Some(&before.tables));
    assert_eq!(kept.tables, before.tables);
}

#[test]
fn a_services_breakers_know_how_many_of_them_may_be_ejected() {
    let value = "errors=5 max-ejected=50% to=service/db; errors=4 to=service/web";
    let table = table(&policy(&[("outbound-breaker", value)], &[]));
    let among = table.egress.any.rules.iter().map(|rule| match rule.kind {
        RuleKind::Breaker { among, .. } => among.map(|among| (among.number, among.at_most)),
        _ => panic!("{rule:?}"),
    });
    let mut among = among.collect::<Vec<_>>();
    among.sort();
    assert_eq!(among, [None, None, Some((1, 2)), Some((1, 2)), Some((1, 2)), Some((1, 2))]);
    let cells: BTreeSet<_> = table.egress.any.rules.iter().map(|rule| rule.kind.cell()).collect();
    assert_eq!(cells.len(), 6, "each endpoint has a breaker of its own");
}

#[test]
fn a_rate_to_a_service_has_one_bucket_for_all_endpoints() {
    let table = table(&policy(&[("outbound-connections", "5/s to=service/db")], &[]));
    let rules = &table.egress.any.rules;
    assert_eq!(rules.len(), 4);
    let cells: BTreeSet<_> = rules.iter().map(|rule| rule.kind.cell()).collect();
    assert_eq!(cells.len(), 1);
    let peers: BTreeSet<_> = rules.iter().map(|rule| rule.peer).collect();
    assert_eq!(peers.len(), 4);
}

#[test]
fn loads_and_breakers_are_encoded_as_the_kernel_reads_them() {
    let table = table(&policy(
        &[
            ("max-connections", "500"),
            ("max-handshakes", "100"),
            ("max-connections-per-source", "20 group=/24,/56"),
            (
                "breaker",
                "errors=5 error-ratio=40% min-volume=30 interval=1m connect-timeout=2s \
                 ejection=30s max-ejection=1h probes=3 shadow",
            ),
        ],
        &[],
    ));
    let block = table.ingress.any.encode(&table, |_| Some(1)).unwrap();
    assert_eq!((block.count, block.tracked), (3, 1));
    let [breaker, load, source, ..] = block.rules;
    assert_eq!((breaker.kind, breaker.flags), (layout::RuleKind::Breaker as u8, 1));
    let expected = breaker::Params {
        timeout_ms: 2000,
        ejection_ms: 30_000,
        max_ejection_ms: 3_600_000,
        interval_ms: 60_000,
        errors: 5,
        error_ratio: 40,
        min_volume: 30,
        probes: 3,
    };
    let words = [breaker.cost, breaker.burst, breaker.step];
    assert_eq!(breaker::Params::unpack(words), expected);
    assert_eq!((load.kind, load.cost, load.burst), (layout::RuleKind::Load as u8, 500, 100));
    assert_eq!((source.kind, source.cost), (layout::RuleKind::SourceLoad as u8, 20));
    assert_eq!((source.group_v4, source.group_v6), (24, 56));

    let rates = self::table(&policy(&[("connections", "5/s")], &[]));
    assert_eq!(rates.ingress.any.encode(&rates, |_| Some(1)).unwrap().tracked, 0);
    assert!(!rates.is_tracked());
}

#[test]
fn refusals_are_told_with_the_line_that_refused() {
    let table = table(&policy(&[("max-connections", "5"), ("max-handshakes", "3")], &[]));
    let line = table.ingress.any.rules[0].line;
    let kind = |reason| line.refused_by(Some(reason)).unwrap().kind;
    assert_eq!(kind(Reason::MaxConnections), LimitKind::MaxConnections);
    assert_eq!(kind(Reason::MaxHandshakes), LimitKind::MaxHandshakes);
    assert_eq!(line.name(), "max-connections");
}

#[test]
fn the_tables_are_shown_as_json() {
    let effective =
        policy(&[("connections.80", "50/s"), ("outbound-connections", "1/s to=10.0.0.0/8")], &[]);
    let compiled = compile([subject("web", &effective)], &NodeFacts::default(), None);
    let json = serde_json::to_value(&compiled.tables).unwrap();
    let rule = &json["workloads"]["web"]["ingress"]["ports"]["80"][0];
    assert_eq!(rule["line"]["limit"]["kind"], "connections");
    assert_eq!(rule["peer"], serde_json::Value::Null);
}

fn random_tables() -> impl Strategy<Value = Tables> {
    let key = prop_oneof![
        Just("connections"),
        Just("connections.80"),
        Just("connections.81"),
        Just("on-limit.80"),
        Just("connections-per-source"),
        Just("outbound-connections"),
        Just("outbound-connections.443"),
        Just("max-connections"),
        Just("max-handshakes"),
        Just("max-handshakes.80"),
        Just("max-connections-per-source"),
        Just("breaker.80"),
    ];
    let row = (key, 1..4_u32, 0..3_u8).prop_map(|(key, rate, kind)| {
        let value = match (key, kind) {
            ("on-limit.80", 0) => "reset".to_owned(),
            ("on-limit.80", _) => "drop".to_owned(),
            ("outbound-connections", 1) => format!("{rate}/s to=10.0.0.0/8; 5/s"),
            ("breaker.80", 2) => format!("errors={rate} shadow"),
            ("breaker.80", _) => format!("errors={rate}"),
            (key, 2) if key.starts_with("max-") => format!("{rate} shadow"),
            (key, _) if key.starts_with("max-") => format!("{rate}"),
            (_, 2) => format!("{rate}/s shadow"),
            _ => format!("{rate}/s"),
        };
        (key.to_owned(), value)
    });
    let workload = ("[ab]", proptest::collection::vec(row, 0..5), "[xy]");
    proptest::collection::vec(workload, 0..3).prop_map(|workloads| {
        let mut tables = Tables::default();
        for (identity, rows, name) in workloads {
            let rows: Vec<_> =
                rows.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            let effective = policy(&rows, &[]);
            let subject = Subject { name: &name, ..subject(&identity, &effective) };
            tables
                .workloads
                .extend(compile([subject], &NodeFacts::default(), None).tables.workloads);
        }
        tables
    })
}

proptest! {
    #[test]
    fn the_changes_lead_from_one_table_to_the_other(from in random_tables(), to in random_tables()) {
        let mut tables = from.clone();
        for change in diff(&from, &to) {
            tables.apply(&change);
            prop_assert!(tables.missing_cells().is_empty(), "after {:?}", change);
        }
        prop_assert_eq!(&tables, &to);
        prop_assert!(diff(&to, &to).is_empty());
    }

    #[test]
    fn blocks_follow_the_cells_they_name(from in random_tables(), to in random_tables()) {
        let changes = diff(&from, &to);
        for (at, change) in changes.iter().enumerate() {
            let Change::SetCell { workload, identity, .. } = change else { continue };
            let table = &to.workloads[workload];
            let ways = [Direction::Ingress, Direction::Egress];
            for (stage, direction) in
                Stage::ALL.into_iter().flat_map(|stage| ways.map(|way| (stage, way)))
            {
                let blocks = table.blocks(stage, direction);
                let ports = blocks.ports.iter().map(|(port, block)| (Some(*port), block));
                for (port, block) in ports.chain([(None, &blocks.any)]) {
                    if block.rules.iter().all(|rule| rule.kind.cell() != Some(*identity)) {
                        continue;
                    }
                    let block = block.clone();
                    let workload = workload.clone();
                    let set = Change::SetBlock { workload, stage, direction, port, block };
                    prop_assert!(changes[at..].contains(&set), "{:?} after {:?}", set, change);
                }
            }
        }
    }

    #[test]
    fn every_line_stands_in_every_block_it_holds_for(tables in random_tables()) {
        for table in tables.workloads.values() {
            for blocks in [&table.ingress, &table.egress].into_iter().chain(&table.volumes) {
                for rule in &blocks.any.rules {
                    for block in blocks.ports.values() {
                        prop_assert!(block.rules.iter().any(|other| other.line == rule.line));
                    }
                }
            }
        }
    }
}

fn shop() -> NodeFacts {
    let text = "
domain: shop
descriptors:
  - key: user
    rate_limit: { unit: minute, requests_per_unit: 7 }
  - key: port
    rate_limit: { unit: hour, requests_per_unit: 5 }
";
    let quotas = Quotas::default();
    let source = quota::config::Source { file: "shop.yaml".to_owned(), text: text.to_owned() };
    let configuration = quota::config::read(&[source]).unwrap();
    quotas.apply(&configuration, quota::Settings::default()).unwrap();
    NodeFacts { quotas: Some(Arc::new(quotas)), ..NodeFacts::default() }
}

#[test]
fn all_who_name_a_quota_spend_from_one_cell() {
    let effective =
        policy(&[("quota.80", "domain=shop user=ann"), ("quota", "domain=shop user=ann")], &[]);
    let compiled = compile([subject("web", &effective), subject("api", &effective)], &shop(), None);
    assert_eq!(compiled.misfits, []);
    assert_eq!(compiled.quotas.len(), 1);
    let (cell, named) = compiled.quotas.first_key_value().unwrap();
    assert_eq!(named.text, ["shop", "user", "ann"]);
    for workload in ["web", "api"] {
        let table = &compiled.tables.workloads[workload];
        let rules = &table.ingress.ports[&port(80)].rules;
        let kind = RuleKind::Quota { cell: *cell, counts: CellKind::Window };
        assert_eq!(rules.iter().map(|rule| rule.kind).collect::<Vec<_>>(), [kind; 2]);
        let block = table.ingress.ports[&port(80)].encode(table, |_| Some(9)).unwrap();
        let rule = block.rules[0];
        assert_eq!((rule.cost, rule.burst, rule.cell), (60, 7, 9));
        assert_eq!(rule.flags, layout::RULE_QUOTA | layout::RULE_WINDOW);
    }
}

#[test]
fn variables_are_the_facts_of_each_workload() {
    let effective =
        policy(&[("quota.80", "domain=shop port=$port"), ("quota", "domain=shop user=$pod")], &[]);
    let web = Subject { name: "front/web-1", ..subject("uid", &effective) };
    let compiled = compile([web], &shop(), None);
    let mut texts: Vec<_> = compiled.quotas.values().map(|named| named.text.join(" ")).collect();
    texts.sort();
    assert_eq!(texts, ["shop port 80", "shop user web-1"]);
}

#[test]
fn a_quota_that_cannot_be_spent_limits_nothing_and_is_told_once() {
    let effective = policy(&[("quota", "domain=shop colour=red"), ("connections.80", "1/s")], &[]);
    let compiled = compile([subject("web", &effective)], &shop(), None);
    let told: Vec<_> = compiled.misfits.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "workload web: quota: no limit is written for this descriptor: `domain=shop colour=red`; \
          meanwhile it limits nothing"
        ]
    );
    assert_eq!(compiled.tables.workloads["web"].ingress.ports[&port(80)].rules.len(), 1);
    // Who does not know the quotas cannot say that there is none.
    let unknown = compile([subject("web", &effective)], &NodeFacts::default(), None);
    assert_eq!(unknown.misfits, []);
}
