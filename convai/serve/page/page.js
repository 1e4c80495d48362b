// The page of serve.py. It keeps the dialog and sends the whole of it each time; the server keeps nothing.
//
// From top to bottom: what the page remembers, how it asks the server, persona cards, the dialog, decoding, ranking,
// saving and sharing, keys and appearance. Text of people and models is only ever set as textContent or value.

const find = (selector, within = document) => within.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const oneLine = (text) => text.replace(/\s+/g, " ").trim();

/** Make an element: properties, then children; a child that is no text or element is left out. */
function make(tag, properties = {}, ...children) {
  const { dataset = {}, aria = {}, ...others } = properties;
  const element = Object.assign(document.createElement(tag), others);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children.filter((child) => typeof child === "string" || child instanceof Node));
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Say something to screen readers alone. */
const announce = (text) => (find("#spoken").textContent = text);

// ---- What the page remembers ---------------------------------------------------------------------------------------

const STORE = "convai-dialog";
let config = { model: "", decoding: {}, rank_by: { choices: [], default: "" }, max_history: null, limits: {} };
let personas = []; // to shuffle: lists of sentences
// persona: agent and you, sentences each; messages: as in the API, without the system's; decoding: what differs from
// the server's defaults; attempt: how often this reply was regenerated; candidates: the text of the ranking panel
let state = { persona: { agent: [], you: [] }, messages: [], decoding: {}, attempt: 0, candidates: "" };

let isForgetful = false; // some browsers allow pages to keep nothing

function keep(name, value, area = "localStorage") {
  try {
    window[area].setItem(name, value);
  } catch {
    if (!isForgetful) toast("This browser lets the page keep nothing: a reload will forget the dialog.");
    isForgetful = true;
  }
}

function kept(name, area = "localStorage") {
  try {
    return window[area].getItem(name);
  } catch {
    return null;
  }
}

const remember = () => keep(STORE, JSON.stringify(state));

/** Take up what was remembered; whether there was something. */
function recall() {
  try {
    const found = JSON.parse(kept(STORE));
    if (Array.isArray(found?.messages) && Array.isArray(found.persona?.agent) && Array.isArray(found.persona.you)) {
      state = { ...state, ...found };
      return true;
    }
  } catch { /* no JSON: as good as nothing */ }
  return false;
}

/** Replace what is remembered, and offer to take that back where a dialog would be lost. */
function replaceState(changes, note) {
  const before = structuredClone(state);
  stopReply();
  state = { ...state, ...changes, attempt: 0 };
  showAll();
  if (before.messages.length > 0) toast(note, "Bring it back", () => { stopReply(); state = before; showAll(); });
}

// ---- How it asks the server ----------------------------------------------------------------------------------------

class Failure extends Error {
  constructor(message, { status = 0, wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, wait });
  }
}

const IN_WORDS = {
  404: "The server does not know this address.",
  413: "This is more than the server takes at once.",
  429: "The server is busy.",
  503: "The server is not ready, or is about to stop.",
};
const LOST = "The connection to the server was lost.";
let apiKey = kept("convai-key", "sessionStorage"); // until the tab is closed

