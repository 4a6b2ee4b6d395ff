//! Random programs: functions of nested statements, with loops that count, branches, calls that do not always return
//! where they should, tables of addresses, strings, interrupts and code that changes itself.
//!
//! Programs end by how they are made: every loop counts in a register that nothing else in it writes, or in a memory
//! cell that it masks; functions call only those before them; faults go on behind the instruction. What changed code or a
//! stray return may do beyond that is bounded by the kernel's log and by the watchdog.

use crate::case::{Case, Label, Piece, Use};
use crate::catalogue::Class;
use crate::layout::{ALIAS, COUNTERS, FUEL, PAGE, USER_STACK, World};
use crate::mode::Mode;
use crate::random::Random;
use crate::sequence::{Constraints, Flags, Generator, address};
use crate::start::{Roles, Start};
use cpu::state::{RBP, RBX, RCX, RDI, RSI, RSP};
use iced_x86::{Code, IcedError, Instruction, MemoryOperand, Register};

mod array;
mod flow;
mod memory;
mod system;

/// Instructions that a program may execute, as far as can be told beforehand.
const BUDGET: u64 = 4000;
/// How deep statements nest.
const DEPTH: u32 = 3;
/// Registers that loops count in; only 64-bit code has all of them.
const COUNTING: [usize; 6] = [RBX, RBP, 12, 13, 14, 15];

/// A function that may be called.
#[derive(Clone, Copy, Debug)]
struct Function {
    label: Label,
    /// Instructions that a call executes, about.
    cost: u64,
    /// Calls itself as often as R11 (EDX in 32-bit code) says.
    recursive: bool,
}

/// Writes one program.
struct Writer<'a> {
    generator: &'a mut Generator,
    random: Random,
    constraints: Constraints,
    /// Bytes that calls, pushes and jumps work with.
    word: u64,
    roles: Roles,
    /// The pages of the case are the supervisor's.
    kernel: bool,
    pieces: Vec<Piece>,
    labels: Label,
    functions: Vec<Function>,
    /// Counters in memory that are in use.
    cells: u64,
    /// How often what is written now is executed.
    times: u64,
    /// Instructions executed so far.
    spent: u64,
}

impl Generator {
    /// The program of a seed.
    pub fn program(&mut self, seed: u64) -> Case {
        let mut random = Random::new(seed);
        let mode = self.mode(&mut random);
        let (mut start, roles) = Start::random(&mut random, mode);
        if !random.one_in(16) {
            start.gpr[RSP] = mode.reach(USER_STACK + 0x1800 + random.below(64) * 8).1;
        }
        let word = match mode.bits() {
            64 => 8,
            32 => 4,
            _ => random.pick(&[2, 2, 4]),
        };
        let offset = random.index(PAGE as usize);
        let mut writer = Writer {
            constraints: Constraints { reserved: 1 << RSP, ..Constraints::new(&start) },
            word,
            kernel: start.world == World::Kernel,
            generator: self,
            random,
            roles,
            pieces: Vec::new(),
            labels: 0,
            functions: Vec::new(),
            cells: 0,
            times: 1,
            spent: 0,
        };
        writer.write();
        let pieces = writer.pieces;
        Case { seed, offset, start, pieces }
    }
}

