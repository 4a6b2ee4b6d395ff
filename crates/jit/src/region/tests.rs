//! Small programs, and the graph that is made of them.

use super::*;
use crate::graph::{Graph, Node};
use iced_x86::code_asm::*;

/// The bytes of a page that begins with what `write` assembles.
fn page(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler).unwrap();
    let mut bytes = assembler.assemble(0).unwrap();
    bytes.resize(4096, 0xcc);
    bytes
}

fn build(bytes: &[u8], known: impl Fn(u16) -> bool) -> Region {
    build_from(bytes, 0, &Graph::default(), known).expect("a region")
}

fn build_from(bytes: &[u8], entry: u16, graph: &Graph, known: impl Fn(u16) -> bool) -> Option<Region> {
    let (model, mode) = (
        &Model::max(),
        Mode { user: false, x87: true, sse: true, avx: true, legacy: None, counts: false, records: false },
    );
    Explorer::default().region(&Source { bytes, model, mode, graph }, entry, known)
}

fn offsets(region: &Region) -> Vec<u16> {
    region.blocks.iter().map(|block| block.offset).collect()
}

fn insn(region: &Region, number: usize) -> &Insn {
    region.blocks.iter().flat_map(|block| region.insns(block)).nth(number).unwrap()
}

#[test]
fn a_loop_is_one_block_that_polls() {
    let bytes = page(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 10)?; // 0
        a.set_label(&mut again)?;
        a.dec(ecx)?; // 5
        a.jne(again)?; // 7
        a.ret() // 9
    });
    let region = build(&bytes, |_| true);
    assert_eq!(offsets(&region), [0, 5, 9]);
    let [before, body, after] = &region.blocks[..] else { unreachable!() };
    assert_eq!((before.next, before.target, before.root), (Goal::Block(1), Goal::Outside, true));
    assert_eq!((body.next, body.target, body.root), (Goal::Block(2), Goal::Block(1), false));
    assert_eq!((after.next, after.target), (Goal::Outside, Goal::Outside));
    assert_eq!([before, body, after].map(|block| region.loops(block)), [false, true, false]);
    assert_eq!(after.entry, Entry::Inherited, "one block leads here, and comes before");
    // DEC keeps CF, which whoever is called next may read.
    assert_eq!(body.entry, Entry::Rflags);
}

#[test]
fn only_what_has_run_is_taken() {
    let bytes = page(|a| {
        let mut over = a.create_label();
        a.test(eax, eax)?; // 0
        a.je(over)?; // 2
        a.mov(eax, 1)?; // 4
        a.set_label(&mut over)?;
        a.ret() // 9
    });
    assert_eq!(offsets(&build(&bytes, |_| true)), [0, 4, 9]);
    let taken = build(&bytes, |at| at == 9);
    assert_eq!(offsets(&taken), [0, 9]);
    assert_eq!((taken.blocks[0].next, taken.blocks[0].target), (Goal::Outside, Goal::Block(1)));
    let fallen = build(&bytes, |at| at == 4);
    assert_eq!((offsets(&fallen), fallen.blocks[0].target), (vec![0, 4], Goal::Outside));
    assert_eq!(offsets(&build(&bytes, |_| false)), [0]);
}

#[test]
fn where_calls_return_to_is_entered_from_outside() {
    let bytes = page(|a| {
        a.call(0x100)?; // 0
        a.cpuid()?; // 5
        a.ret() // 7
    });
    let region = build(&bytes, |_| true);
    assert_eq!(offsets(&region), [0, 5, 7], "the function itself is not part of it");
    assert!(region.blocks.iter().all(|block| block.root && block.target == Goal::Outside));
    assert_eq!(offsets(&build(&bytes, |at| at != 7)), [0, 5]);
}

#[test]
fn a_jump_into_an_instruction_gives_both_readings() {
    // jmp 1, whose second byte begins INC EAX; ret.
    let mut bytes = vec![0xeb, 0xff, 0xc0, 0xc3];
    bytes.resize(4096, 0xcc);
    let region = build(&bytes, |_| true);
    assert_eq!(offsets(&region), [0, 1]);
    assert_eq!(region.blocks[0].target, Goal::Block(1));
    assert_eq!(region.blocks[1].insns.len(), 2);
    assert!(!region.loops(&region.blocks[0]), "it jumps forward");
}

