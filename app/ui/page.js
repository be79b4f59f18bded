// The status page: asks /admin/status again and again and shows it. Whatever the service tells is put in as text.
const PERIOD_MS = 2000;
const KEPT_SAMPLES = 900;
const KEY = "flashserve-key";
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);
const samples = [];
const shown = new Map();
let timer = 0;

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "width") made.style.width = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.map((each) => (each instanceof Node ? each : String(each))));
  return made;
}

// Only what has changed is made anew, so that focus and open details stay where they are.
function show(id, data, make) {
  const text = JSON.stringify(data);
  if (shown.get(id) === text) return;
  shown.set(id, text);
  const open = new Set([...$(id).querySelectorAll("details[open]")].map((each) => each.dataset.key));
  $(id).replaceChildren(...make(data));
  for (const each of $(id).querySelectorAll("details")) each.open = open.has(each.dataset.key);
}

const seconds = (value) => (value === null || value === undefined ? "" : value < 10 ? `${value.toFixed(2)} s` : span(value));
const span = (value) => (value < 120 ? `${Math.round(value)} s` : value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`);
function bytes(value) {
  if (!value) return "0";
  const power = Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}
const heldBytes = (engine) => (engine.state === "awake" ? engine.awake_bytes : engine.state === "asleep" ? engine.asleep_bytes : 0);

function modelRows(rows) {
  if (!rows.length) return [element("tr", {}, element("td", { colspan: 11 }, "No models."))];
  return rows.map(([model, cells, state, reason]) => {
    const first = element("td", { "data-label": "model" }, model);
    if (reason) first.append(element("div", { class: "reason" }, reason));
    const labels = ["for", "snapshot in", "node", "streams", "held", "moved here", "memory", "start", "wake"];
    const named = element("td", { "data-label": "state" }, element("span", { class: `state ${state}` }, state));
    return element("tr", {}, first, named, ...cells.map((cell, at) => element("td", { "data-label": labels[at] }, cell)));
  });
}

const movedHere = (engine) => (engine.arriving ? `${engine.arrived}, ${engine.arriving} coming` : engine.arrived);

function rowOf([model, engine]) {
  const nodes = engine.nodes.map((node) => node.slice(0, 8)).join(", ");
  const memory = heldBytes(engine) ? bytes(heldBytes(engine)) : "";
  const cells = [span(engine.since_s), engine.tier, nodes, engine.requests, engine.waiting, movedHere(engine), memory, seconds(engine.started_in_s), seconds(engine.woken_in_s)];
  return [model, cells, engine.state, engine.reason];
}

function tierCards(nodes) {
  return Object.entries(nodes).map(([node, tiers]) => {
    const card = element("div", { class: "card" }, element("h3", {}, `node ${node.slice(0, 8)}`));
    if (tiers.error) {
      card.append(element("p", { class: "reason" }, tiers.error));
      return card;
    }
    for (const [name, tier] of Object.entries(tiers)) {
      const told = `${name}: ${bytes(tier.used_bytes)} of ${bytes(tier.capacity_bytes)}`;
      const meter = { min: 0, max: Math.max(1, tier.capacity_bytes), value: tier.used_bytes, high: tier.capacity_bytes * 0.95, "aria-label": told };
      card.append(element("p", {}, told), element("meter", meter));
      for (const each of tier.snapshots) {
        const notes = [bytes(each.size_bytes), each.pinned && "pinned", !each.whole && "being copied", each.leases.length && `${each.leases.length} in use`];
        card.append(element("p", { class: "quiet" }, `${each.name}: ${notes.filter(Boolean).join(", ")}`));
      }
    }
    return card;
  });
}

function startItems(starts) {
  if (!starts.length) return [element("li", { class: "quiet" }, "None yet.")];
  const longest = Math.max(...starts.map((each) => each.took_s));
  return starts.map((each) => {
    const at = new Date(each.at_s * 1000).toLocaleTimeString();
    const from = each.tier ? ` from ${each.tier}` : "";
    const bar = element("div", { class: `bar ${each.kind}`, width: `${(100 * each.took_s) / longest}%` });
    const summary = element("summary", {}, `${at} ${each.model}: ${each.kind}${from}, ${seconds(each.took_s)}`, bar);
    const stages = Object.entries(each.stages_s).sort((a, b) => b[1] - a[1]).flatMap(([stage, took]) => [
      element("p", { class: "quiet" }, `${stage}: ${seconds(took)}`),
      element("div", { class: "bar stage", width: `${Math.min(100, (100 * took) / longest)}%` }),
    ]);
    const nothing = element("p", { class: "quiet" }, "Its stages are not told apart.");
    return element("li", {}, element("details", { "data-key": `${each.model} ${each.at_s}` }, summary, ...(stages.length ? stages : [nothing])));
  });
}

// Lines of [values, class]; all have the same length, and null where nothing is known.
function chart(label, unit, lines) {
  const known = lines.flatMap(([values]) => values).filter((value) => value !== null && value !== undefined);
  const highest = Math.max(...known, 0);
  const length = Math.max(2, ...lines.map(([values]) => values.length));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${length - 1} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const last = lines.map(([values, kind]) => `${kind} ${values.length && values.at(-1) !== null ? values.at(-1).toFixed(2) : "unknown"}`);
  svg.setAttribute("aria-label", `${label}, up to ${highest.toPrecision(3)} ${unit}; at the end: ${last.join(", ")}`);
  for (const [values, kind] of [[Array(length).fill(0), "axis"], ...lines]) {
    const path = document.createElementNS(SVG, "path");
    let begun = false;
    let d = "";
    values.forEach((value, at) => {
      if (value === null || value === undefined) { begun = false; return; }
      d += `${begun ? "L" : "M"}${at} ${98 - (highest ? (94 * value) / highest : 0)}`;
      begun = true;
    });
    path.setAttribute("d", d);
    path.setAttribute("class", kind);
    svg.append(path);
  }
  return element("div", { class: "card" }, element("h3", {}, label), element("p", { class: "quiet" }, `up to ${highest.toPrecision(3)} ${unit}`), svg);
}

function timeCharts() {
  const line = (of) => samples.map((sample) => sample[of]);
  return [
    chart("Streams, and requests that are held (dashed)", "requests", [[line("streams"), "came"], [line("held"), "expected"]]),
    chart("Streams that are moving, and that have come from another replica since the last look (dashed)", "streams", [[line("arriving"), "came"], [line("arrived"), "expected"]]),
    chart("Engines awake", "engines", [[line("awake"), "came"]]),
    chart("Replicas had, and wanted by the plan (dashed)", "replicas", [[line("replicas"), "came"], [line("wanted"), "expected"]]),
  ];
}

function takeSample(status) {
  const engines = Object.values(status.models ?? {});
  const sum = (of) => engines.reduce((total, engine) => total + of(engine), 0);
  const plan = status.plan;
  const wanted = plan?.pools ? Object.values(plan.pools).reduce((total, pool) => total + Math.max(0, ...pool.need), 0) : null;
  const arrivedSoFar = sum((engine) => engine.arrived);
  samples.push({
    arriving: sum((engine) => engine.arriving),
    // Less than before when a replica has left with its count.
    arrived: samples.length ? Math.max(0, arrivedSoFar - samples.at(-1).arrivedSoFar) : 0,
    arrivedSoFar,
    streams: sum((engine) => engine.requests),
    held: sum((engine) => engine.waiting),
    awake: sum((engine) => (engine.state === "awake" ? 1 : 0)),
    replicas: plan?.replicas ? Object.keys(plan.replicas).length : null,
    wanted,
  });
  if (samples.length > KEPT_SAMPLES) samples.shift();
}

async function ask(path) {
  const key = sessionStorage.getItem(KEY);
  const answer = await fetch(path, { headers: key ? { Authorization: `Bearer ${key}` } : {}, cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) {
    const told = await answer.json().catch(() => null);
    const refusal = new Error(told?.error?.message ?? "An administrator’s API key is needed.");
    refusal.needsKey = true;
    throw refusal;
  }
  if (!answer.ok) throw new Error(`the service answers ${answer.status}`);
  return answer.json();
}

async function showDemand() {
  const model = $("demand-model").value;
  if (!model) return;
  const plan = await ask(`admin/plan?model=${encodeURIComponent(model)}`);
  const told = plan.models?.[model];
  if (!told?.demand) {
    show("demand", null, () => [element("p", { class: "quiet" }, "Nothing is known of its demand yet.")]);
    return;
  }
  const { demand, forecast } = told;
  const came = demand.requests.map((each) => (each === null ? null : each / demand.step_s));
  const quantiles = Object.keys(forecast?.requests ?? {}).sort();
  // On the time scale of what came: the forecast's own steps are longer.
  const ahead = (quantile) => {
    const rates = forecast?.requests?.[quantile] ?? [];
    const first = Math.max(0, demand.end_s - (forecast?.made_at_s ?? 0));
    const index = (step) => Math.floor((first + step * demand.step_s) / forecast.step_s);
    const steps = [...Array(Math.floor(came.length / 2)).keys()].filter((step) => rates.length && index(step) < rates.length);
    return steps.map((step) => (rates[index(step)] === null ? null : rates[index(step)] / forecast.step_s));
  };
  const before = Array(came.length).fill(null);
  const lines = [[came, "came"], [[...before, ...ahead("0.5")], "expected"], [[...before, ...ahead(quantiles.at(-1))], "upper"]];
  show("demand", lines, () => [
    chart(`${model}: what came, and what is expected (dashed) with its upper quantile (dotted)`, "requests a second", lines),
    element("p", { class: "quiet" }, told.reason ?? ""),
  ]);
}

function showModels(models) {
  show("models", Object.entries(models).map(rowOf), modelRows);
  const starts = Object.entries(models).flatMap(([model, engine]) => engine.recent.map((each) => ({ model, ...each })));
  show("starts", starts.sort((a, b) => b.at_s - a.at_s).slice(0, 20), startItems);
  const names = Object.keys(models);
  const chosen = $("demand-model").value;
  show("demand-model", names, () => names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) $("demand-model").value = chosen;
}

async function look() {
  clearTimeout(timer);
  try {
    const status = await ask("admin/status");
    $("key-form").hidden = true;
    if (status.models) showModels(status.models);
    if (status.nodes) show("tiers", status.nodes, tierCards);
    show("problems", status.problems, (problems) => Object.entries(problems).map(([what, why]) => element("p", {}, `${what}: ${why}`)));
    takeSample(status);
    $("time").replaceChildren(...timeCharts());
    if (status.plan) await showDemand();
    say("up to date");
  } catch (error) {
    if (error.needsKey) askForKey(error.message);
    else say(`not reachable: ${error.message}`);
    if (error.needsKey) return;
  }
  if (!document.hidden) timer = setTimeout(look, PERIOD_MS);
}

// Read aloud only when it changes.
function say(text) {
  if ($("connection").textContent !== text) $("connection").textContent = text;
}

function askForKey(message) {
  say(message);
  sessionStorage.removeItem(KEY);
  $("key-form").hidden = false;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  look();
});
$("demand-model").addEventListener("change", () => showDemand().catch((error) => say(error.message)));
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
look();
