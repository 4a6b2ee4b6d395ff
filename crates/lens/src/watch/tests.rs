//! What expressions mean, and what is said of those that mean nothing.

use super::*;

fn parsed(text: &str) -> Watch {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn watch(kinds: &str, start: Start, len: u64) -> Watch {
    let kinds = Kinds { read: kinds.contains('r'), write: kinds.contains('w'), fetch: kinds.contains('x') };
    Watch::new(kinds, start, len)
}

#[test]
fn every_form_is_understood() {
    let gva = || Start::Virtual(Gva(0xffff_8880_07ed_ec80));
    let gpa = || Start::Physical(Gpa(0x7e_dec8));
    let symbol = |name: &str, pointer| Start::Symbol { name: name.to_owned(), pointer };
    let cases = [
        ("r:ffff888007edec80", watch("r", gva(), 1)),
        ("w:0xffff888007edec80", watch("w", gva(), 1)),
        ("x:0XFFFF888007EDEC80", watch("x", gva(), 1)),
        ("rw:ffff888007edec80+4", watch("rw", gva(), 4)),
        ("xr:ffff888007edec80+0x10", watch("rx", gva(), 16)),
        ("ffff888007edec80+10", watch("rw", gva(), 16)),
        ("gpa:7edec8", watch("rw", gpa(), 1)),
        ("GPA:7edec8", watch("rw", gpa(), 1)),
        ("r:gpa:0x7edec8+4", watch("r", gpa(), 4)),
        ("rwx:gpa:7edec8+1000", watch("rwx", gpa(), 4096)),
        ("0", watch("rw", Start::Virtual(Gva(0)), 1)),
        ("r:ffffffffffffffff+1", watch("r", Start::Virtual(Gva(u64::MAX)), 1)),
        ("saved_command_line", watch("rw", symbol("saved_command_line", false), 1)),
        ("r:*saved_command_line+10", watch("r", symbol("saved_command_line", true), 16)),
        ("w:x86_init.c$1+8", watch("w", symbol("x86_init.c$1", false), 8)),
        ("x:_text", watch("x", symbol("_text", false), 1)),
        ("face", watch("rw", Start::Virtual(Gva(0xface)), 1)),
    ];
    for (text, watch) in cases {
        assert_eq!(parsed(text), watch, "{text}");
        assert_eq!(parsed(&watch.to_string()), watch, "{watch}");
    }
}

#[test]
fn errors_say_where_and_what_would_be_right() {
    let cases = [
        ("", 0, "nothing"),
        ("q:1000", 0, "'q' is not a kind"),
        ("rq:1000", 1, "'q' is not a kind"),
        ("rr:1000", 1, "twice"),
        (":1000", 0, "before the colon"),
        ("r:", 2, "nothing"),
        ("r:*", 3, "name of a symbol"),
        ("r:*ffff", 3, "name of a symbol"),
        ("r:**p", 3, "name of a symbol"),
        ("r:gpa:xyz", 6, "'x'"),
        ("r:xyz+", 6, "nothing"),
        ("r:xyz+0", 6, "at least 1"),
        ("r:xyz-1", 5, "'-' is too much"),
        ("r:12z4", 4, "'z' is too much"),
        ("r:1000+", 7, "nothing"),
        ("r:1000+0", 7, "at least 1"),
        ("r:1000+4 x", 9, "\"x\" is not understood here; if CONDITION"),
        ("r:gpa:", 6, "nothing"),
        ("gva:1000", 0, "'g' is not a kind"),
        ("r:0x", 4, "nothing"),
        ("r:11112222333344445", 2, "64 bits"),
        ("r:8000000000000000", 2, "not canonical"),
        ("r:gpa:10000000000000", 6, "52 bits"),
        ("r:ffffffffffffffff+2", 19, "past the highest"),
        ("\u{e4}:1000", 0, "is not a kind"),
        ("r:\u{e4}", 2, "'\u{e4}'"),
    ];
    for (text, column, word) in cases {
        let error = text.parse::<Watch>().expect_err(text);
        assert_eq!(error.column, column, "{error}");
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
    let text = "r:12z4".parse::<Watch>().unwrap_err().to_string();
    assert!(text.starts_with("watch \"r:12z4\", column 5: "), "{text}");
}

fn compare(field: Field, mask: Option<u128>, relation: Relation, number: u128) -> Condition {
    Condition::Compare { field, mask, relation, with: Operand::Number(number) }
}

#[test]
fn conditions_limits_and_actions_are_understood() {
    use Field::{Cpu, Cr3, Old, Rip, Size, Value};
    use Relation::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    let symbol = |name: &str, len| Code { start: CodeStart::Symbol(name.to_owned()), len };
    let address = |gva, len| Code { start: CodeStart::Address(Gva(gva)), len: Some(len) };
    let cases = [
        ("value == 10", vec![compare(Value, None, Equal, 16)]),
        ("value&ff==0x63", vec![compare(Value, Some(0xff), Equal, 0x63)]),
        (
            "value & ff != 63 and old >= 5",
            vec![compare(Value, Some(0xff), NotEqual, 0x63), compare(Old, None, GreaterOrEqual, 5)],
        ),
        ("value != old", vec![Condition::Compare { field: Value, mask: None, relation: NotEqual, with: Operand::Old }]),
        ("size == 16 && cpu < 0x10", vec![compare(Size, None, Equal, 16), compare(Cpu, None, Less, 16)]),
        ("cr3 == 2544000 and user", vec![compare(Cr3, None, Equal, 0x254_4000), Condition::User(true)]),
        (
            "kernel and rip > ffffffff81000000",
            vec![Condition::User(false), compare(Rip, None, Greater, 0xffff_ffff_8100_0000)],
        ),
        ("rip <= 5", vec![compare(Rip, None, LessOrEqual, 5)]),
        ("rip in memset", vec![Condition::Rip { inside: true, code: symbol("memset", None) }]),
        ("rip not in memcpy+20", vec![Condition::Rip { inside: false, code: symbol("memcpy", Some(0x20)) }]),
        ("rip in 1000+10", vec![Condition::Rip { inside: true, code: address(0x1000, 16) }]),
        ("rip in 1000", vec![Condition::Rip { inside: true, code: address(0x1000, 1) }]),
        ("process == cat", vec![Condition::Process { is: true, name: "cat".to_owned() }]),
        (
            "process != \"a b\" and user",
            vec![Condition::Process { is: false, name: "a b".to_owned() }, Condition::User(true)],
        ),
    ];
    for (text, conditions) in cases {
        for (behind, limit, action) in
            [("", None, Action::Print), (" count 10", Some(10), Action::Print), (" then stop", None, Action::Stop)]
        {
            let watch = parsed(&format!("r:x  if {text}{behind} "));
            assert_eq!((&watch.conditions, watch.limit, watch.action), (&conditions, limit, action), "{text}");
            assert_eq!(parsed(&watch.to_string()), watch, "{watch}");
        }
    }
    for (text, action) in [("print", Action::Print), ("log", Action::Log), ("count", Action::Count)] {
        let watch = parsed(&format!("gpa:1000+4 count 0x10 then {text}"));
        assert_eq!((watch.limit, watch.action), (Some(16), action));
        assert_eq!(parsed(&watch.to_string()), watch, "{watch}");
    }
}

#[test]
fn what_is_wrong_behind_the_bytes_is_shown_where_it_is() {
    let many = format!("r:x if {}", ["user"; 17].join(" and "));
    let cases = [
        ("r:x if", 6, "a condition is"),
        ("r:x if vale == 1", 7, "a condition is"),
        ("r:x if value = 1", 13, "==, !="),
        ("r:x if value == ", 16, "there is nothing"),
        ("r:x if value == g", 16, "hexadecimal digits"),
        ("r:x if value & == 1", 15, "the mask"),
        ("r:x if value == 111122223333444455556666777788889", 16, "128 bits"),
        ("r:x if cr3 == 1001", 14, "low 12 bits"),
        ("r:x if cpu == f", 14, "decimal"),
        ("r:x if old == old", 14, "hexadecimal digits"),
        ("r:x if rip in", 13, "the address"),
        ("r:x if rip not 5", 15, "in would be right"),
        ("r:x if rip in f+0", 16, "at least 1"),
        ("r:x if rip in 8000000000000000", 14, "canonical"),
        ("r:x if process < a", 17, "== NAME"),
        ("r:x if process == \"a", 18, "quote"),
        ("r:x if process == 1234567890123456", 18, "15 bytes"),
        ("r:x if user or kernel", 12, "\"or\" is not understood here; and CONDITION"),
        ("r:x if user and", 15, "a condition is"),
        ("r:x count", 9, "decimal number; there is nothing"),
        ("r:x count 0", 10, "at least 1"),
        ("r:x count 5x", 10, "\"5x\""),
        ("r:x count 18446744073709551616", 10, "decimal"),
        ("r:x then", 8, "print, log, count, stop"),
        ("r:x then halt", 9, "print, log, count, stop"),
        ("r:x then stop count 5", 14, "nothing comes behind"),
        ("r:x count 5 if user", 12, "then ACTION"),
        ("r:x , y", 4, "',' is too much"),
        (&many, 151, "16 conditions"),
    ];
    for (text, column, word) in cases {
        let error = text.parse::<Watch>().expect_err(text);
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.column, column, "{error}");
    }
    let error = Watch::filter("r:x if user then log").expect_err("an action");
    assert_eq!(error.column, 12, "{error}");
}

#[test]
fn a_filter_may_be_kinds_alone() {
    let all = Watch::filter("xw if user count 9").unwrap();
    assert_eq!(all.start, Start::Physical(Gpa(0)));
    assert_eq!((all.kinds.read, all.kinds.write, all.kinds.fetch), (false, true, true));
    assert_eq!((all.conditions, all.limit), (vec![Condition::User(true)], Some(9)));
    assert_eq!(Watch::filter("w:rw+4").unwrap(), parsed("w:rw+4"));
    assert!(Watch::filter("rr").unwrap_err().to_string().contains("twice"));
}

/// Whatever is given, there is an answer, and it is short.
#[test]
fn no_expression_is_too_strange() {
    let long = "r:".to_owned() + &"f".repeat(1 << 20);
    let error = long.parse::<Watch>().unwrap_err().to_string();
    assert!(error.contains("1048578 bytes: 4096 at most") && error.len() < 300, "{error}");
    let pieces = [
        "r",
        "w",
        "x",
        "rw",
        ":",
        "gpa:",
        "*",
        "jiffies",
        "ffffffff81000000",
        "0x",
        "+",
        "4",
        " ",
        "if",
        "and",
        "&&",
        "&",
        "value",
        "old",
        "size",
        "cpu",
        "cr3",
        "rip",
        "in",
        "not",
        "process",
        "\"",
        "user",
        "kernel",
        "==",
        "!=",
        "<",
        "count",
        "then",
        "stop",
        "log",
        "\u{e4}",
        "\u{1f980}",
        "\0",
        "\u{a0}",
        "-1",
        "99999999999999999999999999",
    ];
    // A linear congruential generator will do.
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut understood = 0;
    for _ in 0..200_000 {
        // Half of them begin as one should.
        let mut text = if random(2) == 0 { "r:jiffies+8 if ".to_owned() } else { String::new() };
        for _ in 0..random(12) {
            text += pieces[random(pieces.len())];
            if random(2) == 0 {
                text.push(' ');
            }
        }
        for result in [text.parse::<Watch>(), Watch::filter(&text)] {
            match result {
                Ok(watch) => {
                    understood += 1;
                    assert_eq!(parsed(&watch.to_string()), watch, "{text:?}");
                }
                Err(error) => assert!(error.column <= text.chars().count(), "{error}"),
            }
        }
    }
    assert!(understood > 1000, "{understood}");
}
