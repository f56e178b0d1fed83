(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const look = (value, style) => {
    if (typeof value === "string") {
      const found = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map(item => look(item, style));
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, look(item, style)]));
    return value;
  };
  const config = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"]};
  const draw = id => {
    document.querySelector(`#plot-${id} noscript`)?.remove();
    const style = getComputedStyle(document.documentElement);
    Plotly.react(`plot-${id}`, look(figures[id].data, style), look(figures[id].layout, style), config);
  };
  const drawAll = () => Object.keys(figures).forEach(draw);
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("print").addEventListener("change", drawAll);
  const losses = figures.losses;
  const part = document.getElementById("loss-part");
  if (losses && part) {
    part.addEventListener("change", () => {
      losses.data.forEach((trace, index) => { trace.y = losses.parts[index][part.value] || trace.x.map(() => null); });
      losses.layout.yaxis.title.text = part.value === "total" ? "loss" : part.value.replaceAll("<", "&lt;");
      draw("losses");
    });
    document.querySelectorAll("[data-show]").forEach(button => button.addEventListener("click", () => {
      const wanted = button.dataset.show;
      const shown = losses.data.map(trace => wanted === "all" || (wanted === "front" && trace.meta.shown) || "legendonly");
      Plotly.restyle("plot-losses", {visible: shown});
    }));
  }
  document.querySelectorAll("[data-copy]").forEach(button => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    let done = false;
    try { await navigator.clipboard.writeText(code.textContent); done = true; } catch { done = document.execCommand("copy"); }
    button.textContent = done ? "copied" : "selected";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }));
})();