/** Send a request; its response, or a Failure that says in words what is wrong. Asks for a key where one is needed. */
async function request(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (apiKey) headers.Authorization = `Bearer ${apiKey}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body), signal } : { headers, signal };
  const response = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : new Failure(LOST);
  });
  if (response.status === 401) {
    await askForKey();
    return request(path, body, signal);
  }
  if (response.ok) return response;
  const said = (await response.json().catch(() => null))?.error?.message;
  const status = response.status;
  const message = status !== 429 && said ? said : IN_WORDS[status] ?? `The server failed (status ${status}).`;
  throw new Failure(message, { status, wait: Number(response.headers.get("Retry-After")) || 2 });
}

/** Return what the server answers as JSON. */
async function ask(path, body, signal) {
  const response = await request(path, body, signal);
  return response.json().catch((error) => {
    throw error.name === "AbortError" ? error : new Failure(LOST);
  });
}

/** Do something; while the server is busy wait as long as it says and do it again, three times at most. */
async function patiently(signal, note, act) {
  for (let tries = 1; ; tries++) {
    try {
      return await act();
    } catch (failure) {
      if (failure.status !== 429 || tries > 3) throw failure;
      note(`${failure.message} Trying again in ${failure.wait} s.`);
      await new Promise((resolve) => {
        setTimeout(resolve, 1000 * failure.wait);
        signal.addEventListener("abort", resolve, { once: true });
      });
      note("");
      signal.throwIfAborted();
    }
  }
}

/** Yield the objects of a stream of server-sent events; a Failure where it ends before [DONE]. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Failure(LOST);
    });
    if (done) throw new Failure(LOST);
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      const event = data ? JSON.parse(data) : {};
      if (event.error) throw new Failure(event.error.message);
      yield event;
    }
  }
}

let keyWanted = null; // a promise that several requests may wait for

function askForKey() {
  keyWanted ??= new Promise((resolve, reject) => {
    const dialog = find("#key");
    find("#key-title").textContent = apiKey ? "The server does not take this key" : "This server asks for a key";
    dialog.showModal();
    dialog.onclose = () => {
      keyWanted = null;
      const given = dialog.returnValue;
      dialog.returnValue = find("#api-key").value = "";
      if (!given) return reject(new Failure("The server asks for a key.", { status: 401 }));
      apiKey = given;
      keep("convai-key", given, "sessionStorage");
      resolve();
    };
  });
  return keyWanted;
}

/** Return the body of a request for replies: the persona as the system's message, then the messages. */
function completionBody(who, messages, more) {
  const { greedy, temperature, top_p, top_k, max_tokens, min_tokens } = decoding();
  return {
    model: config.model,
    messages: withPersona(who, messages),
    temperature: greedy ? 0 : temperature,
    top_p,
    top_k,
    max_tokens,
    min_tokens,
    seed: nextSeed(),
    ...more,
  };
}

const sentencesOf = (who) => state.persona[who].map(oneLine).filter(Boolean);

function withPersona(who, messages) {
  const sentences = sentencesOf(who);
  // The line break behind a lone sentence keeps it whole; several have one between them.
  const content = sentences.join("\n") + (sentences.length === 1 ? "\n" : "");
  // More than the server takes could not be seen by the model either.
  const turns = messages.slice(1 - config.limits.messages).map(({ role, content }) => ({ role, content }));
  return content ? [{ role: "system", content }, ...turns] : turns;
}

const MAX_SEED = 2 ** 31;
const randomSeed = () => Math.floor(Math.random() * MAX_SEED);

/** Return the seed of the next reply: a given one counts up with each try, so that regenerating gives another reply. */
function nextSeed() {
  const { seed } = decoding();
  return seed === null ? randomSeed() : (seed + state.attempt) % MAX_SEED;
}

// ---- Persona cards -------------------------------------------------------------------------------------------------

const WHOSE = { agent: "the agent's", you: "your" };

function showCard(who) {
  const list = find(`[data-card=${who}] ul`);
  const sentences = state.persona[who];
  list.replaceChildren(...sentences.map((sentence, number) => sentenceRow(who, sentence, number)));
  list.hidden = sentences.length === 0;
}

function sentenceRow(who, sentence, number) {
  const where = `${number + 1} of ${WHOSE[who]} persona`;
  const aria = { label: `Sentence ${where}` };
  const text = make("textarea", { value: sentence, rows: 1, maxLength: 500, dir: "auto", aria });
  text.oninput = () => { state.persona[who][number] = text.value; personaChanged(); };
  text.onkeydown = (event) => editSentences(event, who, number);
  const remove = make("button", { className: "bare", aria: { label: `Remove sentence ${where}` } }, icon("remove"));
  remove.onclick = () => removeSentence(who, number);
  return make("li", {}, text, remove);
}

/** Enter begins a new sentence; the backspace key removes an empty one. */
function editSentences(event, who, number) {
  if (event.key === "Enter" && !event.isComposing) {
    event.preventDefault();
    addSentence(who, number + 1);
  } else if (event.key === "Backspace" && event.target.value === "") {
    event.preventDefault();
    removeSentence(who, number);
  }
}

/** Scores were given for the persona as it was. */
function personaChanged() {
  remember();
  showQuestion();
}

function addSentence(who, place = state.persona[who].length) {
  changePersona(who, state.persona[who].toSpliced(place, 0, ""));
  all(`[data-card=${who}] textarea`)[place].focus();
}

function removeSentence(who, number) {
  changePersona(who, state.persona[who].toSpliced(number, 1));
  (all(`[data-card=${who}] textarea`)[Math.max(0, number - 1)] ?? find(`[data-card=${who}] [data-do=add]`)).focus();
  announce("Sentence removed.");
}

function clearPersona(who) {
  const before = state.persona[who];
  if (before.length === 0) return;
  changePersona(who, []);
  toast("No persona.", "Bring it back", () => changePersona(who, before));
}

function changePersona(who, sentences) {
  state.persona[who] = sentences;
  personaChanged();
  showCard(who);
}

/** Draw a persona that is neither the agent's nor yours. */
function drawPersona() {
  const taken = Object.values(state.persona).map((persona) => JSON.stringify(persona));
  const others = personas.filter((persona) => !taken.includes(JSON.stringify(persona)));
  const from = others.length ? others : personas;
  return from.length ? [...from[Math.floor(Math.random() * from.length)]] : [];
}

function shuffle(who) {
  if (personas.length === 0) return toast("The server has no personas to draw from; write one.");
  const persona = { ...state.persona, [who]: drawPersona() };
  announce(`${who === "agent" ? "The agent is" : "You are"} now: ${persona[who].join(" ")}`);
  if (who === "agent") replaceState({ persona, messages: [] }, "Another agent, so the dialog starts anew.");
  else changePersona(who, persona[who]);
}

// ---- The dialog ----------------------------------------------------------------------------------------------------

let reply = null; // the AbortController of the reply that is being made
const NAMES = { user: "You", assistant: "Agent" };

/** Leave the agent's turn at the end out: what it, or another in its place, answers to. */
const question = () => (state.messages.at(-1)?.role === "assistant" ? state.messages.slice(0, -1) : state.messages);

function turnRow({ role, content, stopped }, isForgotten) {
  const row = make("li", { className: role },
    make("span", { className: "who" }, NAMES[role]),
    make("p", { dir: "auto" }, content),
    stopped && make("span", { className: "quiet stopped" }, "stopped"));
  row.classList.toggle("forgotten", isForgotten);
  return row;
}

function showDialog() {
  const n = state.messages.length;
  // What the model sees of the dialog when it answers: 2 * max_history + 1 turns, the user's last among them.
  const seen = config.max_history === null ? n : 2 * config.max_history + 1;
  const first = Math.max(0, question().length - seen);
  find("#turns").replaceChildren(...state.messages.map((message, i) => turnRow(message, i < first)));
  if (first > 0) {
    const line = make("li", { className: "memory quiet" }, "The model remembers from here on");
    find("#turns").children[first].before(line);
  }
  find("#empty").hidden = n > 0 || reply !== null;
  follow(true);
  showButtons();
  showQuestion();
}

let isAtEnd = true; // of the dialog: whoever reads further up is left there while a reply grows

function follow(always = false) {
  const box = find("#transcript");
  if (isAtEnd || always) box.scrollTop = box.scrollHeight;
}

function watchScrolling() {
  const box = find("#transcript");
  box.onscroll = () => (isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60);
  new ResizeObserver(() => follow()).observe(box);
}

function showButtons() {
  const isBusy = reply !== null;
  const n = state.messages.length;
  const focused = document.activeElement;
  find("#send").hidden = isBusy;
  find("#stop").hidden = !isBusy;
  find("#again").disabled = isBusy || n === 0;
  find("#undo").disabled = isBusy || n === 0;
  find("#fresh").disabled = n === 0;
  find("#begin").disabled = isBusy;
  find("#suggest").disabled = isBusy || state.messages.at(-1)?.role === "user"; // then it is not your turn
  if (focused.disabled || focused.hidden) find(isBusy ? "#stop" : "#say").focus();
}

/** Show what went wrong under the dialog, with a button that tries again; nothing to take it away. */
function problem(text, again) {
  const retry = again && make("button", { onclick: () => { problem(""); again(); } }, icon("again"), "Try again");
  if (find("#problem").contains(document.activeElement)) find("#say").focus();
  find("#problem").replaceChildren(...(text ? [make("p", {}, text), retry].filter(Boolean) : []));
  follow(true);
}

/** Run what makes a reply, one at a time, with the Stop button; whether it came to its end. */
async function whileBusy(what, act, again) {
  if (reply) return false;
  reply = new AbortController();
  const { signal } = reply;
  problem("");
  showButtons();
  announce(what);
  try {
    await patiently(signal, problem, () => act(signal));
    return true;
  } catch (error) {
    if (signal.aborted) announce("Stopped.");
    else if (error instanceof Failure) problem(error.message, again);
    else throw error;
    return false;
  } finally {
    if (reply?.signal === signal) reply = null;
    showDialog();
  }
}

function stopReply() {
  reply?.abort();
  reply = null;
}

/** Let the agent take the next turn. */
async function answer() {
  if (reply) return;
  const before = state.messages;
  const asked = question();
  const turn = { role: "assistant", content: "" };
  state.messages = [...asked, turn];
  const isWhole = await whileBusy("The agent is writing.", async (signal) => {
    showDialog();
    const row = find("#turns").lastElementChild;
    row.classList.add("growing");
    const body = completionBody("agent", asked, { stream: true });
    for await (const event of events(await request("/v1/chat/completions", body, signal))) {
      turn.content += event.choices?.[0]?.delta?.content ?? "";
      find("p", row).textContent = turn.content;
      follow();
    }
    if (!turn.content.trim()) throw new Failure("The agent said nothing.");
    announce(`Agent: ${turn.content}`);
  }, answer);
  if (!isWhole) turn.stopped = true;
  // Without a word the dialog stays as it was; it may be another by now.
  if (state.messages.at(-1) === turn && !turn.content.trim()) state.messages = before;
  remember();
  showDialog();
}

function send() {
  const content = oneLine(find("#say").value);
  if (reply || !content) return;
  find("#say").value = "";
  say(content);
}

function say(content) {
  // After a reply that never came the user's turns are one.
  const last = state.messages.at(-1);
  if (last?.role === "user") state.messages.splice(-1, 1, { role: "user", content: `${last.content} ${content}` });
  else state.messages.push({ role: "user", content });
  state.attempt = 0;
  remember();
  showDialog();
  answer();
}

function regenerate() {
  if (reply || state.messages.length === 0) return;
  state.attempt += 1;
  answer();
}

/** Take back the last exchange; what the user said goes into the field where that is empty. */
function undo() {
  if (reply || state.messages.length === 0) return;
  const messages = [...question()];
  const said = messages.pop()?.content ?? "";
  state.messages = messages;
  state.attempt = 0;
  if (!find("#say").value.trim()) find("#say").value = said;
  problem("");
  remember();
  showDialog();
  announce("The last exchange is taken back.");
  find("#say").focus();
}

function startAnew() {
  if (state.messages.length) replaceState({ messages: [] }, "The dialog starts anew.");
  find("#say").focus();
}

/** Let the model say something in the user's place: it sees the dialog from the other side. */
function suggest() {
  const other = { user: "assistant", assistant: "user" };
  if (reply || state.messages.at(-1)?.role === "user") return;
  const swapped = state.messages.map(({ role, content }) => ({ role: other[role], content }));
  whileBusy("The model thinks of something to say.", async (signal) => {
    const body = completionBody("you", swapped, { seed: randomSeed() });
    const { choices } = await ask("/v1/chat/completions", body, signal);
    find("#say").value = oneLine(choices[0].message.content);
    find("#say").focus();
    announce(`Suggested: ${find("#say").value}. Enter says it.`);
  }, suggest);
}

// ---- Decoding ------------------------------------------------------------------------------------------------------

// name, label, lowest, highest, step, help
const SLIDERS = [
  ["temperature", "Temperature", 0.1, 2, 0.05, "below 1 sharpens, above flattens"],
  ["top_p", "Top p", 0.05, 1, 0.01, "the likeliest that make up this share; 1: all"],
  ["top_k", "Top k", 0, 100, 1, "among the k likeliest; 0: all"],
  ["max_tokens", "Longest reply", 1, 100, 1, "tokens"],
  ["min_tokens", "Shortest reply", 0, 20, 1, "tokens"],
];
const SHARED = ["greedy", "seed", ...SLIDERS.map(([name]) => name)];
const SAMPLING = ["temperature", "top_p", "top_k", "seed"]; // of no effect on greedy replies

const decoding = () => ({ seed: null, ...config.decoding, ...state.decoding });

function makeSliders() {
  find("#sliders").replaceChildren(...SLIDERS.map(([name, label, min, max, step, help]) => {
    const most = Math.max(max, config.decoding[name]);
    const top = name.endsWith("_tokens") ? Math.min(most, config.limits.max_tokens) : most;
    const aria = { describedby: `${name}-help` };
    const slider = make("input", { type: "range", id: name, min, max: top, step, aria });
    slider.oninput = () => setDecoding(name, Number(slider.value));
    return make("div", { className: "slider" },
      make("label", { htmlFor: name }, label), make("output", { htmlFor: name, id: `${name}-value` }), slider,
      make("span", { className: "quiet", id: `${name}-help` }, help));
  }));
}

function setDecoding(name, value) {
  state.decoding[name] = value;
  const { min_tokens, max_tokens } = decoding();
  if (min_tokens > max_tokens) state.decoding[name === "min_tokens" ? "max_tokens" : "min_tokens"] = value;
  remember();
  showDecoding();
}

function setAllDecoding(values) {
  state.decoding = values;
  remember();
  showDecoding();
}

function showDecoding() {
  const values = decoding();
  for (const [name] of SLIDERS) {
    find(`#${name}`).value = values[name];
    find(`#${name}-value`).textContent = String(values[name]);
  }
  find("#greedy").checked = values.greedy;
  if (document.activeElement !== find("#seed")) find("#seed").value = values.seed ?? "";
  for (const name of SAMPLING) find(`#${name}`).disabled = values.greedy;
}

