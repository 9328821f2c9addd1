// Shows what the sandbox accepted. Every text from a message goes in as text, never as markup.

const byId = (id) => document.getElementById(id);
const KEEP = 800;          // messages kept in the page
const GROUPS_MOST = 24;    // phones, desktops or threads shown at once
const ON_A_DEVICE = 12;

let messages = [];         // newest first
let lastId = 0;
let tab = "all";
let wanted = "";
let mailbox = "";
let reading = 0;
let fresh = new Set();     // ids that arrived with the last answer: they are animated once
let isFirst = true;

function make(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function hue(text) {
  let sum = 7;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 3600;
  return 185 + (sum / 3600) * 160;  // from blue over violet to red: white reads well on all of them
}

function ago(at) {
  const seconds = Date.now() / 1000 - at;
  if (seconds < 45) return "now";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return new Date(at * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function when(at) {
  const made = make("time", "", ago(at));
  made.dataset.at = at;
  made.dateTime = new Date(at * 1000).toISOString();
  made.title = new Date(at * 1000).toLocaleString();
  return made;
}

function appName(sender) {
  const last = sender.split(".").filter((part) => !["voip", "mac", "macos", "desktop"].includes(part)).pop() || sender;
  return last.charAt(0).toUpperCase() + last.slice(1);
}

function tail(to) {
  return to.length > 26 ? `${to.slice(0, 10)}…${to.slice(-8)}` : to;
}

function grouped(shown) {
  const groups = new Map();
  for (const message of shown) {
    if (!groups.has(message.to)) groups.set(message.to, []);
    groups.get(message.to).push(message);
  }
  return [...groups].slice(0, GROUPS_MOST);
}

// What is still on a lock screen: a later message with the same word replaced the earlier one.
function stillShown(list) {
  const seen = new Map();
  for (const message of list) {
    const key = message.replaces || `#${message.id}`;
    const first = seen.get(key);
    if (first) first.copies += 1;
    else seen.set(key, { message, copies: 1 });
  }
  return [...seen.values()].slice(0, ON_A_DEVICE);
}

function pushCard({ message, copies }) {
  const card = make("article", "push");
  const isSilent = !message.title && message.text.startsWith("Silent");
  if (isSilent) card.classList.add("silent");
  if (fresh.has(message.id)) card.classList.add("new");
  card.style.setProperty("--tone", hue(message.sender));
  card.append(make("span", "icon", appName(message.sender).charAt(0)));
  card.append(make("b", "", message.title || appName(message.sender)), when(message.at));
  card.append(make("p", "", message.text));
  const notes = [message.note, copies > 1 ? `replaced ${copies - 1} earlier` : ""].filter(Boolean).join(" · ");
  if (notes) card.append(make("small", "", notes));
  if (/^https?:\/\//.test(message.image || "")) {
    const picture = make("img", "picture");
    picture.src = message.image;
    picture.alt = "";
    picture.referrerPolicy = "no-referrer";
    card.append(picture);
  }
  return card;
}

function device([to, list], kind) {
  const whole = make("div", kind);
  const isAndroid = list[0].sender.startsWith("Android");  // the vendor may follow: "Android (JPush)"
  if (isAndroid) whole.classList.add("android");
  const screen = make("div", "screen");
  screen.style.setProperty("--hue", hue(to));
  const clock = make("div", "clock");
  const newest = new Date(list[0].at * 1000);
  clock.append(make("b", "", newest.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false })));
  clock.append(make("span", "", newest.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long" })));
  const cards = make("div", "cards");
  cards.append(...stillShown(list).map(pushCard));
  screen.append(clock, cards);
  const owner = make("p", "owner");
  owner.append(make("b", "", isAndroid ? "Android" : kind === "desktop" ? "Desktop" : "iPhone"), ` ${tail(to)}`);
  owner.title = to;
  whole.append(screen, owner);
  return whole;
}

function thread([to, list]) {
  const whole = make("article", "thread");
  const head = make("header");
  const face = make("span", "face", to.slice(-2));
  face.style.setProperty("--hue", hue(to));
  const names = make("div");
  names.append(make("b", "", to), make("span", "", `from ${list[0].sender}`));
  head.append(face, names);
  const bubbles = make("div", "bubbles");
  for (const message of list.slice(0, 40).reverse()) {
    const bubble = make("div", "bubble");
    if (fresh.has(message.id)) bubble.classList.add("new");
    const small = make("small");
    small.append(when(message.at), ` · ${message.note}`);
    bubble.append(make("p", "", message.text), small);
    bubbles.append(bubble);
  }
  whole.append(head, bubbles);
  return whole;
}

function senderName(sender) {
  return sender.replace(/\s*<[^>]*>$/, "").replace(/^"|"$/g, "") || sender;
}

function letter(message) {
  const row = make("button", "letter");
  row.dataset.key = message.id;
  if (fresh.has(message.id)) row.classList.add("new");
  if (message.id === reading) row.classList.add("open");
  row.append(make("b", "", senderName(message.sender)), when(message.at));
  row.append(make("strong", "", message.title || "(no subject)"));
  row.append(make("span", "", mailbox ? message.text.slice(0, 120) || " " : `to ${message.to}`));
  row.addEventListener("click", () => read(message));
  return row;
}

function mailboxes(mails) {
  const counts = new Map();
  for (const mail of mails) counts.set(mail.to, (counts.get(mail.to) || 0) + 1);
  if (mailbox && !counts.has(mailbox)) mailbox = "";
  const choices = [["", mails.length], ...[...counts].slice(0, 200)];
  return choices.map(([address, count]) => {
    const row = make("button");
    row.dataset.key = address;
    row.role = "option";
    row.ariaSelected = String(address === mailbox);
    row.title = address;
    row.append(make("span", "", address || "All mail"), make("em", "", String(count)));
    row.addEventListener("click", () => { mailbox = address; render(); });
    return row;
  });
}

function read(message) {
  reading = message.id;
  const reader = byId("reader");
  reader.querySelector(".reader-none").hidden = true;
  reader.querySelector("article").hidden = false;
  byId("reader-title").textContent = message.title || "(no subject)";
  byId("reader-from").textContent = message.sender;
  byId("reader-to").textContent = message.to;
  byId("reader-via").textContent = [message.provider, message.note].filter(Boolean).join(" · ");
  byId("images").hidden = !message.html;
  byId("images").textContent = "Show pictures";
  byId("reader-frame").src = `/_mail/${message.id}`;
  byId("mail").classList.add("reading");
  for (const row of document.querySelectorAll(".letter.open")) row.classList.remove("open");
  render();
}

function matches(message) {
  if (!wanted) return true;
  return `${message.to} ${message.title} ${message.text} ${message.sender} ${message.delivery_id}`.toLowerCase().includes(wanted);
}

function show(look, container, build) {
  const list = messages.filter((message) => message.look === look && matches(message));
  const isShown = list.length > 0 && (tab === "all" || tab === look);
  byId(`group-${look}`).hidden = !isShown;
  document.querySelector(`[data-tab=${look}] em`).textContent = list.length || "";
  if (isShown) build(container, list);
  return isShown;
}

// Rebuilding keeps the page simple; scroll and focus are put back.
function refill(container, children) {
  const scrolled = container.scrollTop;
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  container.replaceChildren(...children);
  container.scrollTop = scrolled;
  if (focused !== undefined) children.find((child) => child.dataset.key === focused)?.focus({ preventScroll: true });
}

function render() {
  const shown = [
    show("phone", byId("phones"), (place, list) => refill(place, grouped(list).map((group) => device(group, "phone")))),
    show("desktop", byId("desktops"), (place, list) => refill(place, grouped(list).map((group) => device(group, "desktop")))),
    show("sms", byId("threads"), (place, list) => {
      refill(place, grouped(list).map(thread));
      for (const bubbles of place.querySelectorAll(".bubbles")) bubbles.scrollTop = bubbles.scrollHeight;
    }),
    show("mail", byId("mail"), (place, list) => {
      refill(byId("boxes"), mailboxes(list));
      refill(byId("letters"), list.filter((mail) => !mailbox || mail.to === mailbox).slice(0, 200).map(letter));
      const first = list.find((mail) => !mailbox || mail.to === mailbox);
      if (!reading && first && window.innerWidth > 640) read(first);
    }),
  ];
  byId("nothing").hidden = messages.length > 0;
  byId("nothing-found").hidden = messages.length === 0 || shown.some(Boolean);
  fresh = new Set();
}

function forget() {
  messages = [];
  reading = 0;
  mailbox = "";
  byId("reader").querySelector(".reader-none").hidden = false;
  byId("reader").querySelector("article").hidden = true;
  byId("reader-frame").removeAttribute("src");
  byId("mail").classList.remove("reading");
  render();
}

// Faults

const MODE_WORDS = Object.fromEntries([...document.querySelectorAll("[name=mode] option")].map((one) => [one.value, one.textContent]));
let faultsShown = "";

function showFaults(feed) {
  const state = JSON.stringify([feed.faults, feed.faults_allowed]);
  if (state === faultsShown) return;
  faultsShown = state;
  byId("fault-count").hidden = feed.faults.length === 0;
  byId("fault-count").textContent = feed.faults.length;
  byId("clear-faults").hidden = feed.faults.length === 0;
  byId("fault-form").hidden = !feed.faults_allowed;
  if (!feed.faults_allowed) byId("faults-hint").textContent = "Faults are switched off in this sandbox.";
  const chooser = byId("fault-form").elements.provider;
  if (chooser.options.length === 1) for (const name of feed.providers) chooser.add(new Option(name, name));
  byId("fault-list").replaceChildren(...feed.faults.map((fault) => {
    const row = make("li");
    row.append(make("b", "", fault.provider || "all providers"), make("div", "", MODE_WORDS[fault.mode] || fault.mode));
    const extent = [fault.rate < 1 ? `${Math.round(fault.rate * 100)} %` : "", fault.latency_ms ? `+${fault.latency_ms} ms` : "", `struck ${fault.fired}${fault.count ? ` of ${fault.count}` : ""}`];
    row.append(make("span", "", extent.filter(Boolean).join(" · ")));
    return row;
  }));
}

byId("fault-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target.elements;
  const asked = { provider: form.provider.value, mode: form.mode.value, rate: Number(form.rate.value) / 100 };
  for (const name of ["count", "latency_ms", "retry_after"]) if (form[name].value) asked[name] = Number(form[name].value);
  const answer = await fetch("/_faults", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(asked) });
  const error = byId("fault-error");
  error.hidden = answer.ok;
  if (!answer.ok) error.textContent = (await answer.json()).error;
  poll();
});
byId("fault-form").elements.rate.addEventListener("input", (event) => {
  event.target.nextElementSibling.textContent = `${event.target.value} %`;
});
byId("clear-faults").addEventListener("click", async () => { await fetch("/_faults", { method: "DELETE" }); poll(); });
byId("open-faults").addEventListener("click", () => byId("faults").showModal());
byId("close-faults").addEventListener("click", () => byId("faults").close());

// Controls

byId("tabs").addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  tab = chosen.dataset.tab;
  for (const one of byId("tabs").children) one.ariaSelected = String(one === chosen);
  render();
});
byId("find").addEventListener("input", (event) => { wanted = event.target.value.trim().toLowerCase(); render(); });
byId("empty").addEventListener("click", async () => { await fetch("/_inbox", { method: "DELETE" }); forget(); poll(); });
byId("back").addEventListener("click", () => { reading = 0; byId("mail").classList.remove("reading"); render(); });
byId("images").addEventListener("click", () => {
  byId("images").textContent = "Pictures shown";
  byId("reader-frame").src = `/_mail/${reading}?images=1`;
});
byId("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(byId("example").textContent);
  byId("copy").textContent = "Copied";
});

// The feed

let isPolling = false;

async function poll() {
  if (isPolling) return;
  isPolling = true;
  try {
    const answer = await fetch(`/_feed?after=${lastId}`);
    const feed = await answer.json();
    byId("live").classList.remove("off");
    byId("live").title = "Connected";
    byId("total").textContent = feed.total.toLocaleString();
    byId("total-word").textContent = feed.total === 1 ? "message" : "messages";
    showFaults(feed);
    if (feed.last_id < lastId) {  // another sandbox took its place
      lastId = 0;
      forget();
    } else {
      if (feed.total === 0 && messages.length) forget();
      lastId = feed.last_id;
      if (feed.messages.length) {
        if (!isFirst) fresh = new Set(feed.messages.map((message) => message.id));
        messages = [...feed.messages, ...messages].slice(0, KEEP);
        render();
      }
    }
    isFirst = false;
  } catch {
    byId("live").classList.add("off");
    byId("live").title = "The sandbox does not answer";
  } finally {
    isPolling = false;
  }
}

setInterval(() => { if (!document.hidden) poll(); }, 1000);
setInterval(() => { for (const one of document.querySelectorAll("time[data-at]")) one.textContent = ago(Number(one.dataset.at)); }, 10000);
poll();
