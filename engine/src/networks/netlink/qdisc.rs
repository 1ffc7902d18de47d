//! Limits of what goes out of a link: a token bucket (tc-tbf(8)).

use nix::libc;

use super::message::Batch;

/// Length of `struct tcmsg`.
const TCMSG: usize = 20;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// `TCA_KIND`, `TCA_OPTIONS`.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const PARAMETERS: u16 = 1;
const RATE64: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// Bytes that may go at once: what the rate gives in 10 ms, but room for the largest packets of segmentation offload.
const BURST_PART: u64 = 100;
const LEAST_BURST: u64 = 128 * 1024;
/// Packets wait for at most this part of a second, the rest is dropped.
const WAIT_PART: u64 = 20;

/// Lets this many bytes per second out of a link, in place of what was.
pub(crate) fn limit(batch: &mut Batch, index: u32, rate: u64) {
    let mut fixed = [0; TCMSG];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[12..16].copy_from_slice(&ROOT.to_ne_bytes());
    let burst = (rate / BURST_PART).max(LEAST_BURST).min(u64::from(u32::MAX));
    let waiting = (rate / WAIT_PART + burst).min(u64::from(u32::MAX));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE | libc::NLM_F_ACK;
    batch.push(format!("limit a link to {rate} bytes per second"), libc::RTM_NEWQDISC, flags, &fixed, |a| {
        a.text(KIND, "tbf").nest(OPTIONS, |options| {
            options.bytes(PARAMETERS, &parameters(rate, waiting as u32));
            // One that fits is in the parameters.
            if rate > u64::from(u32::MAX) {
                options.bytes(RATE64, &rate.to_ne_bytes());
            }
            options.u32(BURST, burst as u32);
        });
    });
}

/// `struct tc_tbf_qopt`: rate, peak rate, limit, buffer, mtu.
fn parameters(rate: u64, waiting: u32) -> Vec<u8> {
    // struct tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate.
    let ratespec = |rate: u32| {
        let mut bytes = vec![0, ETHERNET, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(&rate.to_ne_bytes());
        bytes
    };
    let mut bytes = ratespec(u32::try_from(rate).unwrap_or(u32::MAX));
    bytes.extend(ratespec(0));
    bytes.extend_from_slice(&waiting.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes
}
