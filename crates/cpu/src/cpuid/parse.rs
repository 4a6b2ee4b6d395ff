//! `-cpu`: a model's name, then features to add and to take away.
//!
//! `+name`, `-name` and `name=on|off` are applied in the order given; adding a feature brings what it needs, taking one
//! away takes what needs it. Keys: `vendor=` (12 characters), `family=`, `model=`, `stepping=`, `phys-bits=`,
//! `host-phys-bits[=on|off]`, `migratable=on|off` (accepted: nothing migrates).

use super::feature::{ENTRIES, Source, WORDS};
use super::{Feature, HostCpu, Model};
use thiserror::Error;

/// Why `-cpu`'s argument was not taken.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named in the messages")]
pub enum ModelError {
    /// No model of that name.
    #[error("no CPU model '{name}'; there are {}", MODELS.map(|(name, _)| name).join(", "))]
    UnknownModel { name: String },
    /// No feature of that name.
    #[error("no CPU feature '{name}'{}", suggest(.near))]
    UnknownFeature { name: String, near: Vec<&'static str> },
    /// The host does not execute it.
    #[error("this host's CPU does not have '{name}'")]
    HostLacks { name: &'static str },
    /// Vitrine does not implement it.
    #[error("CPU feature '{name}' is not implemented")]
    NotImplemented { name: &'static str },
    /// A value that makes no sense.
    #[error("'{key}={value}': {expected} would be right")]
    BadValue { key: String, value: String, expected: &'static str },
}

fn suggest(near: &[&str]) -> String {
    if near.is_empty() { String::new() } else { format!("; did you mean {}?", near.join(", ")) }
}

/// What a named model is made of.
#[derive(Clone, Copy, Debug)]
enum Base {
    /// All that there is.
    Max,
    /// Family, model, stepping and features.
    Listed(u32, u32, u32, &'static [Feature]),
}

const MODELS: [(&str, Base); 4] = [
    ("max", Base::Max),
    ("host", Base::Max),
    ("qemu64", Base::Listed(15, 107, 1, QEMU64)),
    ("Opteron_G1", Base::Listed(15, 6, 1, OPTERON_G1)),
];

/// What QEMU 10 gives a `qemu64` under TCG.
const QEMU64: &[Feature] = &[
    Feature::FPU,
    Feature::DE,
    Feature::PSE,
    Feature::TSC,
    Feature::MSR,
    Feature::PAE,
    Feature::MCE,
    Feature::CX8,
    Feature::APIC,
    Feature::SEP,
    Feature::MTRR,
    Feature::PGE,
    Feature::MCA,
    Feature::CMOV,
    Feature::PAT,
    Feature::PSE36,
    Feature::CLFLUSH,
    Feature::MMX,
    Feature::FXSR,
    Feature::SSE,
    Feature::SSE2,
    Feature::SSE3,
    Feature::CX16,
    Feature::HYPERVISOR,
    Feature::LAHF_LM,
    Feature::SYSCALL,
    Feature::NX,
    Feature::LM,
];

/// The first 64-bit Opterons, as QEMU describes them.
const OPTERON_G1: &[Feature] = &[
    Feature::FPU,
    Feature::DE,
    Feature::PSE,
    Feature::TSC,
    Feature::MSR,
    Feature::PAE,
    Feature::MCE,
    Feature::CX8,
    Feature::APIC,
    Feature::SEP,
    Feature::MTRR,
    Feature::PGE,
    Feature::MCA,
    Feature::CMOV,
    Feature::PAT,
    Feature::PSE36,
    Feature::CLFLUSH,
    Feature::MMX,
    Feature::FXSR,
    Feature::SSE,
    Feature::SSE2,
    Feature::SSE3,
    Feature::HYPERVISOR,
    Feature::SYSCALL,
    Feature::NX,
    Feature::LM,
];

/// Physical address width of the listed models, as QEMU's TCG has it.
const LISTED_PHYSICAL_BITS: u32 = 40;

pub(super) fn parse(spec: &str, host: &HostCpu) -> Result<Model, ModelError> {
    let mut items = spec.split(',');
    let name = items.next().unwrap_or("");
    let &(_, base) = MODELS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ModelError::UnknownModel { name: name.to_owned() })?;
    let mut model = match base {
        Base::Max => Model::max_on(host),
        Base::Listed(family, number, stepping, features) => {
            let mut model = Model {
                vendor: *b"AuthenticAMD",
                signature: signature(family, number, stepping),
                words: [0; WORDS],
                basic_max: 0xd,
                extended_max: 0x8000_000a,
                physical_bits: LISTED_PHYSICAL_BITS,
                cores: 1,
            };
            for &feature in features {
                add(&mut model, feature, host)?;
            }
            model
        }
    };
    // The vendor decides what a model shows by default, so it comes first.
    let items: Vec<&str> = items.filter(|item| !item.is_empty()).collect();
    if let Some(value) = items.iter().rev().find_map(|item| item.strip_prefix("vendor=")) {
        model.vendor = value.as_bytes().try_into().map_err(|_| bad("vendor", value, "a string of 12 characters"))?;
        if matches!(base, Base::Max) {
            model.set_defaults(host);
        }
    }
    for item in items {
        apply(&mut model, item, host)?;
    }
    // A feature word is only seen if its leaf is.
    for (word, (leaf, ..)) in model.words.iter().zip(super::PLACES) {
        if *word != 0 {
            let highest = if leaf >> 31 != 0 { &mut model.extended_max } else { &mut model.basic_max };
            *highest = leaf.max(*highest);
        }
    }
    Ok(model)
}

fn apply(model: &mut Model, item: &str, host: &HostCpu) -> Result<(), ModelError> {
    if let Some(name) = item.strip_prefix('+') {
        return add(model, find(name)?, host);
    }
    if let Some(name) = item.strip_prefix('-') {
        model.remove(find(name)?);
        return Ok(());
    }
    let (key, value) = item.split_once('=').unwrap_or((item, "on"));
    let number = |limit: u32, expected| match parse_number(value) {
        Some(number) if number <= limit => Ok(number),
        _ => Err(bad(key, value, expected)),
    };
    let (family, number_of_model, stepping) = split(model.signature);
    match key {
        "vendor" => {}
        "family" => model.signature = signature(number(0x10e, "a family up to 0x10e")?, number_of_model, stepping),
        "model" => model.signature = signature(family, number(0xff, "a model up to 0xff")?, stepping),
        "stepping" => model.signature = signature(family, number_of_model, number(15, "a stepping up to 15")?),
        "phys-bits" => {
            let expected = "a width from 32 to 52";
            model.physical_bits = number(52, expected)?;
            if model.physical_bits < 32 {
                return Err(bad(key, value, expected));
            }
        }
        "host-phys-bits" => {
            if switch(key, value)? {
                model.physical_bits = host.physical_bits;
            }
        }
        "migratable" => {
            switch(key, value)?;
        }
        name => {
            let feature = find(name)?;
            if switch(key, value)? {
                add(model, feature, host)?;
            } else {
                model.remove(feature);
            }
        }
    }
    Ok(())
}

fn bad(key: &str, value: &str, expected: &'static str) -> ModelError {
    ModelError::BadValue { key: key.to_owned(), value: value.to_owned(), expected }
}

fn switch(key: &str, value: &str) -> Result<bool, ModelError> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(bad(key, value, "on or off")),
    }
}

fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

fn find(name: &str) -> Result<Feature, ModelError> {
    Feature::named(name).ok_or_else(|| {
        let lower = name.to_lowercase().replace('_', "-");
        let mut near: Vec<(usize, &'static str)> = ENTRIES
            .iter()
            .flat_map(|entry| entry.names)
            .map(|known| (distance(&lower, known), *known))
            .filter(|&(distance, known)| distance <= 1 + known.len() / 4)
            .collect();
        near.sort_unstable();
        near.truncate(3);
        ModelError::UnknownFeature { name: name.to_owned(), near: near.into_iter().map(|(_, known)| known).collect() }
    })
}

/// Adds a feature and what it needs.
fn add(model: &mut Model, feature: Feature, host: &HostCpu) -> Result<(), ModelError> {
    match feature.entry().map(|entry| entry.source) {
        Some(Source::Host) if !host.has(feature) => return Err(ModelError::HostLacks { name: feature.name() }),
        Some(Source::Missing) | None => return Err(ModelError::NotImplemented { name: feature.name() }),
        _ => {}
    }
    model.set(feature, true);
    for needed in feature.requires() {
        if !model.has(needed) {
            add(model, needed, host)?;
        }
    }
    Ok(())
}

/// Leaf 1's EAX from the numbers that people use (the extended family and model folded in).
const fn signature(family: u32, model: u32, stepping: u32) -> u32 {
    let (low, extended) = if family > 15 { (15, family - 15) } else { (family, 0) };
    extended << 20 | (model >> 4 & 15) << 16 | low << 8 | (model & 15) << 4 | stepping & 15
}

/// The reverse of [`signature`].
const fn split(signature: u32) -> (u32, u32, u32) {
    let low = signature >> 8 & 15;
    let family = if low == 15 { 15 + (signature >> 20 & 0xff) } else { low };
    (family, signature >> 12 & 0xf0 | signature >> 4 & 15, signature & 15)
}

/// Edit distance, insertions, deletions and replacements counting one each. Long input is not looked at.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 32 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            let best = (diagonal + usize::from(x != y)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}