// ---- Ranking -------------------------------------------------------------------------------------------------------

// What each way's scores mean, and how a bar shows them: a share of the whole, or to either side of zero.
const softmax = (scores) => {
  const weights = scores.map((score) => Math.exp(score - Math.max(...scores)));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
};
const percent = (share) => (share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);
const signed = (score) => `${score < 0 ? "−" : "+"}${Math.abs(score).toFixed(2)}`;
const exponential = (scores) => scores.map(Math.exp);
const WAYS = {
  head: {
    label: "Head",
    meaning: "The share that the ranking head gives each of these candidates: the softmax of its scores.",
    shares: softmax,
  },
  likelihood: {
    label: "Likelihood",
    meaning: "The probability of a token of the reply by the language model: the geometric mean.",
    shares: exponential,
  },
  pmi: {
    label: "PMI",
    meaning: "How much likelier the context makes a token of the reply: its log-probability with it less without it.",
  },
  "head+pmi": { label: "Head + PMI", meaning: "Both, each standardized among these candidates, added." },
};

function showWays() {
  const choices = config.rank_by.choices.map((way) => make("option", { value: way }, WAYS[way]?.label ?? way));
  find("#rank-by").replaceChildren(...choices);
  find("#rank-by").value = config.rank_by.default;
  find("#no-head").hidden = config.rank_by.choices.includes("head");
  find("#how-many").max = config.limits.n;
}

