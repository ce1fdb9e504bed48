//! Conversations: a model's chat template, and turns whose cost is only their new tokens.

mod compile;
mod conversation;
mod mask;
mod python;
mod template;
mod walk;

pub use conversation::{Chat, Reply};
pub use template::{ChatTemplate, Message, Role};
