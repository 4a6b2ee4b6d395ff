//! Translations come, are found, and go.

use super::*;

const PAGE: Hva = Hva(0x7000_0000_0000);
const MODE: Mode = Mode { user: true, x87: true, sse: true, avx: true, legacy: None, counts: false, records: false };

fn cache() -> Cache {
    Cache::new(4 << 20).unwrap()
}

fn translate(cache: &mut Cache, page: Hva, bytes: &[u8], at: u64) -> Option<Door> {
    let (gva, model) = (Gva(0x40_0000 + at), &Model::max());
    let made = cache.translate(&Code { page, second: None, bytes, gva, model, mode: MODE }, |_| true);
    made.map(|(_, door)| door)
}

fn key(page: Hva, at: u64) -> Key {
    Key::new(Hva(page.0 + at), MODE)
}

/// What code is at `offset`.
fn code(cache: &Cache, offset: u32, bytes: usize) -> &[u8] {
    cache.code.bytes(offset as usize..offset as usize + bytes)
}

#[test]
fn doors_are_found_by_place_and_mode() {
    let mut cache = cache();
    // inc eax; call; nop; ret: two ways in.
    let mut bytes = vec![0xcc; 4096];
    bytes[..9].copy_from_slice(&[0xff, 0xc0, 0xe8, 0, 1, 0, 0, 0x90, 0xc3]);
    let door = translate(&mut cache, PAGE, &bytes, 0).unwrap();
    assert_eq!(cache.door(key(PAGE, 0)), Some(door));
    assert!(cache.door(key(PAGE, 7)).is_some_and(|behind| behind.outer > door.outer));
    assert_eq!(cache.door(key(PAGE, 2)), None, "nobody enters there from outside");
    assert_eq!(cache.door(Key::new(PAGE, Mode::default())), None);
    assert_eq!((cache.stats.instructions, cache.stats.distinct, cache.stats.guest_bytes), (4, 4, 9));
    // Asking for it again adds no code but that of a door.
    let again = translate(&mut cache, PAGE, &bytes, 7).unwrap();
    assert_eq!((cache.stats.instructions, cache.stats.distinct), (4, 4));
    assert_eq!(cache.door(key(PAGE, 7)), Some(again));
}

#[test]
fn overwritten_code_turns_away_at_the_door() {
    let mut cache = cache();
    let (mut bytes, other) = (vec![0x90; 4096], Hva(PAGE.0 + 4096));
    bytes[8] = 0xc3;
    let dropped = translate(&mut cache, PAGE, &bytes, 0).unwrap();
    let kept = translate(&mut cache, other, &bytes, 0).unwrap();
    let before = code(&cache, kept.outer, 5).to_vec();
    cache.drop_page(PAGE);
    assert_eq!((cache.door(key(PAGE, 0)), cache.door(key(other, 0))), (None, Some(kept)));
    assert_eq!(code(&cache, kept.outer, 5), before);
    let mut jump = vec![0xe9];
    jump.extend((cache.thunks.stale as i32 - (dropped.outer as i32 + 5)).to_le_bytes());
    assert_eq!(code(&cache, dropped.outer, 5), jump);
    assert_eq!(cache.stats.dropped, 1);
    cache.drop_page(PAGE);
    assert_eq!(cache.stats.dropped, 1);
    // Translated anew it is distinct code again.
    translate(&mut cache, PAGE, &bytes, 0).unwrap();
    assert_eq!(cache.stats.instructions, cache.stats.distinct);
}

#[test]
fn code_in_two_pages_goes_with_either() {
    // MOV EAX, 0x90909090, three of whose bytes lie in the next page.
    let second = Hva(PAGE.0 + 0x9000);
    let mut bytes = vec![0x90; 4096 + 15];
    bytes[4094] = 0xb8;
    for gone in [PAGE, second] {
        let mut cache = cache();
        let (gva, model) = (Gva(0x40_0ffe), &Model::max());
        let code = Code { page: PAGE, second: Some(second), bytes: &bytes, gva, model, mode: MODE };
        let (region, door) = cache.translate(&code, |_| true).unwrap();
        assert!(region.crosses() && door.second == Some(second));
        assert_eq!(cache.door(key(PAGE, 0xffe)), Some(door));
        cache.drop_page(gone);
        assert_eq!(cache.door(key(PAGE, 0xffe)), None);
        assert_eq!(cache.stats.dropped, 1);
    }
}

