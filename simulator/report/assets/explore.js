"use strict";
/* Sends changes to the server, puts its answer in place, and shows the report that came of them. The address holds the changes. */
const frames = document.getElementById("frames"), status_ = document.getElementById("status"), quick = document.getElementById("quick");
const changes = new Map(location.hash.length > 1 ? new URLSearchParams(location.hash.slice(1)) : Object.entries(JSON.parse(document.getElementById("given").textContent)));
const loaded = crypto.randomUUID();
let newest = 0;

async function change() {
  const number = ++newest, begun = performance.now();
  history.replaceState(null, "", changes.size ? "#" + new URLSearchParams([...changes]) : location.pathname);
  status_.textContent = "Simulating …";
  frames.classList.add("stale");
  let answer;
  try {
    answer = await fetch("change", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ page: loaded, number, changes: [...changes], is_quick: quick.checked }) });
  } catch {
    status_.textContent = "moesim explore has ended.";
    return;
  }
  if (number !== newest || answer.status === 204) return;
  if (!answer.ok) {
    status_.textContent = "The simulation failed: see where moesim explore runs.";
    return;
  }
  const made = new DOMParser().parseFromString(await answer.text(), "text/html");
  putKeys(made.getElementById("keys"));
  const now = document.adoptNode(made.getElementById("outcome"));
  document.getElementById("outcome").replaceWith(now);
  status_.textContent = now.dataset.report ? `Simulated in ${((performance.now() - begun) / 1000).toFixed(1)} s` : "Not simulated: see the message";
  if (now.dataset.report) showReport(now.dataset.report);
}

function putKeys(made) {
  const form = document.getElementById("keys"), focused = document.activeElement?.dataset.path;
  const open = new Set([...form.querySelectorAll("details[open]")].map((one) => one.dataset.group));
  form.replaceChildren(...made.childNodes);
  for (const one of form.querySelectorAll("details")) one.open = open.has(one.dataset.group);
  if (focused) form.querySelector(`[data-path="${CSS.escape(focused)}"]`)?.focus();
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

/* Another kind of a policy has other keys: changes of the earlier one's go. */
function set(path, value) {
  changes.delete(path);
  if (value !== null) changes.set(path, value);
  change();
}

document.getElementById("keys").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("keys").addEventListener("change", ({ target }) => {
  if (target.id === "any") {
    const [path, ...value] = target.value.split("=");
    if (value.length) set(path.trim(), value.join("=").trim());
  } else if (target.dataset.path) {
    const path = target.dataset.path, value = target.value.trim();
    for (const key of [...changes.keys()]) if (key.startsWith(path + ".")) changes.delete(key);
    set(path, value === "" ? null : "policy" in target.dataset ? `{ kind = "${value}" }` : value);
  }
});
document.addEventListener("click", ({ target }) => {
  if (target.dataset.undo) set(target.dataset.undo, null);
  if (target.dataset.text) navigator.clipboard.writeText(target.dataset.text).then(() => (target.textContent = "Copied"));
});
quick.addEventListener("change", change);
window.addEventListener("hashchange", () => location.reload());
change();