let scored = null; // the scores shown: candidates with theirs, best first; by which way; as answers to what

const asked = () => JSON.stringify(withPersona("agent", question()));

function showQuestion() {
  const last = question().at(-1);
  find("#question").replaceChildren(make("span", { className: "who" }, last ? NAMES[last.role] : "Start"),
    make("span", { dir: "auto" }, last ? last.content : "Nothing was said yet: what could the agent open with?"));
  if (scored?.asked === asked()) showScores();
  else clearScores();
}

function clearScores() {
  scored = null;
  find("#scores").replaceChildren();
  find("#meaning").textContent = find("#rank-status").textContent = "";
}

/** Return the agent's reply that the candidates compete with; "" where there is none. */
const saidReply = () => (state.messages.at(-1)?.role === "assistant" ? oneLine(state.messages.at(-1).content) : "");

const candidates = () => [...new Set(find("#candidates").value.split("\n").map(oneLine).filter(Boolean))];

function setCandidates(texts) {
  find("#candidates").value = state.candidates = texts.join("\n");
  remember();
}

/** Add what the agent might say: sampled, even where its replies are greedy. */
function sample() {
  const n = Math.max(1, Math.min(config.limits.n, Math.floor(find("#how-many").value)));
  const temperature = decoding().temperature;
  const seed = randomSeed();
  rankingTask("Sampling ...", async (signal) => {
    const body = completionBody("agent", question(), { n, temperature, seed });
    const { choices } = await ask("/v1/chat/completions", body, signal);
    const sampled = choices.map(({ message }) => oneLine(message.content)).filter(Boolean);
    setCandidates([...new Set([...candidates(), ...sampled])]);
    await rank(signal);
  });
}

