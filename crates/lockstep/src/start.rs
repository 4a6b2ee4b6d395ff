//! The state in which a case begins.

use crate::layout::{CODE, PAGE, USER_STACK, World, spot};
use crate::mode::{GDT_LEN, Mode};
use crate::random::Random;
use cpu::state::{RCX, RDI, RSI, RSP};
use host::vector::{MXCSR_DEFAULT, MXCSR_MISALIGNED, VectorState};
use x86::Rflags;

/// Registers and what surrounds them before the first instruction.
#[derive(Clone, Debug)]
pub struct Start {
    /// Of the processor.
    pub mode: Mode,
    /// 0 or 3.
    pub cpl: u8,
    /// Whose page tables.
    pub world: World,
    /// RAX … R15.
    pub gpr: [u64; 16],
    /// RFLAGS, but for VM.
    pub flags: u64,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// Vector, MMX and x87 registers.
    pub vector: Box<VectorState>,
    /// Bits of CR0 that differ from the usual.
    pub cr0: u64,
    /// Bits of CR4 that differ from the usual.
    pub cr4: u64,
    /// PKRU.
    pub pkru: u32,
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    /// Which of them are armed, and how: bits of DR7.
    pub armed: u64,
    /// Pages of the case, by their number, whose accessed and dirty bits are clear; the TLB is then cold.
    pub cold: u32,
    /// How many interrupts wait, one behind the other, that come at any time and leave no trace.
    pub storm: u32,
    /// After how many instructions each of the interrupts is asked for that are logged like exceptions. If there are any,
    /// the case's instructions are counted.
    pub interrupts: Vec<u64>,
}

/// Bits of DR7 that arm breakpoints and say for what, but for those of I/O.
const DR7_ARMS: u64 = 0xdddd_00ff;
/// CR0.TS.
const TASK_SWITCHED: u64 = 1 << 3;
/// CR0.WP and CR0.AM.
const PROTECTION: [u64; 2] = [1 << 16, 1 << 18];
/// CR4.OSXMMEXCPT, FSGSBASE, SMEP, SMAP, UMIP.
const CR4_CHOICES: [u64; 5] = [1 << 10, 1 << 16, 1 << 20, 1 << 21, 1 << 11];

/// What the registers hold at the start, as sets of register numbers: for those who form addresses from them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles {
    /// Registers that point to something.
    pub pointers: u16,
    /// Registers with small numbers.
    pub small: u16,
}

impl Start {
    /// The plainest: zeros, exceptions masked, CPL 0, a stack.
    #[must_use]
    pub fn plain(mode: Mode) -> Self {
        let mut vector = VectorState::new();
        vector.init_x87();
        let mut gpr = [0; 16];
        gpr[RSP] = mode.reach(USER_STACK + 0x1800).1;
        let cpl = mode.levels()[0];
        Self {
            mode,
            cpl,
            world: if cpl == 0 { World::Kernel } else { World::User },
            gpr,
            flags: 2,
            bases: [0; 2],
            vector: Box::new(vector),
            cr0: 0,
            cr4: 0,
            pkru: 0,
            breakpoints: [0; 4],
            armed: 0,
            cold: 0,
            storm: 0,
            interrupts: Vec::new(),
        }
    }

    /// A random one.
    #[must_use]
    pub fn random(random: &mut Random, mode: Mode) -> (Self, Roles) {
        let mut start = Self::plain(mode);
        let roles = start.general(random);
        start.cpl = random.pick(mode.levels());
        start.world = if start.cpl == 3 || random.one_in(8) { World::User } else { World::Kernel };
        start.flags = 2 | random.bits() & (Rflags::STATUS | 0x200);
        for (bit, one_in) in [(1 << 10, 8), (1 << 18, 8), (1 << 21, 8), (1 << 14, 32), (1 << 8, 64), (1 << 16, 64)] {
            if random.one_in(one_in) {
                start.flags |= bit;
            }
        }
        if random.one_in(8) {
            start.flags |= 0x3000;
        }
        start.bases = [spot(random), spot(random)].map(|base| match mode.bits() {
            64 => base,
            _ if mode.is_8086() => mode.linear(base) & 0xf_fff0,
            32 => base & 0xffff_ffff,
            _ => base & 0xffff_fff0,
        });
        start.vectors(random);
        start.x87(random);
        if random.one_in(16) {
            start.cr0 = random.pick(&PROTECTION);
        }
        if random.one_in(16) {
            start.cr0 |= TASK_SWITCHED;
        }
        if random.one_in(8) {
            start.cr4 = random.pick(&CR4_CHOICES) | random.pick(&CR4_CHOICES);
        }
        if random.one_in(8) {
            start.pkru = random.bits() as u32 & 0xf;
        }
        if random.one_in(32) {
            start.breakpoints = [(); 4].map(|()| breakpoint(random, mode));
            start.armed = random.bits() & DR7_ARMS;
        }
        if random.one_in(8) {
            start.cold = random.bits() as u32;
        }
        // Elsewhere they would be seen on the case's own stack.
        if random.one_in(8) && (mode.is_long() || start.cpl == 3) {
            start.storm = random.below(40) as u32;
        }
        if random.one_in(4) {
            let most = random.below(12);
            start.interrupts = (0..=random.below(8)).map(|_| random.below(1 << most)).collect();
        }
        (start, roles)
    }