#[test]
fn regions_end_with_the_page_and_are_bounded() {
    let mut bytes = vec![0x90; 4096];
    assert_eq!(build(&bytes, |_| true).blocks[0].insns.len(), explore::MAX_INSTRUCTIONS);
    let last = |bytes: &[u8], entry| build_from(bytes, entry, &Graph::default(), |_| true);
    let region = last(&bytes, 4090).unwrap();
    assert_eq!((region.blocks[0].insns.len(), region.blocks[0].next), (6, Goal::Outside));
    // MOV EAX, imm32 that needs a byte of the next page.
    bytes[4092] = 0xb8;
    assert!(last(&bytes, 4092).is_none());
    assert_eq!(last(&bytes, 4090).unwrap().blocks[0].insns.len(), 2);
}

#[test]
fn flags_that_are_overwritten_are_not_needed_but_may_be_seen() {
    let region = build(
        &page(|a| {
            a.add(rax, rbx)?;
            a.cmp(rcx, rdx)?;
            a.ret()
        }),
        |_| true,
    );
    let after = insn(&region, 0).after;
    assert!(!after.needed && !after.seen, "nothing between the two can fault: {after:?}");
    assert!(insn(&region, 1).after.needed, "they leave the region");

    let region = build(
        &page(|a| {
            a.add(rax, rbx)?;
            a.mov(rax, 5i64)?;
            a.mov(qword_ptr(rdi), rsi)?;
            a.mov(rdx, 1i64)?;
            a.cmp(rcx, rdx)?;
            a.ret()
        }),
        |_| true,
    );
    let after = insn(&region, 0).after;
    assert!(!after.needed && after.seen && !after.soon, "the store may fault: {after:?}");
    assert_eq!(after.changed, 1 << 0, "RAX changes while they can be seen, RDX afterwards");
    assert_eq!(insn(&region, 2).before.changed, 0);
    let behind = insn(&region, 2).after;
    assert!(!behind.seen && !behind.needed, "{behind:?}");
}

#[test]
fn flags_are_kept_for_what_faults_half_way() {
    let flags = |repeated: bool| {
        let bytes = page(|a| {
            a.test(rcx, rcx)?;
            if repeated {
                a.rep().stosd()?;
            } else {
                a.stosd()?;
            }
            a.cmp(rcx, rdx)?;
            a.ret()
        });
        insn(&build(&bytes, |_| true), 0).after
    };
    assert!(flags(false).seen && !flags(false).needed);
    assert!(flags(true).needed, "RCX will have changed");
}

#[test]
fn flags_are_read_soon_unless_an_access_comes_between() {
    let program = |access: bool| {
        page(|a| {
            let mut over = a.create_label();
            a.cmp(rcx, rdx)?;
            if access {
                a.mov(rax, qword_ptr(rdi))?;
            } else {
                a.mov(rax, rdi)?;
            }
            a.je(over)?;
            a.nop()?;
            a.set_label(&mut over)?;
            a.test(eax, eax)?;
            a.ret()
        })
    };
    let soon = build(&program(false), |_| true);
    let late = build(&program(true), |_| true);
    assert!(insn(&soon, 0).after.needed && insn(&soon, 0).after.soon);
    assert!(insn(&late, 0).after.needed && !insn(&late, 0).after.soon);
}

/// A join at which flags are dead, read at once, or read after an access.
#[test]
fn joins_agree_on_where_the_flags_are() {
    let entry = |read: bool, access: bool| {
        let bytes = page(|a| {
            let mut join = a.create_label();
            a.cmp(rcx, rdx)?;
            a.je(join)?;
            a.cmp(rcx, rsi)?;
            a.set_label(&mut join)?;
            if access {
                a.mov(rax, qword_ptr(rdi))?;
            }
            if read {
                a.setb(bl)?;
            }
            a.test(eax, eax)?;
            a.ret()
        });
        build(&bytes, |_| true).blocks.last().unwrap().entry
    };
    assert_eq!(entry(false, false), Entry::Dead);
    assert_eq!(entry(true, false), Entry::Rflags);
    assert_eq!(entry(true, true), Entry::Frame);
    assert_eq!(entry(false, true), Entry::Numbered, "only a fault would show them");
}

