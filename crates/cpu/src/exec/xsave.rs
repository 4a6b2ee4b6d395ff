//! FXSAVE, FXRSTOR, the XSAVE family and XCR0 (SDM vol. 1, chapter 13; APM vol. 2, 11.4 and 11.5).
//!
//! Components: x87 (0), SSE (1), AVX (2) and PKRU (9), standard and compacted format. No supervisor component exists,
//! so XSAVES is XSAVEC and XRSTORS takes the compacted format only. XSAVEOPT writes what is in use whether or not it
//! was modified since the last XRSTOR, which the manuals allow. XINUSE is found by looking at the registers.
//!
//! MXCSR is not part of XINUSE[1], but XSAVEC saves component 1 also when it is not at its default (SDM vol. 1, 13.6).

use crate::Cpu;
use crate::exec::x87::control_word;
use crate::exec::{Flow, Slow};
use crate::state::{CodeSize, RAX, RCX, RDX};
use host::vector::{MXCSR_DEFAULT, VectorState, mxcsr_mask};
use iced_x86::{Instruction, Mnemonic};
use x86::{Exception, Xcr0};

const X87: u64 = 1;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const PKRU: u64 = 1 << 9;
/// XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;

/// Offset of the XSAVE header, behind the legacy area.
const HEADER: u64 = 512;
/// Offset of the first component behind the header.
const EXTENDED: u64 = 576;
/// Offset of XMM0 in the legacy area.
const XMM: u64 = 160;
/// Components behind the header: bit, offset in the standard format, size. (CPUID leaf Dh says the same.)
const COMPONENTS: [(u64, u64, u64); 2] = [(AVX, 576, 256), (PKRU, 2688, 8)];

/// The handler of an instruction of this family.
#[must_use]
pub fn select(instruction: &Instruction) -> Option<Slow> {
    let handler: Slow = match instruction.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fxrstor,
        Mnemonic::Xsave | Mnemonic::Xsave64 => xsave::<false>,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::<true>,
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => xsavec::<false>,
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => xsavec::<true>,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xrstor::<false>,
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => xrstor::<true>,
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Xsetbv => xsetbv,
        _ => return None,
    };
    Some(handler)
}

/// Whether the instruction has the 64-bit format of the x87 pointers (REX.W).
fn is_wide(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Fxsave64
            | Mnemonic::Fxrstor64
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xsavec64
            | Mnemonic::Xsaves64
            | Mnemonic::Xrstor64
            | Mnemonic::Xrstors64
    )
}

/// The memory operand, which must be aligned to `alignment`.
fn area(cpu: &Cpu, instruction: &Instruction, alignment: u64) -> Result<(usize, u64), Exception> {
    let (seg, ea) = cpu.effective_address(instruction);
    let linear = ea.wrapping_add(cpu.seg_base[seg & 7]);
    if linear & (alignment - 1) == 0 { Ok((seg, ea)) } else { Err(Exception::GP0) }
}

/// Vector registers that the current mode has.
fn registers(cpu: &Cpu) -> usize {
    if cpu.code_size == CodeSize::Bits64 { 16 } else { 8 }
}