async function rank(signal) {
  const documents = [...new Set([...candidates(), saidReply()])].filter(Boolean);
  if (documents.length === 0) throw new Failure("Write candidates, or add samples.");
  const before = asked();
  const way = find("#rank-by").value;
  const body = { model: config.model, messages: withPersona("agent", question()), documents, rank_by: way };
  const { results } = await ask("/v1/rerank", body, signal);
  const ranked = results.map(({ index, relevance_score }) => ({ text: documents[index], score: relevance_score }));
  scored = { ranked: ranked.sort((a, b) => b.score - a.score), way, asked: before };
  showQuestion();
}

function showScores() {
  const { ranked, way } = scored;
  const { meaning = "", shares } = WAYS[way] ?? {};
  const scores = ranked.map(({ score }) => score);
  const widest = Math.max(...scores.map(Math.abs)) || 1;
  const sizes = shares ? shares(scores) : scores.map((score) => score / widest);
  const values = shares ? sizes.map(percent) : scores.map(signed);
  find("#scores").replaceChildren(...ranked.map(({ text }, i) => scoreRow(text, sizes[i], values[i], !shares)));
  find("#meaning").textContent = meaning;
  find("#rank-status").textContent = `${ranked.length} candidates, best first.`;
}

/** Return the row of a candidate: `size` from 0 to 1 is the length of its bar, or from -1 where that has two sides. */
function scoreRow(text, size, value, hasSides) {
  const bar = make("span", { className: hasSides ? "bar both" : "bar", aria: { hidden: "true" } }, make("span"));
  bar.firstChild.style.setProperty("--size", Math.abs(size).toFixed(4));
  bar.firstChild.classList.toggle("below", size < 0);
  const use = make("button", { className: "small", aria: { label: `Let the agent say: ${text}` } }, "Use");
  use.onclick = () => useCandidate(text);
  const wasSaid = make("span", { className: "quiet said" }, "was said");
  return make("li", {}, make("p", { dir: "auto" }, text), bar, make("span", { className: "value" }, value),
    text === saidReply() ? wasSaid : use);
}

