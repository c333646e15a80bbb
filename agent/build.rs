//! Embeds the BPF object, which another compiler built for another target.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=WEIR_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = env::var_os("WEIR_EBPF_OBJECT").map_or_else(
        || manifest.join("../target/ebpf/bpfel-unknown-none/release/weir-ebpf"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    if !object.is_file() {
        println!(
            "cargo::error=the BPF object {} is missing: run `cargo xtask build`, which makes it",
            object.display()
        );
    }
    println!("cargo::rustc-env=WEIR_EBPF_OBJECT={}", object.display());
}
