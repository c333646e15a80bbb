//! Other people's BPF programs: a few instructions each, loaded by the bare system call.
//!
//! They play whoever shares an interface with Weir (a network plugin, a load balancer), and share
//! no code with what loads Weir's own programs. Links and programs are gone when their handle is.
//! It also looks up what the kernel holds by number, to see that nothing stays behind.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on fails, and says where"
)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use weir::lab::{Host, Namespace, link_index};

/// Commands of bpf(2).
mod command {
    pub(super) const MAP_CREATE: u32 = 0;
    pub(super) const MAP_LOOKUP: u32 = 1;
    pub(super) const PROG_LOAD: u32 = 5;
    pub(super) const OBJ_PIN: u32 = 6;
    pub(super) const OBJ_GET: u32 = 7;
    pub(super) const PROG_GET_FD_BY_ID: u32 = 13;
    pub(super) const MAP_GET_FD_BY_ID: u32 = 14;
    pub(super) const OBJ_GET_INFO: u32 = 15;
    pub(super) const PROG_QUERY: u32 = 16;
    pub(super) const LINK_CREATE: u32 = 28;
    pub(super) const LINK_GET_FD_BY_ID: u32 = 30;
}

/// `union bpf_attr`: numbers at offsets, the rest zero. Little-endian, as the instructions below.
#[derive(Clone, Copy, Default)]
#[repr(C, align(8))]
struct Attributes([u64; 20]);

impl Attributes {
    fn word(mut self, offset: usize, value: u32) -> Self {
        self.0[offset / 8] |= u64::from(value) << (offset % 8 * 8);
        self
    }

    fn long(mut self, offset: usize, value: u64) -> Self {
        self.0[offset / 8] = value;
        self
    }

    fn pointer<T>(self, offset: usize, value: *const T) -> Self {
        self.long(offset, value as u64)
    }

    fn name(mut self, offset: usize, name: &str) -> Self {
        let mut bytes = [0; 16];
        // One byte is left for the terminating zero.
        for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        for (place, half) in self.0[offset / 8..].iter_mut().zip(bytes.chunks(8)) {
            *place = u64::from_le_bytes(half.try_into().expect("8 bytes"));
        }
        self
    }
}

