//! What the maps need, from their definitions, and what the documents and the chart say of it.
//!
//! The kernel charges it to whoever makes the maps: to the agent's pod. It is there from the start.

use aya_obj::{Map, Object, generated::bpf_map_type};

use super::OBJECT;

const MIB: u64 = 1 << 20;
/// What the agent itself is promised to stay within.
const AGENT_MIB: u64 = 64;
/// `sizeof(struct htab_elem)` up to the key, and `sizeof(struct bucket)` (kernel/bpf/hashtab.c).
const ELEMENT: u64 = 48;
const BUCKET: u64 = 16;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default)]
struct Need {
    once: u64,
    each_cpu: u64,
}

fn need(map: &Map) -> Need {
    let round = |bytes: u32| u64::from(bytes).next_multiple_of(8);
    let entries = u64::from(map.max_entries());
    let (key, value) = (round(map.key_size()), round(map.value_size()));
    let Ok(kind) = bpf_map_type::try_from(map.map_type()) else { panic!("{map:?}") };
    match kind {
        bpf_map_type::BPF_MAP_TYPE_ARRAY => Need { once: entries * value, each_cpu: 0 },
        // Beside the values, a pointer to each entry's.
        bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY => {
            Need { once: entries * 8, each_cpu: entries * value }
        }
        // Elements are made in advance, and one more for each CPU.
        bpf_map_type::BPF_MAP_TYPE_HASH => Need {
            once: entries * (ELEMENT + key + value) + entries.next_power_of_two() * BUCKET,
            each_cpu: ELEMENT + key + value,
        },
        bpf_map_type::BPF_MAP_TYPE_RINGBUF => Need { once: entries, each_cpu: 0 },
        other => panic!("what does a map of type {other:?} need?"),
    }
}

fn needs() -> Need {
    let object = Object::parse(OBJECT).unwrap();
    let own = object.maps.iter().filter(|(name, _)| super::NAMES.contains(&name.as_str()));
    own.fold(Need::default(), |sum, (_, map)| {
        let Need { once, each_cpu } = need(map);
        Need { once: sum.once + once, each_cpu: sum.each_cpu + each_cpu }
    })
}

/// The first `memory: 123Mi` after a word.
fn memory_after(text: &str, word: &str) -> u64 {
    let (_, after) = text.split_once(word).expect(word);
    let (_, after) = after.split_once("memory: ").expect("memory");
    after.split_once("Mi").expect("Mi").0.parse().expect("a number")
}

#[test]
fn documents_and_chart_say_what_the_maps_need() {
    let Need { once, each_cpu } = needs();
    let (once, each_cpu) = (once.div_ceil(MIB), each_cpu.div_ceil(MIB));
    let said = format!("{once} MiB of BPF maps and {each_cpu} MiB for each CPU");
    for (name, text) in [
        ("README.md", include_str!("../../../README.md")),
        ("docs/operations.md", include_str!("../../../docs/operations.md")),
        ("values.yaml", include_str!("../../../deploy/helm/weir/values.yaml")),
    ] {
        // Wherever lines end, and comments begin.
        let words: Vec<_> = text.split_whitespace().filter(|word| *word != "#").collect();
        assert!(words.join(" ").contains(&said), "{name} does not say: {said}");
    }
    let values = include_str!("../../../deploy/helm/weir/values.yaml");
    let total = |cpus: u64| AGENT_MIB + once + cpus * each_cpu;
    let (asked, limit) = (memory_after(values, "requests:"), memory_after(values, "limits:"));
    assert!(asked >= total(16), "asked for 16 CPUs: {asked} Mi, needed {}", total(16));
    assert!(limit >= total(128), "the limit, for 128 CPUs: {limit} Mi, needed {}", total(128));
    for text in [
        include_str!("../../../docs/operations.md").to_owned(),
        include_str!("../../../deploy/kustomize/base/weir.yaml").replace("Mi\n", " Mi\n"),
    ] {
        assert!(text.contains(&format!("{asked} Mi")) && text.contains(&format!("{limit} Mi")));
    }
}
