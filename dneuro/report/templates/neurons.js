// Finds, filters and sorts neurons. Data lies in data/*.js, scripts that call dneuro.add, since a page opened as
// file:// may load scripts but not read files. The state is kept in the address: #find=…&layer=…&sort=…&order=…
"use strict";

(() => {
  const ROWS = 50;            // shown at a time
  const MANY = 20000;         // neurons beyond which a layer must be named before all are loaded
  const book = window.dneuro;
  const loading = new Map();  // "stem-first" to a promise of that block
  const arrived = new Map();  // "stem-first" to its data
  let shown = ROWS, turn = 0, found = [];

  const get = (selector) => document.querySelector(selector);
  const form = get(".controls"), said = get("#said"), more = get("#more");
  const head = get(".found thead tr"), body = get(".found tbody");
  const make = (tag, attributes, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  };

  // ---- data

  book.add = (stem, first, data) => arrived.set(`${stem}-${first}`, data);

  function block(layer, first) {
    const key = `${layer.stem}-${first}`;
    if (!loading.has(key)) {
      loading.set(key, new Promise((done, failed) => {
        const script = make("script", { src: `data/${key}.js` });
        script.onload = () => done({ layer, first, data: arrived.get(key) });
        script.onerror = () => { loading.delete(key); failed(new Error(`${script.src} cannot be loaded`)); };
        document.head.append(script);
      }));
    }
    return loading.get(key);
  }

  const page = (layer, n) => `${layer.folder}/${n - n % layer.size}.html#n${n}`;
  const picture = (image) =>
    `pictures/${Math.floor(image / book.pictures.perFolder)}/${image}.${book.pictures.suffix}`;

  // ---- what was asked

  // "conv 12 active<1%" as words, ranges of numbers and bounds; words that name a layer choose it.
  function parse(text, layers) {
    const asked = { layers: null, words: [], ranges: [], bounds: [], wrong: [] };
    const tokens = text.trim().toLowerCase().split(/[\s,]+/).filter((token) => token);
    const numeric = tokens.filter((token) => /^#?\d+(?:[-–]\d+)?$/.test(token)).length;
    const named = (token) => {
      const exact = layers.filter((layer) => layer.name.toLowerCase() === token);
      return exact.length ? exact : layers.filter((layer) => layer.name.toLowerCase().includes(token));
    };
    for (const token of tokens) {
      const bound = /^(.+?)(<=|>=|<|>|=)(.+)$/.exec(token);
      const range = /^#?(\d+)(?:[-–](\d+))?$/.exec(token);
      const isLayer = layers.some((layer) => layer.name.toLowerCase() === token);
      if (bound) {
        const value = bound[3].endsWith("%") ? Number(bound[3].slice(0, -1)) / 100 : Number(bound[3]);
        if (Number.isNaN(value)) asked.wrong.push(token);
        else asked.bounds.push({ name: bound[1], sign: bound[2], value, token });
      } else if (range && !(isLayer && numeric > 1)) {  // a layer may be called 3
        const ends = [Number(range[1]), Number(range[2] ?? range[1])];
        asked.ranges.push([Math.min(...ends), Math.max(...ends)]);
      } else {
        const meant = named(token);
        if (meant.length) asked.layers = (asked.layers ?? layers).filter((layer) => meant.includes(layer));
        else asked.words.push(token);
      }
    }
    return asked;
  }

  const squeezed = (text) => text.toLowerCase().replace(/[\s_]+/g, "");
  const column = (layer, name) => layer.columns.find(
    ({ key, title }) => squeezed(key) === squeezed(name) || squeezed(title) === squeezed(name));

  function fits(value, { sign, value: limit }) {
    if (value === null || value === undefined) return false;
    return { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit,
      "=": value === limit }[sign];
  }

  function within(layer, asked) {
    const last = layer.count - 1;
    const ranges = asked.ranges.length ? asked.ranges : [[0, last]];
    return ranges.map(([from, to]) => [from, Math.min(to, last)]).filter(([from, to]) => from <= to);
  }

  function firsts(layer, asked) {
    const wanted = new Set();
    for (const [from, to] of within(layer, asked)) {
      for (let first = from - from % book.block; first <= to; first += book.block) wanted.add(first);
    }
    return [...wanted].sort((a, b) => a - b);
  }

  function* rows({ layer, first, data }, asked) {
    const ranges = within(layer, asked);
    const bounds = asked.bounds.map((bound) => ({ ...bound, values: data.columns[column(layer, bound.name)?.key] }));
    const count = Math.min(book.block, layer.count - first);
    for (let i = 0; i < count; i += 1) {
      const n = first + i, name = data.classes?.[i] ?? "";
      if (ranges.some(([from, to]) => from <= n && n <= to)
          && asked.words.every((word) => name.toLowerCase().includes(word))
          && bounds.every((bound) => fits(bound.values?.[i], bound))) yield { layer, n, i, data, name };
    }
  }

  // ---- what is shown

  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("-", "−");
    return value.toLocaleString("en", { maximumSignificantDigits: 3 }).replace("-", "−");
  };
  const written = (value, share) => value === null || value === undefined || !share
    ? number(value) : `${number(100 * value)} %`;

  function columns(layers) {
    const all = new Map();
    for (const layer of layers) for (const one of layer.columns) if (!all.has(one.key)) all.set(one.key, one);
    return [...all.values()];
  }

  function drawHead(all, sort, classes) {
    head.replaceChildren(make("th", { scope: "col", textContent: "Neuron" }));
    if (book.pictures.suffix) head.append(make("th", { scope: "col", textContent: "Highest" }));
    if (classes) head.append(make("th", { scope: "col", textContent: "Most frequent class" }));
    for (const { key, title } of all) {
      const button = make("button", { type: "button", textContent: title });
      button.addEventListener("click", () => {
        const again = form.sort.value === key && form.order.value === "down";
        form.sort.value = key;
        form.order.value = again ? "up" : "down";
        ask();
      });
      const cell = make("th", { scope: "col", className: "number" }, button);
      if (sort === key) cell.ariaSort = form.order.value === "down" ? "descending" : "ascending";
      head.append(cell);
    }
  }

  function drawRow({ layer, n, i, data, name }, all, classes, alone) {
    const link = make("a", { href: page(layer, n), title: `${layer.name} #${n}` }, alone ? "" : `${layer.name} `,
      make("span", { className: "digits", textContent: `#${n}` }));
    const row = make("tr", {}, make("th", { scope: "row" }, link));
    if (book.pictures.suffix) {
      const { width, height, squares } = book.pictures;
      row.append(make("td", { className: "pictures" }, ...(data.images?.[i] ?? []).map((image) => make("img", {
        loading: "lazy", decoding: "async", width, height, alt: `image ${image}`,
        className: squares ? "squares" : "", src: picture(image) }))));
    }
    if (classes) row.append(make("td", { className: "name", textContent: name }));
    for (const { key, title, share } of all) {
      const cell = make("td", { className: "number", textContent: written(data.columns[key]?.[i], share) });
      cell.dataset.name = title;
      if (key === form.sort.value) cell.classList.add("sorted");
      row.append(cell);
    }
    return row;
  }

  function draw() {
    const layers = [...new Set(found.map((row) => row.layer))];
    const sorted = ({ key }) => key === form.sort.value;
    const all = columns(layers).sort((a, b) => sorted(b) - sorted(a));  // in sight, however many there are
    const classes = found.some((row) => row.name);
    drawHead(all, form.sort.value, classes);
    body.replaceChildren(...found.slice(0, shown).map((row) => drawRow(row, all, classes, layers.length === 1)));
    more.hidden = found.length <= shown;
    more.textContent = `Show ${Math.min(ROWS, found.length - shown)} more of ${found.length.toLocaleString("en")}`;
  }

  function order(list) {
    const key = form.sort.value, down = form.order.value === "down" ? -1 : 1;
    if (!key) return down === 1 ? list : list.reverse();
    const value = (row) => row.data.columns[key]?.[row.i] ?? null;
    return list.map((row) => [value(row), row]).sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return down * (a - b);
    }).map(([, row]) => row);
  }

  // ---- asking

  async function ask() {
    const mine = turn += 1;
    const layers = book.layers.filter((layer) => !form.layer.value || layer.name === form.layer.value);
    const asked = parse(form.find.value, layers);
    remember();
    const chosen = asked.layers ?? layers;
    const unknown = asked.bounds.filter(({ name }) => !chosen.some((layer) => column(layer, name)));
    const wanted = chosen.flatMap((layer) => firsts(layer, asked).map((first) => [layer, first]));
    if (wanted.length * book.block > MANY && !asked.layers && !form.layer.value) {
      tell([], "Choose a layer, or search for one: there are too many neurons to list them all.");
      return;
    }
    said.textContent = "Loading …";
    let blocks;
    try {
      blocks = await Promise.all(wanted.map(([layer, first]) => block(layer, first)));
    } catch (error) {
      if (mine === turn) tell([], `Part of the report is missing: ${error.message}.`);
      return;
    }
    if (mine !== turn) return;  // something else was asked meanwhile
    const complaints = [
      ...unknown.map(({ name }) => `Nothing is called “${name}” here; see “Sort by” for the names.`),
      ...asked.wrong.map((token) => `“${token}” has no number.`),
    ];
    const list = order(blocks.flatMap((one) => [...rows(one, asked)]));
    const total = chosen.reduce((sum, layer) => sum + layer.count, 0);
    const many = (count) => count.toLocaleString("en");
    const of = chosen.length === 1 ? ` of ${chosen[0].name}` : chosen.length ? ` of ${chosen.length} layers` : "";
    tell(list, [`${many(list.length)} of ${many(total)} neurons${of}.`, ...complaints].join(" "));
  }

  function tell(list, words) {
    found = list;
    shown = ROWS;
    said.textContent = words;
    draw();
  }

  function remember() {
    const state = new URLSearchParams();
    for (const name of ["find", "layer", "sort", "order"]) {
      const value = form[name].value;
      if (value && !(name === "order" && value === (form.sort.value ? "down" : "up"))) state.set(name, value);
    }
    history.replaceState(null, "", `${location.pathname}#${state}`);
  }

  // An address written by hand may hold a bare %.
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  }

  function recall() {
    const text = decoded(location.hash.slice(1));
    const plain = text && !/^(find|layer|sort|order)=/.test(text);
    const state = plain ? new URLSearchParams({ find: text }) : new URLSearchParams(location.hash.slice(1));
    const asked = new URLSearchParams(location.search).get("find");
    if (asked !== null && !location.hash) state.set("find", asked);
    form.find.value = state.get("find") ?? "";
    form.layer.value = state.get("layer") ?? "";
    form.sort.value = state.get("sort") ?? "";
    if (form.layer.selectedIndex < 0) form.layer.value = "";
    if (form.sort.selectedIndex < 0) form.sort.value = "";
    form.order.value = state.get("order") ?? (form.sort.value ? "down" : "up");
    return asked !== null && !location.hash;
  }

  async function start() {
    get("#search").hidden = false;
    for (const { name } of book.layers) form.layer.append(new Option(name, name));
    form.sort.append(new Option("number", ""));
    for (const { key, title } of columns(book.layers)) form.sort.append(new Option(title, key));
    let typing;
    form.find.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(ask, 150); });
    form.layer.addEventListener("change", ask);
    form.sort.addEventListener("change", () => { form.order.value = form.sort.value ? "down" : "up"; ask(); });
    form.order.addEventListener("change", ask);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      clearTimeout(typing);
      await ask();
      if (found.length === 1) location.assign(page(found[0].layer, found[0].n));
    });
    more.addEventListener("click", () => { shown += ROWS; draw(); });
    window.addEventListener("hashchange", () => { if (location.hash !== "#by-layer") { recall(); ask(); } });
    const sent = recall();  // from the field of another page
    await ask();
    if (sent && found.length === 1) location.replace(page(found[0].layer, found[0].n));
  }

  start();
})();
