//! What every store does, in memory and in Redis.

use redis::Commands as _;
use weir::fleet::store::{
    Reply, Request,
    memory::Memory,
    redis::{Link, RedisSettings, Topology},
};
use weir_tests::redis::{Server, sets::Cluster};

/// Does a request, whatever the store.
trait Asked {
    fn ask(&mut self, request: Request) -> Reply;
}

struct InMemory(Memory);

impl Asked for InMemory {
    fn ask(&mut self, request: Request) -> Reply {
        self.0.apply(&request, 1_000)
    }
}

struct InRedis {
    link: Link,
    runtime: tokio::runtime::Runtime,
}

impl InRedis {
    fn connect(settings: &RedisSettings) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let link = runtime.block_on(settings.connect()).unwrap();
        Self { link, runtime }
    }
}

impl Asked for InRedis {
    fn ask(&mut self, request: Request) -> Reply {
        let executed = self.runtime.block_on(self.link.execute(&[request])).unwrap();
        assert!(executed.broken.is_none());
        executed.replies[0].unwrap()
    }
}

fn add(key: &str, hits: u32) -> Request {
    Request::Add { key: key.to_owned(), hits, expire_s: Some(60) }
}

fn give_back(key: &str, hits: u32) -> Request {
    Request::GiveBack { key: key.to_owned(), hits }
}

fn join(node: &str, window: u32, held: u32, weight: u32) -> Request {
    let (key, node) = ("weir:spenders:1:x".to_owned(), node.to_owned());
    Request::Join { key, node, window, limit: 100, held, weight, expire_s: 60 }
}

fn joined(spenders: u32, share: u32) -> Reply {
    Reply::Joined { spenders, share }
}

fn counts(store: &mut dyn Asked) {
    assert_eq!(store.ask(add("a", 3)), Reply::Counted(3));
    assert_eq!(store.ask(add("a", 0)), Reply::Counted(3));
    assert_eq!(store.ask(add("b", 1)), Reply::Counted(1));
    assert_eq!(store.ask(add("a", u32::MAX)), Reply::Counted(3 + u64::from(u32::MAX)));
}

fn gives_back(store: &mut dyn Asked) {
    store.ask(add("c", 10));
    assert_eq!(store.ask(give_back("c", 4)), Reply::Done);
    assert_eq!(store.ask(add("c", 0)), Reply::Counted(6));
    store.ask(give_back("c", 40));
    assert_eq!(store.ask(add("c", 0)), Reply::Counted(0), "never below 0");
    store.ask(give_back("d", 4));
    assert_eq!(
        store.ask(add("d", 1)),
        Reply::Counted(1),
        "nothing for a counter that is not there"
    );
}

fn shares(store: &mut dyn Asked) {
    assert_eq!(store.ask(join("one", 7, 0, 10)), joined(1, 100));
    assert_eq!(store.ask(join("two", 7, 0, 10)), joined(2, 0), "all is held");
    assert_eq!(store.ask(join("one", 7, 100, 10)), joined(2, 50));
    assert_eq!(store.ask(join("two", 7, 0, 10)), joined(2, 0), "one may not have heard of it");
    assert_eq!(store.ask(join("one", 8, 50, 10)), joined(2, 50));
    assert_eq!(store.ask(join("two", 8, 0, 10)), joined(2, 50));
    // Half by heads and half by what is wanted.
    assert_eq!(store.ask(join("two", 8, 50, 30)), joined(2, 50), "no more than is free");
    assert_eq!(store.ask(join("one", 8, 50, 10)), joined(2, 25 + 12));
    assert_eq!(store.ask(join("one", 8, 37, 10)), joined(2, 25 + 12));
    assert_eq!(store.ask(join("two", 8, 50, 30)), joined(2, 25 + 37));
    // One that did not come for more than three windows is gone.
    assert_eq!(store.ask(join("two", 12, 50, 30)), joined(1, 100));
    // Who comes with a share that the store does not know is one of several that it has forgotten.
    assert_eq!(store.ask(join("one", 20, 50, 10)), joined(1, 50));
    assert_eq!(store.ask(join("three", 20, 0, 10)), joined(2, 50));
}

fn every_behaviour(store: &mut dyn Asked) {
    counts(store);
    gives_back(store);
    shares(store);
}

#[test]
fn the_store_in_memory_conforms() {
    every_behaviour(&mut InMemory(Memory::default()));
}

#[test]
fn the_store_in_redis_conforms() {
    redis_or_skip!();
    let server = Server::start();
    every_behaviour(&mut InRedis::connect(&RedisSettings::single(server.url())));
}

#[test]
fn the_store_in_a_redis_cluster_conforms() {
    redis_or_skip!();
    let cluster = Cluster::start();
    let topology = Topology::Cluster(cluster.urls());
    let settings = RedisSettings { topology, ..RedisSettings::single("") };
    every_behaviour(&mut InRedis::connect(&settings));
}

#[test]
fn counters_expire_as_they_are_told() {
    redis_or_skip!();
    let server = Server::start();
    let mut store = InRedis::connect(&RedisSettings::single(server.url()));
    let mut client = server.client();
    store.ask(add("a", 3));
    let ttl: i64 = client.ttl("a").unwrap();
    assert!((1..=60).contains(&ttl), "{ttl}");
    store.ask(give_back("a", 1));
    let ttl: i64 = client.ttl("a").unwrap();
    assert!((1..=60).contains(&ttl), "giving back leaves the end as it is: {ttl}");
    store.ask(Request::Add { key: "b".to_owned(), hits: 1, expire_s: None });
    assert_eq!(client.ttl::<_, i64>("b").unwrap(), -1);
    store.ask(Request::Expire { key: "b".to_owned(), expire_s: 9 });
    assert!((1..=9).contains(&client.ttl::<_, i64>("b").unwrap()));
    store.ask(join("one", 7, 0, 10));
    assert!((1..=60).contains(&client.ttl::<_, i64>("weir:spenders:1:x").unwrap()));
}
