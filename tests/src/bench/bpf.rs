//! Programs of a few instructions, written down as such, and the system calls to run them.
//!
//! The peers of a bench must not be made by the compiler that makes what is measured: an empty
//! program here is two instructions. The only unsafe code of the benches is in this file.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
    time::Duration,
};

/// linux/bpf.h: commands of bpf(2).
const MAP_CREATE: i64 = 0;
const MAP_UPDATE_ELEM: i64 = 2;
const PROG_LOAD: i64 = 5;
const PROG_TEST_RUN: i64 = 10;
const OBJ_GET_INFO: i64 = 15;
const LINK_CREATE: i64 = 28;
const ENABLE_STATS: i64 = 32;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PROG_ARRAY: u32 = 3;

/// `BPF_F_TEST_XDP_LIVE_FRAMES` (since 5.18).
const LIVE_FRAMES: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const XDP_NATIVE: u32 = 1 << 2;

/// Where a program of a bench runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Tc,
    Xdp,
}

/// `TCX_NEXT`, also `TC_ACT_UNSPEC`.
pub(crate) const TC_NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const TC_SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const TC_REDIRECT: i32 = 7;
/// `XDP_DROP`.
pub(crate) const XDP_DROP: i32 = 1;
/// `XDP_PASS`.
pub(crate) const XDP_PASS: i32 = 2;
/// `XDP_TX`.
pub(crate) const XDP_TX: i32 = 3;

impl Kind {
    const fn program_type(self) -> u32 {
        match self {
            Self::Tc => 3,
            Self::Xdp => 6,
        }
    }

    /// `BPF_XDP`; TC programs load without one.
    const fn attach_type(self) -> u32 {
        match self {
            Self::Tc => 0,
            Self::Xdp => 37,
        }
    }

    /// Offsets of `data` and `data_end` in `__sk_buff` and `xdp_md`.
    pub(crate) const fn bounds(self) -> (i16, i16) {
        match self {
            Self::Tc => (76, 80),
            Self::Xdp => (0, 4),
        }
    }

    /// The code that lets a packet pass.
    pub(crate) const fn pass(self) -> i32 {
        match self {
            Self::Tc => TC_NEXT,
            Self::Xdp => XDP_PASS,
        }
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// XDP in the driver.
    Xdp,
    /// TCX, packets that enter the interface.
    TcIngress,
    /// TCX, packets that leave it.
    TcEgress,
}

/// One instruction (linux/bpf.h: `struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// A register, 0 to 10.
pub(crate) type Register = u8;

const fn insn(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: to | from << 4, offset, immediate }
}

/// Sizes of memory accesses.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    Half,
    Word,
    Double,
}

impl Size {
    const fn bits(self) -> u8 {
        match self {
            Self::Half => 0x08,
            Self::Word => 0x00,
            Self::Double => 0x18,
        }
    }
}

/// 64-bit arithmetic with a constant.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x07,
    Or = 0x47,
    And = 0x57,
    ShiftRight = 0x77,
    Xor = 0xa7,
}

/// A program being written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Code(Vec<Insn>);

impl Code {
    pub(crate) fn set(&mut self, to: Register, value: i32) {
        self.0.push(insn(0xb7, to, 0, 0, value));
    }

    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.0.push(insn(0xbf, to, from, 0, 0));
    }

    pub(crate) fn math(&mut self, op: Op, to: Register, value: i32) {
        self.0.push(insn(op as u8, to, 0, 0, value));
    }

    /// `to = [from + offset]`
    pub(crate) fn load(&mut self, size: Size, to: Register, from: Register, offset: i16) {
        self.0.push(insn(0x61 | size.bits(), to, from, offset, 0));
    }

    /// `[to + offset] = from`
    pub(crate) fn store(&mut self, size: Size, to: Register, offset: i16, from: Register) {
        self.0.push(insn(0x63 | size.bits(), to, from, offset, 0));
    }

    /// `[to + offset] = value`
    pub(crate) fn store_value(&mut self, size: Size, to: Register, offset: i16, value: i32) {
        self.0.push(insn(0x62 | size.bits(), to, 0, offset, value));
    }

    /// Returns `code` if `one > other`.
    pub(crate) fn return_if_greater(&mut self, one: Register, other: Register, code: i32) {
        // JLE over the two instructions of the return.
        self.0.push(insn(0xbd, one, other, 2, 0));
        self.ret(code);
    }

    /// `to` = a map, as helpers take it.
    pub(crate) fn map(&mut self, to: Register, map: &OwnedFd) {
        self.0.push(insn(0x18, to, 1, 0, map.as_raw_fd()));
        self.0.push(insn(0, 0, 0, 0, 0));
    }

    /// `to` = the address of an array's first value.
    pub(crate) fn value(&mut self, to: Register, map: &OwnedFd) {
        self.0.push(insn(0x18, to, 2, 0, map.as_raw_fd()));
        self.0.push(insn(0, 0, 0, 0, 0));
    }

    /// The two lower bytes in network byte order, and no others.
    pub(crate) fn in_network_order(&mut self, register: Register) {
        self.0.push(insn(0xdc, register, 0, 0, 16));
    }

    pub(crate) fn call(&mut self, helper: i32) {
        self.0.push(insn(0x85, 0, 0, 0, helper));
    }

    pub(crate) fn exit(&mut self) {
        self.0.push(insn(0x95, 0, 0, 0, 0));
    }

    pub(crate) fn ret(&mut self, code: i32) {
        self.set(0, code);
        self.exit();
    }
}

