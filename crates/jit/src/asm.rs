//! Emits the host instructions that surround a guest's: bytes, labels, and the few encodings that the translator needs.
//!
//! Encodings are those of APM vol. 3, 1.2 to 1.7. Guest instructions themselves are encoded by `iced-x86` into the
//! same bytes. Code is assembled for a known place in the code buffer, so that jumps to what is already there can be
//! made at once.

use iced_x86::{Encoder, IcedError, Instruction};

/// A host general register by its encoding.
pub type Reg = u8;

/// RAX.
pub const RAX: Reg = 0;
/// RCX.
pub const RCX: Reg = 1;
/// RDX.
pub const RDX: Reg = 2;
/// RSP.
pub const RSP: Reg = 4;
/// RSI.
pub const RSI: Reg = 6;
/// RDI.
pub const RDI: Reg = 7;

/// A memory operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mem {
    /// Base register.
    pub base: Option<Reg>,
    /// Index register (not RSP) and log2 of its scale.
    pub index: Option<(Reg, u8)>,
    /// Displacement.
    pub disp: i32,
    /// Relative to the GS base.
    pub gs: bool,
}

impl Mem {
    /// `[base + disp]`.
    #[must_use]
    pub const fn at(base: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp, gs: false }
    }

    /// `gs:[base + disp]`.
    #[must_use]
    pub const fn gs(base: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp, gs: true }
    }

    /// With an index register.
    #[must_use]
    pub const fn index(self, register: Reg, shift: u8) -> Self {
        Self { index: Some((register, shift)), ..self }
    }
}

/// A place in the code, bound or to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

/// Condition codes as JCC has them in its low four bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cond(pub u8);

impl Cond {
    /// Unequal.
    pub const NE: Self = Self(5);
    /// Equal.
    pub const E: Self = Self(4);
    /// Below, unsigned.
    pub const B: Self = Self(2);
    /// Above, unsigned.
    pub const A: Self = Self(7);
    /// Above or equal, unsigned.
    pub const AE: Self = Self(3);
}

/// Code being assembled: two parts at two places in the code buffer, of which the second is rarely run.
#[derive(Debug, Default)]
pub struct Asm {
    /// The current part.
    bytes: Vec<u8>,
    /// Offset of its first byte in the code buffer.
    origin: usize,
    /// The other part, and its offset.
    other: (Vec<u8>, usize),
    /// The second part is the current one.
    cold: bool,
    /// Offsets in the code buffer.
    labels: Vec<Option<usize>>,
    fixups: Vec<(usize, Label)>,
}

impl Asm {
    /// Starts anew, for code that will be at `origin` in the code buffer, and at `cold` what is rarely run.
    pub fn reset(&mut self, origin: usize, cold: usize) {
        self.warm();
        self.bytes.clear();
        self.other.0.clear();
        self.labels.clear();
        self.fixups.clear();
        (self.origin, self.other.1) = (origin, cold);
    }

    fn turn(&mut self) {
        std::mem::swap(&mut self.bytes, &mut self.other.0);
        std::mem::swap(&mut self.origin, &mut self.other.1);
        self.cold = !self.cold;
    }

    /// What comes next is rarely run.
    pub fn cool(&mut self) {
        if !self.cold {
            self.turn();
        }
    }

    /// What comes next is often run.
    pub fn warm(&mut self) {
        if self.cold {
            self.turn();
        }
    }

    /// Offset in the code buffer of what comes next.
    #[must_use]
    pub fn here(&self) -> usize {
        self.origin + self.bytes.len()
    }

