//! Messages between processes: a header of fixed size, and at most one chunk of bytes.

use ir::DType;

use super::{
    call::{Call, Op},
    inbox::CHUNK,
};

/// Bytes of a header.
pub(super) const HEADER: usize = 72;
/// No body is longer.
pub(super) const BODY: usize = CHUNK;

/// First in every header; another version of the format has another one.
const MAGIC: u32 = u32::from_be_bytes(*b"bro1");

/// What a message is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frame {
    /// A chunk of a rank's part of a collective.
    Data {
        call: Call,
        phase: u8,
        /// Of the whole part.
        total: u64,
        offset: u64,
    },
    /// A sign of life; the body is what the rank is at.
    Alive,
    /// The job has failed; the body says how.
    Failed,
    /// The rank needs nothing more.
    Ended,
}

impl Frame {
    /// The header of a message whose body is so long.
    pub(super) fn encode(&self, body: usize) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[8..12].copy_from_slice(&u32::try_from(body).unwrap_or(u32::MAX).to_le_bytes());
        out[4] = match self {
            Frame::Data { .. } => 0,
            Frame::Alive => 1,
            Frame::Failed => 2,
            Frame::Ended => 3,
        };
        if let Frame::Data { call, phase, total, offset } = self {
            let (kind, reduction, root) = call.op.code();
            let dtype = DType::ALL.iter().position(|dtype| *dtype == call.dtype);
            let dtype = dtype.and_then(|at| u8::try_from(at).ok()).unwrap_or(u8::MAX);
            out[5..8].copy_from_slice(&[kind, reduction, dtype]);
            out[12..16].copy_from_slice(&(root | u32::from(*phase) << 24).to_le_bytes());
            let Call { group, seq, elements, layout, step, .. } = call;
            let words = [*group, *seq, *elements, *layout, *step, *total, *offset];
            for (out, word) in out[16..].as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *out = word.to_le_bytes();
            }
        }
        out
    }

    /// The message that a header announces, and the length of its body; `None` if it is no header.
    pub(super) fn decode(header: &[u8; HEADER]) -> Option<(Frame, usize)> {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&header[at..at + 4]);
            u32::from_le_bytes(bytes)
        };
        let long = |index: usize| {
            let at = 16 + 8 * index;
            u64::from(word(at)) | u64::from(word(at + 4)) << 32
        };
        let body = usize::try_from(word(8)).ok().filter(|&body| body <= BODY)?;
        if word(0) != MAGIC {
            return None;
        }
        let frame = match header[4] {
            0 => {
                let (root, [.., phase]) = (word(12) & 0xff_ffff, word(12).to_le_bytes());
                let op = Op::from_code((header[5], header[6], root))?;
                let dtype = *DType::ALL.get(usize::from(header[7]))?;
                let [group, seq, elements, layout, step] = [0, 1, 2, 3, 4].map(long);
                let call = Call { group, seq, op, dtype, elements, layout, step };
                Frame::Data { call, phase, total: long(5), offset: long(6) }
            }
            1 => Frame::Alive,
            2 => Frame::Failed,
            3 => Frame::Ended,
            _ => return None,
        };
        Some((frame, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::Reduce;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_read_back(
            words in prop::array::uniform7(any::<u64>()),
            (root, phase, dtype, body) in (0u32..1 << 24, any::<u8>(), 0usize..14, 0usize..=BODY),
            op in prop::sample::select(vec![
                Op::AllReduce(Reduce::Or),
                Op::ReduceScatter(Reduce::Sum),
                Op::Broadcast(0),
                Op::Send,
            ]),
        ) {
            let [group, seq, elements, layout, step, total, offset] = words;
            let op = if let Op::Broadcast(_) = op { Op::Broadcast(root) } else { op };
            let dtype = DType::ALL[dtype];
            let call = Call { group, seq, op, dtype, elements, layout, step };
            let header = Frame::Data { call, phase, total, offset }.encode(body);
            let (frame, length) = Frame::decode(&header).unwrap();
            prop_assert_eq!(length, body);
            let again = frame.encode(length);
            prop_assert_eq!(again, header);
        }

        #[test]
        fn noise_is_refused_or_read(noise in prop::collection::vec(any::<u8>(), HEADER)) {
            let mut header: [u8; HEADER] = noise.try_into().unwrap();
            prop_assert!(Frame::decode(&header).is_none());
            header[..4].copy_from_slice(&MAGIC.to_le_bytes());
            let _ = Frame::decode(&header);
        }
    }
}
