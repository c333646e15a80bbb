//! Limits of bytes that delay: this kernel has `fq`, which sends packets when they are due.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use weir::{
    datapath::VolumeCounts,
    lab::{Host, Lab, choose_queue, impair},
};
use weir_tests::{
    agent::{Agent, eventually},
    site::{Side, addresses},
    traffic::{self, Bulk},
    vm,
};

/// How long each row's connections send.
const TIME: Duration = Duration::from_secs(4);

fn volume(agent: &Agent<'_>, limit: &str) -> VolumeCounts {
    let limits = agent.workload("web").limits;
    let found = limits.into_iter().find(|found| found.limit == limit);
    found.and_then(|found| found.volume).expect("the limit counts bytes")
}

fn pace(agent: &Agent<'_>) -> (Option<String>, Option<String>) {
    let pace = agent.workload("web").pace.expect("the workload has byte limits");
    (pace.by, pace.detail)
}

/// One connection and ten get the rate to within two in a hundred: towards a pod and from it, over a
/// short way, and over a long one that loses packets.
#[test]
fn delayed_connections_get_their_rate() {
    inside!(|| {
        for (side, limit) in [(Side::Host, "ingress-bandwidth"), (Side::Pod, "egress-bandwidth")] {
            let lab = Lab::new().unwrap();
            let node = lab.node("node").unwrap();
            let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
            let rows = [(2, 1, 0.0), (10, 1, 0.0), (10, 10, 0.0), (2, 1, 0.005)];
            let file = |mbit: u32| {
                let burst = u64::from(mbit) * 6250;
                let policy = format!("policy: {{ {limit}: {mbit}Mbit/s burst={burst}B }}");
                node_file_with(side, &web, &policy)
            };
            let mut agent = Agent::start(&lab, node.namespace(), &file(rows[0].0));
            assert_eq!(pace(&agent), (Some("own fq".to_owned()), None));
            let (from, to) = if side == Side::Host { (&client, &web) } else { (&web, &client) };
            let mut long = false;
            for (mbit, connections, loss) in rows {
                if loss > 0.0 && !long {
                    // On the way there packets are lost, on the way back answers are late.
                    let (lossy, late) = if side == Side::Host {
                        (
                            (client.namespace(), "eth0".to_owned()),
                            (node.namespace(), client.node_interface()),
                        )
                    } else {
                        (
                            (node.namespace(), client.node_interface()),
                            (client.namespace(), "eth0".to_owned()),
                        )
                    };
                    impair(lossy.0, &lossy.1, Duration::from_millis(10), loss).unwrap();
                    impair(late.0, &late.1, Duration::from_millis(10), 0.0).unwrap();
                    long = true;
                }
                agent.rewrite(&file(mbit));
                let written = format!("{mbit}Mbit/s");
                let holds = |agent: &Agent<'_>| agent.workload("web").limits[0].value.clone();
                eventually("the rate holds", || holds(&agent), |value| value.starts_with(&written));
                let address: IpAddr = addresses(to)[0];
                let bulk = Bulk { port: 9, connections, time: TIME, congestion: "cubic" };
                let before = volume(&agent, limit);
                let start = Instant::now();
                let traffic = traffic::tcp(from, to, address, bulk);
                // The first connection sends before the last is there.
                let whole = start.elapsed().as_secs_f64();
                let after = volume(&agent, limit);
                let seconds = traffic.iter().map(|one| one.seconds).fold(f64::MAX, f64::min);
                let received: u64 = traffic.iter().map(|one| one.received).sum();
                let rate = f64::from(mbit) * 1e6 / 8.0;
                let burst = rate / 20.0;
                let passed = (after.passed_bytes - before.passed_bytes) as f64;
                let dropped = after.dropped_packets - before.dropped_packets;
                let row = format!(
                    "{limit} {mbit} Mbit/s, {connections} connections, loss {loss}: {:.2} % passed, \
                     {:.2} % received, {dropped} dropped",
                    100.0 * (passed - burst) / (rate * seconds),
                    100.0 * received as f64 / (rate * seconds),
                );
                println!("{}{row}", vm::FIGURE);
                // What is passed last is still to be sent: up to 100 ms.
                let most = rate * (whole + 0.1) + burst + 70_000.0;
                assert!(passed <= most, "{row}");
                assert!(passed - burst >= 0.98 * rate * seconds, "{row}");
                // Delayed means that it also arrives so, but for what is still under way.
                let arrived = received as f64;
                assert!(arrived <= 1.02 * rate * whole + burst, "{row}");
                assert!(arrived >= (0.98 * seconds - 0.2) * rate * 1448.0 / 1514.0, "{row}");
            }
            assert!(agent.terminate().success());
            assert!(agent.uninstall().status.success());
        }
    });
}

