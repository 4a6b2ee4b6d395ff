//! x87 control instructions: environment, whole state, control and status words (SDM vol. 1, 8.1; APM vol. 1, 6.2).
//!
//! Everything that computes, FLDCW included, runs on the host by [`native`](super::native).
//! Left out: the FERR#/IRQ 13 way of reporting errors (see there).

use crate::Cpu;
use crate::exec::native::check_x87;
use crate::exec::{Flow, Slow};
use crate::state::{CodeSize, RAX};
use host::vector::VectorState;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::Exception;

/// The handler of an x87 instruction that is not left to the host.
#[must_use]
pub fn select(instruction: &Instruction) -> Option<Slow> {
    let handler: Slow = match instruction.mnemonic() {
        Mnemonic::Wait => wait,
        Mnemonic::Fninit => init,
        Mnemonic::Fnclex => clear_exceptions,
        Mnemonic::Fnstsw => store_status,
        Mnemonic::Fnstcw => store_control,
        Mnemonic::Fnstenv => store_environment,
        Mnemonic::Fldenv => load_environment,
        Mnemonic::Fnsave => save,
        Mnemonic::Frstor => restore,
        // What the 8087 and the 287 needed and their successors ignore.
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm => ignore,
        _ => return None,
    };
    Some(handler)
}

/// FWAIT: #NM only if CR0.MP says so too.
fn wait(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    if cpu.cr0.monitor() && cpu.cr0.task_switched() {
        return Err(Exception::NO_FPU);
    }
    if cpu.vector.x87_pending() { Err(Exception::plain(x86::Vector::X87)) } else { Ok(Flow::Next) }
}

fn ignore(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    Ok(Flow::Next)
}

fn init(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    cpu.vector.init_x87();
    Ok(Flow::Next)
}

fn clear_exceptions(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    cpu.vector.set_fsw(cpu.vector.fsw() & 0x7f00);
    Ok(Flow::Next)
}

fn store_status(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    cpu.vector.update_x87_summary();
    store_word(cpu, instruction, cpu.vector.fsw())
}

fn store_control(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    store_word(cpu, instruction, cpu.vector.fcw())
}

fn store_word(cpu: &mut Cpu, instruction: &Instruction, value: u16) -> Result<Flow, Exception> {
    if instruction.op0_kind() == OpKind::Register {
        cpu.regs[RAX] = cpu.regs[RAX] & !0xffff | u64::from(value);
    } else {
        let (seg, ea) = cpu.effective_address(instruction);
        cpu.store(seg, ea, value)?;
    }
    Ok(Flow::Next)
}

/// How the environment lies in memory: by operand size and by mode (SDM vol. 1, figures 8-9 to 8-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    wide: bool,
    protected: bool,
}

impl Format {
    fn of(cpu: &Cpu, instruction: &Instruction) -> Self {
        let wide = matches!(
            instruction.code(),
            Code::Fnstenv_m28byte | Code::Fldenv_m28byte | Code::Fnsave_m108byte | Code::Frstor_m108byte
        );
        Self { wide, protected: cpu.protected() }
    }

    /// Bytes of the environment.
    fn len(self) -> usize {
        if self.wide { 28 } else { 14 }
    }