/** Let a candidate stand in the place of the agent's reply. */
function useCandidate(content) {
  if (reply) return;
  state.messages = [...question(), { role: "assistant", content }];
  remember();
  showDialog();
  announce(`Agent: ${content}`);
  find("#score").focus(); // as the button is gone
}

let ranking = false;

/** Run a task of the ranking panel; what goes wrong is said there. */
async function rankingTask(what, act) {
  if (ranking) return;
  ranking = true;
  const { signal } = new AbortController();
  const note = (text) => (find("#rank-status").textContent = text);
  note(what);
  try {
    await patiently(signal, note, () => act(signal));
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    clearScores();
    note(error.message);
  } finally {
    ranking = false;
  }
}

// ---- Saving and sharing --------------------------------------------------------------------------------------------

function asText() {
  const facts = sentencesOf("agent").map((sentence) => `- ${sentence}`);
  const head = facts.length ? ["The agent's persona:", ...facts] : ["The agent has no persona."];
  const turns = state.messages.map(({ role, content }) => `${role === "user" ? "you" : "bot"}: ${oneLine(content)}`);
  return [...head, "", ...turns].join("\n") + "\n";
}

function asJsonLine() {
  const turns = state.messages.map(({ role, content }) => ({ role, content: oneLine(content) }));
  return JSON.stringify({ messages: withPersona("agent", turns) }) + "\n";
}