#[test]
fn what_is_interpreted_finds_the_flags_in_the_frame() {
    let region = build(
        &page(|a| {
            a.cmp(rcx, rdx)?;
            a.cpuid()?;
            a.ret()
        }),
        |_| true,
    );
    assert_eq!(insn(&region, 0).after, Future::KEPT);
    assert_eq!(region.blocks[1].entry, Entry::Frame);
}

#[test]
fn a_poll_sees_the_flags() {
    // The back edge's flags are dead in both directions, but for the poll before it.
    let bytes = page(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.add(rax, rbx)?;
        a.jmp(again)
    });
    let region = build(&bytes, |_| true);
    assert!(region.loops(&region.blocks[0]));
    let after = insn(&region, 0).after;
    assert!(after.seen && !after.needed, "{after:?}");
}

#[test]
fn instructions_know_their_memory_and_registers() {
    let region = build(
        &page(|a| {
            a.add(qword_ptr(rdi), rax)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.lea(rax, qword_ptr(rdi))?;
            a.xchg(ebx, ecx)?;
            a.mul(rsi)?;
            a.div(rsi)?;
            a.addps(xmm0, xmm1)?;
            a.ret()
        }),
        |_| true,
    );
    let get = |n: usize| insn(&region, n);
    assert_eq!([get(0).memory, get(1).memory, get(2).memory], [Some(true), Some(false), None]);
    assert_eq!([get(0).faults, get(2).faults, get(4).faults, get(5).faults], [true, false, false, true]);
    assert_eq!([get(0).changes, get(1).changes, get(3).changes, get(4).changes], [0, 1, 0b1010, 0b101]);
    assert!(region.units.vector && !region.units.x87);
}

/// A graph with a block at each of `blocks`, which lead where they say.
fn graph(blocks: &[(u16, [Option<u16>; 2])]) -> Graph {
    let mut graph = Graph::default();
    for (offset, to) in blocks {
        let (place, before) = (u32::from(*offset), Future::KEPT);
        let way = Way { place, entry: Entry::Frame, before, units: Units::NONE, polls: false, door: None };
        graph.insert(Node { offset: *offset, to: *to, way: Some(way) });
    }
    graph
}

#[test]
fn ways_end_where_code_was_translated() {
    let bytes = page(|a| {
        let (mut over, mut join) = (a.create_label(), a.create_label());
        a.test(eax, eax)?; // 0
        a.je(over)?; // 2
        a.mov(eax, 1)?; // 4
        a.jmp(join)?; // 9
        a.set_label(&mut over)?;
        a.mov(eax, 2)?; // 11
        a.set_label(&mut join)?;
        a.ret() // 16
    });
    let known = graph(&[(16, [None; 2]), (11, [Some(16), None])]);
    let region = build_from(&bytes, 0, &known, |_| true).unwrap();
    assert_eq!(offsets(&region), [0, 4]);
    assert_eq!(region.blocks[0].target, Goal::Known(*known.way(11).unwrap()));
    assert_eq!(region.blocks[1].target, Goal::Known(*known.way(16).unwrap()));
    // Falling into it is the same.
    let region = build_from(&bytes, 11, &graph(&[(16, [None; 2])]), |_| true).unwrap();
    assert_eq!((offsets(&region), region.blocks[0].next), (vec![11], Goal::Known(*known.way(16).unwrap())));
}

#[test]
fn a_loop_is_translated_again_with_what_closes_it() {
    let bytes = page(|a| {
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.mov(ecx, 10)?; // 0
        a.set_label(&mut again)?;
        a.mov(eax, 10)?; // 5
        a.set_label(&mut inner)?;
        a.dec(eax)?; // 10
        a.jne(inner)?; // 12
        a.dec(ecx)?; // 14
        a.jne(again)?; // 16
        a.ret() // 18
    });
    // The inner loop came first; what follows it leads back to it.
    let known = graph(&[(10, [Some(14), Some(10)]), (18, [None; 2])]);
    let region = build_from(&bytes, 14, &known, |_| true).unwrap();
    assert_eq!(offsets(&region), [5, 10, 14]);
    assert_eq!(region.blocks[2].next, Goal::Known(*known.way(18).unwrap()));
    // It does not lead back to what comes before both.
    let known = graph(&[(5, [Some(10), None]), (10, [Some(14), Some(10)]), (14, [Some(18), Some(5)])]);
    assert_eq!(offsets(&build_from(&bytes, 0, &known, |_| true).unwrap()), [0]);
}
