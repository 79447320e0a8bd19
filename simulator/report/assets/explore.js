"use strict";
/* Sends changes to the server, puts its answer in place, and shows the report that came of them. The address holds the changes. */
const frames = document.getElementById("frames"), status_ = document.getElementById("status"), quick = document.getElementById("quick");
const given = Object.entries(JSON.parse(document.getElementById("given").textContent));
const changes = new Map(location.hash.length > 1 ? new URLSearchParams(location.hash.slice(1)) : given);
changes.delete(""); // an address that says that there are none
const loaded = crypto.randomUUID();
let newest = 0, isReplacing = false;

async function change() {
  const number = ++newest, begun = performance.now();
  history.replaceState(null, "", changes.size ? "#" + new URLSearchParams([...changes]) : given.length ? "#=" : location.pathname);
  status_.textContent = "Simulating …";
  frames.classList.add("stale");
  let answer;
  try {
    answer = await fetch("change", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ page: loaded, number, changes: [...changes], is_quick: quick?.checked ?? true }) });
  } catch {
    status_.textContent = "moesim explore has ended.";
    return;
  }
  if (number !== newest || answer.status === 204) return;
  if (!answer.ok) {
    const forget = Object.assign(document.createElement("button"), { type: "button", textContent: "Undo all changes" });
    forget.onclick = () => (changes.clear(), change());
    status_.replaceChildren("The simulation failed: see where moesim explore runs. ", forget);
    return;
  }
  const made = new DOMParser().parseFromString(await answer.text(), "text/html");
  putKeys(made.getElementById("keys"));
  const now = document.adoptNode(made.getElementById("outcome"));
  document.getElementById("outcome").replaceWith(now);
  status_.textContent = now.dataset.report ? `Simulated in ${((performance.now() - begun) / 1000).toFixed(1)} s` : "Not simulated: see the message";
  if (now.dataset.report) showReport(now.dataset.report);
}

/* What is being typed stays, and is no change before it is done. */
function putKeys(made) {
  const form = document.getElementById("keys"), active = form.contains(document.activeElement) ? document.activeElement : null;
  const typed = active?.defaultValue !== undefined && active.value !== active.defaultValue ? active.value : null;
  const key = active?.dataset.path ? `[data-path="${CSS.escape(active.dataset.path)}"]` : active?.id ? `#${active.id}` : null;
  const open = new Set([...form.querySelectorAll("details[open]")].map((one) => one.dataset.group));
  isReplacing = true;
  form.replaceChildren(...made.childNodes);
  isReplacing = false;
  for (const one of form.querySelectorAll("details")) one.open = open.has(one.dataset.group);
  const again = key && form.querySelector(key);
  again?.focus();
  if (again && typed !== null) again.value = typed;
}

/* The new report is loaded behind the old one, and takes its place where the reader was. */
function showReport(address) {
  const old = frames.querySelector("iframe"), made = document.createElement("iframe");
  made.title = "Report";
  made.src = address;
  made.onload = () => {
    made.contentWindow.scrollTo({ top: old?.contentWindow.scrollY ?? 0, behavior: "instant" });
    for (const one of frames.querySelectorAll("iframe")) if (one !== made) one.remove();
    frames.classList.remove("stale");
  };
  frames.prepend(made);
}

/* What lies in a table that is set, or undone, goes with it: another kind of a policy has other keys. */
function set(path, value) {
  for (const key of [...changes.keys()]) if (key === path || key.startsWith(path + ".")) changes.delete(key);
  if (value !== null) changes.set(path, value);
  change();
}

function apply({ target }) {
  if (isReplacing) return;
  if (target.id === "any") {
    const [path, ...value] = target.value.split("=");
    if (value.length) set(path.trim(), value.join("=").trim());
  } else if (target.dataset.path) {
    const { path } = target.dataset, value = target.value.trim();
    const wanted = value === "" ? null : "policy" in target.dataset ? `{ kind = "${value}" }` : value;
    const isSame = wanted === (changes.get(path) ?? (target.defaultValue || null));
    if (!isSame) set(path, wanted);
  }
}

const form = document.getElementById("keys");
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", apply);
form.addEventListener("focusout", (event) => event.target.tagName === "INPUT" && event.target.id !== "any" && apply(event)); // typed while it simulated
document.addEventListener("click", ({ target }) => {
  if (target.dataset.undo) set(target.dataset.undo, null);
  if (target.dataset.text) navigator.clipboard.writeText(target.dataset.text).then(() => (target.textContent = "Copied"));
});
quick?.addEventListener("change", change);
window.addEventListener("hashchange", () => location.reload());
change();
