// Elements in a line: make("button", {type: "button", onclick}, "Text", child).

export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element && key !== "list") element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

let count = 0;

// A control with its label, and a line that explains it.
export function field(label, control, note = "") {
  control.id ||= `field-${(count += 1)}`;
  const parts = [make("label", { htmlFor: control.id }, label)];
  if (note) {
    const small = make("small", { id: `${control.id}-note` }, note);
    control.setAttribute("aria-describedby", small.id);
    parts.push(small);
  }
  return make("div", { className: "field" }, ...parts, control);
}

export function check(label, control) {
  control.type = "checkbox";
  control.id ||= `field-${(count += 1)}`;
  return make("div", { className: "check" }, control, make("label", { htmlFor: control.id }, label));
}

export function button(text, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, text);
}

const NAMES = { long: "long film", unconditional: "clip without a condition" };

// "frame_prediction" -> "Frame prediction"
export function title(name) {
  const words = NAMES[name] ?? name.replaceAll("_", " ");
  return words[0].toUpperCase() + words.slice(1);
}

export function kind(mediaType) { return mediaType.split("/")[0]; }
