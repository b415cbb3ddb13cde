// Fields made from JSON schemas: sampling settings, scenes of a storyboard, jobs of a chain.

import { check, field, make, title } from "./dom.js";

// The plain type of a schema, and whether it may also be a list.
function typeOf(schema) {
  const parts = schema.anyOf ?? [schema];
  const listed = parts.find((part) => part.type === "array");
  const plain = parts.find((part) => part.type !== "array") ?? listed.items;
  return { ...plain, listed: Boolean(listed) };
}

// A control of a schema: `element`, and `value()`, undefined where it is left at its default.
export function control(name, schema, note = "") {
  const type = typeOf(schema);
  if (type.type === "boolean") return flag(name, schema);
  if (type.enum) return choice(name, type.enum, schema.default);
  const numeric = type.type === "number" || type.type === "integer";
  const input = make("input", { type: numeric && !type.listed ? "number" : "text", autocomplete: "off" });
  if (input.type === "number") limit(input, type);
  const fallback = schema.default ?? "";
  input.placeholder = Array.isArray(fallback) ? fallback.join(", ") : `${fallback}`;
  const hint = note || (type.listed && numeric ? "a number, or one for each latent frame: 1, 0.9, 0.8" : "");
  return { element: field(title(name), input, hint), value: () => read(input, type, numeric), input };
}

function limit(input, type) {
  input.step = type.type === "integer" ? 1 : "any";
  if (type.minimum !== undefined) input.min = type.minimum;
  if (type.maximum !== undefined) input.max = type.maximum;
}

// What stands in it, as JSON has it.  Numbers that are none are sent as they are: the service says what is wrong.
function read(input, type, numeric) {
  const text = input.value.trim();
  if (!text) return undefined;
  if (!numeric && !type.listed) return text;
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  const values = numeric ? parts.map((part) => (Number.isNaN(Number(part)) ? part : Number(part))) : parts;
  return values.length === 1 ? values[0] : values;
}

function flag(name, schema) {
  const input = make("input", { checked: schema.default ?? false });
  const value = () => (input.checked === (schema.default ?? false) ? undefined : input.checked);
  return { element: check(title(name), input), value, input };
}

function choice(name, values, fallback) {
  const input = make("select", {}, ...values.map((value) => make("option", { value }, title(value || "none"))));
  input.value = fallback ?? values[0];
  return { element: field(title(name), input), value: () => (input.value === fallback ? undefined : input.value), input };
}

// A folded group of such controls.
export function group(summary, schemas) {
  const controls = Object.entries(schemas).map(([name, schema]) => [name, control(name, schema)]);
  const fields = make("div", { className: "fields" }, ...controls.map(([, one]) => one.element));
  return { element: make("details", {}, make("summary", {}, summary), fields), values: () => collect(controls) };
}

export function collect(controls) {
  const found = {};
  for (const [name, one] of controls) {
    const value = one.value();
    if (value !== undefined) found[name] = value;
  }
  return found;
}