    /// The seven fields of the environment, as words of the format's width.
    fn write(self, vector: &VectorState, flat: bool) -> [u32; 7] {
        // In 64-bit mode no selectors are kept and the pointers' upper halves are not shown.
        let split = |pointer: u64| (low(pointer), if flat { 0 } else { low(pointer >> 32) & 0xffff });
        let ((fip, fcs), (fdp, fds)) = (split(vector.fip()), split(vector.fdp()));
        let fop = u32::from(vector.fop());
        let (control, status, tags) = (u32::from(vector.fcw()), u32::from(vector.fsw()), u32::from(vector.full_tags()));
        let reserved = if self.wide { 0xffff_0000 } else { 0 };
        let [last_ip, last_op, last_dp, last_ds] = if self.protected {
            let opcode = if self.wide { fop << 16 } else { 0 };
            [fip, fcs | opcode, fdp, fds | reserved]
        } else {
            // Real mode: linear addresses, of which the upper part stands above the opcode.
            let (ip, dp) = (fip.wrapping_add(fcs << 4), fdp.wrapping_add(fds << 4));
            let high = |linear: u32| if self.wide { (linear >> 16) << 12 } else { (linear >> 16 & 0xf) << 12 };
            let low_part = |linear: u32| if self.wide { linear & 0xffff | reserved } else { linear };
            [low_part(ip), high(ip) | fop, low_part(dp), high(dp)]
        };
        [control | reserved, status | reserved, tags | reserved, last_ip, last_op, last_dp, last_ds]
    }

    /// The reverse of [`Self::write`].
    fn read(self, vector: &mut VectorState, fields: [u32; 7]) {
        let [control, status, tags, last_ip, last_op, last_dp, last_ds] = fields;
        vector.set_fcw(control_word(half(control)));
        vector.set_fsw(half(status));
        vector.update_x87_summary();
        vector.set_full_tags(half(tags));
        if self.protected {
            let join = |offset: u32, selector: u32| u64::from(selector & 0xffff) << 32 | u64::from(offset);
            vector.set_fip(join(last_ip, last_op));
            vector.set_fdp(join(last_dp, last_ds));
            if self.wide {
                vector.set_fop(half(last_op >> 16) & 0x7ff);
            }
        } else {
            let join = |low: u32, high: u32| u64::from(low & 0xffff | (high >> 12) << 16);
            vector.set_fip(join(last_ip, last_op));
            vector.set_fdp(join(last_dp, last_ds));
            vector.set_fop(half(last_op) & 0x7ff);
        }
    }

    fn encode(self, fields: [u32; 7], bytes: &mut [u8]) {
        let width = self.len() / 7;
        for (field, place) in fields.into_iter().zip(bytes.chunks_exact_mut(width)) {
            place.copy_from_slice(field.to_le_bytes().get(..width).unwrap_or(&[0; 4]));
        }
    }

    fn decode(self, bytes: &[u8]) -> [u32; 7] {
        let mut fields = [0; 7];
        for (field, place) in fields.iter_mut().zip(bytes.chunks_exact(self.len() / 7)) {
            *field = place.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
        }
        fields
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

fn half(value: u32) -> u16 {
    (value & 0xffff) as u16
}

/// FCW as a processor keeps it: bits 7 and 13–15 are zero, bit 6 is one.
#[must_use]
pub fn control_word(value: u16) -> u16 {
    value & 0x1f3f | 0x40
}

fn store_environment(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    let format = Format::of(cpu, instruction);
    cpu.vector.update_x87_summary();
    let mut bytes = [0; 28];
    format.encode(format.write(&cpu.vector, cpu.code_size == CodeSize::Bits64), &mut bytes);
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.store_bytes(seg, ea, bytes.get(..format.len()).unwrap_or(&bytes))?;
    // FNSTENV masks all exceptions afterwards, so that a handler can use the unit.
    cpu.vector.set_fcw(cpu.vector.fcw() | 0x3f);
    cpu.vector.update_x87_summary();
    Ok(Flow::Next)
}

fn load_environment(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, true)?;
    let format = Format::of(cpu, instruction);
    let mut bytes = [0; 28];
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.load_bytes(seg, ea, bytes.get_mut(..format.len()).unwrap_or_default())?;
    format.read(&mut cpu.vector, format.decode(&bytes));
    Ok(Flow::Next)
}

fn save(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, false)?;
    let format = Format::of(cpu, instruction);
    cpu.vector.update_x87_summary();
    let mut bytes = [0; 108];
    format.encode(format.write(&cpu.vector, cpu.code_size == CodeSize::Bits64), &mut bytes);
    let len = format.len();
    for (i, place) in bytes.get_mut(len..len + 80).unwrap_or_default().chunks_exact_mut(10).enumerate() {
        place.copy_from_slice(&cpu.vector.st(i));
    }
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.store_bytes(seg, ea, bytes.get(..len + 80).unwrap_or(&bytes))?;
    cpu.vector.init_x87();
    Ok(Flow::Next)
}

