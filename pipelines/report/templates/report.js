"use strict";
// Everything from the data reaches the page by textContent; nothing here makes markup from strings.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = (key) => {
    const block = byId("data-" + key);
    return block ? JSON.parse(block.textContent) : null;
  };
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);

  function setUpTheme() {
    const root = document.documentElement;
    const wanted = /theme=(light|dark)/.exec(location.hash);
    if (wanted) root.dataset.theme = wanted[1];
    byId("theme")?.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark";
    });
  }

  // A text that a spreadsheet would run as a formula gets an apostrophe in front.
  function csvCell(value) {
    if (value === null) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }

  function setUpDownloads() {
    document.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-csv]");
      if (!button) return;
      const table = data(button.dataset.csv);
      const text = [table.columns, ...table.rows].map((row) => row.map(csvCell).join(",")).join("\r\n") + "\r\n";
      const link = make("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff", text], { type: "text/csv" }));
      link.download = button.dataset.csv + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  function setUpHeatMap() {
    const heat = data("heat-map");
    if (!heat) return;
    const [first, second] = [byId("heat-a"), byId("heat-b")];
    byId("heat-controls").hidden = false;
    const paint = () => {
      const a = heat.variants[Number(first.value)];
      const b = second.value === "" ? null : heat.variants[Number(second.value)];
      const value = (row, column) => {
        const [x, y] = [a.values[row][column], b ? b.values[row][column] : 0];
        return x === null || y === null ? null : x - y;
      };
      const cells = [...document.querySelectorAll("#heat .cell")];
      const values = cells.map((cell) => value(Number(cell.dataset.row), Number(cell.dataset.column)));
      const top = b ? Math.max(...values.map((v) => Math.abs(v ?? 0))) : heat.top;
      cells.forEach((cell, i) => {
        const v = values[i];
        const share = top ? (v ?? 0) / top : 0;
        const bin = b ? "d" + Math.round(4 + 4 * share) : "q" + Math.min(8, Math.floor(9 * share));
        cell.setAttribute("class", "cell " + (v === null ? "none" : bin));
        cell.querySelector("text").textContent = v === null ? "" : b ? signed(100 * v, 1) : (100 * v).toFixed(1);
      });
      byId("heat-caption").textContent = b
        ? `${a.name} minus ${b.name}, in percentage points of the held-out pairs: blue where the first finds more, orange where the second does.`
        : `${a.name}: percent of the held-out pairs found; the strongest colour is ${(100 * top).toFixed(1)} %.`;
    };
    first.addEventListener("change", paint);
    second.addEventListener("change", paint);
  }

  function setUpExplorer() {
    const explorer = data("explorer");
    if (!explorer) return;
    const [pairs, users, detail] = [byId("explorer-pair"), byId("explorer-users"), byId("explorer-detail")];
    byId("explorer").hidden = false;
    let selected = 0;
    const pair = () => explorer.pairs[Number(pairs.value)];

    function chips(title, items, size, hits) {
      const line = make("p", undefined, "titles");
      line.append(make("b", title), " ");
      for (const item of items) line.append(make("bdi", explorer.titles[item], hits.has(item) ? "hit" : ""));
      if (size > items.length) line.append(make("span", `and ${size - items.length} more`, "more"));
      return line;
    }

    function ranked(name, value, items) {
      const column = make("div");
      column.append(make("h4", `${name}: ${explorer.metric} ${value.toFixed(3)}`));
      const list = make("ol");
      for (const [item, hit] of items) {
        const line = make("li", undefined, hit ? "hit" : "");
        line.append(make("bdi", explorer.titles[item]));
        if (hit) line.append(make("span", " (hit)", "hidden"));
        list.append(line);
      }
      column.append(list);
      return column;
    }

    function show() {
      const user = pair().users[selected];
      for (const option of users.children) option.setAttribute("aria-selected", String(Number(option.dataset.place) === selected));
      if (!user) {
        detail.replaceChildren(make("p", "These two variants do not differ for any user.", "absent"));
        return;
      }
      users.setAttribute("aria-activedescendant", "explorer-user-" + selected);
      const option = byId("explorer-user-" + selected);
      const [top, bottom] = [option.offsetTop - users.offsetTop, option.offsetTop - users.offsetTop + option.offsetHeight];
      if (top < users.scrollTop) users.scrollTop = top;
      if (bottom > users.scrollTop + users.clientHeight) users.scrollTop = bottom - users.clientHeight;
      const hits = new Set(user.lists.flat().filter(([, hit]) => hit).map(([item]) => item));
      const lists = make("div", undefined, "lists");
      lists.append(ranked(pair().a, user.a, user.lists[0]), ranked(pair().b, user.b, user.lists[1]));
      detail.replaceChildren(
        chips(`Held out (${user.relevant_size})`, user.relevant, user.relevant_size, hits),
        chips(`History (${user.history_size})`, user.history, user.history_size, new Set()),
        lists,
      );
    }

    function fill() {
      selected = 0;
      users.replaceChildren(
        ...pair().users.map((user, place) => {
          const option = make("div");
          option.setAttribute("role", "option");
          option.id = "explorer-user-" + place;
          option.dataset.place = place;
          const difference = user.a - user.b;
          option.append(make("bdi", user.id), make("span", signed(difference, 3), difference > 0 ? "gain" : "loss"));
          return option;
        }),
      );
      show();
    }

    users.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (!option) return;
      selected = Number(option.dataset.place);
      show();
    });
    users.addEventListener("keydown", (event) => {
      const last = pair().users.length - 1;
      const target = { ArrowDown: selected + 1, ArrowUp: selected - 1, Home: 0, End: last }[event.key];
      if (target === undefined || last < 0) return;
      event.preventDefault();
      selected = Math.max(0, Math.min(last, target));
      show();
    });
    pairs.addEventListener("change", fill);
    fill();
  }

  setUpTheme();
  setUpDownloads();
  setUpHeatMap();
  setUpExplorer();
  const sections = document.querySelector("nav details");
  if (sections && matchMedia("(max-width: 900px)").matches) sections.open = false;
  addEventListener("beforeprint", () => document.querySelectorAll("main details").forEach((part) => (part.open = true)));
})();
