//! Tools: which there are, and which the model has to call.

use serde_json::{Value, json};

use super::super::fields::Fields;
use super::super::problem::Problem;
use super::super::service::Loaded;
use crate::chat::{Tool, ToolCall, ToolChoice, ToolForm};
use crate::sampling::Grammar;

/// The tools of a request that may be called, and how the model writes calls; none where there are none, or none may be.
#[derive(Default)]
pub struct Tools {
    pub tools: Vec<Tool>,
    pub form: Option<ToolForm>,
    choice: ToolChoice,
}

/// Takes the fields about tools.
pub fn read(fields: &mut Fields, loaded: &Loaded) -> Result<Tools, Problem> {
    let tools = tools(fields)?;
    let choice = choice(fields, &tools)?;
    let parallel = fields.take("parallel_tool_calls")?.unwrap_or(true);
    if tools.is_empty() || choice == ToolChoice::None {
        return Ok(Tools::default());
    }
    loaded.template()?;
    let Some(form) = loaded.tool_form else {
        return Err(Problem::unsupported("tools", "this model's chat template knows no tools"));
    };
    let may_be_several = !matches!((form, &choice), (ToolForm::Llama3, _) | (_, ToolChoice::Named(_)));
    if !parallel && may_be_several {
        let problem = "torchless cannot keep a model from several calls: name the tool in tool_choice";
        return Err(Problem::unsupported("parallel_tool_calls", problem));
    }
    Ok(Tools { tools, form: Some(form), choice })
}

impl Tools {
    /// What holds an answer to calls, where some are required.
    pub fn grammar(&self, loaded: &Loaded) -> Result<Option<Grammar>, Problem> {
        let Some(form) = self.form else { return Ok(None) };
        Ok(form.grammar(loaded.model.tokenizer(), &self.tools, &self.choice)?)
    }
}

fn tools(fields: &mut Fields) -> Result<Vec<Tool>, Problem> {
    let values: Vec<Value> = fields.take("tools")?.unwrap_or_default();
    let mut tools: Vec<Tool> = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut fields = Fields::new(value, &format!("tools[{i}]"))?;
        let mut function = function(&mut fields)?;
        fields.finish(&[])?;
        let name = name(&mut function)?;
        if tools.iter().any(|tool| tool.name == name) {
            return Err(Problem::value(function.name("name"), format_args!("{name:?} is there twice")));
        }
        let description = function.take("description")?;
        let parameters = match function.take::<Value>("parameters")? {
            Some(parameters @ Value::Object(_)) => parameters,
            Some(_) => return Err(Problem::value(function.name("parameters"), "give a JSON schema")),
            None => json!({"type": "object", "properties": {}}),
        };
        // Calls that are required are always held to the schema, others never.
        function.take::<bool>("strict")?;
        function.finish(&[])?;
        tools.push(Tool { name, description, parameters, written: None });
    }
    Ok(tools)
}

/// `function` of an object whose `type` is that.
fn function(fields: &mut Fields) -> Result<Fields, Problem> {
    let kind: String = fields.need("type")?;
    if kind != "function" {
        return Err(Problem::unsupported(fields.name("type"), format_args!("{kind:?}: give \"function\"")));
    }
    let name = fields.name("function");
    fields.object("function")?.ok_or_else(|| Problem::value(name, "missing: give an object"))
}

fn name(function: &mut Fields) -> Result<String, Problem> {
    let name: String = function.need("name")?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
        let problem = format_args!("{name:?}: give up to 64 letters, digits, _, - and .");
        return Err(Problem::value(function.name("name"), problem));
    }
    Ok(name)
}

fn choice(fields: &mut Fields, tools: &[Tool]) -> Result<ToolChoice, Problem> {
    let wrong =
        || Problem::value("tool_choice", "give \"auto\", \"none\", \"required\", or a function by its name");
    let choice = match fields.take::<Value>("tool_choice")? {
        None => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" => ToolChoice::Required,
            _ => return Err(wrong()),
        },
        Some(value @ Value::Object(_)) => {
            let mut fields = Fields::new(value, "tool_choice")?;
            let mut function = function(&mut fields)?;
            fields.finish(&[])?;
            let name: String = function.need("name")?;
            function.finish(&[])?;
            if !tools.iter().any(|tool| tool.name == name) {
                return Err(Problem::value("tool_choice", format_args!("there is no tool {name:?}")));
            }
            ToolChoice::Named(name)
        }
        Some(_) => return Err(wrong()),
    };
    if tools.is_empty() && matches!(choice, ToolChoice::Required) {
        return Err(Problem::value("tool_choice", "a call is required, and there is no tool"));
    }
    Ok(choice)
}

/// The calls of an assistant's message.
pub fn calls(message: &mut Fields) -> Result<Vec<ToolCall>, Problem> {
    let values: Vec<Value> = message.take("tool_calls")?.unwrap_or_default();
    let place = message.name("tool_calls");
    let call = |(i, value)| {
        let mut fields = Fields::new(value, &format!("{place}[{i}]"))?;
        let id = fields.need("id")?;
        let mut function = function(&mut fields)?;
        fields.finish(&[])?;
        let call = ToolCall { id, name: function.need("name")?, arguments: function.need("arguments")? };
        function.finish(&[])?;
        Ok(call)
    };
    values.into_iter().enumerate().map(call).collect()
}
