// Keeps the page up to date, filters the changes, and shows records and answers without leaving the page.
// The server makes all HTML; nothing here makes HTML of what comes from outside.
"use strict";

const byId = (id) => document.getElementById(id);

// Make the children of `now` those of `wanted`. What has not changed stays, so it keeps its focus and its selection.
function replaceChildren(now, wanted) {
  const kept = new Map([...now.children].filter((one) => one.dataset.key).map((one) => [one.dataset.key, one]));
  const children = [...wanted.children].map((one) => {
    const old = kept.get(one.dataset.key);
    if (old && sameWithoutState(old, one)) return old;
    const [before, after] = [old?.querySelector("details[open]"), one.querySelector("details")];
    if (before && after) after.open = true; // a row that has grown
    return one;
  });
  children.forEach((one, position) => {
    if (now.children[position] !== one) now.insertBefore(one, now.children[position] || null);
  });
  while (now.children.length > children.length) now.lastElementChild.remove();
}

function sameWithoutState(old, one) {
  const plain = old.cloneNode(true);
  plain.hidden = false;
  for (const opened of plain.querySelectorAll("details[open]")) opened.open = false;
  return plain.outerHTML === one.outerHTML;
}

function show(id, html) {
  const box = byId(id);
  if (!box) return;
  const made = new DOMParser().parseFromString(html, "text/html").body;
  const [now, wanted] = [box.querySelector("tbody"), made.querySelector("tbody")];
  if (now && wanted && box.children.length === made.children.length) {
    replaceChildren(now, wanted);
    [...made.children].slice(1).forEach((one, position) => box.children[position + 1].replaceWith(one));
  } else {
    replaceChildren(box, made);
  }
  if (id !== "state") box.closest("section").hidden = !html;
  if (id === "changes") filter();
}

// The filter of the changes.

const text = byId("filter-text");
const type = byId("filter-type");

function filter() {
  if (!text || !type) return;
  const known = new Set([...type.options].map((option) => option.value));
  let found = 0;
  const rows = document.querySelectorAll("#changes tbody tr");
  for (const row of rows) {
    const own = row.dataset.type || "";
    if (own && !known.has(own)) {
      known.add(own);
      type.add(new Option(own, own));
    }
    const fits = row.textContent.toLowerCase().includes(text.value.toLowerCase());
    row.hidden = !fits || (type.value !== "" && own !== type.value);
    found += row.hidden ? 0 : 1;
  }
  if (text.value || type.value) say(`${found} of ${rows.length} changes match`);
}

function say(words) {
  byId("said").textContent = words;
}

// Records, dead letters and answers are shown in a dialog.

async function open(url, options) {
  const answer = await fetch(url, options);
  const made = new DOMParser().parseFromString(await answer.text(), "text/html");
  const dialog = byId("dialog") || document.body.appendChild(document.createElement("dialog"));
  dialog.id = "dialog";
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  const inside = document.createElement("div");
  for (const one of [...made.querySelector("main").childNodes]) inside.append(one);
  for (const link of inside.querySelectorAll('a[href="/"]')) link.remove();
  const heading = inside.querySelector("h2");
  if (heading) {
    heading.id = "dialog-heading";
    dialog.setAttribute("aria-labelledby", heading.id);
  }
  dialog.replaceChildren(inside, close);
  prepare(dialog);
  if (!dialog.open) dialog.showModal();
  const said = inside.querySelector("#message");
  if (said) say(said.textContent);
}

function prepare(root) {
  for (const button of root.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const shown = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(shown.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(shown);
        button.textContent = "Selected: copy it with Ctrl-C";
      }
    });
  }
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.show");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  open(link.href).catch(() => location.assign(link.href));
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method === "post") {
    event.preventDefault();
    const body = new URLSearchParams(new FormData(form));
    open(form.getAttribute("action"), { method: "POST", body }).catch(() => say("The service does not answer."));
  } else if (form.classList.contains("filters") && !location.search && !document.querySelector("#changes .more")) {
    event.preventDefault(); // all changes are here; otherwise the service looks through the others, too
    filter();
  }
});

if (text && type) {
  text.addEventListener("input", filter);
  type.addEventListener("input", filter);
}
prepare(document);

// What arrives. A page that nobody sees is not kept up to date: a browser has few connections to a service.

const SILENCE = 45000; // milliseconds; the service says something at least each 15 s
const live = byId("live");
let events = null;
let heard = 0;

function connect() {
  events = new EventSource("/events" + location.search);
  heard = Date.now();
  events.addEventListener("error", () => lost());
  events.addEventListener("ping", () => arrived());
  events.addEventListener("message", (event) => {
    arrived();
    for (const [id, html] of Object.entries(JSON.parse(event.data))) show(id, html);
  });
}

function arrived() {
  heard = Date.now();
  live.textContent = "Live";
  live.classList.remove("lost");
}

function lost() {
  if (!live.classList.contains("lost")) {
    const since = new Date(heard).toISOString().slice(11, 19);
    const why = events.readyState === EventSource.CLOSED
      ? "No changes are sent to this page: too many pages are open, or the service is away."
      : "The service does not answer.";
    live.textContent = `${why} This is how it was at ${since} UTC. Trying again.`;
    live.classList.add("lost");
  }
  if (events.readyState === EventSource.CLOSED) setTimeout(reconnect, 5000); // it has answered with an error
}

function reconnect() {
  events.close();
  if (!document.hidden) connect();
}

if (live) {
  connect();
  document.addEventListener("visibilitychange", reconnect);
  setInterval(() => {
    if (document.hidden || Date.now() - heard < SILENCE) return;
    lost(); // the connection is dead, and nobody says so: after a laptop's sleep, or in a tunnel
    reconnect();
  }, 5000);
}