    fn general(&mut self, random: &mut Random) -> Roles {
        let registers = if self.mode == Mode::Long { 16 } else { 8 };
        let mut roles = Roles::default();
        for n in (0..registers).filter(|&n| n != RSP) {
            let kind = if matches!(n, RSI | RDI) { random.below(7) } else { random.below(16) };
            let (value, role) = match kind {
                0..7 => (self.mode.reach(spot(random)).1, &mut roles.pointers),
                7..10 => (random.between(-8, 24).cast_unsigned(), &mut roles.small),
                10 => ((8 * random.below(u64::from(GDT_LEN) / 8)) | random.below(4), &mut roles.small),
                _ => (random.value(), &mut Roles::default().small),
            };
            *role |= 1 << n;
            self.gpr[n] = value;
        }
        // Counts of repetitions and shifts.
        if !random.one_in(4) {
            self.gpr[RCX] = random.below(70);
            roles.pointers &= !(1 << RCX);
            roles.small |= 1 << RCX;
        }
        let stack = match random.below(16) {
            0 => spot(random),
            1 => USER_STACK + random.below(32),
            2 => USER_STACK + 0x2000 - random.below(64),
            3 => USER_STACK + 0x1000 + random.below(64),
            _ => USER_STACK + 0x1000 + random.below(64) * 8,
        };
        self.gpr[RSP] = self.mode.reach(stack).1;
        roles
    }

    fn vectors(&mut self, random: &mut Random) {
        let style = random.below(6);
        for (n, register) in self.vector.ymm.iter_mut().enumerate() {
            for lane in register.iter_mut() {
                *lane = match if n & 3 == 3 { 0 } else { style } {
                    // Indices for gathers.
                    0 => random.below(256) << 32 | random.below(256),
                    1 => random.bits(),
                    2 => u64::from(single(random)) << 32 | u64::from(single(random)),
                    3 => double(random),
                    4 => random.value(),
                    _ => {
                        if random.one_in(2) {
                            double(random)
                        } else {
                            u64::from(single(random)) << 32 | u64::from(single(random))
                        }
                    }
                };
            }
        }
        self.vector.mxcsr = match random.below(4) {
            // Flags, DAZ, rounding, FTZ: anything goes.
            0 => random.bits() as u32 & 0xffff,
            1 => random.bits() as u32 & 0xffff | MXCSR_DEFAULT,
            _ => MXCSR_DEFAULT,
        };
        if random.one_in(16) && host::vector::mxcsr_mask() & MXCSR_MISALIGNED != 0 {
            self.vector.mxcsr |= MXCSR_MISALIGNED;
        }
    }

    fn x87(&mut self, random: &mut Random) {
        let vector = &mut self.vector;
        if random.one_in(2) {
            vector.set_fcw(match random.below(4) {
                0 => random.bits() as u16 & 0x1f3f | 0x40,
                _ => random.bits() as u16 & 0x0f00 | 0x7f,
            });
            vector.set_ftw(random.bits() as u8);
            vector.set_fsw(random.bits() as u16 & if random.one_in(4) { 0x7f7f } else { 0x7f00 });
            vector.set_x87_pointers((random.bits() as u16 & 0x7ff, CODE_POINTER, CODE_POINTER + 8));
        }
        for i in 0..8 {
            let value = extended(random);
            vector.set_st(i, &value);
        }
        vector.update_x87_summary();
    }
}

/// A place to break at: in the code or where the data is.
pub fn breakpoint(random: &mut Random, mode: Mode) -> u64 {
    let place = if random.one_in(2) { CODE + random.below(PAGE) } else { spot(random) };
    mode.linear(place)
}

/// Something for the x87's last-instruction pointer to hold.
const CODE_POINTER: u64 = CODE;

/// A single-precision number, often a special one.
fn single(random: &mut Random) -> u32 {
    let special = [0, 0x3f80_0000, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001, 1, 0x007f_ffff, 0x7f7f_ffff, 0x4f00_0000];
    let sign = (random.bits() as u32) << 31;
    match random.below(4) {
        0 => sign | random.pick(&special),
        1 => random.bits() as u32,
        _ => sign | (0x3e00_0000 + (random.bits() as u32 & 0x03ff_ffff)),
    }
}

/// A double-precision number, often a special one.
fn double(random: &mut Random) -> u64 {
    let special = [0, 1023 << 52, 2047 << 52, 0xfff8 << 47, 2047 << 52 | 1, 1, (1 << 52) - 1, (2047 << 52) - 1];
    let sign = random.bits() << 63;
    match random.below(4) {
        0 => sign | random.pick(&special),
        1 => random.bits(),
        _ => sign | 0x3fc0 << 48 | random.bits() & 0x007f_ffff_ffff_ffff,
    }
}

/// An 80-bit number, often a special one: also the encodings that no calculation gives.
fn extended(random: &mut Random) -> [u8; 10] {
    let (exponent, fraction) = match random.below(8) {
        0 => (random.pick(&[0u16, 1, 0x3fff, 0x7ffe, 0x7fff]), random.pick(&[0u64, 1, 1 << 63, 3 << 62, u64::MAX])),
        1 => (random.bits() as u16, random.bits()),
        _ => (0x3ff8 + random.below(16) as u16, random.bits() | 1 << 63),
    };
    let sign = (random.bits() as u16) << 15;
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&fraction.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}
