//! Texts as watch expressions, trace filters, trace specifications and names of symbol files. What is refused is refused
//! in one line.
#![no_main]

use lens::symbols::Source;
use lens::trace::Spec;
use lens::{Lens, Watch};
use libfuzzer_sys::fuzz_target;
use std::fmt::Display;

fn one_line<T, E: Display>(result: &Result<T, E>) {
    if let Err(error) = result {
        assert_eq!(error.to_string().lines().count(), 1, "an error is one line: {error}");
    }
}

fuzz_target!(|text: &str| {
    let watch = text.parse::<Watch>();
    one_line(&watch);
    one_line(&Watch::filter(text));
    one_line(&text.parse::<Spec>());
    one_line(&text.parse::<Source>());
    if let Ok(watch) = watch {
        let lens = Lens::default();
        let id = lens.watch(watch).expect("there is room for one");
        assert_eq!(lens.watches().len(), 1);
        assert!(lens.unwatch(id));
    }
});
