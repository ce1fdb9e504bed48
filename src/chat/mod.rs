//! Conversations: a model's chat template, turns whose cost is only their new tokens, and tools that the model may call.

mod answer;
mod compile;
mod content;
mod conversation;
mod mask;
mod message;
mod python;
mod reasoning;
mod template;
mod tool;
mod tool_form;
mod walk;

pub use answer::{AnswerParser, AnswerPart};
pub use content::Content;
pub use conversation::{Chat, Reply};
pub use message::{Message, Role};
pub use reasoning::after_reasoning;
pub use template::ChatTemplate;
pub use tool::{Tool, ToolCall, ToolChoice};
pub use tool_form::ToolForm;