#[test]
fn jumps_are_linked() {
    let mut cache = cache();
    let at = cache.code.append(&[0xe9, 0, 0, 0, 0, 0x90]).unwrap() as u32;
    cache.link(at + 1, at + 0x105);
    assert_eq!(code(&cache, at, 6), [0xe9, 0, 1, 0, 0, 0x90]);
    cache.link(at + 1, at);
    assert_eq!(code(&cache, at, 6), [0xe9, 0xfb, 0xff, 0xff, 0xff, 0x90]);
}

#[test]
fn clearing_forgets_everything_but_the_thunks() {
    let mut cache = cache();
    let empty = cache.code.used();
    let thunks = code(&cache, 0, empty).to_vec();
    translate(&mut cache, PAGE, &[0xc3; 4096], 0).unwrap();
    cache.frame.insert(0x40_0000, 0, 1);
    cache.clear();
    assert_eq!((cache.door(key(PAGE, 0)), cache.frame.find(0x40_0000, 0)), (None, None));
    assert_eq!((cache.code.used(), cache.sites.len()), (empty, 0));
    assert_eq!(code(&cache, 0, empty), thunks);
}

/// mov [rbx+8], rax, as often as a region holds.
fn long() -> Vec<u8> {
    [0x48, 0x89, 0x43, 0x08].repeat(1024)
}

fn page(n: u64) -> Hva {
    Hva(PAGE.0 + n * 4096)
}

/// Translates page after page, from number `from` on, until the segment is full: the first one in the next segment.
fn fill(cache: &mut Cache, from: u64) -> u64 {
    let (segment, bytes) = (cache.current, long());
    for n in from..from + 4000 {
        let door = translate(cache, page(n), &bytes, 0).unwrap();
        assert_eq!(cache.door(key(page(n), 0)), Some(door));
        cache.frame.insert((n + 1) << 1, 0, cache.host(door.outer as usize));
        if cache.current != segment {
            return n;
        }
    }
    panic!("{} bytes of code fit", cache.stats.code);
}

#[test]
fn what_has_no_room_drops_the_oldest_code() {
    let mut cache = cache();
    let empty = cache.code.used();
    let thunks = code(&cache, 0, empty).to_vec();
    let mut firsts = vec![0];
    while cache.stats.flushes < 2 {
        firsts.push(fill(&mut cache, firsts[firsts.len() - 1]));
    }
    // After all were full segments 0 and 1 were emptied; the last page is in segment 1.
    assert_eq!((cache.current, firsts.len()), (1, cache.oldest.len() + 2));
    for n in 0..=firsts[firsts.len() - 1] {
        let kept = n >= firsts[2];
        assert_eq!(cache.door(key(page(n), 0)).is_some(), kept, "page {n} of {firsts:?}");
        assert_eq!(cache.frame.find((n + 1) << 1, 0).is_some(), kept, "page {n} of {firsts:?}");
    }
    assert_eq!(code(&cache, 0, empty), thunks, "shared code stays");
    assert!(cache.stats.stall <= cache.stats.flushing);
    assert_eq!(cache.stats.dropped, 0, "nothing was overwritten");
}

#[test]
fn pages_go_with_their_oldest_code() {
    let mut cache = cache();
    let mut bytes = vec![0xcc; 4096];
    // inc eax; ret, in two places.
    for at in [0, 0x800] {
        bytes[at..at + 3].copy_from_slice(&[0xff, 0xc0, 0xc3]);
    }
    let (old, new) = (page(100_000), page(100_001));
    translate(&mut cache, old, &bytes, 0).unwrap();
    let mut next = fill(&mut cache, 0);
    let later = translate(&mut cache, old, &bytes, 0x800).unwrap();
    let young = translate(&mut cache, new, &bytes, 0x800).unwrap();
    while cache.stats.flushes < 1 {
        next = fill(&mut cache, next);
    }
    assert_eq!([0, 0x800].map(|at| cache.door(key(old, at))), [None; 2]);
    assert_eq!(code(&cache, later.outer, 1), [0xe9], "whoever knows the later code is turned away");
    assert_eq!(cache.door(key(new, 0x800)), Some(young));
    // Translated again it is younger than what is dropped next.
    let again = translate(&mut cache, old, &bytes, 0).unwrap();
    fill(&mut cache, next);
    assert_eq!((cache.door(key(old, 0)), cache.door(key(new, 0x800))), (Some(again), None));
}