impl Writer<'_> {
    fn write(&mut self) {
        let end = self.label();
        let functions = self.random.index(4);
        for _ in 0..functions {
            self.function(end);
        }
        let behind = std::mem::take(&mut self.pieces);
        for _ in 0..2 + self.random.index(6) {
            self.statement(DEPTH);
        }
        self.jump(end, 0);
        self.pieces.extend(behind);
        self.place(end);
    }

    /// A function, to be called by those that are written after it. It may be called so often until the program ends,
    /// since returns do not always go where they should.
    fn function(&mut self, end: Label) {
        let (label, before) = (self.label(), self.spent);
        self.place(label);
        let fuel = self.at(FUEL);
        self.add(Instruction::with1(Code::Dec_rm32, fuel));
        let code = self.by_word([Code::Js_rel16, Code::Js_rel32_32, Code::Js_rel32_64]);
        self.branch(code, end);
        let recursive = self.random.one_in(4);
        if recursive {
            self.recursion(label);
        } else {
            self.frame(|writer| {
                for _ in 0..1 + writer.random.index(3) {
                    writer.statement(1);
                }
            });
        }
        let cost = self.spent - before + 4;
        self.spent = before;
        self.functions.push(Function { label, cost, recursive });
    }

    /// A statement, in which others nest up to `depth`.
    fn statement(&mut self, depth: u32) {
        match self.random.below(if depth == 0 { 15 } else { 24 }) {
            0..4 => {
                let count = 1 + self.random.index(6);
                self.straight(count);
            }
            4 | 5 => self.flags_apart(),
            6 => self.stack(),
            7 => self.string(),
            8 => self.patch(),
            9 => self.point(),
            10 => self.system(),
            11 => self.call(),
            12 => self.stray(),
            13 => self.control_word(),
            14 => self.array(),
            15..19 => self.counted(depth - 1),
            19 | 20 => self.either(depth - 1),
            21 => self.switch(depth - 1),
            22 => self.across_a_page(depth - 1),
            _ => self.call(),
        }
    }

    // --- small parts

    fn mode(&self) -> Mode {
        self.constraints.mode
    }

    fn wide(&self) -> bool {
        self.mode() == Mode::Long
    }

    /// The code for narrow or for 64-bit addresses.
    fn by_mode(&self, narrow: Code, wide: Code) -> Code {
        if self.wide() { wide } else { narrow }
    }

    /// The code for words of 2, 4 or 8 bytes.
    fn by_word(&self, of: [Code; 3]) -> Code {
        of[self.word as usize / 4]
    }

    /// A general register of a word's width.
    fn register(&self, number: usize) -> Register {
        [Register::AX, Register::EAX, Register::RAX][self.word as usize / 4] + number as u32
    }

    /// A general register of an address's width.
    fn pointer(&self, number: usize) -> Register {
        (if self.wide() { Register::RAX } else { Register::EAX }) + number as u32
    }

    /// What leads from an address of code to its other name, if there is one.
    fn alias(&self) -> i32 {
        if self.mode() == Mode::Real { 0 } else { ALIAS as i32 }
    }

    /// A register that may be written.
    fn free(&mut self) -> usize {
        let all: u16 = if self.wide() { 0xffff } else { 0xff };
        let free = all & !self.constraints.reserved;
        let number = self.random.bit(free & !self.roles.pointers).or_else(|| self.random.bit(free)).unwrap_or(0);
        self.roles.pointers &= !(1 << number);
        self.roles.small &= !(1 << number);
        number
    }

    fn is_free(&self, registers: u16) -> bool {
        self.constraints.reserved & registers == 0
    }

    fn label(&mut self) -> Label {
        self.labels += 1;
        self.labels - 1
    }

    fn push_piece(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }

    fn place(&mut self, label: Label) {
        self.push_piece(Piece::Label(label));
    }

    /// Adds an instruction.
    fn add(&mut self, instruction: Result<Instruction, IcedError>) {
        let Ok(instruction) = instruction else { return };
        if let Some(piece) = self.generator.piece(&mut self.random, self.constraints.mode, &instruction) {
            self.push_piece(piece);
            self.spent += self.times;
        }
    }

    /// Adds an instruction that names a label.
    fn add_labelled(&mut self, instruction: Result<Instruction, IcedError>, how: Use, label: Label, add: i32) {
        let Ok(instruction) = instruction else { return };
        self.push_piece(Piece::Labelled(instruction, how, label, add));
        self.spent += self.times;
    }

    fn branch(&mut self, code: Code, label: Label) {
        self.add_labelled(Instruction::with_branch(code, 0), Use::Branch, label, 0);
    }

    /// A jump to a label, or so many bytes on.
    fn jump(&mut self, label: Label, add: i32) {
        let code = self.by_word([Code::Jmp_rel16, Code::Jmp_rel32_32, Code::Jmp_rel32_64]);
        self.add_labelled(Instruction::with_branch(code, 0), Use::Branch, label, add);
    }

    /// Loads a register of 32 bits.
    fn load(&mut self, number: usize, value: u32) {
        self.add(Instruction::with2(Code::Mov_r32_imm32, Register::EAX + number as u32, value));
    }

    /// Loads a register with the address of a label.
    fn load_label(&mut self, number: usize, label: Label, add: i32) {
        let instruction = Instruction::with2(Code::Mov_r32_imm32, Register::EAX + number as u32, 0u32);
        self.add_labelled(instruction, Use::Immediate, label, add);
    }

    /// A memory operand at an address of the case that is below 2 GiB.
    fn at(&self, at: u64) -> MemoryOperand {
        address(self.mode(), at)
    }

    /// A memory operand in the code, at eight times a register or nothing from a label.
    fn table(&self, index: Register) -> MemoryOperand {
        let segment = if self.mode().bits() == 16 { Register::ES } else { Register::None };
        MemoryOperand::new(Register::None, index, 8, 0, if self.wide() { 8 } else { 4 }, false, segment)
    }

    /// Loads a register with an address.
    fn load_address(&mut self, number: usize, target: u64) {
        if self.wide() {
            self.add(Instruction::with2(Code::Mov_r64_imm64, self.pointer(number), target));
        } else {
            let offset = self.mode().reach(target).1;
            self.load(number, offset as u32);
        }
    }

    /// Adds random instructions.
    fn straight(&mut self, count: usize) {
        for _ in 0..count {
            let class = match self.random.below(24) {
                0..17 => Class::Integer,
                17..21 => Class::Vector,
                21 | 22 => Class::X87,
                _ => Class::System,
            };
            self.any(class, Flags::Any);
        }
    }

    /// Adds an instruction of a class, with such an effect on the flags.
    fn any(&mut self, class: Class, flags: Flags) {
        let constraints = Constraints { flags, ..self.constraints };
        let roles = &mut self.roles;
        self.generator.instruction(&mut self.random, class, &constraints, roles, 0, &mut self.pieces);
        self.spent += self.times;
    }

    /// Loads pointers anew.
    fn point(&mut self) {
        for _ in 0..1 + self.random.index(3) {
            let number = self.free();
            self.roles.pointers |= 1 << number;
            let target = crate::layout::spot(&mut self.random);
            self.load_address(number, target);
        }
        if self.is_free(1 << RCX) && self.random.one_in(2) {
            let count = self.random.below(40) as u32;
            self.load(RCX, count);
            self.roles.pointers &= !(1 << RCX);
            self.roles.small |= 1 << RCX;
        }
    }

    /// What is executed `times` as often as what surrounds it, as far as the budget allows. Gives the count to use.
    fn affordable(&mut self, wanted: u64) -> u64 {
        let left = BUDGET.saturating_sub(self.spent) / self.times.max(1) / 16;
        wanted.min(left).max(1)
    }

    /// A cell of memory to count in, zero at first.
    fn cell(&mut self) -> u64 {
        self.cells += 1;
        COUNTERS + 4 * (self.cells % 16)
    }

    /// Runs `body` with registers reserved beside those that are.
    fn reserving<T>(&mut self, registers: u16, body: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.constraints.reserved;
        self.constraints.reserved |= registers;
        let made = body(self);
        self.constraints.reserved = before;
        made
    }

    /// Index registers of string instructions.
    const STRING: u16 = 1 << RCX | 1 << RSI | 1 << RDI;
}