    /// A label without a place.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() as u32 - 1)
    }

    /// Gives a label its place: here.
    pub fn bind(&mut self, label: Label) {
        let here = self.here();
        if let Some(place) = self.labels.get_mut(label.0 as usize) {
            *place = Some(here);
        }
    }

    /// The offset in the code buffer of a bound label.
    #[must_use]
    pub fn place(&self, label: Label) -> Option<usize> {
        self.labels.get(label.0 as usize).copied().flatten()
    }

    /// Resolves all jumps and gives the bytes of both parts; `None` if a label was never bound.
    pub fn finish(&mut self) -> Option<(&[u8], &[u8])> {
        self.warm();
        for (at, label) in &self.fixups {
            let target = self.labels.get(label.0 as usize).copied().flatten()?;
            let relative = i32::try_from(target as i64 - (*at as i64 + 4)).ok()?.to_le_bytes();
            let part = |bytes: &'_ mut Vec<u8>, origin: usize| {
                let at = at.checked_sub(origin)?;
                bytes.get_mut(at..at + 4).map(|place| place.copy_from_slice(&relative))
            };
            part(&mut self.bytes, self.origin).or_else(|| part(&mut self.other.0, self.other.1))?;
        }
        Some((&self.bytes, &self.other.0))
    }

    /// Raw bytes.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// A guest instruction, already made to fit the host.
    ///
    /// # Errors
    /// It has no encoding, such as AH with a register that takes a REX prefix.
    pub fn instruction(&mut self, encoder: &mut Encoder, instruction: &Instruction) -> Result<(), IcedError> {
        let len = self.bytes.len();
        encoder.set_buffer(std::mem::take(&mut self.bytes));
        let result = encoder.encode(instruction, 0);
        self.bytes = encoder.take_buffer();
        if result.is_err() {
            self.bytes.truncate(len);
        }
        result.map(|_| ())
    }

    // --- the general forms

    /// `opcode reg, mem` (or `mem, reg`).
    pub fn rm(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        if mem.gs {
            self.bytes.push(0x65);
        }
        let opcode = self.prefix(opcode);
        let base = mem.base.unwrap_or(0);
        let index = mem.index.map_or(0, |(index, _)| index);
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | index >> 3 << 1 | base >> 3;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
        self.raw(opcode);
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: always a SIB byte and 32 bits of displacement.
            let sib = mem.index.map_or(0x25, |(index, shift)| shift << 6 | (index & 7) << 3 | 5);
            self.raw(&[reg | 4, sib]);
            self.raw(&mem.disp.to_le_bytes());
            return;
        };
        let short = i8::try_from(mem.disp);
        let mode = match short {
            Ok(0) if base & 7 != 5 => 0,
            Ok(_) => 0x40,
            Err(_) => 0x80,
        };
        match mem.index {
            Some((index, shift)) => self.raw(&[mode | reg | 4, shift << 6 | (index & 7) << 3 | (base & 7)]),
            None if base & 7 == 4 => self.raw(&[mode | reg | 4, 0x24]),
            None => self.bytes.push(mode | reg | (base & 7)),
        }
        match (mode, short) {
            (0x40, Ok(disp)) => self.bytes.push(disp.cast_unsigned()),
            (0x80, _) => self.raw(&mem.disp.to_le_bytes()),
            _ => {}
        }
    }

    /// `opcode reg, rm` with two registers.
    pub fn rr(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        let opcode = self.prefix(opcode);
        let rex = 0x40 | u8::from(wide) << 3 | reg >> 3 << 2 | rm >> 3;
        if rex != 0x40 {
            self.bytes.push(rex);
        }
        self.raw(opcode);
        self.bytes.push(0xc0 | (reg & 7) << 3 | (rm & 7));
    }

    /// Mandatory prefixes come before REX. Gives the rest of the opcode.
    fn prefix<'a>(&mut self, opcode: &'a [u8]) -> &'a [u8] {
        match opcode {
            [prefix @ (0x66 | 0xf2 | 0xf3), rest @ ..] => {
                self.bytes.push(*prefix);
                rest
            }
            _ => opcode,
        }
    }

    // --- moves: no flags

    /// `mov to, from`.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.rr(true, &[0x89], from, to);
    }

    /// `mov to, from`, 32 bits.
    pub fn mov32(&mut self, to: Reg, from: Reg) {
        self.rr(false, &[0x89], from, to);
    }

    /// `movzx to, from`, of 16 bits.
    pub fn zero_extend16(&mut self, to: Reg, from: Reg) {
        self.rr(false, &[0x0f, 0xb7], to, from);
    }

    /// `mov to, [from]`.
    pub fn load(&mut self, to: Reg, from: Mem) {
        self.rm(true, &[0x8b], to, from);
    }

    /// `mov to, [from]`, 32 bits.
    pub fn load32(&mut self, to: Reg, from: Mem) {
        self.rm(false, &[0x8b], to, from);
    }

    /// `mov [to], from`.
    pub fn store(&mut self, to: Mem, from: Reg) {
        self.rm(true, &[0x89], from, to);
    }

    /// `mov [to], from`, 32 bits.
    pub fn store32(&mut self, to: Mem, from: Reg) {
        self.rm(false, &[0x89], from, to);
    }

    /// `mov dword [to], value`.
    pub fn store_imm32(&mut self, to: Mem, value: u32) {
        self.rm(false, &[0xc7], 0, to);
        self.raw(&value.to_le_bytes());
    }

    /// `mov to, value`, 32 bits.
    pub fn mov_imm32(&mut self, to: Reg, value: u32) {
        self.rr(false, &[0xc7], 0, to);
        self.raw(&value.to_le_bytes());
    }

    /// `cmovcc to, from`.
    pub fn cmov(&mut self, cond: Cond, to: Reg, from: Reg) {
        self.rr(true, &[0x0f, 0x40 | cond.0], to, from);
    }

    /// `cmovcc to, [from]`.
    pub fn cmov_mem(&mut self, cond: Cond, to: Reg, from: Mem) {
        self.rm(true, &[0x0f, 0x40 | cond.0], to, from);
    }

    /// `not reg`.
    pub fn not(&mut self, reg: Reg) {
        self.rr(true, &[0xf7], 2, reg);
    }

    /// `lea to, [address]`.
    pub fn lea(&mut self, to: Reg, address: Mem) {
        self.rm(true, &[0x8d], to, address);
    }

    // --- arithmetic

    /// `add reg, [mem]`.
    pub fn add_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x03], reg, mem);
    }

    /// `add reg, other`.
    pub fn add(&mut self, reg: Reg, other: Reg) {
        self.rr(true, &[0x01], other, reg);
    }

    /// `sub reg, other`.
    pub fn sub(&mut self, reg: Reg, other: Reg) {
        self.rr(true, &[0x29], other, reg);
    }

    /// `sub [mem], reg`.
    pub fn sub_to_mem(&mut self, mem: Mem, reg: Reg) {
        self.rm(true, &[0x29], reg, mem);
    }

    /// `test reg, other`.
    pub fn test(&mut self, reg: Reg, other: Reg) {
        self.rr(true, &[0x85], other, reg);
    }

    /// `test reg, other`, 32 bits.
    pub fn test32(&mut self, reg: Reg, other: Reg) {
        self.rr(false, &[0x85], other, reg);
    }

    /// `test dword [mem], value`.
    pub fn test_imm32(&mut self, mem: Mem, value: i32) {
        self.rm(false, &[0xf7], 0, mem);
        self.raw(&value.to_le_bytes());
    }

    /// `cmp reg, other`.
    pub fn cmp(&mut self, reg: Reg, other: Reg) {
        self.rr(true, &[0x39], other, reg);
    }

    /// `sub reg, [mem]`.
    pub fn sub_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x2b], reg, mem);
    }

    /// `xor reg, [mem]`.
    pub fn xor_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x33], reg, mem);
    }

    /// `and reg, value`, the value sign-extended.
    pub fn and_imm(&mut self, reg: Reg, value: i32) {
        self.rr(true, &[0x81], 4, reg);
        self.raw(&value.to_le_bytes());
    }

    /// `or reg, value`, the value sign-extended.
    pub fn or_imm(&mut self, reg: Reg, value: i32) {
        self.rr(true, &[0x81], 1, reg);
        self.raw(&value.to_le_bytes());
    }

    /// `and dword [mem], value`.
    pub fn and_imm32(&mut self, mem: Mem, value: i32) {
        self.rm(false, &[0x81], 4, mem);
        self.raw(&value.to_le_bytes());
    }

    /// `or dword [mem], value`.
    pub fn or_imm32(&mut self, mem: Mem, value: i32) {
        self.rm(false, &[0x81], 1, mem);
        self.raw(&value.to_le_bytes());
    }

    /// `sub qword [mem], value`.
    pub fn sub_imm64(&mut self, mem: Mem, value: i32) {
        self.rm(true, &[0x81], 5, mem);
        self.raw(&value.to_le_bytes());
    }

    /// `or reg, [mem]`.
    pub fn or_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x0b], reg, mem);
    }

    /// `and reg, [mem]`.
    pub fn and_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x23], reg, mem);
    }

    /// `cmp reg, [mem]`.
    pub fn cmp_mem(&mut self, reg: Reg, mem: Mem) {
        self.rm(true, &[0x3b], reg, mem);
    }

    /// `cmp reg, value`, the value sign-extended.
    pub fn cmp_imm(&mut self, reg: Reg, value: i32) {
        self.rr(true, &[0x81], 7, reg);
        self.raw(&value.to_le_bytes());
    }

    /// `cmp rsp, rsp`: the status flags as `host::alu` has them before an instruction that may leave some.
    pub fn compare_equals(&mut self) {
        self.rr(true, &[0x39], RSP, RSP);
    }

    /// `cmp dword [mem], 0`.
    pub fn cmp_zero32(&mut self, mem: Mem) {
        self.rm(false, &[0x83], 7, mem);
        self.bytes.push(0);
    }

    /// `btc reg, 63`.
    pub fn flip_highest(&mut self, reg: Reg) {
        self.rr(true, &[0x0f, 0xba], 7, reg);
        self.raw(&[63]);
    }

    /// `shl reg, count`.
    pub fn shl(&mut self, reg: Reg, count: u8) {
        self.rr(true, &[0xc1], 4, reg);
        self.bytes.push(count);
    }

    /// `shr reg, count`.
    pub fn shr(&mut self, reg: Reg, count: u8) {
        self.rr(true, &[0xc1], 5, reg);
        self.bytes.push(count);
    }

    /// `inc qword [mem]`: changes all status flags but CF.
    pub fn inc_mem(&mut self, mem: Mem) {
        self.rm(true, &[0xff], 0, mem);
    }

    /// `sar reg, count`.
    pub fn sar(&mut self, reg: Reg, count: u8) {
        self.rr(true, &[0xc1], 7, reg);
        self.bytes.push(count);
    }

    // --- control

    fn relative(&mut self, label: Label) {
        self.fixups.push((self.here(), label));
        self.raw(&[0; 4]);
    }

    /// `jmp label`.
    pub fn jmp(&mut self, label: Label) {
        self.bytes.push(0xe9);
        self.relative(label);
    }

    /// `jcc label`.
    pub fn jcc(&mut self, cond: Cond, label: Label) {
        self.raw(&[0x0f, 0x80 | cond.0]);
        self.relative(label);
    }

    fn far(&mut self, target: usize) {
        // Both ends are in one code buffer, which is far smaller than 2 GiB.
        let relative = target as i64 - (self.here() as i64 + 4);
        self.raw(&(relative as i32).to_le_bytes());
    }

    /// `jmp` to an offset in the code buffer.
    pub fn jmp_to(&mut self, target: usize) {
        self.bytes.push(0xe9);
        self.far(target);
    }

    /// `jcc` to an offset in the code buffer.
    pub fn jcc_to(&mut self, cond: Cond, target: usize) {
        self.raw(&[0x0f, 0x80 | cond.0]);
        self.far(target);
    }

    /// `call` an offset in the code buffer.
    pub fn call_to(&mut self, target: usize) {
        self.bytes.push(0xe8);
        self.far(target);
    }

    /// `jmp [mem]`.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.rm(false, &[0xff], 4, mem);
    }

    /// `push value`.
    pub fn push_imm(&mut self, value: u32) {
        self.bytes.push(0x68);
        self.raw(&value.to_le_bytes());
    }

    /// `push reg`.
    pub fn push(&mut self, reg: Reg) {
        if reg > 7 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x50 | (reg & 7));
    }

    /// `pop reg`.
    pub fn pop(&mut self, reg: Reg) {
        if reg > 7 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0x58 | (reg & 7));
    }

    /// `ret`, dropping `bytes` of arguments.
    pub fn ret(&mut self, bytes: u16) {
        if bytes == 0 {
            self.bytes.push(0xc3);
        } else {
            self.bytes.push(0xc2);
            self.raw(&bytes.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests;
