//! A token and what is known about it, in 32 bits.
//!
//! Documents are kept as one run of these. That a token ends its document, and that it is not to be
//! learned (what the user of a chat said), are bits of the token itself: so a shard is an array,
//! any window of it can be cut to segments and targets by looking at it alone, and there is no
//! second file to go out of step with. Vocabularies are far below the 2^30 that this leaves.

/// Tokens are below this.
pub(super) const MAX_TOKENS: u32 = 1 << 30;

const ENDS: u32 = 1 << 30;
const IGNORED: u32 = 1 << 31;

/// One token of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token(u32);

impl Token {
    /// A token that is learned and does not end its document.
    pub(super) fn new(id: u32) -> Token {
        debug_assert!(id < MAX_TOKENS);
        Token(id & (MAX_TOKENS - 1))
    }

    /// The same one, not to be learned.
    pub(super) fn ignored(self) -> Token {
        Token(self.0 | IGNORED)
    }

    /// The same one, as its document's last.
    pub(super) fn last(self) -> Token {
        Token(self.0 | ENDS)
    }

    pub(super) fn id(self) -> u32 {
        self.0 & (MAX_TOKENS - 1)
    }

    pub(super) fn is_learned(self) -> bool {
        self.0 & IGNORED == 0
    }

    pub(super) fn is_last(self) -> bool {
        self.0 & ENDS != 0
    }

    pub(super) fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    pub(super) fn from_bytes(bytes: [u8; 4]) -> Token {
        Token(u32::from_le_bytes(bytes))
    }
}