/// bpf(2). The attributes' pointers must be good for what the command does with them.
unsafe fn bpf(command: u32, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the attributes are live and as long as said; the caller vouches for what they point
    // to.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

unsafe fn bpf_fd(command: u32, mut attributes: Attributes) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise; the kernel gives a descriptor that is nobody else's.
    unsafe { bpf(command, &mut attributes).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Where packets are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What an interface receives.
    Ingress,
    /// What an interface sends.
    Egress,
}

impl Hook {
    const fn attach_type(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// Among the programs of a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before those that are there.
    First,
    /// After those that are there.
    Last,
}

/// A kind of program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tc,
    Xdp,
}

/// A loaded program that is not Weir's.
#[derive(Debug)]
pub struct Foreign {
    program: OwnedFd,
    seen: OwnedFd,
}

/// An attachment; it ends on drop.
#[derive(Debug)]
pub struct Link(#[expect(dead_code, reason = "held open")] OwnedFd);

/// `TC_ACT_OK`, also `TCX_PASS`: the packet goes on, and no further program of the hook runs.
const TC_OK: i32 = 0;
/// `TC_ACT_SHOT`.
const TC_SHOT: i32 = 2;
/// `TC_ACT_UNSPEC`, also `TCX_NEXT`.
const TC_NEXT: i32 = -1;
const XDP_PASS: i32 = 2;

impl Foreign {
    /// A TC program that lets everything pass and ends the hook's chain there: `TC_ACT_OK`.
    pub fn tc_ok(name: &str) -> io::Result<Self> {
        Self::new(Kind::Tc, name, |code| code.answer(TC_OK))
    }

    /// A TC program that drops TCP, whatever it says, and lets all else pass.
    pub fn tc_drops_tcp(name: &str) -> io::Result<Self> {
        Self::new(Kind::Tc, name, |code| code.unless_tcp(TC_NEXT).answer(TC_SHOT))
    }

    /// A TC program that sends TCP past the host's end of a veth, straight into the pod behind
    /// it, as network plugins do: addressed as the host's end would have addressed it, then
    /// `bpf_redirect_peer`.
    pub fn tc_into_peer(name: &str, node: &Namespace, pod: &Host) -> io::Result<Self> {
        let end = link_index(node, &pod.node_interface()).map_err(io::Error::other)?;
        let mut header = [0; 12];
        header[..6].copy_from_slice(&pod.mac());
        header[6..].copy_from_slice(&pod.node_mac());
        Self::new(Kind::Tc, name, |code| {
            code.unless_tcp(TC_NEXT).store_at_start(header).redirect_peer(end)
        })
    }

    /// An XDP program that lets everything pass.
    pub fn xdp_pass(name: &str) -> io::Result<Self> {
        Self::new(Kind::Xdp, name, |code| code.answer(XDP_PASS))
    }

    fn new(kind: Kind, name: &str, code: impl FnOnce(Code) -> Code) -> io::Result<Self> {
        let attributes = Attributes::default()
            .word(0, 2) // an array
            .word(4, 4)
            .word(8, 8)
            .word(12, 1);
        // SAFETY: no pointers.
        let seen = unsafe { bpf_fd(command::MAP_CREATE, attributes) }?;
        let code = code(Code::default().count_in(&seen)).0;
        let licence = c"GPL";
        let (program, attach) = match kind {
            Kind::Tc => (3, 0),
            Kind::Xdp => (6, 37),
        };
        let attributes = Attributes::default()
            .word(0, program)
            .word(4, code.len() as u32)
            .pointer(8, code.as_ptr())
            .pointer(16, licence.as_ptr())
            .name(48, name)
            .word(68, attach);
        // SAFETY: the instructions are as many as said, the licence is terminated, and both live
        // until the call is over.
        let program = unsafe { bpf_fd(command::PROG_LOAD, attributes) }?;
        Ok(Self { program, seen })
    }

    /// How many packets it has met.
    pub fn seen(&self) -> u64 {
        let (key, mut value) = (0u32, 0u64);
        let mut attributes = Attributes::default()
            .word(0, self.seen.as_raw_fd() as u32)
            .pointer(8, &raw const key)
            .pointer(16, &raw mut value);
        // SAFETY: key and value have the sizes that the map was made with.
        unsafe { bpf(command::MAP_LOOKUP, &mut attributes) }.expect("read a counter");
        value
    }

    /// Its number in this kernel.
    pub fn id(&self) -> u32 {
        info(self.program.as_raw_fd()).expect("ask for a program's number")[1]
    }

    /// Attaches a TC program by TCX (since 6.6).
    pub fn attach(
        &self,
        namespace: &Namespace,
        interface: &str,
        hook: Hook,
        place: Place,
    ) -> io::Result<Link> {
        let flags = match place {
            Place::First => 1 << 3,
            Place::Last => 1 << 4,
        };
        self.link(namespace, interface, hook.attach_type(), flags)
    }

    /// Attaches an XDP program in the driver.
    pub fn attach_xdp(&self, namespace: &Namespace, interface: &str) -> io::Result<Link> {
        self.link(namespace, interface, 37, 1 << 2)
    }

    fn link(
        &self,
        namespace: &Namespace,
        interface: &str,
        attach_type: u32,
        flags: u32,
    ) -> io::Result<Link> {
        let index = link_index(namespace, interface).map_err(io::Error::other)?;
        let attributes = Attributes::default()
            .word(0, self.program.as_raw_fd() as u32)
            .word(4, index)
            .word(8, attach_type)
            .word(12, flags);
        // The index is looked up in the caller's namespace.
        // SAFETY: no pointers.
        let link = namespace.run(|| unsafe { bpf_fd(command::LINK_CREATE, attributes) });
        link.map_err(io::Error::other)?.map(Link)
    }

    /// Pins it, for tools that take a program by its path.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.program, path)
    }
}

/// Makes a map of somebody else's, and pins it.
pub fn pin_map(name: &str, path: &Path) -> io::Result<()> {
    // A hash of one entry: only that it is there matters.
    let attributes =
        Attributes::default().word(0, 1).word(4, 8).word(8, 8).word(12, 1).name(28, name);
    // SAFETY: no pointers.
    let map = unsafe { bpf_fd(command::MAP_CREATE, attributes) }?;
    pin(&map, path)
}

fn pin(what: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        Attributes::default().pointer(0, path.as_ptr()).word(8, what.as_raw_fd() as u32);
    // SAFETY: the path is terminated and lives until the call is over.
    unsafe { bpf(command::OBJ_PIN, &mut attributes) }.map(drop)
}

/// The numbers of the programs at a TCX hook, first to run first.
pub fn programs_at(namespace: &Namespace, interface: &str, hook: Hook) -> io::Result<Vec<u32>> {
    let index = link_index(namespace, interface).map_err(io::Error::other)?;
    let mut ids = [0u32; 64];
    let ids_at = ids.as_mut_ptr() as usize;
    let attributes = Attributes::default()
        .word(0, index)
        .word(4, hook.attach_type())
        .long(16, ids_at as u64)
        .word(24, ids.len() as u32);
    let answer = namespace.run(move || {
        let mut attributes = attributes;
        // SAFETY: the array outlives the call and has as many places as said.
        unsafe { bpf(command::PROG_QUERY, &mut attributes) }.map(|_| attributes)
    });
    let count = answer.map_err(io::Error::other)??.0[3] as u32;
    Ok(ids[..count as usize].to_vec())
}

/// What is behind a pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The link's number: it stays when its program is replaced.
    pub link: u32,
    /// The number of its program.
    pub program: u32,
    /// The interface it is attached to; 0 when that is gone.
    pub interface: u32,
}

