//! The 8042 keyboard controller without a keyboard (IBM PS/2 Hardware Interface Technical Reference).
//!
//! The controller is whole: status, self test, its RAM, output port with A20 and reset. No device is plugged in: a byte
//! for the keyboard gets the controller's time-out answer, and there is no auxiliary port. What guests still need it
//! for is reset (command FEh) and the A20 gate.

mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::{A20, Pin, PortDevice, PowerRequest, PowerSwitch, Reset};
use spec::{CommandByte, OutputPort, Status};
use std::sync::{Arc, Mutex};

pub use spec::{COMMAND, DATA};

/// The controller's registers.
#[derive(Debug)]
struct Core {
    /// The controller's RAM; byte 0 is the command byte.
    ram: [u8; 32],
    /// The byte in the output buffer, and whether it is a time-out answer.
    output: Option<(u8, bool)>,
    /// The last byte that was in the output buffer, which reads again when it is empty.
    last: u8,
    /// The command that waits for a data byte.
    pending: Option<u8>,
    /// Whether the last write went to the command port.
    command_last: bool,
    /// The output port as last written, without A20.
    port: OutputPort,
}

impl Default for Core {
    fn default() -> Self {
        let mut ram = [0; 32];
        // As firmware leaves it: self test passed, both devices held, translation on.
        let [byte, ..] = &mut ram;
        *byte = CommandByte::new()
            .with_system(true)
            .with_keyboard_off(true)
            .with_auxiliary_off(true)
            .with_translate(true)
            .into_bits();
        Self {
            ram,
            output: None,
            last: 0,
            pending: None,
            command_last: false,
            port: OutputPort::new().with_run(true).with_keyboard(3),
        }
    }
}

impl Core {
    fn command_byte(&self) -> CommandByte {
        let [byte, ..] = self.ram;
        CommandByte::from_bits(byte)
    }

    fn set_command_byte(&mut self, value: CommandByte) {
        let [byte, ..] = &mut self.ram;
        *byte = value.into_bits();
    }

    /// The controller itself has a byte for the guest.
    fn answer(&mut self, byte: u8) {
        self.output = Some((byte, false));
    }

    fn interrupt(&self) -> bool {
        self.output.is_some() && self.command_byte().keyboard_interrupt()
    }
}

/// The keyboard controller.
///
/// Lock order: `core`, then whatever the interrupt line takes. The power switch is called with `core` free.
#[derive(Debug)]
pub struct I8042 {
    core: Mutex<Core>,
    /// ISA interrupt 1.
    line: Pin,
    a20: Arc<A20>,
    power: Arc<dyn PowerSwitch>,
}

impl I8042 {
    /// A controller that interrupts through `line` (ISA interrupt 1), drives `a20` and resets through `power`.
    #[must_use]
    pub fn new(line: Pin, a20: Arc<A20>, power: Arc<dyn PowerSwitch>) -> Self {
        Self { core: Mutex::default(), line, a20, power }
    }

    fn status(&self, core: &Core) -> u8 {
        Status::new()
            .with_output_full(core.output.is_some())
            .with_system(core.command_byte().system())
            .with_command(core.command_last)
            .with_unlocked(true)
            .with_time_out(core.output.is_some_and(|(_, time_out)| time_out))
            .into_bits()
    }

    fn read_data(&self, core: &mut Core) -> u8 {
        if let Some((byte, _)) = core.output.take() {
            core.last = byte;
        }
        core.last
    }

    /// A write to port 64h. Returns whether to reset.
    fn command(&self, core: &mut Core, command: u8) -> bool {
        core.command_last = true;
        core.pending = None;
        match command {
            spec::READ_RAM..=spec::READ_RAM_LAST => {
                let byte = core.ram.get(usize::from(command & 0x1f)).copied().unwrap_or(0);
                core.answer(byte);
            }
            spec::WRITE_RAM..=spec::WRITE_RAM_LAST
            | spec::WRITE_OUTPUT
            | spec::WRITE_KEYBOARD_BUFFER
            | spec::WRITE_AUXILIARY_BUFFER
            | spec::SEND_AUXILIARY => core.pending = Some(command),
            spec::AUXILIARY_OFF => core.set_command_byte(core.command_byte().with_auxiliary_off(true)),
            spec::AUXILIARY_ON => core.set_command_byte(core.command_byte().with_auxiliary_off(false)),
            spec::TEST_AUXILIARY => core.answer(spec::CLOCK_STUCK),
            spec::SELF_TEST => {
                core.set_command_byte(core.command_byte().with_system(true));
                core.answer(spec::SELF_TEST_PASSED);
            }
            spec::TEST_KEYBOARD => core.answer(spec::LINES_GOOD),
            spec::KEYBOARD_OFF => core.set_command_byte(core.command_byte().with_keyboard_off(true)),
            spec::KEYBOARD_ON => core.set_command_byte(core.command_byte().with_keyboard_off(false)),
            spec::READ_INPUT => core.answer(spec::INPUT_PORT),
            spec::READ_OUTPUT => {
                let port = core.port.with_a20(self.a20.open()).with_irq1(core.interrupt());
                core.answer(port.into_bits());
            }
            spec::A20_OFF => self.a20.set(false),
            spec::A20_ON => self.a20.set(true),
            spec::PULSE.. => return command & 1 == 0,
            _ => {
                tracing::debug!(target: "guest_errors", command = format_args!("{command:#x}"), "unknown 8042 command");
            }
        }
        false
    }

    /// A write to port 60h. Returns whether to reset.
    fn data(&self, core: &mut Core, byte: u8) -> bool {
        core.command_last = false;
        match core.pending.take() {
            Some(command @ spec::WRITE_RAM..=spec::WRITE_RAM_LAST) => {
                if let Some(at) = core.ram.get_mut(usize::from(command & 0x1f)) {
                    *at = byte;
                }
            }
            Some(spec::WRITE_OUTPUT) => {
                core.port = OutputPort::from_bits(byte).with_run(true);
                self.a20.set(OutputPort::from_bits(byte).a20());
                return !OutputPort::from_bits(byte).run();
            }
            // Without an auxiliary port its buffer is the keyboard's, and the status says so: Linux then knows.
            Some(spec::WRITE_KEYBOARD_BUFFER | spec::WRITE_AUXILIARY_BUFFER) => core.answer(byte),
            // Sent into the void.
            Some(_) => {}
            None => {
                // Sending to the keyboard enables it (PS/2 reference, command ADh); nobody answers.
                core.set_command_byte(core.command_byte().with_keyboard_off(false));
                core.output = Some((spec::NO_ANSWER, true));
            }
        }
        false
    }

    fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = lock(&self.core);
        let result = act(&mut core);
        self.line.set(core.interrupt());
        result
    }
}

impl PortDevice for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&self, port: u16, _size: usize) -> u32 {
        self.with(|core| if port == COMMAND { self.status(core) } else { self.read_data(core) }).into()
    }

    fn write(&self, port: u16, _size: usize, value: u32) {
        let [byte, ..] = value.to_le_bytes();
        if self.with(|core| if port == COMMAND { self.command(core, byte) } else { self.data(core, byte) }) {
            self.power.request(PowerRequest::Reset);
        }
    }
}

impl Reset for I8042 {
    fn reset(&self) {
        self.with(|core| *core = Core::default());
    }
}
