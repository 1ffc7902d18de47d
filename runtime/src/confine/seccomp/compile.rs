//! Profile -> classic BPF.
//!
//! Layout: look at the architecture, jump to its section; there, a binary tree over ranges of call numbers, each leaf an
//! action or a chain of argument tests. Numbers above the largest one that the profile names get ENOSYS instead of a refusing
//! default: such calls are newer than the profile, and libc falls back to older ones on ENOSYS only (runc does the same).
//! The kernel runs the filter once per call number at load time to find those that are always allowed; a tree keeps that short.

use std::collections::BTreeMap;

use sys::seccomp::Instruction;

use super::profile::{
    ALLOW, Arch, KILL_PROCESS, LOG, NO_SUCH_CALL, Operator, Profile, SeccompError, TRACE, Test, Verdict,
};

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const X32_BIT: u32 = 0x4000_0000;
const MAX_LENGTH: usize = 4096;

fn plain(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn returning(action: u32) -> Vec<Instruction> {
    vec![plain(RETURN, action)]
}

/// `if A op k then yes else no`, both pieces ending in a return. The distance of a conditional jump has eight bits only.
fn branch(code: u16, k: u32, yes: Vec<Instruction>, no: Vec<Instruction>) -> Vec<Instruction> {
    let mut out = Vec::with_capacity(yes.len() + no.len() + 2);
    match u8::try_from(no.len()) {
        Ok(distance) => out.push(Instruction { code, jt: distance, jf: 0, k }),
        Err(_) => {
            out.push(Instruction { code, jt: 0, jf: 1, k });
            out.push(plain(JUMP, no.len() as u32));
        }
    }
    out.extend(no);
    out.extend(yes);
    out
}

pub(super) fn program(profile: &Profile) -> Result<Vec<Instruction>, SeccompError> {
    let section = |wanted: Arch| {
        let found = profile.arches.iter().find(|(arch, ..)| *arch == wanted);
        found.map(|(arch, verdicts, largest)| tree(&ranges(profile.default, *arch, verdicts, *largest)))
    };
    let native_sections: &[Arch] =
        if Arch::NATIVE == Arch::Aarch64 { &[Arch::Aarch64] } else { &[Arch::X86_64, Arch::X86] };
    // A call of an architecture that the profile does not name could not be judged.
    let mut rest = returning(KILL_PROCESS);
    for arch in native_sections.iter().rev() {
        let Some(calls) = section(*arch) else { continue };
        let mut body = vec![plain(LOAD, NUMBER)];
        if *arch == Arch::X86_64 {
            let x32 = section(Arch::X32).unwrap_or_else(|| returning(KILL_PROCESS));
            // -1 is what a tracer leaves behind to skip a call, and no x32 number.
            let marked = branch(JUMP_EQUAL, u32::MAX, returning(profile.default), x32);
            body.extend(branch(JUMP_GREATER_EQUAL, X32_BIT, marked, calls));
        } else {
            body.extend(calls);
        }
        rest = branch(JUMP_EQUAL, arch.audit(), body, rest);
    }
    let mut out = vec![plain(LOAD, ARCH)];
    out.extend(rest);
    if out.len() > MAX_LENGTH { Err(SeccompError::TooLong(out.len())) } else { Ok(out) }
}

/// The code for one range of numbers.
enum Leaf {
    Action(u32),
    Tests(Vec<Instruction>),
}

/// All numbers, cut where the outcome changes: first number of each range, and what happens there.
fn ranges(default: u32, arch: Arch, verdicts: &BTreeMap<u32, Verdict>, largest: Option<u32>) -> Vec<(u32, Leaf)> {
    let marker = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut out: Vec<(u32, Leaf)> = vec![(0, Leaf::Action(default))];
    let mut push = |start: u32, leaf: Leaf| {
        if let (Some((_, Leaf::Action(before))), Leaf::Action(now)) = (out.last(), &leaf)
            && before == now
        {
            return;
        }
        if out.last().is_some_and(|(last, _)| *last == start) {
            out.pop();
            // What is now last may be the same as what comes.
            if let (Some((_, Leaf::Action(before))), Leaf::Action(now)) = (out.last(), &leaf)
                && before == now
            {
                return;
            }
        }
        out.push((start, leaf));
    };
    for (number, verdict) in verdicts {
        let number = number | marker;
        push(
            number,
            match verdict {
                Verdict::Action(action) => Leaf::Action(*action),
                Verdict::Tests(rules) => Leaf::Tests(tests(rules, default, arch)),
            },
        );
        push(number + 1, Leaf::Action(default));
    }
    // An action that lets calls through lets new ones through as well.
    let lenient = default == ALLOW || default == LOG || default & 0xffff_0000 == TRACE;
    if let Some(largest) = largest.filter(|_| !lenient) {
        push((largest | marker) + 1, Leaf::Action(NO_SUCH_CALL));
    }
    out
}

fn tree(ranges: &[(u32, Leaf)]) -> Vec<Instruction> {
    match ranges {
        [] => returning(KILL_PROCESS),
        [(_, Leaf::Action(action))] => returning(*action),
        [(_, Leaf::Tests(code))] => code.clone(),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            branch(JUMP_GREATER_EQUAL, high[0].0, tree(high), tree(low))
        }
    }
}