/// Looks at a pinned link.
pub fn pinned_link(path: &Path) -> io::Result<Pinned> {
    let link = open_pin(path)?;
    let words = info(link.as_raw_fd())?;
    Ok(Pinned { link: words[1], program: words[2], interface: words[4] })
}

/// The number of a pinned map.
pub fn pinned_map(path: &Path) -> io::Result<u32> {
    Ok(info(open_pin(path)?.as_raw_fd())?[1])
}

/// The bytes of kernel memory that a pinned map takes.
pub fn map_memory(path: &Path) -> io::Result<u64> {
    let map = open_pin(path)?;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = line.and_then(|bytes| bytes.trim().parse().ok());
    bytes.ok_or_else(|| io::Error::other(format!("no memlock in {text:?}")))
}

/// What the kernel still holds under this number.
pub fn exists(what: Object) -> bool {
    let (command, id) = match what {
        Object::Program(id) => (command::PROG_GET_FD_BY_ID, id),
        Object::Map(id) => (command::MAP_GET_FD_BY_ID, id),
        Object::Link(id) => (command::LINK_GET_FD_BY_ID, id),
    };
    // SAFETY: no pointers.
    match unsafe { bpf_fd(command, Attributes::default().word(0, id)) } {
        Ok(_) => true,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => false,
        Err(error) => panic!("cannot look for {what:?}: {error}"),
    }
}

/// Something of BPF, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A program.
    Program(u32),
    /// A map.
    Map(u32),
    /// A link.
    Link(u32),
}

/// Everything of BPF that a process has open.
pub fn objects_of(process: u32) -> io::Result<Vec<Object>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let Ok(text) = std::fs::read_to_string(entry?.path()) else { continue };
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|value| value.trim().parse().ok())
        };
        // A link's text names its program too.
        if let Some(link) = number("link_id:") {
            found.push(Object::Link(link));
        }
        if let Some(map) = number("map_id:") {
            found.push(Object::Map(map));
        }
        if let Some(program) = number("prog_id:") {
            found.push(Object::Program(program));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes::default().pointer(0, path.as_ptr());
    // SAFETY: the path is terminated and lives until the call is over.
    unsafe { bpf_fd(command::OBJ_GET, attributes) }
}