/// A loaded program.
#[derive(Debug)]
pub(crate) struct Program(OwnedFd);

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The program that does nothing but return this.
pub(crate) fn returning(kind: Kind, code: i32) -> io::Result<Program> {
    let mut program = Code::default();
    program.ret(code);
    load(kind, &program)
}

/// Loads a program.
pub(crate) fn load(kind: Kind, code: &Code) -> io::Result<Program> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        instructions: u32,
        code: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach_type: u32,
    }
    let mut log = vec![0u8; 16 * 1024];
    let mut attr = Attr {
        kind: kind.program_type(),
        instructions: code.0.len() as u32,
        code: code.0.as_ptr() as u64,
        licence: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: *b"weir_bench\0\0\0\0\0\0",
        ifindex: 0,
        attach_type: kind.attach_type(),
    };
    let loaded = descriptor(PROG_LOAD, &mut attr);
    loaded.map(Program).map_err(|error| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        let log = String::from_utf8_lossy(&log[..end]);
        io::Error::new(error.kind(), format!("{error}: {}", log.trim()))
    })
}

/// A number that a program counts up.
pub(crate) fn counter() -> io::Result<OwnedFd> {
    create_map(MAP_TYPE_ARRAY, 8)
}

/// A map that lets a program go on as this one.
pub(crate) fn jump_to(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        map: u32,
        _pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let map = create_map(MAP_TYPE_PROG_ARRAY, 4)?;
    let (key, value) = (0u32, program.as_raw_fd());
    let mut attr = Attr {
        map: map.as_raw_fd() as u32,
        _pad: 0,
        key: ptr::from_ref(&key) as u64,
        value: ptr::from_ref(&value) as u64,
        flags: 0,
    };
    call(MAP_UPDATE_ELEM, &mut attr)?;
    Ok(map)
}

fn create_map(kind: u32, value_size: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
        flags: u32,
    }
    descriptor(MAP_CREATE, &mut Attr { kind, key_size: 4, value_size, entries: 1, flags: 0 })
}

/// What a test run says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ran {
    /// The last run's code.
    pub(crate) code: i32,
    /// The mean of all runs.
    pub(crate) each: Duration,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    code: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    _pad: u32,
}

/// Runs a program so many times on one packet, which keeps what a run wrote into it.
pub(crate) fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut attr = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    call(PROG_TEST_RUN, &mut attr)?;
    Ok(Ran { code: attr.code.cast_signed(), each: Duration::from_nanos(attr.duration.into()) })
}

/// Runs an XDP program on so many real frames, and does with each of them what it returns.
pub(crate) fn live_frames(program: BorrowedFd<'_>, packet: &[u8], frames: u32) -> io::Result<()> {
    let mut attr = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: packet.len() as u32,
        data_in: packet.as_ptr() as u64,
        repeat: frames,
        flags: LIVE_FRAMES,
        batch: 64,
        ..TestRun::default()
    };
    call(PROG_TEST_RUN, &mut attr)
}

/// Attaches a program to an interface of this thread's namespace, until the link is dropped.
pub(crate) fn attach(program: &Program, hook: Hook, ifindex: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        _pad: u32,
        revision: u64,
    }
    let (attach_type, flags) = match hook {
        Hook::Xdp => (37, XDP_NATIVE),
        Hook::TcIngress => (46, 0),
        Hook::TcEgress => (47, 0),
    };
    let program = program.0.as_raw_fd() as u32;
    let mut attr = Attr { program, ifindex, attach_type, flags, relative: 0, _pad: 0, revision: 0 };
    descriptor(LINK_CREATE, &mut attr)
}

/// Makes the kernel time every run of every program, until this is dropped (since 5.8).
pub(crate) fn time_all_programs() -> io::Result<OwnedFd> {
    // `BPF_STATS_RUN_TIME`
    descriptor(ENABLE_STATS, &mut 0u32)
}

/// How often a program ran while all were timed, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) time: Duration,
}

/// What the kernel has timed of a program.
pub(crate) fn runs(program: BorrowedFd<'_>) -> io::Result<Runs> {
    /// linux/bpf.h: `struct bpf_prog_info`, up to what is read of it.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        _before: [u64; 24],
        run_time_ns: u64,
        run_count: u64,
    }
    #[repr(C)]
    struct Attr {
        program: u32,
        length: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        info: ptr::from_mut(&mut info) as u64,
    };
    call(OBJ_GET_INFO, &mut attr)?;
    Ok(Runs { count: info.run_count, time: Duration::from_nanos(info.run_time_ns) })
}

/// Memory of an array map with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(crate) struct Mapped {
    start: ptr::NonNull<libc::c_void>,
    bytes: usize,
}

impl Mapped {
    pub(crate) fn new(map: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing of ours.
        let start = unsafe {
            libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = ptr::NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    /// Fills it with zeros. Nobody else may be using the map.
    pub(crate) fn clear(&mut self) {
        // SAFETY: the mapping is ours, writable and of this length; no reference to it exists.
        unsafe { ptr::write_bytes(self.start.as_ptr().cast::<u8>(), 0, self.bytes) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping made by `new`, of the same length, which nobody refers to any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.bytes) };
    }
}

fn descriptor<T>(command: i64, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call<T>(command: i64, attr: &mut T) -> io::Result<()> {
    bpf(command, attr).map(drop)
}

fn bpf<T>(command: i64, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is the command's part of `union bpf_attr`, of which the kernel takes the rest
    // for zero; every address in it belongs to something that lives during the call and is as long
    // as the attribute says.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<T>()) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}
