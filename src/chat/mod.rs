//! Conversations: a model's chat template, and turns whose cost is only their new tokens.

mod conversation;
mod mask;
mod python;
mod template;

pub use conversation::{Chat, Reply};
pub use template::{ChatTemplate, Message, Role};