/// The first words of what the kernel tells of an object: its type, its number, ...
fn info(object: RawFd) -> io::Result<[u32; 8]> {
    let mut words = [0u32; 8];
    let mut attributes = Attributes::default()
        .word(0, object as u32)
        .word(4, size_of_val(&words) as u32)
        .pointer(8, words.as_mut_ptr());
    // SAFETY: the buffer is as long as said.
    unsafe { bpf(command::OBJ_GET_INFO, &mut attributes) }?;
    Ok(words)
}

/// Instructions, one after the other.
#[derive(Default)]
struct Code(Vec<u64>);

/// The registers that these programs use: the context stays in 6, where the loads from the
/// packet (`BPF_LD | BPF_ABS`) expect it.
const CONTEXT: u8 = 6;

impl Code {
    fn push(mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) -> Self {
        // struct bpf_insn, the first register in the lower half of its byte.
        let [offset_low, offset_high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        let bytes = [code, from << 4 | to, offset_low, offset_high, a, b, c, d];
        self.0.push(u64::from_le_bytes(bytes));
        self
    }

    /// Adds one to the only value of `map`.
    fn count_in(self, map: &OwnedFd) -> Self {
        self.push(0xbf, CONTEXT, 1, 0, 0) // r6 = r1
            .push(0x18, 1, 2, 0, map.as_raw_fd()) // r1 = the map's value (BPF_PSEUDO_MAP_VALUE)
            .push(0, 0, 0, 0, 0)
            .push(0xb7, 2, 0, 0, 1) // r2 = 1
            .push(0xdb, 1, 2, 0, 0) // *(u64 *)r1 += r2, atomically
    }

    /// Ends with this code for what is not TCP directly in IPv4 or IPv6, untagged.
    fn unless_tcp(self, code: i32) -> Self {
        const ETHER_TYPE: i32 = 12;
        const IPV4_PROTOCOL: i32 = 23;
        const IPV6_NEXT: i32 = 20;
        self.push(0x28, 0, 0, 0, ETHER_TYPE) // r0 = the packet's half-word there
            .push(0x15, 0, 0, 3, 0x0800) // IPv4: to its protocol
            .push(0x55, 0, 0, 4, 0x86dd) // not IPv6: to the end
            .push(0x30, 0, 0, 0, IPV6_NEXT)
            .push(0x05, 0, 0, 1, 0)
            .push(0x30, 0, 0, 0, IPV4_PROTOCOL)
            .push(0x15, 0, 0, 2, 6) // TCP: past the end
            .answer(code)
    }

    fn answer(self, code: i32) -> Self {
        self.push(0xb7, 0, 0, 0, code).push(0x95, 0, 0, 0, 0)
    }

    /// Overwrites the packet's first bytes.
    fn store_at_start(mut self, bytes: [u8; 12]) -> Self {
        for (place, word) in bytes.chunks(4).enumerate() {
            let word = i32::from_le_bytes(word.try_into().expect("4 bytes"));
            self = self.push(0x62, 10, 0, 4 * place as i16 - 12, word); // *(u32 *)(r10 - ..) = ..
        }
        self.push(0xbf, 1, CONTEXT, 0, 0)
            .push(0xb7, 2, 0, 0, 0)
            .push(0xbf, 3, 10, 0, 0)
            .push(0x07, 3, 0, 0, -12) // r3 = r10 - 12
            .push(0xb7, 4, 0, 0, 12)
            .push(0xb7, 5, 0, 0, 0)
            .push(0x85, 0, 0, 0, 9) // bpf_skb_store_bytes
    }

    /// Ends with `bpf_redirect_peer`.
    fn redirect_peer(self, interface: u32) -> Self {
        self.push(0xb7, 1, 0, 0, interface as i32)
            .push(0xb7, 2, 0, 0, 0)
            .push(0x85, 0, 0, 0, 155)
            .push(0x95, 0, 0, 0, 0)
    }
}
