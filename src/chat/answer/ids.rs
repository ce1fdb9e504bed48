//! Names for calls, the same for the same prompt and calls.

use super::ToolForm;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// How long an id is. Mistral's templates take no other.
const LENGTH: usize = 9;

#[derive(Debug)]
pub(super) struct Ids {
    prefix: &'static str,
    /// Of the prompt and the calls so far, by Fowler, Noll and Vo.
    hash: u64,
}

impl Ids {
    pub fn new(prompt: &[u32], form: Option<ToolForm>) -> Self {
        let prefix =
            if matches!(form, Some(ToolForm::Mistral | ToolForm::MistralNamed)) { "" } else { "call_" };
        let mut ids = Self { prefix, hash: 0xcbf2_9ce4_8422_2325 };
        for token in prompt {
            ids.add(&token.to_le_bytes());
        }
        ids
    }

    /// The id of the next call, which is one of this tool.
    pub fn next(&mut self, name: &str) -> String {
        self.add(name.as_bytes());
        self.add(&[0xff]);
        let mut rest = self.hash;
        let digits = std::iter::repeat_with(|| {
            let digit = DIGITS.get((rest % 62) as usize).copied();
            rest /= 62;
            digit.map_or('0', char::from)
        });
        self.prefix.chars().chain(digits.take(LENGTH)).collect()
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