/// Bytes 0–23 and 32–159 of the legacy area: what component 0 is made of. Bytes 24–31 (MXCSR) are not filled in.
fn x87_image(vector: &VectorState, wide: bool, flat: bool) -> [u8; 160] {
    let mut image = [0; 160];
    image.copy_from_slice(&vector.x87[..160]);
    image[5] = 0;
    if !wide && flat {
        // No selectors are kept in 64-bit mode.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    image[24..32].fill(0);
    image
}

/// Loads component 0 from a legacy area.
fn load_x87(vector: &mut VectorState, image: &[u8; 160], wide: bool) {
    let mxcsr = vector.image_mxcsr();
    vector.x87[..160].copy_from_slice(image);
    vector.set_image_mxcsr(mxcsr);
    if !wide {
        let selector = 0xffff << 32 | 0xffff_ffff;
        vector.set_fip(vector.fip() & selector);
        vector.set_fdp(vector.fdp() & selector);
    }
    vector.set_fop(vector.fop() & 0x7ff);
    vector.set_fcw(control_word(vector.fcw()));
    vector.update_x87_summary();
}

/// Component 0 in its initial configuration.
fn init_x87(vector: &mut VectorState) {
    vector.x87[..160].fill(0);
    vector.init_x87();
    vector.set_image_mxcsr(MXCSR_DEFAULT);
}

/// The components that are not in their initial configuration.
fn in_use(cpu: &Cpu) -> u64 {
    let (vector, count) = (&cpu.vector, registers(cpu));
    let x87 = vector.fcw() != 0x37f
        || vector.fsw() != 0
        || vector.ftw() != 0
        || vector.x87_pointers() != (0, 0, 0)
        || vector.x87[32..160].iter().any(|&byte| byte != 0);
    let sse = vector.ymm.iter().take(count).any(|register| register[..2] != [0, 0]);
    let avx = vector.ymm.iter().take(count).any(|register| register[2..] != [0, 0]);
    [(x87, X87), (sse, SSE), (avx, AVX), (cpu.pkru != 0, PKRU)]
        .into_iter()
        .fold(0, |bits, (used, bit)| if used { bits | bit } else { bits })
}

/// The XMM registers as they lie in the legacy area, of which the current mode has the first 8 or all 16.
fn xmm_image(vector: &VectorState) -> [u8; 256] {
    let mut image = [0; 256];
    for (i, place) in image.chunks_exact_mut(16).enumerate() {
        place.copy_from_slice(&vector.xmm(i).to_le_bytes());
    }
    image
}

/// The upper halves of the YMM registers as component 2 has them.
fn avx_image(vector: &VectorState) -> [u8; 256] {
    let mut image = [0; 256];
    for (i, place) in image.chunks_exact_mut(16).enumerate() {
        place.copy_from_slice(&vector.ymm_high(i).to_le_bytes());
    }
    image
}

/// Register values from an image of either kind.
fn words(image: &[u8]) -> impl Iterator<Item = u128> {
    image.as_chunks::<16>().0.iter().map(|bytes| u128::from_le_bytes(*bytes))
}

/// MXCSR and MXCSR_MASK as they lie in the legacy area.
fn mxcsr_image(cpu: &Cpu) -> [u8; 8] {
    (u64::from(mxcsr_mask()) << 32 | u64::from(cpu.vector.mxcsr)).to_le_bytes()
}

fn load_mxcsr(cpu: &mut Cpu, seg: usize, ea: u64) -> Result<u32, Exception> {
    let value: u32 = cpu.load(seg, ea.wrapping_add(24))?;
    if value & !mxcsr_mask() == 0 { Ok(value) } else { Err(Exception::GP0) }
}

fn flat(cpu: &Cpu) -> bool {
    cpu.code_size == CodeSize::Bits64
}

/// EFER.FFXSR: FXSAVE and FXRSTOR leave the XMM registers out (AMD). CR4.OSFXSR clear leaves out MXCSR too.
fn fxsave_parts(cpu: &Cpu) -> (bool, bool) {
    let sse = cpu.cr4.os_fxsr();
    (sse, sse && !(cpu.efer.fast_fxsr() && cpu.cpl == 0 && flat(cpu)))
}

fn check_fxsave(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cr0.emulation() || cpu.cr0.task_switched() { Err(Exception::NO_FPU) } else { Ok(()) }
}

fn fxsave(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_fxsave(cpu)?;
    let (seg, ea) = area(cpu, instruction, 16)?;
    let (mxcsr, xmm) = fxsave_parts(cpu);
    cpu.vector.update_x87_summary();
    let mut image = [0; 416];
    image[..160].copy_from_slice(&x87_image(&cpu.vector, is_wide(instruction), flat(cpu)));
    if mxcsr {
        image[24..32].copy_from_slice(&mxcsr_image(cpu));
    }
    image[160..].copy_from_slice(&xmm_image(&cpu.vector));
    cpu.probe(seg, ea, 512, true)?;
    let len = if xmm { 160 + 16 * registers(cpu) } else { 160 };
    cpu.store_bytes(seg, ea, &image[..len])?;
    Ok(Flow::Next)
}

fn fxrstor(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check_fxsave(cpu)?;
    let (seg, ea) = area(cpu, instruction, 16)?;
    let (with_mxcsr, xmm) = fxsave_parts(cpu);
    let mut image = [0; 416];
    cpu.probe(seg, ea, 512, false)?;
    let len = if xmm { 160 + 16 * registers(cpu) } else { 160 };
    cpu.load_bytes(seg, ea, &mut image[..len])?;
    let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    if with_mxcsr {
        if mxcsr & !mxcsr_mask() != 0 {
            return Err(Exception::GP0);
        }
        cpu.vector.mxcsr = mxcsr;
    }
    if let Some(image) = image.first_chunk() {
        load_x87(&mut cpu.vector, image, is_wide(instruction));
    }
    if xmm {
        for (i, value) in words(&image[160..416]).take(registers(cpu)).enumerate() {
            cpu.vector.set_xmm(i, value);
        }
    }
    Ok(Flow::Next)
}

/// #UD and #NM of the XSAVE family, and the requested-feature bitmap (EDX:EAX and XCR0).
fn request(cpu: &Cpu) -> Result<u64, Exception> {
    if !cpu.cr4.os_xsave() {
        return Err(Exception::UNDEFINED);
    }
    if cpu.cr0.task_switched() {
        return Err(Exception::NO_FPU);
    }
    Ok(edx_eax(cpu) & cpu.xcr0.into_bits())
}

fn edx_eax(cpu: &Cpu) -> u64 {
    (cpu.regs[RDX] & 0xffff_ffff) << 32 | (cpu.regs[RAX] & 0xffff_ffff)
}

/// Offset of a component behind the header in an area whose format is `layout` (XCOMP_BV, or 0 for the standard
/// format).
fn offset(component: u64, layout: u64) -> u64 {
    let standard = COMPONENTS.iter().find(|(bit, ..)| *bit == component).map_or(EXTENDED, |&(_, offset, _)| offset);
    if layout & COMPACTED == 0 {
        return standard;
    }
    COMPONENTS
        .iter()
        .filter(|(bit, ..)| layout & bit != 0 && *bit < component)
        .fold(EXTENDED, |offset, &(_, _, size)| offset + size)
}

/// Writes the components in `write`, and MXCSR if asked for.
fn write_area(
    cpu: &mut Cpu,
    (seg, ea): (usize, u64),
    write: u64,
    mxcsr: bool,
    layout: u64,
    wide: bool,
) -> Result<(), Exception> {
    cpu.vector.update_x87_summary();
    if write & X87 != 0 {
        let image = x87_image(&cpu.vector, wide, flat(cpu));
        cpu.store_bytes(seg, ea, &image[..24])?;
        cpu.store_bytes(seg, ea.wrapping_add(32), &image[32..])?;
    }
    if mxcsr {
        let image = mxcsr_image(cpu);
        cpu.store_bytes(seg, ea.wrapping_add(24), &image)?;
    }
    let bytes = 16 * registers(cpu);
    if write & SSE != 0 {
        let image = xmm_image(&cpu.vector);
        cpu.store_bytes(seg, ea.wrapping_add(XMM), &image[..bytes])?;
    }
    if write & AVX != 0 {
        let image = avx_image(&cpu.vector);
        cpu.store_bytes(seg, ea.wrapping_add(offset(AVX, layout)), &image[..bytes])?;
    }
    if write & PKRU != 0 {
        cpu.store(seg, ea.wrapping_add(offset(PKRU, layout)), u64::from(cpu.pkru))?;
    }
    Ok(())
}

/// Bytes from the start of the area to the end of the last component in `mask`.
fn extent(mask: u64, layout: u64) -> u64 {
    COMPONENTS
        .iter()
        .filter(|(bit, ..)| mask & bit != 0)
        .fold(EXTENDED, |end, &(bit, _, size)| end.max(offset(bit, layout) + size))
}

/// XSAVE, and XSAVEOPT, which does not write components in their initial configuration.
fn xsave<const OPTIMISED: bool>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    let requested = request(cpu)?;
    let (seg, ea) = area(cpu, instruction, 64)?;
    cpu.probe(seg, ea, extent(requested, 0), true)?;
    let old: u64 = cpu.load(seg, ea.wrapping_add(HEADER))?;
    let used = in_use(cpu) & requested;
    let write = if OPTIMISED { used } else { requested };
    let mxcsr = requested & (SSE | AVX) != 0;
    write_area(cpu, (seg, ea), write, mxcsr, 0, is_wide(instruction))?;
    cpu.store(seg, ea.wrapping_add(HEADER), old & !requested | used)?;
    Ok(Flow::Next)
}

