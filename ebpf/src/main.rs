//! Weir's programs: entry points only.
//!
//! The names say where a program is attached and which way the workload's packets go there. On the
//! host side of a veth the hooks are mirrored: what leaves the host through it enters the pod.
#![no_std]
#![no_main]
#![allow(internal_features)]
// A program has no readers of its items but itself.
#![allow(missing_docs, unreachable_pub)]
#![feature(asm_experimental_arch, core_intrinsics)]

use aya_ebpf::{
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use weir_common::layout::Direction;

use crate::{
    hook::{Call, Tc, TcHook, Uplink},
    peek::Answers,
};

mod breaker;
mod bytes;
mod connect;
mod decide;
mod emit;
mod handup;
mod hook;
mod maps;
mod parse;
mod peek;
mod pending;
mod reply;
mod rule;
mod track;
mod workload;

/// Host side of a veth, egress hook: towards the workload.
#[classifier]
pub fn weir_host_in(ctx: TcContext) -> i32 {
    decide::run(&Tc::new(ctx, TcHook::HostEgress), Direction::Ingress)
}

/// Host side of a veth, ingress hook: from the workload.
#[classifier]
pub fn weir_host_out(ctx: TcContext) -> i32 {
    decide::run(&Tc::new(ctx, TcHook::HostIngress), Direction::Egress)
}

/// The workload's own interface (inside a pod, or a machine's), ingress hook.
#[classifier]
pub fn weir_own_in(ctx: TcContext) -> i32 {
    decide::run(&Tc::new(ctx, TcHook::OwnIngress), Direction::Ingress)
}

/// The workload's own interface, egress hook.
#[classifier]
pub fn weir_own_out(ctx: TcContext) -> i32 {
    decide::run(&Tc::new(ctx, TcHook::OwnEgress), Direction::Egress)
}

/// Limits of bytes, on any interface: towards the workload.
#[classifier]
pub fn weir_bytes_in(ctx: TcContext) -> i32 {
    bytes::run(&ctx, Direction::Ingress)
}

/// Limits of bytes: from the workload.
#[classifier]
pub fn weir_bytes_out(ctx: TcContext) -> i32 {
    bytes::run(&ctx, Direction::Egress)
}

/// Sends the packet that it is run on once more: to the interface `cb[0]`, with the flags `cb[1]` of
/// `bpf_clone_redirect`. It is attached nowhere; the agent runs it.
#[classifier]
pub fn weir_inject(ctx: TcContext) -> i32 {
    hook::inject(ctx.skb.skb)
}

/// An uplink: refuses early what TC would certainly refuse, and spends nothing.
#[xdp]
pub fn weir_uplink(ctx: XdpContext) -> u32 {
    peek::run(&Uplink::new(ctx), Answers::Here)
}

/// The host's end of a veth whose pod floods others of the node: the same, but TC answers.
#[xdp]
pub fn weir_shield(ctx: XdpContext) -> u32 {
    peek::run(&Uplink::new(ctx), Answers::AtTc)
}

/// `connect()` of any IPv4 socket of the node: refuses at once what TC would certainly refuse.
#[cgroup_sock_addr(connect4)]
pub fn weir_connect4(ctx: SockAddrContext) -> i32 {
    connect::run(&Call::v4(ctx))
}

/// `connect()` of any IPv6 socket of the node, IPv4-mapped destinations among them.
#[cgroup_sock_addr(connect6)]
pub fn weir_connect6(ctx: SockAddrContext) -> i32 {
    connect::run(&Call::v6(ctx))
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The licence that the kernel checks before it allows GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