fn restore(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_x87(cpu, true)?;
    let format = Format::of(cpu, instruction);
    let len = format.len();
    let mut bytes = [0; 108];
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.load_bytes(seg, ea, bytes.get_mut(..len + 80).unwrap_or_default())?;
    format.read(&mut cpu.vector, format.decode(&bytes));
    for (i, place) in bytes.get(len..len + 80).unwrap_or_default().chunks_exact(10).enumerate() {
        if let Some(value) = place.first_chunk() {
            cpu.vector.set_st(i, value);
        }
    }
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> VectorState {
        let mut vector = VectorState::new();
        vector.init_x87();
        vector.set_fsw(0x3800);
        vector.set_ftw(0x81);
        vector.set_st(0, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        vector.set_x87_pointers((0x5d8, 0x0010_0000_1234, 0x0018_0000_5678));
        vector
    }

    #[test]
    fn protected_formats_carry_selectors_and_opcode() {
        let vector = state();
        let wide = Format { wide: true, protected: true };
        // ST0 is register 7 and valid, register 0 holds zero, the others are empty.
        let tags = 0b00_11_11_11_11_11_11_01;
        assert_eq!(
            wide.write(&vector, false),
            [0xffff_037f, 0xffff_3800, 0xffff_0000 | tags, 0x1234, 0x05d8_0010, 0x5678, 0xffff_0018]
        );
        let narrow = Format { wide: false, protected: true };
        assert_eq!(narrow.write(&vector, false), [0x37f, 0x3800, tags, 0x1234, 0x10, 0x5678, 0x18]);
        assert_eq!(wide.write(&vector, true)[4], 0x05d8_0000, "no selectors in 64-bit mode");
    }

    #[test]
    fn real_formats_carry_linear_addresses() {
        let mut vector = state();
        vector.set_x87_pointers((0x5d8, 0xf000_0000_1234, 0x1234_0000_0005));
        let narrow = Format { wide: false, protected: false };
        let fields = narrow.write(&vector, false);
        assert_eq!([fields[3] & 0xffff, fields[4], fields[5] & 0xffff, fields[6]], [0x1234, 0xf5d8, 0x2345, 0x1000]);
        let mut bytes = [0; 28];
        narrow.encode(fields, &mut bytes);
        let mut back = VectorState::new();
        narrow.read(&mut back, narrow.decode(&bytes));
        assert_eq!(back.x87_pointers(), (0x5d8, 0xf1234, 0x12345));
    }

    #[test]
    fn environments_survive_a_round_trip() {
        let vector = state();
        for wide in [false, true] {
            let format = Format { wide, protected: true };
            let mut bytes = [0; 28];
            format.encode(format.write(&vector, false), &mut bytes);
            let mut back = VectorState::new();
            format.read(&mut back, format.decode(&bytes));
            assert_eq!((back.fcw(), back.fsw(), back.ftw()), (0x37f, 0x3800, 0x81));
            assert_eq!((back.fip(), back.fdp()), (vector.fip(), vector.fdp()));
            assert_eq!(back.fop(), if wide { 0x5d8 } else { 0 });
        }
    }

    #[test]
    fn loading_unmasked_flags_makes_an_exception_pending() {
        let format = Format { wide: true, protected: true };
        let mut vector = state();
        format.read(&mut vector, [0x37b, 0x0004, 0xffff, 0, 0, 0, 0]);
        assert_eq!((vector.fcw(), vector.fsw(), vector.x87_pending()), (0x37b & !4 | 0x40, 0x8084, true));
    }
}
