//! A node file on trial holds until its time is over, whatever becomes of the agent, and stays only
//! if somebody wants it.

use std::{
    fs::{self, File, FileTimes},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    process::{Command, Output},
    time::{Duration, SystemTime},
};

use weir_tests::{
    agent::{Agent, binary, eventually},
    site::Side,
};

/// Runs a command of the agent's.
fn weir(agent: &Agent<'_>, words: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(words).arg("--socket").arg(agent.socket());
    command.output().expect("run the program")
}

fn apply(agent: &Agent<'_>, text: &str, time: &str) -> (Option<i32>, String) {
    let file = agent.node_file().with_file_name("new.yaml");
    fs::write(&file, text).unwrap();
    let output = weir(agent, &["apply", file.to_str().unwrap(), "--confirm", time]);
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
    (output.status.code(), said.concat())
}

fn await_value(agent: &Agent<'_>, value: &str) {
    eventually("the limit holds", || agent.limit("web").value, |now| now == value);
}

#[test]
fn a_trial_stays_if_it_is_confirmed_and_ends_by_itself_if_not() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = |rate: &str| Side::Host.node_file(&web, &[&format!("connections.80: {rate}")]);
    let agent = Agent::start(&lab, node.namespace(), &file("2/s"));
    let node_file = || fs::read_to_string(agent.node_file()).unwrap();

    // Confirmed.
    let (code, said) = apply(&agent, &file("3/s"), "1h");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(agent.limit("web").value, "3/s");
    assert_eq!(node_file(), file("2/s"), "nothing is written before it is confirmed");
    let confirmed = weir(&agent, &["confirm"]);
    assert!(confirmed.status.success(), "{confirmed:?}");
    assert_eq!(node_file(), file("3/s"));
    assert_eq!(weir(&agent, &["confirm"]).status.code(), Some(1), "once is enough");
    assert_eq!(agent.limit("web").value, "3/s");

    // Not confirmed.
    let (code, said) = apply(&agent, &file("4/s"), "2s");
    assert_eq!(code, Some(0), "{said}");
    await_value(&agent, "3/s");
    assert_eq!(node_file(), file("3/s"));
    assert_eq!(weir(&agent, &["confirm"]).status.code(), Some(1), "too late");
    assert!(agent.log().contains("nobody confirmed the trial"));

    // With errors.
    let (code, said) = apply(&agent, &file("5/fortnight"), "1h");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(agent.limit("web").value, "3/s");
}

#[test]
fn a_trial_outlives_the_agent_and_its_end_does_too() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = |rate: &str| Side::Host.node_file(&web, &[&format!("connections.80: {rate}")]);
    let mut agent = Agent::start(&lab, node.namespace(), &file("2/s"));
    let (code, said) = apply(&agent, &file("3/s"), "1h");
    assert_eq!(code, Some(0), "{said}");
    agent.kill();
    agent.restart();
    await_value(&agent, "3/s");
    // Its time is over while no agent runs.
    agent.kill();
    let trial = agent.socket().with_file_name("trial.yaml");
    let past = SystemTime::now() - Duration::from_secs(1);
    let times = FileTimes::new().set_modified(past);
    File::options().write(true).open(&trial).unwrap().set_times(times).unwrap();
    agent.restart();
    assert_eq!(agent.limit("web").value, "2/s");
    assert!(!trial.exists());
}

/// What was tried and not wanted is no last good policy, for this agent or for the next.
#[test]
fn a_trial_that_nobody_confirmed_was_never_good() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = |rate: &str| Side::Host.node_file(&web, &[&format!("connections.80: {rate}")]);
    let mut agent = Agent::start(&lab, node.namespace(), &file("2/s"));
    let (code, said) = apply(&agent, &file("9/s"), "2s");
    assert_eq!(code, Some(0), "{said}");
    let trial = agent.status().trial.unwrap();
    assert!(trial.holds);
    let shown = weir(&agent, &["status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("on trial until"), "{shown:?}");
    eventually("the trial ends", || agent.status().trial, Option::is_none);
    // One value cannot be read, then nothing can.
    for broken in [file("many"), "workloads: [".to_owned()] {
        agent.rewrite(&broken);
        assert_eq!(agent.limit("web").value, "2/s", "{broken}");
    }
    agent.kill();
    agent.restart();
    assert_eq!(agent.limit("web").value, "2/s");
}

#[test]
fn what_is_confirmed_is_written_where_the_node_file_is_and_with_its_rights() {
    let lab = lab!();
    let node = lab.node("node").unwrap();
    let web = node.pod("web").unwrap();
    let file = |rate: &str| Side::Host.node_file(&web, &[&format!("connections.80: {rate}")]);
    let agent = Agent::new(&lab, node.namespace(), &file("2/s"));
    let real = agent.node_file().with_file_name("real.yaml");
    fs::rename(agent.node_file(), &real).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&real, agent.node_file()).unwrap();
    // As an agent is started by hand: with a path that means something else elsewhere.
    let mut agent = agent.in_its_folder();
    agent.launch();
    agent.await_ready();
    let (code, said) = apply(&agent, &file("3/s"), "1h");
    assert_eq!(code, Some(0), "{said}");
    let confirmed = weir(&agent, &["confirm"]);
    assert!(confirmed.status.success(), "{confirmed:?}");
    assert_eq!(fs::read_link(agent.node_file()).unwrap(), real);
    assert_eq!(fs::read_to_string(&real).unwrap(), file("3/s"));
    assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o640);
}