function save(name, type, text) {
  if (state.messages.length === 0) return toast("There is nothing to save: nothing has been said yet.");
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Return a link that holds persona and settings in its fragment, which browsers send to no server. */
function shareLink() {
  const parts = new URLSearchParams();
  for (const who of ["agent", "you"]) for (const sentence of sentencesOf(who)) parts.append(who, sentence);
  // All of them, as another server may have other defaults.
  for (const name of SHARED) if (decoding()[name] !== null) parts.set(name, decoding()[name]);
  return `${location.origin}${location.pathname}#${parts}`;
}

/** Take persona and settings out of the address, where it has some. */
function takeSharedLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  if (!["agent", "you", ...SHARED].some((name) => parts.has(name))) return;
  const shared = {};
  for (const name of SHARED.filter((name) => parts.has(name))) {
    const { min = 0, max = MAX_SEED - 1, step = "1" } = find(`input[type=range]#${name}`) ?? {};
    const value = Number(parts.get(name));
    const fitting = Math.max(min, Math.min(max, step === "1" ? Math.round(value) : value));
    if (name === "greedy") shared[name] = parts.get(name) === "true";
    else if (Number.isFinite(value)) shared[name] = fitting;
  }
  // Out of the address, so that a reload keeps what was said since.
  history.replaceState(null, "", location.pathname);
  const persona = { agent: parts.getAll("agent"), you: parts.has("you") ? parts.getAll("you") : state.persona.you };
  const note = "Persona and settings are the link's; the dialog starts anew.";
  replaceState({ persona, decoding: shared, messages: [] }, note);
}

async function copyLink() {
  find("#link").select();
  try {
    await navigator.clipboard.writeText(find("#link").value);
    find("#copy").textContent = "Copied";
  } catch { // browsers allow it only to pages of this machine or behind TLS
    find("#copy").textContent = "Ctrl+C copies";
  }
}

let toastTimer = 0;

function toast(text, label, act) {
  const box = find("#toast");
  const button = act && make("button", { className: "small" }, label);
  if (button) button.onclick = () => { box.hidden = true; act(); find("#say").focus(); };
  box.replaceChildren(...[make("span", {}, text), button].filter(Boolean));
  box.hidden = false;
  const end = () => {
    if (!box.matches(":hover, :focus-within")) box.hidden = true;
    else toastTimer = setTimeout(end, 2_000);
  };
  clearTimeout(toastTimer);
  toastTimer = setTimeout(end, act ? 15_000 : 6_000);
}

// ---- Keys and appearance -------------------------------------------------------------------------------------------

const WITH_ALT = { KeyS: suggest, KeyR: regenerate, KeyU: undo, KeyN: startAnew, KeyP: () => shuffle("agent") };

