//! What Weir's BPF programs and its agent share.
//!
//! Everything here is pure: it decides over words that somebody else owns, with the time as an
//! argument. The same functions run in the kernel (`ebpf`), in the agent and in the tests, so that
//! there is one truth about what a limit means. Nothing here knows maps, sockets or pods.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod addr;
pub mod breaker;
pub mod debt;
pub mod flow;
pub mod gcra;
pub mod handshake;
pub mod layout;
pub mod lease;
pub mod load;
pub mod nh;
pub mod sliding;
pub mod source;
pub mod track;
pub mod verdict;
pub mod way;
pub mod window;
pub mod word;
