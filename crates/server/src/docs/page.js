// Draws the description of the API. What comes from the document becomes text, never markup.
"use strict";

const METHODS = ["get", "post", "put", "delete"];

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function resolved(api, schema) {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? { name, ...api.components.schemas[name] } : schema || {};
}

function typeOf(api, schema) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const union = schema.oneOf || schema.anyOf || schema.allOf;
  if (union) return union.map((one) => typeOf(api, one)).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `list of ${typeOf(api, schema.items)}`;
  return [].concat(schema.type || "any").join(" or ");
}

function fields(api, schema) {
  const parts = schema.allOf ? schema.allOf.map((part) => resolved(api, part)) : [schema];
  return parts.flatMap((part) => {
    const required = part.required || [];
    return Object.entries(part.properties || {}).map(([name, field]) => [name, field, required.includes(name)]);
  });
}

function table(heading, rows) {
  const made = element("table");
  const head = element("tr");
  heading.forEach((text) => head.append(element("th", text)));
  made.append(head);
  rows.forEach((cells) => {
    const row = element("tr");
    cells.forEach((text, index) => {
      const cell = element("td");
      cell.append(index === 0 ? element("code", text) : text || "");
      row.append(cell);
    });
    made.append(row);
  });
  return made;
}

function body(api, title, content) {
  const made = element("section");
  Object.entries(content || {}).forEach(([kind, media]) => {
    const schema = resolved(api, media.schema);
    made.append(element("h4", `${title}: ${schema.name || typeOf(api, media.schema)} (${kind})`));
    const rows = fields(api, schema).map(([name, field, required]) => [
      name, typeOf(api, field) + (required ? "" : ", optional"), field.description,
    ]);
    if (rows.length > 0) made.append(table(["field", "type", "what"], rows));
  });
  return made;
}

function operation(api, path, method, route) {
  const made = element("details");
  const summary = element("summary");
  summary.append(element("span", method, "method"), element("code", path));
  summary.append(element("span", route.summary || "", "brief"));
  made.append(summary, element("p", route.description || route.summary || ""));
  const parameters = (route.parameters || []).map((one) => [
    one.name, `${typeOf(api, one.schema)}, ${one.in}${one.required ? "" : ", optional"}`, one.description,
  ]);
  if (parameters.length > 0) made.append(element("h4", "Parameters"), table(["name", "type", "what"], parameters));
  if (route.requestBody) made.append(body(api, "Request", route.requestBody.content));
  Object.entries(route.responses || {}).forEach(([status, response]) => {
    if (status === "default") return;
    made.append(element("h4", `${status}: ${response.description}`), body(api, "Answer", response.content));
  });
  made.dataset.text = `${method} ${path} ${route.summary || ""}`.toLowerCase();
  return made;
}

function draw(api) {
  document.getElementById("about").textContent = api.info.description;
  const main = document.getElementById("routes");
  const groups = new Map();
  Object.entries(api.paths).forEach(([path, item]) => {
    METHODS.filter((method) => item[method]).forEach((method) => {
      const tag = (item[method].tags || ["other"])[0];
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(operation(api, path, method, item[method]));
    });
  });
  main.replaceChildren();
  groups.forEach((operations, tag) => main.append(element("h2", tag), ...operations));
}

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase();
  document.querySelectorAll("details").forEach((one) => { one.hidden = !one.dataset.text.includes(wanted); });
}

function say(text) {
  document.getElementById("routes").replaceChildren(element("p", text));
}

// The token is kept in its field and nowhere else.
async function show() {
  const token = document.getElementById("token").value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  try {
    const response = await fetch("/openapi.json", { headers, credentials: "omit", cache: "no-store" });
    if (response.status === 401) {
      say(token ? "This token admits nobody here." : "There are tokens here: give one above to read the document.");
    } else if (!response.ok) {
      say(`The document cannot be read: status ${response.status}.`);
    } else {
      draw(await response.json());
      filter();
    }
  } catch (error) {
    say(`The document cannot be read: ${error.message}.`);
  }
}

document.getElementById("filter").addEventListener("input", filter);
document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  show();
});
show();