/// XSAVEC, and XSAVES, which is the same for want of supervisor components.
fn xsavec<const SUPERVISOR: bool>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    let requested = request(cpu)?;
    if SUPERVISOR && cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let (seg, ea) = area(cpu, instruction, 64)?;
    let layout = requested | COMPACTED;
    cpu.probe(seg, ea, extent(requested, layout), true)?;
    let mxcsr = if cpu.vector.mxcsr == MXCSR_DEFAULT { 0 } else { SSE };
    let write = (in_use(cpu) | mxcsr) & requested;
    write_area(cpu, (seg, ea), write, write & SSE != 0, layout, is_wide(instruction))?;
    cpu.store(seg, ea.wrapping_add(HEADER), write)?;
    cpu.store(seg, ea.wrapping_add(HEADER + 8), layout)?;
    Ok(Flow::Next)
}

/// Checks an XSAVE header: XSTATE_BV and the layout, or `None` for #GP.
fn check_header(header: &[u64; 8], xcr0: u64, supervisor: bool) -> Option<(u64, u64)> {
    let [present, layout, rest @ ..] = *header;
    let ok = if layout & COMPACTED != 0 {
        layout & !(xcr0 | COMPACTED) == 0 && present & !layout == 0 && rest == [0; 6]
    } else {
        // The standard format: bytes 23–8 must be zero. XRSTORS does not take it.
        !supervisor && layout == 0 && rest[0] == 0 && present & !xcr0 == 0
    };
    ok.then_some((present, layout))
}

