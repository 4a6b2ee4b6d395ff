//! Names by address and addresses by name.

use memory::Gva;
use std::fmt;

/// Symbols of a program, in the order of their addresses.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// All names, one behind the other.
    names: String,
    symbols: Vec<Symbol>,
}

/// A symbol: its address, and where in the names its own begins. That ends where the next one added begins.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    address: u64,
    name: u32,
    len: u32,
}

/// The name of a symbol, and ` [module]` behind it if it is a module's.
fn split(name: &str) -> (&str, &str) {
    name.find(" [").map_or((name, ""), |at| name.split_at(at))
}

/// Whether a symbol's name is `name`, whatever module it is in.
fn is(symbol: &str, name: &str) -> bool {
    symbol.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(" ["))
}

/// An address as a symbol and a distance from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The symbol's name.
    pub name: &'a str,
    /// Bytes from there.
    pub offset: u64,
    /// The module whose it is, in brackets and with a space before them; else nothing.
    pub module: &'a str,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if self.offset != 0 {
            write!(f, "+{:#x}", self.offset)?;
        }
        f.write_str(self.module)
    }
}

impl Table {
    /// From guest virtual addresses with their names, in any order. What has the same address as another keeps their order.
    pub fn new<'a>(symbols: impl IntoIterator<Item = (Gva, &'a str)>) -> Self {
        let mut table = Self::default();
        for (Gva(address), name) in symbols {
            let (Ok(start), Ok(len)) = (u32::try_from(table.names.len()), u32::try_from(name.len())) else { break };
            table.names.push_str(name);
            table.symbols.push(Symbol { address, name: start, len });
        }
        table.symbols.sort_by_key(|symbol| symbol.address);
        table
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    fn name_of(&self, symbol: &Symbol) -> &str {
        self.names.get(symbol.name as usize..(symbol.name + symbol.len) as usize).unwrap_or_default()
    }

    /// All symbols, in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = (Gva, &str)> {
        self.symbols.iter().map(|symbol| (Gva(symbol.address), self.name_of(symbol)))
    }

    /// Whether a symbol of this name is at `address`.
    #[must_use]
    pub fn has(&self, address: Gva, name: &str) -> bool {
        let first = self.symbols.partition_point(|symbol| symbol.address < address.0);
        let here = self.symbols.get(first..).unwrap_or_default().iter();
        here.take_while(|symbol| symbol.address == address.0).any(|symbol| is(self.name_of(symbol), name))
    }

    /// The last symbol at or before `address`, by its first name; none before the first symbol, nor behind the last one's
    /// own address, since nothing tells how long that is. What has no name ends what comes before.
    #[must_use]
    pub fn at(&self, address: Gva) -> Option<Named<'_>> {
        let behind = self.symbols.partition_point(|symbol| symbol.address <= address.0);
        let found = self.symbols.get(behind.checked_sub(1)?)?.address;
        let first = self.symbols.get(self.symbols.partition_point(|symbol| symbol.address < found))?;
        let within = behind < self.symbols.len() || found == address.0;
        let name = Some(self.name_of(first)).filter(|name| within && !name.is_empty())?;
        let (name, module) = split(name);
        Some(Named { name, offset: address.0 - found, module })
    }

    /// The first and the last address of what a symbol names: up to the next symbol.
    #[must_use]
    pub fn extent(&self, name: &str) -> Option<(Gva, Gva)> {
        let first = self.find(name)?;
        let behind = self.symbols.partition_point(|symbol| symbol.address <= first.0);
        Some((first, Gva(self.symbols.get(behind).map_or(first.0, |next| next.address - 1))))
    }

    /// The lowest address of a symbol, which the kernel's own precede those of modules in. It looks through all of them.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<Gva> {
        self.symbols.iter().find(|symbol| is(self.name_of(symbol), name)).map(|symbol| Gva(symbol.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_name_of_the_symbol_they_lie_in() {
        let table = Table::new(
            [(0x300, "_end"), (0x100, "_text"), (0x100, "startup_64"), (0x140, "main")]
                .map(|(address, name)| (Gva(address), name)),
        );
        let cases = [(0xff, ""), (0x100, "_text"), (0x13f, "_text+0x3f"), (0x140, "main"), (0x2ff, "main+0x1bf")];
        for (address, name) in cases.into_iter().chain([(0x300, "_end"), (0x301, "")]) {
            let found = table.at(Gva(address)).map(|named| named.to_string()).unwrap_or_default();
            assert_eq!(found, name, "{address:#x}");
        }
        assert_eq!(table.find("startup_64"), Some(Gva(0x100)));
        assert_eq!(table.find("start"), None);
        assert_eq!(table.extent("startup_64"), Some((Gva(0x100), Gva(0x13f))));
        assert_eq!((table.extent("_end"), table.extent("start")), (Some((Gva(0x300), Gva(0x300))), None));
        assert!(Table::default().at(Gva(0)).is_none() && Table::default().is_empty());
    }
}
