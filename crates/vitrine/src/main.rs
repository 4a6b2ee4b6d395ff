//! The command `vitrine`: flags and wiring only.

mod demo;
mod flags;

fn main() {
    println!("{:?}", flags::parse(std::env::args_os().skip(1)));
}
