//! An interpreter for seccomp filters, as the kernel runs them.

use sys::seccomp::Instruction;

/// What the kernel hands to a filter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: u32,
    pub(crate) arch: u32,
    pub(crate) arguments: [u64; 6],
}

/// What a filter says, and the number of instructions it took.
pub(crate) fn run(program: &[Instruction], call: &Call) -> (u32, usize) {
    let word = |at: u32| match at {
        0 => call.number,
        4 => call.arch,
        16.. => {
            let value = call.arguments[((at - 16) / 8) as usize];
            if at.is_multiple_of(8) { value as u32 } else { (value >> 32) as u32 }
        }
        _ => panic!("odd offset {at}"),
    };
    let (mut at, mut a, mut steps) = (0_usize, 0_u32, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        steps += 1;
        let mut jump = |holds| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => a = word(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return (k, steps),
            _ => panic!("unknown code {code:#x}"),
        }
    }
}