/// Datagrams that are sent at once arrive at the limit's rate: each waits until its turn, none longer than it
/// may.
#[test]
fn datagrams_wait_their_turn() {
    const PAYLOAD: usize = 1400;
    const ON_THE_WIRE: usize = PAYLOAD + 42;
    const COUNT: usize = 11;
    const BURST: usize = 3 * 1514;
    const RATE: f64 = 125e3;
    inside!(|| {
        for (side, limit) in [(Side::Host, "ingress-bandwidth"), (Side::Pod, "egress-bandwidth")] {
            let lab = Lab::new().unwrap();
            let node = lab.node("node").unwrap();
            let (web, client) = (node.pod("web").unwrap(), node.client("client").unwrap());
            let policy = format!("policy: {{ {limit}: 1Mbit/s burst={BURST}B }}");
            let file = node_file_with(side, &web, &policy);
            let agent = Agent::start(&lab, node.namespace(), &file);
            assert_eq!(pace(&agent), (Some("own fq".to_owned()), None));
            let (from, to) = if side == Side::Host { (&client, &web) } else { (&web, &client) };
            let socket = |host: &Host| {
                let address = SocketAddr::new(host.ipv4().into(), 0);
                host.namespace().run(|| UdpSocket::bind(address)).unwrap().unwrap()
            };
            let (source, sink) = (socket(from), socket(to));
            sink.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            source.connect(sink.local_addr().unwrap()).unwrap();
            let mut buffer = [0; PAYLOAD];
            let mut arrives = || sink.recv(&mut buffer).unwrap();
            // From here on each knows the other's link address.
            source.send(&[]).unwrap();
            arrives();

            let begin = Instant::now();
            for _ in 0..COUNT {
                source.send(&[0x55; PAYLOAD]).unwrap();
            }
            let sent = begin.elapsed();
            (0..COUNT).for_each(|_| assert_eq!(arrives(), PAYLOAD));
            let arrived = begin.elapsed();
            let due = Duration::from_secs_f64((COUNT * ON_THE_WIRE - BURST) as f64 / RATE);
            let row = format!(
                "{limit}: sent in {sent:?}, the last due after {due:?}, there after {arrived:?}"
            );
            println!("{}{row}", vm::FIGURE);
            assert!(arrived >= due.mul_f64(0.8), "{row}");
            assert_eq!(volume(&agent, limit).dropped_packets, 0, "{row}");
        }
    });
}

/// An `fq` of the agent comes and goes with the word, outlives the agent, and goes at uninstall; that of
/// somebody else is used and stays; another queue is left alone.
#[test]
fn an_fq_comes_and_goes_with_the_word_and_others_queues_stay() {
    inside!(|| {
        let lab = Lab::new().unwrap();
        let node = lab.node("node").unwrap();
        let web = node.pod("web").unwrap();
        let limited = "policy: { ingress-bandwidth: 1Mbit/s }";
        let plain = |pace: &str| {
            let entry = Side::Host.entry(&web, &[limited]);
            format!("{pace}workloads:\n{entry}")
        };
        let own = (Some("own fq".to_owned()), None);
        let mut agent = Agent::start(&lab, node.namespace(), &plain(""));
        let end = web.node_interface();
        let none = (None, Some(format!("{end} has `noqueue`, not `fq`")));
        assert_eq!(pace(&agent), none);
        agent.rewrite(&plain("pace: fq\n"));
        eventually("an fq comes", || pace(&agent), |now| *now == own);
        agent.kill();
        agent.restart();
        assert_eq!(pace(&agent), own);
        agent.rewrite(&plain("pace: auto\n"));
        eventually("it goes", || pace(&agent), |now| *now == none);
        agent.rewrite(&plain("pace: fq\n"));
        eventually("it comes again", || pace(&agent), |now| *now == own);
        assert!(agent.terminate().success());
        assert!(agent.uninstall().status.success());

        // It is gone, so there is room for somebody else's.
        choose_queue(node.namespace(), &end, "fq").unwrap();
        agent.write(&plain("pace: fq\n"));
        agent.restart();
        assert_eq!(pace(&agent), (Some("fq".to_owned()), None));
        assert!(agent.terminate().success());
        assert!(agent.uninstall().status.success());
        agent.write(&plain("pace: off\n"));
        agent.restart();
        assert_eq!(pace(&agent), (None, Some("`pace: off`".to_owned())));
    });
}

fn node_file_with(side: Side, web: &Host, policy: &str) -> String {
    format!("pace: fq\nworkloads:\n{}", side.entry(web, &[policy]))
}