function onKey(event) {
  if (find("dialog[open]") || !document.body.classList.contains("ready")) return;
  const isTyping = event.target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
  if (event.key === "Escape" && reply) stopReply();
  else if (event.altKey && !event.ctrlKey && !event.metaKey && WITH_ALT[event.code]) WITH_ALT[event.code]();
  else if (!isTyping && event.key === "?") find("#keys").showModal();
  else if (!isTyping && event.key === "/") showPart("chat"), find("#say").focus();
  else return;
  event.preventDefault();
}

/** On small screens one part of the page is shown at a time. */
function showPart(part) {
  document.body.dataset.view = part;
  for (const button of all("nav button")) {
    if (button.dataset.show === part) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function showTheme(theme) {
  const isDark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (theme) document.documentElement.dataset.theme = theme;
  find("#theme span").textContent = isDark ? "Light" : "Dark";
  find("#theme").setAttribute("aria-label", isDark ? "Use light colours" : "Use dark colours");
  return isDark;
}

function switchTheme() {
  const theme = showTheme(kept("convai-theme")) ? "light" : "dark";
  keep("convai-theme", theme);
  showTheme(theme);
}

function showAll() {
  for (const who of ["agent", "you"]) showCard(who);
  find("#candidates").value = state.candidates;
  showDecoding();
  showDialog();
  problem("");
  remember();
}

function connectButtons() {
  const clicks = {
    begin: answer, suggest, again: regenerate, undo, fresh: startAnew, stop: stopReply, sample,
    "save-text": () => save("dialog.txt", "text/plain", asText()),
    "save-json": () => save("dialog.jsonl", "application/jsonl", asJsonLine()),
    "open-keys": () => find("#keys").showModal(),
    theme: switchTheme, copy: copyLink, defaults: () => setAllDecoding({}),
  };
  for (const [id, act] of Object.entries(clicks)) find(`#${id}`).onclick = () => act();
  find("#open-share").onclick = () => {
    find("#link").value = shareLink();
    find("#copy").textContent = "Copy";
    find("#share").showModal();
  };
  find(".skip").onclick = () => showPart("chat");
  for (const button of all("dialog .close")) button.onclick = () => button.closest("dialog").close("");
  for (const button of all("nav button")) button.onclick = () => showPart(button.dataset.show);
  const withCard = { add: addSentence, clear: clearPersona, shuffle };
  for (const button of all("[data-do]")) {
    const { card } = button.closest("[data-card]").dataset;
    button.onclick = () => withCard[button.dataset.do](card);
  }
}

function connectForms() {
  const onSubmit = (id, act) => (find(id).onsubmit = (event) => { event.preventDefault(); act(); });
  onSubmit("#composer", send);
  onSubmit("#rank", () => rankingTask("Scoring ...", rank));
  onSubmit("#key-form", () => find("#key").close(find("#api-key").value.trim()));
  find("#say").onkeydown = (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    send();
  };
  find("#candidates").oninput = () => { state.candidates = find("#candidates").value; remember(); };
  find("#greedy").onchange = (event) => setDecoding("greedy", event.target.checked);
  find("#seed").oninput = () => {
    const seed = parseInt(find("#seed").value);
    setDecoding("seed", Number.isNaN(seed) ? null : Math.abs(seed) % MAX_SEED);
  };
  addEventListener("keydown", onKey);
  addEventListener("hashchange", takeSharedLink); // a link pasted over this page's address
  matchMedia("(prefers-color-scheme: dark)").onchange = () => showTheme(kept("convai-theme"));
}

/** Ask what the server has; until it answers, the page offers to try again. */
async function start() {
  try {
    config = { ...config, ...(await ask("/api/config")) };
    personas = (await ask("/api/personas")).personas;
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    return problem(failure.message, start);
  }
  if (!recall()) for (const who of ["agent", "you"]) state.persona[who] = drawPersona();
  find("#model").textContent = config.model;
  find("#logged").hidden = !config.logs_dialogs;
  makeSliders();
  showWays();
  showAll();
  takeSharedLink();
  document.body.classList.add("ready");
  for (const part of all("[inert]")) part.inert = false;
}

showTheme(kept("convai-theme"));
connectButtons();
connectForms();
watchScrolling();
start();