/// XRSTOR and XRSTORS.
fn xrstor<const SUPERVISOR: bool>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    let requested = request(cpu)?;
    if SUPERVISOR && cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let (seg, ea) = area(cpu, instruction, 64)?;
    let mut bytes = [0; 64];
    cpu.load_bytes(seg, ea.wrapping_add(HEADER), &mut bytes)?;
    let mut header = [0; 8];
    for (word, bytes) in header.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let (present, layout) = check_header(&header, cpu.xcr0.into_bits(), SUPERVISOR).ok_or(Exception::GP0)?;
    // Everything is read before anything changes.
    let load = requested & present;
    let mut legacy = [0; 416];
    if load & X87 != 0 {
        cpu.load_bytes(seg, ea, &mut legacy[..24])?;
        cpu.load_bytes(seg, ea.wrapping_add(32), &mut legacy[32..160])?;
    }
    let mxcsr = if layout & COMPACTED == 0 {
        if requested & (SSE | AVX) != 0 { Some(load_mxcsr(cpu, seg, ea)?) } else { None }
    } else if load & SSE != 0 {
        Some(load_mxcsr(cpu, seg, ea)?)
    } else {
        (requested & SSE != 0).then_some(MXCSR_DEFAULT)
    };
    let count = registers(cpu);
    if load & SSE != 0 {
        cpu.load_bytes(seg, ea.wrapping_add(XMM), &mut legacy[160..160 + 16 * count])?;
    }
    let mut high = [0; 256];
    if load & AVX != 0 {
        cpu.load_bytes(seg, ea.wrapping_add(offset(AVX, layout)), &mut high[..16 * count])?;
    }
    let pkru: u32 = if load & PKRU != 0 { cpu.load(seg, ea.wrapping_add(offset(PKRU, layout)))? } else { 0 };

    if requested & X87 != 0 {
        match legacy.first_chunk() {
            Some(image) if load & X87 != 0 => load_x87(&mut cpu.vector, image, is_wide(instruction)),
            _ => init_x87(&mut cpu.vector),
        }
    }
    if let Some(mxcsr) = mxcsr {
        cpu.vector.mxcsr = mxcsr;
    }
    if requested & SSE != 0 {
        let image = if load & SSE != 0 { &legacy[160..] } else { &[0; 256] };
        for (i, value) in words(image).take(count).enumerate() {
            cpu.vector.set_xmm(i, value);
        }
    }
    if requested & AVX != 0 {
        for (i, value) in words(&high).take(count).enumerate() {
            cpu.vector.set_ymm_high(i, value);
        }
    }
    if requested & PKRU != 0 && cpu.pkru != pkru {
        cpu.pkru = pkru;
        cpu.update_paging();
    }
    Ok(Flow::Next)
}

