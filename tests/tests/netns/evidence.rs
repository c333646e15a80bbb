//! `scope=node`: what two workloads have found broken is refused to the others, too.

use std::net::SocketAddr;

use weir::{app::view::Refusal, lab::Host};
use weir_tests::{
    agent::{Agent, eventually},
    site::{Side, ask, node_file, policy_lines, serve, stack_counter},
};

#[test]
fn what_two_workloads_found_broken_is_refused_to_the_others() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let names = ["a", "b", "c", "d"];
    let pods = names.map(|name| node.pod(name).unwrap());
    let [one, two] = ["one", "two"].map(|name| node.client(name).unwrap());
    let settings = |scope| {
        format!(
            "outbound-breaker.3306: errors=2 ejection=60s {scope} to={}; errors=2 {scope} to={}",
            one.ipv4(),
            two.ipv4()
        )
    };
    // The last one keeps to itself.
    let scopes = ["scope=node", "scope=node", "scope=node", "scope=workload"];
    let entries: Vec<String> = pods
        .iter()
        .zip(scopes)
        .map(|(pod, scope)| {
            let policy = policy_lines(&[&settings(scope)]);
            let lines: Vec<_> = policy.iter().map(String::as_str).collect();
            Side::Host.entry(pod, &lines)
        })
        .collect();
    let mut agent = Agent::start(&lab, node.namespace(), &node_file(&entries));
    assert_eq!(agent.status().problems, [] as [String; 0]);
    let [a, b, c, d] = &pods;
    let to = |host: &Host| SocketAddr::new(host.ipv4().into(), 3306);
    let heard = || stack_counter(one.namespace(), "Tcp", "OutRsts");
    let name = format!("outbound-breaker.3306 to={}", one.ipv4());
    let breaker = |workload: &str| agent.limit_named(workload, &name).breaker.unwrap();

    // One workload may be what is broken: it is believed by nobody else.
    assert_eq!(ask(a.namespace(), to(&one), 5).codes(), "refused:5");
    assert_eq!(heard(), 2);
    let changed =
        |refusals: &Vec<Refusal>| refusals.iter().any(|it| it.reason == "breaker_tripped");
    eventually("the agent has heard of it", || agent.explain("a").refusals, changed);
    assert_eq!(breaker("c").state, "closed");

    // The second one is.
    assert_eq!(ask(b.namespace(), to(&one), 5).codes(), "refused:5");
    assert_eq!(heard(), 4);
    let told = eventually("the third is told", || breaker("c"), |now| now.state == "open");
    assert!(told.told && told.told_total == 1 && told.open_seconds > 1.0, "{told:?}");
    assert!(!breaker("a").told && !breaker("b").told);
    assert_eq!(ask(c.namespace(), to(&one), 5).codes(), "refused:5");
    assert_eq!(heard(), 4, "no connection of the third got there");
    let (_, metrics) = agent.request("GET", "/metrics", "").unwrap();
    let told = metrics.lines().filter(|line| line.starts_with("weir_breaker_told_total"));
    let told: Vec<_> = told.filter(|line| line.ends_with(" 1")).collect();
    assert!(told.len() == 1 && told[0].contains("workload=\"c\""), "{told:?}");

    // Nobody else, and nothing about another destination.
    assert_eq!(breaker("d").state, "closed");
    let _server = serve(&two, &[3306]);
    for pod in &pods {
        assert_eq!(ask(pod.namespace(), to(&two), 3).codes(), "ok:3");
    }

    // Without an agent each learns by itself.
    agent.kill();
    assert_eq!(ask(d.namespace(), to(&one), 5).codes(), "refused:5");
    assert_eq!(heard(), 6);
    assert_eq!(ask(c.namespace(), to(&one), 5).codes(), "refused:5");
    assert_eq!(heard(), 6, "what was told outlives who told it");
}