/// Rules in order: the first whose tests all hold decides.
fn tests(rules: &[(Vec<Test>, u32)], default: u32, arch: Arch) -> Vec<Instruction> {
    let mut out = Vec::new();
    for (tests, action) in rules {
        let mut rule: Vec<Step> = tests.iter().flat_map(|test| steps(test, arch)).collect();
        rule.push(Step { instruction: plain(RETURN, *action), to_next: None });
        let length = rule.len();
        for (at, step) in rule.into_iter().enumerate() {
            let mut instruction = step.instruction;
            // At most six tests of six instructions: the distance always fits.
            let distance = (length - at - 1) as u8;
            match step.to_next {
                Some(true) => instruction.jt = distance,
                Some(false) => instruction.jf = distance,
                None => {}
            }
            out.push(instruction);
        }
    }
    out.extend(returning(default));
    out
}

/// An instruction, and which of its ways out leads to the next rule because the test failed.
struct Step {
    instruction: Instruction,
    to_next: Option<bool>,
}

/// One test: falls through when it holds. Arguments have 64 bits and the machine 32, hence two halves.
fn steps(test: &Test, arch: Arch) -> Vec<Step> {
    let low_at = ARGUMENTS + 8 * test.index; // both families are little-endian
    let (high, low) = ((test.value >> 32) as u32, test.value as u32);
    let load = |at| Step { instruction: plain(LOAD, at), to_next: None };
    let and = |mask| Step { instruction: plain(AND, mask), to_next: None };
    let jump = |code, k, jt, jf, to_next| Step { instruction: Instruction { code, jt, jf, k }, to_next };
    let fail_unless = |code, k| jump(code, k, 0, 0, Some(false));
    let fail_if = |code, k| jump(code, k, 0, 0, Some(true));
    let wide = arch.is_64_bit();
    let mut out = Vec::with_capacity(6);
    // The high half may settle it: `skip` jumps over what is left.
    let skip_if = |code, k, count| jump(code, k, count, 0, None);
    match test.operator {
        Operator::Equal => {
            if wide {
                out.extend([load(low_at + 4), fail_unless(JUMP_EQUAL, high)]);
            }
            out.extend([load(low_at), fail_unless(JUMP_EQUAL, low)]);
        }
        Operator::NotEqual => {
            if wide {
                out.extend([load(low_at + 4), jump(JUMP_EQUAL, high, 0, 2, None)]);
            }
            out.extend([load(low_at), fail_if(JUMP_EQUAL, low)]);
        }
        Operator::Greater | Operator::GreaterOrEqual => {
            if wide {
                out.extend([load(low_at + 4), skip_if(JUMP_GREATER, high, 3), fail_unless(JUMP_EQUAL, high)]);
            }
            let code = if test.operator == Operator::Greater { JUMP_GREATER } else { JUMP_GREATER_EQUAL };
            out.extend([load(low_at), fail_unless(code, low)]);
        }
        Operator::Less | Operator::LessOrEqual => {
            if wide {
                out.extend([load(low_at + 4), fail_if(JUMP_GREATER, high), jump(JUMP_EQUAL, high, 0, 2, None)]);
            }
            let code = if test.operator == Operator::Less { JUMP_GREATER_EQUAL } else { JUMP_GREATER };
            out.extend([load(low_at), fail_if(code, low)]);
        }
        Operator::Masked(mask) => {
            if wide {
                out.extend([load(low_at + 4), and((mask >> 32) as u32), fail_unless(JUMP_EQUAL, high)]);
            }
            out.extend([load(low_at), and(mask as u32), fail_unless(JUMP_EQUAL, low)]);
        }
    }
    out
}