/// XGETBV: XCR0, or with ECX = 1 the enabled components that are in use.
fn xgetbv(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    if !cpu.cr4.os_xsave() {
        return Err(Exception::UNDEFINED);
    }
    let value = match cpu.regs[RCX] & 0xffff_ffff {
        0 => cpu.xcr0.into_bits(),
        1 => cpu.xcr0.into_bits() & in_use(cpu),
        _ => return Err(Exception::GP0),
    };
    cpu.regs[RAX] = value & 0xffff_ffff;
    cpu.regs[RDX] = value >> 32;
    Ok(Flow::Next)
}

/// Whether XCR0 may have this value: x87 always, AVX only with SSE, nothing else than is supported.
fn is_valid(value: u64, supported: u64) -> bool {
    value & X87 != 0 && value & !supported == 0 && (value & AVX == 0 || value & SSE != 0)
}

fn xsetbv(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    if !cpu.cr4.os_xsave() {
        return Err(Exception::UNDEFINED);
    }
    let value = edx_eax(cpu);
    if cpu.cpl != 0 || cpu.regs[RCX] & 0xffff_ffff != 0 || !is_valid(value, cpu.model.xcr0_supported().into_bits()) {
        return Err(Exception::GP0);
    }
    cpu.xcr0 = Xcr0::from_bits(value);
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_in_both_formats() {
        assert_eq!((offset(AVX, 0), offset(PKRU, 0)), (576, 2688));
        let both = COMPACTED | X87 | SSE | AVX | PKRU;
        assert_eq!((offset(AVX, both), offset(PKRU, both)), (576, 832));
        assert_eq!(offset(PKRU, COMPACTED | SSE | PKRU), 576);
        assert_eq!(
            (extent(X87 | SSE, 0), extent(AVX, 0), extent(PKRU, 0), extent(AVX | PKRU, both)),
            (576, 832, 2696, 840)
        );
    }

    #[test]
    fn headers_are_checked() {
        let xcr0 = X87 | SSE | AVX;
        let header = |present, layout, third, last| [present, layout, third, 0, 0, 0, 0, last];
        // Standard format.
        assert_eq!(check_header(&header(AVX | SSE, 0, 0, 0), xcr0, false), Some((AVX | SSE, 0)));
        assert_eq!(check_header(&header(SSE, 0, 0, 9), xcr0, false), Some((SSE, 0)), "bytes 63–24 are not checked");
        assert_eq!(check_header(&header(SSE, 0, 1, 0), xcr0, false), None);
        assert_eq!(check_header(&header(PKRU, 0, 0, 0), xcr0, false), None);
        assert_eq!(check_header(&header(SSE, SSE, 0, 0), xcr0, false), None);
        assert_eq!(check_header(&header(SSE, 0, 0, 0), xcr0, true), None, "XRSTORS wants the compacted format");
        // Compacted format.
        let layout = COMPACTED | SSE | AVX;
        assert_eq!(check_header(&header(AVX, layout, 0, 0), xcr0, true), Some((AVX, layout)));
        assert_eq!(check_header(&header(X87, layout, 0, 0), xcr0, false), None);
        assert_eq!(check_header(&header(AVX, layout | PKRU, 0, 0), xcr0, false), None);
        assert_eq!(check_header(&header(AVX, layout, 0, 1), xcr0, false), None);
    }

    #[test]
    fn xcr0_values() {
        let all = X87 | SSE | AVX | PKRU;
        for (value, ok) in [
            (0, false),
            (X87, true),
            (SSE, false),
            (X87 | AVX, false),
            (all, true),
            (X87 | PKRU, true),
            (all | 8, false),
        ] {
            assert_eq!(is_valid(value, all), ok, "{value:x}");
        }
        assert!(!is_valid(X87 | SSE | AVX, X87 | SSE));
    }

    #[test]
    fn pointers_by_operand_size() {
        let mut vector = VectorState::new();
        vector.set_x87_pointers((0x7ff, 0x1_0010_1234_5678, 0x18_0000_1000));
        let wide = x87_image(&vector, true, true);
        let mut back = VectorState::new();
        load_x87(&mut back, &wide, true);
        assert_eq!(back.x87_pointers(), vector.x87_pointers());
        let narrow = x87_image(&vector, false, true);
        load_x87(&mut back, &narrow, false);
        assert_eq!(back.x87_pointers(), (0x7ff, 0x1234_5678, 0x1000));
        // Outside 64-bit mode the selectors are there.
        load_x87(&mut back, &x87_image(&vector, false, false), false);
        assert_eq!(back.fdp(), 0x18_0000_1000);
    }
}
