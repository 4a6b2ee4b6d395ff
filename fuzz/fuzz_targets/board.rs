//! A guest that writes and reads ports, device windows and model-specific registers, and asks for DMA, as the input says:
//! steps of ten bytes, which become a program for a machine of their own.
#![no_main]

use devices::Sink;
use fuzz::Running;
use libfuzzer_sys::fuzz_target;
use machine::{BoardKind, DebugConsole, RunState, Serial};
use std::time::{Duration, Instant};

/// How long a guest may take; it has some thousand instructions.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to look whether a guest that has not ended ever will.
const ROUND: Duration = Duration::from_millis(1);
/// After how many instructions a guest has left its program.
const RUNAWAY: u64 = 20_000;
/// The most steps.
const STEPS: usize = 400;
/// Where devices' registers are in memory.
const WINDOWS: [u32; 8] =
    [0xfee0_0000, 0xfec0_0000, 0xfed0_0000, 0xff00_0000, 0xa_0000, 0xffff_f000, 0x3f_f000, 0xe000_0000];
/// Known ports, of which the next seven belong to the same device.
const PORTS: [u16; 16] =
    [0x20, 0xa0, 0x40, 0x60, 0x70, 0x92, 0xb2, 0x3f8, 0x402, 0x4d0, 0x510, 0x600, 0x608, 0xcf8, 0xe0, 0xe8];
/// Where fw_cfg finds its requests.
const REQUEST: u32 = 0x28_0000;

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

/// `mov eax, value`.
fn eax(code: &mut Vec<u8>, value: u32) {
    code.push(0xb8);
    code.extend(value.to_le_bytes());
}

/// `mov dword [at], value`.
fn store(code: &mut Vec<u8>, at: u32, value: u32) {
    code.extend([0xc7, 0x05]);
    code.extend(at.to_le_bytes());
    code.extend(value.to_le_bytes());
}

/// `out dx, eax` of `size` bytes (as a power of two), or `in`.
fn port(code: &mut Vec<u8>, number: u16, size: u8, write: bool) {
    code.extend([0x66, 0xba]);
    code.extend(number.to_le_bytes());
    let opcode = if write { 0xee } else { 0xec };
    match size {
        0 => code.push(opcode),
        1 => code.extend([0x66, opcode + 1]),
        _ => code.push(opcode + 1),
    }
}

/// Appends the instructions of one step: what, how large, where (16 bits), a value (32 bits), where else (16 bits).
fn step(code: &mut Vec<u8>, [what, size, a, b, v @ .., c, d]: [u8; 10]) {
    let (place, value, other) = (u16::from_le_bytes([a, b]), u32::from_le_bytes(v), u16::from_le_bytes([c, d]));
    let size = size % 3;
    let known = PORTS[usize::from(a & 15)] + u16::from(b & 7);
    let address = WINDOWS[usize::from(other & 7)] + u32::from(place & 0xff0) + u32::from(other >> 12 & 3);
    match what % 8 {
        0 => {
            eax(code, value);
            port(code, known, size, true);
        }
        1 => port(code, known, size, false),
        // But for the port that ends the guest.
        2 if place.wrapping_sub(0xf1) >= 8 => {
            eax(code, value);
            port(code, place, size, true);
        }
        3 => port(code, place, size, false),
        4 => store(code, address, value),
        // mov al, [address]; mov ax, …; mov eax, …
        5 => {
            code.extend(match size {
                0 => &[0xa0][..],
                1 => &[0x66, 0xa1],
                _ => &[0xa1],
            });
            code.extend(address.to_le_bytes());
        }
        // rdmsr, wrmsr
        6 => {
            let number =
                [0x1b, 0x10, 0x3b, 0x6e0, 0x800 + u32::from(place & 0xff)][usize::from(size) + usize::from(d & 2)];
            code.push(0xb9);
            code.extend(number.to_le_bytes());
            eax(code, value);
            code.push(0xba);
            code.extend(u32::from(other).to_le_bytes());
            code.extend([0x0f, if c & 1 == 0 { 0x32 } else { 0x30 }]);
        }
        // A request of fw_cfg's, its words big-endian: control, length, address.
        7 => {
            let control = u32::from(place) << 16 | u32::from(d & 31);
            for (n, word) in [control, u32::from(other), 0, value].into_iter().enumerate() {
                store(code, REQUEST + 4 * n as u32, word.swap_bytes());
            }
            eax(code, REQUEST.swap_bytes());
            port(code, 0x518, 2, true);
        }
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, steps)) = data.split_first() else { return };
    let mut code = Vec::new();
    steps.as_chunks().0.iter().take(STEPS).for_each(|bytes| step(&mut code, *bytes));
    eax(&mut code, 0);
    port(&mut code, 0xf4, 2, true);
    // hlt; jmp to it
    code.extend([0xf4, 0xeb, 0xfd]);
    let guest = Running::new(&code, false, |config| {
        config.board = if kind & 1 == 0 { BoardKind::Pc } else { BoardKind::Q35 };
        config.hpet = kind & 2 == 0;
        config.cpus = if kind & 4 == 0 { 1 } else { 2 };
        config.pc_testdev = true;
        config.serials = (0..4).map(|_| Serial::Port(Box::new(Nowhere))).collect();
        config.debugcon = Some(DebugConsole { iobase: 0x402, sink: Box::new(Nowhere) });
        config.fw_cfg = vec![("opt/test".into(), vec![1, 2, 3])];
    });
    let guest = guest.expect("the machine is made");
    let start = Instant::now();
    // It may stand still (S3, a halt), or leave its program (INIT and SIPI) and run through all of memory: neither is a hang
    // of the host's.
    while !guest.wait(ROUND) {
        assert!(start.elapsed() < PATIENCE, "the guest does not end");
        let gone = guest.handle.inspect(0, |vcpu| vcpu.cpu.sleeps() || vcpu.cpu.instructions > RUNAWAY);
        if gone.unwrap_or(true) || guest.handle.run_state() != RunState::Running {
            break;
        }
    }
});
