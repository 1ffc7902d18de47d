//! Classic BPF, written from its end to its beginning: jumps go forward only, so what they lead to is there already and its
//! distance known. Returns are shared as far as the eight bits of a conditional jump reach.

use sys::seccomp::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// How the accumulator is compared with a constant.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Compare {
    Equal = 0x15,
    Greater = 0x25,
    GreaterOrEqual = 0x35,
}

/// Farthest a conditional jump goes, less the few instructions that may come in between while one is written.
const REACH: usize = 250;

/// Where to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Ends with this action.
    Return(u32),
    /// An instruction, counted from the end.
    At(usize),
}

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Code {
    reversed: Vec<Instruction>,
    /// The last return written for an action.
    returns: Vec<(u32, usize)>,
}

impl Code {
    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> usize {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len() - 1
    }

    /// How far the instruction written next would have to jump.
    fn distance(&self, at: usize) -> usize {
        self.reversed.len() - at - 1
    }

    fn write_return(&mut self, action: u32) -> usize {
        let at = self.push(RETURN, 0, 0, action);
        match self.returns.iter_mut().find(|(known, _)| *known == action) {
            Some((_, last)) => *last = at,
            None => self.returns.push((action, at)),
        }
        at
    }

    /// An instruction within reach of a conditional jump.
    fn near(&mut self, target: Target) -> usize {
        match target {
            Target::Return(action) => match self.returns.iter().find(|(known, _)| *known == action) {
                Some((_, at)) if self.distance(*at) <= REACH => *at,
                _ => self.write_return(action),
            },
            Target::At(at) if self.distance(at) <= REACH => at,
            Target::At(at) => self.push(JUMP, 0, 0, self.distance(at) as u32),
        }
    }

    /// Writes `if A <compare> k go to yes, else to no`.
    pub(super) fn branch(&mut self, compare: Compare, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let (no, yes) = (self.near(no), self.near(yes));
        let (jf, jt) = (self.distance(no) as u8, self.distance(yes) as u8);
        Target::At(self.push(compare as u16, jt, jf, k))
    }

    /// Makes `next` what follows the instruction written next.
    fn follow(&mut self, next: Target) {
        match next {
            Target::At(at) if self.distance(at) == 0 => {}
            Target::At(at) => drop(self.push(JUMP, 0, 0, self.distance(at) as u32)),
            Target::Return(action) => drop(self.write_return(action)),
        }
    }

    /// Writes `A = word at offset`, then on.
    pub(super) fn load(&mut self, offset: u32, next: Target) -> Target {
        self.follow(next);
        Target::At(self.push(LOAD, 0, 0, offset))
    }

    /// Writes `A &= mask`, then on.
    pub(super) fn and(&mut self, mask: u32, next: Target) -> Target {
        self.follow(next);
        Target::At(self.push(AND, 0, 0, mask))
    }

    /// The program; what was written last comes first.
    pub(super) fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }
}
